//! Telegram against a far end that reads messages as Telegram does: each language, limits, and its answers.
#![expect(clippy::panic, reason = "a test fails by panic")]

use proptest::prelude::*;
use serde_json::json;
use sysops_agent::deliver::channel::{Channel, SendError};
use sysops_agent::model::{Notice, Severity, shown};
use sysops_agent::spec::Value;
use sysops_tests::channels::{CANARY, build, made, samples, send, text};
use sysops_tests::far_ends::telegram::{self, Posted};
use sysops_tests::http_far_end::{Answer, FarEnd, Request};
use sysops_tests::injection;
use sysops_tests::values::values;

const MODES: [&str; 3] = ["HTML", "MarkdownV2", "Markdown"];

/// A group may get 20 messages in a minute; a person may get more.
const PERSON: &str = "123456789";

fn made_for(url: &str, chat: &str, mode: &str) -> Box<dyn Channel> {
    made(
        "telegram",
        [
            ("alerting.telegram.enabled", Value::Bool(true)),
            ("alerting.telegram.bot_token", text(format!("1:{CANARY}"))),
            ("alerting.telegram.chat_id", text(chat)),
            ("alerting.telegram.parse_mode", text(mode)),
            ("alerting.telegram.api_url", text(url)),
        ],
    )
}

fn answer(request: &Request) -> Answer {
    match telegram::take(&request.json()) {
        Ok(_) => Answer::json("200 OK", &json!({ "ok": true, "result": { "message_id": 42 } })),
        Err(words) => Answer::json("400 Bad Request", &telegram::error(400, &words)),
    }
}

fn taken(request: &Request) -> Posted {
    telegram::take(&request.json()).unwrap_or_else(|words| panic!("{words}"))
}

/// What must hold of every message: bold is the agent's own, links lead to the runbook, and the rest is code.
fn holds(posted: &Posted, notice: &Notice) {
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
                entity.url.as_deref().is_some_and(|url| url.starts_with("https://runbooks.example/")),
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
        let far_end = FarEnd::answering(answer).await;
        let mut channel = made_for(&far_end.url, PERSON, mode);
        let notices: Vec<Notice> = injection::notices().collect();
        for notice in &notices {
            let sent = send(&mut *channel, notice).await;
            sent.unwrap_or_else(|error| panic!("{mode}: {error}: {:.60}", notice.head().message));
        }
        let seen = far_end.seen();
        assert_eq!(seen.len(), notices.len(), "{mode}: no message had to be sent again as plain text");
        seen.iter().zip(&notices).for_each(|(request, notice)| holds(&taken(request), notice));
    }
}

#[tokio::test]
async fn values_of_a_template_are_words_in_every_language() {
    for (mode, source) in
        [("HTML", "<b>x</b> <code>{{ alert.message }}</code>"), ("MarkdownV2", "*x* `{{ alert.message }}`")]
    {
        let far_end = FarEnd::answering(answer).await;
        let mut channel = made(
            "telegram",
            [
                ("alerting.telegram.enabled", Value::Bool(true)),
                ("alerting.telegram.bot_token", text("1:x")),
                ("alerting.telegram.chat_id", text(PERSON)),
                ("alerting.telegram.parse_mode", text(mode)),
                ("alerting.telegram.api_url", text(&far_end.url)),
                ("alerting.telegram.template", text(source)),
            ],
        );
        let corpus = injection::corpus();
        for text in &corpus {
            send(&mut *channel, &injection::notice(text)).await.unwrap_or_else(|error| panic!("{error}: {text:.60}"));
        }
        assert_eq!(far_end.seen().len(), corpus.len(), "{mode}");
        for (request, text) in far_end.seen().iter().zip(&corpus) {
            let posted = taken(request);
            // What is too long with its markup is told in the built-in words.
            if posted.text.starts_with("x ") {
                let kinds: Vec<&str> = posted.entities.iter().map(|entity| entity.kind.as_str()).collect();
                assert_eq!(kinds, ["bold", "code"], "{mode} {text:.60}: {:?}", posted.entities);
            } else {
                holds(&posted, &injection::notice(text));
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(64) })]
    #[test]
    fn any_notice_is_taken(notice in injection::any_notice(), mode in 0_usize..3) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let far_end = FarEnd::answering(answer).await;
            send(&mut *made_for(&far_end.url, PERSON, MODES[mode]), &notice).await.expect("it is taken");
            assert_eq!(far_end.seen().len(), 1);
            holds(&taken(&far_end.seen()[0]), &notice);
        });
    }
}

#[tokio::test]
async fn real_alerts_look_as_they_did() {
    for mode in MODES {
        for (name, alert) in samples() {
            let far_end = FarEnd::answering(answer).await;
            let channel = &mut *made_for(&far_end.url, "-1001234567890", mode);
            let receipt = send(channel, &Notice::of(alert)).await.expect("it is taken");
            assert_eq!(receipt.answer, "message 42");
            let request = &far_end.seen()[0];
            assert!(request.head.starts_with(&format!("POST /bot1:{CANARY}/sendMessage HTTP/1.1")), "{}", request.head);
            let text = request.json()["text"].as_str().unwrap_or_default().to_owned();
            insta::assert_snapshot!(format!("golden-{name}-{mode}"), format!("{text}\n----\n{}", taken(request).text));
        }
    }
}

