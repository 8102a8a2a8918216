//! Telegram's sendMessage: how HTML, MarkdownV2 and Markdown are read (after MessageEntity.cpp of Telegram's own library), what is
//! found in the text beside, and the words in which mistakes are answered.

use serde_json::{Value, json};

use super::ends_url;
use crate::http_far_end::{Answer, Request};

/// A part of a message that is more than words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entity {
    /// `bold`, `code`, `pre`, `text_link`; of what is found beside: `url`, `mention`, `hashtag`, `bot_command`, `email`.
    pub kind: String,
    /// First character and the one after the last.
    pub range: (usize, usize),
    /// Its words.
    pub text: String,
    /// Where a link leads.
    pub url: Option<String>,
}

/// A message that Telegram has taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Posted {
    /// The words.
    pub text: String,
    /// What is more than words.
    pub entities: Vec<Entity>,
    /// True when nobody is to hear of it.
    pub is_quiet: bool,
}

/// What Telegram answers to a request.
#[must_use]
pub fn answer(request: &Request) -> Answer {
    match take(&request.json()) {
        Ok(_) => Answer::json("200 OK", &json!({ "ok": true, "result": { "message_id": 42 } })),
        Err(words) => Answer::json("400 Bad Request", &error(400, &words)),
    }
}

/// Reads the body of a request.
///
/// # Errors
/// With the description of Telegram's answer.
pub fn take(body: &Value) -> Result<Posted, String> {
    let known = ["chat_id", "text", "parse_mode", "entities", "disable_notification", "link_preview_options"];
    if let Some(key) = body.as_object().and_then(|object| object.keys().find(|key| !known.contains(&key.as_str()))) {
        return Err(format!("Bad Request: unknown field {key}"));
    }
    if body["chat_id"].as_str().is_none_or(str::is_empty) {
        return Err("Bad Request: chat_id is empty".to_owned());
    }
    let text = body["text"].as_str().ok_or("Bad Request: message text is empty")?;
    let parsed = match body["parse_mode"].as_str() {
        Some("HTML") => html(text),
        Some("MarkdownV2") => markdown_v2(text),
        Some("Markdown") => markdown(text),
        None => given(text, &body["entities"]),
        Some(_) => return Err("Bad Request: unsupported parse_mode".to_owned()),
    };
    let Reader { out, mut entities, .. } =
        parsed.map_err(|error| format!("Bad Request: can't parse entities: {error}"))?;
    let words: String = out.iter().collect();
    if words.trim().is_empty() {
        return Err("Bad Request: message text is empty".to_owned());
    }
    if words.encode_utf16().count() > 4096 {
        return Err("Bad Request: message is too long".to_owned());
    }
    entities.retain(|entity| entity.range.0 < entity.range.1);
    entities.extend(found(&out, &entities));
    Ok(Posted { text: words, entities, is_quiet: body["disable_notification"] == true })
}

/// The body of an answer of this status.
#[must_use]
pub fn error(status: u16, description: &str) -> Value {
    json!({ "ok": false, "error_code": status, "description": description })
}

#[derive(Default)]
struct Reader {
    out: Vec<char>,
    entities: Vec<Entity>,
}

impl Reader {
    fn end(&mut self, kind: &str, from: usize, url: Option<String>) {
        let range = (from, self.out.len());
        let text = self.out[from..].iter().collect();
        self.entities.push(Entity { kind: kind.to_owned(), range, text, url });
    }
}

const TAGS: [(&str, &str); 14] = [
    ("a", "text_link"),
    ("b", "bold"),
    ("strong", "bold"),
    ("i", "italic"),
    ("em", "italic"),
    ("s", "strikethrough"),
    ("strike", "strikethrough"),
    ("del", "strikethrough"),
    ("u", "underline"),
    ("ins", "underline"),
    ("tg-spoiler", "spoiler"),
    ("code", "code"),
    ("pre", "pre"),
    ("blockquote", "blockquote"),
];

