//! The parts of the pipeline that are built from settings: at start, and again after SIGHUP.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context as _, bail};

use super::feed::Shared;
use super::inventory::Inventory;
use super::sources::Sources;
use crate::alert::book::Book;
use crate::analyze::{self, Analyzer};
use crate::collect;
use crate::deliver::export::{self, Context, Exporter, Health};
use crate::deliver::outbox::Outbox;
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

/// Tables and keys of which something holds in the sources of kernel events.
const SOURCES_DEPEND_ON: [&str; 4] =
    ["kernel.", "log_analyzer.", keys::DATA_DIR.spec().path, keys::COLLECT_INTERVAL.spec().path];

/// Everything that settings make.
pub(super) struct Parts {
    pub(super) scheduler: Scheduler,
    pub(super) sources: Sources,
    pub(super) analyzers: Vec<Box<dyn Analyzer>>,
    pub(super) book: Book,
    pub(super) outbox: Outbox,
    pub(super) exporters: Vec<Box<dyn Exporter>>,
    pub(super) inventory: Inventory,
}

impl Parts {
    /// Builds all parts.
    pub(super) fn start(host: &Host, settings: &Settings, hostname: &str, shared: &Rc<Shared>) -> anyhow::Result<Self> {
        let values = &settings.values;
        Ok(Self {
            scheduler: Scheduler::new(host, values, collect::ALL, None).context("no thread for the collectors")?,
            sources: Sources::start(host, settings)?,
            analyzers: analyzers(values),
            book: Book::new(values, hostname),
            outbox: outbox(values)?,
            exporters: exporters(values, hostname, shared)?,
            inventory: Inventory::new(host, values, hostname),
        })
    }

    /// Builds the parts anew from `settings`, except that the book keeps its alerts, the store what it remembers, and
    /// probes stay up when nothing about them has changed. On an error everything is as it was.
    pub(super) async fn reload(
        &mut self,
        host: &Host,
        settings: &Settings,
        old: &Settings,
        hostname: &str,
        shared: &Rc<Shared>,
    ) -> anyhow::Result<()> {
        let values = &settings.values;
        let problems = Outbox::check(values);
        if !problems.is_empty() {
            bail!("{}", problems.join("; "));
        }
        let scheduler = Scheduler::new(host, values, collect::ALL, None).context("no thread for the collectors")?;
        let same_sources = SOURCES_DEPEND_ON.iter().all(|path| values.agrees(&old.values, path));
        let sources = if same_sources { None } else { Some(Sources::start(host, settings)?) };
        // What is bound must be free before it is bound again; the old ones end before the new ones begin.
        for exporter in std::mem::take(&mut self.exporters) {
            exporter.stop().await;
        }
        self.exporters = match exporters(values, hostname, shared) {
            Ok(exporters) => exporters,
            Err(error) => {
                self.exporters = exporters(&old.values, hostname, shared).unwrap_or_else(|error| {
                    tracing::error!("the old exporters do not come back: {error:#}");
                    Vec::new()
                });
                return Err(error);
            }
        };
        if let Some(sources) = sources {
            let old = std::mem::replace(&mut self.sources, sources);
            self.sources.succeed(old, host);
        }
        let old_outbox = std::mem::replace(&mut self.outbox, outbox(values)?);
        tokio::task::spawn_local(old_outbox.drain(Duration::from_secs(60)));
        self.scheduler = scheduler;
        self.analyzers = analyzers(values);
        self.book.reload(values, hostname);
        self.inventory = Inventory::new(host, values, hostname);
        Ok(())
    }

    /// Adds what the parts tell about themselves.
    pub(super) fn collect(&self, out: &mut Batch) {
        self.scheduler.collect(out);
        self.sources.collect(out);
        self.book.collect(out);
        self.outbox.collect(out);
        for exporter in &self.exporters {
            exporter.report(out);
        }
    }

    /// Whether everything that is configured works.
    pub(super) fn health(&self) -> Health {
        let collectors = self.scheduler.standings().all(|one| one.state != State::Failed);
        let exporters = self.exporters.iter().all(|exporter| exporter.problem().is_none());
        if collectors && exporters { Health::Healthy } else { Health::Degraded }
    }

    /// Ends everything; what is on its way has `deadline` to arrive.
    pub(super) async fn stop(self, deadline: Duration) {
        drop(self.sources);
        let exporters = async {
            for exporter in self.exporters {
                exporter.stop().await;
            }
        };
        _ = tokio::join!(self.outbox.drain(deadline), tokio::time::timeout(deadline, exporters));
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

fn analyzers(values: &Values) -> Vec<Box<dyn Analyzer>> {
    analyze::ALL.iter().map(|entry| (entry.new)(values)).collect()
}

fn outbox(values: &Values) -> anyhow::Result<Outbox> {
    Outbox::start(values).map_err(|errors| anyhow::anyhow!("{}", errors.join("; ")))
}

fn exporters(values: &Values, hostname: &str, shared: &Rc<Shared>) -> anyhow::Result<Vec<Box<dyn Exporter>>> {
    let context = Context { hostname: hostname.to_owned(), feed: Rc::clone(shared) as _ };
    let started = export::ALL.iter().map(|entry| (entry.start)(values, &context).map_err(anyhow::Error::msg));
    started.filter_map(Result::transpose).collect()
}
