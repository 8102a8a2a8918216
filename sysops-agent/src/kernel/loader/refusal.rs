//! What a refusal of the kernel's comes to in a line that an operator can read. Where it leads is left to the probe.

use crate::kernel::facts;
use crate::kernel::ladder::Refusal;

/// The object lacks what it should have.
pub(super) fn no_such(what: &str, name: &str) -> Refusal {
    Refusal::new(format!("the object has no {what} {name}"), "cargo xtask build")
}

/// aya's errors with their causes, cut to the first lines: a verifier's log can be long, and its end says why.
pub(super) fn refused(what: &str, error: &dyn std::error::Error) -> Refusal {
    let mut text = format!("{what}: {error}");
    let mut cause = error.source();
    while let Some(inner) = cause {
        let inner_text = inner.to_string();
        // Some of aya's errors repeat their cause.
        if !text.ends_with(&inner_text) {
            text.push_str(": ");
            text.push_str(&inner_text);
        }
        cause = inner.source();
    }
    let remedy = if text.contains("perf_event_open") && text.contains("No such device") {
        // aya asks for plain tracepoints on the first CPU. What is attached goes on when that one goes.
        "CPU 0 is offline: echo 1 >/sys/devices/system/cpu/cpu0/online while the agent starts"
    } else if text.contains("perf_event_open") && text.contains("Permission denied") {
        // Debian's kernels give plain tracepoints to CAP_SYS_ADMIN alone when it is 3.
        "sysctl kernel.perf_event_paranoid=2, or run the agent as root"
    } else if text.contains("Operation not permitted") || text.contains("Permission denied") {
        "give the agent CAP_BPF and CAP_PERFMON and, before Linux 5.11, room to lock memory (LimitMEMLOCK=); kernel lockdown may refuse too"
    } else {
        ""
    };
    tracing::debug!("{text}");
    let short = shorten(&text);
    // The verifier of a kernel that is locked down knows no such helper.
    if short.contains("bpf_probe_read") && (short.contains("unknown func") || short.contains("cannot use helper")) {
        return facts::unreadable(&short);
    }
    Refusal::new(short, remedy)
}

/// How the lines begin with which a verifier's log ends, whether it took the program or not.
const STATISTICS: [&str; 4] = ["verification time ", "stack depth ", "insns processed ", "processed "];

/// A verifier's log says what is wrong in the line before its statistics.
fn shorten(text: &str) -> String {
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let counts = lines.iter().position(|line| STATISTICS.iter().any(|begin| line.starts_with(begin)));
    match (lines.as_slice(), counts) {
        ([first, .., wrong], None) => format!("{first} … {wrong}"),
        ([first, ..], Some(counts @ 2..)) => format!("{first} … {}", lines[counts - 1]),
        ([first, ..], _) => (*first).to_owned(),
        ([], _) => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verifiers_log_is_cut_to_what_is_wrong() {
        let log = "check: Invalid argument (os error 22). Verifier output: arg#0 type is not a struct\n\
                   0: (bf) r6 = r1\n8: (85) call bpf_probe_read_kernel#113\nunknown func bpf_probe_read_kernel#113\n\
                   verification time 52 usec\nstack depth 0+0\nprocessed 9 insns (limit 1000000) max_states_per_insn 0\n\n: Invalid argument";
        let short = "check: Invalid argument (os error 22). Verifier output: arg#0 type is not a struct … unknown func bpf_probe_read_kernel#113";
        assert_eq!(shorten(log), short);
        assert_eq!(shorten("Operation not permitted"), "Operation not permitted");
        assert_eq!(shorten("load: \nprocessed 0 insns (limit 1)"), "load:");
        assert_eq!(shorten(""), "");
    }

    #[test]
    fn a_first_cpu_that_is_offline_is_told() {
        let error = std::io::Error::other("`perf_event_open_trace_point` failed: No such device (os error 19)");
        assert!(refused("on_tracepoint", &error).remedy.starts_with("CPU 0 is offline"));
    }

    #[test]
    fn memory_that_cannot_be_read_is_told_in_words() {
        let error = std::io::Error::other(
            "call bpf_probe_read_kernel#113\nunknown func bpf_probe_read_kernel#113\nprocessed 9 insns",
        );
        let refusal = refused("check", &error);
        assert!(refusal.reason.contains("lockdown=confidentiality forbids"), "{refusal:?}");
        assert!(!refusal.remedy.is_empty());
    }
}
