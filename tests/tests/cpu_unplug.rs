//! A processor goes offline while the probes run, and comes back: what happens before, meanwhile and after, on each of those
//! that are online, is counted and told as if nothing were.

use std::time::Duration;

use sysops_agent::collect;
use sysops_agent::host::{Host, Roots};
use sysops_agent::kernel::{Kernel, Rung};
use sysops_agent::model::{Batch, Reading, batch::label_values};
use sysops_agent::spec::{Value, Values};
use sysops_tests::events::take_until;
use sysops_tests::frozen_mount::FrozenMount;
use sysops_tests::loop_device::LoopDevice;
use sysops_tests::measured::{counts, settle, stands};
use sysops_tests::memory_cgroup::{MemoryCgroup, be_victim, kill_one};
use sysops_tests::one_probe::{OneProbe, key};
use sysops_tests::opener::Opener;
use sysops_tests::processor::{GOES, Offline, bind, online};
use sysops_tests::require::require;

/// Not a test: what the others start to be killed.
#[test]
fn victim() {
    be_victim();
}

/// Runs `each` on every processor that is online: before one goes, while it is offline, and when it is back.
fn throughout(mut each: impl FnMut(usize)) {
    let mut on_all = || {
        for processor in online() {
            bind(None, processor);
            each(processor);
        }
    };
    on_all();
    {
        let _offline = Offline::now();
        on_all();
    }
    on_all();
}

#[test]
#[ignore = "it takes a processor away; run by vm-test"]
fn requests_are_counted_as_the_kernel_counts_them() {
    if !require(Offline::missing()) {
        return;
    }
    for rung in ["tp_btf", "raw_tracepoint", "tracepoint"] {
        let Some((host, mut probe)) = stands(rung) else { return };
        let disk = LoopDevice::new(&format!("unplug-{rung}"));
        settle(&host, &mut probe, disk.name());
        let (kernel, before, dropped) = (disk.completed(), counts(&probe, disk.name()), probe.standing().dropped);
        throughout(|_| assert!(disk.transfer(true, 4096, 0, 50) && disk.transfer(false, 4096, 0, 50)));
        // And at the very moment: what is in flight there goes on elsewhere.
        bind(None, GOES);
        let mut writer = disk.start_writes(500);
        let offline = Offline::now();
        assert!(writer.wait().expect("our child").success());
        drop(offline);
        settle(&host, &mut probe, disk.name());
        let kernel = disk.completed().since(&kernel);
        assert!(kernel.writes >= 750 && kernel.reads >= 250, "{kernel:?}");
        assert_eq!(counts(&probe, disk.name()).since(&before), kernel, "{:?}", probe.standing());
        let standing = probe.standing();
        assert_eq!((standing.rung.word(), standing.dropped), (rung, dropped), "{standing:?}");
    }
}

#[test]
#[ignore = "it takes a processor away; run by vm-test"]
fn descriptors_are_counted_exactly() {
    if !require(Offline::missing()) {
        return;
    }
    for rung in ["fentry", "tracepoint", "kprobe", "tp_btf"] {
        let host = Host::live(&Roots::default());
        let mut values = Values::default();
        values.set(key("kernel.fd.watch"), Value::TextList(vec!["sh".to_owned()]));
        let mut probe = OneProbe::start(&host, "fd", rung, values);
        if probe.standing().rung == Rung::Off {
            let _ = require(Some(probe.standing().reason));
            continue;
        }
        let mut opener = Opener::start();
        let pid = opener.pid().to_string();
        let installs = |probe: &OneProbe| probe.number("process_fd_installs_total", &[&pid, "sh"]);
        while installs(&probe).is_none() {
            probe.collect(&host);
        }
        let (mut last, mut turns) = (installs(&probe).expect("the loop waited for it"), Vec::new());
        throughout(|processor| {
            bind(Some(opener.pid()), processor);
            opener.turn();
            probe.collect(&host);
            let now = installs(&probe).expect("it is followed");
            turns.push(now - last);
            last = now;
        });
        let (most, least) = (turns.iter().max().expect("five"), turns.iter().min().expect("five"));
        assert!(turns.len() == 5 && *most >= 100, "{turns:?}");
        assert!(most - least <= probe.passed_over(), "{rung}: {turns:?} {:?}", probe.standing());
        assert_eq!(probe.standing().rung.word(), rung, "{:?}", probe.standing());
    }
}

