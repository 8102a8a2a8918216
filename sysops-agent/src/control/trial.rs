//! The notice by which someone tries the channels: it says that it is one, and has all that an alert can have, so that one
//! sees how it looks there.

use std::time::{Duration, UNIX_EPOCH};

use crate::model::{Alert, Change, Context, Notice, Severity, Status, Tick, Usage};

/// All tests are one alert, so that a far end that pairs firing and resolved can show it.
const FINGERPRINT: u64 = 0x7e57_7e57_7e57_7e57;

/// For how long what the test tells of would have been so.
const LASTED: Duration = Duration::from_secs(300);

/// The notice: to `channels`, or to those that carry its severity.
#[must_use]
pub fn notice(
    hostname: &str,
    by: &str,
    severity: Severity,
    resolved: bool,
    channels: Option<Vec<String>>,
    now: &Tick,
) -> Notice {
    let what = if resolved { "what is over looks like this" } else { "nothing is wrong" };
    let message = format!("This is a test by {by} on {hostname}: {what}. All that follows is made up.");
    let nanos = now.wall.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos());
    let course = if resolved { [97.3, 97.1, 96.8, 80.2, 61.5, 44.0] } else { [81.0, 84.5, 88.9, 92.3, 95.8, 97.3] };
    let alert = Alert {
        value: course[course.len() - 1],
        threshold: 90.0,
        labels: [("by", by), ("mountpoint", "/test")].map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
        status: if resolved { Status::Resolved } else { Status::Firing },
        id: format!("test-{nanos:x}"),
        fingerprint: FINGERPRINT,
        change: Change::Test,
        starts_at: now.wall.checked_sub(LASTED).unwrap_or(UNIX_EPOCH),
        context: context(&course),
        ..Alert::new(hostname, now.wall, severity, "test", message)
    };
    Notice { channels, ..Notice::of(alert) }
}

fn context(course: &[f64]) -> Context {
    let usage = |pid, comm: &str, uses: &str| Usage { pid: Some(pid), comm: comm.to_owned(), uses: uses.to_owned() };
    Context {
        unit: "percent".to_owned(),
        course: course.to_vec(),
        course_secs: LASTED.as_secs(),
        top: vec![usage(1234, "example", "61.0 %"), usage(1235, "another", "12.5 %")],
        events: vec!["A kernel event would stand here.".to_owned()],
        cause: Some("Someone tries whether alerts arrive.".to_owned()),
        runbook_url: Some("https://example.com/runbook".to_owned()),
        host: vec![("test".to_owned(), "yes".to_owned())],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::Clock;

    #[test]
    fn a_test_says_that_it_is_one() {
        let now = Clock::fixed().now();
        let notice = notice("web-1", "ann", Severity::Warn, false, Some(vec!["slack".to_owned()]), &now);
        let alert = notice.head();
        assert!(alert.message.starts_with("This is a test by ann on web-1: nothing is wrong."), "{}", alert.message);
        assert_eq!((alert.change, alert.severity, notice.status()), (Change::Test, Severity::Warn, Status::Firing));
        assert!(notice.id.len() <= 64 && notice.id.chars().all(|c| c.is_ascii_alphanumeric() || c == '-'));
        assert_ne!(notice.id, self::notice("web-1", "ann", Severity::Warn, true, None, &Clock::Live.now()).id);
    }
}
