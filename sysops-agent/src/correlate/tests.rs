//! Every interleaving of what two sources say gives each event once.

use std::time::SystemTime;

use proptest::prelude::*;

use super::*;
use crate::model::event::{HungTask, OomKill, Phase};

const BOTH: Sources = Sources { probe: true, log: true };
const PROBE: Sources = Sources { probe: true, log: false };

fn tick(millis: u64) -> Tick {
    let monotonic = Duration::from_millis(millis);
    Tick { monotonic, boottime: monotonic, wall: SystemTime::UNIX_EPOCH + monotonic }
}

fn event(source: Source, pid: u32, millis: u64, detail: Detail) -> Event {
    Event {
        schema: Event::SCHEMA,
        time: String::new(),
        source: vec![source],
        pid: Some(pid),
        tid: Some(pid),
        comm: Some("dd".into()),
        uid: None,
        cgroup: None,
        detail,
        monotonic_ns: millis * 1_000_000,
    }
}

fn probe_kill(pid: u32, millis: u64) -> Event {
    let detail = OomKill { anon_rss_bytes: Some(1), trigger_pid: Some(7), ..OomKill::default() };
    Event { cgroup: Some("/probe".into()), ..event(Source::TpBtf, pid, millis, Detail::OomKill(detail)) }
}

fn log_kill(pid: u32, millis: u64) -> Event {
    let detail = OomKill {
        anon_rss_bytes: Some(2),
        constraint: Some("CONSTRAINT_MEMCG".into()),
        oom_memcg: Some("/log".into()),
        trigger_pid: Some(7),
        trigger_comm: Some("sh".into()),
        ..OomKill::default()
    };
    Event { cgroup: Some("/log".into()), uid: Some(5), ..event(Source::Kmsg, pid, millis, Detail::OomKill(detail)) }
}

fn hang(source: Source, tid: u32, secs: u64, blocked: Option<u64>) -> Event {
    let detail = HungTask { blocked_seconds: blocked, ..HungTask::default() };
    event(source, tid, secs * 1000, Detail::HungTask(detail))
}

fn ready(correlator: &mut Correlator, millis: u64) -> Vec<Event> {
    let mut out = Vec::new();
    correlator.ready(tick(millis), &mut out);
    out
}

#[test]
fn probe_and_log_become_one_event_whichever_comes_first() {
    for probe_first in [true, false] {
        let mut correlator = Correlator::new(BOTH, BOTH);
        let (first, second) = if probe_first {
            (probe_kill(9, 1000), log_kill(9, 1003))
        } else {
            (log_kill(9, 1003), probe_kill(9, 1000))
        };
        correlator.add(first, tick(1005));
        assert_eq!(ready(&mut correlator, 1064), []);
        assert_eq!(correlator.next_deadline(), Some(Duration::from_millis(1065)));
        correlator.add(second, tick(1064));
        let out = ready(&mut correlator, 1064);
        let [joined] = out.as_slice() else { panic!("{out:?}") };
        let sources = if probe_first { [Source::TpBtf, Source::Kmsg] } else { [Source::Kmsg, Source::TpBtf] };
        assert_eq!(joined.source, sources);
        assert_eq!(
            (joined.cgroup.as_deref(), joined.uid, joined.monotonic_ns),
            (Some("/probe"), Some(5), 1_000_000_000)
        );
        let Detail::OomKill(kill) = &joined.detail else { panic!("{joined:?}") };
        assert_eq!(kill.anon_rss_bytes, Some(1));
        assert_eq!(kill.constraint.as_deref(), Some("CONSTRAINT_MEMCG"));
        assert_eq!((kill.trigger_pid, kill.trigger_comm.as_deref()), (Some(7), Some("sh")));
        assert_eq!((correlator.joined(), correlator.next_deadline()), (1, None));
    }
}

#[test]
fn no_event_waits_for_a_source_that_does_not_stand() {
    let mut correlator = Correlator::new(PROBE, BOTH);
    correlator.add(probe_kill(9, 1000), tick(1001));
    assert_eq!(ready(&mut correlator, 1001).len(), 1);
}

#[test]
fn a_partner_that_comes_late_is_not_told_again() {
    let mut correlator = Correlator::new(BOTH, BOTH);
    correlator.add(probe_kill(9, 1000), tick(1001));
    assert_eq!(ready(&mut correlator, 1061).len(), 1);
    correlator.add(log_kill(9, 1001), tick(5000));
    correlator.add(log_kill(9, 1002), tick(5000));
    let mut out = Vec::new();
    correlator.flush(&mut out);
    assert_eq!((out, correlator.late(), correlator.repeated()), (vec![], 1, 1));
}

