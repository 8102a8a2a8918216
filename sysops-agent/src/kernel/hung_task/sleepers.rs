//! Finds the tasks in uninterruptible sleep: by a BPF iterator over all tasks, else in /proc. How long they sleep is left
//! to `hangs`.

use std::fs::File;
use std::time::Duration;

use sysops_common::hung_task::{Asleep, FRAMES_MAX, Offsets, Stack, state};
use sysops_common::plain;

use super::super::Extra;
use super::super::check;
use super::super::facts::Facts;
use super::super::ladder::Refusal;
use super::super::loader::{Object, Table};
use super::super::process::{self, Process};
use super::hangs::Sleep;
use crate::host::{Host, Processes, os};
use crate::model::Source;

/// What is known of a task that sleeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sleeper {
    /// Which sleep.
    pub sleep: Sleep,
    /// What the iterator read; `None` when /proc was asked.
    pub read: Option<Asleep>,
}

impl Sleeper {
    /// A sleep of which nothing more is known.
    #[must_use]
    pub(super) const fn new(sleep: Sleep) -> Self {
        Self { sleep, read: None }
    }
}

/// By which means tasks are looked at.
pub(super) enum Means {
    /// A BPF iterator.
    TaskIter(Box<TaskIter>),
    /// /proc, with the reason why not the iterator.
    Proc(Box<Proc>, Refusal),
    /// Not at all.
    Off(Refusal),
}

/// PROC_PID_INIT_INO (include/linux/proc_ns.h).
const INITIAL_PID_NAMESPACE: &str = "pid:[4026531836]";

/// Shortest and longest time between two looks of the iterator: a hang is told at most that much late.
const ITERATOR_INTERVAL: Duration = Duration::from_secs(1);
const ITERATOR_INTERVAL_MAX: Duration = Duration::from_secs(2);
/// Looks become rarer where one takes more than this part of the time, as among tens of thousands of tasks.
const LOOK_SHARE: u32 = 200;
/// Between two looks at /proc, which cost some twenty times as much.
const PROC_INTERVAL: Duration = Duration::from_secs(5);

impl Means {
    /// The best that stands.
    #[must_use]
    pub(super) fn find(host: &Host, facts: &Facts, offsets: &Result<Offsets, Refusal>) -> Self {
        if !facts.initial_pids {
            return Self::Off(Refusal::new(
                "the agent's /proc is that of another pid namespace than the initial one",
                "run the agent in the host's pid namespace, or mount the host's /proc and set HOST_PROC",
            ));
        }
        match offsets.as_ref().map_err(Clone::clone).and_then(|offsets| TaskIter::start(host, facts, offsets)) {
            Ok(iterator) => Self::TaskIter(Box::new(iterator)),
            Err(refusal) => Self::Proc(Box::new(Proc::new(host)), refusal),
        }
    }

    /// Between two looks, where a sleep of `early` is long and the last look `took` so long.
    #[must_use]
    pub(super) fn interval(&self, early: Option<Duration>, took: Duration) -> Duration {
        match self {
            Self::TaskIter(_) | Self::Off(_) => (took * LOOK_SHARE).clamp(ITERATOR_INTERVAL, ITERATOR_INTERVAL_MAX),
            Self::Proc(..) => early.map_or(PROC_INTERVAL, |early| (early / 4).clamp(ITERATOR_INTERVAL, PROC_INTERVAL)),
        }
    }

    /// What an event that was found by these means names as its source.
    #[must_use]
    pub(super) const fn source(&self) -> Option<Source> {
        match self {
            Self::TaskIter(_) => Some(Source::TaskIter),
            Self::Proc(..) => Some(Source::Proc),
            Self::Off(_) => None,
        }
    }

    /// Calls `each` with every task in uninterruptible sleep; only with those of `tids` unless it is to `discover` others.
    /// False when the machine could not be looked at.
    pub(super) fn look(&mut self, host: &Host, discover: bool, tids: &[u32], each: &mut dyn FnMut(Sleeper)) -> bool {
        match self {
            Self::TaskIter(iterator) => iterator.look(each),
            Self::Proc(proc, _) => proc.look(host, discover, tids, each),
            Self::Off(_) => false,
        }
    }

    /// Kernel stacks of these threads, as addresses.
    pub(super) fn stacks(&mut self, tids: &[u32]) -> Vec<Stack> {
        match self {
            Self::TaskIter(iterator) => iterator.stacks(tids).unwrap_or_else(|refusal| {
                tracing::debug!("hung_task: stacks: {}", refusal.reason);
                Vec::new()
            }),
            Self::Proc(..) | Self::Off(_) => Vec::new(),
        }
    }

