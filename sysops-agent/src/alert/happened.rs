//! Alerts of kernel events that people were told of late. What has happened is never resolved, but someone may be expected to
//! look at it: for an hour it is listed, can be acknowledged, and is escalated when nobody does.

use std::collections::VecDeque;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::care::Care;
use crate::model::Alert;

/// Events that are listed at a time; of more the oldest are left out.
const LISTED_MAX: usize = 1000;

/// For how long.
const LISTED_FOR: Duration = Duration::from_secs(3600);

/// Kernel events that people were told of.
#[derive(Debug, Default)]
pub(super) struct Happenings {
    told: VecDeque<Told>,
}

/// One of them. The time is the book's.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Told {
    pub(super) alert: Alert,
    pub(super) care: Care,
    at: Duration,
}

impl Happenings {
    pub(super) fn add(&mut self, alert: Alert, at: Duration) {
        if self.told.len() >= LISTED_MAX {
            self.told.pop_front();
        }
        let mut care = Care::default();
        care.told(at);
        self.told.push_back(Told { alert, care, at });
    }

    /// It is over after all: a task that hung runs again.
    pub(super) fn ended(&mut self, fingerprint: u64) {
        self.told.retain(|told| told.alert.fingerprint != fingerprint);
    }

    /// Forgets what is long ago, but for what `goes_on`.
    pub(super) fn sweep(&mut self, at: Duration, goes_on: impl Fn(u64) -> bool) {
        self.told.retain(|told| at.saturating_sub(told.at) < LISTED_FOR || goes_on(told.alert.fingerprint));
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Told> {
        self.told.iter()
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Told> {
        self.told.iter_mut()
    }

    pub(super) fn state(&self) -> Vec<Told> {
        self.told.iter().cloned().collect()
    }

    pub(super) fn restore(&mut self, told: Vec<Told>) {
        self.told = told.into_iter().take(LISTED_MAX).collect();
    }
}
