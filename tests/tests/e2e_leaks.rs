//! `leaks` on programs whose leaking stacks are known: however they were compiled, the stack is told function by function, and
//! nearly every descriptor is attributed. And what it says when there is nothing to watch.
#![expect(clippy::disallowed_methods, reason = "a test compiles and runs programs")]

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;
use sysops_tests::agent::{self, Agent, Launch};
use sysops_tests::require::{self, require};
use sysops_tests::servers::Scratch;
use sysops_tests::{schema, user};

/// Descriptors that tests/fixtures/leaks/leaky.c leaks.
const COUNT: u64 = 200;

/// How it is compiled, which way it takes, and the functions of the stack from the one that leaks on.
#[rustfmt::skip]
const PROGRAMS: &[(&str, &[&str], &str, &[&str])] = &[
    ("optimised", &["-O2", "-g"], "plain", &["leak_here", "handler", "main"]),
    ("no frame pointers", &["-O2", "-fomit-frame-pointer"], "plain", &["leak_here", "handler", "main"]),
    ("frame pointers", &["-O2", "-fno-omit-frame-pointer"], "plain", &["leak_here", "handler", "main"]),
    ("not optimised", &["-O0"], "plain", &["leak_here", "handler", "main"]),
    ("static", &["-O2", "-static"], "plain", &["leak_here", "handler", "main"]),
    ("not relocatable", &["-O2", "-no-pie"], "plain", &["leak_here", "handler", "main"]),
    ("inlined", &["-O2", "-g"], "inlined", &["leak_here", "inlined_leak", "calls_inlined", "main"]),
    ("frames of any size", &["-O2"], "room", &["leak_here", "with_room", "main"]),
    ("in a thread", &["-O2", "-pthread"], "thread", &["leak_here", "handler", "worker", "start_thread"]),
    ("in a signal handler", &["-O2"], "signal", &["leak_here", "handler", "on_signal"]),
    ("deep", &["-O1", "-fno-optimize-sibling-calls"], "deep", &["leak_here", "handler", "recurse", "recurse"]),
];

fn missing() -> Option<String> {
    agent::missing()
        .or_else(require::root)
        .or_else(|| require::programs(&["cc"]))
        .or_else(|| require::files(&["/sys/kernel/btf/vmlinux"]))
        .or_else(|| (!cfg!(feature = "default")).then(|| "needs the agent with the feature ebpf".to_owned()))
}

#[test]
fn every_stack_is_told_function_by_function() {
    if !require(missing()) {
        return;
    }
    let scratch = Scratch::new();
    let mut programs: Vec<Leaky> = PROGRAMS
        .iter()
        .enumerate()
        .map(|(index, (_, flags, way, _))| {
            Leaky::start(&compile(scratch.path(), &format!("leaky{index}"), flags), &[way])
        })
        .collect();
    let reports = observe(Launch::default(), &mut programs);
    for ((name, _, _, expected), (program, report)) in PROGRAMS.iter().zip(programs.iter().zip(&reports)) {
        assert_eq!(report["pid"], program.child.id(), "{name}");
        assert_attributed(name, report);
        let stack = &report["stacks"][0];
        let functions = functions(stack);
        let leaks = functions.iter().position(|function| function == "leak_here");
        let leaks = leaks.unwrap_or_else(|| panic!("{name}: {functions:?}"));
        assert!(leaks <= 1, "{name}: nothing but the system call's own function comes before: {functions:?}");
        assert_eq!(&functions[leaks..leaks + expected.len()], *expected, "{name}");
        match *name {
            "deep" => assert!(functions[leaks + 2..].iter().all(|function| function == "recurse"), "{functions:?}"),
            "in a thread" => {}
            _ => assert_eq!(functions.last().map(String::as_str), Some("_start"), "{name}: {functions:?}"),
        }
        if *name == "in a signal handler" {
            assert!(functions.contains(&"main".to_owned()), "what was interrupted is told: {functions:?}");
        }
    }
    // Where the program has lines, they are told: the one with open() in it.
    let frames = reports[0]["stacks"][0]["frames"].as_array().expect("a list");
    let leak = frames.iter().find(|frame| frame["function"] == "leak_here").expect("it is there");
    let source = std::fs::read_to_string(source()).expect("it was compiled");
    let line = source.lines().position(|line| line.contains("open(\"/dev/null\"")).expect("it opens") + 1;
    assert_eq!(leak["line"], line, "{leak}");
    assert!(leak["file"].as_str().is_some_and(|file| file.ends_with("/leaky.c")), "{leak}");
}

