//! Alerts to a real nats-server: stored once where a stream keeps them, whatever breaks in between; confirmed by the server where
//! none does; and what a server that refuses means.

use std::time::Duration;

use sysops_agent::deliver::channel::{self, Channel, Receipt, SendError};
use sysops_agent::model::{Context, Notice, Usage};
use sysops_agent::spec::Value;
use sysops_tests::feed::{alert, repository_file, run, until_async};
use sysops_tests::injection;
use sysops_tests::servers::{self, Scratch, Server, free_port};
use sysops_tests::subscriber::{first, subscribe};
use sysops_tests::values::values;

const NO_STREAM: &str = "core NATS, confirmed by the server; no stream keeps it";

fn text(text: &str) -> Value {
    Value::Text(text.to_owned())
}

fn publisher_at(url: &str) -> Box<dyn Channel> {
    let values = values([("nats.enabled", Value::Bool(true)), ("nats.url", text(url))]);
    let entry = channel::ALL.iter().find(|entry| entry.name == "nats").expect("it is in the list");
    (entry.build)(&values).expect("the settings are right").expect("it is enabled")
}

fn publisher(port: u16) -> Box<dyn Channel> {
    publisher_at(&format!("nats://127.0.0.1:{port}"))
}

fn notice(number: u32) -> Notice {
    Notice::of(alert(number))
}

/// Its answer, or its error's kind and words.
async fn sent(publisher: &mut Box<dyn Channel>, notice: &Notice) -> String {
    match publisher.send(notice).await {
        Ok(Receipt { answer }) => answer,
        Err(SendError::Retry { reason, .. }) => format!("retry: {reason}"),
        Err(SendError::Refused { reason }) => format!("refused: {reason}"),
        Err(SendError::Permanent { reason }) => format!("permanent: {reason}"),
    }
}

/// A server with JetStream, whose streams stay in `store`.
fn jetstream(port: u16, store: &Scratch, more: &str) -> Option<Server> {
    servers::nats(port, &format!("jetstream {{ store_dir: {:?} }}\n{more}", store.path()))
}

/// JetStream's answer.
async fn api(port: u16, subject: &str, question: serde_json::Value) -> serde_json::Value {
    let options = async_nats::ConnectOptions::with_user_and_password("b".to_owned(), "b".to_owned());
    let client = options.connect(format!("nats://127.0.0.1:{port}")).await.expect("the server is there");
    let answer = client.request(format!("$JS.API.{subject}"), question.to_string().into()).await.expect("JetStream");
    let answer: serde_json::Value = serde_json::from_slice(&answer.payload).expect("JSON");
    assert_eq!(answer.get("error"), None, "{answer}");
    answer
}

/// A stream that keeps all alerts.
async fn stream(port: u16, more: serde_json::Value) {
    let mut config = serde_json::json!({
        "name": "ALERTS", "subjects": ["sysops.*.alerts"], "retention": "limits", "storage": "file", "num_replicas": 1
    });
    if let (Some(config), Some(more)) = (config.as_object_mut(), more.as_object()) {
        config.extend(more.clone());
    }
    api(port, "STREAM.CREATE.ALERTS", config).await;
}

async fn messages(port: u16) -> u64 {
    let info = api(port, "STREAM.INFO.ALERTS", serde_json::json!({})).await;
    info["state"]["messages"].as_u64().expect("a number")
}

#[test]
fn a_stream_stores_it_once_however_often_it_is_sent() {
    let (port, store) = (free_port(), Scratch::new());
    let Some(mut server) = jetstream(port, &store, "") else { return };
    run(async {
        stream(port, serde_json::json!({})).await;
        let mut publisher = publisher(port);
        assert_eq!(sent(&mut publisher, &notice(1)).await, "PubAck stream ALERTS seq 1");
        assert_eq!(sent(&mut publisher, &notice(2)).await, "PubAck stream ALERTS seq 2");
        assert_eq!(sent(&mut publisher, &notice(1)).await, "PubAck stream ALERTS seq 1, which had it already");
        server.kill();
        let gone = sent(&mut publisher, &notice(3)).await;
        assert!(gone.starts_with("retry: 127.0.0.1:"), "{gone}");
        server = jetstream(port, &store, "").expect("it was there");
        assert_eq!(sent(&mut publisher, &notice(3)).await, "PubAck stream ALERTS seq 3");
        assert_eq!(sent(&mut publisher, &notice(2)).await, "PubAck stream ALERTS seq 2, which had it already");
        assert_eq!(messages(port).await, 3);
        // The word of a server that stands still is waited for, and not for ever.
        server.freeze();
        let silent = tokio::time::timeout(Duration::from_secs(20), sent(&mut publisher, &notice(4))).await;
        let silent = silent.expect("it does not wait for ever");
        assert!(silent.starts_with("retry: ") && silent.contains("within 5 s"), "{silent}");
        server.thaw();
        let answer = sent(&mut publisher, &notice(4)).await;
        assert!(answer.starts_with("PubAck stream ALERTS seq 4"), "{answer}");
        assert_eq!(messages(port).await, 4);
    });
}

