//! Latency of block devices from issue to completion, errors and requeues, as the programs count them in the kernel. They
//! are read once a cycle; nothing is handed over for each request.

use std::os::fd::BorrowedFd;

use sysops_common::block_io::{BOUNDS, DiskName, Format, Latency, OPERATIONS, Offsets, Operation, Seen, Series};
use sysops_common::counters::Counters;
use sysops_common::offset::Offset;

use super::attach::Point;
use super::btf::{Argument, Btf};
use super::disks::{Disks, Found};
use super::facts::Facts;
use super::ladder::{Ground, Refusal, Step, WORDS};
use super::loader::{self, Object, Slot, Table};
use super::{Entry, Probe, Rung, layout, record, tracefs};
use crate::host::Host;
use crate::model::{Batch, Desc, Event, Metric, Unit};
use crate::spec::Key;

/// The probe in the list.
pub(super) static ENTRY: Entry = Entry {
    name: "block_io",
    metrics: METRICS,
    keys: &[RUNG.spec()],
    rung: &RUNG,
    new: |host, facts, _| Box::new(new(host, facts)),
};

static RUNG: Key<String> = Key::choice(
    "kernel.block_io.rung",
    WORDS,
    "auto",
    "How requests of block devices are seen. `auto` takes the best rung that stands; one that is named here and cannot stand is \
     an error.",
);

static LATENCY: Metric<2> = Metric::histogram(
    "block_io_latency_seconds",
    Unit::Seconds,
    "Time from the issue of a request to the driver to its completion, of the whole disk; operation is read, write, discard, \
     flush or other.",
    &BOUNDS_SECONDS,
    &["device", "operation"],
);
static ERRORS: Metric<2> = Metric::counter(
    "block_io_errors_total",
    Unit::Count,
    "Requests that completed with an error.",
    &["device", "operation"],
);
static REQUEUES: Metric<1> = Metric::counter(
    "block_io_requeues_total",
    Unit::Count,
    "Requests that the driver gave back to the queue, to be issued again.",
    &["device"],
);
static METRICS: &[&Desc] = &[LATENCY.desc(), ERRORS.desc(), REQUEUES.desc()];

static BOUNDS_SECONDS: [f64; BOUNDS] = bounds_seconds();

/// Powers of two of a microsecond.
#[expect(clippy::cast_precision_loss, reason = "2^26 is exact")]
const fn bounds_seconds() -> [f64; BOUNDS] {
    let mut bounds = [0.0; BOUNDS];
    let mut power = 0;
    while power < BOUNDS {
        bounds[power] = (1_u64 << power) as f64 / 1e6;
        power += 1;
    }
    bounds
}

/// What happens to a request, and whether its tracepoint handed over the queue in front of it up to 5.10.136.
/// A completion is waited for before an issue can be seen.
const POINTS: [(&str, &str, bool); 3] = [
    ("complete", "block_rq_complete", false),
    ("requeue", "block_rq_requeue", true),
    ("issue", "block_rq_issue", true),
];

struct BlockIo {
    ground: Ground,
    types: Offsets,
    formats: Offsets,
    standing: Option<Attached>,
    disks: Disks,
    series: Vec<Series>,
    unknown: Vec<u32>,
    suspicion: Suspicion,
    contradiction: Option<Refusal>,
}

struct Attached {
    rung: Rung,
    object: Object,
    latency: Table<Series, Latency>,
    names: Table<u32, DiskName>,
    seen: Slot<Seen>,
    /// What /proc/diskstats said before.
    completed_before: u64,
}

fn new(host: &Host, facts: &Facts) -> BlockIo {
    let types = facts.btf.as_ref().map_err(Clone::clone).and_then(offsets);
    let formats = formats(|event| facts.format(host, event));
    BlockIo {
        ground: Ground {
            object: loader::embedded("block_io").map(drop),
            privilege: facts.privilege.clone(),
            types: types.as_ref().map(drop).map_err(Clone::clone),
            format: formats.as_ref().map(drop).map_err(Clone::clone),
            log: None,
        },
        types: types.unwrap_or(Offsets::ABSENT),
        formats: formats.unwrap_or(Offsets::ABSENT),
        standing: None,
        disks: Disks::new(&host.files),
        series: Vec::new(),
        unknown: Vec::new(),
        suspicion: Suspicion::default(),
        contradiction: None,
    }
}

