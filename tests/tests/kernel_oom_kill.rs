//! Twenty OOM kills in cgroups of their own give twenty events, each about its victim, on every rung that has a program.
#![expect(clippy::disallowed_methods, clippy::panic, reason = "a test reads files, runs programs and fails by panic")]

use std::process::Command;
use std::time::Duration;

use sysops_agent::host::{EventSource, Host, files::Files};
use sysops_agent::kernel::{ALL, Kernel, Rung, Standing};
use sysops_agent::model::{Batch, Detail, Event, Reading};
use sysops_agent::spec::{Value, Values};
use sysops_tests::events::take_until;
use sysops_tests::memory_cgroup::{MemoryCgroup, Victim, be_victim};
use sysops_tests::require::{self, require};

const LIMIT: u64 = 24 << 20;

/// Not a test: what the others start to be killed.
#[test]
fn victim() {
    be_victim();
}

#[test]
fn twenty_kills_are_twenty_events_on_tp_btf() {
    on_rung("tp_btf", 20);
}

#[test]
fn kills_are_seen_on_raw_tracepoint() {
    on_rung("raw_tracepoint", 5);
}

/// Who asks for memory is mostly not who dies: here one asks, and another of the same cgroup is the better victim.
#[test]
fn the_victim_is_not_the_trigger() {
    if !require(MemoryCgroup::missing()) {
        return;
    }
    let host = live();
    let mut kernel = Kernel::start(&host, &forced("auto"));
    let before = standing(&kernel);
    if !matches!(before.rung, Rung::TpBtf | Rung::RawTracepoint) && !require(Some(before.reason)) {
        return;
    }
    let cgroup = MemoryCgroup::new(&format!("sysops-oom-{}-two", std::process::id()), LIMIT);
    let mut victim = Victim::start("holds", 900, &cgroup);
    let mut trigger = Victim::start("asks", 0, &cgroup);
    trigger.go_on();
    // In this order: to wait for a process closes its input, and the one that holds would go on.
    assert!(trigger.was_killed() && victim.was_killed());
    let events = take_until(&mut kernel, &host, Duration::from_secs(5), |events| {
        about(events, &victim) + about(events, &trigger) == 2
    });
    let event = events.iter().find(|event| event.tid == Some(victim.pid)).expect("an event about the victim");
    let Detail::OomKill(kill) = &event.detail else { panic!("{event:?}") };
    assert_eq!((event.pid, event.comm.as_deref()), (Some(victim.pid), Some("holds")));
    assert_eq!((kill.oom_score_adj, kill.trigger_pid), (Some(900), Some(trigger.pid)), "{kill:?}");
}

/// Nothing is lost without a word: what the ring buffer does not hold is counted.
#[test]
fn kills_that_nobody_takes_are_counted_as_dropped() {
    const KILLS: usize = 240;
    if !require(MemoryCgroup::missing().or_else(|| require::programs(&["sh", "dd"]))) {
        return;
    }
    let host = live();
    let mut kernel = Kernel::start(&host, &forced("auto"));
    let before = standing(&kernel);
    if before.rung.source().is_none() && !require(Some(before.reason)) {
        return;
    }
    let cgroup = MemoryCgroup::new(&format!("sysops-oom-{}-many", std::process::id()), 4 << 20);
    cgroup.kill_many(KILLS);
    assert_eq!(cgroup.oom_kills(), Some(KILLS as u64));
    let full = standing(&kernel);
    let mut events = take_until(&mut kernel, &host, Duration::from_millis(300), |_| false);
    // The other probes of this kernel tell of what happens meanwhile.
    events.retain(|event| event.kind() == "oom_kill");
    let after = standing(&kernel);
    // Another test may kill at the same time: ours are all there, and nothing is lost between ring buffer and event.
    assert!(full.received + full.dropped >= KILLS as u64, "{full:?}");
    assert!(full.dropped > 0, "the ring buffer has room for some 200: {full:?}");
    assert!(
        (full.received..=after.received).contains(&(events.len() as u64)),
        "{} events, {full:?}, {after:?}",
        events.len()
    );
    let mut batch = Batch::default();
    kernel.collect(&host, &mut batch);
    let lost = batch.iter().find(|(entry, key)| {
        entry.metric.name == "kernel_probe_dropped_total" && key.starts_with("oom_kill\0ring_full")
    });
    let counted = lost.map(|(entry, _)| entry.reading);
    assert!(matches!(counted, Some(Reading::Counter(count)) if count >= full.dropped as f64), "{counted:?}, {full:?}");
}

