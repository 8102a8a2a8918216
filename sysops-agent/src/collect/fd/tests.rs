//! The fd collector against generated hosts; what it does is in `fd`.

use std::sync::{Arc, Mutex};

use super::*;
use crate::collect::made_host::{MadeHost, MadeProcess, shown, shown_of};
use crate::host::task_table::tests::{Made, row};
use crate::host::{ReadTasks, TaskTables};
use crate::spec::Value;

fn collector(host: &Host, top_n: i64) -> FdCollector {
    let mut values = Values::default();
    values.set(TOP_N.spec(), Value::Int(top_n));
    FdCollector::new(host, &values)
}

fn cycle(collector: &mut FdCollector, host: &Host) -> Batch {
    let mut batch = Batch::default();
    assert_eq!(collector.collect(host, &mut batch).expect("read"), Outcome::Data);
    batch
}

#[test]
fn who_has_most_and_who_is_nearest_its_limit() {
    let made = MadeHost::new();
    made.write("sys/fs/file-nr", "646\t0\t6460\n");
    for (pid, comm, open, limit) in [
        (1, &b"many"[..], 50, "1000"),
        (2, b"near\nits limit", 20, "25"),
        (3, b"free", 60, "unlimited"),
        (4, b"few", 15, "16"),
        (5, b"none", 0, "1024"),
        (6, b"shut", 30, "0"),
        (7, b"less", 17, "1024"),
    ] {
        made.process(pid, MadeProcess { comm, ..MadeProcess::default() });
        made.open_files(pid, open, limit);
    }
    let batch = cycle(&mut collector(&made.host, 3), &made.host);
    let expected = [
        "node_filefd_allocated 646",
        "node_filefd_maximum 6460",
        "fd_used_percent 10",
        "fd_unreadable_processes 0",
        "process_open_fds{3,free} 60",
        "process_open_fds{1,many} 50",
        "process_open_fds{6,shut} 30",
        "process_fd_used_percent{2,near\nits limit} 80",
        "process_fd_used_percent{1,many} 5",
        "process_fd_used_percent{7,less} 1.66015625",
    ];
    assert_eq!(shown(&batch), expected);
}

#[test]
fn the_table_gives_what_the_files_give() {
    let made = MadeHost::new();
    let mut table = Made::default();
    for (pid, open, limit) in
        [(1, 50, "1000"), (2, 20, "25"), (3, 60, "unlimited"), (4, 15, "16"), (6, 30, "0"), (8, 900, "1024")]
    {
        made.process(pid, MadeProcess::default());
        made.open_files(pid, open, limit);
        let open_files_max = limit.parse().unwrap_or(u64::MAX);
        // One that has room for more than the table counts.
        let open_files = (pid != 8).then_some(open);
        table.rows.push(TaskRow { open_files, open_files_max, ..row(pid) });
    }
    table.rows.remove(1);
    table.elsewhere = vec![2];
    let by_files = shown(&cycle(&mut collector(&made.host, 10), &made.host));
    let host = Host { tasks: TaskTables::default(), ..made.host.clone() };
    let reader: Arc<Mutex<dyn ReadTasks>> = Arc::new(Mutex::new(table));
    host.tasks.offer(&reader);
    assert_eq!(shown(&cycle(&mut collector(&host, 10), &host)), by_files);
    assert!(by_files.contains(&"process_open_fds{8,made} 900".to_owned()), "{by_files:?}");
}

#[test]
fn processes_that_end_between_two_reads_are_in_no_list() {
    let made = MadeHost::new();
    for pid in [1, 2, 3] {
        made.process(pid, MadeProcess::default());
        made.open_files(pid, 20, "40");
    }
    made.remove("1/fd");
    made.remove("2/limits");
    made.remove("3/comm");
    let batch = cycle(&mut collector(&made.host, 10), &made.host);
    assert_eq!(shown(&batch), ["fd_unreadable_processes 0", "process_open_fds{2,made} 20"]);
}

