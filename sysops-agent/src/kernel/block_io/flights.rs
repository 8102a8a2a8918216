//! Takes out of the kernel's maps what is never going to complete: requests whose completion was missed, and entries of
//! disks that are gone.

use std::time::Duration;

use sysops_common::block_io::{Flight, LATENCY_NS_MAX, Place};

use super::super::disks::Disks;
use super::super::ladder::Refusal;
use super::super::loader::{Object, Table};
use crate::host::Host;

/// How often all entries are looked at, if no disk is gone meanwhile. It takes two system calls an entry.
const INTERVAL: Duration = Duration::from_secs(3600);

/// The maps in which requests and bios are remembered.
pub(super) struct Flights {
    requests: [Table<u64, Flight>; 3],
    places: Table<Place, Flight>,
    addresses: Vec<u64>,
    spots: Vec<Place>,
    last: Option<Duration>,
    swept: u64,
}

impl Flights {
    /// Those of the object.
    ///
    /// # Errors
    /// When it lacks one.
    pub(super) fn of(object: &mut Object) -> Result<Self, Refusal> {
        Ok(Self {
            requests: [object.table("IN_FLIGHT")?, object.table("PASSING")?, object.table("BIOS")?],
            places: object.table("PLACES")?,
            addresses: Vec::new(),
            spots: Vec::new(),
            last: None,
            swept: 0,
        })
    }

    /// Entries that were in flight and taken out.
    #[must_use]
    pub(super) fn swept(&self) -> u64 {
        self.swept
    }

    /// Looks at all entries when it is time, or when disks have come or gone. True when it was time.
    pub(super) fn sweep(&mut self, host: &Host, disks: &Disks, listed: bool) -> bool {
        let now = host.clock.now().monotonic;
        let last = *self.last.get_or_insert(now);
        let is_time = now.saturating_sub(last) >= INTERVAL;
        if !listed || !(is_time || disks.have_changed()) {
            return false;
        }
        self.last = Some(if is_time { now } else { last });
        let now_ns = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
        let mut swept = 0;
        for table in &mut self.requests {
            table.keys(&mut self.addresses);
            for key in &self.addresses {
                swept += remove(table, key, now_ns, disks);
            }
        }
        self.places.keys(&mut self.spots);
        for key in &self.spots {
            swept += remove(&mut self.places, key, now_ns, disks);
        }
        self.swept += swept;
        is_time
    }
}

/// Removes an entry that is of no use. Gives one when it was in flight.
fn remove<K: sysops_common::plain::Plain>(table: &mut Table<K, Flight>, key: &K, now_ns: u64, disks: &Disks) -> u64 {
    let Some(flight) = table.get(key) else { return 0 };
    let is_over = Fate::of(&flight, now_ns, |dev| disks.has(dev));
    if is_over != Fate::Alive {
        table.remove(key);
    }
    u64::from(is_over == Fate::Lost)
}

/// What has become of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// It is in use, or may be again.
    Alive,
    /// It waits for nothing, and for a disk that is gone.
    Unused,
    /// What it waits for will not come.
    Lost,
}

impl Fate {
    fn of(flight: &Flight, now_ns: u64, has_disk: impl Fn(u32) -> bool) -> Self {
        // The device is known from the first issue on.
        let is_gone = flight.series.dev != 0 && !has_disk(flight.series.dev);
        let since = if flight.issue_ns == 0 { flight.insert_ns } else { flight.issue_ns };
        match since {
            0 if is_gone => Self::Unused,
            0 => Self::Alive,
            since if is_gone || now_ns.saturating_sub(since) > LATENCY_NS_MAX => Self::Lost,
            _ => Self::Alive,
        }
    }
}

#[cfg(test)]
mod tests {
    use sysops_common::block_io::Series;

    use super::*;

    const HOUR: u64 = LATENCY_NS_MAX;

    #[test]
    fn an_entry_goes_with_its_disk_or_after_an_hour() {
        let of = |dev: u32, insert_ns: u64, issue_ns: u64, now_ns: u64| {
            let series = Series { dev, operation: 0 };
            Fate::of(&Flight { insert_ns, issue_ns, series, ..Flight::IDLE }, now_ns, |dev| dev == 8)
        };
        assert_eq!(of(8, 0, 0, 9 * HOUR), Fate::Alive, "the driver uses its request again");
        assert_eq!(of(8, 5, HOUR, 2 * HOUR), Fate::Alive, "issued an hour ago at the most");
        assert_eq!(of(8, 5, HOUR, 2 * HOUR + 1), Fate::Lost);
        assert_eq!(of(8, 5, 0, HOUR + 6), Fate::Lost, "it waits for an hour");
        assert_eq!((of(9, 0, 0, 6), of(9, 0, 5, 6)), (Fate::Unused, Fate::Lost), "the disk is gone");
        assert_eq!(of(0, 5, 0, 6), Fate::Alive, "no one knows of which disk it is yet");
    }
}
