//! Alerts of one group told together. The first of a group is told at once (after `group_wait_secs`, where that is set); what joins
//! it within `group_interval_secs` comes in one notice at the end of that time. Machines get each alert by itself and at once.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::fingerprint;
use crate::model::{Alert, Audience, Notice, Severity, Status};
use crate::spec::{Key, Values};

pub(super) static BY: Key<Vec<String>> = Key::list(
    "alerting.group_by",
    &["metric"],
    "What alerts must have in common to be told to people in one notice: names of labels, metric, rule. Empty: each is told \
     by itself. Severities and channels are never mixed.",
);
pub(super) static WAIT: Key<Duration> = Key::secs(
    "alerting.group_wait_secs",
    0,
    0,
    3600,
    "How long the first alert of a group waits for others before people are told.",
);
pub(super) static INTERVAL: Key<Duration> = Key::secs(
    "alerting.group_interval_secs",
    30,
    1,
    86_400,
    "For how long after a notice further alerts of its group are collected for the next.",
);

/// Alerts that one notice holds; a further one ends the wait.
const MEMBERS_MAX: usize = 200;

/// Groups that are open; alerts of further ones are told at once.
const OPEN_MAX: usize = 1000;

/// Groups of which people were told of late.
#[derive(Debug, Default)]
pub(super) struct Groups {
    by: Vec<String>,
    wait: Duration,
    interval: Duration,
    open: Vec<Group>,
}

/// One group.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Group {
    key: u64,
    /// When what is collected is told, by the book's time.
    until: Duration,
    channels: Option<Vec<String>>,
    alerts: Vec<Alert>,
}

impl Groups {
    pub(super) fn new(values: &Values) -> Self {
        let mut groups = Self::default();
        groups.reload(values);
        groups
    }

    pub(super) fn reload(&mut self, values: &Values) {
        (self.by, self.wait, self.interval) = (values.get(&BY), values.get(&WAIT), values.get(&INTERVAL));
    }

    /// Takes an alert that is to be told, and gives what goes out of it now.
    pub(super) fn add(&mut self, alert: Alert, channels: Option<Vec<String>>, at: Duration) -> Notice {
        if self.by.is_empty() || alert.severity == Severity::Emergency {
            return Notice { channels, ..Notice::of(alert) };
        }
        let key = self.key(&alert, channels.as_deref());
        let mut now = Notice { channels, ..Notice::of(alert) };
        if let Some(group) = self.open.iter_mut().find(|group| group.key == key) {
            now.audience = Audience::Machines;
            group.add(now.head().clone(), at);
        } else if self.open.len() < OPEN_MAX {
            let (until, alerts) = if self.wait.is_zero() {
                (at + self.interval, Vec::new())
            } else {
                now.audience = Audience::Machines;
                (at + self.wait, vec![now.head().clone()])
            };
            self.open.push(Group { key, until, channels: now.channels.clone(), alerts });
        }
        now
    }

    /// Notices of the groups whose time has come.
    pub(super) fn due(&mut self, at: Duration, out: &mut Vec<Notice>) {
        let interval = self.interval;
        for group in self.open.iter_mut().filter(|group| group.until <= at) {
            if !group.alerts.is_empty() {
                out.push(group.notice(at));
                group.until = at + interval;
            }
        }
        self.open.retain(|group| group.until > at);
    }

    fn key(&self, alert: &Alert, channels: Option<&[String]>) -> u64 {
        let value = |name: &String| match name.as_str() {
            "metric" => alert.metric.as_str(),
            "rule" => alert.rule.as_str(),
            label => alert.labels.get(label).map_or("", String::as_str),
        };
        let common = self.by.iter().map(|name| (name.as_str(), value(name)));
        let to = channels.into_iter().flatten().map(|channel| ("channel", channel.as_str()));
        fingerprint(alert.severity.name(), "", common.chain(to))
    }

