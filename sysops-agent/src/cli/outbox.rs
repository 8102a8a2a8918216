//! `outbox`: how each channel of the agent that runs stands, and what keeps its alerts.

use std::io::{self, Write};
use std::time::Duration;

use serde::Serialize;

use super::output::{Colour, Style};
use super::table::{Cell, Table};
use super::{Args, ask, output, span};
use crate::control::protocol::{Answer, Request};
use crate::model::{ChannelStatus, OutboxStatus, bytes_text, shown};

/// docs/schemas/outbox.schema.json describes it.
#[derive(Serialize)]
struct Document<'a> {
    schema: u32,
    #[serde(flatten)]
    status: &'a OutboxStatus,
}

/// Lists them and gives the exit status.
#[must_use]
pub fn run(args: &Args, json: bool) -> u8 {
    let status = match ask::one(args, &Request::Outbox) {
        Ok(Answer::Outbox(status)) => status,
        Ok(_) => return ask::strange(),
        Err(status) => return status,
    };
    if json {
        let document = serde_json::to_string(&Document { schema: 1, status: &status }).expect("it has a JSON form");
        return output::document(&(document + "\n"));
    }
    let style = Style::stdout(&crate::settings::environment);
    output::stdout(|out| print(&status, style, out))
}

fn print(status: &OutboxStatus, style: Style, out: &mut dyn Write) -> io::Result<()> {
    if status.channels.is_empty() {
        writeln!(out, "no channel is enabled: alerts reach nobody")?;
    } else {
        table(&status.channels).print(style, out)?;
    }
    if status.records > 0 {
        writeln!(out, "{} waiting, {} on disk", status.records, bytes_text(status.bytes))?;
    }
    if let Some(problem) = &status.problem {
        let problem = format!("what waits would not survive the end of the agent: {}", shown(problem, 500));
        writeln!(out, "{}", style.paint(Colour::Red, problem))?;
    }
    Ok(())
}

fn table(channels: &[ChannelStatus]) -> Table {
    let secs = |secs: Option<u64>| secs.map_or_else(String::new, |secs| span::text_of(Duration::from_secs(secs)));
    let mut table = Table::new(["CHANNEL", "STATE", "WAITING", "OLDEST", "NEXT TRY", "DELIVERED", "PARKED", "LOST"]);
    for one in channels {
        table.row([
            shown(&one.channel, 32).into(),
            state(one),
            one.waiting.to_string().into(),
            secs(one.oldest_secs).into(),
            secs(one.next_try_secs).into(),
            one.delivered.to_string().into(),
            one.parked.to_string().into(),
            one.lost.to_string().into(),
        ]);
        if let Some(error) = &one.last_error {
            table.note(shown(error, 500));
        }
    }
    table
}

fn state(channel: &ChannelStatus) -> Cell {
    match channel {
        ChannelStatus { enabled: false, .. } => Cell::painted("off", Colour::Dim),
        ChannelStatus { refused: true, .. } => Cell::painted("refused", Colour::Red),
        ChannelStatus { last_error: Some(_), .. } => Cell::painted("failing", Colour::Yellow),
        _ => Cell::painted("ok", Colour::Green),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn printed(status: &OutboxStatus) -> String {
        let mut out = Vec::new();
        print(status, Style::of(false, &|_| None), &mut out).expect("memory can be written");
        String::from_utf8(out).expect("UTF-8")
    }

    #[test]
    fn a_table_for_people() {
        let channel =
            |name: &str| ChannelStatus { channel: name.to_owned(), enabled: true, ..ChannelStatus::default() };
        let well = ChannelStatus { delivered: 12, ..channel("webhook") };
        let failing = ChannelStatus {
            waiting: 3,
            oldest_secs: Some(7500),
            next_try_secs: Some(42),
            last_error: Some("the server answered 503\x1b".to_owned()),
            ..channel("slack")
        };
        let refused = ChannelStatus { parked: 1, lost: 2, refused: true, ..failing.clone() };
        let off = ChannelStatus { enabled: false, waiting: 1, ..channel("email") };
        let channels = vec![well, failing, refused, off];
        let problem = Some("/var/lib/x: no space left".to_owned());
        insta::assert_snapshot!(printed(&OutboxStatus { problem, records: 7, bytes: 12_345, channels }));
        assert_eq!(printed(&OutboxStatus::default()), "no channel is enabled: alerts reach nobody\n");
    }
}
