//! Requests that end otherwise than by their driver: in front of it, or as a part of another. What is usual is in `kernel_block_io`.

use std::time::Duration;

use sysops_agent::host::os;
use sysops_tests::frozen_mount::FrozenMount;
use sysops_tests::loop_device::{LoopDevice, completed};
use sysops_tests::measured::{counts, settle, stands};
use sysops_tests::one_probe::{OneProbe, has_tracefs};
use sysops_tests::require::require;
use sysops_tests::scsi_disk::ScsiDisk;

const OPERATIONS: [&str; 5] = ["read", "write", "discard", "flush", "other"];

/// A request for a SCSI disk that is offline ends with an error in front of its driver: no issue is seen of it. With a scheduler it waits
/// before that.
#[test]
#[ignore = "not every machine has scsi_debug; run by vm-test without --quick"]
fn what_fails_in_front_of_its_driver_is_counted_on_every_rung() {
    const READS: u32 = 10;
    for rung in ["tp_btf", "raw_tracepoint", "tracepoint"] {
        let Some((host, mut probe)) = stands(rung) else { return };
        if !require(ScsiDisk::missing(&[])) {
            return;
        }
        let disk = ScsiDisk::of_the_machine();
        let errors = |probe: &OneProbe| probe.number("block_io_errors_total", &[disk.name(), "read"]).unwrap_or(0);
        for scheduler in ["none", "mq-deadline"] {
            disk.set("queue/scheduler", scheduler);
            settle(&host, &mut probe, disk.name());
            let (kernel, before, errors_before) = (completed(disk.name()), counts(&probe, disk.name()), errors(&probe));
            disk.read_offline(READS);
            settle(&host, &mut probe, disk.name());
            let kernel = completed(disk.name()).since(&kernel);
            assert!(kernel.reads >= u64::from(READS), "{kernel:?}");
            let measured = counts(&probe, disk.name()).since(&before);
            assert_eq!(measured.reads, kernel.reads, "{rung}, {scheduler}: {:?}", probe.standing());
            assert_eq!(errors(&probe) - errors_before, kernel.reads, "{rung}, {scheduler}");
        }
        // What it is called has changed: BLK_STS_OFFLINE came in 5.18, and was given another number.
        let words = ["io", "status_14", "status_15", "status_16", "status_17", "status_18", "errno_19"];
        let failures = words.iter().filter_map(|word| probe.number("block_io_failures_total", &[disk.name(), word]));
        // Not reads alone: what the driver asks of the disk by itself may fail, too.
        let errors = |operation: &&str| probe.number("block_io_errors_total", &[disk.name(), operation]);
        assert_eq!(failures.sum::<u64>(), OPERATIONS.iter().filter_map(errors).sum::<u64>(), "{rung}");
    }
}

/// What a request leaves behind that is merged while it waits, or begins elsewhere then, is not the start of the next one for its
/// place.
#[test]
fn a_start_does_not_outlive_its_request() {
    let missing = LoopDevice::missing().or_else(FrozenMount::missing);
    if require(missing) && has_tracefs("a_start_does_not_outlive_its_request") {
        for rung in ["tp_btf", "raw_tracepoint", "tracepoint"] {
            outlives(rung);
        }
    }
}

fn outlives(rung: &str) {
    const PAUSE: Duration = Duration::from_millis(150);
    let Some((host, mut probe)) = stands(rung) else { return };
    let mut below = FrozenMount::thawed("96M");
    let disk = LoopDevice::over(below.at().join("disk.img"));
    // The fewest that a kernel lets a driver have at once.
    disk.set("nr_requests", "4");
    disk.set("scheduler", "mq-deadline");
    // The loop driver of 5.10 wants none.
    disk.set("nomerges", "0");
    settle(&host, &mut probe, disk.name());
    let queue = |probe: &OneProbe| {
        probe.histogram("block_io_queue_seconds", &[disk.name(), "write"]).map_or(0.0, |(_, seconds)| seconds)
    };
    let (kernel, before) = (disk.completed(), counts(&probe, disk.name()));
    below.freeze();
    // Four are with the driver and one is next. Behind these two wait in the queue, and become one by what comes between them; and
    // one that begins elsewhere when something is put in front of it.
    let writes = [0, 10, 20, 30, 40, 100, 102, 101, 201, 200].map(|place| {
        let write = disk.start_write(place);
        std::thread::sleep(PAUSE);
        write
    });
    std::thread::sleep(PAUSE * 4);
    below.thaw();
    for mut write in writes {
        assert!(write.wait().expect("our child").success());
    }
    settle(&host, &mut probe, disk.name());
    let kernel = disk.completed().since(&kernel);
    if kernel.writes == 10 && os::kernel_version().is_some_and(|version| version < (5, 16)) {
        println!("not checked: the loop driver of this kernel merged nothing, though it was allowed to");
        return;
    }
    assert_eq!(kernel.writes, 7, "{rung}: not merged");
    assert_eq!(counts(&probe, disk.name()).since(&before), kernel, "{rung}: {:?}", probe.standing());
    let before = queue(&probe);
    for place in [100, 101, 102, 200, 201] {
        assert!(disk.start_write(place).wait().expect("our child").success());
    }
    settle(&host, &mut probe, disk.name());
    let waited = queue(&probe) - before;
    assert!(waited < 0.5, "{rung}: {waited} s in an empty queue");
}
