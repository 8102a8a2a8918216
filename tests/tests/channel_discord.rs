//! Discord against a far end that reads messages as Discord does: limits, mentions, Markdown, rate limits, refusals.
#![expect(clippy::panic, reason = "a test fails by panic")]

use serde_json::{Value as Json, json};
use sysops_agent::deliver::channel::SendError;
use sysops_agent::model::{Alert, Notice, Severity, shown};
use sysops_agent::spec::Value;
use sysops_tests::channels::{CANARY, fault, made, samples, text};
use sysops_tests::chats::{Chat, is_urgent, pause};
use sysops_tests::far_ends::discord::{self, Posted};
use sysops_tests::http_far_end::{Answer, Request};
use sysops_tests::injection;

const ROLE: &str = "123456789012345678";

fn chat() -> Chat {
    let roles = || Value::TextList(vec![format!("<@&{ROLE}>"), "@devops".to_owned()]);
    let webhook = |url: &str| text(format!("{url}/api/webhooks/1/{CANARY}?thread_id=7"));
    Chat {
        at: Box::new(move |url| made("discord", [("webhook_url", webhook(url)), ("mention_roles", roles())])),
        answer: discord::answer,
        receipt: "message 1185000000000000001",
        holds,
    }
}

fn taken(request: &Request) -> Posted {
    discord::take(&request.json()).unwrap_or_else(|faults| panic!("{faults:?}"))
}

fn holds(request: &Request, notice: &Notice) {
    let posted = taken(request);
    let roles: &[&str] = if is_urgent(notice) { &[ROLE] } else { &[] };
    assert_eq!(posted.pinged_roles, roles);
    assert!(posted.pinged_others.is_empty(), "{:?}", posted.pinged_others);
    let mention = format!("mention <@&{ROLE}>");
    assert!(posted.content.marks.iter().all(|mark| *mark == mention), "{:?}", posted.content);
    for seen in &posted.texts {
        let foreign: Vec<&String> =
            seen.marks.iter().filter(|mark| !mark.starts_with("link https://runbooks.example.com/")).collect();
        assert!(foreign.is_empty(), "{foreign:?} in {:?}", seen.text);
    }
    let message = shown(&notice.head().message, 4096);
    let description = &posted.texts[1].text;
    assert!(injection::is_same_or_cut(description, &message), "{description:?}\n{message:?}");
}

#[tokio::test]
async fn hostile_text_is_words_and_nothing_else() {
    chat().takes(injection::notices()).await;
}

#[test]
fn any_notice_is_taken() {
    chat().takes_any();
}

#[tokio::test]
async fn values_of_a_template_are_words_and_nothing_else() {
    let template = || text("**{{ alert.word }}** {{ alert.message }}\n{{ alert.labels_text }}");
    let with_template = Chat {
        at: Box::new(move |url| made("discord", [("webhook_url", text(url)), ("template", template())])),
        holds: |request, _| {
            let posted = taken(request);
            assert_eq!(posted.texts[1].marks, ["style **", "style **"], "{:?}", posted.texts[1].text);
            assert!(posted.pinged_roles.is_empty() && posted.pinged_others.is_empty());
        },
        ..chat()
    };
    with_template.takes(injection::corpus().iter().map(|text| injection::notice(text))).await;
}

#[tokio::test]
async fn real_alerts_look_as_they_did() {
    for (name, alert) in samples() {
        let request = &chat().takes([Notice::of(alert)]).await[0];
        assert!(request.head.starts_with(&format!("POST /api/webhooks/1/{CANARY}?thread_id=7&wait=true HTTP/1.1")));
        insta::assert_snapshot!(format!("golden-{name}"), format!("{:#}", request.json()));
    }
}

