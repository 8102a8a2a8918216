//! The init of a guest: mounts, asks the agent where its probes stand with each rung forced and under conditions, runs
//! every test, and says all of it between marks on the second serial line. Reading that is left to `said`.

use std::fmt::Write;

use super::payload::{AGENT, Payload};
use super::said::{BEGIN, DONE, END};

/// Seconds after which a test, or a look at the agent, is killed.
const LIMIT_SECONDS: u32 = 240;

/// The unit's capabilities, as setpriv spells them. It is called by its path: busybox takes its own applet before what is in PATH.
const CAPABILITIES: &str = "+bpf,+perfmon,+syslog,+dac_read_search,+sys_ptrace";

/// Conditions under which the probes choose for themselves, in the order in which they are made: the last ones stay.
const CONDITIONS: &[(&str, &str)] = &[
    ("nothing special", ""),
    ("kernel.perf_event_paranoid = 3", "echo 3 >/proc/sys/kernel/perf_event_paranoid"),
    (
        "kernel.kptr_restrict = 2, dmesg_restrict = 1",
        "echo 2 >/proc/sys/kernel/kptr_restrict; echo 1 >/proc/sys/kernel/dmesg_restrict",
    ),
    ("/proc with hidepid=2", "mount -o remount,hidepid=2 /proc"),
    (USER, ""),
    ("no tracefs", "umount /sys/kernel/tracing"),
    ("lockdown = integrity", "echo integrity >/sys/kernel/security/lockdown"),
    ("lockdown = confidentiality", "echo confidentiality >/sys/kernel/security/lockdown"),
];
const USER: &str = "a user with the unit's five capabilities";

/// A configuration file for each rung: it is forced on every probe that has it.
pub(crate) fn configurations(probes: &[(String, Vec<String>)]) -> Vec<(String, String)> {
    let mut files = vec![("/etc/auto.toml".to_owned(), String::new())];
    for rung in rungs(probes) {
        let mut text = String::new();
        for (probe, _) in probes.iter().filter(|(_, rungs)| rungs.contains(&rung)) {
            let _ = writeln!(text, "[kernel.{probe}]\nrung = \"{rung}\"");
        }
        files.push((format!("/etc/{rung}.toml"), text));
    }
    files
}

/// Every rung once, in the order in which the probes have them.
pub(crate) fn rungs(probes: &[(String, Vec<String>)]) -> Vec<String> {
    let mut all: Vec<String> = Vec::new();
    for rung in probes.iter().flat_map(|(_, rungs)| rungs) {
        if !all.contains(rung) {
            all.push(rung.clone());
        }
    }
    all
}

/// The init as a script for busybox.
pub(crate) fn script(payload: &Payload, tests: &str, has_setpriv: bool) -> String {
    let mut script = format!(
        "#!/bin/busybox sh\n\
         /bin/busybox --install -s /bin\n\
         export PATH=/usr/bin:/bin HOME=/ TERM=dumb RUST_BACKTRACE=0\n\
         mount -t proc proc /proc; mount -t sysfs sysfs /sys; mount -t devtmpfs devtmpfs /dev\n\
         mount -t tmpfs tmpfs /tmp; mount -t tmpfs tmpfs /run; mount -t cgroup2 cgroup2 /sys/fs/cgroup\n\
         echo +memory >/sys/fs/cgroup/cgroup.subtree_control\n\
         mount -t tracefs tracefs /sys/kernel/tracing; mount -t securityfs securityfs /sys/kernel/security\n\
         ip link set lo up\n\
         /bin/stty -F /dev/ttyS1 raw -echo 115200; exec </dev/null >/dev/ttyS1 2>&1\n\
         for module in /modules/*.ko; do insmod $module; done\n\
         section() {{\n\
         echo \"{BEGIN}$1\"; shift; timeout -s KILL {LIMIT_SECONDS} \"$@\"; status=$?; read -r up _ </proc/uptime; echo; echo \"{END}$status $up\"\n\
         }}\n\
         section kernel cat /proc/version\n"
    );
    for rung in rungs(&payload.probes) {
        let _ = writeln!(script, "section 'forced {rung}' {AGENT} --config /etc/{rung}.toml doctor --json");
    }
    for (suite, name) in &payload.tests {
        let _ = writeln!(
            script,
            "section 'test {suite} {name}' {tests}/{suite} --exact {name} --nocapture --test-threads=1"
        );
    }
    for (condition, command) in CONDITIONS {
        let user = format!(
            "/usr/bin/setpriv --reuid 65534 --regid 65534 --clear-groups --inh-caps {CAPABILITIES} --ambient-caps {CAPABILITIES} "
        );
        let (prefix, possible) = if *condition == USER { (user.as_str(), has_setpriv) } else { ("", true) };
        let agent = format!("{prefix}{AGENT} --config /etc/auto.toml doctor --json");
        let agent = if possible { agent } else { "echo skipped: needs the program setpriv".to_owned() };
        // A condition that cannot be made is not one under which the probes were seen.
        let _ = writeln!(
            script,
            "if ! {{ {}; }} 2>/tmp/refused; then section \"condition {condition}\" echo \"skipped: $(cat /tmp/refused)\"; else section \"condition {condition}\" {agent}; fi",
            if command.is_empty() { "true" } else { command }
        );
    }
    let _ = write!(script, "echo '{DONE}'\nsleep 1\nreboot -f\nsleep 60\n");
    script
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rung_is_forced_on_those_that_have_it() {
        let probe = |name: &str, rungs: &[&str]| (name.to_owned(), rungs.iter().map(|&rung| rung.to_owned()).collect());
        let probes = [probe("oom_kill", &["tp_btf", "kmsg"]), probe("fd", &["tp_btf"])];
        let files = configurations(&probes);
        let text = |name: &str| files.iter().find(|(path, _)| path.ends_with(name)).map(|(_, text)| text.as_str());
        assert_eq!(
            text("/tp_btf.toml"),
            Some("[kernel.oom_kill]\nrung = \"tp_btf\"\n[kernel.fd]\nrung = \"tp_btf\"\n")
        );
        assert_eq!(text("/kmsg.toml"), Some("[kernel.oom_kill]\nrung = \"kmsg\"\n"));
        assert_eq!(text("/auto.toml"), Some(""));
    }
}
