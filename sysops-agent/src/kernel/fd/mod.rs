//! File descriptors that processes take and do not give back, by the stack that took them. Processes whose open descriptors
//! become more and more are watched by themselves, others by name; nothing is attached while none is. How many are open in
//! all is told by the collector of file descriptors, names of functions are left to `symbolize`.

mod floor;
mod follow;
mod groups;
mod kind;
mod open;
mod rungs;
mod suspects;

use std::os::fd::BorrowedFd;
use std::time::Duration;

use sysops_common::counters::Counters;
use sysops_common::fd::WATCHED_MAX;

use self::follow::{Around, Followed, Measures};
use self::rungs::Rungs;
use self::suspects::{Measure, Suspects};
use super::facts::Facts;
use super::ladder::{self, Refusal, Step, WORDS};
use super::process::Process;
use super::run_stats::Runs;
use super::watched::{Change, Watched};
use super::{Entry, Observation, Probe, Rung};
use crate::host::{Descriptors, Host, OpenFds};
use crate::model::{Batch, Desc, Event, LeakReport, Metric, Resource, Unit};
use crate::spec::{Key, Values};

/// The probe in the list.
pub(super) static ENTRY: Entry = Entry {
    name: "fd",
    metrics: METRICS,
    keys: &[
        RUNG.spec(),
        WATCH.spec(),
        SUSPECTS_MAX.spec(),
        WINDOW.spec(),
        RISE.spec(),
        LIMIT_PERCENT.spec(),
        DESCRIPTORS_MAX.spec(),
    ],
    rung: &RUNG,
    new: |host, facts, values| Box::new(Fds::new(host, facts, values)),
};

static RUNG: Key<String> = Key::choice(
    "kernel.fd.rung",
    WORDS,
    "auto",
    "How new and closed file descriptors are seen. `auto` takes the best rung that stands; one that is named here and cannot \
     stand is an error.",
);
static WATCH: Key<Vec<String>> = Key::list(
    "kernel.fd.watch",
    &[],
    "Names of the processes whose file descriptors are always followed, as in /proc/<pid>/comm, beside those that become \
     suspicious by themselves. At most 64 processes are followed at once. While there is none, nothing is attached and \
     nothing is slowed down.",
);
static SUSPECTS_MAX: Key<i64> = Key::int(
    "kernel.fd.suspects_max",
    8,
    0,
    WATCHED_MAX as i64,
    "How many processes are followed at once because they look as if they leak file descriptors; 0 for none.",
);
static WINDOW: Key<Duration> = Key::secs(
    "kernel.fd.window_secs",
    300,
    30,
    86_400,
    "How long the open descriptors of a process must rise, with all that comes and goes taken away, until it looks as if it \
     leaks; and of a stack in it, until it is told as a leak. Slow leaks are looked for over a window twelve times as long.",
);
static RISE: Key<i64> =
    Key::int("kernel.fd.rise", 16, 1, 1_000_000, "By how many descriptors they must rise in that time.");
static LIMIT_PERCENT: Key<f64> = Key::float(
    "kernel.fd.limit_percent",
    80.0,
    1.0,
    100.0,
    "From this share of the limit on open files (RLIMIT_NOFILE, the soft limit) on any rise over half of that time will do.",
);
static DESCRIPTORS_MAX: Key<i64> = Key::int(
    "kernel.fd.descriptors_max",
    65_536,
    1024,
    1 << 20,
    "How many descriptors are followed at once, in all processes. Each takes some 120 bytes of the kernel's memory while any \
     process is followed.",
);

static INSTALLS: Metric<2> = Metric::counter(
    "process_fd_installs_total",
    Unit::Count,
    "File descriptors that a followed process got, since it is followed.",
    &["pid", "comm"],
);
static CLOSES: Metric<2> = Metric::counter(
    "process_fd_closes_total",
    Unit::Count,
    "File descriptors that a followed process closed by close(2), since it is followed.",
    &["pid", "comm"],
);
static ATTRIBUTED: Metric<2> = Metric::gauge(
    "process_fd_attributed",
    Unit::Count,
    "Open file descriptors of a followed process of which it is known which stack took them.",
    &["pid", "comm"],
);
static UNATTRIBUTED: Metric<2> = Metric::gauge(
    "process_fd_unattributed",
    Unit::Count,
    "Open file descriptors of a followed process of which it is not known which stack took them: open before it was \
     followed, or come by a way that is not seen.",
    &["pid", "comm"],
);
static LEFT_OUT: Metric<0> = Metric::gauge(
    "process_fd_unwatched",
    Unit::Count,
    "Processes that bear a name of kernel.fd.watch and are not followed, as 64 others are.",
    &[],
);
static SUSPECTS: Metric<0> =
    Metric::gauge("process_fd_suspects", Unit::Count, "Processes that look as if they leak file descriptors.", &[]);
