//! The parts of the pipeline that are built from settings: at start, and again after SIGHUP.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;

use super::feed::Shared;
use super::inventory::Inventory;
use super::sources::Sources;
use crate::alert::book::Book;
use crate::analyze::{self, Analyzer};
use crate::collect;
use crate::deliver::channel;
use crate::deliver::export::{self, Context, Exporter, Health};
use crate::deliver::outbox::{self, Outbox, Plan};
use crate::host::Host;
use crate::model::Batch;
use crate::schedule::{Scheduler, State};
use crate::settings::{Settings, keys};
use crate::spec::Values;
use crate::store::Store;

/// The store's component of the probes and the kernel's log; collectors have the first numbers, in their list's order.
pub(super) fn kernel_component() -> usize {
    collect::ALL.len()
}

/// The store's component of the agent's readings about itself.
pub(super) fn own_component() -> usize {
    collect::ALL.len() + 1
}

/// Everything that settings make.
pub(super) struct Parts {
    pub(super) scheduler: Scheduler,
    pub(super) sources: Sources,
    pub(super) analyzers: Vec<Box<dyn Analyzer>>,
    pub(super) book: Rc<RefCell<Book>>,
    pub(super) outbox: Rc<RefCell<Outbox>>,
    pub(super) exporters: Vec<Running>,
    pub(super) inventory: Inventory,
}

/// An exporter at work.
pub(super) struct Running {
    entry: &'static export::Entry,
    pub(super) exporter: Box<dyn Exporter>,
}

/// What the parts are to be: a configuration, and the host's name by it.
#[derive(Clone, Copy)]
pub(super) struct Wanted<'a> {
    pub(super) settings: &'a Settings,
    pub(super) hostname: &'a str,
}

impl Parts {
    /// Builds all parts.
    pub(super) fn start(host: &Host, wanted: Wanted<'_>, shared: &Rc<Shared>) -> anyhow::Result<Self> {
        let Wanted { settings, hostname } = wanted;
        let values = &settings.values;
        Ok(Self {
            scheduler: Scheduler::new(host, values, collect::ALL, None).context("no thread for the collectors")?,
            sources: Sources::start(host, settings)?,
            analyzers: analyzers(values),
            book: Rc::new(RefCell::new(book(values, hostname))),
            outbox: Rc::new(RefCell::new(open_outbox(host, values)?)),
            exporters: export::ALL
                .iter()
                .filter_map(|entry| start(entry, wanted, shared).transpose())
                .collect::<Result<_, _>>()?,
            inventory: Inventory::new(host, values, hostname),
        })
    }

    /// Makes the parts what is `wanted`. What that does not change goes on: the book keeps its alerts, the store what it
    /// remembers; connections, queues and probes stay. On an error everything is as it was.
    pub(super) async fn reload(
        &mut self,
        host: &Host,
        wanted: Wanted<'_>,
        before: Wanted<'_>,
        shared: &Rc<Shared>,
    ) -> anyhow::Result<()> {
        let (values, old) = (&wanted.settings.values, &before.settings.values);
        let collector_keys = collect::ALL.iter().flat_map(|entry| entry.keys).copied();
        let scheduler = if values.agree_on(old, collector_keys) {
            None
        } else {
            Some(Scheduler::new(host, values, collect::ALL, None).context("no thread for the collectors")?)
        };
        let channel_keys = channel::ALL.iter().flat_map(|entry| entry.keys).chain(outbox::KEYS).copied();
        let channels = if values.agree_on(old, channel_keys) { None } else { Some(plan(values)?) };
        self.reload_outward(host, wanted, before, shared).await?;
        if let Some(channels) = channels {
            self.outbox.borrow_mut().reload(channels);
        }
        if let Some(scheduler) = scheduler {
            self.scheduler = scheduler;
        }
        self.analyzers.iter_mut().for_each(|analyzer| analyzer.reload(values));
        let mut book = self.book.borrow_mut();
        book.reload(values, wanted.hostname);
        book.expect_cycles_every(between_rounds(values));
        drop(book);
        self.inventory = Inventory::new(host, values, wanted.hostname);
        Ok(())
    }

    /// Sources and exporters hold something of which there is one: a place in the kernel's log, an address. So the old
    /// end before the new begin, and come back when those cannot.
    async fn reload_outward(
        &mut self,
        host: &Host,
        wanted: Wanted<'_>,
        before: Wanted<'_>,
        shared: &Rc<Shared>,
    ) -> anyhow::Result<()> {
        let same_sources = Sources::are_the_same(&wanted.settings.values, &before.settings.values);
        if !same_sources {
            self.sources.restart(host, wanted.settings)?;
        }
        let changed = self.changed_exporters(wanted, before);
        let Err(error) = self.restart(&changed, wanted, shared).await else { return Ok(()) };
        if let Err(error) = self.restart(&changed, before, shared).await {
            tracing::error!("what ran before does not come back: {error:#}");
        }
        if !same_sources && let Err(error) = self.sources.restart(host, before.settings) {
            tracing::error!("what ran before does not come back: {error:#}");
        }
        Err(error)
    }

