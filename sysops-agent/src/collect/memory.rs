//! Memory from /proc/meminfo: every field under node_exporter's name, and how much is in use. Swap space, paging and
//! NUMA nodes are left to their own files.

use std::time::Duration;

use super::bytes::{complete, fields, lines, need_u64, split_once, text};
use super::{CollectError, Collector, Entry, Outcome, interval};
use crate::host::{Host, Source};
use crate::model::{Batch, Desc, Metric, Unit};

static USED_PERCENT: Metric<0> = Metric::gauge(
    "memory_used_percent",
    Unit::Percent,
    "Memory that is not available to programs without swapping: 100 x (total - available) / total.",
    &[],
);
static USED: Metric<0> =
    Metric::gauge("memory_used_bytes", Unit::Bytes, "Memory that is not available to programs without swapping.", &[]);
static AVAILABLE: Metric<0> = Metric::gauge(
    "memory_available_bytes",
    Unit::Bytes,
    "Memory that programs can have without swapping: MemAvailable, and on kernels before 3.14, which lack it, \
     MemFree + Active(file) + Inactive(file) + SReclaimable.",
    &[],
);

const FILE: &str = "/proc/meminfo";

/// In the list of collectors.
pub(super) static ENTRY: Entry = Entry {
    name: "memory",
    metrics: &METRICS,
    keys: &[interval::MEMORY.spec()],
    interval: &interval::MEMORY,
    deadline: Duration::from_secs(2),
    new: |host, _| Box::new(Memory { meminfo: Source::single(host.files.proc("meminfo")), table: Table::default() }),
};

struct Memory {
    meminfo: Source,
    table: Table,
}

impl Collector for Memory {
    fn collect(&mut self, _: &Host, out: &mut Batch) -> Result<Outcome, CollectError> {
        self.table.parse(self.meminfo.read()?)?;
        for (field, value) in FIELDS.iter().zip(self.table.values) {
            if let Some(value) = value {
                out.gauge(&field.metric, [], value as f64);
            }
        }
        let total = self.table.get("MemTotal");
        let Some(total) = total.filter(|total| *total > 0) else {
            return Err(CollectError::parse(FILE, "MemTotal", "a number above 0", b""));
        };
        if let Some(available) = self.table.available() {
            let used = total.saturating_sub(available);
            out.gauge(&AVAILABLE, [], available as f64);
            out.gauge(&USED, [], used as f64);
            out.gauge(&USED_PERCENT, [], 100.0 * used as f64 / total as f64);
        }
        Ok(Outcome::Data)
    }
}

/// Values of [`FIELDS`] in the same order, in bytes where the kernel says kB.
struct Table {
    values: [Option<u64>; FIELDS.len()],
}

impl Default for Table {
    fn default() -> Self {
        Self { values: [None; FIELDS.len()] }
    }
}

impl Table {
    /// Reads `MemTotal:       24684096 kB` and its like; names that are not in [`FIELDS`] are passed over.
    fn parse(&mut self, file: &[u8]) -> Result<(), CollectError> {
        self.values = [None; FIELDS.len()];
        // Both lists have the kernel's order, so that the search mostly ends where it begins.
        let mut likely = 0;
        for line in lines(complete(file, FILE)?) {
            let Some((name, rest)) = split_once(line, b':') else {
                return Err(CollectError::parse(FILE, text(line), "a name and a colon", line));
            };
            let mut order = (likely..FIELDS.len()).chain(0..likely);
            let Some(at) = order.find(|&at| FIELDS[at].name.as_bytes() == name) else { continue };
            let mut columns = fields(rest);
            let number = need_u64(columns.next().unwrap_or_default(), FILE, || FIELDS[at].name.to_owned())?;
            let unit = if columns.next() == Some(b"kB") { 1024 } else { 1 };
            self.values[at] = Some(number.saturating_mul(unit));
            likely = at + 1;
        }
        Ok(())
    }

    fn get(&self, name: &str) -> Option<u64> {
        FIELDS.iter().position(|field| field.name == name).and_then(|at| self.values[at])
    }

    /// MemAvailable, or what it is made of but for the kernel's reserve, which only the newer kernels take off.
    fn available(&self) -> Option<u64> {
        self.get("MemAvailable").or_else(|| {
            let parts = ["MemFree", "Active(file)", "Inactive(file)", "SReclaimable"].map(|name| self.get(name));
            parts.into_iter().try_fold(0_u64, |sum, part| Some(sum.saturating_add(part?)))
        })
    }
}