fn html(text: &str) -> Result<Reader, String> {
    let mut reader = Reader::default();
    let mut open: Vec<(&str, usize, Option<String>)> = Vec::new();
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let offset = text.len() - rest.len();
        if c == '&' {
            let (decoded, length) = html_entity(rest);
            reader.out.push(decoded);
            rest = &rest[length..];
        } else if c == '<' {
            let (tag, after) =
                rest[1..].split_once('>').ok_or_else(|| format!("Unclosed start tag at byte offset {offset}"))?;
            if let Some(name) = tag.strip_prefix('/') {
                let (opened, from, url) =
                    open.pop().ok_or_else(|| format!("Unexpected end tag at byte offset {offset}"))?;
                if !name.is_empty() && name != opened {
                    return Err(format!(
                        "Unmatched end tag at byte offset {offset}, expected \"</{opened}>\", found \"</{name}>\""
                    ));
                }
                let kind = TAGS.iter().find(|(tag, _)| *tag == opened).map_or("", |(_, kind)| kind);
                reader.end(kind, from, url);
            } else {
                let (name, attributes) = tag.split_once(' ').unwrap_or((tag, ""));
                let Some((name, _)) = TAGS.iter().find(|(known, _)| *known == name) else {
                    return Err(format!("Unsupported start tag \"{name}\" at byte offset {offset}"));
                };
                let url = attributes.strip_prefix("href=\"").and_then(|url| url.strip_suffix('"')).map(unescape);
                open.push((name, reader.out.len(), url));
            }
            rest = after;
        } else {
            reader.out.push(c);
            rest = &rest[c.len_utf8()..];
        }
    }
    match open.last() {
        Some((tag, ..)) => Err(format!("Can't find end tag corresponding to start tag \"{tag}\"")),
        None => Ok(reader),
    }
}

fn unescape(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let (decoded, length) = if c == '&' { html_entity(rest) } else { (c, c.len_utf8()) };
        out.push(decoded);
        rest = &rest[length..];
    }
    out
}

/// The character that stands at `&`, and how many bytes stand for it; an entity that is none stays as it is.
fn html_entity(rest: &str) -> (char, usize) {
    let named = [("&lt;", '<'), ("&gt;", '>'), ("&amp;", '&'), ("&quot;", '"')];
    if let Some((name, c)) = named.into_iter().find(|(name, _)| rest.starts_with(name)) {
        return (c, name.len());
    }
    let number = rest.strip_prefix("&#").and_then(|rest| rest.split_once(';')).map(|(digits, _)| digits);
    let code = number.and_then(|digits| match digits.strip_prefix('x') {
        Some(hex) => u32::from_str_radix(hex, 16).ok(),
        None => digits.parse().ok(),
    });
    match code.and_then(char::from_u32) {
        Some(c) => (c, number.map_or(0, str::len) + 3),
        None => ('&', 1),
    }
}

fn markdown_v2(text: &str) -> Result<Reader, String> {
    let chars: Vec<char> = text.chars().collect();
    let peek = |at: usize| chars.get(at).copied().unwrap_or('\0');
    let mut reader = Reader::default();
    let mut open: Vec<(&str, usize)> = Vec::new();
    let mut at = 0;
    while at < chars.len() {
        let c = chars[at];
        if c == '\\' && (1..=126).contains(&u32::from(peek(at + 1))) {
            reader.out.push(peek(at + 1));
            at += 2;
            continue;
        }
        let inner = open.last().map(|(kind, _)| *kind);
        let reserved = if matches!(inner, Some("code" | "pre")) { "`" } else { "_*[]()~`>#+-=|{}.!" };
        if !reserved.contains(c) {
            reader.out.push(c);
            at += 1;
            continue;
        }
        let (kind, length) = match c {
            '_' if peek(at + 1) == '_' => ("underline", 2),
            '_' => ("italic", 1),
            '*' => ("bold", 1),
            '~' => ("strikethrough", 1),
            '`' if peek(at + 1) == '`' && peek(at + 2) == '`' && inner != Some("code") => ("pre", 3),
            '`' => ("code", 1),
            '|' if peek(at + 1) == '|' => ("spoiler", 2),
            '[' | ']' => ("text_link", 1),
            _ => return Err(reserved_character(c)),
        };
        at += length;
        match open.last().copied() {
            Some((opened, from)) if opened == kind && c != '[' => {
                open.pop();
                let mut url = None;
                if kind == "text_link" && peek(at) == '(' {
                    let mut target = String::new();
                    at += 1;
                    while at < chars.len() && chars[at] != ')' {
                        at += usize::from(chars[at] == '\\' && at + 1 < chars.len());
                        target.push(chars[at]);
                        at += 1;
                    }
                    if at == chars.len() {
                        return Err("Can't find end of a URL".to_owned());
                    }
                    at += 1;
                    url = Some(target);
                }
                reader.end(kind, from, url);
            }
            _ if c == ']' => return Err(reserved_character(c)),
            _ => open.push((kind, reader.out.len())),
        }
    }
    match open.last() {
        Some((kind, _)) => Err(format!("Can't find end of {kind} entity")),
        None => Ok(reader),
    }
}

