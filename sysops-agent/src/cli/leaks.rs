//! `leaks`: watches processes for a while and says which of their stacks took what they did not give back. Watching is
//! left to `kernel`, names to `symbolize`.

use std::fmt::Write as _;
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::signal::unix::{SignalKind, signal};

use super::output::{Colour, Style};
use super::{LeaksArgs, exit, output};
use crate::host::{EventSource, Host};
use crate::kernel::{Kernel, Observation, Rung, Standing};
use crate::model::{Batch, Frame, LeakReport, LeakStack, Resource, bytes_text, shown};
use crate::settings::Settings;
use crate::symbolize::{Symbolizer, Trust};

/// Stacks of a process that are printed for people. Machines get all.
const STACKS_SHOWN: usize = 10;
/// Characters of a function's name, of a module's and of a source file's that are printed for people.
const NAME_CHARS: usize = 120;
/// How long a signal may have to wait.
const PATIENCE: Duration = Duration::from_millis(100);
/// How often the probes look around, at least and at most. To find out who leaks takes some looks at every process.
const LOOK: Duration = Duration::from_secs(1);
const LOOK_MIN: Duration = PATIENCE;
const LOOKS_TO_FIND: u32 = 60;
/// In less nobody can be found whose descriptors become more and more.
const FIND_MIN: Duration = Duration::from_secs(3);

/// Watches, prints, and gives the exit status. An interrupt ends the watching early.
pub async fn run(host: &Host, settings: &Settings, args: &LeaksArgs) -> u8 {
    if let Err(refusal) = args.pid.iter().try_for_each(|pid| look_at(host, *pid)) {
        return refuse(&refusal);
    }
    let observation = args.observation();
    let kernel = Kernel::observe(host, &settings.values, &observation);
    let standings = kernel.standings();
    if let Err(refusal) = anything_stands(&standings) {
        return refuse(&refusal);
    }
    if let Err(refusal) = long_enough(&observation) {
        return refuse(&refusal);
    }
    let rungs: Vec<String> = standings.iter().map(|probe| format!("{} {}", probe.name, probe.rung.word())).collect();
    tracing::info!("watching for {} s by {}; an interrupt ends it early", args.seconds, rungs.join(", "));
    let Some(mut reports) = watch(host, kernel, &observation).await else {
        output::say(&"error: the thread that watches has ended; that is a bug");
        return exit::SOFTWARE;
    };
    let stacks = reports.iter_mut().flat_map(|report| &mut report.stacks);
    Symbolizer::new(Trust::All).name(stacks.map(|stack| &mut stack.frames));
    let status = if args.json {
        output::document(&reports.iter().map(json).collect::<String>())
    } else {
        let style = Style::stdout(&crate::settings::environment);
        output::stdout(|out| reports.iter().try_for_each(|report| print(report, style, out)))
    };
    if status == exit::OK { told(args, &reports) } else { status }
}

/// Why there is nothing to watch.
struct Refused {
    error: String,
    hint: String,
    status: u8,
}

impl Refused {
    fn new(error: impl Into<String>, hint: impl Into<String>, status: u8) -> Self {
        Self { error: error.into(), hint: hint.into(), status }
    }
}

fn refuse(refused: &Refused) -> u8 {
    output::say(&format_args!("error: {}", refused.error));
    if !refused.hint.is_empty() {
        output::say(&format_args!("hint: {}", refused.hint));
    }
    refused.status
}

/// The process is there, is a process, and may be looked at.
fn look_at(host: &Host, pid: u32) -> Result<(), Refused> {
    let gone = || Refused::new(format!("there is no process {pid}"), "`ps -e` lists those that run", exit::UNAVAILABLE);
    let directory = host.files.proc(&pid.to_string());
    let status = host.files.read_text(&directory.join("status")).map_err(|_| gone())?;
    let group = status.lines().find_map(|line| line.strip_prefix("Tgid:")).map(str::trim);
    if let Some(group) = group.filter(|group| *group != pid.to_string()) {
        let error = format!("{pid} is a thread of process {group}");
        return Err(Refused::new(error, format!("sysops-agent leaks --pid {group}"), exit::UNAVAILABLE));
    }
    match host.files.list(&directory.join("fd")) {
        Err(error) if error.is_denied() => Err(Refused::new(
            format!("process {pid} may not be looked at: {error}: {}", error.source),
            "run as root, or give the agent CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH",
            exit::NO_PERMISSION,
        )),
        Err(error) if error.is_gone() => Err(gone()),
        _ => Ok(()),
    }
}

