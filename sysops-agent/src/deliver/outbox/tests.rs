//! The outbox with far ends that answer as told. The disk is a folder of the test's own; where time matters there is none, and the
//! clock is tokio's, which stands still.

use std::collections::VecDeque;
use std::io::Read as _;
use std::sync::Mutex;

use super::*;
use crate::deliver::channel::{Receipt, SendError, Sending};
use crate::model::{Alert, Change, Fate, Reading, Status};
use crate::spec::Value;

/// Answers as told, then with success; remembers what it took and when it was asked.
#[derive(Clone, Default)]
struct Fake {
    answers: Arc<Mutex<VecDeque<SendError>>>,
    asked: Arc<Mutex<Vec<tokio::time::Instant>>>,
    took: Arc<Mutex<Vec<Notice>>>,
    hangs: bool,
    retries: u32,
}

impl Channel for Fake {
    fn send<'a>(&'a mut self, notice: &'a Notice) -> Sending<'a> {
        Box::pin(async move {
            self.asked.lock().expect("unpoisoned").push(tokio::time::Instant::now());
            if self.hangs {
                std::future::pending::<()>().await;
            }
            if let Some(error) = self.answers.lock().expect("unpoisoned").pop_front() {
                return Err(error);
            }
            self.took.lock().expect("unpoisoned").push(notice.clone());
            Ok(Receipt::new("ok"))
        })
    }

    fn retries(&self) -> u32 {
        self.retries
    }
}

impl Fake {
    fn answering(answers: impl IntoIterator<Item = SendError>) -> Self {
        Self { answers: Arc::new(Mutex::new(answers.into_iter().collect())), ..Self::default() }
    }

    fn stuck() -> Self {
        Self { hangs: true, ..Self::default() }
    }

    fn took(&self) -> Vec<String> {
        self.took.lock().expect("unpoisoned").iter().map(|notice| notice.id.clone()).collect()
    }

    fn asked(&self) -> Vec<tokio::time::Instant> {
        self.asked.lock().expect("unpoisoned").clone()
    }

    fn made(&self, name: &'static str) -> Made {
        let channel = Box::new(self.clone());
        Made { name, min_severity: Severity::Info, grouped: false, durable: true, channel }
    }
}

fn retry(after: Option<u64>) -> SendError {
    SendError::Retry { reason: "busy".to_owned(), after: after.map(Duration::from_secs) }
}

fn no() -> SendError {
    SendError::Permanent { reason: "no".to_owned() }
}

fn refused() -> SendError {
    SendError::Refused { reason: "wrong token".to_owned() }
}

fn time() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_771_777_800)
}

/// A notice of an alert of its own, unless the id names one: `7-2` is of the alert 7.
fn notice(id: &str, severity: Severity) -> Notice {
    let alert = id.split('-').next().and_then(|alert| alert.parse().ok());
    let fingerprint = alert.unwrap_or_else(|| seen::Seen::digest(id));
    Notice::of(Alert { id: id.to_owned(), fingerprint, ..Alert::new("h", time(), severity, "m", id.to_owned()) })
}

fn resolved(id: &str, severity: Severity) -> Notice {
    let mut notice = notice(id, severity);
    let alert = &mut notice.alerts[0];
    (alert.status, alert.change) = (Status::Resolved, Change::Resolved);
    alert.starts_at = time() - Duration::from_secs(90);
    notice
}

fn plan(channels: Vec<Made>) -> Plan {
    Plan::new(&Values::default()).expect("the defaults are right").with(channels)
}

fn in_memory(channels: Vec<Made>) -> Outbox {
    Outbox::run(plan(channels), None, Arc::new(time))
}

fn on_disk(dir: &Path, channels: Vec<Made>) -> Outbox {
    Outbox::open(plan(channels), Some(dir), Arc::new(time))
}

fn count(outbox: &Outbox, name: &str) -> f64 {
    let mut batch = Batch::default();
    outbox.collect(&mut batch);
    let values = batch.iter().filter(|(entry, _)| entry.metric.name == name);
    let values = values.map(|(entry, _)| match entry.reading {
        Reading::Counter(value) | Reading::Gauge(value) => value,
        ref other => panic!("{other:?}"),
    });
    values.sum()
}

