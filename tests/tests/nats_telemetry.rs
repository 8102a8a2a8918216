//! NATS telemetry against a real nats-server: the three subjects, the documents, and what happens on bad days.

#![expect(clippy::disallowed_methods, reason = "tests measure time")]

use std::rc::Rc;
use std::time::{Duration, Instant};

use sysops_agent::deliver::export::{Exporter, nats};
use sysops_agent::spec::Value;
use sysops_tests::feed::{HOSTILE, Hand, USAGE, reported, repository_file, run, start, text, until};
use sysops_tests::servers::{self, Server, free_port};
use sysops_tests::subscriber::{Inbox, Wire, first, subscribe};
use tokio::io::AsyncWriteExt as _;

const LONG: Duration = Duration::from_secs(20);

/// An agent that sends on its own only at the start, and comes back soon.
fn publisher(port: u16, more: &[(&str, Value)]) -> Box<dyn Exporter> {
    publish(&Rc::new(Hand::with_each_kind()), port, more).expect("right settings")
}

fn publish(feed: &Rc<Hand>, port: u16, more: &[(&str, Value)]) -> Result<Box<dyn Exporter>, String> {
    let mut pairs = vec![
        ("nats.url", text(format!("nats://127.0.0.1:{port}"))),
        ("nats.reconnect_delay_secs", Value::Int(1)),
        ("nats.metrics_interval_secs", Value::Int(3600)),
    ];
    pairs.extend_from_slice(more);
    start(&nats::ENTRY, "gpu server.01", feed, &pairs)
}

async fn listen(server: &Server) -> Inbox {
    subscribe(async_nats::ConnectOptions::new(), server.port, "sysops.>").await
}

fn validator(schema: &str) -> jsonschema::Validator {
    let schema = serde_json::from_str(&repository_file(&format!("docs/schemas/{schema}.schema.json"))).expect("JSON");
    jsonschema::validator_for(&schema).expect("a schema")
}

/// Numbers of the readings that came, each once, in order.
fn numbers(inbox: &Inbox) -> Vec<u32> {
    let mut numbers: Vec<u32> = inbox
        .borrow()
        .iter()
        .filter(|got| got.subject.ends_with(".metrics"))
        .flat_map(|got| got.document["metrics"].as_array().cloned().unwrap_or_default())
        .filter(|entry| entry["name"] == "aa_count")
        .filter_map(|entry| u32::try_from(entry["value"].as_u64()?).ok())
        .collect();
    numbers.sort_unstable();
    numbers.dedup();
    numbers
}

/// Readings of which each has its number, one every second.
fn counted(port: u16) -> (Rc<Hand>, Box<dyn Exporter>) {
    let feed = Rc::new(Hand::default());
    feed.count.set(Some(0));
    let exporter = publish(&feed, port, &[("nats.metrics_interval_secs", Value::Int(1))]).expect("right settings");
    (feed, exporter)
}

/// Waits until `more` readings have been made from now on, and gives the number of all.
async fn made(feed: &Hand, more: u32) -> u32 {
    let goal = feed.count.get().expect("they are counted") + more;
    until("readings are made", LONG, || feed.count.get() >= Some(goal)).await;
    goal
}

async fn until_all(inbox: &Inbox, count: u32) {
    until("every reading arrives", 2 * LONG, || numbers(inbox).starts_with(&(0..count).collect::<Vec<_>>())).await;
}

async fn until_connected(exporter: &dyn Exporter) {
    until("connected", LONG, || reported(exporter, "nats_connected", &[]) == Some(1.0)).await;
}

#[test]
fn a_subscriber_decodes_all_subjects() {
    let Some(server) = servers::nats(free_port(), "") else { return };
    run(async {
        let inbox = listen(&server).await;
        let feed = Rc::new(Hand::with_each_kind());
        feed.degraded.set(true);
        let exporter = publish(&feed, server.port, &[("nats.batch_size", Value::Int(2))]).expect("right settings");
        for kind in ["metrics", "inventory", "heartbeat"] {
            let got =
                first(&inbox, kind, |got| got.subject == format!("sysops.gpu server_01.{kind}").replace(' ', "_"))
                    .await;
            assert_eq!(got.content_type.as_deref(), Some("application/json"), "{got:?}");
            let encoding = if kind == "heartbeat" { None } else { Some("zstd") };
            assert_eq!(got.encoding.as_deref(), encoding, "{got:?}");
        }
        until("all is confirmed", LONG, || reported(&*exporter, "nats_published_total", &["metrics"]) == Some(3.0))
            .await;
        for (kind, schema) in [("metrics", "metrics"), ("heartbeat", "heartbeat")] {
            let validator = validator(schema);
            for got in inbox.borrow().iter().filter(|got| got.subject.ends_with(kind)) {
                assert!(
                    validator.is_valid(&got.document),
                    "{:?}",
                    validator.iter_errors(&got.document).collect::<Vec<_>>()
                );
                assert_eq!(got.document["hostname"], "gpu server.01");
            }
            assert!(!validator.is_valid(&serde_json::json!({"hostname": 1})), "the schema checks something");
        }
        let names: Vec<String> = inbox
            .borrow()
            .iter()
            .filter(|got| got.subject.ends_with(".metrics"))
            .flat_map(|got| got.document["metrics"].as_array().cloned().unwrap_or_default())
            .map(|entry| entry["name"].as_str().unwrap_or_default().to_owned())
            .collect();
        assert_eq!(
            names,
            [
                "block_io_latency_seconds_count",
                "block_io_latency_seconds_sum",
                "cpu_usage_percent",
                "node_cpu_seconds_total",
                "zz_text_bytes"
            ]
        );
        let heartbeat = first(&inbox, "heartbeat", |got| got.subject.ends_with("heartbeat")).await.document;
        assert_eq!(heartbeat["status"], "degraded");
        assert_eq!(heartbeat["uptime_secs"], 864_000);
        let inventory = first(&inbox, "inventory", |got| got.subject.ends_with("inventory")).await.document;
        assert_eq!(inventory["cpu"]["sockets"], 2);
        let metrics = inbox.borrow().iter().map(|got| got.document.to_string()).collect::<String>();
        assert!(metrics.contains(&serde_json::json!(HOSTILE).to_string()), "a label comes as it is");
        exporter.stop().await;
    });
}

