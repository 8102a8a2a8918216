//! Limits and book together: whatever values and clocks do, every notice has its reason, and every reason its notice.

use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::*;
use sysops_agent::model::event::HungTask;
use sysops_agent::model::{Alert, Detail, Event, Severity, Status};
use sysops_agent::spec::{Value, Values};
use sysops_tests::alert_bench::{Bench, MOUNTS, oom_kill};
use sysops_tests::values::values;

fn unlimited() -> Values {
    values([
        ("alerting.flap_count", Value::Int(0)),
        ("alerting.min_interval_secs", Value::Int(0)),
        ("alerting.dedup_window_secs", Value::Int(0)),
        ("alerting.max_alerts_per_hour", Value::Int(10_000)),
    ])
}

fn told(alerts: &[Alert]) -> Vec<(Severity, Status)> {
    alerts.iter().map(|alert| (alert.severity, alert.status)).collect()
}

const WARN: (Severity, Status) = (Severity::Warn, Status::Firing);
const CRITICAL: (Severity, Status) = (Severity::Critical, Status::Firing);
const OVER: (Severity, Status) = (Severity::Warn, Status::Resolved);

#[test]
fn a_breach_fires_when_it_has_lasted_and_is_over_past_the_hysteresis() {
    let mut bench = Bench::new(&Values::default());
    assert_eq!(told(&bench.run(3, 93.0)), [], "20 s of 30 s");
    let fired = bench.run(1, 93.0);
    assert_eq!(told(&fired), [WARN]);
    assert_eq!((fired[0].value, fired[0].threshold), (93.0, 90.0));
    assert_eq!(fired[0].labels["mountpoint"], "/");
    assert_eq!(told(&bench.run(50, 93.0)), [], "once is enough");
    assert_eq!(told(&bench.run(50, 86.0)), [], "not yet past the hysteresis");
    let over = bench.run(1, 85.0);
    assert_eq!(told(&over), [OVER]);
    assert_eq!(over[0].fingerprint, fired[0].fingerprint);
    assert!(over[0].message.starts_with("Disk usage is back at 85.0 %"), "{}", over[0].message);
}

#[test]
fn a_value_on_the_line_does_not_flap() {
    let mut bench = Bench::new(&unlimited());
    let line = |i: usize| if i.is_multiple_of(2) { 90.1 } else { 89.9 };
    let before: Vec<_> = (0..1000).flat_map(|i| bench.run(1, line(i))).collect();
    assert_eq!(told(&before), [], "it never lasted");
    assert_eq!(told(&bench.run(4, 90.1)), [WARN]);
    let after: Vec<_> = (0..1000).flat_map(|i| bench.run(1, line(i))).collect();
    assert_eq!(told(&after), [], "it never fell past the hysteresis");
}

#[test]
fn a_worse_severity_passes_every_repeat_limit_and_a_better_one_is_silent() {
    let mut bench = Bench::new(&Values::default());
    assert_eq!(told(&bench.run(4, 93.0)), [WARN]);
    assert_eq!(told(&bench.run(3, 98.0)), []);
    assert_eq!(told(&bench.run(1, 98.0)), [CRITICAL], "critical has lasted too");
    assert_eq!(told(&bench.run(10, 93.0)), []);
    assert_eq!(told(&bench.run(1, 1.0)), [(Severity::Critical, Status::Resolved)], "to whom it was told");
}

#[test]
fn an_alert_that_comes_back_within_the_window_is_told_when_the_window_ends() {
    let mut bench = Bench::new(&Values::default());
    assert_eq!(told(&bench.run(4, 93.0)), [WARN]);
    let first = bench.now();
    assert_eq!(told(&bench.run(1, 10.0)), [OVER]);
    let mut again = Vec::new();
    while again.is_empty() {
        again = bench.run(1, 93.0).into_iter().filter(|alert| alert.metric != "alerts_suppressed").collect();
        assert!(bench.now() - first <= Duration::from_secs(600), "an alert that fires is not told");
    }
    assert_eq!(told(&again), [WARN]);
    assert_eq!(bench.now() - first, Duration::from_secs(600));
    assert_eq!(bench.counter("alerts_suppressed_total", "duplicate"), 1.0);
    assert_eq!(told(&bench.run(1, 10.0)), [OVER]);
}

