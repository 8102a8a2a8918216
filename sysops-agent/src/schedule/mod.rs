//! Runs collectors on time: one thread that reads, one tick for all that are due together, deadlines, panic isolation,
//! and metrics about each. What is read goes to the caller of [`Scheduler::next`].

mod plan;
mod worker;

use std::collections::VecDeque;
use std::time::Duration;

use crate::collect::{Collector, Entry, Outcome};
use crate::host::Host;
pub use crate::model::report::State;
use crate::model::{Batch, Desc, Metric, Tick, Unit, with_causes};
use crate::spec::Values;
use plan::Plan;
pub use worker::Failure;
use worker::{Desk, Done, Task};

static DURATION: Metric<1> = Metric::gauge(
    "collector_duration_seconds",
    Unit::Seconds,
    "Time that the collector's last reading took.",
    &["collector"],
);
static SUCCESS: Metric<1> = Metric::gauge(
    "collector_success",
    Unit::Bool,
    "1 when the last reading gave values; 0 when it failed. Missing where the host has no such thing.",
    &["collector"],
);
static FAILURES: Metric<1> = Metric::counter(
    "collector_failures_total",
    Unit::Count,
    "Readings that failed, panicked or did not come back in time.",
    &["collector"],
);
static MISSED: Metric<1> = Metric::counter(
    "collector_missed_turns_total",
    Unit::Count,
    "Turns that were skipped because the collector, or the whole agent, was late.",
    &["collector"],
);
static LAST: Metric<1> = Metric::gauge(
    "collector_last_success_timestamp_seconds",
    Unit::Seconds,
    "When the collector last gave values, in seconds since 1970.",
    &["collector"],
);

/// The metrics of this component.
pub static METRICS: &[&Desc] = &[DURATION.desc(), SUCCESS.desc(), FAILURES.desc(), MISSED.desc(), LAST.desc()];

/// How a collector stands.
#[derive(Clone, Debug, PartialEq)]
pub struct Standing {
    /// The collector.
    pub name: &'static str,
    /// How it stands.
    pub state: State,
    /// Why it is absent or failed; empty when it is ok.
    pub reason: String,
    /// What an operator may do; empty when there is nothing to do.
    pub remedy: String,
}

/// One reading that has come to an end.
pub struct Finished {
    /// Index of the collector in the list given to [`Scheduler::new`].
    pub job: usize,
    /// When its round began: the same for all collectors of a round.
    pub tick: Tick,
    /// What it read; empty when it failed. Give it back by [`Scheduler::recycle`].
    pub batch: Batch,
    /// True when no other collector of this round is still to come.
    pub round_over: bool,
}

/// A round that is being read is looked at this often: what was read already does not wait for a collector that takes
/// long.
const LOOK: Duration = Duration::from_millis(100);

struct Job {
    entry: &'static Entry,
    // Out while it is at work, and for as long as it hangs.
    collector: Option<Box<dyn Collector>>,
    batch: Option<Batch>,
    took: Option<Duration>,
    last_success: Option<f64>,
    failures: u64,
    missed: u64,
    /// It did not answer in time and has not yet come back.
    given_up: bool,
    standing: Standing,
}

/// Collectors with their cadence.
pub struct Scheduler {
    host: Host,
    values: Values,
    jobs: Vec<Job>,
    plan: Plan,
    desk: Desk,
    /// What lies on the desk or is being read, in that order.
    queue: VecDeque<(usize, Tick)>,
    done: Vec<Done>,
    ready: VecDeque<Finished>,
}

impl Scheduler {
    /// Makes the collectors of `entries` and starts the thread. `interval` overrules every collector's own cadence.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn new(
        host: &Host,
        values: &Values,
        entries: &[&'static Entry],
        interval: Option<Duration>,
    ) -> std::io::Result<Self> {
        let desk = Desk::new(host)?;
        let jobs: Vec<Job> = entries.iter().map(|entry| Job::new(entry, host, values)).collect();
        let intervals = entries.iter().map(|entry| interval.unwrap_or_else(|| values.get(entry.interval)));
        let plan = Plan::new(host.clock.now().monotonic, intervals);
        Ok(Self {
            host: host.clone(),
            values: values.clone(),
            jobs,
            plan,
            desk,
            queue: VecDeque::new(),
            done: Vec::new(),
            ready: VecDeque::new(),
        })
    }

