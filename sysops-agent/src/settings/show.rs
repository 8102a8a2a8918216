//! `config show`: every known key with the value that holds, as TOML.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::redact::without_user;
use super::{Declared, Settings, expand, write};
use crate::spec::{KeySpec, Shape, Value};

const HIDDEN: &str = "***";

/// The effective configuration: what was set as it was written, the rest as defaults.
pub(super) fn show(settings: &Settings, declared: &Declared) -> String {
    let mut out = String::new();
    let mut tables = by_table(&declared.keys);
    // What stands in no table comes before the first.
    tables.sort_by_key(|(table, _)| !table.is_empty());
    for (table, keys) in tables {
        if !out.is_empty() {
            out.push('\n');
        }
        if !table.is_empty() {
            // Writing to a String cannot fail.
            let _ = writeln!(out, "[{table}]");
        }
        for key in keys {
            let _ = writeln!(out, "{}", line(settings, key));
        }
    }
    out
}

/// Keys by table, tables and keys in the order in which they come.
pub(crate) fn by_table<'a>(keys: &[&'a KeySpec]) -> Vec<(&'a str, Vec<&'a KeySpec>)> {
    let mut tables: Vec<(&str, Vec<&KeySpec>)> = Vec::new();
    for &key in keys {
        match tables.iter_mut().find(|(table, _)| *table == key.table()) {
            Some((_, keys)) => keys.push(key),
            None => tables.push((key.table(), vec![key])),
        }
    }
    tables
}

/// `a.x, a.y, b` as `a.{x, y}, b`.
pub(super) fn grouped(paths: &[String]) -> String {
    let mut tables: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for path in paths {
        let (table, name) = path.rsplit_once('.').unwrap_or(("", path));
        tables.entry(table).or_default().push(name);
    }
    let group = |(table, names): (&str, Vec<&str>)| match (table, &names[..]) {
        ("", names) => names.join(", "),
        (table, [name]) => format!("{table}.{name}"),
        (table, names) => format!("{table}.{{{}}}", names.join(", ")),
    };
    tables.into_iter().map(group).collect::<Vec<_>>().join(", ")
}

fn line(settings: &Settings, key: &'static KeySpec) -> String {
    let name = key.name();
    let later = if key.built { "" } else { "  # not built yet" };
    match (settings.written.written(key), write::fallback(&key.fallback)) {
        (Some(value), _) if key.secret => format!("{name} = {}{later}", hidden(value)),
        (Some(value), _) => format!("{name} = {}{later}", without_user(&write::value(value))),
        (None, Some(default)) => format!("{name} = {default}{}", if key.built { "  # default" } else { later }),
        (None, None) if matches!(key.shape, Shape::TextMap) => format!("{name} = {{}}  # default"),
        (None, None) => format!("# {name} is not set"),
    }
}

fn hidden(value: &Value) -> String {
    let hide = |text: &str| {
        let shown = expand::references_only(text);
        write::text(if shown.is_empty() { HIDDEN } else { &shown })
    };
    match value {
        Value::Text(text) => hide(text),
        Value::TextMap(map) => write::table(map.iter().map(|(name, text)| (name.as_str(), hide(text)))),
        Value::TextList(list) => write::list(list.iter().map(|text| hide(text))),
        Value::Bool(_) | Value::Int(_) | Value::Float(_) | Value::TableList(_) => write::text(HIDDEN),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_one_table_are_named_together() {
        let paths = ["a.x", "a.y", "b.c.z", "top"].map(str::to_owned);
        assert_eq!(grouped(&paths), "top, a.{x, y}, b.c.z");
    }
}