#[test]
#[ignore = "it takes a processor away; run by vm-test"]
fn kills_are_told_wherever_they_happen() {
    if !require(Offline::missing().or_else(MemoryCgroup::missing)) {
        return;
    }
    for rung in ["tp_btf", "tracepoint"] {
        let host = Host::live(&Roots::default());
        let mut probe = OneProbe::start(&host, "oom_kill", rung, Values::default());
        assert_eq!(probe.standing().rung.word(), rung, "{:?}", probe.standing());
        let mut killed = Vec::new();
        throughout(|processor| killed.push(kill_one(&format!("on-{processor}"))));
        let told = |events: &[_]| {
            let pids = events.iter().filter(|event: &&sysops_agent::model::Event| event.kind() == "oom_kill");
            pids.filter_map(|event| event.tid).collect::<Vec<_>>()
        };
        let events = take_until(probe.source(), &host, Duration::from_secs(10), |events| told(events).len() >= 5);
        assert_eq!(told(&events), killed, "{rung}: {events:#?}");
    }
}

#[test]
#[ignore = "it takes a processor away; run by vm-test"]
fn a_hang_goes_on_and_new_ones_are_found() {
    if !require(Offline::missing().or_else(FrozenMount::missing)) {
        return;
    }
    let host = Host::live(&Roots::default());
    let mut values = Values::default();
    values.set(key("kernel.hung_task.early_secs"), Value::Int(2));
    let mut kernel = Kernel::start(&host, &values);
    let mut mount = FrozenMount::new();
    bind(None, GOES);
    let mut first = mount.hang();
    let about = |events: &[sysops_agent::model::Event], pid, over| {
        events.iter().filter(|event| event.tid == Some(pid) && event.hang().is_some() && event.is_end() == over).count()
    };
    let mut events = Vec::new();
    let wait_for = |kernel: &mut Kernel, events: &mut Vec<_>, pid, over| {
        events.extend(take_until(kernel, &host, Duration::from_secs(30), |new| about(new, pid, over) > 0));
        assert_eq!((about(events, pid, false), about(events, pid, true)), (1, usize::from(over)), "{events:#?}");
    };
    wait_for(&mut kernel, &mut events, first.id(), false);
    let offline = Offline::now();
    bind(None, 0);
    let mut second = mount.hang();
    wait_for(&mut kernel, &mut events, second.id(), false);
    drop(offline);
    mount.thaw();
    assert!(first.wait().expect("our child").success() && second.wait().expect("our child").success());
    wait_for(&mut kernel, &mut events, first.id(), true);
    if about(&events, second.id(), true) == 0 {
        wait_for(&mut kernel, &mut events, second.id(), true);
    }
}

/// What the collectors read of processors: that one is gone and back, and no counter of it falls.
#[test]
#[ignore = "it takes a processor away; run by vm-test"]
fn collectors_read_those_that_are_online() {
    if !require(Offline::missing()) {
        return;
    }
    let host = Host::live(&Roots::default());
    let entry = collect::ALL.iter().find(|entry| entry.name == "cpu").expect("in the list");
    let mut collector = (entry.new)(&host, &Values::default());
    let mut read = || {
        let mut batch = Batch::default();
        collector.collect(&host, &mut batch).expect("it can be read");
        let of_it = |key: &str| label_values(key).eq([GOES.to_string().as_str(), "system"]);
        let mut seconds =
            batch.iter().filter(|(entry, key)| entry.metric.name == "node_cpu_seconds_total" && of_it(key));
        let share =
            batch.iter().find(|(entry, _)| entry.metric.name == "cpu_usage_percent").map(|(entry, _)| entry.reading);
        let Some(Reading::Percent { part, whole }) = share else { panic!("{share:?}") };
        (seconds.next().map(|(entry, _)| entry.reading), (part, whole))
    };
    let (before, mut all) = read();
    let mut rises = |(part, whole): (f64, f64)| {
        assert!(part >= all.0 && whole >= all.1, "{part} of {whole} after {all:?}");
        all = (part, whole);
    };
    let offline = Offline::now();
    let (meanwhile, shares) = read();
    assert_eq!(meanwhile, None);
    rises(shares);
    drop(offline);
    let (after, shares) = read();
    rises(shares);
    let (Some(Reading::Counter(before)), Some(Reading::Counter(after))) = (before, after) else {
        panic!("{before:?} {after:?}")
    };
    assert!(after >= before, "{before} {after}");
}
