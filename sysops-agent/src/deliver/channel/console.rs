//! Alerts as lines on standard output, for a person at the terminal or whatever collects the agent's output.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, IsTerminal, Write as _};
use std::os::fd::AsFd;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::deliver::text;
use crate::model::{Alert, Change, Notice, Severity, Status, cut, shown, time};
use crate::spec::{Key, Values};

use super::{Channel, Entry, Receipt, SendError, Sending};

/// The channel as the list knows it.
pub static ENTRY: Entry = Entry {
    name: "console",
    keys: &[ENABLED.spec(), MIN_SEVERITY.spec()],
    min_severity: &MIN_SEVERITY,
    grouped: false,
    durable: false,
    build,
};

/// Whether alerts are printed.
pub static ENABLED: Key<bool> = Key::switch("alerting.console.enabled", true, "Alerts as lines on standard output.");
static MIN_SEVERITY: Key<String> = Key::choice(
    "alerting.console.min_severity",
    Severity::NAMES,
    "info",
    "The least severity that is shown on the console.",
);

/// A pipe that polls writable takes at least this much at once (PIPE_BUF), so that a line never blocks.
const LINE_BYTES_MAX: usize = 4096;

/// Standard output, or what a test puts in its place.
pub struct Console {
    out: File,
    colour: bool,
}

fn build(values: &Values) -> Result<Option<Box<dyn Channel>>, String> {
    if !values.get(&ENABLED) {
        return Ok(None);
    }
    let out = io::stdout().as_fd().try_clone_to_owned();
    let out = out.map_err(|error| format!("alerting.console.enabled: standard output: {error}"))?;
    Ok(Some(Box::new(Console::new(out.into()))))
}

impl Console {
    /// Writes to `out`, in colour if that is a terminal.
    #[must_use]
    pub fn new(out: File) -> Self {
        let colour = out.is_terminal();
        Self { out, colour }
    }

    fn write(&mut self, alert: &Alert) -> Result<Receipt, SendError> {
        let line = line(alert, self.colour);
        let mut ready = [PollFd::new(&self.out, PollFlags::OUT)];
        // A reader that has stopped must not stop the agent.
        let writable = poll(&mut ready, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).is_ok_and(|ready| ready > 0);
        if !writable {
            return Err(SendError::Retry { reason: "standard output is full".to_owned(), after: None });
        }
        self.out.write_all(line.as_bytes()).map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::StorageFull => {
                SendError::Retry { reason: format!("standard output: {error}"), after: None }
            }
            _ => SendError::Permanent { reason: format!("standard output: {error}") },
        })?;
        Ok(Receipt::new("written to standard output"))
    }
}

impl Channel for Console {
    fn send<'a>(&'a mut self, notice: &'a Notice) -> Sending<'a> {
        let written = self.write(notice.head());
        Box::pin(std::future::ready(written))
    }
}

/// `2026-02-22T16:30:00Z CRITICAL oom_kill web-1: The kernel killed … (escalated, 20 min) [cgroup=/a comm=java pid=42]`
fn line(alert: &Alert, colour: bool) -> String {
    let paint = match (alert.status, alert.severity) {
        (Status::Resolved, _) => "\x1b[32m",
        (Status::Firing, Severity::Info) => "\x1b[36m",
        (Status::Firing, Severity::Warn) => "\x1b[33m",
        (Status::Firing, Severity::Critical) => "\x1b[31m",
        (Status::Firing, Severity::Emergency) => "\x1b[1;31m",
    };
    let (paint, plain) = if colour { (paint, "\x1b[0m") } else { ("", "") };
    let mut line = format!(
        "{} {paint}{}{plain} {} {}: {}",
        time::rfc3339_secs(alert.timestamp),
        text::word(alert),
        shown(&alert.metric, 64),
        shown(&alert.hostname, 255),
        shown(&alert.message, 700),
    );
    // That it fired a moment ago is what a line says anyhow.
    let change = match alert.change {
        Change::Worsened => "worse",
        Change::Escalated => "escalated",
        Change::Reminded => "still",
        Change::Resolved => "over",
        Change::Fired | Change::Digest | Change::Test => "",
    };
    let length = alert.timestamp.duration_since(alert.starts_at).unwrap_or_default();
    if !change.is_empty() && length >= Duration::from_secs(1) {
        // Writing into a String does not fail, here and below.
        let _ = write!(line, " ({change}, {})", text::span(length));
    }
    if !alert.labels.is_empty() {
        line.push_str(" [");
        for (i, (name, value)) in alert.labels.iter().enumerate() {
            let space = if i == 0 { "" } else { " " };
            let _ = write!(line, "{space}{}={}", shown(name, 64), shown(value, 128));
        }
        line.push(']');
    }
    line.truncate(cut(&line, LINE_BYTES_MAX - 1).len());
    line.push('\n');
    line
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn alert() -> Alert {
        Alert {
            value: 1.0,
            threshold: 0.0,
            labels: BTreeMap::from([("comm".to_owned(), "dd".to_owned()), ("pid".to_owned(), "92".to_owned())]),
            status: Status::Firing,
            fingerprint: 1,
            ..Alert::new(
                "web-1",
                std::time::UNIX_EPOCH + Duration::from_secs(1_771_777_800),
                Severity::Critical,
                "oom_kill",
                "The kernel killed dd.".to_owned(),
            )
        }
    }

    #[test]
    fn an_alert_is_one_line() {
        assert_eq!(
            line(&alert(), false),
            "2026-02-22T16:30:00Z CRITICAL oom_kill web-1: The kernel killed dd. [comm=dd pid=92]\n"
        );
        let resolved = Alert { status: Status::Resolved, labels: BTreeMap::new(), ..alert() };
        assert_eq!(
            line(&resolved, true),
            "2026-02-22T16:30:00Z \x1b[32mRESOLVED\x1b[0m oom_kill web-1: The kernel killed dd.\n"
        );
        let starts_at = alert().timestamp - Duration::from_secs(1200);
        let worse = Alert { change: Change::Worsened, labels: BTreeMap::new(), starts_at, ..alert() };
        assert_eq!(
            line(&worse, false),
            "2026-02-22T16:30:00Z CRITICAL oom_kill web-1: The kernel killed dd. (worse, 20 min)\n"
        );
    }

    #[test]
    fn a_line_is_bounded_whatever_comes() {
        let long = "ü".repeat(1 << 20);
        let labels = (0..50).map(|i| (format!("l{i}"), long.clone())).collect();
        let line = line(&Alert { message: long.clone(), labels, ..alert() }, false);
        assert!(line.len() <= LINE_BYTES_MAX && line.ends_with('\n'));
    }
}
