//! The files that processes have code from, each opened and read once, whichever processes run it. What a process has
//! where, is left to `space`.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use super::elf::Elf;
use super::maps::{self, Mapping};
use super::table::Table;
use crate::host::Host;
use crate::host::files::open_file;
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
    /// The file behind a mapping of the process `pid`; `None` when it cannot be had, or is no program.
    pub(super) fn load(&mut self, host: &Host, pid: u32, mapping: &Mapping) -> Option<Arc<Loaded>> {
        let file = open(host, pid, mapping)?;
        let about = file.metadata().ok()?;
        let identity = (about.dev(), about.ino(), about.mtime(), about.mtime_nsec(), about.len());
        if let Some(known) = self.loaded.get(&identity) {
            return known.clone();
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
            return None;
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
        loaded
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
/// that way to those with more capabilities, by its path, if the file there still is the same.
fn open(host: &Host, pid: u32, mapping: &Mapping) -> Option<File> {
    let directory = host.files.proc(&pid.to_string());
    let mounts = host.files.read(&directory.join("mountinfo")).ok()?;
    if maps::is_of_a_program(&mounts, mapping.device) {
        return None;
    }
    let direct = directory.join(format!("map_files/{:x}-{:x}", mapping.start, mapping.end));
    let by_path = || open_file(&directory.join("root").join(mapping.path.trim_start_matches('/')));
    let program = || open_file(&directory.join("exe"));
    let same = |file: &File| file.metadata().is_ok_and(|about| about.ino() == mapping.inode);
    let file =
        open_file(&direct).ok().or_else(|| by_path().ok().filter(same)).or_else(|| program().ok().filter(same))?;
    file.metadata().is_ok_and(|about| about.is_file()).then_some(file)
}
