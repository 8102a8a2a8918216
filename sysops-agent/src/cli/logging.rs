//! The agent's own log: to stderr, one event a line, with the journal's priorities under systemd.

use std::fmt;

use tracing::{Event, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::reload;
use tracing_subscriber::util::SubscriberInitExt as _;

use super::Level;
use super::output::{Colour, Style};
use crate::model::shown;
use crate::settings::{Problems, Settings, keys};

/// Where lines about the configuration come from.
const SETTINGS: &str = "sysops_agent::settings";

/// Sets the log up, once in the life of the process.
///
/// The level is `--log-level`, else `RUST_LOG`, else `agent.log_level`.
#[must_use]
pub fn start(flag: Option<Level>, settings: &Settings, lookup_env: &dyn Fn(&str) -> Option<String>) -> Log {
    let (filter, complaint) = filter(flag, settings, lookup_env);
    let (filter, handle) = reload::Layer::new(filter);
    let is_terminal = std::io::IsTerminal::is_terminal(&std::io::stderr());
    let lines = if is_journal(lookup_env("JOURNAL_STREAM").as_deref()) {
        Lines::Journal
    } else {
        Lines::Plain(Style::of(is_terminal, lookup_env))
    };
    let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(false).event_format(lines);
    // It fails when a log is set up already, as in a test: then that one stays.
    let _ = tracing_subscriber::registry().with(filter).with(layer).try_init();
    if let Some(complaint) = complaint {
        tracing::warn!("{complaint}");
    }
    Log { flag, set: Box::new(move |filter| drop(handle.reload(filter))) }
}

/// The log as it was set up.
pub struct Log {
    flag: Option<Level>,
    set: Box<dyn Fn(EnvFilter) + Send + Sync>,
}

impl fmt::Debug for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Log").field("flag", &self.flag).finish_non_exhaustive()
    }
}

impl Log {
    /// Takes the level of a configuration that was read again; `--log-level` and `RUST_LOG` still win.
    pub fn reload(&self, settings: &Settings, lookup_env: &dyn Fn(&str) -> Option<String>) {
        (self.set)(filter(self.flag, settings, lookup_env).0);
    }
}

/// Logs what is to be said about a configuration that was accepted.
pub fn announce(settings: &Settings) {
    for warning in &settings.warnings {
        tracing::warn!(target: SETTINGS, "{}", warning.line());
    }
    for notice in settings.notices() {
        tracing::info!(target: SETTINGS, "{notice}");
    }
}

/// Logs why a configuration that was read again was not accepted, one mistake a line.
pub fn refused(problems: &Problems) {
    tracing::error!(target: SETTINGS, "{}: the configuration before it stays in force", problems.count());
    for problem in problems.shown() {
        tracing::error!(target: SETTINGS, "{}", problem.line());
    }
}

fn filter(
    flag: Option<Level>,
    settings: &Settings,
    lookup_env: &dyn Fn(&str) -> Option<String>,
) -> (EnvFilter, Option<String>) {
    // async-nats logs every attempt to connect; ours says each trouble once.
    let at = |level: &str| EnvFilter::new(format!("{level},async_nats=off"));
    if let Some(level) = flag {
        return (at(level.name()), None);
    }
    let configured = settings.values.get(&keys::LOG_LEVEL);
    match lookup_env("RUST_LOG").filter(|directives| !directives.is_empty()) {
        None => (at(&configured), None),
        Some(directives) => match EnvFilter::try_new(&directives) {
            Ok(filter) => (filter, None),
            Err(error) => {
                let complaint = format!("RUST_LOG is ignored: {error}; the level is {configured}");
                (at(&configured), Some(complaint))
            }
        },
    }
}

/// True when stderr is the stream of which systemd says (`device:inode`) that it goes to the journal. The variable
/// alone says nothing: it is inherited by children whose stderr goes elsewhere.
fn is_journal(stream: Option<&str>) -> bool {
    let Some((device, inode)) = stream.and_then(|stream| stream.split_once(':')) else {
        return false;
    };
    let stderr = rustix::fs::fstat(rustix::stdio::stderr());
    stderr.is_ok_and(|stat| device == stat.st_dev.to_string() && inode == stat.st_ino.to_string())
}

