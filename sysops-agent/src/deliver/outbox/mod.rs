//! Alerts on their way to people: what is accepted is on disk, and goes out through one worker for each channel, so that one that
//! hangs delays no other. Tries again until the far end takes it; what a channel's answer means is left to the channel.

mod line;
mod queue;
mod seen;
mod shared;
#[cfg(test)]
mod tests;
mod worker;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::task::JoinHandle;

use super::channel::{self, Channel};
use super::spool::BYTES_MIN;
use crate::model::{Batch, ChannelStatus, Desc, Metric, Notice, OutboxStatus, Outcome, Severity, Unit};
use crate::spec::{Key, KeySpec, Values};
use line::Loss;
pub use shared::Wall;
use shared::{Limits, Shared};

/// What can be configured.
pub static KEYS: &[&KeySpec] = &[CAPACITY.spec(), AGE_MAX.spec(), BYTES_MAX.spec()];

static CAPACITY: Key<i64> = Key::int(
    "alerting.queue_capacity",
    1000,
    1,
    100_000,
    "How many alerts wait for a channel that keeps nothing on disk (the console); past that the oldest of those that matter least \
     is dropped and counted.",
);
static AGE_MAX: Key<Duration> = Key::secs(
    "alerting.outbox_max_age_secs",
    86_400,
    60,
    30 * 86_400,
    "For how long delivery of an alert is tried. Then it is given up, said and counted, and its text kept in outbox/parked.jsonl \
     below agent.data_dir.",
);
#[expect(clippy::cast_possible_wrap, reason = "4 MiB")]
static BYTES_MAX: Key<i64> = Key::int(
    "alerting.outbox_max_bytes",
    64 << 20,
    BYTES_MIN as i64,
    4 << 30,
    "How much room alerts that wait may take in outbox/ below agent.data_dir. Past that what matters least is given up, \
     counted and said: info, then warn, then that critical alerts are over, then critical, then emergency, of each the oldest first.",
);

/// What the outbox tells about itself.
pub static METRICS: &[&Desc] = &[
    DELIVERED.desc(),
    FAILED.desc(),
    RETRIES.desc(),
    WAITING.desc(),
    OLDEST.desc(),
    LOST.desc(),
    RECORDS.desc(),
    BYTES.desc(),
    NOT_DURABLE.desc(),
    DAMAGED.desc(),
    REPEATED.desc(),
    RECOVERED.desc(),
    RECOVERY.desc(),
];

static DELIVERED: Metric<1> =
    Metric::counter("channel_delivered_total", Unit::Count, "Alerts that the channel's far end took.", &["channel"]);
static FAILED: Metric<1> = Metric::counter(
    "channel_failed_total",
    Unit::Count,
    "Alerts given up: refused for good, or not delivered within alerting.outbox_max_age_secs.",
    &["channel"],
);
static RETRIES: Metric<1> =
    Metric::counter("channel_retries_total", Unit::Count, "Tries that failed and are made again.", &["channel"]);
static WAITING: Metric<1> = Metric::gauge(
    "channel_queue_length",
    Unit::Count,
    "Alerts that wait for the channel, the one on its way included.",
    &["channel"],
);
static OLDEST: Metric<1> = Metric::gauge(
    "channel_oldest_seconds",
    Unit::Seconds,
    "For how long the oldest alert has waited for the channel; 0 when none waits.",
    &["channel"],
);
static LOST: Metric<2> = Metric::counter(
    "outbox_lost_total",
    Unit::Count,
    "Alerts lost before they were delivered.",
    &["channel", "reason"],
);
static RECORDS: Metric<0> =
    Metric::gauge("outbox_records", Unit::Count, "Alerts that wait for at least one channel.", &[]);
static BYTES: Metric<0> = Metric::gauge("outbox_bytes", Unit::Bytes, "Size of the outbox on disk.", &[]);
static NOT_DURABLE: Metric<0> = Metric::counter(
    "outbox_not_durable_total",
    Unit::Count,
    "Alerts that went out without being on disk first, because the disk did not take them.",
    &[],
);
static DAMAGED: Metric<0> =
    Metric::counter("outbox_damaged_total", Unit::Count, "Records of the outbox that were not understood.", &[]);
static REPEATED: Metric<0> = Metric::counter(
    "outbox_repeated_total",
    Unit::Count,
    "Alerts not accepted because they had been accepted before.",
    &[],
);
static RECOVERED: Metric<0> =
    Metric::gauge("outbox_recovered_records", Unit::Count, "Alerts that waited on disk at the start.", &[]);
