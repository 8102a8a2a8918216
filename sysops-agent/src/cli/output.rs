//! Writing for people and for pipes: a reader that goes away ends the program quietly, and colour is for terminals.

use std::fmt;
use std::io::{self, IsTerminal as _, Write};

use super::exit;
use crate::model::shown;

/// Runs `write` on stdout and gives the exit status. A closed pipe is no failure: `sysops-agent metrics | head`.
pub fn stdout(write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> u8 {
    let mut out = io::BufWriter::new(io::stdout().lock());
    let result = write(&mut out).and_then(|()| out.flush());
    // What is left in the buffer after an error has no reader; dropping the writer must not try again.
    let (_, _) = out.into_parts();
    match result {
        Err(error) => failed(&error),
        Ok(()) => exit::OK,
    }
}

/// Prints a document for machines: to a pipe byte by byte; on a terminal without what would steer it, as labels hold
/// names that processes gave themselves.
pub fn document(text: &str) -> u8 {
    let is_terminal = io::stdout().is_terminal();
    stdout(|out| if is_terminal { out.write_all(harmless(text).as_bytes()) } else { out.write_all(text.as_bytes()) })
}

fn harmless(text: &str) -> String {
    text.lines().flat_map(|line| [shown(line, usize::MAX), "\n".to_owned()]).collect()
}

/// The exit status after stdout failed: quiet when the reader went away, said otherwise.
#[must_use]
pub fn failed(error: &io::Error) -> u8 {
    if error.kind() == io::ErrorKind::BrokenPipe {
        return exit::OK;
    }
    say(&format_args!("error: cannot write to stdout: {error}"));
    exit::IO
}

/// Writes a line to stderr. When stderr is gone there is no one to tell.
pub fn say(text: &dyn fmt::Display) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// Colours for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Colour {
    /// Failures, critical and emergency alerts.
    Red,
    /// Warnings.
    Yellow,
    /// What is well.
    Green,
    /// Headings.
    Bold,
    /// What matters less.
    Dim,
}

/// Whether to write colours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Style {
    coloured: bool,
}

impl Style {
    /// For stdout: only on a terminal that knows colours, and not when `NO_COLOR` is set.
    #[must_use]
    pub fn stdout(lookup_env: &dyn Fn(&str) -> Option<String>) -> Self {
        Self::of(io::stdout().is_terminal(), lookup_env)
    }

    /// For a stream that is a terminal or not (no-color.org: set and not empty means no colour).
    #[must_use]
    pub fn of(is_terminal: bool, lookup_env: &dyn Fn(&str) -> Option<String>) -> Self {
        let is_refused = lookup_env("NO_COLOR").is_some_and(|value| !value.is_empty());
        let is_dumb = lookup_env("TERM").is_none_or(|term| term == "dumb");
        Self { coloured: is_terminal && !is_refused && !is_dumb }
    }

    /// `text` in `colour`.
    pub fn paint<T: fmt::Display>(self, colour: Colour, text: T) -> impl fmt::Display {
        Painted { code: self.coloured.then_some(code(colour)), text }
    }
}

fn code(colour: Colour) -> &'static str {
    match colour {
        Colour::Red => "31",
        Colour::Yellow => "33",
        Colour::Green => "32",
        Colour::Bold => "1",
        Colour::Dim => "2",
    }
}

struct Painted<T> {
    code: Option<&'static str>,
    text: T,
}

impl<T: fmt::Display> fmt::Display for Painted<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.code {
            // The width that was asked for is the text's, not the escapes'.
            Some(code) => {
                write!(f, "\x1b[{code}m")?;
                self.text.fmt(f)?;
                f.write_str("\x1b[0m")
            }
            None => self.text.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn style(is_terminal: bool, no_color: &str, term: &str) -> bool {
        let env = |name: &str| match name {
            "NO_COLOR" => Some(no_color.to_owned()),
            "TERM" => Some(term.to_owned()),
            _ => None,
        };
        Style::of(is_terminal, &env).coloured
    }

    #[test]
    fn colour_is_for_terminals_that_want_it() {
        assert!(style(true, "", "xterm"));
        assert!(!style(false, "", "xterm"));
        assert!(!style(true, "1", "xterm"));
        assert!(!style(true, "", "dumb"));
    }

    #[test]
    fn padding_counts_text_alone() {
        let on = Style { coloured: true };
        assert_eq!(format!("{:5}|", on.paint(Colour::Red, "ab")), "\x1b[31mab   \x1b[0m|");
        assert_eq!(format!("{:5}|", Style { coloured: false }.paint(Colour::Red, "ab")), "ab   |");
    }

    #[test]
    fn a_document_on_a_terminal_steers_nothing() {
        assert_eq!(harmless("a{comm=\"\x1b]0;x\x07\"} 1\nb 2\n"), "a{comm=\"\\u{1b}]0;x\\u{7}\"} 1\nb 2\n");
    }

    #[test]
    fn a_reader_that_went_away_is_no_failure() {
        assert_eq!(failed(&io::ErrorKind::BrokenPipe.into()), exit::OK);
    }
}
