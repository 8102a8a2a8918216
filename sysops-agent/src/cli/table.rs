//! Tables for people: each column as wide as its widest cell, the last without end, and lines below a row that belong to it.

use std::io::{self, Write};

use super::output::{Colour, Style};

/// A table that is filled row by row.
#[derive(Debug)]
pub struct Table {
    header: Vec<&'static str>,
    rows: Vec<Row>,
}

#[derive(Debug)]
struct Row {
    cells: Vec<Cell>,
    notes: Vec<String>,
}

/// One cell.
#[derive(Debug)]
pub struct Cell {
    text: String,
    colour: Option<Colour>,
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self { text: text.into(), colour: None }
    }
}

impl Cell {
    /// A coloured one.
    #[must_use]
    pub fn painted(text: impl Into<String>, colour: Colour) -> Self {
        Self { text: text.into(), colour: Some(colour) }
    }
}

impl Table {
    /// A table with these columns.
    #[must_use]
    pub fn new<const N: usize>(header: [&'static str; N]) -> Self {
        Self { header: header.into(), rows: Vec::new() }
    }

    /// Adds a row. Texts from outside have been made fit to be shown.
    pub fn row<const N: usize>(&mut self, cells: [Cell; N]) {
        self.rows.push(Row { cells: cells.into(), notes: Vec::new() });
    }

    /// Adds a line below the newest row.
    pub fn note(&mut self, text: String) {
        if let Some(row) = self.rows.last_mut() {
            row.notes.push(text);
        }
    }

    /// Prints it.
    ///
    /// # Errors
    /// When `out` cannot be written.
    pub fn print(&self, style: Style, out: &mut dyn Write) -> io::Result<()> {
        let width = |column: usize| {
            let cells = self.rows.iter().map(|row| row.cells[column].text.chars().count());
            cells.chain([self.header[column].len()]).max().unwrap_or(0)
        };
        let last = self.header.len() - 1;
        let widths: Vec<usize> = (0..last).map(width).chain([0]).collect();
        let header: Vec<String> =
            self.header.iter().zip(&widths).map(|(name, width)| format!("{name:<width$}")).collect();
        writeln!(out, "{}", style.paint(Colour::Dim, header.join("  ")))?;
        let indent = widths[0] + 2;
        for row in &self.rows {
            for (i, (cell, width)) in row.cells.iter().zip(&widths).enumerate() {
                match cell.colour {
                    Some(colour) => write!(out, "{:<width$}", style.paint(colour, cell.text.as_str()))?,
                    None => write!(out, "{:<width$}", cell.text)?,
                }
                write!(out, "{}", if i == last { "\n" } else { "  " })?;
            }
            row.notes.iter().try_for_each(|note| writeln!(out, "{:indent$}{note}", ""))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_they_must_be() {
        let mut table = Table::new(["A", "LONG", "LAST"]);
        table.row(["ü1".into(), Cell::painted("x", Colour::Red), "end".into()]);
        table.note("more".to_owned());
        table.row(["12345".into(), "".into(), "".into()]);
        let mut out = Vec::new();
        table.print(Style::of(false, &|_| None), &mut out).expect("memory can be written");
        let text = String::from_utf8(out).expect("UTF-8");
        assert_eq!(text, "A      LONG  LAST\nü1     x     end\n       more\n12345        \n");
    }
}
