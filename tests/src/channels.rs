//! Channels as a test uses them: without the outbox, one notice at a time.

use sysops_agent::deliver::channel::{self, Channel, Entry, Receipt, SendError};
use sysops_agent::model::{Alert, Notice};
use sysops_agent::spec::{Value, Values};

use crate::feed::repository_file;

/// A word for tokens and URLs: it may stand on the wire and nowhere else.
pub const CANARY: &str = "hunter2";

fn entry(name: &str) -> &'static Entry {
    channel::ALL.iter().find(|entry| entry.name == name).expect("it is in the list")
}

/// The channel `name` enabled, with these keys of its table.
///
/// # Panics
/// When there is no such channel or key.
pub fn values<'a>(name: &str, set: impl IntoIterator<Item = (&'a str, Value)>) -> Values {
    let mut values = Values::default();
    for (key, value) in set.into_iter().chain([("enabled", Value::Bool(true))]) {
        let path = format!("alerting.{name}.{key}");
        let spec = entry(name).keys.iter().find(|spec| spec.path == path);
        values.set(spec.expect("one of its keys"), value);
    }
    values
}

/// The channel of these values.
///
/// # Errors
/// What the channel finds wrong with them.
///
/// # Panics
/// When there is no such channel or key.
pub fn of<'a>(name: &str, set: impl IntoIterator<Item = (&'a str, Value)>) -> Result<Box<dyn Channel>, String> {
    let (entry, values) = (entry(name), values(name, set));
    (entry.build)(&values).map(|channel| channel.expect("it is enabled"))
}

/// The same of values that are right.
///
/// # Panics
/// When they are not.
pub fn made<'a>(name: &str, set: impl IntoIterator<Item = (&'a str, Value)>) -> Box<dyn Channel> {
    of(name, set).expect("the values are right")
}

/// What the channel finds wrong with these values; empty when that is nothing.
pub fn fault<'a>(name: &str, set: impl IntoIterator<Item = (&'a str, Value)>) -> String {
    of(name, set).err().unwrap_or_default()
}

/// Text as a value.
#[must_use]
pub fn text(text: impl Into<String>) -> Value {
    Value::Text(text.into())
}

/// Sends, and holds that no error shows a secret.
///
/// # Errors
/// As the channel's.
///
/// # Panics
/// When an error shows a secret.
pub async fn send(channel: &mut dyn Channel, notice: &Notice) -> Result<Receipt, SendError> {
    let sent = channel.send(notice).await;
    assert!(!format!("{sent:?}").contains(CANARY), "{sent:?}");
    if let Err(error) = &sent {
        assert!(!error.to_string().contains(CANARY), "{error}");
    }
    sent
}

/// A real OOM kill, and a full disk that is over, with all that was known of it.
///
/// # Panics
/// When the fixtures are no alerts.
#[must_use]
pub fn samples() -> [(&'static str, Alert); 2] {
    ["oom_kill", "disk_resolved"].map(|name| {
        let json = repository_file(&format!("tests/fixtures/alerts/{name}.json"));
        (name, serde_json::from_str(&json).expect("an alert"))
    })
}
