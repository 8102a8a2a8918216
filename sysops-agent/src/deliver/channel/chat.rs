//! What the channels to chats have in common: a notice goes as one message to a URL, not before the far end wants it, and again as
//! plain words where that finds something wrong with the message. What is said, and what an answer means, is left to each service.

use std::time::Duration;

use serde_json::Value;

use crate::deliver::http::{Answer, Endpoint, TlsFiles};
use crate::deliver::own_text::OwnText;
use crate::deliver::text;
use crate::model::{Notice, shown};
use crate::spec::{Key, Values};
use crate::template::Escape;

use super::pace::Pace;
use super::{Channel, Receipt, SendError, Sending};

/// Alerts of one notice that are told.
pub(super) const ALERTS_MAX: usize = 10;

/// A chat service.
pub(super) trait Service: Send + 'static {
    /// Its channel's name.
    const NAME: &'static str;

    /// The length up to which it takes a text of the user's own.
    const OWN_MAX: usize;

    /// How fast it may be told anything.
    fn pace(&self) -> Pace {
        Pace::default()
    }

    /// The message, with the text of the user's `own` where there is one.
    fn message(&self, notice: &Notice, own: Option<String>) -> Value;

    /// The same in words that it cannot find anything wrong with.
    fn plain(&self, notice: &Notice) -> Value;

    /// How long it wants to be left alone.
    fn pause(answer: &Answer) -> Option<Duration> {
        answer.retry_after
    }

    /// What its answer means.
    fn judge(&mut self, answer: &Answer) -> Result<Receipt, SendError>;
}

/// The keys that each of their tables has.
pub(super) struct Keys {
    pub(super) template: Key<Option<String>>,
    pub(super) timeout: Key<Duration>,
    pub(super) retries: Key<i64>,
    pub(super) ca_file: Key<Option<String>>,
}

pub(super) const fn retries(path: &'static str) -> Key<i64> {
    Key::int(path, 3, 0, 20, "How many more times an alert is sent at once after a failure that may pass.")
}

/// The channel to a chat of one service.
struct Chat<S> {
    service: S,
    endpoint: Endpoint,
    template: Option<OwnText>,
    timeout: Duration,
    retries: u32,
    pace: Pace,
}

/// Makes the channel; `escape` is for the values of a template.
pub(super) fn build<S: Service>(
    service: S,
    endpoint: Endpoint,
    escape: Escape,
    keys: &'static Keys,
    values: &Values,
) -> Result<Option<Box<dyn Channel>>, String> {
    let files = TlsFiles { ca: values.get(&keys.ca_file), ..TlsFiles::default() };
    let template = keys.template.spec();
    Ok(Some(Box::new(Chat {
        endpoint: endpoint.with_tls(&files).map_err(|error| format!("{}.{error}", template.table()))?,
        template: OwnText::new(template.path, values.get(&keys.template).as_deref(), escape)?,
        timeout: values.get(&keys.timeout),
        retries: u32::try_from(values.get(&keys.retries)).unwrap_or(0),
        pace: service.pace(),
        service,
    })))
}

impl<S: Service> Channel for Chat<S> {
    fn send<'a>(&'a mut self, notice: &'a Notice) -> Sending<'a> {
        Box::pin(async move {
            self.pace.take()?;
            let own = self.template.as_mut().and_then(|own| own.of(notice, |text| text::held(text, S::OWN_MAX)));
            let message = self.service.message(notice, own);
            match self.post(message, notice).await {
                // It has found something wrong with the message: the words alone are better than nothing.
                Err(SendError::Permanent { reason }) => {
                    tracing::warn!(channel = S::NAME, %reason, "the message is not taken, sending plain text");
                    self.post(self.service.plain(notice), notice).await
                }
                other => other,
            }
        })
    }

    fn retries(&self) -> u32 {
        self.retries
    }
}

impl<S: Service> Chat<S> {
    async fn post(&mut self, body: Value, notice: &Notice) -> Result<Receipt, SendError> {
        let mut answer = self.endpoint.post_json(&body, self.timeout, notice.head().timestamp).await?;
        answer.retry_after = S::pause(&answer);
        if let Some(pause) = answer.retry_after {
            self.pace.pause(pause);
        }
        self.service.judge(&answer)
    }
}

/// A notice in a line of its own for each alert.
pub(super) fn words(notice: &Notice) -> String {
    let messages = notice.alerts.iter().take(ALERTS_MAX).map(|alert| shown(&alert.message, 1000));
    [text::headline(notice)].into_iter().chain(messages).collect::<Vec<_>>().join("\n")
}