#[tokio::test]
async fn nobody_is_woken_for_what_is_over_or_for_the_record() {
    let far_end = FarEnd::answering(answer).await;
    let mut channel = made_for(&far_end.url, PERSON, "HTML");
    let [(_, oom), (_, over)] = samples();
    let mut info = oom.clone();
    info.severity = Severity::Info;
    for alert in [oom, over, info] {
        send(&mut *channel, &Notice::of(alert)).await.expect("it is taken");
    }
    let quiet: Vec<bool> = far_end.seen().iter().map(|request| taken(request).is_quiet).collect();
    assert_eq!(quiet, [false, true, true]);
    assert_eq!(far_end.seen()[0].json()["link_preview_options"]["is_disabled"], true);
}

#[tokio::test]
async fn a_group_chat_gets_twenty_messages_a_minute() {
    let far_end = FarEnd::answering(answer).await;
    let mut channel = made_for(&far_end.url, "-1001234567890", "HTML");
    for _ in 0..20 {
        send(&mut *channel, &injection::notice("dd")).await.expect("it is taken");
    }
    let error = send(&mut *channel, &injection::notice("dd")).await.expect_err("it is one too many");
    assert!(matches!(error, SendError::Retry { after: Some(after), .. } if after.as_secs() <= 60), "{error:?}");
    assert_eq!(far_end.seen().len(), 20);
}

#[tokio::test]
async fn nothing_is_sent_before_telegram_wants_it() {
    let mut limited = telegram::error(429, "Too Many Requests: retry after 35");
    limited["parameters"] = json!({ "retry_after": 35 });
    let far_end = FarEnd::start([Answer::json("429 Too Many Requests", &limited)]).await;
    let mut channel = made_for(&far_end.url, PERSON, "HTML");
    for _ in 0..2 {
        let error = send(&mut *channel, &injection::notice("dd")).await.expect_err("it is limited");
        assert!(matches!(error, SendError::Retry { after: Some(after), .. } if after.as_secs() >= 30), "{error:?}");
    }
    assert_eq!(far_end.seen().len(), 1);
}

#[tokio::test]
async fn a_group_that_has_moved_is_followed_and_remembered() {
    let mut moved = telegram::error(400, "Bad Request: group chat was upgraded to a supergroup chat");
    moved["parameters"] = json!({ "migrate_to_chat_id": -1_009_876_543_210_i64 });
    let mut answers = vec![Answer::json("400 Bad Request", &moved)];
    let far_end = FarEnd::answering(move |request| answers.pop().unwrap_or_else(|| answer(request))).await;
    let mut channel = made_for(&far_end.url, "-12345", "HTML");
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
    let far_end = FarEnd::start([bad(), Answer::json("200 OK", &json!({ "ok": true, "result": {} }))]).await;
    send(&mut *made_for(&far_end.url, PERSON, "HTML"), &injection::notice("@dd evil.com"))
        .await
        .expect("the second is");
    let plain = taken(&far_end.seen()[1]);
    assert!(plain.text.contains("The kernel killed @dd evil.com."), "{plain:?}");
    assert_eq!(plain.entities.len(), 1, "nothing is found in it: {plain:?}");
    let far_end = FarEnd::start([bad(), bad()]).await;
    let error =
        send(&mut *made_for(&far_end.url, PERSON, "HTML"), &injection::notice("dd")).await.expect_err("neither");
    assert!(matches!(error, SendError::Permanent { .. }), "{error:?}");
}

#[tokio::test]
async fn each_answer_says_what_to_do() {
    let cases = [
        ("401 Unauthorized", 401, "Unauthorized", "alerting.telegram.bot_token"),
        ("404 Not Found", 404, "Not Found", "alerting.telegram.bot_token"),
        ("403 Forbidden", 403, "Forbidden: bot was kicked from the supergroup chat", "add it to the chat"),
        ("400 Bad Request", 400, "Bad Request: chat not found", "alerting.telegram.chat_id"),
        (
            "400 Bad Request",
            400,
            "Bad Request: not enough rights to send text messages to the chat",
            "the right to send",
        ),
    ];
    for (line, code, said, words) in cases {
        let far_end = FarEnd::start([Answer::json(line, &telegram::error(code, said))]).await;
        let error = send(&mut *made_for(&far_end.url, PERSON, "HTML"), &injection::notice("dd")).await.expect_err(said);
        assert!(matches!(&error, SendError::Refused { reason } if reason.contains(words)), "{said}: {error:?}");
    }
    let far_end = FarEnd::start([Answer::json("200 OK", &json!({ "ok": false, "description": CANARY }))]).await;
    let error = send(&mut *made_for(&far_end.url, PERSON, "HTML"), &injection::notice("dd")).await.expect_err("not ok");
    assert!(matches!(error, SendError::Refused { .. }), "{error:?}");
}

#[test]
fn what_cannot_be_a_token_or_a_chat_is_refused_with_its_key() {
    let refused = |key: &str, value: &str| {
        let mut set = values([
            ("alerting.telegram.enabled", Value::Bool(true)),
            ("alerting.telegram.bot_token", text("1:x")),
            ("alerting.telegram.chat_id", text("1")),
        ]);
        let entry = sysops_agent::deliver::channel::telegram::ENTRY.keys.iter().find(|spec| spec.path == key);
        set.set(entry.expect("a key"), text(value));
        build("telegram", &set).err().unwrap_or_default()
    };
    for token in ["", "1:a/../b", "1:a b", "1:a?x", "1:a#x", "1:ü"] {
        let error = refused("alerting.telegram.bot_token", token);
        assert!(error.starts_with("alerting.telegram.bot_token: expected a token"), "{error}");
    }
    assert!(refused("alerting.telegram.chat_id", "ops").starts_with("alerting.telegram.chat_id: expected a number"));
    assert!(refused("alerting.telegram.api_url", "x").starts_with("alerting.telegram.api_url: expected http://"));
    assert_eq!(refused("alerting.telegram.chat_id", "@ops"), "");
}
