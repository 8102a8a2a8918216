//! A child that takes file descriptors in many ways and keeps some: each stack that keeps any is told with their number and
//! kind, none other is, and what is not attributed is counted. On every rung.
#![expect(clippy::disallowed_methods, reason = "a test runs programs and reads files")]

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, epoll, eventfd, poll};
use rustix::fs::Timespec;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketType, recvmsg, sendmsg, socket, socketpair,
};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Resource as Limit, Rlimit, getrlimit, setrlimit};
use sysops_agent::host::{EventSource, Host, Roots, os};
use sysops_agent::kernel::{Kernel, Observation, Rung};
use sysops_agent::model::{Batch, Detail, LeakReport, LeakStack, Resource};
use sysops_agent::spec::{Value, Values};
use sysops_agent::symbolize::{Symbolizer, Trust};
use sysops_tests::one_probe::{has_tracefs, key, only, passed_over};
use sysops_tests::require::{self, require};

/// Set in the child.
const CHILD: &str = "SYSOPS_TEST_FD_LEAKS_CHILD";

/// Copies of one descriptor in the turn `many`.
const MANY: u64 = 2000;

/// What the child holds after the turn `keep`, by function and kind; as many times as it took it.
const KEPT: &[(&str, &str, u64)] = &[
    ("open_files", "file", 30),
    ("make_sockets", "socket", 20),
    ("make_socketpairs", "socket", 6),
    ("make_pipes", "pipe", 10),
    ("duplicate", "file", 7),
    ("duplicate_onto", "pipe", 4),
    ("duplicate_by_fcntl", "file", 6),
    ("make_eventfds", "eventfd", 3),
    ("make_epolls", "epoll", 2),
    ("accept_connections", "socket", 3),
    ("receive", "file", 5),
];

#[test]
#[ignore = "not every kernel takes programs at its functions; run by vm-test"]
fn stacks_are_told_on_fentry() {
    on_rung("fentry");
}

#[test]
#[ignore = "not every kernel has kprobes; run by vm-test"]
fn stacks_are_told_on_kprobe() {
    on_rung("kprobe");
}

/// Where the kernel lets others run before a program is through, and passes over it for them, kprobes take its place; what
/// was seen before is not forgotten.
#[test]
#[ignore = "not every kernel takes programs at its functions; run by vm-test without --quick"]
fn programs_that_are_passed_over_give_way_to_kprobes() {
    let mut child = Program::start();
    let busy: Vec<Program> = (0..3).map(|_| Program::start()).collect();
    let pids: Vec<u32> = std::iter::once(&child).chain(&busy).map(Program::pid).collect();
    if !require(require::root()) {
        return;
    }
    let host = Host::live(&Roots::default());
    let mut kernel = Kernel::start(&host, &only("fd", "auto", Values::default()));
    let standing = |kernel: &Kernel| {
        let all = kernel.standings().into_iter();
        all.rev().find(|standing| standing.name == "fd").expect("it is one of them")
    };
    if standing(&kernel).rung != Rung::Fentry {
        let _ = require(Some(standing(&kernel).reason));
        return;
    }
    pids.iter().for_each(|pid| kernel.watch_leaks(*pid));
    kernel.collect(&host, &mut Batch::default());
    child.turn("keep", || kernel.drain(&host, &mut Vec::new()));
    let kept: u64 = KEPT.iter().map(|(.., count)| count).sum();
    let before = report(&host, &mut kernel, child.pid());
    let (mut batch, mut begun) = (Batch::default(), Vec::new());
    for mut program in busy {
        program.turn("hammer", || kernel.drain(&host, &mut Vec::new()));
        let until = Instant::now() + Duration::from_secs(1);
        while Instant::now() < until && standing(&kernel).rung == Rung::Fentry {
            kernel.drain(&host, &mut Vec::new());
            batch.clear();
            kernel.collect(&host, &mut batch);
        }
        // It goes on until all have begun.
        begun.push(program);
    }
    drop(begun);
    let standing = standing(&kernel);
    let passed_over = passed_over(&batch, "fd");
    println!("{}: {passed_over} runs passed over, {} descriptors seen", standing.rung.word(), standing.received);
    let after = report(&host, &mut kernel, child.pid());
    assert_eq!((after.attributed, after.rung), (before.attributed, standing.rung.word()), "{standing:?} {after:#?}");
    assert_eq!(before.attributed, kept, "{}", before.unattributed);
    // Since 7.0 there is no kernel any more that lets everyone come to an end.
    let preempts = os::kernel_version().is_some_and(|version| version >= (7, 0));
    match standing.rung {
        Rung::Fentry => assert!(!preempts && passed_over * 100 <= standing.received, "{passed_over}: {standing:?}"),
        Rung::Kprobe => assert!(standing.reason.contains("passes over it"), "{standing:?}"),
        _ => panic!("{standing:?}"),
    }
    child.turn("close", || ());
    child.turn("keep", || kernel.drain(&host, &mut Vec::new()));
    let again = report(&host, &mut kernel, child.pid());
    assert_eq!(again.attributed, kept, "{standing:?} {again:#?}");
}

