//! Reads Rust files as text for the tests that hold rules about the code: comments and strings blanked, test modules
//! taken out, paths found. It knows tokens, not types; what a rule says is left to the tests.

#![expect(clippy::disallowed_methods, reason = "the repository's own files are read")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// A Rust file of the repository.
#[derive(Debug, Clone)]
pub struct Source {
    /// Its path from the repository's root.
    pub path: String,
    /// As it stands.
    pub text: String,
    /// Comments, strings and character literals blanked; lines and columns are kept.
    pub code: String,
    /// As `code`, without what is compiled for tests only.
    pub production: String,
}

/// A path that begins at the crate's root, and the line where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Import {
    /// Segments after `crate::`.
    pub segments: Vec<String>,
    /// Line, from 1.
    pub line: usize,
}

impl Source {
    /// A file from its text.
    #[must_use]
    pub fn new(path: &str, text: &str) -> Self {
        let code = blank(text);
        let production = without_tests(&code);
        Self { path: path.to_owned(), text: text.to_owned(), code, production }
    }

    /// Segments of the file's module below the crate's root, which is the folder `src`.
    #[must_use]
    pub fn module(&self) -> Vec<String> {
        let below = self.path.rsplit_once("src/").map_or(self.path.as_str(), |(_, below)| below);
        let mut segments: Vec<String> = below.trim_end_matches(".rs").split('/').map(str::to_owned).collect();
        if matches!(segments.last().map(String::as_str), Some("mod" | "lib")) {
            segments.pop();
        }
        segments
    }

    /// Every path in production code that names something of this crate: `crate::…` and `super::…`.
    #[must_use]
    pub fn imports(&self) -> Vec<Import> {
        let module = self.module();
        let mut found = Vec::new();
        for (start, word) in words(&self.production) {
            let rest = &self.production[start + word.len()..];
            let continues = self.production[..start].trim_end().ends_with("::");
            if continues || !rest.starts_with("::") || !matches!(word, "crate" | "super" | "sysops_agent") {
                continue;
            }
            let line = 1 + self.production[..start].matches('\n').count();
            let mut base = if word == "super" { module[..module.len().saturating_sub(1)].to_vec() } else { Vec::new() };
            let mut rest = &rest[2..];
            while let Some(after) = rest.strip_prefix("super::") {
                base.pop();
                rest = after;
            }
            let mut paths = Vec::new();
            tree(rest, &base, &mut paths);
            found.extend(paths.into_iter().map(|segments| Import { segments, line }));
        }
        found
    }

    /// Lines of production code, from 1, in which the word stands.
    #[must_use]
    pub fn lines_with(&self, word: &str) -> Vec<usize> {
        let hits = words(&self.production).filter(|(_, found)| *found == word);
        hits.map(|(start, _)| 1 + self.production[..start].matches('\n').count()).collect()
    }
}

/// The repository's root.
#[must_use]
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map(Path::to_owned).unwrap_or_default()
}

/// Files below `dir` (from the root) with one of these endings, sorted; build folders and git's own left out.
#[must_use]
pub fn files(dir: &str, endings: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    let mut open = vec![root().join(dir)];
    while let Some(dir) = open.pop() {
        for entry in std::fs::read_dir(&dir).into_iter().flatten().flatten() {
            let path = entry.path();
            let name = entry.file_name().to_string_lossy().into_owned();
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                if name != "target" && name != ".git" {
                    open.push(path);
                }
            } else if endings.iter().any(|ending| name.ends_with(ending)) {
                let below = path.strip_prefix(root()).unwrap_or(&path);
                found.push(below.to_string_lossy().into_owned());
            }
        }
    }
    found.sort();
    found
}

/// Rust files below `dir`, read. Files that a `#[cfg(test)] mod name;` names hold no production code.
#[must_use]
pub fn rust(dir: &str) -> Vec<Source> {
    let mut sources: Vec<Source> = files(dir, &[".rs"])
        .into_iter()
        .filter_map(|path| Some(Source::new(&path, &std::fs::read_to_string(root().join(&path)).ok()?)))
        .collect();
    let tests: Vec<String> = sources.iter().flat_map(test_files).collect();
    for source in &mut sources {
        let below = |test: &String| source.path == format!("{test}.rs") || source.path.starts_with(&format!("{test}/"));
        if tests.iter().any(below) {
            source.production.clear();
        }
    }
    sources
}

/// Members of a list `static ALL: … = &[&cpu::ENTRY, …];`, those behind a `#[cfg]` included.
#[must_use]
pub fn listed(code: &str) -> BTreeSet<String> {
    let list = code.split("static ALL").nth(1).and_then(|rest| rest.split_once('=')?.1.split(';').next());
    let member = |item: &str| {
        let path = item.rsplit(|c: char| c == '&' || c == '[' || c.is_whitespace()).next()?;
        Some(path.split_once("::")?.0.to_owned())
    };
    list.unwrap_or_default().split(',').filter_map(member).collect()
}

