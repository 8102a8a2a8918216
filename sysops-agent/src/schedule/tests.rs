//! The scheduler with collectors that hang, panic and fail.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::*;
use crate::collect::CollectError;
use crate::spec::Key;

static INTERVAL: Key<Duration> = Key::secs("test.interval_secs", 1, 1, 60, "");
static VALUE: Metric<0> = Metric::gauge("value", Unit::Count, "", &[]);

struct Fine;
impl Collector for Fine {
    fn collect(&mut self, _: &Host, out: &mut Batch) -> Result<Outcome, CollectError> {
        out.gauge(&VALUE, [], 1.0);
        Ok(Outcome::Data)
    }
}

static HELD: AtomicBool = AtomicBool::new(true);
struct Hangs;
impl Collector for Hangs {
    fn collect(&mut self, _: &Host, out: &mut Batch) -> Result<Outcome, CollectError> {
        while HELD.load(Ordering::Acquire) {
            std::thread::yield_now();
        }
        out.gauge(&VALUE, [], 2.0);
        Ok(Outcome::Data)
    }
}

static PANICS: AtomicU64 = AtomicU64::new(0);
struct Panics;
impl Collector for Panics {
    fn collect(&mut self, _: &Host, out: &mut Batch) -> Result<Outcome, CollectError> {
        out.gauge(&VALUE, [], 3.0);
        assert!(PANICS.fetch_add(1, Ordering::AcqRel) > 0, "on purpose");
        Ok(Outcome::Data)
    }
}

struct Fails;
impl Collector for Fails {
    fn collect(&mut self, _: &Host, _: &mut Batch) -> Result<Outcome, CollectError> {
        Err(CollectError::parse("/proc/x", "line 3", "a number", b"\x1b[2Jx"))
    }
}

static FINE: Entry = entry("fine", 60_000, |_, _| Box::new(Fine));
static HANGS: Entry = entry("hangs", 50, |_, _| Box::new(Hangs));
static PANICKY: Entry = entry("panicky", 60_000, |_, _| Box::new(Panics));
static FAILS: Entry = entry("fails", 60_000, |_, _| Box::new(Fails));

const fn entry(name: &'static str, deadline_ms: u64, new: fn(&Host, &Values) -> Box<dyn Collector>) -> Entry {
    Entry { name, metrics: &[], keys: &[], interval: &INTERVAL, deadline: Duration::from_millis(deadline_ms), new }
}

fn scheduler(entries: &[&'static Entry]) -> Scheduler {
    let host = Host::live(&crate::host::Roots::default());
    Scheduler::new(&host, &Values::default(), entries, Some(Duration::from_millis(20))).expect("a thread")
}

fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime").block_on(future)
}

#[test]
fn a_collector_that_hangs_does_not_hold_up_the_others_and_comes_back() {
    run(async {
        let mut scheduler = scheduler(&[&HANGS, &FINE]);
        let first = scheduler.next().await;
        assert_eq!((first.job, first.batch.len()), (0, 0));
        assert_eq!(scheduler.jobs[0].standing.state, State::Failed);
        for _ in 0..5 {
            let next = scheduler.next().await;
            assert_eq!((next.job, next.batch.len()), (1, 1), "only the other one answers");
            scheduler.recycle(next.job, next.batch);
        }
        HELD.store(false, Ordering::Release);
        loop {
            let next = scheduler.next().await;
            if next.job == 0 {
                assert_eq!(next.batch.len(), 1);
                break;
            }
        }
        assert_eq!(scheduler.jobs[0].standing.state, State::Ok);
        assert!(scheduler.jobs[0].missed > 0);
    });
}

#[test]
fn a_panic_is_one_failure_and_leaves_no_half_reading() {
    run(async {
        let mut scheduler = scheduler(&[&PANICKY]);
        let first = scheduler.next().await;
        assert!(first.batch.is_empty());
        assert_eq!(scheduler.jobs[0].standing.reason, "panicked: on purpose");
        assert_eq!(scheduler.next().await.batch.len(), 1);
    });
}

#[test]
fn a_failure_names_file_item_and_expectation() {
    run(async {
        let mut scheduler = scheduler(&[&FAILS]);
        scheduler.next().await;
        let standing = scheduler.standings().next().expect("one").clone();
        assert_eq!(standing.reason, "/proc/x: line 3: expected a number, found \"\\u{1b}[2Jx\"");
        let mut batch = Batch::default();
        scheduler.collect(&mut batch);
        assert!(batch.iter().any(|(entry, key)| entry.metric.name == "collector_failures_total" && key == "fails\0"));
    });
}

#[test]
fn collectors_of_one_round_have_one_tick() {
    run(async {
        let mut scheduler = scheduler(&[&FINE, &FAILS]);
        let (first, second) = (scheduler.next().await, scheduler.next().await);
        assert_eq!(first.tick, second.tick);
        assert_eq!((first.round_over, second.round_over), (false, true));
    });
}
