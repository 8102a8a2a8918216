//! `rules test`: holds rules against series that someone wrote down, and says where they do not do what was expected. What
//! stands in a test's file is `file`'s.

mod expected;
mod file;
mod samples;
mod simulation;

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use clap::Subcommand;

use super::output::{Colour, Style};
use super::{exit, output, validate};
use crate::catalog;
use crate::settings::{self, Problems, Settings};
use file::TestFile;
use simulation::Failure;

/// Subcommands of `rules`.
#[derive(Clone, Debug, Subcommand, PartialEq, Eq)]
pub enum RulesCommand {
    /// Run the tests of files: status 0 when all hold, 1 when not, 78 when a file has mistakes.
    Test {
        /// Files with tests (docs/ALERTING.md says what stands in them).
        #[arg(value_name = "FILE", required = true)]
        files: Vec<PathBuf>,
    },
}

/// Does it and gives the exit status.
#[must_use]
pub fn run(command: &RulesCommand) -> u8 {
    let RulesCommand::Test { files } = command;
    let mut status = exit::OK;
    for path in files {
        let tested = match results(path) {
            Ok(results) => {
                let style = Style::stdout(&settings::environment);
                let printed = output::stdout(|out| print(path, &results, style, out));
                let failed = results.iter().any(|result| !result.failures.is_empty());
                if failed && printed == exit::OK { exit::FAILURE } else { printed }
            }
            Err(problems) => validate::refuse(&problems),
        };
        status = status.max(tested);
    }
    status
}

/// What came of one test.
struct Outcome {
    name: String,
    line: usize,
    failures: Vec<Failure>,
}

fn results(path: &Path) -> Result<Vec<Outcome>, Problems> {
    let TestFile { rules, thresholds, tests } = file::load(path)?;
    let settings = match rules {
        // Relative to the file that names it, wherever the command is run.
        Some(rules) => {
            let rules = path.parent().map_or_else(|| rules.clone().into(), |folder| folder.join(&rules));
            settings::load(Some(&rules), &catalog::declared(), &settings::environment)?
        }
        None => Settings::default(),
    };
    let result = |test: file::Test| {
        let failures = simulation::run(&test, &settings.values, thresholds);
        Outcome { name: test.name, line: test.line, failures }
    };
    Ok(tests.into_iter().map(result).collect())
}

fn print(path: &Path, results: &[Outcome], style: Style, out: &mut dyn Write) -> io::Result<()> {
    let path = path.display();
    for Outcome { name, line, failures } in results {
        if failures.is_empty() {
            writeln!(out, "{} {name}", style.paint(Colour::Green, "SUCCESS"))?;
            continue;
        }
        writeln!(out, "{}  {name} ({path}:{line})", style.paint(Colour::Red, "FAILED"))?;
        for failure in failures {
            writeln!(out, "  {path}:{}: at {} s:", failure.line, failure.at.as_secs())?;
            each_line("expected", &failure.expected, out)?;
            each_line("got", &failure.got, out)?;
        }
    }
    Ok(())
}

fn each_line(what: &str, alerts: &[String], out: &mut dyn Write) -> io::Result<()> {
    if alerts.is_empty() {
        return writeln!(out, "    {what:<9} no alert");
    }
    alerts.iter().try_for_each(|alert| writeln!(out, "    {what:<9} {alert}"))
}
