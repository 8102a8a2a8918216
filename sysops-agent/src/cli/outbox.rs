//! `outbox`: how each channel of the agent that runs stands, and what keeps its alerts.

use std::io::{self, Write};
use std::time::Duration;

use serde::Serialize;

use super::output::{Colour, Style};
use super::table::{Cell, Table};
use super::{Args, ask, output, span};
use crate::control::protocol::{Answer, Request};
use crate::model::delivery::LaneStatus;
use crate::model::shown;

/// docs/schemas/outbox.schema.json describes it.
#[derive(Serialize)]
struct Document<'a> {
    schema: u32,
    channels: &'a [LaneStatus],
}

/// Lists them and gives the exit status.
#[must_use]
pub fn run(args: &Args, json: bool) -> u8 {
    let lanes = match ask::one(args, &Request::Outbox) {
        Ok(Answer::Outbox(lanes)) => lanes,
        Ok(_) => return ask::strange(),
        Err(status) => return status,
    };
    if json {
        let document = serde_json::to_string(&Document { schema: 1, channels: &lanes }).expect("it has a JSON form");
        return output::document(&(document + "\n"));
    }
    let style = Style::stdout(&crate::settings::environment);
    output::stdout(|out| print(&lanes, style, out))
}

fn print(lanes: &[LaneStatus], style: Style, out: &mut dyn Write) -> io::Result<()> {
    if lanes.is_empty() {
        return writeln!(out, "no channel is enabled: alerts reach nobody");
    }
    let secs = |secs: Option<u64>| secs.map_or_else(String::new, |secs| span::text_of(Duration::from_secs(secs)));
    let mut table = Table::new(["CHANNEL", "STATE", "WAITING", "OLDEST", "NEXT TRY", "DELIVERED", "PARKED"]);
    for lane in lanes {
        table.row([
            shown(&lane.channel, 32).into(),
            state(lane),
            lane.waiting.to_string().into(),
            secs(lane.oldest_secs).into(),
            secs(lane.next_try_secs).into(),
            lane.delivered.to_string().into(),
            lane.parked.to_string().into(),
        ]);
        if let Some(error) = &lane.last_error {
            table.note(shown(error, 500));
        }
    }
    table.print(style, out)
}

fn state(lane: &LaneStatus) -> Cell {
    match lane {
        LaneStatus { paused: true, .. } => Cell::painted("refused", Colour::Red),
        LaneStatus { last_error: Some(_), waiting: 1.., .. } => Cell::painted("failing", Colour::Yellow),
        _ => Cell::painted("ok", Colour::Green),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_for_people() {
        let well = LaneStatus {
            channel: "webhook".to_owned(),
            waiting: 0,
            oldest_secs: None,
            next_try_secs: None,
            last_error: None,
            delivered: 12,
            parked: 0,
            paused: false,
        };
        let failing = LaneStatus {
            channel: "slack".to_owned(),
            waiting: 3,
            oldest_secs: Some(7500),
            next_try_secs: Some(42),
            last_error: Some("the server answered 503\x1b".to_owned()),
            ..well.clone()
        };
        let refused = LaneStatus { channel: "email".to_owned(), parked: 1, paused: true, ..failing.clone() };
        let mut out = Vec::new();
        print(&[well, failing, refused], Style::of(false, &|_| None), &mut out).expect("memory can be written");
        insta::assert_snapshot!(String::from_utf8(out).expect("UTF-8"));
    }
}
