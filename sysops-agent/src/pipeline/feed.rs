//! What exporters may ask of the pipeline: readings, inventory, health, time. It lives on the main thread alone.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use crate::deliver::export::{Feed, Health};
use crate::host::Host;
use crate::model::{Readings, Tick};
use crate::store::Store;
use crate::store::view::View;

/// The pipeline's shared state.
pub(crate) struct Shared {
    pub(crate) host: Host,
    pub(crate) store: RefCell<Store>,
    pub(crate) inventory: RefCell<Option<Rc<serde_json::Value>>>,
    pub(crate) health: Cell<Health>,
}

impl Feed for Shared {
    fn readings(&self, see: &mut dyn FnMut(&dyn Readings)) {
        see(&View::new(&self.store.borrow()));
    }

    fn inventory(&self) -> Option<Rc<serde_json::Value>> {
        self.inventory.borrow().clone()
    }

    fn health(&self) -> Health {
        self.health.get()
    }

    fn now(&self) -> Tick {
        self.host.clock.now()
    }
}
