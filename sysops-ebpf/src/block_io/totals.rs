//! Adds what has completed to the totals of its device and operation, and hands over what took long. Following a request
//! to its completion is left to `requests` and `bios`.

use core::ptr::{NonNull, null_mut};

use aya_ebpf::bindings::BPF_NOEXIST;
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap, RingBuf};
use sysops_common::block_io::{
    Buckets, DiskName, Failure, Flight, LATENCY_NS_MAX, NAME_LEN, SLOW_PER_WINDOW, SLOW_WINDOW_SHIFT, Seen, Series,
    Slow, SlowLimit, Totals,
};
use sysops_ebpf::counters::{Fate, count};
use sysops_ebpf::memory::{add, copy_member};

use crate::cgroups::{attribute, charge};
use crate::{OFFSETS, setting};

// 200 disks with all operations, or more with fewer.
#[map]
static TOTALS: HashMap<Series, Totals> = HashMap::with_max_entries(1024, 0);

// Few disks fail at a time, and each in few ways.
#[map]
static FAILURES: HashMap<Failure, u64> = HashMap::with_max_entries(512, 0);

#[map]
static NAMES: HashMap<u32, DiskName> = HashMap::with_max_entries(512, 0);

// Room for 600 slow requests that the agent has not yet taken: a minute at the most that are handed over.
#[map]
static EVENTS: RingBuf = RingBuf::with_byte_size(1 << 16, 0);

#[map]
static SLOW_LIMIT: Array<SlowLimit> = Array::with_max_entries(1, 0);

#[map]
static SEEN: Array<Seen> = Array::with_max_entries(1, 0);

// Larger than a program's stack.
static ZERO: Totals = Totals::ZERO;

/// What is followed to its completion.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Of {
    /// A request.
    Request,
    /// A bio of a disk that makes no requests. What a cgroup did is counted by the requests that come of it below: by both
    /// it would count twice.
    Bio,
}

/// Enters the completion of `flight` at `now`; `disk` is where the name is, for the first of its device, and `charged` the
/// cgroup that the kernel charges.
#[inline(always)]
pub fn finish(
    of: Of,
    flight: *mut Flight,
    now: u64,
    status: i32,
    disk: impl FnOnce() -> Option<u64>,
    charged: impl FnOnce() -> Option<u64>,
) {
    // SAFETY: it points into a value of a map, which the verifier checks.
    let (issue_ns, queue_ns, series) = unsafe { ((*flight).issue_ns, (*flight).queue_ns(), (*flight).series) };
    if now < issue_ns || now - issue_ns > LATENCY_NS_MAX || queue_ns > LATENCY_NS_MAX {
        return count(Fate::Stale);
    }
    let device_ns = now - issue_ns;
    let Some(totals) = totals(series, disk) else { return count(Fate::MapFull) };
    // SAFETY: all point into a value of a map, and buckets into their arrays.
    unsafe {
        if queue_ns == 0 {
            tally(&raw mut (*totals).direct, device_ns);
        } else {
            tally(&raw mut (*totals).queue, queue_ns);
            tally(&raw mut (*totals).device, device_ns);
            tally(&raw mut (*totals).whole, queue_ns + device_ns);
            add(&raw mut (*totals).queue_ns, queue_ns);
        }
        add(&raw mut (*totals).device_ns, device_ns);
        if status != 0 {
            add(&raw mut (*totals).errors, 1);
            fail(Failure { dev: series.dev, status });
        }
        let by_cgroup = of == Of::Request && setting(&OFFSETS.by_cgroup) != 0;
        let slow_ns = setting(&OFFSETS.slow_ns);
        let is_slow = slow_ns != 0 && queue_ns + device_ns >= slow_ns;
        if by_cgroup || is_slow {
            attribute(flight, charged);
        }
        if by_cgroup {
            charge(flight);
        }
        if is_slow {
            add(&raw mut (*totals).slow, 1);
            tell(flight, now, status);
        }
    }
    count(Fate::Received);
}

