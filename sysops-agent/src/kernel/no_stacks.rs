//! Stands in for `stacks` in a build without the feature `ebpf`: no stack is captured.

use std::convert::Infallible;
use std::fs::File;
use std::os::fd::BorrowedFd;

use sysops_btf::Btf;
use sysops_common::stack::StackOffsets;

use super::ladder::Refusal;
use super::loader::{self, Object};
use super::lost_stacks::Lost;
use crate::host::Host;
use crate::model::Frame;

/// There is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct StackId(Infallible);

/// A piece of code in the memory of a process: none is looked for.
pub(super) struct Mapping {
    /// The device of its file.
    pub device: (u32, u32),
    /// The number of its file.
    pub inode: u64,
    /// The path of its file.
    pub path: String,
}

impl Mapping {
    /// It has a file.
    #[must_use]
    pub(super) fn is_file(&self) -> bool {
        self.inode != 0
    }
}

/// None is looked for.
#[must_use]
pub(super) fn mappings(_text: &[u8]) -> Vec<Mapping> {
    Vec::new()
}

/// None is opened.
#[must_use]
pub(super) fn open(_host: &Host, _pid: u32, _mapping: &Mapping) -> Option<File> {
    None
}

/// Says that nothing can be loaded.
///
/// # Errors
/// Always.
pub(super) fn functions(_file: &File, _names: &[&str]) -> Result<Vec<Option<u64>>, String> {
    loader::available().map(|()| Vec::new()).map_err(|refusal| refusal.reason)
}

/// There are none.
pub(super) struct Stacks(Infallible);

/// Says that nothing can be loaded.
///
/// # Errors
/// Always.
pub(super) fn offsets(_btf: &Btf) -> Result<StackOffsets, Refusal> {
    loader::available().map(|()| StackOffsets::ABSENT)
}

impl Stacks {
    /// There is no object.
    ///
    /// # Errors
    /// Never.
    pub(super) fn new(object: &mut Object) -> Result<Self, Refusal> {
        match *object {}
    }

    /// There are no stacks.
    #[must_use]
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        match self.0 {}
    }

    /// There are no stacks.
    pub(super) fn drain(&mut self, _host: &Host) {
        match self.0 {}
    }

    /// There are no stacks.
    pub(super) fn drain_all(&mut self, _host: &Host) {
        match self.0 {}
    }

    /// There are no stacks.
    #[must_use]
    pub(super) fn resolve(&self, _reference: u64) -> Option<StackId> {
        match self.0 {}
    }

    /// There are no stacks.
    #[must_use]
    pub(super) fn frames(&self, _id: StackId) -> Vec<Frame> {
        match self.0 {}
    }

    /// There are no stacks.
    #[must_use]
    pub(super) fn lost(&self) -> Lost {
        match self.0 {}
    }

    /// There are no stacks.
    #[must_use]
    pub(super) fn references(&self) -> usize {
        match self.0 {}
    }

    /// There are no stacks.
    pub(super) fn retain(&mut self, _used: impl FnMut(u64) -> bool) {
        match self.0 {}
    }

    /// There are no stacks.
    pub(super) fn refresh(&mut self, _host: &Host) {
        match self.0 {}
    }

    /// There are no stacks.
    pub(super) fn forget_process(&mut self, _pid: u32) {
        match self.0 {}
    }
}
