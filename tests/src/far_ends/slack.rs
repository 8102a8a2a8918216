//! Slack's incoming webhooks: what they take, and how text and mrkdwn are read.

use serde_json::Value;

use super::{Seen, expect, units};
use crate::http_far_end::{Answer, Request};

/// A message that Slack has taken.
#[derive(Clone, Debug, Default)]
pub struct Posted {
    /// What notifications show.
    pub text: Seen,
    /// All texts of all blocks, in their order.
    pub texts: Vec<Seen>,
    /// Colours of the attachments.
    pub colours: Vec<String>,
}

impl Posted {
    /// Whom it pings.
    #[must_use]
    pub fn mentions(&self) -> Vec<&str> {
        let all = self.texts.iter().chain([&self.text]).flat_map(|seen| &seen.marks);
        all.filter_map(|mark| mark.strip_prefix("mention ")).collect()
    }
}

/// Slack's way to say one word.
#[must_use]
pub fn word(line: &'static str, word: &str) -> Answer {
    Answer::Status(line, "content-type: text/html\r\n".to_owned(), word.as_bytes().to_vec())
}

/// What Slack answers to a request.
#[must_use]
pub fn answer(request: &Request) -> Answer {
    match take(&request.json()) {
        Ok(_) => word("200 OK", "ok"),
        Err((why, _)) => word("400 Bad Request", why),
    }
}

/// Reads the body of a request.
///
/// # Errors
/// With the word that Slack would answer, and why.
pub fn take(body: &Value) -> Result<Posted, (&'static str, Vec<String>)> {
    let Some(object) = body.as_object() else { return Err(("invalid_payload", vec!["no object".to_owned()])) };
    let mut faults = Vec::new();
    let mut posted = Posted::default();
    let is_plain = body["mrkdwn"] == false;
    match &body["text"] {
        Value::String(text) => {
            posted.text = read_mrkdwn(text, is_plain, body["parse"] == "none", &mut faults);
        }
        Value::Null => {}
        _ => faults.push("text: no string".to_owned()),
    }
    let known = [
        "text",
        "blocks",
        "attachments",
        "channel",
        "mrkdwn",
        "parse",
        "link_names",
        "unfurl_links",
        "unfurl_media",
        "username",
    ];
    for key in object.keys() {
        expect(&mut faults, known.contains(&key.as_str()), || format!("{key}: unknown"));
    }
    if !faults.is_empty() {
        return Err(("invalid_payload", faults));
    }
    let mut count = blocks(&body["blocks"], &mut posted, &mut faults);
    for attachment in body["attachments"].as_array().into_iter().flatten() {
        count += blocks(&attachment["blocks"], &mut posted, &mut faults);
        if let Some(colour) = attachment["color"].as_str() {
            let is_hex = colour.len() == 7 && colour.starts_with('#');
            expect(&mut faults, is_hex, || format!("color: {colour}"));
            posted.colours.push(colour.to_owned());
        }
    }
    expect(&mut faults, count <= 50, || format!("{count} blocks"));
    if count == 0 && posted.text.text.is_empty() {
        return Err(("no_text", faults));
    }
    if faults.is_empty() { Ok(posted) } else { Err(("invalid_blocks", faults)) }
}

fn blocks(list: &Value, posted: &mut Posted, faults: &mut Vec<String>) -> usize {
    let Some(list) = list.as_array() else {
        expect(faults, list.is_null(), || "blocks: no list".to_owned());
        return 0;
    };
    for block in list {
        match block["type"].as_str() {
            Some("header") => {
                expect(faults, block["text"]["type"] == "plain_text", || "header: no plain_text".to_owned());
                object(&block["text"], 150, posted, faults);
            }
            Some("section") => section(block, posted, faults),
            Some("context") => {
                let elements = block["elements"].as_array().cloned().unwrap_or_default();
                expect(faults, (1..=10).contains(&elements.len()), || "context: 1 to 10 elements".to_owned());
                elements.iter().for_each(|element| object(element, 3000, posted, faults));
            }
            Some("divider") => {}
            other => faults.push(format!("a block of type {other:?}")),
        }
    }
    list.len()
}

fn section(block: &Value, posted: &mut Posted, faults: &mut Vec<String>) {
    let fields = block["fields"].as_array().cloned();
    expect(faults, !block["text"].is_null() || fields.is_some(), || "section: neither text nor fields".to_owned());
    if !block["text"].is_null() {
        object(&block["text"], 3000, posted, faults);
    }
    if let Some(fields) = fields {
        expect(faults, (1..=10).contains(&fields.len()), || format!("section: {} fields", fields.len()));
        fields.iter().for_each(|field| object(field, 2000, posted, faults));
    }
}