impl Probe for BlockIo {
    fn steps(&self) -> Vec<Step> {
        self.ground.steps()
    }

    fn attach(&mut self, rung: Rung, host: &Host, facts: &Facts) -> Result<(), Refusal> {
        let offsets = if rung == Rung::Tracepoint { &self.formats } else { &self.types };
        let mut object = Object::load("block_io", offsets)?;
        let (latency, names, seen) = (object.table("LATENCY")?, object.table("NAMES")?, object.slot("SEEN")?);
        // Without the file there is nothing to compare with; that is told when it is read for names.
        let _ = self.disks.refresh(&host.files);
        let completed_before = self.disks.completed();
        for (what, tracepoint, may_have_queue) in POINTS {
            let typed = || {
                let btf = facts.btf.as_ref().map_err(Clone::clone)?;
                let missing = || Refusal::new(format!("no tracepoint {tracepoint} in BTF"), "");
                let behind = if may_have_queue && request_place(btf, tracepoint)? == 1 { "_behind_queue" } else { "" };
                Ok((btf.tracepoint(tracepoint).ok_or_else(missing)?, behind))
            };
            let (behind, point) = match rung {
                Rung::TpBtf => typed().map(|(id, behind)| (behind, Point::Typed(tracepoint, id)))?,
                Rung::RawTracepoint => typed().map(|(_, behind)| (behind, Point::Raw(tracepoint)))?,
                Rung::Tracepoint => ("", Point::Plain("block", tracepoint)),
                Rung::Fentry | Rung::Kmsg | Rung::Off => return Err(Refusal::new("nothing to attach on this rung", "")),
            };
            object.attach(&format!("{what}{behind}_{}", rung.word()), point)?;
        }
        self.suspicion = Suspicion::default();
        self.standing = Some(Attached { rung, object, latency, names, seen, completed_before });
        Ok(())
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn drain(&mut self, _host: &Host, _out: &mut Vec<Event>) {}

    fn collect(&mut self, host: &Host, out: &mut Batch) {
        let Some(attached) = &mut self.standing else { return };
        let listed = match self.disks.refresh(&host.files) {
            Ok(gone) => {
                for &dev in gone {
                    forget(attached, &self.series, dev);
                }
                true
            }
            Err(error) => {
                tracing::debug!("block_io: {error}: {}", error.source);
                false
            }
        };
        attached.latency.keys(&mut self.series);
        self.unknown.clear();
        self.series.sort_unstable();
        let mut sums = Sums::default();
        for device in self.series.chunk_by(|one, next| one.dev == next.dev) {
            let dev = device[0].dev;
            let name = || attached.names.get(&dev).map(|DiskName(name)| record::name(&name));
            match self.disks.find(dev, name) {
                Found::Named(name) => sums.known += emit(out, &attached.latency, device, name),
                Found::Unknown => {
                    sums.unknown += count(&attached.latency, device);
                    self.unknown.push(dev);
                }
            }
        }
        // The plain tracepoint's record says the number itself; there is nothing of ours that could be wrong.
        if listed && attached.rung != Rung::Tracepoint {
            sums.kernel = self.disks.completed().saturating_sub(attached.completed_before);
            sums.seen = attached.seen.get().unwrap_or_default();
            sums.faults = attached.object.counters().unwrap_or_default().read_fault;
            self.contradiction = self.suspicion.look(&sums);
        }
        // A disk that is known by no name was taken away, or never was.
        if listed {
            for &dev in &self.unknown {
                forget(attached, &self.series, dev);
            }
        }
    }

    fn contradiction(&mut self) -> Option<Refusal> {
        let refusal = self.contradiction.take()?;
        self.standing = None;
        Some(refusal)
    }

    fn counters(&self) -> Option<Counters> {
        self.standing.as_ref().and_then(|attached| attached.object.counters())
    }
}

fn forget(attached: &mut Attached, series: &[Series], dev: u32) {
    for series in series.iter().filter(|series| series.dev == dev) {
        attached.latency.remove(series);
    }
    attached.names.remove(&dev);
}

/// Adds the readings of one disk and gives its completions.
#[expect(clippy::cast_precision_loss, reason = "counts and nanoseconds below 2^53 are exact")]
fn emit(out: &mut Batch, table: &Table<Series, Latency>, series: &[Series], device: &str) -> u64 {
    let (mut completed, mut requeues) = (0, 0);
    for series in series {
        let Some(latency) = table.get(series) else { continue };
        let Some(operation) = Operation::ALL.get(series.operation as usize) else { continue };
        out.histogram(&LATENCY, [device, operation.word()], &latency.buckets, latency.sum_ns as f64 / 1e9);
        out.counter(&ERRORS, [device, operation.word()], latency.errors as f64);
        completed += latency.buckets.iter().sum::<u64>();
        requeues += latency.requeues;
    }
    out.counter(&REQUEUES, [device], requeues as f64);
    completed
}

fn count(table: &Table<Series, Latency>, series: &[Series]) -> u64 {
    series.iter().filter_map(|series| table.get(series)).map(|latency| latency.buckets.iter().sum::<u64>()).sum()
}

/// Completions of one look, by what is known of them.
#[derive(Clone, Copy, Debug, Default)]
struct Sums {
    /// Since the probe was attached, on disks that the machine knows.
    known: u64,
    /// Since the last look, on disks that it does not know.
    unknown: u64,
    /// Since the probe was attached, by the kernel's own count.
    kernel: u64,
    seen: Seen,
    faults: u64,
}

/// Holds what the programs found against what the machine says. A single disk may have been taken away between two
/// looks; that all of a hundred completions are of no disk, look after look, says that an offset is wrong.
#[derive(Debug, Default)]
struct Suspicion {
    known: u64,
    unknown: u64,
    looks: u32,
}

impl Suspicion {
    /// Completions that are enough to judge by.
    const ENOUGH: u64 = 64;

