//! Disk I/O from /proc/diskstats. How long single requests take is left to the kernel probe, space to filesystem.

use std::time::Duration;

use super::bytes::{complete, fields, lines, need_u64, text, u64};
use super::{CollectError, Collector, Entry, Outcome, interval};
use crate::host::{Host, Source};
use crate::model::{Batch, Desc, Kind, Metric, Unit};
use crate::spec::Key;

static UTILIZATION: Metric<1> = Metric::gauge(
    "disk_io_utilization_percent",
    Unit::Percent,
    "Time in which the device had I/O under way. A device that works on several requests at once can do more at 100.",
    &["device"],
);
static READ_BYTES: Metric<1> =
    Metric::gauge("disk_read_bytes_per_second", Unit::BytesPerSecond, "Bytes read from the device.", &["device"]);
static WRITE_BYTES: Metric<1> =
    Metric::gauge("disk_write_bytes_per_second", Unit::BytesPerSecond, "Bytes written to the device.", &["device"]);
static READS: Metric<1> = Metric::gauge("disk_reads_per_second", Unit::PerSecond, "Reads completed.", &["device"]);
static WRITES: Metric<1> = Metric::gauge("disk_writes_per_second", Unit::PerSecond, "Writes completed.", &["device"]);
static READ_LATENCY: Metric<1> = Metric::gauge(
    "disk_read_latency_seconds",
    Unit::Seconds,
    "Mean time from queueing to completion of a read.",
    &["device"],
);
static WRITE_LATENCY: Metric<1> = Metric::gauge(
    "disk_write_latency_seconds",
    Unit::Seconds,
    "Mean time from queueing to completion of a write.",
    &["device"],
);
static DROPPED: Metric<0> = Metric::gauge(
    "disk_devices_dropped",
    Unit::Count,
    "Block devices that were not read, as there are more than collector.max_disks.",
    &[],
);

static MAX_DISKS: Key<i64> = Key::int(
    "collector.max_disks",
    512,
    1,
    100_000,
    "Most block devices whose I/O is read. Those that come after are counted in disk_devices_dropped.",
);

const FILE: &str = "/proc/diskstats";

/// In the list of collectors.
pub(super) static ENTRY: Entry = Entry {
    name: "diskstats",
    metrics: &METRICS,
    keys: &[MAX_DISKS.spec()],
    interval: &interval::DISK,
    deadline: Duration::from_secs(5),
    new: |host, values| {
        let max_devices = usize::try_from(values.get(&MAX_DISKS)).unwrap_or(usize::MAX);
        Box::new(Diskstats { diskstats: Source::new(host.files.proc("diskstats")), max_devices })
    },
};

struct Diskstats {
    diskstats: Source,
    max_devices: usize,
}

