//! What the programs counted of each disk and operation, as readings. Which disk a number is, is left to `disks`.

use sysops_common::block_io::{BOUNDS, Buckets, DiskName, Failure, Operation, Seen, Series, Totals};

use super::super::ladder::Refusal;
use super::super::loader::{Object, Table};
use super::quantile::{QUANTILES, quantile};
use super::status;
use crate::model::{Batch, Desc, Metric, Unit};

static LATENCY: Metric<2> = Metric::histogram(
    "block_io_latency_seconds",
    Unit::Seconds,
    "Time from the issue of a request to the driver to its completion, of the whole disk; operation is read, write, discard, \
     flush or other.",
    &BOUNDS_SECONDS,
    &["device", "operation"],
);
static QUEUE: Metric<2> = Metric::histogram(
    "block_io_queue_seconds",
    Unit::Seconds,
    "Time that a request waited in the queue of its disk before its last issue to the driver; zero when it was issued at once.",
    &BOUNDS_SECONDS,
    &["device", "operation"],
);
static QUANTILE: Metric<4> = Metric::gauge(
    "block_io_quantile_seconds",
    Unit::Seconds,
    "Time that the `share` (0.5, 0.9, 0.99) of the requests since the last cycle did not exceed, interpolated within a \
     bucket of the histogram; stage is queue, device, or total (both together). Absent when there were none.",
    &["device", "operation", "stage", "share"],
);
static ERRORS: Metric<2> = Metric::counter(
    "block_io_errors_total",
    Unit::Count,
    "Requests that completed with an error.",
    &["device", "operation"],
);
static FAILURES: Metric<2> = Metric::counter(
    "block_io_failures_total",
    Unit::Count,
    "Requests that completed with an error, by what the kernel calls it: io, timeout, medium, target, transport, nospc, and so on.",
    &["device", "status"],
);
static REQUEUES: Metric<1> = Metric::counter(
    "block_io_requeues_total",
    Unit::Count,
    "Requests that the driver gave back to the queue, to be issued again.",
    &["device"],
);
static PARTIAL: Metric<1> = Metric::counter(
    "block_io_partial_completions_total",
    Unit::Count,
    "Completions of a part of a request, after which the rest went on.",
    &["device"],
);
static MERGES: Metric<1> = Metric::counter(
    "block_io_merges_total",
    Unit::Count,
    "Requests that became a part of another request while they waited.",
    &["device"],
);
static SPLITS: Metric<1> = Metric::counter(
    "block_io_splits_total",
    Unit::Count,
    "Bios that were too large for the disk, or crossed a boundary of it, and were split.",
    &["device"],
);
static SLOW: Metric<2> = Metric::counter(
    "block_io_slow_total",
    Unit::Count,
    "Requests that took kernel.block_io.slow_ms or longer.",
    &["device", "operation"],
);
pub(super) static SLOW_UNTOLD: Metric<0> = Metric::counter(
    "block_io_slow_untold_total",
    Unit::Count,
    "Slow requests that were told by no event, as there were more than ten in a second.",
    &[],
);
static DETAILS_LOST: Metric<1> = Metric::counter(
    "block_io_details_lost_total",
    Unit::Count,
    "Details of measured requests for which there was no room: slow_event, a slow request that no one took in time to tell it; \
     failure, an error by its status; cgroup, what a request counts for its cgroup.",
    &["detail"],
);
pub(super) static MEASURED: Metric<1> = Metric::gauge(
    "block_io_stacked_measured",
    Unit::Bool,
    "Of each disk that makes no requests (dm, md, NVMe multipath, zram): 1 when its bios are measured, 0 when they cannot be.",
    &["device"],
);
pub(super) static CGROUP_REQUESTS: Metric<2> = Metric::counter(
    "block_io_cgroup_requests_total",
    Unit::Count,
    "Requests by the cgroup of who asked for them, for kernel.block_io.cgroups of them, and `other`; operation is read, or write \
     for all the rest.",
    &["cgroup", "operation"],
);
pub(super) static CGROUP_BYTES: Metric<2> =
    Metric::counter("block_io_cgroup_bytes_total", Unit::Bytes, "Bytes of these requests.", &["cgroup", "operation"]);
