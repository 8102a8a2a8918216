//! Programs made from seeds, each with a leak that is known, or with none: the largest stack is the one that leaks, with its
//! caller and its number; what is open is attributed; and those that give back all that they take draw no suspicion.
//!
//! By default a few of each; `SYSOPS_LEAK_CORPUS=100` runs as many as it says. `SYSOPS_LEAK_RUNG` takes another rung than the
//! best one.
#![expect(clippy::disallowed_methods, reason = "a test measures time and reads its environment")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use sysops_agent::host::{EventSource, Host, Roots};
use sysops_agent::kernel::{Kernel, Observation, Rung};
use sysops_agent::model::{Batch, Event, LeakReport, LeakStack, Resource};
use sysops_agent::spec::{Value, Values};
use sysops_agent::symbolize::{Symbolizer, Trust};
use sysops_tests::events::take_until;
use sysops_tests::leak_corpus::{self, Language, Program, Spec};
use sysops_tests::one_probe::key;
use sysops_tests::require::{self, require};

/// Programs of each kind by default: all languages are among twenty in a row.
const FEW: u64 = 20;
/// Processes that are followed at once, on a machine and in a guest.
const AT_ONCE: usize = 25;
const AT_ONCE_IN_GUEST: usize = 5;

fn count() -> u64 {
    std::env::var("SYSOPS_LEAK_CORPUS").ok().map_or(FEW, |count| count.parse().expect("a number"))
}

fn missing() -> Option<String> {
    let built = (!cfg!(feature = "default")).then(|| "needs the agent with the feature ebpf".to_owned());
    built.or_else(require::root).or_else(leak_corpus::missing)
}

#[test]
fn the_largest_stack_is_the_one_that_leaks() {
    if !require(missing()) {
        return;
    }
    are_right(&(0..count()).map(leak_corpus::leaking).collect::<Vec<Spec>>(), AT_ONCE);
}

/// Those of a hundred that are compiled, in a guest: there are kernels that let programs in at the entry of their functions.
#[test]
#[ignore = "all in C of a hundred take minutes; run by vm-test --only"]
fn all_in_c_are_right() {
    all_in(Language::C);
}

#[test]
#[ignore = "all that are raw of a hundred take minutes; run by vm-test --only"]
fn all_that_are_raw_are_right() {
    all_in(Language::Raw);
}

#[test]
#[ignore = "all in Rust of a hundred take minutes; run by vm-test --only"]
fn all_in_rust_are_right() {
    all_in(Language::Rust);
}

/// Makes what these run, and says where it is.
#[test]
#[ignore = "makes programs; run by vm-test --only"]
fn programs() {
    let dir = programs_dir();
    for build in leak_corpus::compiled() {
        println!("program: {}", leak_corpus::build(build, &dir)[0].display());
    }
}

fn all_in(language: Language) {
    if require(require::root()) {
        let specs = (0..100).map(leak_corpus::leaking).filter(|spec| spec.build.language == language);
        are_right(&specs.collect::<Vec<Spec>>(), AT_ONCE_IN_GUEST);
    }
}

fn are_right(specs: &[Spec], at_once: usize) {
    let host = Host::live(&Roots::default());
    let mut failures = Vec::new();
    let (mut least, mut rungs) = (1.0_f64, BTreeMap::new());
    for part in specs.chunks(at_once) {
        let Some(judged) = observe(&host, part) else { return };
        for (spec, verdict) in judged {
            *rungs.entry(verdict.rung).or_insert(0) += 1;
            least = least.min(verdict.coverage);
            if let Some(wrong) = verdict.wrong {
                failures.push(format!("{spec:?}\n    {wrong}"));
            }
        }
    }
    let all = specs.len();
    println!("{} of {all} right, least coverage {:.2} %, on {rungs:?}", all - failures.len(), least * 100.0);
    assert!(failures.is_empty(), "{} of {all} wrong:\n{}", failures.len(), failures.join("\n"));
}

/// What is to be said of one program.
struct Verdict {
    rung: &'static str,
    coverage: f64,
    wrong: Option<String>,
}

