//! The victim of an OOM kill, as `mark_victim` shows it.

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
    /// `task_struct.signal`.
    pub signal: Offset,
    /// `signal_struct.oom_score_adj`.
    pub oom_score_adj: Offset,
    /// `task_struct.mm`.
    pub mm: Offset,
    /// `mm_struct.total_vm`.
    pub total_vm: Offset,
    /// The counter MM_ANONPAGES in `mm_struct.rss_stat`.
    pub anon_pages: Offset,
    /// The counter MM_FILEPAGES.
    pub file_pages: Offset,
    /// The counter MM_SHMEMPAGES.
    pub shmem_pages: Offset,
    /// `mm_struct.pgtables_bytes`.
    pub pgtables_bytes: Offset,
    /// Fields of the tracepoint's record, by tracefs.
    pub format: Format,
    /// Keeps the size a multiple of the alignment without hidden bytes.
    pub reserved: [u16; 3],
}

/// Where the fields of the tracepoint `oom/mark_victim` lie in its record. All but `pid` came in 6.9 and were carried back.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Format {
    /// `pid`, which is a thread id.
    pub pid: Offset,
    /// `__data_loc char[] comm`.
    pub comm: Offset,
    /// `total_vm` in KiB.
    pub total_vm: Offset,
    /// `anon_rss` in KiB.
    pub anon_rss: Offset,
    /// `file_rss` in KiB.
    pub file_rss: Offset,
    /// `shmem_rss` in KiB.
    pub shmem_rss: Offset,
    /// `uid`.
    pub uid: Offset,
    /// `pgtables` in KiB.
    pub pgtables: Offset,
    /// `oom_score_adj`.
    pub oom_score_adj: Offset,
}

/// One kill. Sizes are pages, but KiB when `known` has [`known::KIB`]; page tables are bytes, or KiB likewise.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Record {
    /// CLOCK_MONOTONIC.
    pub monotonic_ns: u64,
    /// Size of the address space.
    pub total_vm: u64,
    /// Resident anonymous memory.
    pub anon: u64,
    /// Resident file pages.
    pub file: u64,
    /// Resident shared memory.
    pub shmem: u64,
    /// Page tables.
    pub pgtables: u64,
    /// -1000 to 1000.
    pub oom_score_adj: i32,
    /// Process that asked for memory.
    pub trigger_tgid: u32,
    /// Its name.
    pub trigger_comm: [u8; COMM_LEN],
    /// Bits of [`known`].
    pub known: u32,
    /// Keeps the size a multiple of the alignment without hidden bytes.
    pub reserved: u32,
    /// The victim.
    pub task: Task,
}

plain!(Offsets, Format, Record);

/// Bits of [`Record::known`].
pub mod known {
    /// `total_vm` was read.
    pub const TOTAL_VM: u32 = 1;
    /// `anon` was read.
    pub const ANON: u32 = 1 << 1;
    /// `file` was read.
    pub const FILE: u32 = 1 << 2;
    /// `shmem` was read.
    pub const SHMEM: u32 = 1 << 3;
    /// `pgtables` was read.
    pub const PGTABLES: u32 = 1 << 4;
    /// `oom_score_adj` was read.
    pub const ADJ: u32 = 1 << 5;
    /// The trigger was read.
    pub const TRIGGER: u32 = 1 << 6;
    /// Sizes are in KiB.
    pub const KIB: u32 = 1 << 7;
}

impl Offsets {
    /// Nothing is known.
    pub const ABSENT: Self = Self {
        check_name: 0,
        task: TaskOffsets::ABSENT,
        signal: Offset::ABSENT,
        oom_score_adj: Offset::ABSENT,
        mm: Offset::ABSENT,
        total_vm: Offset::ABSENT,
        anon_pages: Offset::ABSENT,
        file_pages: Offset::ABSENT,
        shmem_pages: Offset::ABSENT,
        pgtables_bytes: Offset::ABSENT,
        format: Format::ABSENT,
        reserved: [0; 3],
    };
}

impl Format {
    /// Nothing is known.
    pub const ABSENT: Self = Self {
        pid: Offset::ABSENT,
        comm: Offset::ABSENT,
        total_vm: Offset::ABSENT,
        anon_rss: Offset::ABSENT,
        file_rss: Offset::ABSENT,
        shmem_rss: Offset::ABSENT,
        uid: Offset::ABSENT,
        pgtables: Offset::ABSENT,
        oom_score_adj: Offset::ABSENT,
    };
}

const _: () = assert!(size_of::<Offsets>() == 72 && size_of::<Record>() == 80 + size_of::<Task>());
