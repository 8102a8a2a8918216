//! Requests of a disk of the test's own: what the probe measured is what /proc/diskstats counted, on every rung.
#![expect(clippy::disallowed_methods, clippy::panic, reason = "a test reads files and fails as it likes")]

use std::path::PathBuf;
use std::time::{Duration, Instant};

use sysops_agent::host::{Host, Roots, files::Files, os};
use sysops_agent::kernel::Rung;
use sysops_agent::model::{Detail, Event};
use sysops_agent::spec::{Value, Values};
use sysops_tests::events::take_until;
use sysops_tests::falsified_btf::move_member;
use sysops_tests::frozen_mount::FrozenMount;
use sysops_tests::loop_device::{Completed, LoopDevice};
use sysops_tests::measured::{counts, settle, stands, stands_with};
use sysops_tests::one_probe::{OneProbe, has_tracefs, key};
use sysops_tests::require::require;
use sysops_tests::schema::hold;
use sysops_tests::unified_cgroup::UnifiedCgroup;

const OPERATIONS: [&str; 5] = ["read", "write", "discard", "flush", "other"];

#[test]
fn every_request_is_measured_on_tp_btf() {
    on_rung("tp_btf");
}

#[test]
fn every_request_is_measured_on_raw_tracepoint() {
    on_rung("raw_tracepoint");
}

#[test]
fn every_request_is_measured_on_tracepoint() {
    if require(LoopDevice::missing()) && has_tracefs("every_request_is_measured_on_tracepoint") {
        on_rung("tracepoint");
    }
}

/// Several hundred requests of each kind; in the last turn the kernel keeps no count of its own.
fn on_rung(rung: &str) {
    let Some((host, mut probe)) = stands(rung) else { return };
    let start = host.clock.now();
    let disk = LoopDevice::new(&format!("io-{rung}"));
    in_a_quiet_turn(|| {
        // What udev may still read of a new disk is over when two looks are the same.
        settle(&host, &mut probe, disk.name());
        let (kernel_before, before) = (disk.completed(), counts(&probe, disk.name()));
        assert!(disk.transfer(true, 4096, 0, 300) && disk.transfer(false, 8192, 0, 200) && disk.discard(1 << 20));
        settle(&host, &mut probe, disk.name());
        let kernel = disk.completed().since(&kernel_before);
        assert!(kernel.reads >= 200 && kernel.writes >= 300 && kernel.discards >= 1, "{kernel:?}");
        (counts(&probe, disk.name()).since(&before), kernel)
    });
    plausible(&probe, disk.name(), host.clock.now().since(&start));

    // What only flushes has no place on the disk. The kernel counts it as a write, too, which is none to the driver.
    in_a_quiet_turn(|| {
        let (kernel_before, before) = (disk.completed(), counts(&probe, disk.name()));
        (0..50).for_each(|_| disk.flush());
        settle(&host, &mut probe, disk.name());
        let (kernel, measured) = (disk.completed().since(&kernel_before), counts(&probe, disk.name()).since(&before));
        assert!(kernel.flushes >= 50, "{kernel:?}");
        (measured, Completed { flushes: kernel.flushes, ..measured })
    });

    disk.set("iostats", "0");
    in_a_quiet_turn(|| {
        let before = counts(&probe, disk.name());
        assert!(disk.transfer(true, 4096, 0, 250));
        settle(&host, &mut probe, disk.name());
        let measured = counts(&probe, disk.name()).since(&before);
        (measured, Completed { writes: 250, ..measured })
    });
    assert_eq!(probe.standing().rung.word(), rung);
}

