//! One tick, one set of clock readings. Clocks themselves are read in `host::clock` only.

use std::time::{Duration, SystemTime};

/// What the clocks said at one instant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tick {
    /// CLOCK_MONOTONIC: intervals, rates and deadlines. Stands still while the machine is suspended.
    pub monotonic: Duration,
    /// CLOCK_BOOTTIME: as monotonic, and counts suspend. Kernel event times are given in it or in monotonic.
    pub boottime: Duration,
    /// CLOCK_REALTIME: for people and time stamps only, as it may jump.
    pub wall: SystemTime,
}

impl Tick {
    /// Time from `earlier` to this tick on the monotonic clock; zero when `earlier` is not earlier.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Duration {
        self.monotonic.saturating_sub(earlier.monotonic)
    }

    /// The wall time at which the monotonic clock said `monotonic`, by the clocks of this tick.
    #[must_use]
    pub fn wall_at(&self, monotonic: Duration) -> SystemTime {
        match self.monotonic.checked_sub(monotonic) {
            Some(ago) => self.wall.checked_sub(ago).unwrap_or(SystemTime::UNIX_EPOCH),
            None => self.wall + (monotonic - self.monotonic),
        }
    }
}

/// RFC 3339 in UTC with nanoseconds, `2026-02-22T16:30:00.000000000Z`.
#[must_use]
pub fn rfc3339_nanos(time: SystemTime) -> String {
    format!("{:.9}", timestamp(time))
}

/// RFC 3339 in UTC with whole seconds, as the seed's payloads have it.
#[must_use]
pub fn rfc3339_secs(time: SystemTime) -> String {
    format!("{:.0}", timestamp(time))
}

fn timestamp(time: SystemTime) -> jiff::Timestamp {
    // A wall clock outside of jiff's years -9999..9999 is nothing that Linux can be set to.
    jiff::Timestamp::try_from(time).unwrap_or(jiff::Timestamp::UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_rfc_3339() {
        let time = SystemTime::UNIX_EPOCH + Duration::new(1_771_777_800, 5);
        assert_eq!(rfc3339_nanos(time), "2026-02-22T16:30:00.000000005Z");
        assert_eq!(rfc3339_secs(time), "2026-02-22T16:30:00Z");
    }

    #[test]
    fn wall_time_of_a_kernel_time_stamp() {
        let tick = Tick {
            monotonic: Duration::from_secs(100),
            boottime: Duration::from_secs(100),
            wall: SystemTime::UNIX_EPOCH + Duration::from_secs(1000),
        };
        assert_eq!(tick.wall_at(Duration::from_secs(90)), SystemTime::UNIX_EPOCH + Duration::from_secs(990));
        assert_eq!(tick.wall_at(Duration::from_secs(101)), SystemTime::UNIX_EPOCH + Duration::from_secs(1001));
    }
}