#[test]
fn stacks_are_told_on_tp_btf() {
    on_rung("tp_btf");
}

#[test]
fn stacks_are_told_on_raw_tracepoint() {
    on_rung("raw_tracepoint");
}

#[test]
fn stacks_are_told_on_tracepoint() {
    let missing = require::root().or_else(|| require::programs(&["unshare", "mount"]));
    if require(missing) && has_tracefs("stacks_are_told_on_tracepoint") {
        on_rung("tracepoint");
    }
}

fn on_rung(rung: &str) {
    let observe = || {
        let mut child = Program::start();
        let (host, mut kernel) = observing(rung, &[child.pid()], 30)?;
        for what in ["churn", "keep", "churn"] {
            child.turn(what, || kernel.drain(&host, &mut Vec::new()));
        }
        let report = report(&host, &mut kernel, child.pid());
        Some((child, host, kernel, report))
    };
    // Where the kernel preempts a program it may pass over it for this child: another turn is to be without.
    let mut turns = 1..=5;
    let (mut child, host, mut kernel, report) = loop {
        let Some(turn) = observe() else { return };
        if turns.next() == Some(5) || !turn.3.unattributed.contains("the kernel passed over") {
            break turn;
        }
    };
    let mut found: Vec<(Option<&str>, &str, u64)> = Vec::new();
    for stack in &report.stacks {
        assert!(stack.oldest_seconds < 300.0 && stack.growth_per_hour.is_finite(), "{stack:?}");
        assert!(!stack.frames.is_empty(), "{stack:?}");
        found.push((function_of(&report, stack), &stack.kind, stack.count));
    }
    let named = found.iter().all(|(function, ..)| function.is_some());
    let mut wanted: Vec<_> = KEPT.iter().map(|(name, kind, count)| (named.then_some(*name), *kind, *count)).collect();
    found.sort_unstable();
    wanted.sort_unstable();
    assert_eq!(found, wanted, "{report:#?}");
    assert!(report.stacks.is_sorted_by_key(|stack| std::cmp::Reverse(stack.count)));
    let attributed: u64 = KEPT.iter().map(|(.., count)| count).sum();
    assert_eq!((report.attributed, report.rung), (attributed, rung), "{}", report.unattributed);
    let open = std::fs::read_dir(format!("/proc/{}/fd", child.pid())).expect("it lives").count() as u64;
    assert_eq!(report.open, open);
    assert!(report.unattributed.contains("open before the process was followed"), "{}", report.unattributed);
    child.turn("close", || ());
    let report = self::report(&host, &mut kernel, child.pid());
    assert_eq!((report.attributed, report.stacks.len()), (0, 0), "{report:#?}");
}

/// What is left by function and kind, smallest name first.
fn left(report: &LeakReport) -> Vec<(&'static str, String, u64)> {
    let mut left: Vec<_> = report
        .stacks
        .iter()
        .filter_map(|stack| Some((function_of(report, stack)?, stack.kind.clone(), stack.count)))
        // What the child opens itself before it takes turns.
        .filter(|(function, ..)| *function != "child")
        .collect();
    left.sort_unstable();
    left
}

#[test]
fn what_exec_closes_is_not_told_and_what_it_leaves_open_is() {
    let mut child = Program::start();
    let Some((host, mut kernel)) = observing("tp_btf", &[child.pid()], 30) else { return };
    for what in ["churn", "keep"] {
        child.turn(what, || kernel.drain(&host, &mut Vec::new()));
    }
    assert_eq!(report(&host, &mut kernel, child.pid()).stacks.len(), KEPT.len());
    writeln!(child.child.stdin.as_mut().expect("it is piped"), "exec").expect("it reads");
    child.wait_for("ready");
    let report = report(&host, &mut kernel, child.pid());
    let wanted = [
        ("duplicate", "file", 7),
        ("duplicate_onto", "pipe", 4),
        ("make_sockets", "socket", 20),
        ("receive", "file", 5),
    ];
    let wanted: Vec<_> = wanted.map(|(function, kind, count)| (function, kind.to_owned(), count)).into();
    assert_eq!(left(&report), wanted, "those without FD_CLOEXEC: {report:#?}");
}

