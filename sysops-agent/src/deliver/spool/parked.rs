//! Notices that were given up, one line of JSON each, the newest of them. Nothing reads them but people.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use super::segment::options;

/// Most that is kept.
const BYTES_MAX: u64 = 1 << 20;

pub(super) struct Parked {
    path: PathBuf,
    bytes: u64,
    bytes_max: u64,
}

impl Parked {
    pub(super) fn new(dir: &Path, bytes_max: u64) -> Self {
        let path = dir.join("parked.jsonl");
        let bytes = std::fs::metadata(&path).map_or(0, |file| file.len());
        Self { path, bytes, bytes_max: bytes_max.min(BYTES_MAX) }
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn add(&mut self, line: &[u8]) -> io::Result<()> {
        let more = line.len() as u64 + 1;
        if self.bytes + more > self.bytes_max {
            self.keep_newest(self.bytes_max / 2)?;
        }
        if self.bytes + more <= self.bytes_max {
            let mut file = options().create(true).append(true).open(&self.path)?;
            file.write_all(&[line, b"\n"].concat())?;
            self.bytes += more;
        }
        Ok(())
    }

    /// Keeps whole lines of the last `most` bytes.
    fn keep_newest(&mut self, most: u64) -> io::Result<()> {
        let mut file: File = options().read(true).write(true).create(true).truncate(false).open(&self.path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(most)))?;
        let mut kept = Vec::new();
        file.take(most).read_to_end(&mut kept)?;
        let start = kept.iter().position(|byte| *byte == b'\n').map_or(kept.len(), |end| end + 1);
        let new = self.path.with_extension("new");
        options().write(true).create(true).truncate(true).open(&new)?.write_all(&kept[start..])?;
        std::fs::rename(&new, &self.path)?;
        self.bytes = (kept.len() - start) as u64;
        Ok(())
    }

    pub(super) fn clear(&mut self) {
        if std::fs::remove_file(&self.path).is_ok() {
            self.bytes = 0;
        }
    }
}
