//! Tasks in uninterruptible sleep for too long: who, for how long, where in the kernel, and when it is over. Two tiers see
//! them: the kernel's own detector, on the rungs of the ladder, and before it the agent's looks at all tasks (`sleepers`).
//! Each hang is told once, and its end once (`hangs`), over restarts too (`kept`).

mod hangs;
mod kept;
mod report;
mod sleepers;
mod stack;
mod telling;

use std::collections::BTreeMap;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use sysops_btf::Btf;
use sysops_common::check::Check;
use sysops_common::counters::Counters;
use sysops_common::hung_task::{Offsets, Record, known};
use sysops_common::offset::Offset;

use self::hangs::{Ended, Hangs, Sleep};
use self::kept::Kept;
use self::report::{asleep_since, blocked_seconds, compare_jiffies, sleep};
use self::sleepers::Means;
use self::stack::Names;
use self::telling::{Verdict, complete, early_event, end_event, is_in};
use super::attach::Tracepoint;
use super::check::{self, Own};
use super::facts::Facts;
use super::ladder::{Ground, Refusal, Step, WORDS};
use super::loader::{self, Object};
use super::run_stats::Runs;
use super::{Entry, Extra, Probe, Rung, layout, record};
use crate::host::{Host, StateFiles};
use crate::model::event::{HungTask, Tier};
use crate::model::{Batch, Desc, Detail, Event, Metric, Source, Tick, Unit};
use crate::spec::{Key, Values};

/// The probe in the list.
pub(super) static ENTRY: Entry = Entry {
    name: "hung_task",
    metrics: METRICS,
    keys: &[RUNG.spec(), EARLY.spec()],
    rung: &RUNG,
    new: |host, facts, values| Box::new(new(host, facts, values)),
};

static RUNG: Key<String> = Key::choice(
    "kernel.hung_task.rung",
    WORDS,
    "auto",
    "How hung tasks are seen. `auto` takes the best rung that stands; one that is named here and cannot stand is an error. \
     `off` also ends the looks of kernel.hung_task.early_secs.",
);
static EARLY: Key<Duration> = Key::secs(
    "kernel.hung_task.early_secs",
    20,
    0,
    86_400,
    "A task in uninterruptible sleep for so many seconds is told, without waiting for the kernel's own detector (120 s by \
     default), and also where that one never looks: tasks that can be killed, as on a dead NFS server. 0: the kernel's \
     detector alone.",
);

static HUNG: Metric<0> =
    Metric::gauge("hung_tasks", Unit::Count, "Tasks that hang now and have been told; at most 512 are followed.", &[]);
static BLOCKED: Metric<3> = Metric::gauge(
    "hung_task_blocked_seconds",
    Unit::Seconds,
    "For how long a hung task has not run, of the 20 that hang longest.",
    &["pid", "tid", "comm"],
);
static METRICS: &[&Desc] = &[HUNG.desc(), BLOCKED.desc()];

const HANG: Tracepoint = Tracepoint { object: "hung_task", group: "sched", name: "sched_process_hang" };

/// Series of [`BLOCKED`].
const SERIES_MAX: usize = 20;
/// Shortest time between two looks, when a sleep is due that could not be told.
const LOOK_PAUSE: Duration = Duration::from_millis(200);
/// A report that is older, of the log or of the plain tracepoint, may be about another sleep of its task.
const DELAY_MAX: Duration = Duration::from_secs(5);

struct HungTasks {
    ground: Ground,
    types: Offsets,
    scan: Result<Offsets, Refusal>,
    format_pid: Offset,
    initial_pids: bool,
    early: Option<Duration>,
    means: Option<Means>,
    stacks: Option<Extra>,
    hangs: Hangs,
    /// Ended and not told yet.
    over: Vec<Ended>,
    next_look: Duration,
    kept: Option<Kept>,
    names: Names,
    standing: Option<(Rung, Object)>,
}

