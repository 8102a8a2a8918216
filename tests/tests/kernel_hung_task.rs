//! A write to a frozen file system hangs for real: one event about it, however often the kernel reports it, with
//! the place in the kernel, on every rung that has a program, and also when the kernel's log has gone silent.
#![expect(clippy::disallowed_methods, clippy::panic, reason = "a test reads files, runs programs and fails by panic")]

use std::process::Command;
use std::time::Duration;

use sysops_agent::host::Host;
use sysops_agent::kernel::{ALL, Kernel, Rung, Standing};
use sysops_agent::model::{Detail, Event};
use sysops_agent::spec::{Value, Values};
use sysops_tests::events::take_until;
use sysops_tests::frozen_mount::{FrozenMount, Sysctl};
use sysops_tests::require::require;

/// The test runs itself again in a mount namespace of its own, where it mounts what it needs.
const INSIDE: &str = "SYSOPS_TEST_IN_NAMESPACE";

#[test]
fn a_frozen_file_system_is_one_event_on_every_rung() {
    if std::env::var(INSIDE).is_ok() {
        return inside();
    }
    if !require(FrozenMount::missing().or_else(|| sysops_tests::require::programs(&["unshare"]))) {
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
        .args(["--exact", "a_frozen_file_system_is_one_event_on_every_rung", "--nocapture"])
        .env(INSIDE, "1")
        .output()
        .expect("unshare is there");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    eprintln!("{said}");
}

fn inside() {
    let host = Host::live(&sysops_agent::host::Roots::default());
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
    let seen: Vec<(Vec<Event>, Rung)> = kernels
        .iter_mut()
        .map(|(kernel, rung)| {
            // Two reports of the kernel at least, so that telling it twice would be seen.
            let twice = host.clock.now();
            let events = take_until(kernel, &host, Duration::from_secs(20), |events| {
                about(events, pid) > 0 && host.clock.now().since(&twice) > Duration::from_secs(4)
            });
            (events, *rung)
        })
        .collect();
    let cgroup = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).expect("it hangs");
    mount.thaw();
    assert!(hung.wait().expect("our child").success());
    for (events, rung) in &seen {
        assert_eq!(about(events, pid), 1, "{rung:?}: {events:#?}");
        let event = events.iter().find(|event| event.tid == Some(pid)).expect("counted above");
        hold_against(event, pid, &cgroup, *rung);
    }
    for (kernel, rung) in &kernels {
        let standing = standing(kernel);
        assert!(standing.received >= 2 && standing.dropped == 0, "{rung:?}: {standing:?}");
    }
}

fn forced(rung: &str) -> Values {
    let mut values = Values::default();
    let entry = ALL.iter().find(|entry| entry.name == "hung_task").expect("in the list");
    let key = entry.keys.iter().find(|key| key.path == "kernel.hung_task.rung").expect("its key");
    values.set(key, Value::Text(rung.to_owned()));
    values
}

fn standing(kernel: &Kernel) -> Standing {
    kernel.standings().into_iter().find(|standing| standing.name == "hung_task").expect("in the list")
}

fn about(events: &[Event], tid: u32) -> usize {
    events.iter().filter(|event| event.tid == Some(tid)).count()
}

fn hold_against(event: &Event, pid: u32, cgroup: &str, rung: Rung) {
    let shown = serde_json::to_string(event).expect("an event is JSON");
    eprintln!("{shown}");
    let Detail::HungTask(hung) = &event.detail else { panic!("{shown}") };
    assert_eq!(event.source, rung.source().into_iter().collect::<Vec<_>>());
    assert_eq!((event.pid, event.comm.as_deref(), event.uid), (Some(pid), Some("truncate"), Some(0)), "{shown}");
    let path = event.cgroup.as_ref().expect("on every rung");
    assert!(cgroup.lines().any(|line| line.ends_with(&format!(":{path}"))), "{shown}\n{cgroup}");
    assert!(hung.blocked_seconds.is_some_and(|seconds| (1..20).contains(&seconds)), "{shown}");
    assert!(hung.wchan.is_some() || !hung.kernel_stack.is_empty(), "{shown}");
}