#[test]
fn another_file_system_is_another_alert() {
    let mut bench = Bench::new(&Values::default());
    assert_eq!(told(&bench.run(4, 93.0)), [WARN]);
    let both: Vec<_> = (0..4).flat_map(|_| bench.cycle(10, [Some(93.0), Some(95.0), None])).collect();
    assert_eq!(both.len(), 1, "dedup looks at labels, not at the metric alone");
    assert_eq!(both[0].labels["mountpoint"], "/data");
    assert_eq!(bench.counter("alerts_active", "warn"), 2.0);
}

#[test]
fn a_series_that_vanished_is_over_after_a_while_and_says_so() {
    let mut bench = Bench::new(&Values::default());
    assert_eq!(told(&bench.run(4, 93.0)), [WARN]);
    let gone: Vec<_> = (0..29).flat_map(|_| bench.cycle(10, [None; 3])).collect();
    assert_eq!(told(&gone), []);
    let over = bench.cycle(10, [None; 3]);
    assert_eq!(told(&over), [OVER]);
    assert_eq!(
        over[0].message,
        "disk_usage_percent has not been reported for 5 min; it was 93.000 (threshold 90): device /dev/a, \
         fstype ext4, mountpoint /"
    );
}

#[test]
fn a_wall_clock_that_jumps_makes_no_burst_and_no_stall() {
    for jump_secs in [-3600_i64, 86_400] {
        let mut bench = Bench::new(&Values::default());
        assert_eq!(told(&bench.run(4, 93.0)), [WARN]);
        assert_eq!(told(&bench.run(1, 10.0)), [OVER]);
        let wall = bench.clock.now().wall;
        let jump = Duration::from_secs(jump_secs.unsigned_abs());
        bench.clock.set_wall(if jump_secs < 0 { wall - jump } else { wall + jump });
        assert_eq!(told(&bench.run(10, 93.0)), [], "{jump_secs}: still a duplicate: no burst");
        let fired: Vec<_> = (0..4).flat_map(|_| bench.cycle(10, [Some(93.0), Some(93.0), None])).collect();
        assert_eq!(told(&fired), [WARN], "{jump_secs}: another one fires after its 30 s: no stall");
        let stamp = fired[0].timestamp;
        assert_eq!(stamp, bench.clock.now().wall, "{jump_secs}: people read the clock as it stands");
    }
}

#[test]
fn every_kill_is_an_alert_of_its_own_and_one_hung_task_is_one() {
    let mut bench = Bench::new(&Values::default());
    let kills: Vec<_> = (0..20).filter_map(|pid| bench.event(&oom_kill(pid))).collect();
    assert_eq!(kills.len(), 20);
    assert_eq!(told(&kills[..1]), [CRITICAL]);
    let hung = Event { detail: Detail::HungTask(HungTask::default()), ..oom_kill(1) };
    assert!(bench.event(&hung).is_some());
    bench.clock.advance(Duration::from_secs(120));
    assert!(bench.event(&hung).is_none(), "the kernel says it every 120 s");
}

#[test]
fn a_breach_lasts_however_far_apart_cycles_are() {
    let mut bench = Bench::new(&Values::default());
    bench.book.expect_cycles_every(Duration::from_secs(600));
    let disks = [Some(93.0), None, None];
    let fired: Vec<Alert> = (0..2).flat_map(|_| bench.cycle(600, disks)).collect();
    assert_eq!(told(&fired), [WARN], "a configuration that reads every ten minutes has alerts too");
    assert_eq!(told(&bench.cycle(600, [Some(10.0), None, None])), [OVER]);
}

