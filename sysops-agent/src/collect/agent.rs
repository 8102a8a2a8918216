//! Reads /proc/self: what the agent itself costs. It is always the agent's own /proc, whatever machine is watched.
//! How long its collectors take is left to the scheduler.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::CWD;

use super::pids::{Stat, parse_stat};
use super::{CollectError, Collector, Entry, Outcome};
use crate::host::{Host, OpenFds, ReadError, Source, os};
use crate::model::{Batch, Metric, Tick, Unit};
use crate::spec::Key;

static CPU: Metric<0> =
    Metric::counter("agent_cpu_seconds_total", Unit::Seconds, "CPU time that the agent itself has used.", &[]);
static RSS: Metric<0> =
    Metric::gauge("agent_resident_memory_bytes", Unit::Bytes, "Resident memory of the agent itself.", &[]);
static FDS: Metric<0> = Metric::gauge("agent_open_fds", Unit::Count, "Files that the agent itself has open.", &[]);
static THREADS: Metric<0> = Metric::gauge("agent_threads", Unit::Count, "Threads of the agent itself.", &[]);
static START: Metric<0> =
    Metric::gauge("agent_start_time_seconds", Unit::Seconds, "When the agent began, in seconds since 1970.", &[]);
static UPTIME: Metric<0> =
    Metric::gauge("agent_uptime_seconds", Unit::Seconds, "Time since the agent began, suspend included.", &[]);
static BUILD: Metric<1> = Metric::gauge("agent_build_info", Unit::Count, "Always 1; the label tells.", &["version"]);

static INTERVAL: Key<Duration> =
    Key::secs("collector.agent_interval_secs", 10, 1, 86_400, "How often the agent looks at what it costs itself.");

/// The collector in the list.
pub(super) static ENTRY: Entry = Entry {
    name: "agent",
    metrics: &[CPU.desc(), RSS.desc(), FDS.desc(), THREADS.desc(), START.desc(), UPTIME.desc(), BUILD.desc()],
    keys: &[INTERVAL.spec()],
    interval: &INTERVAL,
    deadline: Duration::from_secs(5),
    new: |_, _| Box::new(AgentCollector::new()),
};

const STAT: &str = "/proc/self/stat";

struct AgentCollector {
    stat: Source,
    open_fds: OpenFds,
    /// Wall time of the agent's start. It is told once: worked out anew each cycle it would tremble with NTP.
    start: Option<SystemTime>,
}

impl AgentCollector {
    fn new() -> Self {
        let proc = Path::new("/proc");
        Self { stat: Source::single(PathBuf::from(STAT)), open_fds: OpenFds::new(proc), start: None }
    }
}

impl Collector for AgentCollector {
    fn collect(&mut self, host: &Host, out: &mut Batch) -> Result<Outcome, CollectError> {
        let line = self.stat.read()?;
        let stat = parse_stat(line)
            .ok_or_else(|| CollectError::parse(STAT, "line", "pid (comm) state and 21 numbers", line))?;
        emit(&stat, &host.clock.now(), &mut self.start, out);
        let fds = self.open_fds.at(CWD, c"/proc/self/fd").map_err(|errno| ReadError {
            path: PathBuf::from("/proc/self/fd"),
            what: "cannot count",
            source: errno.into(),
        })?;
        #[expect(clippy::cast_precision_loss, reason = "a process has fewer than 2^53 open files")]
        out.gauge(&FDS, [], fds as f64);
        out.gauge(&BUILD, [env!("CARGO_PKG_VERSION")], 1.0);
        Ok(Outcome::Data)
    }
}

