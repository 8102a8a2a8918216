//! Ways to machines: Prometheus asks, NATS is told. Each exporter is one file or folder and one line in [`ALL`].
//! What is known, and how the agent is, come through [`Feed`]; wiring and logging of errors are the pipeline's.

pub mod exposition;
pub mod nats;
mod number;
pub mod prometheus;
pub mod telemetry;

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;

use crate::model::{Batch, Desc, Readings, Tick};
use crate::spec::{KeySpec, Values};

/// All exporters.
pub static ALL: &[&Entry] = &[&nats::ENTRY, &prometheus::ENTRY];

/// An exporter as the list knows it.
pub struct Entry {
    /// Its file's name and its table: `[<name>]`.
    pub name: &'static str,
    /// What can be configured.
    pub keys: &'static [&'static KeySpec],
    /// What it says about itself.
    pub metrics: &'static [&'static Desc],
    /// Starts it.
    pub start: Start,
}

/// Starts an exporter inside a tokio `LocalSet`: `None` when it is not enabled; an error names the key, file or
/// address and what to do about it.
pub type Start = fn(&Values, &Context) -> Result<Option<Box<dyn Exporter>>, String>;

/// A running exporter. Nothing here waits for the network but [`Exporter::stop`].
pub trait Exporter {
    /// Adds the readings about itself.
    fn report(&self, out: &mut Batch);
    /// What keeps it from its work right now, in one sentence: for `doctor` and the agent's health.
    fn problem(&self) -> Option<String>;
    /// True when what it read at its start beside its own keys, a file of secrets, is different by now.
    fn is_outdated(&self, _values: &Values) -> bool {
        false
    }
    /// Ends it: what is queued has two seconds to leave, what is bound is free afterwards.
    fn stop(self: Box<Self>) -> Pin<Box<dyn Future<Output = ()>>>;
}

/// What every exporter needs.
#[derive(Clone)]
pub struct Context {
    /// The name of this host, as it is.
    pub hostname: String,
    /// What is known.
    pub feed: Rc<dyn Feed>,
}

/// Where exporters get what they send. It is asked on the pipeline's own thread, between two cycles.
pub trait Feed {
    /// Shows the newest readings to `see`.
    fn readings(&self, see: &mut dyn FnMut(&dyn Readings));
    /// The inventory as one JSON object; `None` until the first one is complete.
    fn inventory(&self) -> Option<Rc<serde_json::Value>>;
    /// Whether everything that is configured works.
    fn health(&self) -> Health;
    /// The clocks.
    fn now(&self) -> Tick;
}

/// The `status` of a heartbeat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// Everything that is configured works.
    Healthy,
    /// The agent runs, and something that is configured does not work.
    Degraded,
}

impl Health {
    /// `healthy`, `degraded`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Degraded => "degraded",
        }
    }
}
