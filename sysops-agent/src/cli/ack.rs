//! `ack`: someone takes care of an alert, so that nobody else is woken for it.

use super::{Args, alerts, ask, output};
use crate::control::protocol::{Answer, Request};

/// Arguments of `ack`.
#[derive(Clone, Debug, clap::Args, PartialEq, Eq)]
pub struct AckArgs {
    /// The alert: the first digits that `alerts` lists, as many as tell it apart.
    #[arg(value_name = "ALERT")]
    pub alert: String,
    /// Why, or what is done about it.
    #[arg(long, value_name = "TEXT", conflicts_with = "undo")]
    pub note: Option<String>,
    /// Take the acknowledgement back.
    #[arg(long)]
    pub undo: bool,
}

/// Does it and gives the exit status.
#[must_use]
pub fn run(args: &Args, ack: &AckArgs) -> u8 {
    let alert = ack.alert.clone();
    let request = if ack.undo {
        Request::Unack { alert }
    } else {
        Request::Ack { alert, note: ack.note.clone().unwrap_or_default() }
    };
    match ask::one(args, &request) {
        Ok(Answer::Alert(alert)) => {
            let done = if ack.undo { "no longer acknowledged" } else { "acknowledged" };
            output::stdout(|out| writeln!(out, "{done}: {}", alerts::line(&alert)))
        }
        Ok(_) => ask::strange(),
        Err(status) => status,
    }
}
