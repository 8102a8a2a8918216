//! `doctor` says of each probe and collector where it stands, why, and what would mend it: as root, as anyone, and with
//! the service's capabilities alone.

use std::collections::BTreeSet;
use std::process::Output;
use std::time::Duration;

use serde_json::Value;
use sysops_agent::{collect, kernel};
use sysops_tests::agent::{self, Launch};
use sysops_tests::require::{self, require};
use sysops_tests::servers::Scratch;
use sysops_tests::{schema, user};

const FORCED: &str = "[kernel.oom_kill]\nrung = \"tracepoint\"\n";

/// What doctor says, held against the schema and against what there is to say something about.
fn report(output: &Output) -> Value {
    let report = schema::parse("doctor", &output.stdout);
    let names = |list: &str| -> Vec<String> {
        let list = report[list].as_array().expect("a list");
        list.iter().map(|one| one["name"].as_str().expect("a name").to_owned()).collect()
    };
    assert_eq!(names("probes"), kernel::ALL.iter().map(|probe| probe.name).collect::<Vec<_>>());
    assert_eq!(names("collectors"), collect::ALL.iter().map(|one| one.name).collect::<Vec<_>>());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!said.contains("panicked") && !said.contains("ERROR"), "{said}");
    report
}

fn capabilities(report: &Value, list: &str) -> usize {
    report["capabilities"][list].as_array().expect("a list").len()
}

fn assert_probes_stand(report: &Value) {
    for probe in report["probes"].as_array().expect("a list") {
        let rung = probe["rung"].as_str().expect("text");
        assert!(["tp_btf", "raw_tracepoint", "tracepoint", "iter"].contains(&rung), "{probe}");
        if ["oom_kill", "hung_task"].contains(&probe["name"].as_str().expect("text")) {
            assert_eq!((rung, &probe["reason"]), ("tp_btf", &"".into()), "{probe}");
        }
    }
    assert_eq!(report["log"]["state"], "ok", "{report:#}");
    assert_eq!(capabilities(report, "missing"), 0, "{report:#}");
}

/// What is missing for the best rung.
fn no_btf() -> Option<String> {
    require::files(&["/sys/kernel/btf/vmlinux", "/dev/kmsg"])
        .or_else(|| (!cfg!(feature = "default")).then(|| "needs the agent with the feature ebpf".to_owned()))
}

