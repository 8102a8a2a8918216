//! Slack against a far end that reads messages as Slack does: blocks, mrkdwn, mentions, and its one-word answers.
#![expect(clippy::panic, reason = "a test fails by panic")]

use sysops_agent::model::{Notice, shown};
use sysops_agent::spec::Value;
use sysops_tests::channels::{CANARY, fault, made, samples, text};
use sysops_tests::chats::{Chat, is_urgent, pause};
use sysops_tests::far_ends::slack::{self, Posted};
use sysops_tests::http_far_end::{Answer, Request};
use sysops_tests::injection;

fn chat() -> Chat {
    let set = |url: &str| {
        [
            ("webhook_url", text(format!("{url}/services/T0/B0/{CANARY}"))),
            ("channel", text("#server-alerts")),
            ("mention_users", Value::TextList(vec!["U12345".to_owned(), "S777".to_owned()])),
        ]
    };
    Chat { at: Box::new(move |url| made("slack", set(url))), answer: slack::answer, receipt: "ok", holds }
}

fn taken(request: &Request) -> Posted {
    slack::take(&request.json()).unwrap_or_else(|faults| panic!("{faults:?}"))
}

fn holds(request: &Request, notice: &Notice) {
    let posted = taken(request);
    let wanted: &[&str] = if is_urgent(notice) { &["<@U12345>", "<!subteam^S777>"] } else { &[] };
    assert_eq!(posted.mentions(), wanted);
    for seen in posted.texts.iter().chain([&posted.text]) {
        let is_own =
            |mark: &&String| mark.starts_with("mention ") || mark.starts_with("link https://runbooks.example.com/");
        let foreign: Vec<&String> = seen.marks.iter().filter(|mark| !is_own(mark)).collect();
        assert!(foreign.is_empty(), "{foreign:?} in {:?}", seen.text);
    }
    let message = shown(&notice.head().message, 3000);
    let is_told = |text: &str| injection::is_same_or_cut(text, &message);
    let told = posted
        .texts
        .iter()
        .any(|seen| is_told(&seen.text) || seen.text.split_once('\n').is_some_and(|(_, below)| is_told(below)));
    assert!(told, "{message:?} is not in {:?}", posted.texts);
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
async fn values_of_a_template_mention_and_link_nothing() {
    let template = || text("*{{ alert.word }}* {{ alert.message }} {{ alert.labels_text }}");
    let with_template = Chat {
        at: Box::new(move |url| made("slack", [("webhook_url", text(url)), ("template", template())])),
        holds: |request, _| {
            let posted = taken(request);
            let reaches_out = |mark: &String| mark.starts_with("mention ") || mark.starts_with("link ");
            assert!(!posted.texts.iter().flat_map(|seen| &seen.marks).any(reaches_out), "{:?}", posted.texts);
        },
        ..chat()
    };
    with_template.takes(injection::corpus().iter().map(|text| injection::notice(text))).await;
}

#[tokio::test]
async fn real_alerts_look_as_they_did() {
    for (name, alert) in samples() {
        let body = chat().takes([Notice::of(alert)]).await[0].json();
        assert_eq!(body["channel"], "#server-alerts");
        insta::assert_snapshot!(format!("golden-{name}"), format!("{body:#}"));
    }
}

#[tokio::test]
async fn a_group_is_told_with_how_many_more() {
    let posted = taken(&chat().takes([injection::group("dd", 17)]).await[0]);
    assert_eq!(posted.colours.len(), 10);
    assert_eq!(posted.texts.last().map(|seen| seen.text.as_str()), Some("… and 7 more"));
}

#[tokio::test]
async fn each_word_means_what_slack_says() {
    let cases = [
        ("200 OK", "<html>log in</html>", "Refused", "without Slack's \"ok\""),
        ("403 Forbidden", "action_prohibited", "Refused", "an administrator"),
        ("403 Forbidden", "invalid_token", "Refused", "alerting.slack.webhook_url"),
        ("404 Not Found", "No service", "Refused", "alerting.slack.webhook_url"),
        ("404 Not Found", "channel_not_found", "Refused", "alerting.slack.channel"),
        ("410 Gone", "channel_is_archived", "Refused", "archived"),
        ("404 Not Found", CANARY, "Refused", "alerting.slack.webhook_url"),
        ("500 Internal Server Error", "rollup_error", "Retry", "500"),
        ("400 Bad Request", "invalid_payload", "Permanent", "400"),
    ];
    for (line, said, kind, words) in cases {
        let (sent, seen) =
            chat().told(&injection::notice("dd"), [slack::word(line, said), slack::word(line, said)]).await;
        let error = sent.expect_err(said);
        assert!(format!("{error:?}").starts_with(kind) && error.to_string().contains(words), "{said}: {error:?}");
        assert_eq!(seen.len(), if kind == "Permanent" { 2 } else { 1 }, "{said}");
    }
}

#[tokio::test]
async fn blocks_that_are_not_taken_go_as_plain_text() {
    let answers = [slack::word("400 Bad Request", "invalid_blocks"), slack::word("200 OK", "ok")];
    let (sent, seen) = chat().told(&injection::notice("dd"), answers).await;
    sent.expect("the second is taken");
    let plain = taken(&seen[1]);
    assert!(plain.texts.is_empty() && plain.text.text.contains("The kernel killed dd."), "{plain:?}");
    assert_eq!(plain.mentions(), ["<@U12345>", "<!subteam^S777>"]);
}

#[tokio::test]
async fn nothing_is_sent_before_slack_wants_it() {
    let limited = Answer::Status("429 Too Many Requests", "retry-after: 30\r\n".to_owned(), b"rate_limited".to_vec());
    let (first, left) = chat().held_back(limited).await;
    assert_eq!(pause(first), 30_000);
    assert!(left > 25_000, "{left}");
}

#[test]
fn a_name_that_pings_no_one_is_refused() {
    let users = Value::TextList(vec!["@bob".to_owned()]);
    let error = fault("slack", [("webhook_url", text("http://h/")), ("mention_users", users)]);
    assert!(error.starts_with("alerting.slack.mention_users: \"@bob\": expected a member's id"), "{error}");
}
