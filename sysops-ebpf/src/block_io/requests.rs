//! Follows a request by its address from who asks for it through its queue to its driver and its completion. What came of it is left to `totals`.

use aya_ebpf::bindings::BPF_NOEXIST;
use aya_ebpf::macros::map;
use aya_ebpf::maps::HashMap;
use sysops_common::block_io::{Flight, Operation, Series, Totals};
use sysops_ebpf::clock_ns;
use sysops_ebpf::counters::{Fate, count};
use sysops_ebpf::memory::add;

use crate::asker::{Asker, asker};
use crate::bios::complete_all;
use crate::cgroups::charged;
use crate::reach::Reach;
use crate::shape::{disk_of_request, operation};
use crate::totals::{Of, finish, has_lacked_room, see, totals};
use crate::{OFFSETS, setting};

// Drivers make their requests once and use them again and again. So an entry stays when its request is complete: the
// next time it is there, and to find it is a third of what it costs to put in and take out.
#[map]
static IN_FLIGHT: HashMap<u64, Flight> = HashMap::with_max_entries(8192, 0);

// Requests for which there was no more room; these are taken out. What does not fit here is counted.
#[map]
static PASSING: HashMap<u64, Flight> = HashMap::with_max_entries(8192, 0);

/// Marks in [`Flight::sectors`], for which nothing else is kept here: its driver has given it back.
const GIVEN_BACK: u32 = 1;
/// Its bios are those of a head of NVMe multipath.
const OF_A_HEAD: u32 = 2;

/// A request has to wait: its disk's scheduler takes it from the task that wants it.
#[inline(always)]
pub fn insert<R: Reach>(request: u64) {
    // For what has no room now there may be some when it is issued.
    let Some(flight) = enter(request) else { return };
    // SAFETY: it points to a value of a map.
    unsafe {
        if (*flight).issue_ns != 0 {
            begin_anew(flight);
        } else if (*flight).insert_ns != 0 {
            lay_down_older::<R>(request, flight);
        }
        // Given back by its driver, it has waited since the first issue.
        if (*flight).insert_ns == 0 {
            (*flight).insert_ns = clock_ns();
        }
        if (*flight).cgroup == 0 {
            ask::<R>(flight);
        }
    }
}

/// A request goes to its driver.
#[inline(always)]
pub fn issue<R: Reach>(request: u64) {
    let Some((series, flags)) = series::<R>(request) else { return };
    let place = (R::member::<u64>(request, &OFFSETS.sector), R::member::<u32>(request, &OFFSETS.data_len));
    let (Some(sector), Some(bytes)) = place else { return count(Fate::ReadFault) };
    let Some(flight) = enter(request) else { return see(|seen| &raw mut seen.without_room) };
    // SAFETY: it points to a value of a map.
    unsafe {
        if (*flight).issue_ns != 0 {
            begin_anew(flight);
        } else if (*flight).sectors & GIVEN_BACK != 0 {
            lay_down_older::<R>(request, flight);
        }
        let marks = if u64::from(flags) & setting(&OFFSETS.of_a_head) == 0 { 0 } else { OF_A_HEAD };
        if (*flight).sectors != marks {
            (*flight).sectors = marks;
        }
        (*flight).series = series;
        (*flight).sector = sector;
        (*flight).bytes = bytes;
        // What never waited is issued by who wants it. The kernel's own flush is issued by whom it meets.
        if (*flight).cgroup == 0 && (*flight).insert_ns == 0 && series.operation != Operation::Flush as u32 {
            ask::<R>(flight);
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
            (*flight).sectors |= GIVEN_BACK;
        }
    }
    note::<R>(request, |totals| {
        // SAFETY: it points into a value of a map.
        unsafe { &raw mut (*totals).requeues }
    });
}

/// A request that waits becomes a part of another, and is no more.
#[inline(always)]
pub fn merge<R: Reach>(request: u64) {
    forget(request);
    note::<R>(request, |totals| {
        // SAFETY: it points into a value of a map.
        unsafe { &raw mut (*totals).merges }
    });
}

/// A request, or a part of it, is complete. `error` is a number of errno up to 5.15 and a `blk_status_t` since: of either,
/// zero is success. The tracepoint runs before the kernel takes `bytes` off what is to do, so a request is complete when
/// nothing would be left. Requests without data have nothing to do from the start.
#[inline(always)]
pub fn complete<R: Reach>(request: u64, error: i32, bytes: u32) {
    let now = clock_ns();
    let mut found = find(request);
    if found.is_none() && enter_failed::<R>(request, error, bytes) {
        found = find(request);
    }
    let Some((flight, is_passing)) = found else { return };
    // SAFETY: it points to a value of a map.
    unsafe {
        let is_issued = (*flight).issue_ns != 0 || is_failed::<R>(request, flight, now, error, bytes);
        if is_issued && end::<R>(request, flight, now, error, bytes).is_none() {
            return;
        }
        lay_down(flight);
    }
    if is_passing {
        let _ = PASSING.remove(request);
    }
}

/// Enters the end of a request, or of a part of it: `None` while there is more to do.
///
/// # Safety
/// `flight` points to a value of a map.
#[inline(always)]
unsafe fn end<R: Reach>(request: u64, flight: *mut Flight, now: u64, error: i32, bytes: u32) -> Option<()> {
    let Some(to_do) = R::member::<u32>(request, &OFFSETS.data_len) else {
        count(Fate::ReadFault);
        return Some(());
    };
    if bytes < to_do {
        see(|seen| &raw mut seen.partial);
        // SAFETY: the caller's promise.
        let series = unsafe { (*flight).series };
        if let Some(totals) = totals(series, || disk_of_request::<R>(request)) {
            // SAFETY: it points into a value of a map.
            unsafe { add(&raw mut (*totals).partial, 1) };
        }
        return None;
    }
    if bytes > to_do {
        see(|seen| &raw mut seen.beyond);
    }
    finish(
        Of::Request,
        flight,
        now,
        error,
        || disk_of_request::<R>(request),
        || charged::<R>(R::follow(request, &OFFSETS.request_bio)?),
    );
    // SAFETY: the caller's promise.
    if unsafe { (*flight).sectors } & OF_A_HEAD != 0
        && let Some(bio) = R::follow(request, &OFFSETS.request_bio)
    {
        complete_all::<R>(bio, now, error);
    }
    Some(())
}

