//! An alert as one syslog record, RFC 5424 or RFC 3164. Whatever its texts hold, a record stays one line, and bounded.

use std::fmt::Write as _;
use std::time::SystemTime;

use jiff::Timestamp;
use jiff::tz::TimeZone;

use crate::deliver::text;
use crate::model::{Alert, Severity, Status, cut, shown, time};

/// rsyslog's own limit by default. Receivers must take 480 bytes and should take 2048.
const BYTES_MAX: usize = 8 << 10;

/// RFC 3164, section 4.1.
const OLD_BYTES_MAX: usize = 1024;

/// What labels and context may take of a record, each, so that there is always room for the message.
const LABELS_BYTES_MAX: usize = 3 << 10;
const CONTEXT_BYTES_MAX: usize = 2 << 10;

/// What stands before a message in UTF-8.
const BOM: char = '\u{feff}';

/// How a record is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    /// With fields.
    Rfc5424,
    /// One line, with this host's name.
    Rfc3164,
    /// The same without it, as syslog(3) writes to this machine's socket.
    Rfc3164Local,
}

/// Writes records.
pub(super) struct Writer {
    pub(super) format: Format,
    pub(super) facility: usize,
    pub(super) tag: String,
}

impl Writer {
    /// The alert as a record.
    pub(super) fn record(&self, alert: &Alert) -> String {
        let priority = self.facility * 8 + code(alert);
        match self.format {
            Format::Rfc5424 => frame(alert, priority, &self.tag),
            Format::Rfc3164 => line(alert, priority, &self.tag, true, TimeZone::system()),
            Format::Rfc3164Local => line(alert, priority, &self.tag, false, TimeZone::system()),
        }
    }
}

/// `<26>1 TIME HOST TAG PID METRIC [sysops@32473 …][labels@32473 …][context@32473 …] BOM message`
fn frame(alert: &Alert, priority: usize, tag: &str) -> String {
    let mut out = format!(
        "<{priority}>1 {} {} {} {} {} [sysops@32473",
        time::rfc3339_secs(alert.timestamp),
        header(&alert.hostname, 255),
        header(tag, 48),
        std::process::id(),
        header(&alert.metric, 32),
    );
    let fields = [
        ("metric", alert.metric.as_str()),
        ("severity", alert.severity.name()),
        ("status", if alert.status == Status::Resolved { "resolved" } else { "firing" }),
        ("value", &alert.value.to_string()),
        ("threshold", &alert.threshold.to_string()),
        ("change", alert.change.name()),
        ("rule", &alert.rule),
        ("id", &alert.id),
        ("fingerprint", &format!("{:016x}", alert.fingerprint)),
        ("starts_at", &time::rfc3339_secs(alert.starts_at)),
    ];
    for (name, value) in fields {
        param(&mut out, name, &shown(value, 256), 256);
    }
    out.push(']');
    let labels = alert.labels.iter().map(|(name, value)| (name.as_str(), value.clone()));
    element(&mut out, "labels@32473", LABELS_BYTES_MAX, labels);
    element(&mut out, "context@32473", CONTEXT_BYTES_MAX, context(alert));
    out.push(' ');
    out.push(BOM);
    message(&mut out, alert, BYTES_MAX);
    out
}

/// What a person wants first stands first: what has no room is left out from the end.
fn context(alert: &Alert) -> impl Iterator<Item = (&'static str, String)> {
    let context = &alert.context;
    let top = context.top.iter().take(5).map(|one| format!("{} {}", one.comm, one.uses)).collect::<Vec<_>>().join(", ");
    let all = [
        ("cause", context.cause.clone().unwrap_or_default()),
        ("runbook", context.runbook_url.clone().unwrap_or_default()),
        ("top", top),
        ("event", context.events.first().cloned().unwrap_or_default()),
        ("course", text::sparkline(&context.course)),
    ];
    all.into_iter().filter(|(_, value)| !value.is_empty()).map(|(name, value)| (name, shown(&value, 300)))
}