fn reserved_character(c: char) -> String {
    format!("Character '{c}' is reserved and must be escaped with the preceding '\\'")
}

fn markdown(text: &str) -> Result<Reader, String> {
    let chars: Vec<char> = text.chars().collect();
    let peek = |at: usize| chars.get(at).copied().unwrap_or('\0');
    let mut reader = Reader::default();
    let mut at = 0;
    while at < chars.len() {
        let c = chars[at];
        if c == '\\' && "_*`[".contains(peek(at + 1)) {
            reader.out.push(peek(at + 1));
            at += 2;
            continue;
        }
        if !"_*`[".contains(c) {
            reader.out.push(c);
            at += 1;
            continue;
        }
        let begin = at;
        let is_pre = c == '`' && peek(at + 1) == '`' && peek(at + 2) == '`';
        at += if is_pre { 3 } else { 1 };
        let end = if c == '[' { ']' } else { c };
        let from = reader.out.len();
        let is_end = |at: usize| chars[at] == end && (!is_pre || (peek(at + 1) == '`' && peek(at + 2) == '`'));
        while at < chars.len() && !is_end(at) {
            reader.out.push(chars[at]);
            at += 1;
        }
        if at == chars.len() {
            return Err(format!("Can't find end of the entity starting at byte offset {begin}"));
        }
        at += if is_pre { 3 } else { 1 };
        let mut url = None;
        if c == '[' && peek(at) == '(' {
            let target: String = chars[at + 1..].iter().take_while(|c| **c != ')').collect();
            at += target.chars().count() + 2;
            url = Some(target);
        }
        let kind = match c {
            '_' => "italic",
            '*' => "bold",
            '[' => "text_link",
            _ if is_pre => "pre",
            _ => "code",
        };
        reader.end(kind, from, url);
    }
    Ok(reader)
}

/// Text whose entities are given by place and length in UTF-16 units.
fn given(text: &str, list: &Value) -> Result<Reader, String> {
    let mut reader = Reader { out: text.chars().collect(), entities: Vec::new() };
    for entity in list.as_array().into_iter().flatten() {
        let number = |key: &str| entity[key].as_u64().and_then(|number| usize::try_from(number).ok());
        let (Some(offset), Some(length)) = (number("offset"), number("length")) else {
            return Err("an entity without offset or length".to_owned());
        };
        let place = |units: usize| {
            let mut seen = 0;
            reader
                .out
                .iter()
                .take_while(|c| {
                    seen += c.len_utf16();
                    seen <= units
                })
                .count()
        };
        let range = (place(offset), place(offset + length));
        let words = reader.out[range.0..range.1].iter().collect();
        let kind = entity["type"].as_str().unwrap_or_default().to_owned();
        reader.entities.push(Entity { kind, range, text: words, url: None });
    }
    Ok(reader)
}