#[tokio::test]
async fn roles_are_pinged_by_id_when_it_is_urgent_and_then_only() {
    let [(_, oom), (_, over)] = samples();
    let warn = Alert { severity: Severity::Warn, ..oom.clone() };
    let posted: Vec<Posted> = chat().takes([oom, over, warn].map(Notice::of)).await.iter().map(taken).collect();
    assert_eq!(posted[0].pinged_roles, [ROLE]);
    assert!(posted[0].content.text.ends_with(" @devops"), "{:?}", posted[0].content);
    assert!(posted[1..].iter().all(|posted| posted.pinged_roles.is_empty() && posted.content.text.is_empty()));
    assert_eq!(posted[1].colours, [0x2e_cc_71]);
}

#[tokio::test]
async fn a_group_has_ten_embeds_and_says_how_many_more() {
    let posted = taken(&chat().takes([injection::group("dd", 17)]).await[0]);
    assert_eq!(posted.colours.len(), 10);
    assert!(posted.content.text.ends_with("CRITICAL 17 alerts on web-1: oom_kill"), "{:?}", posted.content);
    let footer = posted.texts.last().expect("there is one");
    assert!(footer.text.ends_with("… and 7 more"), "{footer:?}");
}

fn limited(headers: &str, body: &Json) -> Answer {
    Answer::Status("429 Too Many Requests", headers.to_owned(), body.to_string().into_bytes())
}

#[tokio::test]
async fn what_discord_says_of_its_limits_is_kept() {
    let body = json!({ "message": "You are being rate limited.", "retry_after": 64.57, "global": false });
    let both = limited("retry-after: 65\r\nx-ratelimit-scope: user\r\n", &body);
    let (first, left) = chat().held_back(both).await;
    assert_eq!(pause(first), 64_570, "the body is more exact than the header");
    assert!(left > 60_000, "{left}");

    // A ban by the proxy before Discord has no JSON.
    let (first, _) = chat().held_back(limited("retry-after: 3\r\n", &json!("error code: 1015"))).await;
    assert_eq!(pause(first), 3000);

    let used_up = "x-ratelimit-limit: 5\r\nx-ratelimit-remaining: 0\r\nx-ratelimit-reset-after: 90.5\r\n";
    let last = Answer::Status("200 OK", used_up.to_owned(), br#"{"id":"1"}"#.to_vec());
    let (first, left) = chat().held_back(last).await;
    first.expect("it is taken");
    assert!(left > 80_000, "{left}");
}

#[tokio::test]
async fn a_message_that_is_not_taken_goes_as_plain_text_and_then_never() {
    let bad = || Answer::json("400 Bad Request", &discord::error(&["embeds: no".to_owned()]));
    let notice = injection::notice("dd");
    let (sent, seen) = chat().told(&notice, [bad(), Answer::json("200 OK", &json!({ "id": "5" }))]).await;
    assert_eq!(sent.expect("the second is taken").answer, "message 5");
    let plain = taken(&seen[1]);
    assert!(plain.texts.is_empty() && plain.content.text.contains("The kernel killed dd."), "{plain:?}");

    let (sent, _) = chat().told(&notice, [bad(), bad()]).await;
    let words = "the server answered 400 Bad Request (Discord's error 50035)";
    assert_eq!(sent, Err(SendError::Permanent { reason: words.to_owned() }));
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
        let (sent, _) =
            chat().told(&injection::notice("dd"), [Answer::json(line, &body), Answer::json(line, &body)]).await;
        assert!(matches!(&sent, Err(SendError::Refused { reason }) if reason.contains(words)), "{line}: {sent:?}");
    }
}

#[test]
fn what_discord_would_never_take_is_refused_with_its_key() {
    let refused = |key: &str, value: &str| {
        let error = fault("discord", [("webhook_url", text("http://h/")), (key, text(value))]);
        error.strip_prefix("alerting.discord.").unwrap_or_default().to_owned()
    };
    assert!(refused("username", "My Discord").starts_with("username: "));
    assert!(refused("username", "").starts_with("username: "));
    assert!(refused("webhook_url", CANARY).starts_with("webhook_url: expected"));
    assert!(refused("template", "\n{{ x }}").starts_with("template: line 2"));
    assert!(refused("ca_file", "/x").starts_with("ca_file: is for https://"));
}
