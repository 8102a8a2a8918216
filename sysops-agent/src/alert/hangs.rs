//! Alerts of hung tasks that fire until the hang is over. How a hang is worded is left to `events`.

use std::collections::HashMap;

use crate::model::{Alert, Event, Status};

/// Hangs whose end is waited for. Of more than that, people are told the beginning only.
const OPEN_MAX: usize = 4096;

/// A hang: thread, and how often it had run.
type Hang = (u32, u64);

/// Hangs that are not over.
#[derive(Debug, Default)]
pub(super) struct Hangs {
    open: HashMap<Hang, Open>,
}

#[derive(Debug)]
struct Open {
    alert: Alert,
    /// People were told of it. Of threads of one process they are told once.
    told: bool,
}

impl Hangs {
    /// Notes that `event` began what `alert` says, which people were told or not. One that is open stays as it is.
    pub(super) fn began(&mut self, event: &Event, alert: &Alert, told: bool) {
        let Some(hang) = hang(event) else { return };
        if self.open.len() < OPEN_MAX {
            self.open.entry(hang).or_insert_with(|| Open { alert: alert.clone(), told });
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
        let Alert { labels, severity, .. } = open.alert;
        Some(Alert { labels, severity, fingerprint, status: Status::Resolved, ..alert })
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
