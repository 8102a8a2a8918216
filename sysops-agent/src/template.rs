//! Texts of the user's own, written as templates (Jinja's language). They see the data that they are given and nothing else:
//! no files, no environment, no other template. What loops without end or grows without bound is cut. Text from outside is
//! data in them and never a template.

use std::fmt;
use std::io;
use std::sync::Arc;

use minijinja::value::{Serde, Value};
use minijinja::{AutoEscape, Environment, Output, State, UndefinedBehavior};
use serde::Serialize;

/// Steps that one rendering may take; a message of a screenful takes some hundred.
const FUEL: u64 = 50_000;

/// Bytes that one rendering may give.
pub const OUTPUT_BYTES_MAX: usize = 64 << 10;

/// How text is made fit for where it goes.
pub type Escape = fn(&str) -> String;

/// For plain text.
#[must_use]
pub fn plain(text: &str) -> String {
    text.to_owned()
}

/// A text with places for values, checked when it is made.
#[derive(Clone)]
pub struct Template {
    source: Arc<str>,
    escape: Escape,
}

impl Template {
    /// Takes `source`, in which every value is put through `escape`; also those that the user calls safe.
    ///
    /// # Errors
    /// With the line of the template and what is wrong there.
    pub fn new(source: &str, escape: Escape) -> Result<Self, String> {
        let template = Self { source: source.into(), escape };
        template.environment().template_from_str(source).map_err(|error| said(&error))?;
        Ok(template)
    }

    /// The text with the values of `data`.
    ///
    /// # Errors
    /// When a value that it names is not there, or it takes more steps or room than it may.
    pub fn render<T: Serialize>(&self, data: &T) -> Result<String, String> {
        let environment = self.environment();
        let template = environment.template_from_str(&self.source).map_err(|error| said(&error))?;
        let mut out = Bounded { bytes: Vec::new() };
        template.render_captured_to(Value::from(Serde(data)), &mut out).map_err(|error| said(&error))?;
        String::from_utf8(out.bytes).map_err(|_| "the template gave no text".to_owned())
    }

    fn environment(&self) -> Environment<'static> {
        let mut environment = Environment::new();
        environment.set_undefined_behavior(UndefinedBehavior::Strict);
        environment.set_fuel(Some(FUEL));
        environment.set_recursion_limit(64);
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        let escape = self.escape;
        environment
            .set_formatter(move |out: &mut Output<'_>, _: &mut State<'_, '_>, value: &Value| write(out, value, escape));
        environment
    }
}

/// Numbers as they are, text escaped, and of everything else its text escaped.
fn write(out: &mut Output<'_>, value: &Value, escape: Escape) -> Result<(), minijinja::Error> {
    if value.is_undefined() {
        return Err(minijinja::ErrorKind::UndefinedError.into());
    }
    if value.is_none() {
        return Ok(());
    }
    let text = value.as_str().map_or_else(|| escape(&value.to_string()), escape);
    out.write_str(&text).map_err(|_| minijinja::ErrorKind::WriteFailure.into())
}

impl PartialEq for Template {
    fn eq(&self, other: &Self) -> bool {
        self.source == other.source
    }
}

impl fmt::Debug for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Template").field(&self.source).finish()
    }
}

/// `line 2: undefined value`.
fn said(error: &minijinja::Error) -> String {
    let what = error.detail().map_or_else(|| error.kind().to_string(), |detail| format!("{}: {detail}", error.kind()));
    error.line().map_or_else(|| what.clone(), |line| format!("line {line}: {what}"))
}

struct Bounded {
    bytes: Vec<u8>,
}

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + bytes.len() > OUTPUT_BYTES_MAX {
            return Err(io::Error::other(format!("more than {OUTPUT_BYTES_MAX} bytes")));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn data() -> BTreeMap<&'static str, &'static str> {
        BTreeMap::from([("a", "<b>"), ("t", "{{ a }}")])
    }

    fn rendered(source: &str) -> Result<String, String> {
        Template::new(source, |text| text.replace('<', "&lt;")).and_then(|template| template.render(&data()))
    }

    #[test]
    fn values_are_escaped_and_never_templates() {
        assert_eq!(rendered("<i>{{ a }}{{ t }}</i>").as_deref(), Ok("<i>&lt;b>{{ a }}</i>"));
        assert_eq!(rendered("{{ a|safe }}").as_deref(), Ok("&lt;b>"));
        assert_eq!(rendered("{{ 1 + 1 }} {% if a %}x{% endif %}").as_deref(), Ok("2 x"));
    }

    #[test]
    fn what_is_wrong_is_said_with_its_line() {
        assert!(rendered("x\n{{ a").is_err_and(|error| error.starts_with("line 2: ")));
        assert!(rendered("x\n\n{{ nobody }}").is_err_and(|error| error.starts_with("line 3: ")));
        assert!(rendered("{% include 'x' %}").is_err() && rendered("{{ a.b.c }}").is_err());
    }

    #[test]
    fn what_loops_or_grows_is_cut() {
        assert!(rendered("{% for i in range(9999) %}{% for j in range(9999) %}{% endfor %}{% endfor %}").is_err());
        assert!(rendered("{% for i in range(9999) %}0123456789{% endfor %}").is_err());
        assert!(rendered("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}").is_err());
        assert!(rendered("{{ 'x' * 100000000 }}").is_err());
    }
}