/// Paths, without ending, of modules that this file declares for tests only.
fn test_files(source: &Source) -> Vec<String> {
    let path = source.path.trim_end_matches(".rs");
    let dir = match path.rsplit_once('/') {
        Some((dir, "mod" | "lib" | "main")) => dir,
        _ => path,
    };
    test_items(&source.code)
        .into_iter()
        .filter_map(|(start, end)| source.code[start..end].rsplit_once("mod ")?.1.strip_suffix(';'))
        .map(|name| format!("{dir}/{}", name.trim()))
        .collect()
}

fn without_tests(code: &str) -> String {
    let mut bytes = code.as_bytes().to_vec();
    for (start, end) in test_items(code) {
        for byte in &mut bytes[start..end] {
            if *byte != b'\n' {
                *byte = b' ';
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Start and end of every item behind `#[cfg(test)]`, attribute included.
fn test_items(code: &str) -> Vec<(usize, usize)> {
    let attributes = ["#[cfg(test)]", "#[cfg(all(test"];
    let starts = attributes.iter().flat_map(|attribute| code.match_indices(attribute)).map(|(start, _)| start);
    starts.map(|start| (start, item_end(code, start))).collect()
}

/// End of the item whose first attribute stands at `start`: its `;` or the brace that closes it.
fn item_end(code: &str, start: usize) -> usize {
    let mut depth = 0_usize;
    let mut braces = 0_usize;
    for (at, byte) in code.bytes().enumerate().skip(start) {
        match byte {
            b'(' | b'[' => depth += 1,
            b')' | b']' => depth = depth.saturating_sub(1),
            b'{' => braces += 1,
            b'}' if braces == 1 && depth == 0 => return at + 1,
            b'}' => braces = braces.saturating_sub(1),
            b';' if braces == 0 && depth == 0 => return at + 1,
            _ => {}
        }
    }
    code.len()
}

/// Words (identifiers, keywords, numbers) with the byte at which each begins.
fn words(code: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let start = at + code[at..].find(is_word)?;
        at = start + code[start..].find(|c| !is_word(c)).unwrap_or(code.len() - start);
        Some((start, &code[start..at]))
    })
}

fn is_word(c: char) -> bool {
    c == '_' || c.is_alphanumeric()
}

/// Follows `a::{b, c::d}` from `base` and gives every whole path. What is left of the text is returned.
fn tree<'a>(text: &'a str, base: &[String], out: &mut Vec<Vec<String>>) -> &'a str {
    let text = text.trim_start();
    if let Some(mut rest) = text.strip_prefix('{') {
        loop {
            rest = rest.trim_start_matches(|c: char| c == ',' || c.is_whitespace());
            if let Some(after) = rest.strip_prefix('}') {
                return after;
            }
            let before = rest.len();
            rest = tree(rest, base, out);
            // `b as c`: the new name is of no interest.
            rest = rest.find([',', '}']).map_or("", |end| &rest[end..]);
            if rest.is_empty() || rest.len() == before {
                return "";
            }
        }
    }
    let end = text.find(|c| !is_word(c)).unwrap_or(text.len());
    let mut path = base.to_vec();
    if end > 0 && &text[..end] != "self" {
        path.push(text[..end].to_owned());
    }
    if let Some(after) = text[end..].strip_prefix("::") {
        return tree(after, &path, out);
    }
    out.push(path);
    &text[end..]
}

