//! `live`: where the probes stand, then readings, events and alerts as they happen. The agent with `--view` shows the same.

use std::io::Write as _;

use super::event_line::EventLine;
use super::output::{Colour, Style};
use super::{doctor, overview};
use crate::collect;
use crate::control;
use crate::deliver::channel::{self, console};
use crate::deliver::export;
use crate::kernel::Standing;
use crate::model::{Alert, Event, Readings, Severity, Status, Tick, shown, time};
use crate::pipeline::Observer;
use crate::settings::{Settings, keys};
use crate::spec::Value;

/// How often the view has new readings, in seconds, where the configuration does not say.
const INTERVAL_SECS: i64 = 2;

/// What is different for a view and nothing else: it sends nothing, keeps nothing and answers nobody, so that it disturbs no agent
/// that runs beside it, or later with the same configuration.
pub fn adapt(settings: &mut Settings) {
    settings.keep_nothing();
    settings.values.unset(keys::PID_FILE.spec());
    settings.values.set(control::SOCKET.spec(), Value::Text(String::new()));
    let channels = channel::ALL.iter().flat_map(|entry| entry.keys);
    let exporters = export::ALL.iter().flat_map(|entry| entry.keys);
    for switch in channels.chain(exporters).filter(|key| key.name() == "enabled") {
        settings.values.set(switch, Value::Bool(false));
    }
    adapt_agent(settings);
}

/// What is different for an agent with a view: it tells of alerts itself, and a person who watches does not want to wait.
pub fn adapt_agent(settings: &mut Settings) {
    settings.values.set(console::ENABLED.spec(), Value::Bool(false));
    for interval in collect::ALL.iter().map(|entry| entry.interval.spec()) {
        if !settings.values.is_set(interval) {
            settings.values.set(interval, Value::Int(INTERVAL_SECS));
        }
    }
}

/// Prints what it sees. A reader that went away ends the process with its pipe.
pub struct Live {
    style: Style,
}

impl Live {
    /// A view on stdout.
    #[must_use]
    pub fn new(style: Style) -> Self {
        Self { style }
    }
}

impl Observer for Live {
    fn standings(&mut self, probes: &[Standing]) {
        let mut out = std::io::stdout().lock();
        _ = writeln!(out, "{}", self.style.paint(Colour::Bold, "probes"));
        for probe in probes {
            _ = doctor::probe_line(&probe.report(), self.style, &mut out);
        }
        _ = writeln!(out, "{}", self.style.paint(Colour::Bold, "readings, events and alerts (Ctrl-C ends)"));
    }

    fn event(&mut self, event: &Event) {
        _ = writeln!(std::io::stdout().lock(), "{}", self.style.paint(Colour::Bold, EventLine(event)));
    }

    fn alert(&mut self, alert: &Alert) {
        let colour = match (alert.status, alert.severity) {
            (Status::Resolved, _) => Colour::Green,
            (_, Severity::Critical | Severity::Emergency) => Colour::Red,
            (_, Severity::Warn) => Colour::Yellow,
            (_, Severity::Info) => Colour::Dim,
        };
        let word = if alert.status == Status::Resolved { "resolved" } else { alert.severity.name() };
        let (clock, message) = (clock(alert.timestamp), shown(&alert.message, 500));
        let word = self.style.paint(colour, format!("ALERT {word}"));
        _ = writeln!(std::io::stdout().lock(), "{clock}  {word}  {message}");
    }

    fn round(&mut self, readings: &dyn Readings, tick: Tick) {
        let line = overview::line(readings);
        if !line.is_empty() {
            _ = writeln!(std::io::stdout().lock(), "{}  {line}", clock(tick.wall));
        }
    }
}

fn clock(wall: std::time::SystemTime) -> String {
    let text = time::rfc3339_secs(wall);
    text.get(11..20).unwrap_or(&text).to_owned()
}
