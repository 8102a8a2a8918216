//! The machine is suspended while the probes and the agent run: the time that it slept is nobody's time. No request was slow
//! and no task hung for it, what was counted is right, and the agent raises no alert.
#![expect(clippy::disallowed_methods, clippy::panic, reason = "a test runs programs and fails by panic")]

use std::fs::File;
use std::io::Write as _;
use std::process::Command;
use std::time::Duration;

use sysops_agent::host::{EventSource as _, Host, Roots};
use sysops_agent::kernel::{Kernel, Rung};
use sysops_agent::model::{Batch, Event, Reading, batch::label_values};
use sysops_agent::spec::{Value, Values};
use sysops_tests::agent::{self, Agent};
use sysops_tests::events::take_until;
use sysops_tests::frozen_mount::Sysctl;
use sysops_tests::loop_device::completed;
use sysops_tests::measured::{counts, settle};
use sysops_tests::nfs_server::NfsMount;
use sysops_tests::one_probe::{OneProbe, key};
use sysops_tests::opener::Opener;
use sysops_tests::require::{self, require};
use sysops_tests::suspended::{self, suspend};

/// For how long it sleeps.
const SECONDS: u32 = 8;

/// A request is on its way while the machine sleeps. Its writer is the kernel, as a task that waits for it could not be frozen.
#[test]
#[ignore = "it suspends the machine; run by vm-test"]
fn a_request_on_its_way_is_not_slow() {
    let disks = ["nr_devices=1", "queue_mode=2", "irqmode=2", "completion_nsec=2000000000"];
    if !require(suspended::missing().or_else(|| require::module_with("null_blk", &disks))) {
        return;
    }
    const DISK: &str = "nullb0";
    let host = Host::live(&Roots::default());
    let mut values = Values::default();
    values.set(key("kernel.block_io.slow_ms"), Value::Int(5000));
    let mut probe = OneProbe::start(&host, "block_io", "auto", values);
    if probe.standing().rung == Rung::Off {
        let _ = require(Some(probe.standing().reason));
        return;
    }
    let _expire = Sysctl::set("vm/dirty_expire_centisecs", "1");
    let _write_back = Sysctl::set("vm/dirty_writeback_centisecs", "1");
    settle(&host, &mut probe, DISK);
    let (kernel, before) = (completed(DISK), counts(&probe, DISK));
    let took =
        |probe: &OneProbe| probe.histogram("block_io_latency_seconds", &[DISK, "write"]).map_or(0.0, |(_, sum)| sum);
    let start = host.clock.now();
    // To close it would be to wait for the disk.
    let mut disk = File::options().write(true).open(format!("/dev/{DISK}")).expect("root may");
    disk.write_all(&[1; 4096]).expect("room");
    let on_its_way = || std::fs::read_to_string(format!("/sys/block/{DISK}/inflight")).expect("it is there");
    while on_its_way().split_whitespace().all(|count| count == "0") {
        assert!(host.clock.now().since(&start) < Duration::from_secs(60), "it is not written back");
        std::thread::sleep(Duration::from_millis(5));
    }
    let slept = suspend(&host, SECONDS);
    while completed(DISK).since(&kernel).writes == 0 {
        std::thread::sleep(Duration::from_millis(20));
    }
    settle(&host, &mut probe, DISK);
    let awake = host.clock.now().since(&start);
    let kernel = completed(DISK).since(&kernel);
    assert_eq!(counts(&probe, DISK).since(&before), kernel, "{:?}", probe.standing());
    assert!(
        took(&probe) <= awake.as_secs_f64() * kernel.writes as f64,
        "{} s, {awake:?} awake, {slept:?} asleep",
        took(&probe)
    );
    let events = take_until(probe.source(), &host, Duration::from_millis(200), |_| false);
    assert!(events.is_empty(), "{events:#?}");
    assert_eq!(probe.number("block_io_slow_total", &[DISK, "write"]), Some(0));
}

/// One waits for a server of NFS for long, and another one for less than the threshold, when the machine goes to sleep: the
/// freezer passes over such tasks.
#[test]
#[ignore = "it suspends the machine; run by vm-test"]
fn who_hangs_goes_on_to_hang_and_nobody_else_does() {
    const EARLY: u64 = 4;
    let missing = suspended::missing().or_else(NfsMount::missing);
    if !require(missing.or_else(|| require::files(&["/sys/kernel/btf/vmlinux"]))) {
        return;
    }
    let host = Host::live(&Roots::default());
    let mut values = Values::default();
    values.set(key("kernel.hung_task.early_secs"), Value::Int(EARLY.cast_signed()));
    let mut kernel = Kernel::start(&host, &values);
    let mount = NfsMount::new();
    mount.answer(false);
    let read = || {
        Command::new("dd").arg(format!("if={}", mount.file().display())).args(["of=/dev/null", "status=none"]).spawn()
    };
    let mut first = read().expect("dd is there");
    let about = |events: &[Event], pid, over| {
        let is_so = |event: &&Event| event.tid == Some(pid) && event.hang().is_some() && event.is_end() == over;
        events.iter().filter(is_so).count()
    };
    let long = Duration::from_secs(30);
    let mut events = take_until(&mut kernel, &host, long, |events| about(events, first.id(), false) > 0);
    let ran = switches(first.id());
    let mut second = read().expect("dd is there");
    let start = host.clock.now();
    let slept = suspend(&host, SECONDS);
    // It wakes, and is looked at at once.
    events.extend(take_until(&mut kernel, &host, long, |events| about(events, second.id(), false) > 0));
    let awake = host.clock.now().since(&start);
    let pids = [first.id(), second.id()];
    eprintln!("{awake:?} awake and {slept:?} asleep: {}", serde_json::to_string(&events).expect("events are JSON"));
    // Some kernels (6.1) wake such a task when they thaw it: it runs, and hangs anew.
    let expected = if switches(first.id()) == ran { (1, 0) } else { (2, 1) };
    if expected == (2, 1) && about(&events, first.id(), false) < 2 {
        events.extend(take_until(&mut kernel, &host, long, |new| about(new, first.id(), false) > 0));
    }
    let told = |pid| (about(&events, pid, false), about(&events, pid, true));
    assert_eq!((told(first.id()), told(second.id())), (expected, (1, 0)), "{events:#?}");
    let told = events.iter().find(|event| event.tid == Some(second.id())).and_then(Event::hang).expect("counted above");
    let blocked = told.blocked_seconds.expect("it was seen to begin");
    assert!(blocked >= EARLY && blocked <= awake.as_secs(), "{blocked} s, {awake:?} awake, {slept:?} asleep");
    let lasts = lasting(&mut kernel, &host, first.id()).expect("it hangs");
    assert!(lasts <= host.clock.now().monotonic.as_secs_f64() && lasts >= EARLY as f64, "{lasts}");
    mount.answer(true);
    assert!(first.wait().expect("our child").success() && second.wait().expect("our child").success());
    let over = |events: &[Event]| pids.iter().all(|pid| about(events, *pid, true) == 1);
    assert!(over(&take_until(&mut kernel, &host, long, over)), "each hang has its end");
}

