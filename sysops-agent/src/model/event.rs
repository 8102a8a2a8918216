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
    /// BPF program at the entry of a kernel function, by a kprobe.
    Kprobe,
    /// BPF program on a tracepoint, typed by BTF.
    TpBtf,
    /// BPF program on a raw tracepoint.
    RawTracepoint,
    /// BPF program on a tracepoint, by its tracefs format.
    Tracepoint,
    /// Text of /dev/kmsg.
    Kmsg,
    /// BPF iterator over all tasks.
    TaskIter,
    /// A look at the tasks in /proc.
    Proc,
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
    /// Path in the memory controller's hierarchy. Written with what it tells of container and unit beside it.
    #[serde(flatten, with = "cgroup")]
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
    /// A task has been in uninterruptible sleep for too long, or has come out of it.
    HungTask(HungTask),
    /// A process takes file descriptors and does not give them back.
    FdLeak(FdLeak),
    /// A process sent another one a SIGKILL.
    Sigkill(Sigkill),
    /// A request of a block device took longer than kernel.block_io.slow_ms; the process is who asked for it.
    SlowIo(SlowIo),
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
    /// Path of its memory cgroup.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trigger_cgroup: Option<String>,
    /// The same in all events of one decision of the kernel: one for a kill, several where `memory.oom.group` is set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub incident: Option<String>,
    /// True when the kernel killed no one: the victim was on its way out and was let at the reserves.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub already_exiting: Option<bool>,
    /// Name of the thread that the kernel named, where it is not that of the process.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub thread_comm: Option<String>,
    /// Smallest memory limit of the victim's cgroup and those above it; absent without one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit_bytes: Option<u64>,
    /// Limit of `oom_memcg`, as the kernel's log has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oom_memcg_limit_bytes: Option<u64>,
    /// What was charged to it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oom_memcg_usage_bytes: Option<u64>,
    /// Path of the cgroup with `memory.oom.group` all of whose processes are killed, as the log has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oom_group: Option<String>,
}

/// A SIGKILL from a process outside: the head of the event is the one that got it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Sigkill {
    /// Process that sent it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sender_pid: Option<u32>,
    /// Name of the thread that sent it; as hostile as any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sender_comm: Option<String>,
    /// Its real user id in the initial user namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sender_uid: Option<u32>,
    /// Path of its memory cgroup.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sender_cgroup: Option<String>,
    /// The program that is known to kill, by the sender's name: `systemd-oomd`, `earlyoom`, `containerd-shim`, …
    #[serde(skip_serializing_if = "Option::is_none")]
    pub killer: Option<String>,
    /// True when that program kills when memory runs short.
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub for_memory: bool,
}

/// A hung task.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct HungTask {
    /// Whether the hang was found, or is over.
    #[serde(default)]
    pub phase: Phase,
    /// Who found it too long.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tier: Option<Tier>,
    /// Name of the thread, where it is not that of the process.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub thread_comm: Option<String>,
    /// How it ended; absent where nobody looks any more.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outcome: Option<Outcome>,
    /// How long it has not run, or at least the kernel's timeout; at the end, for how long it was seen not to run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub blocked_seconds: Option<u64>,
    /// Kernel function in which it sleeps.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wchan: Option<String>,
    /// Kernel stack, innermost function first.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub kernel_stack: Vec<String>,
    /// What it waits for, where the kernel keeps track of that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lock: Option<Lock>,
    /// Thread that likely holds the lock.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub holder_tid: Option<u32>,
    /// Its name. Hostile.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub holder_comm: Option<String>,
    /// How often the task had run when it fell asleep: tells one hang of it from the next. For merging, not for readers.
    #[serde(skip)]
    pub switches: Option<u64>,
}

/// What an event tells of a hang.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// The task hangs.
    #[default]
    Began,
    /// It does not hang any more.
    Ended,
}

/// Who found that a task hangs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Tier {
    /// The agent, after kernel.hung_task.early_secs.
    Early,
    /// The kernel's own detector, after the sysctl kernel.hung_task_timeout_secs.
    Kernel,
}

/// How a hang ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The task ran again.
    Ran,
    /// It is gone.
    Exited,
}

/// A lock of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Lock {
    /// A mutex.
    Mutex,
    /// A semaphore; its holder is who took it last.
    Semaphore,
    /// A lock for many readers or one writer.
    RwSemaphore,
}

impl Lock {
    /// Its name for people.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Mutex => "mutex",
            Self::Semaphore => "semaphore",
            Self::RwSemaphore => "rw-semaphore",
        }
    }
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

