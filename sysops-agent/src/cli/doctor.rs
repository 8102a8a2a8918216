//! `doctor`: where each probe and collector stands, why, and what would mend it.

use std::io::{self, Write};

use serde::Serialize;

use super::output::{Colour, Style};
use super::{exit, output};
use crate::collect;
use crate::host::Host;
use crate::kernel::{self, Rung};
use crate::model::shown;
use crate::pipeline::Sources;
use crate::pipeline::losses::{self, Lost};
use crate::schedule::{self, Scheduler, State};
use crate::settings::Settings;

/// Capabilities that open something to the agent, with what each opens.
const CAPABILITIES: [(u32, &str, &str); 5] = [
    (39, "CAP_BPF", "loads the kernel probes, together with CAP_PERFMON"),
    (38, "CAP_PERFMON", "attaches the kernel probes, together with CAP_BPF"),
    (34, "CAP_SYSLOG", "reads the kernel's log /dev/kmsg"),
    (2, "CAP_DAC_READ_SEARCH", "counts file descriptors of other users' processes, reads tracefs"),
    (19, "CAP_SYS_PTRACE", "names what other users' processes have open"),
];

/// What doctor knows. docs/schemas/doctor.schema.json describes it.
#[derive(Debug, Serialize)]
struct Report {
    schema: u32,
    probes: Vec<kernel::Standing>,
    run_stats: Word,
    log: Word,
    #[serde(skip_serializing_if = "Option::is_none")]
    lost: Option<Lost>,
    collectors: Vec<schedule::Standing>,
    kernel: KernelFacts,
    capabilities: Capabilities,
}

/// Whether something works, and why not.
#[derive(Debug, Serialize)]
struct Word {
    state: State,
    reason: String,
    remedy: String,
}

#[derive(Debug, Serialize)]
struct KernelFacts {
    release: String,
    version: String,
    arch: String,
    btf: bool,
    tracefs: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    lockdown: Option<String>,
}

#[derive(Debug, Serialize)]
struct Capabilities {
    uid: u32,
    effective: Vec<&'static str>,
    missing: Vec<Missing>,
}

#[derive(Debug, Serialize)]
struct Missing {
    name: &'static str,
    opens: &'static str,
}

/// Looks, prints, and gives the exit status: 1 when something that the configuration asks for by name cannot work.
pub async fn run(host: &Host, settings: &Settings, json: bool) -> u8 {
    let report = match examine(host, settings).await {
        Ok(report) => report,
        Err(error) => {
            output::say(&format_args!("error: {error:#}"));
            return exit::UNAVAILABLE;
        }
    };
    let broken = report.probes.iter().any(|probe| probe.forced_and_failed);
    let status = output::stdout(|out| {
        if json {
            serde_json::to_writer_pretty(&mut *out, &report)?;
            writeln!(out)
        } else {
            print(&report, Style::stdout(&crate::settings::environment), out)
        }
    });
    if status == exit::OK && broken { exit::FAILURE } else { status }
}

async fn examine(host: &Host, settings: &Settings) -> anyhow::Result<Report> {
    let (probes, log) = Sources::examine(host, settings);
    let mut scheduler = Scheduler::new(host, &settings.values, collect::ALL, None)?;
    while !scheduler.next().await.round_over {}
    let lost = losses::read(host, settings).unwrap_or_else(|error| {
        output::say(&format_args!("what the agent that runs has lost is not known: {error}"));
        None
    });
    Ok(Report {
        schema: 1,
        lost,
        run_stats: match kernel::can_count_runs(host, &settings.values) {
            Ok(()) => Word { state: State::Ok, reason: String::new(), remedy: String::new() },
            Err((reason, remedy)) => Word { state: State::Absent, reason, remedy },
        },
        log: match log {
            Ok(()) => Word { state: State::Ok, reason: String::new(), remedy: String::new() },
            Err(why) => Word {
                state: if why.by_configuration { State::Absent } else { State::Failed },
                reason: why.reason,
                remedy: why.remedy,
            },
        },
        probes,
        collectors: scheduler.standings().cloned().collect(),
        kernel: kernel_facts(host),
        capabilities: capabilities(host),
    })
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
        effective: CAPABILITIES.iter().filter(|(bit, ..)| has(*bit)).map(|(_, name, _)| *name).collect(),
        missing: CAPABILITIES
            .iter()
            .filter(|(bit, ..)| !has(*bit))
            .map(|&(_, name, opens)| Missing { name, opens })
            .collect(),
    }
}