#[test]
fn a_full_table_lowers_the_coverage_and_is_said() {
    let mut child = Program::start();
    let mut values = Values::default();
    values.set(key("kernel.fd.descriptors_max"), Value::Int(1024));
    let Some((host, mut kernel)) = observing_with("tp_btf", &[child.pid()], 30, values) else { return };
    child.turn("many", || kernel.drain(&host, &mut Vec::new()));
    let report = report(&host, &mut kernel, child.pid());
    assert!(report.open > MANY && report.attributed <= 1024 && report.coverage < 0.6, "{report:#?}");
    assert!(report.unattributed.contains("found no room in the table"), "{}", report.unattributed);
    assert!(report.stacks.len() == 1 && report.stacks[0].count == report.attributed, "{report:#?}");
    let dropped = kernel.standings().remove(0).dropped;
    assert!(dropped >= MANY - 1024, "{dropped}");
}

#[test]
fn a_child_is_told_what_it_inherited_and_from_whom() {
    let mut child = Program::start();
    let Some((host, mut kernel)) = observing("tp_btf", &[child.pid()], 30) else { return };
    for what in ["churn", "keep", "fork"] {
        child.turn(what, || kernel.drain(&host, &mut Vec::new()));
    }
    // The parent must have been looked at while its descriptors were open.
    let _ = report(&host, &mut kernel, child.pid());
    kernel.watch_leaks(child.forked);
    let report = report(&host, &mut kernel, child.forked);
    let kind = format!("socket, inherited from process {}", child.pid());
    let pipes = format!("pipe, inherited from process {}", child.pid());
    let wanted = vec![("duplicate_onto", pipes, 4), ("make_sockets", kind, 20)];
    assert_eq!(left(&report), wanted, "of files nobody can tell: {report:#?}");
}

#[test]
fn who_leaks_is_suspected_followed_and_told_and_who_churns_is_not() {
    let mut leaking = Program::start();
    let mut churning: Vec<Program> = (0..3).map(|_| Program::start()).collect();
    let Some((host, mut kernel)) = observing("tp_btf", &[], 12) else { return };
    leaking.turn("leak", || ());
    churning.iter_mut().for_each(|program| program.turn("spin", || ()));
    let mut events = Vec::new();
    let mut batch = Batch::default();
    let start = host.clock.now();
    let event = loop {
        assert!(host.clock.now().since(&start) < Duration::from_secs(60), "in vain: {:?}", kernel.standings());
        kernel.drain(&host, &mut events);
        batch.clear();
        kernel.collect(&host, &mut batch);
        let reports = kernel.leaks(&host);
        for report in reports {
            assert!(!churning.iter().any(|program| program.pid() == report.pid), "it gives all back: {report:#?}");
        }
        if let Some(event) = events.drain(..).find(|event| event.pid == Some(leaking.pid())) {
            break event;
        }
        std::thread::sleep(Duration::from_millis(100));
    };
    let shown = serde_json::to_value(&event).expect("an event is JSON");
    let Detail::FdLeak(leak) = event.detail else { panic!("{shown}") };
    assert_eq!((leak.descriptor.as_str(), shown["kind"].as_str()), ("file", Some("fd_leak")), "{shown}");
    assert!(leak.count >= 16 && leak.open > leak.count && leak.coverage < 1.0, "it had some before: {shown}");
    assert!((70_000.0..160_000.0).contains(&leak.growth_per_hour), "40 a second: {shown}");
    assert!(leak.limit.is_some() && !leak.frames.is_empty(), "{shown}");
}

/// The innermost function of the child that the stack leads through; none where the program was stripped of its names.
fn function_of(report: &LeakReport, stack: &LeakStack) -> Option<&'static str> {
    let ours = |name: &str| {
        let name = name.strip_prefix("kernel_fd_leaks::").unwrap_or(name);
        KEPT.iter().map(|(function, ..)| *function).chain(["child"]).find(|function| *function == name)
    };
    let mut names = stack.frames.iter().filter_map(|frame| frame.function.as_deref()).peekable();
    let has_names = names.peek().is_some();
    let found = names.filter_map(ours).next();
    assert!(found.is_some() || !has_names, "no function of the child in {stack:#?}: {}", report.unattributed);
    found
}

/// A kernel that follows `pids` on `rung`, if it can stand.
fn observing(rung: &str, pids: &[u32], seconds: u64) -> Option<(Host, Kernel)> {
    observing_with(rung, pids, seconds, Values::default())
}

