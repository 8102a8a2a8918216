//! The allocators of one process: which of its files have `malloc`, and the programs at the entries and ends of their
//! functions. Dear: each call costs the process a microsecond or more, so that it is done on demand only.

use std::collections::BTreeMap;
use std::fs::File;

use sysops_common::memory_leak::{Piece, PieceKey};

use crate::host::{Host, ReadError};
use crate::kernel::ladder::Refusal;
use crate::kernel::loader::{Object, Table};
use crate::kernel::stacks::{functions, mappings, open};

/// Functions with the program at their entry, in the order in which they are attached: first what forgets, so that nothing that
/// is freed meanwhile seems to be held. Those that hand out memory have `on_return` at their end.
const FUNCTIONS: [(&str, &str); 7] = [
    ("free", "on_free"),
    ("realloc", "on_realloc"),
    ("posix_memalign", "on_posix_memalign"),
    ("aligned_alloc", "on_memalign"),
    ("memalign", "on_memalign"),
    ("calloc", "on_calloc"),
    ("malloc", "on_malloc"),
];
/// Files with an allocator that a process may have: one that was put before that of libc, and libc's.
const FILES_MAX: usize = 4;

/// The pieces that a process has not freed.
pub(super) struct Allocator {
    pid: u32,
    pieces: Table<PieceKey, Piece>,
    keys: Vec<PieceKey>,
}

/// What one stack asked for and did not free.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Unfreed {
    /// Bytes that were asked for.
    pub bytes: u64,
    /// CLOCK_MONOTONIC of the oldest piece.
    pub oldest_ns: u64,
}

impl Allocator {
    /// Attaches the programs to all allocators of the process `pid`.
    ///
    /// # Errors
    /// When it has none, or the kernel refuses.
    pub(super) fn attach(object: &mut Object, host: &Host, pid: u32) -> Result<Self, Refusal> {
        let pieces = object.table("PIECES")?;
        let (mut attached, mut why) = (false, String::new());
        for file in files(host, pid)? {
            match attach_to(object, &file, pid) {
                Ok(true) => attached = true,
                // A file without malloc is none of them.
                Ok(false) => {}
                Err(refusal) if attached => return Err(refusal),
                Err(refusal) => why = format!(": {}", refusal.reason),
            }
        }
        if attached {
            return Ok(Self { pid, pieces, keys: Vec::new() });
        }
        Err(Refusal::new(
            format!("no file of process {pid} has a function malloc that programs can be attached to{why}"),
            "leave out --malloc: page faults are seen whatever the allocator",
        ))
    }

    /// What is not freed, by reference to a stack.
    #[must_use]
    pub(super) fn unfreed(&mut self) -> BTreeMap<u64, Unfreed> {
        let mut unfreed = BTreeMap::<u64, Unfreed>::new();
        self.pieces.keys(&mut self.keys);
        for key in self.keys.iter().filter(|key| key.tgid == self.pid) {
            if let Some(piece) = self.pieces.get(key) {
                let of = unfreed.entry(piece.stack).or_insert(Unfreed { bytes: 0, oldest_ns: piece.at_ns });
                of.bytes = of.bytes.saturating_add(piece.bytes);
                of.oldest_ns = of.oldest_ns.min(piece.at_ns);
            }
        }
        unfreed
    }
}

/// Attaches the programs to the functions of one file; false when it has no malloc.
fn attach_to(object: &mut Object, file: &File, pid: u32) -> Result<bool, Refusal> {
    let offsets = functions(file, &FUNCTIONS.map(|(function, _)| function));
    let offsets = offsets.map_err(|why| Refusal::new(why, ""))?;
    let of = |name: &str| FUNCTIONS.iter().position(|(function, _)| *function == name).and_then(|at| offsets[at]);
    if of("malloc").is_none() {
        return Ok(false);
    }
    if of("free").is_none() {
        return Err(Refusal::new("it has malloc and no free: all that is freed would seem to be held", ""));
    }
    let mut seen = Vec::new();
    for ((function, program), offset) in FUNCTIONS.into_iter().zip(&offsets) {
        // An allocator may lack some, and have one under two names.
        let Some(offset) = offset.filter(|offset| !seen.contains(offset)) else { continue };
        seen.push(offset);
        if program != "on_free" {
            object.attach_to_function("on_return", file, offset, pid)?;
        }
        let entry = object.attach_to_function(program, file, offset, pid);
        if ["malloc", "free"].contains(&function) {
            entry?;
        }
    }
    Ok(true)
}

/// The files with code of the process: its own program, then what is most likely to have an allocator.
fn files(host: &Host, pid: u32) -> Result<Vec<File>, Refusal> {
    let path = host.files.proc(&format!("{pid}/maps"));
    let unread = |error: ReadError| Refusal::new(format!("{error}: {}", error.source), "give the agent CAP_SYS_PTRACE");
    let mut mapped = mappings(&host.files.read(&path).map_err(unread)?);
    mapped.retain(|mapping| mapping.is_file() && rank(&mapping.path) < 3);
    // libc comes last: whoever brings another allocator puts it before that.
    mapped.sort_by_key(|mapping| (rank(&mapping.path), mapping.device, mapping.inode));
    mapped.dedup_by_key(|mapping| (mapping.device, mapping.inode));
    Ok(mapped.iter().take(FILES_MAX).filter_map(|mapping| open(host, pid, mapping)).collect())
}

fn rank(path: &str) -> u8 {
    let name = path.rsplit('/').next().unwrap_or(path);
    match name {
        _ if !name.contains(".so") => 0,
        _ if name.contains("malloc") || name.contains("libasan") => 1,
        _ if name.starts_with("libc.so") || name.starts_with("libc-") || name.starts_with("ld-musl") => 2,
        _ => 3,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_goes_before_other_allocators_and_those_before_libc() {
        let mut paths = ["/lib/libc.so.6", "/lib/libm.so.6", "/lib/libjemalloc.so.2", "/usr/bin/server"];
        paths.sort_by_key(|path| rank(path));
        assert_eq!(paths, ["/usr/bin/server", "/lib/libjemalloc.so.2", "/lib/libc.so.6", "/lib/libm.so.6"]);
    }
}
