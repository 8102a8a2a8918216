//! Discord's execute-webhook: what it takes, whom a message pings, and how its Markdown is read.

use serde_json::{Value, json};

use super::{Seen, ends_url, expect, units};
use crate::http_far_end::{Answer, Request};

/// A message that Discord has taken.
#[derive(Clone, Debug, Default)]
pub struct Posted {
    /// Roles that it pings.
    pub pinged_roles: Vec<String>,
    /// Anything else that it pings, as `everyone` or a user.
    pub pinged_others: Vec<String>,
    /// The content.
    pub content: Seen,
    /// Title, description, and names and values of fields of all embeds; footers as they are.
    pub texts: Vec<Seen>,
    /// Colours of the embeds.
    pub colours: Vec<u64>,
}

/// What Discord answers to a request.
#[must_use]
pub fn answer(request: &Request) -> Answer {
    match take(&request.json()) {
        Ok(_) => Answer::json("200 OK", &json!({ "id": "1185000000000000001", "type": 0 })),
        Err(faults) => Answer::json("400 Bad Request", &error(&faults)),
    }
}

/// Reads the body of a request.
///
/// # Errors
/// With what Discord would answer 400 to.
pub fn take(body: &Value) -> Result<Posted, Vec<String>> {
    let mut faults = Vec::new();
    let mut posted = Posted::default();
    let known = ["username", "content", "embeds", "allowed_mentions", "avatar_url", "tts", "flags", "thread_name"];
    for key in body.as_object().into_iter().flat_map(|object| object.keys()) {
        expect(&mut faults, known.contains(&key.as_str()), || format!("{key}: unknown"));
    }
    let content = text(body, "content", 2000, &mut faults).unwrap_or_default();
    if let Some(name) = text(body, "username", 80, &mut faults) {
        let lower = name.to_lowercase();
        expect(&mut faults, !lower.contains("discord") && !lower.contains("clyde"), || "username: taken".to_owned());
    }
    let embeds = body["embeds"].as_array().cloned().unwrap_or_default();
    expect(&mut faults, embeds.len() <= 10, || "embeds: more than 10".to_owned());
    expect(&mut faults, !embeds.is_empty() || !content.is_empty(), || "50006: Cannot send an empty message".to_owned());
    let mut sum = 0;
    for embed in &embeds {
        sum += take_embed(embed, &mut posted, &mut faults);
    }
    expect(&mut faults, sum <= 6000, || format!("embeds: {sum} characters in all"));
    posted.content = read(&content);
    pings(&content, &body["allowed_mentions"], &mut posted, &mut faults);
    if faults.is_empty() { Ok(posted) } else { Err(faults) }
}

/// The answer that goes with [`take`].
#[must_use]
pub fn error(faults: &[String]) -> Value {
    let errors: Vec<Value> =
        faults.iter().map(|fault| json!({ "code": "BASE_TYPE_BAD_LENGTH", "message": fault })).collect();
    json!({ "message": "Invalid Form Body", "code": 50035, "errors": { "_errors": errors } })
}

fn take_embed(embed: &Value, posted: &mut Posted, faults: &mut Vec<String>) -> usize {
    let mut sum = 0;
    let mut see = |value: &Value, key: &str, most: usize, faults: &mut Vec<String>| {
        let text = text(value, key, most, faults).unwrap_or_default();
        sum += units(&text);
        text
    };
    let title = see(embed, "title", 256, faults);
    let description = see(embed, "description", 4096, faults);
    posted.texts.extend([read(&title), read(&description)]);
    let fields = embed["fields"].as_array().cloned().unwrap_or_default();
    expect(faults, fields.len() <= 25, || "fields: more than 25".to_owned());
    for field in &fields {
        let name = see(field, "name", 256, faults);
        let value = see(field, "value", 1024, faults);
        expect(faults, !name.trim().is_empty() && !value.trim().is_empty(), || "a field is empty".to_owned());
        expect(faults, field["inline"].is_boolean(), || "inline: no boolean".to_owned());
        posted.texts.extend([read(&name), read(&value)]);
    }
    // A footer is shown as it is.
    let footer = see(&embed["footer"], "text", 2048, faults);
    posted.texts.push(Seen { text: footer, marks: Vec::new() });
    match embed["color"].as_u64() {
        Some(colour) if colour <= 0xff_ff_ff => posted.colours.push(colour),
        _ => faults.push("color: no colour".to_owned()),
    }
    let time = embed["timestamp"].as_str().unwrap_or_default();
    expect(faults, time.len() == 20 && time.ends_with('Z'), || format!("timestamp: {time:?} is no ISO 8601"));
    sum
}

