//! The thread on which collectors read. It takes the tasks that lie on the desk one after the other and calls when none
//! is left: a round costs one wake-up each way, however many collectors it has. A reading that hangs holds up nothing
//! but itself: the scheduler puts a new thread at the desk, and the one that hangs ends when the kernel lets it go.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::Notify;

use crate::collect::{CollectError, Collector, Outcome};
use crate::host::Host;
use crate::model::Batch;

/// Work for the thread.
pub(super) struct Task {
    pub(super) job: usize,
    pub(super) collector: Box<dyn Collector>,
    pub(super) batch: Batch,
}

/// Why a reading came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The collector's own word.
    #[error(transparent)]
    Collect(#[from] CollectError),
    /// A bug: it is reported, and the collector is made anew.
    #[error("panicked: {0}")]
    Panic(String),
    /// It did not come back in time. Its thread is left to it and the others go on.
    #[error("did not answer within {} s; it is left alone until it does", .0.as_secs())]
    Overdue(Duration),
}

/// What became of a task.
pub(super) struct Done {
    pub(super) job: usize,
    /// `None` after a panic: its state cannot be trusted.
    pub(super) collector: Option<Box<dyn Collector>>,
    pub(super) batch: Batch,
    pub(super) result: Result<Outcome, Failure>,
    pub(super) took: Duration,
}

/// Where the scheduler and its threads lay down what is to be read and what was. Dropping it ends the thread after its
/// current task.
pub(super) struct Desk {
    shared: Arc<Shared>,
}

struct Shared {
    host: Host,
    state: Mutex<State>,
    /// There is something to read, or to leave for.
    work: Condvar,
    /// Everything was read, or a thread that had been given up is back.
    call: Notify,
}

#[derive(Default)]
struct State {
    tasks: VecDeque<Task>,
    reading: Option<Reading>,
    done: Vec<Done>,
    /// Number of the one thread that may take tasks; one with an older number leaves.
    turn: u64,
}

/// What the thread is at.
#[derive(Clone, Copy)]
pub(super) struct Reading {
    pub(super) job: usize,
    /// CLOCK_MONOTONIC.
    pub(super) since: Duration,
}

impl Desk {
    /// An empty desk with a thread at it.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub(super) fn new(host: &Host) -> std::io::Result<Self> {
        let (state, work, call) = (Mutex::default(), Condvar::new(), Notify::new());
        let desk = Self { shared: Arc::new(Shared { host: host.clone(), state, work, call }) };
        desk.seat(0)?;
        Ok(desk)
    }

    /// Lays down tasks, to be read in this order after those that wait.
    pub(super) fn lay(&self, tasks: impl Iterator<Item = Task>) {
        self.shared.lock().tasks.extend(tasks);
        self.shared.work.notify_one();
    }

    /// Takes what was read, in the order in which it was; gives what is being read.
    pub(super) fn take(&self, done: &mut Vec<Done>) -> Option<Reading> {
        let mut state = self.shared.lock();
        done.append(&mut state.done);
        state.reading
    }

    /// Waits until everything was read, or one that had been given up is back. May be dropped and called again.
    pub(super) async fn called(&self) {
        self.shared.call.notified().await;
    }

    /// Leaves the thread to what it reads and puts a new one at the desk. False when it is no longer at `job`.
    ///
    /// # Errors
    /// When the system gives no thread: then the tasks wait for the one that there is.
    pub(super) fn replace(&self, job: usize) -> std::io::Result<bool> {
        let mut state = self.shared.lock();
        if state.reading.take_if(|reading| reading.job == job).is_none() {
            return Ok(false);
        }
        let turn = state.turn + 1;
        self.seat(turn)?;
        state.turn = turn;
        Ok(true)
    }

    fn seat(&self, turn: u64) -> std::io::Result<()> {
        let shared = Arc::clone(&self.shared);
        std::thread::Builder::new()
            .name("collect".to_owned())
            // Collectors keep their buffers on the heap; the default of 2 MiB would only count against the limits.
            .stack_size(256 << 10)
            .spawn(move || shared.work(turn))?;
        Ok(())
    }
}

impl Drop for Desk {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.turn = u64::MAX;
        state.tasks.clear();
        drop(state);
        self.shared.work.notify_all();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder of this lock panics")
    }

    /// A thread's life: reads while `turn` is the current one.
    fn work(&self, turn: u64) {
        let mut state = self.lock();
        while state.turn == turn {
            let Some(task) = state.tasks.pop_front() else {
                state = self.work.wait(state).expect("no holder of this lock panics");
                continue;
            };
            let since = self.host.clock.now().monotonic;
            state.reading = Some(Reading { job: task.job, since });
            drop(state);
            let done = read(task, &self.host);
            state = self.lock();
            state.done.push(done);
            if state.turn == turn {
                state.reading = None;
            }
            if state.tasks.is_empty() || state.turn != turn {
                self.call.notify_one();
            }
        }
    }
}

fn read(task: Task, host: &Host) -> Done {
    let Task { job, mut collector, mut batch } = task;
    batch.clear();
    let start = host.clock.now();
    let result = catch_unwind(AssertUnwindSafe(|| collector.collect(host, &mut batch)));
    let took = host.clock.now().since(&start);
    let (collector, result) = match result {
        Ok(result) => (Some(collector), result.map_err(Failure::from)),
        Err(panic) => (None, Err(Failure::Panic(panic_text(panic.as_ref())))),
    };
    if result.is_err() {
        batch.clear();
    }
    Done { job, collector, batch, result, took }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("without a message").to_owned()
}
