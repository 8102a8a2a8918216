//! Conditions under which the probes choose their rungs for themselves: how each is made in a guest, and unmade.

use super::payload::AGENT;

/// The unit's capabilities, as setpriv spells them. It is called by its path: busybox takes its own applet before what is in PATH.
const CAPABILITIES: &str = "+bpf,+perfmon,+syslog,+dac_read_search,+sys_ptrace";

/// One condition.
struct Condition {
    name: &'static str,
    make: &'static str,
    /// Empty where there is no way back: such stand last.
    unmake: &'static str,
    user: User,
}

/// Who asks.
#[derive(Clone, Copy, PartialEq, Eq)]
enum User {
    Root,
    /// As the unit runs it.
    Unit,
    /// With no capability at all.
    Nobody,
}

const fn as_root(name: &'static str, make: &'static str, unmake: &'static str) -> Condition {
    Condition { name, make, unmake, user: User::Root }
}

const STRICT: &str = "echo 3 >/proc/sys/kernel/perf_event_paranoid; echo 2 >/proc/sys/kernel/kptr_restrict; \
     echo 1 >/proc/sys/kernel/dmesg_restrict; echo 2 >/proc/sys/kernel/unprivileged_bpf_disabled; mount -o remount,hidepid=2 /proc";
const LOOSE: &str = "echo 2 >/proc/sys/kernel/perf_event_paranoid; echo 0 >/proc/sys/kernel/kptr_restrict; \
     echo 0 >/proc/sys/kernel/dmesg_restrict; mount -o remount,hidepid=0 /proc";
const NO_TRACEFS: &str = "has /sys/kernel/tracing && umount /sys/kernel/tracing";
const TRACEFS: &str = "mount -t tracefs tracefs /sys/kernel/tracing";
const NO_BTF: &str = "has /sys/kernel/btf && mount -t tmpfs tmpfs /sys/kernel/btf";
const BTF: &str = "umount /sys/kernel/btf";
const INTEGRITY: &str = "has /sys/kernel/security/lockdown && echo integrity >/sys/kernel/security/lockdown";
const CONFIDENTIALITY: &str =
    "has /sys/kernel/security/lockdown && echo confidentiality >/sys/kernel/security/lockdown";
const LOCKED: &str = "has /sys/kernel/security/lockdown && grep -q '\\[confidentiality' /sys/kernel/security/lockdown";

static CONDITIONS: &[Condition] = &[
    as_root("nothing special", "", ""),
    as_root(
        "perf_event_paranoid=3, kptr_restrict=2, dmesg_restrict=1, unprivileged_bpf_disabled=2, hidepid=2",
        STRICT,
        LOOSE,
    ),
    Condition { name: "a user with the unit's five capabilities", make: "", unmake: "", user: User::Unit },
    Condition { name: "that user, and what the second line sets", make: STRICT, unmake: LOOSE, user: User::Unit },
    Condition { name: "a user without capabilities", make: "", unmake: "", user: User::Nobody },
    as_root("no tracefs", NO_TRACEFS, TRACEFS),
    as_root("no BTF", NO_BTF, BTF),
    as_root(
        "neither tracefs nor BTF",
        "has /sys/kernel/btf && umount /sys/kernel/tracing && mount -t tmpfs tmpfs /sys/kernel/btf",
        "umount /sys/kernel/btf; mount -t tracefs tracefs /sys/kernel/tracing",
    ),
    as_root("lockdown=integrity", INTEGRITY, ""),
    as_root("lockdown=confidentiality", CONFIDENTIALITY, ""),
    Condition { name: "lockdown=confidentiality, that user", make: LOCKED, unmake: "", user: User::Unit },
    as_root(
        "lockdown=confidentiality, securityfs not mounted",
        "has /sys/kernel/security/lockdown && umount /sys/kernel/security",
        "mount -t securityfs securityfs /sys/kernel/security",
    ),
];

/// Lines of the init for all of them. A condition that cannot be made is not one under which the probes were seen.
pub(crate) fn script(has_setpriv: bool) -> String {
    let lines = CONDITIONS.iter().map(|Condition { name, make, unmake, user }| {
        let become_ = match user {
            User::Root => String::new(),
            // The unit has LimitMEMLOCK=infinity: before 5.11 maps are paid for out of it.
            User::Unit => format!(
                "/usr/bin/setpriv --reuid 65534 --regid 65534 --clear-groups --inh-caps {CAPABILITIES} --ambient-caps {CAPABILITIES} "
            ),
            User::Nobody => "/usr/bin/setpriv --reuid 65534 --regid 65534 --clear-groups ".to_owned(),
        };
        let agent = if *user == User::Root || has_setpriv {
            format!("{become_}{AGENT} --config /etc/auto.toml doctor --json")
        } else {
            "echo skipped: needs the program setpriv".to_owned()
        };
        let or_true = |command: &'static str| if command.is_empty() { "true" } else { command };
        format!(
            "if ! {{ {}; }} 2>/tmp/refused; then section \"condition {name}\" echo \"skipped: it cannot be made: $(cat /tmp/refused)\"; \
             else section \"condition {name}\" {agent}; {}; fi 2>&1\n",
            or_true(make),
            or_true(unmake)
        )
    });
    // A condition about what a kernel does not have cannot be made, and says so.
    let has = "has() { test -e \"$1\" || { echo \"this kernel has no $1\" >&2; false; }; }\n".to_owned();
    std::iter::once(has).chain(lines).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_no_way_back_stands_last() {
        let first = CONDITIONS.iter().position(|one| !one.make.is_empty() && one.unmake.is_empty()).expect("lockdown");
        assert!(CONDITIONS[first..].iter().all(|one| one.name.starts_with("lockdown")));
    }

    #[test]
    fn without_setpriv_only_root_asks() {
        assert_eq!(script(true).matches("/usr/bin/setpriv").count(), 4);
        let script = script(false);
        assert!(!script.contains("/usr/bin/setpriv") && script.contains("skipped: needs the program setpriv"));
    }
}