pub(super) static METRICS: &[&Desc] = &[
    CGROUP_REQUESTS.desc(),
    CGROUP_BYTES.desc(),
    LATENCY.desc(),
    QUEUE.desc(),
    QUANTILE.desc(),
    ERRORS.desc(),
    FAILURES.desc(),
    REQUEUES.desc(),
    PARTIAL.desc(),
    MERGES.desc(),
    SPLITS.desc(),
    SLOW.desc(),
    SLOW_UNTOLD.desc(),
    DETAILS_LOST.desc(),
    MEASURED.desc(),
];

pub(super) static BOUNDS_SECONDS: [f64; BOUNDS] = bounds_seconds();

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

/// The maps in which the programs count.
pub(super) struct Tables {
    totals: Table<Series, Totals>,
    failures: Table<Failure, u64>,
    /// The kernel's own names of disks.
    pub names: Table<u32, DiskName>,
}

impl Tables {
    /// Those of the object.
    ///
    /// # Errors
    /// When it lacks one.
    pub(super) fn of(object: &mut Object) -> Result<Self, Refusal> {
        Ok(Self { totals: object.table("TOTALS")?, failures: object.table("FAILURES")?, names: object.table("NAMES")? })
    }
}

/// What was counted at the last look, of every disk and operation.
#[derive(Default)]
pub(super) struct All {
    series: Vec<Series>,
    failures: Vec<Failure>,
    before: Vec<(Series, Totals)>,
}

impl All {
    /// Which series there are, sorted. The list is to be put back: it takes memory only once.
    #[must_use]
    pub(super) fn read(&mut self, tables: &Tables) -> Vec<Series> {
        tables.totals.keys(&mut self.series);
        self.series.sort_unstable();
        tables.failures.keys(&mut self.failures);
        self.failures.sort_unstable();
        std::mem::take(&mut self.series)
    }

    /// Takes the list back.
    pub(super) fn put_back(&mut self, series: Vec<Series>) {
        self.series = series;
    }

    /// Takes a disk out of the maps.
    pub(super) fn forget(&mut self, tables: &mut Tables, dev: u32) {
        for series in self.series.iter().filter(|series| series.dev == dev) {
            tables.totals.remove(series);
        }
        for failure in self.failures.iter().filter(|failure| failure.dev == dev) {
            tables.failures.remove(failure);
        }
        self.before.retain(|(series, _)| series.dev != dev);
        tables.names.remove(&dev);
    }

    /// Adds the readings of one disk and gives its completions.
    #[expect(clippy::cast_precision_loss, reason = "counts and nanoseconds below 2^53 are exact")]
    pub(super) fn emit(&mut self, out: &mut Batch, tables: &Tables, series: &[Series], device: &str) -> u64 {
        let mut completed = 0;
        let (mut requeues, mut partial, mut merges, mut splits) = (0, 0, 0, 0);
        for series in series {
            let Some(totals) = tables.totals.get(series) else { continue };
            let Some(operation) = Operation::ALL.get(series.operation as usize) else { continue };
            let labels = [device, operation.word()];
            let stages = Stages::of(&totals);
            completed += stages.count;
            // There may be merges or requeues before anything is complete.
            if stages.count > 0 {
                out.histogram(&LATENCY, labels, &stages.device, totals.device_ns as f64 / 1e9);
                out.histogram(&QUEUE, labels, &stages.queue, totals.queue_ns as f64 / 1e9);
                out.counter(&ERRORS, labels, totals.errors as f64);
                out.counter(&SLOW, labels, totals.slow as f64);
                self.emit_quantiles(out, labels, *series, &totals);
            }
            requeues += totals.requeues;
            partial += totals.partial;
            merges += totals.merges;
            splits += totals.splits;
        }
        for (metric, count) in [(&REQUEUES, requeues), (&PARTIAL, partial), (&MERGES, merges), (&SPLITS, splits)] {
            out.counter(metric, [device], count as f64);
        }
        let dev = series.first().map(|series| series.dev);
        for failure in self.failures.iter().filter(|failure| Some(failure.dev) == dev) {
            if let Some(count) = tables.failures.get(failure) {
                out.counter(&FAILURES, [device, &status::word(failure.status)], count as f64);
            }
        }
        completed
    }

