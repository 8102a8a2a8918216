//! `once` and `--inventory-dump`: what is printed holds against its schema, and Prometheus's own linter has nothing to
//! say about it.
#![expect(clippy::disallowed_methods, reason = "tests start promtool and read fixtures")]

use std::collections::BTreeSet;
use std::io::Write as _;
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use sysops_tests::agent::{self, Launch};
use sysops_tests::feed::repository_file;
use sysops_tests::require::require;
use sysops_tests::servers::find_program;
use sysops_tests::source::root;
use sysops_tests::{schema, user};

/// What anyone can see of any Linux machine.
const EVERYWHERE: [&str; 8] = [
    "cpu_usage_percent",
    "node_load1",
    "memory_used_percent",
    "disk_usage_percent",
    "disk_inode_usage_percent",
    "network_receive_bytes_per_second",
    "processes",
    "fd_used_percent",
];

fn printed(output: &Output) -> &[u8] {
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && !said.contains("panicked"), "{:?}\n{said}", output.status);
    &output.stdout
}

fn names(document: &Value) -> BTreeSet<&str> {
    let metrics = document["metrics"].as_array().expect("a list");
    metrics.iter().map(|metric| metric["name"].as_str().expect("text")).collect()
}

fn hold_metrics(launch: &Launch) {
    let document = schema::parse("metrics", printed(&launch.run(&["once", "--format", "json"])));
    let names = names(&document);
    for name in EVERYWHERE {
        assert!(names.contains(name), "no {name} in {names:?}");
    }
    let mut series = BTreeSet::new();
    for metric in document["metrics"].as_array().expect("a list") {
        assert!(series.insert((metric["name"].to_string(), metric["labels"].to_string())), "twice: {metric}");
        if metric["name"] == "collector_success" {
            assert_eq!(metric["value"], 1.0, "{metric}");
        }
    }
}

#[test]
fn json_holds_against_the_schema() {
    if require(agent::missing()) {
        hold_metrics(&Launch::default());
    }
}

#[test]
fn json_as_an_ordinary_user() {
    if require(agent::missing().or_else(user::missing)) {
        hold_metrics(&user::ordinary());
    }
}

#[test]
fn promtool_has_nothing_to_say() {
    if !require(agent::missing()) {
        return;
    }
    let Some(promtool) = find_program("promtool") else { return };
    let output = agent::run(&["once", "--format", "prometheus"]);
    let text = printed(&output);
    let mut child = Command::new(promtool)
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it was found");
    child.stdin.take().expect("piped").write_all(text).expect("it reads");
    let said = child.wait_with_output().expect("it ends");
    assert!(said.status.success() && said.stdout.is_empty() && said.stderr.is_empty(), "{said:?}");
    let text = String::from_utf8(text.to_vec()).expect("UTF-8");
    assert!(text.contains("# TYPE sysops_cpu_usage_percent gauge\n"), "{text}");
}

#[test]
fn text_is_for_people() {
    if !require(agent::missing()) {
        return;
    }
    let output = agent::run(&["once"]);
    let text = String::from_utf8(printed(&output).to_vec()).expect("UTF-8");
    for name in EVERYWHERE {
        assert!(text.lines().any(|line| line.starts_with(&format!("{name}  "))), "no {name} in {text}");
    }
    // It goes into a pipe here: no colours.
    assert!(!text.contains('\u{1b}'), "{text}");
}

#[test]
fn the_inventory_holds_against_the_schema() {
    if !require(agent::missing()) {
        return;
    }
    let document = schema::parse("inventory", printed(&agent::run(&["--inventory-dump"])));
    for key in ["hostname", "os", "cpu", "memory"] {
        assert!(document.get(key).is_some(), "no {key} in {document:#}");
    }
    if require(user::missing()) {
        let _ = schema::parse("inventory", printed(&user::ordinary().run(&["--inventory-dump"])));
    }
}

/// Each of the recorded hosts holds what some collector reads and no more: what is missing is absent or failed, with
/// its reason, and nothing stops the rest.
#[test]
fn recorded_hosts_are_read_below_host_root() {
    if !require(agent::missing()) {
        return;
    }
    let hosts: Vec<String> = std::fs::read_dir(root().join("tests/fixtures/hosts"))
        .expect("fixtures")
        .map(|entry| entry.expect("an entry").path().display().to_string())
        .collect();
    assert!(hosts.len() > 5, "{hosts:?}");
    // Side by side: `once` takes a second, whatever there is to read.
    std::thread::scope(|scope| {
        hosts.iter().for_each(|host| drop(scope.spawn(|| read_recorded(host))));
    });
}

fn read_recorded(host: &str) {
    let inventory = schema::parse("inventory", printed(&agent::run(&["--host-root", host, "--inventory-dump"])));
    let document = schema::parse("metrics", printed(&agent::run(&["--host-root", host, "once", "--format", "json"])));
    let doctor = schema::parse("doctor", printed(&agent::run(&["--host-root", host, "doctor", "--json"])));
    assert_eq!(doctor["kernel"]["btf"], false, "{host}: its own, not this machine's");
    if host.ends_with("debian12-6.18") {
        let names = names(&document);
        // Nothing moves there, so there is no usage to tell, and none is made up.
        assert!(names.contains("node_cpu_seconds_total") && !names.contains("cpu_usage_percent"), "{names:?}");
        let total = repository_file("tests/fixtures/hosts/debian12-6.18/proc/meminfo");
        let total = total.lines().find_map(|line| line.strip_prefix("MemTotal:")).expect("in meminfo");
        let kib: f64 = total.trim().trim_end_matches(" kB").parse().expect("a number");
        let mut read = document["metrics"].as_array().expect("a list").iter();
        let read = read.find(|metric| metric["name"] == "node_memory_MemTotal_bytes").expect("it is read");
        assert_eq!(read["value"], kib * 1024.0, "{read}");
    }
    if host.ends_with("inventory-two-sockets") {
        assert_eq!(inventory["cpu"]["sockets"], 2, "{inventory:#}");
    }
}
