//! Counts processes by state, and finds who uses most CPU and resident memory: from the kernel's table of processes where
//! there is one, else from /proc/<pid>/stat of each. Open files are left to `fd`, what is too much to the analyzers.

use std::time::Duration;

use rustix::io::Errno;

use super::cpu_times::{CpuTime, CpuTimes};
use super::pids::{Comm, PidText, STAT_BYTES, Stat, comm_of, parse_stat};
use super::top::{TOP_N, Top};
use super::{CollectError, Collector, Entry, Outcome, bytes};
use crate::host::{Host, Kept, Process, Processes, ReadError, Source, TaskRow, TaskWalk, Walked, os};
use crate::model::{Batch, Metric, Tick, Unit};
use crate::spec::{Key, Values};

static COUNT: Metric<0> = Metric::gauge("processes", Unit::Count, "Processes, kernel threads included.", &[]);
static STATES: Metric<1> = Metric::gauge(
    "processes_state",
    Unit::Count,
    "Processes by state of their first thread: running, sleeping, disk_sleep, stopped, tracing_stop, zombie, dead, \
     parked, idle, other.",
    &["state"],
);
static ZOMBIES: Metric<0> =
    Metric::gauge("processes_zombie", Unit::Count, "Processes that ended and were not waited for.", &[]);
static THREADS: Metric<0> = Metric::gauge("processes_threads", Unit::Count, "Threads of all processes.", &[]);
static UNREADABLE: Metric<0> = Metric::gauge(
    "processes_unreadable",
    Unit::Count,
    "Processes whose stat file was refused or not understood: of them no more is known than that they are there.",
    &[],
);
static UNTRACKED: Metric<0> = Metric::gauge(
    "processes_untracked",
    Unit::Count,
    "Processes beyond the 65536 whose CPU time is remembered; they cannot be in process_top_cpu_percent.",
    &[],
);
static TOP_CPU: Metric<2> = Metric::gauge(
    "process_top_cpu_percent",
    Unit::Percent,
    "CPU time of the processes that used most of it since the cycle before, in percent of one core.",
    &["pid", "comm"],
);
static TOP_RSS: Metric<2> = Metric::gauge(
    "process_top_rss_bytes",
    Unit::Bytes,
    "Resident memory of the processes that have most of it, shared pages included.",
    &["pid", "comm"],
);
static NODE_STATES: Metric<1> =
    Metric::gauge("node_processes_state", Unit::Count, "Number of processes in each state.", &["state"]);
static NODE_PIDS: Metric<0> = Metric::gauge("node_processes_pids", Unit::Count, "Number of PIDs.", &[]);
static NODE_THREADS: Metric<0> =
    Metric::gauge("node_processes_threads", Unit::Count, "Allocated threads in system.", &[]);
static NODE_MAX_PIDS: Metric<0> =
    Metric::gauge("node_processes_max_processes", Unit::Count, "Number of max PIDs limit.", &[]);
static NODE_MAX_THREADS: Metric<0> =
    Metric::gauge("node_processes_max_threads", Unit::Count, "Limit of threads in the system.", &[]);

static INTERVAL: Key<Duration> = Key::secs(
    "collector.process_interval_secs",
    30,
    1,
    86_400,
    "How often processes are counted and the greatest users of CPU and memory are found.",
);

/// The collector in the list.
pub(super) static ENTRY: Entry = Entry {
    name: "process",
    metrics: &[
        COUNT.desc(),
        STATES.desc(),
        ZOMBIES.desc(),
        THREADS.desc(),
        UNREADABLE.desc(),
        UNTRACKED.desc(),
        TOP_CPU.desc(),
        TOP_RSS.desc(),
        NODE_STATES.desc(),
        NODE_PIDS.desc(),
        NODE_THREADS.desc(),
        NODE_MAX_PIDS.desc(),
        NODE_MAX_THREADS.desc(),
    ],
    keys: &[INTERVAL.spec(), TOP_N.spec()],
    interval: &INTERVAL,
    deadline: Duration::from_secs(10),
    new: |host, values| Box::new(ProcessCollector::new(host, values)),
};

/// States in the kernel's order (fs/proc/array.c), each with node_exporter's name: the letter itself. `x`, `K`, `W` of
/// kernels before 4.14 and letters yet to come are `other`.
const STATE_NAMES: [(u8, &str, &str); 9] = [
    (b'R', "R", "running"),
    (b'S', "S", "sleeping"),
    (b'D', "D", "disk_sleep"),
    (b'T', "T", "stopped"),
    (b't', "t", "tracing_stop"),
    (b'Z', "Z", "zombie"),
    (b'X', "X", "dead"),
    (b'P', "P", "parked"),
    (b'I', "I", "idle"),
];
const ZOMBIE: usize = 5;
const OTHER: usize = STATE_NAMES.len();

