//! The table of processes by the kernel's task iterator against /proc, field by field, on the machine that runs the
//! test, with processes of every kind.
#![expect(clippy::disallowed_methods, reason = "a test runs programs and reads files as it likes")]

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::ops::RangeInclusive;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use sysops_agent::collect::{self, Outcome};
use sysops_agent::host::{Host, Roots, TaskRow, TaskWalk, Walked};
use sysops_agent::kernel::Rung;
use sysops_agent::model::Batch;
use sysops_agent::spec::Values;
use sysops_tests::falsified_btf::{has_member, move_member};
use sysops_tests::one_probe::OneProbe;
use sysops_tests::require::{self, require};

const BTF: &str = "/sys/kernel/btf/vmlinux";

fn live() -> Host {
    Host::live(&Roots { root: Some("/".into()) })
}

/// The iterator, or nothing where this machine cannot have it.
fn iterator(host: &Host) -> Option<OneProbe> {
    if !require(require::root().or_else(|| require::files(&[BTF]))) {
        return None;
    }
    let probe = OneProbe::start(host, "tasks", "iter", Values::default());
    let standing = probe.standing();
    if standing.rung == Rung::Iter {
        return Some(probe);
    }
    // Where programs can be loaded at all else, there is no excuse.
    let other = OneProbe::start(host, "oom_kill", "auto", Values::default()).standing();
    assert!(other.rung >= Rung::Tracepoint, "{standing:?} but {other:?}");
    assert!(!require(Some(standing.reason)), "require() says what is missing");
    None
}

/// A process that is ended with the test.
struct Held(Child);

impl Held {
    fn start(command: &mut Command) -> Self {
        Self(command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("it can be started"))
    }

    fn shell(script: &str) -> Self {
        let mut held = Self::start(Command::new("sh").args(["-c", script]));
        // It says a byte when it is what it is to be.
        held.0.stdout.as_mut().expect("piped").read_exact(&mut [0]).expect("the shell says so");
        held
    }

    fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What /proc says of a process: fields that stay, and numbers that may move.
#[derive(Clone, Debug, PartialEq)]
struct Truth {
    comm: Vec<u8>,
    state: u8,
    parent: u64,
    uid: u64,
    start_ticks: u64,
    files_limit: u64,
    cgroups: [Option<u64>; 2],
    /// User and system ticks, threads, resident pages, open files, then the lines of `io`.
    moving: Vec<u64>,
}

const MOVING: [&str; 12] = [
    "utime",
    "stime",
    "threads",
    "rss",
    "open files",
    "rchar",
    "wchar",
    "syscr",
    "syscw",
    "read_bytes",
    "write_bytes",
    "cancelled_write_bytes",
];

impl Truth {
    fn of(pid: u32, mounts: &Mounts) -> Option<Self> {
        let read = |name: &str| fs::read(format!("/proc/{pid}/{name}")).ok();
        let stat = read("stat")?;
        let (open, close) = (stat.iter().position(|&b| b == b'(')?, stat.iter().rposition(|&b| b == b')')?);
        let fields: Vec<&str> = std::str::from_utf8(&stat[close + 2..]).ok()?.split_whitespace().collect();
        let field = |number: usize| fields[number - 3].parse::<u64>().ok();
        let after = |text: &str, name: &str| {
            let value = text.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace().next()?.to_owned();
            if value == "unlimited" { Some(u64::MAX) } else { value.parse().ok() }
        };
        let text = |name: &str| read(name).map(|bytes| bytes.iter().map(|&byte| char::from(byte)).collect::<String>());
        let (status, limits, io) = (text("status")?, text("limits")?, text("io")?);
        let open_files = fs::metadata(format!("/proc/{pid}/fd")).ok()?.size();
        let mut moving = vec![field(14)?, field(15)?, field(20)?, field(24)?, open_files];
        for line in io.lines() {
            moving.push(line.split(' ').nth(1)?.parse().ok()?);
        }
        Some(Self {
            comm: stat[open + 1..close].to_vec(),
            state: stat[close + 2],
            parent: field(4)?,
            uid: after(&status, "Uid:")?,
            start_ticks: field(22)?,
            files_limit: after(&limits, "Max open files")?,
            cgroups: mounts.ids(&text("cgroup")?),
            moving,
        })
    }
}

fn moving(row: &TaskRow) -> Vec<Option<u64>> {
    let io = row.io.expect("this kernel counts it");
    let some = [row.cpu.user, row.cpu.system, u64::from(row.threads), row.rss_pages].map(Some);
    let io = [io.rchar, io.wchar, io.syscr, io.syscw, io.read_bytes, io.write_bytes, io.cancelled_write_bytes];
    some.into_iter().chain([row.open_files.map(u64::from)]).chain(io.map(Some)).collect()
}

/// What of `row` is not what /proc says before and after.
fn differences(row: &TaskRow, before: &Truth, after: &Truth) -> Vec<String> {
    let mut found = Vec::new();
    let mut hold = |holds: bool, name: &str| {
        if !holds {
            found.push(format!("{name}: {row:?}\nis not {before:?}\nnor {after:?}"));
        }
    };
    // Names of the kernel's threads go on in /proc with what they work on.
    hold(row.comm() == before.comm || (row.is_kernel && before.comm.starts_with(row.comm())), "comm");
    hold([before.state, after.state].contains(&row.state), "state");
    hold([before.parent, after.parent].contains(&u64::from(row.parent)), "parent");
    hold([before.uid, after.uid].contains(&u64::from(row.uid)), "uid");
    hold(row.start_ticks == before.start_ticks, "start");
    hold(row.open_files_max == before.files_limit, "limit");
    for (name, of_row, of_proc) in
        [("cgroup", row.cgroup_id, before.cgroups[0]), ("memory cgroup", row.memory_cgroup_id, before.cgroups[1])]
    {
        // The first version shows the root for a process on its way out, wherever it was.
        hold(of_proc.is_none() || of_row == of_proc || (row.state == b'Z' && of_proc == Some(1)), name);
    }
    for (index, number) in moving(row).into_iter().enumerate() {
        let (one, other) = (before.moving[index], after.moving[index]);
        let between: RangeInclusive<u64> = one.min(other)..=one.max(other);
        // Files of a process with room for many are for /proc to count, however few they are.
        let is_left_out = number.is_none() && MOVING[index] == "open files";
        hold(is_left_out || number.is_some_and(|number| between.contains(&number)), MOVING[index]);
    }
    found
}

/// Where hierarchies of cgroups are mounted: the unified one, and that of the first version's memory controller.
struct Mounts {
    unified: Option<PathBuf>,
    memory: Option<PathBuf>,
}

impl Mounts {
    fn read() -> Self {
        let text = fs::read_to_string("/proc/self/mounts").expect("it is there");
        let at = |kind: &str, option: &str| {
            text.lines().map(|line| line.split(' ').collect::<Vec<_>>()).find_map(|fields| {
                let fits = fields[2] == kind && (option.is_empty() || fields[3].split(',').any(|word| word == option));
                fits.then(|| PathBuf::from(fields[1]))
            })
        };
        Self { unified: at("cgroup2", ""), memory: at("cgroup", "memory") }
    }

