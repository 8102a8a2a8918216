//! What goes out at once: one alert, or several of a group told together. Which they are is decided by `alert`, who
//! carries them by `deliver`.

use serde::{Deserialize, Serialize};

use super::alert::{Alert, Severity, Status};

/// For whom a notice is. Machines get every alert by itself and at once; people may get several together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Audience {
    /// Every channel.
    All,
    /// Channels that are read by machines: each alert by itself.
    Machines,
    /// Channels that are read by people: what the machines have got one by one.
    People,
}

/// One message to every channel that it concerns.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Notice {
    /// The same for every try, and for no other notice. Letters, digits and hyphens, at most 64.
    pub id: String,
    /// Never empty; the one that it is named after first. All of one host.
    pub alerts: Vec<Alert>,
    /// For whom it is.
    pub audience: Audience,
    /// Channels that it goes to, whatever their severity; `None`: to those that carry its severity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub channels: Option<Vec<String>>,
}

impl Notice {
    /// A notice of one alert for every channel that carries its severity.
    #[must_use]
    pub fn of(alert: Alert) -> Self {
        Self { id: alert.id.clone(), alerts: vec![alert], audience: Audience::All, channels: None }
    }

    /// The alert that it is named after.
    ///
    /// # Panics
    /// When there is none, which nobody makes.
    #[must_use]
    pub fn head(&self) -> &Alert {
        self.alerts.first().expect("a notice has at least one alert")
    }

    /// The highest severity in it.
    #[must_use]
    pub fn severity(&self) -> Severity {
        self.alerts.iter().map(|alert| alert.severity).max().unwrap_or(Severity::Info)
    }

    /// Resolved when all of it is over.
    #[must_use]
    pub fn status(&self) -> Status {
        let over = self.alerts.iter().all(|alert| alert.status == Status::Resolved);
        if over { Status::Resolved } else { Status::Firing }
    }
}