#[test]
fn repeats_of_what_people_know_need_no_notice() {
    let mut bench = Bench::new(&Values::default());
    assert_eq!(told(&bench.run(4, 93.0)), [WARN]);
    assert_eq!(told(&bench.run(1, 10.0)), [OVER]);
    assert_eq!(told(&bench.run(4, 93.0)), [], "the same within dedup_window_secs");
    assert_eq!(told(&bench.run(400, 10.0)), [], "and no summary of one repeat");
    assert_eq!(bench.counter("alerts_suppressed_total", "duplicate"), 1.0);
}

#[test]
fn a_limit_of_zero_is_off() {
    let mut bench = Bench::new(&values([("thresholds.disk_percent", Value::Float(0.0))]));
    assert_eq!(told(&bench.run(40, 100.0)), []);
}

#[test]
fn a_flood_is_summed_up_and_nothing_of_it_is_lost_without_a_word() {
    let mut bench = Bench::new(&Values::default());
    let passed = (0..100).filter_map(|pid| bench.event(&oom_kill(pid))).count();
    assert_eq!(passed, 60);
    let (mut notices, mut waited) = (Vec::new(), 0);
    while notices.is_empty() {
        notices = bench.cycle(10, [None; 3]);
        waited += 10;
        assert!(waited <= 3600, "the summary never came");
    }
    assert_eq!(waited, 3600, "as soon as the hour's limit allows it");
    assert_eq!(notices.len(), 1);
    assert_eq!((notices[0].metric.as_str(), notices[0].value), ("alerts_suppressed", 40.0));
    assert_eq!(notices[0].severity, Severity::Critical);
    assert_eq!(notices[0].message, "40 alerts not told in 60 min (alerting.max_alerts_per_hour): oom_kill 40");
    assert_eq!(bench.counter("alerts_suppressed_total", "hourly_limit"), 40.0);
}

#[test]
fn new_limits_keep_the_book() {
    let mut bench = Bench::new(&Values::default());
    assert_eq!(told(&bench.run(4, 93.0)), [WARN]);
    bench.book.reload(&unlimited(), "web-2");
    assert_eq!(told(&bench.run(4, 93.0)), [], "it was told");
    let over = bench.run(1, 10.0);
    assert_eq!((told(&over), over[0].hostname.as_str()), (vec![OVER], "web-2"));
}

/// One step of a random day: time that passes, how far the wall clock jumps, values (`None`: not there).
type Step = (u64, i64, [Option<f64>; 3]);

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let value = prop_oneof![
        6 => (80.0..100.0_f64).prop_map(Some),
        2 => Just(Some(90.0)),
        2 => Just(Some(50.0)),
        1 => Just(None),
    ];
    let jump = prop_oneof![9 => Just(0_i64), 1 => -100_000..100_000_i64];
    let step = (1..100_u64, jump, [value.clone(), value.clone(), value]);
    prop::collection::vec(step, 1..300)
}

/// What the book should know of one file system, kept in the plainest way.
#[derive(Default)]
struct Oracle {
    breach_since: Option<Duration>,
    seen: Option<Duration>,
    fires: bool,
}

impl Oracle {
    fn step(&mut self, now: Duration, value: Option<f64>) {
        let away = self.seen.map_or(Duration::ZERO, |seen| now - seen);
        match value {
            Some(value) if value >= 90.0 => {
                if away > Duration::from_secs(90) {
                    self.breach_since = None;
                }
                self.breach_since.get_or_insert(now);
            }
            Some(value) => {
                self.breach_since = None;
                self.fires &= value >= 85.5;
            }
            None if away >= Duration::from_secs(300) => *self = Self::default(),
            None => return,
        }
        if value.is_some() {
            self.seen = Some(now);
        }
        self.fires |= self.breach_since.is_some_and(|since| now - since >= Duration::from_secs(30));
    }
}

