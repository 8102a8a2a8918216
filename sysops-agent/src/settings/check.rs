//! Holds a parsed file against the declared keys and collects every mistake. How a mistake looks is left to `problem`.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::problem::{Problem, Problems, Source};
use super::redact::Redactor;
use super::{Absent, Declared, Settings, expand, keys, suggest, write};
use crate::spec::{Complaint, KeySpec, Shape, Value};

/// Checks `text`; see [`super::parse`].
pub(super) fn check(
    name: &str,
    text: &str,
    declared: &Declared,
    lookup: &dyn Fn(&str) -> Option<String>,
) -> Result<Settings, Problems> {
    let (document, mistakes) = DeTable::parse_recoverable(text);
    let mut checker = Checker::new(text, declared, lookup);
    checker.table("", document.get_ref());
    if mistakes.is_empty() {
        checker.complaints(declared);
    } else {
        checker.syntax(&mistakes);
    }
    if !checker.problems.is_empty() {
        return Err(Problems::new(name, checker.problems));
    }
    let mut settings = checker.settings;
    settings.not_built.sort_unstable();
    settings.hostname = settings.values.get(&keys::HOSTNAME);
    Ok(settings)
}

/// Paths of secret keys whose values stand in the file itself and not in the environment.
pub(super) fn literal_secrets<'a>(settings: &Settings, declared: &'a Declared) -> Vec<&'a str> {
    let is_literal = |text: &String| !text.is_empty() && !expand::is_reference_only(text);
    let holds = |key: &&&'static KeySpec| match settings.written.written(key) {
        Some(Value::Text(text)) => is_literal(text),
        Some(Value::TextMap(map)) => map.values().any(is_literal),
        Some(Value::TextList(list)) => list.iter().any(is_literal),
        _ => false,
    };
    declared.keys.iter().filter(|key| key.secret).filter(holds).map(|key| key.path).collect()
}

struct Checker<'a> {
    source: Source<'a>,
    lookup: &'a dyn Fn(&str) -> Option<String>,
    keys: BTreeMap<&'static str, &'static KeySpec>,
    tables: BTreeSet<&'static str>,
    absent: &'a [Absent],
    settings: Settings,
    problems: Vec<(usize, Problem)>,
    /// Where each key and table that was found stands.
    places: BTreeMap<String, Range<usize>>,
    /// Tables in which something is wrong already.
    faulty: BTreeSet<String>,
}

impl<'a> Checker<'a> {
    fn new(text: &'a str, declared: &'a Declared, lookup: &'a dyn Fn(&str) -> Option<String>) -> Self {
        let mut tables = BTreeSet::new();
        for key in &declared.keys {
            let mut table = key.table();
            while !table.is_empty() && tables.insert(table) {
                table = table.rsplit_once('.').map_or("", |(parent, _)| parent);
            }
        }
        Self {
            source: Source::new(text, Redactor::new(declared.keys.iter().copied())),
            lookup,
            keys: declared.keys.iter().map(|&key| (key.path, key)).collect(),
            tables,
            absent: &declared.absent,
            settings: Settings::default(),
            problems: Vec::new(),
            places: BTreeMap::new(),
            faulty: BTreeSet::new(),
        }
    }

    fn problem(&mut self, at: &Range<usize>, key: Option<&KeySpec>, message: String, help: Option<String>) {
        self.problems.push(self.source.problem(at, key, message, help));
    }

    fn table(&mut self, prefix: &str, table: &DeTable<'_>) {
        for (key, value) in table {
            let name: &str = key.get_ref();
            let path = if prefix.is_empty() { name.to_owned() } else { format!("{prefix}.{name}") };
            // A quoted name with a dot in it is one name, and none of ours.
            let is_one = !name.contains('.');
            self.places.insert(path.clone(), key.span());
            if let Some(&spec) = self.keys.get(path.as_str()).filter(|_| is_one) {
                self.key(spec, value);
            } else if is_one && self.tables.contains(path.as_str()) {
                match value.get_ref() {
                    DeValue::Table(inner) => self.table(&path, inner),
                    other => {
                        let message = format!("{path}: expected a table, found {}", kind(other));
                        self.problem(
                            &value.span(),
                            None,
                            message,
                            Some(format!("write [{path}] on a line of its own")),
                        );
                    }
                }
            } else if let Some(&absent) = self.absent.iter().find(|absent| absent.table == path) {
                self.settings.not_in_build.push(absent);
            } else {
                self.unknown(prefix, name, &path, key.span(), value.get_ref());
            }
        }
    }

