//! Alerts on their way to people: for each channel a bounded queue and a worker of its own, so that one that hangs
//! delays no other. Tries again with backoff; what a channel's answer means is left to the channel.

use std::cell::Cell;
use std::collections::VecDeque;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher as _;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::JoinHandle;

use super::channel::{self, Channel, SendError};
use crate::model::{Audience, Batch, Desc, Metric, Notice, Severity, Unit};
use crate::spec::{Key, KeySpec, Values};

/// What can be configured.
pub static KEYS: &[&KeySpec] = &[CAPACITY.spec()];

static CAPACITY: Key<i64> = Key::int(
    "alerting.queue_capacity",
    1000,
    1,
    100_000,
    "How many alerts wait for each channel; past that the oldest that is not critical is dropped and counted.",
);

/// What the outbox tells about itself.
pub static METRICS: &[&Desc] = &[DELIVERED.desc(), FAILED.desc(), RETRIES.desc(), DROPPED.desc(), WAITING.desc()];

static DELIVERED: Metric<1> =
    Metric::counter("channel_delivered_total", Unit::Count, "Alerts that the channel's far end took.", &["channel"]);
static FAILED: Metric<1> = Metric::counter(
    "channel_failed_total",
    Unit::Count,
    "Alerts given up, after the last try or a refusal for good.",
    &["channel"],
);
static RETRIES: Metric<1> =
    Metric::counter("channel_retries_total", Unit::Count, "Tries after the first.", &["channel"]);
static DROPPED: Metric<1> = Metric::counter(
    "channel_dropped_total",
    Unit::Count,
    "Alerts dropped untried, because the channel's queue was full.",
    &["channel"],
);
static WAITING: Metric<1> = Metric::gauge(
    "channel_queue_length",
    Unit::Count,
    "Alerts that wait for the channel, the one on its way included.",
    &["channel"],
);

/// The pause before the first retry is at most this; each next one is at most four times longer.
const BACKOFF_MIN: Duration = Duration::from_secs(1);
const BACKOFF_MAX: Duration = Duration::from_secs(300);

/// A far end that wants to be left alone for longer is asked again after this.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(3600);

/// All channels that are enabled, each with its worker.
pub struct Outbox {
    lanes: Vec<Lane>,
    sent: Cell<u64>,
}

struct Lane {
    shared: Arc<Shared>,
    worker: JoinHandle<()>,
}

/// What the worker and the rest of the agent both see. The queue is the one place that a durable spool will replace.
struct Shared {
    name: &'static str,
    min_severity: Severity,
    grouped: bool,
    capacity: usize,
    queue: Mutex<VecDeque<Arc<Notice>>>,
    arrived: Notify,
    closing: AtomicBool,
    on_its_way: AtomicBool,
    delivered: AtomicU64,
    failed: AtomicU64,
    retries: AtomicU64,
    dropped: AtomicU64,
}

impl Outbox {
    /// Starts every channel that is enabled. To be called within a tokio runtime.
    ///
    /// # Errors
    /// With what is wrong with which key, for each channel that cannot be made.
    pub fn start(values: &Values) -> Result<Self, Vec<String>> {
        let mut channels = Vec::new();
        let mut errors = Vec::new();
        for entry in channel::ALL {
            let least = Severity::from_name(&values.get(entry.min_severity)).unwrap_or(Severity::Info);
            match (entry.build)(values) {
                Ok(Some(channel)) => channels.push((entry.name, least, entry.grouped, channel)),
                Ok(None) => {}
                Err(error) => errors.push(error),
            }
        }
        let capacity = usize::try_from(values.get(&CAPACITY)).unwrap_or(usize::MAX);
        if errors.is_empty() { Ok(Self::with(channels, capacity)) } else { Err(errors) }
    }

    /// With channels that are made already.
    #[must_use]
    pub fn with(channels: Vec<(&'static str, Severity, bool, Box<dyn Channel>)>, capacity: usize) -> Self {
        let lanes = channels
            .into_iter()
            .map(|(name, least, grouped, channel)| Lane::start(name, least, grouped, channel, capacity));
        Self { lanes: lanes.collect(), sent: Cell::new(0) }
    }

    /// Puts a notice into the queue of every channel that it is for. Never waits.
    pub fn send(&self, notice: &Notice) {
        self.sent.set(self.sent.get() + 1);
        let mut wanted = self.lanes.iter().filter(|lane| lane.shared.wants(notice)).peekable();
        if wanted.peek().is_some() {
            let notice = Arc::new(notice.clone());
            wanted.for_each(|lane| lane.shared.put(&notice));
        }
    }

    /// How many notices it got.
    pub fn sent(&self) -> u64 {
        self.sent.get()
    }

    /// How many of them are durable.
    pub fn durable(&self) -> u64 {
        self.sent.get()
    }

    /// Waits until more of them are durable than `number`.
    pub async fn wait_durable(&self, number: u64) {
        if self.durable() <= number {
            std::future::pending().await
        }
    }

    /// Names of the channels that are enabled.
    pub fn channels(&self) -> impl Iterator<Item = &'static str> {
        self.lanes.iter().map(|lane| lane.shared.name)
    }