/// Runs some programs under one observation. None where the machine cannot.
fn observe<'a>(host: &Host, specs: &'a [Spec]) -> Option<Vec<(&'a Spec, Verdict)>> {
    let mut programs = start(specs);
    let pids = programs.iter().map(Program::pid).collect();
    let length = Duration::from_secs(60);
    let mut values = Values::default();
    if let Ok(rung) = std::env::var("SYSOPS_LEAK_RUNG") {
        values.set(key("kernel.fd.rung"), Value::Text(rung));
    }
    let mut kernel =
        Kernel::observe(host, &values, &Observation { resources: vec![Resource::Fd], pids, malloc: false, length });
    let standing = kernel.standings().remove(0);
    if standing.rung == Rung::Off {
        let _ = require(Some(standing.reason));
        return None;
    }
    let mut batch = Batch::default();
    look(&mut kernel, host, &mut batch);
    // One after the other: the first stack through a place has to be learned, and in life not all begin in the same moment.
    for program in &mut programs {
        program.begin();
        learn(&mut kernel, host);
    }
    // Each says when it is through; meanwhile the kernel is drained as the agent does it.
    let done = std::thread::scope(|scope| {
        let waiting = scope.spawn(|| programs.iter_mut().map(Program::leaked).collect::<Vec<u64>>());
        while !waiting.is_finished() {
            let until = Instant::now() + Duration::from_secs(1);
            take_until(&mut kernel, host, Duration::from_secs(1), |_| waiting.is_finished() || Instant::now() > until);
            look(&mut kernel, host, &mut batch);
        }
        waiting.join().expect("they were asked")
    });
    look(&mut kernel, host, &mut batch);
    let mut reports = kernel.leaks(host);
    let mut symbolizer = Symbolizer::new(Trust::All);
    symbolizer.name(reports.iter_mut().flat_map(|report| &mut report.stacks).map(|stack| &mut stack.frames));
    let judged = programs.iter().zip(done).zip(specs).map(|((program, leaked), spec)| {
        let report = reports.iter().find(|report| report.pid == program.pid());
        (spec, judge(spec, leaked, report))
    });
    Some(judged.collect())
}

/// Drains until nothing new has come for a while: what is known in the kernel is not handed over again.
fn learn(kernel: &mut Kernel, host: &Host) {
    let begun = Instant::now();
    let pause = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
    while begun.elapsed() < Duration::from_secs(5) {
        let fds = kernel.fds();
        let mut fds: Vec<PollFd<'_>> = fds.iter().map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN)).collect();
        if poll(&mut fds, Some(&pause)) == Ok(0) {
            return;
        }
        kernel.drain(host, &mut Vec::new());
    }
}

fn look(kernel: &mut Kernel, host: &Host, batch: &mut Batch) -> Vec<Event> {
    let mut events = Vec::new();
    kernel.drain(host, &mut events);
    batch.clear();
    kernel.collect(host, batch);
    events
}

fn programs_dir() -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("leak-corpus");
    std::fs::create_dir_all(&dir).expect("cargo's own directory can be written");
    dir
}

fn start(specs: &[Spec]) -> Vec<Program> {
    let dir = programs_dir();
    let mut builds: BTreeMap<_, Vec<PathBuf>> = BTreeMap::new();
    let wanted: Vec<_> = specs.iter().map(|spec| spec.build).collect();
    for build in wanted {
        builds.entry(build).or_insert_with(|| leak_corpus::build(&build, &dir));
    }
    specs.iter().map(|spec| Program::start(spec.clone(), &builds[&spec.build])).collect()
}

fn judge(spec: &Spec, leaked: u64, report: Option<&LeakReport>) -> Verdict {
    let Some(report) = report else {
        return Verdict { rung: "none", coverage: 0.0, wrong: Some("no report".to_owned()) };
    };
    let least = if matches!(report.rung, "fentry" | "kprobe") { 0.99 } else { 0.95 };
    let wrong = match report.stacks.first() {
        None => Some("no stack".to_owned()),
        Some(top) if !leads_through(top, spec) => Some("another stack is the largest".to_owned()),
        Some(top) if top.kind != spec.descriptor => Some(format!("a {} is called a {}", spec.descriptor, top.kind)),
        Some(_) => {
            let found: u64 = report.stacks.iter().filter(|stack| leads_through(stack, spec)).map(|one| one.count).sum();
            let is_missing = (found as f64) < leaked as f64 * least || found > leaked;
            is_missing.then(|| format!("{leaked} leaked, {found} are told"))
        }
    };
    let wrong = wrong.or_else(|| (report.coverage < least).then(|| format!("coverage {:.4}", report.coverage)));
    let wrong = wrong.map(|wrong| {
        format!(
            "{wrong}; {} open, {} attributed: {}{}",
            report.open,
            report.attributed,
            report.unattributed,
            shown(report)
        )
    });
    Verdict { rung: report.rung, coverage: report.coverage, wrong }
}

