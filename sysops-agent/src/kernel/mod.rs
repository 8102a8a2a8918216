//! eBPF probes, each with a ladder of rungs and a word on which it stands. Reading the kernel's log is left to
//! `logs`; joining both is left to `correlate`.

mod attach;
mod block_io;
#[cfg(test)]
mod btf_builder;
mod check;
mod disks;
mod facts;
mod fd;
mod hung_task;
mod ladder;
mod layout;
#[cfg(feature = "ebpf")]
mod loader;
#[cfg(not(feature = "ebpf"))]
#[path = "no_loader.rs"]
mod loader;
mod lost_stacks;
mod memory_leak;
mod oom_kill;
mod process;
mod record;
mod run_stats;
mod rung;
mod sieved;
mod sigkill;
#[cfg(feature = "ebpf")]
mod stacks;
#[cfg(not(feature = "ebpf"))]
#[path = "no_stacks.rs"]
mod stacks;
mod syscalls;
mod tasks;
mod tracefs;
mod watched;

use std::os::fd::BorrowedFd;
use std::time::Duration;

use sysops_common::counters::Counters;

use self::facts::Facts;
pub use self::rung::Rung;

use self::ladder::{Refusal, Step};
use self::run_stats::{Counting, Runs};
use crate::host::{EventSource, Host, StateFiles};
use crate::model::report;
use crate::model::{Batch, Desc, Event, LeakReport, Metric, Resource, Unit};
use crate::spec::{Key, KeySpec, Values};

/// Where a probe stands and why.
#[derive(Clone, Debug, PartialEq)]
pub struct Standing {
    /// The probe's name.
    pub name: &'static str,
    /// Its rung.
    pub rung: Rung,
    /// Why it stands on no better rung; empty on the best.
    pub reason: String,
    /// What an operator can do about it; empty when there is nothing to do.
    pub remedy: String,
    /// True when the configuration asked for a rung that cannot stand: an error, not a fallback.
    pub forced_and_failed: bool,
    /// Events taken from the kernel.
    pub received: u64,
    /// Events that the kernel side could not hand over, for any reason.
    pub dropped: u64,
    /// What it does beyond its rung.
    pub extras: Vec<Extra>,
}

impl Standing {
    /// The same for people and other processes.
    #[must_use]
    pub fn report(&self) -> report::Probe {
        let extra = |extra: &Extra| report::Extra {
            name: extra.name.to_owned(),
            means: extra.means.to_owned(),
            reason: extra.reason.clone(),
            remedy: extra.remedy.clone(),
        };
        report::Probe {
            name: self.name.to_owned(),
            rung: self.rung.word().to_owned(),
            reason: self.reason.clone(),
            remedy: self.remedy.clone(),
            received: self.received,
            dropped: self.dropped,
            extras: self.extras.iter().map(extra).collect(),
        }
    }
}

/// Something that a probe does beside the events of its rung, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extra {
    /// What.
    pub name: &'static str,
    /// By which means; `off` when by none.
    pub means: &'static str,
    /// Why by no better means; empty on the best.
    pub reason: String,
    /// What an operator can do about it; empty when there is nothing to do.
    pub remedy: String,
}

/// A look for leaks that someone asked for: it lasts for a while and then ends.
#[derive(Clone, Debug, PartialEq)]
pub struct Observation {
    /// What is looked for.
    pub resources: Vec<Resource>,
    /// The processes, by their ids in the /proc of the host. None: those that draw suspicion during the observation.
    pub pids: Vec<u32>,
    /// Memory is followed from each call of the process's allocator, which slows it down, and not from its page faults.
    pub malloc: bool,
    /// How long it is meant to last: what counts as growth is measured by it.
    pub length: Duration,
}