/// tracefs is mounted in a mount namespace of the test's own, in which the test runs again.
#[test]
fn kills_are_seen_on_tracepoint() {
    const INSIDE: &str = "SYSOPS_TEST_HAS_TRACEFS";
    if std::env::var(INSIDE).is_ok() {
        without_btf_it_is_the_next_rung();
        return on_rung("tracepoint", 5);
    }
    if !require(MemoryCgroup::missing().or_else(|| require::programs(&["unshare", "mount"]))) {
        return;
    }
    let output = Command::new("unshare")
        .args([
            "-m",
            "sh",
            "-c",
            "test -d /sys/kernel/tracing/events || mount -t tracefs tracefs /sys/kernel/tracing; exec \"$0\" \"$@\"",
        ])
        .arg(std::env::current_exe().expect("a test has a path"))
        .args(["--exact", "kills_are_seen_on_tracepoint", "--nocapture"])
        .env(INSIDE, "1")
        .output()
        .expect("unshare is there");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    eprintln!("{said}");
}

#[test]
fn a_rung_without_tracefs_is_an_error_that_names_the_mount() {
    let directory = std::env::temp_dir().join(format!("sysops-no-tracefs-{}", std::process::id()));
    let files = Files::new("/proc".into(), directory.join("sys"), "/".into());
    let host = Host { files, ..live() };
    let standing = standing(&Kernel::start(&host, &forced("tracepoint")));
    assert_eq!((standing.rung, standing.forced_and_failed), (Rung::Off, true), "{standing:?}");
    if !standing.reason.contains("without") && !standing.reason.contains("CAP_") {
        assert!(standing.reason.contains("tracefs is not mounted"), "{standing:?}");
        assert_eq!(standing.remedy, "mount -t tracefs tracefs /sys/kernel/tracing");
    }
}

/// A machine that has tracefs and no BTF.
fn without_btf_it_is_the_next_rung() {
    let directory = std::env::temp_dir().join(format!("sysops-no-btf-{}", std::process::id()));
    std::fs::create_dir_all(directory.join("kernel")).expect("a directory of our own");
    std::os::unix::fs::symlink("/sys/kernel/tracing", directory.join("kernel/tracing")).expect("our own");
    let files = Files::new("/proc".into(), directory.clone(), "/".into());
    let standing = standing(&Kernel::start(&Host { files, ..live() }, &forced("auto")));
    std::fs::remove_dir_all(directory).expect("our own directory");
    if !matches!(standing.rung, Rung::Tracepoint) && !require(Some(standing.reason.clone())) {
        return;
    }
    assert!(standing.reason.contains("tp_btf, raw_tracepoint: no BTF"), "{standing:?}");
}

fn live() -> Host {
    Host::live(&sysops_agent::host::Roots::default())
}

fn forced(rung: &str) -> Values {
    let mut values = Values::default();
    let entry = ALL.iter().find(|entry| entry.name == "oom_kill").expect("in the list");
    let key = entry.keys.iter().find(|key| key.path == "kernel.oom_kill.rung").expect("its key");
    values.set(key, Value::Text(rung.to_owned()));
    values
}

fn standing(kernel: &Kernel) -> Standing {
    kernel.standings().into_iter().find(|standing| standing.name == "oom_kill").expect("in the list")
}

