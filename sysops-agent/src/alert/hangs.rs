//! Alerts of hung tasks that fire until the hang is over. How a hang is worded is left to `events`.

use std::collections::HashMap;
use std::time::Duration;

use crate::model::{Alert, Change, Event, Status};

/// Hangs whose end is waited for. Of more than that, people are told the beginning only.
const OPEN_MAX: usize = 4096;
/// So long after a restart the probe has said which of them go on, and which ended meanwhile.
const CONFIRMED_WITHIN: Duration = Duration::from_secs(60);

/// A hang: thread, and how often it had run.
pub(super) type Hang = (u32, u64);

/// Hangs that are not over.
#[derive(Debug, Default)]
pub(super) struct Hangs {
    open: HashMap<Hang, Open>,
    /// When those of an earlier life were taken over, until all that go on have been confirmed.
    restored: Option<Duration>,
}

#[derive(Debug)]
struct Open {
    alert: Alert,
    /// People were told of it. Of threads of one process they are told once.
    told: bool,
    /// Someone looks at it in this life.
    confirmed: bool,
}

impl Hangs {
    /// Notes that `event` began what `alert` says, which people were told or not. One that is open stays as it is.
    pub(super) fn began(&mut self, event: &Event, alert: &Alert, told: bool) {
        let Some(hang) = hang(event) else { return };
        if let Some(open) = self.open.get_mut(&hang) {
            open.confirmed = true;
        } else if self.open.len() < OPEN_MAX {
            self.open.insert(hang, Open { alert: alert.clone(), told, confirmed: true });
        }
    }

    /// The hang of `event` is over, as `alert` says. Gives the alert that ends what people were told; while another
    /// thread of the same process hangs it goes on.
    pub(super) fn ended(&mut self, event: &Event, alert: Alert) -> Option<Alert> {
        let open = self.open.remove(&hang(event)?).filter(|open| open.told)?;
        let fingerprint = open.alert.fingerprint;
        if let Some(other) = self.open.values_mut().find(|other| other.alert.fingerprint == fingerprint) {
            other.told = true;
            return None;
        }
        let Alert { id, labels, severity, starts_at, .. } = open.alert;
        let id = format!("{id}-over");
        let (status, change) = (Status::Resolved, Change::Resolved);
        Some(Alert { id, labels, severity, fingerprint, starts_at, status, change, ..alert })
    }

    /// Hangs that people were told of, for the next life of the agent.
    pub(super) fn state(&self) -> Vec<(Hang, Alert)> {
        let told = self.open.iter().filter(|(_, open)| open.told);
        told.map(|(hang, open)| (*hang, open.alert.clone())).collect()
    }

    pub(super) fn restore(&mut self, told: Vec<(Hang, Alert)>, at: Duration) {
        let open = |alert| Open { alert, told: true, confirmed: false };
        self.open = told.into_iter().take(OPEN_MAX).map(|(hang, alert)| (hang, open(alert))).collect();
        self.restored = Some(at).filter(|_| !self.open.is_empty());
    }

    /// Gives, once, the alerts of an earlier life that nobody has spoken of in this one: their end was lost, or nobody looks any
    /// more. One with another thread of the process that hangs goes on.
    pub(super) fn unconfirmed(&mut self, at: Duration) -> Vec<Alert> {
        if self.restored.is_none_or(|restored| at.saturating_sub(restored) < CONFIRMED_WITHIN) {
            return Vec::new();
        }
        self.restored = None;
        let lost: Vec<Open> = self.open.extract_if(|_, open| !open.confirmed).map(|(_, open)| open).collect();
        let mut over: Vec<Alert> = Vec::new();
        for Open { alert, told, .. } in lost {
            if let Some(other) = self.open.values_mut().find(|other| other.alert.fingerprint == alert.fingerprint) {
                other.told |= told;
            } else if told && over.iter().all(|other| other.fingerprint != alert.fingerprint) {
                over.push(alert);
            }
        }
        over
    }

