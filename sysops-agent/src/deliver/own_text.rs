//! A text of the user's own for what a channel says: the template of its `template` key, what it may name, and the check that
//! it can say every alert. What a far end does with the text is left to the channel.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use serde::Serialize;

use super::text;
use crate::model::{Alert, Context, Notice, Severity, Status, Usage, shown, time};
use crate::template::{Escape, Template};

/// Alerts of one notice that a template sees; `count` tells how many there are.
const ALERTS_MAX: usize = 10;

/// The template of one channel.
pub struct OwnText {
    key: &'static str,
    template: Template,
    is_broken: bool,
}

impl OwnText {
    /// Takes `source`, the value of `key`, and tries it on alerts of every kind.
    ///
    /// # Errors
    /// With the key, the line and what is wrong there.
    pub fn new(key: &'static str, source: Option<&str>, escape: Escape) -> Result<Option<Self>, String> {
        Self::checked(key, source, escape, |_| Ok(()))
    }

    /// The same, where what comes out must hold good for `check` as well.
    ///
    /// # Errors
    /// As [`OwnText::new`], and what `check` says.
    pub fn checked(
        key: &'static str,
        source: Option<&str>,
        escape: Escape,
        check: impl Fn(&str) -> Result<(), String>,
    ) -> Result<Option<Self>, String> {
        let Some(source) = source else { return Ok(None) };
        let template = Template::new(source, escape).map_err(|error| format!("{key}: {error}"))?;
        for (what, notice) in samples() {
            let rendered = template.render(&Data::of(&notice)).and_then(|out| check(&out).map(|()| out));
            rendered.map_err(|error| format!("{key}: {error} (tried on {what})"))?;
        }
        Ok(Some(Self { key, template, is_broken: false }))
    }

    /// The text, as far as `hold` takes it. What cannot be rendered is said once; the channel then uses its own words.
    pub fn of(&mut self, notice: &Notice, hold: impl Fn(String) -> Result<String, String>) -> Option<String> {
        match self.template.render(&Data::of(notice)).and_then(hold) {
            Ok(text) => Some(text),
            Err(error) => {
                if !self.is_broken {
                    let key = self.key;
                    tracing::warn!(key, %error, "the template does not fit an alert, which is told in the built-in words");
                }
                self.is_broken = true;
                None
            }
        }
    }
}

/// What a template may name. Text from outside is bounded and fit to be shown.
#[derive(Serialize)]
struct Data {
    headline: String,
    severity: &'static str,
    status: &'static str,
    host: String,
    count: usize,
    alert: One,
    alerts: Vec<One>,
}

#[derive(Clone, Serialize)]
struct One {
    id: String,
    fingerprint: String,
    title: String,
    word: &'static str,
    severity: &'static str,
    status: &'static str,
    change: &'static str,
    rule: String,
    metric: String,
    message: String,
    host: String,
    value: f64,
    value_text: String,
    threshold: f64,
    threshold_text: String,
    labels: BTreeMap<String, String>,
    labels_text: String,
    timestamp: String,
    starts_at: String,
    since: String,
    cause: String,
    runbook_url: String,
    facts: Vec<Fact>,
}

#[derive(Clone, Serialize)]
struct Fact {
    name: &'static str,
    text: String,
}

impl Data {
    fn of(notice: &Notice) -> Self {
        let alerts: Vec<One> = notice.alerts.iter().take(ALERTS_MAX).map(One::of).collect();
        Self {
            headline: text::headline(notice),
            severity: notice.severity().name(),
            status: status(notice.status()),
            host: shown(&notice.head().hostname, 255),
            count: notice.alerts.len(),
            alert: One::of(notice.head()),
            alerts,
        }
    }
}

