//! `--validate`: checks the configuration, without network and without privilege. What is wrong is said by `settings`.

use std::fmt::Write as _;

use super::{Args, exit, output};
use crate::settings::{Problems, Settings};

/// Checks the configuration and gives the exit status: mistakes to stderr and 78, else OK to stdout and 0.
#[must_use]
pub fn run(args: &Args) -> u8 {
    match args.settings() {
        Ok(settings) => output::stdout(|out| out.write_all(report(&settings).as_bytes())),
        Err(problems) => refuse(&problems),
    }
}

/// Says what is wrong with the configuration and gives the exit status.
#[must_use]
pub fn refuse(problems: &Problems) -> u8 {
    output::say(&problems.to_string().trim_end());
    exit::CONFIG
}

/// What is said about a configuration that was accepted.
#[must_use]
pub fn report(settings: &Settings) -> String {
    let mut out = match &settings.file {
        Some(file) => format!("OK: {}\n", file.display()),
        None => "OK: no configuration file, every key has its default\n".to_owned(),
    };
    for warning in &settings.warnings {
        // Writing to a String cannot fail.
        let _ = write!(out, "\n{}", warning.as_warning());
    }
    for notice in settings.notices() {
        let _ = write!(out, "\n{notice}\n");
    }
    out
}
