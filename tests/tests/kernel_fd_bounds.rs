//! The fd probe at its bounds: a process that holds a million descriptors, and one whose number another process gets.
#![expect(clippy::disallowed_methods, reason = "a test runs programs and reads files")]

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Duration;

use rustix::process::{Resource as Limit, Rlimit, getrlimit, setrlimit};
use sysops_agent::host::{EventSource, Host, OpenFds, Roots};
use sysops_agent::kernel::{Kernel, Observation, Rung};
use sysops_agent::model::{Batch, LeakReport, Reading, Resource};
use sysops_agent::spec::{Value, Values};
use sysops_tests::one_probe::key;
use sysops_tests::require::{self, require};

/// Set in the child.
const CHILD: &str = "SYSOPS_TEST_FD_BOUNDS_CHILD";
const MILLION: u64 = 1_000_000;
/// Those of them that are opened while the process is followed.
const SEEN: u64 = 150_000;
/// Descriptors that are kept of all followed processes together, by default.
const KEPT_MAX: u64 = 65_536;
/// Descriptors that one look lists.
const LOOK_MAX: u64 = 4096;
/// The last process id that the kernel gave; the next is the one behind it.
const LAST_PID: &str = "/proc/sys/kernel/ns_last_pid";

#[test]
#[ignore = "not every machine allows a million descriptors; run by vm-test without --quick"]
fn a_process_with_a_million_descriptors_costs_no_more_than_others() {
    let mut program = Program::start();
    if following(program.pid()).is_none() {
        return;
    }
    // Most of them are open before anyone looks; what comes then is more than is kept.
    program.take(MILLION - SEEN);
    let Some((host, mut kernel)) = following(program.pid()) else { return };
    // A stack that is known from the start: until then each descriptor hands over a copy of it.
    program.take(1);
    look(&host, &mut kernel);
    let before = resident_kib();
    program.take(SEEN);
    let start = host.clock.now();
    let report = report(&host, &mut kernel, program.pid());
    let took = host.clock.now().since(&start);
    let grown = resident_kib().saturating_sub(before);
    println!(
        "{} of {} attributed, {took:?}, {grown} KiB more: {}",
        report.attributed, report.open, report.unattributed
    );
    assert!((MILLION..MILLION + 100).contains(&report.open), "{}", report.open);
    // The programs remember as many as there is room for, and these stand behind all that were open before.
    assert!(report.attributed > KEPT_MAX / 2 && report.attributed <= KEPT_MAX, "{}", report.attributed);
    assert!(report.unattributed.contains("beyond those that are looked at"), "{}", report.unattributed);
    assert!(grown < 64 << 10, "{grown} KiB for at most {KEPT_MAX} descriptors");
}

/// A server may hold more than a look lists when it begins to leak. What it takes then stands at the list's end.
#[test]
fn what_is_taken_is_attributed_before_all_that_was_open_is_looked_at() {
    let mut program = Program::start();
    // Two looks and more: one as it comes to be followed, one that is made here.
    program.take(3 * LOOK_MAX);
    let Some((host, mut kernel)) = following(program.pid()) else { return };
    program.take(100);
    let mut batch = Batch::default();
    let mut told = || {
        batch.clear();
        kernel.drain(&host, &mut Vec::new());
        kernel.collect(&host, &mut batch);
        ["process_fd_attributed", "process_fd_unattributed"].map(|name| {
            let found = batch.iter().find(|(entry, _)| entry.metric.name == name).map(|(entry, _)| entry.reading);
            let Some(Reading::Gauge(value)) = found else { unreachable!("{name}: {found:?}") };
            value as u64
        })
    };
    let [attributed, others] = told();
    assert_eq!(attributed, 100);
    if OpenFds::new(&host.files.proc("")).by_size() {
        assert!(
            (3 * LOOK_MAX..3 * LOOK_MAX + 10).contains(&others),
            "{others}: those are counted that were not looked at"
        );
    }
    program.give_back(40);
    assert_eq!(told()[0], 60);
}

