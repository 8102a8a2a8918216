//! Ways to people. Each channel is one file and one line in [`ALL`]; queueing, retries and limits are `outbox`'s.

mod chat;
pub mod console;
pub mod discord;
pub mod email;
pub mod nats;
mod pace;
pub mod slack;
pub mod syslog;
pub mod telegram;
pub mod webhook;

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use hyper::StatusCode;

use super::http::{Answer, HttpError};
use crate::model::{Notice, shown};
use crate::spec::{FromValue, Key, KeySpec, Values};

/// One way to people.
pub trait Channel: Send {
    /// Hands one notice to the far end and waits for its word. A channel that is not [`Entry::grouped`] gets notices of
    /// one alert only.
    fn send<'a>(&'a mut self, notice: &'a Notice) -> Sending<'a>;

    /// How many more times a notice is tried at once after a [`SendError::Retry`], before the outbox puts it off.
    fn retries(&self) -> u32 {
        3
    }
}

/// A notice on its way.
pub type Sending<'a> = Pin<Box<dyn Future<Output = Result<Receipt, SendError>> + Send + 'a>>;

/// The far end has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Receipt {
    /// What the far end said, for whoever tries the channel: short, and without secrets.
    pub answer: String,
}

impl Receipt {
    /// With the far end's words, cut and made fit to be shown.
    #[must_use]
    pub fn new(answer: &str) -> Self {
        Self { answer: shown(answer, 200) }
    }
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
    /// The far end takes nothing from this agent, or is not there any more: a wrong token, a webhook that was deleted. The
    /// notice is not at fault: it waits until someone mends the configuration, and is tried seldom.
    #[error("{reason}")]
    Refused {
        /// What happened and what to mend, without secrets.
        reason: String,
    },
    /// This notice will never be taken: another try would end the same.
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
    /// The key for the least severity that it carries; its default is the seed's routing table.
    pub min_severity: &'static Key<String>,
    /// True when people read it: alerts of one group may come in one notice. Machines get each alert by itself.
    pub grouped: bool,
    /// True when what waits for it outlives the agent: old alerts are of no use on a terminal.
    pub durable: bool,
    /// Makes it.
    pub build: Build,
}

/// Makes a channel of its values: `None` when it is not enabled; an error says what is wrong with which key.
pub type Build = fn(&Values) -> Result<Option<Box<dyn Channel>>, String>;

/// All channels.
pub static ALL: &[&Entry] = &[
    &console::ENTRY,
    &discord::ENTRY,
    &slack::ENTRY,
    &telegram::ENTRY,
    &email::ENTRY,
    &webhook::ENTRY,
    &syslog::ENTRY,
    &nats::ENTRY,
];

/// The value of a key without which there is no channel.
fn needed<T>(values: &Values, key: &'static Key<Option<T>>) -> Result<T, String>
where
    Option<T>: FromValue,
{
    values.get(key).ok_or_else(|| missing(key.spec()))
}

fn missing(key: &KeySpec) -> String {
    format!("{}: missing, and {}.enabled needs it", key.path, key.table())
}

/// The key for the deadline of a channel over HTTP.
const fn timeout(path: &'static str) -> Key<Duration> {
    Key::secs(path, 10, 1, 300, "How long one request may take, answer included.")
}

/// The key for whom a channel over HTTP trusts.
const fn ca_file(path: &'static str) -> Key<Option<String>> {
    Key::optional(path, "Certificate authorities in PEM to trust instead of the machine's (tls-rustls only).")
}

impl From<HttpError> for SendError {
    fn from(error: HttpError) -> Self {
        Self::Retry { reason: error.to_string(), after: None }
    }
}

/// What an answer over HTTP means for the alert that was sent.
fn verdict(answer: &Answer) -> Result<Receipt, SendError> {
    let status = answer.status;
    // The server's own words are not repeated: it may quote a header or the URL back.
    let reason = format!("the server answered {status}");
    match status {
        _ if status.is_success() => Ok(Receipt::new(&status.to_string())),
        StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_EARLY | StatusCode::TOO_MANY_REQUESTS => {
            Err(SendError::Retry { reason, after: answer.retry_after })
        }
        _ if status.is_server_error() => Err(SendError::Retry { reason, after: answer.retry_after }),
        _ if status.is_redirection() => {
            Err(SendError::Refused { reason: format!("{reason}; redirects are not followed: set the new URL") })
        }
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::NOT_FOUND | StatusCode::GONE => {
            Err(SendError::Refused { reason })
        }
        _ => Err(SendError::Permanent { reason }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::deliver::export;
    use crate::model::Severity;
    use crate::spec::Fallback;

    #[test]
    fn every_channel_has_the_switch_and_the_severity_of_its_table() {
        for entry in ALL {
            let table = format!("alerting.{}.", entry.name);
            // A channel that goes by the keys of an exporter of the same name has that one's switch.
            let exporter = export::ALL.iter().find(|exporter| exporter.name == entry.name);
            let shared = exporter.map_or(&[][..], |exporter| exporter.keys);
            let is_own = |key: &&KeySpec| key.path.starts_with(&table);
            assert!(entry.keys.iter().all(|key| is_own(key) || shared.contains(key)), "{}", entry.name);
            let switch = if shared.is_empty() { format!("{table}enabled") } else { format!("{}.enabled", entry.name) };
            assert!(entry.keys.iter().any(|key| key.path == switch), "{}", entry.name);
            let least = entry.min_severity.spec();
            assert!(entry.keys.contains(&least) && least.path == format!("{table}min_severity"), "{}", entry.name);
            assert!(matches!(least.fallback, Fallback::Text(name) if Severity::from_name(name).is_some()));
        }
    }
}
