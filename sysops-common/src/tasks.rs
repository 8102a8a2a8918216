//! The table of all processes, as the kernel's task iterator writes it: one [`Process`] or [`Unread`] for each process, one
//! [`Thread`] for each further thread, and an [`End`]. Adding the threads up is left to the agent.

use crate::offset::Offset;
use crate::plain::plain;
use crate::task::COMM_LEN;

/// What the program must know about the running kernel. Only those said to be optional may be absent.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offsets {
    /// `task_struct.tgid`.
    pub tgid: Offset,
    /// `task_struct.pid`.
    pub pid: Offset,
    /// `task_struct.comm`.
    pub comm: Offset,
    /// `task_struct.__state`, or `state` before 5.14, of which the low half is read.
    pub state: Offset,
    /// `task_struct.exit_state`.
    pub exit_state: Offset,
    /// `task_struct.flags`.
    pub flags: Offset,
    /// `task_struct.real_parent`.
    pub real_parent: Offset,
    /// `task_struct.start_boottime`.
    pub start_boottime: Offset,
    /// `task_struct.real_cred`.
    pub real_cred: Offset,
    /// `cred.uid`.
    pub cred_uid: Offset,
    /// `task_struct.utime`.
    pub utime: Offset,
    /// `task_struct.stime`.
    pub stime: Offset,
    /// `task_struct.se.sum_exec_runtime`.
    pub runtime: Offset,
    /// `task_struct.signal`.
    pub signal: Offset,
    /// `signal_struct.nr_threads`.
    pub nr_threads: Offset,
    /// `signal_struct.utime`.
    pub ended_utime: Offset,
    /// `signal_struct.stime`.
    pub ended_stime: Offset,
    /// `signal_struct.sum_sched_runtime`.
    pub ended_runtime: Offset,
    /// `signal_struct.prev_cputime.utime`.
    pub told_utime: Offset,
    /// `signal_struct.prev_cputime.stime`.
    pub told_stime: Offset,
    /// `signal_struct.rlim[RLIMIT_NOFILE].rlim_cur`.
    pub files_limit: Offset,
    /// `task_struct.mm`.
    pub mm: Offset,
    /// The counter MM_FILEPAGES in `mm_struct.rss_stat`.
    pub file_pages: Offset,
    /// The counter MM_ANONPAGES.
    pub anon_pages: Offset,
    /// The counter MM_SHMEMPAGES.
    pub shmem_pages: Offset,
    /// `task_struct.files`.
    pub files: Offset,
    /// `files_struct.fdt`.
    pub fdt: Offset,
    /// `fdtable.max_fds`.
    pub max_fds: Offset,
    /// `fdtable.open_fds`.
    pub open_fds: Offset,
    /// `task_struct.cgroups`; optional, as are the five behind it.
    pub cgroups: Offset,
    /// `css_set.dfl_cgrp`.
    pub default_cgroup: Offset,
    /// `css_set.subsys[memory_cgrp_id]`.
    pub memory_state: Offset,
    /// `cgroup_subsys_state.cgroup`.
    pub state_cgroup: Offset,
    /// `cgroup.kn`.
    pub cgroup_kn: Offset,
    /// `kernfs_node.id`.
    pub kn_id: Offset,
    /// `task_struct.ioac`; optional, as are the eight behind it.
    pub io: Offset,
    /// `signal_struct.ioac`.
    pub ended_io: Offset,
    /// The members of `struct task_io_accounting`, in the order of [`Io`].
    pub io_members: [Offset; IO_MEMBERS],
    /// 1 when the counters of resident pages are an array of numbers, as up to 6.1: no verifier lets a program load one.
    pub pages_by_copy: u16,
}

/// Numbers in [`Io`].
pub const IO_MEMBERS: usize = 7;

/// What a task has read and written: rchar, wchar, syscr, syscw, read_bytes, write_bytes, cancelled_write_bytes.
pub type Io = [u64; IO_MEMBERS];

/// CPU time of a task, in nanoseconds.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Times {
    /// Ticks that met it in user mode.
    pub user: u64,
    /// Ticks that met it in the kernel.
    pub system: u64,
    /// What the scheduler measured, which is exact.
    pub runtime: u64,
}

/// What begins every record: which it is, and with it how long.
pub mod kind {
    /// A [`super::Process`].
    pub const PROCESS: u32 = 1;
    /// A [`super::Thread`].
    pub const THREAD: u32 = 2;
    /// A [`super::End`].
    pub const END: u32 = 3;
    /// A [`super::Unread`].
    pub const UNREAD: u32 = 4;
}

