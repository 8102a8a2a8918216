//! Holds the import table of docs/ARCHITECTURE.md against the code, and says where a thing belongs when it fails.

use std::collections::BTreeSet;

use sysops_tests::source::{Source, listed, rust};

const AGENT: &str = "sysops-agent/src";

/// Who may import whom, lowest layer first. An entry may be a path, as `store::view`; `*` is everything.
const LAYERS: &[(&str, &[&str])] = &[
    ("model", &[]),
    ("host", &["model"]),
    ("spec", &["model"]),
    ("template", &[]),
    ("collect", &["model", "spec", "host"]),
    ("logs", &["model", "spec", "host"]),
    ("inventory", &["model", "spec", "host"]),
    ("kernel", &["model", "spec", "host"]),
    ("symbolize", &["model", "host"]),
    ("correlate", &["model", "spec"]),
    ("store", &["model", "spec"]),
    ("analyze", &["model", "spec", "template", "store::view"]),
    ("alert", &["model", "spec"]),
    ("deliver", &["model", "spec", "template"]),
    ("settings", &["model", "spec"]),
    ("control", &["model", "spec", "host"]),
    ("api", &["model", "spec", "store::view"]),
    (
        "schedule",
        &["model", "spec", "host", "collect::Collector", "collect::CollectError", "collect::Entry", "collect::Outcome"],
    ),
    (
        "catalog",
        &[
            "model",
            "spec",
            "collect",
            "kernel",
            "logs",
            "inventory",
            "correlate",
            "store",
            "analyze",
            "alert",
            "deliver",
            "settings",
            "control",
            "schedule",
            "api",
        ],
    ),
    ("pipeline", &["*"]),
    ("cli", &["*"]),
    ("main", &["*"]),
];

/// Other crates that only one place may name.
const GUARDED: &[(&str, &[&str], &str)] = &[
    (
        "aya",
        &["sysops-agent/src/kernel/loader/"],
        "loading and reading BPF objects is kernel/loader/; give it what the probe needs",
    ),
    ("blazesym", &["sysops-agent/src/symbolize/"], "names of functions and lines are symbolize/'s; hand it frames"),
    ("gimli", &["sysops-agent/src/kernel/stacks/"], "unwinding ends in kernel/stacks/; hand on frames"),
    (
        "sysops_common",
        &["sysops-agent/src/kernel/"],
        "what crosses the kernel boundary ends in kernel/; hand on a model::Event",
    ),
];

#[test]
fn the_code_keeps_the_import_table() {
    let sources = rust(AGENT);
    assert!(sources.len() > 20, "only {} files found below {AGENT}", sources.len());
    let broken: Vec<String> = sources.iter().flat_map(imports).chain(siblings(&sources)).collect();
    assert!(broken.is_empty(), "\n{}\n", broken.join("\n"));
}

#[test]
fn other_crates_are_named_where_they_belong() {
    let broken: Vec<String> = rust(AGENT).iter().flat_map(guarded).collect();
    assert!(broken.is_empty(), "\n{}\n", broken.join("\n"));
}

#[test]
fn unsafe_stays_where_it_is_allowed() {
    let sources: Vec<Source> = ["sysops-agent/src", "sysops-btf/src", "sysops-common/src", "xtask/src", "tests"]
        .into_iter()
        .flat_map(rust)
        .collect();
    let broken = unsafe_code(&sources);
    assert!(broken.is_empty(), "\n{}\n", broken.join("\n"));
}

/// Imports of one file that the table does not allow.
fn imports(source: &Source) -> Vec<String> {
    let module = source.module();
    let Some(layer) = module.first() else { return Vec::new() };
    let Some((_, may)) = LAYERS.iter().find(|(name, _)| name == layer) else {
        return vec![format!(
            "{}: layer {layer} is not in the table of tests/tests/layers.rs: give it its place",
            source.path
        )];
    };
    let mut broken = Vec::new();
    for import in source.imports() {
        let Some(target) = import.segments.first() else { continue };
        let known = LAYERS.iter().any(|(name, _)| name == target);
        if !known || target == layer || may.iter().any(|allowed| covers(allowed, &import.segments)) {
            continue;
        }
        let path = import.segments.join("::");
        broken.push(format!(
            "{}:{}: {layer} may not import crate::{path}: {}",
            source.path,
            import.line,
            cure(layer, target)
        ));
    }
    broken
}

