//! A program whose memory grows: the probe tells who makes it grow, on each rung, and lays nothing to the charge of those
//! who give back what they took.
#![expect(clippy::disallowed_methods, reason = "a test starts programs")]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use sysops_agent::host::{EventSource, Host, Roots};
use sysops_agent::kernel::{Kernel, Observation, Rung};
use sysops_agent::model::{Batch, Frame, LeakReport, Resource};
use sysops_agent::spec::{Value, Values};
use sysops_agent::symbolize::{Symbolizer, Trust};
use sysops_tests::one_probe::{has_tracefs, key};
use sysops_tests::require::{self, require};

/// Set in the child.
const CHILD: &str = "SYSOPS_TEST_MEMORY_CHILD";
/// Functions of the child that are told apart.
const OWN: [&str; 6] = ["leak_here", "handler", "map_here", "churn", "rewrite", "read_and_touch"];
/// Bytes that the child holds before it is watched.
const OLD: usize = 64 << 20;

#[inline(never)]
fn leak_here() {
    let piece = std::hint::black_box(vec![1_u8; 64 << 10]);
    std::mem::forget(piece);
}

#[inline(never)]
fn handler() {
    leak_here();
    std::hint::black_box(());
}

#[inline(never)]
fn map_here() {
    let piece = std::hint::black_box(vec![1_u8; 1 << 20]);
    std::mem::forget(piece);
}

#[inline(never)]
fn churn() {
    drop(std::hint::black_box(vec![1_u8; 4 << 20]));
}

#[inline(never)]
fn rewrite(old: &mut [u8]) {
    old.iter_mut().step_by(4096).for_each(|byte| *std::hint::black_box(byte) = 2);
}

/// Reads 32 MiB that are the zero page from then on, and writes to one page in 2 MiB of them.
#[inline(never)]
fn read_and_touch() {
    let mut fresh = vec![0_u8; 32 << 20];
    let sum: u64 = fresh.iter().step_by(4096).map(|byte| u64::from(*std::hint::black_box(byte))).sum();
    fresh.iter_mut().step_by(2 << 20).for_each(|byte| *std::hint::black_box(byte) = 1);
    std::mem::forget((fresh, std::hint::black_box(sum)));
}

/// Not a test: what the others start. At each line it leaks 40 × 64 KiB in `leak_here` and 8 × 1 MiB in `map_here`, and gives back all
/// that it takes in `churn`; or does what the line asks for.
#[test]
fn child() {
    if std::env::var(CHILD).is_err() {
        return;
    }
    let mut old = std::hint::black_box(vec![1_u8; OLD]);
    println!("ready");
    for line in std::io::stdin().lines() {
        match line.as_deref() {
            Ok("fork") => {
                // With a user to become the child is forked, and all memory shared until it is written to.
                let me = rustix::process::getuid().as_raw();
                let forked = Command::new("true").uid(me).status();
                assert!(forked.is_ok_and(|status| status.success()));
                rewrite(&mut old);
                println!("done");
                continue;
            }
            Ok("read") => {
                read_and_touch();
                println!("done");
                continue;
            }
            Ok("exec") => {
                let arguments = ["--exact", "child", "--nocapture", "--test-threads=1"];
                let error = Command::new(std::env::current_exe().expect("a test has a path")).args(arguments).exec();
                panic!("{error}");
            }
            _ => {}
        }
        for turn in 0..40 {
            handler();
            if turn % 4 == 0 {
                churn();
            }
        }
        for _ in 0..8 {
            map_here();
        }
        println!("done");
    }
}

fn host() -> Host {
    Host::live(&Roots::default())
}

struct Leaker {
    child: Child,
    said: BufReader<std::process::ChildStdout>,
}

impl Leaker {
    /// What is at least of `mapped_from` bytes is mapped by itself; of anything smaller the allocator keeps what is freed.
    fn start(mapped_from: usize) -> Self {
        let mut child = Command::new(std::env::current_exe().expect("a test has a path"))
            .args(["--exact", "child", "--nocapture", "--test-threads=1"])
            .env(CHILD, "1")
            .env("MALLOC_MMAP_THRESHOLD_", mapped_from.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("it is this very file");
        let said = BufReader::new(child.stdout.take().expect("piped"));
        let mut leaker = Self { child, said };
        leaker.hears("ready");
        leaker
    }

    fn hears(&mut self, word: &str) {
        // The harness of tests says something, too.
        let mut lines = self.said.by_ref().lines().map(|line| line.expect("it speaks"));
        assert!(lines.any(|line| line.ends_with(word)), "it has ended");
    }

    fn go_on(&mut self) {
        self.does("go");
    }

    fn does(&mut self, what: &str) {
        writeln!(self.child.stdin.as_mut().expect("piped"), "{what}").expect("it listens");
        self.hears(if what == "exec" { "ready" } else { "done" });
    }
}

impl Drop for Leaker {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

/// What a report says of the program's own functions: bytes by names from the innermost out, all that is attributed, and
/// all that is held.
#[derive(Debug, Default)]
struct Told {
    by_names: BTreeMap<Vec<String>, u64>,
    attributed: u64,
    open: u64,
}

impl Told {
    fn of(mut report: LeakReport) -> Self {
        Symbolizer::new(Trust::All).name(report.stacks.iter_mut().map(|stack| &mut stack.frames));
        let mut told = Self { attributed: report.attributed, open: report.open, ..Self::default() };
        for stack in report.stacks {
            let own = |frame: Frame| {
                let name = frame.function?;
                OWN.into_iter().find(|own| name.rsplit("::").next() == Some(own)).map(str::to_owned)
            };
            let mut names: Vec<String> = stack.frames.into_iter().filter_map(own).collect();
            names.dedup();
            *told.by_names.entry(names).or_default() += stack.count;
        }
        told
    }

