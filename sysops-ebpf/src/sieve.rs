//! Passes over the processes that no one watches: they are most of those that come, and pay for it.

use aya_ebpf::macros::map;
use aya_ebpf::maps::Array;
use sysops_common::sieve::{WORDS, place};

// Written by the agent.
#[map]
static SIEVE: Array<u64> = Array::with_max_entries(WORDS, 0);

/// True when the process may be watched; whether it is, is told by who asks.
#[inline(always)]
pub fn may_be_watched(tgid: u32) -> bool {
    let (word, bit) = place(tgid);
    SIEVE.get(word).is_some_and(|bits| bits & bit != 0)
}