/// The log's clock is not known yet when the agent is stopped while a record waits: it is dated too late.
#[test]
fn a_log_that_was_read_late_tells_of_the_same_kill() {
    let mut correlator = Correlator::new(BOTH, BOTH);
    correlator.add(probe_kill(9, 1000), tick(6000));
    correlator.add(log_kill(9, 5900), tick(6000));
    assert_eq!((ready(&mut correlator, 6000).len(), correlator.joined()), (1, 1));
}

#[test]
fn an_id_that_is_used_again_is_another_process() {
    let mut correlator = Correlator::new(PROBE, BOTH);
    let other = Event { comm: Some("sh".into()), ..probe_kill(9, 1100) };
    for event in [probe_kill(9, 1000), other, probe_kill(9, 4000)] {
        correlator.add(event, tick(5000));
    }
    assert_eq!(ready(&mut correlator, 5000).len(), 3);
}

#[test]
fn a_first_thread_that_has_ended_does_not_part_log_and_probe() {
    let mut correlator = Correlator::new(BOTH, BOTH);
    correlator.add(Event { tid: Some(12), ..probe_kill(9, 1000) }, tick(1000));
    correlator.add(log_kill(12, 1000), tick(1000));
    let out = ready(&mut correlator, 1000);
    assert_eq!(out.iter().map(|event| (event.pid, event.tid)).collect::<Vec<_>>(), [(Some(9), Some(12))]);
}

/// The probe tells the name of the process, the log that of the thread which the kernel named.
#[test]
fn a_thread_with_a_name_of_its_own_does_not_part_log_and_probe() {
    for probe_first in [true, false] {
        let mut probe = Event { tid: Some(12), comm: Some("server".into()), ..probe_kill(9, 1000) };
        let Detail::OomKill(kill) = &mut probe.detail else { panic!("{probe:?}") };
        kill.thread_comm = Some("dd".into());
        let mut reports = [probe, log_kill(12, 1000)];
        if !probe_first {
            reports.reverse();
        }
        let mut correlator = Correlator::new(BOTH, BOTH);
        reports.into_iter().for_each(|report| correlator.add(report, tick(1000)));
        let out = ready(&mut correlator, 1000);
        let told: Vec<_> = out.iter().map(|event| (event.pid, event.comm.as_deref())).collect();
        assert_eq!((told.as_slice(), correlator.joined()), (&[(Some(9), Some("server"))][..], 1));
    }
}

/// A group kill of three: the probe lost the last, the log has all.
#[test]
fn an_incident_keeps_one_name_whoever_saw_its_kills() {
    let named = |mut event: Event, name: &str| {
        let Detail::OomKill(kill) = &mut event.detail else { panic!("{event:?}") };
        kill.incident = Some(name.into());
        event
    };
    let mut correlator = Correlator::new(BOTH, BOTH);
    for pid in [1, 2] {
        correlator.add(named(probe_kill(pid, 1000), "probe"), tick(1000));
    }
    for pid in [1, 2, 3] {
        correlator.add(named(log_kill(pid, 1001), "log"), tick(1001));
    }
    correlator.add(named(log_kill(4, 1001), "another"), tick(1001));
    let incident = |event: &Event| match &event.detail {
        Detail::OomKill(kill) => kill.incident.clone(),
        _ => None,
    };
    let told: Vec<_> = ready(&mut correlator, 1100).iter().map(|event| (event.pid, incident(event))).collect();
    let expected = [(1, "probe"), (2, "probe"), (3, "probe"), (4, "another")];
    assert_eq!(told, expected.map(|(pid, name)| (Some(pid), Some(name.to_owned()))));
}

#[test]
fn a_sigkill_waits_for_no_one() {
    let mut correlator = Correlator::new(BOTH, BOTH);
    let sigkill = Detail::Sigkill(crate::model::event::Sigkill::default());
    for _ in 0..2 {
        correlator.add(event(Source::TpBtf, 9, 1000, sigkill.clone()), tick(1000));
    }
    assert_eq!(correlator.next_deadline(), Some(Duration::ZERO));
    assert_eq!(ready(&mut correlator, 1000).len(), 2, "two signals are two events");
}