    fn look(&mut self, sums: &Sums) -> Option<Refusal> {
        let Seen { without_disk, partial, beyond } = sums.seen;
        if beyond >= Self::ENOUGH && beyond > sums.known / 2 {
            return Some(contradiction(&format!("{beyond} requests completed more than they had to do")));
        }
        if sums.known != self.known {
            *self = Self { known: sums.known, unknown: 0, looks: 0 };
            return None;
        }
        if sums.unknown > 0 {
            self.unknown += sums.unknown;
            self.looks += 1;
        }
        if self.unknown >= Self::ENOUGH && self.looks >= 2 {
            let count = self.unknown;
            return Some(contradiction(&format!(
                "{count} completions in a row are of disks that are not in /proc/diskstats"
            )));
        }
        // What follows says something only while nothing at all was measured though the kernel counted much.
        if self.known > 0 || self.unknown > 0 || sums.kernel < Self::ENOUGH {
            return None;
        }
        [
            (sums.faults, "requests could not be read"),
            (without_disk, "requests are of no disk"),
            (partial, "completions are of a part of a request"),
        ]
        .into_iter()
        .find(|(count, _)| *count >= Self::ENOUGH)
        .map(|(count, what)| contradiction(&format!("all of {count} {what}")))
    }
}

fn contradiction(what: &str) -> Refusal {
    layout::contradiction(format!("self-check: {what}"))
}

/// What the programs must know of the running kernel's types.
fn offsets(btf: &Btf) -> Result<Offsets, Refusal> {
    for (_, tracepoint, may_have_queue) in POINTS {
        let place = request_place(btf, tracepoint)?;
        if place > usize::from(may_have_queue) {
            return Err(layout::contradiction(format!(
                "BTF: tracepoint {tracepoint}: the request is argument {place}"
            )));
        }
    }
    let name_len = u32::try_from(sysops_common::block_io::NAME_LEN).unwrap_or(0);
    let mut offsets = Offsets {
        major: layout::offset(btf, "gendisk", "major", 4)?,
        first_minor: layout::offset(btf, "gendisk", "first_minor", 4)?,
        disk_name: layout::offset(btf, "gendisk", "disk_name", name_len)?,
        cmd_flags: layout::offset(btf, "request", "cmd_flags", 4)?,
        data_len: layout::offset(btf, "request", "__data_len", 4)?,
        operations: operations(btf)?,
        ..Offsets::ABSENT
    };
    // Moved from the request to its queue in 5.17.
    offsets.disk = layout::offset_if_any(btf, "request", "rq_disk", 8)?;
    if offsets.disk == Offset::ABSENT {
        offsets.request_q = layout::offset(btf, "request", "q", 8)?;
        offsets.disk = layout::offset(btf, "request_queue", "disk", 8)?;
    }
    Ok(offsets)
}

/// Which argument of the tracepoint is the request. By the prototype, never by the version: stable kernels have changed it.
fn request_place(btf: &Btf, tracepoint: &str) -> Result<usize, Refusal> {
    let arguments = btf.arguments(tracepoint).map_err(|error| layout::contradiction(error.to_string()))?;
    let request = |argument: &Argument| matches!(argument, Argument::Pointer(name) if name == "request");
    arguments
        .iter()
        .position(request)
        .ok_or_else(|| layout::contradiction(format!("BTF: tracepoint {tracepoint} hands over no request")))
}

/// What each of the kernel's operations counts as; its numbers have changed, its names have not.
fn operations(btf: &Btf) -> Result<[u8; OPERATIONS], Refusal> {
    let mut operations = Offsets::ABSENT.operations;
    let mut set = |name: &str, operation: Operation| {
        let place = btf.enumerator(name).and_then(|number| operations.get_mut(usize::try_from(number).ok()?));
        place.map(|place| *place = operation as u8)
    };
    for (name, operation) in [
        ("REQ_OP_READ", Operation::Read),
        ("REQ_OP_WRITE", Operation::Write),
        ("REQ_OP_FLUSH", Operation::Flush),
        ("REQ_OP_DISCARD", Operation::Discard),
    ] {
        set(name, operation).ok_or_else(|| layout::contradiction(format!("no {name} in BTF")))?;
    }
    // Not in every kernel.
    let _ = (set("REQ_OP_SECURE_ERASE", Operation::Discard), set("REQ_OP_ZONE_APPEND", Operation::Write));
    Ok(operations)
}

/// Where the fields of the plain tracepoints' records are.
fn formats(read: impl Fn(&str) -> Result<tracefs::Format, Refusal>) -> Result<Offsets, Refusal> {
    let fields = |event: &str, error: bool| {
        let format = read(event)?;
        let at = |name: &str, sizes: std::ops::RangeInclusive<u32>| {
            let found = sizes.clone().find_map(|size| format.offset(name, size)).and_then(Offset::at);
            found.ok_or_else(|| {
                let (least, most) = (sizes.start(), sizes.end());
                let size = if least == most { least.to_string() } else { format!("{least} to {most}") };
                Refusal::new(format!("tracefs: {event}: expected a field {name} of {size} bytes"), "")
            })
        };
        Ok(Format {
            dev: at("dev", 4..=4)?,
            sector: at("sector", 8..=8)?,
            nr_sector: at("nr_sector", 4..=4)?,
            rwbs: at("rwbs", 2..=32)?,
            error: if error { at("error", 4..=4)? } else { Offset::ABSENT },
        })
    };
    Ok(Offsets {
        issue: fields("block/block_rq_issue", false)?,
        complete: fields("block/block_rq_complete", true)?,
        requeue: fields("block/block_rq_requeue", false)?,
        ..Offsets::ABSENT
    })
}

#[cfg(test)]
mod tests {
    use super::super::btf_builder::Builder;
    use super::*;

