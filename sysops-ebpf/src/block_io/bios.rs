//! Follows a bio by its address through a disk that makes no requests (dm, md, the head of NVMe multipath, zram), and
//! counts what was too large for a disk. What came of it is left to `totals`.

use aya_ebpf::bindings::BPF_NOEXIST;
use aya_ebpf::macros::map;
use aya_ebpf::maps::HashMap;
use sysops_common::block_io::{Flight, Operation, Series};
use sysops_ebpf::clock_ns;
use sysops_ebpf::counters::{Fate, count};
use sysops_ebpf::memory::add;

use crate::OFFSETS;
use crate::cgroups::charged;
use crate::reach::Reach;
use crate::requests::{ask, number};
use crate::shape::{disk_of_bio, operation};
use crate::totals::{Of, finish, totals};

#[map]
static BIOS: HashMap<u64, Flight> = HashMap::with_max_entries(8192, 0);

/// A bio is handed to a disk. For one that makes requests of it these are followed instead.
#[inline(always)]
pub fn queue<R: Reach>(bio: u64) {
    let Some(disk) = disk_of_bio::<R>(bio) else { return count(Fate::ReadFault) };
    let submits = R::follow(disk, &OFFSETS.fops).and_then(|fops| R::member::<u64>(fops, &OFFSETS.submit_bio));
    if submits.unwrap_or(0) == 0 {
        return;
    }
    let place = (R::member::<u64>(bio, &OFFSETS.bio_sector), series::<R>(bio, disk));
    let (Some(sector), Some((series, bytes))) = place else { return count(Fate::ReadFault) };
    // The name of the disk is kept now: some (raid0 of 5.10, NVMe multipath) hand the bio itself to the disk below, and
    // when it is complete it is that one's.
    if totals(series, || Some(disk)).is_none() {
        return count(Fate::MapFull);
    }
    let mut flight = Flight { sector, bytes, series, ..Flight::IDLE };
    // SAFETY: it is a variable of ours.
    unsafe { ask::<R>(&raw mut flight) };
    flight.issue_ns = clock_ns();
    if BIOS.insert(bio, flight, u64::from(BPF_NOEXIST)).is_err() {
        overwrite(bio, &raw const flight);
    }
}

/// There is no room, or an entry of an earlier bio at this address, whose end was missed.
#[inline(never)]
fn overwrite(bio: u64, flight: *const Flight) {
    match BIOS.get_ptr_mut(bio) {
        Some(there) => {
            // SAFETY: one is a value of a map, the other one the caller's.
            unsafe { *there = *flight };
            count(Fate::Stale);
        }
        None => count(Fate::MapFull),
    }
}

/// A bio is complete, with all its parts.
#[inline(always)]
pub fn complete<R: Reach>(bio: u64) {
    let now = clock_ns();
    let Some(flight) = BIOS.get_ptr_mut(bio) else { return };
    match R::member::<u8>(bio, &OFFSETS.bio_status) {
        Some(status) => finish(Of::Bio, flight, now, i32::from(status), || None, || charged::<R>(bio)),
        None => count(Fate::ReadFault),
    }
    let _ = BIOS.remove(bio);
}

/// As many bios of one request are looked at: NVMe has 128 segments at most in one, and a bio has one at least.
const BIOS_MAX: u32 = 128;

/// A request is complete that a head of NVMe multipath handed to one of its paths. The bios in it are those that were handed to the head:
/// the driver tells of the end of the first one alone, and of none where it ends requests in batches.
#[inline(never)]
pub fn complete_all<R: Reach>(first: u64, now: u64, status: i32) {
    let mut bio = first;
    for _ in 0..BIOS_MAX {
        if let Some(flight) = BIOS.get_ptr_mut(bio) {
            finish(Of::Bio, flight, now, status, || None, || charged::<R>(bio));
            let _ = BIOS.remove(bio);
        }
        let Some(next) = R::follow(bio, &OFFSETS.bio_next) else { return };
        bio = next;
    }
}

/// A bio is too large for its disk: a part of it is cut off.
#[inline(always)]
pub fn split<R: Reach>(bio: u64) {
    let Some(disk) = disk_of_bio::<R>(bio) else { return };
    let Some((series, _)) = series::<R>(bio, disk) else { return };
    if let Some(totals) = totals(series, || Some(disk)) {
        // SAFETY: it points into a value of a map.
        unsafe { add(&raw mut (*totals).splits, 1) };
    }
}

/// Device and operation of a bio, and its bytes. A bio asks for a flush by an empty write.
#[inline(always)]
fn series<R: Reach>(bio: u64, disk: u64) -> Option<(Series, u32)> {
    let dev = number::<R>(disk)?;
    let bytes = R::member::<u32>(bio, &OFFSETS.bio_size)?;
    let mut operation = operation(R::member(bio, &OFFSETS.bio_flags)?);
    if bytes == 0 && operation == Operation::Write as u32 {
        operation = Operation::Flush as u32;
    }
    Some((Series { dev, operation }, bytes))
}
