//! Requests of a disk of the test's own: what the probe measured is what /proc/diskstats counted, on every rung.
#![expect(clippy::disallowed_methods, reason = "a test reads files as it likes")]

use std::path::PathBuf;
use std::time::Duration;

use sysops_agent::host::{Host, Roots, files::Files};
use sysops_agent::kernel::Rung;
use sysops_agent::spec::Values;
use sysops_tests::falsified_btf::move_member;
use sysops_tests::loop_device::{Completed, LoopDevice};
use sysops_tests::one_probe::{OneProbe, has_tracefs};
use sysops_tests::require::require;

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
    let disk = LoopDevice::new(&format!("io-{rung}"));
    // What udev may still read of a new disk is over when two looks are the same.
    settle(&host, &mut probe, &disk);
    let (kernel_before, before) = (disk.completed(), counts(&probe, disk.name()));
    let start = host.clock.now();
    assert!(disk.transfer(true, 4096, 0, 300) && disk.transfer(false, 8192, 0, 200) && disk.discard(1 << 20));
    settle(&host, &mut probe, &disk);
    let wall = host.clock.now().since(&start);
    let kernel = disk.completed().since(&kernel_before);
    assert!(kernel.reads >= 200 && kernel.writes >= 300 && kernel.discards >= 1, "{kernel:?}");
    assert_eq!(counts(&probe, disk.name()).since(&before), kernel, "{:?}", probe.standing());
    plausible(&probe, disk.name(), wall);

    disk.set("iostats", "0");
    let before = counts(&probe, disk.name());
    assert!(disk.transfer(true, 4096, 0, 250));
    settle(&host, &mut probe, &disk);
    assert_eq!(counts(&probe, disk.name()).since(&before).writes, 250, "with iostats=0");
    let standing = probe.standing();
    assert_eq!((standing.rung.word(), standing.dropped), (rung, 0), "{standing:?}");
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
    settle(&host, &mut probe, &disk);
    let (kernel_before, before) = (disk.completed(), counts(&probe, disk.name()));
    disk.cut((1 << 20) + 4096);
    let ends_well = (0..REQUESTS).filter(|_| disk.transfer(false, 65536, 16, 1)).count();
    if ends_well == REQUESTS as usize {
        // So it does on 5.10 over a file system without direct I/O.
        let _ = require(Some("the loop driver fills what lies behind the end of its file with zeros".to_owned()));
        return;
    }
    assert_eq!(ends_well, 0, "the rest is beyond the end of the file");
    settle(&host, &mut probe, &disk);
    let kernel = disk.completed().since(&kernel_before);
    assert_eq!(counts(&probe, disk.name()).since(&before), kernel, "{:?}", probe.standing());
    assert_eq!(probe.number("block_io_errors_total", &[disk.name(), "read"]), Some(u64::from(REQUESTS)));
    assert_eq!(probe.number("block_io_requeues_total", &[disk.name()]), Some(u64::from(REQUESTS)));
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
    settle(&own.host, &mut probe, &disk);
    assert_eq!(counts(&probe, disk.name()).writes, 10);
    own.leave_out(disk.name());
    settle(&own.host, &mut probe, &disk);
    assert_eq!(probe.histogram("block_io_latency_seconds", &[disk.name(), "write"]), None);
    assert_eq!(probe.number("block_io_requeues_total", &[disk.name()]), None);
    own.leave_out("no disk");
    assert!(disk.transfer(true, 4096, 0, 3));
    settle(&own.host, &mut probe, &disk);
    assert_eq!(counts(&probe, disk.name()).writes, 3, "what was before belongs to a disk that is gone");
}

#[test]
fn a_steady_cycle_takes_no_memory() {
    let Some((host, mut probe)) = stands("auto") else { return };
    let disk = LoopDevice::new("steady");
    assert!(disk.transfer(true, 4096, 0, 10));
    settle(&host, &mut probe, &disk);
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
    // To where the name begins, to the middle of the name, to the sector.
    for (structure, member, bits) in
        [("gendisk", "first_minor", 64), ("gendisk", "disk_name", 32), ("request", "__data_len", 32)]
    {
        let directory = scratch(&format!("lie-{member}"));
        std::fs::create_dir_all(directory.join("kernel/btf")).expect("a directory of our own");
        let mut btf = std::fs::read("/sys/kernel/btf/vmlinux").expect("the probe stood on it");
        move_member(&mut btf, structure, member, bits);
        std::fs::write(directory.join("kernel/btf/vmlinux"), btf).expect("a file of our own");
        let host = Host { files: Files::new("/proc".into(), directory.clone(), "/".into()), ..live.clone() };
        let mut probe = OneProbe::start(&host, "block_io", "auto", Values::default());
        assert_eq!(probe.standing().rung, Rung::TpBtf, "nothing shows before the first request");
        let disk = LoopDevice::new(&format!("lie-{member}"));
        for _ in 0..16 {
            assert!(disk.transfer(true, 4096, 0, 100));
            probe.collect(&host);
        }
        let standing = probe.standing();
        assert_eq!((standing.rung, standing.forced_and_failed), (Rung::Off, false), "{member}: {standing:?}");
        assert!(standing.reason.contains("self-check:"), "{standing:?}");
        assert!(standing.reason.starts_with("tp_btf") && standing.reason.contains("raw_tracepoint"), "{standing:?}");
        assert!(standing.remedy.contains("report it"), "{standing:?}");
        std::fs::remove_dir_all(directory).expect("our own directory");
    }
}

/// The probe on its rung, if this machine lets it stand.
fn stands(rung: &str) -> Option<(Host, OneProbe)> {
    if !require(LoopDevice::missing()) {
        return None;
    }
    let host = Host::live(&Roots::default());
    let probe = OneProbe::start(&host, "block_io", rung, Values::default());
    let standing = probe.standing();
    if standing.rung == Rung::Off {
        let _ = require(Some(standing.reason));
        return None;
    }
    assert!(rung == "auto" || standing.rung.word() == rung, "{standing:?}");
    Some((host, probe))
}

fn scratch(name: &str) -> PathBuf {
    let directory = std::env::temp_dir().join(format!("sysops-{name}-{}", std::process::id()));
    std::fs::create_dir_all(&directory).expect("a directory of our own");
    directory
}

/// Reads the probe until neither it nor the kernel counts any more.
fn settle(host: &Host, probe: &mut OneProbe, disk: &LoopDevice) {
    let start = host.clock.now();
    let mut last = None;
    loop {
        probe.collect(host);
        let now = Some((disk.completed(), counts(probe, disk.name())));
        if now == last {
            return;
        }
        assert!(host.clock.now().since(&start) < Duration::from_secs(10), "the disk is never quiet");
        last = now;
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn counts(probe: &OneProbe, device: &str) -> Completed {
    let of = |operation: &str| {
        let found = probe.histogram("block_io_latency_seconds", &[device, operation]);
        found.map_or(0, |(buckets, _)| buckets.iter().sum())
    };
    Completed { reads: of("read"), writes: of("write"), discards: of("discard"), flushes: of("flush") }
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
