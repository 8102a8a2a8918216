//! Whom an observation follows that names no process: those whose anonymous memory grows most in its first part.

use std::collections::BTreeMap;
use std::time::Duration;

use super::held::anonymous_bytes;
use crate::host::{Host, Processes};

/// Processes that are followed when none is named.
const SUSPECTS_MAX: usize = 4;
/// Growth that draws suspicion, in bytes.
const SUSPICIOUS: u64 = 1 << 20;

/// Finds them.
pub(super) struct Growth {
    /// How long processes are compared with what they held first.
    look_for: Duration,
    began: Option<Duration>,
    first: BTreeMap<u32, u64>,
    is_over: bool,
}

impl Growth {
    /// For an observation of this length.
    #[must_use]
    pub(super) fn new(length: Duration) -> Self {
        Self { look_for: length / 4, began: None, first: BTreeMap::new(), is_over: false }
    }

    /// Looks at all processes. When the first part of the observation is over it gives those that grew most, once.
    pub(super) fn look(&mut self, host: &Host) -> Vec<u32> {
        if self.is_over {
            return Vec::new();
        }
        let now = host.clock.now().monotonic;
        let began = *self.began.get_or_insert(now);
        let held = held_by_all(host);
        if self.first.is_empty() {
            self.first = held;
            return Vec::new();
        }
        self.is_over = now.saturating_sub(began) >= self.look_for;
        if self.is_over { suspects(&self.first, &held) } else { Vec::new() }
    }
}

/// Those that grew most, most first.
fn suspects(first: &BTreeMap<u32, u64>, now: &BTreeMap<u32, u64>) -> Vec<u32> {
    // One that has just come has grown by all that it holds.
    let grown = |(pid, bytes): (&u32, &u64)| (bytes.saturating_sub(first.get(pid).copied().unwrap_or(0)), *pid);
    let mut grown: Vec<(u64, u32)> = now.iter().map(grown).filter(|(bytes, _)| *bytes >= SUSPICIOUS).collect();
    grown.sort_unstable_by(|one, other| other.cmp(one));
    grown.truncate(SUSPECTS_MAX);
    grown.into_iter().map(|(_, pid)| pid).collect()
}

fn held_by_all(host: &Host) -> BTreeMap<u32, u64> {
    let mut held = BTreeMap::new();
    let walked = Processes::new(host).walk(|process| {
        if let Some(bytes) = anonymous_bytes(host, process.pid) {
            held.insert(process.pid, bytes);
        }
    });
    if let Err(error) = walked {
        tracing::debug!("memory_leak: {error}: {}", error.source);
    }
    held
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_that_grow_most_draw_suspicion() {
        let held = |of: &[(u32, u64)]| of.iter().map(|&(pid, mib)| (pid, mib << 20)).collect::<BTreeMap<u32, u64>>();
        let first = held(&[(1, 100), (2, 5), (3, 7), (4, 50)]);
        let now = held(&[(1, 100), (2, 9), (3, 5), (4, 70), (5, 3)]);
        assert_eq!(suspects(&first, &now), [4, 2, 5]);
        let many = held(&[(1, 1), (2, 2), (3, 3), (4, 4), (5, 5), (6, 6)]);
        assert_eq!(suspects(&BTreeMap::new(), &many), [6, 5, 4, 3]);
        assert!(suspects(&first, &first).is_empty());
    }
}
