//! How much people are told: repeats, pace and the hourly limit. What is held back is counted, and what the hourly
//! limit held back is told in one summary. Which alerts exist is left to the book.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fmt::Write as _;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::model::Severity;
use crate::spec::{Key, Values};

pub(super) static MIN_INTERVAL: Key<Duration> = Key::secs(
    "alerting.min_interval_secs",
    300,
    0,
    86_400,
    "The least time between two firing notices of one alert (same rule, metric and labels), whatever its severity; \
     a higher severity than last told passes.",
);
pub(super) static PER_HOUR: Key<i64> = Key::int(
    "alerting.max_alerts_per_hour",
    60,
    1,
    10_000,
    "How many firing notices and summaries go out within any hour. Resolved notices are not counted.",
);
pub(super) static DEDUP_WINDOW: Key<Duration> = Key::secs(
    "alerting.dedup_window_secs",
    600,
    0,
    86_400,
    "For how long after a firing notice the same alert is not told again, unless its severity has changed.",
);
pub(super) static EMERGENCY_BYPASS: Key<bool> = Key::switch(
    "alerting.emergency_bypass_rate_limit",
    true,
    "Alerts of severity emergency pass min_interval_secs and max_alerts_per_hour.",
);

const HOUR: Duration = Duration::from_secs(3600);

/// A summary comes no sooner than this after the first alert that was held back, so that it sums up something.
const SUMMARY_AFTER_MIN: Duration = Duration::from_secs(60);

/// Why an alert is held back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Told already, within `dedup_window_secs`.
    Duplicate,
    /// Told already, within `min_interval_secs`.
    MinInterval,
    /// `max_alerts_per_hour` are used up.
    HourlyLimit,
    /// A silence or a maintenance window holds.
    Silenced,
    /// Another alert explains it.
    Inhibited,
}

impl Reason {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Duplicate, Self::MinInterval, Self::HourlyLimit, Self::Silenced, Self::Inhibited];

    /// `duplicate`, `min_interval`, `hourly_limit`, `silenced`, `inhibited`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Duplicate => "duplicate",
            Self::MinInterval => "min_interval",
            Self::HourlyLimit => "hourly_limit",
            Self::Silenced => "silenced",
            Self::Inhibited => "inhibited",
        }
    }
}

/// The limits, and what was told within them. All times are the book's.
#[derive(Debug)]
pub struct Throttle {
    min_interval: Duration,
    per_hour: usize,
    dedup_window: Duration,
    emergency_bypass: bool,
    /// When and at which severity an alert was last told as firing.
    told: HashMap<u64, (Duration, Severity)>,
    /// When the notices of the last hour went out.
    hour: VecDeque<Duration>,
    held: Held,
}

/// What `max_alerts_per_hour` held back since the last summary. Of repeats people know already.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Held {
    since: Option<Duration>,
    by_metric: BTreeMap<String, u64>,
    worst: Option<Severity>,
}

/// What was told within the limits, and held back by them, as it is kept over restarts.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct State {
    told: Vec<(u64, Duration, Severity)>,
    hour: VecDeque<Duration>,
    held: Held,
}

/// What was held back, for one notice.
#[derive(Debug, PartialEq)]
pub struct Summary {
    /// How many alerts.
    pub count: u64,
    /// The highest severity among them.
    pub severity: Severity,
    /// One sentence for people.
    pub message: String,
}

impl Throttle {
    /// With the limits of a configuration.
    #[must_use]
    pub fn new(values: &Values) -> Self {
        let mut throttle = Self {
            min_interval: Duration::ZERO,
            per_hour: 0,
            dedup_window: Duration::ZERO,
            emergency_bypass: false,
            told: HashMap::new(),
            hour: VecDeque::new(),
            held: Held::default(),
        };
        throttle.reload(values);
        throttle
    }