fn observing_with(rung: &str, pids: &[u32], seconds: u64, mut values: Values) -> Option<(Host, Kernel)> {
    if !require(require::root()) {
        return None;
    }
    let host = Host::live(&Roots::default());
    values.set(key("kernel.fd.rung"), Value::Text(rung.to_owned()));
    let length = Duration::from_secs(seconds);
    let observation = Observation { resources: vec![Resource::Fd], pids: pids.to_vec(), malloc: false, length };
    let kernel = Kernel::observe(&host, &values, &observation);
    let standing = kernel.standings().remove(0);
    if standing.rung == Rung::Off {
        let _ = require(Some(standing.reason));
        return None;
    }
    assert_eq!(standing.rung.word(), rung, "{standing:?}");
    Some((host, kernel))
}

fn report(host: &Host, kernel: &mut Kernel, pid: u32) -> LeakReport {
    let mut batch = Batch::default();
    kernel.collect(host, &mut batch);
    let reports = kernel.leaks(host);
    let mut report = reports.into_iter().find(|report| report.pid == pid).expect("it is followed");
    Symbolizer::new(Trust::All).name(report.stacks.iter_mut().map(|stack| &mut stack.frames));
    report
}

/// A child that takes a turn when it is told to.
struct Program {
    child: Child,
    said: BufReader<ChildStdout>,
    /// A child of the child.
    forked: u32,
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
        let mut program = Self { child, said, forked: 0 };
        program.wait_for("ready");
        program
    }

    fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Meanwhile calls `meanwhile` over and over.
    fn turn(&mut self, what: &str, mut meanwhile: impl FnMut()) {
        writeln!(self.child.stdin.as_mut().expect("it is piped"), "{what}").expect("it reads");
        let millisecond = Timespec { tv_sec: 0, tv_nsec: 1_000_000 };
        loop {
            meanwhile();
            let mut said = [PollFd::new(self.said.get_ref(), PollFlags::IN)];
            if poll(&mut said, Some(&millisecond)).expect("it is open") > 0 {
                break;
            }
        }
        self.wait_for("done");
    }

    fn wait_for(&mut self, word: &str) {
        let mut line = String::new();
        while !line.trim_end().ends_with(word) {
            line.clear();
            assert!(self.said.read_line(&mut line).expect("it is a pipe") > 0, "the child ended before {word}");
            if let Some(pid) = line.trim_end().strip_prefix("forked ") {
                self.forked = pid.parse().expect("a number");
            }
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
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
    // What is open from the start.
    let (first, second) = UnixStream::pair().expect("two sockets");
    let name = format!("sysops-fd-leaks-{}", std::process::id());
    let address = SocketAddr::from_abstract_name(name).expect("short");
    let listener = UnixListener::bind_addr(&address).expect("nobody else has this name");
    let mut hands = Hands { first, second, listener, held: Vec::new(), children: Vec::new() };
    println!("ready");
    for line in std::io::stdin().lines() {
        match line.expect("it is a pipe").as_str() {
            "keep" => TURNS.iter().for_each(|turn| turn(&mut hands)),
            "churn" => {
                let before = hands.held.len();
                TURNS.iter().for_each(|turn| turn(&mut hands));
                hands.held.truncate(before);
            }
            "close" => hands.held.clear(),
            "many" => duplicate_many(&mut hands),
            "leak" => drop(std::thread::spawn(leak_slowly)),
            "spin" => drop(std::thread::spawn(spin)),
            "hammer" => drop(std::thread::spawn(hammer)),
            "exec" => {
                let error = Command::new("/proc/self/exe").args(["--exact", "child", "--nocapture"]).exec();
                panic!("{error}");
            }
            "fork" => {
                // What it inherits it must not close: sockets that are not marked so.
                let mut other = Command::new("/proc/self/exe");
                other.args(["--exact", "child", "--nocapture"]).stdin(Stdio::piped()).stdout(Stdio::null());
                let other = other.spawn().expect("this program runs");
                println!("forked {}", other.id());
                hands.children.push(other);
            }
            other => panic!("{other}"),
        }
        println!("done");
    }
}

struct Hands {
    first: UnixStream,
    second: UnixStream,
    listener: UnixListener,
    held: Vec<OwnedFd>,
    children: Vec<Child>,
}

impl Drop for Hands {
    fn drop(&mut self) {
        for child in &mut self.children {
            drop(child.stdin.take());
            // It ends at the end of its input.
            let _ = child.wait();
        }
    }
}

/// More than the smallest table has room for.
#[inline(never)]
fn duplicate_many(hands: &mut Hands) {
    let limit = getrlimit(Limit::Nofile);
    setrlimit(Limit::Nofile, Rlimit { current: limit.maximum, ..limit }).expect("up to the hard limit");
    let copies: Vec<OwnedFd> = (0..MANY).map(|_| rustix::io::dup(&hands.first).expect("a copy")).collect();
    hands.held.extend(copies);
}

#[inline(never)]
fn leak_slowly() {
    let mut held = Vec::new();
    loop {
        held.push(File::open("/etc/passwd").expect("it is there"));
        std::thread::sleep(Duration::from_millis(25));
    }
}

/// A pool that fills up and is emptied, all the time.
#[inline(never)]
fn spin() {
    for most in (1..60).cycle() {
        let pool: Vec<File> = (0..most).map(|_| File::open("/etc/passwd").expect("it is there")).collect();
        std::thread::sleep(Duration::from_millis(3));
        drop(pool);
    }
}

/// Takes and gives back without a pause.
#[inline(never)]
fn hammer() {
    loop {
        drop(File::open("/etc/passwd").expect("it is there"));
    }
}

type Turn = fn(&mut Hands);

const TURNS: &[Turn] = &[
    open_files,
    make_sockets,
    make_socketpairs,
    make_pipes,
    duplicate,
    duplicate_onto,
    duplicate_by_fcntl,
    make_eventfds,
    make_epolls,
    accept_connections,
    receive,
];

#[inline(never)]
fn open_files(hands: &mut Hands) {
    for _ in 0..30 {
        hands.held.push(File::open("/etc/passwd").expect("it is there").into());
    }
}

#[inline(never)]
fn make_sockets(hands: &mut Hands) {
    for _ in 0..20 {
        hands.held.push(socket(AddressFamily::UNIX, SocketType::DGRAM, None).expect("a socket"));
    }
}

#[inline(never)]
fn make_socketpairs(hands: &mut Hands) {
    for _ in 0..3 {
        let flags = rustix::net::SocketFlags::CLOEXEC;
        let (one, other) = socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None).expect("two");
        hands.held.extend([one, other]);
    }
}

