//! Discord against a far end that reads messages as Discord does: limits, mentions, Markdown, rate limits, refusals.
#![expect(clippy::panic, reason = "a test fails by panic")]

use proptest::prelude::*;
use serde_json::{Value as Json, json};
use sysops_agent::deliver::channel::{Channel, SendError};
use sysops_agent::model::{Alert, Notice, Severity, Status, shown};
use sysops_agent::spec::Value;
use sysops_tests::channels::{CANARY, build, made, samples, send, text};
use sysops_tests::far_ends::discord::{self, Posted};
use sysops_tests::http_far_end::{Answer, FarEnd, Request};
use sysops_tests::injection;
use sysops_tests::values::values;

const ROLE: &str = "123456789012345678";

fn made_for(url: &str) -> Box<dyn Channel> {
    made(
        "discord",
        [
            ("alerting.discord.enabled", Value::Bool(true)),
            ("alerting.discord.webhook_url", text(format!("{url}/api/webhooks/1/{CANARY}?thread_id=7"))),
            ("alerting.discord.mention_roles", Value::TextList(vec![format!("<@&{ROLE}>"), "@devops".to_owned()])),
        ],
    )
}

fn answer(request: &Request) -> Answer {
    match discord::take(&request.json()) {
        Ok(_) => Answer::json("200 OK", &json!({ "id": "1185000000000000001", "type": 0 })),
        Err(faults) => Answer::json("400 Bad Request", &discord::error(&faults)),
    }
}

fn taken(request: &Request) -> Posted {
    discord::take(&request.json()).unwrap_or_else(|faults| panic!("{faults:?}"))
}

/// What must hold of every message, whatever is told.
fn holds(posted: &Posted, notice: &Notice) {
    let is_urgent = |alert: &Alert| alert.status == Status::Firing && alert.severity >= Severity::Critical;
    let roles: &[&str] = if notice.alerts.iter().any(is_urgent) { &[ROLE] } else { &[] };
    assert_eq!(posted.pinged_roles, roles);
    assert!(posted.pinged_others.is_empty(), "{:?}", posted.pinged_others);
    let mention = format!("mention <@&{ROLE}>");
    assert!(posted.content.marks.iter().all(|mark| *mark == mention), "{:?}", posted.content);
    for seen in &posted.texts {
        let foreign: Vec<&String> =
            seen.marks.iter().filter(|mark| !mark.starts_with("link https://runbooks.example/")).collect();
        assert!(foreign.is_empty(), "{foreign:?} in {:?}", seen.text);
    }
    let message = shown(&notice.head().message, 4096);
    let description = &posted.texts[1].text;
    assert!(injection::is_same_or_cut(description, &message), "{description:?}\n{message:?}");
}

#[tokio::test]
async fn hostile_text_is_words_and_nothing_else() {
    let far_end = FarEnd::answering(answer).await;
    let mut channel = made_for(&far_end.url);
    let notices: Vec<Notice> = injection::notices().collect();
    for notice in &notices {
        send(&mut *channel, notice).await.unwrap_or_else(|error| panic!("{error}: {:.60}", notice.head().message));
    }
    let seen = far_end.seen();
    assert_eq!(seen.len(), notices.len(), "no message had to be sent again as plain text");
    seen.iter().zip(&notices).for_each(|(request, notice)| holds(&taken(request), notice));
}

#[tokio::test]
async fn values_of_a_template_are_words_and_nothing_else() {
    let far_end = FarEnd::answering(answer).await;
    let mut channel = made(
        "discord",
        [
            ("alerting.discord.enabled", Value::Bool(true)),
            ("alerting.discord.webhook_url", text(&far_end.url)),
            ("alerting.discord.template", text("**{{ alert.word }}** {{ alert.message }}\n{{ alert.labels_text }}")),
        ],
    );
    let corpus = injection::corpus();
    for text in &corpus {
        send(&mut *channel, &injection::notice(text)).await.unwrap_or_else(|error| panic!("{error}: {text:.60}"));
    }
    for request in far_end.seen() {
        let posted = taken(&request);
        assert_eq!(posted.texts[1].marks, ["style **", "style **"], "{:?}", posted.texts[1].text);
        assert!(posted.pinged_roles.is_empty() && posted.pinged_others.is_empty());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(64) })]
    #[test]
    fn any_notice_is_taken(notice in injection::any_notice()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let far_end = FarEnd::answering(answer).await;
            send(&mut *made_for(&far_end.url), &notice).await.expect("it is taken");
            assert_eq!(far_end.seen().len(), 1);
            holds(&taken(&far_end.seen()[0]), &notice);
        });
    }
}

#[tokio::test]
async fn real_alerts_look_as_they_did() {
    for (name, alert) in samples() {
        let far_end = FarEnd::answering(answer).await;
        let receipt = send(&mut *made_for(&far_end.url), &Notice::of(alert)).await.expect("it is taken");
        assert_eq!(receipt.answer, "message 1185000000000000001");
        let request = &far_end.seen()[0];
        assert!(request.head.starts_with(&format!("POST /api/webhooks/1/{CANARY}?thread_id=7&wait=true HTTP/1.1")));
        insta::assert_snapshot!(format!("golden-{name}"), format!("{:#}", request.json()));
    }
}

#[tokio::test]
async fn roles_are_pinged_by_id_when_it_is_urgent_and_then_only() {
    let far_end = FarEnd::answering(answer).await;
    let mut channel = made_for(&far_end.url);
    let [(_, oom), (_, over)] = samples();
    let warn = Alert { severity: Severity::Warn, ..oom.clone() };
    for alert in [oom, over, warn] {
        send(&mut *channel, &Notice::of(alert)).await.expect("it is taken");
    }
    let posted: Vec<Posted> = far_end.seen().iter().map(taken).collect();
    assert_eq!(posted[0].pinged_roles, [ROLE]);
    assert!(posted[0].content.text.ends_with(" @devops"), "{:?}", posted[0].content);
    assert!(posted[1..].iter().all(|posted| posted.pinged_roles.is_empty() && posted.content.text.is_empty()));
    assert_eq!(posted[1].colours, [0x2e_cc_71]);
}

