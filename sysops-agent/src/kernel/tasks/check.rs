//! The self-check of the table: a few processes are read from /proc before and after it, and each field must lie
//! between. A field that does not is named, and /proc goes on being read.

use std::time::Duration;

use sysops_common::tasks::Process;

use super::super::check::{contradiction, equal};
use super::super::ladder::Refusal;
use super::super::layout::contradiction as contradicted;
use super::super::process::stat_field;
use super::table::Table;
use crate::host::task_table::{CpuTicks, TaskRow, TaskTable};
use crate::host::{Host, Processes};

/// What moves between two looks at /proc is not held against it: one turn of these must be quiet.
const TURNS: u32 = 16;

/// Between two of them, times their number: all together take a tenth of a second.
const WAIT: Duration = Duration::from_millis(1);

/// A thread that looks so often at its own time sees that some has passed.
const LOOKS: u32 = 1000;

/// The process of the agent is `self`; 1 is in every pid namespace; 2 is the parent of the kernel's threads.
const CHECKED: [&str; 3] = ["self", "1", "2"];

/// The id of the root of every hierarchy of cgroups, which kernel threads do not leave.
const ROOT_CGROUP: u64 = 1;

/// Some kernels hide a process from programs, as one that guards the machine; many hidden ones are another thing.
const HIDDEN_MAX: usize = 8;

/// Holds the table against /proc, and finds the processes that it does not show.
///
/// # Errors
/// The first contradiction: which field of which process, what was read, what is true.
pub(super) fn check(host: &Host, table: &mut Table) -> Result<(), Refusal> {
    let mut read = TaskTable::default();
    table.hidden = hidden(host, table, &mut read)?;
    for name in CHECKED {
        check_process(host, table, name, &mut read)?;
    }
    let kernel = read.row(2).filter(|row| row.is_kernel);
    for id in kernel.iter().flat_map(|row| [row.cgroup_id, row.memory_cgroup_id]).flatten() {
        equal("cgroup of kthreadd", id, ROOT_CGROUP)?;
    }
    check_ended(host, table, &mut read)
}

/// Processes that /proc lists before and after the table is read, and that are not in it.
fn hidden(host: &Host, table: &mut Table, read: &mut TaskTable) -> Result<Vec<u32>, Refusal> {
    let list = || {
        let mut pids = Vec::new();
        let walked = Processes::new(host).walk(|process| pids.push(process.pid));
        walked.map(|()| pids).map_err(|error| Refusal::new(format!("{error}: {}", error.source), ""))
    };
    let before = list()?;
    read.clear();
    table.try_read(read)?;
    let after = list()?;
    let is_left_out = |pid: &u32| read.row(*pid).is_none() && !read.elsewhere.contains(pid) && after.contains(pid);
    let hidden: Vec<u32> = before.into_iter().filter(is_left_out).collect();
    if hidden.len() > HIDDEN_MAX {
        let count = hidden.len();
        return Err(contradicted(format!("the task iterator does not show {count} processes that /proc lists")));
    }
    Ok(hidden)
}

fn check_process(host: &Host, table: &mut Table, name: &str, read: &mut TaskTable) -> Result<(), Refusal> {
    let mut last = Ok(());
    for turn in 0..TURNS {
        // What holds another CPU up, as the host of a virtual machine may, is over in a moment.
        std::thread::sleep(turn * WAIT);
        // hidepid, or a kernel without such a process.
        let Some(before) = Truth::read(host, name) else { return Ok(()) };
        if table.hidden.contains(&before.pid) {
            return Ok(());
        }
        table.watched = before.pid;
        read.clear();
        table.try_read(read)?;
        let Some(after) = Truth::read(host, name) else { return Ok(()) };
        last = match (read.row(before.pid), &table.seen) {
            (Some(row), Some(raw)) => compare(row, raw, &before, &after),
            (None, Some(raw)) => compare_threads(raw.threads, &before, &after).and(Err(torn(before.pid))),
            _ => Err(contradiction("pid", "nothing", before.pid)),
        };
        if last.is_ok() {
            break;
        }
    }
    table.watched = 0;
    last
}

/// Either `task_struct.pid` lies, so that threads are taken for processes, or the kernel does not show one of them.
fn torn(pid: u32) -> Refusal {
    Refusal::new(
        format!("self-check: in {TURNS} readings the task iterator did not tell just the threads of process {pid}"),
        "restart the agent; if it says so again, report it with /proc/version",
    )
}

