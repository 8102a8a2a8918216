//! From a reading to a person and to a machine, through the binary: an alert fires and resolves, a far end that fails
//! gets it once, and a real nats-server gets everything.

use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;
use sysops_tests::agent::{self, Agent};
use sysops_tests::feed::{run, until};
use sysops_tests::http_far_end::{Answer, FarEnd, Request};
use sysops_tests::require::require;
use sysops_tests::servers::{self, free_port};
use sysops_tests::subscriber::{first, subscribe};
use sysops_tests::{http, schema};

const LONG: Duration = Duration::from_secs(20);

/// Memory each second, and only the limit on it within reach. CPU usage, which another test may drive to 100 % and so
/// to any limit, is known from the second reading on. No alert comes of what other tests do to the machine: a disk that
/// is slow under all of them, a request whose end is not seen because one of them attaches to its tracepoint.
fn configuration(memory_percent: f64, more: &str) -> String {
    format!(
        "[agent]\ndata_dir = \"@DATA@\"\nhostname = \"web.example-1\"\ncollect_interval_secs = 1\n\
         [log_analyzer]\nenabled = false\n[kernel.oom_kill]\nrung = \"off\"\n[kernel.hung_task]\nrung = \"off\"\n\
         [kernel.block_io]\nslow_ms = 0\n[collector]\ncpu_interval_secs = 3600\nmemory_interval_secs = 1\n\
         [thresholds]\nhold_secs = 0\nmemory_percent = {memory_percent}\ncpu_percent = 100.0\n\
         cpu_per_socket_percent = 100.0\ndisk_percent = 100.0\ndisk_inode_percent = 100.0\nfd_percent = 100.0\n\
         load_avg_multiplier = 1000.0\nnetwork_error_rate = 1.0\nloss_quiet_secs = 0\n{more}"
    )
}

fn webhook(far_end: &FarEnd) -> String {
    format!("[alerting.webhook]\nenabled = true\nurl = \"{}/alerts\"\nretry_count = 5\n", far_end.url)
}

/// The posts about memory, each as described.
fn about_memory(posts: &[Request]) -> Vec<Value> {
    let posts = posts.iter().map(|post| schema::parse("webhook", &post.body));
    posts.filter(|body| body["metric"] == "memory_used_percent").collect()
}

/// Waits for that many of them.
async fn wait_for_memory(far_end: &FarEnd, count: usize) -> Vec<Value> {
    until("posts about memory", LONG, || about_memory(&far_end.seen()).len() >= count).await;
    about_memory(&far_end.seen())
}

#[test]
fn an_alert_fires_and_is_resolved() {
    if !require(agent::missing()) {
        return;
    }
    run(async {
        let far_end = FarEnd::start([]).await;
        let agent = Agent::start(&configuration(0.5, &webhook(&far_end)), &[]);
        wait_for_memory(&far_end, 1).await;
        agent.configure(&configuration(99.9, &webhook(&far_end)));
        agent.signal(Signal::HUP);
        let posts = wait_for_memory(&far_end, 2).await;
        let [fired, resolved] = &posts[..] else { panic!("{posts:#?}") };
        assert_eq!((&fired["severity"], fired.get("status")), (&"warn".into(), None), "{fired}");
        assert_eq!((&fired["hostname"], &fired["threshold"]), (&"web.example-1".into(), &0.5.into()), "{fired}");
        assert!(fired["value"].as_f64().is_some_and(|value| (0.5..100.0).contains(&value)), "{fired}");
        assert_eq!(resolved["status"], "resolved", "{resolved}");
        assert_eq!(resolved["labels"], fired["labels"]);
        agent.wait_until("the console has both", |agent| agent.stdout().matches("memory_used_percent").count() == 2);
    });
}

#[test]
fn a_far_end_that_fails_gets_it_once() {
    if !require(agent::missing()) {
        return;
    }
    run(async {
        let later = Answer::Status("429 Too Many Requests", "retry-after: 1\r\n".to_owned(), Vec::new());
        let far_end = FarEnd::start([Answer::status("500 Internal Server Error"), later]).await;
        let port = free_port();
        let prometheus = format!("[prometheus]\nenabled = true\nbind = \"127.0.0.1:{port}\"\n");
        let agent = Agent::start(&configuration(0.5, &format!("{}{prometheus}", webhook(&far_end))), &[]);
        agent.wait_until_ready();
        let delivered = "sysops_channel_delivered_total{channel=\"webhook\"} 1\n";
        let mut metrics = String::new();
        let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
        while !metrics.contains(delivered) && tokio::time::Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(50)).await;
            metrics = http::get(port, "/metrics").await;
        }
        assert!(metrics.contains(delivered), "{metrics}\n{}", agent.stderr());
        let posts = far_end.seen();
        assert_eq!(posts.len(), 3, "two that failed and the one that did not");
        assert!(posts.iter().all(|post| post.body == posts[0].body), "the same each time: {posts:#?}");
        assert!(posts[2].at - posts[1].at >= Duration::from_millis(950), "it came when it was asked to");
        for line in [
            "sysops_channel_retries_total{channel=\"webhook\"} 2\n",
            "sysops_channel_failed_total{channel=\"webhook\"} 0\n",
            "sysops_channel_queue_length{channel=\"webhook\"} 0\n",
            "sysops_alerts_fired_total{severity=\"warn\"} 1\n",
        ] {
            assert!(metrics.contains(line), "no {line} in {metrics}");
        }
    });
}

