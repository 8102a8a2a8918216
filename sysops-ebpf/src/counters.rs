//! Counts what was handed over and what was lost, by reason.

use aya_ebpf::macros::map;
use aya_ebpf::maps::Array;
use sysops_common::counters::Counters;

use crate::memory::add;

#[map]
static COUNTERS: Array<Counters> = Array::with_max_entries(1, 0);

/// What happened to an event.
#[derive(Clone, Copy)]
pub enum Fate {
    /// Handed over, or entered into the probe's maps.
    Received,
    /// The ring buffer was full.
    RingFull,
    /// A map was full.
    MapFull,
    /// Kernel memory could not be read.
    ReadFault,
    /// What it ends began too long ago to be true.
    Stale,
}

/// Counts one event.
#[inline(always)]
pub fn count(fate: Fate) {
    match fate {
        Fate::Received => enter(Fate::Received),
        loss => lose(loss),
    }
}

/// What is seldom is kept out of the way of what is not.
#[inline(never)]
fn lose(loss: Fate) {
    enter(loss);
}

#[inline(always)]
fn enter(fate: Fate) {
    let Some(counters) = COUNTERS.get_ptr_mut(0) else { return };
    // SAFETY: all point into the map's one value.
    unsafe {
        let counter = match fate {
            Fate::Received => &raw mut (*counters).received,
            Fate::RingFull => &raw mut (*counters).ring_full,
            Fate::MapFull => &raw mut (*counters).map_full,
            Fate::ReadFault => &raw mut (*counters).read_fault,
            Fate::Stale => &raw mut (*counters).stale,
        };
        add(counter, 1);
    }
}
