//! The inventory against recorded and hostile hosts; what it gathers is in the files beside.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use serde_json::Value;

use super::*;

fn options() -> Options {
    Options::new(&Values::default())
}

fn of(host: &Host) -> Value {
    let inventory = collect(host, "gpu-server-01", &options(), &host.clock.now());
    let json = serde_json::to_value(inventory).expect("plain data");
    meets_schema(&json);
    json
}

/// A directory in memory where there is such a place: thousands of files take a disk many seconds.
fn directory() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a directory")
}

fn recorded(name: &str) -> Value {
    of(&Host::fixture(&Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/hosts")).join(name)))
}

/// Holds `json` against the schema in the repository.
#[expect(clippy::disallowed_methods, reason = "a file of the repository, not of the machine")]
fn meets_schema(json: &Value) {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/schemas/inventory.schema.json");
    let schema = fs::read(path).expect("the schema is in the repository");
    check("inventory", json, &serde_json::from_slice(&schema).expect("JSON"));
}

/// The part of JSON Schema that the schema uses, but for patterns.
fn check(at: &str, json: &Value, schema: &Value) {
    let is = match schema["type"].as_str().expect("a type") {
        "object" => json.is_object(),
        "array" => json.is_array(),
        "string" => json.is_string(),
        "integer" => json.is_u64(),
        "number" => json.as_f64().is_some_and(|number| number >= 0.0),
        "boolean" => json.is_boolean(),
        other => panic!("{at}: the check does not know type {other}"),
    };
    assert!(is, "{at}: {json} is no {}", schema["type"]);
    if let Some(choice) = schema["enum"].as_array() {
        assert!(choice.contains(json), "{at}: {json}");
    }
    for required in schema["required"].as_array().into_iter().flatten() {
        assert!(json.get(required.as_str().expect("a key")).is_some(), "{at}: {required} is missing");
    }
    for (key, value) in json.as_object().into_iter().flatten() {
        let property = &schema["properties"][key];
        assert!(property.is_object(), "{at}: the schema has no {key}");
        check(&format!("{at}.{key}"), value, property);
    }
    for item in json.as_array().into_iter().flatten() {
        check(&format!("{at}[]"), item, &schema["items"]);
    }
}

fn pretty(json: &Value) -> String {
    serde_json::to_string_pretty(json).expect("plain data")
}

#[test]
fn two_sockets_two_nodes_and_five_kinds_of_disk() {
    insta::assert_snapshot!(pretty(&recorded("inventory-two-sockets")));
}

#[test]
fn a_virtual_machine() {
    insta::assert_snapshot!(pretty(&recorded("inventory-virtual-machine")));
}

#[test]
fn linux_3_10_with_a_cpu_offline_and_a_bond() {
    let mut json = recorded("inventory-el7");
    // This kernel does not tell its machine, so that of the test is shown.
    let machine = crate::host::os::uname().machine().to_str().expect("UTF-8").to_owned();
    assert_eq!(json["os"].as_object_mut().expect("an object").remove("arch"), Some(machine.into()));
    insta::assert_snapshot!(pretty(&json));
}

#[test]
fn an_arm_server_without_model_name_and_packages() {
    insta::assert_snapshot!(pretty(&recorded("inventory-arm")));
}

#[test]
fn a_container_without_devices() {
    let json = recorded("inventory-container");
    for key in ["disks", "network", "numa", "bios", "board", "system", "omitted"] {
        assert_eq!(json.get(key), None, "{key}");
    }
    assert_eq!(json["os"]["version"], "3.20.1", "the link's absolute target is below the root");
    assert_eq!((&json["cpu"]["total_threads"], &json["cpu"]["threads_per_core"]), (&1.into(), &1.into()));
}

#[test]
fn nothing_at_all() {
    let dir = directory();
    let json = of(&Host::fixture(dir.path()));
    let keys: Vec<&String> = json.as_object().expect("an object").keys().collect();
    assert_eq!(keys, ["collected_at", "cpu", "hostname", "memory", "os", "schema"]);
    assert_eq!((&json["cpu"], &json["memory"]), (&serde_json::json!({}), &serde_json::json!({})));
    assert_eq!(json["collected_at"], "2026-02-22T16:30:00Z");
    // Directories that are there and empty are no devices, which is known.
    for path in
        ["sys/block", "sys/class/net", "sys/devices/system/node", "sys/devices/system/memory", "sys/class/dmi/id"]
    {
        fs::create_dir_all(dir.path().join(path)).expect("created");
    }
    let json = of(&Host::fixture(dir.path()));
    assert_eq!((&json["disks"], &json["network"]), (&serde_json::json!([]), &serde_json::json!([])));
    assert_eq!((json.get("numa"), json.get("bios")), (None, None));
}

#[test]
fn garbage_in_every_file() {
    let two_sockets = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/hosts/inventory-two-sockets"));
    for garbage in [&b""[..], b"\0\xff\xfe=:\x1b[31m\n", b"-1", b"99999999999999999999", b"18446744073709551615", b"0"]
    {
        let dir = directory();
        copy_with(two_sockets, dir.path(), garbage);
        let json = of(&Host::fixture(dir.path()));
        assert_eq!(json["disks"].as_array().expect("a list").len(), 5, "{garbage:?}");
        assert_eq!(json["numa"]["nodes"], 2, "{garbage:?}");
    }
}

/// The same tree with `content` in every file.
#[expect(clippy::disallowed_methods, reason = "a folder of the repository, not of the machine")]
fn copy_with(from: &Path, to: &Path, content: &[u8]) {
    fs::create_dir_all(to).expect("created");
    for entry in fs::read_dir(from).expect("listed") {
        let entry = entry.expect("listed");
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        let kind = entry.file_type().expect("its type");
        if kind.is_symlink() {
            symlink(fs::read_link(&source).expect("read"), &target).expect("linked");
        } else if kind.is_dir() {
            copy_with(&source, &target, content);
        } else {
            fs::write(&target, content).expect("written");
        }
    }
}

#[test]
fn hostile_text_is_kept_as_text_and_bounded() {
    let dir = directory();
    let write = |path: &str, content: &[u8]| {
        let path = dir.path().join(path);
        fs::create_dir_all(path.parent().expect("a directory")).expect("created");
        fs::write(path, content).expect("written");
    };
    write("etc/os-release", b"NAME=\"\x1b]0;owned\x07\"\nVERSION=\"\",\\\"x\\\":1\"\n");
    write("sys/block/sda/device/model", &[b'm'; 5000]);
    write("sys/block/sda/device/serial", b"a\nb\xffc\n");
    write("sys/block/sda/size", b"18446744073709551615\n");
    write("sys/class/net/eth\n0/device/driver", b"no link");
    write("sys/class/net/eth\n0/address", b"\x1b[2J");
    let json = of(&Host::fixture(dir.path()));
    assert_eq!(json["os"]["distro"], "\u{1b}]0;owned\u{7}");
    let disk = &json["disks"][0];
    assert_eq!((disk["model"].as_str().map(str::len), &disk["serial"]), (Some(256), &"a\nb\u{fffd}c".into()));
    assert_eq!(disk.get("capacity_gb"), None, "it does not fit");
    assert_eq!(json["network"][0], serde_json::json!({ "name": "eth\n0", "mac": "\u{1b}[2J" }));
}

#[test]
fn lists_are_bounded_and_say_so() {
    let dir = directory();
    for number in 0..1030 {
        for path in [format!("sys/block/sd{number}/device"), format!("sys/devices/system/node/node{number}")] {
            fs::create_dir_all(dir.path().join(path)).expect("created");
        }
    }
    let json = of(&Host::fixture(dir.path()));
    assert_eq!(json["disks"].as_array().map(Vec::len), Some(1024));
    assert_eq!(json["numa"]["topology"].as_array().map(Vec::len), Some(1024));
    assert_eq!(json["numa"]["nodes"], 1030);
    assert_eq!(json["omitted"], serde_json::json!({ "disks": 6, "network": 0, "numa": 6 }));
}

#[test]
fn bios_is_left_out_when_not_wanted() {
    let mut values = Values::default();
    values.set(BIOS.spec(), crate::spec::Value::Bool(false));
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/hosts/inventory-two-sockets");
    let host = Host::fixture(Path::new(root));
    let inventory = collect(&host, "a", &Options::new(&values), &host.clock.now());
    assert_eq!((inventory.bios, inventory.board, inventory.system), (None, None, None));
}

#[test]
fn the_live_machine_has_a_kernel_cpus_and_memory() {
    let host = Host::live(&crate::host::Roots::default());
    let json = of(&host);
    assert_eq!(json["os"]["kernel"].as_str(), crate::host::os::uname().release().to_str().ok());
    let cpus = std::thread::available_parallelism().expect("CPUs").get();
    assert!(json["cpu"]["total_threads"].as_u64().expect("a number") >= cpus as u64);
    assert!(json["memory"]["total_gb"].as_f64().expect("a number") > 0.0);
}
