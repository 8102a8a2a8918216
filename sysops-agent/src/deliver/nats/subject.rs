//! Subjects: `<prefix>.<host>.<kind>`, of which the host is always one token.

use async_nats::Subject;

/// The subject of one kind of message of a host.
pub(in crate::deliver) fn subject(prefix: &str, hostname: &str, kind: &str) -> Subject {
    Subject::from(format!("{prefix}.{}.{kind}", token(hostname)))
}

/// Whether `nats.subject_prefix` is no pattern.
pub(in crate::deliver) fn check_prefix(prefix: &str) -> Result<(), String> {
    let is_token = |token: &str| {
        !token.is_empty() && !token.contains(|c: char| c.is_whitespace() || c.is_control() || matches!(c, '*' | '>'))
    };
    if prefix.split('.').all(is_token) {
        return Ok(());
    }
    Err(format!("nats.subject_prefix: expected words joined by dots, without blanks, `*` and `>`, found {prefix:?}"))
}

/// The host name as one token of a subject: what has a meaning there becomes `_`.
fn token(hostname: &str) -> String {
    if hostname.is_empty() {
        return "_".to_owned();
    }
    hostname
        .chars()
        .map(|c| if c.is_whitespace() || c.is_control() || matches!(c, '.' | '*' | '>') { '_' } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subjects_keep_their_number_of_tokens() {
        assert_eq!(subject("ops.eu", "web 1.example.*>\n", "metrics").as_str(), "ops.eu.web_1_example____.metrics");
        assert_eq!(token(""), "_");
    }

    #[test]
    fn a_prefix_that_would_be_a_pattern_is_refused() {
        for prefix in ["", "a..b", "a.*", "a.>", "a b", ".a", "a\n"] {
            let error = check_prefix(prefix).expect_err(prefix);
            assert!(error.starts_with("nats.subject_prefix: expected words joined by dots"), "{error}");
        }
    }
}