fn new(host: &Host, facts: &Facts, values: &Values) -> HungTasks {
    let types = facts.btf.as_ref().map_err(Clone::clone).and_then(offsets);
    let scan = facts.btf.as_ref().map_err(Clone::clone).and_then(scan_offsets);
    let format = facts.format(host, "sched/sched_process_hang").and_then(|format| {
        format
            .offset("pid", 4)
            .and_then(Offset::at)
            .ok_or_else(|| Refusal::new("tracefs: sched/sched_process_hang: expected a field pid of 4 bytes", ""))
    });
    HungTasks {
        ground: Ground {
            object: loader::embedded("hung_task").map(drop),
            privilege: facts.privilege.clone(),
            types: types.as_ref().map(drop).map_err(Clone::clone),
            format: format.as_ref().map(drop).map_err(Clone::clone),
            log: Some(facts.log.clone()),
        },
        types: Offsets { check_name: facts.check_name, ..types.unwrap_or(Offsets::ABSENT) },
        scan,
        format_pid: format.unwrap_or(Offset::ABSENT),
        initial_pids: facts.initial_pids,
        early: Some(values.get(&EARLY)).filter(|early| !early.is_zero()),
        means: None,
        stacks: None,
        hangs: Hangs::default(),
        over: Vec::new(),
        next_look: Duration::ZERO,
        kept: None,
        names: Names::default(),
        standing: None,
    }
}

impl Probe for HungTasks {
    fn steps(&self) -> Vec<Step> {
        self.ground.steps()
    }

    fn attach(&mut self, rung: Rung, host: &Host, facts: &Facts) -> Result<(), Refusal> {
        let offsets = match rung {
            Rung::Tracepoint => Offsets { format_pid: self.format_pid, ..Offsets::ABSENT },
            _ => self.types,
        };
        let verify = |check: &Check<Record>, own: &Own| {
            check::compare(check, &check.record.task, &offsets.task, own)?;
            compare_jiffies(&check.record)
        };
        let object = HANG.attach(rung, host, facts, &offsets, verify)?;
        self.standing = Some((rung, object));
        Ok(())
    }

    fn settled(&mut self, wanted: bool, host: &Host, facts: &Facts) {
        if !wanted {
            self.means = None;
        } else if self.means.is_none() {
            let means = Means::find(host, facts, &self.scan);
            self.stacks = Some(stack_extra(host, &means));
            self.means = Some(means);
        }
    }

    fn extras(&self) -> Vec<Extra> {
        let early = self.means.as_ref().map(|means| match self.early {
            Some(_) => means.extra(),
            None => Extra {
                name: "early",
                means: "off",
                reason: "kernel.hung_task.early_secs is 0".to_owned(),
                remedy: String::new(),
            },
        });
        early.into_iter().chain(self.stacks.clone().filter(|_| self.means.is_some())).collect()
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.standing.as_ref().and_then(|(_, object)| object.fd())
    }

    fn next_deadline(&self) -> Option<Duration> {
        let has_work = self.early.is_some() || self.hangs.told_count() > 0 || !self.over.is_empty();
        self.means.as_ref().filter(|means| has_work && means.source().is_some()).map(|_| self.next_look)
    }

    fn drain(&mut self, host: &Host, out: &mut Vec<Event>) {
        let now = host.clock.now();
        let first = out.len();
        let endless = self.take_reports(host, now, out);
        if self.next_deadline().is_some_and(|next| now.monotonic >= next) {
            self.look(host, now, out);
        }
        self.tell_ends(host, now, out);
        self.fill_stacks(host, &mut out[first..]);
        endless.into_iter().for_each(|at| has_no_end(&mut out[at]));
        if self.hangs.take_changed()
            && let Some(kept) = &mut self.kept
        {
            kept.save(self.hangs.told().map(|(told, _)| told));
        }
    }

    fn keep_in(&mut self, host: &Host, files: &StateFiles) {
        let Some((kept, told)) = Kept::open(host, files) else { return };
        for told in told {
            self.hangs.restore(told);
        }
        if !self.looks() {
            // Nobody would see the end of what is taken back.
            self.over.extend(self.hangs.give_up());
        }
        self.kept = Some(kept);
    }

