//! The thread on which collectors read. It takes one task at a time, so that a reading that hangs holds up nothing but
//! itself: the scheduler gives the next task to a new worker, and this one ends when the kernel lets it go.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use tokio::sync::mpsc::UnboundedSender;

use crate::collect::{CollectError, Collector, Outcome};
use crate::host::Host;
use crate::model::Batch;

/// Work for the worker.
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
    pub(super) worker: u64,
    pub(super) job: usize,
    /// `None` after a panic: its state cannot be trusted.
    pub(super) collector: Option<Box<dyn Collector>>,
    pub(super) batch: Batch,
    pub(super) result: Result<Outcome, Failure>,
    pub(super) took: Duration,
}

/// A handle on a worker thread. Dropping it ends the thread after its current task.
pub(super) struct Worker {
    pub(super) id: u64,
    tasks: Sender<Task>,
}

impl Worker {
    /// Starts a thread.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub(super) fn start(id: u64, host: Host, done: UnboundedSender<Done>) -> std::io::Result<Self> {
        let (tasks, inbox) = channel();
        std::thread::Builder::new()
            .name("collect".to_owned())
            // Collectors keep their buffers on the heap; the default of 2 MiB would only count against the limits.
            .stack_size(256 << 10)
            .spawn(move || work(id, &host, &inbox, &done))?;
        Ok(Self { id, tasks })
    }

    /// Hands over a task; gives it back when the thread is gone.
    pub(super) fn hand(&self, task: Task) -> Result<(), Task> {
        self.tasks.send(task).map_err(|error| error.0)
    }
}

fn work(id: u64, host: &Host, inbox: &Receiver<Task>, done: &UnboundedSender<Done>) {
    for Task { job, mut collector, mut batch } in inbox {
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
        if done.send(Done { worker: id, job, collector, batch, result, took }).is_err() {
            return;
        }
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("without a message").to_owned()
}