    /// Takes new limits and forgets nothing.
    pub fn reload(&mut self, values: &Values) {
        self.min_interval = values.get(&MIN_INTERVAL);
        self.per_hour = usize::try_from(values.get(&PER_HOUR)).unwrap_or(usize::MAX);
        self.dedup_window = values.get(&DEDUP_WINDOW);
        self.emergency_bypass = values.get(&EMERGENCY_BYPASS);
    }

    /// Lets a firing notice pass, and remembers it, or says why not.
    ///
    /// # Errors
    /// With the limit that holds it back.
    pub fn admit(&mut self, fingerprint: u64, severity: Severity, now: Duration) -> Result<(), Reason> {
        let bypass = self.emergency_bypass && severity == Severity::Emergency;
        if let Some(&(at, told)) = self.told.get(&fingerprint)
            && severity <= told
        {
            let age = now.saturating_sub(at);
            if severity == told && age < self.dedup_window {
                return Err(Reason::Duplicate);
            }
            if !bypass && age < self.min_interval {
                return Err(Reason::MinInterval);
            }
        }
        if !bypass && !self.take_slot(now) {
            return Err(Reason::HourlyLimit);
        }
        self.told.insert(fingerprint, (now, severity));
        Ok(())
    }

    /// False when the hourly limit would let nothing of this severity pass.
    pub(super) fn has_room(&self, severity: Severity, now: Duration) -> bool {
        let frees_one = self.hour.front().is_some_and(|at| now.saturating_sub(*at) >= HOUR);
        self.hour.len() < self.per_hour || frees_one || (self.emergency_bypass && severity == Severity::Emergency)
    }

    /// Lets an alert be told again that goes on, if the hour has room for it.
    pub fn admit_again(&mut self, severity: Severity, now: Duration) -> bool {
        (self.emergency_bypass && severity == Severity::Emergency) || self.take_slot(now)
    }

    pub(super) fn state(&self) -> State {
        let told = self.told.iter().map(|(fingerprint, (at, severity))| (*fingerprint, *at, *severity)).collect();
        State { told, hour: self.hour.clone(), held: self.held.clone() }
    }

    pub(super) fn restore(&mut self, state: State) {
        self.told = state.told.into_iter().map(|(fingerprint, at, severity)| (fingerprint, (at, severity))).collect();
        (self.hour, self.held) = (state.hour, state.held);
    }

    /// Counts an alert that `max_alerts_per_hour` held back.
    pub fn hold(&mut self, metric: &str, severity: Severity, now: Duration) {
        self.held.since.get_or_insert(now);
        match self.held.by_metric.get_mut(metric) {
            Some(count) => *count += 1,
            None => {
                self.held.by_metric.insert(metric.to_owned(), 1);
            }
        }
        self.held.worst = self.held.worst.max(Some(severity));
    }

    /// What was held back, once there is room to tell it; forgets what no limit needs any more.
    pub fn summary(&mut self, now: Duration) -> Option<Summary> {
        let keep = self.dedup_window.max(self.min_interval);
        self.told.retain(|_, (at, _)| now.saturating_sub(*at) < keep);
        let since = self.held.since?;
        if now.saturating_sub(since) < self.min_interval.max(SUMMARY_AFTER_MIN) || !self.take_slot(now) {
            return None;
        }
        Some(std::mem::take(&mut self.held).told(now.saturating_sub(since)))
    }

    /// One of the notices of an hour; false when they are used up.
    fn take_slot(&mut self, now: Duration) -> bool {
        while self.hour.front().is_some_and(|at| now.saturating_sub(*at) >= HOUR) {
            self.hour.pop_front();
        }
        let free = self.hour.len() < self.per_hour;
        if free {
            self.hour.push_back(now);
        }
        free
    }
}

