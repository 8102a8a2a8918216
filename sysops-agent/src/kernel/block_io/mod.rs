//! Requests of block devices: how long each waited and how long its device took, errors, and what became of them in
//! between, as the programs count them in the kernel. They are read once a cycle; only slow ones are handed over.

mod agreement;
mod cgroups;
mod flights;
mod quantile;
mod series;
mod slow;
mod stacked;
mod status;
mod suspicion;
mod types;

use std::os::fd::BorrowedFd;

use sysops_btf::Btf;
use sysops_common::block_io::{DiskName, Format, Offsets, Seen, Slow};
use sysops_common::counters::Counters;

use self::agreement::{Comparison, Verdict};
use self::cgroups::Cgroups;
use self::flights::Flights;
use self::series::{All, Tables};
use self::slow::Limit;
use self::stacked::Stacked;
use self::suspicion::{Sums, Suspicion};
use super::attach::Point;
use super::disks::{Disks, Found};
use super::facts::Facts;
use super::ladder::{Ground, Refusal, Step, WORDS};
use super::loader::{self, Object, Slots};
use super::run_stats::Runs;
use super::{Entry, Probe, Rung, record};
use crate::host::Host;
use crate::model::{Batch, Event};
use crate::spec::{Key, Values};

/// The probe in the list.
pub(super) static ENTRY: Entry = Entry {
    name: "block_io",
    metrics: series::METRICS,
    keys: &[RUNG.spec(), SLOW_MS.spec(), REQUESTS.spec(), CGROUPS.spec()],
    rung: &RUNG,
    new: |host, facts, values| Box::new(new(host, facts, values)),
};

static RUNG: Key<String> = Key::choice(
    "kernel.block_io.rung",
    WORDS,
    "auto",
    "How requests of block devices are seen. `auto` takes the best rung that stands; one that is named here and cannot stand is \
     an error.",
);

static SLOW_MS: Key<i64> = Key::int(
    "kernel.block_io.slow_ms",
    1000,
    0,
    3_600_000,
    "A request that takes as many milliseconds, in its queue and its device together, is told as an event `slow_io`, at most ten \
     in a second. 0 tells none.",
);

static REQUESTS: Key<i64> = Key::int(
    "kernel.block_io.requests",
    8192,
    1,
    1 << 20,
    "Requests that the kernel side remembers, in each of two maps of some 140 bytes an entry, and bios of disks that make no requests, in a \
     third one. What is in flight beyond these is not measured, and counted as dropped (`map_full`).",
);

static CGROUPS: Key<i64> = Key::int(
    "kernel.block_io.cgroups",
    0,
    0,
    200,
    "Cgroups whose requests and bytes are given, those first that read and write most; all others are one. 0 counts none, and costs \
     nothing.",
);

struct BlockIo {
    ground: Ground,
    types: Offsets,
    formats: Offsets,
    requests_max: u32,
    cgroups_max: usize,
    standing: Option<Attached>,
    disks: Disks,
    all: All,
    unknown: Vec<u32>,
    suspicion: Suspicion,
    contradiction: Option<Refusal>,
    lacks: Vec<String>,
}

struct Attached {
    rung: Rung,
    object: Object,
    tables: Tables,
    flights: Flights,
    cgroups: Option<Cgroups>,
    stacked: Stacked,
    /// Until requests and bios are known to agree.
    comparison: Option<Comparison>,
    seen: Slots<Seen>,
    limit: Limit,
    /// What /proc/diskstats said before.
    completed_before: u64,
}

fn new(host: &Host, facts: &Facts, values: &Values) -> BlockIo {
    let types = facts.btf.as_ref().map_err(Clone::clone).and_then(types::requests);
    let formats = types::formats(|event| facts.format(host, event));
    let cgroups_max = usize::try_from(values.get(&CGROUPS)).expect("the key's bounds are not below 0");
    let configured = |offsets: &Result<Offsets, Refusal>| Offsets {
        slow_ns: u64::try_from(values.get(&SLOW_MS))
            .expect("the key's bounds are not below 0")
            .saturating_mul(1_000_000),
        by_cgroup: u64::from(cgroups_max > 0),
        ..*offsets.as_ref().unwrap_or(&Offsets::ABSENT)
    };
    BlockIo {
        ground: Ground {
            object: loader::embedded("block_io").map(drop),
            privilege: facts.privilege.clone(),
            types: types.as_ref().map(drop).map_err(Clone::clone),
            format: formats.as_ref().map(drop).map_err(Clone::clone),
            log: None,
        },
        types: configured(&types),
        formats: configured(&formats),
        requests_max: u32::try_from(values.get(&REQUESTS)).unwrap_or(1),
        cgroups_max,
        standing: None,
        disks: Disks::new(&host.files),
        all: All::default(),
        unknown: Vec::new(),
        suspicion: Suspicion::default(),
        contradiction: None,
        lacks: Vec::new(),
    }
}

