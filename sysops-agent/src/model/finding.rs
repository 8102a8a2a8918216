//! What an analyzer found about one series. Whether it becomes an alert is the alert book's decision.

use std::collections::BTreeMap;
use std::time::Duration;

use super::alert::Severity;

/// Where the value stands against a rule with hysteresis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// At or past the limit.
    Breach,
    /// Between the limit and the level at which the rule lets go: no change.
    Between,
    /// Back on the good side.
    Clear,
}

/// One rule's word on one series.
#[derive(Clone, Debug, PartialEq)]
pub struct Finding {
    /// Name of the rule: the configuration key that sets it, as `thresholds.disk_percent`.
    pub rule: &'static str,
    /// Name of the metric.
    pub metric: &'static str,
    /// Labels of the series.
    pub labels: BTreeMap<String, String>,
    /// Where the value stands.
    pub level: Level,
    /// The value.
    pub value: f64,
    /// The limit.
    pub threshold: f64,
    /// How bad a breach is.
    pub severity: Severity,
    /// How long a breach must last before it is an alert.
    pub hold_for: Duration,
    /// One sentence for people, with the value and the limit.
    pub message: String,
}