const PID_MAX: &str = "sys/kernel/pid_max";
const THREADS_MAX: &str = "sys/kernel/threads-max";

struct ProcessCollector {
    tasks: TaskWalk,
    processes: Processes,
    pid_max: Source,
    threads_max: Source,
    scan: Scan,
}

/// What one walk finds.
struct Scan {
    stat: Kept,
    listed: u64,
    refused: u64,
    odd: u64,
    threads: u64,
    states: [u64; OTHER + 1],
    cpu: Top,
    rss: Top,
    times: CpuTimes,
    init_was_read: bool,
    /// A tick of USER_HZ.
    tick_ns: u64,
    first_odd: Option<CollectError>,
}

impl ProcessCollector {
    fn new(host: &Host, values: &Values) -> Self {
        let limit = usize::try_from(values.get(&TOP_N)).expect("the key's bounds are 0 and 50");
        Self {
            tasks: TaskWalk::new(host),
            processes: Processes::new(host),
            pid_max: Source::single(host.files.proc(PID_MAX)),
            threads_max: Source::single(host.files.proc(THREADS_MAX)),
            scan: Scan::new(limit),
        }
    }
}

impl Collector for ProcessCollector {
    fn collect(&mut self, host: &Host, out: &mut Batch) -> Result<Outcome, CollectError> {
        let tick = host.clock.now();
        self.scan.start();
        let (scan, processes) = (&mut self.scan, &mut self.processes);
        let mut looked = Ok(());
        let from_table = self.tasks.walk(|walked| match walked {
            Walked::Row(row) => scan.take_row(row, &tick),
            Walked::Elsewhere(pid) => {
                let result = processes.look(pid, |process| scan.see(process, &tick));
                looked = std::mem::replace(&mut looked, Ok(())).and(result);
            }
        });
        looked?;
        if from_table {
            scan.cpu.lengthen(|pid, comm| whole_name(processes, pid, comm));
        } else {
            processes.walk(|process| scan.see(process, &tick))?;
        }
        scan.times.finish(tick);
        if let Some(absent) = self.scan.absence() {
            return Ok(absent);
        }
        if let Some(error) = self.scan.first_odd.take_if(|_| self.scan.odd == self.scan.listed) {
            return Err(error);
        }
        self.scan.emit(out);
        emit_limit(&mut self.pid_max, PID_MAX, &NODE_MAX_PIDS, out)?;
        emit_limit(&mut self.threads_max, THREADS_MAX, &NODE_MAX_THREADS, out)?;
        Ok(Outcome::Data)
    }
}

impl Scan {
    fn new(limit: usize) -> Self {
        Self {
            stat: Kept::new("stat"),
            listed: 0,
            refused: 0,
            odd: 0,
            threads: 0,
            states: [0; OTHER + 1],
            cpu: Top::new(limit),
            rss: Top::new(limit),
            times: CpuTimes::default(),
            init_was_read: false,
            tick_ns: 1_000_000_000 / os::ticks_per_second().max(1),
            first_odd: None,
        }
    }

    /// Forgets the walk before, but for CPU times.
    fn start(&mut self) {
        (self.listed, self.refused, self.odd, self.threads) = (0, 0, 0, 0);
        self.stat.start();
        self.states = [0; OTHER + 1];
        self.cpu.clear();
        self.rss.clear();
        self.times.begin();
        self.init_was_read = false;
        self.first_odd = None;
    }

    fn see(&mut self, process: Process<'_>, tick: &Tick) {
        let mut buffer = [0; STAT_BYTES];
        let line = match self.stat.read(process, &mut buffer) {
            Ok(line) => line,
            // It ended after /proc was listed, so it is not there to be counted.
            Err(Errno::NOENT | Errno::SRCH | Errno::NOTDIR) => return,
            Err(Errno::ACCESS | Errno::PERM) => {
                self.listed += 1;
                self.refused += 1;
                return;
            }
            Err(errno) => {
                let path = format!("/proc/{}/stat", process.pid).into();
                return self.odd(|| ReadError { path, what: "cannot read", source: errno.into() }.into());
            }
        };
        let Some(stat) = parse_stat(line) else {
            let file = format!("/proc/{}/stat", process.pid);
            return self.odd(|| CollectError::parse(&file, "line", "pid (comm) state and 21 numbers", line));
        };
        self.take(process.pid, &stat, false, tick);
    }

