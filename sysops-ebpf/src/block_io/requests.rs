//! Follows a request by its address from who asks for it through its queue to its driver and its completion. What came of it is left to `totals`.

use aya_ebpf::bindings::BPF_NOEXIST;
use aya_ebpf::helpers::{bpf_get_current_pid_tgid, generated};
use aya_ebpf::macros::map;
use aya_ebpf::maps::HashMap;
use sysops_common::block_io::{Flight, OPERATIONS, Operation, Series};
use sysops_ebpf::clock_ns;
use sysops_ebpf::counters::{Fate, count};
use sysops_ebpf::memory::{add, copy_current_comm, offset};

use crate::OFFSETS;
use crate::cgroups::charged;
use crate::reach::Reach;
use crate::totals::{Of, finish, see, totals};

// Drivers make their requests once and use them again and again. So an entry stays when its request is complete: the
// next time it is there, and to find it is a third of what it costs to put in and take out.
#[map]
static IN_FLIGHT: HashMap<u64, Flight> = HashMap::with_max_entries(8192, 0);

// Requests for which there was no more room; these are taken out. What does not fit here is counted.
#[map]
static PASSING: HashMap<u64, Flight> = HashMap::with_max_entries(8192, 0);

/// A request has to wait: its disk's scheduler takes it from the task that wants it.
#[inline(always)]
pub fn insert<R: Reach>(request: u64) {
    let Some(flight) = enter(request) else { return };
    // SAFETY: it points to a value of a map.
    unsafe {
        if (*flight).issue_ns != 0 {
            begin_anew(flight);
        }
        // Given back by its driver, it has waited since the first issue.
        if (*flight).insert_ns == 0 {
            (*flight).insert_ns = clock_ns();
        }
        if (*flight).cgroup == 0 {
            ask(flight);
        }
    }
}

/// A request goes to its driver.
#[inline(always)]
pub fn issue<R: Reach>(request: u64) {
    let Some(series) = series::<R>(request) else { return };
    let place = (R::member::<u64>(request, &OFFSETS.sector), R::member::<u32>(request, &OFFSETS.data_len));
    let (Some(sector), Some(bytes)) = place else { return count(Fate::ReadFault) };
    let Some(flight) = enter(request) else { return };
    // SAFETY: it points to a value of a map.
    unsafe {
        if (*flight).issue_ns != 0 {
            begin_anew(flight);
        }
        (*flight).series = series;
        (*flight).sector = sector;
        (*flight).bytes = bytes;
        // What never waited is issued by who wants it. The kernel's own flush is issued by whom it meets.
        if (*flight).cgroup == 0 && (*flight).insert_ns == 0 && series.operation != Operation::Flush as u32 {
            ask(flight);
        }
        (*flight).issue_ns = clock_ns();
    }
}

/// A request is given back by its driver. It waits from its first issue on.
#[inline(always)]
pub fn requeue<R: Reach>(request: u64) {
    if let Some((flight, _)) = find(request) {
        // SAFETY: it points to a value of a map.
        unsafe {
            if (*flight).insert_ns == 0 {
                (*flight).insert_ns = (*flight).issue_ns;
            }
            (*flight).issue_ns = 0;
        }
    }
    let Some(series) = series::<R>(request) else { return };
    if let Some(totals) = totals(series, || disk::<R>(request)) {
        // SAFETY: it points into a value of a map.
        unsafe { add(&raw mut (*totals).requeues, 1) };
    }
}

/// A request that waits becomes a part of another, and is no more.
#[inline(always)]
pub fn merge<R: Reach>(request: u64) {
    forget(request);
    let Some(series) = series::<R>(request) else { return };
    if let Some(totals) = totals(series, || disk::<R>(request)) {
        // SAFETY: it points into a value of a map.
        unsafe { add(&raw mut (*totals).merges, 1) };
    }
}

/// A request, or a part of it, is complete. `error` is a number of errno up to 5.15 and a `blk_status_t` since: of either,
/// zero is success. The tracepoint runs before the kernel takes `bytes` off what is to do, so a request is complete when
/// nothing would be left. Requests without data have nothing to do from the start.
#[inline(always)]
pub fn complete<R: Reach>(request: u64, error: i32, bytes: u32) {
    let now = clock_ns();
    let Some((flight, is_passing)) = find(request) else { return };
    // SAFETY: it points to a value of a map.
    unsafe {
        if (*flight).issue_ns != 0 {
            let Some(to_do) = R::member::<u32>(request, &OFFSETS.data_len) else { return count(Fate::ReadFault) };
            if bytes < to_do {
                see(|seen| &raw mut seen.partial);
                if let Some(totals) = totals((*flight).series, || disk::<R>(request)) {
                    add(&raw mut (*totals).partial, 1);
                }
                return;
            }
            if bytes > to_do {
                see(|seen| &raw mut seen.beyond);
            }
            finish(
                Of::Request,
                flight,
                now,
                error,
                || disk::<R>(request),
                || charged::<R>(R::follow(request, &OFFSETS.request_bio)?),
            );
        }
        lay_down(flight);
    }
    if is_passing {
        let _ = PASSING.remove(request);
    }
}

