//! Errors as one line. An error's own text says its level only; what caused it stands in its source.

use std::error::Error;

/// The error with its causes: `cannot read /proc/stat: No such file or directory`.
#[must_use]
pub fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let inner = error.to_string();
        // Some libraries' errors repeat their cause.
        if !text.ends_with(&inner) {
            text.push_str(": ");
            text.push_str(&inner);
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{text}")]
    struct Level {
        text: &'static str,
        source: Option<Box<Level>>,
    }

    #[test]
    fn causes_follow_and_none_stands_twice() {
        let level = |text, source: Option<Level>| Level { text, source: source.map(Box::new) };
        let error = level("cannot connect", Some(level("dial: refused", Some(level("refused", None)))));
        assert_eq!(with_causes(&error), "cannot connect: dial: refused");
    }
}
