//! Measures each request of a block device from issue to completion and adds it to a histogram of its device and
//! operation, here in the kernel. Nothing is handed over for each request; the agent reads the histograms.
#![no_std]
#![no_main]

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::BPF_NOEXIST;
use aya_ebpf::macros::{btf_tracepoint, map, raw_tracepoint, tracepoint};
use aya_ebpf::maps::{Array, HashMap};
use aya_ebpf::programs::{BtfTracePointContext, RawTracePointContext, TracePointContext};
use sysops_common::block_io::{
    DiskName, Format, LATENCY_NS_MAX, Latency, NAME_LEN, OPERATIONS, Offsets, Operation, RequestKey, Seen, Series,
    Started, operation_of_letters,
};
use sysops_ebpf::clock_ns;
use sysops_ebpf::counters::{Fate, count};
use sysops_ebpf::memory::{add, copy_member, follow, member, offset};

#[unsafe(no_mangle)]
static OFFSETS: Offsets = Offsets::ABSENT;

// Requests in flight: as many as 64 hardware queues of 256 have. What does not fit is counted.
#[map]
static STARTED: HashMap<RequestKey, Started> = HashMap::with_max_entries(16384, 0);

// 200 disks with all operations, or more with fewer.
#[map]
static LATENCY: HashMap<Series, Latency> = HashMap::with_max_entries(1024, 0);

#[map]
static NAMES: HashMap<u32, DiskName> = HashMap::with_max_entries(512, 0);

#[map]
static SEEN: Array<Seen> = Array::with_max_entries(1, 0);

/// A request goes to its driver.
#[btf_tracepoint]
pub fn issue_tp_btf(ctx: BtfTracePointContext) -> i32 {
    issue(ctx.arg(0))
}

/// The same where the tracepoint hands over the queue first: 5.8 to 5.10.136.
#[btf_tracepoint]
pub fn issue_behind_queue_tp_btf(ctx: BtfTracePointContext) -> i32 {
    issue(ctx.arg(1))
}

/// A request is given back to its queue.
#[btf_tracepoint]
pub fn requeue_tp_btf(ctx: BtfTracePointContext) -> i32 {
    requeue(ctx.arg(0))
}

/// The same where the tracepoint hands over the queue first.
#[btf_tracepoint]
pub fn requeue_behind_queue_tp_btf(ctx: BtfTracePointContext) -> i32 {
    requeue(ctx.arg(1))
}

/// A request, or a part of it, is complete.
#[btf_tracepoint]
pub fn complete_tp_btf(ctx: BtfTracePointContext) -> i32 {
    complete(ctx.arg(0), ctx.arg(1), ctx.arg(2))
}

/// A request goes to its driver.
#[raw_tracepoint]
pub fn issue_raw_tracepoint(ctx: RawTracePointContext) -> i32 {
    issue(ctx.arg(0))
}

/// The same where the tracepoint hands over the queue first.
#[raw_tracepoint]
pub fn issue_behind_queue_raw_tracepoint(ctx: RawTracePointContext) -> i32 {
    issue(ctx.arg(1))
}

/// A request is given back to its queue.
#[raw_tracepoint]
pub fn requeue_raw_tracepoint(ctx: RawTracePointContext) -> i32 {
    requeue(ctx.arg(0))
}

/// The same where the tracepoint hands over the queue first.
#[raw_tracepoint]
pub fn requeue_behind_queue_raw_tracepoint(ctx: RawTracePointContext) -> i32 {
    requeue(ctx.arg(1))
}

/// A request, or a part of it, is complete.
#[raw_tracepoint]
pub fn complete_raw_tracepoint(ctx: RawTracePointContext) -> i32 {
    complete(ctx.arg(0), ctx.arg(1), ctx.arg(2))
}

/// A request goes to its driver: what its record says.
#[tracepoint]
pub fn issue_tracepoint(ctx: TracePointContext) -> u32 {
    let base = ctx.as_ptr() as u64;
    let Some((key, series)) = identify(base, &OFFSETS.issue) else { return fault() };
    let Some(sectors) = member::<u32>(base, &OFFSETS.issue.nr_sector) else { return fault() };
    start(&key, &Started { issue_ns: clock_ns(), series, sectors: u64::from(sectors) });
    0
}

