//! The outbox is killed at random points while it accepts and delivers to a far end that fails at random: nothing that was accepted
//! is lost, each comes under one id, and the changes of one alert come in their order. `cargo xtask bench delivery` runs it in full
//! size and reads what it prints.
#![expect(clippy::disallowed_methods, reason = "a test reads files, variables and clocks as it likes")]

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher as _, RandomState};
use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant, SystemTime};

use sysops_agent::deliver::Outbox;
use sysops_agent::deliver::outbox::Plan;
use sysops_agent::spec::Value;
use sysops_tests::http_far_end::{Answer, FarEnd};
use sysops_tests::outbox_child::{self, ALERTS, Task, notice};
use sysops_tests::servers::Scratch;
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

/// Below `end`, by the kernel's randomness.
fn random(end: u64) -> u64 {
    RandomState::new().hash_one(0) % end
}

/// One answer in four is an outage: an error, silence, half an answer, a closed connection, the wish to come later.
fn answers(count: u64) -> (Vec<Answer>, usize) {
    let mut faults = 0;
    let mut answer = || {
        let fault = match random(400) {
            0..=2 => Answer::Hang,
            3..=5 => Answer::Status("429 Too Many Requests", "retry-after: 1\r\n".to_owned(), Vec::new()),
            6..=49 => Answer::status("500 Internal Server Error"),
            50..=74 => Answer::Close,
            75..=99 => Answer::CloseMidBody,
            _ => return Answer::status("204 No Content"),
        };
        faults += 1;
        fault
    };
    let answers = (0..count).map(|_| answer()).collect();
    (answers, faults)
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

#[test]
fn the_account() {
    let (alerts, kills) = (size("SYSOPS_ALERTS", 400), size("SYSOPS_KILLS", 12));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let (answers, faults) = answers(alerts);
    let far_end = runtime.block_on(FarEnd::start(answers));
    let scratch = Scratch::new();
    let task = Task { data: scratch.path().to_owned(), url: far_end.url.clone(), first: 0, end: alerts };
    // The far end answers meanwhile.
    let killed = runtime.block_on(async { tokio::task::spawn_blocking(move || kill_and_kill(task, kills)).await });
    let killed = killed.expect("it was killed as it should be");

    let (mut came, mut order) = (BTreeMap::<String, u64>::new(), BTreeMap::<u64, Vec<u64>>::new());
    for request in far_end.seen() {
        let id = request.json()["id"].as_str().expect("it has an id").to_owned();
        assert_eq!(request.header("idempotency-key"), Some(&*id));
        let times = came.entry(id.clone()).or_default();
        *times += 1;
        if *times == 1 {
            let (alert, number) = id.split_once('-').expect("as it was made");
            order.entry(alert.parse().expect("a number")).or_default().push(number.parse().expect("a number"));
        }
    }
    let expected: BTreeSet<String> = (0..alerts).map(|number| format!("{}-{number}", number % ALERTS)).collect();
    let lost = expected.iter().filter(|id| !came.contains_key(*id)).count();
    let strangers = came.keys().filter(|id| !expected.contains(*id)).count();
    let again: u64 = came.values().map(|times| times - 1).sum();
    let out_of_order = order.values().filter(|numbers| !numbers.is_sorted()).count();
    println!("accepted {alerts}, killed {killed} times, {faults} outages");
    println!("delivered by webhook {}, again under the same id {again}, lost {lost}", came.len());
    assert_eq!((lost, strangers, out_of_order), (0, 0, 0), "{order:?}");
    // An outage makes it come again, and so does a kill: for what was on its way, or whose acknowledgement was not written yet.
    assert!(again <= faults as u64 + 4 * killed, "{again} again with {faults} outages and {killed} kills");
}

fn open(scratch: &Scratch, url: &str) -> Outbox {
    let plan = Plan::new(&values([
        ("alerting.console.enabled", Value::Bool(false)),
        ("alerting.webhook.enabled", Value::Bool(true)),
        ("alerting.webhook.url", Value::Text(url.to_owned())),
        ("alerting.outbox_max_bytes", Value::Int(256 << 20)),
    ]));
    Outbox::open(plan.expect("right"), scratch.path(), std::sync::Arc::new(SystemTime::now))
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