#[expect(clippy::cast_precision_loss, reason = "ticks, bytes and threads of one process are below 2^53")]
fn emit(stat: &Stat<'_>, tick: &Tick, start: &mut Option<SystemTime>, out: &mut Batch) {
    let hertz = os::ticks_per_second() as f64;
    out.counter(&CPU, [], stat.cpu_ticks as f64 / hertz);
    out.gauge(&RSS, [], stat.rss_pages.saturating_mul(os::page_size()) as f64);
    out.gauge(&THREADS, [], stat.threads as f64);
    // The start is rounded down to a tick; a clock that says an earlier time is no clock to reckon with.
    let Some(uptime) = Duration::try_from_secs_f64(stat.start_ticks as f64 / hertz)
        .ok()
        .and_then(|started| tick.boottime.checked_sub(started))
    else {
        return;
    };
    out.gauge(&UPTIME, [], uptime.as_secs_f64());
    let start = start.or_else(|| tick.wall.checked_sub(uptime)).inspect(|&time| *start = Some(time));
    if let Some(since_1970) = start.and_then(|start| start.duration_since(SystemTime::UNIX_EPOCH).ok()) {
        out.gauge(&START, [], since_1970.as_secs_f64());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::collect::made_host::{MadeHost, shown, shown_of};
    use crate::host::{Clock, Roots};

    #[test]
    fn the_agent_sees_itself_whatever_machine_is_watched() {
        // An empty foreign root: nothing in it may be needed.
        let made = MadeHost::new();
        let host = Host { clock: Clock::Live, ..made.host.clone() };
        let mut collector = AgentCollector::new();
        let mut batch = Batch::default();
        assert_eq!(collector.collect(&host, &mut batch).expect("read"), Outcome::Data);
        let value = |metric: &str| -> f64 {
            let values = shown_of(&batch, metric);
            assert_eq!(values.len(), 1, "{metric}: {:?}", shown(&batch));
            values[0].trim().parse().expect("a number")
        };
        assert!(value("agent_resident_memory_bytes") > 100_000.0);
        assert!(value("agent_open_fds") >= 3.0);
        assert!(value("agent_threads") >= 1.0);
        assert!(value("agent_cpu_seconds_total") >= 0.0);
        let age_secs = value("agent_uptime_seconds");
        assert!((0.0..600.0).contains(&age_secs), "{age_secs}");
        let since_1970 = host.clock.now().wall.duration_since(SystemTime::UNIX_EPOCH).expect("after 1970");
        assert!((since_1970.as_secs_f64() - age_secs - value("agent_start_time_seconds")).abs() < 10.0);
        let version = format!("{{{}}} 1", env!("CARGO_PKG_VERSION"));
        assert_eq!(shown_of(&batch, "agent_build_info"), [version]);
    }

    #[test]
    fn the_start_stays_when_the_wall_clock_is_set() {
        let made = MadeHost::new();
        let clock = &made.host.clock;
        let stat = parse_stat(b"1 (a) S 1 1 1 0 -1 4 1 0 0 0 30 12 0 0 20 0 5 0 590000 1 44\n").expect("a stat line");
        let (mut start, mut batch) = (None, Batch::default());
        emit(&stat, &clock.now(), &mut start, &mut batch);
        clock.advance(Duration::from_secs(50));
        clock.set_wall(SystemTime::UNIX_EPOCH + Duration::from_secs(5));
        emit(&stat, &clock.now(), &mut start, &mut batch);
        assert_eq!(shown_of(&batch, "agent_start_time_seconds"), [" 1771777700", " 1771777700"]);
        assert_eq!(shown_of(&batch, "agent_uptime_seconds"), [" 100", " 150"]);
        assert_eq!(shown_of(&batch, "agent_cpu_seconds_total"), [" 0.42", " 0.42"]);
    }

    #[test]
    fn a_steady_cycle_allocates_nothing() {
        let host = Host::live(&Roots::default());
        let mut collector = AgentCollector::new();
        let mut batch = Batch::default();
        let mut allocations = u64::MAX;
        for _ in 0..3 {
            batch.clear();
            let counted = allocation_counter::measure(|| {
                collector.collect(&host, &mut batch).expect("read");
            });
            allocations = counted.count_total;
        }
        assert_eq!(allocations, 0);
    }
}