    pub(super) fn state(&self) -> Vec<Group> {
        self.open.clone()
    }

    pub(super) fn restore(&mut self, state: Vec<Group>) {
        self.open = state;
    }
}

impl Group {
    /// One that fired and was over before people were told of either is told as what it is now: over, and for how long it was so.
    fn add(&mut self, alert: Alert, at: Duration) {
        if alert.status == Status::Resolved {
            self.alerts.retain(|known| known.fingerprint != alert.fingerprint);
        }
        self.alerts.push(alert);
        if self.alerts.len() >= MEMBERS_MAX {
            self.until = at;
        }
    }

    fn notice(&mut self, at: Duration) -> Notice {
        let mut alerts = std::mem::take(&mut self.alerts);
        // What goes on stands first; the sort keeps the order of what is alike.
        alerts.sort_by_key(|alert| alert.status == Status::Resolved);
        let id = match alerts.len() {
            1 => alerts[0].id.clone(),
            _ => format!("group-{:016x}-{:x}", self.key, at.as_millis()),
        };
        Notice { id, alerts, audience: Audience::People, channels: self.channels.clone() }
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::model::Change;

    fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    fn alert(number: u64, severity: Severity) -> Alert {
        let alert = Alert::new("h", SystemTime::UNIX_EPOCH, severity, "disk", format!("{number}"));
        Alert { fingerprint: number, id: format!("{number}-1"), ..alert }
    }

    fn due(groups: &mut Groups, at: u64) -> Vec<Vec<String>> {
        let mut out = Vec::new();
        groups.due(secs(at), &mut out);
        out.iter().map(|notice| notice.alerts.iter().map(|alert| alert.message.clone()).collect()).collect()
    }

    #[test]
    fn the_first_is_told_at_once_and_the_others_together() {
        let mut groups = Groups::new(&Values::default());
        assert_eq!(groups.add(alert(1, Severity::Warn), None, secs(0)).audience, Audience::All);
        assert_eq!(groups.add(alert(2, Severity::Warn), None, secs(1)).audience, Audience::Machines);
        assert_eq!(groups.add(alert(3, Severity::Warn), None, secs(2)).audience, Audience::Machines);
        assert_eq!(groups.add(alert(4, Severity::Critical), None, secs(2)).audience, Audience::All, "another severity");
        assert_eq!(groups.add(alert(5, Severity::Emergency), None, secs(2)).audience, Audience::All);
        let to = Some(vec!["slack".to_owned()]);
        assert_eq!(groups.add(alert(6, Severity::Warn), to, secs(2)).audience, Audience::All, "other channels");
        assert_eq!(due(&mut groups, 29), Vec::<Vec<String>>::new());
        assert_eq!(due(&mut groups, 30), [["2", "3"]]);
        groups.add(alert(7, Severity::Warn), None, secs(31));
        assert_eq!(due(&mut groups, 60), [["7"]]);
        assert_eq!(due(&mut groups, 90), Vec::<Vec<String>>::new());
        assert!(groups.open.is_empty());
    }

    #[test]
    fn what_was_over_before_people_knew_is_told_once() {
        let mut groups = Groups::new(&Values::default());
        groups.add(alert(1, Severity::Warn), None, secs(0));
        groups.add(alert(2, Severity::Warn), None, secs(1));
        let over = Alert { status: Status::Resolved, change: Change::Resolved, ..alert(2, Severity::Warn) };
        groups.add(Alert { message: "over".to_owned(), ..over }, None, secs(2));
        assert_eq!(due(&mut groups, 30), [["over"]]);
    }

    #[test]
    fn a_crowd_does_not_wait() {
        let mut groups = Groups::new(&Values::default());
        for number in 0..=MEMBERS_MAX as u64 {
            groups.add(alert(number, Severity::Warn), None, secs(0));
        }
        assert_eq!(due(&mut groups, 0)[0].len(), MEMBERS_MAX);
    }
}
