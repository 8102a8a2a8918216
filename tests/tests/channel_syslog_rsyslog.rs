//! Syslog to a real rsyslog by each way and in each format: every alert is one record with the fields that were meant, whatever its
//! texts hold.

use sysops_agent::deliver::channel::{self, Channel, SendError};
use sysops_agent::model::{Notice, Status, shown};
use sysops_agent::spec::Value;
use sysops_tests::injection;
use sysops_tests::rsyslog::Rsyslog;
use sysops_tests::servers::free_port;
use sysops_tests::values::values;

fn syslog(format: &str, way: (&'static str, String)) -> Box<dyn Channel> {
    let values = values([
        ("alerting.syslog.enabled", Value::Bool(true)),
        ("alerting.syslog.format", Value::Text(format.to_owned())),
        (way.0, Value::Text(way.1)),
    ]);
    let entry = channel::ALL.iter().find(|entry| entry.name == "syslog").expect("it is in the list");
    (entry.build)(&values).expect("the settings are right").expect("it is enabled")
}

#[tokio::test]
async fn each_way_and_format_gives_one_record_with_its_fields() {
    let Some(mut daemon) = Rsyslog::start(free_port()) else { return };
    let [udp, tcp] = [("udp", daemon.udp_port), ("tcp", daemon.tcp_port)]
        .map(|(way, port)| ("alerting.syslog.address", format!("{way}://127.0.0.1:{port}")));
    let socket = |path: &std::path::Path| ("alerting.syslog.path", path.display().to_string());
    let ways = [
        ("rfc5424", socket(&daemon.socket)),
        ("rfc5424", udp.clone()),
        ("rfc5424", tcp.clone()),
        ("rfc3164", socket(&daemon.old_socket)),
        ("rfc3164", udp),
        ("rfc3164", tcp),
    ];
    let texts: Vec<String> = ["dd".to_owned()].into_iter().chain(injection::corpus()).collect();
    for (format, way) in ways {
        let mut channel = syslog(format, way.clone());
        for text in &texts {
            let mut notice = injection::notice(text);
            notice.alerts[0].context.cause = Some(text.clone());
            let alert = notice.head();
            channel.send(&notice).await.expect("it is taken");
            let record = daemon.next_record();
            let name: String = format!("{format} {way:?} {text:?}").chars().take(120).collect();
            let message = record["text"].as_str().expect("a text");
            let expected = ["26", "sysops-agent", &std::process::id().to_string()].map(serde_json::Value::from);
            assert_eq!([&record["pri"], &record["app"], &record["pid"]], expected.each_ref(), "{name}: {record}");
            if format == "rfc5424" {
                assert_eq!(record["host"], "web-1", "{name}");
                assert_eq!(record["id"], "oom_kill", "{name}");
                let shown = shown(&alert.message, 8192);
                let said = message.trim_start_matches('\u{feff}').trim_end_matches('…');
                assert!(shown.starts_with(said) && said.len() > 15, "{name}: {message}");
                let comm = format!("comm=\"{}\"", quoted(&shown_comm(text)));
                assert!(record["data"].as_str().is_some_and(|data| data.contains(&comm)), "{name}: {record}");
            } else {
                assert!(message.starts_with(" oom_kill: The kernel killed "), "{name}: {message}");
                assert!(message.ends_with(']'), "{name}: {message}");
            }
        }
    }
}

fn shown_comm(text: &str) -> String {
    shown(text, 1024)
}

/// As RFC 5424, section 6.3.3, wants it.
fn quoted(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace(']', "\\]")
}

#[tokio::test]
async fn a_daemon_that_comes_back_gets_what_comes() {
    let port = free_port();
    let Some(mut daemon) = Rsyslog::start(port) else { return };
    let mut channel = syslog("rfc5424", ("alerting.syslog.address", format!("tcp://127.0.0.1:{port}")));
    channel.send(&injection::notice("dd")).await.expect("it is there");
    let _ = daemon.next_record();
    daemon.server.kill();
    let gone = channel.send(&injection::notice("dd")).await;
    assert!(matches!(&gone, Err(SendError::Retry { reason, .. }) if reason.contains("refused")), "{gone:?}");
    drop(daemon);
    let mut daemon = Rsyslog::start(port).expect("it was there");
    let mut over = injection::alert("dd");
    over.status = Status::Resolved;
    channel.send(&Notice::of(over)).await.expect("it is there again");
    let record = daemon.next_record();
    assert_eq!(
        (record["pri"].as_str(), record["text"].as_str()),
        (Some("29"), Some("\u{feff}resolved: The kernel killed dd."))
    );
}