/// A request is given back to its queue: what its record says.
#[tracepoint]
pub fn requeue_tracepoint(ctx: TracePointContext) -> u32 {
    let base = ctx.as_ptr() as u64;
    let Some((key, series)) = identify(base, &OFFSETS.requeue) else { return fault() };
    give_back(&key, series, || ());
    0
}

/// A request, or a part of it, is complete: what its record says. What is left of it begins behind the part.
#[tracepoint]
pub fn complete_tracepoint(ctx: TracePointContext) -> u32 {
    let now = clock_ns();
    let base = ctx.as_ptr() as u64;
    let at = &OFFSETS.complete;
    let Some((key, _)) = identify(base, at) else { return fault() };
    let Some(done) = member::<u32>(base, &at.nr_sector) else { return fault() };
    let Some(error) = member::<i32>(base, &at.error) else { return fault() };
    // SAFETY: the value is copied at once; a request ends once.
    let Some(started) = (unsafe { STARTED.get(key) }).copied() else { return 0 };
    let _ = STARTED.remove(key);
    let done = u64::from(done);
    if done < started.sectors {
        see(|seen| &raw mut seen.partial);
        let rest = RequestKey { place: key.place + done, device: key.device };
        start(&rest, &Started { sectors: started.sectors - done, ..started });
    } else if let Some(latency) = record(&started, now, || ()) {
        finish(latency, &started, now, error != 0);
    }
    0
}

#[inline(always)]
fn issue(request: u64) -> i32 {
    let Some(series) = series(request) else { return 0 };
    start(&RequestKey { place: request, device: 0 }, &Started { issue_ns: clock_ns(), series, sectors: 0 });
    0
}

#[inline(always)]
fn requeue(request: u64) -> i32 {
    if let Some(series) = series(request) {
        give_back(&RequestKey { place: request, device: 0 }, series, || name(request, series.dev));
    }
    0
}

/// `error` is a number of errno up to 5.15 and a `blk_status_t` since: of either, zero is success. The tracepoint runs
/// before the kernel takes `bytes` off what is to do, so a request is complete when nothing would be left. Requests
/// without data have nothing to do from the start.
#[inline(always)]
fn complete(request: u64, error: u64, bytes: u64) -> i32 {
    let now = clock_ns();
    let key = RequestKey { place: request, device: 0 };
    // SAFETY: the value is copied at once; a request ends once.
    let Some(started) = (unsafe { STARTED.get(key) }).copied() else { return 0 };
    let Some(to_do) = member::<u32>(request, &OFFSETS.data_len) else {
        count(Fate::ReadFault);
        return 0;
    };
    if (bytes as u32) < to_do {
        see(|seen| &raw mut seen.partial);
        return 0;
    }
    if bytes as u32 > to_do {
        see(|seen| &raw mut seen.beyond);
    }
    let _ = STARTED.remove(key);
    if let Some(latency) = record(&started, now, || name(request, started.series.dev)) {
        finish(latency, &started, now, error as u32 != 0);
    }
    0
}

/// What a request is counted under; `None`, and counted, when that cannot be read. Most commands to a controller
/// have no disk.
#[inline(always)]
fn series(request: u64) -> Option<Series> {
    let Some(disk) = disk(request) else {
        count(Fate::ReadFault);
        return None;
    };
    if disk == 0 {
        see(|seen| &raw mut seen.without_disk);
        return None;
    }
    let numbers = member::<u32>(disk, &OFFSETS.major).zip(member::<u32>(disk, &OFFSETS.first_minor));
    let Some(((major, minor), flags)) = numbers.zip(member::<u32>(request, &OFFSETS.cmd_flags)) else {
        count(Fate::ReadFault);
        return None;
    };
    let number = (flags & 0xff) as usize;
    let operation = if number < OPERATIONS {
        // SAFETY: a reference is valid to read. Volatile, as the loader writes the value after compilation.
        unsafe { core::ptr::read_volatile(&OFFSETS.operations[number]) }
    } else {
        Operation::Other as u8
    };
    Some(Series { dev: major << 20 | minor, operation: u32::from(operation) })
}

