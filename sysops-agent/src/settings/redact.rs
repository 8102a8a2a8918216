//! Takes secrets out of lines of the configuration before they are shown. It works on the raw line, because lines
//! with mistakes are what it is for; where it cannot tell, it hides.

use std::collections::BTreeMap;

use crate::spec::{KeySpec, Shape};

const HIDDEN: &str = "***";

/// Knows which keys may be shown.
#[derive(Default)]
pub(super) struct Redactor<'a> {
    by_path: BTreeMap<&'a str, bool>,
    by_name: BTreeMap<&'a str, bool>,
}

impl<'a> Redactor<'a> {
    /// For these keys.
    pub(super) fn new(keys: impl Iterator<Item = &'a KeySpec>) -> Self {
        let mut redactor = Self::default();
        for key in keys {
            redactor.add(key.path, key);
            redactor.add_inner(key);
        }
        redactor
    }

    /// Keys of the tables in a list, which have no path of their own.
    fn add_inner(&mut self, key: &'a KeySpec) {
        if let Shape::TableList(inner) = key.shape {
            for key in inner {
                self.add("", key);
                self.add_inner(key);
            }
        }
    }

    fn add(&mut self, path: &'a str, key: &'a KeySpec) {
        if !path.is_empty() {
            self.by_path.insert(path, key.secret);
        }
        *self.by_name.entry(key.name()).or_insert(false) |= key.secret;
    }

    /// The line as it may be shown, and the column (characters from 0) from which on it is hidden.
    /// `key` is the key whose value is at fault, when it is known. Trailing comments are left out.
    pub(super) fn line(&self, text: &str, start: usize, line: &str, key: Option<&KeySpec>) -> (String, Option<usize>) {
        let visible = if in_multiline(&text[..start]) || key.is_some_and(|key| key.secret && !line.contains('=')) {
            0
        } else {
            self.visible(line, table_above(text, start), key.is_some())
        };
        let shown = without_user(line[..visible].trim_end());
        if visible == comment_start(line) {
            return (shown, None);
        }
        let column = line[..visible].chars().count();
        (format!("{}{HIDDEN}", &line[..visible]), Some(column))
    }

    /// How many bytes of the line may be shown.
    fn visible(&self, line: &str, table: &str, value_is_known: bool) -> usize {
        let end = comment_start(line);
        let line = &line[..end];
        let names = names(line);
        if names.is_empty() && !value_is_known && !self.is_plain(line) {
            return line.len() - line.trim_start().len();
        }
        let outside = names.iter().filter(|(_, name)| self.may_be_secret(table, name)).map(|&(at, _)| at);
        // A quote that is missing turns the rest of the line inside out, so texts are searched for secrets' names too.
        let is_known = |at: &usize| names.iter().any(|(known, _)| known == at);
        let inside =
            line.match_indices('=').map(|(at, _)| at).filter(|at| !is_known(at) && self.names_secret(&line[..*at]));
        match outside.chain(inside).min() {
            Some(at) => at + 1 + (line[at + 1..].len() - line[at + 1..].trim_start().len()),
            None => end,
        }
    }

    /// True for a line without `=` that cannot hold a secret: a header, a bracket, a known key that lacks its `=`.
    fn is_plain(&self, line: &str) -> bool {
        let line = line.trim();
        let first = line.split(|c: char| !is_bare(c)).next().unwrap_or_default();
        line.is_empty()
            || self.by_name.get(first) == Some(&false)
            || (line.starts_with(['[', '}', ']']) && line.chars().all(|c| is_bare(c) || " []{}.,".contains(c)))
    }

    /// True when the text ends in the name of a secret, or in what may be one misspelt.
    fn names_secret(&self, text: &str) -> bool {
        let text = text.trim_end_matches(|c: char| !is_bare(c));
        let name = text.rsplit(|c: char| !is_bare(c)).next().unwrap_or_default();
        let is_near = |(known, &secret): (&&str, &bool)| secret && strsim::osa_distance(known, name) <= 2;
        self.by_name.get(name).copied().unwrap_or_else(|| self.by_name.iter().any(is_near))
    }

    fn may_be_secret(&self, table: &str, name: &str) -> bool {
        let path = if table.is_empty() { name.to_owned() } else { format!("{table}.{name}") };
        if let Some(&secret) = self.by_path.get(path.as_str()) {
            return secret;
        }
        let last = name.rsplit('.').next().unwrap_or(name);
        self.by_name.get(last).copied().unwrap_or(true)
    }
}