/// A kernel may not run the program at one completion in some tens of thousands (docs/KERNEL-COUNTERS.md). So of some turns one
/// must measure all that there was, and the others nearly all.
fn in_a_quiet_turn(mut turn: impl FnMut() -> (Completed, Completed)) {
    let mut last = None;
    for _ in 0..4 {
        let (measured, kernel) = turn();
        if measured == kernel {
            return;
        }
        let sum = |of: Completed| of.reads + of.writes + of.discards + of.flushes;
        assert!((1..=5).contains(&sum(kernel).saturating_sub(sum(measured))), "{measured:?} of {kernel:?}");
        last = Some((measured, kernel));
    }
    panic!("in no turn all was measured: {last:?}");
}

#[test]
fn a_request_that_ends_in_parts_is_one_request() {
    in_parts("tp_btf");
    in_parts("raw_tracepoint");
}

#[test]
fn a_request_that_ends_in_parts_is_one_request_on_tracepoint() {
    if require(LoopDevice::missing()) && has_tracefs("a_request_that_ends_in_parts_is_one_request_on_tracepoint") {
        in_parts("tracepoint");
    }
}

/// Reads across the end of the file below the disk: the driver completes the part that is there, gives the request
/// back, and fails the rest. That is one request, requeued once, with an error.
fn in_parts(rung: &str) {
    const REQUESTS: u32 = 20;
    let Some((host, mut probe)) = stands(rung) else { return };
    let disk = LoopDevice::new(&format!("parts-{rung}"));
    settle(&host, &mut probe, disk.name());
    let (kernel_before, before) = (disk.completed(), counts(&probe, disk.name()));
    disk.cut((1 << 20) + 4096);
    let ends_well = (0..REQUESTS).filter(|_| disk.transfer(false, 65536, 16, 1)).count();
    if ends_well == REQUESTS as usize {
        // So it does on 5.10 over a file system without direct I/O.
        let _ = require(Some("the loop driver fills what lies behind the end of its file with zeros".to_owned()));
        return;
    }
    assert_eq!(ends_well, 0, "the rest is beyond the end of the file");
    settle(&host, &mut probe, disk.name());
    let kernel = disk.completed().since(&kernel_before);
    assert_eq!(counts(&probe, disk.name()).since(&before), kernel, "{:?}", probe.standing());
    assert_eq!(probe.number("block_io_errors_total", &[disk.name(), "read"]), Some(u64::from(REQUESTS)));
    for metric in ["block_io_requeues_total", "block_io_partial_completions_total"] {
        assert_eq!(probe.number(metric, &[disk.name()]), Some(u64::from(REQUESTS)), "{metric}");
    }
    assert_eq!(probe.number("block_io_failures_total", &[disk.name(), "io"]), Some(u64::from(REQUESTS)));
}

/// A hundred thousand reads, 32 at a time, with two agents that look on: both count what the kernel counts, and no
/// quantile is outside of what was measured.
#[test]
fn nothing_is_lost_at_depth_32_with_two_agents() {
    if !require(sysops_tests::require::programs(&["fio"])) {
        return;
    }
    let Some((host, mut one)) = stands("tp_btf") else { return };
    let Some((_, mut other)) = stands("raw_tracepoint") else { return };
    let disk = LoopDevice::new("depth");
    // Where others attach to the same tracepoint at that very moment the kernel may pass over a completion. Then it is
    // counted as dropped when the request is used again, and another turn is to be without.
    let exact = (0..8).any(|_| {
        settle(&host, &mut one, disk.name());
        settle(&host, &mut other, disk.name());
        let (kernel, before) = (disk.completed(), [&one, &other].map(|probe| counts(probe, disk.name())));
        let dropped = [&one, &other].map(|probe| probe.standing().dropped);
        assert!(disk.read_at_random(100_000, 32));
        for probe in [&mut one, &mut other] {
            // Of the cycle in which they were read.
            probe.collect(&host);
            let share = |share: &str| probe.float("block_io_quantile_seconds", &[disk.name(), "read", "total", share]);
            let [half, most, all] = ["0.5", "0.9", "0.99"].map(|word| share(word).expect("there were reads"));
            assert!(0.0 < half && half <= most && most <= all && all < 60.0, "{half} {most} {all}");
        }
        settle(&host, &mut one, disk.name());
        settle(&host, &mut other, disk.name());
        let kernel = disk.completed().since(&kernel).reads;
        assert!(kernel >= 100_000, "{kernel}");
        [&one, &other].into_iter().zip(before).zip(dropped).fold(true, |exact, ((probe, before), dropped)| {
            let measured = counts(probe, disk.name()).since(&before).reads;
            // In flight at the end of a loss are 32 at the most, and shown by the next use alone.
            let dropped = probe.standing().dropped - dropped + 32;
            assert!(measured <= kernel && measured + dropped >= kernel, "{measured} and {dropped} of {kernel}");
            let gone = probe.float("block_io_quantile_seconds", &[disk.name(), "read", "total", "0.99"]);
            assert_eq!(gone, None, "there were no reads since the last look");
            exact && measured == kernel
        })
    });
    assert!(exact, "in no turn did both count what the kernel counted: {:?} {:?}", one.standing(), other.standing());
}

