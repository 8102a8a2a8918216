//! `[nats]`: tells a NATS server the metrics, inventory and heartbeats of this host, on `<prefix>.<host>.<kind>`. Here are its
//! keys and its start; documents are left to `telemetry`, what waits to `queue`, the connection to `link`, user names and secrets to
//! `access`. Alerts go by these keys, too, and are the channel `nats`'s.

#[cfg(feature = "nats")]
pub(in crate::deliver) mod access;
#[cfg(feature = "nats")]
pub(in crate::deliver) mod encoding;
#[cfg(feature = "nats")]
mod link;
#[cfg(feature = "nats")]
mod publisher;
#[cfg(feature = "nats")]
mod queue;
#[cfg(feature = "nats")]
pub(in crate::deliver) mod subject;

use std::time::Duration;

use super::{Context, Entry, Exporter};
use crate::model::{Metric, Unit};
use crate::spec::{Key, Secret, Values};

/// `[nats]` in the list of exporters.
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
        METRICS_INTERVAL.spec(),
        INVENTORY_INTERVAL.spec(),
        HEARTBEAT_INTERVAL.spec(),
        INCLUDE_ALERTS.spec(),
        BATCH_SIZE.spec(),
        COMPRESSION.spec(),
        MAX_RECONNECT_ATTEMPTS.spec(),
        RECONNECT_DELAY.spec(),
    ],
    metrics: &[PUBLISHED.desc(), DROPPED.desc(), CONNECTED.desc()],
    start,
};

pub(in crate::deliver) static ENABLED: Key<bool> =
    Key::switch("nats.enabled", false, "Sends telemetry to a NATS server.");
pub(in crate::deliver) static URL: Key<String> = Key::text(
    "nats.url",
    "nats://127.0.0.1:4222",
    "Address of the server: `nats://host:port`, or `tls://host:port` for TLS at all times. Not used when `urls` is set.",
);
pub(in crate::deliver) static URLS: Key<Vec<String>> =
    Key::list("nats.urls", &[], "Addresses of the servers of a cluster.");
pub(in crate::deliver) static CREDENTIAL_FILE: Key<Option<String>> = Key::optional(
    "nats.credential_file",
    "File with a user's JWT and NKey seed, as `nsc` writes it. Keep it readable by the agent's user alone.",
);
pub(in crate::deliver) static TOKEN: Key<Option<Secret>> =
    Key::secret("nats.token", "Token, when the server asks for one.");
pub(in crate::deliver) static USER: Key<Option<String>> =
    Key::optional("nats.user", "User name; goes with `password`.");
pub(in crate::deliver) static PASSWORD: Key<Option<Secret>> = Key::secret("nats.password", "Password of `user`.");
pub(in crate::deliver) static SUBJECT_PREFIX: Key<String> = Key::text(
    "nats.subject_prefix",
    "sysops",
    "First part of the subjects: `<prefix>.<host>.metrics`, `.alerts`, `.inventory`, `.heartbeat`.",
);
static METRICS_INTERVAL: Key<Duration> =
    Key::secs("nats.metrics_interval_secs", 30, 1, 86_400, "How often the metrics are sent.");
static INVENTORY_INTERVAL: Key<Duration> =
    Key::secs("nats.inventory_interval_secs", 300, 1, 86_400, "How often the inventory is sent.");
static HEARTBEAT_INTERVAL: Key<Duration> =
    Key::secs("nats.heartbeat_interval_secs", 60, 1, 86_400, "How often a heartbeat is sent.");
pub(in crate::deliver) static INCLUDE_ALERTS: Key<bool> =
    Key::switch("nats.include_alerts", true, "Sends alerts too, as the channel `nats`.");
static BATCH_SIZE: Key<i64> =
    Key::int("nats.batch_size", 100, 1, 100_000, "Most metrics in one message; also bounded by what the server takes.");
pub(in crate::deliver) static COMPRESSION: Key<bool> = Key::switch(
    "nats.compression",
    true,
    "Compresses all but heartbeats with zstd; such a message has the header `Content-Encoding: zstd`.",
);
static MAX_RECONNECT_ATTEMPTS: Key<i64> = Key::int(
    "nats.max_reconnect_attempts",
    -1,
    -1,
    1_000_000,
    "After how many attempts in a row that fail the agent gives this server up until it is started or reloaded; \
     -1 or 0: never.",
);
static RECONNECT_DELAY: Key<Duration> = Key::secs(
    "nats.reconnect_delay_secs",
    5,
    1,
    3600,
    "Time between two attempts to connect, made longer or shorter by up to a quarter at random, so that a fleet does \
     not come back all at once.",
);

static PUBLISHED: Metric<1> = Metric::counter(
    "nats_published_total",
    Unit::Count,
    "Messages that the NATS server has confirmed, by kind of message.",
    &["kind"],
);
static DROPPED: Metric<2> = Metric::counter(
    "nats_dropped_total",
    Unit::Count,
    "Messages that were not sent to the NATS server, by kind and reason.",
    &["kind", "reason"],
);
static CONNECTED: Metric<0> =
    Metric::gauge("nats_connected", Unit::Bool, "1 while there is a connection to a NATS server.", &[]);

#[cfg(feature = "nats")]
fn start(values: &Values, context: &Context) -> Result<Option<Box<dyn Exporter>>, String> {
    if !values.get(&ENABLED) {
        return Ok(None);
    }
    Ok(Some(Box::new(publisher::Publisher::start(values, context)?)))
}

#[cfg(not(feature = "nats"))]
fn start(values: &Values, _: &Context) -> Result<Option<Box<dyn Exporter>>, String> {
    if values.get(&ENABLED) {
        tracing::warn!("nats: enabled, but this agent was built without the feature \"nats\"");
    }
    Ok(None)
}