/// What /proc says of a process.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Truth {
    pid: u32,
    comm: Vec<u8>,
    state: u8,
    parent: u64,
    cpu: CpuTicks,
    threads: u64,
    start_ticks: u64,
    rss_pages: u64,
    uid: Option<u64>,
    rchar: Option<u64>,
    /// Nanoseconds that its first thread has run.
    runtime: Option<u64>,
    files_limit: Option<u64>,
}

impl Truth {
    fn read(host: &Host, name: &str) -> Option<Self> {
        let text = |file: &str| host.files.read(&host.files.proc(&format!("{name}/{file}"))).ok();
        // Every byte becomes one character, so that a name of any bytes keeps its length.
        let latin = |bytes: &[u8]| bytes.iter().map(|&byte| char::from(byte)).collect::<String>();
        let line = text("stat")?;
        let (open, close) = (line.iter().position(|&b| b == b'(')?, line.iter().rposition(|&b| b == b')')?);
        let stat = latin(&line);
        let field = |number: usize| stat_field(&stat, number);
        let (status, limits) = (latin(&text("status")?), latin(&text("limits").unwrap_or_default()));
        let pid = stat.split(' ').next()?.parse().ok()?;
        Some(Self {
            pid,
            comm: line.get(open + 1..close)?.to_vec(),
            state: *line.get(close + 2)?,
            parent: field(4)?,
            cpu: CpuTicks { user: field(14)?, system: field(15)? },
            threads: field(20)?,
            start_ticks: field(22)?,
            rss_pages: field(24)?,
            uid: number_after(&status, "Uid:"),
            // Other users' may be closed to the agent.
            rchar: text("io").and_then(|io| number_after(&latin(&io), "rchar:")),
            // The first thread's own, whoever asks.
            runtime: text(&format!("task/{pid}/schedstat"))
                .and_then(|text| latin(&text).split_whitespace().next()?.parse().ok())
                .filter(|&runtime| runtime > 0),
            files_limit: number_after(&limits, "Max open files"),
        })
    }
}

fn number_after(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace().next()?.parse().ok()
}

fn between(name: &str, read: u64, before: u64, after: u64) -> Result<(), Refusal> {
    if (before.min(after)..=before.max(after)).contains(&read) {
        Ok(())
    } else {
        Err(contradiction(name, read, before))
    }
}

fn compare_threads(read: u32, before: &Truth, after: &Truth) -> Result<(), Refusal> {
    between("signal.nr_threads", u64::from(read), before.threads, after.threads)
}

fn compare(row: &TaskRow, raw: &Process, before: &Truth, after: &Truth) -> Result<(), Refusal> {
    let name = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if !before.comm.starts_with(row.comm()) || (!row.is_kernel && before.comm != row.comm()) {
        return Err(contradiction("comm", name(row.comm()), name(&before.comm)));
    }
    equal("real_parent", u64::from(row.parent), before.parent)?;
    equal("start_boottime", row.start_ticks, before.start_ticks)?;
    if ![before.state, after.state].contains(&row.state) {
        return Err(contradiction("state", char::from(row.state), char::from(before.state)));
    }
    if let Some(uid) = before.uid {
        equal("real_cred.uid", u64::from(row.uid), uid)?;
    }
    compare_threads(row.threads, before, after)?;
    between("mm.rss_stat", row.rss_pages, before.rss_pages, after.rss_pages)?;
    if let Some(limit) = before.files_limit {
        equal("signal.rlim", row.open_files_max, limit)?;
    }
    if let (Some(before), Some(after)) = (before.runtime, after.runtime) {
        between("se.sum_exec_runtime", raw.own.runtime, before, after)?;
    }
    between("utime", row.cpu.user, before.cpu.user, after.cpu.user)?;
    between("stime", row.cpu.system, before.cpu.system, after.cpu.system)?;
    if let (Some(io), Some(before), Some(after)) = (row.io, before.rchar, after.rchar) {
        between("ioac.rchar", io.rchar, before, after)?;
    }
    Ok(())
}