    fn emit_quantiles(&mut self, out: &mut Batch, [device, operation]: [&str; 2], series: Series, now: &Totals) {
        let place = match self.before.binary_search_by_key(&series, |(series, _)| *series) {
            Ok(place) => place,
            Err(place) => {
                self.before.insert(place, (series, Totals::ZERO));
                place
            }
        };
        let before = std::mem::replace(&mut self.before[place].1, *now);
        let (now, before) = (Stages::of(now), Stages::of(&before));
        let at_once = now.at_once.saturating_sub(before.at_once);
        for (stage, now, before, zeros) in [
            ("queue", &now.queue, &before.queue, at_once),
            ("device", &now.device, &before.device, 0),
            ("total", &now.total, &before.total, 0),
        ] {
            let since: Buckets = std::array::from_fn(|place| now[place].saturating_sub(before[place]));
            for (word, share) in QUANTILES {
                if let Some(seconds) = quantile(&since, zeros, share) {
                    out.gauge(&QUANTILE, [device, operation, stage, word], seconds);
                }
            }
        }
    }
}

/// Adds what could not be kept of requests that are measured.
#[expect(clippy::cast_precision_loss, reason = "counts below 2^53 are exact")]
pub(super) fn emit_details_lost(out: &mut Batch, seen: &Seen) {
    for (detail, count) in
        [("slow_event", seen.slow_lost), ("failure", seen.failures_lost), ("cgroup", seen.charges_lost)]
    {
        out.counter(&DETAILS_LOST, [detail], count as f64);
    }
}

/// Completions of `series`.
#[must_use]
pub(super) fn count(tables: &Tables, series: &[Series]) -> u64 {
    series.iter().filter_map(|series| tables.totals.get(series)).map(|totals| Stages::of(&totals).count).sum()
}

/// Completions by the time of each stage.
struct Stages {
    queue: Buckets,
    device: Buckets,
    total: Buckets,
    /// Those that never waited; they are in the first bucket of `queue`.
    at_once: u64,
    count: u64,
}

impl Stages {
    fn of(totals: &Totals) -> Self {
        let sum =
            |one: &Buckets, other: &Buckets| -> Buckets { std::array::from_fn(|place| one[place] + other[place]) };
        let at_once = totals.direct.iter().sum();
        let mut queue = totals.queue;
        queue[0] += at_once;
        let device = sum(&totals.direct, &totals.device);
        let count = device.iter().sum();
        Self { queue, device, total: sum(&totals.direct, &totals.whole), at_once, count }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_powers_of_two_of_a_microsecond() {
        assert_eq!(BOUNDS_SECONDS[..4], [1e-6, 2e-6, 4e-6, 8e-6]);
        assert!((BOUNDS_SECONDS[BOUNDS - 1] - 67.108_864).abs() < 1e-9);
    }

    #[test]
    fn what_never_waited_is_in_the_first_bucket_of_the_queue_and_has_its_time_in_the_device() {
        let mut totals = Totals::ZERO;
        totals.direct[3] = 5;
        (totals.queue[2], totals.device[4], totals.whole[5]) = (7, 7, 7);
        let stages = Stages::of(&totals);
        assert_eq!((stages.count, stages.at_once), (12, 5));
        assert_eq!((stages.queue[0], stages.queue[2]), (5, 7));
        assert_eq!((stages.device[3], stages.device[4]), (5, 7));
        assert_eq!((stages.total[3], stages.total[4], stages.total[5]), (5, 0, 7));
    }
}
