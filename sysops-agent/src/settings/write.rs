//! Writes values as TOML: for config/agent.toml, `config show` and the documents.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::spec::{Fallback, KeySpec, Shape, Value};

/// A basic string of TOML, with what must be escaped escaped.
#[must_use]
pub fn text(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            // Writing to a String cannot fail.
            c if c.is_control() => drop(write!(out, "\\u{:04X}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// A value in one line.
#[must_use]
pub fn value(value: &Value) -> String {
    match value {
        Value::Bool(value) => value.to_string(),
        Value::Int(value) => value.to_string(),
        Value::Float(value) => format!("{value:?}"),
        Value::Text(value) => text(value),
        Value::TextList(values) => list(values.iter().map(|value| text(value))),
        Value::TextMap(map) => table(map.iter().map(|(name, value)| (name.as_str(), text(value)))),
        Value::TableList(tables) => list(tables.iter().map(|map: &BTreeMap<String, Value>| {
            table(map.iter().map(|(name, inner)| (name.as_str(), self::value(inner))))
        })),
    }
}

/// The value of a key that is not set; `None` when it has none.
#[must_use]
pub fn fallback(fallback: &Fallback) -> Option<String> {
    Some(match *fallback {
        Fallback::Absent => return None,
        Fallback::Bool(value) => value.to_string(),
        Fallback::Int(value) => value.to_string(),
        Fallback::Float(value) => format!("{value:?}"),
        Fallback::Text(value) => text(value),
        Fallback::TextList(values) => list(values.iter().map(|value| text(value))),
    })
}

/// The default, else the example, else something of the right type.
#[must_use]
pub fn sample(key: &KeySpec) -> String {
    if let Some(default) = fallback(&key.fallback) {
        return default;
    }
    if !key.example.is_empty() {
        return key.example.to_owned();
    }
    match key.shape {
        Shape::Bool => "false".to_owned(),
        Shape::Int { min, .. } => min.to_string(),
        Shape::Float { min, .. } => format!("{min:?}"),
        Shape::Text => "\"…\"".to_owned(),
        Shape::Choice(words) => text(words.first().copied().unwrap_or_default()),
        Shape::TextList | Shape::TableList(_) => "[]".to_owned(),
        Shape::TextMap => "{}".to_owned(),
    }
}

/// A list in one line.
pub(super) fn list(items: impl Iterator<Item = String>) -> String {
    format!("[{}]", items.collect::<Vec<_>>().join(", "))
}

/// A table in one line. Names that are no bare keys are quoted.
pub(super) fn table<'a>(items: impl Iterator<Item = (&'a str, String)>) -> String {
    let is_bare = |name: &str| {
        !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'))
    };
    let items: Vec<String> = items
        .map(|(name, value)| format!("{} = {value}", if is_bare(name) { name.to_owned() } else { text(name) }))
        .collect();
    if items.is_empty() { "{}".to_owned() } else { format!("{{ {} }}", items.join(", ")) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn tables_quote_what_they_must() {
        let map = BTreeMap::from([("a-b".to_owned(), "x".to_owned()), ("c d".to_owned(), "\"".to_owned())]);
        assert_eq!(value(&Value::TextMap(map)), r#"{ a-b = "x", "c d" = "\"" }"#);
        assert_eq!(value(&Value::Float(90.0)), "90.0");
    }

    proptest! {
        #[test]
        fn any_text_comes_back(input in ".*") {
            let document = format!("x = {}", text(&input));
            let parsed: BTreeMap<String, String> = toml::from_str(&document).expect("it is TOML");
            prop_assert_eq!(&parsed["x"], &input);
        }
    }
}