    fn unknown(&mut self, table: &str, name: &str, path: &str, at: Range<usize>, value: &DeValue<'_>) {
        self.faulty.insert(table.to_owned());
        let (message, help) = if matches!(value, DeValue::Table(_)) {
            let known: Vec<&str> =
                self.tables.iter().copied().chain(self.absent.iter().map(|absent| absent.table)).collect();
            (format!("unknown table [{path}]"), suggest::table(path, &known))
        } else {
            let known: Vec<&str> = self.keys.keys().copied().collect();
            let place = if table.is_empty() { "at the top of the file".to_owned() } else { format!("in [{table}]") };
            (format!("unknown key \"{}\" {place}", name.escape_debug()), suggest::key(table, name, &known))
        };
        self.problem(&at, None, message, help);
    }

    fn key(&mut self, spec: &'static KeySpec, value: &Spanned<DeValue<'_>>) {
        self.places.insert(spec.path.to_owned(), value.span());
        let before = self.problems.len();
        if let Some(checked) = self.value(spec, &spec.shape, spec.path, value) {
            self.settings.values.set(spec, checked);
            if let Some(written) = written(value.get_ref()) {
                self.settings.written.set(spec, written);
            }
        }
        if self.problems.len() > before {
            self.faulty.insert(spec.table().to_owned());
        }
        if !spec.built {
            self.settings.not_built.push(spec.path.to_owned());
        }
    }

    /// The value when it is right; else the problem is noted.
    fn value(&mut self, key: &KeySpec, shape: &Shape, path: &str, value: &Spanned<DeValue<'_>>) -> Option<Value> {
        let at = value.span();
        match (*shape, value.get_ref()) {
            (Shape::Bool, DeValue::Boolean(value)) => Some(Value::Bool(*value)),
            (Shape::Int { min, max }, DeValue::Integer(number)) => {
                let found = i64::from_str_radix(number.as_str(), number.radix());
                match found {
                    Ok(found) if (min..=max).contains(&found) => return Some(Value::Int(found)),
                    _ => self.expected(&at, key, shape, path, &number.to_string()),
                }
                None
            }
            (Shape::Float { min, max }, DeValue::Integer(_) | DeValue::Float(_)) => {
                let found = number(value.get_ref());
                if let Some(found) = found.filter(|found| (min..=max).contains(found)) {
                    return Some(Value::Float(found));
                }
                let found = found.map_or_else(|| "a number that is none".to_owned(), |found| format!("{found:?}"));
                self.expected(&at, key, shape, path, &found);
                None
            }
            (Shape::Text, DeValue::String(text)) => self.expand(key, path, &at, text).map(Value::Text),
            (Shape::Choice(words), DeValue::String(text)) => {
                let text = self.expand(key, path, &at, text)?;
                if words.contains(&text.as_str()) {
                    return Some(Value::Text(text));
                }
                self.expected(&at, key, shape, path, &write::text(&text));
                None
            }
            (Shape::TextList, DeValue::Array(items)) => {
                let items = items.iter().map(|item| self.item(key, path, item));
                all(items).map(Value::TextList)
            }
            (Shape::TextMap, DeValue::Table(items)) => {
                let items = items.iter().map(|(name, item)| {
                    let path = format!("{path}.{}", name.get_ref());
                    self.item(key, &path, item).map(|text| (name.get_ref().clone().into_owned(), text))
                });
                all(items).map(|items| Value::TextMap(items.into_iter().collect()))
            }
            (Shape::TableList(inner), DeValue::Array(items)) => {
                let items = items.iter().map(|item| self.inner_table(key, inner, path, item));
                all(items).map(Value::TableList)
            }
            (_, other) => {
                let help = quoting(shape, other);
                let message = format!("{path}: expected {shape}, found {}", kind(other));
                self.problem(&at, Some(key), message, help.map(str::to_owned));
                None
            }
        }
    }

    fn item(&mut self, key: &KeySpec, path: &str, item: &Spanned<DeValue<'_>>) -> Option<String> {
        match self.value(key, &Shape::Text, path, item) {
            Some(Value::Text(text)) => Some(text),
            _ => None,
        }
    }

