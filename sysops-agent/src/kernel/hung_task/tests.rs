//! Hangs of a machine of files: what is told of them, and of whom.

use std::fs;

use super::super::btf_builder::KERNELS;
use super::super::record::tests::task;
use super::hangs::{TOLD_MAX, Told};
use super::*;
use crate::host::os;
use sysops_common::task::COMM_LEN;

/// A machine of files, gone with the directory.
fn machine() -> (tempfile::TempDir, Host) {
    let dir = tempfile::tempdir().expect("a directory");
    fs::create_dir_all(dir.path().join("proc/sys/kernel/random")).expect("ours");
    fs::write(dir.path().join("proc/sys/kernel/random/boot_id"), "b00\n").expect("ours");
    let host = Host::fixture(dir.path());
    (dir, host)
}

/// What the kernel reports of thread 71, which had run seven times.
fn report(host: &Host) -> Record {
    let monotonic_ns = u64::try_from(host.clock.now().monotonic.as_nanos()).expect("small");
    Record {
        monotonic_ns,
        jiffies: 0,
        last_switch_time: 0,
        last_switch_count: 7,
        known: known::SWITCH_COUNT,
        reserved: 0,
        leader_comm: [0; COMM_LEN],
        task: task(b"a\0"),
    }
}

fn told(tid: u32, host: &Host) -> Told {
    let mut read = report(host);
    read.task.tid = tid;
    let report = Report::of(&read, false, host, Source::TpBtf, &Hangs::default()).expect("it is not told");
    Told { sleep: report.sleep.expect("known"), since: Duration::ZERO, event: Box::new(report.event) }
}

/// Thread 71 of process 70 in /proc.
fn thread(dir: &tempfile::TempDir, state: char, start_ticks: u64, switches: u64) {
    let at = dir.path().join("proc/71");
    fs::create_dir_all(&at).expect("ours");
    let status =
        format!("Tgid:\t70\nUid:\t5\t5\nvoluntary_ctxt_switches:\t{switches}\nnonvoluntary_ctxt_switches:\t0\n");
    let stat = format!("71 (a) {state}{} {start_ticks} 0", " 0".repeat(18));
    let files = [("status", status), ("stat", stat), ("comm", "other\n".to_owned()), ("wchan", "place".to_owned())];
    files.iter().for_each(|(name, text)| fs::write(at.join(name), text).expect("ours"));
}

fn ago(host: &Host, seconds: u64) -> Record {
    let read = report(host);
    Record { monotonic_ns: read.monotonic_ns - seconds * 1_000_000_000, ..read }
}

fn wchan(report: &Report) -> Option<&str> {
    report.event.hang().and_then(|hang| hang.wchan.as_deref())
}

const START: u64 = 500;

/// Threads of one process are one alert by the name of the process.
#[test]
fn a_hang_bears_the_name_of_the_process_and_beside_it_that_of_the_thread() {
    let (dir, host) = machine();
    thread(&dir, 'D', START, 7);
    let names = |event: Event| (event.comm.clone(), event.hang().and_then(|hang| hang.thread_comm.clone()));
    let kernels = |read: &Record| {
        names(Report::of(read, true, &host, Source::TpBtf, &Hangs::default()).expect("it is not told").event)
    };
    let early = || {
        let sleeper = sleepers::Sleeper::new(Sleep { tid: 71, start: Some(START), switches: 7 });
        match early_event(&host, None, &sleeper, Duration::from_secs(20), host.clock.now()) {
            Verdict::Hangs(event) => names(*event),
            _ => panic!("it hangs"),
        }
    };
    let pair = |comm: &str, thread: Option<&str>| (Some(comm.to_owned()), thread.map(str::to_owned));
    assert_eq!((kernels(&report(&host)), early()), (pair("java", None), pair("other", None)), "no one to ask");
    let leader = dir.path().join("proc/70");
    fs::create_dir_all(&leader).expect("ours");
    fs::write(leader.join("comm"), " leader \n").expect("ours");
    let both = [kernels(&report(&host)), early()];
    assert_eq!(both, [pair(" leader ", Some("java")), pair(" leader ", Some("other"))]);
    fs::write(leader.join("comm"), "other\n").expect("ours");
    assert_eq!(early(), pair("other", None));
    // Where the program read it, no one is asked.
    let mut read = report(&host);
    read.known |= known::LEADER;
    read.leader_comm[..4].copy_from_slice(b"main");
    assert_eq!(kernels(&read), pair("main", Some("java")));
    read.leader_comm[..5].copy_from_slice(b"java\0");
    assert_eq!(kernels(&Record { last_switch_count: 8, ..read }), pair("java", None));
}

