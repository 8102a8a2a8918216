//! A write to a frozen file system hangs for real: one event when it is found and one when it is over, however often the
//! kernel reports it, with the place in the kernel, on every rung that has a program, also when the kernel's log has gone
//! silent; and before the kernel's own detector, by the agent's looks at all tasks.
#![expect(clippy::disallowed_methods, clippy::panic, reason = "a test reads files, runs programs and fails by panic")]

use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use sysops_agent::host::{EventSource as _, Host, files::Files};
use sysops_agent::kernel::{Kernel, Rung, Standing};
use sysops_agent::model::event::{HungTask, Outcome, Phase, Tier};
use sysops_agent::model::{Batch, Event, Reading, Source, batch::label_values};
use sysops_agent::spec::{Value, Values};
use sysops_tests::events::take_until;
use sysops_tests::falsified_btf::move_member;
use sysops_tests::frozen_mount::{FrozenMount, Sysctl};
use sysops_tests::one_probe::key;
use sysops_tests::own_namespace::is_inside;
use sysops_tests::require::{self, require};
use sysops_tests::silent_mount::SilentMount;

/// A name that would be another state to a careless reader of /proc, and clear a terminal: 15 bytes, as long as can be.
const HOSTILE: &str = "a) S 1\n\u{1b}[2J(\\\\ ";

/// The threshold of the early tier in these tests.
const EARLY: Duration = Duration::from_secs(3);

#[test]
fn a_frozen_file_system_is_one_event_on_every_rung() {
    if !ready() || !is_inside("a_frozen_file_system_is_one_event_on_every_rung") {
        return;
    }
    let host = live();
    let mut kernels = Vec::new();
    for rung in ["tp_btf", "raw_tracepoint", "tracepoint"] {
        let kernel = Kernel::start(&host, &forced(rung));
        let standing = standing(&kernel);
        if standing.forced_and_failed && !require(Some(standing.reason.clone())) {
            return;
        }
        assert_eq!(standing.rung.word(), rung, "{standing:?}");
        kernels.push((kernel, standing.rung));
    }
    let _timeout = Sysctl::set("kernel/hung_task_timeout_secs", "1");
    // The kernel's log stays silent; the tracepoint does not.
    let _warnings = Sysctl::set("kernel/hung_task_warnings", "0");
    let mut mount = FrozenMount::new();
    let mut hung = mount.hang();
    let pid = hung.id();
    let mut seen: Vec<Vec<Event>> = Vec::new();
    // Two reports of the kernel at least, to all of them, so that telling it twice would be seen.
    let twice = host.clock.now();
    for (kernel, _) in &mut kernels {
        seen.push(take_until(kernel, &host, Duration::from_secs(20), |events| {
            began(events, pid) > 0 && host.clock.now().since(&twice) > Duration::from_secs(4)
        }));
    }
    let cgroup = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).expect("it hangs");
    mount.thaw();
    assert!(hung.wait().expect("our child").success());
    for ((kernel, rung), events) in kernels.iter_mut().zip(&mut seen) {
        events.extend(take_until(kernel, &host, Duration::from_secs(10), |events| ended(events, pid) > 0));
        assert_eq!((began(events, pid), ended(events, pid)), (1, 1), "{rung:?}: {events:#?}");
        let event = events.iter().find(|event| event.tid == Some(pid)).expect("counted above");
        hold_against(event, pid, &cgroup, *rung);
        let end =
            events.iter().find(|event| event.tid == Some(pid) && event.is_end()).map(hang).expect("counted above");
        assert_eq!(end.outcome, Some(Outcome::Exited), "{end:?}");
        assert!(end.blocked_seconds >= hang(event).blocked_seconds, "{end:?}");
        let standing = standing(kernel);
        assert!(standing.received >= 2 && standing.dropped == 0, "{rung:?}: {standing:?}");
    }
}

