//! Takes apart one line of /dev/kmsg: `priority,sequence,microseconds,flags;text`.
//! What the text means is left to the parsers beside it.

/// What stands before the text of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// 0 is the kernel; every other facility was written by user space, which cannot write as the kernel.
    pub facility: u32,
    /// 0 (emergency) to 7 (debug).
    pub level: u8,
    /// Number of the record since boot.
    pub sequence: u64,
    /// Microseconds of the kernel's local clock, near CLOCK_MONOTONIC.
    pub micros: u64,
    /// `-` for a whole line, `c` or `+` for a part of one.
    pub flag: u8,
}

/// A record that a parser sees: its header and its text as the kernel wrote it.
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    /// Number of the record since boot.
    pub sequence: u64,
    /// Microseconds of the kernel's local clock.
    pub micros: u64,
    /// The text. It may hold any byte, newlines too: in the name of a process, in the string of a USB device. So a
    /// record is never split into lines, and parsers anchor at its start.
    pub text: &'a [u8],
}

/// One line of /dev/kmsg.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Line {
    /// A record; its text has been put into the caller's buffer.
    Record(Header),
    /// A line ` KEY=value` of the dictionary of the record before it.
    Dictionary,
    /// Nothing that the kernel writes.
    Garbage,
}

/// Takes `line` (without its newline) apart and puts the text, unescaped, into `text`.
pub fn parse(line: &[u8], text: &mut Vec<u8>) -> Line {
    text.clear();
    if line.first() == Some(&b' ') {
        return Line::Dictionary;
    }
    let Some(end) = line.iter().position(|&byte| byte == b';') else { return Line::Garbage };
    // Kernels with CONFIG_PRINTK_CALLER have a fifth field, and more may come.
    let mut fields = line[..end].split(|&byte| byte == b',');
    let mut number = || fields.next().and_then(whole_number);
    let (Some(priority), Some(sequence), Some(micros)) = (number(), number(), number()) else { return Line::Garbage };
    let (Ok(facility), Some(&[flag, ..])) = (u32::try_from(priority >> 3), fields.next()) else { return Line::Garbage };
    unescape(&line[end + 1..], text);
    Line::Record(Header { facility, level: (priority & 7) as u8, sequence, micros, flag })
}

/// The kernel writes what is not printable, and the backslash, as `\xNN`.
fn unescape(escaped: &[u8], text: &mut Vec<u8>) {
    let mut rest = escaped;
    while let Some(&byte) = rest.first() {
        if let [b'\\', b'x', high, low, tail @ ..] = rest
            && let (Some(high), Some(low)) = (hex(*high), hex(*low))
        {
            text.push(high << 4 | low);
            rest = tail;
        } else {
            text.push(byte);
            rest = &rest[1..];
        }
    }
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|digit| u8::try_from(digit).ok())
}

/// Decimal digits and nothing else.
pub(super) fn whole_number(text: &[u8]) -> Option<u64> {
    let (number, rest) = leading_number(text)?;
    rest.is_empty().then_some(number)
}

/// Decimal digits at the start, and what follows them.
pub(super) fn leading_number(text: &[u8]) -> Option<(u64, &[u8])> {
    let digits = text.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let number = std::str::from_utf8(&text[..digits]).ok()?.parse().ok()?;
    Some((number, &text[digits..]))
}

/// First place of `needle`.
pub(super) fn find(text: &[u8], needle: &[u8]) -> Option<usize> {
    text.windows(needle.len()).position(|window| window == needle)
}

/// Last place of `needle`.
pub(super) fn rfind(text: &[u8], needle: &[u8]) -> Option<usize> {
    text.windows(needle.len()).rposition(|window| window == needle)
}

/// Bytes as text; what is not UTF-8 becomes U+FFFD.
pub(super) fn lossy(text: &[u8]) -> String {
    String::from_utf8_lossy(text).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &[u8]) -> (Line, Vec<u8>) {
        let mut text = b"left over".to_vec();
        (parse(line, &mut text), text)
    }

    #[test]
    fn a_record_is_taken_apart() {
        let (line, text) = parsed(br"14,340,1815728881,-,caller=T12;a\x0ab;\x5cx41\xff\xg");
        let header = Header { facility: 1, level: 6, sequence: 340, micros: 1_815_728_881, flag: b'-' };
        assert_eq!(line, Line::Record(header));
        assert_eq!(text, b"a\nb;\\x41\xff\\xg");
    }

    #[test]
    fn dictionary_and_garbage_are_neither() {
        assert_eq!(parsed(b" SUBSYSTEM=pci").0, Line::Dictionary);
        let garbage: [&[u8]; 7] =
            [b"", b"\0\xff\x01", b"6,1,2", b"6,1,2;x", b"x,1,2,-;x", b"6,-1,2,-;x", b"6,1,99999999999999999999,-;x"];
        for line in garbage {
            assert_eq!(parsed(line), (Line::Garbage, Vec::new()), "{line:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_text_comes_back(text: Vec<u8>) {
            let escaped: Vec<u8> = text.iter().flat_map(|&byte| match byte {
                b' '..=b'~' if byte != b'\\' => vec![byte],
                _ => format!("\\x{byte:02x}").into_bytes(),
            }).collect();
            let mut back = Vec::new();
            parse(&[b"6,1,2,-;", escaped.as_slice()].concat(), &mut back);
            proptest::prop_assert_eq!(back, text);
        }

        #[test]
        fn nothing_panics(line: Vec<u8>) {
            parse(&line, &mut Vec::new());
        }
    }
}
