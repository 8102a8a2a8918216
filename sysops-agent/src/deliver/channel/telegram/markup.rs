//! The languages in which Telegram takes text. What a message says is laid out in pieces and cut first, and marked up last: names
//! are bold and what they say is code.

use crate::deliver::channel::chat::ALERTS_MAX;
use crate::deliver::text::{self, Fact, Room, as_it_is};
use crate::model::{Alert, Notice, shown};
use crate::template;

/// How Telegram reads a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Markup {
    /// `<b>`, `<code>`.
    Html,
    /// `*bold*`, with every special character escaped.
    MarkdownV2,
    /// The old one, in which nothing can be escaped within bold or code.
    Markdown,
    /// None at all.
    None,
}

impl Markup {
    pub(super) const NAMES: &'static [&'static str] = &["HTML", "MarkdownV2", "Markdown"];

    /// The one with this name of [`Self::NAMES`].
    pub(super) fn named(name: &str) -> Self {
        match name {
            "MarkdownV2" => Self::MarkdownV2,
            "Markdown" => Self::Markdown,
            _ => Self::Html,
        }
    }

    /// Its name in a request.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Html => "HTML",
            Self::MarkdownV2 => "MarkdownV2",
            Self::Markdown => "Markdown",
            Self::None => "",
        }
    }

    /// For the values of a template.
    pub(super) fn escape(self) -> template::Escape {
        match self {
            Self::Html => html,
            Self::MarkdownV2 => |text| escaped(text, r"\_*[]()~`>#+-=|{}.!"),
            Self::Markdown => |text| escaped(text, "_*`["),
            Self::None => template::plain,
        }
    }

    /// All of a notice in at most `units_max` UTF-16 units, markup not counted.
    pub(super) fn render(self, notice: &Notice, units_max: usize) -> String {
        pieces(notice, units_max).iter().map(|piece| self.piece(piece)).collect()
    }

    fn piece(self, piece: &Piece) -> String {
        match piece {
            Piece::Between(text) => (*text).to_owned(),
            Piece::Bold(text) => self.bold(text),
            Piece::Code(text) => self.code(text),
            Piece::Link(url) => self.link(url),
        }
    }

    fn bold(self, text: &str) -> String {
        match self {
            Self::Html => format!("<b>{}</b>", html(text)),
            Self::MarkdownV2 | Self::Markdown => format!("*{}*", (self.escape())(text)),
            Self::None => text.to_owned(),
        }
    }

    fn code(self, text: &str) -> String {
        match self {
            Self::Html => format!("<code>{}</code>", html(text)),
            Self::MarkdownV2 => format!("`{}`", escaped(text, r"\`")),
            // Code cannot hold its own mark: it ends before one and begins again behind it.
            Self::Markdown => {
                let code = |part: &str| if part.is_empty() { String::new() } else { format!("`{part}`") };
                text.split('`').map(code).collect::<Vec<_>>().join(r"\`")
            }
            Self::None => text.to_owned(),
        }
    }

    fn link(self, url: &str) -> String {
        match self {
            Self::Html => format!("<a href=\"{0}\">{0}</a>", html(url)),
            Self::MarkdownV2 => format!("[{}]({})", (self.escape())(url), escaped(url, r"\)")),
            // Nothing can be escaped within a link of the old language.
            Self::Markdown if url.contains(['(', ')', '[', ']']) => self.code(url),
            Self::Markdown => format!("[{url}]({url})"),
            Self::None => url.to_owned(),
        }
    }
}

