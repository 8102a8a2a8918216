//! The rungs on which probes stand. Which of them a probe has is left to the probe.

use crate::model::Source;

/// Where a probe stands, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rung {
    /// BPF program at the entry of kernel functions, typed by BTF.
    Fentry,
    /// BPF program at the entry of kernel functions by a kprobe, offsets from BTF.
    Kprobe,
    /// BPF program on a tracepoint typed by BTF.
    TpBtf,
    /// BPF program on a raw tracepoint, offsets from BTF.
    RawTracepoint,
    /// BPF programs at functions of a user program.
    Uprobe,
    /// BPF program on a tracepoint, offsets from its tracefs format.
    Tracepoint,
    /// BPF program that the kernel calls for each task, offsets from BTF.
    Iter,
    /// Text of /dev/kmsg, read by `logs`.
    Kmsg,
    /// Files of /proc, read by `collect`.
    Proc,
    /// Not at all.
    Off,
}

impl Rung {
    /// All of them, best first.
    pub const ALL: [Self; 10] = [
        Self::Fentry,
        Self::Kprobe,
        Self::TpBtf,
        Self::RawTracepoint,
        Self::Uprobe,
        Self::Tracepoint,
        Self::Iter,
        Self::Kmsg,
        Self::Proc,
        Self::Off,
    ];

    /// Its name, as the configuration and the JSON have it.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Fentry => "fentry",
            Self::Kprobe => "kprobe",
            Self::TpBtf => "tp_btf",
            Self::RawTracepoint => "raw_tracepoint",
            Self::Uprobe => "uprobe",
            Self::Tracepoint => "tracepoint",
            Self::Iter => "iter",
            Self::Kmsg => "kmsg",
            Self::Proc => "proc",
            Self::Off => "off",
        }
    }

    /// What an event from a program on this rung names as its source; `None` where there is no program.
    #[must_use]
    pub const fn source(self) -> Option<Source> {
        match self {
            Self::Fentry => Some(Source::Fentry),
            Self::Kprobe => Some(Source::Kprobe),
            Self::TpBtf => Some(Source::TpBtf),
            Self::RawTracepoint => Some(Source::RawTracepoint),
            Self::Tracepoint => Some(Source::Tracepoint),
            Self::Uprobe | Self::Iter | Self::Kmsg | Self::Proc | Self::Off => None,
        }
    }
}
