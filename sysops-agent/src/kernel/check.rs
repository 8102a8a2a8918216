//! The self-check: what a probe read about the agent itself is held against kernel helpers and /proc/self. A wrong
//! offset becomes a probe on another rung instead of wrong events.

use sysops_common::check::{Check, Helpers};
use sysops_common::task::{Task, TaskOffsets, known};

use super::ladder::Refusal;
use super::process::Process;
use super::record;
use crate::host::{Host, MemoryPath, os};

/// PROC_CGROUP_INIT_INO (include/linux/proc_ns.h).
const INITIAL_CGROUP_NAMESPACE: &str = "cgroup:[4026531835]";

/// PROC_TIME_INIT_INO.
const INITIAL_TIME_NAMESPACE: &str = "time:[4026531834]";

/// What /proc says about the thread that runs the check.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Own {
    /// `Tgid`.
    pub tgid: Option<u32>,
    /// `Pid`.
    pub tid: Option<u32>,
    /// The first of `Uid`.
    pub uid: Option<u32>,
    /// `comm`.
    pub comm: Option<String>,
    /// Field 22 of stat; not in a time namespace, which counts from another boot.
    pub start_ticks: Option<u64>,
    /// Path in the memory controller's hierarchy.
    pub memory: Option<MemoryPath>,
    /// Its paths begin at the root of the hierarchy and not at that of a cgroup namespace.
    pub whole_paths: bool,
    /// /proc counts processes as the kernel's tracepoints do.
    pub(super) initial_pids: bool,
    /// Size, resident, and of that file and shared memory: the first three of statm, in pages.
    pub(super) pages: Option<[u64; 3]>,
    /// `oom_score_adj`.
    pub(super) oom_score_adj: Option<i32>,
    /// CPUs that may ever be there.
    pub(super) possible_cpus: Option<u64>,
    /// Clock ticks in a second.
    pub ticks_per_second: u64,
}

impl Own {
    /// Reads /proc/thread-self.
    #[must_use]
    pub(super) fn read(host: &Host, initial_pids: bool) -> Self {
        let process = Process::own(host);
        // Before 5.6 there are no time namespaces, and no such link.
        let initial_time = host
            .files
            .link(&host.files.proc("self/ns/time"))
            .map_or(true, |namespace| namespace.as_os_str() == INITIAL_TIME_NAMESPACE);
        let text = |name: &str| host.files.read_text(&host.files.proc(name)).ok();
        Self {
            tgid: process.status("Tgid"),
            tid: process.status("Pid"),
            uid: process.status("Uid"),
            comm: process.comm(),
            start_ticks: process.start_ticks().filter(|_| initial_time),
            memory: process.memory_path(),
            whole_paths: host
                .files
                .link(&host.files.proc("self/ns/cgroup"))
                .is_ok_and(|namespace| namespace.as_os_str() == INITIAL_CGROUP_NAMESPACE),
            initial_pids,
            pages: text("self/statm").and_then(|text| pages(&text)),
            oom_score_adj: text("self/oom_score_adj").and_then(|text| text.parse().ok()),
            possible_cpus: host
                .files
                .read_text(&host.files.sys("devices/system/cpu/possible"))
                .ok()
                .and_then(|text| possible_cpus(&text)),
            ticks_per_second: os::ticks_per_second(),
        }
    }
}

fn pages(statm: &str) -> Option<[u64; 3]> {
    let mut numbers = statm.split_whitespace().map(str::parse);
    Some([numbers.next()?.ok()?, numbers.next()?.ok()?, numbers.next()?.ok()?])
}

/// `0-127`: the last number and one.
fn possible_cpus(text: &str) -> Option<u64> {
    text.rsplit(['-', ',']).next()?.parse::<u64>().ok()?.checked_add(1)
}

