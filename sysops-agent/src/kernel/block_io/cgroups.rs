//! What tasks of each cgroup read and wrote, for those that did most; all others are one. The kernel side counts by id,
//! which is the inode of the cgroup's directory.

use std::path::{Path, PathBuf};

use sysops_common::block_io::{CgroupTotals, OTHER_CGROUPS};

use super::super::ladder::Refusal;
use super::super::loader::{Object, Table};
use super::series::{CGROUP_BYTES, CGROUP_REQUESTS};
use crate::host::{Files, Host};
use crate::model::Batch;

/// Where the unified hierarchy may be mounted: alone, or beside the first version's.
const MOUNTS: [&str; 2] = ["fs/cgroup", "fs/cgroup/unified"];
/// Deepest nesting that is looked into, and directories that are in one search.
const DEPTH_MAX: usize = 16;
const SEARCH_MAX: usize = 20_000;
/// The label of all that have none of their own. No path is without a slash.
const OTHER: &str = "other";
/// Entries of 1024 at which room is made.
const CROWDED: usize = 900;
const WAYS: [&str; 2] = ["read", "write"];

/// Counts by cgroup.
pub(super) struct Cgroups {
    table: Table<u64, CgroupTotals>,
    ids: Vec<u64>,
    named: Vec<Named>,
    most: usize,
    turn: usize,
    /// What those had counted who were named and are gone.
    gone: CgroupTotals,
}

/// A cgroup with a label of its own.
struct Named {
    id: u64,
    path: String,
    /// What it had counted when it was one of the others.
    before: CgroupTotals,
    last: CgroupTotals,
}

impl Cgroups {
    /// That of the object, for as many as `most` with a label.
    ///
    /// # Errors
    /// When the object has no such map.
    pub(super) fn of(object: &mut Object, most: usize) -> Result<Self, Refusal> {
        let mut table = object.table("CGROUPS")?;
        // There must be room for what there is no room for.
        table.insert(&OTHER_CGROUPS, &CgroupTotals::default())?;
        Ok(Self { table, ids: Vec::new(), named: Vec::new(), most, turn: 0, gone: CgroupTotals::default() })
    }

    /// Adds the readings.
    pub(super) fn collect(&mut self, host: &Host, out: &mut Batch) {
        self.table.keys(&mut self.ids);
        if self.ids.len() > CROWDED {
            self.sweep(host);
            self.table.keys(&mut self.ids);
        }
        // One in a cycle: it is no haste.
        if !self.named.is_empty() {
            self.turn = (self.turn + 1) % self.named.len();
            self.drop_if_gone(host, self.turn);
        }
        let mut other = self.gone;
        let mut largest: Option<(u64, CgroupTotals)> = None;
        for &id in &self.ids {
            let Some(now) = self.table.get(&id) else { continue };
            if let Some(named) = self.named.iter_mut().find(|named| named.id == id) {
                named.last = now;
                continue;
            }
            other = sum(other, now);
            let is_larger = largest.is_none_or(|(_, most)| total(&now) > total(&most));
            if id != OTHER_CGROUPS && is_larger {
                largest = Some((id, now));
            }
        }
        for named in &self.named {
            other = sum(other, named.before);
            emit(out, &named.path, &difference(named.last, named.before));
        }
        emit(out, OTHER, &other);
        // For the next cycle one is named, the largest of those without: a search takes a system call a directory.
        let has_room = self.named.len() < self.most;
        if let Some((id, before)) = largest.filter(|_| has_room) {
            match path_of(&host.files, id) {
                Some(path) => self.named.push(Named { id, path, before, last: before }),
                // It is gone already: what it did stays with the others.
                None => {
                    self.table.remove(&id);
                    self.gone = sum(self.gone, before);
                }
            }
        }
    }

