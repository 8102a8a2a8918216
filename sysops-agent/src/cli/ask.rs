//! Asks the agent that runs, over its control socket: finds it by the configuration, and says what to do where it cannot be
//! asked.

use std::path::{Path, PathBuf};

use super::{Args, exit, output, validate};
use crate::catalog;
use crate::control::protocol::{Answer, Request};
use crate::control::{self, AskError};
use crate::model::shown;
use crate::settings::{self, Absent, Declared, Problems, Settings, keys};

/// The one answer to `request`.
///
/// # Errors
/// With the exit status, when there is none: why is said already.
pub fn one(args: &Args, request: &Request) -> Result<Answer, u8> {
    let path = socket(args).map_err(|problems| validate::refuse(&problems))?.ok_or_else(no_socket)?;
    control::ask(&path, request).and_then(|mut answers| answers.next_answer()).map_err(|error| refuse(&path, &error))
}

/// Why the agent that runs does not answer, for whoever can do without.
#[derive(Debug)]
pub enum Unasked {
    /// None runs with this configuration, or it has no socket.
    NoAgent,
    /// One runs that does not answer: why, in words.
    NoAnswer(String),
}

/// The one answer to `request` of the agent that runs with these settings.
///
/// # Errors
/// Why there is none.
pub fn agent_of(settings: &Settings, request: &Request) -> Result<Answer, Unasked> {
    let path = control::path(&settings.values, keys::data_dir(&settings.values).as_deref()).ok_or(Unasked::NoAgent)?;
    control::ask(&path, request).and_then(|mut answers| answers.next_answer()).map_err(|error| match error {
        AskError::NoAgent => Unasked::NoAgent,
        error => Unasked::NoAnswer(format!("{}: {}", path.display(), shown(&error.to_string(), 500))),
    })
}

/// Where the socket of the agent is that runs with the same configuration; `None` when it has none.
///
/// Only `[agent]` counts, and variables that are not set are empty: the rest may need secrets that only the service has in
/// its environment, and a person who asks at night has not.
///
/// # Errors
/// What is wrong with that part of the configuration.
pub fn socket(args: &Args) -> Result<Option<PathBuf>, Problems> {
    let all = catalog::declared();
    let (ours, others): (Vec<_>, Vec<_>) = all.keys.into_iter().partition(|key| key.table() == "agent");
    let tables = others.iter().filter_map(|key| key.path.split('.').next());
    let absent = tables.map(|table| Absent { table, feature: "" }).chain(all.absent).collect();
    let declared = Declared { keys: ours, absent, ..Declared::default() };
    let environment = |name: &str| Some(settings::environment(name).unwrap_or_default());
    let settings = settings::load(args.config_file(), &declared, &environment)?;
    Ok(control::path(&settings.values, keys::data_dir(&settings.values).as_deref()))
}

/// Says that there is nobody to ask, and gives the exit status.
#[must_use]
pub fn no_socket() -> u8 {
    output::say(
        &"error: this configuration has no socket (agent.control_socket or agent.data_dir is empty): its agent cannot be asked",
    );
    exit::UNAVAILABLE
}

/// Says why there is no answer, what to do, and gives the exit status.
#[must_use]
pub fn refuse(path: &Path, error: &AskError) -> u8 {
    if let AskError::Refused(reason) = error {
        output::say(&format_args!("error: {}", shown(reason, 2000)));
        return exit::FAILURE;
    }
    output::say(&format_args!("error: {}: {}", path.display(), shown(&error.to_string(), 500)));
    let (hint, status) = match error {
        AskError::NoAgent => (
            "is the agent running (systemctl status sysops-agent), and with this configuration (--config FILE)? \
             Its log says so when it could not make the socket",
            exit::UNAVAILABLE,
        ),
        AskError::Denied => ("root and the agent's own user may: use sudo", exit::NO_PERMISSION),
        AskError::Silent(_) => {
            ("it may be stopped or stuck: systemctl status sysops-agent; its log says more", exit::UNAVAILABLE)
        }
        AskError::Strange(_) | AskError::Refused(_) => {
            ("it may be of another version: ask it by its own sysops-agent", exit::UNAVAILABLE)
        }
    };
    output::say(&format_args!("hint: {hint}"));
    status
}

/// Says that the answer is one to another question, and gives the exit status.
#[must_use]
pub fn strange() -> u8 {
    output::say(&"error: the agent answers another question than was asked; that is a bug");
    exit::SOFTWARE
}
