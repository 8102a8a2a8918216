//! The outbox is killed at random points while it accepts and delivers to all channels, whose far ends are out at random: nothing
//! that was accepted is lost to any of them, each comes under one id, and the changes of one alert come in their order.
//! `cargo xtask bench delivery` runs it in full size and reads what it prints.
#![expect(clippy::disallowed_methods, reason = "a test reads files, variables and clocks as it likes")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant, SystemTime};

use sysops_agent::deliver::Outbox;
use sysops_agent::deliver::outbox::Plan;
use sysops_agent::spec::Value;
use sysops_tests::bad_weather::{FarEnds, random};
use sysops_tests::outbox_child::{self, ALERTS, Task, notice};
use sysops_tests::require::require;
use sysops_tests::servers::{Scratch, find_program};
use sysops_tests::values::values;

/// Not a test: what the others start.
#[test]
fn child() {
    outbox_child::be();
}

/// A size that the bench may set.
fn size(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
}

/// Kills the outbox until it was killed often enough, then lets it end. Gives how often it was killed.
fn kill_and_kill(mut task: Task, kills: u64) -> u64 {
    let mut killed = 0;
    loop {
        let (mut child, lines) = task.start("child", &[]);
        // Far enough apart that all is not accepted before the last kill.
        let most = task.first + (task.end - task.first) / (kills - killed + 1).max(1) + 1;
        let mut deadline = None;
        loop {
            // What waits at the end has met every outage by then, and is put off again and again.
            let patience = Duration::from_secs(120 + task.end / 2);
            let wait = deadline.map_or(patience, |at: Instant| at.saturating_duration_since(Instant::now()));
            match lines.recv_timeout(wait) {
                Ok(line) if line == "open" && killed < kills => {
                    deadline = Some(Instant::now() + Duration::from_micros(random(60_000)));
                }
                Err(RecvTimeoutError::Timeout) if deadline.is_some() => break,
                received => {
                    let line = received.expect("the outbox goes on");
                    if let Some(last) = line.strip_prefix("accepted ") {
                        task.first = last.parse::<u64>().expect("a number") + 1;
                        if killed < kills && task.first > most {
                            break;
                        }
                    } else if line == "delivered" {
                        assert!(child.wait().is_ok_and(|status| status.success()));
                        return killed;
                    }
                }
            }
        }
        child.kill().expect("our child");
        child.wait().expect("our child");
        killed += 1;
        // What it said before its end counts.
        let last = lines.try_iter().filter_map(|line| line.strip_prefix("accepted ")?.parse::<u64>().ok()).last();
        task.first = last.map_or(task.first, |last| last + 1);
    }
}

/// What a far end has, against what it should.
struct Account {
    delivered: usize,
    again: usize,
    lost: usize,
    strangers: usize,
    out_of_order: usize,
}

impl Account {
    fn of(came: &[u64], alerts: u64) -> Self {
        let (mut first, mut order) = (BTreeSet::new(), BTreeMap::<u64, Vec<u64>>::new());
        for number in came {
            if first.insert(*number) {
                order.entry(number % ALERTS).or_default().push(*number);
            }
        }
        Self {
            delivered: first.len(),
            again: came.len() - first.len(),
            lost: (0..alerts).filter(|number| !first.contains(number)).count(),
            strangers: first.range(alerts..).count(),
            out_of_order: order.values().filter(|numbers| !numbers.is_sorted()).count(),
        }
    }
}

#[test]
fn the_account() {
    let (alerts, kills) = (size("SYSOPS_ALERTS", 240), size("SYSOPS_KILLS", 12));
    let no_server = find_program("nats-server").is_none();
    if !require(no_server.then(|| "nats-server is not installed".to_owned())) {
        return;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    tokio::task::LocalSet::new().block_on(&runtime, async {
        let far_ends = FarEnds::start(alerts).await.expect("the server is there");
        let scratch = Scratch::new();
        let task = Task { data: scratch.path().to_owned(), channels: far_ends.settings(), first: 0, end: alerts };
        // The far ends answer meanwhile, when they do.
        let killing = tokio::task::spawn_blocking(move || kill_and_kill(task, kills));
        let (killed, ()) = tokio::join!(killing, far_ends.storm(alerts / 50));
        let killed = killed.expect("it was killed as it should be");
        let outages = far_ends.outages();
        println!("accepted {alerts}, killed {killed} times, {outages} outages");
        let came = far_ends.end().await;
        assert_eq!(came.len(), 7, "every channel");
        for (channel, came) in came {
            let Account { delivered, again, lost, strangers, out_of_order } = Account::of(&came, alerts);
            println!("{channel}: delivered {delivered}, again {again}, lost {lost}");
            assert_eq!((lost, strangers, out_of_order), (0, 0, 0), "{channel}: {came:?}");
            // A kill makes it come again: what was on its way, or of which it was not written yet that it had come. So does an
            // acknowledgement that does not arrive.
            let most = if channel == "nats" { 0 } else { outages + 4 * killed };
            assert!(again as u64 <= most, "{channel}: {again} again with {outages} outages and {killed} kills");
        }
    });
}

fn open(scratch: &Scratch, url: &str) -> Outbox {
    let plan = Plan::new(&values([
        ("alerting.console.enabled", Value::Bool(false)),
        ("alerting.webhook.enabled", Value::Bool(true)),
        ("alerting.webhook.url", Value::Text(url.to_owned())),
        ("alerting.outbox_max_bytes", Value::Int(256 << 20)),
    ]));
    Outbox::open(plan.expect("right"), Some(scratch.path()), std::sync::Arc::new(SystemTime::now))
}

#[test]
fn the_numbers() {
    let (burst, backlog) = (size("SYSOPS_BURST", 500), size("SYSOPS_BACKLOG", 2000));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let scratch = Scratch::new();
        // Nobody listens there.
        let outbox = open(&scratch, "http://127.0.0.1:9/");
        let start = Instant::now();
        (0..burst).for_each(|number| outbox.send(&notice(number)));
        let handed_over = start.elapsed();
        outbox.wait_durable(outbox.sent()).await;
        println!(
            "burst {burst} accepted in {:.3} s, handed over in {:.3} s",
            start.elapsed().as_secs_f64(),
            handed_over.as_secs_f64()
        );
        (burst..backlog).for_each(|number| outbox.send(&notice(number)));
        outbox.wait_durable(outbox.sent()).await;
        assert_eq!(outbox.status().problem, None);
        outbox.drain(Duration::ZERO).await;
        let start = Instant::now();
        let outbox = open(&scratch, "http://127.0.0.1:9/");
        println!("backlog {} read in {:.3} s", outbox.status().records, start.elapsed().as_secs_f64());
        assert_eq!(outbox.status().records, backlog);
        outbox.drain(Duration::ZERO).await;
    });
}
