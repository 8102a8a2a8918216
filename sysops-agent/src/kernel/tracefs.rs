//! Finds tracefs and reads from it where the fields of a tracepoint's record lie. It is never mounted from here: that is
//! for the operator.

use std::path::PathBuf;

use super::ladder::Refusal;
use crate::host::Host;

/// Where tracefs may be mounted: its own place since 4.1, and the older one that debugfs still offers.
const PLACES: [&str; 2] = ["kernel/tracing", "kernel/debug/tracing"];

/// The fields of one tracepoint's record.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Format {
    fields: Vec<Field>,
    /// The `print fmt` line, which tells the units.
    pub print: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Field {
    name: String,
    offset: u32,
    size: u32,
}

impl Format {
    /// Where the field `name` of `size` bytes lies. A field of another size is not the one that is meant.
    #[must_use]
    pub(super) fn offset(&self, name: &str, size: u32) -> Option<u32> {
        self.fields.iter().find(|field| field.name == name && field.size == size).map(|field| field.offset)
    }
}

/// The directory of tracefs.
///
/// # Errors
/// When it is not mounted, or closed to this user.
pub(super) fn find(host: &Host) -> Result<PathBuf, Refusal> {
    let mut refusal = Refusal::new(
        "tracefs is not mounted at /sys/kernel/tracing or /sys/kernel/debug/tracing",
        "mount -t tracefs tracefs /sys/kernel/tracing",
    );
    for place in PLACES {
        let directory = host.files.sys(place);
        match host.files.list(&directory.join("events")) {
            Ok(_) => return Ok(directory),
            Err(error) if error.is_denied() => {
                refusal = Refusal::new(
                    format!("tracefs at {} is closed to this user", directory.display()),
                    "give the agent CAP_DAC_READ_SEARCH, or: mount -o remount,mode=755 /sys/kernel/tracing",
                );
            }
            Err(_) => {}
        }
    }
    Err(refusal)
}

/// The format of the tracepoint `event` (`oom/mark_victim`).
///
/// # Errors
/// When there is no such tracepoint, or its format cannot be read.
pub(super) fn format(host: &Host, tracefs: &std::path::Path, event: &str) -> Result<Format, Refusal> {
    let path = tracefs.join("events").join(event).join("format");
    match host.files.read(&path) {
        Ok(text) => Ok(parse(&text)),
        Err(error) if error.is_denied() => Err(Refusal::new(
            format!("{} is closed to this user", path.display()),
            "give the agent CAP_DAC_READ_SEARCH",
        )),
        Err(error) => Err(Refusal::new(format!("this kernel has no tracepoint {event}: {error}"), "")),
    }
}

/// Reads lines as `field:unsigned long total_vm;\toffset:16;\tsize:8;\tsigned:0;`. Others are passed over: there
/// are kinds of lines that differ between kernels, and none of them is a field.
#[must_use]
pub(super) fn parse(text: &[u8]) -> Format {
    let text = String::from_utf8_lossy(text);
    let mut format = Format::default();
    for line in text.lines() {
        let line = line.trim();
        if let Some(print) = line.strip_prefix("print fmt:") {
            print.trim().clone_into(&mut format.print);
        } else if let Some(field) = line.strip_prefix("field:").and_then(parse_field) {
            format.fields.push(field);
        }
    }
    format
}

fn parse_field(line: &str) -> Option<Field> {
    let mut parts = line.split(';').map(str::trim);
    let declaration = parts.next()?;
    // An array is declared as in C: `char comm[16]`.
    let name = declaration.rsplit([' ', '*']).next()?.split('[').next()?;
    let mut field = Field { name: name.to_owned(), offset: u32::MAX, size: 0 };
    for part in parts {
        match part.split_once(':') {
            Some(("offset", number)) => field.offset = number.parse().ok()?,
            Some(("size", number)) => field.size = number.parse().ok()?,
            _ => {}
        }
    }
    (field.offset != u32::MAX && !name.is_empty()).then_some(field)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The bytes that Linux 6.18 gives for oom/mark_victim.
    const MARK_VICTIM: &[u8] = include_bytes!("../../../tests/fixtures/tracefs/6.18/oom/mark_victim/format");

    #[test]
    fn fields_are_found_by_name_and_size() {
        let format = parse(MARK_VICTIM);
        assert_eq!(format.offset("pid", 4), Some(8));
        assert_eq!(format.offset("comm", 4), Some(12));
        assert_eq!(format.offset("total_vm", 8), Some(16));
        assert_eq!(format.offset("oom_score_adj", 2), Some(64));
        assert_eq!(format.offset("oom_score_adj", 4), None);
        assert!(format.print.contains("total-vm=%lukB"), "{}", format.print);
    }

    #[test]
    fn nonsense_has_no_fields() {
        for text in [&b""[..], b"field:", b"field:int x;offset:y;size:4;", b"field:;offset:1;size:4;", b"\xff\xfe"] {
            assert_eq!(parse(text).fields, [], "{text:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_read_without_a_panic(text: Vec<u8>, lines in "(field:[a-z \\[\\]*]{0,12};?(offset|size|x):?[0-9a-z]{0,12};?\n){0,5}") {
            let _ = (parse(&text), parse(lines.as_bytes()));
        }
    }
}