    fn inner_table(
        &mut self,
        key: &KeySpec,
        inner: &[&'static KeySpec],
        path: &str,
        item: &Spanned<DeValue<'_>>,
    ) -> Option<BTreeMap<String, Value>> {
        let DeValue::Table(table) = item.get_ref() else {
            let message = format!("{path}: expected a table, found {}", kind(item.get_ref()));
            self.problem(&item.span(), Some(key), message, None);
            return None;
        };
        let names: Vec<&str> = inner.iter().map(|spec| spec.path).collect();
        let values = table.iter().map(|(name, value)| {
            let name_text: &str = name.get_ref();
            let Some(spec) = inner.iter().find(|spec| spec.path == name_text) else {
                let message = format!("unknown key \"{}\" in {path}", name_text.escape_debug());
                self.problem(&name.span(), None, message, suggest::key("", name_text, &names));
                return None;
            };
            let value = self.value(spec, &spec.shape, &format!("{path}: {name_text}"), value)?;
            Some((name_text.to_owned(), value))
        });
        all(values).map(|values| values.into_iter().collect())
    }

    fn expand(&mut self, key: &KeySpec, path: &str, at: &Range<usize>, text: &str) -> Option<String> {
        let faults = match expand::expand(text, self.lookup) {
            Ok(expanded) => return Some(expanded.text),
            Err(faults) => faults,
        };
        for fault in faults {
            let start = at.start + self.source.slice(at).find(&fault.needle).unwrap_or(0);
            let at = start..(start + fault.needle.len()).min(at.end);
            self.problem(&at, Some(key), format!("{path}: {}", fault.message), Some(fault.help));
        }
        None
    }

    fn expected(&mut self, at: &Range<usize>, key: &KeySpec, shape: &Shape, path: &str, found: &str) {
        self.problem(at, Some(key), format!("{path}: expected {shape}, found {found}"), None);
    }

    /// What the parser found. Where it stumbled, what it made of the line is not held against the user.
    fn syntax(&mut self, mistakes: &[toml::de::Error]) {
        let mut lines = BTreeSet::new();
        let mut found = Vec::new();
        for mistake in mistakes {
            let at = mistake.span().unwrap_or_default();
            if !lines.insert(self.source.line_of(at.start)) {
                continue;
            }
            let name = self.source.slice(&at);
            let (message, help) = if mistake.message() == "duplicate key" {
                self.duplicate(&at, name)
            } else {
                (format!("no valid TOML: {}", mistake.message()), None)
            };
            found.push(self.source.problem(&at, None, message, help));
        }
        self.problems.retain(|(offset, _)| !lines.contains(&self.source.line_of(*offset)));
        self.problems.append(&mut found);
    }

    fn duplicate(&self, at: &Range<usize>, name: &str) -> (String, Option<String>) {
        let name = name.trim_matches(['"', '\'']);
        let table = self.source.table_at(at.start);
        let within = if table.is_empty() { name.to_owned() } else { format!("{table}.{name}") };
        let first = |path: &str| self.places.get(path).filter(|first| first.start < at.start);
        let line = |first: &Range<usize>| Some(format!("first set in line {}", self.source.line_of(first.start) + 1));
        match first(&within) {
            Some(first) => (format!("duplicate key \"{name}\""), line(first)),
            None => (format!("duplicate \"{name}\""), None),
        }
    }

    fn complaints(&mut self, declared: &Declared) {
        let complaints: Vec<Complaint> =
            declared.checks.iter().flat_map(|check| check(&self.settings.values)).collect();
        for Complaint { path, message } in complaints {
            let key = self.keys.get(path.as_str()).copied();
            let table = key.map_or_else(|| path.clone(), |key| key.table().to_owned());
            // What follows from a mistake that is shown already would only confuse.
            if self.faulty.contains(&table) {
                continue;
            }
            let message = if message.starts_with(&path) { message } else { format!("{path}: {message}") };
            let place = ancestors(&path).find_map(|path| self.places.get(path)).cloned();
            match place {
                Some(at) => self.problem(&at, key, message, None),
                None => self.problems.push((0, Problem::of_file(message, None))),
            }
        }
    }
}

/// `a.b.c`, `a.b`, `a`.
fn ancestors(path: &str) -> impl Iterator<Item = &str> {
    std::iter::successors(Some(path), |path| path.rsplit_once('.').map(|(parent, _)| parent))
}

/// All items, or nothing when one is wrong; looks at every item all the same, to find every mistake.
fn all<T>(items: impl Iterator<Item = Option<T>>) -> Option<Vec<T>> {
    let items: Vec<Option<T>> = items.collect();
    items.into_iter().collect()
}

fn number(value: &DeValue<'_>) -> Option<f64> {
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
fn written(value: &DeValue<'_>) -> Option<Value> {
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

/// What a value is, for people.
fn kind(value: &DeValue<'_>) -> &'static str {
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
fn quoting(shape: &Shape, found: &DeValue<'_>) -> Option<&'static str> {
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
