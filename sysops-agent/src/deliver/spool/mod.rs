//! What the outbox keeps on disk: notices that were accepted and do not wait for nothing yet, in segments that are only
//! appended to. It knows files; when something is written, read or given up is decided in `outbox`.

mod parked;
pub(crate) mod record;
mod segment;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use record::{Envelope, Record};
use segment::{Current, Header};

/// Room that is taken in advance, so that the alert of a full disk can still be accepted on that disk.
const RESERVE_BYTES: u64 = 1 << 20;

/// A spool takes at least this much room.
pub(crate) const BYTES_MIN: u64 = 4 << 20;

/// The folder, held by this agent alone.
pub(crate) struct Spool {
    dir: PathBuf,
    /// Held as long as the spool is open; the kernel lets go of it when the process ends, however that comes.
    _lock: File,
    bytes_max: u64,
    /// Oldest first; `current` is the last.
    segments: VecDeque<Segment>,
    current: Option<Current>,
    parked: parked::Parked,
}

struct Segment {
    number: u64,
    bytes: u64,
    /// Records of notices in it that still wait.
    live: u64,
}

/// Where a notice stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) segment: u64,
    pub(crate) offset: u64,
    pub(crate) length: u32,
}

/// What was found in the folder.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// Notices that wait, in the order in which they were accepted.
    pub(crate) waiting: Vec<(Envelope, Place)>,
    /// Digests of ids that were accepted, oldest first.
    pub(crate) seen: Vec<u64>,
    /// The number of the next notice.
    pub(crate) next: u64,
    /// Records that were not understood.
    pub(crate) damaged: u64,
    /// Where a spool of a newer version was put, and that version.
    pub(crate) newer: Option<(PathBuf, u32)>,
}

/// Why there is no spool.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    #[error("{0}: another agent uses it")]
    Taken(PathBuf),
    #[error("{0}: {1}")]
    Io(PathBuf, io::Error),
}

impl Spool {
    /// Opens the folder `dir`, making it where it is not, and reads what is in it.
    ///
    /// # Errors
    /// When another agent uses it, or the disk does not let us.
    pub(crate) fn open(dir: &Path, bytes_max: u64) -> Result<(Self, Found), OpenError> {
        let at = |error: io::Error| OpenError::Io(dir.to_owned(), error);
        let mut lock = Self::lock(dir)?;
        let mut found = Found { next: 1, ..Found::default() };
        let mut numbers = segment::numbers(dir).map_err(at)?;
        if let Some(version) = numbers.iter().find_map(|number| match segment::header(&segment::path(dir, *number)) {
            Ok(Header::Newer(version)) => Some(version),
            _ => None,
        }) {
            let aside = set_aside(dir, version).map_err(at)?;
            found.newer = Some((aside, version));
            lock = Self::lock(dir)?;
            numbers.clear();
        }
        let mut spool = Self {
            dir: dir.to_owned(),
            _lock: lock,
            bytes_max: bytes_max.max(BYTES_MIN),
            segments: VecDeque::new(),
            current: None,
            parked: parked::Parked::new(dir, bytes_max.max(BYTES_MIN) / 16),
        };
        spool.recover(&numbers, &mut found).map_err(at)?;
        Ok((spool, found))
    }