/// What Telegram finds by itself in words that are neither code nor a link.
fn found(chars: &[char], entities: &[Entity]) -> Vec<Entity> {
    let mut is_taken = vec![false; chars.len()];
    for entity in entities.iter().filter(|entity| matches!(entity.kind.as_str(), "code" | "pre" | "text_link")) {
        is_taken[entity.range.0..entity.range.1].fill(true);
    }
    let mut found = Vec::new();
    let mut next = 0;
    for at in 0..chars.len() {
        let is_first = at == 0 || chars[at - 1].is_whitespace() || !chars[at - 1].is_alphanumeric();
        if at < next || is_taken[at] || !is_first {
            continue;
        }
        let word: String = chars[at..].iter().take_while(|c| !ends_url(**c)).collect();
        let is_name = |name: &str| name.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').count();
        let kind = match word.chars().next() {
            Some('@') if is_name(&word[1..]) >= 3 => "mention",
            Some('#') if word[1..].starts_with(char::is_alphanumeric) => "hashtag",
            Some('/') if is_name(&word[1..]) >= 1 => "bot_command",
            Some('$') if word[1..].starts_with(|c: char| c.is_ascii_uppercase()) => "cashtag",
            _ if word.contains("://") => "url",
            _ if word.contains('@') && word.contains('.') => "email",
            _ if is_domain(&word) => "url",
            _ => continue,
        };
        next = at + word.chars().count();
        found.push(Entity { kind: kind.to_owned(), range: (at, next), text: word, url: None });
    }
    found
}

/// `web-1.example.com/x`: a name with a dot and letters behind it.
fn is_domain(word: &str) -> bool {
    let host = word.split(['/', '?', ':']).next().unwrap_or_default().trim_end_matches(['.', ',', ')']);
    let last = host.rsplit('.').next().unwrap_or_default();
    host.contains('.') && last.len() >= 2 && last.bytes().all(|byte| byte.is_ascii_alphabetic())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(mode: &str, text: &str) -> Result<Vec<(String, String)>, String> {
        let body = json!({ "chat_id": "1", "text": text, "parse_mode": mode });
        take(&body).map(|posted| posted.entities.into_iter().map(|entity| (entity.kind, entity.text)).collect())
    }

    #[test]
    fn its_languages_are_read() {
        let code = vec![("bold".to_owned(), "a".to_owned()), ("code".to_owned(), "b`<\\".to_owned())];
        assert_eq!(read("HTML", "<b>a</b> <code>b`&lt;\\</code>").as_ref(), Ok(&code));
        assert_eq!(read("MarkdownV2", r"*a* `b\`<\\`").as_ref(), Ok(&code));
        assert_eq!(read("Markdown", "*a* `b`\\``<\\`").map(|all| all.len()), Ok(3));
    }

    #[test]
    fn what_it_cannot_read_it_says() {
        for (mode, text, words) in [
            ("HTML", "a <defunct>", "Unsupported start tag \"defunct\" at byte offset 2"),
            ("HTML", "<b>a", "Can't find end tag corresponding to start tag \"b\""),
            ("HTML", "<b>a</i>", "Unmatched end tag"),
            ("MarkdownV2", "a.b", "Character '.' is reserved and must be escaped"),
            ("MarkdownV2", "`a", "Can't find end of code entity"),
            ("Markdown", "a_b", "Can't find end of the entity starting at byte offset 1"),
        ] {
            let error = read(mode, text).expect_err(text);
            assert!(error.starts_with("Bad Request: can't parse entities: ") && error.contains(words), "{error}");
        }
        assert_eq!(read("HTML", &"x".repeat(4097)), Err("Bad Request: message is too long".to_owned()));
        assert!(read("HTML", &format!("<code>{}</code>", "&lt;".repeat(4096))).is_ok(), "markup does not count");
    }

    #[test]
    fn what_it_finds_by_itself_is_not_found_in_code() {
        for text in ["see evil.com", "http://x/", "@everyone", "#now", "/start", "me@evil.com"] {
            assert_eq!(read("HTML", text).map(|all| all.len()), Ok(1), "{text}");
            assert_eq!(read("HTML", &format!("<code>{text}</code>")).map(|all| all.len()), Ok(1), "{text}");
        }
        assert_eq!(read("HTML", "<code>@everyone</code>"), Ok(vec![("code".to_owned(), "@everyone".to_owned())]));
    }
}