#[test]
fn what_is_stored_is_the_webhooks_object_under_its_own_id() {
    let (port, store) = (free_port(), Scratch::new());
    let Some(_server) = jetstream(port, &store, "") else { return };
    run(async {
        stream(port, serde_json::json!({})).await;
        let inbox = subscribe(async_nats::ConnectOptions::new(), port, "sysops.>").await;
        let mut publisher = publisher(port);
        let schema = repository_file("docs/schemas/nats-alert.schema.json");
        let schema = jsonschema::validator_for(&serde_json::from_str(&schema).expect("JSON")).expect("a schema");
        for (number, text) in injection::corpus().iter().enumerate() {
            let mut notice = injection::notice(text);
            notice.alerts[0].context = Context {
                course: vec![1.0, 2.5],
                top: vec![Usage { pid: Some(1), comm: text.clone(), uses: "1 %".to_owned() }],
                cause: Some(text.clone()),
                host: vec![("uptime".to_owned(), "1 d".to_owned())],
                ..Context::default()
            };
            notice.alerts[0].id = format!("id-{number}");
            let answer = sent(&mut publisher, &notice).await;
            assert_eq!(answer, format!("PubAck stream ALERTS seq {}", number + 1));
            let got = first(&inbox, "the alert", |got| got.document["id"] == format!("id-{number}")).await;
            assert_eq!((got.subject.as_str(), got.encoding.as_deref()), ("sysops.web-1.alerts", Some("zstd")));
            assert_eq!(got.content_type.as_deref(), Some("application/json"));
            assert_eq!(got.document, serde_json::to_value(notice.head()).expect("an alert has a JSON form"));
            let errors: Vec<_> = schema.iter_errors(&got.document).map(|error| error.to_string()).collect();
            assert!(errors.is_empty(), "{errors:?}");
        }
    });
}

#[test]
fn without_a_stream_the_server_confirms_it() {
    let store = Scratch::new();
    for (more, port) in [("", free_port()), ("jetstream", free_port())] {
        let server = if more.is_empty() { servers::nats(port, "") } else { jetstream(port, &store, "") };
        let Some(_server) = server else { return };
        run(async {
            let mut publisher = publisher(port);
            let answer = sent(&mut publisher, &notice(1)).await;
            assert_eq!(answer, format!("{NO_STREAM} and nobody listens on sysops.h.alerts"));
            let inbox = subscribe(async_nats::ConnectOptions::new(), port, "sysops.>").await;
            assert_eq!(sent(&mut publisher, &notice(2)).await, NO_STREAM);
            first(&inbox, "the alert", |got| got.document["message"] == "alert 2").await;
            if more == "jetstream" {
                // Made a moment later, it gets what comes, though its word is not waited for yet.
                stream(port, serde_json::json!({})).await;
                sent(&mut publisher, &notice(3)).await;
                first(&inbox, "the alert", |got| got.document["message"] == "alert 3").await;
                let own = publisher_at(&format!("nats://127.0.0.1:{port}")).send(&notice(3)).await.expect("taken");
                assert_eq!(own.answer, "PubAck stream ALERTS seq 1, which had it already");
            }
        });
    }
}

#[test]
fn a_stream_that_takes_nothing_is_quoted() {
    let full =
        (serde_json::json!({"max_msgs": 1, "discard": "new"}), "retry: ", "503 maximum messages exceeded (10077)");
    let small =
        (serde_json::json!({"max_msg_size": 64}), "permanent: ", "400 message size exceeds maximum allowed (10054)");
    let mute = (serde_json::json!({"no_ack": true}), "retry: ", "the stream has not answered within 5 s");
    for (config, kind, words) in [full, small, mute] {
        let (port, store) = (free_port(), Scratch::new());
        let Some(_server) = jetstream(port, &store, "") else { return };
        run(async {
            stream(port, config.clone()).await;
            let mut publisher = publisher(port);
            sent(&mut publisher, &notice(1)).await;
            let answer = sent(&mut publisher, &notice(2)).await;
            assert!(answer.starts_with(kind) && answer.ends_with(words), "{config}: {answer}");
            if kind == "retry: " && config.get("max_msgs").is_some() {
                api(port, "STREAM.PURGE.ALERTS", serde_json::json!({})).await;
                assert_eq!(sent(&mut publisher, &notice(2)).await, "PubAck stream ALERTS seq 2");
            }
        });
    }
}

