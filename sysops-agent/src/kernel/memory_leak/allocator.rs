//! The allocators of one process: which of its files have `malloc`, and the programs at the entries and ends of their
//! functions. Dear: each call costs the process a microsecond or more, so that it is done on demand only.

use std::collections::BTreeMap;
use std::path::PathBuf;

use sysops_common::memory_leak::{Piece, PieceKey};

use crate::host::{Host, ReadError};
use crate::kernel::ladder::Refusal;
use crate::kernel::loader::{Object, Table};

/// Functions with the program at their entry. Those that hand out memory have `on_return` at their end.
const FUNCTIONS: [(&str, &str); 7] = [
    ("malloc", "on_malloc"),
    ("calloc", "on_calloc"),
    ("realloc", "on_realloc"),
    ("memalign", "on_memalign"),
    ("aligned_alloc", "on_memalign"),
    ("posix_memalign", "on_posix_memalign"),
    ("free", "on_free"),
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
            // A file without malloc is none of them.
            if let Err(refusal) = object.attach_to_function("on_return", &file, "malloc", pid) {
                why = format!(": {}", refusal.reason);
                continue;
            }
            attached = true;
            for (function, program) in FUNCTIONS {
                let entry = object.attach_to_function(program, &file, function, pid);
                // An allocator may lack some of the others. Were free not seen, all that is freed would be a leak.
                if ["malloc", "free"].contains(&function) {
                    entry?;
                } else if entry.is_ok() {
                    object.attach_to_function("on_return", &file, function, pid)?;
                }
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

/// The files with code of the process, as this agent can open them: its own program, then what is most likely to have
/// an allocator.
fn files(host: &Host, pid: u32) -> Result<Vec<PathBuf>, Refusal> {
    let directory = host.files.proc(&pid.to_string());
    let unread = |error: ReadError| Refusal::new(format!("{error}: {}", error.source), "give the agent CAP_SYS_PTRACE");
    let maps = host.files.read_text(&directory.join("maps")).map_err(unread)?;
    let mut paths: Vec<&str> = maps.lines().filter_map(code).collect();
    paths.dedup();
    // libc comes last: whoever brings another allocator puts it before that.
    paths.sort_by_key(|path| rank(path));
    let below = |path: &str| directory.join("root").join(path.trim_start_matches('/'));
    Ok(paths.into_iter().filter(|path| rank(path) < 3).take(FILES_MAX).map(below).collect())
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

/// The path in an executable line of /proc/<pid>/maps.
fn code(line: &str) -> Option<&str> {
    let mut words = line.splitn(6, ' ');
    let (_range, modes) = (words.next()?, words.next()?);
    let path = words.nth(3)?.trim_start();
    (modes.contains('x') && path.starts_with('/') && !path.ends_with(" (deleted)")).then_some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_is_told_from_data() {
        let line = "7f00-7f10 r-xp 00001000 fe:00 1234                     /usr/lib/x86_64-linux-gnu/libc.so.6";
        assert_eq!(code(line), Some("/usr/lib/x86_64-linux-gnu/libc.so.6"));
        for line in ["7f00-7f10 r--p 0 fe:00 1 /lib/a.so", "7f00-7f10 r-xp 0 00:00 0 [vdso]", "7f00-7f10 r-xp", ""] {
            assert_eq!(code(line), None, "{line}");
        }
    }

    #[test]
    fn the_program_goes_before_other_allocators_and_those_before_libc() {
        let mut paths = ["/lib/libc.so.6", "/lib/libm.so.6", "/lib/libjemalloc.so.2", "/usr/bin/server"];
        paths.sort_by_key(|path| rank(path));
        assert_eq!(paths, ["/usr/bin/server", "/lib/libjemalloc.so.2", "/lib/libc.so.6", "/lib/libm.so.6"]);
    }
}