#[tokio::test]
async fn a_group_has_ten_embeds_and_says_how_many_more() {
    let far_end = FarEnd::answering(answer).await;
    send(&mut *made_for(&far_end.url), &injection::group("dd", 17)).await.expect("it is taken");
    let posted = taken(&far_end.seen()[0]);
    assert_eq!(posted.colours.len(), 10);
    assert!(posted.content.text.ends_with("CRITICAL 17 alerts on web-1: oom_kill"), "{:?}", posted.content);
    assert!(
        posted.texts.last().is_some_and(|footer| footer.text.ends_with("… and 7 more")),
        "{:?}",
        posted.texts.last()
    );
}

fn limited(headers: &str, body: &Json) -> Answer {
    Answer::Status("429 Too Many Requests", headers.to_owned(), body.to_string().into_bytes())
}

/// The pause in milliseconds that the channel asks for.
fn pause(sent: Result<impl std::fmt::Debug, SendError>) -> u128 {
    match sent {
        Err(SendError::Retry { after: Some(after), .. }) => after.as_millis(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn what_discord_says_of_its_limits_is_kept() {
    let body = json!({ "message": "You are being rate limited.", "retry_after": 64.57, "global": false });
    let far_end = FarEnd::start([limited("retry-after: 65\r\nx-ratelimit-scope: user\r\n", &body)]).await;
    let (mut channel, notice) = (made_for(&far_end.url), injection::notice("dd"));
    assert_eq!(pause(send(&mut *channel, &notice).await), 64_570, "the body is more exact than the header");
    assert!(pause(send(&mut *channel, &notice).await) > 60_000, "nothing is sent meanwhile");
    assert_eq!(far_end.seen().len(), 1);

    // A ban by the proxy before Discord has no JSON.
    let far_end = FarEnd::start([limited("retry-after: 3\r\n", &json!("error code: 1015"))]).await;
    assert_eq!(pause(send(&mut *made_for(&far_end.url), &notice).await), 3000);

    let used_up = "x-ratelimit-limit: 5\r\nx-ratelimit-remaining: 0\r\nx-ratelimit-reset-after: 90.5\r\n";
    let last = Answer::Status("200 OK", used_up.to_owned(), br#"{"id":"1"}"#.to_vec());
    let far_end = FarEnd::start([last]).await;
    let mut channel = made_for(&far_end.url);
    send(&mut *channel, &notice).await.expect("it is taken");
    assert!(pause(send(&mut *channel, &notice).await) > 80_000);
    assert_eq!(far_end.seen().len(), 1);
}

#[tokio::test]
async fn a_message_that_is_not_taken_goes_as_plain_text_and_then_never() {
    let bad = || Answer::json("400 Bad Request", &discord::error(&["embeds: no".to_owned()]));
    let far_end = FarEnd::start([bad(), Answer::json("200 OK", &json!({ "id": "5" }))]).await;
    let notice = injection::notice("dd");
    assert_eq!(send(&mut *made_for(&far_end.url), &notice).await.expect("the second is taken").answer, "message 5");
    let plain = taken(&far_end.seen()[1]);
    assert!(plain.texts.is_empty() && plain.content.text.contains("The kernel killed dd."), "{plain:?}");

    let far_end = FarEnd::start([bad(), bad()]).await;
    let error = send(&mut *made_for(&far_end.url), &notice).await.expect_err("neither is taken");
    let words = "the server answered 400 Bad Request (Discord's error 50035)";
    assert_eq!(error, SendError::Permanent { reason: words.to_owned() });
}

#[tokio::test]
async fn a_webhook_that_is_gone_is_refused_with_what_to_do() {
    let cases = [
        ("401 Unauthorized", json!({ "message": "Invalid Webhook Token", "code": 50027 }), "a webhook that exists"),
        ("404 Not Found", json!({ "message": CANARY, "code": 10015 }), "a webhook that exists"),
        ("400 Bad Request", json!({ "message": "forum", "code": 220_001 }), "?thread_id="),
        ("200 OK", json!("<html>log in</html>"), "answers not as Discord"),
    ];
    for (line, body, words) in cases {
        let far_end = FarEnd::start([Answer::json(line, &body), Answer::json(line, &body)]).await;
        let error = send(&mut *made_for(&far_end.url), &injection::notice("dd")).await.expect_err(line);
        assert!(matches!(&error, SendError::Refused { reason } if reason.contains(words)), "{error:?}");
    }
}

#[test]
fn what_discord_would_never_take_is_refused_with_its_key() {
    let refused = |key: &str, value: Value| {
        let set = [
            ("alerting.discord.enabled", Value::Bool(true)),
            ("alerting.discord.webhook_url", text("http://h/")),
            (key, value),
        ];
        build("discord", &values(set)).err().unwrap_or_default()
    };
    assert!(refused("alerting.discord.username", text("My Discord")).starts_with("alerting.discord.username: "));
    assert!(refused("alerting.discord.username", text("")).starts_with("alerting.discord.username: "));
    assert!(
        refused("alerting.discord.webhook_url", text(CANARY)).starts_with("alerting.discord.webhook_url: expected")
    );
    assert!(refused("alerting.discord.template", text("\n{{ x }}")).starts_with("alerting.discord.template: line 2"));
    assert!(refused("alerting.discord.ca_file", text("/x")).starts_with("alerting.discord.ca_file: is for https://"));
}
