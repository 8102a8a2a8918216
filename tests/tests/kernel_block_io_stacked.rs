//! Disks that make no requests of their own: their bios are counted as /proc/diskstats counts them, beside the requests of the
//! disks below.
#![expect(clippy::disallowed_methods, reason = "a test reads files")]

use std::time::Duration;

use sysops_agent::spec::{Value, Values};
use sysops_tests::loop_device::{LoopDevice, completed};
use sysops_tests::measured::{counts, settle, stands, stands_with};
use sysops_tests::multipath::{self, Multipath};
use sysops_tests::one_probe::{OneProbe, key};
use sysops_tests::require::{modules, require};
use sysops_tests::scsi_disk::ScsiDisk;
use sysops_tests::stacked_disk::{StackedDisk, transfer, transferring, transferring_by_cache};
use sysops_tests::unified_cgroup::UnifiedCgroup;

/// A disk that makes no requests comes while the probe runs: from then on its bios are measured.
#[test]
fn a_disk_without_requests_is_measured_by_its_bios() {
    by_bios(|| {
        let disk = StackedDisk::in_memory();
        (disk.is_some() || require(Some("no zram in this kernel".to_owned()))).then_some(disk).flatten()
    });
}

/// First there is the disk and then its size, as of zram, md and dm: from its size on it is measured, whatever comes or goes beside it.
#[test]
fn a_disk_without_requests_that_gets_its_size_later_is_measured() {
    let Some((host, mut probe)) = stands("tp_btf") else { return };
    let Some(disk) = StackedDisk::in_memory_without_size() else {
        let _ = require(Some("no zram in this kernel".to_owned()));
        return;
    };
    probe.collect(&host);
    assert_eq!(probe.number("block_io_stacked_measured", &[disk.name()]), None, "it has no size");
    disk.give_size();
    probe.collect(&host);
    assert_eq!(probe.number("block_io_stacked_measured", &[disk.name()]), Some(1), "{:?}", probe.standing());
    let before = counts(&probe, disk.name());
    disk.transfer(true, 100);
    probe.collect(&host);
    assert!(counts(&probe, disk.name()).since(&before).writes >= 100, "{:?}", probe.standing());
}

/// The same of a disk that is mapped onto another one.
#[test]
#[ignore = "not every machine has the device mapper; run by vm-test"]
fn a_mapped_disk_is_measured_by_its_bios() {
    if require(StackedDisk::mapping_missing()) {
        by_bios(|| Some(StackedDisk::mapped_onto(LoopDevice::new("mapped"))));
    }
}

/// What a cgroup writes to a disk that is mapped onto another one is counted once, by the requests of the disk below.
#[test]
#[ignore = "not every machine has the device mapper; run by vm-test without --quick"]
fn what_a_cgroup_writes_through_a_mapped_disk_counts_once() {
    const BLOCK: u64 = 65536;
    if !require(StackedDisk::mapping_missing().or_else(UnifiedCgroup::missing).or_else(LoopDevice::missing)) {
        return;
    }
    for rung in ["tp_btf", "raw_tracepoint"] {
        let mut values = Values::default();
        values.set(key("kernel.block_io.cgroups"), Value::Int(200));
        let Some((host, mut probe)) = stands_with(rung, values) else { return };
        let disk = StackedDisk::mapped_onto(LoopDevice::new("charged"));
        probe.collect(&host);
        assert_eq!(probe.number("block_io_stacked_measured", &[disk.name()]), Some(1), "{:?}", probe.standing());
        let cgroup = UnifiedCgroup::new("stacked");
        let of = |probe: &OneProbe| probe.number("block_io_cgroup_bytes_total", &[&cgroup.path, "write"]);
        // It gets its label; what it did before stays with the others.
        cgroup.write(&format!("/dev/{}", disk.name()), 20);
        let start = host.clock.now();
        while of(&probe).is_none() {
            probe.collect(&host);
            assert!(host.clock.now().since(&start) < Duration::from_secs(10), "it has no label");
        }
        let (before, measured) = (of(&probe), counts(&probe, disk.name()));
        cgroup.write(&format!("/dev/{}", disk.name()), 100);
        probe.collect(&host);
        // The disk above is measured all the same.
        assert_eq!(counts(&probe, disk.name()).since(&measured).writes, 100, "{rung}: {:?}", probe.standing());
        let written = of(&probe).zip(before).map(|(now, before)| now - before);
        assert_eq!(written, Some(100 * BLOCK), "{rung}: {:?}", probe.standing());
    }
}

