//! What has become of notices on their way: the word of a far end, and how each channel's queue stands. Carrying them is
//! `deliver`'s.

use serde::{Deserialize, Serialize};

/// What came of one notice on one channel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// The channel's name.
    pub channel: String,
    /// What came of it.
    #[serde(flatten)]
    pub result: OutcomeResult,
}

/// What came of a try.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "result", rename_all = "snake_case")]
pub enum OutcomeResult {
    /// The far end has it.
    Delivered {
        /// What the far end said.
        answer: String,
    },
    /// Not yet: it is tried again.
    Later {
        /// What happened.
        reason: String,
        /// When it is tried again.
        in_secs: u64,
    },
    /// The far end takes nothing from this agent until someone mends the configuration.
    Refused {
        /// What happened and what to mend.
        reason: String,
    },
    /// The far end will never take this notice: it is put aside.
    Parked {
        /// What happened.
        reason: String,
    },
}

/// How one channel's queue stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaneStatus {
    /// The channel's name.
    pub channel: String,
    /// Notices that wait for it, the one on its way included.
    pub waiting: u64,
    /// For how long the oldest of them has waited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oldest_secs: Option<u64>,
    /// In how many seconds the next try is made; absent while one is on its way, or nothing waits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_try_secs: Option<u64>,
    /// Why the last try failed; absent when it did not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
    /// Notices that the far end took.
    pub delivered: u64,
    /// Notices that were put aside.
    pub parked: u64,
    /// The far end refuses this agent: it is tried seldom, until someone mends the configuration.
    pub paused: bool,
}
