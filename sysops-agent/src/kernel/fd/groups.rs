//! The open descriptors of one process by the stack that took them: how many, how old, and whether they become more. A
//! stack leaks when its descriptors age and it takes more of them all the time.

use std::collections::HashMap;
use std::time::Duration;

use super::floor::{Floor, PARTS};
use super::open::{Known, Owner};
use crate::kernel::stacks::StackId;

/// Most stacks of a process that are told apart.
const GROUPS_MAX: usize = 4096;
/// Of the descriptors that a leaking stack had half a window ago so many in a hundred are still open.
const KEPT_PERCENT: u32 = 80;

/// The stacks of one process.
#[derive(Default)]
pub(super) struct Groups {
    groups: HashMap<Key, Group>,
    /// When the first and the last update were.
    looks: Option<(Duration, Duration)>,
    /// As of the last update.
    tally: Tally,
}

/// What is told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Key {
    pub stack: StackId,
    pub kind: &'static str,
    /// The process that they were inherited from.
    pub parent: Option<u32>,
}

/// Descriptors of one stack.
#[derive(Clone, Debug)]
pub(super) struct Group {
    pub count: u32,
    /// When the oldest was taken, if anybody knows.
    pub oldest: Option<Duration>,
    /// Of these, how many were taken longer than half a window ago.
    aged: u32,
    /// No update has seen it yet.
    is_new: bool,
    /// How many there were when all were counted first.
    first: (Duration, u32),
    floor: Floor,
    /// How many there were when it was told last.
    told: u32,
}

/// How many descriptors belong to whom.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    pub attributed: u64,
    pub before: u64,
    pub unseen: u64,
    pub stackless: u64,
}

impl Tally {
    /// All that were looked at.
    #[must_use]
    pub(super) fn all(&self) -> u64 {
        self.attributed + self.before + self.unseen + self.stackless
    }
}

impl Groups {
    /// Counts anew. Without a stack that holds something there is no group.
    pub(super) fn update<'a>(&mut self, now: Duration, window: Duration, known: impl Iterator<Item = &'a Known>) {
        self.tally = Tally::default();
        for group in self.groups.values_mut() {
            (group.count, group.aged, group.oldest) = (0, 0, None);
        }
        for known in known {
            self.count(known, now, window);
        }
        self.groups.retain(|_, group| group.count > 0);
        let part = window / (PARTS as u32);
        for group in self.groups.values_mut() {
            if group.is_new {
                group.is_new = false;
                // Whoever comes later held nothing until then.
                group.first = self.looks.map_or((now, group.count), |(first, _)| (first, 0));
                if let Some((_, last)) = self.looks {
                    group.floor.see(last, part, 0);
                }
            }
            group.floor.see(now, part, group.count);
        }
        self.looks = Some((self.looks.map_or(now, |(first, _)| first), now));
    }

    fn count(&mut self, known: &Known, now: Duration, window: Duration) {
        let (stack, parent) = match known.owner {
            Owner::Stack(stack) => (stack, None),
            Owner::Inherited(stack, parent) => (stack, Some(parent)),
            Owner::Before => return self.tally.before += 1,
            Owner::Unseen => return self.tally.unseen += 1,
            Owner::Stackless => return self.tally.stackless += 1,
        };
        let key = Key { stack, kind: known.link.kind, parent };
        if self.groups.len() >= GROUPS_MAX && !self.groups.contains_key(&key) {
            self.tally.stackless += 1;
            return;
        }
        self.tally.attributed += 1;
        let group = self.groups.entry(key).or_insert_with(Group::new);
        group.count += 1;
        if let Some(taken) = known.taken() {
            group.oldest = Some(group.oldest.map_or(taken, |oldest| oldest.min(taken)));
            group.aged += u32::from(now.saturating_sub(taken) >= window / 2);
        }
    }

    /// How many descriptors belong to whom, as of the last update.
    #[must_use]
    pub(super) fn tally(&self) -> Tally {
        self.tally
    }

    /// All that hold something, largest first.
    #[must_use]
    pub(super) fn largest_first(&self) -> Vec<(Key, &Group)> {
        let mut groups: Vec<_> = self.groups.iter().map(|(key, group)| (*key, group)).collect();
        groups.sort_unstable_by_key(|(key, group)| (std::cmp::Reverse(group.count), group.oldest, *key));
        groups
    }

    /// Adds the stacks that leak and were not told yet, or were told when they held half as many. Near the limit of the
    /// process half a window is enough to tell.
    pub(super) fn take_leaks(&mut self, rise: u32, near_limit: bool, found: &mut Vec<Key>) {
        for (key, group) in &mut self.groups {
            if group.leaks(rise, near_limit) && group.count >= group.told.saturating_mul(2) {
                group.told = group.count;
                found.push(*key);
            }
        }
        found.sort_unstable();
    }

    /// The group of `key`.
    #[must_use]
    pub(super) fn get(&self, key: &Key) -> Option<&Group> {
        self.groups.get(key)
    }
}

