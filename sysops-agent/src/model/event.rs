//! What the kernel did to a process: the same shape from every source. docs/schemas/event.schema.json describes it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

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
#[expect(clippy::large_enum_variant, reason = "events are few, and boxed where many wait")]
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Detail {
    /// The kernel killed a process to free memory.
    OomKill(OomKill),
    /// A task has been in uninterruptible sleep for longer than kernel.hung_task_timeout_secs.
    HungTask(HungTask),
    /// A process sent another one a SIGKILL.
    Sigkill(Sigkill),
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

impl Event {
    /// The version of the shape.
    pub const SCHEMA: u32 = 1;

    /// `oom_kill`, `hung_task`, `sigkill`.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self.detail {
            Detail::OomKill(_) => "oom_kill",
            Detail::HungTask(_) => "hung_task",
            Detail::Sigkill(_) => "sigkill",
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
