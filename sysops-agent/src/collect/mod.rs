//! Periodic readers of /proc and /sys. Each is one file and one line in [`ALL`]: a pure `parse(&[u8])` and a thin
//! `collect`. Cadence, deadlines, panics and success metrics are the scheduler's.

mod agent;
mod bytes;
mod conntrack;
mod cpu;
mod cpu_times;
mod diskstats;
mod fd;
mod filesystem;
mod interval;
mod load;
#[cfg(test)]
mod made_host;
mod memory;
mod network;
mod numa;
mod pids;
mod pressure;
mod process;
mod swap;
#[cfg(test)]
mod testing;
mod top;
mod vmstat;

use std::borrow::Cow;
use std::time::Duration;

use crate::host::{Host, ReadError};
use crate::model::{Batch, Desc};
use crate::spec::{Key, KeySpec, Values};

/// Reads one part of the machine.
pub trait Collector: Send {
    /// Reads once. What this host does not have is [`Outcome::Absent`], not an error.
    ///
    /// # Errors
    /// When something that is there could not be read or understood.
    fn collect(&mut self, host: &Host, out: &mut Batch) -> Result<Outcome, CollectError>;
}

/// What a reading came to. The third outcome is an error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Values were read.
    Data,
    /// This host has no such thing.
    Absent {
        /// Why: `no /proc/pressure: the kernel was built without CONFIG_PSI or booted with psi=0`.
        reason: Cow<'static, str>,
        /// What an operator may do about it; empty when there is nothing to do.
        remedy: Cow<'static, str>,
    },
}

/// Why a collector failed.
#[derive(Debug, thiserror::Error)]
pub enum CollectError {
    /// A file could not be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// A file was not understood: which, what in it, what was expected.
    #[error("{file}: {item}: expected {expected}, found {found:?}")]
    Parse {
        /// The file, as `/proc/meminfo`.
        file: String,
        /// The item in it.
        item: String,
        /// What should stand there.
        expected: &'static str,
        /// What stands there, cut to 64 bytes.
        found: String,
    },
}

impl CollectError {
    /// A file that was not understood.
    #[must_use]
    pub fn parse(file: &str, item: impl Into<String>, expected: &'static str, found: &[u8]) -> Self {
        let found = String::from_utf8_lossy(&found[..found.len().min(64)]).into_owned();
        Self::Parse { file: file.to_owned(), item: item.into(), expected, found }
    }
}

/// A collector as the list knows it.
pub struct Entry {
    /// Its file's name.
    pub name: &'static str,
    /// What it gives.
    pub metrics: &'static [&'static Desc],
    /// What can be configured.
    pub keys: &'static [&'static KeySpec],
    /// How often it runs.
    pub interval: &'static Key<Duration>,
    /// How long one reading may take before it is set aside and the others go on.
    pub deadline: Duration,
    /// Makes it.
    pub new: fn(&Host, &Values) -> Box<dyn Collector>,
}

/// All collectors.
pub static ALL: &[&Entry] = &[
    &cpu::ENTRY,
    &load::ENTRY,
    &pressure::ENTRY,
    &memory::ENTRY,
    &swap::ENTRY,
    &vmstat::ENTRY,
    &numa::ENTRY,
    &filesystem::ENTRY,
    &diskstats::ENTRY,
    &network::ENTRY,
    &conntrack::ENTRY,
    &process::ENTRY,
    &fd::ENTRY,
    &agent::ENTRY,
];
