//! What the kernel did to a process: the same shape from every source. docs/schemas/event.schema.json describes it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::stack::Frame;

/// Where a part of an event came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// BPF program at the entry of a kernel function, typed by BTF.
    Fentry,
    /// BPF program on a tracepoint, typed by BTF.
    TpBtf,
    /// BPF program on a raw tracepoint.
    RawTracepoint,
    /// BPF program on a tracepoint, by its tracefs format.
    Tracepoint,
    /// Text of /dev/kmsg.
    Kmsg,
}

/// One kernel event. What a source cannot know is absent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// Version of this shape; keys are only ever added within it.
    pub schema: u32,
    /// RFC 3339 with nanoseconds.
    pub time: String,
    /// All sources that saw it, in the order in which they came.
    pub source: Vec<Source>,
    /// Process id: the tgid.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// Thread id that the kernel named.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tid: Option<u32>,
    /// Name of the task. Hostile: any bytes but NUL; invalid UTF-8 is shown as U+FFFD.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub comm: Option<String>,
    /// User id in the initial user namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// Path in the memory controller's hierarchy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<String>,
    /// What happened.
    #[serde(flatten)]
    pub detail: Detail,
    /// CLOCK_MONOTONIC nanoseconds of the event: for merging, not for readers.
    #[serde(skip)]
    pub monotonic_ns: u64,
}

/// What happened, by kind.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Detail {
    /// The kernel killed a process to free memory.
    OomKill(OomKill),
    /// A task has been in uninterruptible sleep for longer than kernel.hung_task_timeout_secs.
    HungTask(HungTask),
    /// A process takes file descriptors and does not give them back.
    FdLeak(FdLeak),
}

/// An OOM kill.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct OomKill {
    /// -1000 to 1000.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oom_score_adj: Option<i32>,
    /// Size of the victim's address space.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total_vm_bytes: Option<u64>,
    /// Resident anonymous memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub anon_rss_bytes: Option<u64>,
    /// Resident file pages.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file_rss_bytes: Option<u64>,
    /// Resident shared memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shmem_rss_bytes: Option<u64>,
    /// Page tables.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pgtables_bytes: Option<u64>,
    /// `CONSTRAINT_MEMCG`, `CONSTRAINT_NONE`, … as the kernel's log names it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub constraint: Option<String>,
    /// Path of the cgroup whose limit was reached.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oom_memcg: Option<String>,
    /// Process that asked for memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trigger_pid: Option<u32>,
    /// Its name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trigger_comm: Option<String>,
}

/// A hung task.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct HungTask {
    /// How long it has not run, or at least the kernel's timeout.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub blocked_seconds: Option<u64>,
    /// Kernel function in which it sleeps.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wchan: Option<String>,
    /// Kernel stack, innermost function first.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub kernel_stack: Vec<String>,
}

/// One stack of a process takes file descriptors that are not closed. Told when that is sure, and again when they have
/// doubled.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct FdLeak {
    /// What is taken: `file`, `socket`, `pipe`, `eventfd`, …
    pub descriptor: String,
    /// How many of them this stack took that are open.
    pub count: u64,
    /// Age of the oldest.
    pub oldest_seconds: f64,
    /// By how many they become more in an hour.
    pub growth_per_hour: f64,
    /// All descriptors that the process has open, as far as they were looked at.
    pub open: u64,
    /// How many it may open (the soft RLIMIT_NOFILE).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<u64>,
    /// How many of the open ones are known by their stack.
    pub attributed: u64,
    /// `attributed` / `open`, 0 to 1.
    pub coverage: f64,
    /// The stack, innermost first.
    pub frames: Vec<Frame>,
}

impl Event {
    /// The version of the shape.
    pub const SCHEMA: u32 = 1;

    /// `oom_kill`, `hung_task`, `fd_leak`.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self.detail {
            Detail::OomKill(_) => "oom_kill",
            Detail::HungTask(_) => "hung_task",
            Detail::FdLeak(_) => "fd_leak",
        }
    }

    /// `pid`, `comm` and `cgroup`, as alerts carry them.
    #[must_use]
    pub fn labels(&self) -> BTreeMap<String, String> {
        let pid = self.pid.map(|pid| pid.to_string());
        [("pid", pid), ("comm", self.comm.clone()), ("cgroup", self.cgroup.clone())]
            .into_iter()
            .filter_map(|(name, value)| Some((name.to_owned(), value?)))
            .collect()
    }
}
