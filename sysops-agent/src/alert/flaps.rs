//! Alerts that come and go: the more often one has fired of late, the longer its value must stay back before it counts as over.
//! In the meantime it goes on firing, so that nobody is told of each turn and nobody believes that it is over.

use std::collections::HashMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::spec::{Key, Values};

pub(super) static FLAPS: Key<i64> = Key::int(
    "alerting.flap_count",
    3,
    0,
    1000,
    "How often an alert may come back within flap_window_secs before its end is waited for: from then on its value must stay \
     back for a twelfth of flap_window_secs, then twice as long with each turn, at most flap_window_secs. 0: never.",
);
pub(super) static WINDOW: Key<Duration> = Key::secs(
    "alerting.flap_window_secs",
    3600,
    60,
    604_800,
    "How long an alert must stay away for one of the turns to be forgotten.",
);

/// The first wait, as a part of the window.
const FIRST_WAIT_PART: u32 = 12;

/// Turns beyond `flap_count` that are counted: enough for the longest wait.
const TURNS_MAX: u32 = 5;

/// Alerts whose turns are remembered.
const KNOWN_MAX: usize = 20_000;

/// How often alerts have come back.
#[derive(Debug, Default)]
pub(super) struct Flaps {
    count: u32,
    window: Duration,
    known: HashMap<u64, Turns>,
}

/// The turns of one alert.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct Turns {
    count: u32,
    last: Duration,
}

impl Flaps {
    pub(super) fn new(values: &Values) -> Self {
        let mut flaps = Self::default();
        flaps.reload(values);
        flaps
    }

    pub(super) fn reload(&mut self, values: &Values) {
        self.count = u32::try_from(values.get(&FLAPS)).unwrap_or(u32::MAX);
        self.window = values.get(&WINDOW);
    }

    /// The alert has come, or come again while its end was waited for.
    pub(super) fn came(&mut self, fingerprint: u64, at: Duration) {
        if self.count == 0 || (self.known.len() >= KNOWN_MAX && !self.known.contains_key(&fingerprint)) {
            return;
        }
        let before = self.known.get(&fingerprint).map_or(0, |turns| self.remaining(*turns, at));
        let most = self.count + TURNS_MAX;
        self.known.insert(fingerprint, Turns { count: before.saturating_add(1).min(most), last: at });
    }

    /// Its value is back: the quiet begins now, however long it was so.
    pub(super) fn went(&mut self, fingerprint: u64, at: Duration) {
        if let Some(turns) = self.known.get_mut(&fingerprint) {
            turns.last = at;
        }
    }

    /// How long the value must stay back.
    pub(super) fn wait(&self, fingerprint: u64, at: Duration) -> Duration {
        let Some(turns) = self.known.get(&fingerprint).filter(|_| self.count > 0) else { return Duration::ZERO };
        let over = self.remaining(*turns, at).saturating_sub(self.count);
        match over {
            0 => Duration::ZERO,
            over => (self.window / FIRST_WAIT_PART).saturating_mul(1 << (over - 1).min(16)).min(self.window),
        }
    }

    /// Forgets what is long ago.
    pub(super) fn sweep(&mut self, at: Duration) {
        let mut known = std::mem::take(&mut self.known);
        known.retain(|_, turns| self.remaining(*turns, at) > 0);
        self.known = known;
    }

    /// What counts of the turns after a time of quiet: each window of it takes one away.
    fn remaining(&self, turns: Turns, at: Duration) -> u32 {
        let quiet = at.saturating_sub(turns.last).as_secs() / self.window.as_secs().max(1);
        turns.count.saturating_sub(u32::try_from(quiet).unwrap_or(u32::MAX))
    }

    pub(super) fn state(&self) -> Vec<(u64, Turns)> {
        self.known.iter().map(|(fingerprint, turns)| (*fingerprint, *turns)).collect()
    }

    pub(super) fn restore(&mut self, state: Vec<(u64, Turns)>) {
        self.known = state.into_iter().take(KNOWN_MAX).collect();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_grows_with_each_turn_and_quiet_ends_it() {
        let mut flaps = Flaps::new(&Values::default());
        let mut at = Duration::from_secs(1000);
        let mut waits = Vec::new();
        for _ in 0..9 {
            at += Duration::from_secs(60);
            flaps.came(7, at);
            waits.push(flaps.wait(7, at).as_secs());
        }
        assert_eq!(waits, [0, 0, 0, 300, 600, 1200, 2400, 3600, 3600]);
        assert_eq!(flaps.wait(8, at), Duration::ZERO);
        assert_eq!(flaps.wait(7, at + Duration::from_secs(3 * 3600)).as_secs(), 600);
        assert_eq!(flaps.wait(7, at + Duration::from_secs(5 * 3600)), Duration::ZERO);
        flaps.sweep(at + Duration::from_secs(8 * 3600));
        assert!(flaps.known.is_empty());
    }
}
