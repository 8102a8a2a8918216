//! Holds what is read of a request against what is read of its bio: both tell the operation, the place and the disk, and when
//! they do not agree an offset is wrong. It looks at the first requests and is then taken out. What is to become of
//! the probe is left to the agent.
#![no_std]
#![no_main]

#[path = "block_io/asker.rs"]
mod asker;
#[path = "block_io/reach.rs"]
mod reach;
#[path = "block_io/shape.rs"]
mod shape;

use aya_ebpf::macros::{btf_tracepoint, map, raw_tracepoint};
use aya_ebpf::maps::Array;
use aya_ebpf::programs::{BtfTracePointContext, RawTracePointContext};
use sysops_common::block_io::{Agreement, LATENCY_NS_MAX, Offsets, Operation};
use sysops_ebpf::clock_ns;
use sysops_ebpf::counters::{Fate, count};
use sysops_ebpf::memory::{add, offset};

use crate::asker::{Asker, asker, told};
use crate::reach::{Copied, Reach, Typed};
use crate::shape::{disk_of_bio, disk_of_request, operation};

#[unsafe(no_mangle)]
static OFFSETS: Offsets = Offsets::ABSENT;

#[map]
static AGREEMENT: Array<Agreement> = Array::with_max_entries(1, 0);

/// A request goes to its driver.
#[btf_tracepoint]
pub fn issue_tp_btf(ctx: BtfTracePointContext) -> i32 {
    said(compare::<Typed>(ctx.arg(0)))
}

/// The same, untyped.
#[raw_tracepoint]
pub fn issue_raw_tracepoint(ctx: RawTracePointContext) -> i32 {
    said(compare::<Copied>(ctx.arg(0)))
}

/// The same where the queue stands in front of the request.
#[btf_tracepoint]
pub fn issue_behind_queue_tp_btf(ctx: BtfTracePointContext) -> i32 {
    said(compare::<Typed>(ctx.arg(1)))
}

/// The same, untyped.
#[raw_tracepoint]
pub fn issue_behind_queue_raw_tracepoint(ctx: RawTracePointContext) -> i32 {
    said(compare::<Copied>(ctx.arg(1)))
}

#[inline(always)]
fn said(read: Option<()>) -> i32 {
    count(if read.is_some() { Fate::Received } else { Fate::ReadFault });
    0
}

/// Counts in what a request and its first bio do not agree; `None` when one of them cannot be read.
#[inline(always)]
fn compare<R: Reach>(request: u64) -> Option<()> {
    // A flush has none.
    let Some(bio) = R::follow(request, &OFFSETS.request_bio) else { return Some(()) };
    let (of_request, of_bio) = (R::member(request, &OFFSETS.cmd_flags)?, R::member(bio, &OFFSETS.bio_flags)?);
    let (of_request, of_bio) = (operation(of_request), operation(of_bio));
    let other = Operation::Other as u32;
    // A command to the controller has no place.
    if of_request == other && of_bio == other {
        return Some(());
    }
    let (sector, begins) = (R::member::<u64>(request, &OFFSETS.sector)?, R::member(bio, &OFFSETS.bio_sector)?);
    let (bytes, size) = (R::member::<u32>(request, &OFFSETS.data_len)?, R::member(bio, &OFFSETS.bio_size)?);
    let (disk, goes_to) = (disk_of_request::<R>(request)?, disk_of_bio::<R>(bio)?);
    let is_alone = R::member::<u64>(bio, &OFFSETS.bio_next)? == 0;
    let made_ns =
        if offset(&OFFSETS.start_time_ns).is_some() { R::member(request, &OFFSETS.start_time_ns)? } else { 0 };
    let is_asker = !R::KNOWS_TYPES || is_same(&asker::<R>()?, &told()?);
    let agreement = AGREEMENT.get_ptr_mut(0)?;
    // SAFETY: all point into the map's one value.
    unsafe {
        add(&raw mut (*agreement).compared, 1);
        add_if(
            of_request != Operation::Read as u32 || of_bio != Operation::Read as u32,
            &raw mut (*agreement).not_reads,
        );
        add_if(of_request != of_bio, &raw mut (*agreement).operation);
        add_if(sector != begins, &raw mut (*agreement).sector);
        add_if(is_alone, &raw mut (*agreement).alone);
        add_if(is_alone && bytes != size, &raw mut (*agreement).bytes);
        add_if(disk != goes_to, &raw mut (*agreement).disk);
        // A time after now wraps and is too long, too.
        add_if(made_ns != 0 && clock_ns().wrapping_sub(made_ns) > LATENCY_NS_MAX, &raw mut (*agreement).made);
        add_if(!is_asker, &raw mut (*agreement).asker);
    }
    Some(())
}

/// They are one task. Behind the NUL of a name the kernel may have anything.
#[inline(always)]
fn is_same(one: &Asker, other: &Asker) -> bool {
    let mut ends = false;
    let names = one.comm.iter().zip(&other.comm).all(|(byte, its)| {
        let is_same = ends || byte == its;
        ends |= *its == 0;
        is_same
    });
    names && one.tid == other.tid && one.tgid == other.tgid && one.cgroup == other.cgroup
}

/// # Safety
/// `number` points into a value of a map.
#[inline(always)]
unsafe fn add_if(is_so: bool, number: *mut u64) {
    if is_so {
        // SAFETY: the caller's promise.
        unsafe { add(number, 1) };
    }
}