fn anything_stands(standings: &[Standing]) -> Result<(), Refused> {
    if standings.is_empty() {
        return Err(Refused::new("no probe attributes that", "", exit::UNAVAILABLE));
    }
    let Some(off) = standings.iter().find(|probe| probe.rung == Rung::Off) else { return Ok(()) };
    if standings.iter().any(|probe| probe.rung != Rung::Off) {
        return Ok(());
    }
    let hint = if off.remedy.is_empty() { "`sysops-agent doctor` says more".to_owned() } else { off.remedy.clone() };
    Err(Refused::new(format!("the probe {} does not stand: {}", off.name, off.reason), hint, exit::UNAVAILABLE))
}

/// Whoever is not named must be found first.
fn long_enough(observation: &Observation) -> Result<(), Refused> {
    let Observation { resources, pids, length, .. } = observation;
    if !pids.is_empty() || !resources.contains(&Resource::Fd) || *length >= FIND_MIN {
        return Ok(());
    }
    let error = format!("in {} s it cannot be seen which process leaks", length.as_secs());
    Err(Refused::new(error, "name the process: --pid; or watch longer: --seconds 10", exit::USAGE))
}

/// How often to look around.
fn interval(observation: &Observation) -> Duration {
    if observation.pids.is_empty() { (observation.length / LOOKS_TO_FIND).clamp(LOOK_MIN, LOOK) } else { LOOK }
}

/// Watches until the time is over or a signal comes. `None` when the thread that does it fails, which is a bug.
async fn watch(host: &Host, kernel: Kernel, observation: &Observation) -> Option<Vec<LeakReport>> {
    let (length, look) = (observation.length, interval(observation));
    let stop = Arc::new(AtomicBool::new(false));
    let watched = tokio::task::spawn_blocking({
        let (host, stop) = (host.clone(), Arc::clone(&stop));
        move || watch_until(&host, kernel, (length, look), &stop)
    });
    tokio::pin!(watched);
    let signals = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()));
    if let (Ok(mut interrupt), Ok(mut terminate)) = signals {
        tokio::select! {
            reports = &mut watched => return reports.ok(),
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        stop.store(true, Ordering::Relaxed);
    }
    watched.await.ok()
}

fn watch_until(
    host: &Host,
    mut kernel: Kernel,
    (length, look): (Duration, Duration),
    stop: &AtomicBool,
) -> Vec<LeakReport> {
    let start = host.clock.now().monotonic;
    let (end, mut next) = (start + length, start);
    let (mut batch, mut events) = (Batch::default(), Vec::new());
    loop {
        let now = host.clock.now().monotonic;
        if now >= end || stop.load(Ordering::Relaxed) {
            return kernel.leaks(host);
        }
        if now >= next {
            batch.clear();
            kernel.collect(host, &mut batch);
            next = now + look;
        }
        wait(&kernel, (next - now).min(end - now).min(PATIENCE));
        kernel.drain(host, &mut events);
        events.clear();
    }
}

fn wait(kernel: &Kernel, timeout: Duration) {
    let fds = kernel.fds();
    let mut polled: Vec<PollFd<'_>> = fds.iter().map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN)).collect();
    let timeout = Timespec { tv_sec: 0, tv_nsec: i64::from(timeout.subsec_nanos()) };
    // An interrupted poll is a wake-up for nothing.
    _ = poll(&mut polled, Some(&timeout));
}