/// What is known of a request; whatever the maps remember of it may be of an earlier one, whose end was missed.
#[inline(always)]
fn enter(request: u64) -> Option<*mut Flight> {
    if let Some((flight, _)) = find(request) {
        return Some(flight);
    }
    let flag = u64::from(BPF_NOEXIST);
    if IN_FLIGHT.insert(request, Flight::IDLE, flag).is_ok() {
        return IN_FLIGHT.get_ptr_mut(request);
    }
    if PASSING.insert(request, Flight::IDLE, flag).is_ok() {
        return PASSING.get_ptr_mut(request);
    }
    count(Fate::MapFull);
    None
}

#[inline(always)]
fn find(request: u64) -> Option<(*mut Flight, bool)> {
    match IN_FLIGHT.get_ptr_mut(request) {
        Some(flight) => Some((flight, false)),
        None => PASSING.get_ptr_mut(request).map(|flight| (flight, true)),
    }
}

/// The end of an earlier request at this address was missed.
///
/// # Safety
/// `flight` points to a value of a map.
#[inline(always)]
unsafe fn begin_anew(flight: *mut Flight) {
    // SAFETY: the caller's promise.
    unsafe { lay_down(flight) };
    count(Fate::Stale);
}

/// Nothing is in flight in this entry any more.
///
/// # Safety
/// `flight` points to a value of a map.
#[inline(always)]
unsafe fn lay_down(flight: *mut Flight) {
    // SAFETY: the caller's promise.
    unsafe {
        // It lies in the line that CPUs share as long as no one writes to it.
        if (*flight).insert_ns != 0 {
            (*flight).insert_ns = 0;
        }
        (*flight).issue_ns = 0;
        (*flight).cgroup = 0;
        (*flight).tid = 0;
    }
}

#[inline(always)]
fn forget(request: u64) {
    let Some((flight, is_passing)) = find(request) else { return };
    if is_passing {
        let _ = PASSING.remove(request);
        return;
    }
    // SAFETY: it points to a value of a map.
    unsafe { lay_down(flight) };
}

/// Notes who asks: the running task and its cgroup.
///
/// # Safety
/// `flight` points to a value of a map, or is the caller's own.
#[inline(always)]
pub unsafe fn ask(flight: *mut Flight) {
    let id = bpf_get_current_pid_tgid();
    // SAFETY: the caller's promise; the helper takes nothing.
    unsafe {
        (*flight).tgid = (id >> 32) as u32;
        (*flight).cgroup = generated::bpf_get_current_cgroup_id();
        let is_named = copy_current_comm(&mut (*flight).comm).is_some();
        (*flight).tid = if is_named { id as u32 } else { 0 };
    }
}

/// The whole disk of a request; `Some(0)` when it has none.
#[inline(always)]
fn disk<R: Reach>(request: u64) -> Option<u64> {
    let holder = if offset(&OFFSETS.request_q).is_some() { R::follow(request, &OFFSETS.request_q)? } else { request };
    R::member(holder, &OFFSETS.disk)
}

/// What a request is counted under; `None`, and counted, when that cannot be read. Most commands to a controller
/// have no disk.
#[inline(always)]
fn series<R: Reach>(request: u64) -> Option<Series> {
    let Some(disk) = disk::<R>(request) else {
        count(Fate::ReadFault);
        return None;
    };
    if disk == 0 {
        see(|seen| &raw mut seen.without_disk);
        return None;
    }
    let series = number::<R>(disk).zip(R::member::<u32>(request, &OFFSETS.cmd_flags));
    let Some((dev, flags)) = series else {
        count(Fate::ReadFault);
        return None;
    };
    Some(Series { dev, operation: operation(flags) })
}

/// The number of a disk.
#[inline(always)]
pub fn number<R: Reach>(disk: u64) -> Option<u32> {
    let (major, minor) = R::member::<u32>(disk, &OFFSETS.major).zip(R::member::<u32>(disk, &OFFSETS.first_minor))?;
    Some(major << 20 | minor)
}

/// What the flags of a request or a bio say that it does.
#[inline(always)]
pub fn operation(flags: u32) -> u32 {
    let number = (flags & 0xff) as usize;
    if number >= OPERATIONS {
        return Operation::Other as u32;
    }
    // SAFETY: a reference is valid to read. Volatile, as the loader writes the value after compilation.
    u32::from(unsafe { core::ptr::read_volatile(&OFFSETS.operations[number]) })
}
