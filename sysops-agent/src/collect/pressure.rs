//! Pressure stall information from /proc/pressure: how much of the time tasks waited for CPU, memory, I/O or
//! interrupts. What that means for a service is left to the analyzers.

use std::time::Duration;

use super::bytes::{complete, fields, lines, need_decimal, need_u64, split_once};
use super::{CollectError, Collector, Entry, Outcome, interval};
use crate::host::{Host, Source};
use crate::model::{Batch, Metric, Unit};

static CPU_SOME: Metric<0> = share("pressure_cpu_some_percent", "Time in which some task waited for a CPU, last 10 s.");
static MEMORY_SOME: Metric<0> =
    share("pressure_memory_some_percent", "Time in which some task waited for memory, last 10 s.");
static MEMORY_FULL: Metric<0> =
    share("pressure_memory_full_percent", "Time in which all tasks that had work waited for memory, last 10 s.");
static IO_SOME: Metric<0> = share("pressure_io_some_percent", "Time in which some task waited for I/O, last 10 s.");
static IO_FULL: Metric<0> =
    share("pressure_io_full_percent", "Time in which all tasks that had work waited for I/O, last 10 s.");
static IRQ_FULL: Metric<0> =
    share("pressure_irq_full_percent", "Time in which interrupts kept a CPU from its task, last 10 s.");
static NODE_CPU_WAITING: Metric<0> =
    total("node_pressure_cpu_waiting_seconds_total", "Total time in seconds that processes have waited for CPU time.");
static NODE_MEMORY_WAITING: Metric<0> =
    total("node_pressure_memory_waiting_seconds_total", "Total time in seconds that processes have waited for memory.");
static NODE_MEMORY_STALLED: Metric<0> = total(
    "node_pressure_memory_stalled_seconds_total",
    "Total time in seconds no process could make progress due to memory congestion.",
);
static NODE_IO_WAITING: Metric<0> = total(
    "node_pressure_io_waiting_seconds_total",
    "Total time in seconds that processes have waited due to IO congestion.",
);
static NODE_IO_STALLED: Metric<0> = total(
    "node_pressure_io_stalled_seconds_total",
    "Total time in seconds no process could make progress due to IO congestion.",
);
static NODE_IRQ_STALLED: Metric<0> = total(
    "node_pressure_irq_stalled_seconds_total",
    "Total time in seconds no process could make progress due to IRQ congestion.",
);

/// In the list of collectors.
pub(super) static ENTRY: Entry = Entry {
    name: "pressure",
    metrics: &[
        CPU_SOME.desc(),
        MEMORY_SOME.desc(),
        MEMORY_FULL.desc(),
        IO_SOME.desc(),
        IO_FULL.desc(),
        IRQ_FULL.desc(),
        NODE_CPU_WAITING.desc(),
        NODE_MEMORY_WAITING.desc(),
        NODE_MEMORY_STALLED.desc(),
        NODE_IO_WAITING.desc(),
        NODE_IO_STALLED.desc(),
        NODE_IRQ_STALLED.desc(),
    ],
    keys: &[],
    interval: &interval::CPU,
    deadline: Duration::from_secs(2),
    new: |host, _| Box::new(Pressure::new(host)),
};

const fn share(name: &'static str, help: &'static str) -> Metric<0> {
    Metric::gauge(name, Unit::Percent, help, &[])
}

const fn total(name: &'static str, help: &'static str) -> Metric<0> {
    Metric::counter(name, Unit::Seconds, help, &[])
}

/// The gauge of the last 10 seconds and the total.
type Pair = (&'static Metric<0>, &'static Metric<0>);

/// A file of /proc/pressure and what its two lines become. `full` of cpu is not there: for the whole machine the
/// kernel prints it as 0 without meaning.
struct Resource {
    file: &'static str,
    some: Option<Pair>,
    full: Option<Pair>,
}

static RESOURCES: [Resource; 4] = [
    Resource { file: "/proc/pressure/cpu", some: Some((&CPU_SOME, &NODE_CPU_WAITING)), full: None },
    Resource {
        file: "/proc/pressure/memory",
        some: Some((&MEMORY_SOME, &NODE_MEMORY_WAITING)),
        full: Some((&MEMORY_FULL, &NODE_MEMORY_STALLED)),
    },
    Resource {
        file: "/proc/pressure/io",
        some: Some((&IO_SOME, &NODE_IO_WAITING)),
        full: Some((&IO_FULL, &NODE_IO_STALLED)),
    },
    // Since 6.1, with CONFIG_IRQ_TIME_ACCOUNTING; it has no line `some`.
    Resource { file: "/proc/pressure/irq", some: None, full: Some((&IRQ_FULL, &NODE_IRQ_STALLED)) },
];

