//! Knows every layer: builds what the settings ask for, wires it, reloads, shuts down. One round of collectors is one
//! look of the analyzers; a kernel event goes straight to the alert book.

mod desk;
mod facts;
mod feed;
mod inventory;
mod ledger;
mod losses;
mod parts;
pub mod report;
mod signals;
mod sources;
mod watch;

use std::cell::RefCell;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;

use crate::collect;
use crate::control::{self, Control};
use crate::deliver::Outbox;
use crate::host::{Host, Systemd, os};
use crate::kernel::{self, Rung};
use crate::model::report::{self as reports, Report};
use crate::model::{Alert, Audience, Batch, Event, Notice, Readings, Tick};
use crate::schedule::{Finished, State};
use crate::settings::{Problems, Settings, keys};
use crate::store::{self, view::View};
use desk::Desk;
use feed::Shared;
use ledger::Ledger;
use losses::Losses;
use parts::{Parts, Wanted, kernel_component, own_component};
use signals::{Order, Signals};
pub use sources::Sources;

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

/// Is told what came of reading the configuration again: what holds now, or why the old one stays in force.
pub type Reloaded = Box<dyn Fn(Result<&Settings, &Problems>)>;

/// Reads a configuration file, as at the start of the process.
pub type Read = Box<dyn Fn(&Path) -> Result<Settings, Problems>>;

/// Someone waits for a report.
type Wish = oneshot::Sender<Box<Report>>;

/// The running agent.
pub struct Pipeline {
    host: Host,
    settings: Settings,
    read: Read,
    shared: Rc<Shared>,
    parts: Parts,
    signals: Signals,
    systemd: Systemd,
    observer: Box<dyn Observer>,
    reloaded: Reloaded,
    own: Batch,
    ledger: Ledger,
    losses: Losses,
    rounds: u64,
    /// What the outbox had made durable at the last look.
    durable: u64,
    /// The agent's name for this host.
    called: Rc<RefCell<String>>,
    /// Receipts for those who have changed the book by the control socket.
    receipts: (UnboundedSender<oneshot::Sender<()>>, UnboundedReceiver<oneshot::Sender<()>>),
    /// Wishes for a report by the control socket.
    asked: (UnboundedSender<Wish>, UnboundedReceiver<Wish>),
    control: Option<Control>,
}

impl Pipeline {
    /// Builds everything. Runs inside a tokio `LocalSet`. `read` reads the configuration again after SIGHUP, and
    /// `reloaded` is told what came of that.
    ///
    /// # Errors
    /// When something that the configuration asks for cannot be had: a forced rung, an address in use, …
    pub fn start(
        host: Host,
        mut settings: Settings,
        read: Read,
        mut observer: Box<dyn Observer>,
        reloaded: Reloaded,
    ) -> anyhow::Result<Self> {
        // First of all: without a handler a SIGHUP would end the process.
        let signals = Signals::install()?;
        let (mut ledger, kept) = Ledger::open(&host, keys::data_dir(&settings.values).as_deref());
        if ledger.is_anothers() {
            settings.keep_nothing();
        }
        let shared = Rc::new(Shared::new(&host, &settings.values));
        let mut parts = Parts::start(&host, Wanted { settings: &settings, hostname: &hostname(&settings) }, &shared)?;
        observer.standings(&parts.sources.probes);
        if let Some(kept) = kept {
            let (book, kills, outgoing) = ledger.take_over(kept);
            parts.sources.remember(&kills);
            let now = host.clock.now();
            let mut the_book = parts.book.borrow_mut();
            let over = the_book.restore(book, ledger.boot(), &now);
            let state = the_book.state(ledger.boot(), &now);
            drop(the_book);
            ledger.keep(state, outgoing.into_iter().chain(over).collect(), None, &now);
        }
        let mut pipeline = Self {
            ledger,
            losses: Losses::default(),
            host,
            settings,
            read,
            shared,
            parts,
            signals,
            systemd: Systemd::from_env(),
            observer,
            reloaded,
            own: Batch::default(),
            rounds: 0,
            durable: 0,
            called: Rc::new(RefCell::new(String::new())),
            receipts: unbounded_channel(),
            asked: unbounded_channel(),
            control: None,
        };
        pipeline.open_desk();
        Ok(pipeline)
    }

    /// Serves the control socket that the settings want, in the place of the one before.
    fn open_desk(&mut self) {
        *self.called.borrow_mut() = hostname(&self.settings);
        let values = &self.settings.values;
        let desk = Desk {
            host: self.host.clone(),
            hostname: Rc::clone(&self.called),
            book: Rc::clone(&self.parts.book),
            outbox: Rc::downgrade(&self.parts.outbox),
            keep: self.receipts.0.clone(),
            ask: self.asked.0.clone(),
        };
        // The old one goes first: of a path there is one socket.
        self.control = None;
        self.control = control::start(values, keys::data_dir(values).as_deref(), &self.host, Rc::new(desk));
    }