static METRICS: &[&Desc] =
    &[INSTALLS.desc(), CLOSES.desc(), ATTRIBUTED.desc(), UNATTRIBUTED.desc(), LEFT_OUT.desc(), SUSPECTS.desc()];

/// Processes that are counted at a look where counting means listing, which is dear.
const LISTED_MAX: u32 = 512;

struct Fds {
    rungs: Rungs,
    watched: Watched,
    /// None when only named processes are followed.
    suspects: Option<Suspects>,
    suspects_max: usize,
    /// Suspects as of the last look, whose floor rose most first.
    found: Vec<(u32, u32)>,
    counter: OpenFds,
    descriptors: Option<Descriptors>,
    measures: Measures,
    /// The agent itself, which keeps files of others open: it does not suspect itself.
    own: Option<u32>,
    processes: u32,
    round: u32,
    standing: Option<Standing>,
    contradiction: Option<Refusal>,
    /// The configuration leaves the rung to the probe.
    is_free: bool,
    /// Programs at functions and on tracepoints are passed over too often.
    passed_over: Option<Refusal>,
    /// Whom the programs follow whose place others take.
    kept: Option<Followed>,
    events: Vec<Event>,
    /// Someone waits for a report, also of those that end meanwhile.
    is_observed: bool,
    /// Reports of these.
    ended: Vec<LeakReport>,
}

struct Standing {
    rung: Rung,
    /// There only while there is something to watch.
    followed: Option<Followed>,
}

impl Fds {
    fn new(host: &Host, facts: &Facts, values: &Values) -> Self {
        let number = |key| u32::try_from(values.get(key)).expect("the key's bounds");
        let measures =
            Measures { window: values.get(&WINDOW), rise: number(&RISE), limit_percent: values.get(&LIMIT_PERCENT) };
        let suspects_max = number(&SUSPECTS_MAX) as usize;
        let mut fds = Self {
            rungs: Rungs::new(host, facts, number(&DESCRIPTORS_MAX)),
            watched: Watched::new(host, &values.get(&WATCH), WATCHED_MAX),
            suspects: None,
            suspects_max,
            found: Vec::new(),
            counter: OpenFds::new(&host.files.proc("")),
            descriptors: Descriptors::new(host).ok(),
            measures,
            own: Process::own(host).status("Tgid"),
            processes: 0,
            round: 0,
            standing: None,
            contradiction: None,
            is_free: ladder::forced(values, &RUNG).is_none(),
            passed_over: None,
            kept: None,
            events: Vec::new(),
            is_observed: false,
            ended: Vec::new(),
        };
        fds.suspects = (suspects_max > 0).then(|| fds.new_suspects());
        fds
    }

    fn new_suspects(&self) -> Suspects {
        let Measures { window, rise, limit_percent } = self.measures;
        Suspects::new(Measure { window, rise, limit_percent })
    }

    fn is_idle(&self) -> bool {
        self.suspects.is_none() && self.watched.has_no_names() && self.watched.wanted().is_empty()
    }
}

impl Probe for Fds {
    fn steps(&self) -> Vec<Step> {
        self.rungs.steps()
    }

