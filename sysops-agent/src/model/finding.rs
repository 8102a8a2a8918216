//! What an analyzer found about one series. Whether it becomes an alert is the alert book's decision.

use std::fmt;
use std::time::Duration;

use super::alert::Severity;
use super::batch::label_values;
use super::metric::Desc;

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

/// What a rule wants of its alerts, beside its limit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// How long a breach must last before it is an alert.
    pub hold_for: Duration,
    /// For how long an alert goes on after its value is back, in case it comes again.
    pub keep_firing_for: Duration,
    /// Channels that its alerts go to, whatever their severity; `None`: to those that carry it.
    pub channels: Option<Vec<String>>,
    /// Where it says what to do.
    pub runbook_url: Option<String>,
}

/// One rule's word on one series. It borrows everything, as there is one for every watched series in every cycle.
#[derive(Clone, Copy)]
pub struct Finding<'a> {
    /// Name of the rule: the configuration key that sets it, as `thresholds.disk_percent`, or the `name` of a `[[rule]]`.
    pub rule: &'a str,
    /// The metric.
    pub metric: &'static Desc,
    /// Label values of the series as one key, as in `model::Series`.
    pub key: &'a str,
    /// Where the value stands.
    pub level: Level,
    /// The value.
    pub value: f64,
    /// The limit.
    pub threshold: f64,
    /// How bad a breach is.
    pub severity: Severity,
    /// What the rule wants of its alerts.
    pub policy: &'a Policy,
    /// One sentence for people, with the value and the limit. It is rendered only when a person is told.
    pub message: &'a dyn fmt::Display,
}

impl<'a> Finding<'a> {
    /// Label names and values.
    pub fn labels(&self) -> impl Iterator<Item = (&'static str, &'a str)> + use<'a> {
        self.metric.labels.iter().copied().zip(label_values(self.key))
    }
}
