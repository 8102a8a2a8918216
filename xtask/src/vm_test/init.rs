//! The init of a guest: mounts, asks the agent where its probes stand with each rung forced and under conditions, runs
//! every test, and says all of it between marks on a serial line of its own. Reading that is left to `said`.

use std::fmt::Write;

use super::conditions;
use super::kernels::LOADED;
use super::payload::{AGENT, Payload};
use super::said::{BEGIN, DONE, END};

/// Seconds after which a test, or a look at the agent, is killed.
const LIMIT_SECONDS: u32 = 240;

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

/// What comes first in every guest: mounts, modules, and the line to speak on. The kernel hands on what its command line says of
/// `said` and `end`.
pub(crate) fn preamble() -> String {
    format!(
        "#!/bin/busybox sh\n\
         /bin/busybox --install -s /bin\n\
         export PATH=/usr/bin:/bin HOME=/ TERM=dumb RUST_BACKTRACE=0\n\
         mount -t proc proc /proc; mount -t sysfs sysfs /sys; mount -t devtmpfs devtmpfs /dev; ln -s /proc/self/fd /dev/fd\n\
         mount -t tmpfs tmpfs /tmp; mount -t tmpfs tmpfs /run; mount -t cgroup2 cgroup2 /sys/fs/cgroup\n\
         for controller in $(cat /sys/fs/cgroup/cgroup.controllers); do echo +$controller >/sys/fs/cgroup/cgroup.subtree_control; done\n\
         mount -t tracefs tracefs /sys/kernel/tracing; mount -t securityfs securityfs /sys/kernel/security\n\
         ip link set lo up; ulimit -l unlimited; ulimit -n 65536\n\
         /bin/stty -F /dev/$said raw -echo 115200; exec </dev/null >/dev/$said 2>&1\n\
         mkdir -p /lib/modules; ln -s /modules /lib/modules/$(uname -r); modprobe -q -a {}\n\
         section() {{\n\
         echo \"{BEGIN}$1\"; shift; timeout -s KILL {LIMIT_SECONDS} \"$@\"; status=$?; read -r up _ </proc/uptime; echo; echo \"{END}$status $up\"\n\
         }}\n\
         section kernel cat /proc/version\n",
        LOADED.join(" ")
    )
}

/// What comes last.
pub(crate) fn end() -> String {
    format!("echo '{DONE}'\nsleep 1\n$end -f\nsleep 60\n")
}

/// The init as a script for busybox.
pub(crate) fn script(payload: &Payload, tests: &str, has_setpriv: bool) -> String {
    let mut script = preamble();
    for rung in rungs(&payload.probes).iter().filter(|_| payload.is_whole) {
        let _ = writeln!(script, "section 'forced {rung}' {AGENT} --config /etc/{rung}.toml doctor --json");
    }
    for (suite, name) in &payload.tests {
        let _ = writeln!(
            script,
            "section 'test {suite} {name}' {tests}/{suite} --include-ignored --exact {name} --nocapture --test-threads=1"
        );
    }
    if payload.is_whole {
        script += &conditions::script(has_setpriv);
    }
    script + &end()
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