/// The record of a plain tracepoint does not tell which sleep it is about, and then there is no one to ask.
#[test]
fn a_report_that_is_read_when_its_thread_is_gone_is_no_second_hang() {
    if !ready() || !is_inside("a_report_that_is_read_when_its_thread_is_gone_is_no_second_hang") {
        return;
    }
    let host = live();
    let mut kernel = Kernel::start(&host, &forced("tracepoint"));
    let standing = standing(&kernel);
    if standing.forced_and_failed && !require(Some(standing.reason.clone())) {
        return;
    }
    let _timeout = Sysctl::set("kernel/hung_task_timeout_secs", "1");
    let mut mount = FrozenMount::new();
    let mut hung = mount.hang();
    let pid = hung.id();
    let mut events = take_until(&mut kernel, &host, Duration::from_secs(20), |events| began(events, pid) > 0);
    // The kernel reports it again, and no one reads that before it is over.
    std::thread::sleep(Duration::from_secs(4));
    mount.thaw();
    assert!(hung.wait().expect("our child").success());
    events.extend(take_until(&mut kernel, &host, Duration::from_secs(10), |events| ended(events, pid) > 0));
    assert_eq!((began(&events, pid), ended(&events, pid)), (1, 1), "{events:#?}");
}

/// A thread hangs twice: the looks see it before the kernel does, tell each hang once though the kernel reports the first
/// too, and do not mistake what happened while nobody looked.
#[test]
fn each_hang_is_told_early_once_and_has_its_end() {
    if !ready() || !is_inside("each_hang_is_told_early_once_and_has_its_end") {
        return;
    }
    let host = live();
    let mut kernel = Kernel::start(&host, &early());
    assert_early(&kernel, "task_iter", "");
    let mut mount = FrozenMount::new();
    mount.thaw();
    let writer = Writer::start(File::create(mount.at().join("file")).expect("it is thawed"));
    mount.freeze();
    writer.write();
    let start = Instant::now();
    let mut events = take_until(&mut kernel, &host, Duration::from_secs(20), |events| began(events, writer.tid) > 0);
    eprintln!("told {:?} after the threshold of {EARLY:?}", start.elapsed().saturating_sub(EARLY));
    let first = find(&events, writer.tid, Phase::Began);
    assert_eq!((hang(first).tier, &first.source), (Some(Tier::Early), &vec![Source::TaskIter]));
    let process = std::fs::read_to_string("/proc/self/comm").expect("there is one");
    assert_eq!(first.comm.as_deref(), Some(process.trim_end_matches('\n')));
    assert_eq!(hang(first).thread_comm.as_deref(), Some(HOSTILE));
    assert!(hang(first).wchan.is_some() || !hang(first).kernel_stack.is_empty(), "{first:#?}");
    let blocked = blocked_seconds(&mut kernel, &host, writer.tid);
    assert!(blocked.is_some_and(|seconds| (3.0..20.0).contains(&seconds)), "{blocked:?}");
    // Then the kernel's own detector finds it, with nothing to say in its log.
    {
        let _warnings = Sysctl::set("kernel/hung_task_warnings", "0");
        let _timeout = Sysctl::set("kernel/hung_task_timeout_secs", "1");
        let change = Instant::now();
        let reported = |_: &[Event]| change.elapsed() > Duration::from_secs(4);
        events.extend(take_until(&mut kernel, &host, Duration::from_secs(20), reported));
    }
    assert!(standing(&kernel).received >= 1, "the kernel reported it too");
    // Nobody looks while the hang ends and another one begins.
    mount.thaw();
    writer.wait();
    mount.freeze();
    writer.write();
    let both = |events: &[Event]| ended(events, writer.tid) == 1 && began(events, writer.tid) == 1;
    let later = take_until(&mut kernel, &host, Duration::from_secs(20), both);
    assert_eq!((began(&events, writer.tid), ended(&events, writer.tid)), (1, 0), "{events:#?}");
    assert!(both(&later), "{later:#?}");
    assert_eq!(hang(find(&later, writer.tid, Phase::Ended)).outcome, Some(Outcome::Ran));
    mount.thaw();
    writer.wait();
    let end = take_until(&mut kernel, &host, Duration::from_secs(10), |events| ended(events, writer.tid) == 1);
    let end = hang(find(&end, writer.tid, Phase::Ended));
    assert!(end.blocked_seconds >= Some(EARLY.as_secs()), "{end:?}");
    assert_eq!(blocked_seconds(&mut kernel, &host, writer.tid), None);
}