    /// What the outbox tells about itself.
    pub fn collect(&self, out: &mut Batch) {
        for Lane { shared, .. } in &self.lanes {
            #[expect(clippy::cast_precision_loss, reason = "counts of alerts, far below 2^52")]
            let count = |count: &AtomicU64| count.load(Relaxed) as f64;
            let name = [shared.name];
            out.counter(&DELIVERED, name, count(&shared.delivered));
            out.counter(&FAILED, name, count(&shared.failed));
            out.counter(&RETRIES, name, count(&shared.retries));
            out.counter(&DROPPED, name, count(&shared.dropped));
            out.gauge(&WAITING, name, f64::from(u32::try_from(shared.waiting()).unwrap_or(u32::MAX)));
        }
    }

    /// Delivers what is waiting, for no longer than `deadline`, and ends. Gives the number of alerts that were left.
    pub async fn drain(self, deadline: Duration) -> usize {
        for lane in &self.lanes {
            lane.shared.closing.store(true, Relaxed);
            lane.shared.arrived.notify_one();
        }
        let deadline = tokio::time::Instant::now() + deadline;
        let mut left = 0;
        for Lane { shared, mut worker } in self.lanes {
            // A worker that died left its queue behind as one that is late does.
            if !matches!(tokio::time::timeout_at(deadline, &mut worker).await, Ok(Ok(()))) {
                worker.abort();
                let waiting = shared.waiting();
                tracing::error!(channel = shared.name, alerts = waiting, "not delivered before the end");
                left += waiting;
            }
        }
        left
    }
}

impl Lane {
    fn start(
        name: &'static str,
        min_severity: Severity,
        grouped: bool,
        channel: Box<dyn Channel>,
        capacity: usize,
    ) -> Self {
        let shared = Arc::new(Shared {
            name,
            min_severity,
            grouped,
            capacity,
            queue: Mutex::default(),
            arrived: Notify::new(),
            closing: AtomicBool::new(false),
            on_its_way: AtomicBool::new(false),
            delivered: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            retries: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
        });
        let worker = tokio::spawn(work(channel, Arc::clone(&shared)));
        Self { shared, worker }
    }
}

async fn work(mut channel: Box<dyn Channel>, shared: Arc<Shared>) {
    while let Some(notice) = shared.next().await {
        deliver(&mut *channel, &notice, &shared).await;
        shared.on_its_way.store(false, Relaxed);
    }
}

/// Sends one alert until the far end takes it, refuses it for good, or the tries are used up.
async fn deliver(channel: &mut dyn Channel, notice: &Notice, shared: &Shared) {
    let (name, metric) = (shared.name, notice.head().metric.as_str());
    for attempt in 0.. {
        match channel.send(notice).await {
            Ok(_) => {
                shared.delivered.fetch_add(1, Relaxed);
                return;
            }
            Err(SendError::Retry { reason, after }) if attempt < channel.retries() => {
                let pause = after.map_or_else(|| backoff(attempt), |after| after.min(RETRY_AFTER_MAX));
                let pause_ms = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX);
                tracing::warn!(channel = name, metric, %reason, pause_ms, "alert not delivered, trying again");
                tokio::time::sleep(pause).await;
                shared.retries.fetch_add(1, Relaxed);
            }
            Err(SendError::Retry { reason, .. } | SendError::Refused { reason } | SendError::Permanent { reason }) => {
                tracing::error!(channel = name, metric, %reason, tries = attempt + 1, "alert not delivered, given up");
                shared.failed.fetch_add(1, Relaxed);
                return;
            }
        }
    }
}

/// A random time up to 1 s, 4 s, 16 s, … 300 s, so that a fleet does not come back all at once.
fn backoff(attempt: u32) -> Duration {
    let most = BACKOFF_MIN.saturating_mul(4_u32.saturating_pow(attempt)).min(BACKOFF_MAX);
    // RandomState is seeded by the kernel and differs with every call.
    let random = u32::try_from(RandomState::new().hash_one(attempt) >> 32).unwrap_or(u32::MAX);
    most.mul_f64(f64::from(random) / f64::from(u32::MAX))
}