/// What is left to say when the reports are printed. Nothing to report of a process that was named is a failure: it ended.
fn told(args: &LeaksArgs, reports: &[LeakReport]) -> u8 {
    let missing = args.pid.iter().filter(|pid| !reports.iter().any(|report| report.pid == **pid));
    let mut status = exit::OK;
    for pid in missing {
        output::say(&format_args!("error: process {pid} ended while it was watched"));
        status = exit::FAILURE;
    }
    if reports.is_empty() && args.pid.is_empty() {
        output::say(&format_args!("no process looked as if it leaked within {} s", args.seconds));
        output::say(&"hint: a slow leak takes longer to be seen: --seconds 600; or name the process: --pid");
    }
    status
}

fn json(report: &LeakReport) -> String {
    serde_json::to_string(report).expect("numbers, texts and lists of them are JSON") + "\n"
}

/// One process for people: what it holds, what is known of that, and the largest stacks.
fn print(report: &LeakReport, style: Style, out: &mut dyn Write) -> io::Result<()> {
    let held = |amount: u64| match report.resource {
        Resource::Fd => format!("{amount} file descriptors"),
        Resource::Memory => format!("{} of anonymous memory", bytes_text(amount)),
    };
    let head = format!("{} ({})", shown(&report.comm, NAME_CHARS), report.pid);
    writeln!(out, "{}: holds {}, seen by {}", style.paint(Colour::Bold, head), held(report.open), report.rung)?;
    let coverage = report.coverage * 100.0;
    let colour = if coverage >= 95.0 { Colour::Green } else { Colour::Yellow };
    let share = style.paint(colour, format!("{coverage:.1} %"));
    writeln!(out, "coverage {share}: of {} it is known which stack took them", amount(report, report.attributed))?;
    if !report.unattributed.is_empty() {
        writeln!(out, "not known: {}", shown(&report.unattributed, 1000))?;
    }
    for stack in report.stacks.iter().take(STACKS_SHOWN) {
        writeln!(out)?;
        print_stack(report, stack, style, out)?;
    }
    let more = report.stacks.len().saturating_sub(STACKS_SHOWN);
    if more > 0 {
        let rest = report.stacks.iter().skip(STACKS_SHOWN).map(|stack| stack.count).sum();
        writeln!(out, "\n{more} more stacks with {}: --json has all", amount(report, rest))?;
    }
    writeln!(out)
}

fn amount(report: &LeakReport, amount: u64) -> String {
    match report.resource {
        Resource::Fd => amount.to_string(),
        Resource::Memory => bytes_text(amount),
    }
}

fn print_stack(report: &LeakReport, stack: &LeakStack, style: Style, out: &mut dyn Write) -> io::Result<()> {
    let count = amount(report, stack.count);
    let count = style.paint(Colour::Bold, format!("{count:>8}"));
    let kind = shown(&stack.kind, NAME_CHARS);
    writeln!(out, "{count}  {kind}, oldest {}, {} an hour", age(stack.oldest_seconds), growth(report, stack))?;
    for frame in &stack.frames {
        writeln!(out, "          {}", line(frame, style))?;
    }
    Ok(())
}

fn growth(report: &LeakReport, stack: &LeakStack) -> String {
    let sign = if stack.growth_per_hour < 0.0 { '-' } else { '+' };
    let size = stack.growth_per_hour.abs().round();
    match report.resource {
        Resource::Fd => format!("{sign}{size:.0}"),
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "not below 0; as saturates")]
        Resource::Memory => format!("{sign}{}", bytes_text(size as u64)),
    }
}

fn age(seconds: f64) -> String {
    match seconds {
        seconds if seconds < 120.0 => format!("{seconds:.0} s"),
        seconds if seconds < 7200.0 => format!("{:.0} min", seconds / 60.0),
        seconds => format!("{:.0} h", seconds / 3600.0),
    }
}