/// Where the totals of `series` are. `disk` is run when there are none yet of this device and operation.
#[inline(always)]
pub fn totals(series: Series, disk: impl FnOnce() -> Option<u64>) -> Option<*mut Totals> {
    if let Some(totals) = TOTALS.get_ptr_mut(series) {
        return Some(totals);
    }
    NonNull::new(begin(series.dev, series.operation, disk().unwrap_or(0))).map(NonNull::as_ptr)
}

/// Makes room for the first of its device and operation; null when there is none, which the caller counts if a request is lost. `disk` may be null. A function of its own, as all
/// that is seldom: it would stand in the way of what is not. Its arguments are numbers, as BPF has it.
#[inline(never)]
fn begin(dev: u32, operation: u32, disk: u64) -> *mut Totals {
    let series = Series { dev, operation };
    if disk != 0 {
        name(disk, dev);
    }
    // Another CPU may have been quicker: then the value is there just as well.
    #[expect(clippy::needless_borrows_for_generic_args, reason = "by value it would not fit on the stack of a program")]
    let _ = TOTALS.insert(series, &ZERO, u64::from(BPF_NOEXIST));
    TOTALS.get_ptr_mut(series).unwrap_or(null_mut())
}

/// Counts what is seen seldom.
#[inline(always)]
pub fn see(counter: impl FnOnce(&mut Seen) -> *mut u64) {
    let Some(seen) = SEEN.get_ptr_mut(0) else { return };
    // SAFETY: it points into the map's one value.
    unsafe { add(counter(&mut *seen), 1) };
}

/// There was a request for which the maps had no room. One whose issue is not known may then be of these; else it was issued
/// before anyone looked.
#[inline(always)]
pub fn has_lacked_room() -> bool {
    // SAFETY: it points into the map's one value.
    SEEN.get_ptr(0).is_some_and(|seen| unsafe { core::ptr::read_volatile(&raw const (*seen).without_room) } != 0)
}

/// # Safety
/// `buckets` points into a value of a map.
#[inline(always)]
unsafe fn tally(buckets: *mut Buckets, ns: u64) {
    // SAFETY: the caller's promise; the bucket is one of its buckets.
    unsafe { add(buckets.cast::<u64>().add(Totals::bucket(ns)), 1) };
}

#[inline(never)]
fn fail(failure: Failure) {
    let found = FAILURES.get_ptr_mut(failure).or_else(|| {
        let _ = FAILURES.insert(failure, 0, u64::from(BPF_NOEXIST));
        FAILURES.get_ptr_mut(failure)
    });
    match found {
        // SAFETY: it points to a value of a map.
        Some(failures) => unsafe { add(failures, 1) },
        None => see(|seen| &raw mut seen.failures_lost),
    }
}

/// Hands over a slow request, unless enough were handed over in this window of time. CPUs that come at the same moment
/// may each hand over one more.
#[inline(never)]
fn tell(flight: *const Flight, now: u64, status: i32) {
    let Some(limit) = SLOW_LIMIT.get_ptr_mut(0) else { return };
    let window = now >> SLOW_WINDOW_SHIFT;
    // SAFETY: all point into the map's one value.
    unsafe {
        if (*limit).window != window {
            (*limit).window = window;
            (*limit).told = 0;
        }
        if (*limit).told >= SLOW_PER_WINDOW {
            return add(&raw mut (*limit).untold, 1);
        }
        add(&raw mut (*limit).told, 1);
    }
    let Some(mut entry) = EVENTS.reserve::<Slow>(0) else { return see(|seen| &raw mut seen.slow_lost) };
    // SAFETY: the flight is a value of a map, and copied whole.
    entry.write(Slow { complete_ns: now, status, reserved: 0, flight: unsafe { *flight } });
    entry.submit(0);
}

/// Keeps the name of a disk beside its number, so that the agent can tell a wrong number.
#[inline(always)]
fn name(disk: u64, dev: u32) {
    let mut name = DiskName([0; NAME_LEN]);
    if copy_member(disk, &OFFSETS.disk_name, &mut name.0).is_some() {
        // When it is full the agent asks /proc alone.
        let _ = NAMES.insert(dev, name, 0);
    }
}