/// Lets a thread of the agent run and end: what it has used is from then on counted with its process.
fn check_ended(host: &Host, table: &mut Table, rows: &mut TaskTable) -> Result<(), Refusal> {
    let Some(own) = Truth::read(host, "self") else { return Ok(()) };
    let mut ended = || {
        rows.clear();
        table.watched = own.pid;
        let read = table.try_read(rows).map(|()| table.seen.map_or(0, |seen| seen.ended.runtime));
        table.watched = 0;
        read
    };
    let before = ended()?;
    let path = host.files.proc("thread-self/schedstat");
    let files = host.files.clone();
    let thread = std::thread::Builder::new().name("self-check".to_owned()).spawn(move || {
        // The kernel adds up what a thread runs when it looks at it, as when it lets others run.
        for _ in 0..LOOKS {
            let text = files.read_text(&path).ok()?;
            let used = text.split_whitespace().next()?.parse::<u64>().ok()?;
            if used > 0 {
                return Some(used);
            }
            std::thread::yield_now();
        }
        None
    });
    let Ok(used) = thread.map(|thread| thread.join().ok().flatten()) else { return Ok(()) };
    let Some(used) = used else { return Ok(()) };
    // The kernel frees the thread a moment after it is joined.
    let mut rise = 0;
    for _ in 0..TURNS {
        rise = ended()?.saturating_sub(before);
        if rise >= used {
            break;
        }
        std::thread::yield_now();
    }
    // Between its look and its end a thread runs for no second.
    if (used..used.saturating_add(1_000_000_000)).contains(&rise) {
        Ok(())
    } else {
        Err(contradiction("signal.sum_sched_runtime", rise, used))
    }
}

#[cfg(test)]
mod tests {
    use super::super::records::tests::process;
    use super::*;
    use crate::host::task_table::tests::row;

    fn truth() -> (TaskRow, Process, Truth) {
        let row = TaskRow { cpu: CpuTicks { user: 5, system: 6 }, ..row(9) };
        let mut raw = process(9, 1);
        raw.own.runtime = 77;
        let truth = Truth {
            pid: 9,
            comm: b"made".to_vec(),
            state: b'S',
            parent: 1,
            cpu: CpuTicks { user: 5, system: 6 },
            threads: 1,
            start_ticks: 7,
            rss_pages: 1,
            uid: Some(0),
            rchar: None,
            runtime: Some(77),
            files_limit: Some(1024),
        };
        (row, raw, truth)
    }

    #[test]
    fn each_field_that_lies_is_named() {
        let (row, raw, truth) = truth();
        assert_eq!(compare(&row, &raw, &truth, &truth), Ok(()));
        let lies = [
            ("comm", TaskRow { comm: *b"mad\0\0\0\0\0\0\0\0\0\0\0\0\0", ..row }),
            ("real_parent", TaskRow { parent: 2, ..row }),
            ("start_boottime", TaskRow { start_ticks: 8, ..row }),
            ("state", TaskRow { state: b'R', ..row }),
            ("uid", TaskRow { uid: 1000, ..row }),
            ("nr_threads", TaskRow { threads: 2, ..row }),
            ("rss_stat", TaskRow { rss_pages: 2, ..row }),
            ("rlim", TaskRow { open_files_max: 1, ..row }),
            ("utime", TaskRow { cpu: CpuTicks { user: 4, system: 6 }, ..row }),
            ("stime", TaskRow { cpu: CpuTicks { user: 5, system: 7 }, ..row }),
        ];
        for (name, lie) in lies {
            let refused = compare(&lie, &raw, &truth, &truth).expect_err(name);
            assert!(refused.reason.contains(name), "{name}: {refused:?}");
        }
        let mut raw = raw;
        raw.own.runtime = 78;
        assert!(compare(&row, &raw, &truth, &truth).is_err_and(|refused| refused.reason.contains("sum_exec_runtime")));
    }

    #[test]
    fn what_moves_lies_between_two_looks() {
        let (row, raw, before) = truth();
        let after = Truth { rss_pages: 4, cpu: CpuTicks { user: 9, system: 6 }, ..before.clone() };
        let of = |rss_pages: u64, user: u64| {
            let moved = TaskRow { rss_pages, cpu: CpuTicks { user, system: 6 }, ..row };
            compare(&moved, &raw, &before, &after).is_ok()
        };
        assert!(of(1, 5) && of(4, 9) && of(2, 7) && !of(5, 7) && !of(2, 10));
    }

    #[test]
    fn names_of_the_kernels_threads_may_go_on() {
        let (row, raw, truth) = truth();
        let longer = Truth { comm: b"made-events".to_vec(), ..truth };
        assert!(compare(&row, &raw, &longer, &longer).is_err());
        assert_eq!(compare(&TaskRow { is_kernel: true, ..row }, &raw, &longer, &longer), Ok(()));
    }
}