/// A program on a mount that does not answer: the child that is to become it sleeps so that only a signal can end it, which
/// the kernel's own detector passes over, and its parent waits in vfork(2), which is no hang.
#[test]
fn a_task_that_can_be_killed_is_told_and_a_parent_in_vfork_is_not() {
    if !ready() || !is_inside("a_task_that_can_be_killed_is_told_and_a_parent_in_vfork_is_not") {
        return;
    }
    let host = live();
    let mut kernel = Kernel::start(&host, &early());
    let _timeout = Sysctl::set("kernel/hung_task_timeout_secs", "1");
    let mount = SilentMount::new();
    let (send, parent) = channel();
    let program = mount.path();
    let spawner = std::thread::spawn(move || {
        send.send(own_tid()).expect("it is waited for");
        // The child is killed: there is no such process, or it ends by the signal.
        std::process::Command::new(program).spawn().and_then(|mut child| child.wait())
    });
    let parent = parent.recv().expect("it runs");
    let ours = |event: &&Event| event.pid.is_some_and(|pid| parent_of(pid) == Some(std::process::id()));
    let hangs = |events: &[Event]| events.iter().filter(ours).count();
    let mut events = take_until(&mut kernel, &host, Duration::from_secs(20), |events| hangs(events) > 0);
    let child = events.iter().find(ours).unwrap_or_else(|| panic!("{events:#?}")).clone();
    let pid = child.pid.expect("it has one");
    // The kernel has had the time to report both, if it ever did.
    let later = Instant::now();
    events
        .extend(take_until(&mut kernel, &host, Duration::from_secs(20), |_| later.elapsed() > Duration::from_secs(3)));
    assert_eq!((began(&events, pid), began(&events, parent)), (1, 0), "{events:#?}");
    assert_eq!((hang(&child).tier, ended(&events, pid)), (Some(Tier::Early), 0), "{child:#?}");
    let kill = rustix::process::Pid::from_raw(pid.try_into().expect("a pid")).expect("not 0");
    rustix::process::kill_process(kill, rustix::process::Signal::KILL).expect("our child");
    let ended = take_until(&mut kernel, &host, Duration::from_secs(10), |events| ended(events, pid) == 1);
    assert_eq!(hang(find(&ended, pid, Phase::Ended)).outcome, Some(Outcome::Exited), "{ended:#?}");
    let _ = spawner.join().expect("it does not panic");
    drop(mount);
}

