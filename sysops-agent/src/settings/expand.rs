//! `${NAME}` in texts of the configuration. It works on values after TOML was parsed, never on the file's raw text
//! and never twice, so that what a variable holds can add neither keys nor further references.

use std::borrow::Cow;
use std::fmt::Write as _;

/// A text after expansion.
#[derive(Debug, PartialEq)]
pub(super) struct Expanded {
    /// The text with the variables' values.
    pub(super) text: String,
    /// True when it took anything from the environment.
    pub(super) has_reference: bool,
}

/// Why a text could not be expanded.
#[derive(Debug, PartialEq)]
pub(super) struct Fault {
    /// What is wrong; names the variable, never a value.
    pub(super) message: String,
    /// What would mend it.
    pub(super) help: String,
    /// The text from `$` on, to find the place in the file.
    pub(super) needle: String,
}

#[derive(Debug)]
enum Piece<'a> {
    Literal(&'a str),
    Variable { name: &'a str, rule: Rule<'a>, source: &'a str },
    Broken { message: &'static str, source: &'a str },
}

#[derive(Debug)]
enum Rule<'a> {
    Must,
    Default(&'a str),
    MustOr(&'a str),
}

/// Replaces `${V}`, `${V:-default}`, `${V:?message}` (both also when V is empty) and `$$`; any other `$` stands.
pub(super) fn expand(text: &str, lookup: &dyn Fn(&str) -> Option<String>) -> Result<Expanded, Vec<Fault>> {
    let mut expanded = Expanded { text: String::with_capacity(text.len()), has_reference: false };
    let mut faults = Vec::new();
    for piece in pieces(text) {
        match piece {
            Piece::Literal(literal) => expanded.text.push_str(literal),
            Piece::Variable { name, rule, source } => {
                expanded.has_reference = true;
                match value(name, &rule, lookup) {
                    Ok(value) => expanded.text.push_str(&value),
                    Err((message, help)) => faults.push(Fault { message, help, needle: source.to_owned() }),
                }
            }
            Piece::Broken { message, source } => faults.push(Fault {
                message: message.to_owned(),
                help: "write $$ for a dollar sign before a brace".to_owned(),
                needle: source.to_owned(),
            }),
        }
    }
    if faults.is_empty() { Ok(expanded) } else { Err(faults) }
}

/// The references of a secret text alone: `Bearer ${TOKEN}` becomes `***${TOKEN}`, a default becomes `***` too.
pub(super) fn references_only(text: &str) -> String {
    let mut shown = String::new();
    for piece in pieces(text) {
        match piece {
            Piece::Variable { name, rule: Rule::Default(_), .. } => {
                // Writing to a String cannot fail.
                let _ = write!(shown, "${{{name}:-***}}");
            }
            Piece::Variable { source, .. } => shown.push_str(source),
            Piece::Literal(_) | Piece::Broken { .. } => {
                if !shown.ends_with("***") {
                    shown.push_str("***");
                }
            }
        }
    }
    shown
}

/// True when every part of the text comes from the environment, but for a default.
pub(super) fn is_reference_only(text: &str) -> bool {
    pieces(text).iter().all(|piece| matches!(piece, Piece::Variable { rule: Rule::Must | Rule::MustOr(_), .. }))
}

fn value<'a>(
    name: &str,
    rule: &Rule<'a>,
    lookup: &dyn Fn(&str) -> Option<String>,
) -> Result<Cow<'a, str>, (String, String)> {
    let found = lookup(name);
    match rule {
        Rule::Must => found.map(Cow::Owned).ok_or_else(|| {
            let message = format!("environment variable {name} is not set");
            (message, format!("set {name}, or give a default: ${{{name}:-…}}"))
        }),
        Rule::Default(default) => {
            Ok(found.filter(|value| !value.is_empty()).map_or(Cow::Borrowed(*default), Cow::Owned))
        }
        Rule::MustOr(reason) => found.filter(|value| !value.is_empty()).map(Cow::Owned).ok_or_else(|| {
            let reason = if reason.is_empty() { "it must be" } else { reason };
            (format!("environment variable {name} is not set or empty: {reason}"), format!("set {name}"))
        }),
    }
}