    /// Waits for the next reading to end. May be dropped and called again at any time.
    pub async fn next(&mut self) -> Finished {
        loop {
            if let Some(finished) = self.take_ready() {
                return finished;
            }
            let now = self.host.clock.now();
            let look = self.look(now);
            if !self.ready.is_empty() {
                continue;
            }
            self.lay_due(now);
            let look = look.or_else(|| (!self.queue.is_empty()).then(|| now.monotonic + LOOK));
            let wake = look.into_iter().chain(self.plan.next()).min();
            let wait = wake.map_or(Duration::from_secs(3600), |wake| wake.saturating_sub(now.monotonic));
            tokio::select! {
                () = self.desk.called() => {}
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// A further reading that came to its end along with the one before: readings of a round mostly do.
    pub fn take_ready(&mut self) -> Option<Finished> {
        self.ready.pop_front()
    }

    /// Gives a batch back, so that its memory is used again.
    pub fn recycle(&mut self, job: usize, batch: Batch) {
        self.jobs[job].batch = Some(batch);
    }

    /// How each collector stands.
    pub fn standings(&self) -> impl Iterator<Item = &Standing> {
        self.jobs.iter().map(|job| &job.standing)
    }

    /// Adds readings about the collectors themselves.
    pub fn collect(&self, out: &mut Batch) {
        for job in &self.jobs {
            let name = [job.standing.name];
            if let Some(took) = job.took {
                out.gauge(&DURATION, name, took.as_secs_f64());
            }
            if job.took.is_some() && job.standing.state != State::Absent {
                out.gauge(&SUCCESS, name, if job.standing.state == State::Ok { 1.0 } else { 0.0 });
            }
            #[expect(clippy::cast_precision_loss, reason = "exact up to 2^53")]
            {
                out.counter(&FAILURES, name, job.failures as f64);
                out.counter(&MISSED, name, job.missed as f64);
            }
            if let Some(last) = job.last_success {
                out.gauge(&LAST, name, last);
            }
        }
    }

    /// Lays what is due on the desk.
    fn lay_due(&mut self, now: Tick) {
        let Self { jobs, queue, plan, desk, .. } = self;
        let before = queue.len();
        plan.take_due(now.monotonic, |index, missed| {
            let job = &mut jobs[index];
            job.missed += missed;
            if job.collector.is_some() { queue.push_back((index, now)) } else { job.missed += 1 }
        });
        if queue.len() > before {
            desk.lay(queue.range(before..).filter_map(|&(index, _)| jobs[index].task(index)));
        }
    }

    /// Takes what was read and gives up what is overdue. When to look again, while something is being read.
    fn look(&mut self, now: Tick) -> Option<Duration> {
        let mut done = std::mem::take(&mut self.done);
        let reading = self.desk.take(&mut done);
        for done in done.drain(..) {
            self.take_back(done);
        }
        self.done = done;
        let reading = reading?;
        let deadline = self.jobs[reading.job].entry.deadline;
        let overdue = reading.since + deadline;
        if overdue > now.monotonic {
            return Some(overdue.min(now.monotonic + LOOK));
        }
        match self.desk.replace(reading.job) {
            Ok(false) => return Some(now.monotonic),
            Ok(true) => {}
            Err(error) => tracing::error!("no new thread for collectors: {error}; they wait for the one that hangs"),
        }
        self.jobs[reading.job].given_up = true;
        self.finish(reading.job, &Err(Failure::Overdue(deadline)), Batch::default());
        None
    }

    fn take_back(&mut self, done: Done) {
        let job = &mut self.jobs[done.job];
        job.collector = Some(done.collector.unwrap_or_else(|| (job.entry.new)(&self.host, &self.values)));
        if std::mem::take(&mut job.given_up) {
            // What it read is old, but it can be asked again from its next turn on.
            job.batch = Some(done.batch);
            return;
        }
        job.took = Some(done.took);
        self.finish(done.job, &done.result, done.batch);
    }

    fn finish(&mut self, job: usize, result: &Result<Outcome, Failure>, batch: Batch) {
        let Some(at) = self.queue.iter().position(|&(queued, _)| queued == job) else { return };
        let Some((_, tick)) = self.queue.remove(at) else { return };
        self.jobs[job].judge(result, tick);
        let round_over = !self.queue.iter().any(|&(_, queued)| queued == tick);
        self.ready.push_back(Finished { job, tick, batch, round_over });
    }
}

impl Job {
    fn new(entry: &'static Entry, host: &Host, values: &Values) -> Self {
        Self {
            entry,
            collector: Some((entry.new)(host, values)),
            batch: None,
            took: None,
            last_success: None,
            failures: 0,
            missed: 0,
            given_up: false,
            standing: Standing { name: entry.name, state: State::Ok, reason: String::new(), remedy: String::new() },
        }
    }

    /// Its next reading; `None` while it is out.
    fn task(&mut self, job: usize) -> Option<Task> {
        let collector = self.collector.take()?;
        Some(Task { job, collector, batch: self.batch.take().unwrap_or_default() })
    }

    fn judge(&mut self, result: &Result<Outcome, Failure>, tick: Tick) {
        let name = self.standing.name;
        match result {
            Ok(Outcome::Data) => {
                if self.standing.state == State::Failed {
                    tracing::info!("collector {name}: gives values again");
                }
                (self.standing.state, self.standing.reason, self.standing.remedy) =
                    (State::Ok, String::new(), String::new());
                let wall = tick.wall.duration_since(std::time::UNIX_EPOCH);
                self.last_success = wall.ok().map(|wall| wall.as_secs_f64());
            }
            Ok(Outcome::Absent { reason, remedy }) => {
                if self.standing.state != State::Absent {
                    tracing::info!("collector {name}: absent: {reason}");
                }
                self.standing.state = State::Absent;
                reason.as_ref().clone_into(&mut self.standing.reason);
                remedy.as_ref().clone_into(&mut self.standing.remedy);
            }
            Err(failure) => {
                self.failures += 1;
                let reason = with_causes(failure);
                // Said once for each reason; collector_failures_total counts the rest.
                if self.standing.state != State::Failed || self.standing.reason != reason {
                    tracing::warn!("collector {name}: {reason}");
                }
                self.standing.state = State::Failed;
                self.standing.reason = reason;
                self.standing.remedy = remedy(failure).to_owned();
            }
        }
    }
}

fn remedy(failure: &Failure) -> &'static str {
    use crate::collect::CollectError;
    match failure {
        Failure::Collect(CollectError::Read(error)) if error.is_denied() => {
            "run the agent with the capabilities of deploy/systemd/sysops-agent.service (CAP_DAC_READ_SEARCH)"
        }
        Failure::Collect(CollectError::Read(_)) => "",
        Failure::Collect(CollectError::Parse { .. }) => "report it with this message: the file has an unknown form",
        Failure::Panic(_) => "report it with this message: it is a bug",
        Failure::Overdue(_) => "look for a file system or device that does not answer",
    }
}

#[cfg(test)]
mod tests;
