//! The kernel's log as second source and fallback: /dev/kmsg records in, the events that their text tells out.
//! Joining them with what probes saw of the same is left to `correlate`.

pub mod hung_task;
pub mod kmsg;
mod lines;
mod log_clock;
pub mod oom_kill;
mod position;
pub mod record;
mod task;

pub use kmsg::Kmsg;

use crate::model::{Desc, Event};
use crate::spec::{Key, KeySpec, Values};

/// A log that is read.
pub struct Entry {
    /// Its file's name.
    pub name: &'static str,
    /// What it gives.
    pub metrics: &'static [&'static Desc],
    /// What can be configured.
    pub keys: &'static [&'static KeySpec],
}

/// All logs.
pub static ALL: &[&Entry] = &[&kmsg::ENTRY];

/// The switch for all logs.
pub static ENABLED: Key<bool> = Key::switch(
    "log_analyzer.enabled",
    true,
    "Read logs: the kernel's tells what probes cannot, and stands in for them.",
);

/// Which logs are read.
pub static SOURCES: Key<Vec<String>> = Key::list(
    "log_analyzer.sources",
    &["dmesg"],
    "Logs that are read. \"dmesg\" is the kernel's log by /dev/kmsg; \"syslog\" is accepted and not built yet.",
);

/// Sources of the configuration that no reader is built for: for the note on what is not built yet.
#[must_use]
pub fn sources_not_built(values: &Values) -> Vec<String> {
    values.get(&SOURCES).into_iter().filter(|source| source != kmsg::SOURCE).collect()
}

/// Why a log is not read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Unavailable {
    /// What is wrong, with the file or the key.
    pub reason: String,
    /// What an operator can do about it.
    pub remedy: String,
    /// True when the configuration says so: nothing is wrong.
    pub by_configuration: bool,
}

/// An event as a record tells it, without its times: those need the reader's clocks.
#[derive(Clone, Debug, PartialEq)]
pub struct Sighting {
    /// Sequence of the record that makes it an event.
    pub sequence: u64,
    /// That record's time on the log's clock.
    pub micros: u64,
    /// The event; its times are not set.
    pub event: Event,
}