#[test]
fn without_compression_under_another_prefix() {
    let Some(server) = servers::nats(free_port(), "") else { return };
    run(async {
        let inbox = subscribe(async_nats::ConnectOptions::new(), server.port, ">").await;
        let more = [("nats.compression", Value::Bool(false)), ("nats.subject_prefix", text("ops.eu"))];
        let exporter = publisher(server.port, &more);
        let got = first(&inbox, "metrics", |got| got.subject == "ops.eu.gpu_server_01.metrics").await;
        assert_eq!(got.encoding, None);
        // A subscriber to everything (`nats sub ">"`) must not stand between the agent and its confirmation.
        until("confirmed", LONG, || reported(&*exporter, "nats_published_total", &["metrics"]) == Some(1.0)).await;
        exporter.stop().await;
    });
}

#[test]
fn absent_at_the_start_it_is_found_later() {
    let port = free_port();
    if servers::find_program("nats-server").is_none() {
        return;
    }
    run(async {
        let exporter = publisher(port, &[]);
        until("it says so", LONG, || exporter.problem().is_some_and(|problem| problem.contains("cannot connect")))
            .await;
        assert_eq!(reported(&*exporter, "nats_connected", &[]), Some(0.0));
        let _server = servers::nats(port, "").expect("it was there");
        until_connected(&*exporter).await;
        let published = || reported(&*exporter, "nats_published_total", &["metrics"]);
        until("what waited is sent", LONG, || published() == Some(1.0)).await;
        assert_eq!(exporter.problem(), None);
        exporter.stop().await;
    });
}

#[test]
fn what_was_in_flight_when_the_connection_broke_is_sent_again() {
    let Some(server) = servers::nats(free_port(), "") else { return };
    run(async {
        let inbox = listen(&server).await;
        let wire = Wire::to(server.port).await;
        let (feed, exporter) = counted(wire.port);
        until_connected(&*exporter).await;
        let mut count = 0;
        for _ in 0..3 {
            wire.swallow();
            count = made(&feed, 2).await;
            let before = wire.connections();
            wire.cut();
            until("it comes back", LONG, || wire.connections() > before).await;
        }
        until_all(&inbox, count).await;
        assert_eq!(reported(&*exporter, "nats_dropped_total", &["metrics", "overflow"]), Some(0.0));
        assert!(wire.connections() >= 4, "{}", wire.connections());
        exporter.stop().await;
    });
}

#[test]
fn a_connection_that_is_dead_and_does_not_know_it() {
    let Some(server) = servers::nats(free_port(), "") else { return };
    run(async {
        let inbox = listen(&server).await;
        let wire = Wire::to(server.port).await;
        let (feed, exporter) = counted(wire.port);
        until_connected(&*exporter).await;
        // A firewall that forgot the connection: nothing is refused, nothing arrives.
        wire.swallow();
        let count = made(&feed, 2).await;
        until_all(&inbox, count).await;
        exporter.stop().await;
    });
}

#[test]
fn a_server_that_is_killed_and_comes_back() {
    let port = free_port();
    let Some(mut server) = servers::nats(port, "") else { return };
    run(async {
        let (feed, exporter) = counted(port);
        until_connected(&*exporter).await;
        server.kill();
        until("the loss is seen", LONG, || reported(&*exporter, "nats_connected", &[]) == Some(0.0)).await;
        assert!(exporter.problem().is_some_and(|problem| problem.contains("127.0.0.1")), "{:?}", exporter.problem());
        let count = made(&feed, 3).await;
        let server = servers::nats(port, "").expect("it was there");
        until_connected(&*exporter).await;
        let published = || reported(&*exporter, "nats_published_total", &["metrics"]);
        until("all is sent", LONG, || published() >= Some(f64::from(count))).await;
        let inbox = listen(&server).await;
        until("new ones arrive", LONG, || numbers(&inbox).iter().any(|number| *number > count)).await;
        exporter.stop().await;
    });
}

