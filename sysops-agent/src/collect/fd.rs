//! Reads /proc/sys/fs/file-nr and counts the open files of every process: who has most, and who is nearest its limit. The
//! kernel's table of processes tells both where there is one, else /proc/<pid>/fd and /proc/<pid>/limits of each do.
//! Which code opens and never closes them is left to the kernel probe `fd`.

use std::time::Duration;

use rustix::io::Errno;

use super::pids::{PidText, comm_of};
use super::top::{TOP_N, Top};
use super::{CollectError, Collector, Entry, Outcome, bytes};
use crate::host::{Host, OpenFds, Process, Processes, Source, TaskRow, TaskWalk, Walked};
use crate::model::{Batch, Metric, Unit};
use crate::spec::{Key, Values};

static USED: Metric<0> =
    Metric::gauge("fd_used_percent", Unit::Percent, "Open files of the whole machine, in percent of fs.file-max.", &[]);
static NODE_ALLOCATED: Metric<0> =
    Metric::gauge("node_filefd_allocated", Unit::Count, "File descriptor statistics: allocated.", &[]);
static NODE_MAXIMUM: Metric<0> =
    Metric::gauge("node_filefd_maximum", Unit::Count, "File descriptor statistics: maximum.", &[]);
static OPEN: Metric<2> = Metric::gauge(
    "process_open_fds",
    Unit::Count,
    "Open files of the processes that have most of them.",
    &["pid", "comm"],
);
static PROCESS_USED: Metric<2> = Metric::gauge(
    "process_fd_used_percent",
    Unit::Percent,
    "Open files of the processes that are nearest their limit, in percent of the soft limit. Processes with fewer than \
     16 open files are left out.",
    &["pid", "comm"],
);
static UNREADABLE: Metric<0> = Metric::gauge(
    "fd_unreadable_processes",
    Unit::Count,
    "Processes whose open files could not be counted, nearly always as this user may not; from Linux 6.2 on anyone may. \
     Absent where /proc is mounted with hidepid and does not list all.",
    &[],
);

static INTERVAL: Key<Duration> = Key::secs(
    "collector.fd_interval_secs",
    30,
    1,
    86_400,
    "How often open files are counted, for the machine and for each process.",
);

/// The collector in the list.
pub(super) static ENTRY: Entry = Entry {
    name: "fd",
    metrics: &[
        USED.desc(),
        NODE_ALLOCATED.desc(),
        NODE_MAXIMUM.desc(),
        OPEN.desc(),
        PROCESS_USED.desc(),
        UNREADABLE.desc(),
    ],
    keys: &[INTERVAL.spec()],
    interval: &INTERVAL,
    deadline: Duration::from_secs(10),
    new: |host, values| Box::new(FdCollector::new(host, values)),
};

/// Limits are read for processes with at least as many open files: reading one costs the kernel sixteen lines, and few
/// processes reach this number, nearly none with a limit so low that it mattered earlier.
const LIMIT_READ_MIN: u64 = 16;

/// `/proc/<pid>/limits` is 17 lines of 79 bytes.
const LIMITS_BYTES: usize = 2048;

struct FdCollector {
    file_nr: Source,
    tasks: TaskWalk,
    processes: Processes,
    open_fds: OpenFds,
    scan: Scan,
}

/// What one walk finds.
struct Scan {
    counted: u64,
    refused: u64,
    /// Process 1, which is in each pid namespace, was listed: nothing is hidden from this user.
    all_listed: bool,
    open: Top,
    used: Top,
}

impl FdCollector {
    fn new(host: &Host, values: &Values) -> Self {
        let limit = usize::try_from(values.get(&TOP_N)).expect("the key's bounds are 0 and 50");
        Self {
            file_nr: Source::single(host.files.proc("sys/fs/file-nr")),
            tasks: TaskWalk::new(host),
            processes: Processes::new(host),
            open_fds: OpenFds::new(&host.files.proc("")),
            scan: Scan { counted: 0, refused: 0, all_listed: false, open: Top::new(limit), used: Top::new(limit) },
        }
    }
}

impl Collector for FdCollector {
    fn collect(&mut self, _host: &Host, out: &mut Batch) -> Result<Outcome, CollectError> {
        let (scan, processes, open_fds) = (&mut self.scan, &mut self.processes, &mut self.open_fds);
        scan.start();
        let mut looked = Ok(());
        let from_table = self.tasks.walk(|walked| {
            let pid = match walked {
                Walked::Row(row) => match row.open_files {
                    Some(open) => return scan.take_row(row, open),
                    None => row.pid,
                },
                Walked::Elsewhere(pid) => pid,
            };
            let result = processes.look(pid, |process| scan.see(process, open_fds));
            looked = std::mem::replace(&mut looked, Ok(())).and(result);
        });
        looked?;
        if !from_table {
            processes.walk(|process| scan.see(process, open_fds))?;
        }
        let has_totals = emit_totals(&mut self.file_nr, out)?;
        if scan.counted + scan.refused > 0 {
            scan.emit(out);
        } else if !has_totals {
            let reason = "no /proc/sys/fs/file-nr and no process in /proc".into();
            return Ok(Outcome::Absent { reason, remedy: "".into() });
        }
        Ok(Outcome::Data)
    }
}

