//! File descriptors that watched processes get and close, as counted in the kernel when system calls return.

use crate::offset::Offset;
use crate::plain::plain;

/// Numbers of system calls that are told apart; a call with a higher one makes and closes nothing.
pub const CALLS: usize = 512;
/// Processes that can be watched at once.
pub const WATCHED_MAX: usize = 64;

/// What a system call does to the caller's descriptors when it succeeds.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Nothing that is counted.
    None,
    /// One new descriptor.
    One,
    /// Two new descriptors.
    Two,
    /// One descriptor is closed.
    Close,
}

/// What the program must know about the running kernel.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offsets {
    /// Where `struct pt_regs` has the number of the call: `orig_ax` on x86, `syscallno` on arm64.
    pub number: Offset,
    /// `task_struct.thread_info.status`, on x86: a bit in it says that the call is one of a 32-bit program, which has
    /// other numbers. Absent elsewhere.
    pub status: Offset,
    /// `__syscall_nr` in the record of the plain tracepoints, by tracefs.
    pub format_number: Offset,
    /// `ret` in the record of the plain tracepoints, by tracefs.
    pub format_result: Offset,
    /// [`Effect`] by number of the call.
    pub calls: [u8; CALLS],
}

/// What one process did since it is watched. All CPUs add to it atomically.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// New descriptors.
    pub installs: u64,
    /// Closed descriptors.
    pub closes: u64,
}

plain!(Offsets, Counts);

impl Offsets {
    /// Nothing is known.
    pub const ABSENT: Self = Self {
        number: Offset::ABSENT,
        status: Offset::ABSENT,
        format_number: Offset::ABSENT,
        format_result: Offset::ABSENT,
        calls: [Effect::None as u8; CALLS],
    };
}

const _: () = assert!(size_of::<Offsets>() == 8 + CALLS && CALLS.is_power_of_two());