#[test]
fn a_subscriber_decodes_all_four_subjects() {
    if !require(agent::missing()) {
        return;
    }
    let Some(server) = servers::nats(free_port(), "") else { return };
    run(async {
        let inbox = subscribe(async_nats::ConnectOptions::new(), server.port, "sysops.>").await;
        let nats = format!(
            "[nats]\nenabled = true\nurl = \"nats://127.0.0.1:{}\"\nmetrics_interval_secs = 1\n\
             heartbeat_interval_secs = 1\nreconnect_delay_secs = 1\n",
            server.port
        );
        let mut agent = Agent::start(&configuration(0.5, &nats), &[]);
        let kinds =
            [("metrics", "metrics"), ("alerts", "nats-alert"), ("inventory", "inventory"), ("heartbeat", "heartbeat")];
        for (kind, described) in kinds {
            // A dot would be one more part of the subject.
            let got = first(&inbox, kind, |got| got.subject == format!("sysops.web_example-1.{kind}")).await;
            schema::hold(described, &got.document);
            assert_eq!(got.document["hostname"], "web.example-1", "{got:?}");
            assert_eq!(got.content_type.as_deref(), Some("application/json"), "{got:?}");
            let encoding = (kind != "heartbeat").then_some("zstd");
            assert_eq!(got.encoding.as_deref(), encoding, "{got:?}");
        }
        let named = |name: &'static str| {
            move |got: &sysops_tests::subscriber::Got| {
                let mut metrics = got.document["metrics"].as_array().into_iter().flatten();
                got.subject.ends_with(".metrics") && metrics.any(|metric| metric["name"] == name)
            }
        };
        for name in ["memory_used_percent", "node_load1", "agent_resident_memory_bytes", "nats_connected"] {
            first(&inbox, name, named(name)).await;
        }
        let alert = first(&inbox, "an alert", |got| got.subject.ends_with(".alerts")).await.document;
        assert_eq!((&alert["metric"], alert.get("status")), (&"memory_used_percent".into(), None), "{alert}");
        let heartbeat = first(&inbox, "well", |got| got.document["status"] == "healthy").await;
        assert!(heartbeat.subject.ends_with(".heartbeat"), "{heartbeat:?}");
        let others = inbox.borrow().iter().filter(|got| !got.subject.starts_with("sysops.web_example-1.")).count();
        assert_eq!(others, 0);

        agent.configure(&configuration(99.9, &nats));
        agent.signal(Signal::HUP);
        let resolved = first(&inbox, "it is over", |got| got.document["status"] == "resolved").await.document;
        assert_eq!(resolved["metric"], "memory_used_percent", "{resolved}");
        agent.signal(Signal::TERM);
        assert_eq!(agent.end(Duration::from_secs(5)).code(), Some(0), "{}", agent.stderr());
    });
}

#[test]
fn a_wrong_token_leaves_the_rest_at_work() {
    if !require(agent::missing()) {
        return;
    }
    let Some(server) = servers::nats(free_port(), "authorization { token: \"right\" }") else { return };
    run(async {
        let far_end = FarEnd::start([]).await;
        let port = free_port();
        let more = format!(
            "{}[nats]\nenabled = true\nurl = \"nats://127.0.0.1:{}\"\ntoken = \"canary-wrong\"\nreconnect_delay_secs = 1\n\
             [prometheus]\nenabled = true\nbind = \"127.0.0.1:{port}\"\n",
            webhook(&far_end),
            server.port
        );
        let mut agent = Agent::start(&configuration(0.5, &more), &[]);
        agent.wait_until("the refusal is said", |agent| agent.stderr().contains(" nats: "));
        assert_eq!(wait_for_memory(&far_end, 1).await.len(), 1, "people are told all the same");
        let refusals = || server.log().matches("authentication error").count();
        let before = refusals();
        until("it goes on trying", LONG, || refusals() >= before + 3).await;
        let said = agent.stderr();
        assert_eq!(said.matches(" nats: ").count(), 1, "once: {said}");
        assert!(!said.contains("canary"), "{said}");
        let metrics = http::get(port, "/metrics").await;
        assert!(metrics.contains("sysops_nats_connected 0\n"), "{metrics}");
        agent.signal(Signal::TERM);
        assert_eq!(agent.end(Duration::from_secs(5)).code(), Some(0), "{}", agent.stderr());
    });
}

#[test]
fn a_heartbeat_says_when_something_does_not_work() {
    if !require(agent::missing()) {
        return;
    }
    let Some(server) = servers::nats(free_port(), "") else { return };
    run(async {
        let inbox = subscribe(async_nats::ConnectOptions::new(), server.port, "sysops.>").await;
        let nats = format!(
            "[nats]\nenabled = true\nurl = \"nats://127.0.0.1:{}\"\nheartbeat_interval_secs = 1\n",
            server.port
        );
        // A host of which only the inventory was recorded: there is no /proc/stat.
        let host = sysops_tests::source::root().join("tests/fixtures/hosts/inventory-arm").display().to_string();
        let agent = Agent::start(&configuration(99.9, &nats), &["--host-root", &host]);
        let got = first(&inbox, "degraded", |got| got.document["status"] == "degraded").await;
        schema::hold("heartbeat", &got.document);
        assert!(agent.stderr().contains("collector cpu: "), "{}", agent.stderr());
    });
}
