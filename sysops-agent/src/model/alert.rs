//! An alert as people and machines receive it. docs/schemas/webhook.schema.json describes its JSON.

use std::collections::BTreeMap;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// For the record.
    Info,
    /// Look at it in working hours.
    Warn,
    /// Look at it now.
    Critical,
    /// Look at it now, whatever the rate limits say.
    Emergency,
}

impl Severity {
    /// All of them, mildest first.
    pub const ALL: [Self; 4] = [Self::Info, Self::Warn, Self::Critical, Self::Emergency];

    /// Their names, for configuration keys.
    pub const NAMES: &'static [&'static str] = &["info", "warn", "critical", "emergency"];

    /// The severity with this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|severity| severity.name() == name)
    }

    /// `info`, `warn`, `critical`, `emergency`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Warn => "warn",
            Self::Critical => "critical",
            Self::Emergency => "emergency",
        }
    }
}

/// Firing or over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// It is so now, or (kernel events) it has happened.
    #[default]
    Firing,
    /// It is over.
    Resolved,
}

/// What has become of an alert: why there is this notice of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// It is so now, or (kernel events) it has happened.
    Fired,
    /// It has become worse: the severity is higher than last told.
    Worsened,
    /// Nobody has acknowledged it, so it goes to the next severity or to others.
    Escalated,
    /// It is still so.
    Reminded,
    /// It is over.
    Resolved,
    /// What limits held back, in one notice.
    Digest,
    /// Someone tries the channels.
    Test,
}

impl Change {
    /// `fired`, `worsened`, `escalated`, `reminded`, `resolved`, `digest`, `test`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Fired => "fired",
            Self::Worsened => "worsened",
            Self::Escalated => "escalated",
            Self::Reminded => "reminded",
            Self::Resolved => "resolved",
            Self::Digest => "digest",
            Self::Test => "test",
        }
    }
}

/// One change of one alert: the seed's payload keys first, then what has been added. Keys are only ever added.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Alert {
    /// Host that it is about.
    pub hostname: String,
    /// When it changed, RFC 3339.
    #[serde(with = "rfc3339")]
    pub timestamp: SystemTime,
    /// How bad it is.
    pub severity: Severity,
    /// The rule's metric, or the kind of a kernel event.
    pub metric: String,
    /// The value; 1 for a kernel event. Always finite.
    pub value: f64,
    /// The limit; 0 for a kernel event, of which any is too many. Always finite.
    pub threshold: f64,
    /// One sentence for people.
    pub message: String,
    /// Labels of the series, or `pid`, `comm`, `cgroup` of a kernel event.
    pub labels: BTreeMap<String, String>,
    /// Present only when it is over.
    #[serde(default, skip_serializing_if = "is_firing")]
    pub status: Status,
    /// The same for every try to deliver this change, and for no other change: far ends can use it to tell repeats.
    /// Letters, digits and hyphens, at most 64.
    pub id: String,
    /// The same for all changes of one alert (rule, metric and labels), on every start.
    #[serde(with = "hexadecimal")]
    pub fingerprint: u64,
    /// What has become of it.
    pub change: Change,
    /// Name of the rule: the configuration key that sets a limit, the `name` of a `[[rule]]`, the kind of an event.
    pub rule: String,
    /// Since when it is so, RFC 3339.
    #[serde(with = "rfc3339")]
    pub starts_at: SystemTime,
    /// What a person needs to understand it.
    #[serde(default, skip_serializing_if = "Context::is_empty")]
    pub context: Context,
}

/// What was known around an alert when it changed. All of it is bounded; text from outside is as it came.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Context {
    /// Unit of value, threshold and course, as `percent`; empty for a plain number.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub unit: String,
    /// The value of late, oldest first, at equal distances; the last is `value`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub course: Vec<f64>,
    /// Seconds from the first value of the course to the last.
    #[serde(skip_serializing_if = "is_zero")]
    pub course_secs: u64,
    /// Processes that use most of what the alert is about, most first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub top: Vec<Usage>,
    /// Kernel events of late that have to do with it, one sentence each, newest first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub events: Vec<String>,
    /// The likely cause, one sentence.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
    /// Where it says what to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub runbook_url: Option<String>,
    /// Facts of the host, name and value: `("uptime", "12 d")`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub host: Vec<(String, String)>,
}

/// What one process uses.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Usage {
    /// Its id, when it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// Its name, as it came from outside.
    pub comm: String,
    /// How much, with its unit, for people: `93.1 %`, `1.2 GiB`.
    pub uses: String,
}

impl Context {
    /// True when nothing is known.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl Alert {
    /// A firing alert without value, labels and context; `id` and `fingerprint` are for the caller to set.
    #[must_use]
    pub fn new(hostname: &str, timestamp: SystemTime, severity: Severity, metric: &str, message: String) -> Self {
        Self {
            hostname: hostname.to_owned(),
            timestamp,
            severity,
            metric: metric.to_owned(),
            value: 0.0,
            threshold: 0.0,
            message,
            labels: BTreeMap::new(),
            status: Status::Firing,
            id: String::new(),
            fingerprint: 0,
            change: Change::Fired,
            rule: metric.to_owned(),
            starts_at: timestamp,
            context: Context::default(),
        }
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it with a reference")]
fn is_firing(status: &Status) -> bool {
    *status == Status::Firing
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it with a reference")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// Times as RFC 3339 in UTC with whole seconds.
pub(super) mod rfc3339 {
    use std::time::SystemTime;

    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    pub(in crate::model) fn serialize<S: Serializer>(time: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&super::super::time::rfc3339_secs(*time))
    }

    pub(in crate::model) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SystemTime, D::Error> {
        let text = String::deserialize(deserializer)?;
        let timestamp: jiff::Timestamp = text.parse().map_err(D::Error::custom)?;
        Ok(timestamp.into())
    }
}

/// Numbers as 16 hexadecimal digits, because many readers of JSON know no whole numbers of 64 bits.
pub(super) mod hexadecimal {
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it with a reference")]
    pub(in crate::model) fn serialize<S: Serializer>(number: &u64, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&format!("{number:016x}"))
    }

    pub(in crate::model) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
        let text = String::deserialize(deserializer)?;
        u64::from_str_radix(&text, 16).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_alert_comes_back_from_its_json() {
        let mut alert = Alert::new("h", SystemTime::UNIX_EPOCH, Severity::Warn, "m", "text".to_owned());
        (alert.status, alert.change, alert.fingerprint) = (Status::Resolved, Change::Resolved, u64::MAX - 1);
        alert.context = Context {
            course: vec![1.0, 2.5],
            top: vec![Usage { pid: None, comm: "\u{1b}x".to_owned(), uses: "1 %".to_owned() }],
            host: vec![("uptime".to_owned(), "1 d".to_owned())],
            ..Context::default()
        };
        let text = serde_json::to_string(&alert).expect("it has a JSON form");
        assert_eq!(serde_json::from_str::<Alert>(&text).expect("its own"), alert);
        assert!(
            text.contains("\"fingerprint\":\"fffffffffffffffe\"") && text.contains("1970-01-01T00:00:00Z"),
            "{text}"
        );
    }
}
