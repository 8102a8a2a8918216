//! The service files keep their promises: user, capabilities, notification, reload; and systemd can read them.

#![expect(clippy::disallowed_methods, reason = "the repository's own files are read, and systemd is asked")]

use std::process::Command;

use sysops_agent::settings::keys;
use sysops_agent::spec::Values;
use sysops_tests::source::root;

const UNIT: &str = "deploy/systemd/sysops-agent.service";
const CAPABILITIES: &str = "CAP_BPF CAP_PERFMON CAP_SYSLOG CAP_DAC_READ_SEARCH CAP_SYS_PTRACE";

#[test]
fn the_unit_says_what_is_promised() {
    let unit = read(UNIT);
    for line in [
        "Type=notify",
        "User=sysops-agent",
        "StateDirectory=sysops-agent",
        "RestartPreventExitStatus=64 78",
        "ExecReload=/bin/kill -HUP $MAINPID",
        "NoNewPrivileges=yes",
        "ProtectSystem=strict",
    ] {
        assert!(unit.lines().any(|found| found == line), "{UNIT}: no line {line:?}");
    }
    for key in ["AmbientCapabilities", "CapabilityBoundingSet"] {
        assert_eq!(value(&unit, key), Some(CAPABILITIES), "{UNIT}: {key}");
    }
    assert!(value(&unit, "WatchdogSec").is_some(), "{UNIT}: no WatchdogSec");
}

#[test]
fn the_control_socket_has_its_place() {
    let unit = read(UNIT);
    // The default data_dir is what StateDirectory makes and ProtectSystem=strict leaves writable.
    let data_dir = Values::default().get(&keys::DATA_DIR);
    assert_eq!(value(&unit, "StateDirectory").map(|name| format!("/var/lib/{name}")), Some(data_dir));
    assert!(value(&unit, "RestrictAddressFamilies").is_some_and(|families| families.contains("AF_UNIX")), "{UNIT}");
}

#[test]
fn a_reload_is_checked_before_it_is_sent() {
    let unit = read(UNIT);
    let reloads: Vec<&str> = unit.lines().filter_map(|line| line.strip_prefix("ExecReload=")).collect();
    assert_eq!(reloads.len(), 2, "{UNIT}: {reloads:?}");
    assert!(reloads[0].contains("--validate") && reloads[1].contains("-HUP"), "{UNIT}: {reloads:?}");
}

#[test]
fn what_would_blind_the_agent_is_off() {
    // Each was measured: ProtectClock stops adjtimex reads, ProtectKernelLogs and PrivateDevices hide /dev/kmsg,
    // ProcSubset=pid hides /proc/stat, PrivateUsers makes the capabilities count for nothing. ProtectKernelTunables
    // makes /proc/kallsyms inaccessible (systemd.exec(5)), and stacks of hung tasks are without names.
    let unit = read(UNIT);
    for key in
        ["ProtectClock", "ProtectKernelLogs", "ProtectKernelTunables", "PrivateDevices", "ProcSubset", "PrivateUsers"]
    {
        assert_eq!(value(&unit, key), None, "{UNIT}: {key}");
    }
}

#[test]
fn systemd_reads_the_unit_without_a_complaint() {
    if Command::new("systemd-analyze").arg("--version").output().is_err() {
        println!("not checked: no systemd-analyze on this machine");
        return;
    }
    let dir = std::env::temp_dir().join(format!("sysops-unit-{}", std::process::id()));
    std::fs::create_dir_all(&dir).expect("a folder of its own");
    // The agent is not installed here, and its absence is not what is checked.
    let unit = read(UNIT).replace("/usr/bin/sysops-agent", "/bin/true");
    let file = dir.join("sysops-agent.service");
    std::fs::write(&file, unit).expect("it is ours");
    let verify =
        Command::new("systemd-analyze").args(["verify", "--man=no", "--recursive-errors=no"]).arg(&file).output();
    let verify = verify.expect("it was just there");
    std::fs::remove_dir_all(&dir).expect("it is ours");
    let said = String::from_utf8_lossy(&verify.stderr);
    let about_us: Vec<&str> = said.lines().filter(|line| line.contains("sysops-agent.service")).collect();
    assert!(about_us.is_empty(), "{}", about_us.join("\n"));
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).expect(path)
}

/// Value of a key that is set once.
fn value<'a>(unit: &'a str, key: &str) -> Option<&'a str> {
    unit.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='))
}
