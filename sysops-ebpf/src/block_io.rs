//! Measures each request of a block device, how long it waits and how long its driver takes, and adds it to histograms of
//! its device and operation, here in the kernel. Only what took long is handed over; the agent reads the histograms.
//! This file holds the programs; what they do is in the modules.
#![no_std]
#![no_main]

#[path = "block_io/asker.rs"]
mod asker;
#[path = "block_io/bios.rs"]
mod bios;
#[path = "block_io/cgroups.rs"]
mod cgroups;
#[path = "block_io/places.rs"]
mod places;
#[path = "block_io/reach.rs"]
mod reach;
#[path = "block_io/requests.rs"]
mod requests;
#[path = "block_io/shape.rs"]
mod shape;
#[path = "block_io/totals.rs"]
mod totals;

use aya_ebpf::EbpfContext;
use aya_ebpf::macros::{btf_tracepoint, raw_tracepoint, tracepoint};
use aya_ebpf::programs::{BtfTracePointContext, RawTracePointContext, TracePointContext};
use sysops_common::block_io::Offsets;
use sysops_ebpf::counters::{Fate, count};

use crate::reach::{Copied, Typed};

#[unsafe(no_mangle)]
static OFFSETS: Offsets = Offsets::ABSENT;

/// A setting in the frozen offsets.
#[inline(always)]
fn setting(setting: &'static u64) -> u64 {
    // SAFETY: a reference is valid to read. Volatile, as the loader writes the value after compilation.
    unsafe { core::ptr::read_volatile(setting) }
}

/// Declares a program on a tracepoint that hands over what it is about as argument `$place`, and the same typed.
macro_rules! program {
    ($typed:ident, $raw:ident, $run:path[$place:literal]) => {
        /// Typed by BTF.
        #[btf_tracepoint]
        pub fn $typed(ctx: BtfTracePointContext) -> i32 {
            use $run as run;
            run::<Typed>(ctx.arg($place));
            0
        }

        /// The same arguments, untyped.
        #[raw_tracepoint]
        pub fn $raw(ctx: RawTracePointContext) -> i32 {
            use $run as run;
            run::<Copied>(ctx.arg($place));
            0
        }
    };
}

// Where a tracepoint hands over the queue first, as up to 5.10.136, the request or the bio comes behind it.
program!(insert_tp_btf, insert_raw_tracepoint, requests::insert[0]);
program!(insert_behind_queue_tp_btf, insert_behind_queue_raw_tracepoint, requests::insert[1]);
program!(issue_tp_btf, issue_raw_tracepoint, requests::issue[0]);
program!(issue_behind_queue_tp_btf, issue_behind_queue_raw_tracepoint, requests::issue[1]);
program!(requeue_tp_btf, requeue_raw_tracepoint, requests::requeue[0]);
program!(requeue_behind_queue_tp_btf, requeue_behind_queue_raw_tracepoint, requests::requeue[1]);
program!(merge_tp_btf, merge_raw_tracepoint, requests::merge[0]);
program!(merge_behind_queue_tp_btf, merge_behind_queue_raw_tracepoint, requests::merge[1]);
program!(split_tp_btf, split_raw_tracepoint, bios::split[0]);
program!(split_behind_queue_tp_btf, split_behind_queue_raw_tracepoint, bios::split[1]);
program!(bio_queue_tp_btf, bio_queue_raw_tracepoint, bios::queue[0]);
program!(bio_queue_behind_queue_tp_btf, bio_queue_behind_queue_raw_tracepoint, bios::queue[1]);
program!(bio_complete_tp_btf, bio_complete_raw_tracepoint, bios::complete[0]);
program!(bio_complete_behind_queue_tp_btf, bio_complete_behind_queue_raw_tracepoint, bios::complete[1]);

/// A request, or a part of it, is complete.
#[btf_tracepoint]
pub fn complete_tp_btf(ctx: BtfTracePointContext) -> i32 {
    requests::complete::<Typed>(ctx.arg(0), ctx.arg(1), ctx.arg(2));
    0
}

/// A request, or a part of it, is complete.
#[raw_tracepoint]
pub fn complete_raw_tracepoint(ctx: RawTracePointContext) -> i32 {
    requests::complete::<Copied>(ctx.arg(0), ctx.arg(1), ctx.arg(2));
    0
}

/// A request has to wait: what its record says.
#[tracepoint]
pub fn insert_tracepoint(ctx: TracePointContext) -> u32 {
    said(places::insert(ctx.as_ptr() as u64))
}

/// A request goes to its driver: what its record says.
#[tracepoint]
pub fn issue_tracepoint(ctx: TracePointContext) -> u32 {
    said(places::issue(ctx.as_ptr() as u64))
}

/// A request is given back to its queue: what its record says.
#[tracepoint]
pub fn requeue_tracepoint(ctx: TracePointContext) -> u32 {
    said(places::requeue(ctx.as_ptr() as u64))
}

/// A request becomes a part of another: what its record says.
#[tracepoint]
pub fn merge_tracepoint(ctx: TracePointContext) -> u32 {
    said(places::merge(ctx.as_ptr() as u64))
}

/// A request, or a part of it, is complete: what its record says.
#[tracepoint]
pub fn complete_tracepoint(ctx: TracePointContext) -> u32 {
    said(places::complete(ctx.as_ptr() as u64))
}

#[inline(always)]
fn said(read: Option<()>) -> u32 {
    if read.is_none() {
        count(Fate::ReadFault);
    }
    0
}
