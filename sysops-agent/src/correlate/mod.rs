//! Joins what several sources say of the same kernel event into one event, and tells each hang once. Pure: time is a
//! parameter. Who waits for [`Correlator::next_deadline`] is left to `pipeline`.
//!
//! An OOM kill is the same when the task (process or thread id, and name) is the same and the times are near. Kills of
//! one incident keep one name for it, also those of which only the log knew. A SIGKILL has one source and passes.
//!
//! The kernel reports a hung task again at each check while it hangs. It is the same hang when it began
//! (`time - blocked_seconds`) before the last report of it: a task that ran in between was counted anew by the kernel,
//! so its next hang begins later. Kernels 3.10 and 4.18 print the timeout instead of the time waited; there reports
//! of one hang are one timeout apart and those of two at least two, so that one that says the same number and comes
//! within 1.25 times of it is of the same hang. A later hang of the task is a new event. Where it is known how often
//! the task has run, that alone decides.

mod join;

use std::collections::VecDeque;
use std::time::Duration;

use crate::model::event::Phase;
use crate::model::{Batch, Desc, Detail, Event, Metric, Source, Tick, Unit};

static EVENTS: Metric<1> = Metric::counter(
    "kernel_events_total",
    Unit::Count,
    "Kernel events, each counted once however many sources saw it.",
    &["kind"],
);
static REPORTS: Metric<1> = Metric::counter(
    "kernel_event_reports_total",
    Unit::Count,
    "What became of second reports of a kernel event: joined with the first, late (the event had been told), or \
     repeated by the same source; and reports that were dropped because the agent did not get to take them.",
    &["outcome"],
);

/// The metrics of this component.
pub static METRICS: &[&Desc] = &[EVENTS.desc(), REPORTS.desc()];

/// How long an event waits for what the other source knows. With the way through the kernel and the channels an
/// OOM kill stays below 100 ms.
const HOLD_KILL: Duration = Duration::from_millis(60);
/// A hang is seconds old when it is reported, and its stack takes a while to be logged.
const HOLD_HANG: Duration = Duration::from_millis(150);
/// Farthest that probe and log of one kill may lie apart: the log's clock is known to within its drift, and by the
/// time for which the agent was stopped if it had not yet learned that clock. No process of that name and number is
/// killed again so soon that the one was seen by the probe alone and the other by the log alone.
const SAME_KILL: Duration = Duration::from_secs(10);
/// Farthest that two reports of one source of one kill may lie apart (the log has some twice).
const SAME_SOURCE: Duration = Duration::from_secs(1);
/// Longest pause in the reports of one hang where none of them says how long it is: two of the kernel's default
/// timeouts.
const SAME_HANG: Duration = Duration::from_secs(240);
/// Kills and hangs that are remembered, each.
const MAX_SEEN: usize = 1024;
/// Incidents that probe and log have named differently, and that are remembered.
const MAX_RENAMED: usize = 64;

/// Which sources give events of a kind: nothing waits for one that gives none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sources {
    /// A BPF program.
    pub probe: bool,
    /// The kernel's log.
    pub log: bool,
}

impl Sources {
    fn of(event: &Event) -> Self {
        let log = event.source.contains(&Source::Kmsg);
        Self { probe: event.source.iter().any(|source| *source != Source::Kmsg), log }
    }

    fn has(self, other: Self) -> bool {
        (self.probe || !other.probe) && (self.log || !other.log)
    }

    fn and(self, other: Self) -> Self {
        Self { probe: self.probe || other.probe, log: self.log || other.log }
    }
}

/// Joins events.
#[derive(Debug, Default)]
pub struct Correlator {
    kill_sources: Sources,
    hang_sources: Sources,
    kills: VecDeque<Seen>,
    hangs: VecDeque<Seen>,
    /// Wait for no one: they have one source, or were pushed out of a full list.
    passing: Vec<Event>,
    /// The log's name of an incident, and the probe's.
    renamed: VecDeque<(String, String)>,
    told_kills: u64,
    told_hangs: u64,
    told_sigkills: u64,
    told_fd_leaks: u64,
    told_slow_ios: u64,
    joined: u64,
    late: u64,
    repeated: u64,
}

/// An event that was told or waits.
#[derive(Debug)]
struct Seen {
    pid: Option<u32>,
    tid: Option<u32>,
    comm: Option<String>,
    thread_comm: Option<String>,
    sources: Sources,
    /// How often the hung task had run, where that is known.
    switches: Option<u64>,
    /// Time of its last report.
    last: Duration,
    blocked: Option<Duration>,
    /// The event, and until when it waits; `None` when it was told.
    waiting: Option<(Event, Duration)>,
}

impl Correlator {
    /// For these sources of kills and hangs.
    #[must_use]
    pub fn new(kill_sources: Sources, hang_sources: Sources) -> Self {
        Self { kill_sources, hang_sources, ..Self::default() }
    }

