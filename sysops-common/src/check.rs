//! What a probe reads about the agent itself, so that its offsets are held against /proc/self before they are trusted.

use crate::plain::{Plain, plain};
use crate::task::COMM_LEN;

/// What kernel helpers say about the running task, whatever the offsets.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Helpers {
    /// How often the check has run.
    pub runs: u64,
    /// Process id in the initial pid namespace.
    pub tgid: u32,
    /// Thread id in the initial pid namespace.
    pub tid: u32,
    /// Real user id in the initial user namespace.
    pub uid: u32,
    /// 1 when the record could be filled.
    pub filled: u32,
    /// Name before the renaming that ran the check.
    pub comm: [u8; COMM_LEN],
}

/// One run of a self-check: the helpers' word and the probe's own record, filled by the probe's own code.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Check<T> {
    /// The helpers' word.
    pub helpers: Helpers,
    /// The probe's record about the agent.
    pub record: T,
}

plain!(Helpers);

// SAFETY: two plain members, the second aligned to 8 behind 40 bytes: no hidden bytes, any bytes are a value.
unsafe impl<T: Plain> Plain for Check<T> {}
#[cfg(feature = "user")]
// SAFETY: as above.
unsafe impl<T: Plain> aya::Pod for Check<T> {}

const _: () = assert!(size_of::<Helpers>() == 40);