impl One {
    fn of(alert: &Alert) -> Self {
        let context = &alert.context;
        let labels = alert.labels.iter().map(|(name, value)| (shown(name, 64), shown(value, 256)));
        let facts = text::facts(alert).into_iter().map(|fact| Fact { name: fact.name, text: fact.text });
        Self {
            id: alert.id.clone(),
            fingerprint: format!("{:016x}", alert.fingerprint),
            title: text::title(alert),
            word: text::word(alert),
            severity: alert.severity.name(),
            status: status(alert.status),
            change: alert.change.name(),
            rule: shown(&alert.rule, 64),
            metric: shown(&alert.metric, 64),
            message: shown(&alert.message, 1000),
            host: shown(&alert.hostname, 255),
            value: alert.value,
            value_text: text::number(alert.value, &context.unit),
            threshold: alert.threshold,
            threshold_text: text::number(alert.threshold, &context.unit),
            labels: labels.collect(),
            labels_text: text::labels(alert),
            timestamp: time::rfc3339_secs(alert.timestamp),
            starts_at: time::rfc3339_secs(alert.starts_at),
            since: text::since(alert.starts_at, alert.timestamp, alert.status),
            cause: context.cause.as_deref().map(|text| shown(text, 400)).unwrap_or_default(),
            runbook_url: text::runbook(alert).unwrap_or_default().to_owned(),
            facts: facts.collect(),
        }
    }
}

fn status(status: Status) -> &'static str {
    match status {
        Status::Firing => "firing",
        Status::Resolved => "resolved",
    }
}

/// Notices on which a template is tried: one of which nothing is known, one of which everything is and as long as can be, and
/// a group.
fn samples() -> [(&'static str, Notice); 3] {
    let long = "&<>\"'`*_\\{}[]()\n\u{202e}@everyone ".repeat(200);
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_771_777_800);
    let plain = Alert::new("web-1", time, Severity::Warn, "a_metric", "It is so.".to_owned());
    let mut full = Alert::new(&long, time, Severity::Emergency, &long, long.clone());
    (full.value, full.threshold, full.status) = (f64::MAX, f64::MIN, Status::Resolved);
    full.rule.clone_from(&long);
    full.context = Context {
        unit: "percent".to_owned(),
        course: vec![1.0; 60],
        course_secs: 3600,
        top: vec![Usage { pid: Some(u32::MAX), comm: long.clone(), uses: long.clone() }; 10],
        events: vec![long.clone(); 10],
        cause: Some(long.clone()),
        runbook_url: Some("https://runbooks.example/a".to_owned()),
        host: vec![("kernel".to_owned(), long); 10],
    };
    let mut group = Notice::of(plain.clone());
    group.alerts.extend(vec![full.clone(); 2 * ALERTS_MAX]);
    [
        ("an alert of which little is known: for what may be absent, as a label, use |default('')", Notice::of(plain)),
        ("an alert with all that there can be", Notice::of(full)),
        ("a group of alerts", group),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::template::plain;

    fn refused(source: &str) -> String {
        OwnText::new("a.template", Some(source), plain).err().unwrap_or_default()
    }

    #[test]
    fn a_template_that_cannot_say_every_alert_is_refused_with_its_line() {
        assert_eq!(refused("{{ headline }}{% for one in alerts %}{{ one.message }}{% endfor %}"), "");
        assert_eq!(refused("{{ alert.labels.device|default('') }} {{ alert.facts[0].text }}"), "");
        let error = refused("x\n{{ alert.labels.device }}");
        assert!(error.starts_with("a.template: line 2: undefined value"), "{error}");
        assert!(refused("{% if %}").starts_with("a.template: line 1: syntax error"), "{}", refused("{% if %}"));
        assert!(
            refused("{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}").contains("fuel")
        );
    }

    #[test]
    fn an_alert_that_a_template_cannot_say_leaves_the_channel_its_own_words() {
        let source = "{% if alert.labels.a is defined %}{{ alert.labels.b }}{% endif %}ok";
        let mut own = OwnText::new("a.template", Some(source), plain).expect("it is right").expect("there is one");
        let time = SystemTime::UNIX_EPOCH;
        let mut notice = Notice::of(Alert::new("h", time, Severity::Warn, "m", String::new()));
        assert_eq!(own.of(&notice, |text| text::held(text, 10)).as_deref(), Some("ok"));
        assert_eq!(own.of(&notice, |text| text::held(text, 1)), None);
        notice.alerts[0].labels.insert("a".to_owned(), "1".to_owned());
        assert_eq!(own.of(&notice, |text| text::held(text, 10)), None);
    }
}
