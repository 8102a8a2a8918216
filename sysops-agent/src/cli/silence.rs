//! `silence add`, `silence list`, `silence remove`: alerts that match are kept from people for a while.

use std::io::{self, Write};
use std::time::{Duration, SystemTime};

use clap::Subcommand;
use serde::Serialize;

use super::output::Style;
use super::table::Table;
use super::{Args, ask, exit, output, span};
use crate::control::SILENCE_MAX;
use crate::control::protocol::{Answer, Request};
use crate::host::Clock;
use crate::model::{Listed, Matcher, Silence, shown, time};

/// Subcommands of `silence`.
#[derive(Clone, Debug, Subcommand, PartialEq, Eq)]
pub enum SilenceCommand {
    /// Keep alerts that match from people for a while; it ends by itself.
    Add(AddArgs),
    /// List the silences that hold.
    List {
        /// Print one JSON document.
        #[arg(long)]
        json: bool,
    },
    /// End a silence.
    Remove {
        /// Its number, as `silence list` has it.
        #[arg(value_name = "ID")]
        id: u64,
    },
}

/// Arguments of `silence add`.
#[derive(Clone, Debug, clap::Args, PartialEq, Eq)]
pub struct AddArgs {
    /// For how long, at most 30d: 90s, 15m, 2h, 1h30m, 3d.
    #[arg(long = "for", value_name = "TIME", value_parser = |text: &str| span::parse(text, SILENCE_MAX))]
    pub length: Duration,
    /// Why.
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub comment: String,
    /// What an alert must have: a label, severity, metric, rule or hostname, and its value, in which * stands for any text.
    /// All that are given must hold.
    #[arg(value_name = "NAME=PATTERN", required = true, value_parser = condition)]
    pub conditions: Vec<String>,
}

fn condition(word: &str) -> Result<String, String> {
    Matcher::of_words([word]).map(|_| word.to_owned()).map_err(|error| error.to_string())
}

/// docs/schemas/silences.schema.json describes it.
#[derive(Serialize)]
struct Document<'a> {
    schema: u32,
    silences: &'a [Silence],
}

/// Does it and gives the exit status.
#[must_use]
pub fn run(args: &Args, command: &SilenceCommand) -> u8 {
    match command {
        SilenceCommand::Add(add) => self::add(args, add),
        SilenceCommand::List { json } => list(args, *json),
        SilenceCommand::Remove { id } => match ask::one(args, &Request::Unsilence { id: *id }) {
            Ok(Answer::Silence(silence)) => output::stdout(|out| {
                writeln!(out, "silence {id} has ended: {}", shown(&silence.matcher.to_string(), 500))
            }),
            Ok(_) => ask::strange(),
            Err(status) => status,
        },
    }
}

fn add(args: &Args, add: &AddArgs) -> u8 {
    let matcher = match Matcher::of_words(add.conditions.iter().map(String::as_str)) {
        Ok(matcher) => matcher,
        Err(error) => {
            output::say(&format_args!("error: {error}"));
            return exit::USAGE;
        }
    };
    let conditions = matcher.conditions().map(|(name, pattern)| (name.to_owned(), pattern.to_owned())).collect();
    let request = Request::Silence { matcher: conditions, secs: add.length.as_secs(), comment: add.comment.clone() };
    let silence = match ask::one(args, &request) {
        Ok(Answer::Silence(silence)) => silence,
        Ok(_) => return ask::strange(),
        Err(status) => return status,
    };
    // A name that is misspelt is the usual mistake, and it shows only when it is too late.
    let alerts = match ask::one(args, &Request::Alerts) {
        Ok(Answer::Alerts(alerts)) => alerts,
        Ok(_) => return ask::strange(),
        Err(status) => return status,
    };
    let matching = alerts.iter().filter(|alert| is_met(&matcher, alert)).count();
    output::stdout(|out| {
        let until = time::rfc3339_secs(silence.ends_at);
        writeln!(out, "silence {} until {until}: {}", silence.id, shown(&silence.matcher.to_string(), 500))?;
        match matching {
            0 => writeln!(out, "no alert that is live now matches: `sysops-agent alerts --all` has names and values"),
            1 => writeln!(out, "1 alert that is live now matches"),
            count => writeln!(out, "{count} alerts that are live now match"),
        }
    })
}

/// As the agent sees it, but for the host's name, which is not asked for here.
fn is_met(matcher: &Matcher, alert: &Listed) -> bool {
    let others = matcher.conditions().filter(|(name, _)| *name != "hostname");
    let others = Matcher::new(others.map(|(name, pattern)| (name.to_owned(), pattern.to_owned())).collect());
    others.is_ok_and(|matcher| {
        matcher.matches(|name| match name {
            "severity" => Some(alert.severity.name()),
            "metric" => Some(&alert.metric),
            "rule" => Some(&alert.rule),
            label => alert.labels.get(label).map(String::as_str),
        })
    })
}

fn list(args: &Args, json: bool) -> u8 {
    let silences = match ask::one(args, &Request::Silences) {
        Ok(Answer::Silences(silences)) => silences,
        Ok(_) => return ask::strange(),
        Err(status) => return status,
    };
    if json {
        let document = serde_json::to_string(&Document { schema: 1, silences: &silences }).expect("it has a JSON form");
        return output::document(&(document + "\n"));
    }
    let style = Style::stdout(&crate::settings::environment);
    output::stdout(|out| print(&silences, Clock::Live.now().wall, style, out))
}

fn print(silences: &[Silence], now: SystemTime, style: Style, out: &mut dyn Write) -> io::Result<()> {
    if silences.is_empty() {
        return writeln!(out, "no silences");
    }
    let mut table = Table::new(["ID", "UNTIL", "LEFT", "BY", "WHAT"]);
    for silence in silences {
        table.row([
            silence.id.to_string().into(),
            time::rfc3339_secs(silence.ends_at).into(),
            span::between(now, silence.ends_at).into(),
            shown(&silence.by, 64).into(),
            shown(&silence.matcher.to_string(), 500).into(),
        ]);
        if !silence.comment.is_empty() {
            table.note(shown(&silence.comment, 500));
        }
    }
    table.print(style, out)
}