/// `<26>Feb 22 16:30:00 web-1 sysops-agent[92]: oom_kill: The kernel killed dd. [comm=dd pid=92]`, in local time as that format
/// has it.
fn line(alert: &Alert, priority: usize, tag: &str, with_host: bool, zone: TimeZone) -> String {
    // Daemons end a tag at these.
    let tag = header(tag, 32).replace(['[', ']', ':', '/'], "_");
    let mut out = format!("<{priority}>{} ", local(alert.timestamp, zone));
    if with_host {
        out.push_str(&header(&alert.hostname, 255));
        out.push(' ');
    }
    // Writing into a String does not fail, here and below.
    let _ = write!(out, "{tag}[{}]: {}: ", std::process::id(), header(&alert.metric, 64));
    let mut labels = String::new();
    if !alert.labels.is_empty() {
        let all = alert.labels.iter().map(|(name, value)| format!("{}={}", shown(name, 32), shown(value, 64)));
        labels.push_str(" [");
        push(&mut labels, &all.collect::<Vec<_>>().join(" "), 256);
        labels.push(']');
    }
    message(&mut out, alert, OLD_BYTES_MAX - labels.len());
    out + &labels
}

/// `Feb  2 16:30:00`.
fn local(time: SystemTime, zone: TimeZone) -> String {
    // A wall clock outside of jiff's years is nothing that Linux can be set to.
    let time = Timestamp::try_from(time).unwrap_or(Timestamp::UNIX_EPOCH);
    time.to_zoned(zone).strftime("%b %e %H:%M:%S").to_string()
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

/// `[id name="value" …]`: the value that has no room is cut, and nothing comes behind it; no element when there are none.
fn element<'a>(out: &mut String, id: &str, bytes_max: usize, params: impl Iterator<Item = (&'a str, String)>) {
    let (begin, end) = (out.len(), out.len() + bytes_max);
    for (name, value) in params {
        if out.len() == begin {
            let _ = write!(out, "[{id}");
        }
        let name = header(name, 32).replace(['=', ']', '"'], "_");
        let room = end.saturating_sub(out.len() + name.len());
        if !param(out, &name, &shown(&value, 1024), room) || room == 0 {
            break;
        }
    }
    if out.len() > begin {
        out.push(']');
    }
}

/// ` name="value"` with `"`, `\` and `]` escaped, as RFC 5424 §6.3.3 wants it. False when the value is cut, to `bytes_max` and a mark.
fn param(out: &mut String, name: &str, value: &str, bytes_max: usize) -> bool {
    let _ = write!(out, " {name}=\"");
    let end = out.len() + bytes_max;
    for c in value.chars() {
        let escape = if matches!(c, '"' | '\\' | ']') { "\\" } else { "" };
        if out.len() + escape.len() + c.len_utf8() > end {
            out.push_str("…\"");
            return false;
        }
        out.push_str(escape);
        out.push(c);
    }
    out.push('"');
    true
}

/// The message in what room is left. A control character would forge a record where lines are records.
fn message(out: &mut String, alert: &Alert, bytes_max: usize) {
    let over = if alert.status == Status::Resolved { "resolved: " } else { "" };
    let text = format!("{over}{}", shown(&alert.message, bytes_max));
    push(out, &text, bytes_max.saturating_sub(out.len()));
}