/// A part of a message.
enum Piece {
    /// Blanks and ends of lines, which every language leaves alone.
    Between(&'static str),
    /// Words of the agent's own.
    Bold(String),
    /// What may come from outside.
    Code(String),
    /// A URL of the configuration that is fit for a link.
    Link(String),
}

fn pieces(notice: &Notice, units_max: usize) -> Vec<Piece> {
    let head = notice.head();
    // Some for "… and 7 more" and for the mark of what was left out.
    let mut page = Page { pieces: Vec::new(), room: Room::new(units_max - 64), is_full: false };
    let headline = text::headline(notice);
    page.line(&format!("{} {}", text::dot(head), text::word(head)), rest(&headline, head));
    let told = notice.alerts.len().min(ALERTS_MAX);
    for (i, alert) in notice.alerts.iter().take(told).enumerate() {
        let share = page.room.left() / (told - i);
        let mut part = Page { pieces: Vec::new(), room: Room::new(share), is_full: false };
        part.alert(alert, notice.alerts.len() > 1);
        page.room = Room::new(page.room.left() - share + part.room.left());
        page.pieces.append(&mut part.pieces);
    }
    if let Some(more) = text::and_more(notice, told) {
        page.pieces.extend([Piece::Between("\n"), Piece::Bold(more)]);
    }
    // Nothing stands before the first line.
    page.pieces.remove(0);
    page.pieces
}

/// A headline without the word with which it begins.
fn rest<'a>(headline: &'a str, alert: &Alert) -> &'a str {
    headline.strip_prefix(text::word(alert)).unwrap_or(headline).trim_start()
}

/// Pieces, and the room that there is for more.
struct Page {
    pieces: Vec<Piece>,
    room: Room,
    is_full: bool,
}

impl Page {
    fn alert(&mut self, alert: &Alert, is_one_of_many: bool) {
        if is_one_of_many {
            self.line(&format!("{} {}", text::dot(alert), text::word(alert)), rest(&text::title(alert), alert));
        }
        self.line("", &shown(&alert.message, 2000));
        for fact in text::facts(alert) {
            self.fact(alert, &fact);
        }
        self.line("", &text::origin(alert));
    }

    fn fact(&mut self, alert: &Alert, fact: &Fact) {
        if let Some(url) =
            text::runbook(alert).filter(|url| fact.name == "Runbook" && self.room.left() > url.len() + 64)
        {
            let name = self.room.take(fact.name, 64, as_it_is);
            let url = self.room.take(url, url.len(), as_it_is);
            self.room = Room::new(self.room.left() - 2);
            self.pieces.extend([Piece::Between("\n"), Piece::Bold(name), Piece::Between(" "), Piece::Link(url)]);
            return;
        }
        for (i, text) in fact.text.split('\n').enumerate() {
            self.line(if i == 0 { fact.name } else { "" }, text);
        }
    }

    /// A line of `name` in bold and `text` as code, as far as there is room for them.
    fn line(&mut self, name: &str, text: &str) {
        if self.room.left() < name.len() + 16 {
            if !self.is_full {
                self.pieces.push(Piece::Between("\n…"));
            }
            self.is_full = true;
            return;
        }
        let name = self.room.take(name, 64, as_it_is);
        let blank = if name.is_empty() { "" } else { " " };
        self.room = Room::new(self.room.left() - 2);
        let text = self.room.take(text, usize::MAX, as_it_is);
        self.pieces.push(Piece::Between("\n"));
        if !name.is_empty() {
            self.pieces.push(Piece::Bold(name));
        }
        if !text.is_empty() {
            self.pieces.extend([Piece::Between(blank), Piece::Code(text)]);
        }
    }
}

fn html(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

fn escaped(text: &str, special: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if special.contains(c) {
            out.push('\\');
        }
        out.push(c);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_holds_every_character_in_every_language() {
        assert_eq!(Markup::Html.code("<a&b>"), "<code>&lt;a&amp;b&gt;</code>");
        assert_eq!(Markup::MarkdownV2.code(r"a`b\"), r"`a\`b\\`");
        assert_eq!(Markup::Markdown.code("a``b"), r"`a`\`\``b`");
        assert_eq!(Markup::Markdown.code("`"), r"\`");
    }

    #[test]
    fn a_link_that_a_language_cannot_hold_is_code() {
        assert_eq!(Markup::Markdown.link("https://a/(b)"), "`https://a/(b)`");
        assert_eq!(Markup::MarkdownV2.link("https://a/(b)"), r"[https://a/\(b\)](https://a/(b\))");
    }
}
