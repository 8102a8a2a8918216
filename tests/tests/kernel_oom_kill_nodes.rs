//! OOM kills where a process may use a part of the machine's memory only: a cpuset, or a policy of its own, binds it to one
//! of two nodes. Probe and log both tell, and the log says what bound it.
#![expect(clippy::disallowed_methods, clippy::panic, reason = "a test reads files, runs programs and fails by panic")]

use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use sysops_agent::host::{Host, Roots, StateFiles};
use sysops_agent::kernel::Rung;
use sysops_agent::logs::Kmsg;
use sysops_agent::model::event::OomKill;
use sysops_agent::model::{Detail, Event};
use sysops_agent::spec::Values;
use sysops_tests::events::take_until;
use sysops_tests::one_probe::OneProbe;
use sysops_tests::require::{self, require};

/// More than a node has.
const GREEDY: &str = "dd if=/dev/zero of=/dev/null bs=700M count=1";
const LONG: Duration = Duration::from_secs(60);
/// In this time the kernel's log takes ten reports (`oom_rs` in mm/oom_kill.c), and those of other tests may be among them.
const LOG_INTERVAL: Duration = Duration::from_secs(5);

#[test]
#[ignore = "needs two nodes of memory; run by vm-test without --quick"]
fn who_is_bound_by_a_cpuset_is_told() {
    if !require(missing().or_else(|| require::programs(&["sh", "dd"]))) {
        return;
    }
    let cpuset = PathBuf::from(format!("/sys/fs/cgroup/sysops-node-{}", std::process::id()));
    std::fs::create_dir(&cpuset).expect("root may");
    std::fs::write(cpuset.join("cpuset.mems"), "1").expect("there is a second node");
    let path = format!("/{}", cpuset.file_name().and_then(|name| name.to_str()).expect("our own name"));
    let script = format!("echo $$ >{}/cgroup.procs && exec {GREEDY}", cpuset.display());
    is_told(&script, "CONSTRAINT_CPUSET", Some(&path));
    std::fs::remove_dir(&cpuset).expect("it is empty");
}

#[test]
#[ignore = "needs two nodes of memory; run by vm-test without --quick"]
fn who_is_bound_by_a_policy_is_told() {
    if require(missing().or_else(|| require::programs(&["sh", "dd", "numactl"]))) {
        is_told(&format!("exec numactl --membind=1 {GREEDY}"), "CONSTRAINT_MEMORY_POLICY", None);
    }
}

/// User-mode Linux has one node.
fn missing() -> Option<String> {
    require::root().or_else(|| require::files(&["/sys/devices/system/node/node1"]))
}

fn is_told(script: &str, constraint: &str, cgroup: Option<&str>) {
    let host = Host::live(&Roots::default());
    let mut probe = OneProbe::start(&host, "oom_kill", "auto", Values::default());
    let standing = probe.standing();
    if standing.rung > Rung::Tracepoint {
        let _ = require(Some(standing.reason));
        return;
    }
    let data = std::env::temp_dir().join(format!("sysops-node-{}", std::process::id()));
    std::fs::create_dir_all(&data).expect("a directory of our own");
    let mut log = Kmsg::open(&host, &Values::default(), &StateFiles::within(Some(&data)))
        .unwrap_or_else(|error| panic!("{error:?}"));
    std::thread::sleep(LOG_INTERVAL);
    let mut victim = Command::new("sh").args(["-c", script]).spawn().expect("there is a shell");
    let status = victim.wait().expect("our child");
    assert_eq!(status.signal(), Some(9), "it was not killed: {status}");
    let about = |events: &[Event]| events.iter().filter(|event| event.tid == Some(victim.id())).count();
    let by_probe = take_until(probe.source(), &host, LONG, |events| about(events) > 0);
    let by_log = take_until(&mut log, &host, LONG, |events| about(events) > 0);
    std::fs::remove_dir_all(&data).expect("a directory of our own");
    assert_eq!((about(&by_probe), about(&by_log)), (1, 1), "{by_probe:#?} {by_log:#?}");
    let one = |events: &[Event]| events.iter().find(|event| event.tid == Some(victim.id())).cloned();
    let (probed, logged) = (one(&by_probe).expect("counted"), one(&by_log).expect("counted"));
    println!("{}", serde_json::to_string(&probed).expect("an event is JSON"));
    println!("{}", serde_json::to_string(&logged).expect("an event is JSON"));
    assert_eq!(kill(&logged).constraint.as_deref(), Some(constraint));
    assert_eq!((probed.comm.as_deref(), kill(&probed).already_exiting), (Some("dd"), Some(false)));
    // Where the tracepoint hands over no task, /proc is asked, which may be too late.
    let is_known = cgroup.is_none() || standing.rung == Rung::Tracepoint || probed.cgroup.as_deref() == cgroup;
    assert!(is_known, "{cgroup:?}: {probed:?}");
}

fn kill(event: &Event) -> &OomKill {
    let Detail::OomKill(kill) = &event.detail else { panic!("{event:?}") };
    kill
}
