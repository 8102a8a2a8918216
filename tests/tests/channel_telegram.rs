//! Telegram against a far end that reads messages as Telegram does: each language, limits, and its answers.
#![expect(clippy::panic, reason = "a test fails by panic")]

use serde_json::json;
use sysops_agent::deliver::channel::{Channel, SendError};
use sysops_agent::model::{Alert, Notice, Severity, shown};
use sysops_tests::channels::{CANARY, fault, made, samples, send, text};
use sysops_tests::chats::{Chat, pause};
use sysops_tests::far_ends::telegram::{self, Posted};
use sysops_tests::http_far_end::{Answer, FarEnd, Request};
use sysops_tests::injection;

const MODES: [&str; 3] = ["HTML", "MarkdownV2", "Markdown"];

/// A group may get 20 messages in a minute; a person may get more.
const PERSON: &str = "123456789";

const GROUP: &str = "-1001234567890";

fn made_for(url: &str, chat: &str, mode: &str, template: Option<&str>) -> Box<dyn Channel> {
    let own = [
        ("bot_token", text(format!("1:{CANARY}"))),
        ("chat_id", text(chat)),
        ("parse_mode", text(mode)),
        ("api_url", text(url)),
    ];
    made("telegram", own.into_iter().chain(template.map(|source| ("template", text(source)))))
}

fn chat(mode: &'static str) -> Chat {
    Chat {
        at: Box::new(move |url| made_for(url, PERSON, mode, None)),
        answer: telegram::answer,
        receipt: "message 42",
        holds,
    }
}

fn taken(request: &Request) -> Posted {
    telegram::take(&request.json()).unwrap_or_else(|words| panic!("{words}"))
}

/// Bold is the agent's own, links lead to the runbook, and the rest is code.
fn holds(request: &Request, notice: &Notice) {
    let posted = taken(request);
    for entity in &posted.entities {
        match entity.kind.as_str() {
            "code" => {}
            "bold" => {
                let own = [
                    "Host",
                    "Value",
                    "Since",
                    "Course",
                    "Labels",
                    "Likely cause",
                    "Top processes",
                    "Kernel events",
                    "Runbook",
                    "Machine",
                ];
                let is_own =
                    own.contains(&entity.text.as_str()) || entity.text.starts_with(['🟢', '🔵', '🟡', '🔴', '🚨', '…']);
                assert!(is_own, "{entity:?}");
            }
            "text_link" => assert!(
                entity.url.as_deref().is_some_and(|url| url.starts_with("https://runbooks.example.com/")),
                "{entity:?}"
            ),
            _ => panic!("{entity:?}"),
        }
    }
    let message = shown(&notice.head().message, 2000);
    let told = posted.text.lines().any(|line| injection::is_same_or_cut(line, &message));
    assert!(told, "{message:?} is not in {:?}", posted.text);
}

#[tokio::test]
async fn hostile_text_is_words_and_nothing_else_in_every_language() {
    for mode in MODES {
        chat(mode).takes(injection::notices()).await;
    }
}

#[test]
fn any_notice_is_taken() {
    MODES.iter().for_each(|mode| chat(mode).takes_any());
}

#[tokio::test]
async fn values_of_a_template_are_words_in_every_language() {
    for (mode, source) in
        [("HTML", "<b>x</b> <code>{{ alert.message }}</code>"), ("MarkdownV2", "*x* `{{ alert.message }}`")]
    {
        let with_template = Chat {
            at: Box::new(move |url| made_for(url, PERSON, mode, Some(source))),
            holds: |request, notice| {
                let posted = taken(request);
                // What is too long with its markup is told in the built-in words.
                if posted.text.starts_with("x ") {
                    let kinds: Vec<&str> = posted.entities.iter().map(|entity| entity.kind.as_str()).collect();
                    assert_eq!(kinds, ["bold", "code"], "{:.60}: {:?}", notice.head().message, posted.entities);
                } else {
                    holds(request, notice);
                }
            },
            ..chat(mode)
        };
        with_template.takes(injection::corpus().iter().map(|text| injection::notice(text))).await;
    }
}

#[tokio::test]
async fn real_alerts_look_as_they_did() {
    for mode in MODES {
        for (name, alert) in samples() {
            let to_group = Chat { at: Box::new(move |url| made_for(url, GROUP, mode, None)), ..chat(mode) };
            let request = &to_group.takes([Notice::of(alert)]).await[0];
            assert!(request.head.starts_with(&format!("POST /bot1:{CANARY}/sendMessage HTTP/1.1")), "{}", request.head);
            let text = request.json()["text"].as_str().unwrap_or_default().to_owned();
            insta::assert_snapshot!(format!("golden-{name}-{mode}"), format!("{text}\n----\n{}", taken(request).text));
        }
    }
}

#[tokio::test]
async fn nobody_is_woken_for_what_is_over_or_for_the_record() {
    let [(_, oom), (_, over)] = samples();
    let info = Alert { severity: Severity::Info, ..oom.clone() };
    let seen = chat("HTML").takes([oom, over, info].map(Notice::of)).await;
    let quiet: Vec<bool> = seen.iter().map(|request| taken(request).is_quiet).collect();
    assert_eq!(quiet, [false, true, true]);
    assert_eq!(seen[0].json()["link_preview_options"]["is_disabled"], true);
}