impl Scan {
    fn start(&mut self) {
        (self.counted, self.refused, self.all_listed) = (0, 0, false);
        self.open.clear();
        self.used.clear();
    }

    fn see(&mut self, process: Process<'_>, open_fds: &mut OpenFds) {
        self.all_listed |= process.pid == 1;
        let open = match open_fds.of(process) {
            Ok(open) => open,
            // It ended after /proc was listed.
            Err(Errno::NOENT | Errno::SRCH | Errno::NOTDIR) => return,
            Err(_) => {
                self.refused += 1;
                return;
            }
        };
        let limit = || soft_limit(process);
        let (count, in_used) = self.count(process.pid, open, limit);
        if in_used.is_none() && !self.open.takes(count, process.pid) {
            return;
        }
        let mut buffer = [0; 256];
        // Without a name it ended meanwhile.
        let Some(comm) = comm_of(process, &mut buffer) else { return };
        self.add(process.pid, comm, count, in_used);
    }

    fn take_row(&mut self, row: &TaskRow, open: u32) {
        self.all_listed |= row.pid == 1;
        let (count, in_used) = self.count(row.pid, u64::from(open), || share_of(row.open_files_max));
        self.add(row.pid, row.comm(), count, in_used);
    }

    /// The count as a number, and its share of the limit if that is among the greatest.
    fn count(&mut self, pid: u32, open: u64, limit: impl FnOnce() -> Option<f64>) -> (f64, Option<f64>) {
        self.counted += 1;
        #[expect(clippy::cast_precision_loss, reason = "a process has fewer than 2^53 open files")]
        let count = open as f64;
        let used = if open < LIMIT_READ_MIN { None } else { limit().map(|limit| 100.0 * count / limit) };
        (count, used.filter(|&used| self.used.takes(used, pid)))
    }

    fn add(&mut self, pid: u32, comm: &[u8], count: f64, in_used: Option<f64>) {
        self.open.add(count, pid, comm);
        if let Some(used) = in_used {
            self.used.add(used, pid, comm);
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "a number of processes is below 2^53")]
    fn emit(&self, out: &mut Batch) {
        if self.all_listed {
            out.gauge(&UNREADABLE, [], self.refused as f64);
        }
        for (metric, top) in [(&OPEN, &self.open), (&PROCESS_USED, &self.used)] {
            for row in top.rows() {
                out.gauge(metric, [PidText::new(row.pid).as_str(), row.comm.as_str()], row.value);
            }
        }
    }
}

/// How many files a process may open; `None` when there is no limit, or it is unknown.
fn soft_limit(process: Process<'_>) -> Option<f64> {
    let mut buffer = [0; LIMITS_BYTES];
    parse_soft_limit(process.read("limits", &mut buffer).ok()?)
}

/// The soft limit in the line `Max open files            1024                 524288               files`.
fn parse_soft_limit(limits: &[u8]) -> Option<f64> {
    let line = bytes::lines(limits).find_map(|line| line.strip_prefix(b"Max open files "))?;
    share_of(bytes::u64(bytes::fields(line).next()?)?)
}

/// What a share can be told of: a limit there is (`u64::MAX` is none), and it is not 0, with which the process can open
/// nothing more in any case.
fn share_of(limit: u64) -> Option<f64> {
    #[expect(clippy::cast_precision_loss, reason = "fs.nr_open bounds it below 2^31")]
    (limit > 0 && limit < u64::MAX).then_some(limit as f64)
}

/// Open files of the whole machine; false when this /proc does not tell.
#[expect(clippy::cast_precision_loss, reason = "percent of a number near 2^63 need not be exact")]
fn emit_totals(file_nr: &mut Source, out: &mut Batch) -> Result<bool, CollectError> {
    let (allocated, maximum) = match file_nr.read() {
        Ok(text) => parse_file_nr(text)?,
        Err(error) if error.is_absent() || error.is_denied() => return Ok(false),
        Err(error) => return Err(error.into()),
    };
    out.gauge(&NODE_ALLOCATED, [], allocated as f64);
    out.gauge(&NODE_MAXIMUM, [], maximum as f64);
    if maximum > 0 {
        out.gauge(&USED, [], 100.0 * allocated as f64 / maximum as f64);
    }
    Ok(true)
}

/// Allocated and maximum in `/proc/sys/fs/file-nr`. The number between them, allocated and unused, is 0 since Linux 2.6
/// (Documentation/admin-guide/sysctl/fs.rst).
fn parse_file_nr(text: &[u8]) -> Result<(u64, u64), CollectError> {
    const FILE: &str = "/proc/sys/fs/file-nr";
    let mut fields = bytes::fields(bytes::trim(text));
    let allocated = bytes::next_u64(&mut fields, FILE, || "allocated".to_owned())?;
    bytes::next_u64(&mut fields, FILE, || "unused".to_owned())?;
    let maximum = bytes::next_u64(&mut fields, FILE, || "maximum".to_owned())?;
    Ok((allocated, maximum))
}

#[cfg(test)]
mod tests;