    fn take_told(&mut self, out: &mut Vec<Event>) {
        out.extend(self.hangs.take_restored());
    }

    fn follow(&mut self, host: &Host, event: &mut Event) {
        let now = host.clock.now().monotonic;
        let Detail::HungTask(hang) = &mut event.detail else { return };
        let at = Duration::from_nanos(event.monotonic_ns);
        let Some(tid) = event.tid.filter(|_| self.looks()) else { return };
        let Some(sleep) = asleep_since(host, tid, at) else { return };
        hang.switches = Some(sleep.switches);
        if let Some(told) = self.hangs.told_of(&sleep) {
            if let Detail::HungTask(told) = &mut told.detail
                && told.holder_tid.is_none()
            {
                (told.lock, told.holder_tid) = (hang.lock, hang.holder_tid);
                told.holder_comm.clone_from(&hang.holder_comm);
            }
            return;
        }
        let since = at.saturating_sub(Duration::from_secs(hang.blocked_seconds.unwrap_or(0)));
        self.over.extend(self.hangs.tell(sleep, since, now, event, false));
        if !self.hangs.is_followed(&sleep) {
            has_no_end(event);
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "a bounded count")]
    fn collect(&mut self, _host: &Host, out: &mut Batch) {
        if self.means.as_ref().and_then(Means::source).is_none() {
            return;
        }
        out.gauge(&HUNG, [], self.hangs.told_count() as f64);
        if self.hangs.told_count() == 0 {
            return;
        }
        let mut longest: Vec<_> = self.hangs.told().collect();
        longest.sort_by_key(|(told, lasted)| (std::cmp::Reverse(*lasted), told.sleep.tid));
        for (told, lasted) in longest.iter().take(SERIES_MAX) {
            let text = |id: Option<u32>| id.map(|id| id.to_string()).unwrap_or_default();
            let (pid, tid) = (text(told.event.pid), text(told.event.tid));
            let thread = told.event.hang().and_then(|hang| hang.thread_comm.as_ref());
            let comm = thread.or(told.event.comm.as_ref()).map_or("", String::as_str);
            out.gauge(&BLOCKED, [&pid, &tid, comm], lasted.as_secs_f64());
        }
    }

    fn counters(&self) -> Option<Counters> {
        self.standing.as_ref().and_then(|(_, object)| object.counters())
    }

    fn runs(&self) -> Option<Runs> {
        self.standing.as_ref().map(|(_, object)| object.runs())
    }
}

impl HungTasks {
    /// True when the agent looks at tasks, and so will see the end of a hang.
    fn looks(&self) -> bool {
        self.means.as_ref().is_some_and(|means| means.source().is_some())
    }

    /// What the kernel's detector reported. Gives the places of the events whose end nobody will tell.
    fn take_reports(&mut self, host: &Host, now: Tick, out: &mut Vec<Event>) -> Vec<usize> {
        let looks = self.looks();
        let Self { standing: Some((rung, object)), hangs, over, initial_pids, .. } = self else { return Vec::new() };
        let Some(source) = rung.source() else { return Vec::new() };
        let mut endless = Vec::new();
        object.drain(|read: &Record| {
            let Some(report) = Report::of(read, *initial_pids, host, source, hangs) else { return };
            if !report.is_followed(looks, now, hangs, over) {
                endless.push(out.len());
            }
            out.push(report.event);
        });
        endless
    }