#[tokio::test]
async fn a_group_chat_gets_twenty_messages_a_minute() {
    let far_end = FarEnd::answering(telegram::answer).await;
    let mut channel = made_for(&far_end.url, GROUP, "HTML", None);
    for _ in 0..20 {
        send(&mut *channel, &injection::notice("dd")).await.expect("it is taken");
    }
    assert!(pause(send(&mut *channel, &injection::notice("dd")).await) <= 60_000);
    assert_eq!(far_end.seen().len(), 20);
}

#[tokio::test]
async fn nothing_is_sent_before_telegram_wants_it() {
    let mut limited = telegram::error(429, "Too Many Requests: retry after 35");
    limited["parameters"] = json!({ "retry_after": 35 });
    let (first, left) = chat("HTML").held_back(Answer::json("429 Too Many Requests", &limited)).await;
    assert_eq!(pause(first), 35_000);
    assert!(left > 30_000, "{left}");
}

#[tokio::test]
async fn a_group_that_has_moved_is_followed_and_remembered() {
    let mut moved = telegram::error(400, "Bad Request: group chat was upgraded to a supergroup chat");
    moved["parameters"] = json!({ "migrate_to_chat_id": -1_009_876_543_210_i64 });
    let mut answers = vec![Answer::json("400 Bad Request", &moved)];
    let far_end = FarEnd::answering(move |request| answers.pop().unwrap_or_else(|| telegram::answer(request))).await;
    let mut channel = made_for(&far_end.url, "-12345", "HTML", None);
    let error = send(&mut *channel, &injection::notice("dd")).await.expect_err("it is not there any more");
    let reason = "the group has become a supergroup: set alerting.telegram.chat_id to -1009876543210".to_owned();
    assert_eq!(error, SendError::Retry { reason, after: None });
    for _ in 0..2 {
        send(&mut *channel, &injection::notice("dd")).await.expect("it is taken there");
    }
    let chats: Vec<String> = far_end
        .seen()
        .iter()
        .map(|request| request.json()["chat_id"].as_str().unwrap_or_default().to_owned())
        .collect();
    assert_eq!(chats, ["-12345", "-1009876543210", "-1009876543210"]);
}

#[tokio::test]
async fn markup_that_is_not_read_goes_as_plain_text() {
    let bad = || Answer::json("400 Bad Request", &telegram::error(400, "Bad Request: can't parse entities: x"));
    let good = Answer::json("200 OK", &json!({ "ok": true, "result": {} }));
    let (sent, seen) = chat("HTML").told(&injection::notice("@dd evil.com"), [bad(), good]).await;
    sent.expect("the second is taken");
    let plain = taken(&seen[1]);
    assert!(plain.text.contains("The kernel killed @dd evil.com."), "{plain:?}");
    assert_eq!(plain.entities.len(), 1, "nothing is found in it: {plain:?}");
    let (sent, _) = chat("HTML").told(&injection::notice("dd"), [bad(), bad()]).await;
    assert!(matches!(sent, Err(SendError::Permanent { .. })), "{sent:?}");
}

#[tokio::test]
async fn each_answer_says_what_to_do() {
    let error = telegram::error;
    let cases = [
        ("401 Unauthorized", error(401, "Unauthorized"), "alerting.telegram.bot_token"),
        ("404 Not Found", error(404, "Not Found"), "alerting.telegram.bot_token"),
        ("403 Forbidden", error(403, "Forbidden: bot was kicked from the supergroup chat"), "add it to the chat"),
        ("400 Bad Request", error(400, "Bad Request: chat not found"), "alerting.telegram.chat_id"),
        (
            "400 Bad Request",
            error(400, "Bad Request: not enough rights to send text messages to the chat"),
            "the right to send",
        ),
        ("200 OK", json!({ "ok": false, "description": CANARY }), "alerting.telegram.api_url"),
    ];
    for (line, said, words) in cases {
        let (sent, _) = chat("HTML").told(&injection::notice("dd"), [Answer::json(line, &said)]).await;
        assert!(matches!(&sent, Err(SendError::Refused { reason }) if reason.contains(words)), "{said}: {sent:?}");
    }
}

#[test]
fn what_cannot_be_a_token_or_a_chat_is_refused_with_its_key() {
    let refused = |key: &str, value: &str| {
        fault("telegram", [("bot_token", text("1:x")), ("chat_id", text("1")), (key, text(value))])
    };
    for token in ["", "1:a/../b", "1:a b", "1:a?x", "1:a#x", "1:ü"] {
        let error = refused("bot_token", token);
        assert!(error.starts_with("alerting.telegram.bot_token: expected a token"), "{error}");
    }
    assert!(refused("chat_id", "ops").starts_with("alerting.telegram.chat_id: expected a number"));
    assert!(refused("api_url", "x").starts_with("alerting.telegram.api_url: expected http://"));
    assert_eq!(refused("chat_id", "@ops"), "");
}