#[test]
fn without_names_the_offsets_are_those_of_the_file_with_names() {
    if !require(missing()) {
        return;
    }
    let scratch = Scratch::new();
    let with = compile(scratch.path(), "named", &["-O2"]);
    let without = compile(scratch.path(), "bare", &["-O2", "-s"]);
    let mut programs = [Leaky::start(&with, &["plain"]), Leaky::start(&without, &["plain"])];
    let reports = observe(Launch::default(), &mut programs);
    let own = |report: &Value, path: &Path| -> Vec<(Value, Value)> {
        let frames = report["stacks"][0]["frames"].as_array().expect("a list").iter();
        frames
            .filter(|frame| frame["module"] == path.display().to_string())
            .map(|frame| (frame["function"].clone(), frame["offset"].clone()))
            .collect()
    };
    let (named, bare) = (own(&reports[0], &with), own(&reports[1], &without));
    assert!(named.len() >= 4 && named.iter().all(|(function, _)| function.is_string()), "{named:?}");
    let offsets = |frames: &[(Value, Value)]| frames.iter().map(|(_, offset)| offset.clone()).collect::<Vec<_>>();
    assert_eq!(offsets(&bare), offsets(&named));
    assert!(bare.iter().all(|(function, _)| function.is_null()), "{bare:?}");
}

#[test]
fn an_interpreter_is_told_by_its_own_functions() {
    if !require(missing().or_else(|| require::files(&["/usr/bin/python3"]))) {
        return;
    }
    let script = "import os, sys, time\nprint('ready', flush=True)\nsys.stdin.readline()\n\
                  def leak(): return os.open('/dev/null', 0)\n\
                  for i in range(200):\n  leak()\n  os.close(os.dup(0))\n  time.sleep(0.012)\n\
                  print('done', flush=True)\nsys.stdin.readline()";
    let mut programs = [Leaky::start(Path::new("/usr/bin/python3"), &["-c", script])];
    let reports = observe(Launch::default(), &mut programs);
    let report = &reports[0];
    // The interpreter changes its own code after some calls: the same line is then reached by another way through it.
    assert!(report["coverage"].as_f64().is_some_and(|coverage| coverage >= 0.95), "{report:#}");
    assert!(report["stacks"][0]["count"].as_u64().is_some_and(|count| count * 100 >= COUNT * 75), "{report:#}");
    let functions = functions(&reports[0]["stacks"][0]);
    assert!(
        functions.iter().any(|function| function.starts_with("Py") || function.starts_with("_Py")),
        "{functions:?}"
    );
}

#[test]
fn the_services_capabilities_are_enough() {
    if !require(missing().or_else(user::missing)) {
        return;
    }
    let scratch = Scratch::new();
    let mut programs = [Leaky::start(&compile(scratch.path(), "leaky", &["-O2"]), &["plain"])];
    let reports = observe(user::service(), &mut programs);
    assert_attributed("as the service", &reports[0]);
    let functions = functions(&reports[0]["stacks"][0]);
    assert!(functions.windows(3).any(|three| three == ["leak_here", "handler", "main"]), "{functions:?}");
}