#[test]
fn what_waits_in_a_queue_is_told_apart() {
    for rung in ["tp_btf", "raw_tracepoint"] {
        waits(rung);
    }
}

#[test]
fn what_waits_in_a_queue_is_told_apart_on_tracepoint() {
    if require(LoopDevice::missing()) && has_tracefs("what_waits_in_a_queue_is_told_apart_on_tracepoint") {
        waits("tracepoint");
    }
}

/// Without a scheduler a request of its own may go to the driver at once; with one each goes through its queue.
fn waits(rung: &str) {
    let Some((host, mut probe)) = stands(rung) else { return };
    let disk = LoopDevice::new(&format!("queue-{rung}"));
    let queue = |probe: &OneProbe| probe.histogram("block_io_queue_seconds", &[disk.name(), "write"]);
    assert!(disk.transfer(true, 4096, 0, 100));
    settle(&host, &mut probe, disk.name());
    let (buckets, sum) = queue(&probe).expect("there were writes");
    // 5.10 puts a request into the queue of its CPU first; later kernels issue it at once.
    assert_eq!(buckets.iter().sum::<u64>(), 100);
    assert!(sum > 0.0 || buckets[0] == 100, "{sum} s in the queue: {buckets:?}");
    let at_once = sum;
    disk.set("scheduler", "mq-deadline");
    assert!(disk.transfer(true, 4096, 0, 100));
    settle(&host, &mut probe, disk.name());
    let (buckets, sum) = queue(&probe).expect("there were writes");
    assert_eq!(buckets.iter().sum::<u64>(), 200);
    assert!(sum > at_once && sum < 10.0, "{sum} s in the queue, {at_once} without a scheduler");
}

/// Writes to a disk whose file lies on a frozen file system.
#[test]
fn a_slow_request_is_told_with_who_asked() {
    let missing = LoopDevice::missing().or_else(FrozenMount::missing);
    if require(missing) && has_tracefs("a_slow_request_is_told_with_who_asked") {
        for rung in ["tp_btf", "raw_tracepoint", "tracepoint"] {
            slow(rung);
        }
    }
}

