//! A child that opens, duplicates and closes known numbers of file descriptors: the probe counts just those, on every rung.
#![expect(clippy::disallowed_methods, reason = "a test runs programs and reads files")]

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use rustix::event::{EventfdFlags, epoll, eventfd};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket, socketpair};
use rustix::pipe::{PipeFlags, pipe_with};
use sysops_agent::host::{Host, Roots};
use sysops_agent::kernel::Rung;
use sysops_agent::spec::{Value, Values};
use sysops_tests::one_probe::{OneProbe, has_tracefs, key};
use sysops_tests::require::{self, require};

/// Name of the child, as the others find it.
const COMM: &str = "sysops-fd-child";
/// Set in the child: its name.
const CHILD: &str = "SYSOPS_TEST_FD_CHILD";

/// What the child does in a turn.
const INSTALLS: u64 = 100 + 2 * 10 + 2 * 7 + 5 + 4 + 3 + 6 + 1 + 7;
const CLOSES: u64 = INSTALLS;

#[test]
#[ignore = "not every kernel takes programs at its functions; run by vm-test"]
fn descriptors_are_counted_on_fentry() {
    on_rung("fentry");
}

#[test]
#[ignore = "not every kernel has kprobes; run by vm-test"]
fn descriptors_are_counted_on_kprobe() {
    on_rung("kprobe");
}

#[test]
fn descriptors_are_counted_on_tp_btf() {
    on_rung("tp_btf");
}

#[test]
fn descriptors_are_counted_on_raw_tracepoint() {
    on_rung("raw_tracepoint");
}

#[test]
fn descriptors_are_counted_on_tracepoint() {
    let missing = require::root().or_else(|| require::programs(&["unshare", "mount"]));
    if require(missing) && has_tracefs("descriptors_are_counted_on_tracepoint") {
        on_rung("tracepoint");
    }
}

fn on_rung(rung: &str) {
    let name = format!("{COMM}-{rung}")[..15].to_owned();
    let Some((host, mut probe)) = stands(rung, &[&name]) else { return };
    let mut child = Watched::start(&name);
    let mut other = Watched::start("another");
    let pid = child.child.id().to_string();
    let labels = [pid.as_str(), name.as_str()];
    until(&host, &mut probe, |probe| probe.number("process_fd_installs_total", &labels).is_some());
    for turn in 1..=3 {
        child.turn();
        other.turn();
        probe.collect(&host);
        assert_counted(&probe, "process_fd_installs_total", &labels, turn * INSTALLS);
        assert_counted(&probe, "process_fd_closes_total", &labels, turn * CLOSES);
    }
    let other_labels = [&other.child.id().to_string(), "another"];
    assert_eq!(probe.number("process_fd_installs_total", &other_labels), None, "no one watches it");
    assert_eq!(probe.number("process_fd_unwatched", &[]), Some(0));
    drop(child);
    until(&host, &mut probe, |probe| probe.number("process_fd_installs_total", &labels).is_none());
    let standing = probe.standing();
    assert_eq!((standing.rung.word(), standing.dropped), (rung, probe.passed_over()), "{standing:?}");
    assert!(!standing.reason.contains("stands by"), "{standing:?}");
}

/// All were counted but for those of runs that the kernel passed over: one descriptor each, or two of a pair.
fn assert_counted(probe: &OneProbe, metric: &str, labels: &[&str], happened: u64) {
    let counted = probe.number(metric, labels).expect("it is watched");
    let lost = happened.checked_sub(counted);
    assert!(
        lost.is_some_and(|lost| lost <= 2 * probe.passed_over()),
        "{counted} of {happened}: {:?}",
        probe.standing()
    );
}

#[test]
fn without_a_name_it_stands_by_and_attaches_nothing() {
    let Some((host, mut probe)) = stands("auto", &[]) else { return };
    let standing = probe.standing();
    assert!(standing.reason.ends_with("stands by: no process looks as if it leaked file descriptors"), "{standing:?}");
    assert!(!standing.forced_and_failed);
    probe.collect(&host);
    assert_eq!(probe.number("process_fd_suspects", &[]), Some(0));
    assert_eq!(programs(), 0);
}

#[test]
fn a_steady_cycle_takes_no_memory() {
    let name = "sysops-fd-still";
    let Some((host, mut probe)) = stands("tp_btf", &[name]) else { return };
    let child = Watched::start(name);
    let pid = child.child.id().to_string();
    until(&host, &mut probe, |probe| probe.number("process_fd_installs_total", &[&pid, name]).is_some());
    // Processes of others come and go; in one of these cycles none does.
    let least = (0..50).map(|_| allocation_counter::measure(|| probe.collect(&host)).count_total).min();
    assert_eq!(least, Some(0));
}