struct Field {
    /// The kernel's name.
    name: &'static str,
    metric: Metric<0>,
}

/// `X(y)` becomes `X_y`, and what is counted in kB gets `_bytes`, as node_exporter has it.
macro_rules! field {
    ($name:literal, $metric:literal, $unit:ident) => {
        Field {
            name: $name,
            metric: Metric::gauge(
                concat!("node_memory_", $metric),
                Unit::$unit,
                concat!("Memory information field ", $name, " of /proc/meminfo."),
                &[],
            ),
        }
    };
    ($name:literal, $metric:literal) => {
        field!($name, $metric, Bytes)
    };
}

/// In the order in which kernels of today print them; those of old kernels, other machines and rare options last.
static FIELDS: [Field; 67] = [
    field!("MemTotal", "MemTotal_bytes"),
    field!("MemFree", "MemFree_bytes"),
    field!("MemAvailable", "MemAvailable_bytes"),
    field!("Buffers", "Buffers_bytes"),
    field!("Cached", "Cached_bytes"),
    field!("SwapCached", "SwapCached_bytes"),
    field!("Active", "Active_bytes"),
    field!("Inactive", "Inactive_bytes"),
    field!("Active(anon)", "Active_anon_bytes"),
    field!("Inactive(anon)", "Inactive_anon_bytes"),
    field!("Active(file)", "Active_file_bytes"),
    field!("Inactive(file)", "Inactive_file_bytes"),
    field!("Unevictable", "Unevictable_bytes"),
    field!("Mlocked", "Mlocked_bytes"),
    field!("SwapTotal", "SwapTotal_bytes"),
    field!("SwapFree", "SwapFree_bytes"),
    field!("Zswap", "Zswap_bytes"),
    field!("Zswapped", "Zswapped_bytes"),
    field!("Dirty", "Dirty_bytes"),
    field!("Writeback", "Writeback_bytes"),
    field!("AnonPages", "AnonPages_bytes"),
    field!("Mapped", "Mapped_bytes"),
    field!("Shmem", "Shmem_bytes"),
    field!("KReclaimable", "KReclaimable_bytes"),
    field!("Slab", "Slab_bytes"),
    field!("SReclaimable", "SReclaimable_bytes"),
    field!("SUnreclaim", "SUnreclaim_bytes"),
    field!("KernelStack", "KernelStack_bytes"),
    field!("ShadowCallStack", "ShadowCallStack_bytes"),
    field!("PageTables", "PageTables_bytes"),
    field!("SecPageTables", "SecPageTables_bytes"),
    field!("NFS_Unstable", "NFS_Unstable_bytes"),
    field!("Bounce", "Bounce_bytes"),
    field!("WritebackTmp", "WritebackTmp_bytes"),
    field!("CommitLimit", "CommitLimit_bytes"),
    field!("Committed_AS", "Committed_AS_bytes"),
    field!("VmallocTotal", "VmallocTotal_bytes"),
    field!("VmallocUsed", "VmallocUsed_bytes"),
    field!("VmallocChunk", "VmallocChunk_bytes"),
    field!("Percpu", "Percpu_bytes"),
    field!("EarlyMemtestBad", "EarlyMemtestBad_bytes"),
    field!("HardwareCorrupted", "HardwareCorrupted_bytes"),
    field!("AnonHugePages", "AnonHugePages_bytes"),
    field!("ShmemHugePages", "ShmemHugePages_bytes"),
    field!("ShmemPmdMapped", "ShmemPmdMapped_bytes"),
    field!("FileHugePages", "FileHugePages_bytes"),
    field!("FilePmdMapped", "FilePmdMapped_bytes"),
    field!("CmaTotal", "CmaTotal_bytes"),
    field!("CmaFree", "CmaFree_bytes"),
    field!("Unaccepted", "Unaccepted_bytes"),
    field!("Balloon", "Balloon_bytes"),
    field!("GPUActive", "GPUActive_bytes"),
    field!("GPUReclaim", "GPUReclaim_bytes"),
    field!("HugePages_Total", "HugePages_Total", Count),
    field!("HugePages_Free", "HugePages_Free", Count),
    field!("HugePages_Rsvd", "HugePages_Rsvd", Count),
    field!("HugePages_Surp", "HugePages_Surp", Count),
    field!("Hugepagesize", "Hugepagesize_bytes"),
    field!("Hugetlb", "Hugetlb_bytes"),
    field!("DirectMap4k", "DirectMap4k_bytes"),
    field!("DirectMap4M", "DirectMap4M_bytes"),
    field!("DirectMap2M", "DirectMap2M_bytes"),
    field!("DirectMap1G", "DirectMap1G_bytes"),
    field!("HighTotal", "HighTotal_bytes"),
    field!("HighFree", "HighFree_bytes"),
    field!("LowTotal", "LowTotal_bytes"),
    field!("LowFree", "LowFree_bytes"),
];

