//! Telemetry to a NATS server: metrics, inventory and heartbeats of this host, on `<prefix>.<host>.<kind>`. Here are the keys that
//! are telemetry's alone, and its start; documents are left to `telemetry`, what waits to `queue`, the connection to `link`. Who
//! the agent is at the server, and what alerts need too, is `deliver::nats`'s.

#[cfg(feature = "nats")]
mod link;
#[cfg(feature = "nats")]
mod publisher;
#[cfg(feature = "nats")]
mod queue;

use std::time::Duration;

use super::{Context, Entry, Exporter};
use crate::deliver::nats::{
    COMPRESSION, CREDENTIAL_FILE, ENABLED, INCLUDE_ALERTS, PASSWORD, SUBJECT_PREFIX, TOKEN, URL, URLS, USER,
};
use crate::model::{Metric, Unit};
use crate::spec::{Key, Values};

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

static METRICS_INTERVAL: Key<Duration> =
    Key::secs("nats.metrics_interval_secs", 30, 1, 86_400, "How often the metrics are sent.");
static INVENTORY_INTERVAL: Key<Duration> =
    Key::secs("nats.inventory_interval_secs", 300, 1, 86_400, "How often the inventory is sent.");
static HEARTBEAT_INTERVAL: Key<Duration> =
    Key::secs("nats.heartbeat_interval_secs", 60, 1, 86_400, "How often a heartbeat is sent.");
static BATCH_SIZE: Key<i64> =
    Key::int("nats.batch_size", 100, 1, 100_000, "Most metrics in one message; also bounded by what the server takes.");
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
