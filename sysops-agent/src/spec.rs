//! Configuration keys as data. A component declares its keys beside the code that uses them; parsing, checking,
//! docs/CONFIGURATION.md, config/agent.toml and the JSON schema all render from the declarations.
//! Reading files and pointing at mistakes is left to `settings`.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;
use std::time::Duration;

/// What a key may hold.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Shape {
    /// true or false.
    Bool,
    /// A whole number within bounds, both included.
    Int {
        /// Smallest value.
        min: i64,
        /// Largest value.
        max: i64,
    },
    /// A number within bounds, both included. Whole numbers are taken too.
    Float {
        /// Smallest value.
        min: f64,
        /// Largest value.
        max: f64,
    },
    /// Text.
    Text,
    /// One of these words.
    Choice(&'static [&'static str]),
    /// A list of texts.
    TextList,
    /// A table of texts.
    TextMap,
    /// A list of tables with these keys; their paths are the names within one table.
    TableList(&'static [&'static KeySpec]),
}

impl fmt::Display for Shape {
    /// What is expected, for people: `a whole number from 1 to 60`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Bool => f.write_str("true or false"),
            Self::Int { min: i64::MIN, max: i64::MAX } => f.write_str("a whole number"),
            Self::Int { min, max: i64::MAX } => write!(f, "a whole number of at least {min}"),
            Self::Int { min, max } => write!(f, "a whole number from {min} to {max}"),
            Self::Float { min, max } if max == f64::MAX || max.is_infinite() => write!(f, "a number of at least {min}"),
            Self::Float { min, max } => write!(f, "a number from {min} to {max}"),
            Self::Text => f.write_str("text in quotes"),
            Self::Choice(words) => {
                f.write_str("one of ")?;
                for (index, word) in words.iter().enumerate() {
                    write!(f, "{}\"{word}\"", if index == 0 { "" } else { ", " })?;
                }
                Ok(())
            }
            Self::TextList => f.write_str("a list of texts"),
            Self::TextMap => f.write_str("a table of texts"),
            Self::TableList(_) => f.write_str("a list of tables"),
        }
    }
}

/// The value of a key that is not set.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fallback {
    /// None: `Values::get` of an optional key gives `None`.
    Absent,
    /// true or false.
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// A number.
    Float(f64),
    /// Text or a word of a choice.
    Text(&'static str),
    /// A list of texts.
    TextList(&'static [&'static str]),
}

/// One key without its Rust type.
#[derive(Debug, PartialEq)]
pub struct KeySpec {
    /// Dotted path from the top: `alerting.webhook.url`.
    pub path: &'static str,
    /// What it may hold.
    pub shape: Shape,
    /// What holds when it is not set.
    pub fallback: Fallback,
    /// One or more sentences for docs/CONFIGURATION.md.
    pub doc: &'static str,
    /// False: the key belongs to a part that comes later; it is accepted, and reported once as not built yet.
    pub built: bool,
    /// The value is never printed.
    pub secret: bool,
    /// A value as TOML, shown in config/agent.toml when there is no default; empty when none says more than the type.
    pub example: &'static str,
}

impl KeySpec {
    /// The table that holds it, without brackets: `alerting.webhook`; empty for the top.
    #[must_use]
    pub fn table(&self) -> &'static str {
        self.path.rsplit_once('.').map_or("", |(table, _)| table)
    }

    /// Its name within its table: `url`.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.path.rsplit_once('.').map_or(self.path, |(_, name)| name)
    }
}

/// What a component finds wrong with values that are right one by one: an address that is none, two keys that
/// exclude each other. `settings` adds the place in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Complaint {
    /// Path of the key, or of its table when no single key is at fault.
    pub path: String,
    /// What is wrong and what was expected, without the value of a secret.
    pub message: String,
}

/// A component's look at its own values.
pub type Check = fn(&Values) -> Vec<Complaint>;

/// One key with the type in which its component reads it.
#[derive(Debug)]
pub struct Key<T> {
    spec: KeySpec,
    of: PhantomData<fn() -> T>,
}

impl<T> Key<T> {
    const fn new(path: &'static str, shape: Shape, fallback: Fallback, doc: &'static str) -> Self {
        Self { spec: KeySpec { path, shape, fallback, doc, built: true, secret: false, example: "" }, of: PhantomData }
    }

    /// The same key with a value, written as TOML, for config/agent.toml.
    #[must_use]
    pub const fn example(mut self, toml: &'static str) -> Self {
        self.spec.example = toml;
        self
    }