    fn changed_exporters(&self, wanted: Wanted<'_>, before: Wanted<'_>) -> Vec<&'static export::Entry> {
        let values = &wanted.settings.values;
        let is_outdated =
            |entry: &export::Entry| self.running(entry).is_some_and(|running| running.exporter.is_outdated(values));
        let has_changed = |entry: &&export::Entry| {
            wanted.hostname != before.hostname
                || !values.agree_on(&before.settings.values, entry.keys.iter().copied())
                || is_outdated(entry)
        };
        export::ALL.iter().copied().filter(has_changed).collect()
    }

    fn running(&self, entry: &export::Entry) -> Option<&Running> {
        self.exporters.iter().find(|running| std::ptr::eq(running.entry, entry))
    }

    /// Ends those of `entries` that run, and starts what is `wanted` of them: all that can, and the first error.
    async fn restart(
        &mut self,
        entries: &[&'static export::Entry],
        wanted: Wanted<'_>,
        shared: &Rc<Shared>,
    ) -> anyhow::Result<()> {
        let is_listed = |running: &mut Running| entries.iter().any(|entry| std::ptr::eq(*entry, running.entry));
        for running in self.exporters.extract_if(.., is_listed).collect::<Vec<_>>() {
            running.exporter.stop().await;
        }
        let mut result = Ok(());
        for entry in entries {
            match start(entry, wanted, shared) {
                Ok(running) => self.exporters.extend(running),
                Err(error) => result = result.and(Err(error)),
            }
        }
        result
    }

    /// Adds what the parts tell about themselves.
    pub(super) fn collect(&self, out: &mut Batch) {
        self.scheduler.collect(out);
        self.sources.collect(out);
        self.book.borrow().collect(out);
        self.outbox.borrow().collect(out);
        for running in &self.exporters {
            running.exporter.report(out);
        }
    }

    /// Whether everything that is configured works.
    pub(super) fn health(&self) -> Health {
        let collectors = self.scheduler.standings().all(|one| one.state != State::Failed);
        let exporters = self.exporters.iter().all(|running| running.exporter.problem().is_none());
        if collectors && exporters { Health::Healthy } else { Health::Degraded }
    }

    /// Ends everything; what is on its way has `deadline` to arrive.
    pub(super) async fn stop(self, deadline: Duration) {
        let exporters = async {
            for running in self.exporters {
                running.exporter.stop().await;
            }
        };
        let outbox = Rc::into_inner(self.outbox).expect("the desk has it weakly, and nobody else").into_inner();
        _ = tokio::join!(outbox.drain(deadline), tokio::time::timeout(deadline, exporters));
    }
}

impl Shared {
    pub(super) fn new(host: &Host, values: &Values) -> Self {
        Self {
            host: host.clone(),
            store: RefCell::new(Store::new(values, own_component() + 1)),
            inventory: RefCell::new(None),
            health: Cell::new(Health::Healthy),
        }
    }
}

fn book(values: &Values, hostname: &str) -> Book {
    let mut book = Book::new(values, hostname);
    book.expect_cycles_every(between_rounds(values));
    book
}

/// How far apart rounds of collectors are.
pub(super) fn between_rounds(values: &Values) -> Duration {
    collect::ALL.iter().map(|entry| values.get(entry.interval)).min().unwrap_or_default()
}

fn analyzers(values: &Values) -> Vec<Box<dyn Analyzer>> {
    analyze::ALL.iter().map(|entry| (entry.new)(values)).collect()
}

fn open_outbox(host: &Host, values: &Values) -> anyhow::Result<Outbox> {
    let clock = host.clock.clone();
    Ok(Outbox::open(plan(values)?, keys::data_dir(values).as_deref(), Arc::new(move || clock.now().wall)))
}

fn plan(values: &Values) -> anyhow::Result<Plan> {
    Plan::new(values).map_err(|errors| anyhow::anyhow!("{}", errors.join("; ")))
}

/// Starts an exporter if it is wanted.
fn start(entry: &'static export::Entry, wanted: Wanted<'_>, shared: &Rc<Shared>) -> anyhow::Result<Option<Running>> {
    let context = Context { hostname: wanted.hostname.to_owned(), feed: Rc::clone(shared) as _ };
    let exporter = (entry.start)(&wanted.settings.values, &context).map_err(anyhow::Error::msg)?;
    Ok(exporter.map(|exporter| Running { entry, exporter }))
}
