//! Follows a request by the place that it reads or writes, from the records of plain tracepoints alone. What came of it is
//! left to `totals`.

use aya_ebpf::bindings::BPF_NOEXIST;
use aya_ebpf::macros::map;
use aya_ebpf::maps::HashMap;
use sysops_common::block_io::{Flight, Format, Operation, Place, Series, operation_of_letters};
use sysops_ebpf::clock_ns;
use sysops_ebpf::counters::{Fate, count};
use sysops_ebpf::memory::{add, member};

use crate::OFFSETS;
use crate::reach::Copied;
use crate::requests::ask;
use crate::totals::{Of, finish, has_lacked_room, see, totals};

#[map]
static PLACES: HashMap<Place, Flight> = HashMap::with_max_entries(16384, 0);

const SECTOR: u32 = 512;

/// A request has to wait: what the record at `base` says.
#[inline(always)]
pub fn insert(base: u64) -> Option<()> {
    let (place, series) = identify(base, &OFFSETS.insert)?;
    if let Some(flight) = PLACES.get_ptr_mut(place) {
        // SAFETY: it points to a value of a map.
        unsafe {
            // Another one for this place is with its driver, or this one was and waits since then. One that only waited is no
            // more: it was merged, or begins elsewhere since something was put in front of it.
            if (*flight).issue_ns != 0 || (*flight).sectors != 0 {
                return Some(());
            }
        }
    }
    let mut flight = Flight { insert_ns: clock_ns(), series, ..Flight::IDLE };
    // SAFETY: it is a variable of ours.
    unsafe { ask::<Copied>(&raw mut flight) };
    // For what has no room now there may be some when it is issued.
    let _ = PLACES.insert(place, flight, 0);
    Some(())
}

/// A request goes to its driver.
#[inline(always)]
pub fn issue(base: u64) -> Option<()> {
    let (place, series) = identify(base, &OFFSETS.issue)?;
    let sectors: u32 = member(base, &OFFSETS.issue.nr_sector)?;
    // SAFETY: the value is copied at once; a request is issued once.
    let found = unsafe { PLACES.get(place) }.copied();
    let waited = found.filter(|flight| flight.issue_ns == 0);
    // Another one for this place is with its driver, or its end was missed.
    if found.is_some() && waited.is_none() {
        count(Fate::Stale);
    }
    let mut flight = Flight { series, sector: place.sector, sectors, ..waited.unwrap_or(Flight::IDLE) };
    flight.bytes = sectors.saturating_mul(SECTOR);
    if waited.is_none() && series.operation != Operation::Flush as u32 {
        // SAFETY: it is a variable of ours.
        unsafe { ask::<Copied>(&raw mut flight) };
    }
    flight.issue_ns = clock_ns();
    if series.dev != 0 {
        put(&place, &flight);
    }
    Some(())
}

/// A request that waits becomes a part of another, and is no more.
#[inline(always)]
pub fn merge(base: u64) -> Option<()> {
    let (place, series) = identify(base, &OFFSETS.merge)?;
    // SAFETY: the value is read at once.
    if unsafe { PLACES.get(place) }.is_some_and(|flight| flight.issue_ns == 0) {
        let _ = PLACES.remove(place);
    }
    if let Some(totals) = totals(series, || None) {
        // SAFETY: it points into a value of a map.
        unsafe { add(&raw mut (*totals).merges, 1) };
    }
    Some(())
}

/// A request is given back by its driver. It waits from its first issue on.
#[inline(always)]
pub fn requeue(base: u64) -> Option<()> {
    let (place, series) = identify(base, &OFFSETS.requeue)?;
    if let Some(flight) = PLACES.get_ptr_mut(place) {
        // SAFETY: it points to a value of a map.
        unsafe {
            if (*flight).insert_ns == 0 {
                (*flight).insert_ns = (*flight).issue_ns;
            }
            (*flight).issue_ns = 0;
        }
    }
    if let Some(totals) = totals(series, || None) {
        // SAFETY: it points into a value of a map.
        unsafe { add(&raw mut (*totals).requeues, 1) };
    }
    Some(())
}

/// A request, or a part of it, is complete. What is left of it begins behind the part.
#[inline(always)]
pub fn complete(base: u64) -> Option<()> {
    let now = clock_ns();
    let at = &OFFSETS.complete;
    let (place, series) = identify(base, at)?;
    let done: u32 = member(base, &at.nr_sector)?;
    let error: i32 = member(base, &at.error)?;
    if PLACES.get_ptr(place).is_none() && !enter_failed(&place, series, done, error) {
        return Some(());
    }
    let Some(flight) = PLACES.get_ptr_mut(place) else { return Some(()) };
    // SAFETY: it points to a value of a map.
    unsafe {
        if (*flight).issue_ns == 0 && error != 0 && !has_ended(done, series) {
            // It waited up to now and never came to its driver.
            (*flight).sector = place.sector;
            (*flight).sectors = done;
            (*flight).bytes = done.saturating_mul(SECTOR);
            (*flight).issue_ns = now;
        }
        if (*flight).issue_ns != 0 && done < (*flight).sectors {
            see(|seen| &raw mut seen.partial);
            if let Some(totals) = totals((*flight).series, || None) {
                add(&raw mut (*totals).partial, 1);
            }
            let rest = Place { sector: place.sector + u64::from(done), ..place };
            let flight = Flight { sectors: (*flight).sectors - done, ..*flight };
            let _ = PLACES.remove(place);
            put(&rest, &flight);
            return Some(());
        }
        if (*flight).issue_ns != 0 {
            finish(Of::Request, flight, now, error, || None, || None);
        }
    }
    let _ = PLACES.remove(place);
    Some(())
}

/// A request is complete that the map does not know: true when it is there now, as it failed, be it that there was no room for it or that it never
/// came to its driver. One without an error is counted when there was no room.
#[inline(never)]
fn enter_failed(place: &Place, series: Series, done: u32, error: i32) -> bool {
    if error == 0 && !has_lacked_room() || series.dev == 0 || has_ended(done, series) {
        return false;
    }
    let flight = Flight { series, ..Flight::IDLE };
    if error != 0 && PLACES.insert(place, flight, u64::from(BPF_NOEXIST)).is_ok() {
        return true;
    }
    count(Fate::MapFull);
    false
}

/// A write that has to flush first, or after, ends once more, without data, when it and the flushes have ended.
#[inline(always)]
fn has_ended(done: u32, series: Series) -> bool {
    done == 0 && (series.operation == Operation::Read as u32 || series.operation == Operation::Write as u32)
}

/// What is known of a request that has no place: a flush, a command. The record of its completion has what stands in the
/// request, the others have zero (blk_rq_trace_sector).
const NOWHERE: u64 = u64::MAX;

#[inline(always)]
fn identify(base: u64, at: &'static Format) -> Option<(Place, Series)> {
    let dev: u32 = member(base, &at.dev)?;
    let letters: [u8; 2] = member(base, &at.rwbs)?;
    let operation = operation_of_letters(letters[0], letters[1]) as u32;
    let device = u64::from(operation) << 32 | u64::from(dev);
    let sector = match member(base, &at.sector)? {
        NOWHERE => 0,
        sector => sector,
    };
    Some((Place { sector, device }, Series { dev, operation }))
}

/// What has no room is counted when it is complete.
#[inline(always)]
fn put(place: &Place, flight: &Flight) {
    if PLACES.insert(place, flight, 0).is_err() {
        see(|seen| &raw mut seen.without_room);
    }
}