fn day(bench: &mut Bench, steps: &[Step], mut each: impl FnMut(&Bench, &[Oracle; 3], &[Alert])) {
    let mut oracles: [Oracle; 3] = Default::default();
    for &(secs, jump, disks) in steps {
        let notices = bench.cycle(secs, disks);
        let now = bench.now();
        for (oracle, value) in oracles.iter_mut().zip(disks) {
            oracle.step(now, value);
        }
        each(bench, &oracles, &notices);
        let (wall, by) = (bench.clock.now().wall, Duration::from_secs(jump.unsigned_abs()));
        bench.clock.set_wall(if jump < 0 { wall - by } else { wall + by });
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(300) })]

    #[test]
    fn without_limits_what_is_told_is_what_is(steps in steps()) {
        let mut told = BTreeMap::new();
        let mut failure = None;
        day(&mut Bench::new(&unlimited()), &steps, |_, oracles, notices| {
            for notice in notices {
                told.insert(notice.labels["mountpoint"].clone(), notice.status == Status::Firing);
            }
            for (mount, oracle) in MOUNTS.iter().zip(oracles) {
                if told.get(*mount).copied().unwrap_or(false) != oracle.fires {
                    failure.get_or_insert(format!("{mount}: should fire: {}, told {told:?}", oracle.fires));
                }
            }
        });
        prop_assert_eq!(failure, None);
    }

    #[test]
    fn with_limits_notices_pair_keep_their_pace_and_are_never_forgotten(steps in steps()) {
        let mut last: BTreeMap<u64, (Status, Severity)> = BTreeMap::new();
        let mut sent: BTreeMap<u64, Vec<(Duration, Severity)>> = BTreeMap::new();
        let mut failures = Vec::new();
        let limits = values([("alerting.max_alerts_per_hour", Value::Int(4))]);
        let mut bench = Bench::new(&limits);
        let mut firing = 0;
        day(&mut bench, &steps, |bench, oracles, notices| {
            let now = bench.now();
            for notice in notices.iter().filter(|notice| notice.metric != "alerts_suppressed") {
                let before = last.insert(notice.fingerprint, (notice.status, notice.severity));
                let right = match (notice.status, before) {
                    (Status::Resolved, Some((Status::Firing, severity))) => severity == notice.severity,
                    (Status::Resolved, _) => false,
                    (Status::Firing, Some((Status::Firing, severity))) => severity < notice.severity,
                    (Status::Firing, _) => true,
                };
                let history = sent.entry(notice.fingerprint).or_default();
                if notice.status == Status::Firing {
                    let mount = MOUNTS.iter().position(|mount| *mount == notice.labels["mountpoint"]);
                    let is_there = mount.is_some_and(|mount| oracles[mount].seen == Some(now));
                    if is_there && !notice.message.contains(&format!(" {:.1} %", notice.value)) {
                        failures.push(format!("told late with the words of then: {notice:?}"));
                    }
                    let close = history.last().is_some_and(|(at, severity)| {
                        let (same, age) = (*severity == notice.severity, now - *at);
                        *severity >= notice.severity && age < Duration::from_secs(if same { 600 } else { 300 })
                    });
                    history.push((now, notice.severity));
                    if close {
                        failures.push(format!("repeated too soon: {notice:?}"));
                    }
                }
                if !right {
                    failures.push(format!("{notice:?} after {before:?}"));
                }
            }
            let hour = Duration::from_secs(3600);
            if sent.values().flatten().filter(|(at, _)| now - *at < hour).count() > 4 {
                failures.push("more than the hour's limit".to_owned());
            }
            firing = oracles.iter().filter(|oracle| oracle.fires).count();
        });
        prop_assert_eq!(failures, Vec::<String>::new());

        // Whatever fires and was held back is told once the limits allow it, if it goes on.
        let (_, _, mut disks) = steps[steps.len() - 1];
        for disk in &mut disks {
            *disk = disk.map(|value| if value >= 85.5 { 95.0 } else { 50.0 });
        }
        for _ in 0..400 {
            for notice in bench.cycle(30, disks).iter().filter(|notice| notice.metric != "alerts_suppressed") {
                last.insert(notice.fingerprint, (notice.status, notice.severity));
            }
        }
        let told = last.values().filter(|(status, _)| *status == Status::Firing).count();
        let fires = disks.iter().filter(|disk| **disk == Some(95.0)).count();
        prop_assert_eq!(told, fires, "of {} that fired at the end of the day", firing);
    }
}