impl Probe for BlockIo {
    fn steps(&self) -> Vec<Step> {
        self.ground.steps()
    }

    fn attach(&mut self, rung: Rung, host: &Host, facts: &Facts) -> Result<(), Refusal> {
        self.lacks.clear();
        self.all = All::default();
        self.suspicion = Suspicion::default();
        // All disks are new to the programs, so that those without requests among them are looked for.
        self.disks = Disks::new(&host.files);
        // Without the file there is nothing to compare with; that is told when it is read for names.
        let _ = self.disks.refresh_names(&host.files);
        let completed_before = self.disks.completed();
        let (mut object, stacked, comparison) = match rung {
            Rung::Tracepoint => self.attach_plain()?,
            Rung::TpBtf | Rung::RawTracepoint => self.attach_typed(rung, facts.btf.as_ref().map_err(Clone::clone)?)?,
            _ => return Err(Refusal::new("nothing to attach on this rung", "")),
        };
        self.standing = Some(Attached {
            rung,
            tables: Tables::of(&mut object)?,
            flights: Flights::of(&mut object)?,
            cgroups: if self.cgroups_max > 0 { Some(Cgroups::of(&mut object, self.cgroups_max)?) } else { None },
            seen: object.slots("SEEN")?,
            limit: Limit::of(&mut object)?,
            object,
            stacked,
            comparison,
            completed_before,
        });
        Ok(())
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.standing.as_ref().and_then(|attached| attached.object.fd())
    }

    fn drain(&mut self, host: &Host, out: &mut Vec<Event>) {
        let Some(Attached { rung, object, tables, .. }) = &mut self.standing else { return };
        let Some(source) = rung.source() else { return };
        let disks = &mut self.disks;
        object.drain(|read: &Slow| {
            let dev = read.flight.series.dev;
            let find = |disks: &mut Disks| match disks.find(dev, || name_of(tables, dev)) {
                Found::Named(name) => Some(name.to_owned()),
                Found::Unknown => None,
            };
            // The disk may be newer than the last look.
            let device = find(disks).or_else(|| disks.refresh_names(&host.files).ok().and_then(|()| find(disks)));
            out.push(slow::event(host, source, read, device));
        });
    }

    fn collect(&mut self, host: &Host, out: &mut Batch) {
        let Some(attached) = &mut self.standing else { return };
        let listed = match self.disks.refresh(&host.files) {
            Ok(gone) => {
                for &dev in gone {
                    self.all.forget(&mut attached.tables, dev);
                }
                true
            }
            Err(error) => {
                tracing::debug!("block_io: {error}: {}", error.source);
                false
            }
        };
        if listed && (self.disks.have_changed() || self.disks.have_grown(&host.files)) {
            attached.stacked.look(&mut attached.object, &mut self.disks, host);
        }
        self.unknown.clear();
        let mut sums = Sums::default();
        let series = self.all.read(&attached.tables);
        for device in series.chunk_by(|one, next| one.dev == next.dev) {
            let dev = device[0].dev;
            match self.disks.find(dev, || name_of(&attached.tables, dev)) {
                Found::Named(name) => {
                    let count = self.all.emit(out, &attached.tables, device, name);
                    attached.stacked.note(name, count > 0);
                    sums.known += count;
                }
                Found::Unknown => {
                    sums.unknown += series::count(&attached.tables, device);
                    self.unknown.push(dev);
                }
            }
        }
        self.all.put_back(series);
        attached.stacked.collect(out);
        attached.limit.collect(out);
        if let Some(seen) = attached.seen.get(0) {
            series::emit_details_lost(out, &seen);
        }
        // The plain tracepoint's record says the number itself; there is nothing of ours that could be wrong.
        if listed && attached.rung != Rung::Tracepoint {
            sums.kernel = self.disks.completed().saturating_sub(attached.completed_before);
            // What the kernel does not give proves nothing.
            if let Some((seen, counters)) = attached.seen.get(0).zip(attached.object.counters()) {
                (sums.seen, sums.faults) = (seen, counters.read_fault);
                self.contradiction = self.suspicion.look(&sums);
            }
        }
        match attached.comparison.as_ref().map(Comparison::look) {
            None | Some(Verdict::Open) => {}
            Some(Verdict::Agreed) => attached.comparison = None,
            Some(Verdict::Contradicted(refusal)) => self.contradiction = Some(refusal),
        }
        // A disk that is known by no name was taken away, or never was.
        if listed {
            for &dev in &self.unknown {
                self.all.forget(&mut attached.tables, dev);
            }
        }
        if let Some(cgroups) = &mut attached.cgroups {
            cgroups.collect(host, out);
        }
        if attached.flights.sweep(host, &self.disks, listed) {
            attached.cgroups.iter_mut().for_each(|cgroups| cgroups.sweep(host));
        }
    }

