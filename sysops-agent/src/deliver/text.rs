//! What every channel for people says of an alert, in the order in which a person wants it. All text comes out bounded and with
//! nothing in it that misleads a reader; what a far end takes as markup is escaped by its channel.

use std::fmt::Write as _;
use std::time::{Duration, SystemTime};

use crate::model::{Alert, Change, Notice, Severity, Status, bytes_text, shown, time};

/// Characters of one fact's text.
const FACT_MAX: usize = 900;

/// Steps of a sparkline, lowest first.
const STEPS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// One thing to know of an alert.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fact {
    /// Its name: `Value`, `Since`, `Top processes`.
    pub name: &'static str,
    /// What there is to say; several lines at most for lists.
    pub text: String,
    /// True when it is short enough to stand beside others.
    pub short: bool,
}

/// `CRITICAL`, `RESOLVED`, `TEST`: what a glance must catch.
#[must_use]
pub fn word(alert: &Alert) -> &'static str {
    match (alert.status, alert.change, alert.severity.name()) {
        (Status::Resolved, ..) => "RESOLVED",
        (_, Change::Test, _) => "TEST",
        (.., "info") => "INFO",
        (.., "warn") => "WARN",
        (.., "critical") => "CRITICAL",
        _ => "EMERGENCY",
    }
}

/// The line above one alert: `CRITICAL disk_usage_percent on web-1`.
#[must_use]
pub fn title(alert: &Alert) -> String {
    format!("{}{} {} on {}", word(alert), again(alert), shown(&alert.metric, 64), shown(&alert.hostname, 64))
}

fn again(alert: &Alert) -> &'static str {
    match alert.change {
        Change::Reminded => " still",
        Change::Escalated => " escalated",
        _ => "",
    }
}

/// The line above everything: `CRITICAL disk_usage_percent on web-1`, `CRITICAL 3 alerts on web-1: disk_usage_percent`.
#[must_use]
pub fn headline(notice: &Notice) -> String {
    let head = notice.head();
    match notice.alerts.len() {
        1 => title(head),
        count => format!(
            "{}{} {count} alerts on {}: {}",
            word(head),
            again(head),
            shown(&head.hostname, 64),
            shown(&head.metric, 64)
        ),
    }
}

/// True when someone is to be woken: something critical or worse is so now.
#[must_use]
pub fn is_urgent(notice: &Notice) -> bool {
    notice.alerts.iter().any(|alert| alert.status == Status::Firing && alert.severity >= Severity::Critical)
}

/// A coloured dot for far ends that have no colours of their own.
#[must_use]
pub fn dot(alert: &Alert) -> &'static str {
    match (alert.status, alert.severity) {
        (Status::Resolved, _) => "🟢",
        (_, Severity::Info) => "🔵",
        (_, Severity::Warn) => "🟡",
        (_, Severity::Critical) => "🔴",
        (_, Severity::Emergency) => "🚨",
    }
}

/// The colour of an alert beside words, as 0xRRGGBB.
#[must_use]
pub fn colour(alert: &Alert) -> u32 {
    match (alert.status, alert.severity) {
        (Status::Resolved, _) => 0x2e_cc_71,
        (_, Severity::Info) => 0x34_98_db,
        (_, Severity::Warn) => 0xf1_c4_0f,
        (_, Severity::Critical) => 0xe7_4c_3c,
        (_, Severity::Emergency) => 0x8e_1b_1b,
    }
}

/// What it is called where one acts on it: `rule disk_percent, alert 1f3a09c2`.
#[must_use]
pub fn origin(alert: &Alert) -> String {
    format!("rule {}, alert {:08x}", shown(&alert.rule, 64), alert.fingerprint >> 32)
}

/// `… and 7 more` when a notice has more alerts than are told.
#[must_use]
pub fn and_more(notice: &Notice, told: usize) -> Option<String> {
    notice.alerts.len().checked_sub(told).filter(|more| *more > 0).map(|more| format!("… and {more} more"))
}

/// UTF-16 units, in which far ends that are written in JavaScript count. It is never less than what others count.
#[must_use]
pub fn units(text: &str) -> usize {
    text.chars().map(char::len_utf16).sum()
}

/// How one character is written for a far end, at the end of what has been written already.
pub type Escape = fn(&mut String, char);

/// For text in which nothing has a meaning.
pub fn as_it_is(out: &mut String, c: char) {
    out.push(c);
}

/// `text` escaped, in at most `units_max` UTF-16 units: what does not fit is cut between two characters of `text`, so never
/// within an escape, and marked with `…`.
#[must_use]
pub fn fitted(text: &str, units_max: usize, escape: Escape) -> String {
    let mut out = String::new();
    let (mut used, mut end_with_mark) = (0, 0);
    for c in text.chars() {
        let before = out.len();
        escape(&mut out, c);
        used += units(&out[before..]);
        if used > units_max {
            out.truncate(end_with_mark);
            out.push_str(if units_max > 0 { "…" } else { "" });
            return out;
        }
        if used < units_max {
            end_with_mark = out.len();
        }
    }
    out
}

