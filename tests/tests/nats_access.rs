//! Who the agent is at a real nats-server: token, user, credentials, permissions; and that no secret is ever logged.

#![expect(clippy::disallowed_methods, reason = "tests measure time")]

use std::rc::Rc;
use std::time::{Duration, Instant};

use sysops_agent::deliver::export::{Exporter, nats};
use sysops_agent::spec::Value;
use sysops_tests::credentials;
use sysops_tests::feed::{Hand, reported, repository_file, run, start, text, until};
use sysops_tests::log::Log;
use sysops_tests::servers::{self, Scratch, free_port};
use sysops_tests::subscriber::{Wire, first, subscribe};

const LONG: Duration = Duration::from_secs(20);

fn publish(url: String, more: &[(&str, Value)]) -> Result<Box<dyn Exporter>, String> {
    let mut pairs = vec![
        ("nats.url", text(url)),
        ("nats.reconnect_delay_secs", Value::Int(1)),
        ("nats.metrics_interval_secs", Value::Int(3600)),
    ];
    pairs.extend_from_slice(more);
    start(&nats::ENTRY, "web-1", &Rc::new(Hand::with_each_kind()), &pairs)
}

fn local(port: u16) -> String {
    format!("nats://127.0.0.1:{port}")
}

fn published(exporter: &dyn Exporter, kind: &str) -> Option<f64> {
    reported(exporter, "nats_published_total", &[kind])
}

async fn until_published(exporter: &dyn Exporter) {
    until("a heartbeat is confirmed", LONG, || published(exporter, "heartbeat") == Some(1.0)).await;
}

#[test]
fn a_wrong_token_is_said_once_tried_calmly_and_never_logged() {
    let port = free_port();
    let Some(mut server) = servers::nats(port, "authorization { token: \"right-token\" }") else { return };
    let log = Log::catch();
    run(async {
        let wire = Wire::to(port).await;
        let exporter = publish(local(wire.port), &[("nats.token", text("canary-wrong"))]).expect("right settings");
        until("the refusal is seen", LONG, || {
            exporter.problem().is_some_and(|problem| problem.contains("refuses this user"))
        })
        .await;
        let (started, attempts) = (Instant::now(), wire.connections());
        until("it tries again", LONG, || wire.connections() >= attempts + 3).await;
        let took = started.elapsed();
        assert!(took > Duration::from_millis(1500), "three attempts, a second apart less a quarter: {took:?}");
        assert_eq!(reported(&*exporter, "nats_connected", &[]), Some(0.0));
        assert_eq!(log.count("WARN sysops_agent::deliver::export::nats::link: nats: "), 1, "{}", log.text());

        // The operator mends the server; nothing has to be restarted here.
        server.kill();
        let _server = servers::nats(port, "authorization { token: \"canary-wrong\" }").expect("it was there");
        until_published(&*exporter).await;
        assert_eq!(exporter.problem(), None);
        exporter.stop().await;
    });
    assert_eq!(log.count("canary"), 0, "{}", log.text());
}

#[test]
fn user_and_password_as_keys_and_in_the_address() {
    let Some(server) = servers::nats(free_port(), "authorization { user: ops, password: \"canary p@ss\" }") else {
        return;
    };
    let log = Log::catch();
    run(async {
        let more = [("nats.user", text("ops")), ("nats.password", text("canary p@ss"))];
        let exporter = publish(local(server.port), &more).expect("right settings");
        until_published(&*exporter).await;
        exporter.stop().await;
        let exporter = publish(format!("nats://ops:canary%20p%40ss@127.0.0.1:{}", server.port), &[]).expect("right");
        until_published(&*exporter).await;
        exporter.stop().await;
        let exporter = publish(format!("nats://ops:canary@127.0.0.1:{}", server.port), &[]).expect("wrong password");
        until("refused", LONG, || exporter.problem().is_some_and(|problem| problem.contains("refuses"))).await;
        exporter.stop().await;
    });
    assert_eq!(log.count("canary"), 0, "{}", log.text());
}

#[test]
fn a_credentials_file() {
    let made = credentials::make();
    let Some(server) = servers::nats(free_port(), &made.configuration) else { return };
    let log = Log::catch();
    let scratch = Scratch::new();
    let path = scratch.file("nats.creds", &made.file);
    run(async {
        let file = ("nats.credential_file", text(path.display().to_string()));
        let exporter = publish(local(server.port), &[file]).expect("right settings");
        until_published(&*exporter).await;
        exporter.stop().await;
        let anonymous = publish(local(server.port), &[]).expect("right settings");
        until("refused", LONG, || anonymous.problem().is_some_and(|problem| problem.contains("refuses"))).await;
        anonymous.stop().await;
    });
    // The file was written with 0644.
    assert_eq!(log.count("is open to every user of this host: `chmod o= "), 1, "{}", log.text());
    let seed = made.file.lines().find(|line| line.starts_with("SU")).expect("a seed");
    assert_eq!(log.count(seed), 0, "{}", log.text());
}