    /// Ids of the cgroups in /proc/<pid>/cgroup. In the unified hierarchy alone that of the memory controller may be one
    /// above: it is not told then.
    fn ids(&self, text: &str) -> [Option<u64>; 2] {
        let inode = |mount: &Option<PathBuf>, path: &str| {
            Some(fs::metadata(mount.as_ref()?.join(path.trim_start_matches('/'))).ok()?.ino())
        };
        let path = |wanted: &str| {
            text.lines().find_map(|line| {
                let mut parts = line.splitn(3, ':').skip(1);
                let is = parts.next()?.split(',').any(|name| name == wanted);
                parts.next().filter(|_| is)
            })
        };
        [
            path("").and_then(|path| inode(&self.unified, path)),
            path("memory").and_then(|path| inode(&self.memory, path)),
        ]
    }
}

fn pids() -> Vec<u32> {
    let entries = fs::read_dir("/proc").expect("it is there");
    entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect()
}

struct Table {
    rows: BTreeMap<u32, TaskRow>,
    elsewhere: Vec<u32>,
}

fn read(walk: &mut TaskWalk) -> Table {
    read_if_whole(walk).expect("the table was read whole")
}

fn read_if_whole(walk: &mut TaskWalk) -> Option<Table> {
    let (mut rows, mut elsewhere, mut last) = (BTreeMap::new(), Vec::new(), 0);
    let whole = walk.walk(|walked| match walked {
        Walked::Row(row) => {
            assert!(row.pid > last, "in order, each once");
            last = row.pid;
            rows.insert(row.pid, *row);
        }
        Walked::Elsewhere(pid) => elsewhere.push(pid),
    });
    whole.then_some(Table { rows, elsewhere })
}

/// What is simple, on an emulated processor too.
#[test]
fn this_process_is_in_the_table_on_iter() {
    let host = live();
    let Some(_probe) = iterator(&host) else { return };
    let mut walk = TaskWalk::new(&host);
    let own = (0..20).find_map(|_| read_if_whole(&mut walk)?.rows.get(&std::process::id()).copied());
    let own = own.expect("twenty tables, and this process in none of them");
    assert_eq!(own.uid, rustix::process::getuid().as_raw());
    assert!(own.cpu_ns > 0 && own.threads >= 1, "{own:?}");
}

/// Set in the process of this test that has the last ids of all.
const LAST: &str = "SYSOPS_TEST_LAST_IDS";
/// Where the kernel goes on to give ids.
const NS_LAST_PID: &str = "/proc/sys/kernel/ns_last_pid";

/// Ids begin anew at their end, so that threads can have lower ones than their process.
#[test]
#[ignore = "it sets where the kernel goes on to give process ids; run by vm-test"]
fn a_process_whose_threads_have_lower_ids_is_told_whole() {
    if !require(require::root().or_else(|| require::files(&[BTF, NS_LAST_PID]))) {
        return;
    }
    if std::env::var(LAST).is_err() {
        let max: u64 =
            fs::read_to_string("/proc/sys/kernel/pid_max").expect("procfs").trim().parse().expect("a number");
        fs::write(NS_LAST_PID, (max - 2).to_string()).expect("root may");
        let name = "a_process_whose_threads_have_lower_ids_is_told_whole";
        let mut test = Command::new(std::env::current_exe().expect("a test has a path"));
        test.args(["--exact", name, "--ignored", "--nocapture"]).env(LAST, "1");
        assert!(test.status().expect("it runs").success());
        return;
    }
    let own = std::process::id();
    let threads =
        fs::read_dir("/proc/self/task").expect("procfs").filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    assert!(threads.filter_map(|id| id.parse().ok()).any(|id: u32| id < own), "no thread of {own} has a lower id");
    let host = live();
    let Some(_probe) = iterator(&host) else { return };
    let row = read_if_whole(&mut TaskWalk::new(&host)).and_then(|table| table.rows.get(&own).copied());
    assert!(row.is_some_and(|row| row.threads >= 2), "{row:?}");
}

/// Reads /proc, the table and /proc again until every process was the same in some turn, or has ended.
fn compare(walk: &mut TaskWalk) -> Table {
    let mounts = Mounts::read();
    let mut failing = BTreeMap::new();
    let mut left = pids();
    let mut elsewhere_always: Option<Vec<u32>> = None;
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let before: BTreeMap<u32, Truth> =
            left.iter().filter_map(|&pid| Some((pid, Truth::of(pid, &mounts)?))).collect();
        let table = read(walk);
        let after: BTreeMap<u32, Truth> =
            left.iter().filter_map(|&pid| Some((pid, Truth::of(pid, &mounts)?))).collect();
        failing.clear();
        for (pid, before) in &before {
            let Some(after) = after.get(pid).filter(|after| after.start_ticks == before.start_ticks) else { continue };
            match table.rows.get(pid) {
                Some(row) => {
                    let found = differences(row, before, after);
                    if !found.is_empty() {
                        failing.insert(*pid, found);
                    }
                }
                None if table.elsewhere.contains(pid) => {}
                None => assert!(false_alarm(*pid), "{pid} {before:?} is nowhere in the table"),
            }
        }
        elsewhere_always = Some(match elsewhere_always {
            Some(always) => always.into_iter().filter(|pid| table.elsewhere.contains(pid)).collect(),
            None => table.elsewhere.clone(),
        });
        left = failing.keys().copied().collect();
        if failing.is_empty() {
            println!("left to /proc in every turn: {elsewhere_always:?}");
            return table;
        }
        let failing: Vec<&String> = failing.values().flatten().collect();
        assert!(Instant::now() < deadline, "{failing:#?}");
    }
}

/// A process without an address in the table may have ended and left its id.
fn false_alarm(pid: u32) -> bool {
    !Path::new(&format!("/proc/{pid}")).exists()
}

/// Runs, and does nothing else.
fn burn(time: Duration) {
    let start = Instant::now();
    while start.elapsed() < time {
        std::hint::spin_loop();
    }
}