impl Collector for Diskstats {
    fn collect(&mut self, host: &Host, out: &mut Batch) -> Result<Outcome, CollectError> {
        let file = match self.diskstats.read() {
            Ok(file) => file,
            Err(error) if error.is_absent() => {
                return Ok(absent("no /proc/diskstats: the kernel has no block devices"));
            }
            Err(error) => return Err(error.into()),
        };
        if file.is_empty() {
            return Ok(absent("/proc/diskstats is empty: there are no block devices"));
        }
        // Utilization is busy time by time: the clock is read as near to the file as can be.
        let now_seconds = host.clock.now().monotonic.as_secs_f64();
        let (mut devices, mut dropped) = (0, 0);
        let mut failed = None;
        for line in lines(complete(file, FILE)?) {
            match parse(line) {
                Ok(Some(_)) if devices == self.max_devices => dropped += 1,
                Ok(Some(row)) => {
                    devices += 1;
                    row.emit(now_seconds, out);
                }
                Ok(None) => {}
                // One device that is not understood does not cost the others.
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        out.gauge(&DROPPED, [], f64::from(dropped));
        failed.map_or(Ok(Outcome::Data), Err)
    }
}

fn absent(reason: &'static str) -> Outcome {
    Outcome::Absent { reason: reason.into(), remedy: "".into() }
}

/// What a column becomes. The columns are those of the kernel's Documentation/admin-guide/iostats.rst.
struct Column {
    metric: Metric<1>,
    /// From the kernel's unit to the metric's.
    scale: fn(u64) -> f64,
}

const COLUMNS: usize = 17;
/// Columns that have always been there; 4.18 added discards, 5.5 flushes.
const OLD_COLUMNS: usize = 11;
const READS_DONE: usize = 0;
const READ_SECTORS: usize = 2;
const READ_MS: usize = 3;
const WRITES_DONE: usize = 4;
const WRITE_SECTORS: usize = 6;
const WRITE_MS: usize = 7;
const IO_MS: usize = 9;

static COLUMN: [Column; COLUMNS] = [
    things("node_disk_reads_completed_total", "The total number of reads completed successfully."),
    things("node_disk_reads_merged_total", "The total number of reads merged."),
    bytes("node_disk_read_bytes_total", "The total number of bytes read successfully."),
    time("node_disk_read_time_seconds_total", "The total number of seconds spent by all reads."),
    things("node_disk_writes_completed_total", "The total number of writes completed successfully."),
    things("node_disk_writes_merged_total", "The number of writes merged."),
    bytes("node_disk_written_bytes_total", "The total number of bytes written successfully."),
    time("node_disk_write_time_seconds_total", "This is the total number of seconds spent by all writes."),
    Column {
        metric: Metric::gauge(
            "node_disk_io_now",
            Unit::Count,
            "The number of I/Os currently in progress.",
            &["device"],
        ),
        scale: number,
    },
    time("node_disk_io_time_seconds_total", "Total seconds spent doing I/Os."),
    time("node_disk_io_time_weighted_seconds_total", "The weighted # of seconds spent doing I/Os."),
    things("node_disk_discards_completed_total", "The total number of discards completed successfully."),
    things("node_disk_discards_merged_total", "The total number of discards merged."),
    things("node_disk_discarded_sectors_total", "The total number of sectors discarded successfully."),
    time("node_disk_discard_time_seconds_total", "This is the total number of seconds spent by all discards."),
    things("node_disk_flush_requests_total", "The total number of flush requests completed successfully."),
    time(
        "node_disk_flush_requests_time_seconds_total",
        "This is the total number of seconds spent by all flush requests.",
    ),
];

const fn things(name: &'static str, help: &'static str) -> Column {
    Column { metric: Metric::counter(name, Unit::Count, help, &["device"]), scale: number }
}

const fn bytes(name: &'static str, help: &'static str) -> Column {
    // A sector is 512 bytes here, whatever the device says.
    Column { metric: Metric::counter(name, Unit::Bytes, help, &["device"]), scale: |sectors| sectors as f64 * 512.0 }
}

const fn time(name: &'static str, help: &'static str) -> Column {
    Column { metric: Metric::counter(name, Unit::Seconds, help, &["device"]), scale: |ms| ms as f64 / 1000.0 }
}

fn number(count: u64) -> f64 {
    count as f64
}

static DERIVED: [&Metric<1>; 7] =
    [&UTILIZATION, &READ_BYTES, &WRITE_BYTES, &READS, &WRITES, &READ_LATENCY, &WRITE_LATENCY];

static METRICS: [&Desc; COLUMNS + DERIVED.len() + 1] = {
    let mut metrics = [DROPPED.desc(); COLUMNS + DERIVED.len() + 1];
    let mut at = 0;
    while at < COLUMNS {
        metrics[at] = COLUMN[at].metric.desc();
        at += 1;
    }
    while at < COLUMNS + DERIVED.len() {
        metrics[at] = DERIVED[at - COLUMNS].desc();
        at += 1;
    }
    metrics
};

struct Row<'a> {
    device: &'a [u8],
    /// As many as the kernel prints, in its units.
    values: [Option<u64>; COLUMNS],
}

impl Row<'_> {
    fn emit(&self, now_seconds: f64, out: &mut Batch) {
        let device = &*text(self.device);
        let at = |column: usize| self.values[column].map_or(f64::NAN, COLUMN[column].scale);
        for (column, value) in COLUMN.iter().zip(self.values) {
            let Some(value) = value else { continue };
            match column.metric.desc().kind {
                Kind::Gauge => out.gauge(&column.metric, [device], (column.scale)(value)),
                Kind::Counter | Kind::Histogram(_) => out.counter(&column.metric, [device], (column.scale)(value)),
            }
        }
        out.percent(&UTILIZATION, [device], at(IO_MS), now_seconds);
        out.per_second(&READ_BYTES, [device], at(READ_SECTORS));
        out.per_second(&WRITE_BYTES, [device], at(WRITE_SECTORS));
        out.per_second(&READS, [device], at(READS_DONE));
        out.per_second(&WRITES, [device], at(WRITES_DONE));
        out.ratio(&READ_LATENCY, [device], at(READ_MS), at(READS_DONE));
        out.ratio(&WRITE_LATENCY, [device], at(WRITE_MS), at(WRITES_DONE));
    }
}

/// Reads `254 0 vda 46009 7795 …`; `None` for a device that is left out.
fn parse(line: &[u8]) -> Result<Option<Row<'_>>, CollectError> {
    let mut columns = fields(line).skip(2);
    let Some(device) = columns.next() else {
        return Err(CollectError::parse(FILE, "line", "two numbers and a device", line));
    };
    if is_left_out(device) {
        return Ok(None);
    }
    let mut values = [None; COLUMNS];
    for (at, field) in columns.take(COLUMNS).enumerate() {
        values[at] = Some(need_u64(field, FILE, || item(device, at))?);
    }
    match values[..OLD_COLUMNS].iter().position(Option::is_none) {
        None => Ok(Some(Row { device, values })),
        Some(missing) => Err(CollectError::parse(FILE, item(device, missing), "a number", b"")),
    }
}

fn item(device: &[u8], column: usize) -> String {
    format!("{} column {}", text(device), column + 4)
}