/// `leak_here  /srv/app/leaky+0x1189  leak.c:12`; what is not known is left out.
fn line(frame: &Frame, style: Style) -> String {
    let function = frame.function.as_deref().map_or_else(|| "?".to_owned(), |name| shown(name, NAME_CHARS));
    let place = match &frame.module {
        Some(module) => format!("{}+{:#x}", shown(module, NAME_CHARS), frame.offset),
        None => format!("{:#x}", frame.offset),
    };
    let mut text = format!("{function}  {}", style.paint(Colour::Dim, place));
    if let Some(file) = &frame.file {
        text += "  ";
        text += &shown(file, NAME_CHARS);
        if let Some(line) = frame.line {
            _ = write!(text, ":{line}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(function: Option<&str>, offset: u64, line: Option<(&str, u32)>) -> Frame {
        Frame {
            function: function.map(str::to_owned),
            module: Some("/srv/app/leaky".into()),
            offset,
            file: line.map(|(file, _)| file.into()),
            line: line.map(|(_, line)| line),
            image: None,
        }
    }

    fn report() -> LeakReport {
        let stack = |count: u64, kind: &str, frames: Vec<Frame>| LeakStack {
            count,
            kind: kind.into(),
            oldest_seconds: 7.4,
            growth_per_hour: 43_860.4,
            frames,
        };
        let mut stacks = vec![
            stack(
                731,
                "socket",
                vec![
                    frame(Some("leak_here"), 0x1189, Some(("src/leak.c", 12))),
                    frame(Some("std::rt::lang_start<()>"), 0x2000, None),
                    frame(None, 0x3000, None),
                    Frame { offset: 0x7f00_dead_beef, ..Frame::default() },
                ],
            ),
            LeakStack {
                oldest_seconds: 9000.0,
                growth_per_hour: -3.0,
                ..stack(2, "pipe", vec![frame(Some("evil\x1b]0;x\x07"), 1, Some(("a\nb.c", 1)))])
            },
        ];
        stacks.extend((0..10).map(|_| stack(1, "file", Vec::new())));
        LeakReport {
            schema: LeakReport::SCHEMA,
            resource: Resource::Fd,
            pid: 1234,
            comm: "web\x1b[2J".into(),
            open: 790,
            attributed: 743,
            coverage: 743.0 / 790.0,
            rung: "tracepoint",
            unattributed: "47 open before the process was followed".into(),
            stacks,
        }
    }

    fn printed(report: &LeakReport) -> String {
        let mut out = Vec::new();
        let style = Style::of(false, &|_| None);
        print(report, style, &mut out).expect("memory takes everything");
        String::from_utf8(out).expect("text")
    }

    #[test]
    fn a_report_for_people() {
        insta::assert_snapshot!(printed(&report()));
    }

    #[test]
    fn memory_is_told_in_bytes() {
        let report = LeakReport { resource: Resource::Memory, open: 3 << 20, attributed: 2 << 20, ..report() };
        let text = printed(&report);
        for part in
            ["holds 3.0 MiB of anonymous memory", "of 2.0 MiB it is known", "731 B  socket", "+42.8 KiB an hour"]
        {
            assert!(text.contains(part), "no {part:?} in {text}");
        }
    }

    #[test]
    fn whoever_is_not_named_needs_time_to_be_found() {
        let of = |pids: &[u32], resource, seconds| Observation {
            resources: vec![resource],
            pids: pids.to_vec(),
            malloc: false,
            length: Duration::from_secs(seconds),
        };
        let refused = long_enough(&of(&[], Resource::Fd, 2)).expect_err("too short");
        assert_eq!((refused.status, refused.hint.is_empty()), (exit::USAGE, false));
        for fits in [of(&[], Resource::Fd, 3), of(&[7], Resource::Fd, 1), of(&[], Resource::Memory, 1)] {
            assert!(long_enough(&fits).is_ok(), "{fits:?}");
        }
        let looks = |pids: &[u32], seconds| interval(&of(pids, Resource::Fd, seconds)).as_millis();
        assert_eq!([looks(&[], 3), looks(&[], 12), looks(&[], 600), looks(&[7], 3)], [100, 200, 1000, 1000]);
    }

    #[test]
    fn a_process_that_is_not_there_is_refused() {
        let host = Host::fixture(&std::env::temp_dir().join(format!("leaks-nothing-{}", std::process::id())));
        let refused = look_at(&host, 7).expect_err("nothing is there");
        assert_eq!((refused.status, refused.error.as_str()), (exit::UNAVAILABLE, "there is no process 7"));
    }
}
