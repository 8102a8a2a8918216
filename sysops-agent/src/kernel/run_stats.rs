//! How often the probes' programs run and for how long, as the kernel counts it while someone asks it to. Which programs
//! a probe has is left to the probe.
//!
//! The counting is the whole machine's: while it is on, each run of each BPF program of anyone reads the clock twice.
//! So it is held for some of the intervals only, and the time for which it was held is a counter of its own.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::ladder::Refusal;
use super::loader;
use crate::host::{Host, bytes};
use crate::model::{Batch, Desc, Metric, Unit};
use crate::spec::{Key, Values};

pub(super) static PERCENT: Key<f64> = Key::float(
    "kernel.stats_percent",
    5.0,
    0.0,
    100.0,
    "Share of the intervals in which the kernel counts how long BPF programs run, in percent. While it does, each run of any BPF \
     program of the machine takes some 50 ns longer. It needs CAP_SYS_ADMIN; without, runs are counted only while the sysctl \
     kernel.bpf_stats_enabled is 1. 0: the agent never asks for it.",
);

static SECONDS: Metric<1> = Metric::counter(
    "kernel_probe_run_seconds_total",
    Unit::Seconds,
    "CPU time for which a probe's programs ran while runs were counted.",
    &["probe"],
);
static RUNS: Metric<1> = Metric::counter(
    "kernel_probe_runs_total",
    Unit::Count,
    "Runs of a probe's programs while runs were counted.",
    &["probe"],
);
static COUNTED: Metric<0> = Metric::counter(
    "kernel_probe_run_counted_seconds_total",
    Unit::Seconds,
    "Time in which runs were counted: what kernel_probe_run_seconds_total has risen by, divided by this, is the part of one CPU.",
    &[],
);

pub(super) static METRICS: &[&Desc] = &[SECONDS.desc(), RUNS.desc(), COUNTED.desc()];

/// Runs of one or more programs since they were loaded, as far as they were counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Runs {
    /// How many.
    pub count: u64,
    /// How long all of them took.
    pub time: Duration,
    /// Runs that the kernel skipped, as the program was running on that CPU already: an interrupt came in between. They are
    /// counted always; `None` where the kernel does not tell (before 5.12).
    pub skipped: Option<u64>,
}

impl Runs {
    /// Of no program.
    pub(super) const NONE: Self = Self { count: 0, time: Duration::ZERO, skipped: Some(0) };

    /// What was counted since `earlier`; all of it where the programs are others by now.
    #[must_use]
    fn since(self, earlier: Self) -> Self {
        if self.count < earlier.count || self.time < earlier.time {
            return self;
        }
        Self { count: self.count - earlier.count, time: self.time - earlier.time, ..self }
    }

    /// Both together.
    #[must_use]
    pub(super) fn and(self, other: Self) -> Self {
        let both = self.skipped.zip(other.skipped);
        Self {
            count: self.count.saturating_add(other.count),
            time: self.time.saturating_add(other.time),
            skipped: both.map(|(one, other)| one.saturating_add(other)),
        }
    }
}

/// What /proc/self/fdinfo says of a program beside its type.
#[must_use]
#[cfg_attr(not(any(feature = "ebpf", test)), expect(dead_code, reason = "without the loader there are no programs"))]
pub(super) fn skipped(fdinfo: &[u8]) -> Option<u64> {
    bytes::lines(fdinfo).find_map(|line| bytes::u64(bytes::trim(line.strip_prefix(b"recursion_misses:")?)))
}

/// Runs of one probe. Others, another agent too, may have the kernel count at other times: those runs are in its numbers, and not in ours.
#[derive(Debug, Default)]
pub(super) struct Account {
    before: Option<Runs>,
    last: Option<Runs>,
    counted: Runs,
}

impl Account {
    /// An interval is over, with these numbers of the kernel's.
    pub(super) fn see(&mut self, runs: Option<Runs>) {
        self.before = std::mem::replace(&mut self.last, runs);
    }

