//! `[prometheus]`: serves `/metrics` to whoever asks. Here are its keys and its start; HTTP is left to `server`,
//! the text to `exposition`.

#[cfg(feature = "prometheus")]
mod server;

use super::{Context, Entry, Exporter};
use crate::model::{Metric, Unit};
use crate::spec::{Key, Values};

/// `[prometheus]` in the list of exporters.
pub static ENTRY: Entry = Entry {
    name: "prometheus",
    keys: &[ENABLED.spec(), BIND.spec(), PATH.spec()],
    metrics: &[SCRAPES.desc(), EVICTED.desc()],
    start,
};

static ENABLED: Key<bool> = Key::switch(
    "prometheus.enabled",
    false,
    "Listens for Prometheus. Off by default: without it the agent has no listening port.",
);
static BIND: Key<String> = Key::text(
    "prometheus.bind",
    "127.0.0.1:9100",
    "Address and port to listen on. There is no authentication: keep it on loopback or behind a firewall. \
     node_exporter has the same default port.",
);
static PATH: Key<String> = Key::text("prometheus.path", "/metrics", "Path of the metrics; begins with `/`.");

static SCRAPES: Metric<0> =
    Metric::counter("prometheus_scrapes_total", Unit::Count, "Times that the metrics were served.", &[]);
static EVICTED: Metric<0> = Metric::counter(
    "prometheus_connections_evicted_total",
    Unit::Count,
    "Connections closed because newer ones came while the most allowed were open.",
    &[],
);

#[cfg(feature = "prometheus")]
fn start(values: &Values, context: &Context) -> Result<Option<Box<dyn Exporter>>, String> {
    if !values.get(&ENABLED) {
        return Ok(None);
    }
    let path = values.get(&PATH);
    if !path.starts_with('/') || path.contains(['?', '#', ' ']) {
        return Err(format!("prometheus.path: expected a path such as \"/metrics\", found {path:?}"));
    }
    let server = server::Server::start(&values.get(&BIND), path, context.feed.clone())?;
    Ok(Some(Box::new(server)))
}

#[cfg(not(feature = "prometheus"))]
fn start(values: &Values, _: &Context) -> Result<Option<Box<dyn Exporter>>, String> {
    if values.get(&ENABLED) {
        tracing::warn!("prometheus: enabled, but this agent was built without the feature \"prometheus\"");
    }
    Ok(None)
}
