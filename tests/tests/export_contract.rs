//! What the exporters promise by name: keys with their defaults, metrics that promtool has nothing to say about.

#![expect(clippy::disallowed_methods, reason = "tests start promtool")]

use std::io::Write as _;
use std::process::{Command, Stdio};
use std::rc::Rc;

use sysops_agent::deliver::export::{ALL, exposition};
use sysops_agent::model::{Batch, Reading};
use sysops_agent::spec::Fallback::{self, Absent, Bool, Int, Text, TextList};
use sysops_tests::feed::{Hand, run, start, text};
use sysops_tests::servers::{find_program, free_port};

const KEYS: [(&str, Fallback, bool); 19] = [
    ("nats.enabled", Bool(false), false),
    ("nats.url", Text("nats://127.0.0.1:4222"), false),
    ("nats.urls", TextList(&[]), false),
    ("nats.credential_file", Absent, false),
    ("nats.token", Absent, true),
    ("nats.user", Absent, false),
    ("nats.password", Absent, true),
    ("nats.subject_prefix", Text("sysops"), false),
    ("nats.metrics_interval_secs", Int(30), false),
    ("nats.inventory_interval_secs", Int(300), false),
    ("nats.heartbeat_interval_secs", Int(60), false),
    ("nats.include_alerts", Bool(true), false),
    ("nats.batch_size", Int(100), false),
    ("nats.compression", Bool(true), false),
    ("nats.max_reconnect_attempts", Int(-1), false),
    ("nats.reconnect_delay_secs", Int(5), false),
    ("prometheus.enabled", Bool(false), false),
    ("prometheus.bind", Text("127.0.0.1:9100"), false),
    ("prometheus.path", Text("/metrics"), false),
];

#[test]
fn keys_and_defaults() {
    let found: Vec<_> =
        ALL.iter().flat_map(|entry| entry.keys).map(|key| (key.path, key.fallback, key.secret)).collect();
    assert_eq!(found, KEYS);
    assert!(ALL.iter().flat_map(|entry| entry.keys).all(|key| key.built && !key.doc.is_empty()));
}

#[test]
fn what_exporters_say_about_themselves() {
    let Some(promtool) = find_program("promtool") else { return };
    run(async {
        let hand = Rc::new(Hand::default());
        let nats = ("nats.url", text(format!("nats://127.0.0.1:{}", free_port())));
        let bind = ("prometheus.bind", text(format!("127.0.0.1:{}", free_port())));
        let mut batch = Batch::default();
        for (entry, pair) in ALL.iter().zip([nats, bind]) {
            let exporter = start(entry, "h", &hand, &[pair]).expect("right settings");
            exporter.report(&mut batch);
            exporter.stop().await;
        }
        for (entry, key) in batch.iter() {
            let (Reading::Gauge(value) | Reading::Counter(value)) = entry.reading else { panic!("{entry:?}") };
            hand.rows.borrow_mut().push((entry.metric, key.to_owned(), value, vec![]));
        }
        hand.rows.borrow_mut().sort_by_key(|row| row.0.name);
        let reported = hand.rows.borrow().iter().map(|row| row.0.name).collect::<std::collections::BTreeSet<_>>();
        let mut declared: Vec<_> = ALL.iter().flat_map(|entry| entry.metrics).map(|metric| metric.name).collect();
        declared.retain(|name| !reported.contains(name));
        assert_eq!(declared, [""; 0], "declared and not reported");
        let mut rendered = String::new();
        exposition::render(&*hand, &mut rendered);
        let mut child = Command::new(&promtool)
            .args(["check", "metrics"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("promtool runs");
        child.stdin.take().expect("piped").write_all(rendered.as_bytes()).expect("it reads");
        let output = child.wait_with_output().expect("it ends");
        let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success() && said.is_empty(), "{said}\n{rendered}");
    });
}