fn slow(rung: &str) {
    const WRITES: u32 = 30;
    const FROZEN: Duration = Duration::from_millis(300);
    let mut values = Values::default();
    values.set(key("kernel.block_io.slow_ms"), Value::Int(200));
    let Some((host, mut probe)) = stands_with(rung, values) else { return };
    let mut below = FrozenMount::thawed("96M");
    let disk = LoopDevice::over(below.at().join("disk.img"));
    settle(&host, &mut probe, disk.name());

    below.freeze();
    let dropped = probe.standing().dropped;
    let mut write = disk.start_write(5);
    std::thread::sleep(FROZEN);
    below.thaw();
    assert!(write.wait().expect("our child").success());
    let is_ours =
        |event: &Event| matches!(&event.detail, Detail::SlowIo(io) if io.device.as_deref() == Some(disk.name()));
    let ours = |events: &[Event]| events.iter().filter(|event| is_ours(event)).count();
    let events = take_until(probe.source(), &host, Duration::from_secs(10), |events| ours(events) > 0);
    let event = events.iter().find(|event| is_ours(event)).expect("it took 300 ms");
    assert_eq!((event.pid, event.comm.as_deref(), event.kind()), (Some(write.id()), Some("dd"), "slow_io"));
    let Detail::SlowIo(io) = &event.detail else { panic!("{event:?}") };
    assert_eq!((io.operation.as_deref(), io.sector, io.bytes), (Some("write"), Some(40), Some(4096)), "{io:?}");
    assert!(io.device_seconds > 0.2 && io.queue_seconds < 0.1 && io.status.is_none(), "{io:?}");
    hold("event", &serde_json::to_value(event).expect("it is written to JSON"));

    // More at once than are told in one second: all are counted.
    below.freeze();
    let writes: Vec<_> = (0..WRITES).map(|place| disk.start_write(place * 100)).collect();
    // Until all wait, which on an emulated processor takes its time.
    let waiting = || {
        let inflight = std::fs::read_to_string(format!("/sys/block/{}/inflight", disk.name())).expect("it is there");
        inflight.split_whitespace().nth(1).and_then(|writes| writes.parse::<u32>().ok()).expect("two numbers")
    };
    let deadline = Instant::now() + Duration::from_secs(30);
    while waiting() < WRITES && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(20));
    }
    std::thread::sleep(FROZEN);
    below.thaw();
    for mut write in writes {
        assert!(write.wait().expect("our child").success());
    }
    settle(&host, &mut probe, disk.name());
    let told = take_until(probe.source(), &host, Duration::ZERO, |_| true);
    let slow = probe.number("block_io_slow_total", &[disk.name(), "write"]).expect("there were writes");
    // Since 7.x one completion may take the CPU from another one within a program, whose own run is then skipped and counted.
    let dropped = probe.standing().dropped - dropped;
    assert!(slow + dropped.min(3) > u64::from(WRITES), "{rung}: {slow} {dropped}");
    let untold = probe.number("block_io_slow_untold_total", &[]).expect("it is always there");
    // Others may be slow just now, too; so told and untold are at least ours.
    assert!(untold > 0 && events.len() as u64 + told.len() as u64 + untold >= slow, "{untold} {}", told.len());
    assert!(told.len() <= 2 * 12, "{} in two windows at the most", told.len());
}

/// With room for one request in each map, and 32 at a time.
#[test]
fn what_does_not_fit_is_counted() {
    if !require(sysops_tests::require::programs(&["fio"])) || !require(LoopDevice::missing()) {
        return;
    }
    let host = Host::live(&Roots::default());
    let mut values = Values::default();
    values.set(key("kernel.block_io.requests"), Value::Int(1));
    let mut probe = OneProbe::start(&host, "block_io", "tp_btf", values);
    if probe.standing().rung == Rung::Off {
        let _ = require(Some(probe.standing().reason));
        return;
    }
    let disk = LoopDevice::new("full");
    // Each request waits and is issued: there is no room for it twice, and it is counted once.
    disk.set("scheduler", "mq-deadline");
    settle(&host, &mut probe, disk.name());
    // What others' disks do meanwhile does not fit either. And on a slow processor the device may be done with each request
    // before the next comes, and then there is room for all.
    let mut turns = Vec::new();
    let is_exact = (0..20).any(|_| {
        settle(&host, &mut probe, disk.name());
        let (kernel, before) = (disk.completed(), counts(&probe, disk.name()));
        let (dropped, elsewhere) = (probe.standing().dropped, completed_elsewhere(disk.name()));
        assert!(disk.read_at_random(5000, 32));
        settle(&host, &mut probe, disk.name());
        let kernel = disk.completed().since(&kernel).reads;
        let measured = counts(&probe, disk.name()).since(&before).reads;
        let dropped = probe.standing().dropped - dropped;
        let is_alone = completed_elsewhere(disk.name()) == elsewhere;
        turns.push((measured, dropped, kernel, is_alone));
        assert!(measured + dropped >= kernel, "measured, dropped, all: {turns:?}");
        is_alone && dropped > 0 && measured + dropped == kernel
    });
    assert!(is_exact, "measured, dropped, all, and whether it was alone: {turns:?}");
    assert_eq!(probe.standing().rung, Rung::TpBtf);
}