#[test]
fn as_root_the_probes_stand() {
    if !require(agent::missing().or_else(require::root).or_else(no_btf)) {
        return;
    }
    let output = agent::run(&["doctor", "--json"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let report = report(&output);
    assert_probes_stand(&report);
    assert_eq!(report["capabilities"]["uid"], 0);
}

#[test]
fn with_the_services_capabilities_alone_the_probes_stand() {
    if !require(agent::missing().or_else(user::missing).or_else(no_btf)) {
        return;
    }
    let output = user::service().run(&["doctor", "--json"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let report = report(&output);
    assert_probes_stand(&report);
    assert_eq!((&report["capabilities"]["uid"], capabilities(&report, "effective")), (&user::UID.into(), 5));
    for collector in report["collectors"].as_array().expect("a list") {
        assert_ne!(collector["state"], "failed", "{collector}");
    }
}

#[test]
fn an_ordinary_user_is_told_what_is_missing() {
    if !require(agent::missing().or_else(user::missing)) {
        return;
    }
    let output = user::ordinary().run(&["doctor", "--json"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let report = report(&output);
    assert_eq!((capabilities(&report, "effective"), capabilities(&report, "missing")), (0, 5));
    for probe in report["probes"].as_array().expect("a list") {
        assert!(["kmsg", "proc", "off"].contains(&probe["rung"].as_str().expect("text")), "{probe}");
        let (reason, remedy) = (&probe["reason"], &probe["remedy"]);
        assert!(reason.as_str().is_some_and(|reason| reason.contains("CAP_BPF")), "{probe}");
        assert!(remedy.as_str().is_some_and(|remedy| remedy.contains("CAP_BPF")), "{probe}");
    }
    for collector in report["collectors"].as_array().expect("a list") {
        assert_ne!(collector["state"], "failed", "what anyone may read is read: {collector}");
    }
    // The same for people.
    let text = user::ordinary().run(&["doctor"]);
    let text = String::from_utf8_lossy(&text.stdout);
    for word in ["oom_kill", "because: ", "to mend: ", "lacks CAP_BPF: "] {
        assert!(text.contains(word), "{text}");
    }
}

#[test]
fn a_forced_rung_that_cannot_stand_is_an_error() {
    if !require(agent::missing().or_else(require::root).or_else(|| require::programs(&["unshare"])).or_else(no_btf)) {
        return;
    }
    // In a namespace of its own, in which tracefs is nowhere whatever the machine has mounted.
    let hide = "umount -l /sys/kernel/tracing 2>/dev/null; mount -t tmpfs none /sys/kernel/debug && exec \"$@\"";
    let launch = || Launch::through(&["unshare", "-m", "sh", "-c", hide, "sh"]);
    let scratch = Scratch::new();
    let file = scratch.file("config.toml", FORCED).display().to_string();
    let output = launch().run(&["--config", &file, "doctor", "--json"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let report = report(&output);
    let probe = &report["probes"][0];
    assert_eq!((&probe["name"], &probe["rung"]), (&"oom_kill".into(), &"off".into()), "{probe}");
    assert!(probe["reason"].as_str().is_some_and(|reason| reason.contains("tracefs is not mounted")), "{probe}");
    assert!(probe["remedy"].as_str().is_some_and(|remedy| remedy.contains("mount -t tracefs")), "{probe}");

    let mut agent = launch().start(&format!("[agent]\ndata_dir = \"@DATA@\"\n{FORCED}"), &[]);
    let status = agent.end(Duration::from_secs(20));
    assert_eq!(status.code(), Some(69), "{}", agent.stderr());
    let said = agent.stderr();
    for part in ["error: kernel.oom_kill.rung: ", "tracefs is not mounted", "mount -t tracefs"] {
        assert!(said.contains(part), "no {part:?} in {said}");
    }
}

#[test]
fn a_forced_rung_is_the_one_that_stands() {
    if !require(agent::missing().or_else(require::root).or_else(|| require::programs(&["unshare"])).or_else(no_btf)) {
        return;
    }
    let mount = "mountpoint -q /sys/kernel/tracing || mount -t tracefs none /sys/kernel/tracing; exec \"$@\"";
    let scratch = Scratch::new();
    let mut seen = BTreeSet::new();
    for rung in ["tp_btf", "raw_tracepoint", "tracepoint", "iter", "kmsg", "proc", "off"] {
        let tables: String =
            kernel::ALL.iter().map(|probe| format!("[kernel.{}]\nrung = \"{rung}\"\n", probe.name)).collect();
        let file = scratch.file("config.toml", &tables).display().to_string();
        let launch = Launch::through(&["unshare", "-m", "sh", "-c", mount, "sh"]);
        let output = launch.run(&["--config", &file, "doctor", "--json"]);
        let report = report(&output);
        for probe in report["probes"].as_array().expect("a list") {
            // A probe that has no such rung says so, and that is an error.
            if probe["rung"] == rung {
                seen.insert((probe["name"].to_string(), rung));
            } else {
                assert_eq!((output.status.code(), &probe["rung"]), (Some(1), &"off".into()), "{probe}");
                assert_ne!(probe["reason"], "", "{probe}");
            }
        }
    }
    for rung in ["tp_btf", "raw_tracepoint", "tracepoint", "kmsg", "off"] {
        assert!(seen.contains(&("\"oom_kill\"".to_owned(), rung)), "{rung}: {seen:?}");
    }
    for rung in ["iter", "proc", "off"] {
        assert!(seen.contains(&("\"tasks\"".to_owned(), rung)), "{rung}: {seen:?}");
    }
}

#[test]
fn a_configuration_that_is_not_there_is_said() {
    if !require(agent::missing()) {
        return;
    }
    let output = agent::run(&["--config", "/nonexistent/config.toml", "doctor"]);
    assert_eq!(output.status.code(), Some(78), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("/nonexistent/config.toml"), "{output:?}");
}