fn print(report: &Report, style: Style, out: &mut dyn Write) -> io::Result<()> {
    writeln!(out, "{}", style.paint(Colour::Bold, "probes"))?;
    for probe in &report.probes {
        probe_line(probe, style, out)?;
    }
    let stats = &report.run_stats;
    line("run times", state_word(stats.state), &stats.reason, &stats.remedy, style, out)?;
    if let Some(Lost { pid, losses }) = &report.lost {
        writeln!(out, "{}", style.paint(Colour::Bold, "lost by the agent that runs, or ran last"))?;
        for loss in losses {
            writeln!(out, "  {} (pid {pid}) {}", shown(&loss.time, 30), shown(&loss.message, 1000))?;
        }
    }
    writeln!(out, "{}", style.paint(Colour::Bold, "kernel log"))?;
    line("/dev/kmsg", state_word(report.log.state), &report.log.reason, &report.log.remedy, style, out)?;
    writeln!(out, "{}", style.paint(Colour::Bold, "collectors"))?;
    for one in &report.collectors {
        line(one.name, state_word(one.state), &one.reason, &one.remedy, style, out)?;
    }
    let kernel = &report.kernel;
    writeln!(out, "{}", style.paint(Colour::Bold, "kernel"))?;
    writeln!(
        out,
        "  {} {}, BTF {}, tracefs {}{}",
        kernel.release,
        kernel.arch,
        if kernel.btf { "yes" } else { "no" },
        if kernel.tracefs { "yes" } else { "no" },
        kernel.lockdown.as_ref().map(|mode| format!(", lockdown {mode}")).unwrap_or_default(),
    )?;
    writeln!(out, "{}", style.paint(Colour::Bold, "capabilities"))?;
    writeln!(out, "  uid {}, has {}", report.capabilities.uid, list(&report.capabilities.effective))?;
    for missing in &report.capabilities.missing {
        writeln!(out, "  lacks {}: {}", missing.name, missing.opens)?;
    }
    Ok(())
}

/// One probe: name, rung, and on further lines why it is not a better one and what would mend it.
///
/// # Errors
/// When `out` cannot be written.
pub fn probe_line(probe: &kernel::Standing, style: Style, out: &mut dyn Write) -> io::Result<()> {
    let colour = match probe.rung {
        Rung::Kmsg | Rung::Proc => Colour::Yellow,
        Rung::Off => Colour::Red,
        _ => Colour::Green,
    };
    line(probe.name, (probe.rung.word(), colour), &probe.reason, &probe.remedy, style, out)?;
    for extra in &probe.extras {
        let colour = if extra.means == "off" { Colour::Yellow } else { Colour::Green };
        line(&format!("  {}", extra.name), (extra.means, colour), &extra.reason, &extra.remedy, style, out)?;
    }
    Ok(())
}

fn state_word(state: State) -> (&'static str, Colour) {
    match state {
        State::Ok => ("ok", Colour::Green),
        State::Absent => ("absent", Colour::Dim),
        State::Failed => ("failed", Colour::Red),
    }
}

fn line(
    name: &str,
    (word, colour): (&str, Colour),
    reason: &str,
    remedy: &str,
    style: Style,
    out: &mut dyn Write,
) -> io::Result<()> {
    writeln!(out, "  {name:<12} {}", style.paint(colour, word))?;
    for (what, text) in [("because", reason), ("to mend", remedy)] {
        if !text.is_empty() {
            writeln!(out, "  {:<12} {what}: {}", "", shown(text, 1000))?;
        }
    }
    Ok(())
}

fn list(words: &[&str]) -> String {
    if words.is_empty() { "none of those that help".to_owned() } else { words.join(" ") }
}
