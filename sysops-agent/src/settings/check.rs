//! Holds a parsed file against the declared keys and collects every mistake. How a mistake looks is left to `problem`.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::document::{in_words, is_table, kind, number, quoting, written};
use super::problem::{Problem, Problems, Source};
use super::redact::{self, Redactor};
use super::{Absent, Declared, Settings, expand, keys, suggest, write};
use crate::spec::{Check, Complaint, KeySpec, Shape, Value};

/// Checks `text`; see [`super::parse`].
pub(super) fn check(
    name: &str,
    text: &str,
    declared: &Declared,
    lookup: &dyn Fn(&str) -> Option<String>,
) -> Result<Settings, Problems> {
    let (document, mistakes) = DeTable::parse_recoverable(text);
    let mut checker = Checker::new(name, text, declared, lookup);
    checker.table("", document.get_ref());
    if mistakes.is_empty() {
        checker.complaints(declared);
    } else {
        checker.syntax(&mistakes);
    }
    if !checker.problems.is_empty() {
        return Err(Problems::new(name, checker.problems));
    }
    let Checker { source, places, mut settings, .. } = checker;
    settings.lines = places.into_iter().map(|(path, at)| (path, source.line_of(at.start) + 1)).collect();
    settings.not_built.sort_unstable();
    settings.hostname = settings.values.get(&keys::HOSTNAME);
    Ok(settings)
}

/// Paths of keys whose secrets stand in the file itself and not in the environment: of secret keys the value, of others
/// an address with a user in it.
pub(super) fn literal_secrets<'a>(settings: &Settings, declared: &'a Declared) -> Vec<&'a str> {
    let is_literal = |key: &KeySpec, text: &String| match key.secret {
        true => !text.is_empty() && !expand::is_reference_only(text),
        false => redact::without_user(text) != *text && !text.contains("${"),
    };
    let holds = |key: &&&'static KeySpec| match settings.written.written(key) {
        Some(Value::Text(text)) => is_literal(key, text),
        Some(Value::TextMap(map)) => map.values().any(|text| is_literal(key, text)),
        Some(Value::TextList(list)) => list.iter().any(|text| is_literal(key, text)),
        _ => false,
    };
    declared.keys.iter().filter(holds).map(|key| key.path).collect()
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
    fn new(name: &'a str, text: &'a str, declared: &'a Declared, lookup: &'a dyn Fn(&str) -> Option<String>) -> Self {
        let mut tables = BTreeSet::new();
        for key in &declared.keys {
            let mut table = key.table();
            while !table.is_empty() && tables.insert(table) {
                table = table.rsplit_once('.').map_or("", |(parent, _)| parent);
            }
        }
        Self {
            source: Source::new(name, text, Redactor::new(declared.keys.iter().copied())),
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
                self.settings.not_in_build.extend(self.absent.iter().filter(|absent| absent.table == path));
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
        let (message, help) = if is_table(value) {
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
                let items = items
                    .iter()
                    .enumerate()
                    .map(|(index, item)| self.inner_table(key, inner, &format!("{path}[{index}]"), item));
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
        self.places.insert(path.to_owned(), item.span());
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
            let path = format!("{path}.{name_text}");
            self.places.insert(path.clone(), value.span());
            let value = self.value(spec, &spec.shape, &path, value)?;
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
            if mistake.message() == "duplicate key" {
                let (message, help) = self.duplicate(&at, name);
                found.push(self.source.problem(&at, None, message, help));
            } else if let Some((spec, value)) = self.unquoted(at.start) {
                let message = format!("{}: expected {}", spec.path, spec.shape);
                found.push(self.source.problem(&value, Some(spec), message, Some("put it in quotes".to_owned())));
            } else {
                let message = format!("no valid TOML: {}", in_words(mistake.message()));
                found.push(self.source.problem(&at, None, message, None));
            }
        }
        self.problems.retain(|(offset, _)| !lines.contains(&self.source.line_of(*offset)));
        self.problems.append(&mut found);
    }

    /// The key that takes text, and its value, when the line of `offset` sets it to a word without quotes.
    fn unquoted(&self, offset: usize) -> Option<(&'static KeySpec, Range<usize>)> {
        let (path, value) = self.source.assignment_at(offset)?;
        let spec = self.keys.get(path.as_str()).filter(|key| matches!(key.shape, Shape::Text | Shape::Choice(_)))?;
        let is_word = self.source.slice(&value).starts_with(|c: char| c.is_alphabetic() || matches!(c, '/' | '$'));
        is_word.then_some((spec, value))
    }

    fn duplicate(&self, at: &Range<usize>, name: &str) -> (String, Option<String>) {
        let first_set = |line: usize| Some(format!("first set in line {}", line + 1));
        if let Some((table, first)) = self.source.header_at(at.start) {
            return (
                format!("duplicate table [{table}]"),
                first_set(first).filter(|_| first < self.source.line_of(at.start)),
            );
        }
        let name = name.trim_matches(['"', '\'']);
        let table = self.source.table_above(at.start);
        let path = if table.is_empty() { name.to_owned() } else { format!("{table}.{name}") };
        let first = self.places.get(&path).filter(|first| first.start < at.start);
        (format!("duplicate key \"{name}\""), first.and_then(|first| first_set(self.source.line_of(first.start))))
    }

    fn complaints(&mut self, declared: &Declared) {
        let (complaints, doubts) = (self.said_by(&declared.checks), self.said_by(&declared.doubts));
        self.problems.extend(complaints);
        self.settings.warnings.extend(doubts.into_iter().map(|(_, problem)| problem));
    }

    /// What components say of their values, with its place.
    fn said_by(&self, checks: &[Check]) -> Vec<(usize, Problem)> {
        let mut said = Vec::new();
        for Complaint { path, message } in checks.iter().flat_map(|check| check(&self.settings.values)) {
            let key = self.keys.get(path.as_str()).copied();
            let table = key.map_or_else(|| list_of(&path), |key| key.table());
            // What follows from a mistake that is shown already would only confuse.
            if self.faulty.contains(table) {
                continue;
            }
            let message = if message.starts_with(&path) { message } else { format!("{path}: {message}") };
            said.push(match ancestors(&path).find_map(|path| self.places.get(path)) {
                Some(at) => self.source.problem(at, key, message, None),
                None => (0, Problem::of_file(self.source.name(), message, None)),
            });
        }
        said
    }
}