#[test]
fn a_server_that_is_silent_holds_nothing_up() {
    let Some(server) = servers::nats(free_port(), "") else { return };
    run(async {
        let inbox = listen(&server).await;
        let (feed, exporter) = counted(server.port);
        until_connected(&*exporter).await;
        server.freeze();
        // Readings go on being made while nothing leaves.
        let count = made(&feed, 3).await;
        server.thaw();
        until_all(&inbox, count).await;
        exporter.stop().await;
    });
}

#[test]
fn a_slow_consumer_is_the_servers_trouble() {
    let Some(server) = servers::nats(free_port(), "max_payload: 65536\nmax_pending: 65536\nwrite_deadline: \"200ms\"")
    else {
        return;
    };
    run(async {
        let inbox = subscribe(async_nats::ConnectOptions::new(), server.port, "sysops.*.heartbeat").await;
        // A subscriber that never reads.
        let slow = tokio::net::TcpSocket::new_v4().expect("a socket");
        slow.set_recv_buffer_size(4096).expect("a small buffer fills soon");
        let mut slow = slow.connect(([127, 0, 0, 1], server.port).into()).await.expect("it listens");
        slow.write_all(b"CONNECT {\"headers\":true}\r\nSUB sysops.> 1\r\nPING\r\n").await.expect("written");
        let feed = Rc::new(Hand::default());
        for number in 0..8000_u32 {
            feed.rows.borrow_mut().push((USAGE.desc(), String::new(), f64::from(number), vec![]));
        }
        // Where the server itself is slow it may cut off others, too: they come back, and for the next heartbeat.
        let more = [
            ("nats.metrics_interval_secs", Value::Int(1)),
            ("nats.heartbeat_interval_secs", Value::Int(1)),
            ("nats.compression", Value::Bool(false)),
        ];
        let exporter = publish(&feed, server.port, &more).expect("right settings");
        until("the server cuts the slow consumer off", 2 * LONG, || server.log().contains("Slow Consumer")).await;
        first(&inbox, "others get what they want", |got| got.subject.ends_with(".heartbeat")).await;
        until_connected(&*exporter).await;
        exporter.stop().await;
    });
}

#[test]
fn stopping_drains_what_waits_but_not_for_ever() {
    let port = free_port();
    let Some(server) = servers::nats(port, "") else { return };
    run(async {
        let inbox = listen(&server).await;
        let feed = Rc::new(Hand::default());
        for number in 0..500_u32 {
            feed.rows.borrow_mut().push((USAGE.desc(), String::new(), f64::from(number), vec![]));
        }
        let exporter = publish(&feed, port, &[("nats.batch_size", Value::Int(1))]).expect("right settings");
        until_connected(&*exporter).await;
        exporter.stop().await;
        let came = || inbox.borrow().iter().filter(|got| got.subject.ends_with(".metrics")).count();
        until("every message arrives", LONG, || came() == 500).await;

        let absent = publisher(free_port(), &[]);
        let tried = || absent.problem().is_some_and(|problem| problem.contains("cannot connect"));
        until("something waits", LONG, tried).await;
        let started = Instant::now();
        absent.stop().await;
        let took = started.elapsed();
        assert!(took > Duration::from_millis(1500) && took < Duration::from_millis(2500), "{took:?}");
    });
}

#[test]
fn telemetry_fits_into_what_the_server_takes() {
    let Some(server) = servers::nats(free_port(), "max_payload: 8192") else { return };
    run(async {
        let inbox = listen(&server).await;
        let feed = Rc::new(Hand::default());
        let more = [
            ("nats.metrics_interval_secs", Value::Int(1)),
            ("nats.compression", Value::Bool(false)),
            ("nats.batch_size", Value::Int(100_000)),
        ];
        *feed.inventory.borrow_mut() = Some(Rc::new(serde_json::json!({"disks": "x".repeat(9000)})));
        let exporter = publish(&feed, server.port, &more).expect("right settings");
        until_connected(&*exporter).await;
        for number in 0..1000_u32 {
            feed.rows.borrow_mut().push((USAGE.desc(), String::new(), f64::from(number), vec![]));
        }
        let values = || -> usize {
            let inbox = inbox.borrow();
            let metrics = inbox.iter().filter(|got| got.subject.ends_with(".metrics"));
            metrics.map(|got| got.document["metrics"].as_array().map_or(0, Vec::len)).sum()
        };
        until("all values arrive", LONG, || values() >= 1000).await;
        assert_eq!(reported(&*exporter, "nats_dropped_total", &["inventory", "too_large"]), Some(1.0));
        assert_eq!(reported(&*exporter, "nats_dropped_total", &["metrics", "too_large"]), None);
        exporter.stop().await;
    });
}
