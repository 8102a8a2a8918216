//! A mistake in the configuration and how it is shown: what, where, the line with a caret, and what would mend it.

use std::fmt;
use std::ops::Range;

use super::redact::{self, Redactor};
use crate::spec::KeySpec;

/// Most mistakes that are shown; the rest are counted.
const SHOWN: usize = 20;

/// Widest source line that is shown whole, in characters.
const WIDTH: usize = 120;

/// One mistake, or one thing that should not stay so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    file: String,
    message: String,
    help: Option<String>,
    place: Option<Place>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    line: usize,
    column: usize,
    shown: String,
    caret: Range<usize>,
}

impl Problem {
    /// A problem of the file as a whole.
    pub(super) fn of_file(file: &str, message: String, help: Option<String>) -> Self {
        Self { file: file.to_owned(), message, help, place: None }
    }

    /// `FILE:LINE:COLUMN`, or `FILE` when it is about the whole file. Lines and columns (characters) count from 1.
    #[must_use]
    pub fn location(&self) -> String {
        match &self.place {
            Some(place) => format!("{}:{}:{}", self.file, place.line, place.column),
            None => self.file.clone(),
        }
    }

    /// The problem in one line, for logs.
    #[must_use]
    pub fn line(&self) -> String {
        let help = self.help.as_ref().map(|help| format!(" ({help})")).unwrap_or_default();
        format!("{}: {}{help}", self.location(), self.message)
    }

    /// The problem as a warning, in several lines.
    #[must_use]
    pub fn as_warning(&self) -> impl fmt::Display + '_ {
        Labelled { label: "warning", problem: self }
    }
}

struct Labelled<'a> {
    label: &'static str,
    problem: &'a Problem,
}

impl fmt::Display for Labelled<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { label, problem } = self;
        writeln!(f, "{label}: {}", problem.message)?;
        let Some(place) = &problem.place else {
            writeln!(f, " --> {}", problem.location())?;
            return problem.help.iter().try_for_each(|help| writeln!(f, "  = help: {help}"));
        };
        let number = place.line.to_string();
        let gutter = number.len();
        writeln!(f, "{:gutter$}--> {}", "", problem.location())?;
        writeln!(f, "{:gutter$} |", "")?;
        writeln!(f, "{number} | {}", place.shown)?;
        // Tabs before the caret are kept, so that it stands under its text however wide they are.
        let blank: String =
            place.shown.chars().take(place.caret.start).map(|c| if c == '\t' { '\t' } else { ' ' }).collect();
        writeln!(f, "{:gutter$} | {blank}{}", "", "^".repeat(place.caret.len().max(1)))?;
        problem.help.iter().try_for_each(|help| writeln!(f, "{:gutter$} = help: {help}", ""))
    }
}

/// Why a configuration was not accepted: all mistakes in order of their places.
#[derive(Debug, PartialEq, Eq)]
pub struct Problems {
    file: String,
    list: Vec<Problem>,
    total: usize,
}

impl Problems {
    /// The only problem of its file.
    pub(super) fn one(problem: Problem) -> Self {
        Self { file: problem.file.clone(), list: vec![problem], total: 1 }
    }

    /// Problems with their offsets in the file; at least one.
    pub(super) fn new(file: &str, mut list: Vec<(usize, Problem)>) -> Self {
        list.sort_by_key(|&(offset, _)| offset);
        let total = list.len();
        let list = list.into_iter().take(SHOWN).map(|(_, problem)| problem).collect();
        Self { file: file.to_owned(), list, total }
    }

    /// Those that are shown: the first 20.
    #[must_use]
    pub fn shown(&self) -> &[Problem] {
        &self.list
    }

    /// `3 errors in config.toml`.
    #[must_use]
    pub fn count(&self) -> String {
        let errors = if self.total == 1 { "1 error".to_owned() } else { format!("{} errors", self.total) };
        let more = match self.total - self.list.len() {
            0 => String::new(),
            hidden => format!(", {hidden} not shown"),
        };
        format!("{errors} in {}{more}", self.file)
    }

    /// How many there are.
    #[must_use]
    pub fn total(&self) -> usize {
        self.total
    }
}

impl std::error::Error for Problems {}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for problem in &self.list {
            writeln!(f, "{}", Labelled { label: "error", problem })?;
        }
        writeln!(f, "{}", self.count())
    }
}

/// The file's text with its lines, to make problems of byte ranges.
pub(super) struct Source<'a> {
    name: &'a str,
    text: &'a str,
    starts: Vec<usize>,
    redactor: Redactor<'a>,
}

impl<'a> Source<'a> {
    pub(super) fn new(name: &'a str, text: &'a str, redactor: Redactor<'a>) -> Self {
        let starts = std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect();
        Self { name, text, starts, redactor }
    }