/// One probe: its ladder, and its programs once they stand.
trait Probe: Send {
    /// The ladder, best rung first, as far as facts tell.
    fn steps(&self) -> Vec<Step>;
    /// Loads, checks and attaches the programs of one rung; never called for `Kmsg`, `Proc` and `Off`. Returns only when the rung
    /// stands or has failed.
    fn attach(&mut self, rung: Rung, host: &Host, facts: &Facts) -> Result<(), Refusal>;
    /// Becomes readable when there may be events.
    fn fd(&self) -> Option<BorrowedFd<'_>>;
    /// Takes all events that are there.
    fn drain(&mut self, host: &Host, out: &mut Vec<Event>);
    /// Adds readings beyond the counters that every probe has.
    fn collect(&mut self, _host: &Host, _out: &mut Batch) {}
    /// What speaks against the rung on which the probe stands, once it has collected: a contradiction between what its
    /// programs read and what the machine says otherwise. Who says so has detached them; the probe goes to its next rung.
    fn contradiction(&mut self) -> Option<Refusal> {
        None
    }
    /// Watches what `observation` asks for, and nothing that the configuration names. Asked before anything is attached;
    /// false from a probe that does not attribute any of that.
    fn observe(&mut self, _observation: &Observation) -> bool {
        false
    }
    /// Watches one process more.
    fn watch_leaks(&mut self, _pid: u32) {}
    /// Adds a report for each process that is watched for leaks, as of now. Frames have no names yet.
    fn leaks(&mut self, _host: &Host, _out: &mut Vec<LeakReport>) {}
    /// Why a probe that stands watches nothing just now, or not all.
    fn stands_by(&self) -> Option<&'static str> {
        None
    }
    /// The probe has come to its rung; `wanted` unless the configuration turned it off. What does not depend on the rung
    /// is put up here. May be called again.
    fn settled(&mut self, _wanted: bool, _host: &Host, _facts: &Facts) {}
    /// What it does beyond its rung.
    fn extras(&self) -> Vec<Extra> {
        Vec::new()
    }
    /// When to drain again although nothing becomes readable, on the monotonic clock.
    fn next_deadline(&self) -> Option<Duration> {
        None
    }
    /// Keeps what it must know after a restart in `files`, and reads what is there.
    fn keep_in(&mut self, _host: &Host, _files: &StateFiles) {}
    /// Adds, once, the events of an earlier life of the agent that are not over.
    fn take_told(&mut self, _out: &mut Vec<Event>) {}
    /// Takes note of an event that the kernel's log told, and adds to it what the probe knows.
    fn follow(&mut self, _host: &Host, _event: &mut Event) {}
    /// What the probe does without on the rung where it stands, and why.
    fn lacks(&self) -> Option<String> {
        None
    }
    /// What the programs counted; `None` when nothing is attached.
    fn counters(&self) -> Option<Counters>;
    /// Runs of the programs; `None` when nothing is attached. Who has no programs has nothing to say.
    fn runs(&self) -> Option<Runs> {
        None
    }
}

/// A probe as the list knows it.
pub struct Entry {
    /// Its file's name, the same in sysops-ebpf and sysops-common.
    pub name: &'static str,
    /// What it gives beyond [`METRICS`].
    pub metrics: &'static [&'static Desc],
    /// What can be configured.
    pub keys: &'static [&'static KeySpec],
    /// The key that forces a rung.
    rung: &'static Key<String>,
    /// Reads the probe's own facts. Attaches nothing.
    new: fn(&Host, &Facts, &Values) -> Box<dyn Probe>,
}

/// All probes.
pub static ALL: &[&Entry] = &[
    &oom_kill::ENTRY,
    &sigkill::ENTRY,
    &hung_task::ENTRY,
    &block_io::ENTRY,
    &fd::ENTRY,
    &memory_leak::ENTRY,
    &tasks::ENTRY,
];

static RECEIVED: Metric<1> = Metric::counter(
    "kernel_probe_received_total",
    Unit::Count,
    "Events that a probe's programs took from the kernel.",
    &["probe"],
);
static DROPPED: Metric<2> = Metric::counter(
    "kernel_probe_dropped_total",
    Unit::Count,
    "Events that a probe's programs could not hand over, by reason: ring_full, map_full, read_fault, stale; and runs that the \
     kernel skipped as the program was running on that CPU already: recursion.",
    &["probe", "reason"],
);
static RUNG: Metric<2> = Metric::gauge(
    "kernel_probe_rung",
    Unit::Bool,
    "1 for the rung on which a probe stands: fentry, kprobe, tp_btf, raw_tracepoint, uprobe, tracepoint, iter, kmsg, proc, off.",
    &["probe", "rung"],
);

/// The reason of a loss that the kernel counts and no program: nothing is known of what would have come of that run.
const SKIPPED: &str = "recursion";

/// What the layer says about every probe.
pub static METRICS: &[&Desc] = &[
    RECEIVED.desc(),
    DROPPED.desc(),
    RUNG.desc(),
    run_stats::METRICS[0],
    run_stats::METRICS[1],
    run_stats::METRICS[2],
];

/// What can be configured for all probes together.
pub static KEYS: &[&KeySpec] = &[run_stats::PERCENT.spec()];

/// Whether runs of the probes' programs can be counted.
///
/// # Errors
/// When not: the reason, and what can be done about it.
pub fn can_count_runs(host: &Host, values: &Values) -> Result<(), (String, String)> {
    run_stats::stands(host, values).map_err(|refusal| (refusal.reason, refusal.remedy))
}

/// The probes, each on its rung.
pub struct Kernel {
    probes: Vec<Running>,
    counting: Counting,
}

