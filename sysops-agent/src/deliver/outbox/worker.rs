//! The task of one channel: takes what is next for it, and says what came of it. What an answer of the far end means is left
//! to the channel, who is next to `queue`.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;

use super::line::{Loss, short_backoff};
use super::queue::Pick;
use super::shared::Shared;
use crate::deliver::channel::{Channel, SendError};
use crate::model::{Fate, Notice, time};

/// For how long the worker of the configuration before may finish what it has begun.
const HAND_OVER: Duration = Duration::from_secs(10);

/// Delivers until the line has another worker, or the end has come.
pub(super) async fn work(
    shared: Arc<Shared>,
    line: usize,
    worker: u64,
    mut channel: Box<dyn Channel>,
    before: Option<JoinHandle<()>>,
) {
    if let Some(before) = before {
        retire(Arc::clone(&shared), line, before).await;
    }
    let wake = Arc::clone(&shared.lock().queue.lines[line].wake);
    loop {
        match next(&shared, line, worker) {
            Some(Pick::Send { seq, with, json }) => {
                Try { shared: &shared, line, worker, seq, with }.deliver(&mut *channel, &json).await;
            }
            Some(Pick::Wait(until)) => {
                let sleep = async {
                    match until {
                        Some(until) => tokio::time::sleep_until(shared.instant(until)).await,
                        None => std::future::pending().await,
                    }
                };
                tokio::select! {
                    () = wake.notified() => {}
                    () = sleep => {}
                }
            }
            None => return,
        }
    }
}

/// Lets the worker of the configuration before finish what it has begun, within reason. What it has not finished then comes again
/// under the same id.
pub(super) async fn retire(shared: Arc<Shared>, line: usize, mut worker: JoinHandle<()>) {
    if tokio::time::timeout(HAND_OVER, &mut worker).await.is_err() {
        worker.abort();
        let _ = worker.await;
    }
    shared.lock().queue.lines[line].on_its_way.clear();
}

/// What is to be done, or `None` at the end.
fn next(shared: &Shared, line: usize, worker: u64) -> Option<Pick> {
    let now = shared.now();
    let mut state = shared.lock();
    if state.queue.lines[line].worker != Some(worker) {
        return None;
    }
    let reads = state.queue.reads.len();
    let pick = state.queue.pick(line, now);
    if state.queue.reads.len() > reads {
        shared.reading.notify_one();
    }
    match (&pick, state.closing) {
        (Pick::Wait(None), Some(_)) => return None,
        (Pick::Wait(Some(until)), Some(deadline)) if *until > deadline => return None,
        (Pick::Send { seq, with, .. }, _) => {
            state.queue.lines[line].on_its_way = with.iter().copied().chain([*seq]).collect();
        }
        _ => {}
    }
    Some(pick)
}

/// One notice on its way.
struct Try<'a> {
    shared: &'a Shared,
    line: usize,
    worker: u64,
    seq: u64,
    /// Those that it stands for.
    with: Vec<u64>,
}

impl Try<'_> {
    async fn deliver(&self, channel: &mut dyn Channel, json: &[u8]) {
        let Some(notice) = self.read(json) else {
            let mut state = self.shared.lock();
            state.queue.lines[self.line].on_its_way.clear();
            if state.queue.finish(self.line, self.seq) {
                state.lost(self.line, self.seq, Loss::Unreadable);
            }
            return;
        };
        for attempt in 0.. {
            match channel.send(&notice).await {
                Err(SendError::Retry { reason, after: None }) if attempt < channel.retries() && self.may_go_on() => {
                    let metric = notice.head().metric.as_str();
                    tracing::warn!(channel = self.name(), metric, reason, "alert not delivered, trying again");
                    tokio::time::sleep(short_backoff()).await;
                    self.shared.lock().queue.lines[self.line].retries += 1;
                }
                sent => return self.end(&notice, sent.map(|receipt| receipt.answer)),
            }
        }
    }

    fn read(&self, json: &[u8]) -> Option<Notice> {
        let mut notice: Notice =
            serde_json::from_slice(json).ok().filter(|notice: &Notice| !notice.alerts.is_empty())?;
        if let (false, Some(alert)) = (self.with.is_empty(), notice.alerts.first_mut()) {
            let lasted = alert.timestamp.duration_since(alert.starts_at).unwrap_or_default().as_secs();
            let since = time::rfc3339_secs(alert.starts_at);
            // Writing into a String does not fail.
            let _ = write!(alert.message, " (It fired at {since} and lasted {lasted} s; this could not be told then.)");
        }
        Some(notice)
    }

    fn end(&self, notice: &Notice, sent: Result<String, SendError>) {
        let Self { shared, line, seq, .. } = *self;
        let (now, channel, metric) = (shared.now(), self.name(), notice.head().metric.as_str());
        let mut state = shared.lock();
        let seqs = std::mem::take(&mut state.queue.lines[line].on_its_way);
        let state = &mut *state;
        match sent {
            Ok(answer) => state.delivered(line, &seqs, &answer),
            Err(SendError::Retry { reason, after }) => {
                let one = &mut state.queue.lines[line];
                let until = one.failed(&seqs, after, now);
                one.retries += 1;
                one.last_error = Some(reason.clone());
                let in_secs = until.saturating_sub(now).as_secs();
                tracing::warn!(channel, metric, reason, in_secs, "alert not delivered, put off");
                state.tell(line, seq, Fate::Later { reason, in_secs });
            }
            Err(SendError::Refused { reason }) => {
                let one = &mut state.queue.lines[line];
                one.last_error = Some(reason.clone());
                if one.was_refused(now) {
                    tracing::error!(
                        channel,
                        reason,
                        "the far end takes nothing from this agent; alerts wait, and it is asked again every 5 min and \
                         after a reload"
                    );
                }
                state.tell(line, seq, Fate::Refused { reason });
            }
            Err(SendError::Permanent { reason }) => {
                tracing::error!(channel, metric, reason, "alert not delivered, given up");
                state.queue.lines[line].last_error = Some(reason.clone());
                state.park(line, seq, &reason, (shared.wall)());
            }
        }
        shared.publish(state);
        shared.work.notify_one();
    }

    fn name(&self) -> String {
        self.shared.lock().queue.lines[self.line].name.clone()
    }

    fn may_go_on(&self) -> bool {
        self.shared.lock().queue.lines[self.line].worker == Some(self.worker)
    }
}
