//! The victim of an OOM kill, as `mark_victim` shows it.

use crate::offset::Offset;
use crate::plain::plain;
use crate::task::{COMM_LEN, NAME_LEN, PATH_LEN, Task, TaskOffsets};

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
    /// `task_struct.group_leader`.
    pub group_leader: Offset,
    /// `mem_cgroup.css`.
    pub memcg_css: Offset,
    /// `mem_cgroup.memory`.
    pub memcg_memory: Offset,
    /// `page_counter.max`.
    pub counter_max: Offset,
    /// `page_counter.parent`.
    pub counter_parent: Offset,
    /// Fields of the tracepoint's record, by tracefs.
    pub format: Format,
    /// Fields of the record of `signal/signal_generate`, by tracefs.
    pub signal_format: SignalFormat,
    /// 1 when `mark_victim` hands over a thread id and no task.
    pub victim_is_number: u16,
    /// Keeps the size a multiple of the alignment without hidden bytes.
    pub reserved: [u16; 2],
}

/// Where the fields of the tracepoint `signal/signal_generate` lie in its record.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SignalFormat {
    /// `sig`.
    pub sig: Offset,
    /// `code`, which is SI_KERNEL when the kernel itself sends.
    pub code: Offset,
    /// `pid`, which is a thread id.
    pub pid: Offset,
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
    /// Smallest limit in pages of the victim's memory cgroup and those above it.
    pub limit: u64,
    /// Return addresses of the kernel's stack, innermost first; zero behind the last.
    pub stack: [u64; STACK_DEPTH],
    /// -1000 to 1000.
    pub oom_score_adj: i32,
    /// Process that asked for memory.
    pub trigger_tgid: u32,
    /// Its thread.
    pub trigger_tid: u32,
    /// 1 when that thread had sent the victim a SIGKILL right before: the kernel kills, and does not only mark.
    pub signalled: u32,
    /// Name of the thread.
    pub trigger_comm: [u8; COMM_LEN],
    /// Name of the first thread of the victim's process.
    pub leader_comm: [u8; COMM_LEN],
    /// Bits of [`known`].
    pub known: u32,
    /// Bytes of `trigger_path` that are filled.
    pub trigger_path_len: u32,
    /// Names of the trigger's memory cgroup as in [`Task::path`].
    pub trigger_path: [u8; PATH_LEN + NAME_LEN],
    /// The victim.
    pub task: Task,
}

/// Return addresses in a record: enough for the way from an allocation's slow path to the mark.
pub const STACK_DEPTH: usize = 16;

plain!(Offsets, Format, SignalFormat, Record);

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
    /// `leader_comm` was read.
    pub const LEADER: u32 = 1 << 8;
    /// `limit` was read.
    pub const LIMIT: u32 = 1 << 9;
    /// `trigger_path` was read.
    pub const TRIGGER_PATH: u32 = 1 << 10;
    /// The trigger's memory cgroup is the victim's.
    pub const SAME_PATH: u32 = 1 << 11;
    /// `stack` was read.
    pub const STACK: u32 = 1 << 12;
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
        group_leader: Offset::ABSENT,
        memcg_css: Offset::ABSENT,
        memcg_memory: Offset::ABSENT,
        counter_max: Offset::ABSENT,
        counter_parent: Offset::ABSENT,
        format: Format::ABSENT,
        signal_format: SignalFormat::ABSENT,
        victim_is_number: 0,
        reserved: [0; 2],
    };
}

impl SignalFormat {
    /// Nothing is known.
    pub const ABSENT: Self = Self { sig: Offset::ABSENT, code: Offset::ABSENT, pid: Offset::ABSENT };
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

const _: () =
    assert!(size_of::<Offsets>() == 88 && size_of::<Record>() == 240 + PATH_LEN + NAME_LEN + size_of::<Task>());
