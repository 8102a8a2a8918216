//! The least of a count in each part of a window: what is left when all that comes and goes is taken away. A count whose
//! floor rises does not give back. What is counted is left to who asks.

use std::time::Duration;

/// Parts of a window.
pub(super) const PARTS: usize = 6;
/// Looks that a part must have had before it is over: the least of one or two says little.
const LOOKS_MIN: u32 = 3;
/// Steps between parts that must go up.
const STEPS_MIN: usize = 4;
/// A step down may be as large as this share of the whole rise: 1/8.
const DIP_SHARE: u32 = 8;

/// The least in each part of a window that moves with time.
#[derive(Clone, Debug, Default)]
pub(super) struct Floor {
    /// Parts that are over, oldest first; the last `filled` of them count.
    parts: [Part; PARTS],
    filled: usize,
    current: Part,
    looks: u32,
    began: Option<Duration>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Part {
    least: u32,
    most: u32,
    length_ms: u32,
}

impl Floor {
    /// Takes what is counted `now`; a part of the window lasts `part`.
    pub(super) fn see(&mut self, now: Duration, part: Duration, count: u32) {
        let began = *self.began.get_or_insert(now);
        let length = now.saturating_sub(began);
        if length >= part && self.looks >= LOOKS_MIN {
            self.current.length_ms = u32::try_from(length.as_millis()).unwrap_or(u32::MAX);
            self.parts.rotate_left(1);
            self.parts[PARTS - 1] = self.current;
            self.filled = PARTS.min(self.filled + 1);
            self.began = Some(now);
            self.looks = 0;
        }
        self.current = if self.looks == 0 {
            Part { least: count, most: count, length_ms: 0 }
        } else {
            Part { least: self.current.least.min(count), most: self.current.most.max(count), length_ms: 0 }
        };
        self.looks += 1;
    }

    /// By how much the floor rose over the whole window, if it rose all the time and still does, and by more than the count goes up and
    /// down within a part; `None` otherwise, and before the window is full.
    #[must_use]
    pub(super) fn steady_rise(&self) -> Option<u32> {
        self.rise_over(PARTS, STEPS_MIN)
    }

    /// The same over the last half of the window, for who cannot wait.
    #[must_use]
    pub(super) fn recent_rise(&self) -> Option<u32> {
        self.rise_over(PARTS / 2, PARTS / 2 - 1)
    }

    /// True when the window is full and the floor is no higher at its end than at its beginning.
    #[must_use]
    pub(super) fn is_calm(&self) -> bool {
        self.filled == PARTS && self.parts[PARTS - 1].least <= self.parts[0].least
    }

    /// The floor half a window ago; `None` before there is one.
    #[must_use]
    pub(super) fn half_way(&self) -> Option<u32> {
        (self.filled > PARTS / 2).then(|| self.parts[PARTS / 2].least)
    }

    /// By how much the floor rises in an hour; `None` before two parts are over.
    #[must_use]
    pub(super) fn hourly(&self) -> Option<f64> {
        let parts = self.over(self.filled)?;
        let (first, last) = (parts.first()?, parts.last()?);
        // From the middle of the first to the middle of the last part, as nobody knows where in it the least was.
        let ends = f64::from(first.length_ms) + f64::from(last.length_ms);
        let between: f64 = parts.iter().map(|part| f64::from(part.length_ms)).sum::<f64>() - ends / 2.0;
        let rise = f64::from(last.least) - f64::from(first.least);
        (parts.len() > 1 && between > 0.0).then(|| rise * 3_600_000.0 / between)
    }

    fn over(&self, parts: usize) -> Option<&[Part]> {
        (parts <= self.filled).then(|| &self.parts[PARTS - parts..])
    }

    fn rise_over(&self, parts: usize, steps_min: usize) -> Option<u32> {
        let parts = self.over(parts)?;
        let rise = parts.last()?.least.checked_sub(parts.first()?.least)?;
        let steps = || parts.windows(2).map(|pair| (pair[0].least, pair[1].least));
        let ups = steps().filter(|(from, to)| to > from).count();
        let deepest = steps().map(|(from, to)| from.saturating_sub(to)).max()?;
        let spread = parts.iter().map(|part| part.most - part.least).max()?;
        let goes_on = steps().next_back().is_some_and(|(from, to)| to > from);
        (goes_on && ups >= steps_min && deepest <= rise / DIP_SHARE && rise > spread).then_some(rise)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PART: Duration = Duration::from_secs(50);

    /// What is seen every ten seconds for an hour; true when it ever looked like a leak.
    fn rises(count: impl Fn(u32) -> u32) -> bool {
        let mut floor = Floor::default();
        (0..360).any(|look| {
            floor.see(Duration::from_secs(u64::from(look) * 10), PART, count(look));
            floor.steady_rise().is_some()
        })
    }

    /// Numbers as if by chance (xorshift).
    fn chance(seed: u32) -> u32 {
        let mut state = seed.wrapping_mul(0x9e37_79b9) | 1;
        for _ in 0..4 {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
        }
        state
    }

    #[test]
    fn a_leak_rises_also_below_heavy_churn() {
        assert!(rises(|look| 10 + look));
        assert!(rises(|look| 10 + 10 * look + chance(look) % 100));
        assert!(rises(|look| 10 + 3 * look + if look % 2 == 0 { 9 } else { 0 }));
    }

    #[test]
    fn churn_without_a_leak_does_not() {
        assert!(!rises(|_| 500));
        assert!(!rises(|look| 100 + 40 * (look % 10)), "a pool that is filled and emptied");
        assert!(!rises(|look| if look < 20 { 5 * look } else { 100 }), "a start");
        for seed in 0..500 {
            assert!(!rises(|look| 50 + chance(look + 1000 * seed) % 200), "chance {seed}");
        }
    }

    #[test]
    fn it_tells_the_pace_and_when_it_is_over() {
        let mut floor = Floor::default();
        assert_eq!((floor.hourly(), floor.half_way(), floor.is_calm()), (None, None, false));
        for look in 0..=31 {
            floor.see(Duration::from_secs(look * 10), PART, u32::try_from(look).expect("small"));
        }
        assert_eq!(floor.steady_rise(), Some(25));
        assert_eq!((floor.hourly(), floor.half_way()), (Some(360.0), Some(15)));
        assert!(!floor.is_calm());
        for look in 32..100 {
            floor.see(Duration::from_secs(look * 10), PART, 31);
        }
        assert_eq!((floor.hourly(), floor.steady_rise()), (Some(0.0), None));
        assert!(floor.is_calm());
    }

    #[test]
    fn a_part_is_not_over_before_it_was_looked_at_three_times() {
        let mut floor = Floor::default();
        for look in 0..6 {
            floor.see(PART * look, PART, look);
        }
        assert_eq!(floor.filled, 1);
    }
}
