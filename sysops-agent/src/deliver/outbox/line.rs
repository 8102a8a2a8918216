//! One channel's place in the outbox: what waits for it, until when it is left alone, and how it does. Who is next is `queue`'s.

use std::collections::hash_map::RandomState;
use std::collections::{HashMap, VecDeque};
use std::hash::BuildHasher as _;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;

use super::queue::RANKS;
use crate::model::{Audience, Notice, Severity};

/// The first pause is at most this; each next one is at most four times longer.
const BACKOFF_MIN: Duration = Duration::from_secs(1);
const BACKOFF_MAX: Duration = Duration::from_secs(300);

/// A far end that wants to be left alone for longer is asked again after this.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(3600);

/// How long a far end is left alone that takes nothing from this agent.
const REFUSED_PAUSE: Duration = Duration::from_secs(300);

/// So many notices put off one after the other, and it is the channel that is at fault.
const PUT_OFF_MAX: u32 = 3;

/// Why a notice was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Loss {
    /// The spool is full.
    NoRoom,
    /// The disk takes nothing, and memory is full.
    MemoryFull,
    /// Of a channel that keeps nothing.
    QueueFull,
    /// What is on disk is no notice.
    Unreadable,
}

impl Loss {
    pub(super) const ALL: [Self; 4] = [Self::NoRoom, Self::MemoryFull, Self::QueueFull, Self::Unreadable];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::NoRoom => "no_room",
            Self::MemoryFull => "memory_full",
            Self::QueueFull => "queue_full",
            Self::Unreadable => "unreadable",
        }
    }
}

/// One channel.
pub(super) struct Line {
    pub(super) name: String,
    /// Which of its workers may take something; none while the channel is not enabled.
    pub(super) worker: Option<u64>,
    /// What waits for it outlives the agent.
    pub(super) durable: bool,
    pub(super) grouped: bool,
    pub(super) min_severity: Severity,
    pub(super) wake: Arc<Notify>,
    pub(super) ranks: [VecDeque<u64>; RANKS],
    pub(super) put_off: HashMap<u64, PutOff>,
    pub(super) on_its_way: Vec<u64>,
    pub(super) waiting: usize,
    pub(super) bytes: u64,
    /// The far end's own word on when to come again.
    not_before: Option<Duration>,
    backoff: Option<Duration>,
    failures: u32,
    pub(super) refused: bool,
    pub(super) last_error: Option<String>,
    pub(super) delivered: u64,
    pub(super) retries: u64,
    pub(super) parked: u64,
    pub(super) lost: [u64; Loss::ALL.len()],
}

/// A notice that was not taken.
#[derive(Clone, Copy, Debug)]
pub(super) struct PutOff {
    pub(super) until: Duration,
    times: u32,
}

impl Line {
    /// Of a channel that is not enabled.
    pub(super) fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            worker: None,
            durable: true,
            grouped: false,
            min_severity: Severity::Info,
            wake: Arc::default(),
            ranks: Default::default(),
            put_off: HashMap::new(),
            on_its_way: Vec::new(),
            waiting: 0,
            bytes: 0,
            not_before: None,
            backoff: None,
            failures: 0,
            refused: false,
            last_error: None,
            delivered: 0,
            retries: 0,
            parked: 0,
            lost: [0; Loss::ALL.len()],
        }
    }

    pub(super) fn wants(&self, notice: &Notice) -> bool {
        let meant = match notice.audience {
            Audience::All => true,
            Audience::Machines => !self.grouped,
            Audience::People => self.grouped,
        };
        let named = |names: &Vec<String>| names.contains(&self.name);
        meant && notice.channels.as_ref().map_or(notice.severity() >= self.min_severity, named)
    }

    /// Until when nothing is sent.
    pub(super) fn pause(&self) -> Option<Duration> {
        self.not_before.max(self.backoff)
    }

    /// Something that cannot wait ends a pause that is the agent's own.
    pub(super) fn hurry(&mut self) {
        if !self.refused {
            self.backoff = None;
        }
    }

    /// The configuration was read again: what was refused may be mended.
    pub(super) fn begin_anew(&mut self, worker: Option<u64>) {
        self.worker = worker;
        self.backoff = None;
        self.refused = false;
        self.put_off.clear();
        self.wake.notify_one();
    }

    /// The far end takes notices.
    pub(super) fn succeeded(&mut self) {
        (self.backoff, self.not_before) = (None, None);
        self.failures = 0;
        self.refused = false;
        self.last_error = None;
    }

    /// The notices `seqs` were not taken. Gives when they are tried again.
    pub(super) fn failed(&mut self, seqs: &[u64], after: Option<Duration>, now: Duration) -> Duration {
        if let Some(after) = after {
            // It concerns the channel, not the notice.
            let until = now + after.min(RETRY_AFTER_MAX);
            self.not_before = Some(until);
            return until;
        }
        self.failures += 1;
        if self.failures >= PUT_OFF_MAX {
            self.backoff = Some(now + backoff(self.failures - PUT_OFF_MAX));
        }
        let times = seqs.iter().filter_map(|seq| self.put_off.get(seq)).map(|put_off| put_off.times).max();
        let times = times.map_or(0, |times| times.saturating_add(1));
        let until = now + backoff(times);
        self.put_off.extend(seqs.iter().map(|seq| (*seq, PutOff { until, times })));
        self.pause().map_or(until, |pause| pause.max(until))
    }

    /// A notice is not tried before `until`.
    pub(super) fn leave_alone(&mut self, seq: u64, until: Duration) {
        self.put_off.insert(seq, PutOff { until, times: 0 });
    }

    /// The far end takes nothing from this agent. True when that is news.
    pub(super) fn was_refused(&mut self, now: Duration) -> bool {
        self.backoff = Some(now + REFUSED_PAUSE);
        !std::mem::replace(&mut self.refused, true)
    }
}