/// The table whose header stands last above `offset`; empty for the top.
pub(super) fn table_above(text: &str, offset: usize) -> &str {
    text.get(..offset).unwrap_or(text).rsplit('\n').find_map(header).unwrap_or_default()
}

/// The table that the line opens.
pub(super) fn header(line: &str) -> Option<&str> {
    let inner = line.trim_start().strip_prefix('[')?;
    let inner = inner.strip_prefix('[').unwrap_or(inner);
    let name = inner[..inner.find(']')?].trim();
    name.chars().all(|c| is_bare(c) || c == '.').then_some(name)
}

/// The names before each `=` outside of strings, with the place of the `=`.
fn names(line: &str) -> Vec<(usize, String)> {
    let mut names = Vec::new();
    let mut start = 0;
    each_outside(line, |at, c| {
        match c {
            '{' | ',' | '[' => start = at + 1,
            '=' => {
                names.push((at, line[start..at].replace(['"', '\'', ' ', '\t'], "")));
                start = at + 1;
            }
            _ => {}
        }
        true
    });
    names
}

/// Calls `each` for the characters outside of strings until it says false.
fn each_outside(line: &str, mut each: impl FnMut(usize, char) -> bool) {
    let mut quote = None;
    for (at, c) in line.char_indices() {
        match (quote, c) {
            (None, '"' | '\'') => quote = Some(c),
            (Some(open), _) if c == open => quote = None,
            (None, _) if !each(at, c) => return,
            _ => {}
        }
    }
}

/// Where the comment begins, or the end of the line without blanks.
fn comment_start(line: &str) -> usize {
    let mut end = line.len();
    each_outside(line, |at, c| {
        if c == '#' {
            end = at;
        }
        c != '#'
    });
    line[..end].trim_end().len()
}

/// True when the text ends within a string of several lines.
fn in_multiline(text: &str) -> bool {
    ["\"\"\"", "'''"].iter().any(|quotes| text.matches(quotes).count() % 2 == 1)
}

/// User and password of an address: `nats://user:pass@host` becomes `nats://***@host`.
pub(super) fn without_user(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        let (before, after) = rest.split_at(at + 3);
        out.push_str(before);
        let end = after.find(['/', '"', '\'', ' ', ',']).unwrap_or(after.len());
        rest = match after[..end].rfind('@') {
            Some(user) => {
                out.push_str(HIDDEN);
                &after[user..]
            }
            None => after,
        };
    }
    out.push_str(rest);
    out
}

fn is_bare(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '-')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{Key, Secret};

    static HOST: Key<String> = Key::text("agent.hostname", "", "");
    static URL: Key<String> = Key::text("nats.url", "", "");
    static TOKEN: Key<Option<Secret>> = Key::secret("nats.token", "");
    static HOOK: Key<Option<Secret>> = Key::secret("hook.url", "");

    fn shown(text: &str) -> String {
        let keys = [HOST.spec(), URL.spec(), TOKEN.spec(), HOOK.spec()];
        let start = text.rfind('\n').map_or(0, |at| at + 1);
        Redactor::new(keys.into_iter()).line(text, start, &text[start..], None).0
    }

    #[test]
    fn what_is_known_is_shown() {
        assert_eq!(shown("hostname = \"a\"  # where"), "hostname = \"a\"");
        assert_eq!(shown("[nats]\nurl = \"nats://u:p@h:4222\""), "url = \"nats://***@h:4222\"");
        assert_eq!(shown("[nats"), "[nats");
        assert_eq!(shown("hostname \"a\""), "hostname \"a\"");
    }

    #[test]
    fn what_may_be_secret_is_not() {
        for text in [
            "[nats]\ntoken = \"hunter2",
            "[nats]\ntoken = hunter2",
            "[nats]\n\"token\" = 'hunter2' # hunter2",
            "token='hunter2'",
            "nats.token = \"hunter2\"",
            "nats = { token = \"hunter2\" }",
            "nats = { url = \"\", token = \"hunter2\" }",
            "[hook]\nurl = \"hunter2\"",
            "url = \"hunter2\"",
            "pasword = \"hunter2\"",
            "Authorization = \"Bearer hunter2\"",
            "token = \"\"\"\nhunter2",
            "hunter2\"\"\"",
            "  \"hunter2\",",
        ] {
            assert!(!shown(text).contains("hunter2"), "{text:?} → {:?}", shown(text));
        }
        assert_eq!(shown("[nats]\ntoken = \"hunter2\""), "token = ***");
    }
}
