//! The process collector against generated and hostile hosts; what it does is in `process`.

use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use super::*;
use crate::collect::made_host::{MadeHost, MadeProcess, shown, shown_of};
use crate::host::task_table::tests::{Made, row};
use crate::host::{Clock, ReadTasks, TaskTables};
use crate::spec::Value;

fn collector(host: &Host, top_n: i64) -> ProcessCollector {
    let mut values = Values::default();
    values.set(TOP_N.spec(), Value::Int(top_n));
    ProcessCollector::new(host, &values)
}

fn cycle(collector: &mut ProcessCollector, host: &Host) -> Batch {
    let mut batch = Batch::default();
    assert_eq!(collector.collect(host, &mut batch).expect("read"), Outcome::Data);
    batch
}

#[test]
fn a_recorded_host_with_hostile_names() {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/hosts/process-hostile");
    let host = Host::fixture(std::path::Path::new(root));
    let batch = cycle(&mut collector(&host, 10), &host);
    let lines: Vec<String> = shown(&batch).iter().map(|line| format!("{line:?}")).collect();
    insta::assert_snapshot!(lines.join("\n"));
}

#[test]
fn cpu_is_what_was_used_since_the_cycle_before() {
    let made = MadeHost::new();
    let [busy, idle] = [b"busy", b"idle"].map(|comm| MadeProcess { comm, cpu_ticks: 1000, ..MadeProcess::default() });
    for (pid, process) in [(1, idle), (20, busy), (30, busy), (40, busy)] {
        made.process(pid, process);
    }
    let mut collector = collector(&made.host, 10);
    assert_eq!(
        shown_of(&cycle(&mut collector, &made.host), "process_top_cpu_percent"),
        [""; 0],
        "nothing to compare with"
    );

    made.host.clock.advance(Duration::from_secs(10));
    made.process(20, MadeProcess { cpu_ticks: 1500, ..busy });
    made.process(30, MadeProcess { cpu_ticks: 3000, ..busy });
    // The pid of one that ended is given to another, which began after the cycle before (at 6000 s).
    made.process(40, MadeProcess { comm: b"later", cpu_ticks: 100, start_ticks: 600_500, ..busy });
    // One that is new in the list and yet older than the cycle before: how much of its time is new is not known.
    made.process(50, MadeProcess { comm: b"older", cpu_ticks: 9999, start_ticks: 599_999, ..busy });
    let batch = cycle(&mut collector, &made.host);
    let expected = ["{30,busy} 200", "{20,busy} 50", "{40,later} 10"];
    assert_eq!(shown_of(&batch, "process_top_cpu_percent"), expected);

    // A clock that did not move gives no rate; the wall clock does not matter.
    made.process(20, MadeProcess { cpu_ticks: 1600, ..busy });
    made.host.clock.set_wall(std::time::SystemTime::UNIX_EPOCH);
    assert_eq!(shown_of(&cycle(&mut collector, &made.host), "process_top_cpu_percent"), [""; 0]);
    made.host.clock.advance(Duration::from_secs(5));
    made.process(20, MadeProcess { cpu_ticks: 1700, ..busy });
    made.process(30, MadeProcess { cpu_ticks: 2999, ..busy });
    assert_eq!(shown_of(&cycle(&mut collector, &made.host), "process_top_cpu_percent"), ["{20,busy} 20"]);
}

#[test]
fn processes_that_end_between_two_reads_are_not_counted() {
    let made = MadeHost::new();
    made.process(1, MadeProcess::default());
    made.process(2, MadeProcess::default());
    made.remove("2/stat");
    made.write("3", "a file is no process");
    let batch = cycle(&mut collector(&made.host, 10), &made.host);
    assert_eq!(shown_of(&batch, "processes"), [" 1"]);
    assert_eq!(shown_of(&batch, "processes_unreadable"), [" 0"]);
}