fn covers(allowed: &str, segments: &[String]) -> bool {
    allowed == "*"
        || allowed.split("::").enumerate().all(|(index, word)| segments.get(index).is_some_and(|found| found == word))
}

/// Where the thing belongs, or how to do without the import.
fn cure(layer: &str, target: &str) -> &'static str {
    match (layer, target) {
        ("model", _) => "model is plain data; a function that needs more belongs to the layer that has it",
        (_, "pipeline" | "cli" | "main") => "only pipeline knows every layer; take what you need as a parameter",
        (_, "catalog") => "the catalog reads the lists of others; declare a static and put it into your list",
        ("analyze" | "store" | "correlate" | "alert", "host") => {
            "it is pure: clocks and files come in as parameters (model::Tick, a view)"
        }
        (_, "store") => {
            "hand on raw readings (model::Batch), or take model::Readings; rates and history are computed in store once"
        }
        (_, "deliver") => "hand on a model::Alert or model::Readings; pipeline carries it to deliver",
        (_, "analyze" | "alert") => "hand on readings or events; pipeline feeds analyze and alert",
        (_, "collect" | "kernel" | "logs" | "inventory") => {
            "siblings do not know each other; what both need moves down to host or model"
        }
        (_, "settings") => "declare a spec::Key and read it from spec::Values",
        (_, "host") => "only what reads the machine has the host; take what was read as a parameter",
        _ => "move what both need down to model or host",
    }
}

/// Members of a list that import another member: what two of them need moves into a file of its own beside them.
fn siblings(sources: &[Source]) -> Vec<String> {
    let mut broken = Vec::new();
    for dir in ["collect", "kernel", "logs", "analyze", "deliver::channel", "deliver::export"] {
        let dir: Vec<&str> = dir.split("::").collect();
        let Some(list) = sources.iter().find(|source| source.module() == dir && source.path.ends_with("mod.rs")) else {
            continue;
        };
        let members = listed(&list.production);
        for source in sources {
            let module = source.module();
            let inside = module.len() > dir.len() && dir.iter().zip(&module).all(|(a, b)| a == b);
            let Some(own) = module.get(dir.len()).filter(|own| inside && members.contains(*own)) else { continue };
            for import in source.imports() {
                let same_dir = dir.iter().zip(&import.segments).all(|(a, b)| a == b);
                let other = import
                    .segments
                    .get(dir.len())
                    .filter(|other| same_dir && *other != own && members.contains(*other));
                if let Some(other) = other {
                    let (path, line) = (&source.path, import.line);
                    broken.push(format!(
                        "{path}:{line}: {own} may not import its sibling {other}: what both need gets a file of its own"
                    ));
                }
            }
        }
    }
    let across = [("channel", "export"), ("export", "channel")];
    for source in sources {
        let module = source.module();
        for (own, other) in across {
            let crosses = |segments: &[String]| segments.starts_with(&["deliver".to_owned(), other.to_owned()]);
            if module.starts_with(&["deliver".to_owned(), own.to_owned()]) {
                let hits = source.imports().into_iter().filter(|import| crosses(&import.segments));
                broken.extend(hits.map(|import| {
                    format!(
                        "{}:{}: {own} may not import {other}: what both need moves up to deliver",
                        source.path, import.line
                    )
                }));
            }
        }
    }
    broken
}

fn guarded(source: &Source) -> Vec<String> {
    let mut broken = Vec::new();
    for (name, places, cure) in GUARDED {
        if places.iter().any(|place| source.path.starts_with(place)) {
            continue;
        }
        let names = |line: &str| {
            line.match_indices(&format!("{name}::"))
                .any(|(at, _)| !line[..at].ends_with(|c: char| c == '_' || c == ':' || c.is_alphanumeric()))
        };
        for (index, _) in source.production.lines().enumerate().filter(|(_, line)| names(line)) {
            broken.push(format!("{}:{}: {name} may not be named here: {cure}", source.path, index + 1));
        }
    }
    broken
}

/// `unsafe` outside of sysops-common's Pod impls, its plain.rs that sees a record in bytes, and one file of host.
fn unsafe_code(sources: &[Source]) -> Vec<String> {
    let mut broken = Vec::new();
    let mut host = BTreeSet::new();
    for source in sources {
        for line in source.lines_with("unsafe") {
            let place = format!("{}:{line}", source.path);
            let text = source.production.lines().nth(line - 1).unwrap_or_default();
            let plain = source.path == "sysops-common/src/plain.rs";
            if plain || (source.path.starts_with("sysops-common/") && text.contains("unsafe impl")) {
                continue;
            }
            if source.path.starts_with("sysops-agent/src/host/") {
                host.insert(source.path.clone());
            } else {
                broken.push(format!(
                    "{place}: unsafe stands in sysops-ebpf, Pod impls and plain.rs of sysops-common, and one file of host only"
                ));
            }
        }
    }
    if host.len() > 1 {
        broken.push(format!(
            "unsafe in {} files of host, one is allowed: {}",
            host.len(),
            Vec::from_iter(host).join(" ")
        ));
    }
    broken
}

