//! A task that hangs, as `sched_process_hang` shows it.

use crate::offset::Offset;
use crate::plain::plain;
use crate::task::{Task, TaskOffsets};

/// What the program must know about the running kernel.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offsets {
    /// First eight bytes of the name that runs the self-check.
    pub check_name: u64,
    /// Members of `task_struct` that name a process.
    pub task: TaskOffsets,
    /// `task_struct.last_switch_time`, in jiffies.
    pub last_switch_time: Offset,
    /// `task_struct.last_switch_count`.
    pub last_switch_count: Offset,
    /// `pid` in the tracepoint's record, by tracefs. Other fields come from /proc: the task is going nowhere.
    pub format_pid: Offset,
    /// Keeps the size a multiple of the alignment without hidden bytes.
    pub reserved: u16,
}

/// One report of the kernel. It reports again while the task hangs.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Record {
    /// CLOCK_MONOTONIC.
    pub monotonic_ns: u64,
    /// Jiffies of the report, with the kernel's own starting point.
    pub jiffies: u64,
    /// Jiffies at which the kernel first saw the task not run.
    pub last_switch_time: u64,
    /// How often it had run by then: tells one hang from the next.
    pub last_switch_count: u64,
    /// Bits of [`known`].
    pub known: u32,
    /// Keeps the size a multiple of the alignment without hidden bytes.
    pub reserved: u32,
    /// The task.
    pub task: Task,
}

plain!(Offsets, Record);

/// Bits of [`Record::known`].
pub mod known {
    /// `jiffies` and `last_switch_time` were read.
    pub const SWITCH_TIME: u32 = 1;
    /// `last_switch_count` was read.
    pub const SWITCH_COUNT: u32 = 1 << 1;
}

impl Offsets {
    /// Nothing is known.
    pub const ABSENT: Self = Self {
        check_name: 0,
        task: TaskOffsets::ABSENT,
        last_switch_time: Offset::ABSENT,
        last_switch_count: Offset::ABSENT,
        format_pid: Offset::ABSENT,
        reserved: 0,
    };
}

const _: () = assert!(size_of::<Offsets>() == 40 && size_of::<Record>() == 40 + size_of::<Task>());
