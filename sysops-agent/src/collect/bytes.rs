//! Fields and numbers of a file, with errors that name the file and the item. The plain helpers are `host::bytes`.

pub(crate) use crate::host::bytes::*;

use super::CollectError;

/// `text` if its last line is whole. The kernel ends every line with a newline: what ends in the middle of a number
/// would be read as another number.
///
/// # Errors
/// When the text is empty or its last line is cut.
pub(crate) fn complete<'a>(text: &'a [u8], file: &str) -> Result<&'a [u8], CollectError> {
    if text.last() == Some(&b'\n') {
        return Ok(text);
    }
    let last = text.rsplit(|&byte| byte == b'\n').next().unwrap_or_default();
    Err(CollectError::parse(file, "last line", "a newline at its end", last))
}

/// The next field as a decimal number.
///
/// # Errors
/// When there is none or it is no number; `item` names it, as `"cpu3 iowait"`.
pub(crate) fn next_u64<'a>(
    fields: &mut impl Iterator<Item = &'a [u8]>,
    file: &str,
    item: impl Fn() -> String,
) -> Result<u64, CollectError> {
    need_u64(fields.next().unwrap_or_default(), file, item)
}

/// `field` as a decimal number.
///
/// # Errors
/// When it is no number.
pub(crate) fn need_u64(field: &[u8], file: &str, item: impl Fn() -> String) -> Result<u64, CollectError> {
    u64(field).ok_or_else(|| CollectError::parse(file, item(), "a number", field))
}

/// `field` as a number such as `0.25`.
///
/// # Errors
/// When it is no such number.
pub(crate) fn need_decimal(field: &[u8], file: &str, item: impl Fn() -> String) -> Result<f64, CollectError> {
    decimal(field).ok_or_else(|| CollectError::parse(file, item(), "a decimal number", field))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_name_file_item_and_expectation() {
        let mut columns = fields(b"1 x");
        let item = || "MemTotal".to_owned();
        assert_eq!(next_u64(&mut columns, "/proc/meminfo", item).expect("a number"), 1);
        let error = next_u64(&mut columns, "/proc/meminfo", item).expect_err("x");
        assert_eq!(error.to_string(), "/proc/meminfo: MemTotal: expected a number, found \"x\"");
        let error = next_u64(&mut columns, "/proc/meminfo", item).expect_err("the end");
        assert_eq!(error.to_string(), "/proc/meminfo: MemTotal: expected a number, found \"\"");
        assert_eq!(complete(b"a\nb\n", "f").ok(), Some(&b"a\nb\n"[..]));
        let error = complete(b"a\nMemFree: 12", "/proc/meminfo").expect_err("cut");
        assert_eq!(error.to_string(), "/proc/meminfo: last line: expected a newline at its end, found \"MemFree: 12\"");
        assert!(complete(b"", "f").is_err());
        assert!(need_decimal(b"-", "f", item).is_err());
        assert_eq!(need_decimal(b"1.5", "f", item).ok(), Some(1.5));
    }
}