    /// Looks at the tasks: tells whose sleep has lasted for too long, and notes which hangs are over.
    fn look(&mut self, host: &Host, now: Tick, out: &mut Vec<Event>) {
        let Self { means: Some(means), hangs, over, early, .. } = self else { return };
        let at = now.monotonic;
        let tids: Vec<u32> = hangs.told_tids().collect();
        hangs.begin_look();
        let looked = means.look(host, early.is_some(), &tids, &mut |sleeper| over.extend(hangs.see(&sleeper, at)));
        if looked {
            hangs.end_look(|ended| over.push(ended));
        }
        let took = host.clock.now().monotonic.saturating_sub(at);
        self.next_look = at + means.interval(*early, took);
        let Some(limit) = *early else { return };
        let due: Vec<_> = hangs.due(limit, at).collect();
        for (sleeper, lasted) in due {
            match early_event(host, means.source(), &sleeper, lasted, now) {
                Verdict::Hangs(event) => {
                    over.extend(hangs.tell(sleeper.sleep, at.saturating_sub(lasted), at, &event, true));
                    out.push(*event);
                }
                Verdict::Harmless => hangs.set_harmless(sleeper.sleep.tid),
                Verdict::Over => {}
            }
        }
        if let Some(due) = hangs.next_due(limit) {
            self.next_look = self.next_look.min(due.max(at + LOOK_PAUSE));
        }
        if hangs.told_count() == 0 {
            self.names.clear();
        }
    }

    fn tell_ends(&mut self, host: &Host, now: Tick, out: &mut Vec<Event>) {
        let source = self.means.as_ref().and_then(Means::source);
        out.extend(self.over.drain(..).map(|ended| end_event(host, source, ended, now)));
    }

    /// Adds the kernel stack where /proc did not give it: walked by the iterator.
    fn fill_stacks(&mut self, host: &Host, events: &mut [Event]) {
        let Some(means) = &mut self.means else { return };
        let lacks = |event: &Event| event.hang().is_some_and(|hang| hang.kernel_stack.is_empty()) && !event.is_end();
        let tids: Vec<u32> = events.iter().filter(|event| lacks(event)).filter_map(|event| event.tid).collect();
        if tids.is_empty() {
            return;
        }
        let stacks: BTreeMap<u32, _> = means.stacks(&tids).into_iter().map(|stack| (stack.tid, stack)).collect();
        for event in events {
            let stack =
                sleep_of(event).filter(|_| lacks(event)).and_then(|sleep| Some((stacks.get(&sleep.tid)?, sleep)));
            let Some((stack, sleep)) = stack else { continue };
            // Whoever is not in that sleep any more has another stack.
            if !is_in(host, &sleep) {
                continue;
            }
            if let Detail::HungTask(hang) = &mut event.detail {
                let addresses = stack.addresses.get(..stack.count as usize).unwrap_or_default();
                hang.kernel_stack = self.names.of(addresses, host);
            }
        }
    }
}

/// A hang that the kernel's detector reported and no one has told.
struct Report {
    event: Event,
    sleep: Option<Sleep>,
    /// The thread is in that sleep still.
    lasts: bool,
}

impl Report {
    /// `None` when a program has told that hang already. /proc is asked only where it numbers tasks as the kernel does.
    fn of(read: &Record, initial_pids: bool, host: &Host, source: Source, hangs: &Hangs) -> Option<Self> {
        let at = Duration::from_nanos(read.monotonic_ns);
        let sleep = sleep(read, initial_pids.then(|| asleep_since(host, read.task.tid, at)).flatten());
        // A thread that is gone when its report is read can be asked nothing: it was the hang that is told already.
        let is_told = match &sleep {
            Some(sleep) => hangs.is_told_by_probe(sleep),
            None => hangs.is_thread_told_by_probe(read.task.tid),
        };
        if is_told {
            return None;
        }
        let leader = (read.known & known::LEADER != 0).then(|| record::name(&read.leader_comm));
        let thread = record::name(&read.task.comm);
        let detail = HungTask {
            tier: Some(Tier::Kernel),
            thread_comm: leader.as_ref().filter(|leader| **leader != thread).map(|_| thread),
            blocked_seconds: blocked_seconds(read, host),
            switches: sleep.map(|sleep| sleep.switches),
            ..HungTask::default()
        };
        let mut event = record::event(host, source, read.monotonic_ns, &read.task, Detail::HungTask(detail));
        event.comm = leader.or(event.comm);
        let lasts = sleep.is_some_and(|sleep| initial_pids && complete(&mut event, host, &sleep));
        Some(Self { event, sleep, lasts })
    }

