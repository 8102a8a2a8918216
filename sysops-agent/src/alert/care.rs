//! What is due to people who were told of an alert that goes on: a reminder, or someone else, where nobody has said that they take
//! care of it.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::model::Severity;
use crate::spec::{Key, Values};

pub(super) static REPEAT: Key<Duration> = Key::secs(
    "alerting.repeat_interval_secs",
    14_400,
    0,
    2_592_000,
    "How often an alert of severity critical or emergency is told again while it goes on and nobody has acknowledged it. \
     0: never.",
);
pub(super) static ESCALATE_AFTER: Key<Duration> = Key::secs(
    "alerting.escalate_after_secs",
    0,
    0,
    604_800,
    "When an alert that was told and that nobody has acknowledged is told again, one severity higher or to \
     escalate_channels. 0: never.",
);
pub(super) static ESCALATE_MIN: Key<String> = Key::choice(
    "alerting.escalate_min_severity",
    Severity::NAMES,
    "critical",
    "The least severity of an alert that is escalated.",
);
pub(super) static ESCALATE_CHANNELS: Key<Vec<String>> = Key::list(
    "alerting.escalate_channels",
    &[],
    "Channels that get what is escalated, at the severity that it has. Empty: those that carry the next severity.",
);

/// Of milder alerts people are reminded by nobody.
const REMIND_MIN: Severity = Severity::Critical;

/// Who takes care of an alert, and since when people know of it. Times are the book's.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Care {
    /// When people were told last.
    pub(super) told_at: Duration,
    /// When they were told first at this severity.
    pub(super) first_told_at: Duration,
    pub(super) acknowledged: Option<Acknowledged>,
    pub(super) is_escalated: bool,
}

/// Somebody takes care of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Acknowledged {
    pub(super) by: String,
    pub(super) note: String,
}

/// What is to be told again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Due {
    Reminder,
    Escalation,
}

/// When what is due.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    repeat: Duration,
    escalate_after: Duration,
    escalate_min: Severity,
    /// `None`: the next severity decides.
    pub(super) escalate_channels: Option<Vec<String>>,
}

impl Plan {
    pub(super) fn new(values: &Values) -> Self {
        Self {
            repeat: values.get(&REPEAT),
            escalate_after: values.get(&ESCALATE_AFTER),
            escalate_min: Severity::from_name(&values.get(&ESCALATE_MIN)).unwrap_or(Severity::Critical),
            escalate_channels: Some(values.get(&ESCALATE_CHANNELS)).filter(|channels| !channels.is_empty()),
        }
    }

    /// What is due at `at` of an alert that was told at `severity`.
    pub(super) fn due(&self, care: &Care, severity: Severity, at: Duration) -> Option<Due> {
        if care.acknowledged.is_some() {
            return None;
        }
        let is_past = |since: Duration, length: Duration| !length.is_zero() && at.saturating_sub(since) >= length;
        if !care.is_escalated && severity >= self.escalate_min && is_past(care.first_told_at, self.escalate_after) {
            return Some(Due::Escalation);
        }
        (severity >= REMIND_MIN && is_past(care.told_at, self.repeat)).then_some(Due::Reminder)
    }

    /// The severity at which an escalation is told.
    pub(super) fn escalated(&self, severity: Severity) -> Severity {
        let next = Severity::ALL.into_iter().find(|one| *one > severity).unwrap_or(severity);
        if self.escalate_channels.is_some() { severity } else { next }
    }
}

impl Care {
    /// People were told now.
    pub(super) fn told(&mut self, at: Duration) {
        (self.told_at, self.first_told_at, self.is_escalated) = (at, at, false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::Value;

    fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    #[test]
    fn reminders_are_for_what_is_bad_and_nobody_cares_for() {
        let plan = Plan::new(&Values::default());
        let mut care = Care::default();
        care.told(secs(100));
        assert_eq!(plan.due(&care, Severity::Critical, secs(14_499)), None);
        assert_eq!(plan.due(&care, Severity::Critical, secs(14_500)), Some(Due::Reminder));
        assert_eq!(plan.due(&care, Severity::Warn, secs(99_999)), None);
        care.acknowledged = Some(Acknowledged { by: "ann".to_owned(), note: String::new() });
        assert_eq!(plan.due(&care, Severity::Emergency, secs(99_999)), None);
    }

    #[test]
    fn an_escalation_comes_once_and_goes_up_or_elsewhere() {
        let mut values = Values::default();
        values.set(ESCALATE_AFTER.spec(), Value::Int(600));
        let mut care = Care::default();
        care.told(secs(0));
        let plan = Plan::new(&values);
        assert_eq!(plan.due(&care, Severity::Critical, secs(600)), Some(Due::Escalation));
        assert_eq!(plan.due(&care, Severity::Warn, secs(600)), None);
        assert_eq!([plan.escalated(Severity::Critical), plan.escalated(Severity::Emergency)], [Severity::Emergency; 2]);
        care.is_escalated = true;
        assert_eq!(plan.due(&care, Severity::Critical, secs(700)), None);
        values.set(ESCALATE_CHANNELS.spec(), Value::TextList(vec!["email".to_owned()]));
        assert_eq!(Plan::new(&values).escalated(Severity::Warn), Severity::Warn);
    }
}