#[test]
fn every_field_of_every_process_is_what_proc_says() {
    let host = live();
    let Some(_probe) = iterator(&host) else { return };
    if !require(require::programs(&["sh", "sleep", "python3", "setpriv"])) {
        return;
    }
    let stopped = Held::start(Command::new("sleep").arg("600"));
    let pid = Pid::from_raw(i32::try_from(stopped.pid()).expect("small")).expect("a pid");
    kill_process(pid, Signal::STOP).expect("it is ours");
    // `sleep 0` ends and is not waited for.
    let _parent_of_zombie = Held::shell("sleep 0 & echo; exec sleep 600 >/dev/null");
    let hostile = Held::shell("printf 'a) R 1 (b\\n' > /proc/$$/comm; echo; read x");
    let foreign = Held::start(Command::new("setpriv").args(["--reuid=65534", "--clear-groups", "sleep", "600"]));
    // The first thread ends by the system call exit (60, or 93 on arm64) and leaves another behind.
    let number = if cfg!(target_arch = "x86_64") { "60" } else { "93" };
    let leaderless = Held::start(Command::new("python3").args(["-c", LEADERLESS, number]));
    // Threads of this process that run, wait, and have ended after work.
    for _ in 0..4 {
        std::thread::spawn(|| burn(Duration::from_millis(30))).join().expect("it ends");
    }
    let (stop, stopped_by) = std::sync::mpsc::channel::<()>();
    let waiting = std::thread::spawn(move || stopped_by.recv().is_err());
    burn(Duration::from_millis(50));
    let many: Vec<File> = (0..100).map(|_| File::open("/dev/null").expect("opened")).collect();

    let state = |pid: u32, wanted: u8| {
        let deadline = Instant::now() + Duration::from_secs(20);
        while Truth::of(pid, &Mounts { unified: None, memory: None }).is_none_or(|truth| truth.state != wanted) {
            assert!(Instant::now() < deadline, "{pid} is not {}", char::from(wanted));
            std::thread::yield_now();
        }
    };
    state(stopped.pid(), b'T');
    state(leaderless.pid(), b'Z');
    let mut walk = TaskWalk::new(&host);
    let table = compare(&mut walk);
    let of = |held: &Held| table.rows[&held.pid()];
    assert_eq!(of(&stopped).state, b'T');
    assert_eq!((of(&leaderless).state, of(&leaderless).threads, of(&leaderless).rss_pages), (b'Z', 2, 0));
    assert_eq!(of(&hostile).comm(), b"a) R 1 (b\n");
    assert_eq!(of(&foreign).uid, 65534);
    assert!(table.rows.values().any(|row| row.state == b'Z' && row.threads == 1), "the zombie");
    assert!(table.rows.values().any(|row| row.is_kernel && row.state == b'I'), "a thread of the kernel that idles");
    let own = table.rows[&std::process::id()];
    assert!(own.threads >= 2 && own.cpu.user >= 10, "what ended threads used is counted: {own:?}");
    assert!(own.open_files.is_some_and(|open| open > 100), "{own:?}");
    drop((stop, many));
    assert!(waiting.join().expect("it ends"));
}

const LEADERLESS: &str = "import ctypes, sys, threading, time\n\
    threading.Thread(target=time.sleep, args=(600,)).start()\n\
    ctypes.CDLL(None).syscall(int(sys.argv[1]), 0)";

/// Ends what watches the flag, also when the test fails.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn the_table_is_whole_while_processes_and_threads_come_and_go() {
    let host = live();
    let Some(probe) = iterator(&host) else { return };
    let end = AtomicBool::new(false);
    let is_over = || end.load(Ordering::Relaxed);
    std::thread::scope(|scope| {
        let _ends = Ends(&end);
        scope.spawn(|| {
            while !is_over() {
                assert!(Command::new("true").status().expect("it runs").success());
            }
        });
        scope.spawn(|| {
            while !is_over() {
                std::thread::spawn(|| burn(Duration::from_micros(200))).join().expect("it ends");
            }
        });
        let (mut walk, mut used, mut torn) = (TaskWalk::new(&host), 0, 0);
        for _ in 0..300 {
            let table = read(&mut walk);
            match table.rows.get(&std::process::id()) {
                Some(own) => {
                    assert!(own.cpu_ns >= used, "CPU time went back from {used} to {}", own.cpu_ns);
                    used = own.cpu_ns;
                }
                None => torn += u32::from(table.elsewhere.contains(&std::process::id())),
            }
        }
        println!("{torn} of 300 tables left this process to /proc; it used {used} ns");
        assert!(used > 0);
    });
    assert_eq!(probe.standing().dropped, 0);
}