#[test]
fn a_sealed_stream_waits_for_whoever_unseals_it() {
    let (port, store) = (free_port(), Scratch::new());
    let Some(_server) = jetstream(port, &store, "") else { return };
    run(async {
        stream(port, serde_json::json!({})).await;
        let sealed = serde_json::json!({
            "name": "ALERTS", "subjects": ["sysops.*.alerts"], "retention": "limits", "storage": "file",
            "num_replicas": 1, "sealed": true
        });
        api(port, "STREAM.UPDATE.ALERTS", sealed).await;
        let answer = sent(&mut publisher(port), &notice(1)).await;
        assert!(answer.starts_with("refused: ") && answer.contains("sealed stream (10109)"), "{answer}");
    });
}

#[test]
fn permissions_decide_what_can_be_known() {
    let user = |permissions: &str| {
        format!(
            "authorization {{ users: [{{user: a, password: \"canary\", {permissions}}}, {{user: b, password: b}}] }}"
        )
    };
    let document = repository_file("docs/TELEMETRY.md");
    let documented = document.lines().find(|line| line.starts_with("permissions: ")).expect("it shows them");
    let documented = documented.replace("sysops.web-1.", "sysops.h.");
    let cases = [
        // What the document shows is enough for a stream's word, without any right to JetStream's API.
        (documented.as_str(), "PubAck stream ALERTS seq 1"),
        ("permissions: {publish: [\"sysops.h.>\"], subscribe: [\"_INBOX.>\"]}", "PubAck stream ALERTS seq 1"),
        (
            "permissions: {publish: [\"sysops.h.>\", \"_INBOX.>\"], subscribe: {deny: [\">\"]}}",
            "core NATS, written to the connection; this user may not use its inbox, so nothing confirms it",
        ),
    ];
    for (permissions, expected) in cases {
        let (port, store) = (free_port(), Scratch::new());
        let Some(_server) = jetstream(port, &store, &user(permissions)) else { return };
        run(async {
            stream(port, serde_json::json!({})).await;
            let mut publisher = publisher_at(&format!("nats://a:canary@127.0.0.1:{port}"));
            assert_eq!(sent(&mut publisher, &notice(1)).await, expected, "{permissions}");
            until_async("stored once", || async { messages(port).await == 1 }).await;
        });
    }
    let Some(server) = servers::nats(free_port(), &user("permissions: {publish: [\"other.>\", \"_INBOX.>\"]}")) else {
        return;
    };
    run(async {
        let denied = sent(&mut publisher_at(&format!("nats://a:canary@127.0.0.1:{}", server.port)), &notice(1)).await;
        assert!(denied.starts_with("refused: ") && denied.contains("\"sysops.h.alerts\""), "{denied}");
        let wrong = sent(&mut publisher_at(&format!("nats://a:canary-2@127.0.0.1:{}", server.port)), &notice(1)).await;
        assert!(wrong.starts_with("refused: ") && wrong.contains(" refuses this user: check token"), "{wrong}");
        assert!(!format!("{denied}{wrong}").contains("canary"), "{denied} {wrong}");
    });
}

#[test]
fn its_switch_is_that_of_telemetry() {
    let entry = channel::ALL.iter().find(|entry| entry.name == "nats").expect("it is in the list");
    let is_on = |enabled: bool, include: bool| {
        let values = values([("nats.enabled", Value::Bool(enabled)), ("nats.include_alerts", Value::Bool(include))]);
        (entry.build)(&values).expect("right settings").is_some()
    };
    assert_eq!([is_on(false, true), is_on(true, false), is_on(true, true)], [false, false, true]);
    let wrong = values([("nats.enabled", Value::Bool(true)), ("nats.subject_prefix", text("a.*"))]);
    assert!((entry.build)(&wrong).err().expect("a pattern").starts_with("nats.subject_prefix: "));
}
