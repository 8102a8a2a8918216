//! Far ends that read what they get as the real ones do by their documentation, hold it against their limits, and answer in their
//! words. What they find in a message (mentions, links, styles) is what a reader would see of it.

pub mod discord;
pub mod slack;
pub mod telegram;

/// A piece of a message as its reader sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// The words, without markup.
    pub text: String,
    /// What is more than words, as `link https://…`, `mention <@&1>`, `style *`.
    pub marks: Vec<String>,
}

/// UTF-16 units.
#[must_use]
pub fn units(text: &str) -> usize {
    text.encode_utf16().count()
}

/// Adds a line to `faults` unless `held`.
pub(crate) fn expect(faults: &mut Vec<String>, held: bool, fault: impl FnOnce() -> String) {
    if !held {
        faults.push(fault());
    }
}

/// True when `c` ends a URL in running text.
pub(crate) fn ends_url(c: char) -> bool {
    c.is_whitespace() || matches!(c, '<' | '>' | '"' | '`')
}
