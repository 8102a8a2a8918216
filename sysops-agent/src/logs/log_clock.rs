//! Turns the time stamps of the kernel's log into CLOCK_MONOTONIC, which the probes give, and wall time.
//!
//! A record is stamped with the CPU's scheduler clock, which NTP does not discipline: the two part by the error of the
//! oscillator (seconds in days; 1.6 ms ahead after half an hour was seen), and nothing but a record tells its reading.
//! A record that is read right after it was logged tells by how much they differ, to within its delay. That
//! difference is kept up with each such record, and saved with the position for those that come while the agent is
//! down.

use std::time::Duration;

use super::Sighting;
use crate::model::time::rfc3339_nanos;
use crate::model::{Event, Tick};

/// A record that wakes the reader is at most so old when it is read.
const WAKE_DELAY: Duration = Duration::from_millis(100);
/// The log's clock falls behind by at most one part in so many (500 ppm).
const MAX_DRIFT_DIVISOR: i64 = 2000;

/// First and largest time stamp of the records of one drain.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Stamps {
    range: Option<(u64, u64)>,
}

impl Stamps {
    /// Takes the next time stamp, microseconds.
    pub(super) fn add(&mut self, micros: u64) {
        self.range = Some(self.range.map_or((micros, micros), |(first, last)| (first, last.max(micros))));
    }
}

/// CLOCK_MONOTONIC less the log's clock.
#[derive(Debug, Default)]
pub(super) struct LogClock {
    pub(super) offset_ns: i64,
    learned_at: Duration,
}

impl LogClock {
    /// All records of `stamps` were logged after `caught_up` and before `now`, and not long before.
    pub(super) fn learn(&mut self, stamps: Stamps, caught_up: Duration, now: Tick) {
        let Some((first, last)) = stamps.range else { return };
        let earliest = nanos(caught_up.max(now.monotonic.saturating_sub(WAKE_DELAY))) - micros_as_nanos(first);
        let latest = nanos(now.monotonic) - micros_as_nanos(last);
        // If this process was stopped, the records are older than they seem; a clock does not drift as much.
        let drift = nanos(now.monotonic.saturating_sub(self.learned_at)) / MAX_DRIFT_DIVISOR;
        let earliest = earliest.min(self.offset_ns.saturating_add(drift));
        self.offset_ns = self.offset_ns.max(earliest).min(latest);
        self.learned_at = now.monotonic;
    }

    /// The event with its times.
    pub(super) fn date(&self, sighting: Sighting, now: Tick) -> Event {
        let at = micros_as_nanos(sighting.micros).saturating_add(self.offset_ns).clamp(0, nanos(now.monotonic));
        let at = at.unsigned_abs();
        let time = rfc3339_nanos(now.wall_at(Duration::from_nanos(at)));
        Event { time, monotonic_ns: at, ..sighting.event }
    }
}

/// Up to 146 years, so that sums and differences of two stay within bounds.
fn nanos(time: Duration) -> i64 {
    i64::try_from(time.as_nanos()).unwrap_or(i64::MAX).min(i64::MAX / 2)
}

fn micros_as_nanos(micros: u64) -> i64 {
    nanos(Duration::from_micros(micros))
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    fn tick(millis: u64) -> Tick {
        let monotonic = Duration::from_millis(millis);
        Tick { monotonic, boottime: monotonic, wall: SystemTime::UNIX_EPOCH + monotonic }
    }

    fn stamps(millis: &[u64]) -> Stamps {
        let mut stamps = Stamps::default();
        millis.iter().for_each(|millis| stamps.add(millis * 1000));
        stamps
    }

    #[test]
    fn a_log_clock_that_is_ahead_never_dates_into_the_future() {
        let mut clock = LogClock::default();
        clock.learn(stamps(&[10_001, 10_003]), Duration::from_secs(5), tick(10_001));
        assert_eq!(clock.offset_ns, -2_000_000);
    }

    #[test]
    fn a_log_clock_that_is_behind_is_caught_up_to_within_the_delay() {
        let mut clock = LogClock::default();
        clock.learn(stamps(&[100_000_000 - 20_000]), Duration::from_secs(5), tick(100_000_000));
        assert_eq!(clock.offset_ns, 19_900_000_000);
        // A record that was read late, as this process was stopped for 30 s: no drift of the clock.
        clock.learn(stamps(&[100_001_000 - 20_000]), Duration::from_secs(100_000), tick(100_031_000));
        assert_eq!(clock.offset_ns, 19_900_000_000 + 15_500_000);
        clock.learn(stamps(&[100_032_000 - 20_000]), Duration::from_secs(100_031), tick(100_032_000));
        assert_eq!(clock.offset_ns, 19_915_500_000);
    }

    #[test]
    fn records_that_say_nothing_change_nothing() {
        let mut clock = LogClock { offset_ns: -7, ..LogClock::default() };
        clock.learn(Stamps::default(), Duration::ZERO, tick(10));
        clock.learn(stamps(&[9]), Duration::ZERO, tick(10));
        assert_eq!(clock.offset_ns, -7);
    }
}