    /// The declaration, for lists.
    #[must_use]
    pub const fn spec(&'static self) -> &'static KeySpec {
        &self.spec
    }
}

impl Key<bool> {
    /// A switch.
    #[must_use]
    pub const fn switch(path: &'static str, default: bool, doc: &'static str) -> Self {
        Self::new(path, Shape::Bool, Fallback::Bool(default), doc)
    }
}

impl Key<i64> {
    /// A whole number from `min` to `max`.
    #[must_use]
    pub const fn int(path: &'static str, default: i64, min: i64, max: i64, doc: &'static str) -> Self {
        Self::new(path, Shape::Int { min, max }, Fallback::Int(default), doc)
    }
}

impl Key<f64> {
    /// A number from `min` to `max`.
    #[must_use]
    pub const fn float(path: &'static str, default: f64, min: f64, max: f64, doc: &'static str) -> Self {
        Self::new(path, Shape::Float { min, max }, Fallback::Float(default), doc)
    }
}

impl Key<Duration> {
    /// Whole seconds from `min` to `max`.
    #[must_use]
    pub const fn secs(path: &'static str, default: i64, min: i64, max: i64, doc: &'static str) -> Self {
        Self::new(path, Shape::Int { min, max }, Fallback::Int(default), doc)
    }
}

impl Key<String> {
    /// Text with a default.
    #[must_use]
    pub const fn text(path: &'static str, default: &'static str, doc: &'static str) -> Self {
        Self::new(path, Shape::Text, Fallback::Text(default), doc)
    }

    /// One word of a list.
    #[must_use]
    pub const fn choice(
        path: &'static str,
        words: &'static [&'static str],
        default: &'static str,
        doc: &'static str,
    ) -> Self {
        Self::new(path, Shape::Choice(words), Fallback::Text(default), doc)
    }
}

impl Key<Option<String>> {
    /// Text that may be absent.
    #[must_use]
    pub const fn optional(path: &'static str, doc: &'static str) -> Self {
        Self::new(path, Shape::Text, Fallback::Absent, doc)
    }
}

impl Key<Option<Secret>> {
    /// Text that is never printed; it may be absent.
    #[must_use]
    pub const fn secret(path: &'static str, doc: &'static str) -> Self {
        let mut key = Self::new(path, Shape::Text, Fallback::Absent, doc);
        key.spec.secret = true;
        key
    }
}

impl Key<Vec<String>> {
    /// A list of texts.
    #[must_use]
    pub const fn list(path: &'static str, default: &'static [&'static str], doc: &'static str) -> Self {
        Self::new(path, Shape::TextList, Fallback::TextList(default), doc)
    }
}

impl Key<BTreeMap<String, Secret>> {
    /// A table of texts that are never printed, empty by default.
    #[must_use]
    pub const fn secret_map(path: &'static str, doc: &'static str) -> Self {
        let mut key = Self::new(path, Shape::TextMap, Fallback::Absent, doc);
        key.spec.secret = true;
        key
    }
}

impl Key<BTreeMap<String, String>> {
    /// A table of texts, empty by default.
    #[must_use]
    pub const fn map(path: &'static str, doc: &'static str) -> Self {
        Self::new(path, Shape::TextMap, Fallback::Absent, doc)
    }
}

impl Key<Option<f64>> {
    /// A number from `min` to `max` that may be absent.
    #[must_use]
    pub const fn optional_float(path: &'static str, min: f64, max: f64, doc: &'static str) -> Self {
        Self::new(path, Shape::Float { min, max }, Fallback::Absent, doc)
    }
}

impl Key<Vec<Table>> {
    /// A list of tables with these keys, whose paths are their names within one table; empty by default.
    #[must_use]
    pub const fn tables(path: &'static str, keys: &'static [&'static KeySpec], doc: &'static str) -> Self {
        Self::new(path, Shape::TableList(keys), Fallback::Absent, doc)
    }
}

/// One table of a list: its keys are read as those of a file are.
#[derive(Clone, Default, PartialEq)]
pub struct Table {
    set: BTreeMap<String, Value>,
}

impl fmt::Debug for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // As with Values: the values may be secrets.
        f.debug_set().entries(self.set.keys()).finish()
    }
}

impl Table {
    /// The value of `key`, or its fallback.
    #[must_use]
    pub fn get<T: FromValue>(&self, key: &'static Key<T>) -> T {
        value_of(self.set.get(key.spec.path), key)
    }
}

/// The path of a key of the `index`-th table of a list, for a [`Complaint`]: `rule[2].metric`.
#[must_use]
pub fn path_in(list: &KeySpec, index: usize, key: &KeySpec) -> String {
    format!("{}[{index}].{}", list.path, key.path)
}

/// A key of a part that comes later.
#[derive(Debug)]
pub enum NotBuilt {}