/// `a.b.c`, `a.b`, `a`.
fn ancestors(path: &str) -> impl Iterator<Item = &str> {
    std::iter::successors(Some(path), |path| path.rsplit_once('.').map(|(parent, _)| parent))
}

/// The list that a key of one of its tables belongs to: `rule` of `rule[2].metric`.
fn list_of(path: &str) -> &str {
    path.split_once('[').map_or(path, |(list, _)| list)
}

/// All items, or nothing when one is wrong; looks at every item all the same, to find every mistake.
fn all<T>(items: impl Iterator<Item = Option<T>>) -> Option<Vec<T>> {
    let items: Vec<Option<T>> = items.collect();
    items.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::spec::{Key, Secret};

    static URL: Key<Option<Secret>> = Key::secret("alerting.discord.webhook_url", "");
    static TOKEN: Key<Option<Secret>> = Key::secret("alerting.discord.bot_token", "");
    static PASSWORD: Key<Option<Secret>> = Key::secret("alerting.discord.password", "");

    fn piece() -> impl Strategy<Value = &'static str> {
        prop_oneof![
            4 => Just("\n"),
            3 => Just("[alerting.discord]\n"),
            3 => Just("webhook_url = \"hunter2\"\n"),
            1 => Just("webhook_url = 'hunter2"),
            1 => Just("webhook_url = hunter2\n"),
            1 => Just("webhook_url = [\"hunter2\"]\n"),
            1 => Just("webhook_url = \"\"\"\nhunter2\n\"\"\"\n"),
            1 => Just("bot_token = { x = \"hunter2\" }\n"),
            1 => Just("pasword = \"hunter2\"\n"),
            2 => Just("[agent]\n"),
            2 => Just("hostname = \"web\"\n"),
            1 => Just("log_level = "),
            1 => Just("\""),
            1 => Just("'"),
            1 => Just("["),
            1 => Just("]"),
            1 => Just("{"),
            1 => Just("}"),
            1 => Just("= "),
            1 => Just("# "),
            1 => Just("${X}"),
            1 => Just("\u{1b}é"),
        ]
    }

    proptest! {
        #[test]
        fn whatever_is_broken_no_secret_is_shown(pieces in proptest::collection::vec(piece(), 0..24)) {
            let text = pieces.concat();
            let secret = [URL.spec(), TOKEN.spec(), PASSWORD.spec()];
            let declared = Declared { keys: keys::ALL.iter().copied().chain(secret).collect(), ..Declared::default() };
            if let Err(problems) = check("f", &text, &declared, &|_| None) {
                let shown = problems.to_string();
                prop_assert!(!shown.contains("hunter2"), "{}\n----\n{}", text, shown);
                prop_assert!(!shown.contains('\u{1b}'), "{}", shown);
            }
        }
    }
}
