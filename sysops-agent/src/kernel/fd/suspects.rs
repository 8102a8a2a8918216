//! Which processes look as if they leak file descriptors, by nothing but how many each has open: those whose floor rises.
//! Whether it is a leak, and of what, is told once their descriptors are followed.

use std::collections::HashMap;
use std::time::Duration;

use super::floor::{Floor, PARTS};

/// The second window is this many times as long: a slow leak rises too little in the first.
const LONG: u32 = 12;
/// Processes whose counts are kept. On a machine with more, those beyond are not looked at.
const PROCESSES_MAX: usize = 1 << 15;

/// What counts as suspicious.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Measure {
    /// How long the floor must rise.
    pub window: Duration,
    /// By how much.
    pub rise: u32,
    /// From this share of the limit on any rise will do, in percent.
    pub limit_percent: f64,
}

/// Counts of all processes over time.
pub(super) struct Suspects {
    measure: Measure,
    histories: HashMap<u32, History>,
    look: u32,
}

struct History {
    look: u32,
    open: u32,
    short: Floor,
    long: Floor,
}

impl Suspects {
    /// None yet.
    #[must_use]
    pub(super) fn new(measure: Measure) -> Self {
        Self { measure, histories: HashMap::new(), look: 0 }
    }

    /// Begins a look at all processes.
    pub(super) fn start(&mut self) {
        self.look = self.look.wrapping_add(1);
    }

    /// The process was not counted this time, but is there.
    pub(super) fn pass_over(&mut self, pid: u32) {
        if let Some(history) = self.histories.get_mut(&pid) {
            history.look = self.look;
        }
    }

    /// The process has `open` descriptors `now`.
    pub(super) fn see(&mut self, now: Duration, pid: u32, open: u64) {
        if self.histories.len() >= PROCESSES_MAX && !self.histories.contains_key(&pid) {
            return;
        }
        let open = u32::try_from(open).unwrap_or(u32::MAX);
        let part = self.measure.window / (PARTS as u32);
        let fresh = || History { look: 0, open, short: Floor::default(), long: Floor::default() };
        let history = self.histories.entry(pid).or_insert_with(fresh);
        (history.look, history.open) = (self.look, open);
        history.short.see(now, part, open);
        history.long.see(now, part * LONG, open);
    }

    /// Ends a look: those that were not seen are gone.
    pub(super) fn end(&mut self) {
        let look = self.look;
        self.histories.retain(|_, history| history.look == look);
    }

    /// Adds the processes that are suspicious, whose floor rose most first. `limit` tells how many one may open.
    pub(super) fn find(&self, mut limit: impl FnMut(u32) -> Option<u64>, found: &mut Vec<(u32, u32)>) {
        found.clear();
        for (&pid, history) in &self.histories {
            let steady = [&history.short, &history.long].into_iter().filter_map(Floor::steady_rise).max();
            let rise = match steady.filter(|&rise| rise >= self.measure.rise) {
                Some(rise) => rise,
                None => match history.short.recent_rise() {
                    Some(rise) if self.is_near(history.open, limit(pid)) => rise,
                    _ => continue,
                },
            };
            found.push((pid, rise));
        }
        found.sort_unstable_by_key(|&(pid, rise)| (std::cmp::Reverse(rise), pid));
    }

    /// True when the process has stopped to look suspicious, or is gone.
    #[must_use]
    pub(super) fn is_calm(&self, pid: u32) -> bool {
        self.histories.get(&pid).is_none_or(|history| {
            history.short.is_calm() && history.long.steady_rise().is_none_or(|rise| rise < self.measure.rise)
        })
    }

    fn is_near(&self, open: u32, limit: Option<u64>) -> bool {
        #[expect(clippy::cast_precision_loss, reason = "fs.nr_open bounds it below 2^31")]
        limit.is_some_and(|limit| f64::from(open) * 100.0 >= limit as f64 * self.measure.limit_percent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEASURE: Measure = Measure { window: Duration::from_secs(300), rise: 16, limit_percent: 80.0 };

    /// Looks every ten seconds; who is suspicious in the end.
    fn suspects(looks: u32, limit: Option<u64>, open: impl Fn(u32, u32) -> u32) -> Vec<(u32, u32)> {
        let mut suspects = Suspects::new(MEASURE);
        for look in 0..looks {
            suspects.start();
            for pid in [7, 8, 9] {
                suspects.see(Duration::from_secs(u64::from(look) * 10), pid, u64::from(open(pid, look)));
            }
            suspects.end();
        }
        let mut found = Vec::new();
        suspects.find(|_| limit, &mut found);
        found
    }

    #[test]
    fn those_that_rise_are_suspicious_the_steepest_first() {
        let open = |pid, look| match pid {
            7 => 40,
            8 => 10 + look,
            _ => 10 + 2 * look,
        };
        assert_eq!(suspects(10, None, open), [], "too early to tell");
        assert_eq!(suspects(32, None, open), [(9, 50), (8, 25)]);
    }

    #[test]
    fn a_slow_leak_is_seen_over_the_longer_window() {
        let open = |pid, look| if pid == 7 { 10 + look / 15 } else { 30 };
        assert_eq!(suspects(60, None, open), [], "2 in five minutes are too few");
        assert_eq!(suspects(365, None, open).iter().map(|found| found.0).collect::<Vec<_>>(), [7]);
    }

    #[test]
    fn near_the_limit_any_rise_will_do_but_none_will_not() {
        let open = |pid, look| if pid == 7 { 900 + look / 5 } else { 950 };
        assert_eq!(suspects(32, Some(1024), open), [(7, 2)]);
        assert_eq!(suspects(32, Some(4096), open), []);
        assert_eq!(suspects(32, None, open), []);
    }

    #[test]
    fn who_stops_or_ends_is_calm() {
        let mut suspects = Suspects::new(MEASURE);
        for look in 0..100_u32 {
            suspects.start();
            suspects.see(Duration::from_secs(u64::from(look) * 10), 7, u64::from(look.min(40)));
            suspects.end();
            match look {
                32..40 => assert!(!suspects.is_calm(7), "{look}"),
                80.. => assert!(suspects.is_calm(7), "{look}"),
                _ => {}
            }
        }
        suspects.start();
        suspects.pass_over(7);
        suspects.end();
        assert_eq!(suspects.histories.len(), 1);
        suspects.start();
        suspects.end();
        assert!(suspects.histories.is_empty() && suspects.is_calm(7));
    }
}