impl Key<NotBuilt> {
    /// Accepted in the file, reported once as not built yet, read by no one.
    #[must_use]
    pub const fn later(path: &'static str, shape: Shape, fallback: Fallback, doc: &'static str) -> Self {
        let mut key = Self::new(path, shape, fallback, doc);
        key.spec.built = false;
        key
    }

    /// The same for a value that is never printed.
    #[must_use]
    pub const fn later_secret(path: &'static str, doc: &'static str) -> Self {
        let mut key = Self::later(path, Shape::Text, Fallback::Absent, doc);
        key.spec.secret = true;
        key
    }
}

/// Text that no formatter prints.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps the text.
    #[must_use]
    pub fn new(text: String) -> Self {
        Self(text)
    }

    /// The text itself, for the wire only.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// A checked value.
#[derive(Clone, PartialEq)]
pub enum Value {
    /// true or false.
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// A number.
    Float(f64),
    /// Text.
    Text(String),
    /// A list of texts.
    TextList(Vec<String>),
    /// A table of texts.
    TextMap(BTreeMap<String, String>),
    /// A list of tables.
    TableList(Vec<BTreeMap<String, Value>>),
}

/// Values that were set and checked, by path. What is not set has its key's fallback.
#[derive(Clone, Default, PartialEq)]
pub struct Values {
    set: BTreeMap<&'static str, Value>,
}

impl fmt::Debug for Values {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Values may be secrets: only the names of what is set are shown.
        f.debug_set().entries(self.set.keys()).finish()
    }
}

impl Values {
    /// Sets a key. The caller has checked the value against the key's shape.
    pub fn set(&mut self, key: &'static KeySpec, value: Value) {
        self.set.insert(key.path, value);
    }

    /// Makes a key one that is not set.
    pub fn unset(&mut self, key: &'static KeySpec) {
        self.set.remove(key.path);
    }

    /// True when the key was set by the user.
    #[must_use]
    pub fn is_set(&self, key: &'static KeySpec) -> bool {
        self.set.contains_key(key.path)
    }

    /// The value that the user set, whatever its type.
    #[must_use]
    pub fn written(&self, key: &'static KeySpec) -> Option<&Value> {
        self.set.get(key.path)
    }

    /// True when all of `keys` are set to the same in both.
    #[must_use]
    pub fn agree_on(&self, other: &Self, mut keys: impl Iterator<Item = &'static KeySpec>) -> bool {
        keys.all(|key| self.written(key) == other.written(key))
    }

    /// The value of `key`, or its fallback.
    #[must_use]
    pub fn get<T: FromValue>(&self, key: &'static Key<T>) -> T {
        value_of(self.set.get(key.spec.path), key)
    }
}

fn value_of<T: FromValue>(set: Option<&Value>, key: &'static Key<T>) -> T {
    match set {
        Some(value) => T::from_value(Some(value)),
        None => T::from_value(fallback(&key.spec).as_ref()),
    }
}

fn fallback(spec: &KeySpec) -> Option<Value> {
    Some(match spec.fallback {
        Fallback::Absent => return None,
        Fallback::Bool(value) => Value::Bool(value),
        Fallback::Int(value) => Value::Int(value),
        Fallback::Float(value) => Value::Float(value),
        Fallback::Text(value) => Value::Text(value.to_owned()),
        Fallback::TextList(values) => Value::TextList(values.iter().map(|&value| value.to_owned()).collect()),
    })
}

/// How a component's type is made from a checked value. The constructors of [`Key`] pair each type with a shape
/// and a fallback, so that the value's variant is the one expected here.
pub trait FromValue {
    /// From a value that `settings` has checked against the key's shape, or the key's fallback.
    fn from_value(value: Option<&Value>) -> Self;
}

impl FromValue for bool {
    fn from_value(value: Option<&Value>) -> Self {
        matches!(value, Some(Value::Bool(true)))
    }
}

impl FromValue for i64 {
    fn from_value(value: Option<&Value>) -> Self {
        let Some(&Value::Int(value)) = value else { unreachable!("Key<i64> is made by Key::int only") };
        value
    }
}

impl FromValue for f64 {
    #[expect(clippy::cast_precision_loss, reason = "a limit that a person wrote")]
    fn from_value(value: Option<&Value>) -> Self {
        match value {
            Some(&Value::Float(value)) => value,
            Some(&Value::Int(value)) => value as f64,
            _ => unreachable!("Key<f64> is made by Key::float only"),
        }
    }
}

impl FromValue for Duration {
    fn from_value(value: Option<&Value>) -> Self {
        Self::from_secs(u64::try_from(i64::from_value(value)).unwrap_or(0))
    }
}