/// Longest message of one line.
const LINE_CHARS_MAX: usize = 4000;

/// How an event becomes a line.
enum Lines {
    /// Time, level, module, message.
    Plain(Style),
    /// `<priority>`, module, message: the journal knows the time, and shows the level by colour.
    Journal,
}

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut message = String::new();
        context.field_format().format_fields(Writer::new(&mut message), event)?;
        // Messages carry names that processes chose for themselves; one line of ours stays one line.
        let message = shown(&message, LINE_CHARS_MAX);
        let level = *event.metadata().level();
        let target = event.metadata().target().trim_start_matches("sysops_agent::");
        match self {
            Self::Journal => writeln!(writer, "<{}>{target}: {message}", priority(level)),
            Self::Plain(style) => {
                let mut time = String::new();
                SystemTime.format_time(&mut Writer::new(&mut time))?;
                let level = style.paint(colour(level), format_args!("{level:5}").to_string());
                writeln!(writer, "{time} {level} {target}: {message}")
            }
        }
    }
}

/// syslog(3).
fn priority(level: tracing::Level) -> u8 {
    match level {
        tracing::Level::ERROR => 3,
        tracing::Level::WARN => 4,
        tracing::Level::INFO => 6,
        _ => 7,
    }
}

fn colour(level: tracing::Level) -> Colour {
    match level {
        tracing::Level::ERROR => Colour::Red,
        tracing::Level::WARN => Colour::Yellow,
        tracing::Level::INFO => Colour::Green,
        _ => Colour::Dim,
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Buffer(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Buffer {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("no holder panics").write(bytes)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(lines: Lines, log: impl FnOnce()) -> String {
        let buffer = Buffer::default();
        let writer = buffer.clone();
        let layer =
            tracing_subscriber::fmt::layer().with_writer(move || writer.clone()).with_ansi(false).event_format(lines);
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), log);
        let bytes = buffer.0.lock().expect("no holder panics").clone();
        String::from_utf8(bytes).expect("UTF-8")
    }

    #[test]
    fn the_journal_gets_priorities() {
        let text = logged(Lines::Journal, || {
            tracing::error!(target: "sysops_agent::kernel", pid = 7, "lost");
            tracing::info!(target: "sysops_agent::kernel", "found");
        });
        assert_eq!(text, "<3>kernel: lost pid=7\n<6>kernel: found\n");
    }

    #[test]
    fn no_name_forges_a_line() {
        let comm = "x\n<0>kernel: all is well\x1b[2J";
        let text = logged(Lines::Journal, || tracing::warn!(target: "t", comm = %comm, "killed {comm}"));
        assert_eq!(text.lines().count(), 1);
        assert!(!text.contains('\x1b'), "{text:?}");
    }

    #[test]
    fn plain_lines_begin_with_the_time() {
        let text = logged(Lines::Plain(Style::of(false, &|_| None)), || tracing::info!(target: "t", "found"));
        let (time, rest) = text.split_once(' ').expect("a blank after the time");
        assert!(time.ends_with('Z') && time.contains('T'), "{text}");
        assert_eq!(rest, "INFO  t: found\n");
    }

    #[test]
    fn levels_win_in_order() {
        let settings = Settings::default();
        let level = |flag, env: Option<&str>| filter(flag, &settings, &|_| env.map(str::to_owned)).0.to_string();
        assert_eq!(level(None, None), "async_nats=off,info");
        assert_eq!(level(None, Some("debug")), "debug");
        assert_eq!(level(Some(Level::Error), Some("debug")), "async_nats=off,error");
        let (kept, complaint) = filter(None, &settings, &|_| Some("x=loud".to_owned()));
        assert_eq!(kept.to_string(), "async_nats=off,info");
        assert!(complaint.expect("it says so").starts_with("RUST_LOG is ignored"));
    }

    #[test]
    fn only_the_stream_that_systemd_names_is_the_journal() {
        let stat = rustix::fs::fstat(rustix::stdio::stderr()).expect("stderr is open");
        assert!(is_journal(Some(&format!("{}:{}", stat.st_dev, stat.st_ino))));
        for stream in [None, Some(""), Some("8:1"), Some("x")] {
            assert!(!is_journal(stream), "{stream:?}");
        }
    }
}