    /// What differs between kernels in what the probe reads.
    #[derive(Clone, Copy)]
    struct Kernel {
        queue_first: bool,
        disk_in_request: bool,
        data_len: u32,
        zone_append: Option<u32>,
    }

    /// As in 6.18.
    const NEW: Kernel = Kernel { queue_first: false, disk_in_request: false, data_len: 44, zone_append: Some(7) };
    /// As before 5.10.137.
    const OLD: Kernel = Kernel { queue_first: true, disk_in_request: true, data_len: 40, zone_append: Some(13) };

    fn btf(kernel: Kernel) -> Btf {
        let mut types = Builder::new();
        let (byte, number) = (types.int(1), types.int(4));
        let name = types.array(byte, 32);
        let disk =
            types.structure("gendisk", &[("major", number, 0), ("first_minor", number, 4), ("disk_name", name, 12)]);
        let disk = types.pointer(disk);
        let in_queue = ("disk", disk, 104);
        let queue = types
            .structure("request_queue", if kernel.disk_in_request { &[] } else { std::slice::from_ref(&in_queue) });
        let queue = types.pointer(queue);
        let mut members = vec![("q", queue, 0), ("cmd_flags", number, 24), ("__data_len", number, kernel.data_len)];
        if kernel.disk_in_request {
            members.push(("rq_disk", disk, 160));
        }
        let request = types.structure("request", &members);
        let request = types.pointer(request);
        for tracepoint in ["block_rq_issue", "block_rq_requeue"] {
            let arguments = [queue, request];
            types.tracepoint(tracepoint, &arguments[usize::from(!kernel.queue_first)..]);
        }
        types.tracepoint("block_rq_complete", &[request, number, number]);
        let mut operations = vec![("REQ_OP_READ", 0), ("REQ_OP_WRITE", 1), ("REQ_OP_FLUSH", 2), ("REQ_OP_DISCARD", 3)];
        operations.extend(kernel.zone_append.map(|number| ("REQ_OP_ZONE_APPEND", number)));
        types.enumeration(&operations);
        types.build()
    }

