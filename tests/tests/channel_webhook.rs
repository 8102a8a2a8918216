//! The webhook against a server that misbehaves: what is on the wire, what is tried again, what is given up, and
//! that no secret shows.

use std::collections::BTreeMap;
use std::time::Duration;

use sysops_agent::deliver::Outbox;
use sysops_agent::deliver::channel::{Receipt, SendError, console};
use sysops_agent::model::{Alert, Notice, Status, shown};
use sysops_agent::spec::{Value, Values};
use sysops_tests::channels::{CANARY, made, samples, send, text, values};
use sysops_tests::http_far_end::{Answer, FarEnd, Request};
use sysops_tests::injection;
use sysops_tests::schema;

/// The canary stands in the URL's path and query and in a header.
fn set(url: &str) -> [(&'static str, Value); 3] {
    let headers = BTreeMap::from([("Authorization".to_owned(), format!("Bearer {CANARY}"))]);
    [
        ("url", text(format!("{url}/{CANARY}?token={CANARY}"))),
        ("timeout_secs", Value::Int(1)),
        ("headers", Value::TextMap(headers)),
    ]
}

fn settings(far_end: &FarEnd) -> Values {
    let mut values = values("webhook", set(&far_end.url));
    values.set(console::ENABLED.spec(), Value::Bool(false));
    values
}

fn alert() -> Alert {
    injection::alert("dd")
}

/// One try, without the outbox.
async fn try_once(url: &str) -> Result<Receipt, SendError> {
    send(&mut *made("webhook", set(url)), &Notice::of(alert())).await
}

#[tokio::test]
async fn the_body_has_the_payloads_keys_and_the_request_what_was_configured() {
    let far_end = FarEnd::start([]).await;
    try_once(&far_end.url).await.expect("204 is success");
    let seen = far_end.wait_for(1).await;
    assert!(seen[0].head.starts_with(&format!("POST /{CANARY}?token={CANARY} HTTP/1.1")), "{}", seen[0].head);
    assert_eq!(seen[0].header("content-type"), Some("application/json"));
    assert_eq!(seen[0].header("authorization"), Some("Bearer hunter2"));
    assert_eq!(
        seen[0].json(),
        serde_json::json!({
            "hostname": "web-1", "timestamp": "2026-02-22T16:30:00Z", "severity": "critical", "metric": "oom_kill",
            "value": 1.0, "threshold": 0.0, "message": "The kernel killed dd.",
            "labels": { "cgroup": "/a", "comm": "dd" },
            "id": "1234-1", "fingerprint": "0000000000001234", "change": "fired", "rule": "oom_kill",
            "starts_at": "2026-02-22T16:30:00Z",
        })
    );
    assert_eq!(seen[0].header("idempotency-key"), Some("1234-1"));
    assert_eq!(seen[0].header("webhook-signature"), None);
}

#[tokio::test]
async fn every_body_fits_the_schema_and_resolved_is_said_only_then() {
    let far_end = FarEnd::start([]).await;
    let outbox = Outbox::start(&settings(&far_end)).expect("the settings are right");
    outbox.send(&Notice::of(alert()));
    outbox.send(&Notice::of(Alert { status: Status::Resolved, id: "1234-2".to_owned(), ..alert() }));
    for (_, sample) in samples() {
        outbox.send(&Notice::of(sample));
    }
    let seen = far_end.wait_for(4).await;
    seen.iter().for_each(|request| schema::hold("webhook", &request.json()));
    // Notices of one alert keep their order, and others may come between them.
    let of = |id: &str| seen.iter().find(|request| request.header("idempotency-key") == Some(id)).map(Request::json);
    assert_eq!(of("1234-1").expect("it came").get("status"), None);
    assert_eq!(of("1234-2").expect("it came")["status"], "resolved");
}

/// The request for `alert` by a webhook with this one more setting.
async fn request(alert: Alert, key: &str, value: &str) -> Request {
    let far_end = FarEnd::start([]).await;
    let set = [("url", text(&far_end.url)), (key, text(value))];
    send(&mut *made("webhook", set), &Notice::of(alert)).await.expect("204 is success");
    far_end.seen().remove(0)
}

#[tokio::test]
async fn real_alerts_look_as_they_did_in_every_payload() {
    for payload in ["full", "seed", "alertmanager"] {
        for (name, alert) in samples() {
            let body = request(alert, "payload", payload).await.json();
            insta::assert_snapshot!(format!("golden-{name}-{payload}"), format!("{body:#}"));
        }
    }
}

#[tokio::test]
async fn a_template_is_the_body_and_its_values_stay_values() {
    let far_end = FarEnd::start([]).await;
    let template = r#"{"text": "{{ alert.message }}", "value": {{ alert.value }}}"#;
    let mut webhook = made("webhook", [("url", text(&far_end.url)), ("template", text(template))]);
    let corpus = injection::corpus();
    for text in &corpus {
        send(&mut *webhook, &injection::notice(text)).await.expect("204 is success");
    }
    for (request, text) in far_end.seen().iter().zip(&corpus) {
        let message = shown(&format!("The kernel killed {text}."), 1000);
        assert_eq!(request.json(), serde_json::json!({ "text": message, "value": 1.0 }));
    }
}

#[tokio::test]
async fn what_goes_out_is_signed_with_its_id_and_the_time() {
    let key = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    let request = request(alert(), "hmac_secret", key).await;
    assert_eq!(request.header("webhook-id"), Some("1234-1"));
    let time: u64 = request.header("webhook-timestamp").and_then(|text| text.parse().ok()).expect("seconds");
    assert!(time > 1_700_000_000, "{time}");
    let signature = request.header("webhook-signature").expect("it is signed");
    assert!(signature.starts_with("v1,") && signature.len() == 3 + 44, "{signature}");
}

#[tokio::test]
async fn what_may_pass_is_tried_again_with_one_key() {
    let after = |secs: u64| Answer::Status("429 Too Many Requests", format!("retry-after: {secs}\r\n"), Vec::new());
    let far_end = FarEnd::start([after(2), Answer::status("503 Service Unavailable")]).await;
    let outbox = Outbox::start(&settings(&far_end)).expect("the settings are right");
    outbox.send(&Notice::of(alert()));
    let seen = far_end.wait_for(3).await;
    assert!(seen[1].at - seen[0].at >= Duration::from_secs(2), "it came before the server wanted it");
    let keys: Vec<_> = seen.iter().map(|request| request.header("idempotency-key")).collect();
    assert!(keys[0].is_some() && keys.iter().all(|key| *key == keys[0]), "{keys:?}");
    assert_eq!(outbox.drain(Duration::from_secs(4)).await, 0);
    assert_eq!(far_end.seen().len(), 3, "204 was success");
}

#[tokio::test]
async fn each_answer_means_retry_or_the_end() {
    let huge = Answer::Status("500 Internal Server Error", String::new(), vec![b'x'; 10 << 20]);
    let moved =
        Answer::Status("307 Temporary Redirect", "location: http://169.254.169.254/\r\n".to_owned(), Vec::new());
    let echo = Answer::Status("400 Bad Request", String::new(), format!("no /{CANARY} here").into_bytes());
    let cases: Vec<(Answer, bool, &str)> = vec![
        (Answer::Hang, true, "no answer within 1 s"),
        (Answer::SlowLoris, true, "no answer within 1 s"),
        (Answer::Close, true, "http://127.0.0.1:"),
        (Answer::CloseMidBody, true, "http://127.0.0.1:"),
        (huge, true, "500"),
        (Answer::status("408 Request Timeout"), true, "408"),
        (Answer::status("425 Too Early"), true, "425"),
        (Answer::status("502 Bad Gateway"), true, "502"),
        (echo, false, "400"),
        (Answer::status("401 Unauthorized"), false, "401"),
        (Answer::status("404 Not Found"), false, "404"),
        (moved, false, "redirects are not followed"),
    ];
    for (answer, retried, words) in cases {
        let name = format!("{answer:?}").chars().take(60).collect::<String>();
        let far_end = FarEnd::start([answer]).await;
        let error = try_once(&far_end.url).await.expect_err(&name);
        assert_eq!(matches!(error, SendError::Retry { .. }), retried, "{name}: {error:?}");
        assert!(error.to_string().contains(words), "{name}: {error}");
        assert_eq!(far_end.seen().len(), 1, "{name}");
    }
}

#[tokio::test]
async fn a_server_that_is_not_there_is_worth_another_try() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let url = format!("http://{}", listener.local_addr().expect("it is bound"));
    drop(listener);
    let error = try_once(&url).await.expect_err("nobody listens");
    assert!(matches!(&error, SendError::Retry { reason, .. } if reason.contains("refused")), "{error:?}");
}

#[tokio::test]
async fn hostile_text_is_data_in_the_body_and_nowhere_else() {
    let far_end = FarEnd::start([]).await;
    let outbox = Outbox::start(&settings(&far_end)).expect("the settings are right");
    let corpus = injection::corpus();
    for (index, text) in corpus.iter().enumerate() {
        outbox.send(&Notice { id: format!("1234-{index}"), ..injection::notice(text) });
    }
    let seen = far_end.wait_for(corpus.len()).await;
    for (request, text) in seen.iter().zip(&corpus) {
        assert_eq!(request.json()["labels"]["comm"], *text, "the label is exact");
        let control = request.body.iter().find(|byte| **byte < 0x20);
        assert_eq!(control, None, "in the body of {text:?}");
        assert_eq!(request.head.lines().count(), 7, "{}", request.head);
    }
}