/// Room at a far end, in UTF-16 units, that several texts share.
pub struct Room {
    left: usize,
}

impl Room {
    /// All of it.
    #[must_use]
    pub fn new(units: usize) -> Self {
        Self { left: units }
    }

    /// What is left.
    #[must_use]
    pub fn left(&self) -> usize {
        self.left
    }

    /// `text` escaped and cut to `units_max` and to what is left.
    pub fn take(&mut self, text: &str, units_max: usize, escape: Escape) -> String {
        let text = fitted(text, units_max.min(self.left), escape);
        self.left -= units(&text);
        text
    }

    /// `text` as it is and as a whole, if there is room for it.
    pub fn take_whole(&mut self, text: String) -> Option<String> {
        self.left = self.left.checked_sub(units(&text))?;
        Some(text)
    }
}

/// What a template of the user's own gave, if a far end that takes `units_max` can have it.
///
/// # Errors
/// When it is empty or longer.
pub fn held(text: String, units_max: usize) -> Result<String, String> {
    match units(&text) {
        _ if text.trim().is_empty() => Err("the template gave nothing".to_owned()),
        long if long > units_max => Err(format!("the template gave {long} characters, and {units_max} are the most")),
        _ => Ok(text),
    }
}

/// The URL, when it is one that every far end can be given as a link: http or https, and no character that ends a link.
#[must_use]
pub fn link(url: &str) -> Option<&str> {
    let fit = |byte: u8| byte.is_ascii_graphic() && !br#"<>"'`\|^{}"#.contains(&byte);
    let rest = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"))?;
    (!rest.is_empty() && url.len() <= 500 && url.bytes().all(fit)).then_some(url)
}

/// The runbook's URL, as far as it is fit for a link.
#[must_use]
pub fn runbook(alert: &Alert) -> Option<&str> {
    alert.context.runbook_url.as_deref().and_then(link)
}

/// What is known of an alert beside its message.
#[must_use]
pub fn facts(alert: &Alert) -> Vec<Fact> {
    let mut facts = Vec::new();
    let mut add = |name, text: String, short| {
        if !text.trim().is_empty() {
            facts.push(Fact { name, text: clipped(&text), short });
        }
    };
    add("Host", shown(&alert.hostname, 255), true);
    if alert.threshold != 0.0 {
        let (value, limit) = (number(alert.value, &alert.context.unit), number(alert.threshold, &alert.context.unit));
        add("Value", format!("{value} (limit {limit})"), true);
    }
    add("Since", since(alert.starts_at, alert.timestamp, alert.status), true);
    if alert.context.course.len() > 1 {
        let span = span(Duration::from_secs(alert.context.course_secs));
        add("Course", format!("{} ({span})", sparkline(&alert.context.course)), true);
    }
    add("Labels", labels(alert), false);
    add("Likely cause", alert.context.cause.as_deref().map(|text| shown(text, 400)).unwrap_or_default(), false);
    let top = alert.context.top.iter().take(5).map(|one| {
        let pid = one.pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default();
        format!("{}{pid} {}", shown(&one.comm, 64), shown(&one.uses, 32))
    });
    add("Top processes", top.collect::<Vec<_>>().join("\n"), false);
    let events = alert.context.events.iter().take(3).map(|event| shown(event, 280));
    add("Kernel events", events.collect::<Vec<_>>().join("\n"), false);
    add("Runbook", alert.context.runbook_url.as_deref().map(|url| shown(url, 500)).unwrap_or_default(), false);
    let host = alert.context.host.iter().map(|(name, text)| format!("{} {}", shown(name, 32), shown(text, 96)));
    add("Machine", host.collect::<Vec<_>>().join(", "), false);
    facts
}

/// Labels as `device /dev/sdb1, mountpoint /data`.
#[must_use]
pub fn labels(alert: &Alert) -> String {
    let mut text = String::new();
    for (i, (name, value)) in alert.labels.iter().enumerate() {
        // Writing into a String does not fail.
        let _ = write!(text, "{}{} {}", if i == 0 { "" } else { ", " }, shown(name, 64), shown(value, 256));
    }
    text
}

/// `93.4 %`, `1.2 GiB`, `4.2 s`, `17`.
#[must_use]
pub fn number(value: f64, unit: &str) -> String {
    let text = if value.abs() >= 100.0 || value.fract() == 0.0 { format!("{value:.0}") } else { format!("{value:.2}") };
    match unit {
        "percent" => format!("{value:.1} %"),
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "it is not negative, and only shown"
        )]
        "bytes" if value >= 0.0 => bytes_text(value as u64),
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "it is not negative, and only shown"
        )]
        "bytes/s" if value >= 0.0 => format!("{}/s", bytes_text(value as u64)),
        "seconds" => format!("{value:.3} s"),
        "1/s" => format!("{text}/s"),
        _ => text,
    }
}