#[test]
fn proc_is_believed_only_of_the_thread_and_the_sleep_that_was_reported() {
    let (dir, host) = machine();
    let of = |read: &Record| Report::of(read, true, &host, Source::TpBtf, &Hangs::default()).expect("it is not told");
    // However late it is read: the count of switches says that it is the same sleep.
    thread(&dir, 'D', START, 7);
    let late = of(&ago(&host, 60));
    assert_eq!((wchan(&late), late.lasts, late.event.comm.as_deref()), (Some("place"), true, Some("java")));
    for (state, start, switches) in [('S', START, 8), ('D', START, 8), ('D', 9000, 7), ('S', START, 7)] {
        thread(&dir, state, start, switches);
        let other = of(&ago(&host, 60));
        assert_eq!((wchan(&other), other.lasts), (None, false), "{state} {start} {switches}");
        assert_eq!(other.sleep, late.sleep, "what the kernel reported");
    }
}

#[test]
fn the_plain_tracepoint_takes_no_other_process_for_the_one_that_hung() {
    let (dir, host) = machine();
    let of = |seconds: u64| {
        let mut read = Record { known: 0, ..ago(&host, seconds) };
        read.task.known = sysops_common::task::known::TID;
        let report = Report::of(&read, true, &host, Source::Tracepoint, &Hangs::default());
        let event = report.expect("it is not told").event;
        (event.pid, event.comm.clone(), event.hang().and_then(|hang| hang.wchan.clone()))
    };
    let all = (Some(70), Some("other".to_owned()), Some("place".to_owned()));
    thread(&dir, 'D', START, 7);
    assert_eq!((of(2), of(60)), (all.clone(), (None, None, None)), "it may sleep anew");
    let now = host.clock.now().boottime.as_secs();
    thread(&dir, 'D', (now - 10) * os::ticks_per_second(), 7);
    assert_eq!(of(2), all);
    thread(&dir, 'D', (now - 1) * os::ticks_per_second(), 7);
    assert_eq!(of(2), (None, None, None), "it came later");
}

#[test]
fn a_hang_that_is_read_late_lasts_from_when_the_kernel_saw_it() {
    let (dir, host) = machine();
    fs::write(dir.path().join("proc/sys/kernel/hung_task_timeout_secs"), "120\n").expect("ours");
    let lasted = |state: char| {
        thread(&dir, state, START, 7);
        let (mut hangs, mut over) = (Hangs::default(), Vec::new());
        let read = ago(&host, 60);
        let report = Report::of(&read, true, &host, Source::TpBtf, &hangs).expect("it is not told");
        assert!(report.is_followed(true, host.clock.now(), &mut hangs, &mut over));
        hangs.begin_look();
        hangs.end_look(|ended| over.push(ended));
        over[0].lasted
    };
    assert_eq!(lasted('D'), Some(Duration::from_secs(180)), "60 s more than the kernel saw");
    assert_eq!(lasted('S'), Some(Duration::from_secs(120)), "how much longer nobody knows");
}

#[test]
fn a_sleep_that_another_thread_sleeps_is_not_told_early() {
    let (dir, host) = machine();
    let of = |start: u64| {
        let sleeper = sleepers::Sleeper::new(Sleep { tid: 71, start: Some(start), switches: 7 });
        early_event(&host, Some(Source::Proc), &sleeper, Duration::from_secs(20), host.clock.now())
    };
    thread(&dir, 'D', START, 7);
    assert!(matches!(of(START), Verdict::Hangs(event) if event.pid == Some(70)));
    assert!(matches!(of(START - 1), Verdict::Over));
}