#[inline(always)]
fn disk(request: u64) -> Option<u64> {
    let holder = if offset(&OFFSETS.request_q).is_some() { follow(request, &OFFSETS.request_q)? } else { request };
    member(holder, &OFFSETS.disk)
}

#[inline(always)]
fn identify(base: u64, at: &'static Format) -> Option<(RequestKey, Series)> {
    let dev: u32 = member(base, &at.dev)?;
    let letters: [u8; 2] = member(base, &at.rwbs)?;
    let operation = operation_of_letters(letters[0], letters[1]) as u32;
    let device = u64::from(operation) << 32 | u64::from(dev);
    Some((RequestKey { place: member(base, &at.sector)?, device }, Series { dev, operation }))
}

/// Whatever the map remembers of this request is of an earlier one, whose end was missed.
#[inline(always)]
fn start(key: &RequestKey, started: &Started) {
    if started.series.dev != 0 && STARTED.insert(key, started, 0).is_err() {
        count(Fate::MapFull);
    }
}

#[inline(always)]
fn give_back(key: &RequestKey, series: Series, first: impl FnOnce()) {
    let _ = STARTED.remove(key);
    if let Some(latency) = latency(series, first) {
        // SAFETY: it points into a value of a map.
        unsafe { add(&raw mut (*latency).requeues, 1) };
    }
}

/// Where the latency of `started` is to be entered.
#[inline(always)]
fn record(started: &Started, now: u64, first: impl FnOnce()) -> Option<*mut Latency> {
    if now < started.issue_ns || now - started.issue_ns > LATENCY_NS_MAX {
        count(Fate::Stale);
        return None;
    }
    latency(started.series, first)
}

/// Runs `first` when there is nothing yet of this device and operation.
#[inline(always)]
fn latency(series: Series, first: impl FnOnce()) -> Option<*mut Latency> {
    if let Some(latency) = LATENCY.get_ptr_mut(series) {
        return Some(latency);
    }
    first();
    // Another CPU may have been quicker: then the value is there just as well.
    let _ = LATENCY.insert(series, Latency::ZERO, u64::from(BPF_NOEXIST));
    let latency = LATENCY.get_ptr_mut(series);
    if latency.is_none() {
        count(Fate::MapFull);
    }
    latency
}

#[inline(always)]
fn finish(latency: *mut Latency, started: &Started, now: u64, failed: bool) {
    let ns = now - started.issue_ns;
    // SAFETY: all point into a value of a map; the bucket is one of its buckets.
    unsafe {
        add((&raw mut (*latency).buckets).cast::<u64>().add(Latency::bucket(ns)), 1);
        add(&raw mut (*latency).sum_ns, ns);
        if failed {
            add(&raw mut (*latency).errors, 1);
        }
    }
    count(Fate::Received);
}

/// Keeps the name of the request's disk beside its number, so that the agent can tell a wrong number.
#[inline(always)]
fn name(request: u64, dev: u32) {
    let mut name = DiskName([0; NAME_LEN]);
    let Some(disk) = disk(request).filter(|&disk| disk != 0) else { return };
    if copy_member(disk, &OFFSETS.disk_name, &mut name.0).is_some() {
        // When it is full the agent asks /proc alone.
        let _ = NAMES.insert(dev, name, 0);
    }
}

#[inline(always)]
fn see(counter: impl FnOnce(&mut Seen) -> *mut u64) {
    let Some(seen) = SEEN.get_ptr_mut(0) else { return };
    // SAFETY: it points into the map's one value.
    unsafe { add(counter(&mut *seen), 1) };
}

#[inline(always)]
fn fault() -> u32 {
    count(Fate::ReadFault);
    0
}
