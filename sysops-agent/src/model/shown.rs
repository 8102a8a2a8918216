//! Text from outside (process names, paths, log lines) made fit to be shown to people: what would move a cursor,
//! break a line, hide or turn text around is written out as an escape. Quoting for a wire format is left to its channel.

/// `text` with control, bidirectional and invisible characters written as `\n` or `\u{202e}`, and cut after
/// `chars_max` characters, which a `…` then marks.
#[must_use]
pub fn shown(text: &str, chars_max: usize) -> String {
    let mut out = String::with_capacity(text.len().min(chars_max.saturating_mul(4)));
    let mut room = chars_max;
    for c in text.chars() {
        let width = if misleads(c) { c.escape_default().len() } else { 1 };
        let Some(left) = room.checked_sub(width) else {
            out.push('…');
            return out;
        };
        room = left;
        if misleads(c) { out.extend(c.escape_default()) } else { out.push(c) }
    }
    out
}

/// The longest beginning of `text` that has at most `bytes_max` bytes and ends between two characters.
#[must_use]
pub fn cut(text: &str, bytes_max: usize) -> &str {
    if text.len() <= bytes_max {
        return text;
    }
    let end = text.char_indices().map(|(at, _)| at).take_while(|at| *at <= bytes_max).last();
    &text[..end.unwrap_or(0)]
}

/// Control characters (C0, DEL, C1), and of Unicode's format characters those that turn, join or hide text.
fn misleads(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_misleads_is_written_out() {
        assert_eq!(shown("a\nb\x1b[2J\u{202e}c\u{200b}\0\u{9b}", 99), r"a\nb\u{1b}[2J\u{202e}c\u{200b}\u{0}\u{9b}");
        assert_eq!(shown("Grüße, 世界 \\ \"x\"", 99), "Grüße, 世界 \\ \"x\"");
    }

    #[test]
    fn cutting_by_bytes_keeps_characters_whole() {
        assert_eq!((cut("aüb", 4), cut("aüb", 3), cut("aüb", 2), cut("ü", 1)), ("aüb", "aü", "a", ""));
    }

    #[test]
    fn long_text_is_cut_and_marked_and_an_escape_is_never_cut_in_two() {
        assert_eq!(shown("äöüß", 4), "äöüß");
        assert_eq!(shown("äöüß", 3), "äöü…");
        assert_eq!(shown("ab\x1bc", 5), "ab…");
        assert!(shown(&"x".repeat(1 << 20), 100).len() < 110);
    }
}