    /// Runs until the order to stop, then drains.
    pub async fn run(mut self) {
        let mut watchdog = Watchdog::new(&self.systemd);
        os::give_memory_back();
        loop {
            tokio::select! {
                // Kernel events first: a person waits for them.
                biased;
                events = self.parts.sources.next(&self.host) => {
                    let Some(events) = events.map(std::mem::take) else {
                        tracing::error!("the thread that watches the kernel has ended; that is a bug: stopping");
                        break;
                    };
                    self.take_events(&events);
                }
                order = self.signals.next() => match order {
                    Order::Reload => self.reload().await,
                    Order::Stop => break,
                },
                finished = self.parts.scheduler.next() => self.take_readings(finished),
                () = self.ledger.next(&self.host) => self.send_due(),
                () = wait_durable(&self.parts.outbox, self.durable + 1), if self.ledger.is_sending() => self.note_durable(),
                Some(receipt) = self.receipts.1.recv() => self.keep(Vec::new(), Some(receipt)),
                // Whoever waits for it no longer has gone away.
                Some(report) = self.asked.1.recv() => drop(report.send(Box::new(self.report()))),
                value = self.parts.inventory.next() => self.take_inventory(value),
                () = watchdog.due() => watchdog.pet(&self.systemd, self.rounds, parts::between_rounds(&self.settings.values)),
            }
        }
        self.systemd.stopping();
        self.control = None;
        let rest = self.parts.sources.end(&self.host);
        self.take_events(&rest);
        self.ledger.next_or(DRAIN / 4, &self.host).await;
        self.send_due();
        self.parts.stop(DRAIN / 2).await;
        self.ledger.end(DRAIN / 4).await;
    }

    /// Hands the outbox what the ledger has let go.
    fn send_due(&mut self) {
        for notice in self.ledger.due(&self.host.clock.now()) {
            let outbox = self.parts.outbox.borrow();
            outbox.send(&notice);
            self.ledger.sent(outbox.sent(), notice);
        }
        self.note_durable();
    }

    /// What the outbox has made durable needs no keeping here, and the kernel's log need not tell it again.
    fn note_durable(&mut self) {
        self.durable = self.parts.outbox.borrow().durable();
        self.ledger.durable(self.durable);
        if self.ledger.is_settled() {
            self.parts.sources.settle();
        }
    }

    fn take_inventory(&mut self, value: serde_json::Value) {
        self.parts.book.borrow_mut().set_host(facts::of(&value));
        *self.shared.inventory.borrow_mut() = Some(Rc::new(value));
    }

    fn take_readings(&mut self, first: Finished) {
        let mut finished = Some(first);
        while let Some(Finished { job, tick, batch, round_over }) = finished {
            self.shared.store.borrow_mut().ingest(job, &batch, tick);
            self.parts.scheduler.recycle(job, batch);
            if round_over {
                self.end_round(tick);
            }
            finished = self.parts.scheduler.take_ready();
        }
    }

    fn end_round(&mut self, tick: Tick) {
        self.ingest_own(tick);
        let store = self.shared.store.borrow();
        let view = View::new(&store);
        let mut book = self.parts.book.borrow_mut();
        for analyzer in &mut self.parts.analyzers {
            analyzer.judge(&view, &mut |finding| {
                self.losses.finding(finding, &tick);
                book.finding(finding, &tick);
            });
        }
        self.observer.round(&view, tick);
        let notices = book.tick(&view, &tick);
        drop((book, store));
        self.tell(notices);
        self.shared.health.set(self.parts.health());
        if self.rounds == 0 {
            tracing::info!("ready: {}", self.status());
            self.systemd.ready(&self.status());
        }
        self.rounds += 1;
    }

    /// The agent's readings about itself are a component like the others.
    fn ingest_own(&mut self, tick: Tick) {
        self.own.clear();
        self.parts.collect(&mut self.own);
        self.shared.store.borrow().collect(&mut self.own);
        self.shared.store.borrow_mut().ingest(own_component(), &self.own, tick);
    }

    fn take_events(&mut self, events: &[Event]) {
        if let Some(readings) = self.parts.sources.take_readings() {
            self.shared.store.borrow_mut().ingest(kernel_component(), &readings.batch, readings.tick);
        }
        let now = self.host.clock.now();
        for event in self.parts.sources.take_told() {
            self.parts.book.borrow_mut().remember(&event, &now);
        }
        let mut notices = Vec::new();
        for event in events {
            self.observer.event(event);
            let store = self.shared.store.borrow();
            notices.extend(self.parts.book.borrow_mut().event(event, &View::new(&store), &now));
            self.ledger.handled(event);
        }
        self.tell(notices);
    }

    /// Keeps what has changed in the book, and sends notices on their way.
    fn tell(&mut self, notices: Vec<Notice>) {
        // What people get together, machines have got before.
        for alert in notices.iter().filter(|one| one.audience != Audience::People).flat_map(|one| &one.alerts) {
            self.observer.alert(alert);
        }
        self.keep(notices, None);
    }