/// A text object.
fn object(value: &Value, most: usize, posted: &mut Posted, faults: &mut Vec<String>) {
    let text = value["text"].as_str().unwrap_or_default();
    expect(faults, (1..=most).contains(&units(text)), || {
        format!("a text of {} characters, at most {most}", units(text))
    });
    match value["type"].as_str() {
        Some("plain_text") => {
            expect(faults, value["verbatim"].is_null(), || "plain_text: verbatim".to_owned());
            let mut seen = Seen { text: decoded(text, faults), marks: Vec::new() };
            if value["emoji"] != false {
                seen.marks.extend(emoji(text));
            }
            posted.texts.push(seen);
        }
        Some("mrkdwn") => {
            expect(faults, value["emoji"].is_null(), || "mrkdwn: emoji".to_owned());
            posted.texts.push(read_mrkdwn(text, false, value["verbatim"] == true, faults));
        }
        other => faults.push(format!("a text of type {other:?}")),
    }
}

/// Text of which nothing is markup. A raw bracket, or an ampersand that begins no entity, is a fault of the sender.
fn decoded(text: &str, faults: &mut Vec<String>) -> String {
    expect(faults, !text.contains(['<', '>']), || format!("a raw bracket in {text:?}"));
    let mut parts = text.split('&');
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let entity = [("amp;", '&'), ("lt;", '<'), ("gt;", '>')].into_iter().find(|(name, _)| part.starts_with(name));
        match entity {
            Some((name, c)) => {
                out.push(c);
                out.push_str(&part[name.len()..]);
            }
            None => {
                faults.push(format!("a raw ampersand in {text:?}"));
                out.push('&');
                out.push_str(part);
            }
        }
    }
    out
}

/// mrkdwn: what stands in angle brackets is a link or a mention; the rest has styles unless it `is_plain`, and links of its own
/// unless it `is_verbatim`.
fn read_mrkdwn(text: &str, is_plain: bool, is_verbatim: bool, faults: &mut Vec<String>) -> Seen {
    let mut seen = Seen::default();
    let mut rest = text;
    while let Some((before, behind)) = rest.split_once('<') {
        words(before, is_plain, is_verbatim, &mut seen, faults);
        let Some((inner, after)) = behind.split_once('>') else {
            faults.push(format!("an open bracket in {text:?}"));
            return seen;
        };
        let (target, label) = inner.split_once('|').unwrap_or((inner, inner));
        if target.starts_with(['@', '!', '#']) {
            seen.marks.push(format!("mention <{inner}>"));
        } else {
            seen.marks.push(format!("link {target}"));
        }
        seen.text.push_str(&decoded(label, faults));
        rest = after;
    }
    words(rest, is_plain, is_verbatim, &mut seen, faults);
    seen
}

fn words(text: &str, is_plain: bool, is_verbatim: bool, seen: &mut Seen, faults: &mut Vec<String>) {
    let decoded = decoded(text, faults);
    if !is_plain {
        seen.marks.extend(
            ['*', '_', '~', '`'].iter().filter(|c| decoded.matches(**c).count() > 1).map(|c| format!("style {c}")),
        );
        seen.marks.extend(emoji(&decoded));
    }
    if !is_verbatim && (decoded.contains("://") || decoded.contains("www.")) {
        seen.marks.push(format!("link {decoded}"));
    }
    seen.text.push_str(&decoded);
}

/// `:fire:`
fn emoji(text: &str) -> Vec<String> {
    let inner: Vec<&str> = text.split(':').collect();
    let is_name = |name: &&&str| {
        !name.is_empty() && name.bytes().all(|b| b.is_ascii_lowercase() || b"_+-0123456789".contains(&b))
    };
    let middle = inner.get(1..inner.len().saturating_sub(1)).unwrap_or_default();
    middle.iter().filter(is_name).map(|name| format!("emoji {name}")).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn marks(text: &str) -> Vec<String> {
        read_mrkdwn(text, false, false, &mut Vec::new()).marks
    }

    #[test]
    fn its_mrkdwn_is_read() {
        for text in ["<!channel>", "<@U1>", "*a*", "`a`", "<http://e|ok>", "http://e", ":fire:"] {
            assert!(!marks(text).is_empty(), "{text}");
        }
        assert_eq!(marks("&lt;!channel&gt; a*b &amp;lt;"), [""; 0]);
        assert_eq!(read_mrkdwn("&amp;lt;", false, false, &mut Vec::new()).text, "&lt;");
    }

    #[test]
    fn what_breaks_its_rules_has_its_word() {
        let word = |body: Value| take(&body).map_or_else(|(word, _)| word, |_| "ok");
        let section = |text: Value| json!({ "blocks": [{ "type": "section", "text": text }] });
        assert_eq!(word(json!({ "text": "a" })), "ok");
        assert_eq!(word(json!([])), "invalid_payload");
        assert_eq!(word(json!({ "text": "" })), "no_text");
        assert_eq!(word(section(json!({ "type": "mrkdwn", "text": "x".repeat(3001) }))), "invalid_blocks");
        assert_eq!(word(section(json!({ "type": "plain_text", "text": "" }))), "invalid_blocks");
        assert_eq!(
            word(section(json!({ "type": "plain_text", "text": "a &l" }))),
            "invalid_blocks",
            "cut within an entity"
        );
    }
}