impl Shared {
    fn wants(&self, notice: &Notice) -> bool {
        let meant = match notice.audience {
            Audience::All => true,
            Audience::Machines => !self.grouped,
            Audience::People => self.grouped,
        };
        let named = |names: &Vec<String>| names.iter().any(|name| name == self.name);
        meant && notice.channels.as_ref().map_or(notice.severity() >= self.min_severity, named)
    }

    fn put(&self, notice: &Arc<Notice>) {
        {
            let mut queue = self.queue();
            if queue.len() >= self.capacity {
                self.dropped.fetch_add(1, Relaxed);
                tracing::error!(
                    channel = self.name,
                    capacity = self.capacity,
                    "the queue is full, an alert is dropped"
                );
                match queue.iter().position(|waiting| waiting.severity() < Severity::Critical) {
                    Some(oldest) => queue.remove(oldest),
                    None if notice.severity() < Severity::Critical => return,
                    None => queue.pop_front(),
                };
            }
            queue.push_back(Arc::clone(notice));
        }
        self.arrived.notify_one();
    }

    /// The next alert, or `None` at the end.
    async fn next(&self) -> Option<Arc<Notice>> {
        loop {
            if let Some(notice) = self.queue().pop_front() {
                self.on_its_way.store(true, Relaxed);
                return Some(notice);
            }
            if self.closing.load(Relaxed) {
                return None;
            }
            self.arrived.notified().await;
        }
    }

    fn waiting(&self) -> usize {
        self.queue().len() + usize::from(self.on_its_way.load(Relaxed))
    }

    fn queue(&self) -> MutexGuard<'_, VecDeque<Arc<Notice>>> {
        // Nothing is done under this lock that could leave the queue half changed.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::deliver::channel::Receipt;
    use crate::deliver::channel::Sending;
    use crate::model::Alert;

    /// Answers as told, then with success; remembers what it took and when it was asked.
    #[derive(Clone, Default)]
    struct Fake {
        answers: Arc<Mutex<VecDeque<SendError>>>,
        asked: Arc<Mutex<Vec<tokio::time::Instant>>>,
        took: Arc<Mutex<Vec<String>>>,
        hangs: bool,
    }

    impl Channel for Fake {
        fn send<'a>(&'a mut self, notice: &'a Notice) -> Sending<'a> {
            Box::pin(async move {
                self.asked.lock().expect("unpoisoned").push(tokio::time::Instant::now());
                if self.hangs {
                    std::future::pending::<()>().await;
                }
                if let Some(error) = self.answers.lock().expect("unpoisoned").pop_front() {
                    return Err(error);
                }
                self.took.lock().expect("unpoisoned").push(notice.head().message.clone());
                Ok(Receipt::default())
            })
        }
    }

    impl Fake {
        fn answering(answers: impl IntoIterator<Item = SendError>) -> Self {
            Self { answers: Arc::new(Mutex::new(answers.into_iter().collect())), ..Self::default() }
        }

        fn took(&self) -> Vec<String> {
            self.took.lock().expect("unpoisoned").clone()
        }
    }

    fn retry(after: Option<u64>) -> SendError {
        SendError::Retry { reason: "busy".to_owned(), after: after.map(Duration::from_secs) }
    }

    fn notice(message: &str, severity: Severity) -> Notice {
        let time = std::time::UNIX_EPOCH + Duration::from_secs(1_771_777_800);
        Notice::of(Alert::new("h", time, severity, "m", message.to_owned()))
    }