#[test]
fn a_hang_is_told_once_and_the_next_one_again() {
    let mut correlator = Correlator::new(BOTH, BOTH);
    let mut told = Vec::new();
    // Timeout 10: from 100 to 145, seen at every check; then from 152 on, first noticed at 160.
    for (at, blocked) in [(120, 10), (130, 20), (140, 30), (170, 10), (180, 20)] {
        for source in [Source::TpBtf, Source::Kmsg] {
            correlator.add(hang(source, 9, at, Some(blocked)), tick(at * 1000));
            told.extend(ready(&mut correlator, at * 1000 + 200).iter().map(|event| event.monotonic_ns / 1_000_000_000));
        }
    }
    assert_eq!(told, [120, 170]);
    // Another thread of the process hangs too.
    let thread = Event { tid: Some(10), ..hang(Source::Kmsg, 9, 180, Some(10)) };
    correlator.add(thread, tick(180_000));
    assert_eq!(ready(&mut correlator, 181_000).len(), 1);
}

#[test]
fn kernels_that_print_the_timeout_have_one_event_a_hang_too() {
    let mut correlator = Correlator::new(BOTH, Sources { probe: false, log: true });
    let mut told = Vec::new();
    for at in [1000, 1121, 1242, 1484, 1605] {
        correlator.add(hang(Source::Kmsg, 9, at, Some(120)), tick(at * 1000));
        told.extend(ready(&mut correlator, at * 1000).iter().map(|event| event.monotonic_ns / 1_000_000_000));
    }
    assert_eq!(told, [1000, 1484]);
}

#[test]
fn a_hang_that_was_told_before_a_restart_is_not_told_again() {
    let mut correlator = Correlator::new(BOTH, Sources { probe: false, log: true });
    correlator.remember(&hang(Source::Kmsg, 9, 100, Some(10)));
    correlator.add(hang(Source::Kmsg, 9, 150, Some(60)), tick(150_000));
    assert_eq!(ready(&mut correlator, 151_000), []);
    correlator.add(hang(Source::Kmsg, 9, 300, Some(10)), tick(300_000));
    assert_eq!(ready(&mut correlator, 301_000).len(), 1);
}

#[test]
fn sources_that_do_not_say_how_long_are_taken_by_their_pauses() {
    let mut correlator = Correlator::new(BOTH, PROBE);
    for at in [100, 220, 340, 900] {
        correlator.add(hang(Source::TpBtf, 9, at, None), tick(at * 1000));
    }
    assert_eq!(ready(&mut correlator, 1_000_000).len(), 2);
}

#[test]
fn a_flood_loses_nothing_and_is_bounded() {
    let mut correlator = Correlator::new(BOTH, BOTH);
    let all = u32::try_from(MAX_SEEN).expect("it is small") * 3;
    for pid in 0..all {
        correlator.add(probe_kill(pid, 1000), tick(1000));
    }
    assert_eq!(correlator.kills.len(), MAX_SEEN);
    assert_eq!(correlator.next_deadline(), Some(Duration::ZERO));
    let mut out = Vec::new();
    correlator.flush(&mut out);
    assert_eq!(out.iter().map(|event| event.pid).collect::<Vec<_>>(), (0..all).map(Some).collect::<Vec<_>>());
}

proptest! {
    /// Kills with few ids, twenty seconds apart, each seen by one or both sources, the log's line once or twice, told in any
    /// order and with any pauses between them.
    #[test]
    fn any_interleaving_gives_each_kill_once(
        kills in prop::collection::vec((1..4_u32, 1..=3_u8, 1..=2_usize, 0..900_u64), 1..40),
        order in any::<prop::sample::Index>(),
        keys in prop::collection::vec(any::<u32>(), 200),
        pauses in prop::collection::vec(0..200_u64, 200),
    ) {
        let mut reports = Vec::new();
        for (at, &(pid, seen_by, lines, skew)) in (20_u64..).step_by(20).map(|secs| secs * 1000).zip(&kills) {
            if seen_by & 1 != 0 {
                reports.push(probe_kill(pid, at));
            }
            if seen_by & 2 != 0 {
                (0..lines).for_each(|line| reports.push(log_kill(pid, at + skew + line as u64)));
            }
        }
        let turn = order.index(keys.len());
        let mut shuffled: Vec<_> = reports.into_iter().zip(keys.iter().cycle().skip(turn)).collect();
        shuffled.sort_by_key(|(_, key)| **key);
        let mut correlator = Correlator::new(BOTH, BOTH);
        let (mut now, mut out) = (1_000_000, Vec::new());
        for ((report, _), pause) in shuffled.into_iter().zip(&pauses) {
            correlator.add(report, tick(now));
            now += pause;
            correlator.ready(tick(now), &mut out);
        }
        prop_assert!(correlator.next_deadline().is_none_or(|until| until <= Duration::from_millis(now + 60)));
        correlator.ready(tick(now + 60), &mut out);
        let mut told: Vec<_> = out.iter().map(|event| event.monotonic_ns / 20_000_000_000).collect();
        told.sort_unstable();
        prop_assert_eq!(told, (1..=kills.len() as u64).collect::<Vec<_>>());
    }
}

