//! Knows every layer: builds what the settings ask for, wires it, reloads, shuts down. One round of collectors is one
//! look of the analyzers; a kernel event goes straight to the alert book.

mod feed;
mod parts;
mod signals;
mod watch;

use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use crate::collect;
use crate::host::{Host, Systemd};
use crate::kernel;
use crate::model::{Alert, Batch, Desc, Event, Metric, Readings, Tick, Unit};
use crate::schedule::{self, Finished, Scheduler};
use crate::settings::{Declared, Settings};
use crate::store::view::View;
use feed::Shared;
use parts::Parts;
use signals::{Order, Signals};
use watch::Word;

static EVENTS: Metric<1> = Metric::counter(
    "kernel_events_total",
    Unit::Count,
    "Kernel events, each counted once however many sources saw it.",
    &["kind"],
);
static EVENTS_DROPPED: Metric<0> = Metric::counter(
    "kernel_events_dropped_total",
    Unit::Count,
    "Kernel events dropped inside the agent because the main loop was too late to take them.",
    &[],
);

/// The metrics of this component.
pub static METRICS: &[&Desc] = &[EVENTS.desc(), EVENTS_DROPPED.desc()];

/// Time that deliveries have after the order to stop. systemd and people wait for at most 5 s.
const DRAIN: Duration = Duration::from_secs(4);

/// Sees what passes through the pipeline: the live view, and nothing in the daemon.
pub trait Observer {
    /// Where the probes and collectors stand, once after start and after a reload.
    fn standings(&mut self, _probes: &[kernel::Standing]) {}
    /// A kernel event.
    fn event(&mut self, _event: &Event) {}
    /// An alert on its way to the channels.
    fn alert(&mut self, _alert: &Alert) {}
    /// A round of collectors is over.
    fn round(&mut self, _readings: &dyn Readings, _tick: Tick) {}
}

/// Sees nothing.
pub struct Nobody;

impl Observer for Nobody {}

/// How to read the configuration again.
pub struct Reload {
    /// The file; without one there is nothing to read again.
    pub file: Option<PathBuf>,
    /// What it may say.
    pub declared: Declared,
}