    fn lock(dir: &Path) -> Result<File, OpenError> {
        let at = |error: io::Error| OpenError::Io(dir.to_owned(), error);
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(at)?;
        let lock = segment::options().write(true).create(true).open(dir.join("lock")).map_err(at)?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(lock),
            Err(rustix::io::Errno::WOULDBLOCK) => Err(OpenError::Taken(dir.to_owned())),
            Err(error) => Err(at(error.into())),
        }
    }

    fn recover(&mut self, numbers: &[u64], found: &mut Found) -> io::Result<()> {
        let mut waiting: BTreeMap<u64, (Envelope, Place)> = BTreeMap::new();
        for &number in numbers {
            let (bytes, header) = segment::read(&segment::path(&self.dir, number))?;
            found.damaged += u64::from(header == Header::Damaged && !bytes.is_empty());
            let start = if header == Header::Ours { segment::HEADER } else { 0 };
            let scan = record::scan(&bytes, start.min(bytes.len()), |offset, record| match record {
                Record::Notice(envelope, json) => {
                    // What follows the envelope is not looked at before it is due.
                    let end = json.as_ptr().addr() + json.len() - bytes.as_ptr().addr();
                    let length = u32::try_from(end - offset).unwrap_or(u32::MAX);
                    let place = Place { segment: number, offset: offset as u64, length };
                    found.next = found.next.max(envelope.number.saturating_add(1));
                    found.seen.push(envelope.id);
                    // A record that was copied to the end replaces the older one.
                    waiting.insert(envelope.number, (envelope, place));
                }
                Record::Done { number, channel } => {
                    if let Some((envelope, _)) = waiting.get_mut(&number) {
                        envelope.channels.retain(|name| *name != channel);
                        if envelope.channels.is_empty() {
                            waiting.remove(&number);
                        }
                    }
                }
                // Each segment begins with all that were known by then.
                Record::Seen(ids) => found.seen = ids,
            });
            found.damaged += scan.damaged;
            self.segments.push_back(Segment { number, bytes: bytes.len() as u64, live: 0 });
        }
        found.waiting = waiting.into_values().filter(|(envelope, _)| !envelope.channels.is_empty()).collect();
        for (_, place) in &found.waiting {
            self.keep(*place);
        }
        Ok(())
    }

    /// Appends `records` as one piece, and with `sync` waits until the disk has them. Gives where they begin. Nothing is
    /// appended on an error. `seen` gives the ids for the beginning of a new segment.
    ///
    /// # Errors
    /// The disk's.
    pub(crate) fn append(
        &mut self,
        records: &[u8],
        sync: bool,
        seen: impl FnOnce() -> Vec<u64>,
    ) -> io::Result<(u64, u64)> {
        if self.current.as_ref().is_none_or(|current| current.end >= self.segment_bytes()) {
            match self.begin(seen) {
                // The segment before has room in reserve.
                Err(error) if segment::is_full(&error) && self.current.is_some() => {}
                begun => begun?,
            }
        }
        let Some(current) = &mut self.current else { return Err(io::ErrorKind::NotFound.into()) };
        let (number, offset) = (current.number, current.end);
        match current.append(records, sync) {
            Ok(()) => {
                if let Some(last) = self.segments.back_mut() {
                    last.bytes = current.end;
                }
                Ok((number, offset))
            }
            Err(error) => {
                // After an error of the disk no one knows what it has of this file: the next goes to a new one.
                if !segment::is_full(&error) || current.cut().is_err() {
                    self.current = None;
                }
                Err(error)
            }
        }
    }

    /// Begins a new segment.
    fn begin(&mut self, seen: impl FnOnce() -> Vec<u64>) -> io::Result<()> {
        let number = self.segments.back().map_or(1, |last| last.number + 1);
        let mut first = Vec::new();
        Record::Seen(seen()).encode(&mut first);
        let reserve = RESERVE_BYTES.min(self.bytes_max / 8);
        let current = match Current::create(&self.dir, number, reserve, &first) {
            // Someone has taken the folder away.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.dir)?;
                Current::create(&self.dir, number, reserve, &first)?
            }
            created => created?,
        };
        if let Some(before) = &mut self.current {
            before.end_it();
        }
        self.segments.push_back(Segment { number, bytes: current.end, live: 0 });
        self.current = Some(current);
        Ok(())
    }

    /// A notice that waits stands at `place`.
    pub(crate) fn keep(&mut self, place: Place) {
        if let Some(segment) = self.segments.iter_mut().find(|segment| segment.number == place.segment) {
            segment.live += 1;
        }
    }

    /// What stood at `place` waits no more.
    pub(crate) fn release(&mut self, place: Place) {
        if let Some(segment) = self.segments.iter_mut().find(|segment| segment.number == place.segment) {
            segment.live = segment.live.saturating_sub(1);
        }
    }

    /// Removes segments, oldest first, in which nothing waits. A record that something is done stands behind the one that
    /// it is about, so that none is removed too early.
    pub(crate) fn trim(&mut self) {
        while self.segments.len() > 1 && self.segments.front().is_some_and(|segment| segment.live == 0) {
            let Some(front) = self.segments.front() else { return };
            match std::fs::remove_file(segment::path(&self.dir, front.number)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return,
                _ => self.segments.pop_front(),
            };
        }
    }

    /// The oldest segment, when it is not the one that is written to.
    pub(crate) fn oldest(&self) -> Option<u64> {
        let front = self.segments.front()?;
        self.current.as_ref().is_none_or(|current| current.number != front.number).then_some(front.number)
    }

    /// The record at `place` as it is on disk.
    ///
    /// # Errors
    /// The disk's.
    pub(crate) fn read(dir: &Path, place: Place) -> io::Result<Vec<u8>> {
        segment::read_at(&segment::path(dir, place.segment), place)
    }

    /// The notice's JSON in what `read` gave.
    pub(crate) fn notice(bytes: &[u8], number: u64) -> Option<&[u8]> {
        record::notice(bytes, number)
    }

    /// Bytes of all files, and what may be reserved.
    pub(crate) fn bytes(&self) -> u64 {
        let reserve = self.current.as_ref().map_or(0, |current| current.reserve);
        self.segments.iter().map(|segment| segment.bytes).sum::<u64>() + reserve + self.parked.bytes()
    }

    /// How much they may be.
    pub(crate) fn bytes_max(&self) -> u64 {
        self.bytes_max
    }

    /// Sets how much they may be.
    pub(crate) fn set_bytes_max(&mut self, bytes_max: u64) {
        self.bytes_max = bytes_max.max(BYTES_MIN);
    }

    /// Keeps the text of a notice that was given up.
    ///
    /// # Errors
    /// The disk's.
    pub(crate) fn park(&mut self, line: &[u8]) -> io::Result<()> {
        self.parked.add(line)
    }

    /// Gives up what was kept of notices that were given up.
    pub(crate) fn drop_parked(&mut self) {
        self.parked.clear();
    }

    /// Waits until the disk has all.
    ///
    /// # Errors
    /// The disk's.
    pub(crate) fn sync(&mut self) -> io::Result<()> {
        self.current.as_ref().map_or(Ok(()), Current::sync)
    }

    fn segment_bytes(&self) -> u64 {
        (self.bytes_max / 16).min(4 << 20)
    }
}

/// Puts a folder that a newer version wrote beside its place.
fn set_aside(dir: &Path, version: u32) -> io::Result<PathBuf> {
    let name = dir.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let mut places = (1..100).map(|number| dir.with_file_name(format!("{name}.version-{version}.{number}")));
    let place = places.find(|place| !place.exists()).ok_or(io::ErrorKind::AlreadyExists)?;
    std::fs::rename(dir, &place)?;
    Ok(place)
}
