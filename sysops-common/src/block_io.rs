//! Requests of block devices: how long each took from issue to completion, by device and operation, as counted in the
//! kernel.

use crate::offset::Offset;
use crate::plain::plain;

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

/// What the program must know about the running kernel.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offsets {
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
    /// Fields of the plain tracepoint `block_rq_issue`.
    pub issue: Format,
    /// Fields of the plain tracepoint `block_rq_complete`.
    pub complete: Format,
    /// Fields of the plain tracepoint `block_rq_requeue`.
    pub requeue: Format,
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
}

/// A request that was issued. With types at hand it is its address; else the place that it reads or writes.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestKey {
    /// Address of the request, or its first sector.
    pub place: u64,
    /// Zero beside an address; else the device and, in the upper half, the operation.
    pub device: u64,
}

/// What is remembered of a request until it completes.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Started {
    /// CLOCK_MONOTONIC of the last issue.
    pub issue_ns: u64,
    /// Device and operation.
    pub series: Series,
    /// Sectors that are still to do, where the record of a completion does not tell.
    pub sectors: u64,
}

/// What latencies are told apart by.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Series {
    /// Major number times 2^20 and minor number of the whole disk.
    pub dev: u32,
    /// [`Operation`].
    pub operation: u32,
}

/// Latencies of one device and operation. All CPUs add to it atomically, so that no completion is lost or torn.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Latency {
    /// Completions by bucket, not cumulative.
    pub buckets: [u64; BUCKETS],
    /// Sum of all latencies.
    pub sum_ns: u64,
    /// Completions with an error.
    pub errors: u64,
    /// Requests that were given back to the queue.
    pub requeues: u64,
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
}

plain!(Offsets, Format, RequestKey, Started, Series, Latency, DiskName, Seen);

impl Offsets {
    /// Nothing is known.
    pub const ABSENT: Self = Self {
        request_q: Offset::ABSENT,
        disk: Offset::ABSENT,
        major: Offset::ABSENT,
        first_minor: Offset::ABSENT,
        disk_name: Offset::ABSENT,
        cmd_flags: Offset::ABSENT,
        data_len: Offset::ABSENT,
        issue: Format::ABSENT,
        complete: Format::ABSENT,
        requeue: Format::ABSENT,
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
    };
}

impl Latency {
    /// None yet.
    pub const ZERO: Self = Self { buckets: [0; BUCKETS], sum_ns: 0, errors: 0, requeues: 0 };

    /// The bucket of a latency: the first whose bound, in whole microseconds, is not below it.
    #[inline(always)]
    #[must_use]
    pub const fn bucket(latency_ns: u64) -> usize {
        let us = latency_ns.div_ceil(1000);
        // The power of two that is not below `us`. By halves: BPF has no instruction that counts zeros.
        let (mut rest, mut power) = (us.saturating_sub(1), 0);
        let mut step = 32;
        while step > 0 {
            if rest >> step != 0 {
                rest >>= step;
                power += step;
            }
            step /= 2;
        }
        let bucket = power + (rest != 0) as usize;
        if bucket < BUCKETS { bucket } else { BUCKETS - 1 }
    }
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

const _: () = assert!(size_of::<Offsets>() == 14 + 30 + OPERATIONS && size_of::<Started>() == 24);
const _: () = assert!(size_of::<Latency>() == 8 * (BUCKETS + 3));

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_latency_is_in_the_first_bucket_whose_bound_it_does_not_exceed() {
        assert_eq!([0, 1, 999, 1000].map(Latency::bucket), [0; 4]);
        assert_eq!([1001, 2000, 2001, 4000, 4001].map(Latency::bucket), [1, 1, 2, 2, 3]);
        for power in 0..BOUNDS {
            let bound_ns = 1000_u64 << power;
            assert_eq!(Latency::bucket(bound_ns), power);
            assert_eq!(Latency::bucket(bound_ns + 1), power + 1);
        }
        assert_eq!([LATENCY_NS_MAX, u64::MAX].map(Latency::bucket), [BUCKETS - 1; 2]);
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