    /// Makes room: takes those out whose directories are gone, and counts those without a label as gone until they do more.
    pub(super) fn sweep(&mut self, host: &Host) {
        for place in (0..self.named.len()).rev() {
            self.drop_if_gone(host, place);
        }
        for id in self.ids.drain(..) {
            if id == OTHER_CGROUPS || self.named.iter().any(|named| named.id == id) {
                continue;
            }
            let Some(totals) = self.table.get(&id) else { continue };
            self.gone = sum(self.gone, totals);
            self.table.remove(&id);
        }
    }

    /// The label is free for another when the cgroup is gone.
    fn drop_if_gone(&mut self, host: &Host, place: usize) {
        let named = &self.named[place];
        let at = |mount: &&str| join(&host.files.sys(mount), &named.path);
        if !MOUNTS.iter().any(|mount| host.files.inode(&at(mount)) == Some(named.id)) {
            let named = self.named.swap_remove(place);
            self.gone = sum(self.gone, self.table.get(&named.id).unwrap_or(named.last));
            self.table.remove(&named.id);
        }
    }
}

/// The path of the cgroup with this id, from the root of the unified hierarchy.
pub(super) fn path_of(files: &Files, id: u64) -> Option<String> {
    let mount = MOUNTS.iter().map(|mount| files.sys(mount)).find(|at| files.exists(&at.join("cgroup.procs")))?;
    let mut waiting: Vec<(PathBuf, usize)> = vec![(mount.clone(), 0)];
    let mut seen = 0;
    while let Some((directory, depth)) = waiting.pop() {
        if files.inode(&directory) == Some(id) {
            let rest = directory.strip_prefix(&mount).ok()?.to_string_lossy().into_owned();
            return Some(format!("/{rest}"));
        }
        seen += 1;
        if depth >= DEPTH_MAX || seen >= SEARCH_MAX {
            continue;
        }
        waiting.extend(files.directories(&directory).into_iter().map(|name| (directory.join(name), depth + 1)));
    }
    None
}

fn join(mount: &Path, path: &str) -> PathBuf {
    mount.join(path.trim_start_matches('/'))
}

fn sum(one: CgroupTotals, other: CgroupTotals) -> CgroupTotals {
    let add = |one: [u64; 2], other: [u64; 2]| std::array::from_fn(|way| one[way].wrapping_add(other[way]));
    CgroupTotals { requests: add(one.requests, other.requests), bytes: add(one.bytes, other.bytes) }
}

fn difference(now: CgroupTotals, before: CgroupTotals) -> CgroupTotals {
    let since = |now: [u64; 2], before: [u64; 2]| std::array::from_fn(|way| now[way].saturating_sub(before[way]));
    CgroupTotals { requests: since(now.requests, before.requests), bytes: since(now.bytes, before.bytes) }
}

fn total(of: &CgroupTotals) -> u64 {
    of.bytes[0].saturating_add(of.bytes[1])
}

#[expect(clippy::cast_precision_loss, reason = "counts below 2^53 are exact")]
fn emit(out: &mut Batch, cgroup: &str, totals: &CgroupTotals) {
    for (way, word) in WAYS.into_iter().enumerate() {
        out.counter(&CGROUP_REQUESTS, [cgroup, word], totals.requests[way] as f64);
        out.counter(&CGROUP_BYTES, [cgroup, word], totals.bytes[way] as f64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cgroup_is_found_by_the_inode_of_its_directory() {
        let root = tempfile::tempdir().expect("a directory");
        let inner = root.path().join("sys/fs/cgroup/web.slice/app");
        std::fs::create_dir_all(&inner).expect("created");
        std::fs::write(root.path().join("sys/fs/cgroup/cgroup.procs"), "").expect("written");
        let host = Host::fixture(root.path());
        let id = host.files.inode(&inner).expect("it is there");
        assert_eq!(path_of(&host.files, id).as_deref(), Some("/web.slice/app"));
        let top = host.files.inode(&root.path().join("sys/fs/cgroup")).expect("it is there");
        assert_eq!(path_of(&host.files, top).as_deref(), Some("/"));
        assert_eq!(path_of(&host.files, 1), None);
    }
}