    fn contradiction(&mut self) -> Option<Refusal> {
        let refusal = self.contradiction.take()?;
        self.standing = None;
        Some(refusal)
    }

    fn lacks(&self) -> Option<String> {
        let without = self.lacks.join("; ");
        (!without.is_empty()).then_some(without)
    }

    fn counters(&self) -> Option<Counters> {
        let attached = self.standing.as_ref()?;
        let counters = attached.object.counters()?;
        Some(Counters { stale: counters.stale + attached.flights.swept(), ..counters })
    }

    fn runs(&self) -> Option<Runs> {
        self.standing.as_ref().map(|attached| attached.object.runs())
    }
}

impl BlockIo {
    /// Loads the programs that read by types, and attaches what must be there; what cannot be had of the rest is told.
    fn attach_typed(&mut self, rung: Rung, btf: &Btf) -> Result<(Object, Stacked, Option<Comparison>), Refusal> {
        let mut offsets = self.types;
        let bios = types::bios(btf, &mut offsets);
        // Without it the tasks of the kernel are counted for the root.
        let _ = types::charges(btf, &mut offsets);
        // Without it the programs call helpers, which tell the same.
        let _ = types::askers(btf, &mut offsets);
        let most = self.requests_max;
        let sizes = [("IN_FLIGHT", most), ("PASSING", most), ("BIOS", most), ("PLACES", 1)];
        let mut object = Object::load_sized("block_io", &offsets, &sizes)?;
        for (what, tracepoint, structure, without) in types::EXTRAS {
            let ground = if structure == "bio" { bios.clone() } else { Ok(()) };
            let attached = ground
                .and_then(|()| types::program(btf, rung, what, tracepoint, structure))
                .and_then(|(program, point)| object.attach(&program, point));
            if let Err(refusal) = attached {
                self.lacks.push(format!("{without}: {}", refusal.reason));
            }
        }
        for (what, tracepoint, _) in types::POINTS {
            let (program, point) = types::program(btf, rung, what, tracepoint, "request")?;
            object.attach(&program, point)?;
        }
        let comparison = bios.clone().and_then(|()| Comparison::begin(btf, rung, &offsets));
        if let Err(refusal) = &comparison {
            self.lacks.push(format!("requests are not held against their bios: {}", refusal.reason));
        }
        let stacked = bios.and_then(|()| Stacked::ready(btf, rung)).unwrap_or_else(Stacked::refused);
        if let Some(reason) = stacked.refusal() {
            self.lacks.push(format!("without disks made of others: {reason}"));
        }
        Ok((object, stacked, comparison.ok()))
    }

    /// The same by the records of plain tracepoints.
    fn attach_plain(&mut self) -> Result<(Object, Stacked, Option<Comparison>), Refusal> {
        let sizes = [("IN_FLIGHT", 1), ("PASSING", 1), ("BIOS", 1), ("PLACES", self.requests_max.saturating_mul(2))];
        let mut object = Object::load_sized("block_io", &self.formats, &sizes)?;
        for (what, tracepoint, _) in types::POINTS {
            object.attach(&format!("{what}_tracepoint"), Point::Plain("block", tracepoint))?;
        }
        self.lacks.push("splits and disks made of others are seen on better rungs alone".to_owned());
        let merges = if self.formats.merge == Format::ABSENT {
            Err(Refusal::new("tracefs does not tell its fields", ""))
        } else {
            object.attach("merge_tracepoint", Point::Plain("block", "block_rq_merge"))
        };
        if let Err(refusal) = merges {
            self.lacks.push(format!("without merges: {}", refusal.reason));
        }
        let refusal = Refusal::new("records of plain tracepoints do not tell bios apart", "");
        Ok((object, Stacked::refused(refusal), None))
    }
}

/// The kernel's own name of a disk, where its programs have seen it.
fn name_of(tables: &Tables, dev: u32) -> Option<String> {
    tables.names.get(&dev).map(|DiskName(name)| record::name(&name))
}