struct Running {
    standing: Standing,
    probe: Box<dyn Probe>,
    /// The ladder with all that has spoken against its rungs.
    steps: Vec<Step>,
    forced: Option<Rung>,
    account: run_stats::Account,
}

impl Kernel {
    /// Puts every probe on the best rung that its facts and the configuration allow. One that is forced to a rung which
    /// cannot stand is off, with `forced_and_failed`.
    #[must_use]
    pub fn start(host: &Host, values: &Values) -> Self {
        let facts = Facts::read(host);
        let probes =
            ALL.iter().map(|entry| Running::start(entry, (entry.new)(host, &facts, values), host, &facts, values));
        Self { probes: probes.collect(), counting: Counting::new(host, values) }
    }

    /// Only the probes that attribute what `observation` asks for, each on the best rung that its facts and the
    /// configuration allow. Who asked drains when [`EventSource::fds`] are readable and collects about once a second, and
    /// in the end takes [`Self::leaks`].
    #[must_use]
    pub fn observe(host: &Host, values: &Values, observation: &Observation) -> Self {
        let facts = Facts::read(host);
        let watching = |entry: &&'static Entry| {
            let mut probe = (entry.new)(host, &facts, values);
            probe.observe(observation).then(|| Running::start(entry, probe, host, &facts, values))
        };
        Self { probes: ALL.iter().filter_map(watching).collect(), counting: Counting::new(host, values) }
    }

    /// From the next collection on the process `pid` is watched for leaks, too.
    pub fn watch_leaks(&mut self, pid: u32) {
        for running in &mut self.probes {
            running.probe.watch_leaks(pid);
        }
    }

    /// What the watched processes hold, by stack, as of now: one report a process and resource. Frames have module and
    /// offset; names are put in by `symbolize`.
    #[must_use]
    pub fn leaks(&mut self, host: &Host) -> Vec<LeakReport> {
        let mut reports = Vec::new();
        for running in &mut self.probes {
            running.probe.leaks(host, &mut reports);
        }
        reports
    }

    /// Where each probe stands, with counters as of now.
    #[must_use]
    pub fn standings(&self) -> Vec<Standing> {
        let with_counters = |running: &Running| {
            let counters = running.probe.counters().unwrap_or_default();
            let skipped = running.account.last().and_then(|runs| runs.skipped).unwrap_or_default();
            let (received, dropped) = (counters.received, counters.dropped().saturating_add(skipped));
            Standing { received, dropped, extras: running.probe.extras(), ..running.standing.clone() }
        };
        self.probes.iter().map(with_counters).collect()
    }

    /// Keeps what probes must know after a restart in `files`, and reads what is there.
    pub fn keep_in(&mut self, host: &Host, files: &StateFiles) {
        for running in &mut self.probes {
            running.probe.keep_in(host, files);
        }
    }

    /// Events of an earlier life of the agent that are not over, once.
    pub fn take_told(&mut self) -> Vec<Event> {
        let mut told = Vec::new();
        for running in &mut self.probes {
            running.probe.take_told(&mut told);
        }
        told
    }

    /// Shows the probes an event that the kernel's log told.
    pub fn follow(&mut self, host: &Host, event: &mut Event) {
        for running in &mut self.probes {
            running.probe.follow(host, event);
        }
    }

    /// Takes the kernel's log away from the probes for which it was to stand in: it is not read, for this reason.
    pub fn do_without_log(&mut self, reason: &str, remedy: &str) {
        for Running { standing, forced, .. } in &mut self.probes {
            if standing.rung != Rung::Kmsg {
                continue;
            }
            standing.rung = Rung::Off;
            standing.forced_and_failed = forced.is_some();
            if forced.is_some() {
                standing.reason = format!("kmsg is asked for, but: {reason}");
                remedy.clone_into(&mut standing.remedy);
            } else {
                standing.reason = format!("{}; kmsg: {reason}", standing.reason);
                if !remedy.is_empty() {
                    standing.remedy += if standing.remedy.is_empty() { "" } else { "; " };
                    standing.remedy += remedy;
                }
            }
        }
    }
}

impl Running {
    fn start(entry: &'static Entry, probe: Box<dyn Probe>, host: &Host, facts: &Facts, values: &Values) -> Self {
        let standing = Standing {
            name: entry.name,
            rung: Rung::Off,
            reason: String::new(),
            remedy: String::new(),
            forced_and_failed: false,
            received: 0,
            dropped: 0,
            extras: Vec::new(),
        };
        let steps = probe.steps();
        let forced = ladder::forced(values, entry.rung);
        let mut running = Self { standing, probe, steps, forced, account: run_stats::Account::default() };
        running.climb(host, facts);
        running
    }