#[test]
fn an_interrupt_ends_it_early_and_prints_for_people() {
    if !require(missing()) {
        return;
    }
    let scratch = Scratch::new();
    let mut program = Leaky::start(&compile(scratch.path(), "leaky", &["-O2", "-g"]), &["plain"]);
    let pid = program.child.id().to_string();
    let mut agent = Agent::start("[agent]\ndata_dir = \"@DATA@\"\n", &["leaks", "--pid", &pid, "--seconds", "3600"]);
    agent.wait_until("it watches", |agent| agent.stderr().contains("watching for"));
    program.leak();
    agent.signal(Signal::INT);
    let status = agent.end(Duration::from_secs(30));
    let text = agent.stdout();
    assert_eq!(status.code(), Some(0), "{text}{}", agent.stderr());
    for part in [&format!("({pid}): holds 20"), " file descriptors, seen by ", "coverage 9", "leak_here  ", "leaky.c:"]
    {
        assert!(text.contains(part), "no {part:?} in {text}");
    }
}

#[test]
fn what_cannot_be_watched_is_said() {
    if !require(agent::missing()) {
        return;
    }
    let refused = |launch: &Launch, arguments: &[&str], code: i32, parts: &[&str]| {
        let output = launch.run(&[&["leaks", "--seconds", "1"], arguments].concat());
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{said}");
        assert_eq!(output.stdout, b"", "{said}");
        for part in parts {
            assert!(said.contains(part), "no {part:?} in {said}");
        }
    };
    let live = Launch::default();
    refused(&live, &["--pid", "4194304"], 69, &["error: there is no process 4194304", "hint: "]);
    refused(&live, &["--pid", "0"], 64, &["--pid"]);
    if require(user::missing()) {
        let own = std::process::id().to_string();
        refused(&user::ordinary(), &["--pid", &own], 77, &["may not be looked at", "CAP_SYS_PTRACE"]);
        refused(&user::ordinary(), &[], 69, &["CAP_BPF"]);
    }
}

/// Whoever asks an allocator is told by its caller, whichever function of the allocator it goes through inside.
#[test]
fn each_call_of_the_allocator_has_its_caller() {
    if !require(missing()) {
        return;
    }
    let scratch = Scratch::new();
    let program = compile_from(&fixture("pieces.c"), scratch.path(), "pieces", &["-O2", "-g", "-fno-builtin"]);
    let mut programs = [Leaky::start(&program, &[])];
    let reports = observe_with(Launch::default(), &["--malloc"], &mut programs);
    let report = &reports[0];
    let bytes = |caller: &str| -> u64 {
        let stacks = report["stacks"].as_array().expect("a list").iter();
        let of = stacks.filter(|stack| functions(stack).iter().any(|function| function == caller));
        of.map(|stack| stack["count"].as_u64().expect("a number")).sum()
    };
    let of = ["by_malloc", "by_realloc", "grows", "untouched", "gives_back"].map(|caller| (caller, bytes(caller)));
    let expected = [
        ("by_malloc", 100_000),
        ("by_realloc", 100_000),
        ("grows", 20_000_000),
        ("untouched", 100 << 20),
        ("gives_back", 0),
    ];
    assert_eq!(of, expected, "{report:#}");
    assert_eq!(report["rung"], "uprobe");
    let number = |name: &str| report[name].as_u64().expect("a number");
    assert!(number("attributed") < number("open"), "what was there before is not what was asked for: {report:#}");
    let said = report["unattributed"].as_str().expect("a text");
    assert!(said.contains("MiB more were asked for than came"), "{said}");
}

/// A program may describe its stack so that it leads nowhere: that takes no more time than what leads somewhere.
#[cfg(target_arch = "x86_64")]
#[test]
fn a_stack_that_leads_nowhere_holds_no_one_up() {
    if !require(missing()) {
        return;
    }
    let scratch = Scratch::new();
    let program = compile_from(&fixture("endless.c"), scratch.path(), "endless", &["-O1"]);
    let mut child = Command::new(program).spawn().expect("it was compiled");
    let pid = child.id().to_string();
    let began = std::time::Instant::now();
    let output = Launch::default().run(&["leaks", "--json", "--seconds", "3", "--pid", &pid]);
    let took = began.elapsed();
    child.kill().expect("it does not end by itself");
    _ = child.wait();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(took < Duration::from_secs(9), "{took:?}");
}

