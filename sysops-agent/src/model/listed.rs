//! The book of alerts as people look at it: what is pending and firing now, and which silences hold. The book itself is
//! `alert`'s.

use std::collections::BTreeMap;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::alert::{Severity, hexadecimal, rfc3339};
use super::matcher::Matcher;

/// How an alert stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    /// It is so, and people are told.
    Firing,
    /// It is so, and someone has said that they take care of it.
    Acknowledged,
    /// It is so, and a silence or a maintenance window keeps it from people.
    Silenced,
    /// It is so, and another alert explains it.
    Inhibited,
    /// In breach, not yet for long enough.
    Pending,
}

impl Standing {
    /// `firing`, `acknowledged`, `silenced`, `inhibited`, `pending`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Firing => "firing",
            Self::Acknowledged => "acknowledged",
            Self::Silenced => "silenced",
            Self::Inhibited => "inhibited",
            Self::Pending => "pending",
        }
    }
}

/// One alert that is live.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Listed {
    /// Names it: the first digits are enough where no other begins with them.
    #[serde(with = "hexadecimal")]
    pub fingerprint: u64,
    /// How it stands.
    pub standing: Standing,
    /// How bad it is now; of a pending one how bad it would be.
    pub severity: Severity,
    /// Its rule.
    pub rule: String,
    /// Its metric, or kind of event.
    pub metric: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// The newest value.
    pub value: f64,
    /// The limit.
    pub threshold: f64,
    /// One sentence for people.
    pub message: String,
    /// Since when it is so.
    #[serde(with = "rfc3339")]
    pub starts_at: SystemTime,
    /// Who or what keeps it from people, or takes care of it: `ann: on it`, `silence 3 by ann`, `maintenance backup`, `load_per_cpu`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub because: String,
}

/// Alerts that match are not told while it holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Silence {
    /// Its number, for taking it back.
    pub id: u64,
    /// Which alerts.
    pub matcher: Matcher,
    /// When it was made.
    #[serde(with = "rfc3339")]
    pub starts_at: SystemTime,
    /// When it ends by itself.
    #[serde(with = "rfc3339")]
    pub ends_at: SystemTime,
    /// Who made it.
    pub by: String,
    /// Why.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub comment: String,
}