    fn climb(&mut self, host: &Host, facts: &Facts) {
        let choice = ladder::climb(self.steps.clone(), self.forced, |rung| self.probe.attach(rung, host, facts));
        self.probe.settled(self.forced != Some(Rung::Off), host, facts);
        let standby = self.probe.stands_by().filter(|_| choice.rung != Rung::Off);
        let lacks = self.probe.lacks().filter(|_| choice.rung != Rung::Off);
        let reasons = [Some(choice.reason.as_str()).filter(|reason| !reason.is_empty()), standby, lacks.as_deref()];
        self.standing.reason = reasons.into_iter().flatten().collect::<Vec<_>>().join("; ");
        self.standing.rung = choice.rung;
        self.standing.remedy = choice.remedy;
        self.standing.forced_and_failed = choice.forced_and_failed;
    }

    /// Goes on to the next rung. This is rare, so the facts are read anew and not kept.
    fn fall(&mut self, refusal: &Refusal, host: &Host) {
        let from = self.standing.rung;
        for step in self.steps.iter_mut().filter(|step| step.rung == from) {
            step.stands = Err(refusal.clone());
        }
        self.climb(host, &Facts::read(host));
        tracing::warn!(
            "probe {}: from {} to {}: {}",
            self.standing.name,
            from.word(),
            self.standing.rung.word(),
            refusal.reason
        );
    }
}

impl EventSource for Kernel {
    fn fds(&self) -> Vec<BorrowedFd<'_>> {
        self.probes.iter().filter_map(|running| running.probe.fd()).collect()
    }

    fn drain(&mut self, host: &Host, out: &mut Vec<Event>) {
        for running in &mut self.probes {
            running.probe.drain(host, out);
        }
    }

    fn next_deadline(&self) -> Option<Duration> {
        self.probes.iter().filter_map(|running| running.probe.next_deadline()).min()
    }

    #[expect(clippy::cast_precision_loss, reason = "counts below 2^53 are exact")]
    fn collect(&mut self, host: &Host, out: &mut Batch) {
        for running in &mut self.probes {
            running.account.see(running.probe.runs());
        }
        let any_run = self.probes.iter().any(|running| running.account.last().is_some());
        if self.counting.turn(host, any_run) {
            self.probes.iter_mut().for_each(|running| running.account.count());
        }
        self.counting.collect(self.probes.iter().map(|running| (running.standing.name, &running.account)), out);
        for running in &mut self.probes {
            let Running { standing, probe, account, .. } = running;
            out.gauge(&RUNG, [standing.name, standing.rung.word()], 1.0);
            if let Some(counters) = probe.counters() {
                out.counter(&RECEIVED, [standing.name], counters.received as f64);
                for (reason, count) in counters.dropped_by_reason() {
                    out.counter(&DROPPED, [standing.name, reason], count as f64);
                }
            }
            if let Some(skipped) = account.last().and_then(|runs| runs.skipped) {
                out.counter(&DROPPED, [standing.name, SKIPPED], skipped as f64);
            }
            probe.collect(host, out);
            if let Some(refusal) = probe.contradiction() {
                running.fall(&refusal, host);
            }
        }
    }
}

/// Why a probe that is told process ids by /proc cannot stand where /proc has other numbers.
fn other_pids() -> Refusal {
    Refusal::new(
        "the agent's /proc does not number processes as the kernel does",
        "run the agent in the host's pid namespace, or mount the host's /proc and set HOST_PROC",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine that has nothing: no BTF, no tracefs, no log.
    fn nothing() -> Host {
        Host::fixture(&std::env::temp_dir().join(format!("kernel-nothing-{}", std::process::id())))
    }

    #[test]
    fn where_nothing_can_stand_every_probe_says_why() {
        let mut kernel = Kernel::start(&nothing(), &Values::default());
        assert_eq!(kernel.standings().len(), ALL.len());
        for standing in kernel.standings() {
            assert_eq!(standing.rung, Rung::Off, "{standing:?}");
            assert!(!standing.reason.is_empty() && !standing.forced_and_failed, "{standing:?}");
        }
        assert!(kernel.fds().is_empty());
        let mut batch = Batch::default();
        kernel.collect(&nothing(), &mut batch);
        assert_eq!(batch.len(), ALL.len(), "a rung each, and no counters of what does not run");
    }

    #[test]
    fn the_list_is_named_by_the_keys() {
        for entry in ALL {
            assert_eq!(entry.rung.spec().path, format!("kernel.{}.rung", entry.name));
            assert!(entry.keys.contains(&entry.rung.spec()));
        }
    }
}
