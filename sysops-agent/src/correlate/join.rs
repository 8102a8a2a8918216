//! Puts two reports of one event together: the probe's facts win, the log adds what the probe lacks.

use crate::model::event::{HungTask, OomKill};
use crate::model::{Detail, Event, Source};

/// Joins `second`, which came later, into `first`. Both are of the same kind, of different sources. Where each has given
/// the incident a name of its own, gives the one that is not kept, and the one that is.
pub(super) fn join(first: &mut Event, mut second: Event) -> Option<(String, String)> {
    let mut source = std::mem::take(&mut first.source);
    source.extend(second.source.iter().filter(|new| !first.source.contains(new)));
    let is_log = source.first() == Some(&Source::Kmsg);
    if is_log {
        std::mem::swap(first, &mut second);
    }
    first.source = source;
    let names_both = |event: &Event| event.hang().is_some_and(|hang| hang.thread_comm.is_some());
    if names_both(&second) && !names_both(first) {
        // One that has asked too late for the name of the process has that of the thread in its place.
        first.comm = second.comm.take();
    }
    add(&mut first.pid, second.pid);
    add(&mut first.tid, second.tid);
    add(&mut first.comm, second.comm);
    add(&mut first.uid, second.uid);
    add(&mut first.cgroup, second.cgroup);
    match (&mut first.detail, second.detail) {
        (Detail::OomKill(first), Detail::OomKill(second)) => return add_kill(first, second),
        (Detail::HungTask(first), Detail::HungTask(second)) => add_hang(first, second),
        // Of one kind, the caller says; and the others have but one source.
        (Detail::OomKill(_) | Detail::HungTask(_) | Detail::FdLeak(_) | Detail::Sigkill(_) | Detail::SlowIo(_), _) => {}
    }
    None
}

fn add<T>(known: &mut Option<T>, other: Option<T>) {
    if known.is_none() {
        *known = other;
    }
}

fn add_kill(known: &mut OomKill, other: OomKill) -> Option<(String, String)> {
    add(&mut known.oom_score_adj, other.oom_score_adj);
    add(&mut known.total_vm_bytes, other.total_vm_bytes);
    add(&mut known.anon_rss_bytes, other.anon_rss_bytes);
    add(&mut known.file_rss_bytes, other.file_rss_bytes);
    add(&mut known.shmem_rss_bytes, other.shmem_rss_bytes);
    add(&mut known.pgtables_bytes, other.pgtables_bytes);
    add(&mut known.constraint, other.constraint);
    add(&mut known.oom_memcg, other.oom_memcg);
    // Id and name of one and the same process.
    if known.trigger_pid.is_none() && known.trigger_comm.is_none() {
        (known.trigger_pid, known.trigger_comm) = (other.trigger_pid, other.trigger_comm);
    } else if known.trigger_comm == other.trigger_comm || known.trigger_pid == other.trigger_pid {
        add(&mut known.trigger_pid, other.trigger_pid);
        add(&mut known.trigger_comm, other.trigger_comm);
    }
    add(&mut known.trigger_cgroup, other.trigger_cgroup);
    add(&mut known.already_exiting, other.already_exiting);
    add(&mut known.thread_comm, other.thread_comm);
    add(&mut known.limit_bytes, other.limit_bytes);
    add(&mut known.oom_memcg_limit_bytes, other.oom_memcg_limit_bytes);
    add(&mut known.oom_memcg_usage_bytes, other.oom_memcg_usage_bytes);
    add(&mut known.oom_group, other.oom_group);
    match (&known.incident, other.incident) {
        (Some(kept), Some(other)) if *kept != other => Some((other, kept.clone())),
        (Some(_), _) => None,
        (None, other) => {
            known.incident = other;
            None
        }
    }
}

fn add_hang(known: &mut HungTask, other: HungTask) {
    add(&mut known.blocked_seconds, other.blocked_seconds);
    add(&mut known.wchan, other.wchan);
    add(&mut known.tier, other.tier);
    add(&mut known.thread_comm, other.thread_comm);
    add(&mut known.switches, other.switches);
    // Id and name of one and the same thread.
    if known.holder_tid.is_none() {
        (known.holder_tid, known.holder_comm) = (other.holder_tid, other.holder_comm);
    }
    add(&mut known.lock, other.lock);
    if known.kernel_stack.is_empty() {
        known.kernel_stack = other.kernel_stack;
    }
}
