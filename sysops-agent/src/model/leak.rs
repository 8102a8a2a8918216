//! What a process holds and does not give back, by the stack that took it. docs/schemas/leaks.schema.json describes it.

use serde::Serialize;

use super::stack::Frame;

/// What one process has taken and not given back, largest stack first.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LeakReport {
    /// Version of this shape; keys are only ever added within it.
    pub schema: u32,
    /// What is held.
    pub resource: Resource,
    /// Process id: the tgid.
    pub pid: u32,
    /// Name of the process. Hostile: any bytes but NUL; invalid UTF-8 is shown as U+FFFD.
    pub comm: String,
    /// All that the process holds: open file descriptors, or bytes of anonymous memory.
    pub open: u64,
    /// Of these, what is known to which stack it belongs.
    pub attributed: u64,
    /// `attributed` / `open`, 0 to 1; 1 when nothing is held.
    pub coverage: f64,
    /// Rung on which it was seen, as `doctor` names it.
    pub rung: &'static str,
    /// Why not everything is attributed, for people; empty when there is nothing to say.
    pub unattributed: String,
    /// Largest first. A stack that holds nothing any more is not here.
    pub stacks: Vec<LeakStack>,
}

/// What can leak.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Resource {
    /// File descriptors.
    Fd,
    /// Bytes of anonymous memory.
    Memory,
}

/// What one stack has taken and not given back.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LeakStack {
    /// File descriptors, or bytes.
    pub count: u64,
    /// What was taken: `file`, `socket`, `pipe`, `eventfd`, …; `mmap`, `brk`, `page_fault`, `malloc`.
    pub kind: String,
    /// Age of the oldest that is still held.
    pub oldest_seconds: f64,
    /// By how much `count` rises in an hour at the pace of the observation; below zero when it falls.
    pub growth_per_hour: f64,
    /// Innermost first.
    pub frames: Vec<Frame>,
}

impl LeakReport {
    /// The version of the shape.
    pub const SCHEMA: u32 = 1;
}