    /// Other sources stand now: after a reload, or when one broke. What waits for one that is gone waits its time.
    pub fn set_sources(&mut self, kill_sources: Sources, hang_sources: Sources) {
        (self.kill_sources, self.hang_sources) = (kill_sources, hang_sources);
    }

    /// Takes an event that a source gave.
    pub fn add(&mut self, event: Event, now: Tick) {
        let sources = Sources::of(&event);
        if event.is_end() {
            // Who waits for what another source says of its beginning, waits no longer.
            let same = self.hangs.iter().rposition(|seen| seen.is_same(&event, sources));
            let waiting = same.and_then(|at| self.hangs[at].waiting.take());
            self.passing.extend(waiting.map(|(began, _)| began));
            // One that goes on is told anew when someone looks again.
            let goes_on = event.hang().is_some_and(|hang| hang.outcome.is_none());
            if let Some(at) = same.filter(|_| goes_on) {
                self.hangs.remove(at);
            }
            self.passing.push(event);
            return;
        }
        let (list, all, hold) = match event.detail {
            Detail::OomKill(_) => (&mut self.kills, self.kill_sources, HOLD_KILL),
            Detail::HungTask(_) => (&mut self.hangs, self.hang_sources, HOLD_HANG),
            // They have no second source, and who tells them tells them once.
            Detail::FdLeak(_) | Detail::Sigkill(_) | Detail::SlowIo(_) => return self.passing.push(event),
        };
        let Some(at) = list.iter().rposition(|seen| seen.is_same(&event, sources)) else {
            let until = if sources.has(all) { now.monotonic } else { now.monotonic + hold };
            self.remember_as(Seen::new(&event, sources), Some((event, until)));
            return;
        };
        let Some(mut seen) = list.remove(at) else { return };
        seen.last = seen.last.max(time(&event));
        seen.blocked = seen.blocked.max(blocked(&event));
        seen.switches = seen.switches.or_else(|| event.hang()?.switches);
        match &mut seen.waiting {
            _ if seen.sources.has(sources) => self.repeated += 1,
            Some((first, until)) => {
                if let Some(names) = join::join(first, event) {
                    self.renamed.truncate(MAX_RENAMED - 1);
                    self.renamed.push_front(names);
                }
                *until = now.monotonic;
                self.joined += 1;
            }
            None => self.late += 1,
        }
        seen.sources = seen.sources.and(sources);
        list.push_back(seen);
    }

    /// Takes note of an event that was told in an earlier life of the agent.
    pub fn remember(&mut self, event: &Event) {
        if matches!(event.detail, Detail::FdLeak(_) | Detail::Sigkill(_) | Detail::SlowIo(_)) {
            return;
        }
        self.remember_as(Seen::new(event, Sources::of(event)), None);
    }

    /// Gives the events that wait no longer, in the order in which they came.
    pub fn ready(&mut self, now: Tick, out: &mut Vec<Event>) {
        self.take(out, |until| until <= now.monotonic);
    }

    /// Gives all that still waits: at the end.
    pub fn flush(&mut self, out: &mut Vec<Event>) {
        self.take(out, |_| true);
    }

