//! The documents that a webhook can get.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::model::{Alert, Severity, Status, time};

/// Which document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Payload {
    /// Everything that is known.
    Full,
    /// The keys of the first version alone.
    Seed,
    /// What Alertmanager posts to its receivers, version 4.
    Alertmanager,
}

/// The keys of the first version, in their order.
#[derive(Serialize)]
struct Seed<'a> {
    hostname: &'a str,
    timestamp: String,
    severity: Severity,
    metric: &'a str,
    value: f64,
    threshold: f64,
    message: &'a str,
    labels: &'a BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<Status>,
}

impl Payload {
    pub(super) const NAMES: &'static [&'static str] = &["full", "seed", "alertmanager"];

    /// The one with this name of [`Self::NAMES`].
    pub(super) fn named(name: &str) -> Self {
        match name {
            "seed" => Self::Seed,
            "alertmanager" => Self::Alertmanager,
            _ => Self::Full,
        }
    }

    pub(super) fn body(self, alert: &Alert) -> Vec<u8> {
        match self {
            Self::Full => bytes(alert),
            Self::Seed => bytes(&seed(alert)),
            Self::Alertmanager => bytes(&alertmanager(alert)),
        }
    }
}

fn bytes(document: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(document).expect("it has a JSON form: all its keys are texts")
}

fn seed(alert: &Alert) -> Seed<'_> {
    Seed {
        hostname: &alert.hostname,
        timestamp: time::rfc3339_secs(alert.timestamp),
        severity: alert.severity,
        metric: &alert.metric,
        value: alert.value,
        threshold: alert.threshold,
        message: &alert.message,
        labels: &alert.labels,
        status: Some(alert.status).filter(|status| *status == Status::Resolved),
    }
}

/// One group of one alert. Its end is Go's zero time while it fires.
fn alertmanager(alert: &Alert) -> Value {
    let is_over = alert.status == Status::Resolved;
    let status = if is_over { "resolved" } else { "firing" };
    let ends_at = if is_over { time::rfc3339_secs(alert.timestamp) } else { "0001-01-01T00:00:00Z".to_owned() };
    let mut labels: BTreeMap<&str, &str> =
        alert.labels.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    labels.extend([
        ("alertname", alert.rule.as_str()),
        ("instance", alert.hostname.as_str()),
        ("metric", alert.metric.as_str()),
        ("severity", severity(alert.severity)),
    ]);
    let annotations = annotations(alert);
    let group = json!({ "alertname": alert.rule });
    json!({
        "version": "4",
        "groupKey": format!("{{}}:{{alertname={:?}}}", alert.rule),
        "truncatedAlerts": 0,
        "status": status,
        "receiver": "sysops-agent",
        "groupLabels": group,
        "commonLabels": labels,
        "commonAnnotations": annotations,
        "externalURL": "",
        "alerts": [{
            "status": status,
            "labels": labels,
            "annotations": annotations,
            "startsAt": time::rfc3339_secs(alert.starts_at),
            "endsAt": ends_at,
            "generatorURL": "",
            "fingerprint": format!("{:016x}", alert.fingerprint),
        }],
    })
}

/// The words that Alertmanager's users know.
fn severity(severity: Severity) -> &'static str {
    match severity {
        Severity::Warn => "warning",
        other => other.name(),
    }
}

fn annotations(alert: &Alert) -> Map<String, Value> {
    let mut all = Map::new();
    let mut add = |name: &str, text: String| all.insert(name.to_owned(), Value::from(text));
    add("summary", alert.message.clone());
    add("value", alert.value.to_string());
    add("threshold", alert.threshold.to_string());
    add("id", alert.id.clone());
    add("change", alert.change.name().to_owned());
    if let Some(cause) = &alert.context.cause {
        add("cause", cause.clone());
    }
    if let Some(url) = &alert.context.runbook_url {
        add("runbook_url", url.clone());
    }
    all
}