/// The file that is mapped is not there any more, and the way to it is closed to the service: nobody knows who called.
#[test]
fn callers_of_a_library_that_was_replaced_are_not_taken_for_one() {
    if !require(missing().or_else(user::missing)) {
        return;
    }
    let scratch = Scratch::new();
    let build = |name| compile_from(&fixture("library.c"), scratch.path(), name, &["-O2", "-shared", "-fPIC"]);
    let library = build("libcalled.so");
    let path = library.display().to_string();
    let program = compile_from(&fixture("calls_library.c"), scratch.path(), "calls", &["-O2", &path]);
    let mut programs = [Leaky::start(&program, &[]), Leaky::start(&program, &[])];
    let other = build("libother.so");
    let before = observe(user::service(), &mut programs[..1]);
    assert_attributed_to(&before[0], &[("leak_a", 60), ("leak_b", 20)]);
    std::fs::rename(other, library).expect("it is ours");
    let after = observe(user::service(), &mut programs[1..]);
    assert_eq!(after[0]["attributed"], 0, "{:#}", after[0]);
    let said = after[0]["unattributed"].as_str().expect("a text");
    assert!(said.contains("80 without a stack") && said.contains("through a file that cannot be read"), "{said}");
}

fn assert_attributed_to(report: &Value, expected: &[(&str, u64)]) {
    let of = |caller: &str| -> u64 {
        let stacks = report["stacks"].as_array().expect("a list").iter();
        let of = stacks.filter(|stack| functions(stack).iter().any(|function| function == caller));
        of.map(|stack| stack["count"].as_u64().expect("a number")).sum()
    };
    for (caller, count) in expected {
        assert_eq!(of(caller), *count, "{caller}: {report:#}");
    }
}

#[test]
fn who_leaks_fast_is_found_in_ten_seconds() {
    if !require(missing().or_else(|| require::files(&["/usr/bin/python3"]))) {
        return;
    }
    let script = "import os, time\nwhile True:\n  os.open('/dev/null', 0)\n  time.sleep(0.025)";
    let mut child = Command::new("/usr/bin/python3").args(["-c", script]).spawn().expect("it is there");
    let output = Launch::default().run(&["leaks", "--json", "--seconds", "10"]);
    child.kill().expect("it does not end by itself");
    _ = child.wait();
    let reports: Vec<Value> = output
        .stdout
        .split(|&byte| byte == b'\n')
        .filter(|line| !line.is_empty())
        .map(|line| schema::parse("leaks", line))
        .collect();
    let report = reports.iter().find(|report| report["pid"] == child.id()).expect("it is found");
    let growth = report["stacks"][0]["growth_per_hour"].as_f64().expect("a number");
    assert!((72_000.0..180_000.0).contains(&growth), "40 a second: {report:#}");
    let refused = Launch::default().run(&["leaks", "--seconds", "2"]);
    assert_eq!(refused.status.code(), Some(64), "{}", String::from_utf8_lossy(&refused.stderr));
}

#[test]
fn one_that_ends_is_told_as_it_was_last_seen() {
    if !require(missing()) {
        return;
    }
    let scratch = Scratch::new();
    for resource in ["fd", "memory"] {
        let mut program = Leaky::start(&compile(scratch.path(), "leaky", &["-O2", "-g"]), &["plain"]);
        let pid = program.child.id().to_string();
        let arguments = ["leaks", "--json", "--pid", &pid, "--seconds", "3600", "--resource", resource];
        let mut agent = Agent::start("[agent]\ndata_dir = \"@DATA@\"\n", &arguments);
        agent.wait_until("it watches", |agent| agent.stderr().contains("watching for"));
        program.leak();
        // The next looks, of which there is one a second.
        std::thread::sleep(Duration::from_millis(2500));
        drop(program);
        std::thread::sleep(Duration::from_millis(1500));
        agent.signal(Signal::INT);
        let status = agent.end(Duration::from_secs(30));
        assert_eq!(status.code(), Some(0), "{}{}", agent.stdout(), agent.stderr());
        let report = schema::parse("leaks", agent.stdout().lines().next().expect("a report").as_bytes());
        let said = report["unattributed"].as_str().expect("a text");
        assert!(said.starts_with("it ended while it was watched"), "{said}");
        if resource == "fd" {
            assert!(functions(&report["stacks"][0]).contains(&"leak_here".to_owned()), "{report:#}");
        }
    }
}