    /// When the next waiting event is ready, on the monotonic clock.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Duration> {
        let waiting = self.kills.iter().chain(&self.hangs).filter_map(|seen| Some(seen.waiting.as_ref()?.1));
        waiting.chain(self.passing.first().map(|_| Duration::ZERO)).min()
    }

    /// Events of which two sources knew in time.
    #[must_use]
    pub fn joined(&self) -> u64 {
        self.joined
    }

    /// Reports of a second source that came when the event had been told; they were dropped.
    #[must_use]
    pub fn late(&self) -> u64 {
        self.late
    }

    /// Reports of an event that the same source had given before; they were dropped.
    #[must_use]
    pub fn repeated(&self) -> u64 {
        self.repeated
    }

    /// Adds the readings about events and what became of reports of them. `dropped` is the number of reports that
    /// never came here.
    pub fn collect(&self, dropped: u64, out: &mut Batch) {
        #[expect(clippy::cast_precision_loss, reason = "exact up to 2^53")]
        let number = |count: u64| count as f64;
        out.counter(&EVENTS, ["oom_kill"], number(self.told_kills));
        out.counter(&EVENTS, ["hung_task"], number(self.told_hangs));
        out.counter(&EVENTS, ["fd_leak"], number(self.told_fd_leaks));
        out.counter(&EVENTS, ["sigkill"], number(self.told_sigkills));
        out.counter(&EVENTS, ["slow_io"], number(self.told_slow_ios));
        let outcomes =
            [("joined", self.joined), ("late", self.late), ("repeated", self.repeated), ("dropped", dropped)];
        for (outcome, count) in outcomes {
            out.counter(&REPORTS, [outcome], number(count));
        }
    }

    fn remember_as(&mut self, seen: Seen, waiting: Option<(Event, Duration)>) {
        let list = if seen.blocked.is_some() { &mut self.hangs } else { &mut self.kills };
        if list.len() >= MAX_SEEN {
            let oldest = list.pop_front().and_then(|seen| seen.waiting);
            self.passing.extend(oldest.map(|(event, _)| event));
        }
        list.push_back(Seen { waiting, ..seen });
    }

    fn take(&mut self, out: &mut Vec<Event>, is_over: impl Fn(Duration) -> bool) {
        let first = out.len();
        out.append(&mut self.passing);
        let waiting = self.kills.iter_mut().chain(&mut self.hangs);
        let over = waiting.filter_map(|seen| seen.waiting.take_if(|(_, until)| is_over(*until)));
        out.extend(over.map(|(event, _)| event));
        for event in &mut out[first..] {
            match &mut event.detail {
                Detail::OomKill(kill) => {
                    self.told_kills += 1;
                    let name = self.renamed.iter().find(|(theirs, _)| kill.incident.as_ref() == Some(theirs));
                    if let Some((_, kept)) = name {
                        kill.incident = Some(kept.clone());
                    }
                }
                Detail::HungTask(hang) => self.told_hangs += u64::from(hang.phase == Phase::Began),
                Detail::FdLeak(_) => self.told_fd_leaks += 1,
                Detail::Sigkill(_) => self.told_sigkills += 1,
                Detail::SlowIo(_) => self.told_slow_ios += 1,
            }
        }
    }
}

impl Seen {
    fn new(event: &Event, sources: Sources) -> Self {
        Self {
            pid: event.pid,
            tid: event.tid,
            comm: event.comm.clone(),
            thread_comm: thread_comm(event).map(str::to_owned),
            sources,
            switches: event.hang().and_then(|hang| hang.switches),
            last: time(event),
            blocked: blocked(event),
            waiting: None,
        }
    }

    /// True when `event`, given by `sources`, is another report of this.
    fn is_same(&self, event: &Event, sources: Sources) -> bool {
        let is_known_and = |mine: Option<u32>, its: Option<u32>| mine.is_some() && mine == its;
        let is_process = is_known_and(self.pid, event.pid);
        let is_thread = is_known_and(self.tid, event.tid);
        // The probe names process and thread, the log the thread alone.
        let mine = [self.comm.as_deref(), self.thread_comm.as_deref()];
        let its = [event.comm.as_deref(), thread_comm(event)];
        let is_comm =
            mine[0].is_none() || its[0].is_none() || mine.iter().flatten().any(|comm| its.contains(&Some(comm)));
        let at = time(event);
        match &event.detail {
            Detail::FdLeak(_) | Detail::Sigkill(_) | Detail::SlowIo(_) => false,
            Detail::OomKill(_) => {
                let most = if self.sources.has(sources) { SAME_SOURCE } else { SAME_KILL };
                (is_process || is_thread) && is_comm && self.last.abs_diff(at) <= most
            }
            Detail::HungTask(hung) => {
                // Threads of one process hang each for itself.
                let both = self.tid.is_some() && event.tid.is_some();
                let is_task = if both { is_thread } else { is_process };
                if let Some((mine, its)) = self.switches.zip(hung.switches) {
                    return is_task && mine == its;
                }
                let gap = at.saturating_sub(self.last);
                let known = self.blocked.filter(|known| !known.is_zero());
                let is_hang = match hung.blocked_seconds.map(Duration::from_secs) {
                    Some(blocked) => gap <= blocked || (known == Some(blocked) && gap <= blocked + blocked / 4),
                    None => gap <= known.map_or(SAME_HANG, |known| known * 2),
                };
                is_task && is_comm && is_hang
            }
        }
    }
}

fn thread_comm(event: &Event) -> Option<&str> {
    match &event.detail {
        Detail::OomKill(kill) => kill.thread_comm.as_deref(),
        Detail::HungTask(hang) => hang.thread_comm.as_deref(),
        Detail::FdLeak(_) | Detail::Sigkill(_) | Detail::SlowIo(_) => None,
    }
}

fn time(event: &Event) -> Duration {
    Duration::from_nanos(event.monotonic_ns)
}

/// For how long a hung task has hung, zero if it does not say; `None` for other events.
fn blocked(event: &Event) -> Option<Duration> {
    match &event.detail {
        Detail::OomKill(_) | Detail::FdLeak(_) | Detail::Sigkill(_) | Detail::SlowIo(_) => None,
        Detail::HungTask(hung) => Some(Duration::from_secs(hung.blocked_seconds.unwrap_or(0))),
    }
}

#[cfg(test)]
mod tests;