#[test]
fn what_is_odd_is_counted_and_an_error_only_when_all_is_odd() {
    let made = MadeHost::new();
    made.process(1, MadeProcess { threads: u64::MAX, rss_pages: u64::MAX, ..MadeProcess::default() });
    made.process(4, MadeProcess { threads: 2, ..MadeProcess::default() });
    made.write("5/stat", "");
    made.write("6/stat", b"\x7fELF\0\0)");
    made.write("7/stat/x", "stat is a directory");
    let mut collector = collector(&made.host, 10);
    let batch = cycle(&mut collector, &made.host);
    assert_eq!(shown_of(&batch, "processes"), [" 5"]);
    assert_eq!(shown_of(&batch, "processes_unreadable"), [" 3"]);
    for pid in [1, 4, 5, 7] {
        made.remove(&pid.to_string());
    }
    let error = collector.collect(&made.host, &mut Batch::default()).expect_err("nothing was understood").to_string();
    let expected = "/proc/6/stat: line: expected pid (comm) state and 21 numbers, found \"\\u{7f}ELF\\0\\0)\"";
    assert_eq!(error, expected);
}

#[test]
fn a_part_of_the_processes_is_no_reading() {
    let made = MadeHost::new();
    let mut collector = collector(&made.host, 10);
    let mut absent = || match collector.collect(&made.host, &mut Batch::default()) {
        Ok(Outcome::Absent { reason, remedy }) => (reason, remedy),
        other => panic!("{other:?}"),
    };
    assert_eq!(absent().0, "no process in /proc");
    made.process(700, MadeProcess::default());
    let (reason, remedy) = absent();
    assert!(reason.contains("hidepid") && remedy.contains("CAP_SYS_PTRACE"), "{reason} {remedy}");
}

#[test]
fn limits_of_the_kernel_are_read_absent_or_an_error() {
    let made = MadeHost::new();
    made.process(1, MadeProcess::default());
    made.write("sys/kernel/pid_max", "4194304\n");
    let mut collector = collector(&made.host, 10);
    assert_eq!(shown_of(&cycle(&mut collector, &made.host), "node_processes_max_processes"), [" 4194304"]);
    made.write("sys/kernel/threads-max", "many");
    let error = collector.collect(&made.host, &mut Batch::default()).expect_err("no number").to_string();
    assert_eq!(error, "/proc/sys/kernel/threads-max: limit: expected a number, found \"many\"");
}

#[test]
fn ten_thousand_processes() {
    let made = MadeHost::new();
    for pid in 1..=10_000 {
        let state = if pid % 100 == 0 { 'Z' } else { 'S' };
        made.process(pid, MadeProcess { state, rss_pages: u64::from(pid), ..MadeProcess::default() });
    }
    let mut collector = collector(&made.host, 50);
    cycle(&mut collector, &made.host);
    made.host.clock.advance(Duration::from_secs(1));
    for pid in 5001..=5060 {
        made.process(pid, MadeProcess { cpu_ticks: u64::from(pid - 5000), ..MadeProcess::default() });
    }
    let batch = cycle(&mut collector, &made.host);
    assert_eq!(shown_of(&batch, "processes"), [" 10000"]);
    assert_eq!(shown_of(&batch, "processes_zombie"), [" 100"]);
    let [cpu, rss] = ["process_top_cpu_percent", "process_top_rss_bytes"].map(|metric| shown_of(&batch, metric));
    assert_eq!((cpu.len(), cpu[0].as_str(), cpu[49].as_str()), (50, "{5060,made} 60", "{5011,made} 11"));
    assert_eq!((rss.len(), rss[0].as_str()), (50, format!("{{10000,made}} {}", 10_000 * os::page_size()).as_str()));
}

#[test]
fn a_steady_cycle_allocates_nothing() {
    let made = MadeHost::new();
    made.write("sys/kernel/pid_max", "4194304\n");
    made.write("sys/kernel/threads-max", "192731\n");
    for pid in 1..=2000 {
        made.process(pid, MadeProcess { rss_pages: u64::from(pid), ..MadeProcess::default() });
    }
    let mut collector = collector(&made.host, 10);
    let mut batch = Batch::default();
    let mut allocations = u64::MAX;
    for round in 1..=4 {
        made.host.clock.advance(Duration::from_secs(30));
        for pid in 1..=20 {
            let cpu_ticks = u64::from(pid) * round;
            made.process(pid, MadeProcess { cpu_ticks, ..MadeProcess::default() });
        }
        batch.clear();
        let counted = allocation_counter::measure(|| {
            collector.collect(&made.host, &mut batch).expect("read");
        });
        allocations = counted.count_total;
    }
    assert_eq!(shown_of(&batch, "process_top_cpu_percent").len(), 10);
    assert_eq!(allocations, 0);
}

