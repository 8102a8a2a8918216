//! Requests of block devices: how long each waited and how long its device took, by device and operation, as counted
//! in the kernel, and those that took long, one by one.

use crate::offset::Offset;
use crate::plain::plain;
use crate::task::COMM_LEN;

/// Longest name of a disk, the closing NUL included (DISK_NAME_LEN).
pub const NAME_LEN: usize = 32;
/// Numbers of operations (REQ_OP_*) that are told apart; a higher one is [`Operation::Other`].
pub const OPERATIONS: usize = 64;
/// Finite upper bounds of the histogram: 2^0 to 2^26 microseconds, the last a good minute.
pub const BOUNDS: usize = 27;
/// Buckets: one for each bound and one for what is above all.
pub const BUCKETS: usize = BOUNDS + 1;
/// A latency above this is no latency: the start belongs to another request, whose end was missed.
pub const LATENCY_NS_MAX: u64 = 3_600_000_000_000;

/// What a request does.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Reads data.
    Read,
    /// Writes data.
    Write,
    /// Discards or erases blocks.
    Discard,
    /// Flushes the device's cache.
    Flush,
    /// Anything else: zeroes, zones, commands of a driver.
    Other,
}

impl Operation {
    /// All of them, each at the place of its number.
    pub const ALL: [Self; 5] = [Self::Read, Self::Write, Self::Discard, Self::Flush, Self::Other];

    /// As the label has it.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Discard => "discard",
            Self::Flush => "flush",
            Self::Other => "other",
        }
    }
}

/// What the program must know of the running kernel, and what is configured.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offsets {
    /// A request that takes this long in all is told by itself; zero is never.
    pub slow_ns: u64,
    /// Not zero: bytes and requests are counted by cgroup.
    pub by_cgroup: u64,
    /// What in the flags of a request says that its bios are those of a head of NVMe multipath (REQ_DRV); zero when that is not known.
    pub of_a_head: u64,
    /// `request.q`, or absent where the request itself has the disk.
    pub request_q: Offset,
    /// `request_queue.disk`, or `request.rq_disk` up to 5.16.
    pub disk: Offset,
    /// `gendisk.major`.
    pub major: Offset,
    /// `gendisk.first_minor`.
    pub first_minor: Offset,
    /// `gendisk.disk_name`.
    pub disk_name: Offset,
    /// `request.cmd_flags`, of which the lowest byte is the operation.
    pub cmd_flags: Offset,
    /// `request.__data_len`: bytes that are still to do.
    pub data_len: Offset,
    /// `request.__sector`.
    pub sector: Offset,
    /// `request.bio`.
    pub request_bio: Offset,
    /// `request.start_time_ns`: CLOCK_MONOTONIC when it was made, or zero where the kernel does not take that.
    pub start_time_ns: Offset,
    /// `task_struct.comm`, where a program can have the running task with its type; else absent, with what follows.
    pub task_comm: Offset,
    /// `task_struct.pid`: what user space calls the thread id.
    pub task_pid: Offset,
    /// `task_struct.tgid`.
    pub task_tgid: Offset,
    /// `task_struct.cgroups`.
    pub task_cgroups: Offset,
    /// `css_set.dfl_cgrp`: the cgroup in the unified hierarchy.
    pub css_set_dfl_cgrp: Offset,
    /// Keeps the size a multiple of eight bytes.
    pub reserved: Offset,
    /// `bio.bi_bdev`, or absent where the bio itself has the disk.
    pub bio_bdev: Offset,
    /// `block_device.bd_disk`, or `bio.bi_disk` up to 5.11.
    pub bio_disk: Offset,
    /// `gendisk.fops`.
    pub fops: Offset,
    /// `block_device_operations.submit_bio`, which a disk has that makes no requests.
    pub submit_bio: Offset,
    /// `bio.bi_next`.
    pub bio_next: Offset,
    /// `bio.bi_opf`.
    pub bio_flags: Offset,
    /// `bio.bi_status`.
    pub bio_status: Offset,
    /// `bio.bi_iter.bi_sector`.
    pub bio_sector: Offset,
    /// `bio.bi_iter.bi_size`.
    pub bio_size: Offset,
    /// `bio.bi_blkg`.
    pub bio_blkg: Offset,
    /// `blkcg_gq.blkcg`.
    pub blkg_blkcg: Offset,
    /// `blkcg.css.cgroup`.
    pub blkcg_cgroup: Offset,
    /// `cgroup.kn`.
    pub cgroup_kn: Offset,
    /// `kernfs_node.id`.
    pub kn_id: Offset,
    /// `cgroup.root`.
    pub cgroup_root: Offset,
    /// `cgroup_root.hierarchy_id`, zero in the unified hierarchy.
    pub hierarchy_id: Offset,
    /// Fields of the plain tracepoint `block_rq_insert`.
    pub insert: Format,
    /// Fields of the plain tracepoint `block_rq_issue`.
    pub issue: Format,
    /// Fields of the plain tracepoint `block_rq_complete`.
    pub complete: Format,
    /// Fields of the plain tracepoint `block_rq_requeue`.
    pub requeue: Format,
    /// Fields of the plain tracepoint `block_rq_merge`.
    pub merge: Format,
    /// [`Operation`] by number of the kernel's operation.
    pub operations: [u8; OPERATIONS],
}

