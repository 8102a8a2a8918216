//! `doctor`: where each probe and collector stands, why, and what would mend it: of the agent that runs, or else of what this
//! process could do.

use std::io::{self, Write};

use super::ask::Unasked;
use super::output::{Colour, Style};
use super::{ask, exit, output};
use crate::control::protocol::{Answer, Request};
use crate::host::Host;
use crate::model::report::{Lost, Probe, Report, State, Word};
use crate::model::shown;
use crate::pipeline;
use crate::settings::Settings;

/// Asks the agent that runs, or looks by itself, prints, and gives the exit status: 1 when something that the configuration asks for
/// by name cannot work.
pub async fn run(host: &Host, settings: &Settings, json: bool) -> u8 {
    let (report, is_broken) = match ask::agent_of(settings, &Request::Doctor) {
        Ok(Answer::Doctor(report)) => (*report, false),
        Ok(_) => return ask::strange(),
        Err(why) => {
            if let Unasked::NoAnswer(why) = why {
                output::say(&format_args!("{why}: what follows is about this process, not about the agent that runs"));
            }
            match pipeline::report::examine(host, settings).await {
                Ok(examined) => examined,
                Err(error) => {
                    output::say(&format_args!("error: {error:#}"));
                    return exit::UNAVAILABLE;
                }
            }
        }
    };
    let status = output::stdout(|out| {
        if json {
            serde_json::to_writer_pretty(&mut *out, &report)?;
            writeln!(out)
        } else {
            print(&report, Style::stdout(&crate::settings::environment), out)
        }
    });
    if status == exit::OK && is_broken { exit::FAILURE } else { status }
}

fn print(report: &Report, style: Style, out: &mut dyn Write) -> io::Result<()> {
    let whose = match &report.agent {
        Some(agent) => format!("probes of the agent that runs (pid {})", agent.pid),
        None => "probes, as this process can attach them: no agent runs that could be asked".to_owned(),
    };
    writeln!(out, "{}", style.paint(Colour::Bold, whose))?;
    for probe in &report.probes {
        probe_line(probe, style, out)?;
    }
    word_line("run times", &report.run_stats, style, out)?;
    if let Some(Lost { losses, .. }) = &report.lost {
        writeln!(out, "{}", style.paint(Colour::Bold, "lost in its life"))?;
        for loss in losses {
            writeln!(out, "  {} {}", shown(&loss.time, 30), shown(&loss.message, 1000))?;
        }
    }
    writeln!(out, "{}", style.paint(Colour::Bold, "kernel log"))?;
    word_line("/dev/kmsg", &report.log, style, out)?;
    writeln!(out, "{}", style.paint(Colour::Bold, "collectors"))?;
    for one in &report.collectors {
        word_line(&one.name, &one.word, style, out)?;
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
pub fn probe_line(probe: &Probe, style: Style, out: &mut dyn Write) -> io::Result<()> {
    let colour = match probe.rung.as_str() {
        "kmsg" | "proc" => Colour::Yellow,
        "off" => Colour::Red,
        _ => Colour::Green,
    };
    line(&probe.name, (&probe.rung, colour), &probe.reason, &probe.remedy, style, out)?;
    for extra in &probe.extras {
        let colour = if extra.means == "off" { Colour::Yellow } else { Colour::Green };
        line(&format!("  {}", extra.name), (&extra.means, colour), &extra.reason, &extra.remedy, style, out)?;
    }
    Ok(())
}

fn word_line(name: &str, word: &Word, style: Style, out: &mut dyn Write) -> io::Result<()> {
    let state = match word.state {
        State::Ok => ("ok", Colour::Green),
        State::Absent => ("absent", Colour::Dim),
        State::Failed => ("failed", Colour::Red),
    };
    line(name, state, &word.reason, &word.remedy, style, out)
}

fn line(
    name: &str,
    (word, colour): (&str, Colour),
    reason: &str,
    remedy: &str,
    style: Style,
    out: &mut dyn Write,
) -> io::Result<()> {
    writeln!(out, "  {:<12} {}", shown(name, 40), style.paint(colour, shown(word, 40)))?;
    for (what, text) in [("because", reason), ("to mend", remedy)] {
        if !text.is_empty() {
            writeln!(out, "  {:<12} {what}: {}", "", shown(text, 1000))?;
        }
    }
    Ok(())
}

fn list(words: &[String]) -> String {
    if words.is_empty() { "none of those that help".to_owned() } else { words.join(" ") }
}
