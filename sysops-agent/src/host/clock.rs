//! Reads the clocks, once a cycle. Everything else gets a [`Tick`].

use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use rustix::time::{ClockId, clock_gettime};

use crate::model::Tick;

/// The machine's clocks, or clocks that a test turns by hand.
#[derive(Debug, Clone)]
pub enum Clock {
    /// The kernel's.
    Live,
    /// A test's.
    Hand(Arc<Mutex<Tick>>),
}

impl Clock {
    /// A clock that stands at 2026-02-22T16:30:00Z, an hour and forty minutes after boot, until it is turned.
    #[must_use]
    pub fn fixed() -> Self {
        Self::Hand(Arc::new(Mutex::new(Tick {
            monotonic: Duration::from_secs(6000),
            boottime: Duration::from_secs(6000),
            wall: SystemTime::UNIX_EPOCH + Duration::from_secs(1_771_777_800),
        })))
    }

    /// All clocks, now.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "the one place that reads the wall clock")]
    pub fn now(&self) -> Tick {
        match self {
            Self::Live => {
                Tick { monotonic: read(ClockId::Monotonic), boottime: read(ClockId::Boottime), wall: SystemTime::now() }
            }
            Self::Hand(tick) => *tick.lock().expect("no holder of this lock panics"),
        }
    }

    /// Turns a hand clock forward by `by`; a live one does not care.
    pub fn advance(&self, by: Duration) {
        if let Self::Hand(tick) = self {
            let mut tick = tick.lock().expect("no holder of this lock panics");
            tick.monotonic += by;
            tick.boottime += by;
            tick.wall += by;
        }
    }

    /// Sets the wall clock of a hand clock, as an operator or NTP may do.
    pub fn set_wall(&self, wall: SystemTime) {
        if let Self::Hand(tick) = self {
            tick.lock().expect("no holder of this lock panics").wall = wall;
        }
    }
}

fn read(clock: ClockId) -> Duration {
    let time = clock_gettime(clock);
    // Both clocks count from boot, so neither part is negative.
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}