/// The running agent.
pub struct Pipeline {
    host: Host,
    settings: Settings,
    reload: Reload,
    shared: Rc<Shared>,
    parts: Parts,
    signals: Signals,
    systemd: Systemd,
    observer: Box<dyn Observer>,
    own: Batch,
    events: [(&'static str, u64); 2],
    rounds: u64,
    probes: Vec<kernel::Standing>,
}

impl Pipeline {
    /// Builds everything. Runs inside a tokio `LocalSet`.
    ///
    /// # Errors
    /// When something that the configuration asks for cannot be had: a forced rung, an address in use, …
    pub fn start(
        host: Host,
        settings: Settings,
        reload: Reload,
        mut observer: Box<dyn Observer>,
    ) -> anyhow::Result<Self> {
        let signals = Signals::install()?;
        let systemd = Systemd::from_env();
        let shared = Rc::new(Shared::new(&host, &settings.values));
        let (parts, probes) = Parts::start(&host, &settings, &shared)?;
        observer.standings(&probes);
        Ok(Self {
            host,
            settings,
            reload,
            shared,
            parts,
            signals,
            systemd,
            observer,
            own: Batch::default(),
            events: [("oom_kill", 0), ("hung_task", 0)],
            rounds: 0,
            probes,
        })
    }

    /// Runs until the order to stop, then drains.
    pub async fn run(mut self) {
        let mut watchdog = Watchdog::new(&self.systemd);
        loop {
            let now = self.host.clock.now();
            let due = self.parts.correlator.next_deadline().map(|at| at.saturating_sub(now.monotonic));
            tokio::select! {
                // Kernel events first: a person waits for them.
                biased;
                word = self.parts.watch.inbox.recv() => match word {
                    Some(Word::Event(event)) => self.parts.correlator.add(*event, &self.host.clock.now()),
                    Some(Word::Readings(readings)) => self.take_kernel_readings(*readings),
                    None => {
                        tracing::error!("the thread that watches the kernel has ended; that is a bug: stopping");
                        break;
                    }
                },
                () = sleep_for(due) => {}
                order = self.signals.next() => match order {
                    Order::Reload => self.reload().await,
                    Order::Stop => break,
                },
                finished = self.parts.scheduler.next() => self.take_reading(finished),
                value = self.parts.inventory.next() => *self.shared.inventory.borrow_mut() = Some(Rc::new(value)),
                () = watchdog.due() => watchdog.pet(&self.systemd, self.rounds),
            }
            self.release_events();
        }
        self.systemd.stopping();
        self.parts.stop(DRAIN).await;
    }

    fn take_reading(&mut self, finished: Finished) {
        let Finished { job, tick, batch, round_over } = finished;
        self.shared.store.borrow_mut().ingest(job, &batch, tick);
        self.parts.scheduler.recycle(job, batch);
        if round_over {
            self.end_round(tick);
        }
    }

    fn end_round(&mut self, tick: Tick) {
        self.ingest_own(tick);
        let store = self.shared.store.borrow();
        let view = View::new(&store);
        for analyzer in &mut self.parts.analyzers {
            analyzer.judge(&view, &mut |finding| self.parts.book.finding(finding, &tick));
        }
        self.observer.round(&view, tick);
        drop(store);
        for alert in self.parts.book.tick(&tick) {
            self.tell(&alert);
        }
        self.shared.health.set(self.parts.health(&self.probes));
        if self.rounds == 0 {
            self.systemd.ready(&self.status());
        }
        self.rounds += 1;
    }

    /// The agent's readings about itself are a component like the others.
    fn ingest_own(&mut self, tick: Tick) {
        self.own.clear();
        self.parts.collect(&mut self.own);
        self.shared.store.borrow().collect(&mut self.own);
        #[expect(clippy::cast_precision_loss, reason = "exact up to 2^53")]
        {
            for (kind, count) in self.events {
                self.own.counter(&EVENTS, [kind], count as f64);
            }
            self.own.counter(&EVENTS_DROPPED, [], self.parts.watch.lost() as f64);
        }
        self.shared.store.borrow_mut().ingest(parts::OWN, &self.own, tick);
    }

    fn take_kernel_readings(&mut self, readings: watch::Readings) {
        self.shared.store.borrow_mut().ingest(parts::KERNEL, &readings.batch, readings.tick);
        self.probes = readings.standings;
    }

    fn release_events(&mut self) {
        let now = self.host.clock.now();
        for event in self.parts.correlator.ready(&now) {
            if let Some((_, count)) = self.events.iter_mut().find(|(kind, _)| *kind == event.kind()) {
                *count += 1;
            }
            tracing::debug!("kernel event {}: {:?}", event.kind(), event.comm);
            self.observer.event(&event);
            if let Some(alert) = self.parts.book.event(&event, &now) {
                self.tell(&alert);
            }
        }
    }

    fn tell(&mut self, alert: &Alert) {
        self.observer.alert(alert);
        self.parts.outbox.send(alert);
        for exporter in &self.parts.exporters {
            exporter.alert(alert);
        }
    }

    /// Reads the configuration again. What cannot be used is said, and everything goes on as it was.
    async fn reload(&mut self) {
        let Some(file) = &self.reload.file else {
            tracing::info!("SIGHUP: there is no configuration file to read again");
            return;
        };
        self.systemd.reloading(self.host.clock.now());
        match crate::settings::load(Some(file), &self.reload.declared, &crate::settings::environment) {
            Ok(settings) => match self.parts.reload(&self.host, &settings, &self.settings, &self.shared).await {
                Ok(probes) => {
                    for notice in settings.notices() {
                        tracing::warn!("{notice}");
                    }
                    if let Some(probes) = probes {
                        self.observer.standings(&probes);
                        self.probes = probes;
                    }
                    self.settings = settings;
                    tracing::info!("{}: read again", file.display());
                }
                Err(error) => tracing::error!("{}: kept the last good configuration: {error:#}", file.display()),
            },
            Err(problems) => {
                tracing::error!("{}: kept the last good configuration: {problems}", file.display());
            }
        }
        self.systemd.ready(&self.status());
    }

    fn status(&self) -> String {
        let standing = self.probes.iter().filter(|probe| probe.rung < kernel::Rung::Kmsg).count();
        let failed = self.parts.scheduler.standings().filter(|one| one.state == schedule::State::Failed).count();
        format!(
            "{standing} of {} probes in the kernel, {} collectors, {failed} failed",
            self.probes.len(),
            collect::ALL.len()
        )
    }
}

/// Tells systemd that the agent lives, as long as collectors' rounds come to an end.
struct Watchdog {
    interval: Option<tokio::time::Interval>,
    rounds: u64,
    silent: u32,
}

/// Intervals without a finished round before the agent counts as stuck: longer than the longest collector's cadence
/// is not needed, as some collector runs every ten seconds by default.
const SILENT_MAX: u32 = 4;

impl Watchdog {
    fn new(systemd: &Systemd) -> Self {
        Self { interval: systemd.watchdog_interval().map(tokio::time::interval), rounds: 0, silent: 0 }
    }

    async fn due(&mut self) {
        match &mut self.interval {
            Some(interval) => _ = interval.tick().await,
            None => std::future::pending().await,
        }
    }

    fn pet(&mut self, systemd: &Systemd, rounds: u64) {
        self.silent = if rounds > self.rounds { 0 } else { self.silent + 1 };
        self.rounds = rounds;
        if self.silent <= SILENT_MAX {
            systemd.alive();
        }
    }
}

async fn sleep_for(time: Option<Duration>) {
    match time {
        Some(time) => tokio::time::sleep(time).await,
        None => std::future::pending().await,
    }
}