/// Blanks comments, strings and character literals; lines keep their length in bytes.
#[must_use]
pub fn blank(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = bytes.to_vec();
    let mut at = 0;
    while at < bytes.len() {
        let end = literal_end(bytes, at);
        for byte in &mut out[at..end] {
            if *byte != b'\n' {
                *byte = b' ';
            }
        }
        at = end.max(at + 1);
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// Where the comment, string or character that begins at `at` ends; `at` itself where none begins.
fn literal_end(bytes: &[u8], at: usize) -> usize {
    let rest = &bytes[at..];
    let line_end = || rest.iter().position(|byte| *byte == b'\n').map_or(bytes.len(), |end| at + end);
    match rest {
        [b'/', b'/', ..] => line_end(),
        [b'/', b'*', ..] => comment_end(bytes, at),
        [b'"', ..] => string_end(bytes, at + 1),
        [b'r', b'"' | b'#', ..] if !joins_word(bytes, at) => raw_string_end(bytes, at),
        [b'\'', b'\\', _, ..] => {
            (at + 3..bytes.len()).find(|end| bytes[*end] == b'\'').map_or(bytes.len(), |end| end + 1)
        }
        [b'\'', first, ..] => {
            // A character is one letter between quotes; a lifetime has no second quote right behind it.
            let length = match first {
                0..=0x7f => 1,
                0x80..=0xdf => 2,
                0xe0..=0xef => 3,
                _ => 4,
            };
            if bytes.get(at + 1 + length) == Some(&b'\'') { at + length + 2 } else { at }
        }
        _ => at,
    }
}

/// True when the `r` at `at` belongs to a longer word; `br` and `cr` are prefixes too.
fn joins_word(bytes: &[u8], at: usize) -> bool {
    let word = |index: Option<usize>| {
        index.and_then(|i| bytes.get(i)).is_some_and(|b| b.is_ascii_alphanumeric() || *b == b'_')
    };
    let prefixed = at > 0 && matches!(bytes[at - 1], b'b' | b'c') && !word(at.checked_sub(2));
    word(at.checked_sub(1)) && !prefixed
}

fn comment_end(bytes: &[u8], at: usize) -> usize {
    let (mut depth, mut end) = (0_usize, at);
    while end + 1 < bytes.len() {
        match &bytes[end..end + 2] {
            b"/*" => depth += 1,
            b"*/" if depth == 1 => return end + 2,
            b"*/" => depth -= 1,
            _ => {
                end += 1;
                continue;
            }
        }
        end += 2;
    }
    bytes.len()
}

fn string_end(bytes: &[u8], mut at: usize) -> usize {
    while at < bytes.len() {
        match bytes[at] {
            b'\\' => at += 2,
            b'"' => return at + 1,
            _ => at += 1,
        }
    }
    bytes.len()
}

fn raw_string_end(bytes: &[u8], at: usize) -> usize {
    let hashes = bytes[at + 1..].iter().take_while(|byte| **byte == b'#').count();
    let open = at + 1 + hashes;
    if bytes.get(open) != Some(&b'"') {
        return at; // A raw identifier, as r#type.
    }
    let close: Vec<u8> = std::iter::once(b'"').chain(std::iter::repeat_n(b'#', hashes)).collect();
    let end = bytes[open + 1..].windows(close.len()).position(|window| window == close);
    end.map_or(bytes.len(), |end| open + 1 + end + close.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(path: &str, text: &str) -> Vec<String> {
        Source::new(path, text).imports().iter().map(|import| import.segments.join("::")).collect()
    }

    #[test]
    fn comments_strings_and_characters_are_blanked() {
        let text = "a /* b /* c */ d */ \"e \\\" f\" r#\"g \" h\"# b'i' '\\'' 'ü' // j\nk<'l>";
        let words: Vec<String> = words(&blank(text)).map(|(_, word)| word.to_owned()).collect();
        assert_eq!(words, ["a", "b", "k", "l"]);
        assert_eq!(blank(text).len(), text.len());
    }

    #[test]
    fn groups_are_opened() {
        let text =
            "use crate::{host::{Host, files::Files as F}, model::*};\nfn f() { crate::store::view::get::<u8>() }";
        assert_eq!(
            paths("sysops-agent/src/a.rs", text),
            ["host::Host", "host::files::Files", "model", "store::view::get"]
        );
    }

    #[test]
    fn super_is_followed_from_the_files_module() {
        let text = "use super::Entry;\nuse super::super::store::View;\npub(crate) fn f() {}";
        assert_eq!(paths("sysops-agent/src/collect/cpu.rs", text), ["collect::Entry", "store::View"]);
    }

    #[test]
    fn test_modules_are_left_out_and_what_follows_is_not() {
        let text = "#[cfg(test)]\nuse crate::a::B;\n#[cfg(test)]\nmod tests { use crate::c::D; fn f() { [1]; } }\nuse crate::e::F;";
        assert_eq!(paths("sysops-agent/src/x.rs", text), ["e::F"]);
    }

    #[test]
    fn files_of_test_modules_are_known() {
        let source = Source::new("s/src/collect/process.rs", "#[cfg(test)]\nmod tests;\n");
        assert_eq!(test_files(&source), ["s/src/collect/process/tests"]);
        let source = Source::new("s/src/collect/mod.rs", "#[cfg(test)]\npub(crate) mod made;\n");
        assert_eq!(test_files(&source), ["s/src/collect/made"]);
    }

    #[test]
    fn members_of_a_list_are_found_behind_features_too() {
        let code = "pub static ALL: &[&Entry] = &[\n    #[cfg(feature = \"\")]\n    &nats::ENTRY,\n    &b::ENTRY];";
        assert_eq!(listed(code), BTreeSet::from(["nats".to_owned(), "b".to_owned()]));
    }
}