/// Up to 6.10 all threads but the one that dumps sleep so that no signal ends it until the dump is written. Here it goes to a
/// file system that is frozen, so that the one that writes it hangs.
#[test]
fn of_a_process_that_dumps_core_only_the_thread_that_dumps_is_told() {
    const TEST: &str = "of_a_process_that_dumps_core_only_the_thread_that_dumps_is_told";
    const DUMPS: &str = "SYSOPS_TEST_DUMPS_CORE";
    if std::env::var(DUMPS).is_ok() {
        for _ in 0..3 {
            std::thread::spawn(|| {
                loop {
                    std::thread::park();
                }
            });
        }
        std::process::abort();
    }
    let pattern = std::fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap_or_default();
    let elsewhere = pattern.starts_with(['|', '/', '@']).then(|| format!("core dumps go to {pattern}"));
    if !ready() || !require(elsewhere.or_else(|| require::programs(&["sh"]))) || !is_inside(TEST) {
        return;
    }
    let host = live();
    let mut kernel = Kernel::start(&host, &early());
    let mut mount = FrozenMount::new();
    let mut dumps = std::process::Command::new("sh")
        .args(["-c", "ulimit -c unlimited; cd \"$0\" && exec \"$@\""])
        .arg(mount.at())
        .arg(std::env::current_exe().expect("a test has a path"))
        .args(["--exact", TEST])
        .env(DUMPS, "1")
        .spawn()
        .expect("sh is there");
    let pid = dumps.id();
    let ours = |event: &&Event| event.pid == Some(pid);
    let told = |events: &[Event]| events.iter().filter(ours).count();
    let mut events = take_until(&mut kernel, &host, Duration::from_secs(30), |events| told(events) > 0);
    let later = Instant::now();
    events
        .extend(take_until(&mut kernel, &host, Duration::from_secs(20), |_| later.elapsed() > Duration::from_secs(4)));
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).expect("it dumps").flatten();
    let tids: Vec<u32> = threads.filter_map(|thread| thread.file_name().to_str()?.parse().ok()).collect();
    let state = |tid: u32| {
        let stat = std::fs::read_to_string(format!("/proc/{tid}/stat")).ok()?;
        stat.rsplit_once(") ")?.1.chars().next()
    };
    eprintln!("{:?}", tids.iter().map(|tid| (*tid, state(*tid))).collect::<Vec<_>>());
    mount.thaw();
    let status = dumps.wait().expect("our child");
    assert!(tids.len() >= 4 && told(&events) == 1, "{tids:?}: {status}: {events:#?}");
    let tid = events.iter().find(ours).and_then(|event| event.tid).expect("a hang is a thread's");
    let end = take_until(&mut kernel, &host, Duration::from_secs(10), |events| ended(events, tid) == 1);
    assert_eq!(ended(&end, tid), 1, "{end:#?}");
}

/// Where the kernel's types lie about what the iterator reads, /proc is looked at.
#[test]
fn without_the_iterator_proc_shows_who_hangs() {
    if !ready() || !is_inside("without_the_iterator_proc_shows_who_hangs") {
        return;
    }
    let directory = std::env::temp_dir().join(format!("sysops-lie-hung-{}", std::process::id()));
    std::fs::create_dir_all(directory.join("kernel/btf")).expect("a directory of our own");
    let mut btf = std::fs::read("/sys/kernel/btf/vmlinux").expect("ready() asked for it");
    // To where `start_time` is: no count of switches is as great.
    move_member(&mut btf, "task_struct", "nvcsw", 128);
    std::fs::write(directory.join("kernel/btf/vmlinux"), btf).expect("a file of our own");
    let host = Host { files: Files::new("/proc".into(), directory.clone(), "/".into()), ..live() };
    let mut kernel = Kernel::start(&host, &early());
    std::fs::remove_dir_all(directory).expect("our own directory");
    assert_early(&kernel, "proc", "self-check: nvcsw and nivcsw");
    let mut mount = FrozenMount::new();
    let mut hung = mount.hang();
    let pid = hung.id();
    let start = Instant::now();
    let events = take_until(&mut kernel, &host, Duration::from_secs(30), |events| began(events, pid) > 0);
    eprintln!("told {:?} after the threshold of {EARLY:?}", start.elapsed().saturating_sub(EARLY));
    let event = find(&events, pid, Phase::Began);
    assert_eq!((&event.source, event.comm.as_deref(), event.pid), (&vec![Source::Proc], Some("truncate"), Some(pid)));
    mount.thaw();
    assert!(hung.wait().expect("our child").success());
    let end = take_until(&mut kernel, &host, Duration::from_secs(20), |events| ended(events, pid) == 1);
    assert_eq!((began(&end, pid), ended(&end, pid)), (0, 1), "{end:#?}");
}