/// dm multipath that makes requests makes them of another disk's. One that this disk's driver gives back is freed without a word, and
/// the next one in its place has not waited since then.
#[test]
#[ignore = "not every machine has dm multipath and scsi_debug; run by vm-test without --quick"]
fn a_request_that_was_given_back_and_freed_leaves_no_start() {
    let missing = || StackedDisk::mapping_missing().or_else(|| modules(&["dm_multipath", "dm_round_robin"]));
    if !require(missing()) {
        return;
    }
    for rung in ["tp_btf", "raw_tracepoint"] {
        let Some((host, mut probe)) = stands(rung) else { return };
        // Every third command finds the host busy, after its request was issued.
        if !require(ScsiDisk::missing(&["every_nth=3", "opts=0x8000"])) {
            return;
        }
        let below = ScsiDisk::of_the_machine();
        let disk = StackedDisk::one_way_to(below);
        settle(&host, &mut probe, disk.name());
        disk.transfer(true, 60);
        settle(&host, &mut probe, disk.name());
        let below = disk.below().expect("it has one");
        let requeues = probe.number("block_io_requeues_total", &[below]);
        assert!(requeues.is_some_and(|requeues| requeues > 0), "{rung}: {requeues:?}");
        let (buckets, waited) =
            probe.histogram("block_io_queue_seconds", &[below, "write"]).expect("there were writes");
        assert!(buckets.iter().sum::<u64>() >= 60 && waited == 0.0, "{rung}: {waited} s in no queue: {buckets:?}");
    }
}

/// The same of arrays.
#[test]
#[ignore = "arrays are no business of a machine that is worked on; run by vm-test without --quick"]
fn an_array_of_copies_is_measured_by_its_bios() {
    if require(StackedDisk::arrays_missing()) {
        by_bios(|| Some(array("raid1")));
    }
}

/// raid0 of 5.10 hands the bio itself to a disk below, and then no tracepoint tells when it is complete.
#[test]
#[ignore = "arrays are no business of a machine that is worked on; run by vm-test without --quick"]
fn an_array_of_parts_is_measured_by_its_bios() {
    if !require(StackedDisk::arrays_missing()) {
        return;
    }
    let symbols = std::fs::read_to_string("/proc/kallsyms").unwrap_or_default();
    let hands_on = !symbols.contains(" md_account_bio");
    if hands_on {
        let Some((host, mut probe)) = stands("auto") else { return };
        let disk = array("raid0");
        probe.collect(&host);
        disk.transfer(true, 100);
        probe.collect(&host);
        assert_eq!(probe.number("block_io_stacked_measured", &[disk.name()]), Some(0), "{:?}", probe.standing());
    }
    if require(hands_on.then(|| "raid0 of this kernel hands its bios on, and nothing tells of their end".to_owned())) {
        by_bios(|| Some(array("raid0")));
    }
}

fn array(level: &str) -> StackedDisk {
    StackedDisk::array(level, ["one", "other"].map(LoopDevice::new))
}

fn by_bios(disk: impl Fn() -> Option<StackedDisk>) {
    for rung in ["tp_btf", "raw_tracepoint"] {
        let Some((host, mut probe)) = stands(rung) else { return };
        let Some(disk) = disk() else { return };
        probe.collect(&host);
        assert_eq!(probe.number("block_io_stacked_measured", &[disk.name()]), Some(1));
        let (kernel_before, before) = (completed(disk.name()), counts(&probe, disk.name()));
        disk.transfer(true, 100);
        disk.transfer(false, 50);
        probe.collect(&host);
        let kernel = completed(disk.name()).since(&kernel_before);
        let measured = counts(&probe, disk.name()).since(&before);
        assert!(kernel.writes >= 100 && kernel.reads >= 50, "{kernel:?}");
        assert_eq!((measured.reads, measured.writes), (kernel.reads, kernel.writes), "{rung}: {:?}", probe.standing());
    }
}

/// The head of NVMe multipath hands its bios to one of its paths. The paths are hidden: they have a name and on some kernels no
/// number in /proc/diskstats.
#[test]
#[ignore = "it takes the driver away; run by vm-test without --quick"]
fn the_head_of_two_paths_is_measured_by_its_bios_and_each_path_by_its_requests() {
    if require(Multipath::missing()) {
        for rung in ["tp_btf", "raw_tracepoint"] {
            two_paths(rung);
        }
        by_records();
    }
}

