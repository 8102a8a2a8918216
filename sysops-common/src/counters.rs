//! What every probe counts in the kernel. All CPUs add to the same numbers, atomically.

use crate::plain::plain;

/// Counts since the probe was attached.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Events that were handed over or entered into the probe's maps.
    pub received: u64,
    /// Events lost because the ring buffer was full.
    pub ring_full: u64,
    /// Events lost because a map was full.
    pub map_full: u64,
    /// Events lost because kernel memory could not be read.
    pub read_fault: u64,
    /// Events set aside because what they end began too long ago to be true.
    pub stale: u64,
}

plain!(Counters);

impl Counters {
    /// Each reason for a loss with its count, named as the metric's label has it.
    #[must_use]
    pub const fn dropped_by_reason(&self) -> [(&'static str, u64); 4] {
        [
            ("ring_full", self.ring_full),
            ("map_full", self.map_full),
            ("read_fault", self.read_fault),
            ("stale", self.stale),
        ]
    }

    /// All losses.
    #[must_use]
    pub const fn dropped(&self) -> u64 {
        self.ring_full + self.map_full + self.read_fault + self.stale
    }
}