mod rules {
    use super::*;

    fn agent(path: &str, text: &str) -> Source {
        Source::new(&format!("{AGENT}/{path}"), text)
    }

    #[test]
    fn a_collector_that_computes_rates_is_told_where_they_are_made() {
        let broken = imports(&agent("collect/disk.rs", "//! x\nuse crate::store::rate::Rate;\n"));
        assert_eq!(broken.len(), 1);
        let start =
            "sysops-agent/src/collect/disk.rs:2: collect may not import crate::store::rate::Rate: hand on raw readings";
        assert!(broken[0].starts_with(start), "{}", broken[0]);
    }

    #[test]
    fn what_the_table_allows_passes() {
        assert_eq!(imports(&agent("analyze/trend.rs", "use crate::{model::Tick, store::view::View, spec};")), [""; 0]);
        assert_eq!(imports(&agent("schedule.rs", "use crate::collect::{Collector, Outcome};")), [""; 0]);
        assert_eq!(imports(&agent("pipeline.rs", "use crate::{deliver::http, store::ring};")), [""; 0]);
    }

    #[test]
    fn a_path_in_code_counts_as_an_import_and_one_in_a_test_does_not() {
        assert_eq!(imports(&agent("logs/kmsg.rs", "fn f() { crate::collect::cpu::parse(b\"\") }")).len(), 1);
        assert_eq!(imports(&agent("logs/kmsg.rs", "#[cfg(test)] mod tests { use crate::collect::cpu; }")), [""; 0]);
        assert_eq!(imports(&agent("logs/kmsg.rs", "/// See [`crate::collect::cpu`].\nfn f() {}")), [""; 0]);
    }

    #[test]
    fn a_wider_path_than_allowed_is_not_allowed() {
        assert_eq!(imports(&agent("analyze/trend.rs", "use crate::store;")).len(), 1);
        assert_eq!(imports(&agent("deliver/export/nats.rs", "use super::super::super::store::view;")).len(), 1);
    }

    #[test]
    fn a_layer_without_a_place_is_told_to_take_one() {
        assert!(imports(&agent("util.rs", ""))[0].contains("is not in the table"));
    }

    #[test]
    fn siblings_do_not_know_each_other_but_share_files() {
        let list = agent("collect/mod.rs", "pub static ALL: &[&Entry] = &[&cpu::ENTRY, &load::ENTRY];");
        let apart = agent("collect/cpu.rs", "use super::bytes::fields;");
        let joined = agent("collect/load.rs", "use crate::collect::cpu::Times;");
        assert_eq!(siblings(&[list.clone(), apart]), [""; 0]);
        assert!(siblings(&[list, joined])[0].contains("load may not import its sibling cpu"));
        assert_eq!(siblings(&[agent("deliver/channel/syslog.rs", "use crate::deliver::export::nats;")]).len(), 1);
    }

    #[test]
    fn guarded_crates_are_found_by_name() {
        assert_eq!(guarded(&agent("collect/cpu.rs", "use aya::Ebpf;")).len(), 1);
        assert_eq!(guarded(&agent("kernel/loader/mod.rs", "use aya::Ebpf;")), [""; 0]);
        assert_eq!(guarded(&agent("collect/cpu.rs", "use himalaya::Peak; // aya::Ebpf")), [""; 0]);
    }

    #[test]
    fn unsafe_has_three_homes() {
        let pod = Source::new("sysops-common/src/fd.rs", "unsafe impl aya::Pod for Fd {}");
        let block = agent("collect/cpu.rs", "fn f() { unsafe { g() } }");
        assert_eq!(unsafe_code(&[pod, agent("host/os.rs", "unsafe { g() }")]), [""; 0]);
        assert_eq!(unsafe_code(&[block]).len(), 1);
        assert_eq!(unsafe_code(&[agent("host/os.rs", "unsafe {}"), agent("host/b.rs", "unsafe {}")]).len(), 1);
    }
}