    fn within(&self, function: &str) -> u64 {
        self.by_names
            .iter()
            .filter(|(names, _)| names.iter().any(|name| name == function))
            .map(|(_, bytes)| bytes)
            .sum()
    }
}

/// Lets the program go on `rounds` times.
fn go_on(kernel: &mut Kernel, leaker: &mut Leaker, rounds: usize) -> Told {
    let (mut batch, mut events) = (Batch::default(), Vec::new());
    for _ in 0..rounds {
        leaker.go_on();
        kernel.drain(&host(), &mut events);
        batch.clear();
        kernel.collect(&host(), &mut batch);
    }
    Told::of(kernel.leaks(&host()).pop().expect("a report of the process that is watched"))
}

fn is_told_on(rung: Rung) {
    if !require(require::root()) {
        return;
    }
    let mut leaker = Leaker::start(128 << 10);
    let observation = Observation {
        resources: vec![Resource::Memory],
        pids: vec![leaker.child.id()],
        malloc: false,
        length: Duration::from_secs(1),
    };
    let mut values = Values::default();
    values.set(key("kernel.memory_leak.rung"), Value::Text(rung.word().to_owned()));
    let mut kernel = Kernel::observe(&host(), &values, &observation);
    let standing = kernel.standings().remove(0);
    if standing.rung != rung && !require(Some(format!("{}: {}", rung.word(), standing.reason))) {
        return;
    }
    // The first stacks through a place make the rules for those that follow.
    let before = go_on(&mut kernel, &mut leaker, 3);
    let after = go_on(&mut kernel, &mut leaker, 6);
    println!("{}: {before:?}\n{after:?}", rung.word());
    let grown = |function: &str| after.within(function).saturating_sub(before.within(function));
    let (leaked, mapped) = (grown("leak_here"), grown("map_here"));
    assert!(leaked.abs_diff((6 * 40) << 16) < 1 << 20, "15 MiB leaked: {leaked}");
    assert!(mapped.abs_diff((6 * 8) << 20) < 1 << 20, "48 MiB were mapped: {mapped}");
    assert!(after.within("churn") < 1 << 20, "what is given back is not held");
    let stack = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<String>>();
    let leak = after.by_names.iter().max_by_key(|(names, bytes)| (names.contains(&"leak_here".to_owned()), **bytes));
    assert_eq!(leak.expect("it leaks").0, &stack(&["leak_here", "handler"]));
    let grown = (after.attributed - before.attributed, after.open - before.open);
    assert!(grown.0 * 100 > grown.1 * 95 && grown.0 * 100 < grown.1 * 105, "attributed and grown: {grown:?}");
}

#[test]
fn who_makes_it_grow_is_told_on_tp_btf() {
    is_told_on(Rung::TpBtf);
}

#[test]
fn who_makes_it_grow_is_told_on_raw_tracepoint() {
    is_told_on(Rung::RawTracepoint);
}

#[test]
fn who_makes_it_grow_is_told_on_tracepoint() {
    let missing = require::root().or_else(|| require::programs(&["unshare", "mount"]));
    if require(missing) && has_tracefs("who_makes_it_grow_is_told_on_tracepoint") {
        is_told_on(Rung::Tracepoint);
    }
}

/// The programs at page faults, on the best rung, follow a child.
fn watched() -> Option<(Leaker, Kernel)> {
    if !require(require::root()) {
        return None;
    }
    let leaker = Leaker::start(128 << 10);
    let observation = Observation {
        resources: vec![Resource::Memory],
        pids: vec![leaker.child.id()],
        malloc: false,
        length: Duration::from_secs(1),
    };
    let kernel = Kernel::observe(&host(), &Values::default(), &observation);
    let standing = kernel.standings().remove(0);
    (standing.rung != Rung::Off || require(Some(standing.reason))).then_some((leaker, kernel))
}

/// What a report says after the child did `what`.
fn told_after(kernel: &mut Kernel, leaker: &mut Leaker, what: &str) -> (Told, String) {
    leaker.does(what);
    kernel.drain(&host(), &mut Vec::new());
    kernel.collect(&host(), &mut Batch::default());
    let report = kernel.leaks(&host()).pop().expect("a report of the process that is watched");
    let said = report.unattributed.clone();
    (Told::of(report), said)
}

#[test]
fn what_was_held_before_is_no_ones_though_it_is_written_to_after_a_fork() {
    let Some((mut leaker, mut kernel)) = watched() else { return };
    let _ = go_on(&mut kernel, &mut leaker, 2);
    let (told, said) = told_after(&mut kernel, &mut leaker, "fork");
    println!("{told:?} {said}");
    assert_eq!(told.within("rewrite"), 0, "{told:?}");
    // What the first round did is not all told: too many new stacks at once.
    assert!(told.within("leak_here") > 2 << 20 && told.open > OLD as u64, "{told:?}");
}

#[test]
fn what_was_only_read_is_not_held() {
    let Some((mut leaker, mut kernel)) = watched() else { return };
    let (told, _) = told_after(&mut kernel, &mut leaker, "read");
    println!("{told:?}");
    let tells = sysops_agent::host::os::kernel_version().is_some_and(|version| version >= (6, 7));
    let within = told.within("read_and_touch");
    // Where huge pages are on, one that is written to becomes memory as a whole.
    let came = told.open.saturating_sub(OLD as u64);
    assert!(within >= 15 << 12 && (!tells || within < came + (1 << 20)), "{told:?}");
}

#[test]
fn another_program_in_the_same_process_is_followed_from_its_beginning() {
    let Some((mut leaker, mut kernel)) = watched() else { return };
    let before = go_on(&mut kernel, &mut leaker, 3);
    let (_, said) = told_after(&mut kernel, &mut leaker, "exec");
    assert!(said.contains("runs another program since it is watched"), "{said}");
    let first = go_on(&mut kernel, &mut leaker, 1);
    let after = go_on(&mut kernel, &mut leaker, 3);
    println!("{before:?}\n{after:?}");
    let grown = |function: &str| after.within(function).saturating_sub(first.within(function));
    assert!(grown("leak_here").abs_diff((3 * 40) << 16) < 1 << 20, "{after:?}");
    assert!(after.within("map_here") < 40 << 20, "those of the program before are not told: {after:?}");
}

/// Where the allocator hands out again what it kept, only its own calls tell who leaks.
#[test]
fn who_does_not_free_is_told_by_the_allocator() {
    if !require(require::root()) {
        return;
    }
    let mut leaker = Leaker::start(32 << 20);
    let observation = Observation {
        resources: vec![Resource::Memory],
        pids: vec![leaker.child.id()],
        malloc: true,
        length: Duration::from_secs(1),
    };
    let mut kernel = Kernel::observe(&host(), &Values::default(), &observation);
    let standing = kernel.standings().remove(0);
    if standing.rung != Rung::Uprobe && !require(Some(standing.reason)) {
        return;
    }
    let before = go_on(&mut kernel, &mut leaker, 1);
    let after = go_on(&mut kernel, &mut leaker, 3);
    println!("{before:?}\n{after:?}");
    assert_eq!(after.within("leak_here") - before.within("leak_here"), (3 * 40) << 16, "to the byte");
    let (_, said) = told_after(&mut kernel, &mut leaker, "exec");
    assert!(said.contains("runs another program since it is watched"), "{said}");
    let again = go_on(&mut kernel, &mut leaker, 1);
    assert_eq!(again.within("leak_here"), 40 << 16, "those of the program before are forgotten: {again:?}");
    assert_eq!(after.within("churn"), 0, "it freed all");
    let leak = after.by_names.keys().find(|names| names.contains(&"leak_here".to_owned())).expect("it leaks");
    assert_eq!(leak, &["leak_here", "handler"]);
}

#[test]
fn an_allocator_is_followed_in_one_process_that_has_one() {
    if !require(require::root()) {
        return;
    }
    let of = |pids: Vec<u32>| {
        let observation =
            Observation { resources: vec![Resource::Memory], pids, malloc: true, length: Duration::from_secs(1) };
        Kernel::observe(&host(), &Values::default(), &observation).standings().remove(0)
    };
    for (pids, reason) in
        [(vec![], "one process"), (vec![u32::MAX >> 1], "no process"), (vec![2], "no file of process 2")]
    {
        let standing = of(pids);
        assert_eq!(standing.rung, Rung::Off);
        if standing.reason.contains("BTF") && !require(Some(standing.reason.clone())) {
            return;
        }
        assert!(standing.reason.contains(reason) && !standing.remedy.is_empty(), "{standing:?}");
    }
}
