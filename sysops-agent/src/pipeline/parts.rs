//! The parts of the pipeline, built from settings: at start, and again after SIGHUP.

use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use super::feed::Shared;
use super::watch::Watch;
use crate::alert::book::Book;
use crate::analyze::{self, Analyzer};
use crate::collect;
use crate::correlate::Correlator;
use crate::deliver::export::{self, Context, Exporter, Health};
use crate::deliver::outbox::Outbox;
use crate::host::Host;
use crate::inventory;
use crate::kernel::{self, Kernel};
use crate::logs::kmsg::Kmsg;
use crate::model::Batch;
use crate::schedule::{Scheduler, State};
use crate::settings::{Settings, keys};
use crate::store::Store;

/// The store's component of the probes and the kernel's log. Collectors have the first numbers, in their list's order.
pub(super) const KERNEL: usize = 64;
/// The store's component of the agent's readings about itself.
pub(super) const OWN: usize = 65;
/// Number of components. The first 64 are for collectors; the list is far from there, and a test says when it is not.
const COMPONENTS: usize = 66;

/// Everything that settings make.
pub(super) struct Parts {
    pub(super) scheduler: Scheduler,
    pub(super) watch: Watch,
    pub(super) correlator: Correlator,
    pub(super) analyzers: Vec<Box<dyn Analyzer>>,
    pub(super) book: Book,
    pub(super) outbox: Outbox,
    pub(super) exporters: Vec<Box<dyn Exporter>>,
    pub(super) inventory: Inventory,
}

impl Shared {
    pub(super) fn new(host: &Host, values: &crate::spec::Values) -> Self {
        Self {
            host: host.clone(),
            store: std::cell::RefCell::new(Store::new(values, COMPONENTS)),
            inventory: std::cell::RefCell::new(None),
            health: std::cell::Cell::new(Health::Healthy),
        }
    }
}