/// What the kernel counted of all disks but this one.
fn completed_elsewhere(disk: &str) -> Vec<String> {
    let text = std::fs::read_to_string("/proc/diskstats").expect("require() was asked");
    let others = text.lines().filter(|line| line.split_whitespace().nth(2) != Some(disk));
    others.map(str::to_owned).collect()
}

/// Bytes by cgroup: those of a process in a cgroup of its own are its own, and stay counted when the cgroup is gone.
#[test]
fn bytes_are_told_apart_by_cgroup() {
    if !require(UnifiedCgroup::missing().or_else(LoopDevice::missing)) {
        return;
    }
    let host = Host::live(&Roots::default());
    let mut values = Values::default();
    values.set(key("kernel.block_io.cgroups"), Value::Int(200));
    let mut probe = OneProbe::start(&host, "block_io", "tp_btf", values);
    if probe.standing().rung == Rung::Off {
        let _ = require(Some(probe.standing().reason));
        return;
    }
    let disk = LoopDevice::new("cgroup");
    let cgroup = UnifiedCgroup::new("io");
    let path = cgroup.path.clone();
    let of = |probe: &OneProbe, cgroup: &str| probe.number("block_io_cgroup_bytes_total", &[cgroup, "write"]);
    // What is measured of the disk is the measure here: whether all is measured, other tests ask.
    let measured = |probe: &OneProbe| counts(probe, disk.name()).writes * 65536;
    // The largest gets its label first; what it did before stays with the others.
    cgroup.write(disk.path(), 400);
    let start = host.clock.now();
    while of(&probe, &path).is_none() {
        probe.collect(&host);
        assert!(host.clock.now().since(&start) < Duration::from_secs(10), "it has no label");
    }
    assert_eq!(of(&probe, &path), Some(0));
    let before = measured(&probe);
    assert!(before >= 390 * 65536, "{before}");
    cgroup.write(disk.path(), 100);
    probe.collect(&host);
    let its = measured(&probe) - before;
    assert!(its >= 90 * 65536, "{its}");
    assert_eq!(of(&probe, &path), Some(its));
    let other = of(&probe, "other").expect("it is always there");
    assert!(other >= before, "{other}");
    drop(cgroup);
    let start = host.clock.now();
    while of(&probe, &path).is_some() {
        probe.collect(&host);
        assert!(host.clock.now().since(&start) < Duration::from_secs(10), "its label is not free");
    }
    assert!(of(&probe, "other").is_some_and(|after| after >= other + its), "nothing is lost");
}

/// The machine with a /proc/diskstats of the test's own.
struct OwnDiskstats {
    directory: PathBuf,
    host: Host,
}

impl OwnDiskstats {
    fn new(live: &Host) -> Self {
        let directory = scratch("diskstats");
        for name in ["self", "thread-self"] {
            std::os::unix::fs::symlink(format!("/proc/{name}"), directory.join(name)).expect("our own directory");
        }
        let files = Files::new(directory.clone(), "/sys".into(), "/".into());
        let own = Self { directory, host: Host { files, ..live.clone() } };
        own.leave_out("no disk");
        own
    }

