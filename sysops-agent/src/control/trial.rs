//! The notice by which someone tries the channels, and what comes of it: it says that it is one, and has all that an alert can have,
//! so that one sees how it looks there.

use std::time::{Duration, UNIX_EPOCH};

use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::{Instant, timeout_at};

use super::protocol::{End, Timed};
use crate::model::{Alert, Change, Context, Fate, Notice, Outcome, Severity, Status, Tick, Usage};

/// Time for far ends to answer.
pub const PATIENCE: Duration = Duration::from_secs(60);

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

/// Tells what comes of a test on the channels `awaited`, until none of them may have more to say soon.
///
/// # Errors
/// When it cannot be told.
pub async fn follow<E>(
    mut awaited: Vec<String>,
    mut outcomes: UnboundedReceiver<Outcome>,
    mut tell: impl AsyncFnMut(Timed) -> Result<(), E>,
) -> Result<End, E> {
    let start = Instant::now();
    while !awaited.is_empty() {
        match timeout_at(start + PATIENCE, outcomes.recv()).await {
            Ok(Some(outcome)) => {
                let took = start.elapsed();
                // Another try that comes too late to be waited for is the outbox's alone.
                let comes_soon = matches!(outcome.result, Fate::Later { in_secs, .. } if took + Duration::from_secs(in_secs) < PATIENCE);
                awaited.retain(|channel| comes_soon || *channel != outcome.channel);
                tell(Timed { outcome, secs: took.as_secs_f64() }).await?;
            }
            Ok(None) => break,
            Err(_) => return Ok(End::Deadline),
        }
    }
    Ok(End::Answered)
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
    use tokio::sync::mpsc::unbounded_channel;

    use super::*;
    use crate::host::Clock;

    #[tokio::test(start_paused = true)]
    async fn a_channel_is_waited_for_while_it_may_have_more_to_say_soon() {
        let later = |in_secs| Fate::Later { reason: "the server answered 503".to_owned(), in_secs };
        let delivered = || Fate::Delivered { answer: "ok".to_owned() };
        let follow = async |fates: Vec<Fate>| {
            let (tell, outcomes) = unbounded_channel();
            let channel = || "slack".to_owned();
            for result in fates {
                tell.send(Outcome { channel: channel(), result }).expect("it is listened to");
            }
            let (start, mut told) = (Instant::now(), 0);
            let end = follow(vec![channel()], outcomes, async |_| {
                told += 1;
                Ok::<_, ()>(())
            });
            (end.await, told, start.elapsed().as_secs())
        };
        assert_eq!(follow(vec![later(4), delivered(), delivered()]).await, (Ok(End::Answered), 2, 0));
        assert_eq!(follow(vec![later(60)]).await, (Ok(End::Answered), 1, 0));
        assert_eq!(follow(vec![later(4)]).await, (Ok(End::Deadline), 1, 60));
        assert_eq!(follow(vec![]).await, (Ok(End::Deadline), 0, 60));
    }

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
