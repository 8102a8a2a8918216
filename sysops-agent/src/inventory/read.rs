//! Small files of the machine as text and numbers, each bounded; whatever cannot be read or understood is `None`.
//! Which file means what is left to its reader.

use std::path::Path;

use serde::{Serialize, Serializer};

use crate::host::{Host, bytes};

/// Devices of one kind that are listed.
pub(super) const LISTED_MAX: usize = 1024;

/// Characters of a name, model, serial number, …: more than any standard allows, and a bound on what is made up.
const TEXT_MAX: usize = 256;

/// The text of a file without blanks at its ends. An empty one tells nothing.
pub(super) fn text(host: &Host, path: &Path) -> Option<String> {
    said(&host.files.read(path).ok()?)
}

/// A decimal number.
pub(super) fn number(host: &Host, path: &Path) -> Option<u64> {
    bytes::u64(bytes::trim(&host.files.read(path).ok()?))
}

/// Text that says something: without blanks and NULs at its ends, and not empty. Control characters within are kept,
/// as JSON can carry them; invalid UTF-8 becomes U+FFFD.
pub(super) fn said(value: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(value);
    let text = text.trim_matches(|c: char| c.is_whitespace() || c == '\0');
    (!text.is_empty()).then(|| text.chars().take(TEXT_MAX).collect())
}

/// The last part of a link's target, as the name of a driver.
pub(super) fn link_name(host: &Host, path: &Path) -> Option<String> {
    let target = host.files.link(path).ok()?;
    said(target.file_name()?.as_encoded_bytes())
}

/// True when `path` is a directory that can be listed.
pub(super) fn is_directory(host: &Host, path: &Path) -> bool {
    host.files.list(path).is_ok()
}

/// The numbers of the entries `<prefix><number>` of a directory, as 7 for `cpu7`, in order; `None` without the directory.
pub(super) fn numbered(host: &Host, path: &Path, prefix: &str) -> Option<Vec<u32>> {
    let names = host.files.list(path).ok()?;
    let number = |name: &String| {
        let number = bytes::u64(name.strip_prefix(prefix)?.as_bytes())?;
        u32::try_from(number).ok()
    };
    let mut numbers: Vec<u32> = names.iter().filter_map(number).collect();
    numbers.sort_unstable();
    Some(numbers)
}

/// Keeps the first [`LISTED_MAX`] and counts the others.
pub(super) fn bound<T>(list: &mut Vec<T>, omitted: &mut usize) {
    *omitted = list.len().saturating_sub(LISTED_MAX);
    list.truncate(LISTED_MAX);
}

/// An amount in a large unit, with at most two decimals: whole ones are written without a fraction, `512` and not `512.0`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Amount {
    hundredths: u64,
}

impl Amount {
    /// `count` of a small unit in a large one of `unit` of them, rounded to the nearest hundredth.
    pub(super) fn of(count: u64, unit: u64) -> Self {
        let exact = (u128::from(count) * 100 + u128::from(unit) / 2) / u128::from(unit);
        Self { hundredths: u64::try_from(exact).expect("a large unit is at least 100 small ones") }
    }
}

impl Serialize for Amount {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.hundredths.is_multiple_of(100) {
            return serializer.serialize_u64(self.hundredths / 100);
        }
        #[expect(clippy::cast_precision_loss, reason = "two decimals of gigabytes need no more than 53 bits")]
        serializer.serialize_f64(self.hundredths as f64 / 100.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_whole_where_they_can_be() {
        let shown = |count, unit| serde_json::to_string(&Amount::of(count, unit)).expect("a number");
        assert_eq!(shown(512 << 30, 1 << 30), "512");
        assert_eq!(shown(24_684_096 << 10, 1 << 30), "23.54");
        assert_eq!(shown(3_840_755_982_336, 1_000_000_000), "3840.76");
        assert_eq!(shown(0, 1 << 30), "0");
        assert_eq!(shown(u64::MAX, 1024), "18014398509481984");
    }

    #[test]
    fn text_is_bounded_and_blank_is_nothing() {
        assert_eq!(said(b" QEMU NVMe Ctrl   \n").as_deref(), Some("QEMU NVMe Ctrl"));
        assert_eq!(said(b"a\x1b[31m\nb\0\0").as_deref(), Some("a\u{1b}[31m\nb"));
        assert_eq!((said(b" \n\0"), said(b"")), (None, None));
        assert_eq!(said(&[0xff; 300]).map(|text| text.chars().count()), Some(256));
    }
}
