//! Remembers over restarts how far the kernel's log has been told, by boot id and sequence. Which records are told
//! is decided in `kmsg`.

use std::path::{Path, PathBuf};

use crate::host::{Host, ReadError};

/// How far one boot's log has been told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Position {
    /// Records up to this one have been told.
    pub(super) sequence: u64,
    /// CLOCK_MONOTONIC less the log's clock, nanoseconds.
    pub(super) offset_ns: i64,
}

/// What the file says of this boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// There is none: the agent has never read a log here.
    Nothing,
    /// Another boot's. A file that is not understood is one too: in one boot only whole files are put in its place.
    OtherBoot,
    /// This boot's.
    ThisBoot(Position),
}

/// The file with the position.
#[derive(Debug)]
pub(super) struct Store {
    path: PathBuf,
    boot: Option<String>,
    saved: Option<Position>,
    /// The last write failed, and that has been said.
    failed: bool,
}

impl Store {
    /// The file `kmsg.position` in `data_dir`, and what it says of the boot in which `host` is.
    #[must_use]
    pub(super) fn open(host: &Host, data_dir: &Path) -> (Self, Found) {
        let boot_path = host.files.proc("sys/kernel/random/boot_id");
        let boot = host.files.read_text(&boot_path).ok().filter(|boot| !boot.is_empty());
        let mut store = Self { path: data_dir.join("kmsg.position"), boot, saved: None, failed: false };
        let found = match (host.files.read_text(&store.path), &store.boot) {
            (Err(error), _) if error.is_absent() => Found::Nothing,
            (Err(error), _) => {
                tracing::warn!("{error}: {}: the kernel's log is read from now on only", error.source);
                Found::Nothing
            }
            (Ok(_), None) => Found::Nothing,
            (Ok(text), Some(boot)) => parse(&text, boot).map_or(Found::OtherBoot, Found::ThisBoot),
        };
        if let Found::ThisBoot(position) = found {
            store.saved = Some(position);
        }
        (store, found)
    }

    /// Writes the position if it has moved. It is not synced to the disk: with a power cut the boot ends too, and the
    /// position with it. A failure is told once, until a write succeeds again.
    pub(super) fn save(&mut self, position: Position) {
        let Some(boot) = &self.boot else { return };
        if self.saved.is_some_and(|saved| saved.sequence == position.sequence) {
            return;
        }
        let text = format!("{boot} {} {}\n", position.sequence, position.offset_ns);
        match replace(&self.path, text.as_bytes()) {
            Ok(()) => {
                self.saved = Some(position);
                self.failed = false;
            }
            Err(error) if !self.failed => {
                self.failed = true;
                let source = &error.source;
                tracing::warn!(
                    "{error}: {source}: after a restart kernel events may be missed or told twice; \
                     make agent.data_dir a directory that the agent may write to"
                );
            }
            Err(_) => {}
        }
    }
}

fn parse(text: &str, boot: &str) -> Option<Position> {
    let mut words = text.split_ascii_whitespace();
    if words.next() != Some(boot) {
        return None;
    }
    let position = Position { sequence: words.next()?.parse().ok()?, offset_ns: words.next()?.parse().ok()? };
    words.next().is_none().then_some(position)
}

/// Puts a whole file in the place of `path`.
fn replace(path: &Path, content: &[u8]) -> Result<(), ReadError> {
    let new = path.with_extension("position.new");
    std::fs::write(&new, content).and_then(|()| std::fs::rename(&new, path)).map_err(|source| ReadError {
        path: path.to_owned(),
        what: "cannot write",
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_whole_line_of_this_boot_counts() {
        assert_eq!(parse("b00 17 -5\n", "b00"), Some(Position { sequence: 17, offset_ns: -5 }));
        for text in ["", "b00", "b00 17", "b00 x 0", "b00 17 0 0", "b01 17 0", "\0\0\0\0"] {
            assert_eq!(parse(text, "b00"), None, "{text:?}");
        }
    }
}