    fn outbox(fakes: &[(&'static str, Severity, &Fake)], capacity: usize) -> Outbox {
        let boxed = |fake: &Fake| Box::new(fake.clone()) as Box<dyn Channel>;
        Outbox::with(fakes.iter().map(|(name, least, fake)| (*name, *least, false, boxed(fake))).collect(), capacity)
    }

    fn count(outbox: &Outbox, name: &str) -> f64 {
        let mut batch = Batch::default();
        outbox.collect(&mut batch);
        let entry = batch.iter().find(|(entry, _)| entry.metric.name == name).expect("it is collected");
        match entry.0.reading {
            crate::model::Reading::Counter(value) | crate::model::Reading::Gauge(value) => value,
            ref other => panic!("{other:?}"),
        }
    }

    async fn until(done: impl Fn() -> bool) {
        while !done() {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_channel_that_hangs_delays_no_other_and_the_end_comes_in_time() {
        let (stuck, well) = (Fake { hangs: true, ..Fake::default() }, Fake::default());
        let outbox = outbox(&[("stuck", Severity::Info, &stuck), ("well", Severity::Info, &well)], 10);
        let start = tokio::time::Instant::now();
        for message in ["a", "b", "c"] {
            outbox.send(&notice(message, Severity::Warn));
        }
        until(|| well.took().len() == 3).await;
        assert_eq!(well.took(), ["a", "b", "c"]);
        assert!(start.elapsed() < Duration::from_secs(1));
        assert_eq!(outbox.drain(Duration::from_secs(4)).await, 3, "one on its way and two behind it");
        assert!(start.elapsed() < Duration::from_secs(5));
    }

    #[tokio::test(start_paused = true)]
    async fn draining_delivers_what_waits() {
        let fake = Fake::answering([retry(None), retry(Some(1))]);
        let outbox = outbox(&[("fake", Severity::Info, &fake)], 10);
        outbox.send(&notice("a", Severity::Warn));
        outbox.send(&notice("b", Severity::Warn));
        assert_eq!(outbox.drain(Duration::from_secs(10)).await, 0);
        assert_eq!(fake.took(), ["a", "b"]);
    }

    #[tokio::test(start_paused = true)]
    async fn the_far_ends_word_on_when_to_come_again_is_kept() {
        let fake = Fake::answering([retry(Some(7)), retry(Some(1_000_000))]);
        let outbox = outbox(&[("fake", Severity::Info, &fake)], 10);
        outbox.send(&notice("a", Severity::Warn));
        until(|| !fake.took().is_empty()).await;
        let asked = fake.asked.lock().expect("unpoisoned").clone();
        assert_eq!(asked.len(), 3);
        assert_eq!((asked[1] - asked[0]).as_secs(), 7);
        assert_eq!((asked[2] - asked[1]).as_secs(), 3600);
        assert_eq!((count(&outbox, "channel_delivered_total"), count(&outbox, "channel_retries_total")), (1.0, 2.0));
    }

    #[tokio::test(start_paused = true)]
    async fn tries_end_and_a_refusal_ends_them_at_once() {
        let refusal = SendError::Permanent { reason: "no".to_owned() };
        let fake = Fake::answering([retry(None), retry(None), retry(None), retry(None), refusal]);
        let outbox = outbox(&[("fake", Severity::Info, &fake)], 10);
        for message in ["a", "b", "c"] {
            outbox.send(&notice(message, Severity::Warn));
        }
        until(|| !fake.took().is_empty()).await;
        assert_eq!(fake.took(), ["c"], "a had four tries, b was refused");
        assert_eq!(fake.asked.lock().expect("unpoisoned").len(), 6);
        assert_eq!(count(&outbox, "channel_failed_total"), 2.0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_full_queue_drops_the_oldest_that_is_not_critical() {
        let fake = Fake::default();
        let outbox = outbox(&[("fake", Severity::Info, &fake)], 2);
        // The worker has not run yet: all of these meet the queue.
        for (message, severity) in [("a", Severity::Critical), ("b", Severity::Warn), ("c", Severity::Critical)] {
            outbox.send(&notice(message, severity));
        }
        outbox.send(&notice("d", Severity::Warn));
        outbox.send(&notice("e", Severity::Critical));
        assert_eq!((count(&outbox, "channel_dropped_total"), count(&outbox, "channel_queue_length")), (3.0, 2.0));
        assert_eq!(outbox.drain(Duration::from_secs(1)).await, 0);
        assert_eq!(fake.took(), ["c", "e"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_channel_carries_its_least_severity_and_above() {
        let fake = Fake::default();
        let outbox = outbox(&[("fake", Severity::Critical, &fake)], 9);
        for severity in Severity::ALL {
            outbox.send(&notice(severity.name(), severity));
        }
        assert_eq!(outbox.drain(Duration::from_secs(1)).await, 0);
        assert_eq!(fake.took(), ["critical", "emergency"]);
    }

    #[test]
    fn backoff_grows_to_its_bound_and_is_spread() {
        for (attempt, most) in [(0, 1), (1, 4), (2, 16), (3, 64), (4, 256), (5, 300), (60, 300)] {
            let pauses: Vec<_> = (0..50).map(|_| backoff(attempt)).collect();
            assert!(pauses.iter().all(|pause| *pause <= Duration::from_secs(most)));
            let (least, longest) = (pauses.iter().min(), pauses.iter().max());
            assert!(
                longest
                    .zip(least)
                    .is_some_and(|(longest, least)| *longest - *least > Duration::from_millis(most * 100))
            );
        }
    }
}