#[inline(never)]
fn make_pipes(hands: &mut Hands) {
    for _ in 0..5 {
        let (one, other) = pipe_with(PipeFlags::CLOEXEC).expect("two ends");
        hands.held.extend([one, other]);
    }
}

#[inline(never)]
fn duplicate(hands: &mut Hands) {
    let file = &hands.held[hands.held.len() - 66];
    let copies: Vec<OwnedFd> = (0..7).map(|_| rustix::io::dup(file).expect("a copy")).collect();
    hands.held.extend(copies);
}

/// The end of a pipe in the place of a file.
#[inline(never)]
fn duplicate_onto(hands: &mut Hands) {
    let pipe = hands.held.len() - 8;
    for _ in 0..4 {
        let pipe = hands.held[pipe].try_clone().expect("a copy");
        let mut place: OwnedFd = File::open("/etc/passwd").expect("it is there").into();
        rustix::io::dup2(&pipe, &mut place).expect("a copy");
        hands.held.push(place);
    }
}

#[inline(never)]
fn duplicate_by_fcntl(hands: &mut Hands) {
    let file = File::open("/etc/passwd").expect("it is there");
    for _ in 0..6 {
        hands.held.push(file.try_clone().expect("a copy").into());
    }
}

#[inline(never)]
fn make_eventfds(hands: &mut Hands) {
    for _ in 0..3 {
        hands.held.push(eventfd(0, EventfdFlags::CLOEXEC).expect("a counter"));
    }
}

#[inline(never)]
fn make_epolls(hands: &mut Hands) {
    for _ in 0..2 {
        hands.held.push(epoll::create(epoll::CreateFlags::CLOEXEC).expect("a set"));
    }
}

#[inline(never)]
fn accept_connections(hands: &mut Hands) {
    for _ in 0..3 {
        // It waits in the queue, so the same thread can accept it.
        let _other_end =
            UnixStream::connect_addr(&hands.listener.local_addr().expect("it has one")).expect("connected");
        hands.held.push(hands.listener.accept().expect("a connection").0.into());
    }
}

/// Five descriptors in one message.
#[inline(never)]
fn receive(hands: &mut Hands) {
    let file = File::open("/etc/passwd").expect("it is there");
    let many = [file.as_fd(); 5];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(5))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(control.push(SendAncillaryMessage::ScmRights(&many)));
    sendmsg(&hands.first, &[std::io::IoSlice::new(b"x")], &mut control, SendFlags::empty()).expect("sent");
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(5))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    recvmsg(&hands.second, &mut [std::io::IoSliceMut::new(&mut byte)], &mut control, RecvFlags::empty())
        .expect("received");
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(fds) = message {
            hands.held.extend(fds);
        }
    }
}