fn pieces(text: &str) -> Vec<Piece<'_>> {
    let mut pieces = Vec::new();
    let mut rest = text;
    while let Some(dollar) = rest.find('$') {
        let (before, from) = rest.split_at(dollar);
        if !before.is_empty() {
            pieces.push(Piece::Literal(before));
        }
        let (piece, len) = match from.as_bytes().get(1) {
            Some(b'$') => (Piece::Literal(&from[..1]), 2),
            Some(b'{') => reference(from),
            _ => (Piece::Literal(&from[..1]), 1),
        };
        pieces.push(piece);
        rest = &from[len..];
    }
    if !rest.is_empty() {
        pieces.push(Piece::Literal(rest));
    }
    pieces
}

/// The reference with which `from` begins, and its length.
fn reference(from: &str) -> (Piece<'_>, usize) {
    let Some(end) = from.find('}') else {
        return (Piece::Broken { message: "${ without }", source: from }, from.len());
    };
    let source = &from[..=end];
    let inner = &from[2..end];
    let (name, rule) = if let Some((name, default)) = inner.split_once(":-") {
        (name, Rule::Default(default))
    } else if let Some((name, message)) = inner.split_once(":?") {
        (name, Rule::MustOr(message))
    } else {
        (inner, Rule::Must)
    };
    let mut chars = name.bytes();
    let is_name = chars.next().is_some_and(|first| first.is_ascii_alphabetic() || first == b'_')
        && chars.all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    let piece = if is_name {
        Piece::Variable { name, rule, source }
    } else {
        let message = "expected the name of an environment variable after ${: letters, digits and _";
        Piece::Broken { message, source }
    };
    (piece, source.len())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn env(name: &str) -> Option<String> {
        match name {
            "TOKEN" => Some("s3cret".into()),
            "EMPTY" => Some(String::new()),
            "NESTED" => Some("${TOKEN}$$".into()),
            _ => None,
        }
    }

    fn text(input: &str) -> String {
        expand(input, &env).expect("it expands").text
    }

    fn fault(input: &str) -> String {
        expand(input, &env).expect_err("it does not expand").remove(0).message
    }

    #[test]
    fn every_form() {
        assert_eq!(text("Bearer ${TOKEN}!"), "Bearer s3cret!");
        assert_eq!(text("${EMPTY}"), "");
        assert_eq!(text("${NONE:-a b}${EMPTY:-c}${TOKEN:-d}"), "a bcs3cret");
        assert_eq!(text("$$ $${TOKEN} $ $x a$"), "$ ${TOKEN} $ $x a$");
    }

    #[test]
    fn a_value_is_never_expanded_again() {
        assert_eq!(text("${NESTED}"), "${TOKEN}$$");
    }

    #[test]
    fn faults_name_the_variable() {
        assert_eq!(fault("${NONE}"), "environment variable NONE is not set");
        assert_eq!(
            fault("${NONE:?get it from the vault}"),
            "environment variable NONE is not set or empty: get it from the vault"
        );
        assert_eq!(fault("${EMPTY:?}"), "environment variable EMPTY is not set or empty: it must be");
        assert_eq!(fault("a ${TOKEN"), "${ without }");
        assert!(fault("${1}").contains("expected the name"));
        assert!(fault("${}").contains("expected the name"));
        let faults = expand("${A} ${B}", &env).expect_err("both are missing");
        assert_eq!(faults.iter().map(|fault| fault.needle.as_str()).collect::<Vec<_>>(), ["${A}", "${B}"]);
    }

    #[test]
    fn secret_texts_show_references_alone() {
        assert_eq!(references_only("Bearer ${TOKEN}"), "***${TOKEN}");
        assert_eq!(references_only("${TOKEN:-hunter2}x$$y"), "${TOKEN:-***}***");
        assert!(is_reference_only("${TOKEN}"));
        assert!(!is_reference_only("${TOKEN:-hunter2}") && !is_reference_only("a${TOKEN}"));
    }

    proptest! {
        #[test]
        fn never_panics_and_keeps_text_without_dollar(input in "\\PC*") {
            let expanded = expand(&input, &env);
            if !input.contains('$') {
                prop_assert_eq!(expanded.expect("nothing to expand").text, input);
            }
        }
    }
}
