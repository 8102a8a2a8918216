//! A program whose memory grows: the probe tells who makes it grow, on each rung, and lays nothing to the charge of those
//! who give back what they took.
#![expect(clippy::disallowed_methods, reason = "a test starts programs")]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use sysops_agent::host::{EventSource, Host, Roots};
use sysops_agent::kernel::{Kernel, Observation, Rung};
use sysops_agent::model::{Batch, Frame, LeakReport, Resource};
use sysops_agent::spec::{Value, Values};
use sysops_agent::symbolize::{Symbolizer, Trust};
use sysops_tests::one_probe::{has_tracefs, key};
use sysops_tests::require::{self, require};

/// Told "small" at the start, its allocator keeps what `churn` gives back and hands it to `leak_here`: no page fault tells of
/// that. Leaks 40 × 64 KiB in `leak_here`, gives back as much in `churn`, and leaks 8 × 1 MiB of its own mappings in `map_here`, at
/// each line that it is told.
const PROGRAM: &str = r#"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <malloc.h>
__attribute__((noinline)) void leak_here(void) {
    char *p = malloc(65536);
    memset(p, 1, 65536);
    __asm__ volatile("" : : "r"(p) : "memory");
}
__attribute__((noinline)) void handler(void) { leak_here(); __asm__ volatile("" ::: "memory"); }
__attribute__((noinline)) void map_here(void) {
    char *p = mmap(0, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    for (int i = 0; i < 1 << 20; i += 4096) p[i] = 1;
    __asm__ volatile("" ::: "memory");
}
__attribute__((noinline)) void churn(void) {
    char *p = malloc(4 << 20);
    memset(p, 1, 4 << 20);
    __asm__ volatile("" : : "r"(p) : "memory");
    free(p);
}
int main(int argc, char **argv) {
    char line[16];
    // What is large is mapped each time: the allocator keeps nothing of what churn gives back, for others to take.
    mallopt(M_MMAP_THRESHOLD, argc > 1 ? 1 << 25 : 131072);
    puts("ready"); fflush(stdout);
    while (fgets(line, sizeof line, stdin)) {
        for (int i = 0; i < 40; i++) { handler(); if (i % 4 == 0) churn(); }
        #pragma GCC unroll 1
        for (int i = 0; i < 8; i++) map_here();
        puts("done"); fflush(stdout);
    }
    return 0;
}
"#;

fn host() -> Host {
    Host::live(&Roots::default())
}

struct Leaker {
    child: Child,
    said: BufReader<std::process::ChildStdout>,
    directory: PathBuf,
}

impl Leaker {
    fn start(name: &str, arguments: &[&str]) -> Self {
        let directory = std::env::temp_dir().join(format!("sysops-memory-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&directory).expect("a directory of our own");
        let (source, program) = (directory.join("leaker.c"), directory.join("leaker"));
        std::fs::write(&source, PROGRAM).expect("a file of our own");
        let built = Command::new("cc").args(["-O1", "-g", "-fno-inline", "-o"]).arg(&program).arg(&source).status();
        assert!(built.expect("require() was asked").success());
        let mut child = Command::new(&program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("it was built");
        let said = BufReader::new(child.stdout.take().expect("piped"));
        let mut leaker = Self { child, said, directory };
        leaker.hears("ready");
        leaker
    }

    fn hears(&mut self, word: &str) {
        let mut line = String::new();
        self.said.read_line(&mut line).expect("it speaks");
        assert_eq!(line.trim(), word);
    }

    fn go_on(&mut self) {
        self.child.stdin.as_mut().expect("piped").write_all(b"go\n").expect("it listens");
        self.hears("done");
    }
}

impl Drop for Leaker {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
        _ = std::fs::remove_dir_all(&self.directory);
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
            let own = |frame: &Frame| frame.module.as_deref().is_some_and(|path| path.ends_with("/leaker"));
            let names = stack.frames.into_iter().filter(own).filter_map(|frame| frame.function);
            *told.by_names.entry(names.filter(|name| name != "_start").collect()).or_default() += stack.count;
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
    if !require(require::root().or_else(|| require::programs(&["cc"]))) {
        return;
    }
    let mut leaker = Leaker::start(rung.word(), &[]);
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
    assert_eq!(standing.rung, rung, "{standing:?}");
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
    assert_eq!(leak.expect("it leaks").0, &stack(&["leak_here", "handler", "main"]));
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

/// Where the allocator hands out again what it kept, only its own calls tell who leaks.
#[test]
fn who_does_not_free_is_told_by_the_allocator() {
    if !require(require::root().or_else(|| require::programs(&["cc"]))) {
        return;
    }
    let mut leaker = Leaker::start("malloc", &["small"]);
    let observation = Observation {
        resources: vec![Resource::Memory],
        pids: vec![leaker.child.id()],
        malloc: true,
        length: Duration::from_secs(1),
    };
    let mut kernel = Kernel::observe(&host(), &Values::default(), &observation);
    let standing = kernel.standings().remove(0);
    assert_eq!(standing.rung, Rung::Uprobe, "{standing:?}");
    let before = go_on(&mut kernel, &mut leaker, 1);
    let after = go_on(&mut kernel, &mut leaker, 3);
    println!("{before:?}\n{after:?}");
    assert_eq!(after.within("leak_here") - before.within("leak_here"), (3 * 40) << 16, "to the byte");
    assert_eq!(after.within("churn"), 0, "it freed all");
    let leak = after.by_names.keys().find(|names| names.contains(&"leak_here".to_owned())).expect("it leaks");
    assert_eq!(leak, &["leak_here", "handler", "main"]);
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
        assert!(standing.reason.contains(reason) && !standing.remedy.is_empty(), "{standing:?}");
    }
}
