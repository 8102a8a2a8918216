//! A SIGKILL that one process sends to another, as `signal_generate` shows it.

use crate::offset::Offset;
use crate::plain::plain;
use crate::task::{Task, TaskOffsets};

/// What the program must know about the running kernel, and what it is asked for.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offsets {
    /// First eight bytes of the name that runs the self-check.
    pub check_name: u64,
    /// Members of `task_struct` that name a process.
    pub task: TaskOffsets,
    /// `task_struct.flags`.
    pub flags: Offset,
    /// `task_struct.group_leader`.
    pub group_leader: Offset,
    /// `task_struct.real_parent`.
    pub real_parent: Offset,
    /// `css_set.dfl_cgrp`.
    pub default_cgroup: Offset,
    /// `kernfs_node.id`.
    pub kn_id: Offset,
    /// `kernel_siginfo.si_code`.
    pub si_code: Offset,
    /// Fields of the tracepoint's record, by tracefs.
    pub format: Format,
    /// 1: those by the parent and from the victim's own cgroup, too.
    pub all: u16,
    /// Keeps the size a multiple of the alignment without hidden bytes.
    pub reserved: [u16; 4],
}

/// Where the fields of the tracepoint `signal/signal_generate` lie in its record.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Format {
    /// `sig`.
    pub sig: Offset,
    /// `code`, above zero when the kernel itself sends.
    pub code: Offset,
    /// `comm`, sixteen bytes.
    pub comm: Offset,
    /// `pid`, which is a thread id.
    pub pid: Offset,
    /// `result`: 0 when the signal is delivered.
    pub result: Offset,
}

/// One SIGKILL.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Record {
    /// CLOCK_MONOTONIC.
    pub monotonic_ns: u64,
    /// Id of the victim's cgroup in the unified hierarchy; 0 when it was not read.
    pub cgroup_id: u64,
    /// Id of the sender's, by the kernel's own helper.
    pub sender_cgroup_id: u64,
    /// Process id of the victim's parent; 0 when it was not read.
    pub parent_tgid: u32,
    /// In the self-check the thread id of the first thread; 0 when it was not read.
    pub leader_tid: u32,
    /// Who got it: the first thread of the process.
    pub task: Task,
    /// Who sent it: the thread that made the system call.
    pub sender: Task,
}

plain!(Offsets, Format, Record);

impl Offsets {
    /// Nothing is known.
    pub const ABSENT: Self = Self {
        check_name: 0,
        task: TaskOffsets::ABSENT,
        flags: Offset::ABSENT,
        group_leader: Offset::ABSENT,
        real_parent: Offset::ABSENT,
        default_cgroup: Offset::ABSENT,
        kn_id: Offset::ABSENT,
        si_code: Offset::ABSENT,
        format: Format::ABSENT,
        all: 0,
        reserved: [0; 4],
    };
}

impl Format {
    /// Nothing is known.
    pub const ABSENT: Self = Self {
        sig: Offset::ABSENT,
        code: Offset::ABSENT,
        comm: Offset::ABSENT,
        pid: Offset::ABSENT,
        result: Offset::ABSENT,
    };
}

const _: () = assert!(size_of::<Offsets>() == 64 && size_of::<Record>() == 32 + 2 * size_of::<Task>());
