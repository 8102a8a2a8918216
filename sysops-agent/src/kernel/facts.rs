//! What this machine and this process offer to every probe: types, privilege, tracefs, the kernel's log. Reads and
//! decides nothing; the decision is each probe's.

use std::path::PathBuf;

use sysops_btf::Btf;

use super::ladder::Refusal;
use super::{loader, tracefs};
use crate::host::Host;
use crate::host::files::open_file;

/// What every probe asks first.
pub(super) struct Facts {
    /// The running kernel's types.
    pub btf: Result<Btf, Refusal>,
    /// The kernel lets this process load tracing programs, as far as its capabilities and the kernel's lockdown tell.
    pub privilege: Result<(), Refusal>,
    /// Where tracefs is.
    pub tracefs: Result<PathBuf, Refusal>,
    /// /dev/kmsg can be read.
    pub log: Result<(), Refusal>,
    /// /proc counts processes as the kernel's tracepoints do, in the initial pid namespace.
    pub initial_pids: bool,
    /// Name of a thread that runs the self-checks of this process and of no other: eight bytes.
    pub check_name: u64,
}

/// Numbers of capabilities (include/uapi/linux/capability.h).
const CAP_SYS_ADMIN: u32 = 21;
const CAP_PERFMON: u32 = 38;
const CAP_BPF: u32 = 39;

impl Facts {
    /// Reads them all once, at the start.
    #[must_use]
    pub(super) fn read(host: &Host) -> Self {
        Self {
            btf: btf(host),
            privilege: loader::available().and_then(|()| privilege(host)).and_then(|()| lockdown(host)),
            tracefs: tracefs::find(host),
            log: log(host),
            initial_pids: initial_pids(host),
            check_name: check_name(),
        }
    }

    /// The fields of the tracepoint `event`.
    ///
    /// # Errors
    /// When tracefs or the tracepoint is missing.
    pub(super) fn format(&self, host: &Host, event: &str) -> Result<tracefs::Format, Refusal> {
        tracefs::format(host, self.tracefs.as_ref().map_err(Clone::clone)?, event)
    }
}

fn btf(host: &Host) -> Result<Btf, Refusal> {
    let path = host.files.sys("kernel/btf/vmlinux");
    let data = host.files.read_large(&path).map_err(|error| {
        if error.is_absent() {
            Refusal::new(
                format!("no BTF: {} is missing", path.display()),
                "use a kernel built with CONFIG_DEBUG_INFO_BTF=y",
            )
        } else {
            Refusal::new(format!("no BTF: {error}: {}", error.source), "")
        }
    })?;
    Btf::parse(data).map_err(|error| Refusal::new(format!("{}: {error}", path.display()), ""))
}

/// PROC_USER_INIT_INO (include/linux/proc_ns.h).
const INITIAL_USER_NAMESPACE: &str = "user:[4026531837]";

/// Before 5.8 there are no CAP_BPF and CAP_PERFMON, but no ring buffer either, which every probe needs.
fn privilege(host: &Host) -> Result<(), Refusal> {
    let namespace = host.files.link(&host.files.proc("self/ns/user"));
    if namespace.is_ok_and(|link| link.as_os_str() != INITIAL_USER_NAMESPACE) {
        return Err(Refusal::new(
            "in a user namespace, where capabilities do not count for BPF",
            "run the agent outside of user namespaces",
        ));
    }
    let path = host.files.proc("self/status");
    let status = host.files.read_text(&path).map_err(|error| Refusal::new(error.to_string(), ""))?;
    let Some(effective) = effective_capabilities(&status) else {
        return Err(Refusal::new(format!("{}: CapEff: expected 16 hexadecimal digits", path.display()), ""));
    };
    let has = |bit: u32| effective & (1 << bit) != 0 || effective & (1 << CAP_SYS_ADMIN) != 0;
    let missing: Vec<&str> = [(CAP_BPF, "CAP_BPF"), (CAP_PERFMON, "CAP_PERFMON")]
        .iter()
        .filter(|(bit, _)| !has(*bit))
        .map(|c| c.1)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let missing = missing.join(" and ");
    Err(Refusal::new(
        format!("missing {missing}"),
        format!("run as root, or give the agent {missing} (deploy/systemd/sysops-agent.service does)"),
    ))
}