/// Holds the task part of a check against what is known about the agent.
///
/// # Errors
/// The first contradiction: which member, what was read, what is true.
pub(super) fn compare<T>(check: &Check<T>, task: &Task, offsets: &TaskOffsets, own: &Own) -> Result<(), Refusal> {
    let helpers = &check.helpers;
    if helpers.runs == 0 {
        return Err(Refusal::new("self-check: the tracepoint task_rename did not run", ""));
    }
    if helpers.filled == 0 {
        return Err(contradiction("tgid", "a fault", helpers.tgid));
    }
    equal("tgid", task.tgid, helpers.tgid)?;
    equal("pid", task.tid, helpers.tid)?;
    let present = [
        ("comm", offsets.comm, known::COMM),
        ("real_cred.uid", offsets.real_cred, known::UID),
        ("start_boottime", offsets.start_boottime, known::START),
        ("cgroups", offsets.cgroups, known::PATH),
    ];
    for (name, offset, bit) in present {
        if offset.bytes().is_some() && task.known & bit == 0 {
            return Err(contradiction(name, "a fault", "a value"));
        }
    }
    equal("comm", record::name(&task.comm), record::name(&helpers.comm))?;
    equal("real_cred.uid", task.uid, helpers.uid)?;
    compare_with_proc(task, helpers, own)
}

/// /proc may be that of another pid namespace, and then counts otherwise; the rest holds anyway.
fn compare_with_proc(task: &Task, helpers: &Helpers, own: &Own) -> Result<(), Refusal> {
    if let (Some(comm), true) = (&own.comm, task.known & known::COMM != 0) {
        equal("comm", record::name(&task.comm).trim(), comm)?;
    }
    if own.initial_pids {
        equal("tgid", task.tgid, own.tgid.unwrap_or(helpers.tgid))?;
        equal("pid", task.tid, own.tid.unwrap_or(helpers.tid))?;
    }
    if let (Some(ticks), true, Some(tick_ns)) =
        (own.start_ticks, task.known & known::START != 0, 1_000_000_000_u64.checked_div(own.ticks_per_second))
    {
        equal("start_boottime", task.start_boottime_ns / tick_ns, ticks)?;
    }
    match (record::path(task), &own.memory) {
        (Some(read), Some(path)) => compare_path(&read, path, own.whole_paths),
        _ => Ok(()),
    }
}

/// In a cgroup namespace /proc shows the end of the path only, and with `/..` in front what is outside of it. In the
/// unified hierarchy memory is accounted at the nearest cgroup above that has the controller.
fn compare_path(read: &str, own: &MemoryPath, whole: bool) -> Result<(), Refusal> {
    let above = read == "/" || own.path.strip_prefix(read).is_some_and(|rest| rest.starts_with('/'));
    let same = read == own.path
        || (!own.v1 && (above || !whole))
        || (!whole && (own.path == "/" || own.path.starts_with("/..") || read.ends_with(&own.path)));
    if same { Ok(()) } else { Err(contradiction("cgroup path", read, &own.path)) }
}

/// An error when what was read is not what is true.
///
/// # Errors
/// When they differ.
pub(super) fn equal<T: PartialEq + std::fmt::Display>(name: &str, read: T, truth: T) -> Result<(), Refusal> {
    if read == truth { Ok(()) } else { Err(contradiction(name, read, truth)) }
}

/// An error when what was read differs from what is true by more than `slack`: for values that move on their own.
///
/// # Errors
/// When they differ by more.
pub(super) fn near(name: &str, read: u64, truth: u64, slack: u64) -> Result<(), Refusal> {
    if read.abs_diff(truth) <= slack { Ok(()) } else { Err(contradiction(name, read, truth)) }
}

pub(super) fn contradiction(name: &str, read: impl std::fmt::Display, truth: impl std::fmt::Display) -> Refusal {
    Refusal::new(
        format!("self-check: {name}: read {read}, but it is {truth}"),
        "the kernel's BTF does not fit the kernel: report it with /proc/version",
    )
}

#[cfg(test)]
mod tests {
    use super::super::record::tests::task;
    use super::*;
    use sysops_common::offset::Offset;