    /// Runs were counted in the interval that is over.
    pub(super) fn count(&mut self) {
        if let (Some(last), Some(before)) = (self.last, self.before) {
            let Runs { count, time, .. } = last.since(before);
            self.counted.count = self.counted.count.saturating_add(count);
            self.counted.time = self.counted.time.saturating_add(time);
        }
    }

    /// What the kernel said last.
    pub(super) fn last(&self) -> Option<Runs> {
        self.last
    }
}

/// Holds the counting in the intervals that are due.
pub(super) struct Counting {
    plan: Plan,
    sysctl: PathBuf,
    held: Option<loader::Counting>,
    /// The sysctl was on at the last look.
    by_sysctl: bool,
    looked: Option<Duration>,
    counted: Duration,
}

/// Which intervals are due: the first, and then as many as make up the percentage.
struct Plan {
    percent: f64,
    /// Rises by `percent` in each interval; at 100 one is due.
    credit: f64,
}

impl Plan {
    fn new(percent: f64) -> Self {
        Self { percent, credit: 100.0 - percent }
    }

    fn is_due(&mut self) -> bool {
        if self.percent <= 0.0 {
            return false;
        }
        self.credit += self.percent;
        let is_due = self.credit >= 100.0;
        if is_due {
            self.credit -= 100.0;
        }
        is_due
    }
}

impl Counting {
    /// Not counting yet.
    #[must_use]
    pub(super) fn new(host: &Host, values: &Values) -> Self {
        let sysctl = sysctl(host);
        let plan = Plan::new(values.get(&PERCENT));
        Self { plan, sysctl, held: None, by_sysctl: false, looked: None, counted: Duration::ZERO }
    }

    /// Ends the interval before and begins the next; true when runs were counted in the one before. Where no programs run
    /// there is nothing to count.
    #[must_use]
    pub(super) fn turn(&mut self, host: &Host, any_run: bool) -> bool {
        let now = host.clock.now().monotonic;
        let by_sysctl = is_on(host, &self.sysctl);
        // Who turns it off and on again between two looks is not noticed: that is an interval at most.
        let was_counted = self.looked.is_some() && (self.held.is_some() || (self.by_sysctl && by_sysctl));
        if was_counted {
            self.counted += self.looked.map_or(Duration::ZERO, |before| now.saturating_sub(before));
        }
        (self.by_sysctl, self.looked) = (by_sysctl, Some(now));
        if !(any_run && self.plan.is_due()) {
            self.held = None;
        } else if self.held.is_none() {
            match loader::count_runs() {
                Ok(held) => self.held = Some(held),
                // Rights do not come back to a running process.
                Err(_) => self.plan.percent = 0.0,
            }
        }
        was_counted
    }

    /// Says for how long runs were counted, and what was counted of these probes, once anything was.
    #[expect(clippy::cast_precision_loss, reason = "counts below 2^53 are exact")]
    pub(super) fn collect<'a>(&self, probes: impl Iterator<Item = (&'a str, &'a Account)>, out: &mut Batch) {
        if self.counted.is_zero() {
            return;
        }
        out.counter(&COUNTED, [], self.counted.as_secs_f64());
        for (probe, account) in probes.filter(|(_, account)| account.last.is_some()) {
            out.counter(&SECONDS, [probe], account.counted.time.as_secs_f64());
            out.counter(&RUNS, [probe], account.counted.count as f64);
        }
    }
}

/// Whether runs can be counted.
///
/// # Errors
/// When they cannot, with what would change that.
pub(super) fn stands(host: &Host, values: &Values) -> Result<(), Refusal> {
    if is_on(host, &sysctl(host)) {
        return Ok(());
    }
    if values.get(&PERCENT) <= 0.0 {
        return Err(Refusal::new("kernel.stats_percent is 0", "set kernel.stats_percent"));
    }
    loader::count_runs().map(drop)
}