/// Of probe and log one may have come too late to ask for the name of the process, and has that of the thread alone.
#[test]
fn a_hang_of_a_thread_is_one_event_with_both_names() {
    for (first, second) in [(Source::TpBtf, Source::Kmsg), (Source::Kmsg, Source::TpBtf)] {
        for first_knows in [true, false] {
            let mut correlator = Correlator::new(BOTH, BOTH);
            for (source, knows) in [(first, first_knows), (second, !first_knows)] {
                let mut event = hang(source, 9, 1000, Some(120));
                if let (Detail::HungTask(hang), true) = (&mut event.detail, knows) {
                    (event.comm, hang.thread_comm) = (Some("mysqld".into()), Some("dd".into()));
                }
                correlator.add(event, tick(1_000_000));
            }
            let events = ready(&mut correlator, 1_001_000);
            let [event] = events.as_slice() else { panic!("{events:?}") };
            let thread = event.hang().and_then(|hang| hang.thread_comm.as_deref());
            assert_eq!((event.comm.as_deref(), thread), (Some("mysqld"), Some("dd")), "{first:?} {first_knows}");
        }
    }
}

#[test]
fn a_hang_that_nobody_looked_at_for_a_while_is_told_anew() {
    let with = |phase: Phase, outcome| {
        let hang = HungTask { phase, outcome, switches: Some(5), blocked_seconds: Some(20), ..HungTask::default() };
        event(Source::TaskIter, 9, 1_000_000, Detail::HungTask(hang))
    };
    let told = |outcome| {
        let mut correlator = Correlator::new(PROBE, PROBE);
        for event in [with(Phase::Began, None), with(Phase::Ended, outcome), with(Phase::Began, None)] {
            correlator.add(event, tick(1_000_000));
        }
        ready(&mut correlator, 1_001_000).iter().map(Event::is_end).collect::<Vec<_>>()
    };
    let (again, once) = (told(None), told(Some(crate::model::event::Outcome::Ran)));
    assert_eq!((again.iter().filter(|is_end| !**is_end).count(), again.len()), (2, 3));
    assert_eq!((once.iter().filter(|is_end| !**is_end).count(), once.len()), (1, 2));
}

#[test]
fn how_often_a_task_had_run_decides_which_hang_it_is() {
    let counted = |source: Source, secs: u64, blocked: u64, switches: u64| {
        let mut event = hang(source, 7, secs, Some(blocked));
        let Detail::HungTask(detail) = &mut event.detail else { panic!("{event:?}") };
        detail.switches = Some(switches);
        event
    };
    let mut correlator = Correlator::new(BOTH, BOTH);
    // Told early; the kernel began to count a while later, so that by time alone its report would be of another hang.
    correlator.add(counted(Source::TaskIter, 20, 20, 5), tick(20_000));
    assert_eq!(ready(&mut correlator, 21_000).len(), 1);
    correlator.add(counted(Source::Kmsg, 220, 120, 5), tick(220_000));
    assert_eq!(ready(&mut correlator, 221_000), []);
    // By time alone this would be the same hang.
    correlator.add(counted(Source::Kmsg, 222, 120, 6), tick(222_000));
    assert_eq!(ready(&mut correlator, 223_000).len(), 1);
    assert_eq!(correlator.late(), 1);
}

#[test]
fn an_end_passes_at_once_and_not_before_its_beginning() {
    let mut correlator = Correlator::new(BOTH, BOTH);
    correlator.add(hang(Source::TaskIter, 7, 20, Some(20)), tick(20_000));
    let mut end = hang(Source::TaskIter, 7, 20, Some(20));
    let Detail::HungTask(detail) = &mut end.detail else { panic!("{end:?}") };
    detail.phase = Phase::Ended;
    correlator.add(end, tick(20_010));
    let told: Vec<bool> = ready(&mut correlator, 20_010).iter().map(Event::is_end).collect();
    assert_eq!(told, [false, true]);
    assert_eq!((correlator.told_hangs, correlator.next_deadline()), (1, None));
}
