//! Stands in for `loader` in a build without the feature `ebpf`: nothing can be loaded, and every probe says so.

use std::convert::Infallible;
use std::fs::File;
use std::marker::PhantomData;
use std::os::fd::BorrowedFd;

use sysops_common::check::Check;
use sysops_common::counters::Counters;
use sysops_common::plain::Plain;

use super::attach::Point;
use super::ladder::Refusal;
use super::run_stats::Runs;

/// There is none.
pub(super) enum Object {}

/// Says that nothing can be loaded.
///
/// # Errors
/// Always.
pub(super) fn available() -> Result<(), Refusal> {
    Err(Refusal::new("built without the feature ebpf", "build with the default features: cargo xtask build"))
}

/// Says that there are no objects.
///
/// # Errors
/// Always.
pub(super) fn embedded(_name: &str) -> Result<&'static [u8], Refusal> {
    available().map(|()| &[][..])
}

/// There is none.
pub(super) enum Counting {}

/// Says that there are no programs whose runs could be counted.
///
/// # Errors
/// Always.
pub(super) fn count_runs() -> Result<Counting, Refusal> {
    Err(available().err().unwrap_or_else(|| Refusal::new("built without the feature ebpf", "")))
}

impl Object {
    /// Fails.
    ///
    /// # Errors
    /// Always.
    pub(super) fn load<T: Plain>(_name: &str, _offsets: &T) -> Result<Self, Refusal> {
        Err(available().err().unwrap_or_else(|| Refusal::new("built without the feature ebpf", "")))
    }

    /// Fails.
    ///
    /// # Errors
    /// Always.
    pub(super) fn load_sized<T: Plain>(
        name: &str,
        offsets: &T,
        _sizes: &[(&'static str, u32)],
    ) -> Result<Self, Refusal> {
        Self::load(name, offsets)
    }

    /// There is no object to attach.
    ///
    /// # Errors
    /// Never.
    pub(super) fn attach(&mut self, _name: &str, _point: Point<'_>) -> Result<(), Refusal> {
        match *self {}
    }

    /// There is no object to check.
    ///
    /// # Errors
    /// Never.
    pub(super) fn check<T: Plain, L>(
        &mut self,
        _name: &str,
        _point: Point<'_>,
        _check_name: u64,
        _look: impl FnOnce() -> L,
    ) -> Result<(Box<Check<T>>, L), Refusal> {
        match *self {}
    }

    /// There is no object to wait for.
    #[must_use]
    pub(super) fn fd(&self) -> Option<BorrowedFd<'_>> {
        match *self {}
    }

    /// There is no object to take from.
    pub(super) fn drain<T: Plain>(&mut self, _each: impl FnMut(&T)) {
        match *self {}
    }

    /// There is no object that runs.
    #[must_use]
    pub(super) fn runs(&self) -> Runs {
        match *self {}
    }

    /// There is no object that counts.
    #[must_use]
    pub(super) fn counters(&self) -> Option<Counters> {
        match *self {}
    }

    /// There is no object to attach.
    ///
    /// # Errors
    /// Never.
    pub(super) fn attach_to_each(&mut self, _name: &str, _group: &str, _tracepoints: &[&str]) -> Result<(), Refusal> {
        match *self {}
    }

    /// There is no object to attach.
    ///
    /// # Errors
    /// Never.
    pub(super) fn attach_to_function(
        &mut self,
        _name: &str,
        _file: &File,
        _offset: u64,
        _pid: u32,
    ) -> Result<(), Refusal> {
        match *self {}
    }

    /// There is no object to detach.
    ///
    /// # Errors
    /// Never.
    pub(super) fn unload(&mut self, _name: &str, _point: Point<'_>) -> Result<(), Refusal> {
        match *self {}
    }

    /// There is no object to verify.
    ///
    /// # Errors
    /// Never.
    pub(super) fn verify(&mut self, _name: &str, _point: Point<'_>) -> Result<(), Refusal> {
        match *self {}
    }

    /// There is no object to load from.
    ///
    /// # Errors
    /// Never.
    pub(super) fn load_iterator(&mut self, _name: &str, _kind: &str, _id: u32) -> Result<(), Refusal> {
        match *self {}
    }

    /// There is no object to iterate with.
    ///
    /// # Errors
    /// Never.
    pub(super) fn iterate(&mut self, _name: &str) -> Result<File, Refusal> {
        match *self {}
    }

    /// There is no object that has maps.
    ///
    /// # Errors
    /// Never.
    pub(super) fn table<K: Plain, V: Plain>(&mut self, _name: &str) -> Result<Table<K, V>, Refusal> {
        match *self {}
    }

    /// There is no object that has maps.
    ///
    /// # Errors
    /// Never.
    pub(super) fn slots<V: Plain>(&mut self, _name: &str) -> Result<Slots<V>, Refusal> {
        match *self {}
    }
}

/// There is none.
pub(super) struct Table<K, V>(Infallible, PhantomData<(K, V)>);

impl<K: Plain, V: Plain> Table<K, V> {
    /// There is no table.
    pub(super) fn keys(&self, _keys: &mut Vec<K>) {
        match self.0 {}
    }

    /// There is no table.
    pub(super) fn some_keys(&self, _most: usize, _keys: &mut Vec<K>) {
        match self.0 {}
    }

    /// There is no table.
    #[must_use]
    pub(super) fn get(&self, _key: &K) -> Option<V> {
        match self.0 {}
    }

    /// There is no table.
    ///
    /// # Errors
    /// Never.
    pub(super) fn insert(&mut self, _key: &K, _value: &V) -> Result<(), Refusal> {
        match self.0 {}
    }

    /// There is no table.
    pub(super) fn remove(&mut self, _key: &K) {
        match self.0 {}
    }
}

/// There is none.
pub(super) struct Slots<V>(Infallible, PhantomData<V>);

impl<V: Plain> Slots<V> {
    /// There are no slots.
    #[must_use]
    pub(super) fn get(&self, _index: u32) -> Option<V> {
        match self.0 {}
    }

    /// There are no slots.
    pub(super) fn set(&mut self, _index: u32, _value: &V) {
        match self.0 {}
    }
}