/// Where fields of a plain tracepoint lie, by tracefs.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Format {
    /// `dev`.
    pub dev: Offset,
    /// `sector`.
    pub sector: Offset,
    /// `nr_sector`.
    pub nr_sector: Offset,
    /// `rwbs`.
    pub rwbs: Offset,
    /// `error`, on completion only.
    pub error: Offset,
    /// Keeps the size a multiple of eight bytes.
    pub reserved: [Offset; 3],
}

/// A request by the place that it reads or writes, where its address is not known.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// First sector.
    pub sector: u64,
    /// The device and, in the upper half, the operation.
    pub device: u64,
}

/// What is remembered of a request, or of a bio of a disk that makes no requests, until it completes. In a hash map with a
/// key of eight bytes, an entry is two lines of cache: one that all CPUs read, with the key and `insert_ns`, and one that goes
/// from the CPU that issues to the one that completes.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flight {
    /// CLOCK_MONOTONIC since when it waits in a queue; zero when it never waited.
    pub insert_ns: u64,
    /// CLOCK_MONOTONIC of the last issue; zero while it is with no driver.
    pub issue_ns: u64,
    /// Device and operation, as of the last issue.
    pub series: Series,
    /// Bytes at the last issue.
    pub bytes: u32,
    /// Sectors that are still to do, where the record of a completion does not tell; where it does, marks of the
    /// program's own.
    pub sectors: u32,
    /// First sector at the last issue, in units of 512 bytes.
    pub sector: u64,
    /// Id of the cgroup that is charged; zero when no one has asked yet.
    pub cgroup: u64,
    /// Thread that asked for it; zero when that is not known, as where an idle CPU was interrupted.
    pub tid: u32,
    /// Its process.
    pub tgid: u32,
    /// Name of the thread.
    pub comm: [u8; COMM_LEN],
}

/// What is told apart in counting.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Series {
    /// Major number times 2^20 and minor number of the whole disk.
    pub dev: u32,
    /// [`Operation`].
    pub operation: u32,
}

/// Completions by time, not cumulative.
pub type Buckets = [u64; BUCKETS];

/// What was counted of one device and operation. All CPUs add to it atomically, so that no completion is lost or torn.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Totals {
    /// Requests that never waited in a queue, by their time in the device: that is all their time.
    pub direct: Buckets,
    /// Requests that waited, by their time in the queue.
    pub queue: Buckets,
    /// Requests that waited, by their time in the device.
    pub device: Buckets,
    /// Requests that waited, by both together.
    pub whole: Buckets,
    /// Sum of all times in the device.
    pub device_ns: u64,
    /// Sum of all times in the queue.
    pub queue_ns: u64,
    /// Completions with an error.
    pub errors: u64,
    /// Requests that were given back to the queue.
    pub requeues: u64,
    /// Completions of a part of a request.
    pub partial: u64,
    /// Requests that were merged into another.
    pub merges: u64,
    /// Bios that were too large for the device and were split.
    pub splits: u64,
    /// Completions at or over the threshold of slow requests.
    pub slow: u64,
}

/// What a completion with an error is counted under.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Failure {
    /// As in [`Series`].
    pub dev: u32,
    /// A `blk_status_t`, or below zero a number of errno.
    pub status: i32,
}

/// What the tasks of one cgroup read and wrote.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CgroupTotals {
    /// Requests by operation: reads, then everything else.
    pub requests: [u64; 2],
    /// Bytes, likewise.
    pub bytes: [u64; 2],
}

/// The cgroup under which is counted what the map has no room for.
pub const OTHER_CGROUPS: u64 = 0;

/// A request that took long, handed over at its completion.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slow {
    /// CLOCK_MONOTONIC of the completion.
    pub complete_ns: u64,
    /// Zero, or an error as in [`Failure::status`].
    pub status: i32,
    /// Keeps the size a multiple of eight bytes.
    pub reserved: u32,
    /// Who, where, since when.
    pub flight: Flight,
}

/// Slow requests that are handed over in one [`SLOW_WINDOW_SHIFT`] window; the rest is counted alone.
pub const SLOW_PER_WINDOW: u64 = 10;
/// The window: 2^30 ns.
pub const SLOW_WINDOW_SHIFT: u64 = 30;