impl Group {
    fn new() -> Self {
        let first = (Duration::ZERO, 0);
        Self { count: 0, oldest: None, aged: 0, is_new: true, first, floor: Floor::default(), told: 0 }
    }

    fn leaks(&self, rise: u32, near_limit: bool) -> bool {
        let steady = self.floor.steady_rise().filter(|&by| by >= rise);
        let rises = steady.or_else(|| self.floor.recent_rise().filter(|_| near_limit)).is_some();
        // What churns is young, however many there are.
        let kept = |half_way| u64::from(self.aged) * 100 >= u64::from(half_way) * u64::from(KEPT_PERCENT);
        rises && (near_limit || self.floor.half_way().is_some_and(kept))
    }

    /// By how much the count rises in an hour: by its floor, or as long as there is none, since all were counted first.
    #[must_use]
    pub(super) fn hourly(&self, now: Duration) -> f64 {
        self.floor.hourly().unwrap_or_else(|| {
            let seconds = now.saturating_sub(self.first.0).as_secs_f64();
            let rise = f64::from(self.count) - f64::from(self.first.1);
            if seconds >= 1.0 { rise * 3600.0 / seconds } else { 0.0 }
        })
    }
}

#[cfg(all(test, feature = "ebpf"))]
mod tests {
    use super::*;

    /// Growth in an hour of one stack after looks at every second, which found so many descriptors of it, in a minute's window.
    fn hourly(counts: &[usize]) -> f64 {
        let mut groups = Groups::default();
        let at = |look: usize| Duration::from_secs(100 + look as u64);
        for (look, &count) in counts.iter().enumerate() {
            let known: Vec<Known> = (0..count).map(|_| Known::of(StackId::SOME, at(look))).collect();
            groups.update(at(look), Duration::from_secs(60), known.iter());
        }
        groups.largest_first()[0].1.hourly(at(counts.len() - 1))
    }

    #[test]
    fn what_comes_at_once_has_grown_from_nothing() {
        let once = |looks: usize| (0..looks).map(|look| if look < 5 { 0 } else { 100 }).collect::<Vec<_>>();
        assert_eq!(hourly(&once(9)), 100.0 * 3600.0 / 8.0, "since the first look");
        // By then there are parts of ten seconds each: 0 in that in which it came.
        let found = hourly(&once(60));
        assert!((5000.0..12_000.0).contains(&found), "{found}");
    }

    #[test]
    fn a_slow_leak_is_told_at_its_pace() {
        let slow: Vec<usize> = (0..60).map(|look| look / 8).collect();
        let found = hourly(&slow);
        assert!((400.0..520.0).contains(&found), "one in eight seconds: {found}");
        assert_eq!(hourly(&[0, 0, 0, 1, 1, 1, 1, 1, 1]), 3600.0 / 8.0);
        assert_eq!(hourly(&[3, 3, 3]), 0.0, "what was there at the first look has not grown");
    }
}