fn sysctl(host: &Host) -> PathBuf {
    host.files.proc("sys/kernel/bpf_stats_enabled")
}

fn is_on(host: &Host, sysctl: &Path) -> bool {
    let mut buffer = [0; 16];
    host.files.attribute(sysctl, &mut buffer).is_ok_and(|text| bytes::trim(text) == b"1")
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::spec::Value;

    fn machine(text: &str) -> (tempfile::TempDir, Host) {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("proc/sys/kernel");
        fs::create_dir_all(&path).expect("created");
        fs::write(path.join("bpf_stats_enabled"), text).expect("written");
        let host = Host::fixture(dir.path());
        (dir, host)
    }

    #[test]
    fn runs_that_were_skipped_are_read_where_the_kernel_tells_them() {
        // Of 6.18, and of 5.10.
        let text = b"pos:\t0\nflags:\t02000002\nprog_type:\t26\nrun_time_ns:\t53068101\nrun_cnt:\t192078\nrecursion_misses:\t3\n";
        assert_eq!(skipped(text), Some(3));
        assert_eq!(skipped(b"pos:\t0\nflags:\t02000002\nprog_type:\t26\nrun_cnt:\t192078\n"), None);
        let (one, other) = (Runs { skipped: Some(1), ..Runs::default() }, Runs::default());
        assert_eq!((one.and(one).skipped, one.and(other).skipped), (Some(2), None));
        assert_eq!((Runs::NONE.and(one), Runs::NONE.and(other)), (one, other));
    }

    #[test]
    fn where_nothing_runs_nothing_is_counted() {
        let (_dir, host) = machine("0\n");
        let mut counting = Counting::new(&host, &Values::default());
        for _ in 0..50 {
            assert!(!counting.turn(&host, false));
            host.clock.advance(Duration::from_secs(10));
        }
        assert!(counting.held.is_none());
    }

    #[test]
    fn while_the_sysctl_is_on_all_time_is_counted() {
        let (dir, host) = machine("1\n");
        let mut values = Values::default();
        values.set(PERCENT.spec(), Value::Float(0.0));
        let mut counting = Counting::new(&host, &values);
        assert!(!counting.turn(&host, true), "nothing has passed yet");
        host.clock.advance(Duration::from_secs(10));
        assert!(counting.turn(&host, true));
        assert_eq!(counting.counted, Duration::from_secs(10));
        fs::write(dir.path().join("proc/sys/kernel/bpf_stats_enabled"), "0\n").expect("our own");
        for _ in 0..3 {
            host.clock.advance(Duration::from_secs(10));
            assert!(!counting.turn(&host, true), "it is off");
        }
        assert_eq!(counting.counted, Duration::from_secs(10));
        let mut out = Batch::default();
        counting.collect([].into_iter(), &mut out);
        assert_eq!(out.iter().count(), 1, "what was counted stays said");
    }

    #[test]
    fn what_others_have_counted_is_not_ours() {
        let runs = |count: u64| Some(Runs { count, time: Duration::from_millis(count), skipped: None });
        let mut account = Account::default();
        for (count, was_counted) in [(100, false), (110, true), (500, false), (505, true), (3, true)] {
            account.see(runs(count));
            if was_counted {
                account.count();
            }
        }
        assert_eq!((account.counted.count, account.counted.time), (18, Duration::from_millis(18)));
        account.see(None);
        account.count();
        assert_eq!((account.last(), account.counted.count), (None, 18));
    }

    #[test]
    fn the_first_interval_is_due_and_then_as_many_as_are_wanted() {
        let due = |percent| {
            let mut plan = Plan::new(percent);
            (0..41).filter(|_| plan.is_due()).collect::<Vec<_>>()
        };
        assert_eq!(due(5.0), [0, 20, 40]);
        assert_eq!(due(100.0).len(), 41);
        assert!(due(0.0).is_empty());
    }
}