    /// The alerts that fire.
    pub(super) fn firing(&self) -> impl Iterator<Item = &Alert> {
        self.open.values().filter(|open| open.told).map(|open| &open.alert)
    }
}

/// The hang that an event is about; `None` where nobody will tell its end.
fn hang(event: &Event) -> Option<Hang> {
    Some((event.tid?, event.hang()?.switches?))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::SystemTime;

    use super::*;
    use crate::model::event::HungTask;
    use crate::model::{Detail, Severity};

    fn event(tid: u32, switches: Option<u64>) -> Event {
        Event {
            schema: Event::SCHEMA,
            time: String::new(),
            source: Vec::new(),
            pid: Some(7),
            tid: Some(tid),
            comm: None,
            uid: None,
            cgroup: None,
            detail: Detail::HungTask(HungTask { switches, ..HungTask::default() }),
            monotonic_ns: 0,
        }
    }

    /// Threads of one process have one fingerprint.
    fn alert(message: &str) -> Alert {
        Alert {
            value: 1.0,
            threshold: 0.0,
            labels: BTreeMap::new(),
            status: Status::Firing,
            fingerprint: 9,
            ..Alert::new("h", SystemTime::UNIX_EPOCH, Severity::Warn, "hung_task", message.to_owned())
        }
    }

    #[test]
    fn what_was_told_is_resolved_when_the_last_thread_is_free() {
        let mut hangs = Hangs::default();
        hangs.began(&event(7, Some(1)), &alert("a"), true);
        hangs.began(&event(8, Some(1)), &alert("b"), false);
        assert_eq!(hangs.firing().count(), 1);
        assert_eq!(hangs.ended(&event(7, Some(1)), alert("over")), None, "the other thread hangs");
        let resolved = hangs.ended(&event(8, Some(1)), alert("over")).expect("it was told");
        assert_eq!((resolved.status, resolved.message.as_str()), (Status::Resolved, "over"));
        assert_eq!((hangs.ended(&event(8, Some(1)), alert("over")), hangs.firing().count()), (None, 0));
    }

    #[test]
    fn what_nobody_was_told_is_not_resolved() {
        let mut hangs = Hangs::default();
        hangs.began(&event(7, Some(1)), &alert("a"), false);
        assert_eq!(hangs.ended(&event(7, Some(2)), alert("over")), None, "another hang");
        assert_eq!(hangs.ended(&event(7, Some(1)), alert("over")), None);
        hangs.began(&event(7, None), &alert("a"), true);
        assert_eq!(hangs.firing().count(), 0, "nobody will tell its end");
    }

    #[test]
    fn what_nobody_speaks_of_after_a_restart_is_given_up_once() {
        let mut hangs = Hangs::default();
        let of = |fingerprint: u64, message: &str| Alert { fingerprint, ..alert(message) };
        let told = vec![((7, 1), of(1, "goes on")), ((8, 1), of(2, "lost")), ((9, 1), of(2, "lost as well"))];
        hangs.restore(told, Duration::from_secs(10));
        hangs.began(&event(7, Some(1)), &of(1, "told again"), true);
        assert!(hangs.unconfirmed(Duration::from_secs(69)).is_empty());
        let over = hangs.unconfirmed(Duration::from_secs(70));
        assert_eq!(over.iter().map(|alert| alert.fingerprint).collect::<Vec<_>>(), [2], "one alert, one end");
        assert_eq!(hangs.firing().map(|alert| alert.message.as_str()).collect::<Vec<_>>(), ["goes on"]);
        hangs.began(&event(10, Some(1)), &of(3, "new"), true);
        assert!(hangs.unconfirmed(Duration::from_secs(7000)).is_empty());
        assert_eq!(hangs.firing().count(), 2);
    }

    #[test]
    fn open_hangs_are_bounded() {
        let mut hangs = Hangs::default();
        for tid in 0..10_000 {
            hangs.began(&event(tid, Some(1)), &alert("a"), true);
        }
        assert_eq!(hangs.firing().count(), OPEN_MAX);
    }
}
