//! Which alerts are meant: conditions on an alert's severity, metric, rule, host and labels, all of which must hold. Silences,
//! maintenance windows, inhibition and rules say it in the same words.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Names that are no labels: what every alert has.
pub const FIELDS: [&str; 4] = ["severity", "metric", "rule", "hostname"];

/// Conditions that a matcher may have, and how long a pattern may be.
const CONDITIONS_MAX: usize = 16;
const PATTERN_BYTES_MAX: usize = 1024;

/// Conditions, all of which must hold: name (a label, or one of [`FIELDS`]) and pattern, in which `*` stands for any text.
/// A name that an alert does not have is an empty text.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Matcher {
    conditions: BTreeMap<String, String>,
}

/// Why text is no condition.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MatcherError {
    /// There is no `=`.
    #[error("{0:?}: expected name=pattern, as metric=disk_usage_percent or mountpoint=/data*")]
    NoCondition(String),
    /// The same name twice.
    #[error("{0:?} is given twice")]
    Twice(String),
    /// More than anybody needs.
    #[error("expected at most {CONDITIONS_MAX} conditions of at most {PATTERN_BYTES_MAX} bytes")]
    TooMuch,
}

impl Matcher {
    /// With these conditions.
    ///
    /// # Errors
    /// When there are too many, or one is too long.
    pub fn new(conditions: BTreeMap<String, String>) -> Result<Self, MatcherError> {
        let long = |text: &String| text.len() > PATTERN_BYTES_MAX;
        if conditions.len() > CONDITIONS_MAX || conditions.iter().any(|(name, text)| long(name) || long(text)) {
            return Err(MatcherError::TooMuch);
        }
        Ok(Self { conditions })
    }

    /// Of words of a command line, each `name=pattern`.
    ///
    /// # Errors
    /// With the word that is no condition.
    pub fn of_words<'a>(words: impl IntoIterator<Item = &'a str>) -> Result<Self, MatcherError> {
        let mut conditions = BTreeMap::new();
        for word in words {
            let named = word.split_once('=').filter(|(name, _)| !name.is_empty());
            let (name, pattern) = named.ok_or_else(|| MatcherError::NoCondition(word.to_owned()))?;
            if conditions.insert(name.to_owned(), pattern.to_owned()).is_some() {
                return Err(MatcherError::Twice(name.to_owned()));
            }
        }
        Self::new(conditions)
    }

    /// True when it has no condition and so matches everything.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.conditions.is_empty()
    }

    /// True when every condition holds; `get` gives the value of a name, as far as there is one.
    pub fn matches<'a>(&self, mut get: impl FnMut(&str) -> Option<&'a str>) -> bool {
        self.conditions.iter().all(|(name, pattern)| is_like(pattern, get(name).unwrap_or("")))
    }

    /// Names and patterns.
    pub fn conditions(&self) -> impl Iterator<Item = (&str, &str)> {
        self.conditions.iter().map(|(name, pattern)| (name.as_str(), pattern.as_str()))
    }
}

impl FromStr for Matcher {
    type Err = MatcherError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::of_words(text.split_whitespace())
    }
}

impl fmt::Display for Matcher {
    /// As it is written on a command line; `everything` when it has no condition.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return f.write_str("everything");
        }
        for (i, (name, pattern)) in self.conditions().enumerate() {
            write!(f, "{}{name}={pattern}", if i == 0 { "" } else { " " })?;
        }
        Ok(())
    }
}

/// `text` against a pattern in which `*` stands for any text, in time proportional to both lengths at worst.
#[must_use]
pub fn is_like(pattern: &str, text: &str) -> bool {
    let Some((first, rest)) = pattern.split_once('*') else { return pattern == text };
    let Some(mut text) = text.strip_prefix(first) else { return false };
    let mut parts = rest.split('*').peekable();
    while let Some(part) = parts.next() {
        if parts.peek().is_none() {
            return text.ends_with(part);
        }
        // The first place is as good as any later one: what follows may stand anywhere behind it.
        let Some(at) = text.find(part) else { return false };
        text = &text[at + part.len()..];
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        for (pattern, text) in [
            ("a", "a"),
            ("*", ""),
            ("*", "x"),
            ("a*", "abc"),
            ("*c", "abc"),
            ("a*c", "abbc"),
            ("a*b*c", "a1b2b3c"),
            ("**", "x"),
            ("a*a", "aa"),
        ] {
            assert!(is_like(pattern, text), "{pattern} {text}");
        }
        for (pattern, text) in
            [("a", "ab"), ("", "x"), ("a*", "ba"), ("*c", "ca"), ("a*a", "a"), ("a*b*c", "acb"), ("*b*b", "ab")]
        {
            assert!(!is_like(pattern, text), "{pattern} {text}");
        }
    }

    #[test]
    fn all_conditions_must_hold_and_what_is_not_there_is_empty() {
        let matcher: Matcher = "metric=disk_* mountpoint=/data".parse().expect("two conditions");
        let alert = |mount: &'static str| {
            move |name: &str| match name {
                "metric" => Some("disk_usage_percent"),
                "mountpoint" => Some(mount),
                _ => None,
            }
        };
        assert!(matcher.matches(alert("/data")) && !matcher.matches(alert("/")));
        assert!(Matcher::of_words(["pid="]).expect("a condition").matches(alert("/")));
        assert_eq!(matcher.to_string(), "metric=disk_* mountpoint=/data");
        assert!(matches!("metric".parse::<Matcher>(), Err(MatcherError::NoCondition(_))));
        assert!(matches!("a=1 a=2".parse::<Matcher>(), Err(MatcherError::Twice(_))));
    }
}
