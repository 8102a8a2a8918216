//! NATS telemetry against a real nats-server: the four subjects, the documents, and what happens on bad days.

#![expect(clippy::disallowed_methods, reason = "tests measure time")]

use std::cell::Cell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use sysops_agent::deliver::export::{Exporter, nats};
use sysops_agent::spec::Value;
use sysops_tests::feed::{HOSTILE, Hand, USAGE, alert, reported, repository_file, run, start, text, until};
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

/// Numbers of the alerts that came, each once, in order.
fn alerts(inbox: &Inbox) -> Vec<u32> {
    let mut numbers: Vec<u32> = inbox
        .borrow()
        .iter()
        .filter(|got| got.subject.ends_with(".alerts"))
        .filter_map(|got| got.document["message"].as_str()?.strip_prefix("alert ")?.parse().ok())
        .collect();
    numbers.sort_unstable();
    numbers.dedup();
    numbers
}

async fn until_connected(exporter: &dyn Exporter) {
    until("connected", LONG, || reported(exporter, "nats_connected", &[]) == Some(1.0)).await;
}

#[test]
fn a_subscriber_decodes_all_four_subjects() {
    let Some(server) = servers::nats(free_port(), "") else { return };
    run(async {
        let inbox = listen(&server).await;
        let feed = Rc::new(Hand::with_each_kind());
        feed.degraded.set(true);
        let exporter = publish(&feed, server.port, &[("nats.batch_size", Value::Int(2))]).expect("right settings");
        exporter.alert(&alert(1));
        for kind in ["metrics", "alerts", "inventory", "heartbeat"] {
            let got =
                first(&inbox, kind, |got| got.subject == format!("sysops.gpu server_01.{kind}").replace(' ', "_"))
                    .await;
            assert_eq!(got.content_type.as_deref(), Some("application/json"), "{got:?}");
            let encoding = if kind == "heartbeat" { None } else { Some("zstd") };
            assert_eq!(got.encoding.as_deref(), encoding, "{got:?}");
        }
        until("all is confirmed", LONG, || reported(&*exporter, "nats_published_total", &["metrics"]) == Some(3.0))
            .await;
        for (kind, schema) in [("metrics", "metrics"), ("heartbeat", "heartbeat"), ("alerts", "nats-alert")] {
            let validator = validator(schema);
            for got in inbox.borrow().iter().filter(|got| got.subject.ends_with(kind)) {
                assert!(
                    validator.is_valid(&got.document),
                    "{:?}",
                    validator.iter_errors(&got.document).collect::<Vec<_>>()
                );
                assert_eq!(got.document["hostname"], if kind == "alerts" { "h" } else { "gpu server.01" });
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
        let alert = first(&inbox, "alert", |got| got.subject.ends_with("alerts")).await.document;
        assert_eq!(alert["labels"]["comm"], HOSTILE);
        exporter.stop().await;
    });
}

#[test]
fn without_compression_without_alerts_under_another_prefix() {
    let Some(server) = servers::nats(free_port(), "") else { return };
    run(async {
        let inbox = subscribe(async_nats::ConnectOptions::new(), server.port, ">").await;
        let more = [
            ("nats.compression", Value::Bool(false)),
            ("nats.include_alerts", Value::Bool(false)),
            ("nats.subject_prefix", text("ops.eu")),
        ];
        let exporter = publisher(server.port, &more);
        exporter.alert(&alert(1));
        let got = first(&inbox, "metrics", |got| got.subject == "ops.eu.gpu_server_01.metrics").await;
        assert_eq!(got.encoding, None);
        // A subscriber to everything (`nats sub ">"`) must not stand between the agent and its confirmation.
        until("confirmed", LONG, || reported(&*exporter, "nats_published_total", &["metrics"]) == Some(1.0)).await;
        exporter.stop().await;
        assert_eq!(alerts(&inbox), [0_u32; 0]);
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
        exporter.alert(&alert(7));
        until("it says so", LONG, || exporter.problem().is_some_and(|problem| problem.contains("cannot connect")))
            .await;
        assert_eq!(reported(&*exporter, "nats_connected", &[]), Some(0.0));
        let server = servers::nats(port, "").expect("it was there");
        // The subscriber may be later than the agent's first window; the agent goes on sending.
        until_connected(&*exporter).await;
        let inbox = listen(&server).await;
        exporter.alert(&alert(8));
        first(&inbox, "alert 8", |got| got.document["message"] == "alert 8").await;
        until("the first alert too", LONG, || reported(&*exporter, "nats_published_total", &["alerts"]) == Some(2.0))
            .await;
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
        let exporter = publisher(wire.port, &[]);
        until_connected(&*exporter).await;
        let mut number = 0;
        for _ in 0..3 {
            wire.swallow();
            for _ in 0..150 {
                exporter.alert(&alert(number));
                number += 1;
                if number.is_multiple_of(10) {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            }
            let before = wire.connections();
            wire.cut();
            until("it comes back", LONG, || wire.connections() > before).await;
        }
        let all: Vec<u32> = (0..number).collect();
        until("every alert arrives", LONG, || alerts(&inbox) == all).await;
        until("and is counted", LONG, || {
            reported(&*exporter, "nats_published_total", &["alerts"]) == Some(f64::from(number))
        })
        .await;
        assert_eq!(reported(&*exporter, "nats_dropped_total", &["alerts", "overflow"]), Some(0.0));
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
        let exporter = publisher(wire.port, &[]);
        until_connected(&*exporter).await;
        // A firewall that forgot the connection: nothing is refused, nothing arrives.
        wire.swallow();
        for number in 0..10 {
            exporter.alert(&alert(number));
        }
        let all: Vec<u32> = (0..10).collect();
        until("it is given up, and all is sent on another", 2 * LONG, || alerts(&inbox) == all).await;
        exporter.stop().await;
    });
}

#[test]
fn a_server_that_is_killed_and_comes_back() {
    let port = free_port();
    let Some(mut server) = servers::nats(port, "") else { return };
    run(async {
        let exporter = publisher(port, &[]);
        until_connected(&*exporter).await;
        server.kill();
        until("the loss is seen", LONG, || reported(&*exporter, "nats_connected", &[]) == Some(0.0)).await;
        assert!(exporter.problem().is_some_and(|problem| problem.contains("127.0.0.1")), "{:?}", exporter.problem());
        for number in 0..100 {
            exporter.alert(&alert(number));
        }
        let server = servers::nats(port, "").expect("it was there");
        until_connected(&*exporter).await;
        until("all is sent", LONG, || reported(&*exporter, "nats_published_total", &["alerts"]) == Some(100.0)).await;
        let inbox = listen(&server).await;
        exporter.alert(&alert(100));
        until("the new one arrives", LONG, || alerts(&inbox).contains(&100)).await;
        exporter.stop().await;
    });
}

#[test]
fn a_server_that_is_silent_holds_nothing_up() {
    let Some(server) = servers::nats(free_port(), "") else { return };
    run(async {
        let inbox = listen(&server).await;
        let exporter = publisher(server.port, &[]);
        until_connected(&*exporter).await;
        server.freeze();
        let longest = Rc::new(Cell::new(Duration::ZERO));
        let started = Instant::now();
        for number in 0..1000 {
            let before = Instant::now();
            exporter.alert(&alert(number));
            longest.set(longest.get().max(before.elapsed()));
            if number.is_multiple_of(50) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
        assert!(longest.get() < Duration::from_millis(100), "{:?}", longest.get());
        assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
        server.thaw();
        let all: Vec<u32> = (0..1000).collect();
        until("every alert arrives", LONG, || alerts(&inbox) == all).await;
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
        let inbox = subscribe(async_nats::ConnectOptions::new(), server.port, "sysops.*.alerts").await;
        // A subscriber that never reads.
        let slow = tokio::net::TcpSocket::new_v4().expect("a socket");
        slow.set_recv_buffer_size(4096).expect("a small buffer fills soon");
        let mut slow = slow.connect(([127, 0, 0, 1], server.port).into()).await.expect("it listens");
        slow.write_all(b"CONNECT {\"headers\":true}\r\nSUB sysops.> 1\r\nPING\r\n").await.expect("written");
        let feed = Rc::new(Hand::default());
        for number in 0..30_000_u32 {
            feed.rows.borrow_mut().push((USAGE.desc(), String::new(), f64::from(number), vec![]));
        }
        let more = [("nats.metrics_interval_secs", Value::Int(1)), ("nats.compression", Value::Bool(false))];
        let exporter = publish(&feed, server.port, &more).expect("right settings");
        let mut number = 0;
        until("the server cuts the slow consumer off", 2 * LONG, || {
            exporter.alert(&alert(number));
            number += 1;
            server.log().contains("Slow Consumer")
        })
        .await;
        let all: Vec<u32> = (0..number).collect();
        until("every alert arrives", LONG, || alerts(&inbox) == all).await;
        assert_eq!(reported(&*exporter, "nats_connected", &[]), Some(1.0));
        exporter.stop().await;
    });
}

#[test]
fn stopping_drains_what_waits_but_not_for_ever() {
    let port = free_port();
    let Some(server) = servers::nats(port, "") else { return };
    run(async {
        let inbox = listen(&server).await;
        let exporter = publisher(port, &[]);
        until_connected(&*exporter).await;
        for number in 0..500 {
            exporter.alert(&alert(number));
        }
        exporter.stop().await;
        let all: Vec<u32> = (0..500).collect();
        until("every alert arrives", LONG, || alerts(&inbox) == all).await;

        let absent = publisher(free_port(), &[]);
        absent.alert(&alert(1));
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