    fn bytes(offset: Offset) -> Option<u64> {
        offset.bytes()
    }

    #[test]
    fn the_disk_is_found_in_the_queue_or_in_the_request() {
        let found = offsets(&btf(NEW)).expect("as in 6.18");
        assert_eq!([found.request_q, found.disk, found.data_len].map(bytes), [Some(0), Some(104), Some(44)]);
        let found = offsets(&btf(OLD)).expect("as in 5.10");
        assert_eq!([found.request_q, found.disk, found.data_len].map(bytes), [None, Some(160), Some(40)]);
        assert_eq!([found.major, found.first_minor, found.disk_name].map(bytes), [Some(0), Some(4), Some(12)]);
    }

    #[test]
    fn the_prototype_tells_where_the_request_is() {
        assert_eq!(request_place(&btf(NEW), "block_rq_issue"), Ok(0));
        assert_eq!(request_place(&btf(OLD), "block_rq_issue"), Ok(1));
        assert_eq!(request_place(&btf(OLD), "block_rq_complete"), Ok(0));
        let refused = request_place(&btf(OLD), "block_rq_error").expect_err("none");
        assert!(refused.reason.contains("block_rq_error"), "{refused:?}");
    }

    #[test]
    fn operations_are_told_by_name_whatever_their_number() {
        let new = operations(&btf(NEW)).expect("all there");
        let old = operations(&btf(OLD)).expect("all there");
        let (write, other) = (Operation::Write as u8, Operation::Other as u8);
        assert_eq!((new[7], new[13], old[7], old[13]), (write, other, other, write));
        assert_eq!(
            new[..4],
            [Operation::Read, Operation::Write, Operation::Flush, Operation::Discard].map(|o| o as u8)
        );
        assert_eq!((new[5], new[63]), (other, other), "not in this kernel");
    }

    #[test]
    fn a_number_of_another_size_is_refused() {
        let refused = offsets(&btf(Kernel { data_len: 70_000, ..NEW })).expect_err("too far");
        assert!(refused.reason.contains("request.__data_len"), "{refused:?}");
    }

