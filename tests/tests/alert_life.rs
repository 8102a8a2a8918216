//! The life of alerts beyond limits: groups, silences, maintenance, causes, care, flapping, and what restarts and clocks do to them.

use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::*;
use sysops_agent::model::{Alert, Audience, Change, Matcher, Notice, Severity, Standing, Status};
use sysops_agent::spec::{Value, Values};
use sysops_tests::alert_bench::{Bench, machines, oom_kill};
use sysops_tests::values::values;

const FULL: [Option<f64>; 3] = [Some(93.0); 3];
const WELL: [Option<f64>; 3] = [Some(10.0); 3];
const FIRST: [Option<f64>; 3] = [Some(93.0), Some(10.0), Some(10.0)];

/// Cycles of 10 s, and what each audience gets.
fn run(bench: &mut Bench, cycles: usize, disks: [Option<f64>; 3]) -> Vec<Notice> {
    (0..cycles).flat_map(|_| bench.notices(10, disks)).collect()
}

fn people(notices: &[Notice]) -> Vec<Vec<String>> {
    let for_people = notices.iter().filter(|notice| notice.audience != Audience::Machines);
    for_people.map(|notice| notice.alerts.iter().map(|alert| alert.labels["mountpoint"].clone()).collect()).collect()
}

fn changes(notices: Vec<Notice>) -> Vec<(Change, Severity)> {
    machines(notices).iter().map(|alert| (alert.change, alert.severity)).collect()
}

fn table(pairs: &[(&str, Value)]) -> Value {
    Value::TableList(vec![pairs.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect()])
}

fn map(pairs: &[(&str, &str)]) -> Value {
    Value::TextMap(pairs.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect())
}

fn text(text: &str) -> Value {
    Value::Text(text.to_owned())
}

