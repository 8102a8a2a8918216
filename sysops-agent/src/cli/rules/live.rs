//! Which alerts are live, as far as the book's notices tell it: those that have fired and are not resolved.

use std::collections::BTreeMap;

use crate::model::{Alert, Listed, Standing, Status};

/// Alerts by fingerprint.
#[derive(Default)]
pub(super) struct Live {
    alerts: BTreeMap<u64, Listed>,
}

impl Live {
    /// Takes what the book told in one cycle.
    pub(super) fn take(&mut self, notices: Vec<Alert>) {
        for alert in notices {
            match alert.status {
                Status::Firing => drop(self.alerts.insert(alert.fingerprint, listed(alert))),
                Status::Resolved => drop(self.alerts.remove(&alert.fingerprint)),
            }
        }
    }

    /// Those that are live.
    pub(super) fn list(&self) -> Vec<Listed> {
        self.alerts.values().cloned().collect()
    }
}

fn listed(alert: Alert) -> Listed {
    Listed {
        fingerprint: alert.fingerprint,
        standing: Standing::Firing,
        severity: alert.severity,
        rule: alert.rule,
        metric: alert.metric,
        labels: alert.labels,
        value: alert.value,
        threshold: alert.threshold,
        message: alert.message,
        starts_at: alert.starts_at,
        because: String::new(),
    }
}