static RECOVERY: Metric<0> =
    Metric::gauge("outbox_recovery_seconds", Unit::Seconds, "How long it took to read them.", &[]);

/// How long the start waits for the disk, and the end for its last word.
const DISK_PATIENCE: Duration = Duration::from_secs(1);

/// All channels that are enabled, each with its worker.
pub struct Outbox {
    shared: Arc<Shared>,
    /// One for each line that has or had one.
    workers: Vec<Option<JoinHandle<()>>>,
    house: JoinHandle<()>,
    generation: u64,
    /// There are threads that write and read.
    has_threads: bool,
}

/// A channel that is made, with what the outbox must know of it.
pub struct Made {
    /// Its name.
    pub name: &'static str,
    /// The least severity that it carries.
    pub min_severity: Severity,
    /// People read it.
    pub grouped: bool,
    /// What waits for it outlives the agent.
    pub durable: bool,
    /// The channel itself.
    pub channel: Box<dyn Channel>,
}

/// What configuration makes: channels that are enabled, and limits.
pub struct Plan {
    channels: Vec<Made>,
    limits: Limits,
}

impl Plan {
    /// Makes every channel that is enabled.
    ///
    /// # Errors
    /// With what is wrong with which key, for each channel that cannot be made.
    pub fn new(values: &Values) -> Result<Self, Vec<String>> {
        let (mut channels, mut errors) = (Vec::new(), Vec::new());
        for entry in channel::ALL {
            let min_severity = Severity::from_name(&values.get(entry.min_severity)).unwrap_or(Severity::Info);
            let &channel::Entry { name, grouped, durable, .. } = *entry;
            match (entry.build)(values) {
                Ok(Some(channel)) => channels.push(Made { name, min_severity, grouped, durable, channel }),
                Ok(None) => {}
                Err(error) => errors.push(error),
            }
        }
        let limits = Limits {
            age_max: values.get(&AGE_MAX),
            bytes_max: u64::try_from(values.get(&BYTES_MAX)).unwrap_or(BYTES_MIN),
            capacity: usize::try_from(values.get(&CAPACITY)).unwrap_or(usize::MAX),
        };
        if errors.is_empty() { Ok(Self { channels, limits }) } else { Err(errors) }
    }

    /// With channels that are made already, in place of those of the list.
    #[must_use]
    pub fn with(mut self, channels: Vec<Made>) -> Self {
        self.channels = channels;
        self
    }
}

impl Outbox {
    /// Starts every channel that is enabled; what waits is kept in memory alone. To be called within a tokio runtime.
    ///
    /// # Errors
    /// With what is wrong with which key, for each channel that cannot be made.
    pub fn start(values: &Values) -> Result<Self, Vec<String>> {
        Ok(Self::run(Plan::new(values)?, None, Arc::new(|| SystemTime::UNIX_EPOCH)))
    }

    /// Starts the channels of `plan`; what waits is kept in the folder `outbox` of `data_dir`, and what waits there is delivered.
    /// Where that cannot be, this is said, tried again, and memory has to do meanwhile; without a `data_dir` it always does. `wall` reads the wall clock. To be called
    /// within a tokio runtime.
    #[must_use]
    pub fn open(plan: Plan, data_dir: Option<&Path>, wall: Wall) -> Self {
        Self::run(plan, data_dir.map(|path| path.join("outbox")), wall)
    }

    fn run(plan: Plan, dir: Option<PathBuf>, wall: Wall) -> Self {
        let shared = Arc::new(Shared::new(plan.limits, dir.is_some(), wall));
        let house = tokio::spawn(keep_house(Arc::clone(&shared)));
        let mut outbox = Self { shared, workers: Vec::new(), house, generation: 0, has_threads: false };
        outbox.reload(plan);
        if let Some(dir) = dir {
            match outbox.start_threads(&dir) {
                Ok(()) => outbox.has_threads = true,
                Err(error) => {
                    tracing::error!(
                        "no thread for the outbox: {error}: alerts are kept in memory, and are lost with the agent"
                    );
                    outbox.shared.lock().disk.wanted = false;
                }
            }
        }
        outbox
    }

    fn start_threads(&self, dir: &Path) -> std::io::Result<()> {
        let spawn = |name: &str, run: fn(&Shared, &Path)| {
            let (shared, dir) = (Arc::clone(&self.shared), dir.to_owned());
            std::thread::Builder::new().name(name.to_owned()).spawn(move || run(&shared, &dir))
        };
        spawn("outbox-read", writer::read)?;
        spawn("outbox-write", writer::write)?;
        // A disk that answers has all that waits known before anything new comes.
        let state = self.shared.lock();
        let settled = self.shared.settled.wait_timeout_while(state, DISK_PATIENCE, |state| !state.disk.settled);
        drop(settled.unwrap_or_else(PoisonError::into_inner));
        Ok(())
    }