    fn leave_out(&self, disk: &str) {
        let text = std::fs::read_to_string("/proc/diskstats").expect("require() was asked");
        let kept: Vec<&str> = text.lines().filter(|line| line.split_whitespace().nth(2) != Some(disk)).collect();
        std::fs::write(self.directory.join("diskstats"), kept.join("\n")).expect("a file of our own");
    }
}

impl Drop for OwnDiskstats {
    fn drop(&mut self) {
        // Left behind, it is a directory among temporary ones.
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

#[test]
fn a_disk_that_is_gone_has_no_series_and_begins_anew() {
    let Some((live, probe)) = stands("auto") else { return };
    drop(probe);
    let disk = LoopDevice::new("gone");
    let own = OwnDiskstats::new(&live);
    let mut probe = OneProbe::start(&own.host, "block_io", "auto", Values::default());
    assert!(disk.transfer(true, 4096, 0, 10));
    settle(&own.host, &mut probe, disk.name());
    assert_eq!(counts(&probe, disk.name()).writes, 10);
    own.leave_out(disk.name());
    settle(&own.host, &mut probe, disk.name());
    assert_eq!(probe.histogram("block_io_latency_seconds", &[disk.name(), "write"]), None);
    assert_eq!(probe.number("block_io_requeues_total", &[disk.name()]), None);
    own.leave_out("no disk");
    assert!(disk.transfer(true, 4096, 0, 3));
    settle(&own.host, &mut probe, disk.name());
    assert_eq!(counts(&probe, disk.name()).writes, 3, "what was before belongs to a disk that is gone");
}

/// A disk goes while its driver still has a request of it: that is taken out of the map and counted, and what then
/// completes after all is not.
#[test]
fn what_a_disk_left_behind_is_not_waited_for() {
    const NAME: &str = "what_a_disk_left_behind_is_not_waited_for";
    if !require(LoopDevice::missing().or_else(FrozenMount::missing)) || !has_tracefs(NAME) {
        return;
    }
    let Some((live, probe)) = stands("auto") else { return };
    drop(probe);
    let mut below = FrozenMount::thawed("96M");
    let disk = LoopDevice::over(below.at().join("disk.img"));
    let own = OwnDiskstats::new(&live);
    let mut probe = OneProbe::start(&own.host, "block_io", "auto", Values::default());
    settle(&own.host, &mut probe, disk.name());
    below.freeze();
    let mut write = disk.start_write(1);
    let start = live.clock.now();
    let in_flight = || std::fs::read_to_string(format!("/sys/block/{}/inflight", disk.name())).expect("it is there");
    while in_flight().split_whitespace().all(|count| count == "0") {
        assert!(live.clock.now().since(&start) < Duration::from_secs(10), "dd does not write");
        std::thread::sleep(Duration::from_millis(10));
    }
    let dropped = probe.standing().dropped;
    own.leave_out(disk.name());
    probe.collect(&own.host);
    assert!(probe.standing().dropped > dropped, "{:?}", probe.standing());
    below.thaw();
    assert!(write.wait().expect("our child").success());
    own.leave_out("no disk");
    settle(&own.host, &mut probe, disk.name());
    assert_eq!(counts(&probe, disk.name()).writes, 0, "it belongs to a disk that was gone");
}

#[test]
fn a_steady_cycle_takes_no_memory() {
    let Some((host, mut probe)) = stands("auto") else { return };
    let disk = LoopDevice::new("steady");
    assert!(disk.transfer(true, 4096, 0, 10));
    settle(&host, &mut probe, disk.name());
    let taken = allocation_counter::measure(|| probe.collect(&host));
    assert!(counts(&probe, disk.name()).writes >= 10);
    assert_eq!(taken.count_total, 0, "{taken:?}");
}

/// A BTF in which a member is not where the kernel has it: the probe stands, but as soon as there are requests it is
/// seen, and the probe leaves the rungs that read the kernel by its types.
#[test]
fn a_wrong_offset_shows_with_the_first_requests() {
    let Some((live, probe)) = stands("auto") else { return };
    if probe.standing().rung != Rung::TpBtf {
        return;
    }
    drop(probe);
    // To where the name begins, to the middle of the name, to the sector; to other flags, to the length.
    for (structure, member, bits, rung) in [
        ("gendisk", "first_minor", 64, "auto"),
        ("gendisk", "disk_name", 32, "auto"),
        ("request", "__data_len", 32, "auto"),
        ("request", "cmd_flags", 32, "auto"),
        ("request", "__sector", -64, "auto"),
        // The verifier refuses what reads bios, and the probe stands without.
        ("bvec_iter", "bi_sector", 64, "raw_tracepoint"),
        ("bio", "bi_opf", 32, "raw_tracepoint"),
        // Where it is read untyped a helper tells who asks.
        ("task_struct", "pid", 64, "auto"),
    ] {
        // Before, a program cannot have the task with its type.
        if structure == "task_struct" && os::kernel_version().is_none_or(|version| version < (5, 11)) {
            continue;
        }
        let directory = scratch(&format!("lie-{member}"));
        std::fs::create_dir_all(directory.join("kernel/btf")).expect("a directory of our own");
        let mut btf = std::fs::read("/sys/kernel/btf/vmlinux").expect("the probe stood on it");
        move_member(&mut btf, structure, member, bits);
        std::fs::write(directory.join("kernel/btf/vmlinux"), btf).expect("a file of our own");
        let host = Host { files: Files::new("/proc".into(), directory.clone(), "/".into()), ..live.clone() };
        let mut probe = OneProbe::start(&host, "block_io", rung, Values::default());
        // Nothing shows before the first request, but where the verifier itself holds loads against the types.
        assert!(matches!(probe.standing().rung, Rung::TpBtf | Rung::RawTracepoint), "{:?}", probe.standing());
        let disk = LoopDevice::new(&format!("lie-{member}"));
        for _ in 0..16 {
            assert!(disk.transfer(true, 4096, 0, 100));
            probe.collect(&host);
        }
        let standing = probe.standing();
        let left = if structure == "task_struct" { Rung::RawTracepoint } else { Rung::Off };
        assert_eq!(standing.rung, left, "{member}: {standing:?}");
        assert!(standing.reason.contains("self-check:"), "{standing:?}");
        if rung == "auto" {
            assert!(standing.reason.starts_with("tp_btf"), "{standing:?}");
            assert_eq!(standing.reason.contains("raw_tracepoint"), left == Rung::Off, "{standing:?}");
        }
        assert_eq!(standing.forced_and_failed, rung != "auto", "{standing:?}");
        assert!(standing.remedy.contains("report it"), "{standing:?}");
        std::fs::remove_dir_all(directory).expect("our own directory");
    }
}

fn scratch(name: &str) -> PathBuf {
    let directory = std::env::temp_dir().join(format!("sysops-{name}-{}", std::process::id()));
    std::fs::create_dir_all(&directory).expect("a directory of our own");
    directory
}

/// The requests came one after the other, so that all together took no longer than the clock on the wall; and the sum
/// lies within the bounds of the buckets.
fn plausible(probe: &OneProbe, device: &str, wall: Duration) {
    let mut total = 0.0;
    for operation in OPERATIONS {
        let Some((buckets, sum)) = probe.histogram("block_io_latency_seconds", &[device, operation]) else { continue };
        let bound = |place: usize| 1e-6 * (1_u64 << place) as f64;
        let (mut least, mut most) = (0.0, 0.0);
        for (place, &count) in buckets.iter().enumerate() {
            least += if place == 0 { 0.0 } else { count as f64 * bound(place - 1) };
            most += count as f64 * bound(place);
        }
        assert!(least <= sum && sum <= most, "{operation}: {least} {sum} {most}");
        total += sum;
    }
    assert!(total > 0.0 && total <= wall.as_secs_f64() + 0.5, "{total} s in {wall:?}");
}