#[test]
fn people_get_a_group_in_one_notice_and_machines_each_alert_at_once() {
    let mut bench = Bench::new(&Values::default());
    let notices = run(&mut bench, 20, FULL);
    assert_eq!(machines(notices.clone()).len(), 3);
    let told = people(&notices);
    assert_eq!(told.len(), 2, "{told:?}");
    assert_eq!((told[0].len(), told[1].len()), (1, 2));
    let mut ids: Vec<&str> = notices.iter().map(|notice| notice.id.as_str()).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), notices.len(), "each notice has an id of its own");
    assert!(ids.iter().all(|id| id.len() <= 64 && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')));
}

#[test]
fn a_silence_holds_back_and_what_goes_on_is_told_when_it_ends() {
    let mut bench = Bench::new(&Values::default());
    let matcher: Matcher = "metric=disk_* mountpoint=/".parse().expect("a matcher");
    let now = bench.clock.now();
    let silence = bench.book.silence(matcher, Duration::from_secs(600), "ann", "moving it", &now).expect("it begins");
    assert_eq!(run(&mut bench, 59, FIRST), []);
    let listed = bench.book.list(&bench.clock.now());
    assert_eq!((listed.len(), listed[0].standing), (1, Standing::Silenced));
    assert_eq!(listed[0].because, "silence 1 by ann: moving it");
    assert_eq!(bench.counter("alerts_suppressed_total", "silenced"), 1.0);
    // Who sets the clock ends no silence.
    bench.clock.set_wall(bench.clock.now().wall + Duration::from_secs(86_400));
    assert_eq!(bench.book.silences(&bench.clock.now()).len(), 1);
    assert_eq!(changes(run(&mut bench, 1, FIRST)), [(Change::Fired, Severity::Warn)]);
    assert_eq!(bench.book.silences(&bench.clock.now()), []);
    assert!(bench.book.unsilence(silence.id).is_err_and(|error| error.contains("there is no silence 1")));
    let everything = Matcher::default();
    let refused = bench.book.silence(everything, Duration::from_secs(600), "ann", "", &bench.clock.now());
    assert!(refused.is_err_and(|error| error.contains("at least one condition")));
}

#[test]
fn what_was_told_before_a_silence_is_resolved_in_it() {
    let mut bench = Bench::new(&Values::default());
    assert_eq!(changes(run(&mut bench, 4, FIRST)).len(), 1);
    let matcher: Matcher = "metric=disk_*".parse().expect("a matcher");
    bench.book.silence(matcher, Duration::from_secs(600), "ann", "", &bench.clock.now()).expect("it begins");
    assert_eq!(changes(run(&mut bench, 1, WELL)), [(Change::Resolved, Severity::Warn)]);
}

#[test]
fn in_a_maintenance_window_nothing_is_told_that_it_covers() {
    // The clock of the bench begins on Sunday, 2026-02-22 at 16:30 UTC.
    let window = [
        ("name", text("backup")),
        ("match", map(&[("mountpoint", "/data")])),
        ("from", text("16:00")),
        ("to", text("17:00")),
        ("timezone", text("UTC")),
    ];
    let mut bench = Bench::new(&values([("alerting.maintenance", table(&window))]));
    let told = machines(run(&mut bench, 60, [Some(93.0), Some(93.0), Some(10.0)]));
    assert_eq!(told.iter().map(|alert| alert.labels["mountpoint"].as_str()).collect::<Vec<_>>(), ["/"]);
    let data = bench.book.list(&bench.clock.now()).into_iter().find(|one| one.labels["mountpoint"] == "/data");
    assert_eq!(data.expect("it fires").because, "maintenance backup");
    let after = machines(run(&mut bench, 181, [Some(93.0), Some(93.0), Some(10.0)]));
    assert_eq!(after.iter().map(|alert| alert.labels["mountpoint"].as_str()).collect::<Vec<_>>(), ["/data"]);
}

#[test]
fn a_cause_silences_what_follows_from_it_until_it_is_over() {
    let rule = [("source", map(&[("mountpoint", "/")])), ("target", map(&[("mountpoint", "/data")]))];
    let mut bench = Bench::new(&values([("alerting.inhibit", table(&rule))]));
    let both = [Some(93.0), Some(93.0), Some(10.0)];
    let told = machines(run(&mut bench, 30, both));
    assert_eq!(told.iter().map(|alert| alert.labels["mountpoint"].as_str()).collect::<Vec<_>>(), ["/"]);
    let listed = bench.book.list(&bench.clock.now());
    assert_eq!((listed[1].standing, listed[1].because.as_str()), (Standing::Inhibited, "disk_usage_percent"));
    let after = machines(run(&mut bench, 2, [Some(10.0), Some(93.0), Some(10.0)]));
    let after: Vec<_> = after.iter().map(|alert| (alert.labels["mountpoint"].as_str(), alert.change)).collect();
    assert_eq!(after, [("/", Change::Resolved), ("/data", Change::Fired)], "it still is so, and nothing explains it");
}

#[test]
fn what_is_milder_or_silenced_explains_nothing() {
    let rule = [("source", map(&[("mountpoint", "/")])), ("target", map(&[("mountpoint", "/data")]))];
    let settings = values([("alerting.inhibit", table(&rule))]);
    let mut bench = Bench::new(&settings);
    let told = machines(run(&mut bench, 10, [Some(93.0), Some(98.0), Some(10.0)]));
    assert_eq!(told.len(), 2, "the cause is a warning, and what it would explain is critical");
    let mut bench = Bench::new(&settings);
    let silenced: Matcher = "mountpoint=/".parse().expect("a matcher");
    bench.book.silence(silenced, Duration::from_secs(3600), "ann", "", &bench.clock.now()).expect("it begins");
    let told = machines(run(&mut bench, 10, [Some(93.0), Some(93.0), Some(10.0)]));
    assert_eq!(told.iter().map(|alert| alert.labels["mountpoint"].as_str()).collect::<Vec<_>>(), ["/data"]);
}

#[test]
fn nobody_is_reminded_of_what_somebody_takes_care_of() {
    let settings = values([("alerting.escalate_after_secs", Value::Int(600))]);
    let (critical, well) = ([Some(98.0), Some(1.0), Some(1.0)], WELL);
    let mut bench = Bench::new(&settings);
    assert_eq!(changes(run(&mut bench, 4, critical)), [(Change::Fired, Severity::Critical)]);
    assert_eq!(changes(run(&mut bench, 59, critical)), []);
    assert_eq!(changes(run(&mut bench, 1, critical)), [(Change::Escalated, Severity::Emergency)], "once");
    assert_eq!(changes(run(&mut bench, 1439, critical)), []);
    assert_eq!(changes(run(&mut bench, 1, critical)), [(Change::Reminded, Severity::Critical)], "after four hours");
    assert_eq!(changes(run(&mut bench, 1, well)), [(Change::Resolved, Severity::Emergency)], "to all who were told");

    let mut bench = Bench::new(&settings);
    run(&mut bench, 4, critical);
    let fingerprint = format!("{:016x}", bench.book.list(&bench.clock.now())[0].fingerprint);
    assert!(bench.book.acknowledge("zzzz", "ann", "", &bench.clock.now()).is_err());
    assert!(bench.book.acknowledge(&fingerprint[..2], "ann", "", &bench.clock.now()).is_err(), "too short");
    let listed = bench.book.acknowledge(&fingerprint[..8], "ann", "on it", &bench.clock.now()).expect("it is one");
    assert_eq!((listed.standing, listed.because.as_str()), (Standing::Acknowledged, "ann: on it"));
    assert_eq!(changes(run(&mut bench, 3000, critical)), []);
    assert_eq!(changes(run(&mut bench, 1, well)), [(Change::Resolved, Severity::Critical)]);
}

#[test]
fn a_kill_that_nobody_acknowledges_is_escalated_to_those_named() {
    let channels = Value::TextList(vec!["email".to_owned()]);
    let mut bench = Bench::new(&values([
        ("alerting.escalate_after_secs", Value::Int(600)),
        ("alerting.escalate_channels", channels),
    ]));
    let (first, second) = (bench.event(&oom_kill(7)).expect("told"), bench.event(&oom_kill(8)).expect("told"));
    let name = format!("{:016x}", second.fingerprint);
    bench.book.acknowledge(&name, "ann", "", &bench.clock.now()).expect("it is listed");
    let escalated: Vec<Notice> =
        run(&mut bench, 120, WELL).into_iter().filter(|notice| notice.audience != Audience::People).collect();
    assert_eq!(escalated.len(), 1);
    assert_eq!(escalated[0].channels, Some(vec!["email".to_owned()]));
    let alert = escalated[0].head();
    assert_eq!(
        (alert.fingerprint, alert.change, alert.severity),
        (first.fingerprint, Change::Escalated, Severity::Critical)
    );
    assert_ne!(alert.id, first.id);
    assert_eq!(run(&mut bench, 3000, WELL), []);
    assert_eq!(bench.book.list(&bench.clock.now()), [], "after an hour nobody looks at it any more");
}

#[test]
fn one_that_comes_and_goes_is_damped_and_ends_when_it_stays_away() {
    let settings =
        values([("alerting.dedup_window_secs", Value::Int(0)), ("alerting.min_interval_secs", Value::Int(0))]);
    let mut bench = Bench::new(&settings);
    let (mut told, turns) = (Vec::new(), 60);
    for _ in 0..turns {
        told.extend(changes(run(&mut bench, 4, FIRST)));
        told.extend(changes(run(&mut bench, 2, WELL)));
    }
    assert!(told.len() <= 2 * turns / 10, "{} notices of {turns} turns", told.len());
    assert_eq!(
        told.last().map(|(change, _)| *change),
        Some(Change::Fired),
        "it goes on: nobody is told that it is over"
    );
    assert_eq!(changes(run(&mut bench, 350, WELL)), []);
    assert_eq!(changes(run(&mut bench, 20, WELL)), [(Change::Resolved, Severity::Warn)]);
}

#[test]
fn a_restart_makes_no_storm_and_forgets_nothing_that_fires() {
    let settings = Values::default();
    for boots in [["a", "a"], ["a", "b"]] {
        let mut bench = Bench::new(&settings);
        let fired = machines(run(&mut bench, 4, FIRST));
        let silenced: Matcher = "mountpoint=/srv".parse().expect("a matcher");
        bench.book.silence(silenced, Duration::from_secs(7200), "ann", "", &bench.clock.now()).expect("it begins");
        bench.clock.advance(Duration::from_secs(1800));
        assert_eq!(bench.restart(&settings, boots), []);
        assert_eq!(run(&mut bench, 20, FIRST), [], "{boots:?}: people know");
        let listed = bench.book.list(&bench.clock.now());
        assert_eq!((listed.len(), listed[0].fingerprint), (1, fired[0].fingerprint));
        assert_eq!(bench.book.silences(&bench.clock.now()).len(), 1);
        let over = machines(run(&mut bench, 1, WELL));
        assert_eq!((over[0].status, over[0].fingerprint), (Status::Resolved, fired[0].fingerprint));
        assert_eq!(over[0].id.split('-').next(), fired[0].id.split('-').next(), "one book");
        assert_ne!(over[0].id, fired[0].id);
    }
}

#[test]
fn what_is_gone_after_a_restart_is_said_to_be_over() {
    let settings = Values::default();
    let mut bench = Bench::new(&settings);
    run(&mut bench, 4, FIRST);
    bench.restart(&settings, ["a", "a"]);
    let gone: Vec<Notice> = run(&mut bench, 29, [None; 3]);
    assert_eq!(gone, []);
    let over = machines(run(&mut bench, 1, [None; 3]));
    assert!(over[0].message.contains("has not been reported for 5 min"), "{}", over[0].message);
}

#[test]
fn a_state_of_a_newer_agent_or_of_nobody_is_refused() {
    let bench = Bench::new(&Values::default());
    let kept = String::from_utf8(bench.book.state("a", &bench.clock.now())).expect("JSON");
    let newer = kept.replacen("\"schema\":1", "\"schema\":2", 1);
    let refused = sysops_agent::alert::State::parse(newer.as_bytes()).err();
    assert!(refused.is_some_and(|error| error.contains("newer agent")));
    assert!(sysops_agent::alert::State::parse(&kept.as_bytes()[..kept.len() / 2]).is_err());
}

/// One step: time, whether the agent is started anew, values.
type Step = (u64, bool, [Option<f64>; 3]);

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let value = prop_oneof![6 => (80.0..100.0_f64).prop_map(Some), 2 => Just(Some(90.0)), 2 => Just(Some(50.0)), 1 => Just(None)];
    let step = (1..100_u64, prop::bool::weighted(0.2), [value.clone(), value.clone(), value]);
    prop::collection::vec(step, 1..200)
}