    /// Goes on with the channels of `plan`. What waits for a channel of the same name waits for the new one, which is tried at
    /// once, and what waits for one that is not enabled any more waits until it is, or is too old.
    pub fn reload(&mut self, plan: Plan) {
        self.generation += 1;
        let worker = self.generation;
        let mut state = self.shared.lock();
        state.limits = plan.limits;
        state.queue.lines.iter_mut().for_each(|line| line.begin_anew(None));
        let mut started = Vec::new();
        for made in plan.channels {
            let Some(index) = state.line(made.name) else { continue };
            let line = &mut state.queue.lines[index];
            (line.min_severity, line.grouped, line.durable) = (made.min_severity, made.grouped, made.durable);
            line.begin_anew(Some(worker));
            started.push((index, made.channel));
        }
        drop(state);
        for (line, channel) in started {
            self.workers.resize_with(self.workers.len().max(line + 1), || None);
            let before = self.workers[line].take();
            let work = worker::work(Arc::clone(&self.shared), line, worker, channel, before);
            self.workers[line] = Some(tokio::spawn(work));
        }
        let state = self.shared.lock();
        for (line, worker) in self.workers.iter_mut().enumerate() {
            if state.queue.lines[line].worker.is_none()
                && let Some(before) = worker.take()
            {
                tokio::spawn(worker::retire(Arc::clone(&self.shared), line, before));
            }
        }
    }

    /// Takes a notice for every channel that it is for. Never waits. One whose id was taken before is not taken again.
    pub fn send(&self, notice: &Notice) {
        self.shared.accept(notice, None);
    }

    /// As [`Self::send`]. Gives the channels that it is for, and what comes of it on each, try by try; that ends when it waits for none
    /// any more.
    pub fn send_and_watch(&self, notice: &Notice) -> (Vec<String>, UnboundedReceiver<Outcome>) {
        let (watcher, outcomes) = unbounded_channel();
        (self.shared.accept(notice, Some(watcher)), outcomes)
    }

