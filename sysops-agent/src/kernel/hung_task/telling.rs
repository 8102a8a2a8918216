//! Makes the events of a hang: its beginning as the agent sees it, and its end. When to tell is left to the probe.

use std::time::Duration;

use sysops_common::hung_task::{Asleep, lock};

use super::super::process::Process;
use super::super::record;
use super::hangs::{Ended, Sleep};
use super::sleepers::{self, Sleeper};
use crate::host::Host;
use crate::model::event::{HungTask, Lock, Outcome, Phase, Tier};
use crate::model::time::rfc3339_nanos;
use crate::model::{Detail, Event, Source, Tick};
/// Where tasks sleep without being able to be killed or hanging: a frozen task, and a parent in vfork(2), under the names
/// that this wait has had. The iterator knows both by other signs.
const HARMLESS: [&str; 4] = ["__refrigerator", "kernel_clone", "_do_fork", "wait_for_vfork_done"];

/// What a sleep that has lasted for long enough is found to be.
pub(super) enum Verdict {
    Hangs(Box<Event>),
    Harmless,
    /// It is over.
    Over,
}

/// A sleep that is due, held against /proc: the bits of a task's state are no part of BTF.
pub(super) fn early_event(
    host: &Host,
    source: Option<Source>,
    sleeper: &Sleeper,
    lasted: Duration,
    now: Tick,
) -> Verdict {
    let tid = sleeper.sleep.tid;
    let process = Process::thread(host, tid);
    let (wchan, kernel_stack) = (process.wchan(), process.kernel_stack());
    let read = sleeper.read.as_ref();
    let pid = read.map(|read| read.tgid).or_else(|| process.status("Tgid"));
    let thread = read.map(|read| record::name(&read.comm)).or_else(|| process.name());
    let (comm, thread_comm) = names(host, pid, tid, thread);
    let (uid, cgroup) = (process.status("Uid"), process.memory_path().map(|found| found.path));
    let waits_for_core_dump = process.waits_for_core_dump();
    if !is_in(host, &sleeper.sleep) {
        return Verdict::Over;
    }
    if waits_for_core_dump {
        return Verdict::Harmless;
    }
    // Some kernels tell no wchan; the stack begins with the same function.
    let innermost = kernel_stack.first().and_then(|frame| frame.split('+').next());
    if wchan.as_deref().or(innermost).is_some_and(|function| HARMLESS.contains(&function)) {
        return Verdict::Harmless;
    }
    let (lock, holder) = read.map_or((None, None), |read| holder(host, read));
    let (holder_tid, holder_comm) = holder.unzip();
    let detail = HungTask {
        tier: Some(Tier::Early),
        thread_comm,
        blocked_seconds: Some(lasted.as_secs()),
        kernel_stack,
        wchan,
        lock,
        holder_tid,
        holder_comm,
        switches: Some(sleeper.sleep.switches),
        ..HungTask::default()
    };
    Verdict::Hangs(Box::new(Event {
        schema: Event::SCHEMA,
        time: rfc3339_nanos(now.wall),
        source: source.into_iter().collect(),
        pid,
        tid: Some(tid),
        comm,
        uid,
        cgroup,
        detail: Detail::HungTask(detail),
        monotonic_ns: u64::try_from(now.monotonic.as_nanos()).unwrap_or(u64::MAX),
    }))
}

/// The name of the process, and that of the thread `tid` where it is another.
fn names(host: &Host, pid: Option<u32>, tid: u32, thread: Option<String>) -> (Option<String>, Option<String>) {
    let other = pid.filter(|pid| *pid != tid);
    let Some(leader) = other.and_then(|pid| Process::thread(host, pid).name()) else { return (thread, None) };
    let thread = thread.filter(|thread| *thread != leader);
    (Some(leader), thread)
}

/// The lock, and who holds it. A thread that has let go of it and ended leaves its bytes behind: what is told of it is
/// what /proc says too.
fn holder(host: &Host, read: &Asleep) -> (Option<Lock>, Option<(u32, String)>) {
    let lock = match read.lock {
        lock::MUTEX => Lock::Mutex,
        lock::SEMAPHORE => Lock::Semaphore,
        lock::RW_SEMAPHORE => Lock::RwSemaphore,
        _ => return (None, None),
    };
    let name = record::name(&read.holder_comm);
    let there = read.holder_tid != 0
        && read.holder_tid != read.tid
        && Process::thread(host, read.holder_tid).comm().is_some_and(|comm| comm == name.trim());
    (Some(lock), there.then_some((read.holder_tid, name)))
}

/// The end of a hang. One that nobody looks at any more has no outcome, and the sources of its beginning.
pub(super) fn end_event(host: &Host, source: Option<Source>, ended: Ended, now: Tick) -> Event {
    let sleep = ended.told.sleep;
    let mut event = *ended.told.event;
    event.time = rfc3339_nanos(now.wall);
    event.monotonic_ns = u64::try_from(now.monotonic.as_nanos()).unwrap_or(u64::MAX);
    if let Some(source) = source {
        event.source = vec![source];
    }
    if let Detail::HungTask(hang) = &mut event.detail {
        hang.phase = Phase::Ended;
        hang.outcome = ended.outcome.or_else(|| ended.is_watched.then(|| outcome(host, &sleep)));
        hang.blocked_seconds = ended.lasted.map(|lasted| lasted.as_secs());
        hang.wchan = None;
        hang.kernel_stack.clear();
        hang.switches = Some(sleep.switches);
    }
    event
}

/// What became of a thread that does not hang any more.
fn outcome(host: &Host, sleep: &Sleep) -> Outcome {
    let process = Process::thread(host, sleep.tid);
    let lives = process.state().is_some_and(|state| !matches!(state, 'Z' | 'X'));
    let same = sleep.start.zip(process.start_ticks()).is_none_or(|(old, new)| old == new);
    if lives && same { Outcome::Ran } else { Outcome::Exited }
}

/// True when the thread is in that sleep. Asked after something of it has been read, it says that all of that is of that sleep.
pub(super) fn is_in(host: &Host, sleep: &Sleep) -> bool {
    sleepers::asleep(host, sleep.tid).is_some_and(|now| now.is(sleep))
}

/// Adds what /proc tells of a task that is going nowhere, and on the plain tracepoint also who it is. False, and nothing is
/// added, when the thread is not in that sleep any more: /proc tells of another then.
pub(super) fn complete(event: &mut Event, host: &Host, sleep: &Sleep) -> bool {
    let process = Process::thread(host, sleep.tid);
    let (wchan, kernel_stack) = (process.wchan(), process.kernel_stack());
    let (pid, uid) = (process.status("Tgid"), process.status("Uid"));
    let told = event.hang().is_some_and(|hang| hang.thread_comm.is_some());
    let (comm, thread_comm) = match event.comm.clone() {
        comm if told => (comm, None),
        comm => names(host, event.pid.or(pid), sleep.tid, comm.or_else(|| process.name())),
    };
    let cgroup = process.memory_path().map(|found| found.path);
    if !is_in(host, sleep) {
        return false;
    }
    if let Detail::HungTask(detail) = &mut event.detail {
        detail.wchan = wchan;
        detail.kernel_stack = kernel_stack;
        detail.thread_comm = detail.thread_comm.take().or(thread_comm);
    }
    event.pid = event.pid.or(pid);
    event.uid = event.uid.or(uid);
    event.comm = comm;
    event.cgroup = event.cgroup.take().or(cgroup);
    true
}
