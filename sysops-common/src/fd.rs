//! File descriptors of watched processes: which stack took each that is open, and how many were taken and closed.

use crate::offset::Offset;
use crate::plain::plain;
use crate::stack::StackOffsets;

/// Numbers of system calls that are told apart; a call with a higher one makes and closes nothing.
pub const CALLS: usize = 512;
/// Processes that can be watched at once.
pub const WATCHED_MAX: usize = 64;
/// Arguments of a system call that the programs can look at.
pub const ARGUMENTS: usize = 4;

/// What a system call does to the caller's descriptors when it succeeds, and where it says to which.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Nothing that is counted.
    None,
    /// One new descriptor: the result.
    One,
    /// Two new descriptors, in the array that the first argument points to.
    Pipe,
    /// Two new descriptors, in the array that the fourth argument points to.
    Pair,
    /// The result, unless it is the first argument (dup2 of a descriptor to itself).
    Replace,
    /// The result, if the second argument says so (fcntl).
    Duplicate,
    /// Those in the control messages of the message header that the second argument points to (recvmsg).
    Receive,
    /// One descriptor is closed: the first argument.
    Close,
}

/// What the programs must know about the running kernel.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offsets {
    /// What taking a stack must know.
    pub stack: StackOffsets,
    /// Where `struct pt_regs` has the number of the call: `orig_ax` on x86, `syscallno` on arm64.
    pub number: Offset,
    /// `task_struct.thread_info.status`, on x86: a bit in it says that the call is one of a 32-bit program, which has
    /// other numbers. Absent elsewhere.
    pub status: Offset,
    /// Where `struct pt_regs` still has the first arguments when the call returns.
    pub arguments: [Offset; ARGUMENTS],
    /// `__syscall_nr` in the records of the plain tracepoints, by tracefs.
    pub format_number: Offset,
    /// `ret` in the records of `sys_exit_*`.
    pub format_result: Offset,
    /// The first argument in the records of `sys_enter_*`; each has eight bytes.
    pub format_arguments: Offset,
    /// `task_struct.files`.
    pub files: Offset,
    /// `files_struct.fdt`.
    pub fdt: Offset,
    /// `fdtable.max_fds`.
    pub max_fds: Offset,
    /// `fdtable.fd`.
    pub fd: Offset,
    /// `file.f_inode`.
    pub inode: Offset,
    /// `inode.i_ino`.
    pub inode_number: Offset,
    /// Keeps the size a multiple of eight without hidden bytes.
    pub reserved: [u16; 1],
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
    /// New descriptors that found no room in the table.
    pub full: u64,
    /// Not 0: no stacks are taken. For the self-check, which wants none.
    pub stackless: u64,
}

/// A descriptor of a watched process.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Descriptor {
    /// Process: the tgid.
    pub tgid: u32,
    /// Its number.
    pub fd: u32,
}

/// Who took a descriptor, and what it was then.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// The stack that took it; 0 when it could not be taken.
    pub stack: u64,
    /// CLOCK_MONOTONIC when it was taken.
    pub monotonic_ns: u64,
    /// Address of the kernel's `struct file`; 0 when it could not be read.
    pub file: u64,
    /// Number of the inode; 0 when it could not be read.
    pub inode: u64,
    /// The system call by its number, plus one; 0 when it is not known.
    pub call: u32,
    /// Keeps the size a multiple of the alignment without hidden bytes.
    pub reserved: u32,
}

/// A system call that has not returned yet.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pending {
    /// The first arguments.
    pub arguments: [u64; ARGUMENTS],
    /// Its number, to tell it from one that was not seen.
    pub number: u64,
}

plain!(Offsets, Counts, Descriptor, Held, Pending);

impl Offsets {
    /// Nothing is known.
    pub const ABSENT: Self = Self {
        stack: StackOffsets::ABSENT,
        number: Offset::ABSENT,
        status: Offset::ABSENT,
        arguments: [Offset::ABSENT; ARGUMENTS],
        format_number: Offset::ABSENT,
        format_result: Offset::ABSENT,
        format_arguments: Offset::ABSENT,
        files: Offset::ABSENT,
        fdt: Offset::ABSENT,
        max_fds: Offset::ABSENT,
        fd: Offset::ABSENT,
        inode: Offset::ABSENT,
        inode_number: Offset::ABSENT,
        reserved: [0; 1],
        calls: [Effect::None as u8; CALLS],
    };
}

const _: () = assert!(size_of::<Offsets>() == size_of::<StackOffsets>() + 32 + CALLS && CALLS.is_power_of_two());
const _: () = assert!(size_of::<Held>() == 40 && size_of::<Pending>() == 8 * (ARGUMENTS + 1));
