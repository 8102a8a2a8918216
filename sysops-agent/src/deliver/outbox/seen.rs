//! Ids of the notices that were accepted last, so that one that comes again is not accepted twice.

use std::collections::{HashSet, VecDeque};

use sha2::{Digest as _, Sha256};

/// How many are remembered beside those that wait.
const REMEMBERED: usize = 4096;

/// Digests of ids, the newest of them.
#[derive(Default)]
pub(super) struct Seen {
    order: VecDeque<u64>,
    known: HashSet<u64>,
}

impl Seen {
    /// Eight bytes that stand for an id. That two of a hundred thousand are the same is as likely as 1 to 10^9.
    pub(super) fn digest(id: &str) -> u64 {
        let digest = Sha256::digest(id);
        digest.first_chunk().map_or(0, |first| u64::from_le_bytes(*first))
    }

    /// True when it is new.
    pub(super) fn add(&mut self, id: u64) -> bool {
        let is_new = self.known.insert(id);
        if is_new {
            self.order.push_back(id);
            if self.order.len() > REMEMBERED
                && let Some(oldest) = self.order.pop_front()
            {
                self.known.remove(&oldest);
            }
        }
        is_new
    }

    /// All, oldest first.
    pub(super) fn all(&self) -> Vec<u64> {
        self.order.iter().copied().collect()
    }
}