impl Held {
    fn told(self, over: Duration) -> Summary {
        let count = self.by_metric.values().sum();
        let plural = if count == 1 { "" } else { "s" };
        let minutes = over.as_secs().div_ceil(60);
        let mut message = format!("{count} alert{plural} not told in {minutes} min (alerting.max_alerts_per_hour)");
        for (i, (metric, count)) in self.by_metric.iter().enumerate() {
            // Writing into a String does not fail.
            let _ = write!(message, "{} {metric} {count}", if i == 0 { ":" } else { "," });
        }
        Summary { count, severity: self.worst.unwrap_or(Severity::Info), message }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::Value;

    fn secs(secs: u64) -> Duration {
        Duration::from_secs(10_000 + secs)
    }

    fn throttle() -> Throttle {
        Throttle::new(&Values::default())
    }

    #[test]
    fn the_same_alert_is_told_once_in_the_window_and_another_is_not_touched() {
        let mut throttle = throttle();
        assert_eq!(throttle.admit(1, Severity::Warn, secs(0)), Ok(()));
        assert_eq!(throttle.admit(1, Severity::Warn, secs(599)), Err(Reason::Duplicate));
        assert_eq!(throttle.admit(2, Severity::Warn, secs(599)), Ok(()));
        assert_eq!(throttle.admit(1, Severity::Warn, secs(600)), Ok(()));
    }

    #[test]
    fn a_higher_severity_passes_and_a_lower_one_waits_for_the_interval() {
        let mut throttle = throttle();
        assert_eq!(throttle.admit(1, Severity::Warn, secs(0)), Ok(()));
        assert_eq!(throttle.admit(1, Severity::Critical, secs(1)), Ok(()));
        assert_eq!(throttle.admit(1, Severity::Warn, secs(300)), Err(Reason::MinInterval));
        assert_eq!(throttle.admit(1, Severity::Warn, secs(301)), Ok(()));
    }

    #[test]
    fn the_hourly_limit_slides_and_emergencies_pass_it() {
        let mut values = Values::default();
        values.set(PER_HOUR.spec(), Value::Int(2));
        let mut throttle = Throttle::new(&values);
        assert_eq!(throttle.admit(1, Severity::Warn, secs(0)), Ok(()));
        assert_eq!(throttle.admit(2, Severity::Warn, secs(10)), Ok(()));
        assert_eq!(throttle.admit(3, Severity::Critical, secs(3599)), Err(Reason::HourlyLimit));
        assert_eq!(throttle.admit(4, Severity::Emergency, secs(3599)), Ok(()));
        assert_eq!(throttle.admit(3, Severity::Critical, secs(3600)), Ok(()));
        values.set(EMERGENCY_BYPASS.spec(), Value::Bool(false));
        throttle.reload(&values);
        assert_eq!(throttle.admit(5, Severity::Emergency, secs(3601)), Err(Reason::HourlyLimit));
    }

    #[test]
    fn the_summary_waits_for_room_and_names_everything_once() {
        let mut values = Values::default();
        values.set(PER_HOUR.spec(), Value::Int(1));
        let mut throttle = Throttle::new(&values);
        assert_eq!(throttle.admit(1, Severity::Warn, secs(0)), Ok(()));
        throttle.hold("oom_kill", Severity::Critical, secs(5));
        throttle.hold("cpu_usage_percent", Severity::Warn, secs(6));
        throttle.hold("oom_kill", Severity::Critical, secs(7));
        assert_eq!(throttle.summary(secs(3599)), None, "the one notice of the hour is used up");
        let summary = throttle.summary(secs(3600)).expect("there is room again");
        assert_eq!((summary.count, summary.severity), (3, Severity::Critical));
        assert_eq!(
            summary.message,
            "3 alerts not told in 60 min (alerting.max_alerts_per_hour): cpu_usage_percent 1, oom_kill 2"
        );
        assert_eq!(throttle.summary(secs(99_999)), None);
    }

    #[test]
    fn memory_of_what_was_told_ends_with_its_window() {
        let mut throttle = throttle();
        for fingerprint in 0..50 {
            throttle.admit(fingerprint, Severity::Warn, secs(0)).expect("below the limit");
        }
        assert_eq!(throttle.summary(secs(600)), None);
        assert!(throttle.told.is_empty());
    }
}