impl FromValue for Option<String> {
    fn from_value(value: Option<&Value>) -> Self {
        match value {
            Some(Value::Text(text)) => Some(text.clone()),
            _ => None,
        }
    }
}

impl FromValue for String {
    fn from_value(value: Option<&Value>) -> Self {
        let Some(Value::Text(text)) = value else { unreachable!("Key<String> has a default") };
        text.clone()
    }
}

impl FromValue for Option<Secret> {
    fn from_value(value: Option<&Value>) -> Self {
        Option::<String>::from_value(value).map(Secret)
    }
}

impl FromValue for Vec<String> {
    fn from_value(value: Option<&Value>) -> Self {
        match value {
            Some(Value::TextList(list)) => list.clone(),
            _ => Self::new(),
        }
    }
}

impl FromValue for BTreeMap<String, Secret> {
    fn from_value(value: Option<&Value>) -> Self {
        match value {
            Some(Value::TextMap(map)) => map.iter().map(|(name, text)| (name.clone(), Secret(text.clone()))).collect(),
            _ => Self::new(),
        }
    }
}

impl FromValue for BTreeMap<String, String> {
    fn from_value(value: Option<&Value>) -> Self {
        match value {
            Some(Value::TextMap(map)) => map.clone(),
            _ => Self::new(),
        }
    }
}

impl FromValue for Option<f64> {
    fn from_value(value: Option<&Value>) -> Self {
        value.map(|value| f64::from_value(Some(value)))
    }
}

impl FromValue for Vec<Table> {
    fn from_value(value: Option<&Value>) -> Self {
        match value {
            Some(Value::TableList(tables)) => tables.iter().map(|set| Table { set: set.clone() }).collect(),
            _ => Self::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    static NAME: Key<Option<String>> = Key::optional("name", "");
    static FOR: Key<Duration> = Key::secs("for_secs", 7, 0, 60, "");
    static RULES: Key<Vec<Table>> = Key::tables("rule", &[NAME.spec(), FOR.spec()], "");

    #[test]
    fn tables_of_a_list_are_read_by_their_own_keys() {
        let mut values = Values::default();
        assert_eq!(values.get(&RULES), []);
        let one = BTreeMap::from([("name".to_owned(), Value::Text("a".into()))]);
        values.set(RULES.spec(), Value::TableList(vec![one]));
        let rules = values.get(&RULES);
        assert_eq!((rules[0].get(&NAME).as_deref(), rules[0].get(&FOR)), (Some("a"), Duration::from_secs(7)));
        assert_eq!(path_in(RULES.spec(), 0, FOR.spec()), "rule[0].for_secs");
    }

    static INTERVAL: Key<Duration> = Key::secs("a.interval_secs", 10, 1, 60, "");
    static TOKEN: Key<Option<Secret>> = Key::secret("a.token", "");

    #[test]
    fn unset_keys_have_their_fallback() {
        let mut values = Values::default();
        assert_eq!(values.get(&INTERVAL), Duration::from_secs(10));
        assert_eq!(values.get(&TOKEN), None);
        values.set(INTERVAL.spec(), Value::Int(3));
        assert_eq!(values.get(&INTERVAL), Duration::from_secs(3));
    }

    #[test]
    fn values_agree_on_keys_that_are_set_alike() {
        let (mut some, mut others) = (Values::default(), Values::default());
        some.set(INTERVAL.spec(), Value::Int(3));
        assert!(some.agree_on(&others, [TOKEN.spec()].into_iter()));
        assert!(!some.agree_on(&others, [TOKEN.spec(), INTERVAL.spec()].into_iter()));
        others.set(INTERVAL.spec(), Value::Int(3));
        assert!(some.agree_on(&others, [TOKEN.spec(), INTERVAL.spec()].into_iter()));
    }

    #[test]
    fn shapes_say_what_they_take() {
        assert_eq!(INTERVAL.spec().shape.to_string(), "a whole number from 1 to 60");
        assert_eq!(Shape::Int { min: 0, max: i64::MAX }.to_string(), "a whole number of at least 0");
        assert_eq!(Shape::Float { min: 0.0, max: 100.0 }.to_string(), "a number from 0 to 100");
        assert_eq!(Shape::Choice(&["a", "b"]).to_string(), "one of \"a\", \"b\"");
    }

    #[test]
    fn secrets_do_not_print() {
        let mut values = Values::default();
        values.set(TOKEN.spec(), Value::Text("hunter2".into()));
        let token = values.get(&TOKEN).expect("it is set");
        assert_eq!(token.expose(), "hunter2");
        assert!(!format!("{values:?} {token:?} {token}").contains("hunter2"));
    }
}
