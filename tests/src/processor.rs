//! A processor that goes offline and comes back, and threads that are bound to one.
#![expect(clippy::disallowed_methods, clippy::panic, reason = "a test reads files and fails by panic")]

use rustix::process::Pid;
use rustix::thread::{CpuSet, sched_setaffinity};

use crate::require;

/// The one that goes: the first one stays on most machines.
pub const GOES: usize = 1;

/// It is offline until this is dropped.
pub struct Offline;

impl Offline {
    /// What is missing to take it offline.
    #[must_use]
    pub fn missing() -> Option<String> {
        require::root().or_else(|| require::files(&[&switch()]))
    }

    /// Takes it offline.
    ///
    /// # Panics
    /// When the machine refuses.
    #[must_use]
    pub fn now() -> Self {
        set("0");
        Self
    }
}

impl Drop for Offline {
    fn drop(&mut self) {
        set("1");
    }
}

/// Numbers of those that are online, of the first two.
#[must_use]
pub fn online() -> Vec<usize> {
    let text = std::fs::read_to_string(switch()).unwrap_or_default();
    if text.trim() == "1" { vec![0, GOES] } else { vec![0] }
}

/// Binds a process, or the calling thread and what it starts, to one processor.
///
/// # Panics
/// When the machine refuses.
pub fn bind(pid: Option<u32>, processor: usize) {
    let mut set = CpuSet::new();
    set.set(processor);
    let pid = pid.and_then(|pid| Pid::from_raw(pid.cast_signed()));
    sched_setaffinity(pid, &set).unwrap_or_else(|error| panic!("processor {processor}: {error}"));
}

fn switch() -> String {
    format!("/sys/devices/system/cpu/cpu{GOES}/online")
}

fn set(value: &str) {
    std::fs::write(switch(), value).unwrap_or_else(|error| panic!("{}: {error}", switch()));
}