fn text(value: &Value, key: &str, most: usize, faults: &mut Vec<String>) -> Option<String> {
    match &value[key] {
        Value::Null => None,
        Value::String(text) => {
            expect(faults, units(text) <= most, || format!("{key}: {} characters, at most {most}", units(text)));
            Some(text.clone())
        }
        other => {
            faults.push(format!("{key}: expected a string, found {other}"));
            None
        }
    }
}

/// Whom the content pings. Discord looks at it as it was sent: a backslash before a mention does not help. Embeds ping no one.
fn pings(content: &str, allowed: &Value, posted: &mut Posted, faults: &mut Vec<String>) {
    let listed = |key: &str| -> Vec<String> {
        allowed[key].as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
    };
    let parse = if allowed.is_null() { vec!["users".to_owned()] } else { listed("parse") };
    let (roles, users) = (listed("roles"), listed("users"));
    for (kind, ids) in [("roles", &roles), ("users", &users)] {
        expect(faults, ids.len() <= 100, || format!("allowed_mentions.{kind}: more than 100"));
        let is_both = parse.iter().any(|word| word == kind) && !ids.is_empty();
        expect(faults, !is_both, || format!("allowed_mentions: {kind} in parse and listed"));
        let digits = |id: &String| (15..=20).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_digit());
        expect(faults, ids.iter().all(digits), || format!("allowed_mentions.{kind}: no snowflake"));
    }
    let parses = |kind: &str| parse.iter().any(|word| word == kind);
    for part in content.split("<@").skip(1) {
        let Some((id, _)) = part.split_once('>') else { continue };
        match id.strip_prefix('&') {
            Some(role) if parses("roles") || roles.iter().any(|id| id == role) => {
                posted.pinged_roles.push(role.to_owned());
            }
            None if parses("users") || users.iter().any(|user| user == id) => posted.pinged_others.push(id.to_owned()),
            _ => {}
        }
    }
    for word in ["@everyone", "@here"] {
        if content.contains(word) && parses("everyone") {
            posted.pinged_others.push(word.to_owned());
        }
    }
}

/// Reads Discord's Markdown. Whatever could be more than a word is a mark, also where the real one would still look for its end.
#[must_use]
pub fn read(text: &str) -> Seen {
    let chars: Vec<char> = text.chars().collect();
    let mut seen = Seen::default();
    let mut line = String::new();
    let mut at = 0;
    while at < chars.len() {
        let c = chars[at];
        if c == '\\' && chars.get(at + 1).is_some_and(|next| !next.is_ascii_alphanumeric() && !next.is_whitespace()) {
            seen.text.push(chars[at + 1]);
            line.push(chars[at + 1]);
            at += 2;
            continue;
        }
        // Letters and digits begin nothing but the name of a scheme.
        let rest: String =
            chars[at..].iter().take(if c.is_alphanumeric() && !"hsd".contains(c) { 0 } else { 600 }).collect();
        if let Some((mark, length, words)) = mark(&rest, &line) {
            seen.marks.push(mark);
            seen.text.push_str(&words);
            line.push_str(&words);
            at += length;
            continue;
        }
        seen.text.push(c);
        if c == '\n' {
            line.clear();
        } else {
            line.push(c);
        }
        at += 1;
    }
    seen
}