    /// The word for doctor.
    #[must_use]
    pub(super) fn extra(&self) -> Extra {
        let extra = |means, refusal: Option<&Refusal>| Extra {
            name: "early",
            means,
            reason: refusal.map(|refusal| refusal.reason.clone()).unwrap_or_default(),
            remedy: refusal.map(|refusal| refusal.remedy.clone()).unwrap_or_default(),
        };
        match self {
            Self::TaskIter(_) => extra("task_iter", None),
            Self::Proc(_, refusal) => extra("proc", Some(refusal)),
            Self::Off(refusal) => extra("off", Some(refusal)),
        }
    }
}

/// The BPF iterator.
pub(super) struct TaskIter {
    object: Object,
    wanted: Table<u32, u32>,
    buffer: Vec<u8>,
    /// Threads that wait in vfork(2).
    parents: Vec<u32>,
    tick_ns: u64,
    /// Flags of a frozen task.
    frozen: u32,
}

/// PF_FROZEN (include/linux/sched.h) of kernels that freeze tasks in uninterruptible sleep. Since 6.1 frozen tasks have a
/// state of their own, and the bit may mean something else. PF_FREEZER_SKIP, which the kernel's own detector passes over as
/// well, is no sign of a task that is well: who waits for an NFS server has it.
const FROZEN: u32 = 0x0001_0000;

/// Bytes of the file that are read at once: the kernel's own buffer has 32 KiB.
const READ_BYTES: usize = 32 << 10;

impl TaskIter {
    /// Loads the programs, and holds what they read of this thread against /proc.
    fn start(host: &Host, facts: &Facts, offsets: &Offsets) -> Result<Self, Refusal> {
        facts.privilege.clone()?;
        let namespace = host.files.link(&host.files.proc("self/ns/pid"));
        if namespace.is_ok_and(|link| link.as_os_str() != INITIAL_PID_NAMESPACE) {
            return Err(Refusal::new("in a pid namespace an iterator sees its tasks only", ""));
        }
        let btf = facts.btf.as_ref().map_err(Clone::clone)?;
        let none = || Refusal::new("this kernel has no iterator over tasks (bpf_iter_task)", "");
        let function = btf.function("bpf_iter_task").ok_or_else(none)?;
        let mut object = Object::load("hung_task", offsets)?;
        for program in ["scan", "describe", "stacks"] {
            object.load_iterator(program, "task", function)?;
        }
        let tick_ns = 1_000_000_000_u64
            .checked_div(os::ticks_per_second())
            .filter(|tick| *tick > 0)
            .ok_or_else(|| Refusal::new("the kernel does not tell its clock ticks", ""))?;
        let frozen = if btf.function("frozen").is_some() { 0 } else { FROZEN };
        let wanted = object.table("WANTED")?;
        let mut iterator = Self { object, wanted, buffer: Vec::new(), parents: Vec::new(), tick_ns, frozen };
        iterator.check(host)?;
        Ok(iterator)
    }

    /// The self-check: this thread, which runs, as the iterator and as /proc sees it.
    fn check(&mut self, host: &Host) -> Result<(), Refusal> {
        let process = Process::own(host);
        let missing = |what: &str| Refusal::new(format!("self-check: /proc/thread-self: no {what}"), "");
        let tid = process.status("Pid").ok_or_else(|| missing("Pid"))?;
        let switches = || process.switches().ok_or_else(|| missing("count of context switches"));
        let before = switches()?;
        self.wanted.insert(&tid, &0)?;
        let read = self.object.iterate("describe").and_then(|file| read_all(&file, &mut self.buffer));
        self.wanted.remove(&tid);
        read?;
        let own: Asleep = plain::copy(&self.buffer)
            .ok_or_else(|| Refusal::new("self-check: the iterator does not see the agent", ""))?;
        check::equal("pid", own.tid, tid)?;
        check::equal("tgid", own.tgid, process.status("Tgid").unwrap_or(own.tgid))?;
        check::equal("state", own.state, 0)?;
        check::equal("nvcsw and nivcsw", own.switches, own.switches.clamp(before, switches()?))?;
        let name = super::super::record::name(&own.comm);
        check::equal("comm", name.trim(), process.comm().as_deref().unwrap_or(name.trim()))?;
        check::equal("real_parent of a child of vfork", own.vfork_parent, 0)
    }

    fn look(&mut self, each: &mut dyn FnMut(Sleeper)) -> bool {
        let read = self.object.iterate("scan").and_then(|file| read_all(&file, &mut self.buffer));
        if let Err(refusal) = read {
            tracing::debug!("hung tasks: {}", refusal.reason);
            return false;
        }
        let records = || self.buffer.chunks(size_of::<Asleep>()).filter_map(plain::copy::<Asleep>);
        self.parents.clear();
        self.parents.extend(records().map(|task| task.vfork_parent).filter(|parent| *parent != 0));
        for task in records() {
            let asleep = task.state & state::UNINTERRUPTIBLE != 0 && task.state & state::NOLOAD == 0;
            // Who waits in vfork(2) waits for the child, which is the one that hangs if one does.
            if asleep && task.flags & self.frozen == 0 && !self.parents.contains(&task.tid) {
                let start = Some(task.start_boottime_ns / self.tick_ns);
                let sleep = Sleep { tid: task.tid, start, switches: task.switches };
                each(Sleeper { sleep, read: Some(task) });
            }
        }
        true
    }