/// How many slow requests were handed over in a window of time.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SlowLimit {
    /// The window's number.
    pub window: u64,
    /// Handed over in it.
    pub told: u64,
    /// Never handed over, in all windows.
    pub untold: u64,
}

/// The name of a disk, as the kernel has it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskName(pub [u8; NAME_LEN]);

/// What a program sees seldom, all CPUs together: if it is most or all that there is, an offset is wrong.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Requests without a disk: commands of a driver to its controller.
    pub without_disk: u64,
    /// Completions of a part of a request.
    pub partial: u64,
    /// Completions of more bytes than were still to do.
    pub beyond: u64,
    /// Issues of requests for which the maps had no room.
    pub without_room: u64,
    /// Slow requests that were counted, and not handed over as no one took them in time.
    pub slow_lost: u64,
    /// Errors that were counted, and not by their status.
    pub failures_lost: u64,
    /// Requests that were counted, and for no cgroup.
    pub charges_lost: u64,
}

/// In how many of the first requests that have a bio what is read of both does not agree.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Agreement {
    /// Requests that were looked at.
    pub compared: u64,
    /// Those of them that are no reads by either.
    pub not_reads: u64,
    /// Those that have one bio alone.
    pub alone: u64,
    /// They do something else.
    pub operation: u64,
    /// They begin elsewhere.
    pub sector: u64,
    /// Of those that have one bio alone: they are of other lengths.
    pub bytes: u64,
    /// They go to another disk.
    pub disk: u64,
    /// The request was made in the future, or too long ago.
    pub made: u64,
    /// Who asks is not the task that the helpers tell.
    pub asker: u64,
}

plain!(
    Offsets,
    Agreement,
    Format,
    Place,
    Flight,
    Series,
    Totals,
    Failure,
    CgroupTotals,
    Slow,
    SlowLimit,
    DiskName,
    Seen
);

impl Offsets {
    /// Nothing is known.
    pub const ABSENT: Self = Self {
        slow_ns: 0,
        by_cgroup: 0,
        of_a_head: 0,
        request_q: Offset::ABSENT,
        disk: Offset::ABSENT,
        major: Offset::ABSENT,
        first_minor: Offset::ABSENT,
        disk_name: Offset::ABSENT,
        cmd_flags: Offset::ABSENT,
        data_len: Offset::ABSENT,
        sector: Offset::ABSENT,
        request_bio: Offset::ABSENT,
        start_time_ns: Offset::ABSENT,
        task_comm: Offset::ABSENT,
        task_pid: Offset::ABSENT,
        task_tgid: Offset::ABSENT,
        task_cgroups: Offset::ABSENT,
        css_set_dfl_cgrp: Offset::ABSENT,
        reserved: Offset::ABSENT,
        bio_bdev: Offset::ABSENT,
        bio_disk: Offset::ABSENT,
        fops: Offset::ABSENT,
        submit_bio: Offset::ABSENT,
        bio_next: Offset::ABSENT,
        bio_flags: Offset::ABSENT,
        bio_status: Offset::ABSENT,
        bio_sector: Offset::ABSENT,
        bio_size: Offset::ABSENT,
        bio_blkg: Offset::ABSENT,
        blkg_blkcg: Offset::ABSENT,
        blkcg_cgroup: Offset::ABSENT,
        cgroup_kn: Offset::ABSENT,
        kn_id: Offset::ABSENT,
        cgroup_root: Offset::ABSENT,
        hierarchy_id: Offset::ABSENT,
        insert: Format::ABSENT,
        issue: Format::ABSENT,
        complete: Format::ABSENT,
        requeue: Format::ABSENT,
        merge: Format::ABSENT,
        operations: [Operation::Other as u8; OPERATIONS],
    };
}

impl Format {
    /// Nothing is known.
    pub const ABSENT: Self = Self {
        dev: Offset::ABSENT,
        sector: Offset::ABSENT,
        nr_sector: Offset::ABSENT,
        rwbs: Offset::ABSENT,
        error: Offset::ABSENT,
        reserved: [Offset::ABSENT; 3],
    };
}

impl Flight {
    /// Nothing is known yet.
    pub const IDLE: Self = Self {
        insert_ns: 0,
        issue_ns: 0,
        series: Series { dev: 0, operation: 0 },
        bytes: 0,
        sectors: 0,
        sector: 0,
        cgroup: 0,
        tid: 0,
        tgid: 0,
        comm: [0; COMM_LEN],
    };

    /// Nanoseconds in the queue up to the last issue.
    #[inline(always)]
    #[must_use]
    pub const fn queue_ns(&self) -> u64 {
        if self.insert_ns == 0 { 0 } else { self.issue_ns.saturating_sub(self.insert_ns) }
    }
}