    /// The number of the notice that was sent last.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.shared.lock().queue.last
    }

    /// All notices up to this number outlive the agent, or wait for nothing any more. While the disk takes nothing it stays
    /// behind.
    #[must_use]
    pub fn durable(&self) -> u64 {
        self.shared.lock().durable()
    }

    /// Waits until all notices up to `sent` outlive the agent, or wait for nothing any more.
    pub fn wait_durable(&self, sent: u64) -> impl Future<Output = ()> + use<> {
        let mut durable = self.shared.durable.subscribe();
        async move {
            // It fails when the outbox is gone, and then there is nothing to wait for.
            let _ = durable.wait_for(|durable| *durable >= sent).await;
        }
    }

    /// Names of the channels that are enabled.
    #[must_use]
    pub fn channels(&self) -> Vec<String> {
        let state = self.shared.lock();
        state.queue.lines.iter().filter(|line| line.worker.is_some()).map(|line| line.name.clone()).collect()
    }

    /// How the outbox and each channel do.
    #[must_use]
    pub fn status(&self) -> OutboxStatus {
        let now = self.shared.now();
        let mut state = self.shared.lock();
        let lines = 0..state.queue.lines.len();
        let oldest: Vec<Option<Duration>> = lines.map(|line| state.queue.oldest(line)).collect();
        let channels = state.queue.lines.iter().zip(oldest).map(|(line, oldest)| {
            let is_idle = line.waiting > 0 && line.on_its_way.is_empty();
            let next = line
                .put_off
                .values()
                .map(|put_off| put_off.until)
                .min()
                .unwrap_or(now)
                .max(line.pause().unwrap_or(now));
            ChannelStatus {
                channel: line.name.clone(),
                enabled: line.worker.is_some(),
                waiting: line.waiting as u64,
                oldest_secs: oldest.map(|born| now.saturating_sub(born).as_secs()),
                next_try_secs: (is_idle && line.worker.is_some()).then(|| next.saturating_sub(now).as_secs()),
                last_error: line.last_error.clone(),
                refused: line.refused,
                delivered: line.delivered,
                parked: line.parked,
                lost: line.lost.iter().sum(),
            }
        });
        OutboxStatus {
            channels: channels.filter(|line| line.enabled || line.waiting > 0).collect(),
            problem: state.disk.problem.clone(),
            records: state.queue.entries.len() as u64,
            bytes: state.disk.bytes,
        }
    }

    /// What the outbox tells about itself.
    pub fn collect(&self, out: &mut Batch) {
        #[expect(clippy::cast_precision_loss, reason = "counts of alerts and bytes, far below 2^52")]
        let number = |count: u64| count as f64;
        let now = self.shared.now();
        let mut state = self.shared.lock();
        for index in 0..state.queue.lines.len() {
            let oldest = state.queue.oldest(index).map_or(Duration::ZERO, |born| now.saturating_sub(born));
            let line = &state.queue.lines[index];
            let name = [line.name.as_str()];
            out.counter(&DELIVERED, name, number(line.delivered));
            out.counter(&FAILED, name, number(line.parked));
            out.counter(&RETRIES, name, number(line.retries));
            out.gauge(&WAITING, name, number(line.waiting as u64));
            out.gauge(&OLDEST, name, oldest.as_secs_f64());
            for loss in Loss::ALL {
                out.counter(&LOST, [&line.name, loss.name()], number(line.lost[loss as usize]));
            }
        }
        out.gauge(&RECORDS, [], number(state.queue.entries.len() as u64));
        out.counter(&REPEATED, [], number(state.repeated));
        if state.disk.wanted {
            out.gauge(&BYTES, [], number(state.disk.bytes));
            out.counter(&NOT_DURABLE, [], number(state.disk.not_durable));
            out.counter(&DAMAGED, [], number(state.disk.damaged));
            out.gauge(&RECOVERED, [], number(state.disk.recovered));
            out.gauge(&RECOVERY, [], state.disk.recovery.as_secs_f64());
        }
    }

    /// Delivers what is waiting, for no longer than `deadline`, and ends. Gives the number of alerts that were left: they wait on disk
    /// for the next start, where there is a disk.
    pub async fn drain(mut self, deadline: Duration) -> usize {
        let until = self.shared.now() + deadline;
        if self.has_threads {
            let patience = deadline.min(DISK_PATIENCE);
            // What is not on disk by then goes out all the same.
            let _ = tokio::time::timeout(patience, self.wait_durable(self.sent())).await;
        }
        {
            let mut state = self.shared.lock();
            state.make_ready();
            state.closing = Some(until);
        }
        for mut worker in std::mem::take(&mut self.workers).into_iter().flatten() {
            if tokio::time::timeout_at(self.shared.instant(until), &mut worker).await.is_err() {
                worker.abort();
            }
        }
        self.end_threads().await;
        let state = self.shared.lock();
        let mut left = 0;
        for (index, line) in state.queue.lines.iter().enumerate().filter(|(_, line)| line.waiting > 0) {
            let (channel, alerts) = (line.name.as_str(), line.waiting);
            let kept = state.queue.on_disk(index);
            left += alerts;
            if kept > 0 {
                tracing::info!(channel, alerts = kept, "not delivered before the end; they wait for the next start");
            }
            if kept < alerts {
                tracing::error!(channel, alerts = alerts - kept, "not delivered before the end, and lost");
            }
        }
        left
    }

    async fn end_threads(&mut self) {
        self.shared.lock().ending = true;
        self.shared.work.notify_one();
        self.shared.reading.notify_one();
        if std::mem::take(&mut self.has_threads)
            && tokio::time::timeout(DISK_PATIENCE, self.shared.ended.notified()).await.is_err()
        {
            tracing::warn!(
                "the disk of the outbox does not answer: alerts that were delivered may come again under the same id"
            );
        }
    }
}

impl Drop for Outbox {
    fn drop(&mut self) {
        self.house.abort();
        self.workers.iter().flatten().for_each(JoinHandle::abort);
        self.shared.lock().ending = true;
        self.shared.work.notify_one();
        self.shared.reading.notify_one();
    }
}

/// Lets notices go out that wait for the disk for too long, and parks what has waited for a channel for too long.
async fn keep_house(shared: Arc<Shared>) {
    const ROUND: Duration = Duration::from_secs(30);
    let mut round = shared.now() + ROUND;
    loop {
        let now = shared.now();
        if now >= round {
            round = now + ROUND;
            shared.lock().expire(now, (shared.wall)());
            shared.work.notify_one();
        }
        let next = shared.lock().lose_patience(now);
        let until = shared.instant(next.unwrap_or(round).min(round));
        tokio::select! {
            () = tokio::time::sleep_until(until) => {}
            () = shared.unready.notified(), if next.is_none() => {}
        }
    }
}