    /// Notes that it is told, where anyone `looks`. True when its end will be told too.
    fn is_followed(&self, looks: bool, now: Tick, hangs: &mut Hangs, over: &mut Vec<Ended>) -> bool {
        let Some(sleep) = self.sleep.filter(|_| looks) else { return false };
        let at = Duration::from_nanos(self.event.monotonic_ns);
        let blocked = self.event.hang().and_then(|hang| hang.blocked_seconds).unwrap_or(0);
        let seen = if self.lasts { now.monotonic } else { at };
        over.extend(hangs.tell(sleep, at.saturating_sub(Duration::from_secs(blocked)), seen, &self.event, true));
        hangs.is_followed(&sleep)
    }
}

/// The sleep of which an event tells, as far as that is known.
fn sleep_of(event: &Event) -> Option<Sleep> {
    Some(Sleep { tid: event.tid?, start: None, switches: event.hang()?.switches? })
}

/// Nobody will tell the end of this hang: whoever is told of it is not to wait for one.
fn has_no_end(event: &mut Event) {
    if let Detail::HungTask(hang) = &mut event.detail {
        hang.switches = None;
    }
}

/// By which means kernel stacks are read, for doctor.
fn stack_extra(host: &Host, means: &Means) -> Extra {
    let extra = |means, reason: &str, remedy: &str| Extra {
        name: "stack",
        means,
        reason: reason.to_owned(),
        remedy: remedy.to_owned(),
    };
    if host.files.read(&host.files.proc("thread-self/stack")).is_ok() {
        return extra("proc", "", "");
    }
    let closed = "/proc/<pid>/stack needs CAP_SYS_ADMIN";
    match (means.source(), stack::are_addresses_shown(host)) {
        (Some(Source::TaskIter), Ok(())) => extra("task_iter", closed, ""),
        (Some(Source::TaskIter), Err((why, remedy))) => extra("kmsg", &format!("{closed}; task_iter: {why}"), remedy),
        _ => extra("kmsg", &format!("{closed}; the iterator does not stand"), ""),
    }
}

/// What the program must know of the running kernel's types.
fn offsets(btf: &Btf) -> Result<Offsets, Refusal> {
    layout::task_argument(btf, "sched_process_hang")?;
    Ok(Offsets {
        task: layout::task(btf)?,
        last_switch_time: layout::offset_if_any(btf, "task_struct", "last_switch_time", 8)?,
        last_switch_count: layout::offset_if_any(btf, "task_struct", "last_switch_count", 8)?,
        group_leader: layout::offset_if_any(btf, "task_struct", "group_leader", 8)?,
        ..Offsets::ABSENT
    })
}

/// What the iterators must know beyond that; without locks where the kernel does not keep track of them.
fn scan_offsets(btf: &Btf) -> Result<Offsets, Refusal> {
    let task = |path: &str, size: u32| layout::offset(btf, "task_struct", path, size);
    let if_any = |name: &str, path: &str| layout::offset_if_any(btf, name, path, 8).unwrap_or(Offset::ABSENT);
    Ok(Offsets {
        task: layout::task(btf)?,
        state: task("state", 8).or_else(|_| task("__state", 4))?,
        flags: task("flags", 4)?,
        nvcsw: task("nvcsw", 8)?,
        nivcsw: task("nivcsw", 8)?,
        vfork_done: task("vfork_done", 8)?,
        real_parent: task("real_parent", 8)?,
        blocker: if_any("task_struct", "blocker"),
        mutex_owner: if_any("mutex", "owner"),
        semaphore_holder: if_any("semaphore", "last_holder"),
        rwsem_owner: if_any("rw_semaphore", "owner"),
        ..Offsets::ABSENT
    })
}

#[cfg(test)]
mod tests;