/// The pause before the next try of one that is tried again at once.
pub(super) fn short_backoff() -> Duration {
    jitter(BACKOFF_MIN)
}

/// A random time up to 1 s, 4 s, 16 s, … 300 s, so that a fleet does not come back all at once.
fn backoff(times: u32) -> Duration {
    jitter(BACKOFF_MIN.saturating_mul(4_u32.saturating_pow(times)).min(BACKOFF_MAX))
}

fn jitter(most: Duration) -> Duration {
    // RandomState is seeded by the kernel and differs with every call.
    let random = u32::try_from(RandomState::new().hash_one(0) >> 32).unwrap_or(u32::MAX);
    most.mul_f64(f64::from(random) / f64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::from_secs(1000);

    #[test]
    fn backoff_grows_to_its_bound_and_is_spread() {
        for (times, most) in [(0, 1), (1, 4), (2, 16), (3, 64), (4, 256), (5, 300), (60, 300)] {
            let pauses: Vec<_> = (0..50).map(|_| backoff(times)).collect();
            assert!(pauses.iter().all(|pause| *pause <= Duration::from_secs(most)));
            let (least, longest) = (pauses.iter().min(), pauses.iter().max());
            let spread = longest.zip(least).map(|(longest, least)| *longest - *least);
            assert!(spread.is_some_and(|spread| spread > Duration::from_millis(most * 100)));
        }
    }

    #[test]
    fn one_notice_that_fails_does_not_stop_the_channel_and_three_do() {
        let mut line = Line::new("x");
        line.failed(&[1], None, NOW);
        line.succeeded();
        line.failed(&[1], None, NOW);
        line.failed(&[2], None, NOW);
        assert_eq!(line.pause(), None);
        line.failed(&[3], None, NOW);
        assert!(line.pause().is_some_and(|until| until >= NOW));
        line.hurry();
        assert_eq!(line.pause(), None);
    }

    #[test]
    fn the_far_ends_word_is_kept_whatever_comes() {
        let mut line = Line::new("x");
        assert_eq!(line.failed(&[1], Some(Duration::from_secs(7)), NOW), NOW + Duration::from_secs(7));
        line.hurry();
        line.begin_anew(Some(2));
        assert_eq!(line.pause(), Some(NOW + Duration::from_secs(7)));
        line.failed(&[1], Some(Duration::from_secs(1_000_000)), NOW);
        assert_eq!(line.pause(), Some(NOW + RETRY_AFTER_MAX));
    }

    #[test]
    fn what_is_refused_is_said_once_and_tried_after_a_reload() {
        let mut line = Line::new("x");
        assert!(line.was_refused(NOW) && !line.was_refused(NOW));
        line.hurry();
        assert_eq!(line.pause(), Some(NOW + REFUSED_PAUSE));
        line.begin_anew(Some(2));
        assert_eq!(line.pause(), None);
        assert!(line.was_refused(NOW));
    }
}
