//! The files that processes have code from, each opened and read once, whichever processes run it. What a process has
//! where, is left to `space`.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{fstatfs, makedev};

use super::elf::Elf;
use super::maps::{self, Mapping};
use super::table::Table;
use crate::host::Host;
use crate::host::files::{find, find_in_root, reopen};
use crate::model::Image;

/// Files that are kept open at once.
const IMAGES_MAX: usize = 256;
/// Bytes of unwind tables that are kept at once. A process has one to three MB.
const BYTES_MAX: usize = 128 << 20;

/// A file with its unwind tables.
pub(super) struct Loaded {
    /// The file.
    pub image: Arc<Image>,
    /// Where its code belongs.
    pub elf: Elf,
    /// Its tables, if it has any.
    pub table: Option<Table>,
}

/// What is behind a mapping.
#[derive(Clone)]
pub(super) enum Code {
    /// A program or library.
    Program(Arc<Loaded>),
    /// A file that is neither.
    Other,
    /// It cannot be had, or there is no room for it.
    Unread,
}

/// Tells a file from every other, and from itself after it was written to.
type Identity = (u64, u64, i64, i64, u64);

/// All that are in use.
#[derive(Default)]
pub(super) struct Images {
    /// `None`: it was looked at and is no program.
    loaded: HashMap<Identity, Option<Arc<Loaded>>>,
    bytes: usize,
}

impl Images {
    /// The file behind a mapping of the process `pid`.
    pub(super) fn load(&mut self, host: &Host, pid: u32, mapping: &Mapping) -> Code {
        let Some(file) = open(host, pid, mapping) else {
            tracing::debug!("stacks: {:?} of process {pid} cannot be read, or is another file by now", mapping.path);
            return Code::Unread;
        };
        let Ok(about) = file.metadata() else { return Code::Unread };
        let identity = (about.dev(), about.ino(), about.mtime(), about.mtime_nsec(), about.len());
        if let Some(known) = self.loaded.get(&identity) {
            return known.clone().map_or(Code::Other, Code::Program);
        }
        if self.loaded.len() >= IMAGES_MAX {
            self.forget_unused();
        }
        if self.loaded.len() >= IMAGES_MAX || self.bytes >= BYTES_MAX {
            tracing::debug!(
                "stacks: {} files with {} bytes of tables are kept: no more",
                self.loaded.len(),
                self.bytes
            );
            return Code::Unread;
        }
        let loaded = match Elf::read(&file) {
            Ok(mut elf) => {
                let table = Table::new(&mut elf);
                self.bytes += table.as_ref().map_or(0, Table::bytes);
                let image = Image { path: mapping.path.clone(), build_id: elf.build_id.clone(), file };
                Some(Arc::new(Loaded { image: Arc::new(image), elf, table }))
            }
            Err(why) => {
                tracing::debug!("stacks: {:?}: {why}", mapping.path);
                None
            }
        };
        self.loaded.insert(identity, loaded.clone());
        loaded.map_or(Code::Other, Code::Program)
    }

    /// Closes what no process and no stack uses any more.
    pub(super) fn forget_unused(&mut self) {
        let bytes = &mut self.bytes;
        self.loaded.retain(|_, loaded| {
            let used = loaded.as_ref().is_some_and(|loaded| Arc::strong_count(loaded) > 1);
            if let (false, Some(loaded)) = (used, loaded) {
                *bytes -= loaded.table.as_ref().map_or(0, Table::bytes);
            }
            used
        });
    }
}

/// Opens the very file that is mapped, though it be deleted or in another mount namespace. Where the kernel keeps
/// that way to those with more capabilities, by its path, if the file there still is the same: below the root of the process,
/// or that of the agent, from which the kernel tells the paths of a process in the agent's mount namespace. What is no
/// file is not opened.
pub(in crate::kernel) fn open(host: &Host, pid: u32, mapping: &Mapping) -> Option<File> {
    let directory = host.files.proc(&pid.to_string());
    let mounts = host.files.read(&directory.join("mountinfo")).ok()?;
    if maps::is_of_a_program(&mounts, mapping.device) {
        return None;
    }
    let direct = || find(&directory.join(format!("map_files/{:x}-{:x}", mapping.start, mapping.end)), true).ok();
    let program = || find(&directory.join("exe"), true).ok();
    // Even to look a path up below such a mount is to ask the program.
    let walk = |root: &Path, mounts: &[u8]| {
        let may_be_walked = !maps::leads_through_a_program(mounts, &mapping.path);
        may_be_walked.then(|| find_in_root(root, Path::new(&mapping.path)).ok()).flatten()
    };
    let in_its_root = || walk(&directory.join("root"), &mounts);
    let in_ours = || {
        // Who cannot tell where a program's mounts are does not walk.
        let mounts = host.files.read(&host.files.proc("self/mountinfo")).ok()?;
        walk(&host.files.root("/"), &mounts)
    };
    let is_file = |found: &File| found.metadata().is_ok_and(|about| about.is_file());
    let found = direct().filter(is_file).or_else(|| {
        let same = |found: &File| is_file(found) && is_same(found, mapping);
        let ours = || in_ours().filter(same);
        in_its_root().filter(same).or_else(ours).or_else(|| program().filter(same))
    })?;
    reopen(&found).ok()
}

/// What was found at a path is what is mapped.
fn is_same(found: &File, mapping: &Mapping) -> bool {
    /// File systems whose files are of other devices than their mappings: those of subvolumes and layers.
    const OTHER_DEVICES: [u64; 3] = [0x794c_7630, 0x9123_683e, 0xca45_1a4e];
    let Ok(about) = found.metadata() else { return false };
    let (major, minor) = mapping.device;
    let has_others = || {
        fstatfs(found).is_ok_and(|system| u64::try_from(system.f_type).is_ok_and(|kind| OTHER_DEVICES.contains(&kind)))
    };
    about.ino() == mapping.inode && (about.dev() == makedev(major, minor) || has_others())
}
