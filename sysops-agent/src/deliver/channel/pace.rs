//! When a channel may send again: what its far end asked for, and limits that are known beforehand. Nothing waits in here; the
//! outbox comes again when it is told to.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use super::SendError;

/// A far end that wants to be left alone for longer is asked again after this.
const PAUSE_MAX: Duration = Duration::from_secs(3600);

/// The next time for one far end.
#[derive(Default)]
pub(super) struct Pace {
    not_before: Option<Instant>,
    most: Option<(usize, Duration)>,
    sent: VecDeque<Instant>,
}

impl Pace {
    /// At most `count` within any `window`.
    pub(super) fn at_most(count: usize, window: Duration) -> Self {
        Self { most: Some((count, window)), ..Self::default() }
    }

    /// Counts a request that is about to be sent.
    ///
    /// # Errors
    /// When it is too early, with the time that is left.
    pub(super) fn take(&mut self) -> Result<(), SendError> {
        let now = Instant::now();
        let mut next = self.not_before.unwrap_or(now);
        if let Some((count, window)) = self.most {
            while self.sent.front().is_some_and(|sent| now.duration_since(*sent) >= window) {
                self.sent.pop_front();
            }
            if let Some(oldest) = self.sent.len().checked_sub(count).and_then(|at| self.sent.get(at)) {
                next = next.max(*oldest + window);
            }
        }
        match next.checked_duration_since(now).filter(|left| !left.is_zero()) {
            Some(after) => {
                let reason = format!("its rate limit lets nothing through for {:.1} s", after.as_secs_f64());
                Err(SendError::Retry { reason, after: Some(after) })
            }
            None => {
                if self.most.is_some() {
                    self.sent.push_back(now);
                }
                Ok(())
            }
        }
    }

    /// Nothing more within `pause`: the far end's own word.
    pub(super) fn pause(&mut self, pause: Duration) {
        self.not_before = Some(Instant::now() + pause.min(PAUSE_MAX));
    }
}

/// Seconds of a far end's own word, as `0.65`; nothing when it is no time.
pub(super) fn seconds(secs: f64) -> Option<Duration> {
    Duration::try_from_secs_f64(secs).ok().map(|pause| pause.min(PAUSE_MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn left(pace: &mut Pace) -> Option<Duration> {
        match pace.take() {
            Err(SendError::Retry { after, .. }) => after,
            other => other.map(|()| None).expect("it is a retry"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_pause_is_kept_to_the_millisecond() {
        let mut pace = Pace::default();
        assert_eq!(left(&mut pace), None);
        pace.pause(Duration::from_millis(650));
        assert_eq!(left(&mut pace), Some(Duration::from_millis(650)));
        tokio::time::advance(Duration::from_millis(649)).await;
        assert_eq!(left(&mut pace), Some(Duration::from_millis(1)));
        tokio::time::advance(Duration::from_millis(1)).await;
        assert_eq!(left(&mut pace), None);
        pace.pause(Duration::MAX);
        assert_eq!(left(&mut pace), Some(PAUSE_MAX));
    }

    #[tokio::test(start_paused = true)]
    async fn no_window_has_more_than_its_count() {
        let mut pace = Pace::at_most(2, Duration::from_secs(60));
        assert_eq!(left(&mut pace), None);
        tokio::time::advance(Duration::from_secs(10)).await;
        assert_eq!(left(&mut pace), None);
        assert_eq!(left(&mut pace), Some(Duration::from_secs(50)));
        tokio::time::advance(Duration::from_secs(50)).await;
        assert_eq!(left(&mut pace), None);
        assert_eq!(left(&mut pace), Some(Duration::from_secs(10)));
    }

    #[test]
    fn a_time_that_is_none_is_nothing() {
        assert_eq!(seconds(0.65), Some(Duration::from_millis(650)));
        assert_eq!(seconds(1e300), None);
        assert_eq!([seconds(-1.0), seconds(f64::NAN), seconds(f64::INFINITY)], [None; 3]);
        assert_eq!(seconds(1e9), Some(PAUSE_MAX));
    }
}