    fn stacks(&mut self, tids: &[u32]) -> Result<Vec<Stack>, Refusal> {
        let mut found = Vec::new();
        for tid in tids {
            self.wanted.insert(tid, &0)?;
        }
        let read = self.object.iterate("stacks").and_then(|file| read_all(&file, &mut self.buffer));
        for tid in tids {
            self.wanted.remove(tid);
        }
        read?;
        found.extend(self.buffer.chunks(size_of::<Stack>()).filter_map(plain::copy::<Stack>));
        found.retain(|stack| stack.count as usize <= FRAMES_MAX);
        Ok(found)
    }
}

fn read_all(file: &File, buffer: &mut Vec<u8>) -> Result<(), Refusal> {
    let mut held = 0;
    loop {
        if buffer.len() < held + READ_BYTES {
            buffer.resize(held + READ_BYTES, 0);
        }
        match rustix::io::read(file, &mut buffer[held..]) {
            Ok(0) => break,
            Ok(length) => held += length,
            // AGAIN: many tasks were passed over without a word of any.
            Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => {}
            Err(errno) => return Err(Refusal::new(format!("iterator over tasks: {errno}"), "")),
        }
    }
    buffer.truncate(held);
    Ok(())
}

/// A walk over /proc, a bounded part of it at a time.
pub(super) struct Proc {
    processes: Processes,
    /// Threads in uninterruptible sleep at the last look: they are looked at in any case.
    asleep: Vec<u32>,
    /// The last process that was looked at.
    after: u32,
    buffer: Vec<u8>,
}

/// Threads that one look reads. On a machine with more, a hang is found some looks later.
const READS_MAX: usize = 2000;

impl Proc {
    fn new(host: &Host) -> Self {
        Self { processes: Processes::new(host), asleep: Vec::new(), after: 0, buffer: vec![0; 4096] }
    }

    fn look(&mut self, host: &Host, discover: bool, tids: &[u32], each: &mut dyn FnMut(Sleeper)) -> bool {
        let before = std::mem::take(&mut self.asleep);
        for &tid in before.iter().chain(tids.iter().filter(|tid| !before.contains(tid))) {
            self.take(host, tid, each);
        }
        !discover || self.discover(host, each)
    }

    fn discover(&mut self, host: &Host, each: &mut dyn FnMut(Sleeper)) -> bool {
        let (mut reads, mut after, from) = (0, 0, self.after);
        let (mut asleep, mut threaded) = (Vec::new(), Vec::new());
        let buffer = &mut self.buffer;
        let walked = self.processes.walk(|process| {
            if process.pid <= from || reads >= READS_MAX {
                return;
            }
            (reads, after) = (reads + 1, process.pid);
            let Ok(stat) = process.read("stat", buffer) else { return };
            let stat = String::from_utf8_lossy(stat);
            if process::state(&stat) == Some('D') {
                asleep.push(process.pid);
            }
            if let Some(threads) = process::stat_field(&stat, 20).filter(|threads| *threads > 1) {
                reads += usize::try_from(threads).unwrap_or(READS_MAX);
                threaded.push(process.pid);
            }
        });
        // The next look goes on behind the last process, or begins anew.
        self.after = if reads >= READS_MAX { after } else { 0 };
        for pid in threaded {
            let tasks = host.files.list(&host.files.proc(&format!("{pid}/task"))).unwrap_or_default();
            let others = tasks.iter().filter_map(|name| name.parse::<u32>().ok()).filter(|tid| *tid != pid);
            let sleeps = |tid: &u32| Process::thread(host, *tid).state() == Some('D');
            asleep.extend(others.filter(sleeps).take(READS_MAX));
        }
        for tid in asleep {
            if !self.asleep.contains(&tid) {
                self.take(host, tid, each);
            }
        }
        walked.is_ok()
    }

    /// Hands on the sleep of a thread, if it is asleep and was not both before and after its count was read.
    fn take(&mut self, host: &Host, tid: u32, each: &mut dyn FnMut(Sleeper)) {
        if let Some(sleep) = asleep(host, tid) {
            self.asleep.push(tid);
            each(Sleeper::new(sleep));
        }
    }
}

/// The sleep of a thread by /proc; `None` when it does not sleep, or cannot be asked.
#[must_use]
pub(super) fn asleep(host: &Host, tid: u32) -> Option<Sleep> {
    let process = Process::thread(host, tid);
    let switches = process.switches()?;
    let start = process.start_ticks()?;
    // It is read last: who slept and had run so often before, has not run since.
    (process.state() == Some('D') && process.switches() == Some(switches)).then_some(Sleep {
        tid,
        start: Some(start),
        switches,
    })
}
