//! An alert as people and machines receive it. docs/schemas/webhook.schema.json describes its JSON.

use std::collections::BTreeMap;
use std::time::SystemTime;

use serde::{Deserialize, Serialize, Serializer};

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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// It is so now, or (kernel events) it has happened.
    Firing,
    /// It is over.
    Resolved,
}

/// An alert: the seed's payload keys, and `status` when it is over.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Alert {
    /// Host that it is about.
    pub hostname: String,
    /// When this notice was made, RFC 3339.
    #[serde(serialize_with = "rfc3339")]
    pub timestamp: SystemTime,
    /// How bad it is.
    pub severity: Severity,
    /// The rule's metric, or the kind of a kernel event.
    pub metric: String,
    /// The value; 1 for a kernel event.
    pub value: f64,
    /// The limit; 0 for a kernel event, of which any is too many.
    pub threshold: f64,
    /// One sentence for people.
    pub message: String,
    /// Labels of the series, or `pid`, `comm`, `cgroup` of a kernel event.
    pub labels: BTreeMap<String, String>,
    /// Present only when it is over.
    #[serde(skip_serializing_if = "is_firing")]
    pub status: Status,
    /// The same for all notices of one alert: for deduplication here and at the far end.
    #[serde(skip)]
    pub fingerprint: u64,
}

fn rfc3339<S: Serializer>(time: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&super::time::rfc3339_secs(*time))
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it with a reference")]
fn is_firing(status: &Status) -> bool {
    *status == Status::Firing
}