/// Under lockdown=confidentiality the verifier takes no program that reads kernel memory, which all of ours do, and tracefs is
/// closed. Where securityfs is not mounted nothing is told, and the verifier says so.
fn lockdown(host: &Host) -> Result<(), Refusal> {
    let path = host.files.sys("kernel/security/lockdown");
    match host.files.read_text(&path) {
        Ok(text) if text.contains("[confidentiality]") => Err(unreadable(&path.display().to_string())),
        _ => Ok(()),
    }
}

/// Why programs cannot read kernel memory, as `who` says it.
#[must_use]
pub(super) fn unreadable(who: &str) -> Refusal {
    Refusal::new(
        format!("kernel lockdown=confidentiality forbids reading kernel memory: {who}"),
        "boot without lockdown=confidentiality: lockdown=integrity leaves the probes alone",
    )
}

fn effective_capabilities(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

fn log(host: &Host) -> Result<(), Refusal> {
    let path = host.files.root("/dev/kmsg");
    match open_file(&path) {
        Ok(_) => Ok(()),
        Err(error) if error.is_denied() => Err(Refusal::new(
            format!("{} is closed to this user", path.display()),
            "give the agent CAP_SYSLOG and read access to /dev/kmsg, or: sysctl kernel.dmesg_restrict=0",
        )),
        Err(error) => Err(Refusal::new(format!("{error}: {}", error.source), "")),
    }
}

/// PROC_PID_INIT_INO (include/linux/proc_ns.h).
const INITIAL_PID_NAMESPACE: &str = "pid:[4026531836]";

/// In a container /proc is that of its own pid namespace, unless the host's was mounted into it: then `NStgid` lists
/// the agent's number there and here.
fn initial_pids(host: &Host) -> bool {
    let own =
        host.files.link(&host.files.proc("self/ns/pid")).is_ok_and(|link| link.as_os_str() == INITIAL_PID_NAMESPACE);
    let status = host.files.read_text(&host.files.proc("self/status")).unwrap_or_default();
    let numbers =
        status.lines().find_map(|line| line.strip_prefix("NStgid:")).map_or(0, |n| n.split_whitespace().count());
    own || numbers > 1
}

/// A thread's name has 15 bytes; the program compares the first eight as one number.
fn check_name() -> u64 {
    let text = format!("sa{:06x}", std::process::id() & 0x00ff_ffff);
    text.as_bytes().try_into().map(u64::from_ne_bytes).expect("two letters and six digits are eight bytes")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_read_from_the_status() {
        assert_eq!(effective_capabilities("Name:\tx\nCapEff:\t000001fffeffffff\n"), Some(0x1ff_feff_ffff));
        assert_eq!(effective_capabilities("Name:\tx\n"), None);
        assert_eq!(effective_capabilities("CapEff:\tzz\n"), None);
    }

    #[test]
    fn lockdown_is_told_by_the_kernel() {
        let directory = std::env::temp_dir().join(format!("facts-lockdown-{}", std::process::id()));
        let file = directory.join("sys/kernel/security");
        std::fs::create_dir_all(&file).expect("a directory of our own");
        let told = |text: &str| {
            std::fs::write(file.join("lockdown"), text).expect("a file of our own");
            lockdown(&Host::fixture(&directory)).map_err(|refusal| refusal.reason)
        };
        assert_eq!(told("none [integrity] confidentiality\n"), Ok(()));
        assert_eq!(told("[none] integrity confidentiality\n"), Ok(()));
        let reason = told("none integrity [confidentiality]\n").expect_err("locked down");
        assert!(reason.starts_with("kernel lockdown=confidentiality forbids reading kernel memory: "), "{reason}");
        std::fs::remove_dir_all(directory).expect("our own directory");
    }

    #[test]
    fn an_empty_host_refuses_everything_and_says_why() {
        let directory = std::env::temp_dir().join(format!("facts-{}", std::process::id()));
        let facts = Facts::read(&Host::fixture(&directory));
        let reason = |refusal: Option<Refusal>| refusal.expect("refused").reason;
        assert!(reason(facts.btf.err()).contains("kernel/btf/vmlinux is missing"));
        assert!(reason(facts.tracefs.err()).contains("not mounted"));
        assert!(reason(facts.log.err()).contains("kmsg"));
        assert!(facts.privilege.is_err());
    }
}
