//! Counts what was handed over and what was lost, by reason, per CPU.

use aya_ebpf::macros::map;
use aya_ebpf::maps::PerCpuArray;
use sysops_common::counters::Counters;

#[map]
static COUNTERS: PerCpuArray<Counters> = PerCpuArray::with_max_entries(1, 0);

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
    let Some(counters) = COUNTERS.get_ptr_mut(0) else { return };
    // SAFETY: the pointer is this CPU's own value and a tracing program is not preempted by another on its CPU
    // (one that interrupts it may lose one count, nothing else).
    let counters = unsafe { &mut *counters };
    let counter = match fate {
        Fate::Received => &mut counters.received,
        Fate::RingFull => &mut counters.ring_full,
        Fate::MapFull => &mut counters.map_full,
        Fate::ReadFault => &mut counters.read_fault,
        Fate::Stale => &mut counters.stale,
    };
    *counter += 1;
}
