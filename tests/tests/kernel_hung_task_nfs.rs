//! A server of NFS that is stopped: who reads from it hangs in a way that only a signal that kills can end, which the kernel's
//! own detector passes over. It is told early, with where it sleeps, and its end when the server goes on.
#![expect(clippy::disallowed_methods, reason = "a test runs programs")]

use std::process::Command;
use std::time::Duration;

use sysops_agent::collect;
use sysops_agent::host::{Host, Roots};
use sysops_agent::kernel::Kernel;
use sysops_agent::model::event::{Outcome, Phase, Tier};
use sysops_agent::model::{Batch, Event, batch::label_values};
use sysops_agent::spec::{Value, Values};
use sysops_tests::events::take_until;
use sysops_tests::frozen_mount::Sysctl;
use sysops_tests::nfs_server::NfsMount;
use sysops_tests::one_probe::key;
use sysops_tests::require::{self, require};

#[test]
#[ignore = "it mounts for all who are there; run by vm-test without --quick"]
fn who_reads_from_a_server_that_is_stopped_is_told_and_its_end() {
    let files = ["/sys/kernel/btf/vmlinux", "/proc/sys/kernel/hung_task_timeout_secs"];
    if !require(NfsMount::missing().or_else(|| require::files(&files))) {
        return;
    }
    let host = Host::live(&Roots::default());
    let mut values = Values::default();
    values.set(key("kernel.hung_task.early_secs"), Value::Int(3));
    let mut kernel = Kernel::start(&host, &values);
    // The kernel's own detector looks each second, and passes it over.
    let _timeout = Sysctl::set("kernel/hung_task_timeout_secs", "1");
    let mount = NfsMount::new();
    let read = || {
        let mut dd = Command::new("dd");
        dd.arg(format!("if={}", mount.file().display())).args(["of=/dev/null", "bs=4096", "status=none"]);
        dd.spawn().expect("dd is there")
    };
    assert!(read().wait().expect("our child").success(), "the server answers");
    mount.answer(false);
    let mut reader = read();
    let pid = reader.id();
    let events =
        take_until(&mut kernel, &host, Duration::from_secs(30), |events| find(events, pid, Phase::Began).is_some());
    let event = find(&events, pid, Phase::Began).unwrap_or_else(|| panic!("{events:#?}\n{}", seen(pid)));
    eprintln!("{}", serde_json::to_string(event).expect("an event is JSON"));
    let hang = event.hang().expect("it is one");
    assert_eq!((hang.tier, event.comm.as_deref()), (Some(Tier::Early), Some("dd")));
    let innermost = hang.wchan.as_deref().or(hang.kernel_stack.first().map(String::as_str)).unwrap_or_default();
    assert!(innermost.starts_with("rpc_wait_bit_killable"), "{hang:#?}");
    others_are_not_held_up(&host, &mount);

    mount.answer(true);
    assert!(reader.wait().expect("our child").success(), "it has read");
    let later =
        take_until(&mut kernel, &host, Duration::from_secs(30), |events| find(events, pid, Phase::Ended).is_some());
    let end = find(&later, pid, Phase::Ended).and_then(Event::hang).unwrap_or_else(|| panic!("{later:#?}"));
    assert_eq!(end.outcome, Some(Outcome::Exited), "{end:?}");
    let all = events.iter().chain(&later).filter(|event| event.tid == Some(pid)).count();
    assert_eq!(all, 2, "it was told once, and its end once");
}

/// The collector of file systems goes on without the one that does not answer, and says which it is.
fn others_are_not_held_up(host: &Host, mount: &NfsMount) {
    let entry = collect::ALL.iter().find(|entry| entry.name == "filesystem").expect("in the list");
    let (mut collector, mut batch) = ((entry.new)(host, &Values::default()), Batch::default());
    collector.collect(host, &mut batch).expect("the others answer");
    let at = mount.at().display().to_string();
    let about = |name: &str| {
        batch.iter().any(|(entry, key)| entry.metric.name == name && label_values(key).any(|value| value == at))
    };
    assert!(about("node_filesystem_device_error") && !about("node_filesystem_size_bytes"));
}

fn find(events: &[Event], tid: u32, phase: Phase) -> Option<&Event> {
    events.iter().find(|event| event.tid == Some(tid) && event.hang().is_some_and(|hang| hang.phase == phase))
}

/// What /proc says of it.
fn seen(pid: u32) -> String {
    ["stat", "stack"].map(|name| std::fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap_or_default()).concat()
}
