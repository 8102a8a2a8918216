//! One file of the spool: a header, then records. What records say is `record`'s.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{Dir, FallocateFlags, fallocate};

use super::Place;

/// Bytes of the header: magic, version, checksum of both.
pub(super) const HEADER: usize = 16;

const MAGIC: [u8; 8] = *b"SYSOPSOB";
const VERSION: u32 = 1;

/// More than a segment ever has: what is longer was not written by the agent, and is not read further.
const BYTES_MAX: u64 = 32 << 20;

/// What a file begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Header {
    /// This version's header.
    Ours,
    /// A later version's header.
    Newer(u32),
    /// None.
    Damaged,
}

/// For the owner alone: notices tell what goes on in the machine.
pub(super) fn options() -> OpenOptions {
    let mut options = File::options();
    options.mode(0o600);
    options
}

/// The file of a segment.
pub(super) fn path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{number:016x}.segment"))
}

/// Numbers of the segments in `dir`, oldest first.
pub(super) fn numbers(dir: &Path) -> io::Result<Vec<u64>> {
    let mut numbers = Vec::new();
    for entry in Dir::read_from(options().read(true).open(dir)?)? {
        let entry = entry?;
        let name = entry.file_name().to_str().ok().and_then(|name| name.strip_suffix(".segment"));
        numbers.extend(name.filter(|name| name.len() == 16).and_then(|name| u64::from_str_radix(name, 16).ok()));
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// What the file begins with.
pub(super) fn header(path: &Path) -> io::Result<Header> {
    let mut bytes = Vec::new();
    options().read(true).open(path)?.take(HEADER as u64).read_to_end(&mut bytes)?;
    Ok(judge(&bytes))
}

fn judge(bytes: &[u8]) -> Header {
    let word = |from: usize| bytes.get(from..from + 4).and_then(|word| word.try_into().ok()).map(u32::from_le_bytes);
    match (word(8), word(12)) {
        (Some(version), Some(check)) if bytes[..8] == MAGIC && crc32fast::hash(&bytes[..12]) == check => {
            if version == VERSION { Header::Ours } else { Header::Newer(version) }
        }
        _ => Header::Damaged,
    }
}

/// The whole file.
pub(super) fn read(path: &Path) -> io::Result<(Vec<u8>, Header)> {
    let mut bytes = Vec::new();
    options().read(true).open(path)?.take(BYTES_MAX).read_to_end(&mut bytes)?;
    let header = judge(&bytes);
    Ok((bytes, header))
}

/// One record.
pub(super) fn read_at(path: &Path, place: Place) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(place.length).unwrap_or(0)];
    options().read(true).open(path)?.read_exact_at(&mut bytes, place.offset)?;
    Ok(bytes)
}

/// The file that is written to.
pub(super) struct Current {
    pub(super) number: u64,
    file: File,
    /// Where the next record goes.
    pub(super) end: u64,
    /// Up to where the disk has given room.
    reserved: u64,
    pub(super) reserve: u64,
}

impl Current {
    /// Makes the file, with `first` as its first record, and waits until the disk has it.
    pub(super) fn create(dir: &Path, number: u64, reserve: u64, first: &[u8]) -> io::Result<Self> {
        let path = path(dir, number);
        let file = options().write(true).create_new(true).open(&path)?;
        let mut current = Self { number, file, end: 0, reserved: 0, reserve };
        let mut bytes = [MAGIC.as_slice(), &VERSION.to_le_bytes()].concat();
        bytes.extend(crc32fast::hash(&bytes).to_le_bytes());
        bytes.extend(first);
        current.take_room();
        let written = current.append(&bytes, true).and_then(|()| options().read(true).open(dir)?.sync_all());
        if written.is_err() {
            // A file without records is removed at the next start, too.
            let _ = std::fs::remove_file(&path);
        }
        written.map(|()| current)
    }

    pub(super) fn append(&mut self, bytes: &[u8], sync: bool) -> io::Result<()> {
        self.file.write_all_at(bytes, self.end)?;
        if sync {
            self.sync()?;
        }
        self.end += bytes.len() as u64;
        if self.reserved < self.end + self.reserve / 2 {
            self.take_room();
        }
        Ok(())
    }

    pub(super) fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    /// Takes away what an append that failed has left.
    pub(super) fn cut(&mut self) -> io::Result<()> {
        self.file.set_len(self.end)?;
        self.take_room();
        Ok(())
    }

    /// Gives back the room that was reserved.
    pub(super) fn end_it(&mut self) {
        // What is left reserved is given back with the file.
        let _ = self.file.set_len(self.end);
    }

    /// Some file systems cannot reserve, and a full disk has nothing to reserve; then what is there has to do.
    fn take_room(&mut self) {
        if fallocate(&self.file, FallocateFlags::KEEP_SIZE, self.end, self.reserve).is_ok() {
            self.reserved = self.end + self.reserve;
        }
    }
}

/// The disk, or what the agent may have of it, is full.
pub(super) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}