#[test]
fn what_cannot_be_counted_is_told_and_no_failure() {
    let made = MadeHost::new();
    made.process(1, MadeProcess::default());
    made.open_files(1, 1, "40");
    // A loop of links stands for a directory that is refused: root, as whom tests may run, is refused nothing.
    made.process(2, MadeProcess::default());
    made.link("2/fd", "fd");
    let batch = cycle(&mut collector(&made.host, 10), &made.host);
    assert_eq!(shown(&batch), ["fd_unreadable_processes 1", "process_open_fds{1,made} 1"]);
    made.rename("1", "3");
    let batch = cycle(&mut collector(&made.host, 10), &made.host);
    assert_eq!(shown(&batch), ["process_open_fds{3,made} 1"], "how many are hidden is not known");
}

#[test]
fn nothing_there_is_absence_and_garbage_an_error() {
    let made = MadeHost::new();
    let mut collector = collector(&made.host, 10);
    let outcome = collector.collect(&made.host, &mut Batch::default()).expect("read");
    assert!(matches!(outcome, Outcome::Absent { reason, .. } if reason.contains("file-nr")));
    for (garbage, item) in [("", "allocated"), ("1", "unused"), ("1 2", "maximum"), ("a\0b 1 2", "allocated")] {
        let error = parse_file_nr(garbage.as_bytes()).expect_err("garbage").to_string();
        assert!(error.starts_with(&format!("/proc/sys/fs/file-nr: {item}: expected a number")), "{error}");
    }
    assert_eq!(parse_file_nr(b"646\t0\t9223372036854775807\n").expect("read"), (646, i64::MAX as u64));
}

#[test]
fn the_soft_limit_is_the_first_number() {
    // Of Linux 6.18; the lines of 3.10 are the same.
    let line = |soft| {
        format!(
            "Max processes             96365                96365                processes \n\
             Max open files            {soft}                524288               files     \n"
        )
    };
    assert_eq!(parse_soft_limit(line("1024").as_bytes()), Some(1024.0));
    for unknown in ["unlimited", "0", "-1", ""] {
        let expected = if unknown.is_empty() { Some(524_288.0) } else { None };
        assert_eq!(parse_soft_limit(line(unknown).as_bytes()), expected, "{unknown}");
    }
    assert_eq!(parse_soft_limit(b"Max open files \xff"), None);
    assert_eq!(parse_soft_limit(b""), None);
}

#[test]
fn a_steady_cycle_allocates_nothing() {
    let made = MadeHost::new();
    made.write("sys/fs/file-nr", "646\t0\t6460\n");
    for pid in 1..=100 {
        made.process(pid, MadeProcess::default());
        made.open_files(pid, pid, "1024");
    }
    let mut collector = collector(&made.host, 10);
    let mut batch = Batch::default();
    let mut allocations = u64::MAX;
    for _ in 0..3 {
        batch.clear();
        let counted = allocation_counter::measure(|| {
            collector.collect(&made.host, &mut batch).expect("read");
        });
        allocations = counted.count_total;
    }
    assert_eq!(shown_of(&batch, "process_fd_used_percent").len(), 10);
    assert_eq!(allocations, 0);
}

#[test]
fn the_live_machine_has_open_files() {
    let host = Host::live(&crate::host::Roots::default());
    let held: Vec<_> = (0..700).map(|_| tempfile::tempfile().expect("a file")).collect();
    let batch = cycle(&mut collector(&host, 50), &host);
    let own = format!("{{{},", std::process::id());
    let open = shown_of(&batch, "process_open_fds").into_iter().find(|line| line.starts_with(&own));
    let open = open.expect("so many open files are among the most");
    let count: usize = open.rsplit(' ').next().expect("a value").parse().expect("a number");
    assert!(count >= held.len(), "{open}");
    assert!(shown_of(&batch, "process_fd_used_percent").iter().any(|line| line.starts_with(&own)));
}