/// The function that leaks and right behind it the one that calls it; in Python, the interpreter's.
fn leads_through(stack: &LeakStack, spec: &Spec) -> bool {
    let names: Vec<&str> = stack.frames.iter().map(|frame| frame.function.as_deref().unwrap_or_default()).collect();
    let Some(function) = spec.function() else {
        let is_interpreter = |module: &str| module.contains("python");
        return stack.frames.iter().any(|frame| frame.module.as_deref().is_some_and(is_interpreter))
            && names.iter().any(|name| name.contains("_PyEval_EvalFrameDefault"));
    };
    // Rust puts a crate before the name and a number behind it.
    let is = |name: &str, wanted: &str| name == wanted || name.split("::").any(|part| part == wanted);
    names.windows(2).any(|pair| is(pair[0], &function) && is(pair[1], spec.caller()))
}

fn shown(report: &LeakReport) -> String {
    let stacks = report.stacks.iter().take(3).map(|stack| {
        let frames = stack.frames.iter().take(12).map(sysops_agent::model::Frame::place);
        format!("\n      {} {}: {}", stack.count, stack.kind, frames.collect::<Vec<_>>().join(" < "))
    });
    stacks.collect()
}

/// Who looks for leaks without naming a process gets the one that leaks, and none of those that give back, hold a pool, or
/// go up and down.
#[test]
fn those_that_give_back_what_they_take_are_not_named() {
    const LENGTH: Duration = Duration::from_secs(24);
    if !require(missing()) {
        return;
    }
    let host = Host::live(&Roots::default());
    let observation = Observation { resources: vec![Resource::Fd], pids: Vec::new(), malloc: false, length: LENGTH };
    let kernel = Kernel::observe(&host, &Values::default(), &observation);
    judge_clean(&host, kernel, LENGTH, LENGTH, |_, found, leaking| found.contains(&leaking));
}

/// The same as the agent does it by itself, for as long as it takes to suspect a process, to follow it and to tell: only in a
/// run of the whole corpus.
#[test]
fn those_that_give_back_what_they_take_draw_no_suspicion() {
    const WINDOW: Duration = Duration::from_secs(30);
    if count() == FEW || !require(missing()) {
        return;
    }
    let host = Host::live(&Roots::default());
    let mut values = Values::default();
    for entry in sysops_agent::kernel::ALL.iter().filter(|entry| entry.name != "fd") {
        values.set(key(&format!("kernel.{}.rung", entry.name)), Value::Text("off".to_owned()));
    }
    values.set(key("kernel.fd.window_secs"), Value::Int(WINDOW.as_secs() as i64));
    let kernel = Kernel::start(&host, &values);
    judge_clean(&host, kernel, WINDOW * 2, WINDOW * 6, |told, _, leaking| told.contains(&leaking));
}

/// Lets clean programs and one that leaks run for at least `least`, until the one is known, and at most `most`.
fn judge_clean(
    host: &Host,
    mut kernel: Kernel,
    least: Duration,
    most: Duration,
    is_known: impl Fn(&[u32], &[u32], u32) -> bool,
) {
    let standing = kernel.standings().into_iter().find(|standing| standing.name == "fd").expect("in the list");
    if standing.rung == Rung::Off {
        let _ = require(Some(standing.reason));
        return;
    }
    let specs: Vec<Spec> = (0..count()).map(leak_corpus::clean).collect();
    let mut programs = start(&specs);
    let leaking = Spec { count: 1_000_000, churn: 2000, threads: 1, kind: "socket", ..leak_corpus::leaking(0) };
    let mut leaking = start(&[leaking]).remove(0);
    programs.iter_mut().for_each(Program::begin);
    programs.iter_mut().for_each(|program| assert_eq!(program.leaked(), 0));
    leaking.begin();
    let (mut events, mut batch, begun) = (Vec::new(), Batch::default(), Instant::now());
    let (mut told, mut found): (Vec<u32>, Vec<u32>) = (Vec::new(), Vec::new());
    while begun.elapsed() < least || !is_known(&told, &found, leaking.pid()) {
        assert!(begun.elapsed() < most + Duration::from_secs(5), "the one that leaks is not known: {events:?}");
        events.extend(take_until(&mut kernel, host, Duration::from_secs(1), |_| false));
        events.extend(look(&mut kernel, host, &mut batch));
        told = events.iter().filter_map(|event| event.pid).collect();
        found = kernel.leaks(host).iter().map(|report| report.pid).collect();
    }
    let of = |pids: &[u32]| -> Vec<&Spec> {
        programs.iter().filter(|program| pids.contains(&program.pid())).map(|program| &program.spec).collect()
    };
    let (told, found) = (of(&told), of(&found));
    let seconds = begun.elapsed().as_secs();
    println!("{} clean programs for {seconds} s: {} suspected, {} told", specs.len(), found.len(), told.len());
    assert!(told.is_empty() && found.is_empty(), "told: {told:?}, suspected: {found:?}");
}