#[test]
fn a_credentials_file_that_cannot_be_read_or_is_none() {
    run(async {
        let file = |path: &str| [("nats.credential_file", text(path))];
        let error = publish(local(1), &file("/nonexistent/nats.creds")).err().expect("it is not there");
        assert!(error.contains("\"/nonexistent/nats.creds\" as user id "), "{error}");
        let scratch = Scratch::new();
        let path = scratch.file("nats.creds", "canary");
        let error = publish(local(1), &file(&path.display().to_string())).err().expect("it is none");
        assert!(error.contains("expected a user's JWT and NKey seed") && !error.contains("canary"), "{error}");
    });
}

#[test]
fn what_this_user_may_not_publish_is_counted() {
    let configuration = "authorization { users: [\
        {user: a, password: a, permissions: {publish: {deny: [\"sysops.*.metrics\"]}}}, {user: b, password: b}]}";
    let Some(server) = servers::nats(free_port(), configuration) else { return };
    run(async {
        let exporter = publish(format!("nats://a:a@127.0.0.1:{}", server.port), &[]).expect("right settings");
        until_published(&*exporter).await;
        until("the denial is counted", LONG, || {
            reported(&*exporter, "nats_dropped_total", &["metrics", "permission"]) == Some(1.0)
        })
        .await;
        assert_eq!(published(&*exporter, "metrics"), Some(0.0));
        exporter.stop().await;
    });
}

#[test]
fn without_an_inbox_messages_still_arrive() {
    let configuration = "authorization { users: [\
        {user: a, password: a, permissions: {publish: [\"sysops.web-1.>\"], subscribe: {deny: [\">\"]}}}, \
        {user: b, password: b}]}";
    let Some(server) = servers::nats(free_port(), configuration) else { return };
    let log = Log::catch();
    run(async {
        let options = async_nats::ConnectOptions::with_user_and_password("b".to_owned(), "b".to_owned());
        let inbox = subscribe(options, server.port, "sysops.>").await;
        let exporter = publish(format!("nats://a:a@127.0.0.1:{}", server.port), &[]).expect("right settings");
        until_published(&*exporter).await;
        first(&inbox, "the metrics", |got| got.subject.ends_with(".metrics")).await;
        until("they are counted", LONG, || published(&*exporter, "metrics") == Some(1.0)).await;
        assert_eq!(reported(&*exporter, "nats_connected", &[]), Some(1.0));
        exporter.stop().await;
    });
    assert_eq!(log.count("this user may not use its inbox"), 1, "{}", log.text());
}

#[test]
fn the_permissions_that_the_document_shows_are_enough() {
    let document = repository_file("docs/TELEMETRY.md");
    let permissions = document.lines().find(|line| line.starts_with("permissions: ")).expect("the document shows them");
    let configuration = format!("authorization {{ users: [{{user: a, password: a, {permissions}}}]}}");
    let Some(server) = servers::nats(free_port(), &configuration) else { return };
    let log = Log::catch();
    run(async {
        let exporter = publish(format!("nats://a:a@127.0.0.1:{}", server.port), &[]).expect("right settings");
        for kind in ["metrics", "inventory", "heartbeat"] {
            until(kind, LONG, || published(&*exporter, kind) == Some(1.0)).await;
        }
        exporter.stop().await;
    });
    assert_eq!(log.count("may not"), 0, "{}", log.text());
}

#[test]
fn it_gives_up_when_it_is_told_to() {
    run(async {
        let port = free_port();
        let exporter = publish(local(port), &[("nats.max_reconnect_attempts", Value::Int(2))]).expect("right settings");
        until("it gives up", LONG, || exporter.problem().is_some_and(|problem| problem.contains("given up"))).await;
        until("what waited is counted", LONG, || {
            reported(&*exporter, "nats_dropped_total", &["heartbeat", "gave_up"]) == Some(1.0)
        })
        .await;
        let started = Instant::now();
        exporter.stop().await;
        assert!(started.elapsed() < Duration::from_secs(1), "there is nothing to wait for");

        // Given up in the middle of a stop.
        let exporter = publish(local(port), &[("nats.max_reconnect_attempts", Value::Int(2))]).expect("right settings");
        let started = Instant::now();
        exporter.stop().await;
        assert!(started.elapsed() < Duration::from_millis(1900), "{:?}", started.elapsed());
    });
}
