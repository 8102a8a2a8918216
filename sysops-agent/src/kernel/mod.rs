//! eBPF probes, each with a ladder of rungs and a word on which it stands. Reading the kernel's log is left to
//! `logs`; joining both is left to `correlate`.

use serde::Serialize;

use crate::host::{EventSource, Host};
use crate::model::Desc;
use crate::spec::{KeySpec, Values};

/// Where a probe stands, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Rung {
    /// BPF program on a tracepoint typed by BTF.
    TpBtf,
    /// BPF program on a raw tracepoint, offsets from BTF.
    RawTracepoint,
    /// BPF program on a tracepoint, offsets from its tracefs format.
    Tracepoint,
    /// Text of /dev/kmsg, read by `logs`.
    Kmsg,
    /// Not at all.
    Off,
}

/// Where a probe stands and why.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Standing {
    /// The probe's name.
    pub name: &'static str,
    /// Its rung.
    pub rung: Rung,
    /// Why it stands on no better rung; empty on the best.
    pub reason: String,
    /// What an operator can do about it; empty when there is nothing to do.
    pub remedy: String,
    /// True when the configuration asked for a rung that cannot stand: an error, not a fallback.
    #[serde(skip)]
    pub forced_and_failed: bool,
    /// Events taken from the kernel.
    pub received: u64,
    /// Events that the kernel side could not hand over, for any reason.
    pub dropped: u64,
}

/// A probe as the list knows it.
pub struct Entry {
    /// Its file's name, the same in sysops-ebpf and sysops-common.
    pub name: &'static str,
    /// What it gives.
    pub metrics: &'static [&'static Desc],
    /// What can be configured.
    pub keys: &'static [&'static KeySpec],
}

/// All probes.
pub static ALL: &[&Entry] = &[];

/// The probes that stand.
pub struct Kernel {
    standings: Vec<Standing>,
}

impl Kernel {
    /// Puts every probe on the best rung that its facts and the configuration allow.
    #[must_use]
    pub fn start(_host: &Host, _values: &Values) -> Self {
        Self { standings: Vec::new() }
    }

    /// Where each probe stands, with counters as of now.
    #[must_use]
    pub fn standings(&self) -> Vec<Standing> {
        self.standings.clone()
    }
}

impl EventSource for Kernel {
    fn fds(&self) -> Vec<std::os::fd::BorrowedFd<'_>> {
        Vec::new()
    }
    fn drain(&mut self, _host: &Host, _out: &mut Vec<crate::model::Event>) {}
    fn collect(&mut self, _host: &Host, _out: &mut crate::model::Batch) {}
}