/// Thousands of threads, and six hundred tasks that hang at once: a bounded number is told, none twice, and each has its end.
#[test]
fn thousands_of_hangs_are_told_within_bounds() {
    if !ready() || !is_inside("thousands_of_hangs_are_told_within_bounds") {
        return;
    }
    let host = live();
    let mut kernel = Kernel::start(&host, &early());
    let mount = SilentMount::new();
    let (stop, hold) = channel::<()>();
    let hold = std::sync::Arc::new(std::sync::Mutex::new(hold));
    // A process of its own, as only a signal that kills ends such a sleep.
    let mut sleepers = std::process::Command::new("sh")
        .args([
            "-c",
            "i=0; while [ $i -lt 600 ]; do : < \"$0/$i\" & i=$((i+1)); done; wait",
            &mount.at().display().to_string(),
        ])
        .spawn()
        .expect("sh is there");
    let idle: Vec<_> = (0..4000)
        .map(|_| {
            let hold = std::sync::Arc::clone(&hold);
            std::thread::Builder::new()
                .stack_size(16 << 10)
                .spawn(move || drop(hold.lock().map(|hold| hold.recv())))
                .expect("a thread")
        })
        .collect();
    let mine = |event: &&Event| event.pid.is_some_and(|pid| parent_of(pid) == Some(sleepers.id()));
    let told = |events: &[Event]| events.iter().filter(mine).count();
    let mut events = take_until(&mut kernel, &host, Duration::from_secs(30), |events| told(events) >= 500);
    let more = Instant::now();
    events.extend(take_until(&mut kernel, &host, Duration::from_secs(30), |_| more.elapsed() > Duration::from_secs(3)));
    let mut pids: Vec<_> = events.iter().filter(mine).filter_map(|event| event.pid).collect();
    assert!((500..=512).contains(&pids.len()), "{}", pids.len());
    pids.sort_unstable();
    pids.dedup();
    assert_eq!(pids.len(), told(&events), "none twice");
    for pid in children(sleepers.id()) {
        let pid = rustix::process::Pid::from_raw(pid.try_into().expect("a pid")).expect("not 0");
        // It may be gone.
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
    let over = |events: &[Event]| {
        events.iter().filter(|event| event.is_end() && event.pid.is_some_and(|pid| pids.contains(&pid))).count()
    };
    let end = take_until(&mut kernel, &host, Duration::from_secs(30), |events| over(events) >= pids.len());
    assert_eq!(over(&end), pids.len());
    let _ = sleepers.wait();
    drop(stop);
    for thread in idle {
        thread.join().expect("it does not panic");
    }
}

/// What these tests need is there.
fn ready() -> bool {
    require(
        FrozenMount::missing()
            .or_else(SilentMount::missing)
            .or_else(|| require::programs(&["unshare"]))
            .or_else(|| require::files(&["/sys/kernel/btf/vmlinux"])),
    )
}

fn live() -> Host {
    Host::live(&sysops_agent::host::Roots::default())
}

/// A thread of this process that writes when it is asked to.
struct Writer {
    tid: u32,
    ask: Option<Sender<()>>,
    done: Receiver<()>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    fn start(mut file: File) -> Self {
        let ((ask, asked), (say, done), (send, tid)) = (channel(), channel(), channel());
        let hostile = std::thread::Builder::new().name(HOSTILE.to_owned());
        let thread = hostile.spawn(move || {
            send.send(own_tid()).expect("it is waited for");
            while asked.recv().is_ok() {
                file.write_all(b"x").and_then(|()| file.write_at(b"y", 0)).expect("room for two bytes");
                say.send(()).expect("it is waited for");
            }
        });
        let thread = Some(thread.expect("a thread"));
        Self { tid: tid.recv().expect("it runs"), ask: Some(ask), done, thread }
    }

    fn write(&self) {
        self.ask.as_ref().expect("until the end").send(()).expect("it runs");
    }

    fn wait(&self) {
        self.done.recv_timeout(Duration::from_secs(20)).expect("the file system is thawed");
    }
}

impl Drop for Writer {
    /// Its file is closed, so that the file system can be unmounted. Where the test has failed the thread may hang.
    fn drop(&mut self) {
        self.ask = None;
        if let Some(thread) = self.thread.take().filter(|_| !std::thread::panicking()) {
            thread.join().expect("it does not panic");
        }
    }
}

fn own_tid() -> u32 {
    rustix::thread::gettid().as_raw_nonzero().get().unsigned_abs()
}

fn parent_of(pid: u32) -> Option<u32> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("PPid:"))?.trim().parse().ok()
}

