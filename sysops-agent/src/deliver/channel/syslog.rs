//! Alerts to the machine's syslog daemon, RFC 5424 over its datagram socket. There is no acknowledgement: an alert is
//! delivered when the socket took it.

use std::fmt::Write as _;
use std::io;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;

use crate::model::{Alert, Notice, Severity, Status, cut, shown, time};
use crate::spec::{Key, Values};

use super::{Channel, Entry, Receipt, SendError, Sending};

/// The channel as the list knows it.
pub static ENTRY: Entry = Entry {
    name: "syslog",
    keys: &[ENABLED.spec(), FACILITY.spec(), TAG.spec(), PATH.spec(), MIN_SEVERITY.spec()],
    min_severity: &MIN_SEVERITY,
    grouped: false,
    durable: true,
    build,
};

static ENABLED: Key<bool> = Key::switch("alerting.syslog.enabled", false, "Alerts to the local syslog daemon.");
static FACILITY: Key<String> = Key::choice("alerting.syslog.facility", &FACILITIES, "daemon", "The facility.");
static TAG: Key<String> = Key::text("alerting.syslog.tag", "sysops-agent", "The name under which alerts are logged.");
static PATH: Key<String> = Key::text("alerting.syslog.path", "/dev/log", "The daemon's datagram socket.");
static MIN_SEVERITY: Key<String> =
    Key::choice("alerting.syslog.min_severity", Severity::NAMES, "info", "The least severity that is sent to syslog.");

/// RFC 5424 table 1 with the names of syslog(3); a facility's code is its place. Codes 12 to 15 have no name there.
static FACILITIES: [&str; 24] = [
    "kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news", "uucp", "cron", "authpriv", "ftp", "ntp",
    "audit", "alert", "clock", "local0", "local1", "local2", "local3", "local4", "local5", "local6", "local7",
];

/// rsyslog's own limit by default. Receivers must take 480 bytes and should take 2048.
const BYTES_MAX: usize = 8 << 10;

/// What labels may take of it, so that there is always room for the message.
const LABELS_BYTES_MAX: usize = 4 << 10;

/// What stands before a message in UTF-8.
const BOM: char = '\u{feff}';

struct Syslog {
    path: PathBuf,
    facility: usize,
    tag: String,
    socket: Option<UnixDatagram>,
}

fn build(values: &Values) -> Result<Option<Box<dyn Channel>>, String> {
    if !values.get(&ENABLED) {
        return Ok(None);
    }
    let facility = values.get(&FACILITY);
    let facility = FACILITIES.iter().position(|name| *name == facility);
    let facility = facility.ok_or("alerting.syslog.facility: not one of the facilities of syslog(3)")?;
    // The daemon may start after the agent, and restart under it: the socket is opened when it is needed.
    let path = PathBuf::from(values.get(&PATH));
    Ok(Some(Box::new(Syslog { path, facility, tag: values.get(&TAG), socket: None })))
}

impl Channel for Syslog {
    fn send<'a>(&'a mut self, notice: &'a Notice) -> Sending<'a> {
        let sent = self.write(&frame(notice.head(), self.facility, &self.tag));
        Box::pin(std::future::ready(sent))
    }
}

impl Syslog {
    fn write(&mut self, frame: &str) -> Result<Receipt, SendError> {
        let fresh = self.socket.is_none();
        match self.try_write(frame) {
            // The daemon may have restarted since the last alert: the old socket is dead and the new one is there.
            Err(error) if !fresh && !is_full(&error) && error.raw_os_error() != Some(EMSGSIZE) => self.try_write(frame),
            other => other,
        }
        .map(|()| Receipt::new("written to the socket"))
        .map_err(|error| {
            let reason = format!("{}: {error}", self.path.display());
            if error.raw_os_error() == Some(EMSGSIZE) {
                SendError::Permanent { reason }
            } else {
                SendError::Retry { reason, after: None }
            }
        })
    }

    fn try_write(&mut self, frame: &str) -> io::Result<()> {
        let socket = match self.socket.take() {
            Some(socket) => socket,
            None => connect(&self.path)?,
        };
        let sent = socket.send(frame.as_bytes());
        // A full socket is a daemon that is slow, not one that is gone.
        if sent.as_ref().map_or_else(is_full, |_| true) {
            self.socket = Some(socket);
        }
        sent.map(|_| ())
    }
}

const EMSGSIZE: i32 = rustix::io::Errno::MSGSIZE.raw_os_error();

fn is_full(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock || error.raw_os_error() == Some(rustix::io::Errno::NOBUFS.raw_os_error())
}

fn connect(path: &std::path::Path) -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    socket.connect(path)?;
    Ok(socket)
}

