//! Remembers over restarts how far the kernel's log has been told, by boot id and sequence. Which records are told
//! is decided in `kmsg`.

use crate::host::{Host, StateFiles};

const NAME: &str = "kmsg.position";

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
    files: StateFiles,
    boot: Option<String>,
    saved: Option<u64>,
}

impl Store {
    /// The file `kmsg.position`, and what it says of the boot in which `host` is.
    #[must_use]
    pub(super) fn open(host: &Host, files: &StateFiles) -> (Self, Found) {
        let boot_path = host.files.proc("sys/kernel/random/boot_id");
        let boot = host.files.read_text(&boot_path).ok().filter(|boot| !boot.is_empty());
        let found = match (files.read(&host.files, NAME), &boot) {
            (Err(error), _) => {
                tracing::warn!("{error}: {}: the kernel's log is read from now on only", error.source);
                Found::Nothing
            }
            (Ok(None), _) | (Ok(Some(_)), None) => Found::Nothing,
            (Ok(Some(text)), Some(boot)) => parse(&text, boot).map_or(Found::OtherBoot, Found::ThisBoot),
        };
        let saved = if let Found::ThisBoot(position) = found { Some(position.sequence) } else { None };
        (Self { files: files.clone(), boot, saved }, found)
    }

    /// Writes the position if it has moved. It is not synced to the disk: with a power cut the boot ends too, and the
    /// position with it.
    pub(super) fn save(&mut self, position: Position) {
        let Some(boot) = &self.boot else { return };
        if self.saved.replace(position.sequence) == Some(position.sequence) {
            return;
        }
        let text = format!("{boot} {} {}\n", position.sequence, position.offset_ns);
        self.files.write(NAME, text.into_bytes(), "after a restart kernel events may be missed or told twice");
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