/// The path with what follows from it, as keys beside each other.
mod cgroup {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use crate::model::container::place;

    #[derive(Serialize)]
    struct Written<'a> {
        #[serde(skip_serializing_if = "Option::is_none")]
        cgroup: Option<&'a str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        container: Option<&'a str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        unit: Option<&'a str>,
    }

    #[derive(Deserialize)]
    struct Read {
        cgroup: Option<String>,
    }

    #[expect(clippy::ref_option, reason = "serde hands over the field as it is")]
    pub(super) fn serialize<S: Serializer>(cgroup: &Option<String>, to: S) -> Result<S::Ok, S::Error> {
        let place = cgroup.as_deref().map(place).unwrap_or_default();
        Written { cgroup: cgroup.as_deref(), container: place.container, unit: place.unit }.serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
        Read::deserialize(from).map(|read| read.cgroup)
    }
}

/// A request of a block device that took long.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SlowIo {
    /// Whole disk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// `read`, `write`, `discard`, `flush`, `other`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub operation: Option<String>,
    /// First sector, in units of 512 bytes; not of a flush.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sector: Option<u64>,
    /// Length.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// Time before its last issue to the driver.
    pub queue_seconds: f64,
    /// Time from then to its completion.
    pub device_seconds: f64,
    /// What the kernel calls the error with which it ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<String>,
    /// The process is a task of the kernel, as that which writes back what others have written: who did is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernel_thread: Option<bool>,
}

impl Event {
    /// The version of the shape.
    pub const SCHEMA: u32 = 1;

    /// `oom_kill`, `hung_task`, `fd_leak`.
    /// `oom_kill`, `hung_task`, `sigkill`.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self.detail {
            Detail::OomKill(_) => "oom_kill",
            Detail::HungTask(_) => "hung_task",
            Detail::FdLeak(_) => "fd_leak",
            Detail::Sigkill(_) => "sigkill",
            Detail::SlowIo(_) => "slow_io",
        }
    }

    /// The hang that this is about, if it is about one.
    #[must_use]
    pub const fn hang(&self) -> Option<&HungTask> {
        if let Detail::HungTask(hang) = &self.detail { Some(hang) } else { None }
    }

    /// True when this tells the end of what an earlier event told.
    #[must_use]
    pub fn is_end(&self) -> bool {
        self.hang().is_some_and(|hang| hang.phase == Phase::Ended)
    }

    /// `pid`, `comm` and `cgroup`, and for a slow request its `device`, as alerts carry them.
    #[must_use]
    pub fn labels(&self) -> BTreeMap<String, String> {
        let pid = self.pid.map(|pid| pid.to_string());
        let device = if let Detail::SlowIo(io) = &self.detail { io.device.clone() } else { None };
        [("pid", pid), ("comm", self.comm.clone()), ("cgroup", self.cgroup.clone()), ("device", device)]
            .into_iter()
            .filter_map(|(name, value)| Some((name.to_owned(), value?)))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn container_and_unit_are_told_beside_the_path_and_read_back() {
        let id = "0123456789abcdef".repeat(4);
        let mut event = Event {
            schema: Event::SCHEMA,
            time: "2026-02-22T16:30:00.000000005Z".into(),
            source: vec![Source::TpBtf],
            pid: Some(42),
            tid: None,
            comm: None,
            uid: None,
            cgroup: Some(format!("/system.slice/docker-{id}.scope")),
            detail: Detail::Sigkill(Sigkill { sender_pid: Some(7), ..Sigkill::default() }),
            monotonic_ns: 0,
        };
        let json = serde_json::to_value(&event).expect("an event is JSON");
        assert_eq!(
            json,
            serde_json::json!({
                "schema": 1, "time": "2026-02-22T16:30:00.000000005Z", "source": ["tp_btf"], "pid": 42, "kind": "sigkill",
                "cgroup": format!("/system.slice/docker-{id}.scope"), "container": id,
                "unit": format!("docker-{id}.scope"), "sender_pid": 7,
            })
        );
        assert_eq!(serde_json::from_value::<Event>(json).expect("its own JSON"), event);
        event.cgroup = None;
        let json = serde_json::to_value(&event).expect("an event is JSON");
        assert!(json.get("cgroup").is_none() && json.get("container").is_none() && json.get("unit").is_none());
        assert_eq!(serde_json::from_value::<Event>(json).expect("its own JSON"), event);
    }
}
