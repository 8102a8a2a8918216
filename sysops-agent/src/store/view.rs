//! The store, read-only: what analyzers and exporters may see.

use std::time::{Duration, SystemTime};

use super::Store;
use crate::model::{Readings, Series};

/// A read-only look into the store.
#[derive(Clone, Copy)]
pub struct View<'a> {
    store: &'a Store,
}

impl<'a> View<'a> {
    /// A look into `store`.
    #[must_use]
    pub fn new(store: &'a Store) -> Self {
        Self { store }
    }

    /// The remembered samples of a series by monotonic time, oldest first; `None` when the series is not known or its
    /// metric is not remembered. `key` is [`Series::key`].
    pub fn samples(&self, metric: &str, key: &str) -> Option<impl DoubleEndedIterator<Item = (Duration, f64)> + 'a> {
        self.store.ring(metric, key).map(super::ring::Ring::iter)
    }
}

impl Readings for View<'_> {
    fn time(&self) -> SystemTime {
        self.store.time()
    }

    fn visit(&self, each: &mut dyn FnMut(Series<'_>)) {
        self.store.visit(each);
    }

    fn visit_metric(&self, name: &str, each: &mut dyn FnMut(Series<'_>)) {
        self.store.visit_metric(name, each);
    }

    fn history(&self, metric: &str, key: &str, each: &mut dyn FnMut(Duration, f64)) {
        for (time, value) in self.samples(metric, key).into_iter().flatten() {
            each(time, value);
        }
    }
}