#[test]
fn a_number_that_is_used_again_brings_nothing_of_the_process_before() {
    if !require(require::files(&[LAST_PID])) {
        return;
    }
    let mut first = Program::start();
    let pid = first.pid();
    let Some((host, mut kernel)) = following(pid) else { return };
    first.take(50);
    assert_eq!(report(&host, &mut kernel, pid).attributed, 50);
    drop(first);
    let mut second = Program::again(pid);
    second.take(7);
    let told = |kernel: &mut Kernel| {
        look(&host, kernel);
        kernel.leaks(&host).into_iter().find(|report| report.pid == pid)
    };
    // Nobody looked in between. The first one is told as it was last seen. The other process is not the one that was meant: it
    // is told of by itself, or not at all.
    let first = told(&mut kernel).expect("it was followed until it ended");
    assert!(first.unattributed.starts_with("it ended while it was watched") && first.attributed == 50, "{first:#?}");
    if let Some(report) = told(&mut kernel) {
        assert!(report.attributed <= 7 && report.open < 50, "{report:#?}");
    }
    kernel.watch_leaks(pid);
    look(&host, &mut kernel);
    second.take(9);
    let report = told(&mut kernel).expect("it is followed now");
    assert!((9..=16).contains(&report.attributed), "{report:#?}");
    assert!(report.stacks.iter().all(|stack| stack.count <= 16), "{report:#?}");
}

/// A kernel that follows `pid` on the best rung, if it can stand.
fn following(pid: u32) -> Option<(Host, Kernel)> {
    if !require(require::root()) {
        return None;
    }
    let host = Host::live(&Roots::default());
    let mut values = Values::default();
    values.set(key("kernel.fd.rung"), Value::Text("auto".to_owned()));
    let length = Duration::from_secs(60);
    let observation = Observation { resources: vec![Resource::Fd], pids: vec![pid], malloc: false, length };
    let kernel = Kernel::observe(&host, &values, &observation);
    let standing = kernel.standings().remove(0);
    let stands = standing.rung != Rung::Off || require(Some(standing.reason));
    stands.then_some((host, kernel))
}

fn look(host: &Host, kernel: &mut Kernel) {
    kernel.drain(host, &mut Vec::new());
    kernel.collect(host, &mut Batch::default());
}

fn report(host: &Host, kernel: &mut Kernel, pid: u32) -> LeakReport {
    look(host, kernel);
    kernel.leaks(host).into_iter().find(|report| report.pid == pid).expect("it is followed")
}

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("there is one");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("in each status");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

/// A child that takes as many descriptors as it is told to.
struct Program {
    child: Child,
    orders: Option<ChildStdin>,
    said: BufReader<std::process::ChildStdout>,
}

impl Program {
    fn start() -> Self {
        let mut child = Command::new(std::env::current_exe().expect("a test has a path"))
            .args(["--exact", "child", "--nocapture"])
            .env(CHILD, "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("this program runs");
        let said = BufReader::new(child.stdout.take().expect("it is piped"));
        let mut program = Self { orders: child.stdin.take(), child, said };
        program.wait_for("ready");
        program
    }

    /// One that gets the number `pid`, which is free.
    fn again(pid: u32) -> Self {
        for _ in 0..1000 {
            // Others may take the number in between; then it is free again when they have ended.
            std::fs::write(LAST_PID, (pid - 1).to_string()).expect("root may");
            let program = Self::start();
            if program.pid() == pid {
                return program;
            }
        }
        unreachable!("a thousand times someone else was faster")
    }

    fn pid(&self) -> u32 {
        self.child.id()
    }

    fn take(&mut self, count: u64) {
        self.order(&count.to_string());
    }

    /// Closes as many of those that it took last.
    fn give_back(&mut self, count: u64) {
        self.order(&format!("-{count}"));
    }

    fn order(&mut self, order: &str) {
        writeln!(self.orders.as_mut().expect("it is open"), "{order}").expect("it reads");
        self.wait_for("done");
    }

    fn wait_for(&mut self, word: &str) {
        let mut line = String::new();
        while !line.trim_end().ends_with(word) {
            line.clear();
            assert!(self.said.read_line(&mut line).expect("it is a pipe") > 0, "the child ended before {word}");
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        drop(self.orders.take());
        // It ends at the end of its input; whether well or not is of no interest any more.
        let _ = self.child.wait();
    }
}

/// Not a test: what the others start to be followed.
#[test]
fn child() {
    if std::env::var(CHILD).is_err() {
        return;
    }
    let limit = getrlimit(Limit::Nofile);
    let most = limit.maximum.map(|most| most.max(MILLION + 100));
    // As far as the kernel allows it.
    if setrlimit(Limit::Nofile, Rlimit { current: most, maximum: most }).is_err() {
        setrlimit(Limit::Nofile, Rlimit { current: limit.maximum, ..limit }).expect("anyone may");
    }
    let file = File::open("/dev/null").expect("each machine has it");
    let mut held: Vec<OwnedFd> = Vec::new();
    println!("ready");
    for line in std::io::stdin().lines() {
        let held_then = held.len().saturating_add_signed(line.expect("it is a pipe").parse().expect("a number"));
        held.truncate(held_then);
        held.extend((held.len()..held_then).map(|_| rustix::io::dup(&file).expect("there is room")));
        println!("done");
    }
}
