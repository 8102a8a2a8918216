//! Ways to people. Each channel is one file and one line in [`ALL`]; queueing, retries and limits are here.

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use crate::model::{Alert, Severity};
use crate::spec::{KeySpec, Values};

/// One way to people.
pub trait Channel {
    /// Hands one alert to the far end and waits for its word.
    fn send<'a>(&'a mut self, alert: &'a Alert) -> Pin<Box<dyn Future<Output = Result<(), SendError>> + 'a>>;
}

/// Why the far end does not have it.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum SendError {
    /// Worth another try.
    #[error("{reason}")]
    Retry {
        /// What happened, without secrets.
        reason: String,
        /// The far end's own word on when to come again.
        after: Option<Duration>,
    },
    /// Another try would end the same.
    #[error("{reason}")]
    Permanent {
        /// What happened, without secrets.
        reason: String,
    },
}

/// A channel as the list knows it.
pub struct Entry {
    /// Its file's name and table: `[alerting.<name>]`.
    pub name: &'static str,
    /// What can be configured.
    pub keys: &'static [&'static KeySpec],
    /// The least severity that it carries (the seed's routing table).
    pub min_severity: Severity,
    /// Makes it.
    pub build: Build,
}

/// Makes a channel of its values: `None` when it is not enabled; an error says what is wrong with which key.
pub type Build = fn(&Values) -> Result<Option<Box<dyn Channel>>, String>;

/// All channels.
pub static ALL: &[&Entry] = &[];