/// As much as has room, with a mark where it is cut.
fn push(out: &mut String, text: &str, bytes_max: usize) {
    if text.len() <= bytes_max {
        out.push_str(text);
    } else {
        out.push_str(cut(text, bytes_max.saturating_sub('…'.len_utf8())));
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
            frame(&alert(), 26, "sysops-agent"),
            format!(
                "<26>1 2026-02-22T16:30:00Z web-1 sysops-agent {pid} oom_kill [sysops@32473 metric=\"oom_kill\" \
                 severity=\"critical\" status=\"firing\" value=\"1\" threshold=\"0\" change=\"fired\" rule=\"oom_kill\" \
                 id=\"\" fingerprint=\"0000000000000001\" starts_at=\"2026-02-22T16:30:00Z\"]\
                 [labels@32473 comm=\"a\\]\\\"\\\\\" pid=\"92\"] \u{feff}The kernel killed dd."
            )
        );
        let over = Alert { status: Status::Resolved, labels: BTreeMap::new(), hostname: String::new(), ..alert() };
        let over = frame(&over, 128 + code(&over), "my agent");
        assert!(over.starts_with(&format!("<133>1 2026-02-22T16:30:00Z - my_agent {pid} oom_kill [")), "{over}");
        assert!(over.ends_with("16:30:00Z\"] \u{feff}resolved: The kernel killed dd."), "{over}");
    }

    #[test]
    fn a_line_is_rfc_3164() {
        let pid = std::process::id();
        assert_eq!(
            line(&alert(), 26, "sysops-agent", true, TimeZone::UTC),
            format!(
                "<26>Feb 22 16:30:00 web-1 sysops-agent[{pid}]: oom_kill: The kernel killed dd. [comm=a]\"\\ pid=92]"
            )
        );
        let local = line(&Alert { labels: BTreeMap::new(), ..alert() }, 26, "a b:[]", false, TimeZone::UTC);
        assert_eq!(local, format!("<26>Feb 22 16:30:00 a_b___[{pid}]: oom_kill: The kernel killed dd."));
    }

    #[test]
    fn a_value_without_room_is_cut_with_a_mark_and_the_last() {
        let wide = "😀".repeat(1024);
        let labels = [("a", "]".to_owned()), ("b", wide.clone()), ("c", "x".to_owned())];
        let labels = labels.map(|(name, value)| (name.to_owned(), value)).into();
        let mut alert = Alert { labels, ..alert() };
        let of_alert = |alert: &Alert| frame(alert, 26, "sysops-agent");
        let element = |frame: &str| {
            let (_, labels) = frame.split_once("[labels@32473 ").expect("there are labels");
            labels.split_once("\"] \u{feff}The kernel killed dd.").expect("the message follows").0.to_owned()
        };
        let labels = element(&of_alert(&alert));
        let b =
            labels.strip_prefix("a=\"\\]\" b=\"").and_then(|value| value.strip_suffix('…')).expect("cut and the last");
        assert!(wide.starts_with(b) && (LABELS_BYTES_MAX - 50..LABELS_BYTES_MAX).contains(&b.len()), "{}", b.len());
        for length in 0..60 {
            alert.labels = (0..1000).map(|i| (format!("l{i:03}"), "x".repeat(length))).collect();
            assert!(length == 0 || element(&of_alert(&alert)).ends_with('…'), "{length}: {}", of_alert(&alert));
            assert!(of_alert(&alert).len() < BYTES_MAX);
        }
        // The widest there can be is bounded like all else.
        (alert.metric, alert.rule, alert.id) = (wide.clone(), wide.clone(), wide.clone());
        alert.labels = [("a".to_owned(), wide.clone())].into();
        alert.context.events = vec![wide.clone()];
        (alert.context.cause, alert.context.runbook_url) = (Some(wide.clone()), Some(wide));
        assert!(of_alert(&alert).len() <= BYTES_MAX, "{}", of_alert(&alert).len());
        let line = line(&alert, 26, "a", true, TimeZone::UTC);
        assert!(line.ends_with("…]") && line.len() <= OLD_BYTES_MAX, "{line}");
    }

    #[test]
    fn a_record_is_bounded_and_cut_between_characters() {
        let long = "ü\n".repeat(1 << 19);
        let labels = (0..100).map(|i| (format!("l{i}"), long.clone())).collect();
        let mut alert = Alert { message: long.clone(), hostname: long.clone(), labels, ..alert() };
        (alert.context.cause, alert.rule) = (Some(long.clone()), long.clone());
        let frame = frame(&alert, 26, &long);
        assert!(frame.len() <= BYTES_MAX && frame.len() > BYTES_MAX - 8, "{}", frame.len());
        assert!(frame.ends_with('…') && !frame.contains('\n'));
        assert_eq!(frame.matches("\"]").count(), 3, "all elements are closed");
        let line = line(&alert, 26, &long, true, TimeZone::UTC);
        assert!(line.len() <= OLD_BYTES_MAX && line.ends_with(']') && !line.contains('\n'), "{line}");
    }
}
