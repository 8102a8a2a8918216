//! Stands in for `loader` in a build without the feature `ebpf`: nothing can be loaded, and every probe says so.

use std::os::fd::BorrowedFd;

use sysops_common::check::Check;
use sysops_common::counters::Counters;
use sysops_common::plain::Plain;

use super::attach::Point;
use super::ladder::Refusal;

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

impl Object {
    /// Fails.
    ///
    /// # Errors
    /// Always.
    pub(super) fn load<T: Plain>(_name: &str, _offsets: &T) -> Result<Self, Refusal> {
        Err(available().err().unwrap_or_else(|| Refusal::new("built without the feature ebpf", "")))
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

    /// There is no object that counts.
    #[must_use]
    pub(super) fn counters(&self) -> Option<Counters> {
        match *self {}
    }
}
