//! A child that takes file descriptors in many ways and keeps some: each stack that keeps any is told with their number and
//! kind, none other is, and what is not attributed is counted. On every rung.
#![expect(clippy::disallowed_methods, reason = "a test runs programs and reads files")]

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, epoll, eventfd, poll};
use rustix::fs::Timespec;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketType, recvmsg, sendmsg, socket, socketpair,
};
use rustix::pipe::{PipeFlags, pipe_with};
use sysops_agent::host::{EventSource, Host, Roots};
use sysops_agent::kernel::{Kernel, Observation, Rung};
use sysops_agent::model::{Batch, LeakReport, LeakStack, Resource};
use sysops_agent::spec::{Value, Values};
use sysops_agent::symbolize::{Symbolizer, Trust};
use sysops_tests::one_probe::{has_tracefs, key};
use sysops_tests::require::{self, require};

/// Set in the child.
const CHILD: &str = "SYSOPS_TEST_FD_LEAKS_CHILD";

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
fn stacks_are_told_on_fentry() {
    on_rung("fentry");
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
    let mut child = Program::start();
    let Some((host, mut kernel)) = observing(rung, &[child.pid()], 30) else { return };
    for what in ["churn", "keep", "churn"] {
        child.turn(what, || kernel.drain(&host, &mut Vec::new()));
    }
    let report = report(&host, &mut kernel, child.pid());
    let mut found: Vec<(Option<&str>, &str, u64)> = Vec::new();
    for stack in &report.stacks {
        assert!(stack.oldest_seconds < 300.0 && stack.growth_per_hour.is_finite(), "{stack:?}");
        assert!(!stack.frames.is_empty(), "{stack:?}");
        found.push((function_of(&report, stack), &stack.kind, stack.count));
    }
    let named = found.iter().all(|(function, ..)| function.is_some());
    let mut wanted: Vec<_> = KEPT.iter().map(|(name, kind, count)| (named.then_some(*name), *kind, *count)).collect();
    (found.sort_unstable(), wanted.sort_unstable());
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

/// The innermost function of the child that the stack leads through; none where the program was stripped of its names.
fn function_of(report: &LeakReport, stack: &LeakStack) -> Option<&'static str> {
    let ours = |name: &str| {
        let name = name.strip_prefix("kernel_fd_leaks::").unwrap_or(name);
        KEPT.iter().map(|(function, ..)| *function).find(|function| *function == name)
    };
    let mut names = stack.frames.iter().filter_map(|frame| frame.function.as_deref()).peekable();
    let has_names = names.peek().is_some();
    let found = names.filter_map(ours).next();
    assert!(found.is_some() || !has_names, "no function of the child in {stack:#?}: {}", report.unattributed);
    found
}

/// A kernel that follows `pids` on `rung`, if it can stand.
fn observing(rung: &str, pids: &[u32], seconds: u64) -> Option<(Host, Kernel)> {
    if !require(require::root()) {
        return None;
    }
    let host = Host::live(&Roots::default());
    let mut values = Values::default();
    values.set(key("kernel.fd.rung"), Value::Text(rung.to_owned()));
    let length = Duration::from_secs(seconds);
    let observation = Observation { resources: vec![Resource::Fd], pids: pids.to_vec(), length };
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
    kernel.drain(host, &mut Vec::new());
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
        let mut program = Self { child, said };
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
    let mut hands = Hands { first, second, listener, held: Vec::new() };
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