fn children(pid: u32) -> Vec<u32> {
    let list = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

fn forced(rung: &str) -> Values {
    let mut values = Values::default();
    values.set(key("kernel.hung_task.rung"), Value::Text(rung.to_owned()));
    values
}

fn early() -> Values {
    let mut values = Values::default();
    let seconds = i64::try_from(EARLY.as_secs()).expect("small");
    values.set(key("kernel.hung_task.early_secs"), Value::Int(seconds));
    values
}

fn standing(kernel: &Kernel) -> Standing {
    kernel.standings().into_iter().find(|standing| standing.name == "hung_task").expect("in the list")
}

/// The early tier stands by these means, and says why not by better ones.
fn assert_early(kernel: &Kernel, means: &str, reason: &str) {
    let extras = standing(kernel).extras;
    let early = extras.iter().find(|extra| extra.name == "early").unwrap_or_else(|| panic!("{extras:?}"));
    assert!(early.means == means && early.reason.contains(reason), "{early:?}");
}

/// The metric of that name about the thread.
fn blocked_seconds(kernel: &mut Kernel, host: &Host, tid: u32) -> Option<f64> {
    let mut batch = Batch::default();
    kernel.collect(host, &mut batch);
    let tid = tid.to_string();
    let mut series = batch.iter().filter(|(entry, _)| entry.metric.name == "hung_task_blocked_seconds");
    series.find(|(_, key)| label_values(key).nth(1) == Some(&tid)).and_then(|(entry, _)| match entry.reading {
        Reading::Gauge(seconds) => Some(seconds),
        _ => None,
    })
}

fn hang(event: &Event) -> &HungTask {
    event.hang().unwrap_or_else(|| panic!("{event:#?}"))
}

fn is_about(event: &Event, tid: u32, phase: Phase) -> bool {
    event.tid == Some(tid) && event.hang().is_some_and(|hang| hang.phase == phase)
}

fn began(events: &[Event], tid: u32) -> usize {
    events.iter().filter(|event| is_about(event, tid, Phase::Began)).count()
}

fn ended(events: &[Event], tid: u32) -> usize {
    events.iter().filter(|event| is_about(event, tid, Phase::Ended)).count()
}

fn find(events: &[Event], tid: u32, phase: Phase) -> &Event {
    events
        .iter()
        .find(|event| is_about(event, tid, phase))
        .unwrap_or_else(|| panic!("no {phase:?} of {tid}: {events:#?}"))
}

fn hold_against(event: &Event, pid: u32, cgroup: &str, rung: Rung) {
    let shown = serde_json::to_string(event).expect("an event is JSON");
    eprintln!("{shown}");
    let hung = hang(event);
    assert_eq!(event.source, rung.source().into_iter().collect::<Vec<_>>());
    assert_eq!((event.pid, event.comm.as_deref(), event.uid), (Some(pid), Some("truncate"), Some(0)), "{shown}");
    let path = event.cgroup.as_ref().expect("on every rung");
    assert!(cgroup.lines().any(|line| line.ends_with(&format!(":{path}"))), "{shown}\n{cgroup}");
    assert!(hung.blocked_seconds.is_some_and(|seconds| (1..20).contains(&seconds)), "{shown}");
    assert!(hung.wchan.is_some() || !hung.kernel_stack.is_empty(), "{shown}");
    assert_eq!((hung.tier, hung.phase), (Some(Tier::Kernel), Phase::Began), "{shown}");
}
