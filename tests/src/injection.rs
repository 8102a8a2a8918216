//! What a hostile process may put into its name, a path or a log line, to reach through an alert into something else.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use sysops_agent::model::{Alert, Notice, Severity};

/// Mentions, markup, templates, header and record separators, quoting, bidirectional and invisible characters, terminal
/// control, replaced bytes, size, shells.
#[must_use]
pub fn corpus() -> Vec<String> {
    let texts = [
        "@everyone",
        "<!channel>",
        "<@1234>",
        "</b><a href=x>",
        "{{ 7*7 }}",
        "{% for %}",
        "%0d%0aBcc: x",
        "\r\nBcc: x",
        "x\n<34>1 2026-01-01T00:00:00Z evil su - - - forged",
        "]\"\\",
        "\\",
        "\"] [forged@1 a=\"b",
        "\u{202e}gnp.exe",
        "a\u{200b}b",
        "\x1b[2J\x1b]0;title\x07",
        "\u{9b}2J",
        "\u{fffd}\u{fffd}",
        "a\0b",
        "$(id)",
        "`id`",
        "${jndi:ldap://x}",
        "\u{2028}line",
        "\u{feff}bom",
    ];
    texts.iter().map(|text| (*text).to_owned()).chain([format!("x{}", "ü\n".repeat(1 << 19))]).collect()
}

/// An alert that carries `text` wherever text from outside can stand.
#[must_use]
pub fn alert(text: &str) -> Alert {
    Alert {
        value: 1.0,
        threshold: 0.0,
        labels: BTreeMap::from([("cgroup".to_owned(), "/a".to_owned()), ("comm".to_owned(), text.to_owned())]),
        fingerprint: 0x1234,
        id: "1234-1".to_owned(),
        ..Alert::new(
            "web-1",
            SystemTime::UNIX_EPOCH + Duration::from_secs(1_771_777_800),
            Severity::Critical,
            "oom_kill",
            format!("The kernel killed {text}."),
        )
    }
}

/// The same as a notice.
#[must_use]
pub fn notice(text: &str) -> Notice {
    Notice::of(alert(text))
}
