//! Follows a request by the place that it reads or writes, from the records of plain tracepoints alone. What came of it is
//! left to `totals`.

use aya_ebpf::macros::map;
use aya_ebpf::maps::HashMap;
use sysops_common::block_io::{Flight, Format, Operation, Place, Series, operation_of_letters};
use sysops_ebpf::clock_ns;
use sysops_ebpf::counters::{Fate, count};
use sysops_ebpf::memory::{add, member};

use crate::OFFSETS;
use crate::requests::ask;
use crate::totals::{Of, finish, see, totals};

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
            if (*flight).issue_ns == 0 && (*flight).insert_ns != 0 {
                return Some(());
            }
        }
    }
    let mut flight = Flight { insert_ns: clock_ns(), series, ..Flight::IDLE };
    // SAFETY: it is a variable of ours.
    unsafe { ask(&raw mut flight) };
    put(&place, &flight);
    Some(())
}

/// A request goes to its driver.
#[inline(always)]
pub fn issue(base: u64) -> Option<()> {
    let (place, series) = identify(base, &OFFSETS.issue)?;
    let sectors: u32 = member(base, &OFFSETS.issue.nr_sector)?;
    // SAFETY: the value is copied at once; a request is issued once.
    let waited = unsafe { PLACES.get(place) }.copied().filter(|flight| flight.issue_ns == 0);
    let mut flight = Flight { series, sector: place.sector, sectors, ..waited.unwrap_or(Flight::IDLE) };
    flight.bytes = sectors.saturating_mul(SECTOR);
    if waited.is_none() && series.operation != Operation::Flush as u32 {
        // SAFETY: it is a variable of ours.
        unsafe { ask(&raw mut flight) };
    }
    flight.issue_ns = clock_ns();
    if series.dev != 0 {
        put(&place, &flight);
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
    let (place, _) = identify(base, at)?;
    let done: u32 = member(base, &at.nr_sector)?;
    let error: i32 = member(base, &at.error)?;
    let Some(flight) = PLACES.get_ptr_mut(place) else { return Some(()) };
    // SAFETY: it points to a value of a map.
    unsafe {
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

#[inline(always)]
fn identify(base: u64, at: &'static Format) -> Option<(Place, Series)> {
    let dev: u32 = member(base, &at.dev)?;
    let letters: [u8; 2] = member(base, &at.rwbs)?;
    let operation = operation_of_letters(letters[0], letters[1]) as u32;
    let device = u64::from(operation) << 32 | u64::from(dev);
    Some((Place { sector: member(base, &at.sector)?, device }, Series { dev, operation }))
}

/// Whatever the map remembers of this place is of an earlier request, whose end was missed.
#[inline(always)]
fn put(place: &Place, flight: &Flight) {
    if PLACES.insert(place, flight, 0).is_err() {
        count(Fate::MapFull);
    }
}
