//! What this process sees and what it does not: for `doctor`, of itself, and for whoever asks the agent that runs.

use super::sources::Sources;
use crate::collect;
use crate::host::Host;
use crate::kernel;
use crate::logs::Unavailable;
use crate::model::report::{Capabilities, Collector, KernelFacts, Missing, Report, State, Word};
use crate::schedule::{self, Scheduler};
use crate::settings::Settings;
use crate::spec::Values;

/// Capabilities that open something to the agent, with what each opens.
const CAPABILITIES: [(u32, &str, &str); 5] = [
    (39, "CAP_BPF", "loads the kernel probes, together with CAP_PERFMON"),
    (38, "CAP_PERFMON", "attaches the kernel probes, together with CAP_BPF"),
    (34, "CAP_SYSLOG", "reads the kernel's log /dev/kmsg"),
    (2, "CAP_DAC_READ_SEARCH", "counts file descriptors of other users' processes, reads tracefs"),
    (19, "CAP_SYS_PTRACE", "names what other users' processes have open"),
];

/// A report on what this process would see as the agent, and whether the configuration asks by name for something that cannot be:
/// puts the probes up, reads everything once, takes the probes down.
///
/// # Errors
/// When the system gives no thread.
pub async fn examine(host: &Host, settings: &Settings) -> anyhow::Result<(Report, bool)> {
    let (probes, log) = Sources::examine(host, settings);
    let mut scheduler = Scheduler::new(host, &settings.values, collect::ALL, None)?;
    while !scheduler.next().await.round_over {}
    let is_broken = probes.iter().any(|probe| probe.forced_and_failed);
    Ok((report(host, &settings.values, &probes, &log, scheduler.standings()), is_broken))
}

/// The report on these probes and collectors.
pub(super) fn report<'a>(
    host: &Host,
    values: &Values,
    probes: &[kernel::Standing],
    log: &Result<(), Unavailable>,
    collectors: impl Iterator<Item = &'a schedule::Standing>,
) -> Report {
    let collector = |one: &schedule::Standing| Collector {
        name: one.name.to_owned(),
        word: Word { state: one.state, reason: one.reason.clone(), remedy: one.remedy.clone() },
    };
    Report {
        schema: 1,
        agent: None,
        lost: None,
        probes: probes.iter().map(kernel::Standing::report).collect(),
        run_stats: match kernel::can_count_runs(host, values) {
            Ok(()) => Word::ok(),
            Err((reason, remedy)) => Word { state: State::Absent, reason, remedy },
        },
        log: match log {
            Ok(()) => Word::ok(),
            Err(why) => Word {
                state: if why.by_configuration { State::Absent } else { State::Failed },
                reason: why.reason.clone(),
                remedy: why.remedy.clone(),
            },
        },
        collectors: collectors.map(collector).collect(),
        kernel: kernel_facts(host),
        capabilities: capabilities(host),
    }
}

fn kernel_facts(host: &Host) -> KernelFacts {
    let uname = crate::host::os::uname();
    let text = |text: &std::ffi::CStr| text.to_string_lossy().into_owned();
    let files = &host.files;
    let lockdown = files.read_text(&files.sys("kernel/security/lockdown")).ok();
    // The file marks what holds with brackets: `none [integrity] confidentiality`.
    let lockdown = lockdown.and_then(|text| Some(text.split_once('[')?.1.split_once(']')?.0.to_owned()));
    KernelFacts {
        release: text(uname.release()),
        version: text(uname.version()),
        arch: text(uname.machine()),
        btf: files.exists(&files.sys("kernel/btf/vmlinux")),
        tracefs: ["kernel/tracing/events", "kernel/debug/tracing/events"]
            .iter()
            .any(|path| files.exists(&files.sys(path))),
        lockdown,
    }
}

fn capabilities(host: &Host) -> Capabilities {
    let status = host.files.read_text(std::path::Path::new("/proc/self/status")).unwrap_or_else(|_| String::new());
    let bits = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let bits = bits.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
    let has = |bit: u32| bits.is_some_and(|bits| bits & (1 << bit) != 0);
    Capabilities {
        uid: rustix::process::geteuid().as_raw(),
        effective: CAPABILITIES.iter().filter(|(bit, ..)| has(*bit)).map(|(_, name, _)| (*name).to_owned()).collect(),
        missing: CAPABILITIES
            .iter()
            .filter(|(bit, ..)| !has(*bit))
            .map(|&(_, name, opens)| Missing { name: name.to_owned(), opens: opens.to_owned() })
            .collect(),
    }
}