/// Programs of this process that are in the kernel, as its descriptors show them.
fn programs() -> usize {
    let descriptors = std::fs::read_dir("/proc/self/fd").expect("procfs");
    let links = descriptors.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
    links
        .filter(|link| link.to_string_lossy().contains("bpf-prog") || link.to_string_lossy().contains("bpf_link"))
        .count()
}

#[test]
fn nothing_is_attached_while_no_such_process_runs() {
    let name = "sysops-fd-comes";
    let Some((host, mut probe)) = stands("auto", &[name]) else { return };
    // What the self-check attached is detached behind our back: none of that name runs.
    until(&host, &mut probe, |_| programs() == 0);
    let mut child = Watched::start(name);
    let pid = child.child.id().to_string();
    until(&host, &mut probe, |probe| probe.number("process_fd_installs_total", &[&pid, name]).is_some());
    assert!(programs() > 0);
    child.turn();
    probe.collect(&host);
    assert_counted(&probe, "process_fd_installs_total", &[&pid, name], INSTALLS);
    drop(child);
    until(&host, &mut probe, |_| programs() == 0);
}

fn stands(rung: &str, watch: &[&str]) -> Option<(Host, OneProbe)> {
    if !require(require::root()) {
        return None;
    }
    let host = Host::live(&Roots::default());
    let mut values = Values::default();
    let names = watch.iter().map(|&name| name.to_owned()).collect();
    values.set(key("kernel.fd.watch"), Value::TextList(names));
    let probe = OneProbe::start(&host, "fd", rung, values);
    let standing = probe.standing();
    if standing.rung == Rung::Off {
        let _ = require(Some(standing.reason));
        return None;
    }
    assert!(rung == "auto" || standing.rung.word() == rung, "{standing:?}");
    Some((host, probe))
}

fn until(host: &Host, probe: &mut OneProbe, mut enough: impl FnMut(&OneProbe) -> bool) {
    let start = host.clock.now();
    loop {
        probe.collect(host);
        if enough(probe) {
            return;
        }
        assert!(host.clock.now().since(&start) < Duration::from_secs(10), "in vain: {:?}", probe.standing());
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A child that takes a turn when it is told to.
struct Watched {
    child: Child,
    said: BufReader<ChildStdout>,
}

impl Watched {
    fn start(name: &str) -> Self {
        let mut child = Command::new(std::env::current_exe().expect("a test has a path"))
            .args(["--exact", "child", "--nocapture"])
            .env(CHILD, name)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("this program runs");
        let said = BufReader::new(child.stdout.take().expect("it is piped"));
        let mut watched = Self { child, said };
        watched.wait_for("ready");
        watched
    }

    fn turn(&mut self) {
        self.child.stdin.as_mut().expect("it is piped").write_all(b"go\n").expect("it reads");
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

impl Drop for Watched {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        // It ends at the end of its input; whether well or not is of no interest any more.
        let _ = self.child.wait();
    }
}

/// Not a test: what the others start to be watched.
#[test]
fn child() {
    let Ok(name) = std::env::var(CHILD) else { return };
    std::fs::write("/proc/self/comm", name).expect("a process may name itself");
    println!("ready");
    for line in std::io::stdin().lines() {
        assert_eq!(line.expect("it is a pipe"), "go");
        take_a_turn();
        println!("done");
    }
}

fn take_a_turn() {
    for _ in 0..100 {
        File::open("/dev/null").expect("it is there");
    }
    for _ in 0..30 {
        File::open("/nonexistent").expect_err("a call that fails counts for nothing");
    }
    let none = SocketFlags::CLOEXEC;
    for _ in 0..10 {
        socketpair(AddressFamily::UNIX, SocketType::STREAM, none, None).expect("two sockets");
    }
    for _ in 0..7 {
        pipe_with(PipeFlags::CLOEXEC).expect("two ends");
    }
    for _ in 0..5 {
        rustix::io::dup(std::io::stderr()).expect("a copy");
    }
    for _ in 0..4 {
        eventfd(0, EventfdFlags::CLOEXEC).expect("a counter");
    }
    for _ in 0..3 {
        epoll::create(epoll::CreateFlags::CLOEXEC).expect("a set");
    }
    for _ in 0..6 {
        socket(AddressFamily::UNIX, SocketType::DGRAM, None).expect("a socket");
    }
    let file = File::open("/dev/null").expect("it is there");
    for _ in 0..7 {
        file.try_clone().expect("a copy by fcntl");
    }
}
