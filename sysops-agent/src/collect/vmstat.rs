//! Paging and OOM kills from /proc/vmstat. Who was killed is left to the kernel probe.

use std::time::Duration;

use super::bytes::{complete, fields, lines, need_u64};
use super::{CollectError, Collector, Entry, Outcome, interval};
use crate::host::{Host, Source, os};
use crate::model::{Batch, Metric, Unit};

static MAJOR_FAULTS: Metric<0> = Metric::gauge(
    "memory_major_faults_per_second",
    Unit::PerSecond,
    "Page faults for which a page had to be read from disk.",
    &[],
);
static SWAP_IN: Metric<0> =
    Metric::gauge("swap_in_bytes_per_second", Unit::BytesPerSecond, "Bytes read back from swap.", &[]);
static SWAP_OUT: Metric<0> =
    Metric::gauge("swap_out_bytes_per_second", Unit::BytesPerSecond, "Bytes written to swap.", &[]);
static OOM_KILL: Metric<0> = counter("node_vmstat_oom_kill", "/proc/vmstat information field oom_kill.");
static PGFAULT: Metric<0> = counter("node_vmstat_pgfault", "/proc/vmstat information field pgfault.");
static PGMAJFAULT: Metric<0> = counter("node_vmstat_pgmajfault", "/proc/vmstat information field pgmajfault.");
static PGPGIN: Metric<0> = counter("node_vmstat_pgpgin", "/proc/vmstat information field pgpgin.");
static PGPGOUT: Metric<0> = counter("node_vmstat_pgpgout", "/proc/vmstat information field pgpgout.");
static PSWPIN: Metric<0> = counter("node_vmstat_pswpin", "/proc/vmstat information field pswpin.");
static PSWPOUT: Metric<0> = counter("node_vmstat_pswpout", "/proc/vmstat information field pswpout.");

const FILE: &str = "/proc/vmstat";

/// In the list of collectors.
pub(super) static ENTRY: Entry = Entry {
    name: "vmstat",
    metrics: &[
        MAJOR_FAULTS.desc(),
        SWAP_IN.desc(),
        SWAP_OUT.desc(),
        OOM_KILL.desc(),
        PGFAULT.desc(),
        PGMAJFAULT.desc(),
        PGPGIN.desc(),
        PGPGOUT.desc(),
        PSWPIN.desc(),
        PSWPOUT.desc(),
    ],
    keys: &[],
    interval: &interval::MEMORY,
    deadline: Duration::from_secs(2),
    new: |host, _| Box::new(Vmstat { vmstat: Source::new(host.files.proc("vmstat")) }),
};

const fn counter(name: &'static str, help: &'static str) -> Metric<0> {
    Metric::counter(name, Unit::Count, help, &[])
}

/// The fields that node_exporter gives: those of its default filter `^(oom_kill|pgpg|pswp|pg.*fault).*`.
static FIELDS: [(&str, &Metric<0>); 7] = [
    ("pgpgin", &PGPGIN),
    ("pgpgout", &PGPGOUT),
    ("pswpin", &PSWPIN),
    ("pswpout", &PSWPOUT),
    ("pgfault", &PGFAULT),
    ("pgmajfault", &PGMAJFAULT),
    ("oom_kill", &OOM_KILL),
];

struct Vmstat {
    vmstat: Source,
}

impl Collector for Vmstat {
    fn collect(&mut self, _: &Host, out: &mut Batch) -> Result<Outcome, CollectError> {
        let page_bytes = os::page_size() as f64;
        let values = parse(self.vmstat.read()?)?;
        for ((name, metric), value) in FIELDS.iter().zip(values) {
            let Some(value) = value else { continue };
            let value = value as f64;
            out.counter(metric, [], value);
            match *name {
                "pgmajfault" => out.per_second(&MAJOR_FAULTS, [], value),
                "pswpin" => out.per_second(&SWAP_IN, [], value * page_bytes),
                "pswpout" => out.per_second(&SWAP_OUT, [], value * page_bytes),
                _ => {}
            }
        }
        Ok(Outcome::Data)
    }
}

/// Values of [`FIELDS`]; a kernel without one of them (`oom_kill` came with 4.13) leaves it out.
fn parse(text: &[u8]) -> Result<[Option<u64>; FIELDS.len()], CollectError> {
    let mut values = [None; FIELDS.len()];
    for line in lines(complete(text, FILE)?) {
        // Of the 190 and more lines few begin so.
        if !matches!(line, [b'p', b'g' | b's', ..] | [b'o', b'o', ..]) {
            continue;
        }
        let mut columns = fields(line);
        let name = columns.next().unwrap_or_default();
        if let Some(at) = FIELDS.iter().position(|(field, _)| field.as_bytes() == name) {
            let value = columns.next().unwrap_or_default();
            values[at] = Some(need_u64(value, FILE, || FIELDS[at].0.to_owned())?);
        }
    }
    Ok(values)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Machine, declared, read, recorded, value};
    use super::*;

    #[test]
    fn a_machine_of_today() {
        let (_, batch) = read(&recorded("debian12-6.18"), &ENTRY).expect("it can be read");
        declared(&batch, &ENTRY);
        assert_eq!(batch.len(), ENTRY.metrics.len());
        assert_eq!(value(&batch, "node_vmstat_oom_kill", &[]), Some(0.0));
    }

    #[test]
    fn swap_is_in_bytes_and_what_a_kernel_lacks_is_absent() {
        let content = "nr_free_pages 5\npgpgin 1\npswpin 2\npgmajfault 7\npgpgoutclean 9\n";
        let machine = Machine::new("vmstat").file("proc/vmstat", content);
        let batch = machine.data(&ENTRY);
        assert_eq!(value(&batch, "swap_in_bytes_per_second", &[]), Some(2.0 * os::page_size() as f64));
        assert_eq!(value(&batch, "memory_major_faults_per_second", &[]), Some(7.0));
        assert_eq!(batch.len(), 5);
    }

    #[test]
    fn what_is_not_understood_is_an_error_that_names_it() {
        let error = parse(b"pgfault 1\npgmajfault -5\n").expect_err("-5").to_string();
        assert_eq!(error, "/proc/vmstat: pgmajfault: expected a number, found \"-5\"");
        assert!(parse(b"").is_err() && parse(b"pgfault\n").is_err() && parse(b"pgfault 1\npgmajfau").is_err());
        assert_eq!(parse(b"\xff\xfe 1\n\0\n").ok(), Some([None; 7]));
    }
}