/// `<26>1 TIME HOST TAG PID METRIC [sysops@32473 …][labels@32473 …] BOM message`
fn frame(alert: &Alert, facility: usize, tag: &str) -> String {
    let mut out = format!(
        "<{}>1 {} {} {} {} {} [sysops@32473",
        facility * 8 + code(alert),
        time::rfc3339_secs(alert.timestamp),
        header(&alert.hostname, 255),
        header(tag, 48),
        std::process::id(),
        header(&alert.metric, 32),
    );
    param(&mut out, "metric", &alert.metric);
    param(&mut out, "severity", alert.severity.name());
    let over = alert.status == Status::Resolved;
    param(&mut out, "status", if over { "resolved" } else { "firing" });
    param(&mut out, "value", &alert.value.to_string());
    param(&mut out, "threshold", &alert.threshold.to_string());
    out.push(']');
    labels(&mut out, alert);
    out.push(' ');
    out.push(BOM);
    out.push_str(if over { "resolved: " } else { "" });
    message(&mut out, &alert.message);
    out
}

/// RFC 5424 table 2. What is over is a notice.
fn code(alert: &Alert) -> usize {
    match (alert.status, alert.severity) {
        (Status::Resolved, _) => 5,
        (Status::Firing, Severity::Info) => 6,
        (Status::Firing, Severity::Warn) => 4,
        (Status::Firing, Severity::Critical) => 2,
        (Status::Firing, Severity::Emergency) => 0,
    }
}

/// A header field: printable ASCII without blanks, `-` for nothing.
fn header(text: &str, chars_max: usize) -> String {
    let printable = |c: char| if c.is_ascii_graphic() { c } else { '_' };
    let field: String = text.chars().take(chars_max).map(printable).collect();
    if field.is_empty() { "-".to_owned() } else { field }
}

fn labels(out: &mut String, alert: &Alert) {
    let mut labels = String::from("[labels@32473");
    for (name, value) in &alert.labels {
        let before = labels.len();
        let name: String = header(name, 32).replace(['=', ']', '"'], "_");
        param(&mut labels, &name, value);
        if labels.len() > LABELS_BYTES_MAX {
            labels.truncate(before);
            break;
        }
    }
    if labels.contains(' ') {
        out.push_str(&labels);
        out.push(']');
    }
}

/// ` name="value"` with `"`, `\` and `]` escaped, as RFC 5424 §6.3.3 wants it.
fn param(out: &mut String, name: &str, value: &str) {
    // Writing into a String does not fail.
    let _ = write!(out, " {name}=\"");
    for c in shown(value, 1024).chars() {
        if matches!(c, '"' | '\\' | ']') {
            out.push('\\');
        }
        out.push(c);
    }
    out.push('"');
}

/// The message in what room is left. A control character would forge a record where lines are records.
fn message(out: &mut String, text: &str) {
    let text = shown(text, BYTES_MAX);
    let room = BYTES_MAX.saturating_sub(out.len());
    if text.len() <= room {
        out.push_str(&text);
    } else {
        out.push_str(cut(&text, room.saturating_sub('…'.len_utf8())));
        out.push('…');
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn alert() -> Alert {
        Alert {
            value: 1.0,
            threshold: 0.0,
            labels: BTreeMap::from([("comm".to_owned(), "a]\"\\".to_owned()), ("pid".to_owned(), "92".to_owned())]),
            status: Status::Firing,
            fingerprint: 1,
            ..Alert::new(
                "web-1",
                std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_771_777_800),
                Severity::Critical,
                "oom_kill",
                "The kernel killed dd.".to_owned(),
            )
        }
    }

    #[test]
    fn a_frame_is_rfc_5424() {
        let pid = std::process::id();
        assert_eq!(
            frame(&alert(), 3, "sysops-agent"),
            format!(
                "<26>1 2026-02-22T16:30:00Z web-1 sysops-agent {pid} oom_kill [sysops@32473 metric=\"oom_kill\" \
                 severity=\"critical\" status=\"firing\" value=\"1\" threshold=\"0\"]\
                 [labels@32473 comm=\"a\\]\\\"\\\\\" pid=\"92\"] \u{feff}The kernel killed dd."
            )
        );
        let over = Alert { status: Status::Resolved, labels: BTreeMap::new(), hostname: String::new(), ..alert() };
        let over = frame(&over, 16, "my agent");
        assert!(over.starts_with(&format!("<133>1 2026-02-22T16:30:00Z - my_agent {pid} oom_kill [")), "{over}");
        assert!(over.ends_with("threshold=\"0\"] \u{feff}resolved: The kernel killed dd."), "{over}");
    }

    #[test]
    fn a_frame_is_bounded_and_cut_between_characters() {
        let long = "ü\n".repeat(1 << 19);
        let labels = (0..100).map(|i| (format!("l{i}"), long.clone())).collect();
        let frame = frame(&Alert { message: long.clone(), hostname: long.clone(), labels, ..alert() }, 3, &long);
        assert!(frame.len() <= BYTES_MAX && frame.len() > BYTES_MAX - 8, "{}", frame.len());
        assert!(frame.ends_with('…') && !frame.contains('\n'));
        assert_eq!(frame.matches("\"]").count(), 2, "both elements are closed");
    }

    #[test]
    fn facilities_have_their_codes() {
        let code = |name: &str| FACILITIES.iter().position(|facility| *facility == name);
        assert_eq!(
            (code("daemon"), code("authpriv"), code("local0"), code("local7")),
            (Some(3), Some(10), Some(16), Some(23))
        );
    }
}