    /// The file's name.
    pub(super) fn name(&self) -> &'a str {
        self.name
    }

    /// Number of the line that holds the byte at `offset`, from 0.
    pub(super) fn line_of(&self, offset: usize) -> usize {
        self.starts.partition_point(|&start| start <= offset).saturating_sub(1)
    }

    /// What stands at `range`.
    pub(super) fn slice(&self, range: &Range<usize>) -> &'a str {
        self.text.get(range.clone()).unwrap_or_default()
    }

    /// The table whose header stands last above `offset`.
    pub(super) fn table_above(&self, offset: usize) -> &'a str {
        redact::table_above(self.text, offset)
    }

    /// The path of the key that the line of `offset` sets, and where its value stands.
    pub(super) fn assignment_at(&self, offset: usize) -> Option<(String, Range<usize>)> {
        let start = self.starts[self.line_of(offset)];
        let line = self.text[start..].lines().next()?;
        let (name, value) = line.split_once('=')?;
        let from = start + line.len() - value.trim_start().len();
        let (table, name) = (self.table_above(start), name.trim());
        let path = if table.is_empty() { name.to_owned() } else { format!("{table}.{name}") };
        Some((path, from..from + value.trim().len()))
    }

    /// The table that the line of `offset` opens, and the number of the first line that opens it, from 0.
    pub(super) fn header_at(&self, offset: usize) -> Option<(&'a str, usize)> {
        let name = self.text.lines().nth(self.line_of(offset)).and_then(redact::header)?;
        let first = self.text.lines().position(|line| redact::header(line) == Some(name))?;
        Some((name, first))
    }

    /// A problem at `range`. `key` is the key whose value stands there, when it is known.
    pub(super) fn problem(
        &self,
        range: &Range<usize>,
        key: Option<&KeySpec>,
        message: String,
        help: Option<String>,
    ) -> (usize, Problem) {
        let index = self.line_of(range.start);
        let start = self.starts[index];
        let end = self.text[start..].find('\n').map_or(self.text.len(), |at| start + at);
        let line = self.text[start..end].trim_end_matches('\r');
        // The parser may point past the line (at a missing value) or past the file.
        let from = boundary(line, range.start.saturating_sub(start).min(line.len()));
        let to = boundary(line, range.end.saturating_sub(start).clamp(from, line.len()));
        let column = line[..from].chars().count();
        let width = line[from..to].chars().count();
        let (shown, hidden_from) = self.redactor.line(self.text, start, line, key);
        let caret = match hidden_from {
            Some(hidden) if column >= hidden => hidden..hidden + 3,
            Some(hidden) => column..(column + width).min(hidden + 3),
            None => column..column + width,
        };
        let (shown, caret) = window(&shown, caret);
        let place = Place { line: index + 1, column: column + 1, shown, caret };
        (range.start, Problem { file: self.name.to_owned(), message, help, place: Some(place) })
    }
}

/// The start of the character at `offset`.
fn boundary(line: &str, offset: usize) -> usize {
    (0..=offset).rev().find(|&offset| line.is_char_boundary(offset)).unwrap_or(0)
}

/// The part of a long line around the caret. Control characters, which could rewrite the terminal, become U+FFFD.
fn window(line: &str, caret: Range<usize>) -> (String, Range<usize>) {
    let safe = |c: char| if c.is_control() && c != '\t' { char::REPLACEMENT_CHARACTER } else { c };
    let count = line.chars().count();
    if count <= WIDTH {
        return (line.chars().map(safe).collect(), caret);
    }
    let from = caret.start.saturating_sub(WIDTH / 3).min(count - WIDTH);
    let mut shown: String = line.chars().skip(from).take(WIDTH).map(safe).collect();
    let before = usize::from(from > 0);
    if before > 0 {
        shown.insert(0, '…');
    }
    if from + WIDTH < count {
        shown.push('…');
    }
    let start = caret.start.saturating_sub(from) + before;
    (shown, start..(caret.end.saturating_sub(from) + before).clamp(start, WIDTH + before))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_lines_are_cut_around_the_caret() {
        let line = format!("{}X{}", "a".repeat(300), "b".repeat(300));
        let (shown, caret) = window(&line, 300..301);
        assert_eq!(shown.chars().count(), WIDTH + 2);
        assert_eq!(shown.chars().nth(caret.start), Some('X'));
        assert_eq!(window("a\u{1b}b", 0..1).0, "a\u{fffd}b");
    }

    #[test]
    fn places_of_lines() {
        let source = Source::new("f", "ab\ncd\n", Redactor::default());
        assert_eq!([0, 2, 3, 6].map(|offset| source.line_of(offset)), [0, 0, 1, 2]);
        let (_, problem) = source.problem(&(6..6), None, String::new(), None);
        assert_eq!(problem.location(), "f:3:1");
    }
}