    fn attach(&mut self, rung: Rung, host: &Host, _facts: &Facts) -> Result<(), Refusal> {
        // On tracepoints the kernel passes over programs for the same reason.
        if let Some(refusal) = self.passed_over.as_ref().filter(|_| matches!(rung, Rung::Fentry | Rung::Tracepoint)) {
            return Err(refusal.clone());
        }
        let kept = self.kept.take();
        let followed = self.rungs.verify(rung).and_then(|()| self.take_over(rung, kept))?;
        self.standing = Some(Standing { rung, followed });
        // Whoever is to be followed from the start is, from now on.
        if self.watched.has_no_names() && self.watched.wanted().is_empty() { Ok(()) } else { self.refresh(host) }
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.standing.as_ref()?.followed.as_ref()?.fd())
    }

    fn drain(&mut self, host: &Host, out: &mut Vec<Event>) {
        if let Some(Standing { followed: Some(followed), .. }) = &mut self.standing {
            followed.drain(host);
        }
        out.append(&mut self.events);
    }

    #[expect(clippy::cast_precision_loss, reason = "counts below 2^53 are exact")]
    fn collect(&mut self, host: &Host, out: &mut Batch) {
        if self.is_idle() || self.standing.is_none() {
            return;
        }
        if let Err(refusal) = self.refresh(host) {
            self.contradiction = Some(refusal);
            return;
        }
        out.gauge(&LEFT_OUT, [], f64::from(self.watched.left_out()));
        if self.suspects.is_some() {
            out.gauge(&SUSPECTS, [], self.found.len() as f64);
        }
        let Some(Standing { rung, followed: Some(followed) }) = &mut self.standing else { return };
        if let Some(descriptors) = &mut self.descriptors {
            let counter = &mut self.counter;
            let mut around = Around { host, rung: *rung, descriptors, counter, targets: self.watched.targets() };
            followed.look(&mut around, &mut self.events);
        }
        if *rung == Rung::Fentry && self.is_free && self.rungs.has_kprobes {
            let times = |(missed, seen)| format!(": {missed} times while {seen} descriptors were seen");
            self.passed_over = followed.passed_over().map(|counts| passed_over(&times(counts)));
            self.contradiction = self.passed_over.clone();
        }
        for target in self.watched.targets() {
            let labels = [target.pid_text.as_str(), target.comm.as_str()];
            if let Some(counts) = followed.counts(target.pid) {
                out.counter(&INSTALLS, labels, counts.installs as f64);
                out.counter(&CLOSES, labels, counts.closes as f64);
            }
            if let Some((attributed, open)) = followed.attributed(target.pid) {
                out.gauge(&ATTRIBUTED, labels, attributed as f64);
                out.gauge(&UNATTRIBUTED, labels, (open - attributed) as f64);
            }
        }
    }

    fn contradiction(&mut self) -> Option<Refusal> {
        let refusal = self.contradiction.take()?;
        let followed = self.standing.take().and_then(|standing| standing.followed);
        if self.passed_over.as_ref() == Some(&refusal) {
            self.kept = followed;
        } else {
            detach(followed);
        }
        Some(refusal)
    }

    fn observe(&mut self, observation: &Observation) -> bool {
        if !observation.resources.contains(&Resource::Fd) {
            return false;
        }
        self.is_observed = true;
        self.watched.forget_names();
        for pid in &observation.pids {
            self.watched.want(*pid);
        }
        self.measures.window = observation.length;
        // Someone waits for the result: there is no time to find out, and for this while it may cost more.
        if self.is_free && self.rungs.has_kprobes && self.rungs.preempts {
            self.passed_over = Some(passed_over(""));
        }
        self.suspects = None;
        if observation.pids.is_empty() {
            // Half of the time to suspect, the other half to follow.
            self.measures.window = observation.length / 2;
            self.suspects_max = self.suspects_max.max(1);
            self.suspects = Some(self.new_suspects());
        }
        true
    }

    fn watch_leaks(&mut self, pid: u32) {
        self.watched.want(pid);
    }

    fn leaks(&mut self, host: &Host, out: &mut Vec<LeakReport>) {
        out.append(&mut self.ended);
        let Some(Standing { rung, followed: Some(followed) }) = &mut self.standing else { return };
        let Some(descriptors) = &mut self.descriptors else { return };
        let counter = &mut self.counter;
        let mut around = Around { host, rung: *rung, descriptors, counter, targets: self.watched.targets() };
        followed.report(&mut around, self.rungs.stackless.as_ref(), out);
    }

    fn stands_by(&self) -> Option<&'static str> {
        if self.watched.has_no_names() && self.watched.wanted().is_empty() {
            return Some(if self.suspects.is_some() {
                "stands by: no process looks as if it leaked file descriptors"
            } else {
                "stands by: kernel.fd.watch is empty"
            });
        }
        None
    }

    fn counters(&self) -> Option<Counters> {
        self.standing.as_ref()?.followed.as_ref()?.counters()
    }

    fn runs(&self) -> Option<Runs> {
        Some(self.standing.as_ref()?.followed.as_ref()?.runs())
    }
}

impl Drop for Fds {
    fn drop(&mut self) {
        detach(self.standing.take().and_then(|standing| standing.followed));
    }
}

