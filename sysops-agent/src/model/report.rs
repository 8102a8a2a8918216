//! What an agent sees and what it does not, with the reasons: what `doctor` prints, of itself or as the agent that runs tells it.
//! docs/schemas/doctor.schema.json describes it.

use serde::{Deserialize, Serialize};

/// All of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Version of this shape.
    pub schema: u32,
    /// The agent that runs and that this is about; `None`: it is about the process that prints it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<Agent>,
    /// Each kernel probe.
    pub probes: Vec<Probe>,
    /// Whether the kernel counts for the agent how long its programs run.
    pub run_stats: Word,
    /// The kernel's log.
    pub log: Word,
    /// What the agent that runs could not take; `None`: nothing, or none runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lost: Option<Lost>,
    /// Each collector.
    pub collectors: Vec<Collector>,
    /// The running kernel.
    pub kernel: KernelFacts,
    /// What the process may do.
    pub capabilities: Capabilities,
}

/// The agent that runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Agent {
    /// Its process id, as it knows it.
    pub pid: u32,
}

/// Where a probe stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probe {
    /// Its name.
    pub name: String,
    /// Its rung's word.
    pub rung: String,
    /// Why it stands on no better rung; empty on the best.
    pub reason: String,
    /// What an operator can do about it; empty when there is nothing to do.
    pub remedy: String,
    /// Events taken from the kernel.
    pub received: u64,
    /// Events that the kernel side could not hand over, for any reason.
    pub dropped: u64,
    /// What it does beyond its rung.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub extras: Vec<Extra>,
}

/// Something that a probe does beside the events of its rung.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extra {
    /// What.
    pub name: String,
    /// By which means; `off` when by none.
    pub means: String,
    /// Why by no better means; empty on the best.
    pub reason: String,
    /// What an operator can do about it; empty when there is nothing to do.
    pub remedy: String,
}

/// The three outcomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Values were read, or nothing was tried yet.
    Ok,
    /// This host has no such thing.
    Absent,
    /// It is there and could not be read.
    Failed,
}

/// Whether something works, and why not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Word {
    /// How it stands.
    pub state: State,
    /// Why it is absent or failed; empty when it is ok.
    pub reason: String,
    /// What an operator may do; empty when there is nothing to do.
    pub remedy: String,
}

impl Word {
    /// It works.
    #[must_use]
    pub fn ok() -> Self {
        Self { state: State::Ok, reason: String::new(), remedy: String::new() }
    }
}

/// How a collector stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Collector {
    /// Its name.
    pub name: String,
    /// How it stands.
    #[serde(flatten)]
    pub word: Word,
}

/// What an agent lost in its life.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lost {
    /// The agent's process id.
    pub pid: u32,
    /// One entry for each thing that can be lost and was.
    pub losses: Vec<Loss>,
}

/// One thing that was lost.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Loss {
    /// When last, RFC 3339.
    pub time: String,
    /// What, how much, and what to do about it.
    pub message: String,
}

/// The running kernel, and what of it the probes can use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelFacts {
    /// `uname -r`.
    pub release: String,
    /// `uname -v`.
    pub version: String,
    /// `uname -m`.
    pub arch: String,
    /// It tells its types.
    pub btf: bool,
    /// tracefs is mounted.
    pub tracefs: bool,
    /// The mode of lockdown that holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lockdown: Option<String>,
}

/// What the process may do, of the capabilities that open something to the agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capabilities {
    /// Its user.
    pub uid: u32,
    /// What it has.
    pub effective: Vec<String>,
    /// What it lacks.
    pub missing: Vec<Missing>,
}

/// A capability that the process lacks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Missing {
    /// Its name.
    pub name: String,
    /// What it would open.
    pub opens: String,
}
