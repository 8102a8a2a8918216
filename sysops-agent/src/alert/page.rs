//! One alert from its first breach to its end: how long it has been so, how bad it is, what people know of it. Whether they may
//! be told is left to the book and its parts.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::care::Care;
use super::throttle::Throttle;
use crate::model::{Finding, Severity, Tick, shown};

pub(super) const SEVERITIES: [Severity; 4] = Severity::ALL;

/// A series that is not seen for this long ends its alert: the process is gone, the disk unplugged.
pub(super) const STALE_AFTER: Duration = Duration::from_secs(300);

/// One that came and went counts as lasting when it has been so for this long.
const STAYS: Duration = Duration::from_secs(900);

/// So long people remember that it came and went.
const TOLD_FOR: Duration = Duration::from_secs(3600);

/// One rule on one series that is, or was of late, in breach. Times are the book's.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Page {
    pub(super) rule: String,
    pub(super) metric: String,
    /// Label values as one key, as `model::Series` has them: finds the series in the readings.
    pub(super) key: String,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) unit: String,
    /// Since when the value has been at least this bad, by severity.
    since: [Option<Duration>; SEVERITIES.len()],
    pub(super) started: Duration,
    pub(super) seen: Duration,
    pub(super) firing: Option<Severity>,
    /// The severity at which people were told; lower than `firing` while something holds it back.
    pub(super) told: Option<Severity>,
    /// Since when the value is back on the good side while the alert goes on, in case it comes again.
    pub(super) back: Option<Duration>,
    pub(super) value: f64,
    pub(super) threshold: f64,
    pub(super) message: String,
    keep_firing_for: Duration,
    pub(super) channels: Option<Vec<String>>,
    pub(super) runbook_url: Option<String>,
    /// What holds it back now was counted.
    pub(super) is_counted: bool,
    /// Changes that people were told of: numbers their ids.
    pub(super) changes: u32,
    pub(super) care: Care,
}

impl Page {
    pub(super) fn new(finding: &Finding<'_>, at: Duration) -> Self {
        Self {
            rule: finding.rule.to_owned(),
            metric: finding.metric.name.to_owned(),
            key: finding.key.to_owned(),
            labels: finding.labels().map(|(name, value)| (name.to_owned(), value.to_owned())).collect(),
            unit: finding.metric.unit.name().to_owned(),
            since: [None; SEVERITIES.len()],
            started: at,
            seen: at,
            firing: None,
            told: None,
            back: None,
            value: finding.value,
            threshold: finding.threshold,
            message: String::new(),
            keep_firing_for: finding.policy.keep_firing_for,
            channels: finding.policy.channels.clone(),
            runbook_url: finding.policy.runbook_url.clone(),
            is_counted: false,
            changes: 0,
            care: Care::default(),
        }
    }

    /// Notes a breach, which is a new one after a hole of more than `gap_max`. True when the alert has become worse, or is one
    /// from now on.
    pub(super) fn breach(&mut self, finding: &Finding<'_>, at: Duration, gap_max: Duration) -> bool {
        if at.saturating_sub(self.seen) > gap_max {
            self.since = [None; SEVERITIES.len()];
        }
        if self.firing.is_none() && self.since[0].is_none() {
            self.started = at;
        }
        for (severity, since) in SEVERITIES.iter().zip(&mut self.since) {
            if *severity <= finding.severity {
                since.get_or_insert(at);
            } else {
                *since = None;
            }
        }
        (self.seen, self.back, self.value, self.threshold) = (at, None, finding.value, finding.threshold);
        let held = self.held(finding.policy.hold_for, at);
        let worse = held > self.firing;
        if worse {
            self.firing = held;
            self.care.acknowledged = None;
        }
        worse
    }

    /// True when people do not know of it, or not how bad it is, and it is not one of the many that the hourly limit holds back.
    /// One whose value is back already is no news.
    pub(super) fn may_be_told(&self, throttle: &Throttle, at: Duration) -> bool {
        self.firing.is_some_and(|severity| {
            let is_news = self.told < Some(severity) && self.back.is_none();
            is_news && (!self.is_counted || throttle.has_room(severity, at))
        })
    }

    /// What is told is true when it is told. Words cost more than all else, so that what is not told has none.
    pub(super) fn word(&mut self, finding: &Finding<'_>, throttle: &Throttle, at: Duration) {
        if self.may_be_told(throttle, at) {
            self.message = finding.message.to_string();
        }
    }

    /// Notes that the value is neither in breach nor back.
    pub(super) fn between(&mut self, finding: &Finding<'_>, at: Duration) {
        self.since = [None; SEVERITIES.len()];
        (self.seen, self.back, self.value) = (at, None, finding.value);
    }

    /// Notes that the value is back; true when it has been for as long as the rule and `damped` want.
    pub(super) fn is_over(&mut self, finding: &Finding<'_>, damped: Duration, at: Duration) -> bool {
        self.since = [None; SEVERITIES.len()];
        (self.seen, self.value) = (at, finding.value);
        let since = *self.back.get_or_insert(at);
        at.saturating_sub(since) >= self.keep_firing_for.max(damped)
    }

    /// True when it has been so for [`STAYS`] without a break, and people were told before that and not within the hour.
    pub(super) fn stays(&self, at: Duration) -> bool {
        let told_at = self.care.told_at;
        let since = self.since[0].filter(|_| self.care.acknowledged.is_none());
        since.is_some_and(|since| told_at < since && at.saturating_sub(since) >= STAYS)
            && at.saturating_sub(told_at) >= TOLD_FOR
    }

    pub(super) fn is_stale(&self, at: Duration) -> bool {
        at.saturating_sub(self.seen) >= STALE_AFTER
    }

    /// How bad it is, or would be if it lasted.
    pub(super) fn severity(&self) -> Severity {
        let pending = SEVERITIES.iter().zip(self.since).rev().find(|(_, since)| since.is_some());
        self.firing.or(pending.map(|(severity, _)| *severity)).unwrap_or(Severity::Info)
    }

    /// The highest severity at which the breach has lasted for `hold_for`.
    fn held(&self, hold_for: Duration, at: Duration) -> Option<Severity> {
        let lasted = |since: Option<Duration>| since.is_some_and(|since| at.saturating_sub(since) >= hold_for);
        SEVERITIES.iter().zip(self.since).rev().find(|(_, since)| lasted(*since)).map(|(severity, _)| *severity)
    }

    pub(super) fn not_reported(&self) -> String {
        let Self { metric, value, threshold, .. } = self;
        let minutes = STALE_AFTER.as_secs() / 60;
        let mut text =
            format!("{metric} has not been reported for {minutes} min; it was {value:.3} (threshold {threshold})");
        for (i, (name, label)) in self.labels.iter().enumerate() {
            text += if i == 0 { ": " } else { ", " };
            text += name;
            text.push(' ');
            text += &shown(label, 256);
        }
        text
    }

    /// The wall time since when it is so.
    pub(super) fn starts_at(&self, at: Duration, now: &Tick) -> std::time::SystemTime {
        now.wall.checked_sub(at.saturating_sub(self.started)).unwrap_or(std::time::UNIX_EPOCH)
    }
}
