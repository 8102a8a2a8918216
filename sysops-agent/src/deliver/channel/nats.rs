//! Alerts on the NATS subject of this host, each stored once where a JetStream stream keeps them. The switch, the server and the
//! way to it are those of `[nats]`, which telemetry goes by, too; what the server says is `jetstream`'s.

#[cfg(feature = "nats")]
mod jetstream;

use super::{Channel, Entry};
use crate::deliver::nats::{
    COMPRESSION, CREDENTIAL_FILE, ENABLED, INCLUDE_ALERTS, PASSWORD, SUBJECT_PREFIX, TOKEN, URL, URLS, USER,
};
use crate::model::Severity;
use crate::spec::{Key, Values};

/// The channel as the list knows it.
pub static ENTRY: Entry = Entry {
    name: "nats",
    keys: &[
        ENABLED.spec(),
        URL.spec(),
        URLS.spec(),
        CREDENTIAL_FILE.spec(),
        TOKEN.spec(),
        USER.spec(),
        PASSWORD.spec(),
        SUBJECT_PREFIX.spec(),
        INCLUDE_ALERTS.spec(),
        COMPRESSION.spec(),
        MIN_SEVERITY.spec(),
    ],
    min_severity: &MIN_SEVERITY,
    grouped: false,
    durable: true,
    build,
};

static MIN_SEVERITY: Key<String> = Key::choice(
    "alerting.nats.min_severity",
    Severity::NAMES,
    "info",
    "The least severity that is published while `nats.enabled` and `nats.include_alerts` are true.",
);

#[cfg(feature = "nats")]
fn build(values: &Values) -> Result<Option<Box<dyn Channel>>, String> {
    if !values.get(&ENABLED) || !values.get(&INCLUDE_ALERTS) {
        return Ok(None);
    }
    Ok(Some(Box::new(jetstream::Publisher::new(values)?)))
}

/// The exporter says that this build has no NATS.
#[cfg(not(feature = "nats"))]
#[expect(clippy::unnecessary_wraps, reason = "the twin with the feature can fail")]
fn build(_: &Values) -> Result<Option<Box<dyn Channel>>, String> {
    Ok(None)
}