async fn until(done: impl Fn() -> bool) {
    let start = tokio::time::Instant::now();
    while !done() {
        let waited = start.elapsed();
        assert!(waited < Duration::from_secs(7 * 86_400), "not within a week, by a clock that leaps");
        tokio::time::sleep(Duration::from_millis(5) + waited / 50).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_channel_that_hangs_delays_no_other_and_the_end_comes_in_time() {
    let (stuck, well) = (Fake::stuck(), Fake::default());
    let outbox = in_memory(vec![stuck.made("stuck"), well.made("well")]);
    let start = tokio::time::Instant::now();
    for id in ["a", "b", "c"] {
        outbox.send(&notice(id, Severity::Warn));
    }
    until(|| well.took().len() == 3).await;
    assert_eq!(well.took(), ["a", "b", "c"]);
    assert!(start.elapsed() < Duration::from_secs(1));
    assert_eq!(outbox.drain(Duration::from_secs(4)).await, 3, "one on its way and two behind it");
    assert!(start.elapsed() < Duration::from_secs(5));
}

#[tokio::test(start_paused = true)]
async fn draining_delivers_what_waits() {
    let fake = Fake { retries: 3, ..Fake::answering([retry(None), retry(Some(1))]) };
    let outbox = in_memory(vec![fake.made("fake")]);
    outbox.send(&notice("a", Severity::Warn));
    outbox.send(&notice("b", Severity::Warn));
    assert_eq!(outbox.drain(Duration::from_secs(10)).await, 0);
    assert_eq!(fake.took(), ["a", "b"]);
}

#[tokio::test(start_paused = true)]
async fn the_far_ends_word_on_when_to_come_again_is_kept_by_the_whole_channel() {
    let fake = Fake { retries: 3, ..Fake::answering([retry(Some(7)), retry(Some(1_000_000))]) };
    let outbox = in_memory(vec![fake.made("fake")]);
    outbox.send(&notice("a", Severity::Warn));
    until(|| fake.asked().len() == 1).await;
    outbox.send(&notice("b", Severity::Emergency));
    until(|| fake.took().len() == 2).await;
    let asked = fake.asked();
    assert_eq!(asked.len(), 4);
    assert!(asked[1] - asked[0] >= Duration::from_secs(7) && asked[1] - asked[0] < Duration::from_millis(7100));
    assert!(asked[2] - asked[1] >= Duration::from_secs(3600), "an hour at most, and not less");
    assert_eq!(fake.took(), ["b", "a"], "the worst first");
    assert_eq!((count(&outbox, "channel_delivered_total"), count(&outbox, "channel_retries_total")), (2.0, 2.0));
}

#[tokio::test(start_paused = true)]
async fn what_is_not_taken_is_put_off_while_others_go_on_until_it_is_too_old() {
    let fake = Fake { retries: 2, ..Fake::answering([retry(None), retry(None), retry(None)]) };
    let outbox = in_memory(vec![fake.made("fake")]);
    outbox.send(&notice("a", Severity::Warn));
    // The random pause may be so short that it is asked again before anyone looks.
    until(|| fake.asked().len() >= 3).await;
    outbox.send(&notice("b", Severity::Warn));
    until(|| fake.took().len() == 2).await;
    assert_eq!(fake.asked().len(), 5);

    fake.answers.lock().expect("unpoisoned").extend(std::iter::repeat_n(retry(None), 100_000));
    let (_, mut outcomes) = outbox.send_and_watch(&notice("c", Severity::Warn));
    let start = tokio::time::Instant::now();
    let mut last = None;
    while let Some(outcome) = outcomes.recv().await {
        last = Some(outcome.result);
    }
    assert_eq!(last, Some(Fate::Parked { reason: "not delivered within 86400 s: busy".to_owned() }));
    let hours = start.elapsed().as_secs() / 3600;
    assert_eq!(hours, 24);
    // A full jitter of at most 5 min is 150 s in the mean, with three tries each time.
    let tries = fake.asked().len();
    assert!((600..6000).contains(&tries), "{tries}");
    assert_eq!((count(&outbox, "channel_failed_total"), count(&outbox, "channel_queue_length")), (1.0, 0.0));
}

#[tokio::test(start_paused = true)]
async fn a_refusal_for_good_ends_the_tries_and_others_go_on() {
    let fake = Fake { retries: 3, ..Fake::answering([no()]) };
    let outbox = in_memory(vec![fake.made("fake")]);
    let (names, mut outcomes) = outbox.send_and_watch(&notice("a", Severity::Warn));
    assert_eq!(names, ["fake"]);
    outbox.send(&notice("b", Severity::Warn));
    until(|| fake.took() == ["b"]).await;
    assert_eq!(outcomes.recv().await.map(|outcome| outcome.result), Some(Fate::Parked { reason: "no".to_owned() }));
    assert_eq!(outcomes.recv().await, None);
    assert_eq!(fake.asked().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn who_refuses_the_agent_is_asked_seldom_loses_nothing_and_is_asked_at_once_after_a_reload() {
    let (fake, well) = (Fake { retries: 3, ..Fake::answering([refused(), refused()]) }, Fake::default());
    let mut outbox = in_memory(vec![fake.made("fake"), well.made("well")]);
    let (_, mut outcomes) = outbox.send_and_watch(&notice("a", Severity::Critical));
    outbox.send(&notice("b", Severity::Emergency));
    until(|| fake.asked().len() == 2).await;
    let asked = fake.asked();
    assert!(asked[1] - asked[0] >= Duration::from_secs(300));
    let status = outbox.status();
    assert!(
        status.channels[0].refused && status.channels[0].last_error.as_deref() == Some("wrong token"),
        "{status:?}"
    );
    assert!(status.channels[0].next_try_secs.is_some_and(|secs| (280..=300).contains(&secs)), "{status:?}");
    assert_eq!(status.channels[0].waiting, 2);
    outbox.reload(plan(vec![fake.made("fake"), well.made("well")]));
    let reloaded = tokio::time::Instant::now();
    until(|| fake.took().len() == 2).await;
    assert!(fake.asked()[2] - reloaded < Duration::from_secs(1));
    assert_eq!(well.took().len(), 2);
    let told = std::iter::from_fn(|| outcomes.try_recv().ok());
    let told: Vec<_> = told.filter(|outcome| outcome.channel == "fake").map(|outcome| outcome.result).collect();
    assert_eq!(told.last(), Some(&Fate::Delivered { answer: "ok".to_owned() }), "{told:?}");
}

#[tokio::test(start_paused = true)]
async fn the_worst_goes_first_and_no_change_overtakes_an_earlier_one() {
    let fake = Fake::answering([retry(Some(5))]);
    let outbox = in_memory(vec![fake.made("fake")]);
    outbox.send(&notice("first", Severity::Info));
    until(|| fake.asked().len() == 1).await;
    for (id, severity) in [("1-1", Severity::Warn), ("2-1", Severity::Critical), ("3-1", Severity::Info)] {
        outbox.send(&notice(id, severity));
    }
    outbox.send(&notice("1-2", Severity::Emergency));
    outbox.send(&resolved("2-2", Severity::Critical));
    until(|| fake.took().len() == 6).await;
    assert_eq!(fake.took(), ["1-1", "1-2", "2-1", "2-2", "first", "3-1"]);
}

#[tokio::test(start_paused = true)]
async fn a_change_waits_for_one_that_is_put_off() {
    let fake = Fake::answering([retry(None)]);
    let outbox = in_memory(vec![fake.made("fake")]);
    outbox.send(&notice("1-1", Severity::Warn));
    until(|| !fake.asked().is_empty()).await;
    outbox.send(&resolved("1-2", Severity::Warn));
    outbox.send(&notice("2-1", Severity::Warn));
    until(|| fake.took().len() == 3).await;
    let took = fake.took();
    let place = |id| took.iter().position(|other| other == id);
    assert!(place("1-1") < place("1-2"), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn people_are_told_once_that_an_alert_was_there_and_is_over() {
    let (people, machine) = (Fake::answering([retry(Some(5))]), Fake::answering([retry(Some(5))]));
    let outbox = in_memory(vec![Made { grouped: true, ..people.made("people") }, machine.made("machine")]);
    outbox.send(&notice("1-1", Severity::Warn));
    until(|| people.asked().len() == 1).await;
    outbox.send(&notice("1-2", Severity::Critical));
    outbox.send(&resolved("1-3", Severity::Critical));
    until(|| machine.took().len() == 3 && !people.took().is_empty()).await;
    assert_eq!(
        outbox.status().channels.iter().map(|line| (line.delivered, line.waiting)).collect::<Vec<_>>(),
        [(3, 0); 2]
    );
    assert_eq!(
        (people.took(), machine.took()),
        (vec!["1-3".to_owned()], ["1-1", "1-2", "1-3"].map(String::from).to_vec())
    );
    let said = people.took.lock().expect("unpoisoned")[0].alerts[0].message.clone();
    assert_eq!(said, "1-3 (It fired at 2026-02-22T16:28:30Z and lasted 90 s; this could not be told then.)");
}

#[tokio::test(start_paused = true)]
async fn an_id_is_accepted_once() {
    let fake = Fake::default();
    let outbox = in_memory(vec![fake.made("fake")]);
    for id in ["a", "b", "a", "b"] {
        outbox.send(&notice(id, Severity::Warn));
    }
    assert_eq!(outbox.drain(Duration::from_secs(1)).await, 0);
    assert_eq!(fake.took(), ["a", "b"]);
}

#[tokio::test(start_paused = true)]
async fn a_channel_carries_its_least_severity_and_above() {
    let fake = Fake::default();
    let outbox = in_memory(vec![Made { min_severity: Severity::Critical, ..fake.made("fake") }]);
    for severity in Severity::ALL {
        outbox.send(&notice(severity.name(), severity));
    }
    assert_eq!(outbox.drain(Duration::from_secs(1)).await, 0);
    assert_eq!(fake.took(), ["emergency", "critical"]);
}

#[tokio::test(start_paused = true)]
async fn a_channel_that_keeps_nothing_holds_so_many_and_gives_up_what_matters_least() {
    let fake = Fake::default();
    let mut values = Values::default();
    values.set(CAPACITY.spec(), Value::Int(2));
    let plan = Plan::new(&values).expect("right").with(vec![Made { durable: false, ..fake.made("fake") }]);
    let outbox = Outbox::run(plan, None, Arc::new(time));
    // The worker has not run yet: all of these meet the queue.
    for (id, severity) in [("a", Severity::Critical), ("b", Severity::Warn), ("c", Severity::Critical)] {
        outbox.send(&notice(id, severity));
    }
    outbox.send(&notice("d", Severity::Warn));
    outbox.send(&notice("e", Severity::Critical));
    assert_eq!((count(&outbox, "outbox_lost_total"), count(&outbox, "channel_queue_length")), (3.0, 2.0));
    assert_eq!(outbox.drain(Duration::from_secs(1)).await, 0);
    assert_eq!(fake.took(), ["c", "e"]);
}

#[tokio::test(start_paused = true)]
async fn what_waits_goes_over_to_the_new_channel_and_waits_for_one_that_is_gone_until_it_is_too_old() {
    let (stuck, well) = (Fake::stuck(), Fake::default());
    let mut outbox = in_memory(vec![stuck.made("a"), stuck.made("b")]);
    outbox.send(&notice("1-1", Severity::Warn));
    until(|| stuck.asked().len() == 2).await;
    outbox.reload(plan(vec![well.made("a")]));
    until(|| well.took() == ["1-1"]).await;
    let status = outbox.status();
    assert_eq!(
        status.channels.iter().map(|line| (line.enabled, line.waiting)).collect::<Vec<_>>(),
        [(true, 0), (false, 1)]
    );
    until(|| outbox.status().channels.len() == 1).await;
    assert_eq!(count(&outbox, "channel_failed_total"), 1.0);
}

/// Sends what does not arrive, and is killed: nothing is drained.
async fn left_behind(dir: &Path, notices: &[Notice]) {
    let stuck = Fake::stuck();
    let outbox = on_disk(dir, vec![stuck.made("fake")]);
    notices.iter().for_each(|notice| outbox.send(notice));
    outbox.wait_durable(outbox.sent()).await;
    assert_eq!(outbox.durable(), outbox.sent());
    assert_eq!(outbox.drain(Duration::ZERO).await, notices.len());
}

#[tokio::test]
async fn what_was_accepted_is_delivered_by_the_next_and_by_no_other_after_it() {
    let dir = tempfile::tempdir().expect("a folder of our own");
    let notices: Vec<Notice> =
        (0..300).map(|number| notice(&format!("{}-{number}", number % 7), Severity::Warn)).collect();
    left_behind(dir.path(), &notices).await;
    let fake = Fake::default();
    let outbox = on_disk(dir.path(), vec![fake.made("fake")]);
    assert_eq!(count(&outbox, "outbox_recovered_records"), 300.0);
    // The book tells again what it was about when it ended.
    outbox.send(&notices[299]);
    until(|| fake.took().len() == 300).await;
    assert_eq!(fake.took(), notices.iter().map(|notice| notice.id.clone()).collect::<Vec<_>>());
    assert_eq!(outbox.drain(Duration::from_secs(10)).await, 0);
    let fake = Fake::default();
    let outbox = on_disk(dir.path(), vec![fake.made("fake")]);
    outbox.send(&notices[0]);
    outbox.send(&notice("new", Severity::Warn));
    until(|| !fake.took().is_empty()).await;
    assert_eq!(fake.took(), ["new"]);
    assert_eq!((count(&outbox, "outbox_repeated_total"), count(&outbox, "outbox_not_durable_total")), (1.0, 0.0));
}

#[tokio::test]
async fn a_clock_that_was_set_between_two_lives_neither_swallows_nor_repeats() {
    let month = Duration::from_secs(30 * 86_400);
    for wall in [time() + month, time() - month, SystemTime::UNIX_EPOCH] {
        let dir = tempfile::tempdir().expect("a directory");
        left_behind(dir.path(), &[notice("a", Severity::Warn), notice("b", Severity::Critical)]).await;
        let far_end = Fake::answering([retry(Some(1))]);
        let outbox = Outbox::open(plan(vec![far_end.made("fake")]), Some(dir.path()), Arc::new(move || wall));
        // Of a day that it may wait for, ten minutes are left at least.
        let oldest = outbox.status().channels[0].oldest_secs;
        assert!(oldest.is_some_and(|secs| secs <= 86_400 - 600), "{oldest:?}");
        until(|| outbox.status().records == 0).await;
        assert_eq!(far_end.took(), ["b", "a"], "{wall:?}");
        assert!(!dir.path().join("outbox/parked.jsonl").exists());
        outbox.drain(Duration::from_secs(60)).await;
        let again = Fake::default();
        let outbox = on_disk(dir.path(), vec![again.made("fake")]);
        outbox.send(&notice("b", Severity::Critical));
        outbox.send(&notice("c", Severity::Warn));
        until(|| again.took().len() == 1).await;
        assert_eq!(again.took(), ["c"], "{wall:?}");
        outbox.drain(Duration::from_secs(60)).await;
    }
}

#[tokio::test]
async fn what_is_parked_is_kept_as_text() {
    let dir = tempfile::tempdir().expect("a folder of our own");
    let fake = Fake::answering([no()]);
    let outbox = on_disk(dir.path(), vec![fake.made("fake")]);
    outbox.send(&notice("a", Severity::Warn));
    until(|| count(&outbox, "channel_failed_total") > 0.0).await;
    outbox.drain(Duration::from_secs(5)).await;
    let mut text = String::new();
    let file = std::fs::File::options().read(true).open(dir.path().join("outbox/parked.jsonl"));
    file.and_then(|mut file| file.read_to_string(&mut text)).expect("it is there");
    let line: serde_json::Value = serde_json::from_str(&text).expect("one line");
    assert_eq!((&line["id"], &line["channel"], &line["reason"]), (&"a".into(), &"fake".into(), &"no".into()), "{line}");
    assert_eq!(line["notice"]["alerts"][0]["message"], "a");
}

#[tokio::test]
async fn without_a_folder_alerts_go_out_and_are_counted() {
    let dir = tempfile::tempdir().expect("a folder of our own");
    let file = dir.path().join("file");
    std::fs::write(&file, "").expect("our own folder");
    let fake = Fake::default();
    let outbox = on_disk(&file, vec![fake.made("fake")]);
    let before = outbox.durable();
    outbox.send(&notice("a", Severity::Warn));
    until(|| fake.took().len() == 1).await;
    assert_eq!(count(&outbox, "outbox_not_durable_total"), 1.0);
    assert!(outbox.status().problem.is_some_and(|problem| problem.contains("outbox: Not a directory")));
    until(|| outbox.durable() == before + 1).await;
    assert_eq!(outbox.drain(Duration::from_secs(5)).await, 0);
}

#[tokio::test]
async fn a_second_agent_goes_on_in_memory_and_on_disk_when_the_first_has_ended() {
    let dir = tempfile::tempdir().expect("a folder of our own");
    let (fake, stuck) = (Fake::default(), Fake::stuck());
    let first = on_disk(dir.path(), vec![fake.made("fake")]);
    let second = on_disk(dir.path(), vec![stuck.made("fake")]);
    second.send(&notice("a", Severity::Warn));
    until(|| stuck.asked().len() == 1).await;
    assert!(second.durable() < second.sent());
    assert!(second.status().problem.is_some_and(|problem| problem.ends_with("another agent uses it")));
    first.drain(Duration::from_secs(5)).await;
    second.wait_durable(second.sent()).await;
    assert_eq!(second.status().problem, None);
    drop(second);
}

/// 4 MiB for two channels, of which one is stuck.
#[tokio::test]
async fn a_full_spool_gives_up_what_matters_least_of_the_channel_that_is_stuck() {
    let dir = tempfile::tempdir().expect("a folder of our own");
    let (stuck, well) = (Fake::stuck(), Fake::default());
    let mut values = Values::default();
    values.set(BYTES_MAX.spec(), Value::Int(4 << 20));
    let plan = Plan::new(&values).expect("right").with(vec![stuck.made("stuck"), well.made("well")]);
    let outbox = Outbox::open(plan, Some(dir.path()), Arc::new(time));
    let long = "x".repeat(10_000);
    let mut ids = Vec::new();
    for (kind, severity) in [("critical", Severity::Critical), ("info", Severity::Info), ("warn", Severity::Warn)] {
        for number in 0..200 {
            let mut notice = notice(&format!("{kind}{number}"), severity);
            notice.alerts[0].message.clone_from(&long);
            outbox.send(&notice);
            ids.push(notice.id);
            if number % 20 == 19 {
                outbox.wait_durable(outbox.sent()).await;
                let all = || well.took().len() == ids.len();
                assert!(
                    tokio::time::timeout(Duration::from_secs(30), until(all)).await.is_ok(),
                    "{:?}",
                    outbox.status()
                );
                assert!(outbox.status().bytes <= 4 << 20, "{:?}", outbox.status());
            }
        }
    }
    let status = outbox.status();
    let [of_stuck, of_well] = &status.channels[..] else { panic!("{status:?}") };
    assert_eq!((of_well.delivered, of_well.lost, of_stuck.delivered), (600, 0, 0));
    assert_eq!(of_stuck.lost + of_stuck.waiting, 600);
    outbox.drain(Duration::ZERO).await;

    let fake = Fake::default();
    let outbox = on_disk(dir.path(), vec![fake.made("stuck"), fake.made("well")]);
    until(|| fake.took().len() as u64 == of_stuck.waiting).await;
    let took = fake.took();
    let of = |kind: &str| took.iter().filter(|id| id.starts_with(kind)).count();
    assert_eq!((of("critical"), of("info")), (200, 0), "{} warn", of("warn"));
    assert!(took.contains(&"warn199".to_owned()));
    drop(outbox);
}