/// The host of `made` with a table of processes, which is there as long as the reader is held.
fn with_table(made: &MadeHost, table: Made) -> (Host, Arc<Mutex<dyn ReadTasks>>) {
    let host = Host { tasks: TaskTables::default(), ..made.host.clone() };
    let reader: Arc<Mutex<dyn ReadTasks>> = Arc::new(Mutex::new(table));
    host.tasks.offer(&reader);
    (host, reader)
}

#[test]
fn the_table_gives_what_the_files_give() {
    let made = MadeHost::new();
    let mut table = Made::default();
    let mut process = |pid: u32, comm: &'static [u8], state: char, ticks: u64, threads: u32, pages: u64| {
        let process = MadeProcess {
            comm,
            state,
            cpu_ticks: ticks,
            threads: threads.into(),
            rss_pages: pages,
            start_ticks: 600_100,
        };
        made.process(pid, process);
        let mut name = [0; 16];
        name[..comm.len().min(15)].copy_from_slice(&comm[..comm.len().min(15)]);
        let state = u8::try_from(state).expect("ASCII");
        let cpu_ns = ticks * 10_000_000 + 9_999_999;
        let found = TaskRow {
            comm: name,
            state,
            cpu_ns,
            threads,
            rss_pages: pages,
            start_ticks: 600_100,
            is_kernel: pages == 0,
            ..row(pid)
        };
        table.rows.push(found);
    };
    process(1, b"init", 'S', 900, 1, 100);
    process(2, b"kworker/0:1-events_power", 'I', 700, 1, 0);
    process(7, b"a) S 1 (b\n\xff", 'R', 5000, 300, 7000);
    process(8, b"torn", 'D', 400, 3, 50);
    process(9, b"ended", 'Z', 1, 1, 1);
    table.rows.remove(3);
    table.elsewhere = vec![8, 4_000_000];
    let (host, _held) = with_table(&made, table);
    let read = |host: &Host| {
        let mut collector = collector(host, 10);
        // Both see the processes begin after the cycle before.
        collector.scan.times.finish(host.clock.now());
        let now = Clock::fixed();
        now.advance(Duration::from_secs(10));
        shown(&cycle(&mut collector, &Host { clock: now, ..host.clone() }))
    };
    let (by_table, by_files) = (read(&host), read(&made.host));
    assert_eq!(by_table, by_files);
    for line in ["processes 5", "processes_threads 306", "process_top_cpu_percent{2,kworker/0:1-events_power} 70"] {
        assert!(by_table.iter().any(|found| found == line), "{line} is not in {by_table:#?}");
    }
}

#[test]
fn where_the_table_breaks_off_the_files_are_read() {
    let made = MadeHost::new();
    for pid in [1, 2, 3] {
        made.process(pid, MadeProcess::default());
    }
    let (host, held) = with_table(&made, Made { rows: vec![row(1)], is_broken: true, ..Made::default() });
    let mut collector = collector(&host, 10);
    assert_eq!(shown_of(&cycle(&mut collector, &host), "processes"), [" 3"]);
    drop(held);
    assert_eq!(shown_of(&cycle(&mut collector, &host), "processes"), [" 3"]);
}

/// A child that is ended with the test.
struct Busy(Child);

impl Drop for Busy {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
#[expect(clippy::disallowed_methods, reason = "the test needs a process of its own, which takes a name and keeps busy")]
fn a_child_that_is_named_like_a_stat_line_is_seen_on_the_live_machine() {
    let script = "printf 'a) S 1 (b' > /proc/$$/comm; echo; while :; do :; done";
    let child = Command::new("/bin/sh").args(["-c", script]).stdout(Stdio::piped()).spawn().expect("a shell");
    let mut child = Busy(child);
    child.0.stdout.as_mut().expect("a pipe").read_exact(&mut [0]).expect("the child has its name");
    let host = Host { clock: Clock::Live, ..Host::live(&crate::host::Roots::default()) };
    let mut collector = collector(&host, 50);
    let label = format!("{{{},a) S 1 (b}} ", child.0.id());
    let deadline = host.clock.now().monotonic + Duration::from_secs(30);
    while host.clock.now().monotonic < deadline {
        let batch = cycle(&mut collector, &host);
        let top = shown_of(&batch, "process_top_cpu_percent");
        if let Some(value) = top.iter().find_map(|line| line.strip_prefix(label.as_str())) {
            let percent: f64 = value.parse().expect("a number");
            assert!(percent > 0.0);
            return;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    panic!("the child is not in the list");
}