/// The self-check is of this process: its threads come and go at every look.
#[test]
fn a_busy_start_is_no_contradiction() {
    let host = live();
    if iterator(&host).is_none() {
        return;
    }
    let end = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _ends = Ends(&end);
        for _ in 0..2 {
            scope.spawn(|| {
                while !end.load(Ordering::Relaxed) {
                    std::thread::spawn(|| burn(Duration::from_micros(50))).join().expect("it ends");
                }
            });
        }
        for _ in 0..20 {
            let probe = OneProbe::start(&host, "tasks", "auto", Values::default());
            assert_eq!(probe.standing().rung, Rung::Iter, "{:?}", probe.standing());
        }
    });
}

#[test]
fn a_steady_cycle_with_the_table_allocates_nothing() {
    let host = live();
    let Some(_probe) = iterator(&host) else { return };
    for name in ["process", "fd"] {
        let entry = collect::ALL.iter().find(|entry| entry.name == name).expect("a collector");
        let mut collector = (entry.new)(&host, &Values::default());
        let mut batch = Batch::default();
        let mut cycle = || {
            batch.clear();
            let mut is_data = false;
            let counted = allocation_counter::measure(|| {
                is_data = matches!(collector.collect(&host, &mut batch), Ok(Outcome::Data));
            });
            assert!(is_data);
            counted.count_total
        };
        // Processes come in between, and cost memory once.
        assert_eq!((0..50).map(|_| cycle()).min(), Some(0), "{name}");
    }
}

/// This machine, but with a /sys in which there is only the BTF, in which `member` of `name` lies `bits` further.
fn standing_with_lie(name: &str, member: &str, bits: i32) -> sysops_agent::kernel::Standing {
    let directory = std::env::temp_dir().join(format!("sysops-tasks-{name}-{member}-{}", std::process::id()));
    fs::create_dir_all(directory.join("kernel/btf")).expect("a directory of our own");
    let mut btf = fs::read(BTF).expect("require() was asked");
    move_member(&mut btf, name, member, bits);
    fs::write(directory.join("kernel/btf/vmlinux"), btf).expect("a file of our own");
    let files = sysops_agent::host::Files::new("/proc".into(), directory.clone(), "/".into());
    let standing = OneProbe::start(&Host { files, ..live() }, "tasks", "auto", Values::default()).standing();
    fs::remove_dir_all(directory).expect("our own directory");
    standing
}

#[test]
fn types_that_lie_leave_the_table_to_proc_with_the_reason() {
    if iterator(&live()).is_none() {
        return;
    }
    // Up to 5.13 the member had another name.
    let btf = fs::read(BTF).expect("require() was asked");
    let state = if has_member(&btf, "task_struct", "__state") { "__state" } else { "state" };
    // Up to 6.1 pages were counted in the address space itself.
    let pages = if has_member(&btf, "mm_rss_stat", "count") { "mm_rss_stat" } else { "percpu_counter" };
    for (name, member, bits) in [
        ("task_struct", "tgid", 32),
        ("task_struct", "pid", 32),
        ("task_struct", "comm", 64),
        ("task_struct", state, 32),
        ("task_struct", "start_boottime", 64),
        ("task_struct", "real_parent", 192),
        ("task_struct", "signal", 64),
        ("task_struct", "mm", -64),
        ("sched_entity", "sum_exec_runtime", 64),
        // The number after it is the same.
        ("signal_struct", "nr_threads", 64),
        ("signal_struct", "sum_sched_runtime", 64),
        ("signal_struct", "rlim", 64),
        (pages, "count", 64),
        ("css_set", "dfl_cgrp", 64),
        ("kernfs_node", "id", 64),
    ] {
        let standing = standing_with_lie(name, member, bits);
        println!("{name}.{member}: {}", standing.reason);
        assert_eq!(standing.rung, Rung::Proc, "{name}.{member}: {standing:?}");
        assert!(standing.reason.starts_with("iter: ") && !standing.forced_and_failed, "{name}.{member}: {standing:?}");
    }
}

#[test]
fn the_files_of_proc_are_read_where_they_are_asked_for_on_proc() {
    let host = live();
    let probe = OneProbe::start(&host, "tasks", "proc", Values::default());
    assert_eq!(probe.standing().rung, Rung::Proc);
    assert!(!TaskWalk::new(&host).walk(|_| ()));
}