/// A process, as its first thread shows it. What has no address (memory of a kernel thread, files of a zombie) is 0.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Process {
    /// [`kind::PROCESS`].
    pub kind: u32,
    /// Process id.
    pub tgid: u32,
    /// Process id of the parent.
    pub parent: u32,
    /// Real user id in the initial user namespace.
    pub uid: u32,
    /// Threads that live, the first included even when it has ended.
    pub threads: u32,
    /// `__state`.
    pub state: u32,
    /// `exit_state`.
    pub exit_state: u32,
    /// `flags`: PF_….
    pub flags: u32,
    /// Start in nanoseconds of CLOCK_BOOTTIME.
    pub start_boottime_ns: u64,
    /// Of the first thread.
    pub own: Times,
    /// Of all threads that have ended.
    pub ended: Times,
    /// User time that /proc told last: it never tells less.
    pub told_utime: u64,
    /// System time that /proc told last.
    pub told_stime: u64,
    /// Resident file pages, as the kernel's counter says, which may be below 0 for a moment.
    pub file_pages: i64,
    /// Resident anonymous pages.
    pub anon_pages: i64,
    /// Resident pages of shared memory.
    pub shmem_pages: i64,
    /// Soft limit of open files.
    pub files_limit: u64,
    /// Id of the cgroup in the unified hierarchy; 0 when not known.
    pub cgroup: u64,
    /// Id of the cgroup in the memory controller's hierarchy; 0 when not known.
    pub memory_cgroup: u64,
    /// Of the first thread and of those that have ended.
    pub io: Io,
    /// Name, padded with NUL.
    pub comm: [u8; COMM_LEN],
    /// Open files, or [`NOT_COUNTED`].
    pub open_files: u32,
    /// Keeps the size a multiple of the alignment without hidden bytes.
    pub reserved: u32,
}

/// A thread that is not the first of its process.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Thread {
    /// [`kind::THREAD`].
    pub kind: u32,
    /// Process id.
    pub tgid: u32,
    /// Its own.
    pub own: Times,
    /// `ended.runtime` of its process at this moment: another than that in [`Process`] when a thread has ended in between.
    pub ended_runtime: u64,
    /// Its own.
    pub io: Io,
}

/// A process that could not be read, as it was on its way out.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unread {
    /// [`kind::UNREAD`].
    pub kind: u32,
    /// Process id.
    pub tgid: u32,
}

/// The last record.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct End {
    /// [`kind::END`].
    pub kind: u32,
    /// Keeps the size a multiple of the alignment without hidden bytes.
    pub reserved: u32,
    /// Records before this one.
    pub records: u64,
}

plain!(Offsets, Times, Process, Thread, Unread, End);

/// More files than the program counts.
pub const NOT_COUNTED: u32 = u32::MAX;

/// Words of 64 descriptors that the program counts at most.
pub const FD_WORDS: usize = 16;

impl Offsets {
    /// Nothing is known.
    pub const ABSENT: Self = {
        const NO: Offset = Offset::ABSENT;
        Self {
            tgid: NO,
            pid: NO,
            comm: NO,
            state: NO,
            exit_state: NO,
            flags: NO,
            real_parent: NO,
            start_boottime: NO,
            real_cred: NO,
            cred_uid: NO,
            utime: NO,
            stime: NO,
            runtime: NO,
            signal: NO,
            nr_threads: NO,
            ended_utime: NO,
            ended_stime: NO,
            ended_runtime: NO,
            told_utime: NO,
            told_stime: NO,
            files_limit: NO,
            mm: NO,
            file_pages: NO,
            anon_pages: NO,
            shmem_pages: NO,
            files: NO,
            fdt: NO,
            max_fds: NO,
            open_fds: NO,
            cgroups: NO,
            default_cgroup: NO,
            memory_state: NO,
            state_cgroup: NO,
            cgroup_kn: NO,
            kn_id: NO,
            io: NO,
            ended_io: NO,
            io_members: [NO; IO_MEMBERS],
            pages_by_copy: 0,
        }
    };
}

const _: () = assert!(size_of::<Offsets>() == 90);
const _: () = assert!(size_of::<Process>() == 232 && size_of::<Thread>() == 96 && size_of::<End>() == 16);
const _: () = assert!(size_of::<Unread>() == 8);
