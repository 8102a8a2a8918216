//! What has become of a notice on its way, and how each channel does, for whoever asks. The way itself is `deliver`'s.

use serde::{Deserialize, Serialize};

/// What came of one try, or of a notice, on one channel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// The channel's name.
    pub channel: String,
    /// What came of it.
    #[serde(flatten)]
    pub result: Fate,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "result", rename_all = "snake_case")]
pub enum Fate {
    /// The far end has it.
    Delivered {
        /// In the far end's words.
        answer: String,
    },
    /// It is tried again.
    Later {
        /// Why it was not taken.
        reason: String,
        /// In how many seconds.
        in_secs: u64,
    },
    /// The far end takes nothing from this agent; it waits until that is mended.
    Refused {
        /// What happened and what to mend.
        reason: String,
    },
    /// It is given up.
    Parked {
        /// Why.
        reason: String,
    },
}

/// The outbox at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutboxStatus {
    /// Why what waits would not survive the end of the agent; absent when it would.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// Notices that wait for at least one channel.
    pub records: u64,
    /// Bytes of the spool's files.
    pub bytes: u64,
    /// One for each channel that is enabled or has something waiting.
    pub channels: Vec<ChannelStatus>,
}

/// How one channel does. Counts are of this life of the agent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChannelStatus {
    /// Its name.
    pub channel: String,
    /// False for one that is not enabled any more and still has something waiting.
    pub enabled: bool,
    /// Notices that wait, the one on its way included.
    pub waiting: u64,
    /// For how long the oldest has waited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oldest_secs: Option<u64>,
    /// In how many seconds the channel is tried next, when something waits and nothing is on its way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_try_secs: Option<u64>,
    /// What went wrong last, as the channel said it, unless something has been delivered since.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
    /// True while the far end takes nothing from this agent.
    pub refused: bool,
    /// Notices that the far end took.
    pub delivered: u64,
    /// Notices given up with their text kept.
    pub parked: u64,
    /// Notices lost for want of room, or because they could not be read.
    pub lost: u64,
}