/// What begins here and is more than words: what it is, how many characters it takes, and which words are shown for it.
fn mark(rest: &str, line: &str) -> Option<(String, usize, String)> {
    let is_start = line.trim().is_empty();
    let starts = |words: &[&str]| words.iter().find(|word| rest.starts_with(**word)).map(|word| (*word).to_owned());
    let blocks = ["# ", "## ", "### ", "-# ", "> ", ">>> ", "- ", "* "];
    if let Some(word) = starts(&blocks).filter(|_| is_start) {
        return Some((format!("block {word:?}"), word.chars().count(), String::new()));
    }
    if !line.is_empty() && line.bytes().all(|b| b.is_ascii_digit()) && rest.starts_with(". ") {
        return Some(("block list".to_owned(), 2, String::new()));
    }
    if let Some(inner) = rest.strip_prefix('<').and_then(|rest| rest.split_once('>')).map(|(inner, _)| inner) {
        let length = inner.chars().count() + 2;
        if inner.starts_with("http://") || inner.starts_with("https://") {
            return Some((format!("link {inner}"), length, inner.to_owned()));
        }
        if inner.starts_with(['@', '#', ':', '/']) || ["a:", "t:", "id:"].iter().any(|word| inner.starts_with(word)) {
            return Some((format!("mention <{inner}>"), length, format!("<{inner}>")));
        }
    }
    if starts(&["http://", "https://", "steam://", "discord://"]).is_some() {
        let url: String = rest.chars().take_while(|c| !ends_url(*c)).collect();
        return Some((format!("link {url}"), url.chars().count(), url));
    }
    if let Some(word) = starts(&["@everyone", "@here"]) {
        return Some((format!("mention {word}"), word.len(), word));
    }
    if let Some(word) = starts(&["**", "*", "_", "~~", "||", "`"]) {
        return Some((format!("style {word}"), word.len(), String::new()));
    }
    if rest.starts_with('[') && rest.contains("](") {
        return Some(("link [".to_owned(), 1, String::new()));
    }
    let name = rest.strip_prefix(':').and_then(|rest| rest.split_once(':')).map(|(name, _)| name);
    let is_name = |name: &&str| !name.is_empty() && !name.contains(char::is_whitespace);
    name.filter(is_name).map(|name| (format!("emoji {name}"), name.chars().count() + 2, String::new()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn its_markdown_is_read() {
        assert_eq!(
            read(r"a\_b \@everyone \<\@1\> http\://x"),
            Seen { text: "a_b @everyone <@1> http://x".to_owned(), marks: vec![] }
        );
        for text in
            ["*a*", "a `b`", "# a", "x\n- a", "1. a", "@here", "<@&1>", "https://x", "[a](b)", ":fire:", "||a||"]
        {
            assert!(!read(text).marks.is_empty(), "{text}");
        }
    }

    #[test]
    fn a_backslash_does_not_keep_a_mention_from_pinging() {
        let body = |allowed: Value| json!({ "content": "\\@everyone <@&123456789012345678> <@7>", "allowed_mentions": allowed });
        let open = take(&body(json!({ "parse": ["everyone", "users"], "roles": ["123456789012345678"] })))
            .expect("it is right");
        assert_eq!((open.pinged_roles.len(), open.pinged_others.len()), (1, 2));
        let shut = take(&body(json!({ "parse": [] }))).expect("it is right");
        assert_eq!((shut.pinged_roles.len(), shut.pinged_others.len()), (0, 0));
    }

    #[test]
    fn limits_and_types_are_held() {
        for body in [
            json!({}),
            json!({ "content": "x".repeat(2001) }),
            json!({ "content": 1 }),
            json!({ "content": "x", "username": "my discord" }),
            json!({ "embeds": [{ "color": 1, "timestamp": "2026-02-22T16:30:00Z", "fields": [{ "name": "a", "value": "", "inline": true }] }] }),
            json!({ "embeds": [{ "description": "x".repeat(4097), "color": 1, "timestamp": "2026-02-22T16:30:00Z" }] }),
        ] {
            assert!(take(&body).is_err(), "{body}");
        }
    }
}