/// True for what node_exporter leaves out: `^(z?ram|loop|fd|(h|s|v|xv)d[a-z]|nvme\d+n\d+p)\d+$`, which are RAM disks,
/// loop devices, floppies and partitions, whose I/O is in that of their disk.
fn is_left_out(device: &[u8]) -> bool {
    let digits = device.iter().rev().take_while(|byte| byte.is_ascii_digit()).count();
    let stem = &device[..device.len() - digits];
    if digits == 0 {
        return false;
    }
    match stem {
        b"ram" | b"zram" | b"loop" | b"fd" => true,
        [b'h' | b's' | b'v', b'd', b'a'..=b'z'] | [b'x', b'v', b'd', b'a'..=b'z'] => true,
        _ => stem.strip_prefix(b"nvme").and_then(|rest| rest.strip_suffix(b"p")).is_some_and(|middle| {
            super::bytes::split_once(middle, b'n')
                .is_some_and(|(controller, namespace)| u64(controller).is_some() && u64(namespace).is_some())
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Machine, declared, parts, read, recorded, value};
    use super::*;

    #[test]
    fn a_machine_of_today() {
        let (_, batch) = read(&recorded("debian12-6.18"), &ENTRY).expect("it can be read");
        declared(&batch, &ENTRY);
        assert_eq!(value(&batch, "node_disk_read_bytes_total", &["vda"]), Some(6_348_634.0 * 512.0));
        assert_eq!(value(&batch, "node_disk_io_time_seconds_total", &["vda"]), Some(19.872));
        assert_eq!(value(&batch, "node_disk_discarded_sectors_total", &["vda"]), Some(1_317_080.0));
        assert_eq!(parts(&batch, "disk_io_utilization_percent", &["vda"]), Some((19.872, 6000.0)));
        assert_eq!(parts(&batch, "disk_read_latency_seconds", &["vda"]), Some((41.809, 46009.0)));
        assert_eq!(batch.len(), ENTRY.metrics.len(), "one disk; loop and zram devices are left out");
    }

    #[test]
    fn old_kernels_have_fewer_columns() {
        let (_, batch) = read(&recorded("centos7-3.10"), &ENTRY).expect("it can be read");
        declared(&batch, &ENTRY);
        assert_eq!(value(&batch, "node_disk_reads_completed_total", &["sda"]), Some(12_345.0));
        assert_eq!(value(&batch, "node_disk_reads_completed_total", &["sda1"]), None);
        assert_eq!(value(&batch, "node_disk_discards_completed_total", &["sda"]), None);
        assert_eq!(value(&batch, "node_disk_io_now", &["dm-0"]), Some(1.0));
    }

    #[test]
    fn the_devices_of_node_exporters_default() {
        for left_out in ["ram0", "zram1", "loop7", "fd0", "sda1", "vdb12", "hdc3", "xvda1", "nvme0n1p2"] {
            assert!(is_left_out(left_out.as_bytes()), "{left_out}");
        }
        for kept in ["sda", "xvda", "nvme0n1", "dm-0", "md127", "sr0", "mmcblk0", "nbd1", "sdaa1", "nvme0n1p", "ram"] {
            assert!(!is_left_out(kept.as_bytes()), "{kept}");
        }
    }

    #[test]
    fn more_disks_than_wanted_are_counted() {
        let line = |disk| format!("8 {disk} dm-{disk} 1 0 8 1 1 0 8 1 0 2 2\n");
        let file: String = (0..600).map(line).collect();
        let batch = Machine::new("disks").file("proc/diskstats", file).data(&ENTRY);
        assert_eq!(value(&batch, "disk_devices_dropped", &[]), Some(88.0));
        assert_eq!(value(&batch, "node_disk_io_now", &["dm-511"]), Some(0.0));
        assert_eq!(value(&batch, "node_disk_io_now", &["dm-512"]), None);
    }

    #[test]
    fn one_bad_line_does_not_cost_the_others() {
        let machine = Machine::new("disks-bad");
        let machine = machine.file("proc/diskstats", b"8 0 sda 1 x\n8 1 sd\xffb 1 0 8 1 1 0 8 1 0 2 2\n");
        let mut batch = Batch::default();
        let error = machine.collector(&ENTRY).collect(&machine.host(), &mut batch).expect_err("x").to_string();
        assert_eq!(error, "/proc/diskstats: sda column 5: expected a number, found \"x\"");
        assert!(value(&batch, "node_disk_io_now", &["sd\u{fffd}b"]).is_some());
        for bad in [&b"8 0\n"[..], b"8 0 sda 1 2 3\n", b"\xff\n", b"8 0 sda 1 0 8 1 1 0 8 1 0 2 2"] {
            assert!(machine.collect(&ENTRY).is_err());
            machine.write("proc/diskstats", bad);
        }
        machine.write("proc/diskstats", b"");
        assert!(matches!(machine.collect(&ENTRY), Ok((Outcome::Absent { .. }, _))), "a machine without disks");
    }
}