    fn keep(&mut self, notices: Vec<Notice>, receipt: Option<oneshot::Sender<()>>) {
        let mut book = self.parts.book.borrow_mut();
        if book.take_changed() || !notices.is_empty() || receipt.is_some() {
            let now = self.host.clock.now();
            let state = book.state(self.ledger.boot(), &now);
            self.ledger.keep(state, notices, receipt, &now);
        } else if self.ledger.is_settled() {
            self.parts.sources.settle();
        }
    }

    /// Reads the configuration again. What cannot be used is said, and everything goes on as it was.
    async fn reload(&mut self) {
        let Some(file) = self.settings.file.clone() else {
            tracing::info!("SIGHUP: there is no configuration file to read again");
            return;
        };
        self.systemd.reloading(self.host.clock.now());
        match (self.read)(&file) {
            Ok(settings) => self.take_settings(settings).await,
            Err(problems) => (self.reloaded)(Err(&problems)),
        }
        self.systemd.ready(&self.status());
    }

    async fn take_settings(&mut self, mut settings: Settings) {
        if self.ledger.is_anothers() {
            settings.keep_nothing();
        }
        let wanted = Wanted { settings: &settings, hostname: &hostname(&settings) };
        let before = Wanted { settings: &self.settings, hostname: &hostname(&self.settings) };
        let done = self.parts.reload(&self.host, wanted, before, &self.shared).await;
        match done {
            Ok(()) => {
                (self.reloaded)(Ok(&settings));
                self.say_what_waits_for_a_restart(&settings);
                self.observer.standings(&self.parts.sources.probes);
                let sockets = control::KEYS.iter().copied().chain([keys::DATA_DIR.spec()]);
                let same_socket = settings.values.agree_on(&self.settings.values, sockets);
                self.settings = settings;
                *self.called.borrow_mut() = hostname(&self.settings);
                if !same_socket {
                    self.open_desk();
                }
                os::give_memory_back();
                tracing::info!("configuration read again");
            }
            Err(error) => tracing::error!("kept the last good configuration: {error:#}"),
        }
    }

    /// What is made once in the life of the process.
    fn say_what_waits_for_a_restart(&self, settings: &Settings) {
        let fixed = store::KEYS.iter().copied().chain([keys::PID_FILE.spec()]);
        for key in fixed.filter(|key| !settings.values.agree_on(&self.settings.values, [*key].into_iter())) {
            tracing::warn!("{}: the new value holds from the agent's next start on", key.path);
        }
        if !settings.values.agree_on(&self.settings.values, [keys::DATA_DIR.spec()].into_iter()) {
            tracing::warn!("agent.data_dir: alerts and the outbox stay where they are until the agent's next start");
        }
    }

    /// What the agent sees and what it does not.
    fn report(&self) -> Report {
        let Parts { scheduler, sources, .. } = &self.parts;
        let about =
            report::report(&self.host, &self.settings.values, &sources.probes, &sources.log, scheduler.standings());
        Report { agent: Some(reports::Agent { pid: std::process::id() }), lost: self.losses.all(), ..about }
    }

    fn status(&self) -> String {
        let probes = &self.parts.sources.probes;
        let standing = probes.iter().filter(|probe| probe.rung < Rung::Kmsg).count();
        let failed = self.parts.scheduler.standings().filter(|one| one.state == State::Failed).count();
        let collectors = collect::ALL.len();
        format!("{standing} of {} probes in the kernel, {collectors} collectors, {failed} failed", probes.len())
    }
}

/// The agent's name for this host: configured, else the kernel's node name.
#[must_use]
pub fn hostname(settings: &Settings) -> String {
    settings.hostname_or(&os::uname().nodename().to_string_lossy())
}

fn wait_durable(outbox: &RefCell<Outbox>, sent: u64) -> impl Future<Output = ()> + use<> {
    outbox.borrow().wait_durable(sent)
}

/// Tells systemd that the agent lives, as long as collectors' rounds come to an end.
struct Watchdog {
    interval: Option<tokio::time::Interval>,
    rounds: u64,
    silent: u32,
}

/// Turns without a finished round after which the agent counts as stuck; a turn is half of the unit's WatchdogSec.
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

    /// `between` is how far apart rounds are to be.
    fn pet(&mut self, systemd: &Systemd, rounds: u64, between: Duration) {
        self.silent = if rounds > self.rounds { 0 } else { self.silent + 1 };
        self.rounds = rounds;
        let turn = self.interval.as_ref().map(tokio::time::Interval::period).unwrap_or_default();
        if !is_stuck(self.silent, turn, between) {
            systemd.alive();
        }
    }
}

fn is_stuck(silent: u32, turn: Duration, between: Duration) -> bool {
    turn * silent > (turn * SILENT_MAX).max(between * 2)
}

/// Sleeps, or for ever without a time.
pub(crate) async fn sleep_for(time: Option<Duration>) {
    match time {
        Some(time) => tokio::time::sleep(time).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_that_reads_seldom_is_not_stuck() {
        let [turn, ten, hour] = [30, 10, 3600].map(Duration::from_secs);
        assert!(!is_stuck(4, turn, ten) && is_stuck(5, turn, ten));
        assert!(!is_stuck(240, turn, hour) && is_stuck(241, turn, hour));
    }
}