/// Records of the plain tracepoint have a disk's number alone, and where /proc/diskstats has none of a path it is no disk's.
fn by_records() {
    let Some((host, mut probe)) = stands("tracepoint") else { return };
    assert!(require(Multipath::missing()), "it was there before");
    let disk = Multipath::of_the_machine();
    settle(&host, &mut probe, disk.head());
    let before: Vec<_> = multipath::paths().iter().map(|path| (completed(path), counts(&probe, path))).collect();
    transfer(disk.head(), true, 100);
    settle(&host, &mut probe, disk.head());
    let text = std::fs::read_to_string("/proc/diskstats").expect("it was read before");
    for (path, (kernel, measured)) in multipath::paths().iter().zip(&before) {
        let line = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        let has_number = line.clone().any(|line| line[2] == path && line[..2] != ["0", "0"]);
        let kernel = completed(path).since(kernel).writes;
        let expected = if has_number { kernel } else { 0 };
        assert_eq!(counts(&probe, path).since(measured).writes, expected, "{path}: {kernel} {:?}", probe.standing());
    }
    assert_eq!(probe.standing().rung.word(), "tracepoint", "{:?}", probe.standing());
}

fn two_paths(rung: &str) {
    const WRITERS: u64 = 3;
    const WRITES: u32 = 1000;
    const PAGES: u32 = 4096;
    let Some((host, mut probe)) = stands(rung) else { return };
    assert!(require(Multipath::missing()), "it was there before");
    let disk = Multipath::of_the_machine();
    let head = disk.head();
    let all = |probe: &OneProbe| {
        let paths = multipath::paths();
        let measured: Vec<_> = paths.iter().map(|path| counts(probe, path)).collect();
        (counts(probe, head), paths.iter().map(|path| completed(path)).collect::<Vec<_>>(), measured)
    };
    settle(&host, &mut probe, head);
    let (before, kernel_before, measured_before) = all(&probe);
    transfer(head, true, 100);
    transfer(head, false, 50);
    settle(&host, &mut probe, head);
    let is_measured = probe.number("block_io_stacked_measured", &[head]);
    let (after, kernel, measured) = all(&probe);
    let seen = after.since(&before);
    let since = |(after, before): (&_, &_)| sysops_tests::loop_device::Completed::since(after, before);
    let kernel_since: Vec<_> = kernel.iter().zip(&kernel_before).map(since).collect();
    let measured_since: Vec<_> = measured.iter().zip(&measured_before).map(since).collect();
    assert_eq!(measured_since, kernel_since, "{rung}: {:?}", probe.standing());
    if is_measured == Some(0) {
        assert_eq!(seen.writes, 0, "{:?}", probe.standing());
        let _ = require(Some("this kernel does not tell of the end of bios that NVMe completes in batches".to_owned()));
        return;
    }
    assert_eq!((is_measured, seen.writes), (Some(1), 100), "{rung}: {seen:?} {:?}", probe.standing());
    assert!((50..100).contains(&seen.reads), "{rung}: {seen:?}");

    // What is written back comes in pages, of which many become one request: each is a bio of the head all the same.
    let (before, dropped) = (counts(&probe, head), probe.standing().dropped);
    let output = transferring_by_cache(head, PAGES).output().expect("dd is there");
    assert!(output.status.success(), "{output:?}");
    settle(&host, &mut probe, head);
    let lacks = u64::from(PAGES).checked_sub(counts(&probe, head).since(&before).writes);
    let dropped = probe.standing().dropped - dropped;
    assert!(lacks.is_some_and(|lacks| lacks <= dropped && dropped < 100), "{rung}: {lacks:?} {dropped}");

    // One way goes while there is much to do: all is done by the other one.
    let (before, dropped) = (counts(&probe, head), probe.standing().dropped);
    let writers: Vec<_> = (0..WRITERS)
        .map(|_| transferring(head, true, WRITES).stderr(std::process::Stdio::null()).spawn().expect("dd is there"))
        .collect();
    let gone = multipath::busiest();
    Multipath::remove(&gone);
    for mut writer in writers {
        assert!(writer.wait().expect("our child").success(), "what the path had is done by the other one");
    }
    settle(&host, &mut probe, head);
    let (_, kernel, measured) = all(&probe);
    assert!(kernel.len() == 1 && kernel[0].writes > 0, "the other way was taken: {kernel:?}");
    // Since 7.x one writer may take the CPU from another one within a program, whose own run is then skipped and counted.
    let dropped = probe.standing().dropped - dropped;
    let head_lacks = (WRITERS * u64::from(WRITES)).checked_sub(counts(&probe, head).since(&before).writes);
    let path_lacks = kernel[0].writes.checked_sub(measured[0].writes);
    let lacks = head_lacks.zip(path_lacks).map(|(head, path)| head + path);
    assert!(lacks.is_some_and(|lacks| lacks <= dropped && dropped < 300), "{rung}: {lacks:?} {dropped}");
    assert_eq!(probe.histogram("block_io_latency_seconds", &[&gone, "write"]), None, "{gone} is gone");
    assert_eq!(probe.standing().rung.word(), rung, "{:?}", probe.standing());
}