fn said(notices: Vec<Notice>) -> Vec<(u64, Change, Severity, String)> {
    machines(notices)
        .into_iter()
        .map(|Alert { fingerprint, change, severity, id, .. }| {
            let of_no_book = id.split_once('-').map(|(_, rest)| rest.to_owned()).unwrap_or_default();
            (fingerprint, change, severity, of_no_book)
        })
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(200) })]

    #[test]
    fn whoever_is_started_anew_tells_what_one_that_went_on_tells(steps in steps()) {
        let settings = values([("alerting.max_alerts_per_hour", Value::Int(6))]);
        let (mut one, mut other) = (Bench::new(&settings), Bench::new(&settings));
        for (secs, anew, disks) in steps {
            if anew {
                prop_assert_eq!(other.restart(&settings, ["a", "a"]), []);
            }
            prop_assert_eq!(said(other.notices(secs, disks)), said(one.notices(secs, disks)));
        }
    }

    #[test]
    fn one_id_is_one_change(steps in steps()) {
        let settings = values([("alerting.escalate_after_secs", Value::Int(120)), ("alerting.repeat_interval_secs", Value::Int(300))]);
        let mut bench = Bench::new(&settings);
        let mut seen: BTreeMap<String, (Change, Severity)> = BTreeMap::new();
        for (secs, anew, disks) in steps {
            if anew {
                bench.restart(&settings, ["a", "b"]);
            }
            for alert in machines(bench.notices(secs, disks)) {
                let before = seen.insert(alert.id.clone(), (alert.change, alert.severity));
                prop_assert_eq!(before, None, "{}", alert.id);
            }
        }
    }
}