    fn take_row(&mut self, row: &TaskRow, tick: &Tick) {
        let stat = Stat {
            comm: row.comm(),
            state: row.state,
            cpu_ticks: row.cpu_ns / self.tick_ns,
            threads: u64::from(row.threads),
            start_ticks: row.start_ticks,
            rss_pages: row.rss_pages,
        };
        self.take(row.pid, &stat, row.is_kernel, tick);
    }

    fn take(&mut self, pid: u32, stat: &Stat<'_>, is_short: bool, tick: &Tick) {
        self.listed += 1;
        self.init_was_read |= pid == 1;
        self.threads = self.threads.saturating_add(stat.threads);
        let state = STATE_NAMES.iter().position(|&(letter, ..)| letter == stat.state).unwrap_or(OTHER);
        self.states[state] += 1;
        #[expect(clippy::cast_precision_loss, reason = "memory of a process is below 2^53 bytes")]
        let rss_bytes = stat.rss_pages.saturating_mul(os::page_size()) as f64;
        self.rss.add(rss_bytes, pid, stat.comm);
        let now = CpuTime { pid, ticks: stat.cpu_ticks, start_ticks: stat.start_ticks };
        if let Some(percent) = self.times.add(now, tick) {
            self.cpu.add_short(percent, pid, stat.comm, is_short);
        }
    }

    /// Counts a process that is there and was not understood; the first such is the error when all are.
    fn odd(&mut self, error: impl FnOnce() -> CollectError) {
        self.listed += 1;
        self.odd += 1;
        self.first_odd.get_or_insert_with(error);
    }

    /// With hidepid this user sees a part of the processes only, and every count would be wrong. In each pid namespace
    /// there is a process 1, so its absence tells.
    fn absence(&self) -> Option<Outcome> {
        if self.listed == 0 {
            return Some(Outcome::Absent { reason: "no process in /proc".into(), remedy: "".into() });
        }
        // What is there and odd is an error or counted, not hidden.
        if self.init_was_read || self.odd > 0 {
            return None;
        }
        Some(Outcome::Absent {
            reason: "/proc/1/stat cannot be read: /proc is mounted with hidepid, this user sees its own processes only"
                .into(),
            remedy: "give CAP_SYS_PTRACE, or name a group of this user in the gid= option of the /proc mount".into(),
        })
    }

    #[expect(clippy::cast_precision_loss, reason = "numbers of processes are below 2^53")]
    fn emit(&self, out: &mut Batch) {
        out.gauge(&COUNT, [], self.listed as f64);
        out.gauge(&NODE_PIDS, [], self.listed as f64);
        for (&count, (_, letter, name)) in self.states.iter().zip(STATE_NAMES) {
            out.gauge(&STATES, [name], count as f64);
            if count > 0 {
                out.gauge(&NODE_STATES, [letter], count as f64);
            }
        }
        out.gauge(&STATES, ["other"], self.states[OTHER] as f64);
        out.gauge(&ZOMBIES, [], self.states[ZOMBIE] as f64);
        out.gauge(&THREADS, [], self.threads as f64);
        out.gauge(&NODE_THREADS, [], self.threads as f64);
        out.gauge(&UNREADABLE, [], (self.refused + self.odd) as f64);
        out.gauge(&UNTRACKED, [], self.times.untracked() as f64);
        for (metric, top) in [(&TOP_CPU, &self.cpu), (&TOP_RSS, &self.rss)] {
            for row in top.rows() {
                out.gauge(metric, [PidText::new(row.pid).as_str(), row.comm.as_str()], row.value);
            }
        }
    }
}

/// The name of a thread of the kernel as /proc has it, with what it works on. When it has ended the short one stays.
fn whole_name(processes: &mut Processes, pid: u32, comm: &mut Comm) {
    // An error is one of opening /proc: then the short name stays, too.
    _ = processes.look(pid, |process| {
        if let Some(name) = comm_of(process, &mut [0; 256]) {
            *comm = Comm::new(name);
        }
    });
}

fn emit_limit(
    source: &mut Source,
    name: &str,
    metric: &'static Metric<0>,
    out: &mut Batch,
) -> Result<(), CollectError> {
    match source.read() {
        Ok(text) => {
            let expected = || CollectError::parse(&format!("/proc/{name}"), "limit", "a number", text);
            let limit = bytes::u64(bytes::trim(text)).ok_or_else(expected)?;
            #[expect(clippy::cast_precision_loss, reason = "the kernel's limits are below 2^31")]
            out.gauge(metric, [], limit as f64);
            Ok(())
        }
        Err(error) if error.is_absent() || error.is_denied() => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests;