impl Fds {
    /// Whom programs followed whose place kprobes take is followed without a gap; on other rungs they are let go.
    fn take_over(&self, rung: Rung, kept: Option<Followed>) -> Result<Option<Followed>, Refusal> {
        let Some(mut followed) = kept else { return Ok(None) };
        let exchanged = if rung == Rung::Kprobe { followed.exchange(&self.rungs) } else { Ok(()) };
        if rung == Rung::Kprobe && exchanged.is_ok() {
            return Ok(Some(followed));
        }
        detach(Some(followed));
        exchanged.map(|()| None)
    }

    /// Looks which processes there are to follow, and attaches or detaches when the first comes or the last goes.
    fn refresh(&mut self, host: &Host) -> Result<(), Refusal> {
        let Some(Standing { rung, mut followed }) = self.standing.take() else { return Ok(()) };
        self.look_around(host, rung, followed.as_mut());
        if self.watched.targets().is_empty() {
            detach(followed.take());
        } else {
            let mut running = match followed {
                Some(running) => running,
                None => Followed::start(host, self.rungs.arm(host, rung)?, self.measures)?,
            };
            for target in self.watched.targets() {
                if let Some(descriptors) = self.descriptors.as_mut().filter(|_| !running.follows(target.pid)) {
                    running.follow(host, target, descriptors)?;
                }
            }
            followed = Some(running);
        }
        self.standing = Some(Standing { rung, followed });
        Ok(())
    }

    /// Counts the descriptors of all processes, decides who is suspicious, and sees who has come and gone.
    fn look_around(&mut self, host: &Host, rung: Rung, mut followed: Option<&mut Followed>) {
        let now = host.clock.now().monotonic;
        self.round = self.round.wrapping_add(1);
        // Where counting means listing, some are counted at each look.
        let turns = if self.counter.by_size() { 1 } else { self.processes / LISTED_MAX + 1 };
        let Self { watched, suspects, counter, round, processes, own, is_observed, ended, rungs, .. } = self;
        *processes = 0;
        if let Some(suspects) = suspects {
            suspects.start();
        }
        let count = |process: crate::host::Process<'_>| {
            *processes += 1;
            let Some(suspects) = suspects.as_mut().filter(|_| *own != Some(process.pid)) else { return };
            if !(process.pid ^ *round).is_multiple_of(turns) {
                suspects.pass_over(process.pid);
            } else if let Ok(open) = counter.of(process) {
                suspects.see(now, process.pid, open);
            }
        };
        let looked = watched.look(count, |change| {
            if let (Change::Went(pid), Some(followed)) = (change, followed.as_deref_mut()) {
                if *is_observed {
                    ended.extend(followed.last_words(host, pid, rung, rungs.stackless.as_ref()));
                }
                followed.forget(pid);
            }
        });
        if let Err(error) = looked {
            tracing::debug!("fd: {error}: {}", error.source);
            return;
        }
        self.choose_suspects();
    }

    /// Those that look most as if they leaked are followed from the next look on, those that have calmed down no longer.
    fn choose_suspects(&mut self) {
        let Self { suspects: Some(suspects), watched, descriptors, found, suspects_max, .. } = self else { return };
        suspects.end();
        suspects.find(|pid| descriptors.as_ref().and_then(|descriptors| descriptors.soft_limit(pid)), found);
        let calm: Vec<u32> = watched.wanted().iter().copied().filter(|&pid| suspects.is_calm(pid)).collect();
        calm.into_iter().for_each(|pid| watched.let_go(pid));
        for (pid, rise) in found.iter() {
            if watched.wanted().len() >= *suspects_max {
                break;
            }
            if !watched.wanted().contains(pid) {
                tracing::info!("fd: process {pid} holds {rise} descriptors more than a while ago: they are followed");
                watched.want(*pid);
            }
        }
    }
}

fn passed_over(times: &str) -> Refusal {
    let what = "this kernel lets others run before a program is through, and passes over it for them";
    Refusal::new(format!("{what}{times}"), "")
}

/// For each tracepoint the kernel waits until no CPU runs its programs any more: two seconds for all, in which no kernel
/// event may wait.
fn detach(followed: Option<Followed>) {
    let Some(followed) = followed else { return };
    // Without a thread the programs are detached here and now: what is not run is dropped.
    let detach = move || drop(followed);
    let spawned = std::thread::Builder::new().name("fd-detach".to_owned()).spawn(detach);
    if let Err(error) = spawned {
        tracing::debug!("fd: no thread to detach in: {error}");
    }
}
