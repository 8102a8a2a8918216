//! What the TOML parser gives, as values of ours and in words for people.

use toml::Spanned;
use toml::de::DeValue;

use crate::spec::{Shape, Value};

/// The number, as far as it is one of 64 bits.
pub(super) fn number(value: &DeValue<'_>) -> Option<f64> {
    match value {
        #[expect(clippy::cast_precision_loss, reason = "a limit that a person wrote")]
        DeValue::Integer(number) => {
            i64::from_str_radix(number.as_str(), number.radix()).ok().map(|number| number as f64)
        }
        DeValue::Float(number) => number.as_str().parse().ok(),
        _ => None,
    }
}

/// The value as it stands in the file.
pub(super) fn written(value: &DeValue<'_>) -> Option<Value> {
    Some(match value {
        DeValue::Boolean(value) => Value::Bool(*value),
        DeValue::Integer(number) => Value::Int(i64::from_str_radix(number.as_str(), number.radix()).ok()?),
        DeValue::Float(_) => Value::Float(number(value)?),
        DeValue::String(text) => Value::Text(text.clone().into_owned()),
        DeValue::Datetime(_) => return None,
        DeValue::Table(table) => {
            let texts = table.iter().map(|(name, value)| match value.get_ref() {
                DeValue::String(text) => Some((name.get_ref().clone().into_owned(), text.clone().into_owned())),
                _ => None,
            });
            Value::TextMap(texts.collect::<Option<_>>()?)
        }
        DeValue::Array(items) => written_list(items.iter().map(Spanned::get_ref))?,
    })
}

fn written_list<'a, 'i: 'a>(items: impl Iterator<Item = &'a DeValue<'i>> + Clone) -> Option<Value> {
    let texts = items.clone().map(|item| match written(item) {
        Some(Value::Text(text)) => Some(text),
        _ => None,
    });
    if let Some(texts) = texts.collect() {
        return Some(Value::TextList(texts));
    }
    let tables = items.map(|item| {
        let DeValue::Table(table) = item else { return None };
        table
            .iter()
            .map(|(name, value)| Some((name.get_ref().clone().into_owned(), written(value.get_ref())?)))
            .collect()
    });
    tables.collect::<Option<_>>().map(Value::TableList)
}

/// True for `[name]`, `[[name]]` and `name = {…}`.
pub(super) fn is_table(value: &DeValue<'_>) -> bool {
    match value {
        DeValue::Table(_) => true,
        DeValue::Array(items) => items.iter().next().is_some_and(|first| matches!(first.get_ref(), DeValue::Table(_))),
        _ => false,
    }
}

/// The parser's words, put plainly where people meet them often.
pub(super) fn in_words(message: &str) -> &str {
    match message {
        "invalid basic string, expected `\"`" | "invalid literal string, expected `'`" => {
            "text without a closing quote"
        }
        other => other,
    }
}

/// What a value is, for people.
pub(super) fn kind(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "text",
        DeValue::Integer(_) => "a whole number",
        DeValue::Float(_) => "a number with a fraction",
        DeValue::Boolean(true) => "true",
        DeValue::Boolean(false) => "false",
        DeValue::Datetime(_) => "a date or time",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

/// The usual slips of quotes and brackets.
pub(super) fn quoting(shape: &Shape, found: &DeValue<'_>) -> Option<&'static str> {
    match (shape, found) {
        (Shape::Bool, DeValue::String(text)) if matches!(&**text, "true" | "false") => Some("write it without quotes"),
        (Shape::Int { .. } | Shape::Float { .. }, DeValue::String(text)) if text.trim().parse::<f64>().is_ok() => {
            Some("write it without quotes")
        }
        (Shape::Text | Shape::Choice(_), DeValue::Integer(_) | DeValue::Float(_) | DeValue::Boolean(_)) => {
            Some("put it in quotes")
        }
        (Shape::TextList, DeValue::String(_)) => Some("put it in brackets: [\"…\"]"),
        _ => None,
    }
}
