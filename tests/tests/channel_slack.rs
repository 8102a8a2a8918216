//! Slack against a far end that reads messages as Slack does: blocks, mrkdwn, mentions, and its one-word answers.
#![expect(clippy::panic, reason = "a test fails by panic")]

use proptest::prelude::*;
use sysops_agent::deliver::channel::{Channel, SendError};
use sysops_agent::model::{Alert, Notice, Severity, Status, shown};
use sysops_agent::spec::Value;
use sysops_tests::channels::{CANARY, build, made, samples, send, text};
use sysops_tests::far_ends::slack::{self, Posted};
use sysops_tests::http_far_end::{Answer, FarEnd, Request};
use sysops_tests::injection;
use sysops_tests::values::values;

fn made_for(url: &str) -> Box<dyn Channel> {
    let users = vec!["U12345".to_owned(), "S777".to_owned()];
    made(
        "slack",
        [
            ("alerting.slack.enabled", Value::Bool(true)),
            ("alerting.slack.webhook_url", text(format!("{url}/services/T0/B0/{CANARY}"))),
            ("alerting.slack.channel", text("#server-alerts")),
            ("alerting.slack.mention_users", Value::TextList(users)),
        ],
    )
}

fn word(line: &'static str, word: &str) -> Answer {
    Answer::Status(line, "content-type: text/html\r\n".to_owned(), word.as_bytes().to_vec())
}

fn answer(request: &Request) -> Answer {
    match slack::take(&request.json()) {
        Ok(_) => word("200 OK", "ok"),
        Err((why, _)) => word("400 Bad Request", why),
    }
}

fn taken(request: &Request) -> Posted {
    slack::take(&request.json()).unwrap_or_else(|faults| panic!("{faults:?}"))
}

fn holds(posted: &Posted, notice: &Notice) {
    let is_urgent = |alert: &Alert| alert.status == Status::Firing && alert.severity >= Severity::Critical;
    let wanted: &[&str] = if notice.alerts.iter().any(is_urgent) { &["<@U12345>", "<!subteam^S777>"] } else { &[] };
    assert_eq!(posted.mentions(), wanted);
    for seen in posted.texts.iter().chain([&posted.text]) {
        let is_own =
            |mark: &&String| mark.starts_with("mention ") || mark.starts_with("link https://runbooks.example/");
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
async fn values_of_a_template_mention_and_link_nothing() {
    let far_end = FarEnd::answering(answer).await;
    let mut channel = made(
        "slack",
        [
            ("alerting.slack.enabled", Value::Bool(true)),
            ("alerting.slack.webhook_url", text(&far_end.url)),
            ("alerting.slack.template", text("*{{ alert.word }}* {{ alert.message }} {{ alert.labels_text }}")),
        ],
    );
    for text in &injection::corpus() {
        send(&mut *channel, &injection::notice(text)).await.unwrap_or_else(|error| panic!("{error}: {text:.60}"));
    }
    for request in far_end.seen() {
        let posted = taken(&request);
        let reaches_out = |mark: &String| mark.starts_with("mention ") || mark.starts_with("link ");
        assert!(!posted.texts.iter().flat_map(|seen| &seen.marks).any(reaches_out), "{:?}", posted.texts);
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
        assert_eq!(receipt.answer, "ok");
        let body = far_end.seen()[0].json();
        assert_eq!(body["channel"], "#server-alerts");
        insta::assert_snapshot!(format!("golden-{name}"), format!("{body:#}"));
    }
}

#[tokio::test]
async fn a_group_is_told_with_how_many_more() {
    let far_end = FarEnd::answering(answer).await;
    send(&mut *made_for(&far_end.url), &injection::group("dd", 17)).await.expect("it is taken");
    let posted = taken(&far_end.seen()[0]);
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
        let far_end = FarEnd::start([word(line, said), word(line, said)]).await;
        let error = send(&mut *made_for(&far_end.url), &injection::notice("dd")).await.expect_err(said);
        assert!(format!("{error:?}").starts_with(kind) && error.to_string().contains(words), "{said}: {error:?}");
        assert_eq!(far_end.seen().len(), if kind == "Permanent" { 2 } else { 1 }, "{said}");
    }
}

#[tokio::test]
async fn blocks_that_are_not_taken_go_as_plain_text() {
    let far_end = FarEnd::start([word("400 Bad Request", "invalid_blocks"), word("200 OK", "ok")]).await;
    send(&mut *made_for(&far_end.url), &injection::notice("dd")).await.expect("the second is taken");
    let plain = taken(&far_end.seen()[1]);
    assert!(plain.texts.is_empty() && plain.text.text.contains("The kernel killed dd."), "{plain:?}");
    assert_eq!(plain.mentions(), ["<@U12345>", "<!subteam^S777>"]);
}

#[tokio::test]
async fn nothing_is_sent_before_slack_wants_it() {
    let after = Answer::Status("429 Too Many Requests", "retry-after: 30\r\n".to_owned(), b"rate_limited".to_vec());
    let far_end = FarEnd::start([after]).await;
    let mut channel = made_for(&far_end.url);
    for _ in 0..2 {
        let error = send(&mut *channel, &injection::notice("dd")).await.expect_err("it is limited");
        assert!(matches!(error, SendError::Retry { after: Some(after), .. } if after.as_secs() >= 25), "{error:?}");
    }
    assert_eq!(far_end.seen().len(), 1);
}

#[test]
fn a_name_that_pings_no_one_is_refused() {
    let set = [
        ("alerting.slack.enabled", Value::Bool(true)),
        ("alerting.slack.webhook_url", text("http://h/")),
        ("alerting.slack.mention_users", Value::TextList(vec!["@bob".to_owned()])),
    ];
    let error = build("slack", &values(set)).err().unwrap_or_default();
    assert!(error.starts_with("alerting.slack.mention_users: \"@bob\": expected a member's id"), "{error}");
}