#[test]
fn the_threads_that_wait_for_a_core_dump_do_not_hang_and_the_one_that_dumps_may() {
    let (dir, host) = machine();
    let is_harmless = |dumping: u8, flags: u8| {
        thread(&dir, 'D', START, 7);
        let at = dir.path().join("proc/71");
        let status = host.files.read_text(&at.join("status")).expect("ours") + &format!("\nCoreDumping:\t{dumping}\n");
        fs::write(at.join("status"), status).expect("ours");
        let stat = format!("71 (a) D 0 0 0 0 0 {flags}{} {START} 0", " 0".repeat(12));
        fs::write(at.join("stat"), stat).expect("ours");
        let sleeper = sleepers::Sleeper::new(Sleep { tid: 71, start: Some(START), switches: 7 });
        let verdict = early_event(&host, None, &sleeper, Duration::from_secs(20), host.clock.now());
        matches!(verdict, Verdict::Harmless)
    };
    assert!(is_harmless(1, 4), "5.10: it exits");
    assert!(is_harmless(1, 8), "6.1: no part of the dump any more");
    assert!(!is_harmless(1, 0), "it writes the dump");
    assert!(!is_harmless(0, 4), "it exits and waits for something else");
}

#[test]
fn an_end_is_announced_only_where_it_will_be_told() {
    let (_dir, host) = machine();
    let (mut hangs, mut over) = (Hangs::default(), Vec::new());
    let read = report(&host);
    let of = |hangs: &Hangs| Report::of(&read, false, &host, Source::TpBtf, hangs);
    let first = of(&hangs).expect("it is not told");
    assert!(!first.is_followed(false, host.clock.now(), &mut hangs, &mut over), "nobody looks");
    assert!(first.is_followed(true, host.clock.now(), &mut hangs, &mut over));
    assert!(of(&hangs).is_none(), "it is told");
    let mut full = Hangs::default();
    (1000..).take(TOLD_MAX).for_each(|tid| full.restore(told(tid, &host)));
    let more = of(&full).expect("it is not told");
    assert!(!more.is_followed(true, host.clock.now(), &mut full, &mut over), "there is no room to follow it");
    let mut event = more.event;
    assert_eq!(event.hang().and_then(|hang| hang.switches), Some(7));
    has_no_end(&mut event);
    assert_eq!(event.hang().and_then(|hang| hang.switches), None);
}

/// The probe is off since a reload or a restart: what was told is not left firing.
#[test]
fn who_looks_no_more_says_so_once_of_each_hang_that_was_told() {
    let (dir, host) = machine();
    let files = StateFiles::within(Some(dir.path()));
    let settle = || files.settle(Duration::from_secs(10));
    let (mut kept, _) = Kept::open(&host, &files).expect("the boot has a name");
    kept.save([told(71, &host), told(72, &host)].into_iter());
    settle();
    let off = || {
        let facts = Facts::read(&host);
        let mut probe = new(&host, &facts, &Values::default());
        probe.settled(false, &host, &facts);
        probe.keep_in(&host, &files);
        probe
    };
    // Only tried, as before a reload.
    drop(off());
    let mut events = Vec::new();
    let mut probe = off();
    probe.take_told(&mut events);
    assert!(events.is_empty(), "nobody is to wait for what goes on");
    probe.drain(&host, &mut events);
    assert_eq!(events.len(), 2);
    for event in &events {
        let hang = event.hang().expect("a hang");
        assert!(event.is_end() && hang.outcome.is_none() && hang.switches == Some(7), "{event:?}");
        assert_eq!((&event.source, hang.blocked_seconds), (&vec![Source::TpBtf], None));
    }
    settle();
    let mut events = Vec::new();
    off().drain(&host, &mut events);
    assert!(events.is_empty(), "{events:?}");
}

#[test]
fn every_kernel_has_what_the_program_needs() {
    for (name, data) in KERNELS {
        let found = Btf::parse(data.to_vec()).map_err(|error| error.to_string());
        let both = |btf: Btf| Ok((offsets(&btf)?, scan_offsets(&btf)?));
        let found = found.and_then(|btf| both(btf).map_err(|refused: Refusal| refused.reason));
        let (found, scan) = found.unwrap_or_else(|reason| panic!("{name}: {reason}"));
        assert_eq!(scan.blocker.bytes().is_some(), ["6.18", "7.2"].contains(&name), "{name}");
        assert!(found.last_switch_time.bytes().is_some() && found.task.css_set_memory.bytes().is_some(), "{name}");
    }
}
