//! `alerts`: what is live in the book of the agent that runs, in its order: what wants attention first.

use std::io::{self, Write};
use std::time::SystemTime;

use serde::Serialize;

use super::output::{Colour, Style};
use super::table::{Cell, Table};
use super::{Args, ask, output, span};
use crate::control::protocol::{Answer, Request};
use crate::host::Clock;
use crate::model::{Listed, Severity, Standing, shown};

/// Digits of a fingerprint that are shown where they are enough to tell alerts apart.
const DIGITS_MIN: usize = 8;

/// docs/schemas/alerts.schema.json describes it.
#[derive(Serialize)]
struct Document<'a> {
    schema: u32,
    alerts: &'a [Listed],
}

/// Lists them and gives the exit status. Pending ones are listed only where `all` is wanted.
#[must_use]
pub fn run(args: &Args, all: bool, json: bool) -> u8 {
    let mut alerts = match ask::one(args, &Request::Alerts) {
        Ok(Answer::Alerts(alerts)) => alerts,
        Ok(_) => return ask::strange(),
        Err(status) => return status,
    };
    let listed = alerts.len();
    if !all {
        alerts.retain(|alert| alert.standing != Standing::Pending);
    }
    if json {
        let document = serde_json::to_string(&Document { schema: 1, alerts: &alerts }).expect("it has a JSON form");
        return output::document(&(document + "\n"));
    }
    let style = Style::stdout(&crate::settings::environment);
    output::stdout(|out| print(&alerts, listed - alerts.len(), Clock::Live.now().wall, style, out))
}

fn print(alerts: &[Listed], pending: usize, now: SystemTime, style: Style, out: &mut dyn Write) -> io::Result<()> {
    if alerts.is_empty() {
        writeln!(out, "no alerts")?;
    } else {
        table(alerts, now).print(style, out)?;
    }
    if pending > 0 {
        writeln!(out, "{pending} pending, not yet for long enough: --all lists them")?;
    }
    Ok(())
}

fn table(alerts: &[Listed], now: SystemTime) -> Table {
    let digits = digits(alerts);
    let mut table = Table::new(["ALERT", "SEVERITY", "STANDING", "FOR", "VALUE/LIMIT", "WHAT"]);
    for alert in alerts {
        table.row([
            format!("{:016x}", alert.fingerprint)[..digits].into(),
            Cell::painted(alert.severity.name(), colour(alert)),
            alert.standing.name().into(),
            span::between(alert.starts_at, now).into(),
            values(alert).into(),
            what(alert).into(),
        ]);
        if !alert.message.is_empty() {
            table.note(shown(&alert.message, 500));
        }
        if !alert.because.is_empty() {
            table.note(format!("because: {}", shown(&alert.because, 500)));
        }
    }
    table
}

fn colour(alert: &Listed) -> Colour {
    match (alert.standing, alert.severity) {
        (Standing::Firing, Severity::Critical | Severity::Emergency) => Colour::Red,
        (Standing::Firing, Severity::Warn) => Colour::Yellow,
        _ => Colour::Dim,
    }
}

/// As few digits as tell all of them apart.
fn digits(alerts: &[Listed]) -> usize {
    let distinct = |digits: usize| {
        let mut beginnings: Vec<u64> = alerts.iter().map(|alert| alert.fingerprint >> (64 - 4 * digits)).collect();
        beginnings.sort_unstable();
        beginnings.windows(2).all(|pair| pair[0] != pair[1])
    };
    (DIGITS_MIN..16).find(|digits| distinct(*digits)).unwrap_or(16)
}

/// Value and limit; of a kernel event, which has none, nothing.
fn values(alert: &Listed) -> String {
    if alert.threshold == 0.0 && alert.value == 1.0 {
        return String::new();
    }
    format!("{}/{}", number(alert.value), number(alert.threshold))
}

/// With at most three places after the point.
fn number(value: f64) -> String {
    let text = format!("{value:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// Metric and labels in the words that `silence add` takes.
fn what(alert: &Listed) -> String {
    let labels = alert.labels.iter().map(|(name, value)| format!("{}={}", shown(name, 64), shown(value, 128)));
    let words: Vec<String> = std::iter::once(shown(&alert.metric, 64)).chain(labels).collect();
    words.join(" ")
}

/// One alert in a line, after what was done to it.
#[must_use]
pub fn line(alert: &Listed) -> String {
    format!("{:016x} {} {}: {}", alert.fingerprint, alert.severity.name(), what(alert), shown(&alert.message, 500))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn alert(fingerprint: u64, standing: Standing, severity: Severity) -> Listed {
        Listed {
            fingerprint,
            standing,
            severity,
            rule: "thresholds.disk_percent".to_owned(),
            metric: "disk_usage_percent".to_owned(),
            labels: [("mountpoint".to_owned(), "/da\x1bta".to_owned())].into(),
            value: 98.125,
            threshold: 90.0,
            message: "Disk usage is 98.1 %".to_owned(),
            starts_at: SystemTime::UNIX_EPOCH,
            because: String::new(),
        }
    }

    #[test]
    fn a_table_for_people() {
        let mut told = alert(0x8f3a_1c2e_0000_0000, Standing::Acknowledged, Severity::Warn);
        told.because = "ann: on it".to_owned();
        let alerts = [alert(0x1b2c_3d4e_5566_7788, Standing::Firing, Severity::Critical), told];
        let mut out = Vec::new();
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(7500);
        print(&alerts, 2, now, Style::of(false, &|_| None), &mut out).expect("memory can be written");
        insta::assert_snapshot!(String::from_utf8(out).expect("UTF-8"));
        let mut out = Vec::new();
        print(&[], 0, now, Style::of(false, &|_| None), &mut out).expect("memory can be written");
        assert_eq!(out, b"no alerts\n");
    }

    #[test]
    fn as_many_digits_as_tell_them_apart() {
        let of = |fingerprint| alert(fingerprint, Standing::Firing, Severity::Warn);
        assert_eq!(digits(&[of(1 << 63), of(0)]), 8);
        assert_eq!(digits(&[of(0x1234_5678_9a00_0000), of(0x1234_5678_9b00_0000)]), 10);
        assert_eq!((digits(&[of(1), of(2)]), digits(&[]), digits(&[of(1), of(1)])), (16, 8, 16));
    }

    #[test]
    fn numbers_are_short() {
        assert_eq!([98.125, 90.0, 0.0153, 1e9, 100.0].map(number), ["98.125", "90", "0.015", "1000000000", "100"]);
    }
}