/// Lets the agent watch the programs while they leak; a report for each.
fn observe(launch: Launch, programs: &mut [Leaky]) -> Vec<Value> {
    observe_with(launch, &[], programs)
}

fn observe_with(launch: Launch, more: &[&str], programs: &mut [Leaky]) -> Vec<Value> {
    let pids: Vec<String> = programs.iter().map(|program| program.child.id().to_string()).collect();
    let mut arguments = vec!["leaks", "--json", "--seconds", "3600"];
    arguments.extend(more);
    for pid in &pids {
        arguments.extend(["--pid", pid]);
    }
    let mut agent = launch.start("[agent]\ndata_dir = \"@DATA@\"\n", &arguments);
    agent.wait_until("it watches", |agent| agent.stderr().contains("watching for"));
    for program in programs.iter_mut() {
        program.begin();
    }
    for program in programs.iter_mut() {
        program.wait_for("done");
    }
    agent.signal(Signal::TERM);
    let status = agent.end(Duration::from_secs(60));
    assert_eq!(status.code(), Some(0), "{}", agent.stderr());
    let mut reports: Vec<Value> = agent.stdout().lines().map(|line| schema::parse("leaks", line.as_bytes())).collect();
    let place = |report: &Value| pids.iter().position(|pid| report["pid"].as_u64() == pid.parse().ok());
    reports.sort_by_key(place);
    assert_eq!(reports.len(), programs.len(), "{reports:#?}");
    reports
}

fn assert_attributed(name: &str, report: &Value) {
    let coverage = report["coverage"].as_f64().expect("a number");
    assert!(coverage >= 0.95, "{name}: coverage {coverage}: {report:#}");
    let largest = report["stacks"][0]["count"].as_u64().expect("a number");
    assert!(largest <= COUNT && largest * 100 >= COUNT * 97, "{name}: {report:#}");
    let oldest = report["stacks"][0]["oldest_seconds"].as_f64().expect("a number");
    let growth = report["stacks"][0]["growth_per_hour"].as_f64().expect("a number");
    assert!(oldest > 0.3 && growth > 0.0, "{name}: {report:#}");
}

fn functions(stack: &Value) -> Vec<String> {
    let frames = stack["frames"].as_array().expect("a list");
    frames.iter().map(|frame| frame["function"].as_str().unwrap_or("?").to_owned()).collect()
}

fn source() -> PathBuf {
    fixture("leaky.c")
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/leaks").join(name)
}

fn compile(directory: &Path, name: &str, flags: &[&str]) -> PathBuf {
    compile_from(&source(), directory, name, flags)
}

fn compile_from(source: &Path, directory: &Path, name: &str, flags: &[&str]) -> PathBuf {
    let program = directory.join(name);
    let built =
        Command::new("cc").arg(source).arg("-o").arg(&program).args(flags).status().expect("missing() was asked");
    assert!(built.success(), "cc {flags:?}");
    program
}

/// A program that leaks when it is told to.
struct Leaky {
    child: Child,
    said: BufReader<ChildStdout>,
}

impl Leaky {
    fn start(program: &Path, arguments: &[&str]) -> Self {
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("it was compiled");
        let said = BufReader::new(child.stdout.take().expect("it is piped"));
        let mut leaky = Self { child, said };
        leaky.wait_for("ready");
        leaky
    }

    fn begin(&mut self) {
        self.child.stdin.as_mut().expect("it is piped").write_all(b"go\n").expect("it reads");
    }

    fn leak(&mut self) {
        self.begin();
        self.wait_for("done");
    }

    fn wait_for(&mut self, word: &str) {
        let mut line = String::new();
        assert!(self.said.read_line(&mut line).expect("it is a pipe") > 0, "it ended before {word}");
        assert_eq!(line.trim_end(), word);
    }
}

impl Drop for Leaky {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        // It ends at the end of its input; whether well or not is of no interest any more.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