/// A request is complete that no map knows: true when it is in one now, as it failed, be it that there was no room for it or that it never came
/// to its driver (one for a SCSI disk that is offline ends in front of it). One without an error is counted when there was no room.
#[inline(never)]
fn enter_failed<R: Reach>(request: u64, error: i32, bytes: u32) -> bool {
    if error == 0 && !has_lacked_room() || !is_whole::<R>(request, bytes) {
        return false;
    }
    if error != 0 && enter(request).is_some() {
        return true;
    }
    count(Fate::MapFull);
    false
}

/// A request is complete of which no issue was seen: true when it failed, as one that never came to its driver. It has
/// waited, if at all, up to now. Of one without an error the issue was missed.
///
/// # Safety
/// `flight` points to a value of a map.
#[inline(never)]
unsafe fn is_failed<R: Reach>(request: u64, flight: *mut Flight, now: u64, error: i32, bytes: u32) -> bool {
    if !is_whole::<R>(request, bytes) {
        return false;
    }
    if error == 0 {
        count(Fate::Stale);
        return false;
    }
    let place = (R::member::<u64>(request, &OFFSETS.sector), number_and_operation::<R>(request));
    let (Some(sector), Some((series, _))) = place else {
        count(Fate::ReadFault);
        return false;
    };
    // SAFETY: the caller's promise.
    unsafe {
        (*flight).series = series;
        (*flight).sector = sector;
        (*flight).bytes = bytes;
        (*flight).issue_ns = now;
    }
    true
}

/// `bytes` are all of a request of a disk. A write that has to flush first, or after, ends once more, without data, when it and
/// the flushes have ended.
#[inline(always)]
fn is_whole<R: Reach>(request: u64, bytes: u32) -> bool {
    let (Some(disk), Some(to_do)) = (disk_of_request::<R>(request), R::member::<u32>(request, &OFFSETS.data_len))
    else {
        return false;
    };
    let is_data = |flags| {
        let operation = operation(flags);
        operation == Operation::Read as u32 || operation == Operation::Write as u32
    };
    let has_ended = bytes == 0 && R::member::<u32>(request, &OFFSETS.cmd_flags).is_none_or(is_data);
    disk != 0 && bytes >= to_do && !has_ended
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

/// What waits in this entry may be an earlier request: one that its driver gave back, and that request-based dm then freed, or
/// that was merged where no tracepoint tells of it. A request that was made after that began to wait is another one. Where
/// the kernel takes no time of requests, none is later.
///
/// # Safety
/// `flight` points to a value of a map.
#[inline(always)]
unsafe fn lay_down_older<R: Reach>(request: u64, flight: *mut Flight) {
    let made_ns = R::member::<u64>(request, &OFFSETS.start_time_ns).unwrap_or(0);
    // SAFETY: the caller's promise.
    unsafe {
        if made_ns > (*flight).insert_ns {
            lay_down(flight);
        }
    }
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

/// Notes who asks.
///
/// # Safety
/// `flight` points to a value of a map, or is the caller's own.
#[inline(always)]
pub unsafe fn ask<R: Reach>(flight: *mut Flight) {
    let Some(Asker { tgid, tid, cgroup, comm }) = asker::<R>() else { return };
    // SAFETY: the caller's promise.
    unsafe {
        (*flight).tgid = tgid;
        (*flight).tid = tid;
        (*flight).cgroup = cgroup;
        (*flight).comm = comm;
    }
}

/// What a request is counted under, with its flags; `None`, and counted, when that cannot be read. Most commands to a controller
/// have no disk.
#[inline(always)]
fn series<R: Reach>(request: u64) -> Option<(Series, u32)> {
    let found = number_and_operation::<R>(request);
    if found.is_none() {
        match disk_of_request::<R>(request) {
            Some(0) => see(|seen| &raw mut seen.without_disk),
            _ => count(Fate::ReadFault),
        }
    }
    found
}

/// The same, and not counted.
#[inline(always)]
fn number_and_operation<R: Reach>(request: u64) -> Option<(Series, u32)> {
    let disk = disk_of_request::<R>(request).filter(|&disk| disk != 0)?;
    let (dev, flags) = number::<R>(disk).zip(R::member::<u32>(request, &OFFSETS.cmd_flags))?;
    Some((Series { dev, operation: operation(flags) }, flags))
}

/// Counts what became of a request before its end.
#[inline(always)]
fn note<R: Reach>(request: u64, counter: impl FnOnce(*mut Totals) -> *mut u64) {
    let Some((series, _)) = number_and_operation::<R>(request) else { return };
    if let Some(totals) = totals(series, || disk_of_request::<R>(request)) {
        // SAFETY: it points into a value of a map.
        unsafe { add(counter(totals), 1) };
    }
}

/// The number of a disk.
#[inline(always)]
pub fn number<R: Reach>(disk: u64) -> Option<u32> {
    let (major, minor) = R::member::<u32>(disk, &OFFSETS.major).zip(R::member::<u32>(disk, &OFFSETS.first_minor))?;
    Some(major << 20 | minor)
}
