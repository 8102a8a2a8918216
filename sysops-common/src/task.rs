//! What every probe that names a process reads of `struct task_struct`.

use crate::offset::Offset;
use crate::plain::plain;

/// Where the members are. All but `tgid`, `pid` and `comm` may be absent.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TaskOffsets {
    /// `task_struct.tgid`.
    pub tgid: Offset,
    /// `task_struct.pid`: what user space calls the thread id.
    pub pid: Offset,
    /// `task_struct.comm`.
    pub comm: Offset,
    /// `task_struct.start_boottime`.
    pub start_boottime: Offset,
    /// `task_struct.real_cred`.
    pub real_cred: Offset,
    /// `cred.uid`.
    pub cred_uid: Offset,
    /// `task_struct.cgroups`.
    pub cgroups: Offset,
    /// `css_set.subsys[memory_cgrp_id]`.
    pub css_set_memory: Offset,
    /// `cgroup_subsys_state.cgroup`.
    pub css_cgroup: Offset,
    /// `cgroup.kn`.
    pub cgroup_kn: Offset,
    /// `kernfs_node.parent`, or `__parent` since 6.15.
    pub kn_parent: Offset,
    /// `kernfs_node.name`.
    pub kn_name: Offset,
}

impl TaskOffsets {
    /// Nothing is known.
    pub const ABSENT: Self = Self {
        tgid: Offset::ABSENT,
        pid: Offset::ABSENT,
        comm: Offset::ABSENT,
        start_boottime: Offset::ABSENT,
        real_cred: Offset::ABSENT,
        cred_uid: Offset::ABSENT,
        cgroups: Offset::ABSENT,
        css_set_memory: Offset::ABSENT,
        css_cgroup: Offset::ABSENT,
        cgroup_kn: Offset::ABSENT,
        kn_parent: Offset::ABSENT,
        kn_name: Offset::ABSENT,
    };
}

/// Bytes of a task's name in the kernel, the closing NUL included (TASK_COMM_LEN).
pub const COMM_LEN: usize = 16;
/// Longest name of a cgroup, the closing NUL included (NAME_MAX + 1).
pub const NAME_LEN: usize = 256;
/// Bytes for the names of a path. A power of two: the verifier is shown the bound by a mask.
pub const PATH_LEN: usize = 2048;
/// Deepest nesting that is followed.
pub const PATH_DEPTH: usize = 32;

/// What was read of a task. What is not marked in `known` has no meaning.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Task {
    /// Start in nanoseconds of CLOCK_BOOTTIME.
    pub start_boottime_ns: u64,
    /// Process id.
    pub tgid: u32,
    /// Thread id.
    pub tid: u32,
    /// Real user id in the initial user namespace.
    pub uid: u32,
    /// Bits of [`known`].
    pub known: u32,
    /// Name, padded with NUL.
    pub comm: [u8; COMM_LEN],
    /// Bytes of `path` that are filled.
    pub path_len: u32,
    /// Keeps the size a multiple of the alignment without hidden bytes.
    pub reserved: u32,
    /// Names of the cgroup and of those above it up to the root, which has none; the innermost first, each closed by NUL.
    /// The last [`NAME_LEN`] bytes are room for the name that turns out to be too much.
    pub path: [u8; PATH_LEN + NAME_LEN],
}

plain!(TaskOffsets, Task);

/// Bits of [`Task::known`].
pub mod known {
    /// `tgid` was read.
    pub const TGID: u32 = 1;
    /// `tid` was read.
    pub const TID: u32 = 1 << 1;
    /// `comm` was read.
    pub const COMM: u32 = 1 << 2;
    /// `start_boottime_ns` was read.
    pub const START: u32 = 1 << 3;
    /// `uid` was read.
    pub const UID: u32 = 1 << 4;
    /// The whole path was read.
    pub const PATH: u32 = 1 << 5;
}

const _: () = assert!(PATH_LEN.is_power_of_two() && size_of::<Task>() == 48 + PATH_LEN + NAME_LEN);
