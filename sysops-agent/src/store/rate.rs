//! Turns rising values into rates and shares, once, so that a counter reset and a suspended machine are handled once.
//! Pure; which values are rising is said by [`Reading`].

use std::time::Duration;

use crate::model::Reading;

/// What was read last of a rising value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Previous {
    at: Duration,
    part: f64,
    whole: f64,
}

/// The value of `reading` at `now`, and remembers what the next one needs.
///
/// `now` is CLOCK_MONOTONIC, which stands still while the machine is suspended as the kernel's counters do: an hour
/// asleep neither thins out a rate nor makes a burst. Nothing comes of the first reading, of a second reading at the
/// same instant, and of a counter that fell: its source was restarted, and how much was counted before is not known.
pub fn advance(previous: &mut Option<Previous>, reading: Reading, now: Duration) -> Option<f64> {
    // The last is what all of the whole is; rates and ratios (seconds for each request) have no such bound.
    let (part, whole, all) = match reading {
        Reading::Gauge(value) | Reading::Counter(value) => return Some(value),
        Reading::Histogram { .. } => return None,
        Reading::PerSecond(total) => (total, now.as_secs_f64(), None),
        Reading::Percent { part, whole } => (part, whole, Some(100.0)),
        Reading::Ratio { part, whole } => (part, whole, None),
    };
    let before = previous.replace(Previous { at: now, part, whole })?;
    let (parts, wholes) = (part - before.part, whole - before.whole);
    if now <= before.at || parts < 0.0 || wholes <= 0.0 {
        return None;
    }
    let share = parts / wholes;
    // Two counters are never read at the very same instant, so a part may seem to outgrow its whole.
    Some(all.map_or(share, |all: f64| (all * share).min(all)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(readings: &[(u64, Reading)]) -> Vec<Option<f64>> {
        let mut previous = None;
        readings.iter().map(|&(at, reading)| advance(&mut previous, reading, Duration::from_secs(at))).collect()
    }

    #[test]
    fn a_rate_is_the_increase_over_the_time_that_passed_not_over_the_interval() {
        assert_eq!(
            run(&[(10, Reading::PerSecond(100.0)), (20, Reading::PerSecond(200.0)), (45, Reading::PerSecond(250.0))]),
            [None, Some(10.0), Some(2.0)]
        );
    }

    #[test]
    fn counter_reset_yields_no_rate() {
        assert_eq!(
            run(&[(10, Reading::PerSecond(100.0)), (20, Reading::PerSecond(5.0)), (30, Reading::PerSecond(25.0))]),
            [None, None, Some(2.0)]
        );
    }

    #[test]
    fn a_share_of_nothing_is_unknown() {
        let same = Reading::Percent { part: 3.0, whole: 7.0 };
        assert_eq!(run(&[(10, same), (20, same)]), [None, None]);
    }

    #[test]
    fn a_share_is_at_most_all() {
        assert_eq!(
            run(&[
                (10, Reading::Percent { part: 0.0, whole: 0.0 }),
                (20, Reading::Percent { part: 1.0, whole: 4.0 }),
                (30, Reading::Percent { part: 5.5, whole: 8.0 }),
            ]),
            [None, Some(25.0), Some(100.0)]
        );
    }

    #[test]
    fn a_ratio_is_one_increase_for_the_other() {
        assert_eq!(
            run(&[
                (10, Reading::Ratio { part: 0.0, whole: 0.0 }),
                (20, Reading::Ratio { part: 1.0, whole: 100.0 }),
                (30, Reading::Ratio { part: 9.0, whole: 101.0 }),
            ]),
            [None, Some(0.01), Some(8.0)]
        );
    }

    #[test]
    fn the_same_instant_twice_yields_no_rate() {
        assert_eq!(run(&[(10, Reading::PerSecond(1.0)), (10, Reading::PerSecond(2.0))]), [None, None]);
    }
}
