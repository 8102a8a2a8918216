//! A task that hangs, as `sched_process_hang` shows it, and tasks in uninterruptible sleep, as the task iterator does.

use crate::offset::Offset;
use crate::plain::plain;
use crate::task::{COMM_LEN, Task, TaskOffsets};

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
    /// `task_struct.__state`, or `state` before 5.14, whose lower half it is.
    pub state: Offset,
    /// `task_struct.flags`.
    pub flags: Offset,
    /// `task_struct.nvcsw`.
    pub nvcsw: Offset,
    /// `task_struct.nivcsw`.
    pub nivcsw: Offset,
    /// `task_struct.vfork_done`.
    pub vfork_done: Offset,
    /// `task_struct.real_parent`.
    pub real_parent: Offset,
    /// `task_struct.blocker`, since 6.16 where the kernel keeps it.
    pub blocker: Offset,
    /// `mutex.owner`.
    pub mutex_owner: Offset,
    /// `semaphore.last_holder`.
    pub semaphore_holder: Offset,
    /// `rw_semaphore.owner`.
    pub rwsem_owner: Offset,
    /// `task_struct.group_leader`.
    pub group_leader: Offset,
    /// Keeps the size a multiple of the alignment without hidden bytes.
    pub reserved: [u16; 2],
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
    /// Name of its process: that of the first thread.
    pub leader_comm: [u8; COMM_LEN],
    /// The task.
    pub task: Task,
}

/// A task in uninterruptible sleep, or a child of vfork(2) whose parent sleeps for it, as the iterator found it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asleep {
    /// Start in nanoseconds of CLOCK_BOOTTIME.
    pub start_boottime_ns: u64,
    /// How often it has run: `nvcsw` and `nivcsw`.
    pub switches: u64,
    /// Thread id.
    pub tid: u32,
    /// Process id.
    pub tgid: u32,
    /// Bits of [`state`].
    pub state: u32,
    /// `PF_…` (include/linux/sched.h).
    pub flags: u32,
    /// Thread that waits in vfork(2) until this one has called exec or ended; 0 when there is none.
    pub vfork_parent: u32,
    /// What it waits for, one of [`lock`].
    pub lock: u32,
    /// Thread that holds the lock; 0 when it is not known.
    pub holder_tid: u32,
    /// Keeps the size a multiple of the alignment without hidden bytes.
    pub reserved: u32,
    /// Name, padded with NUL.
    pub comm: [u8; COMM_LEN],
    /// Name of the thread that holds the lock.
    pub holder_comm: [u8; COMM_LEN],
}

/// Frames of a kernel stack that are kept: the kernel's own /proc/<pid>/stack has as many.
pub const FRAMES_MAX: usize = 64;

/// A task's kernel stack.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Stack {
    /// Thread id.
    pub tid: u32,
    /// Addresses that are filled.
    pub count: u32,
    /// Return addresses, innermost first.
    pub addresses: [u64; FRAMES_MAX],
}

plain!(Offsets, Record, Asleep, Stack);

/// Bits of a task's state (include/linux/sched.h), the same since 4.14. BTF does not have them: what is told of a task
/// is held against /proc first.
pub mod state {
    /// TASK_UNINTERRUPTIBLE.
    pub const UNINTERRUPTIBLE: u32 = 0x2;
    /// TASK_WAKEKILL: a signal that kills ends the sleep, so that the kernel's own detector passes it over.
    pub const WAKEKILL: u32 = 0x100;
    /// TASK_NOLOAD: the sleep of a thread that has nothing to do.
    pub const NOLOAD: u32 = 0x400;
}

/// What a task waits for.
pub mod lock {
    /// No lock that the kernel keeps track of.
    pub const NONE: u32 = 0;
    /// A mutex.
    pub const MUTEX: u32 = 1;
    /// A semaphore; its holder is who took it last.
    pub const SEMAPHORE: u32 = 2;
    /// A lock for readers and writers.
    pub const RW_SEMAPHORE: u32 = 3;
}

/// Bits of [`Record::known`].
pub mod known {
    /// `jiffies` and `last_switch_time` were read.
    pub const SWITCH_TIME: u32 = 1;
    /// `last_switch_count` was read.
    pub const SWITCH_COUNT: u32 = 1 << 1;
    /// `leader_comm` was read.
    pub const LEADER: u32 = 1 << 2;
}

impl Offsets {
    /// Nothing is known.
    pub const ABSENT: Self = Self {
        check_name: 0,
        task: TaskOffsets::ABSENT,
        last_switch_time: Offset::ABSENT,
        last_switch_count: Offset::ABSENT,
        format_pid: Offset::ABSENT,
        state: Offset::ABSENT,
        flags: Offset::ABSENT,
        nvcsw: Offset::ABSENT,
        nivcsw: Offset::ABSENT,
        vfork_done: Offset::ABSENT,
        real_parent: Offset::ABSENT,
        blocker: Offset::ABSENT,
        mutex_owner: Offset::ABSENT,
        semaphore_holder: Offset::ABSENT,
        rwsem_owner: Offset::ABSENT,
        group_leader: Offset::ABSENT,
        reserved: [0; 2],
    };
}

const _: () = assert!(size_of::<Offsets>() == 64 && size_of::<Record>() == 40 + COMM_LEN + size_of::<Task>());
const _: () = assert!(size_of::<Asleep>() == 48 + 2 * COMM_LEN && size_of::<Stack>() == 8 + 8 * FRAMES_MAX);