    fn truth() -> (Check<()>, Task, TaskOffsets, Own) {
        let mut comm = [0; 16];
        comm[..4].copy_from_slice(b"java");
        let helpers = Helpers { runs: 1, tgid: 70, tid: 71, uid: 1000, filled: 1, comm };
        let own = Own {
            tgid: Some(70),
            tid: Some(71),
            uid: Some(1000),
            comm: Some("java".into()),
            start_ticks: Some(500),
            memory: Some(MemoryPath { path: "/a/b".into(), v1: true }),
            whole_paths: true,
            initial_pids: true,
            pages: Some([5000, 900, 500]),
            oom_score_adj: Some(0),
            possible_cpus: Some(2),
            ticks_per_second: 100,
        };
        let at = Offset::at(8).expect("small");
        let offsets = TaskOffsets { comm: at, real_cred: at, start_boottime: at, cgroups: at, ..TaskOffsets::ABSENT };
        (Check { helpers, record: () }, task(b"b\0a\0"), offsets, own)
    }

    fn refused(change: impl FnOnce(&mut Check<()>, &mut Task, &mut Own)) -> String {
        let (mut check, mut task, offsets, mut own) = truth();
        change(&mut check, &mut task, &mut own);
        compare(&check, &task, &offsets, &own).expect_err("a contradiction").reason
    }

    #[test]
    fn the_truth_passes() {
        let (check, task, offsets, own) = truth();
        assert_eq!(compare(&check, &task, &offsets, &own), Ok(()));
    }

    #[test]
    fn each_member_that_lies_is_named() {
        assert!(refused(|check, _, _| check.helpers.runs = 0).contains("did not run"));
        assert!(refused(|check, _, _| check.helpers.filled = 0).contains("a fault"));
        assert!(refused(|_, task, _| task.tgid = 1).contains("tgid: read 1, but it is 70"));
        assert!(refused(|_, task, _| task.tid = 1).contains("pid: read 1"));
        assert!(refused(|_, task, _| task.uid = 1).contains("uid"));
        assert!(refused(|_, task, _| task.comm[0] = b'x').contains("comm: read xava, but it is java"));
        assert!(refused(|_, task, _| task.start_boottime_ns = 1).contains("start_boottime: read 0, but it is 500"));
        assert!(refused(|_, task, _| task.path[0] = b'x').contains("cgroup path: read /a/x, but it is /a/b"));
        assert!(refused(|_, task, _| task.known &= !known::UID).contains("real_cred.uid: read a fault"));
        assert!(refused(|_, task, _| task.known &= !known::PATH).contains("cgroups"));
    }

    #[test]
    fn another_pid_namespace_is_no_contradiction() {
        let (check, task, offsets, mut own) = truth();
        (own.tgid, own.tid) = (Some(1), Some(1));
        assert!(compare(&check, &task, &offsets, &own).is_err());
        own.initial_pids = false;
        assert_eq!(compare(&check, &task, &offsets, &own), Ok(()));
    }

    #[test]
    fn own_numbers_are_read() {
        assert_eq!(pages("5000 900 500 3 0 7 0"), Some([5000, 900, 500]));
        assert_eq!(pages("5000 x"), None);
        assert_eq!((possible_cpus("0-127"), possible_cpus("0"), possible_cpus("")), (Some(128), Some(1), None));
    }

    #[test]
    fn paths_of_a_cgroup_namespace_are_the_end_of_the_true_one() {
        let path = |path: &str, v1| MemoryPath { path: path.into(), v1 };
        assert!(compare_path("/docker/c/app", &path("/app", true), false).is_ok());
        assert!(compare_path("/docker/c", &path("/", true), false).is_ok());
        assert!(compare_path("/x", &path("/../y", true), false).is_ok());
        assert!(compare_path("/docker/c/app", &path("/app", true), true).is_err());
        assert!(compare_path("/x", &path("/", true), true).is_err());
    }

    #[test]
    fn memory_is_accounted_at_the_nearest_memory_cgroup_above() {
        let path = |path: &str, v1| MemoryPath { path: path.into(), v1 };
        assert!(compare_path("/a", &path("/a/b", false), true).is_ok());
        assert!(compare_path("/a", &path("/ab", false), true).is_err());
        assert!(compare_path("/a", &path("/a/b", true), true).is_err(), "v1 has the controller in every cgroup");
    }
}
