//! Lines, fields and numbers in what the kernel prints, taken from bytes as they are: no UTF-8, no allocation.
//! What a file means, and naming it in errors, is left to its reader.

use std::borrow::Cow;

/// The lines of a file without their newlines. A last line without newline counts; an empty file has no lines.
pub fn lines(text: &[u8]) -> impl Iterator<Item = &[u8]> + Clone {
    let text = text.strip_suffix(b"\n").unwrap_or(text);
    let lines = if text.is_empty() { None } else { Some(text.split(|&byte| byte == b'\n')) };
    lines.into_iter().flatten()
}

/// The fields of a line between runs of spaces and tabs.
pub fn fields(line: &[u8]) -> impl Iterator<Item = &[u8]> + Clone {
    line.split(|&byte| byte == b' ' || byte == b'\t').filter(|field| !field.is_empty())
}

/// `line` cut at the first `separator`, which is in neither half.
#[must_use]
pub fn split_once(line: &[u8], separator: u8) -> Option<(&[u8], &[u8])> {
    let at = line.iter().position(|&byte| byte == separator)?;
    Some((&line[..at], &line[at + 1..]))
}

/// `text` without blanks and newlines at its ends.
#[must_use]
pub fn trim(text: &[u8]) -> &[u8] {
    text.trim_ascii()
}

/// A decimal number without sign. Every byte must be a digit and the value must fit.
#[must_use]
pub fn u64(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    let mut value: u64 = 0;
    for byte in digits {
        let digit = byte.wrapping_sub(b'0');
        if digit > 9 {
            return None;
        }
        value = value.checked_mul(10)?.checked_add(u64::from(digit))?;
    }
    Some(value)
}

/// A decimal number that may begin with `-`.
#[must_use]
pub fn i64(text: &[u8]) -> Option<i64> {
    match text.strip_prefix(b"-") {
        Some(digits) => 0_i64.checked_sub_unsigned(u64(digits)?),
        None => i64::try_from(u64(text)?).ok(),
    }
}

/// A hexadecimal number, with or without `0x`.
#[must_use]
pub fn hex(text: &[u8]) -> Option<u64> {
    let digits = text.strip_prefix(b"0x").unwrap_or(text);
    if digits.is_empty() || digits.len() > 16 {
        return None;
    }
    let mut value: u64 = 0;
    for &byte in digits {
        value = value << 4 | u64::from(char::from(byte).to_digit(16)?);
    }
    Some(value)
}

/// A number as `12.34` or `12`, without sign and exponent.
#[must_use]
pub fn decimal(text: &[u8]) -> Option<f64> {
    // Rust's own parser rounds correctly and takes more than the kernel prints (`inf`, `1e5`): the bytes are checked first.
    if !text.iter().all(|byte| byte.is_ascii_digit() || *byte == b'.') {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// Text for people and labels; invalid UTF-8 becomes U+FFFD, which is the only case that allocates.
#[must_use]
pub fn text(bytes: &[u8]) -> Cow<'_, str> {
    String::from_utf8_lossy(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_and_fields() {
        let all: Vec<&[u8]> = lines(b"a  b\t c\n\nd").collect();
        assert_eq!(all, [&b"a  b\t c"[..], b"", b"d"]);
        assert_eq!(lines(b"").count(), 0);
        assert_eq!(lines(b"\n").count(), 0);
        assert_eq!(fields(all[0]).collect::<Vec<_>>(), [b"a", b"b", b"c"]);
        assert_eq!(fields(b" \t").count(), 0);
        assert_eq!(split_once(b"a:b:c", b':'), Some((&b"a"[..], &b"b:c"[..])));
        assert_eq!(split_once(b"abc", b':'), None);
        assert_eq!(trim(b" a b\n"), b"a b");
    }

    #[test]
    fn numbers_are_digits_only_and_fit() {
        assert_eq!(u64(b"18446744073709551615"), Some(u64::MAX));
        for bad in [&b""[..], b"18446744073709551616", b"-1", b"+1", b"1 ", b"0x1", b"1\0", b"\xff"] {
            assert_eq!(u64(bad), None, "{bad:?}");
        }
        assert_eq!(i64(b"-9223372036854775808"), Some(i64::MIN));
        assert_eq!((i64(b"9223372036854775808"), i64(b"--1"), i64(b"-")), (None, None, None));
        assert_eq!((hex(b"0x1F"), hex(b"ffffffffffffffff")), (Some(31), Some(u64::MAX)));
        assert_eq!((hex(b"0x"), hex(b"10000000000000000"), hex(b"g")), (None, None, None));
        assert_eq!((decimal(b"0.25"), decimal(b"12"), decimal(b"1.2.3")), (Some(0.25), Some(12.0), None));
        assert_eq!((decimal(b"inf"), decimal(b""), decimal(b"."), decimal(b"1e5")), (None, None, None, None));
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_read_as_std_reads_them(bytes: Vec<u8>, number: u64, signed: i64) {
            assert_eq!(u64(number.to_string().as_bytes()), Some(number));
            assert_eq!(i64(signed.to_string().as_bytes()), Some(signed));
            assert_eq!(hex(format!("{number:x}").as_bytes()), Some(number));
            // No panic, and nothing but plain digits is a number.
            let plain = !bytes.is_empty() && bytes.iter().all(u8::is_ascii_digit);
            assert!(u64(&bytes).is_none() || plain);
            let _ = (i64(&bytes), hex(&bytes), decimal(&bytes), lines(&bytes).flat_map(fields).count());
        }
    }
}
