//! `events`: kernel events as they happen, for people or as JSON lines.

use std::io::{self, Write as _};

use super::event_line::EventLine;
use super::{EventsArgs, exit, output};
use crate::host::Host;
use crate::model::Event;
use crate::pipeline::{Sources, sleep_for};
use crate::settings::Settings;

/// Prints events until the count or the time is reached, or the reader goes away. Gives the exit status. It keeps nothing: what the
/// agent beside it has told and has to tell is that one's alone.
pub async fn run(host: &Host, mut settings: Settings, args: &EventsArgs) -> u8 {
    settings.keep_nothing();
    let mut sources = match Sources::start(host, &settings) {
        Ok(sources) => sources,
        Err(error) => {
            output::say(&format_args!("error: {error:#}"));
            return exit::UNAVAILABLE;
        }
    };
    if !sources.can_see_anything() {
        output::say(&"error: no probe stands and the kernel's log cannot be read, so nothing can be seen");
        output::say(&"hint: `sysops-agent doctor` says why and what would mend it");
        return exit::UNAVAILABLE;
    }
    let rungs: Vec<String> =
        sources.probes.iter().map(|probe| format!("{} {}", probe.name, probe.rung.word())).collect();
    let log = if sources.log.is_ok() { "kernel log" } else { "no kernel log" };
    tracing::info!("watching: {}, {log}", rungs.join(", "));
    let end = args.limit().map(|limit| host.clock.now().monotonic + limit);
    let mut seen = 0;
    loop {
        let left = end.map(|end| end.saturating_sub(host.clock.now().monotonic));
        let events = tokio::select! {
            events = sources.next(host) => events,
            () = sleep_for(left) => return exit::OK,
        };
        let Some(events) = events else {
            output::say(&"error: the thread that watches the kernel has ended; that is a bug");
            return exit::SOFTWARE;
        };
        for event in events.iter().filter(|event| args.wants(event.kind())) {
            if let Err(error) = print(event, args.json) {
                return output::failed(&error);
            }
            seen += 1;
            if Some(seen) == args.count {
                return exit::OK;
            }
        }
    }
}

fn print(event: &Event, json: bool) -> io::Result<()> {
    let mut out = io::stdout().lock();
    if json {
        serde_json::to_writer(&mut out, event)?;
        writeln!(out)?;
    } else {
        writeln!(out, "{}", EventLine(event))?;
    }
    out.flush()
}
