//! Puts two reports of one event together: the probe's facts win, the log adds what the probe lacks.

use crate::model::event::{HungTask, OomKill};
use crate::model::{Detail, Event, Source};

/// Joins `second`, which came later, into `first`. Both are of the same kind, of different sources.
pub(super) fn join(first: &mut Event, mut second: Event) {
    let mut source = std::mem::take(&mut first.source);
    source.extend(second.source.iter().filter(|new| !first.source.contains(new)));
    let is_log = source.first() == Some(&Source::Kmsg);
    if is_log {
        std::mem::swap(first, &mut second);
    }
    first.source = source;
    add(&mut first.pid, second.pid);
    add(&mut first.tid, second.tid);
    add(&mut first.comm, second.comm);
    add(&mut first.uid, second.uid);
    add(&mut first.cgroup, second.cgroup);
    match (&mut first.detail, second.detail) {
        (Detail::OomKill(first), Detail::OomKill(second)) => add_kill(first, second),
        (Detail::HungTask(first), Detail::HungTask(second)) => add_hang(first, second),
        // Never asked for: only reports of one kind are joined, and leaks have but one source.
        (Detail::OomKill(_) | Detail::HungTask(_) | Detail::FdLeak(_), _) => {}
    }
}

fn add<T>(known: &mut Option<T>, other: Option<T>) {
    if known.is_none() {
        *known = other;
    }
}

fn add_kill(known: &mut OomKill, other: OomKill) {
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
}

fn add_hang(known: &mut HungTask, other: HungTask) {
    add(&mut known.blocked_seconds, other.blocked_seconds);
    add(&mut known.wchan, other.wchan);
    if known.kernel_stack.is_empty() {
        known.kernel_stack = other.kernel_stack;
    }
}