static METRICS: [&Desc; FIELDS.len() + 3] = {
    let mut metrics = [USED_PERCENT.desc(); FIELDS.len() + 3];
    metrics[1] = USED.desc();
    metrics[2] = AVAILABLE.desc();
    let mut at = 0;
    while at < FIELDS.len() {
        metrics[at + 3] = FIELDS[at].metric.desc();
        at += 1;
    }
    metrics
};

#[cfg(test)]
mod tests {
    use super::super::testing::{Machine, declared, read, recorded, value};
    use super::*;

    #[test]
    fn a_machine_of_today() {
        let (_, batch) = read(&recorded("debian12-6.18"), &ENTRY).expect("it can be read");
        declared(&batch, &ENTRY);
        assert_eq!(value(&batch, "node_memory_MemTotal_bytes", &[]), Some(24_684_096.0 * 1024.0));
        assert_eq!(value(&batch, "node_memory_HugePages_Total", &[]), Some(0.0));
        assert_eq!(value(&batch, "node_memory_Active_anon_bytes", &[]), Some(1568.0 * 1024.0));
        assert_eq!(value(&batch, "memory_available_bytes", &[]), Some(24_051_816.0 * 1024.0));
        let used = value(&batch, "memory_used_percent", &[]).expect("it is known");
        assert!((used - 100.0 * (24_684_096.0 - 24_051_816.0) / 24_684_096.0).abs() < 1e-9, "{used}");
        assert_eq!(batch.len(), 54 + 3, "every line of the file is known");
    }

    #[test]
    fn before_3_14_available_memory_is_added_up() {
        let old =
            "MemTotal: 1000 kB\nMemFree: 100 kB\nActive(file): 20 kB\nInactive(file): 30 kB\nSReclaimable: 50 kB\n";
        let machine = Machine::new("memory-old").file("proc/meminfo", old);
        assert_eq!(value(&machine.data(&ENTRY), "memory_used_percent", &[]), Some(80.0));
        let machine = machine.file("proc/meminfo", "MemTotal: 1000 kB\nMemFree: 100 kB\n");
        let batch = machine.data(&ENTRY);
        assert_eq!(value(&batch, "memory_used_percent", &[]), None, "unknown is absence");
        assert_eq!(value(&batch, "node_memory_MemFree_bytes", &[]), Some(102_400.0));
    }

    #[test]
    fn a_value_that_is_gone_is_not_kept() {
        let machine = Machine::new("memory-gone").file("proc/meminfo", "MemTotal: 1000 kB\nMemAvailable: 100 kB\n");
        let (mut collector, mut batch) = (machine.collector(&ENTRY), Batch::default());
        collector.collect(&machine.host(), &mut batch).expect("it can be read");
        machine.write("proc/meminfo", "MemTotal: 1000 kB\nNewInLinux9: 5 apples\n");
        batch.clear();
        collector.collect(&machine.host(), &mut batch).expect("it can be read");
        assert_eq!((batch.len(), value(&batch, "node_memory_MemTotal_bytes", &[])), (1, Some(1_024_000.0)));
    }

    #[test]
    fn what_is_not_understood_is_an_error_that_names_it() {
        let error = |content: &[u8]| {
            let machine = Machine::new("memory-bad").file("proc/meminfo", content);
            machine.collect(&ENTRY).expect_err("it is bad").to_string()
        };
        assert_eq!(error(b"MemTotal: x kB\n"), "/proc/meminfo: MemTotal: expected a number, found \"x\"");
        assert!(error(b"MemFree: 5 kB\n").contains("MemTotal: expected a number above 0"));
        assert!(error(b"").contains("last line"));
        assert!(error(b"\xff\x00\x01\n").contains("expected a name and a colon"));
        assert!(error(b"MemTotal: 99999999999999999999 kB\n").contains("expected a number"));
        let whole = b"MemTotal:       24684096 kB\nMemFree:        20224444 kB\n";
        for end in (0..whole.len()).filter(|&end| end != 28) {
            assert!(Table::default().parse(&whole[..end]).is_err(), "{end}");
        }
    }
}