fn on_rung(rung: &str, kills: usize) {
    if !require(MemoryCgroup::missing()) {
        return;
    }
    let host = live();
    let mut kernel = Kernel::start(&host, &forced(rung));
    let before = standing(&kernel);
    if before.forced_and_failed && !require(Some(before.reason.clone())) {
        return;
    }
    assert_eq!(before.rung.word(), rung, "{before:?}");
    let mut events = Vec::new();
    let mut victims = Vec::new();
    for index in 0..kills {
        let cgroup = MemoryCgroup::new(&format!("sysops-oom-{}-{rung}-{index}", std::process::id()), LIMIT);
        let adj = i32::try_from(index).expect("few") * 10;
        let mut victim = Victim::start(&format!("victim-{index}"), adj, &cgroup);
        victim.go_on();
        if rung == "tracepoint" {
            // The record has neither pid nor cgroup: taken while the victim is still there to be asked.
            events
                .extend(take_until(&mut kernel, &host, Duration::from_secs(20), |events| about(events, &victim) == 1));
        }
        assert!(victim.was_killed(), "victim {index} was not killed");
        assert_eq!(cgroup.oom_kills(), Some(1), "the kernel's own count");
        drop(cgroup); // The path must be right though the cgroup is gone before the event is taken.
        victims.push((victim, adj));
    }
    let ours = |events: &[Event]| victims.iter().map(|(victim, _)| about(events, victim)).sum::<usize>();
    let before_now = ours(&events);
    events.extend(take_until(&mut kernel, &host, Duration::from_secs(5), |more| before_now + ours(more) >= kills));
    events.extend(take_until(&mut kernel, &host, Duration::from_millis(300), |_| false));
    for (victim, adj) in &victims {
        assert_eq!(about(&events, victim), 1, "one event for {}: {events:#?}", victim.pid);
        let event = events.iter().find(|event| event.tid == Some(victim.pid)).expect("counted above");
        hold_against(event, victim, *adj, before.rung);
    }
    let after = standing(&kernel);
    assert!(after.received >= kills as u64, "{after:?}");
    assert_eq!(after.dropped, 0, "{after:?}");
}

/// Up to 5.10 the record of the plain tracepoint has but a thread id.
fn record_has_sizes() -> bool {
    let format = std::fs::read_to_string("/sys/kernel/tracing/events/oom/mark_victim/format").expect("mounted");
    format.contains(" total_vm;")
}

fn about(events: &[Event], victim: &Victim) -> usize {
    events.iter().filter(|event| event.tid == Some(victim.pid)).count()
}

fn hold_against(event: &Event, victim: &Victim, adj: i32, rung: Rung) {
    let shown = serde_json::to_string(event).expect("an event is JSON");
    eprintln!("{shown}");
    assert_eq!(event.kind(), "oom_kill");
    assert_eq!(event.source, rung.source().into_iter().collect::<Vec<_>>());
    let Detail::OomKill(kill) = &event.detail else { panic!("{shown}") };
    let comm = victim.before.lines().next().and_then(|line| line.strip_prefix("Name:\t"));
    if rung == Rung::Tracepoint {
        // The victim may have gone too far for /proc to tell; what is told is true.
        assert!(event.pid.is_none_or(|pid| pid == victim.pid), "{shown}");
        assert!(event.cgroup.as_ref().is_none_or(|path| *path == victim.cgroup), "{shown}: {}", victim.cgroup);
        if !record_has_sizes() {
            assert_eq!((kill.anon_rss_bytes, kill.oom_score_adj), (None, None), "{shown}");
            return;
        }
    }
    assert_eq!(event.comm.as_deref(), comm, "{shown}");
    assert_eq!(event.uid, Some(0), "{shown}");
    assert_eq!(kill.oom_score_adj, Some(adj), "{shown}");
    if rung != Rung::Tracepoint {
        assert_eq!(event.pid, Some(victim.pid), "{shown}");
        assert_eq!(event.cgroup.as_ref(), Some(&victim.cgroup), "{shown}");
        assert_eq!(kill.trigger_pid, Some(victim.pid), "it was alone in its cgroup: {shown}");
    }
    let anon = kill.anon_rss_bytes.expect("known here");
    // The kernel's counters are behind by up to a batch of pages on each CPU.
    let slack = 2 << 20;
    assert!(anon + slack >= victim.bytes_before("RssAnon"), "{shown}\n{}", victim.before);
    assert!(anon <= LIMIT + slack, "{shown}");
    assert!(anon > LIMIT / 2, "it grew until the limit: {shown}");
    let file = kill.file_rss_bytes.expect("known here");
    assert!(file.abs_diff(victim.bytes_before("RssFile")) <= 8 << 20, "{shown}\n{}", victim.before);
    let total = kill.total_vm_bytes.expect("known here");
    assert!(total >= victim.bytes_before("VmSize"), "{shown}\n{}", victim.before);
    assert!(kill.pgtables_bytes.is_some_and(|bytes| bytes >= 4096), "{shown}");
}