/// The course of a value as one line of blocks; flat in the middle when it did not change.
#[must_use]
pub fn sparkline(course: &[f64]) -> String {
    let (least, most) = course
        .iter()
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(least, most), value| (least.min(*value), most.max(*value)));
    let step = |value: f64| {
        if most <= least {
            return STEPS[3];
        }
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it is from 0 to 7")]
        let at = ((value - least) / (most - least) * 7.0).round() as usize;
        STEPS[at.min(7)]
    };
    course.iter().map(|value| step(*value)).collect()
}

/// `2026-02-22 16:18 UTC (12 min)`.
#[must_use]
pub fn since(from: SystemTime, to: SystemTime, status: Status) -> String {
    let text = time::rfc3339_secs(from);
    let text = text.get(..16).unwrap_or(&text).replace('T', " ");
    match to.duration_since(from) {
        Ok(length) if length >= Duration::from_secs(1) => {
            let word = if status == Status::Resolved { "it lasted " } else { "" };
            format!("{text} UTC ({word}{})", span(length))
        }
        _ => format!("{text} UTC"),
    }
}

/// `45 s`, `12 min`, `3 h 20 min`, `5 d 2 h`.
#[must_use]
pub fn span(length: Duration) -> String {
    let secs = length.as_secs();
    let two = |whole: u64, name: &str, part: u64, part_name: &str| match part {
        0 => format!("{whole} {name}"),
        part => format!("{whole} {name} {part} {part_name}"),
    };
    match secs {
        0..120 => format!("{secs} s"),
        120..7200 => format!("{} min", secs / 60),
        7200..172_800 => two(secs / 3600, "h", secs % 3600 / 60, "min"),
        _ => two(secs / 86_400, "d", secs % 86_400 / 3600, "h"),
    }
}

fn clipped(text: &str) -> String {
    match text.char_indices().nth(FACT_MAX) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Context, Severity, Usage};

    #[test]
    fn a_person_gets_what_is_known_in_order_and_nothing_else() {
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_771_777_800);
        let mut alert = Alert::new("web-1", time, Severity::Critical, "memory_used_percent", "It is 97 %.".to_owned());
        (alert.value, alert.threshold, alert.starts_at) = (97.25, 85.0, time - Duration::from_secs(720));
        alert.context = Context {
            unit: "percent".to_owned(),
            course: vec![10.0, 50.0, 97.25],
            course_secs: 3600,
            top: vec![Usage { pid: Some(7), comm: "a\nb".to_owned(), uses: "1.2 GiB".to_owned() }],
            ..Context::default()
        };
        let said: Vec<String> = facts(&alert).into_iter().map(|fact| format!("{}: {}", fact.name, fact.text)).collect();
        assert_eq!(
            said,
            [
                "Host: web-1",
                "Value: 97.2 % (limit 85.0 %)",
                "Since: 2026-02-22 16:18 UTC (12 min)",
                "Course: ▁▄█ (60 min)",
                "Top processes: a\\nb (pid 7) 1.2 GiB",
            ]
        );
        alert.hostname = " \u{2003}".to_owned();
        assert_eq!(facts(&alert)[0].name, "Value", "what is blank is no fact");
        alert.hostname = "web-1".to_owned();
        assert_eq!(headline(&Notice::of(alert)), "CRITICAL memory_used_percent on web-1");
    }

    #[test]
    fn text_is_cut_between_characters_and_never_within_an_escape() {
        let amp: Escape = |out, c| if c == '&' { out.push_str("&amp;") } else { out.push(c) };
        assert_eq!(fitted("a&b", 7, amp), "a&amp;b");
        assert_eq!([fitted("a&b", 6, amp), fitted("a&b", 5, amp), fitted("a&b", 1, amp)], ["a…", "a…", "…"]);
        assert_eq!(fitted("a&b", 0, amp), "");
        assert_eq!(fitted("😀😀", 4, as_it_is), "😀😀", "two units each");
        assert_eq!(fitted("😀😀", 3, as_it_is), "😀…");
    }

    #[test]
    fn only_what_no_far_end_can_misread_is_a_link() {
        assert!(link("https://w.example/run?a=b&c=d#e").is_some());
        for url in [
            "javascript:alert(1)",
            "https://",
            "https://a b/",
            "https://a/>x",
            "https://a/|x",
            "ftp://a/",
            "https://a/ü",
        ] {
            assert_eq!(link(url), None, "{url}");
        }
    }

    #[test]
    fn a_course_that_is_flat_is_a_line() {
        assert_eq!(sparkline(&[1.0, 1.0]), "▄▄");
        assert_eq!(sparkline(&[]), "");
        assert_eq!(sparkline(&[0.0, 7.0, 3.5]), "▁█▅");
    }

    #[test]
    fn lengths_and_numbers_have_their_units() {
        let secs = Duration::from_secs;
        assert_eq!([span(secs(59)), span(secs(7300)), span(secs(180_000))], ["59 s", "2 h 1 min", "2 d 2 h"]);
        assert_eq!(number(1536.0, "bytes"), "1.5 KiB");
        assert_eq!([number(2.0, ""), number(0.015, ""), number(250.4, "1/s")], ["2", "0.01", "250/s"]);
    }
}