/// How often it has run.
fn switches(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it hangs");
    let lines = status.lines().filter_map(|line| line.split_once("ctxt_switches:"));
    lines.map(|(_, count)| count.trim().parse::<u64>().expect("a count")).sum()
}

fn lasting(kernel: &mut Kernel, host: &Host, pid: u32) -> Option<f64> {
    let mut batch = Batch::default();
    kernel.collect(host, &mut batch);
    let pid = pid.to_string();
    let mut series = batch.iter().filter(|(entry, _)| entry.metric.name == "hung_task_blocked_seconds");
    series.find(|(_, key)| label_values(key).next() == Some(&pid)).and_then(|(entry, _)| match entry.reading {
        Reading::Gauge(seconds) => Some(seconds),
        _ => None,
    })
}

#[test]
#[ignore = "it suspends the machine; run by vm-test"]
fn descriptors_are_counted_exactly() {
    if !require(suspended::missing()) {
        return;
    }
    let host = Host::live(&Roots::default());
    let mut values = Values::default();
    values.set(key("kernel.fd.watch"), Value::TextList(vec!["sh".to_owned()]));
    let mut probe = OneProbe::start(&host, "fd", "auto", values);
    if probe.standing().rung == Rung::Off {
        let _ = require(Some(probe.standing().reason));
        return;
    }
    let mut opener = Opener::start();
    let pid = opener.pid().to_string();
    let installs = |probe: &OneProbe| probe.number("process_fd_installs_total", &[&pid, "sh"]);
    while installs(&probe).is_none() {
        probe.collect(&host);
    }
    let mut turn = || {
        let before = installs(&probe).expect("it is followed");
        opener.turn();
        probe.collect(&host);
        installs(&probe).expect("it is followed") - before
    };
    let before = turn();
    let _ = suspend(&host, SECONDS);
    let after = turn();
    assert!(before >= 100 && before.abs_diff(after) <= probe.passed_over(), "{before} {after}: {:?}", probe.standing());
}

/// The agent reads each second, and sleeps for longer than its intervals and its deadlines.
#[test]
#[ignore = "it suspends the machine; run by vm-test"]
fn the_agent_raises_no_alert() {
    if !require(suspended::missing().or_else(agent::missing)) {
        return;
    }
    let host = Host::live(&Roots::default());
    let agent = Agent::start(
        "[agent]\ndata_dir = \"@DATA@\"\ncollect_interval_secs = 1\n[collector]\ncpu_interval_secs = 1\nmemory_interval_secs = 1\n\
         disk_interval_secs = 1\nnetwork_interval_secs = 1\nprocess_interval_secs = 1\nagent_interval_secs = 1\n\
         [prometheus]\nenabled = true\nbind = \"127.0.0.1:9111\"\n",
        &[],
    );
    agent.wait_until_ready();
    std::thread::sleep(Duration::from_secs(2));
    let (alerts, said, uptime) = (agent.stdout(), agent.stderr(), uptime());
    let start = host.clock.now();
    let slept = suspend(&host, SECONDS);
    std::thread::sleep(Duration::from_secs(3));
    let awake = host.clock.now().since(&start);
    let more = self::uptime() - uptime;
    assert_eq!(agent.stdout(), alerts, "it says nothing to people");
    let news = agent.stderr().replacen(&said, "", 1);
    assert!(!news.contains("WARN") && !news.contains("ERROR"), "{news}");
    assert!(more > slept.as_secs_f64() && more < (slept + awake).as_secs_f64() + 2.0, "{more}: {slept:?} {awake:?}");
}

/// What the agent says of its own age.
fn uptime() -> f64 {
    let mut connection = std::net::TcpStream::connect("127.0.0.1:9111").expect("the agent listens");
    connection.write_all(b"GET /metrics HTTP/1.0\r\nHost: localhost\r\n\r\n").expect("it takes it");
    let mut text = String::new();
    std::io::Read::read_to_string(&mut connection, &mut text).expect("it answers");
    let line = text.lines().find_map(|line| line.strip_prefix("sysops_agent_uptime_seconds "));
    line.and_then(|value| value.trim().parse().ok()).unwrap_or_else(|| panic!("{text}"))
}