impl Totals {
    /// None yet.
    pub const ZERO: Self = Self {
        direct: [0; BUCKETS],
        queue: [0; BUCKETS],
        device: [0; BUCKETS],
        whole: [0; BUCKETS],
        device_ns: 0,
        queue_ns: 0,
        errors: 0,
        requeues: 0,
        partial: 0,
        merges: 0,
        splits: 0,
        slow: 0,
    };

    /// The bucket of a time: the first whose bound, 1000 ns times a power of two, is not below it.
    #[inline(always)]
    #[must_use]
    pub fn bucket(ns: u64) -> usize {
        if ns <= 1000 {
            return 0;
        }
        // As a thousand is just below 2^10, the bound of as many bits as `ns` has, less ten, or the one after that.
        let bits = bit_length(ns);
        let bucket = (bits - 10) as usize + (ns > 1000 << (bits - 10)) as usize;
        if bucket < BUCKETS { bucket } else { BUCKETS - 1 }
    }
}

/// Bits of a number above zero. BPF has no instruction that counts zeros, and a search by halves is 64 paths that the
/// verifier would follow for each number: all lower bits are set, which leaves 64 numbers, each with six bits of its own
/// at the top of its product with a de Bruijn sequence.
#[inline(always)]
fn bit_length(number: u64) -> u64 {
    let mut filled = number;
    filled |= filled >> 1;
    filled |= filled >> 2;
    filled |= filled >> 4;
    filled |= filled >> 8;
    filled |= filled >> 16;
    filled |= filled >> 32;
    // The mask says to the verifier what the shift says to the reader, and keeps the difference from 10 a small number.
    u64::from(BIT_LENGTHS[(filled.wrapping_mul(DE_BRUIJN) >> 58) as usize]) & 127
}

const DE_BRUIJN: u64 = 0x03f6_eaf2_cd27_1461;

static BIT_LENGTHS: [u8; 64] = bit_lengths();

const fn bit_lengths() -> [u8; 64] {
    let mut lengths = [0; 64];
    let mut bits = 1;
    while bits <= 64 {
        let filled = u64::MAX >> (64 - bits);
        lengths[(filled.wrapping_mul(DE_BRUIJN) >> 58) as usize] = bits as u8;
        bits += 1;
    }
    lengths
}

/// The operation that the first two letters of `rwbs` tell (blk_fill_rwbs in kernel/trace/blktrace.c): a letter F in
/// front of another operation says that the request flushes the cache first.
#[inline(always)]
#[must_use]
pub const fn operation_of_letters(first: u8, second: u8) -> Operation {
    let letter = match (first, second) {
        (b'F', b'R' | b'W' | b'D' | b'N') => second,
        _ => first,
    };
    match letter {
        b'R' => Operation::Read,
        b'W' => Operation::Write,
        b'D' => Operation::Discard,
        b'F' => Operation::Flush,
        _ => Operation::Other,
    }
}

const _: () = assert!(size_of::<Offsets>() == 24 + 64 + 80 + OPERATIONS && size_of::<Flight>() == 72);
const _: () = assert!(size_of::<Totals>() == 8 * (4 * BUCKETS + 8) && size_of::<Slow>() == 88);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_latency_is_in_the_first_bucket_whose_bound_it_does_not_exceed() {
        assert_eq!([0, 1, 999, 1000].map(Totals::bucket), [0; 4]);
        assert_eq!([1001, 2000, 2001, 4000, 4001].map(Totals::bucket), [1, 1, 2, 2, 3]);
        for power in 0..BOUNDS {
            let bound_ns = 1000_u64 << power;
            assert_eq!(Totals::bucket(bound_ns), power);
            assert_eq!(Totals::bucket(bound_ns + 1), power + 1);
        }
        assert_eq!([LATENCY_NS_MAX, u64::MAX].map(Totals::bucket), [BUCKETS - 1; 2]);
    }

    #[test]
    fn bits_are_counted() {
        for bits in 1..=64_u64 {
            let most = u64::MAX >> (64 - bits);
            assert_eq!([bit_length(most), bit_length(most / 2 + 1)], [bits; 2]);
        }
    }

    #[test]
    fn letters_tell_the_operation() {
        let of = |text: &str| operation_of_letters(text.as_bytes()[0], text.as_bytes()[1]);
        // As traced by 6.18: read ahead, direct write, write that flushes first, empty flush, discard, command.
        assert_eq!(
            ["RA", "WS", "FWS", "FF", "FS", "DS", "NS"].map(of).map(Operation::word),
            ["read", "write", "write", "flush", "flush", "discard", "other"]
        );
    }

    #[test]
    fn operations_stand_at_their_numbers() {
        for (number, operation) in Operation::ALL.into_iter().enumerate() {
            assert_eq!(operation as usize, number);
        }
    }
}