struct Pressure {
    sources: [Option<Source>; RESOURCES.len()],
}

impl Pressure {
    fn new(host: &Host) -> Self {
        let source = |resource: &Resource| {
            resource.file.strip_prefix("/proc/").map(|name| Source::single(host.files.proc(name)))
        };
        Self { sources: RESOURCES.each_ref().map(source) }
    }
}

impl Collector for Pressure {
    fn collect(&mut self, _: &Host, out: &mut Batch) -> Result<Outcome, CollectError> {
        for (resource, slot) in RESOURCES.iter().zip(&mut self.sources) {
            let Some(source) = slot else { continue };
            match source.read() {
                Ok(text) => emit(resource, text, out)?,
                // A kernel does not grow files while it runs: this one is not tried again.
                Err(error) if error.is_absent() => *slot = None,
                Err(error) => return Err(error.into()),
            }
        }
        if self.sources.iter().any(Option::is_some) {
            return Ok(Outcome::Data);
        }
        Ok(Outcome::Absent {
            reason: "no /proc/pressure: the kernel is older than 4.20, was built without CONFIG_PSI, or has it \
                     switched off"
                .into(),
            remedy: "boot with psi=1".into(),
        })
    }
}

/// Reads `some avg10=0.12 avg60=0.59 avg300=0.68 total=21020805` (total in microseconds) and the same with `full`.
fn emit(resource: &Resource, text: &[u8], out: &mut Batch) -> Result<(), CollectError> {
    for line in lines(complete(text, resource.file)?) {
        let mut columns = fields(line);
        let pair = match columns.next() {
            Some(b"some") => resource.some,
            Some(b"full") => resource.full,
            _ => return Err(CollectError::parse(resource.file, "line", "some or full", line)),
        };
        let Some((gauge, total)) = pair else { continue };
        let mut find = |name: &[u8]| columns.find_map(|field| split_once(field, b'=').filter(|pair| pair.0 == name));
        let (avg10, sum) = (find(b"avg10").unwrap_or_default().1, find(b"total").unwrap_or_default().1);
        let percent = need_decimal(avg10, resource.file, || "avg10".to_owned())?;
        let us = need_u64(sum, resource.file, || "total".to_owned())?;
        out.gauge(gauge, [], percent);
        out.counter(total, [], us as f64 / 1e6);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Machine, declared, read, recorded, value};
    use super::*;

    #[test]
    fn a_machine_of_today() {
        let (_, batch) = read(&recorded("debian12-6.18"), &ENTRY).expect("it can be read");
        declared(&batch, &ENTRY);
        assert_eq!(value(&batch, "pressure_cpu_some_percent", &[]), Some(0.12));
        assert_eq!(value(&batch, "node_pressure_cpu_waiting_seconds_total", &[]), Some(21.020_805));
        assert_eq!(value(&batch, "node_pressure_io_stalled_seconds_total", &[]), Some(19.820_85));
        assert_eq!(batch.len(), 10, "cpu some, memory and io both");
    }

    #[test]
    fn interrupts_have_one_line_and_a_machine_without_has_none() {
        let machine = Machine::new("pressure");
        let (outcome, batch) = machine.collect(&ENTRY).expect("absence is no error");
        assert!(matches!(outcome, Outcome::Absent { remedy, .. } if remedy == "boot with psi=1") && batch.is_empty());
        let machine = machine.file("proc/pressure/irq", "full avg10=1.50 avg60=0.00 avg300=0.00 total=2000000\n");
        let batch = machine.data(&ENTRY);
        assert_eq!(value(&batch, "pressure_irq_full_percent", &[]), Some(1.5));
        assert_eq!(value(&batch, "node_pressure_irq_stalled_seconds_total", &[]), Some(2.0));
    }

    #[test]
    fn what_is_not_understood_is_an_error_that_names_it() {
        let error = |content: &[u8]| {
            let machine = Machine::new("pressure-bad").file("proc/pressure/io", content);
            machine.collect(&ENTRY).expect_err("it is bad").to_string()
        };
        let text = b"some avg10=0.67 avg60=5.74 avg300=2.51 total=20547355\n";
        for end in 0..text.len() {
            assert!(error(&text[..end]).starts_with("/proc/pressure/io: last line"), "{end}");
        }
        assert!(error(b"some avg10=x total=1\n").contains("avg10: expected a decimal number, found \"x\""));
        assert!(error(b"some avg10=1.00 total=-1\n").contains("total: expected a number, found \"-1\""));
        assert!(error(b"\xff avg10=1.00 total=1\n").contains("expected some or full"));
    }
}