    fn format(kernel: &str, event: &str) -> Result<tracefs::Format, Refusal> {
        let path = format!("{}/../tests/fixtures/tracefs/{kernel}/{event}/format", env!("CARGO_MANIFEST_DIR"));
        let read = Host::fixture(std::path::Path::new("/")).files.read(path.as_ref());
        read.map(|text| tracefs::parse(&text)).map_err(|error| Refusal::new(error.to_string(), ""))
    }

    #[test]
    fn records_are_read_where_their_kernel_writes_them() {
        for (kernel, rwbs) in [("5.10", 32), ("6.1", 32), ("6.12", 34), ("6.18", 34), ("7.2", 34)] {
            let found =
                formats(|event| format(kernel, event)).unwrap_or_else(|refused| panic!("{kernel}: {refused:?}"));
            let Format { dev, sector, nr_sector, error, .. } = found.complete;
            assert_eq!([dev, sector, nr_sector, error].map(bytes), [Some(8), Some(16), Some(24), Some(28)], "{kernel}");
            assert_eq!((bytes(found.issue.rwbs), bytes(found.complete.rwbs)), (Some(rwbs), Some(rwbs)), "{kernel}");
            assert_ne!(found.requeue, Format::ABSENT);
        }
        let no_sector = |_: &str| Ok(tracefs::parse(b"field:dev_t dev;\toffset:8;\tsize:4;\tsigned:0;"));
        let refused = formats(no_sector).expect_err("no sector");
        assert_eq!(refused.reason, "tracefs: block/block_rq_issue: expected a field sector of 8 bytes");
    }

    #[test]
    fn bounds_are_powers_of_two_of_a_microsecond() {
        assert_eq!(BOUNDS_SECONDS[..4], [1e-6, 2e-6, 4e-6, 8e-6]);
        assert!((BOUNDS_SECONDS[BOUNDS - 1] - 67.108_864).abs() < 1e-9);
    }

    const QUIET: Sums =
        Sums { known: 0, unknown: 0, kernel: 1000, seen: Seen { without_disk: 0, partial: 0, beyond: 0 }, faults: 0 };

    #[test]
    fn completions_of_no_disk_are_a_contradiction_only_when_there_are_no_others() {
        let mut suspicion = Suspicion::default();
        assert_eq!(suspicion.look(&Sums { unknown: 500, ..QUIET }), None, "one disk may have been taken away");
        let refusal = suspicion.look(&Sums { unknown: 1, ..QUIET }).expect("again");
        assert!(refusal.reason.contains("501 completions in a row"), "{refusal:?}");

        let mut suspicion = Suspicion::default();
        for known in 1..100 {
            assert_eq!(suspicion.look(&Sums { known, unknown: 60, ..QUIET }), None);
        }
        assert_eq!(suspicion.look(&Sums { known: 99, unknown: 60, ..QUIET }), None);
        assert!(suspicion.look(&Sums { known: 99, unknown: 60, ..QUIET }).is_some());
    }

    #[test]
    fn nothing_measured_while_the_kernel_counts_is_a_contradiction_with_its_cause() {
        let seen = |without_disk, partial, beyond| Seen { without_disk, partial, beyond };
        let reason = |sums: Sums| Suspicion::default().look(&sums).map(|refusal| refusal.reason);
        assert_eq!(reason(QUIET), None, "the kernel counts disks without requests, too");
        assert!(reason(Sums { faults: 64, ..QUIET }).is_some_and(|text| text.contains("could not be read")));
        assert!(reason(Sums { seen: seen(64, 0, 0), ..QUIET }).is_some_and(|text| text.contains("of no disk")));
        assert!(reason(Sums { seen: seen(0, 64, 0), ..QUIET }).is_some_and(|text| text.contains("of a part")));
        assert_eq!(reason(Sums { seen: seen(64, 64, 0), known: 1, ..QUIET }), None);
        assert_eq!(reason(Sums { seen: seen(64, 0, 0), kernel: 10, ..QUIET }), None);
        assert!(
            reason(Sums { seen: seen(0, 0, 64), known: 64, ..QUIET }).is_some_and(|text| text.contains("more than"))
        );
        assert_eq!(reason(Sums { seen: seen(0, 0, 64), known: 1000, ..QUIET }), None);
    }
}
