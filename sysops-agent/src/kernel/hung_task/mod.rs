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
use std::path::Path;
use std::time::Duration;

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
use super::btf::Btf;
use super::check::{self, Own};
use super::facts::Facts;
use super::ladder::{Ground, Refusal, Step, WORDS};
use super::loader::{self, Object};
use super::run_stats::Runs;
use super::{Entry, Extra, Probe, Rung, layout, record};
use crate::host::Host;
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

    fn keep_in(&mut self, host: &Host, directory: &Path) {
        let Some((kept, told)) = Kept::open(host, directory) else { return };
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
        (Some(Source::TaskIter), Err(why)) => {
            extra("kmsg", &format!("{closed}; task_iter: {why}"), "give the agent CAP_SYSLOG")
        }
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
mod tests {
    use std::fs;

    use super::super::btf::tests::KERNELS;
    use super::super::record::tests::task;
    use super::hangs::{TOLD_MAX, Told};
    use super::*;
    use crate::host::os;
    use sysops_common::task::COMM_LEN;

    /// A machine of files, gone with the directory.
    fn machine() -> (tempfile::TempDir, Host) {
        let dir = tempfile::tempdir().expect("a directory");
        fs::create_dir_all(dir.path().join("proc/sys/kernel/random")).expect("ours");
        fs::write(dir.path().join("proc/sys/kernel/random/boot_id"), "b00\n").expect("ours");
        let host = Host::fixture(dir.path());
        (dir, host)
    }

    /// What the kernel reports of thread 71, which had run seven times.
    fn report(host: &Host) -> Record {
        let monotonic_ns = u64::try_from(host.clock.now().monotonic.as_nanos()).expect("small");
        Record {
            monotonic_ns,
            jiffies: 0,
            last_switch_time: 0,
            last_switch_count: 7,
            known: known::SWITCH_COUNT,
            reserved: 0,
            leader_comm: [0; COMM_LEN],
            task: task(b"a\0"),
        }
    }

    fn told(tid: u32, host: &Host) -> Told {
        let mut read = report(host);
        read.task.tid = tid;
        let report = Report::of(&read, false, host, Source::TpBtf, &Hangs::default()).expect("it is not told");
        Told { sleep: report.sleep.expect("known"), since: Duration::ZERO, event: Box::new(report.event) }
    }

    /// Thread 71 of process 70 in /proc.
    fn thread(dir: &tempfile::TempDir, state: char, start_ticks: u64, switches: u64) {
        let at = dir.path().join("proc/71");
        fs::create_dir_all(&at).expect("ours");
        let status =
            format!("Tgid:\t70\nUid:\t5\t5\nvoluntary_ctxt_switches:\t{switches}\nnonvoluntary_ctxt_switches:\t0\n");
        let stat = format!("71 (a) {state}{} {start_ticks} 0", " 0".repeat(18));
        let files = [("status", status), ("stat", stat), ("comm", "other\n".to_owned()), ("wchan", "place".to_owned())];
        files.iter().for_each(|(name, text)| fs::write(at.join(name), text).expect("ours"));
    }

    fn ago(host: &Host, seconds: u64) -> Record {
        let read = report(host);
        Record { monotonic_ns: read.monotonic_ns - seconds * 1_000_000_000, ..read }
    }

    fn wchan(report: &Report) -> Option<&str> {
        report.event.hang().and_then(|hang| hang.wchan.as_deref())
    }

    const START: u64 = 500;

    /// Threads of one process are one alert by the name of the process.
    #[test]
    fn a_hang_bears_the_name_of_the_process_and_beside_it_that_of_the_thread() {
        let (dir, host) = machine();
        thread(&dir, 'D', START, 7);
        let names = |event: Event| (event.comm.clone(), event.hang().and_then(|hang| hang.thread_comm.clone()));
        let kernels = |read: &Record| {
            names(Report::of(read, true, &host, Source::TpBtf, &Hangs::default()).expect("it is not told").event)
        };
        let early = || {
            let sleeper = sleepers::Sleeper::new(Sleep { tid: 71, start: Some(START), switches: 7 });
            match early_event(&host, None, &sleeper, Duration::from_secs(20), host.clock.now()) {
                Verdict::Hangs(event) => names(*event),
                _ => panic!("it hangs"),
            }
        };
        let pair = |comm: &str, thread: Option<&str>| (Some(comm.to_owned()), thread.map(str::to_owned));
        assert_eq!((kernels(&report(&host)), early()), (pair("java", None), pair("other", None)), "no one to ask");
        let leader = dir.path().join("proc/70");
        fs::create_dir_all(&leader).expect("ours");
        fs::write(leader.join("comm"), " leader \n").expect("ours");
        let both = [kernels(&report(&host)), early()];
        assert_eq!(both, [pair(" leader ", Some("java")), pair(" leader ", Some("other"))]);
        fs::write(leader.join("comm"), "other\n").expect("ours");
        assert_eq!(early(), pair("other", None));
        // Where the program read it, no one is asked.
        let mut read = report(&host);
        read.known |= known::LEADER;
        read.leader_comm[..4].copy_from_slice(b"main");
        assert_eq!(kernels(&read), pair("main", Some("java")));
        read.leader_comm[..5].copy_from_slice(b"java\0");
        assert_eq!(kernels(&Record { last_switch_count: 8, ..read }), pair("java", None));
    }

    #[test]
    fn proc_is_believed_only_of_the_thread_and_the_sleep_that_was_reported() {
        let (dir, host) = machine();
        let of =
            |read: &Record| Report::of(read, true, &host, Source::TpBtf, &Hangs::default()).expect("it is not told");
        // However late it is read: the count of switches says that it is the same sleep.
        thread(&dir, 'D', START, 7);
        let late = of(&ago(&host, 60));
        assert_eq!((wchan(&late), late.lasts, late.event.comm.as_deref()), (Some("place"), true, Some("java")));
        for (state, start, switches) in [('S', START, 8), ('D', START, 8), ('D', 9000, 7), ('S', START, 7)] {
            thread(&dir, state, start, switches);
            let other = of(&ago(&host, 60));
            assert_eq!((wchan(&other), other.lasts), (None, false), "{state} {start} {switches}");
            assert_eq!(other.sleep, late.sleep, "what the kernel reported");
        }
    }

    #[test]
    fn the_plain_tracepoint_takes_no_other_process_for_the_one_that_hung() {
        let (dir, host) = machine();
        let of = |seconds: u64| {
            let mut read = Record { known: 0, ..ago(&host, seconds) };
            read.task.known = sysops_common::task::known::TID;
            let report = Report::of(&read, true, &host, Source::Tracepoint, &Hangs::default());
            let event = report.expect("it is not told").event;
            (event.pid, event.comm.clone(), event.hang().and_then(|hang| hang.wchan.clone()))
        };
        let all = (Some(70), Some("other".to_owned()), Some("place".to_owned()));
        thread(&dir, 'D', START, 7);
        assert_eq!((of(2), of(60)), (all.clone(), (None, None, None)), "it may sleep anew");
        let now = host.clock.now().boottime.as_secs();
        thread(&dir, 'D', (now - 10) * os::ticks_per_second(), 7);
        assert_eq!(of(2), all);
        thread(&dir, 'D', (now - 1) * os::ticks_per_second(), 7);
        assert_eq!(of(2), (None, None, None), "it came later");
    }

    #[test]
    fn a_hang_that_is_read_late_lasts_from_when_the_kernel_saw_it() {
        let (dir, host) = machine();
        fs::write(dir.path().join("proc/sys/kernel/hung_task_timeout_secs"), "120\n").expect("ours");
        let lasted = |state: char| {
            thread(&dir, state, START, 7);
            let (mut hangs, mut over) = (Hangs::default(), Vec::new());
            let read = ago(&host, 60);
            let report = Report::of(&read, true, &host, Source::TpBtf, &hangs).expect("it is not told");
            assert!(report.is_followed(true, host.clock.now(), &mut hangs, &mut over));
            hangs.begin_look();
            hangs.end_look(|ended| over.push(ended));
            over[0].lasted
        };
        assert_eq!(lasted('D'), Some(Duration::from_secs(180)), "60 s more than the kernel saw");
        assert_eq!(lasted('S'), Some(Duration::from_secs(120)), "how much longer nobody knows");
    }

    #[test]
    fn a_sleep_that_another_thread_sleeps_is_not_told_early() {
        let (dir, host) = machine();
        let of = |start: u64| {
            let sleeper = sleepers::Sleeper::new(Sleep { tid: 71, start: Some(start), switches: 7 });
            early_event(&host, Some(Source::Proc), &sleeper, Duration::from_secs(20), host.clock.now())
        };
        thread(&dir, 'D', START, 7);
        assert!(matches!(of(START), Verdict::Hangs(event) if event.pid == Some(70)));
        assert!(matches!(of(START - 1), Verdict::Over));
    }

    #[test]
    fn the_threads_that_wait_for_a_core_dump_do_not_hang_and_the_one_that_dumps_may() {
        let (dir, host) = machine();
        let is_harmless = |dumping: u8, flags: u8| {
            thread(&dir, 'D', START, 7);
            let at = dir.path().join("proc/71");
            let status =
                host.files.read_text(&at.join("status")).expect("ours") + &format!("\nCoreDumping:\t{dumping}\n");
            fs::write(at.join("status"), status).expect("ours");
            let stat = format!("71 (a) D 0 0 0 0 0 {flags}{} {START} 0", " 0".repeat(12));
            fs::write(at.join("stat"), stat).expect("ours");
            let sleeper = sleepers::Sleeper::new(Sleep { tid: 71, start: Some(START), switches: 7 });
            let verdict = early_event(&host, None, &sleeper, Duration::from_secs(20), host.clock.now());
            matches!(verdict, Verdict::Harmless)
        };
        assert!(is_harmless(1, 4), "5.10: it exits");
        assert!(is_harmless(1, 8), "6.1: no part of the dump any more");
        assert!(!is_harmless(1, 0), "it writes the dump");
        assert!(!is_harmless(0, 4), "it exits and waits for something else");
    }

    #[test]
    fn an_end_is_announced_only_where_it_will_be_told() {
        let (_dir, host) = machine();
        let (mut hangs, mut over) = (Hangs::default(), Vec::new());
        let read = report(&host);
        let of = |hangs: &Hangs| Report::of(&read, false, &host, Source::TpBtf, hangs);
        let first = of(&hangs).expect("it is not told");
        assert!(!first.is_followed(false, host.clock.now(), &mut hangs, &mut over), "nobody looks");
        assert!(first.is_followed(true, host.clock.now(), &mut hangs, &mut over));
        assert!(of(&hangs).is_none(), "it is told");
        let mut full = Hangs::default();
        (1000..).take(TOLD_MAX).for_each(|tid| full.restore(told(tid, &host)));
        let more = of(&full).expect("it is not told");
        assert!(!more.is_followed(true, host.clock.now(), &mut full, &mut over), "there is no room to follow it");
        let mut event = more.event;
        assert_eq!(event.hang().and_then(|hang| hang.switches), Some(7));
        has_no_end(&mut event);
        assert_eq!(event.hang().and_then(|hang| hang.switches), None);
    }

    /// The probe is off since a reload or a restart: what was told is not left firing.
    #[test]
    fn who_looks_no_more_says_so_once_of_each_hang_that_was_told() {
        let (dir, host) = machine();
        let (mut kept, _) = Kept::open(&host, dir.path()).expect("the boot has a name");
        kept.save([told(71, &host), told(72, &host)].into_iter());
        let off = || {
            let facts = Facts::read(&host);
            let mut probe = new(&host, &facts, &Values::default());
            probe.settled(false, &host, &facts);
            probe.keep_in(&host, dir.path());
            probe
        };
        // Only tried, as before a reload.
        drop(off());
        let mut events = Vec::new();
        let mut probe = off();
        probe.take_told(&mut events);
        assert!(events.is_empty(), "nobody is to wait for what goes on");
        probe.drain(&host, &mut events);
        assert_eq!(events.len(), 2);
        for event in &events {
            let hang = event.hang().expect("a hang");
            assert!(event.is_end() && hang.outcome.is_none() && hang.switches == Some(7), "{event:?}");
            assert_eq!((&event.source, hang.blocked_seconds), (&vec![Source::TpBtf], None));
        }
        let mut events = Vec::new();
        off().drain(&host, &mut events);
        assert!(events.is_empty(), "{events:?}");
    }

    #[test]
    fn every_kernel_has_what_the_program_needs() {
        for (name, data) in KERNELS {
            let found = Btf::parse(data.to_vec()).map_err(|error| error.to_string());
            let both = |btf: Btf| Ok((offsets(&btf)?, scan_offsets(&btf)?));
            let found = found.and_then(|btf| both(btf).map_err(|refused: Refusal| refused.reason));
            let (found, scan) = found.unwrap_or_else(|reason| panic!("{name}: {reason}"));
            assert_eq!(scan.blocker.bytes().is_some(), ["6.18", "7.2"].contains(&name), "{name}");
            assert!(found.last_switch_time.bytes().is_some() && found.task.css_set_memory.bytes().is_some(), "{name}");
        }
    }
}
