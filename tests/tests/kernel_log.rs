//! The kernel's log from file to events: captures of four kernels, restarts at every record, hostile and broken input.
#![expect(
    clippy::disallowed_methods,
    reason = "a test reads and writes fixtures, and looks at the machine without Host"
)]
#![expect(clippy::unwrap_used, clippy::panic, reason = "that is how a test fails, in its helpers too")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sysops_agent::correlate::{Correlator, Sources};
use sysops_agent::host::{EventSource, Host, StateFiles};
use sysops_agent::logs::Kmsg;
use sysops_agent::model::{Batch, Detail, Event, Reading};
use sysops_agent::spec::{Value, Values};

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/kmsg");
const KERNELS: [&str; 4] = ["5.10", "6.1", "6.12", "7.2"];
const LOG: Sources = Sources { probe: false, log: true };

/// A recorded machine in a directory of its own, which goes when it goes.
struct Machine {
    dir: PathBuf,
    host: Host,
    files: StateFiles,
}

const LONG: Duration = Duration::from_secs(10);

impl Machine {
    fn new(name: &str, log: &[u8]) -> Self {
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("kernel-log-{}-{name}", std::process::id()));
        fs::create_dir_all(dir.join("dev")).unwrap();
        fs::create_dir_all(dir.join("data")).unwrap();
        fs::create_dir_all(dir.join("proc/sys/kernel/random")).unwrap();
        let files = StateFiles::within(Some(&dir.join("data")));
        let machine = Self { host: Host::fixture(&dir), dir, files };
        machine.boot("b00");
        machine.log(log);
        machine
    }

    fn boot(&self, id: &str) {
        fs::write(self.dir.join("proc/sys/kernel/random/boot_id"), format!("{id}\n")).unwrap();
    }

    fn log(&self, log: &[u8]) {
        fs::write(self.dir.join("dev/kmsg"), log).unwrap();
    }

    fn open(&self) -> Kmsg {
        Kmsg::open(&self.host, &Values::default(), &self.files).unwrap()
    }

    fn save(&self, kmsg: &mut Kmsg) {
        kmsg.save_now();
        self.files.settle(LONG);
    }

    fn drain(&self, kmsg: &mut Kmsg) -> Vec<Event> {
        let mut out = Vec::new();
        kmsg.drain(&self.host, &mut out);
        out
    }

    /// All events of a life of the agent, with the pause that ends a stack.
    fn live(&self) -> Vec<Event> {
        let mut kmsg = self.open();
        let mut out = self.drain(&mut kmsg);
        if let Some(until) = kmsg.next_deadline() {
            self.host.clock.advance(until - self.host.clock.now().monotonic);
            out.extend(self.drain(&mut kmsg));
        }
        assert_eq!(kmsg.next_deadline(), None);
        self.save(&mut kmsg);
        out
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}

fn fixture(name: &str) -> Vec<u8> {
    fs::read(format!("{FIXTURES}/{name}")).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn console(name: &str) -> String {
    String::from_utf8(fixture(name)).unwrap()
}

fn events_of(name: &str) -> Vec<Event> {
    Machine::new(&name.replace('/', "-"), &fixture(&format!("{name}.kmsg"))).live()
}

/// What the agent tells: the events after the correlator.
fn told(events: Vec<Event>) -> Vec<Event> {
    let mut correlator = Correlator::new(LOG, LOG);
    let mut out = Vec::new();
    let host = Host::fixture(Path::new("/nowhere"));
    for event in events {
        correlator.add(event, host.clock.now());
    }
    correlator.flush(&mut out);
    out
}

fn lines(events: &[Event]) -> String {
    events.iter().map(|event| serde_json::to_string_pretty(event).unwrap() + "\n").collect()
}

#[test]
fn every_capture_of_an_oom_kill_gives_exactly_its_kills() {
    for (scenario, kernels) in [
        ("oom-memcg", &KERNELS[..]),
        ("oom-global", &KERNELS[..]),
        ("oom-group", &KERNELS[..]),
        ("oom-cgroup1", &KERNELS[..2]),
    ] {
        for kernel in kernels {
            let name = format!("{scenario}/{kernel}");
            let read = events_of(&name);
            let events = told(read.clone());
            assert_eq!(lines(&events), lines(&read), "{name}: the reader itself leaves out what is printed twice");
            check_against_console(&name, &events);
            insta::assert_snapshot!(name.replace('/', "-"), lines(&events));
        }
    }
}

/// Ten reports in five seconds are all that the kernel prints: of these groups there are the lines of the killed alone, and
/// what is the first of the next group looks like one more of the group before.
#[test]
fn groups_that_are_killed_one_behind_the_other_are_incidents_of_their_own() {
    let events = events_of("oom-groups-at-once/6.12");
    let mut incidents: BTreeMap<&str, Vec<(u32, Option<&str>)>> = BTreeMap::new();
    for event in &events {
        let Detail::OomKill(kill) = &event.detail else { panic!("{event:?}") };
        let (incident, of) = (kill.incident.as_deref().unwrap(), (event.pid.unwrap(), kill.oom_group.as_deref()));
        assert!(event.cgroup.is_none() && kill.trigger_pid.is_none() && kill.oom_memcg.is_none(), "{event:?}");
        assert_eq!(kill.constraint.as_deref(), Some("CONSTRAINT_MEMCG"));
        incidents.entry(incident).or_default().push(of);
    }
    let killed: Vec<_> = incidents.into_values().collect();
    let group = |name, chosen, others: [u32; 4]| {
        std::iter::once((chosen, None)).chain(others.map(|pid| (pid, Some(name)))).collect::<Vec<_>>()
    };
    let expected = [
        group("/group-7", 373, [368, 370, 371, 369]),
        group("/group-6", 372, [364, 366, 365, 367]),
        group("/group-9", 383, [378, 380, 379, 381]),
        group("/group-8", 382, [374, 376, 375, 377]),
    ];
    assert_eq!(killed, expected);
}

/// The console has the kill lines again, and what the cgroups counted.
fn check_against_console(name: &str, events: &[Event]) {
    let console = console(&format!("{name}.console"));
    let mut killed: Vec<_> = console
        .lines()
        .filter_map(|line| line.split_once("Killed process ")?.1.split_once(" ")?.0.parse::<u32>().ok())
        .collect();
    killed.dedup();
    assert_eq!(events.iter().filter_map(|event| event.pid).collect::<Vec<_>>(), killed, "{name}");
    // memory.events of the innermost group. A group kill counts its chosen task twice (three dead, "oom_kill 4").
    let twice = u64::from(name.starts_with("oom-group"));
    let counted = console.lines().rev().find_map(|line| line.rsplit_once("oom_kill ")?.1.parse::<u64>().ok());
    assert_eq!(counted, Some(events.len() as u64 + twice), "{name}");
    for event in events {
        let Detail::OomKill(kill) = &event.detail else { panic!("{name}: {event:?}") };
        assert!(event.cgroup.is_some() || kill.oom_group.is_some(), "{name}: {event:?}");
        assert!(event.uid.is_some() && kill.constraint.is_some(), "{name}: {event:?}");
        assert!(kill.trigger_pid.is_some() && kill.trigger_comm.is_some(), "{name}: {event:?}");
        assert!(kill.anon_rss_bytes <= kill.total_vm_bytes && kill.oom_score_adj.is_some(), "{name}: {event:?}");
    }
}

#[test]
fn every_capture_of_hung_tasks_gives_one_event_a_hang() {
    for scenario in ["hung-task", "hung-task-limit"] {
        for kernel in KERNELS {
            let name = format!("{scenario}/{kernel}");
            let reports = events_of(&name);
            let log = String::from_utf8(fixture(&format!("{name}.kmsg"))).unwrap();
            assert_eq!(reports.len(), log.matches(" seconds.\n").count(), "{name}");
            let events = told(reports.clone());
            let mut tids: Vec<_> = reports.iter().map(|event| event.tid).collect();
            tids.sort_unstable();
            tids.dedup();
            let mut told: Vec<_> = events.iter().map(|event| event.tid).collect();
            told.sort_unstable();
            assert_eq!(told, tids, "{name}");
            check_stacks(&name, &reports);
            insta::assert_snapshot!(name.replace('/', "-"), lines(&events));
        }
    }
}

/// The console has two frames of each hung task as /proc/PID/stack gave them: `150 dd wchan f: [<0>] f+0x81/0x160 …`.
fn check_stacks(name: &str, reports: &[Event]) {
    for line in console(&format!("{name}.console")).lines().filter(|line| line.contains(" wchan ")) {
        let frames: Vec<_> = line.split("[<0>] ").skip(1).map(str::trim).collect();
        let tid = line.split(' ').next().and_then(|tid| tid.parse().ok());
        for report in reports.iter().filter(|report| report.tid == tid) {
            let Detail::HungTask(hung) = &report.detail else { panic!("{name}: {report:?}") };
            let mut stack = hung.kernel_stack.iter();
            let in_order = frames.iter().all(|frame| stack.any(|known| known == frame));
            assert!(in_order, "{name}: {frames:?} in {:?}", hung.kernel_stack);
            assert!(hung.kernel_stack[0].starts_with("__schedule+"), "{name}: {:?}", hung.kernel_stack);
        }
    }
}

#[test]
fn older_kernels_and_hostile_names() {
    for name in ["oom-3.10-memcg", "oom-3.10-global", "oom-4.18", "hung-task-3.10-4.18", "hostile"] {
        insta::assert_snapshot!(format!("synthetic-{name}"), lines(&events_of(&format!("synthetic/{name}"))));
    }
}

#[test]
fn a_restart_at_any_record_tells_each_event_once_and_whole() {
    for name in [
        "oom-memcg/5.10",
        "oom-global/7.2",
        "oom-group/6.12",
        "oom-group/7.2",
        "oom-groups-at-once/6.12",
        "hung-task-limit/6.1",
        "hung-task-limit/7.2",
    ] {
        let log = fixture(&format!("{name}.kmsg"));
        let whole = events_of(name);
        assert!(!whole.is_empty());
        let ends: Vec<_> = log.iter().enumerate().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at + 1).collect();
        let machine = Machine::new(&format!("restart-{}", name.replace('/', "-")), b"");
        for end in ends {
            let _ = fs::remove_file(machine.dir.join("data/kmsg.position"));
            machine.log(&log[..end]);
            let mut kmsg = machine.open();
            let mut events = machine.drain(&mut kmsg);
            machine.save(&mut kmsg);
            drop(kmsg);
            machine.log(&log);
            events.extend(machine.live());
            assert_eq!(lines(&events), lines(&whole), "{name} after {end} bytes");
            assert_eq!(machine.live(), [], "{name}: a third life has nothing to tell");
        }
    }
}

#[test]
fn a_stack_that_pauses_is_told_without_its_rest_and_only_once() {
    let log = fixture("hung-task-limit/5.10.kmsg");
    let ends: Vec<_> = log.iter().enumerate().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at + 1).collect();
    let machine = Machine::new("pause", b"");
    for end in ends {
        let _ = fs::remove_file(machine.dir.join("data/kmsg.position"));
        machine.log(&log[..end]);
        let mut events = machine.live();
        machine.log(&log);
        events.extend(machine.live());
        let told: Vec<_> = events.iter().map(|event| (event.tid, event.time.as_str())).collect();
        assert_eq!(told.len(), 2, "after {end} bytes: {told:?}");
        assert_ne!(told[0], told[1]);
    }
}

#[test]
fn a_hang_that_goes_on_over_a_restart_is_remembered() {
    let log = fixture("hung-task-limit/6.12.kmsg");
    let second = log.windows(12).rposition(|window| window == b"INFO: task d").unwrap();
    let machine = Machine::new("goes-on", &log[..second - 16]);
    assert_eq!(machine.live().len(), 1);
    machine.log(&log);
    let mut kmsg = machine.open();
    let again = machine.drain(&mut kmsg);
    let mut correlator = Correlator::new(LOG, LOG);
    kmsg.take_told(&machine.host).iter().for_each(|event| correlator.remember(event));
    again.into_iter().for_each(|event| correlator.add(event, machine.host.clock.now()));
    let mut out = Vec::new();
    correlator.flush(&mut out);
    assert_eq!((out, correlator.repeated()), (vec![], 1));
}

#[test]
fn after_another_boot_or_another_log_all_is_new() {
    let machine = Machine::new("boots", &fixture("oom-global/6.1.kmsg"));
    assert_eq!(machine.live().len(), 3);
    assert_eq!(machine.live().len(), 0);
    machine.boot("b01");
    assert_eq!(machine.live().len(), 3);
    // A power cut left nothing in the file.
    fs::write(machine.dir.join("data/kmsg.position"), "").unwrap();
    assert_eq!(machine.live().len(), 3);
    // A machine that was set back to a snapshot: the same boot, fewer records than were told.
    machine.log(&fixture("oom-memcg/6.1.kmsg"));
    assert_eq!(machine.live().len(), 1);
    assert_eq!(machine.live().len(), 0);
}

fn counters(machine: &Machine, kmsg: &mut Kmsg) -> (f64, f64) {
    let mut batch = Batch::default();
    kmsg.collect(&machine.host, &mut batch);
    let value = |name: &str| {
        batch.iter().find_map(|(entry, _)| match entry.reading {
            Reading::Counter(value) if entry.metric.name == name => Some(value),
            _ => None,
        })
    };
    (value("kernel_log_records_total").unwrap(), value("kernel_log_records_lost_total").unwrap())
}

#[test]
fn lost_records_are_counted_also_those_of_the_time_between_two_lives() {
    let machine = Machine::new("lost", b"6,10,1,-;a\n KEY=value\n6,11,2,-;b\n6,15,3,-;c\n");
    let mut kmsg = machine.open();
    machine.drain(&mut kmsg);
    assert_eq!(counters(&machine, &mut kmsg), (3.0, 3.0));
    machine.save(&mut kmsg);
    machine.log(b"6,18,4,-;d\n6,19,5,-;e\n");
    let mut kmsg = machine.open();
    machine.drain(&mut kmsg);
    assert_eq!(counters(&machine, &mut kmsg), (2.0, 2.0));
}

/// The records of a capture, each with another sequence and time than it had: 10,000 and a second later.
fn later(name: &str) -> Vec<String> {
    let shift = |line: &str| {
        let mut fields = line.splitn(4, ',');
        let [Some(priority), Some(sequence), Some(micros), Some(rest)] = std::array::from_fn(|_| fields.next()) else {
            return line.to_owned();
        };
        let number = |text: &str| text.parse::<u64>().unwrap();
        format!("{priority},{},{},{rest}", number(sequence) + 10_000, number(micros) + 1_000_000)
    };
    String::from_utf8(fixture(name)).unwrap().lines().map(shift).collect()
}

fn place(lines: &[String], words: &str) -> usize {
    lines.iter().position(|line| line.contains(words)).unwrap_or_else(|| panic!("no {words}"))
}

#[test]
fn what_stands_behind_a_gap_is_of_no_report_before_it() {
    let first = String::from_utf8(fixture("oom-memcg/6.12.kmsg")).unwrap();
    let first: Vec<String> = first.lines().map(str::to_owned).collect();
    let summary = place(&first, "oom-kill:constraint=");
    let begin = first[..summary].join("\n");
    // Of the second report the beginning is lost, and once the summary too.
    let second = later("oom-global/6.12.kmsg");
    let kill_of = |from: usize| {
        let log = format!("{begin}\n{}\n", second[from..].join("\n"));
        let events = Machine::new(&format!("gap-{from}"), log.as_bytes()).live();
        let Detail::OomKill(kill) = &events[0].detail else { panic!("{events:?}") };
        kill.clone()
    };
    let kill = kill_of(place(&second, "oom-kill:constraint="));
    assert_eq!((kill.trigger_pid, kill.trigger_comm.as_deref(), kill.oom_memcg.as_deref()), (None, None, None));
    assert_eq!(kill.constraint.as_deref(), Some("CONSTRAINT_NONE"));
    let kill = kill_of(place(&second, "Killed process"));
    assert_eq!((kill.trigger_pid, kill.trigger_comm.as_deref(), kill.constraint.as_deref()), (None, None, None));
    // The same cgroup's limit, told by a report whose beginning is lost.
    let second = later("oom-memcg/6.12.kmsg");
    let kill = kill_of_limit(&begin, &second[place(&second, "oom-kill:constraint=")..]);
    assert_eq!((kill.trigger_pid, kill.oom_memcg_limit_bytes, kill.oom_memcg_usage_bytes), (None, None, None));
    assert_eq!(kill.oom_memcg.as_deref(), Some("/web.slice"));
    // A summary names its victim, whatever is lost behind it.
    let with_summary = first[..=summary].join("\n");
    let mut killed = first[place(&first, "Killed process")].clone();
    killed = killed.replacen("3,501,", "3,601,", 1);
    let kill = kill_of_limit(&with_summary, &[killed]);
    assert_eq!((kill.trigger_pid, kill.oom_memcg.as_deref()), (None, Some("/web.slice")));
}

fn kill_of_limit(begin: &str, rest: &[String]) -> sysops_agent::model::event::OomKill {
    let log = format!("{begin}\n{}\n", rest.join("\n"));
    let events = Machine::new(&format!("gap-limit-{}", rest.len()), log.as_bytes()).live();
    let [event] = events.as_slice() else { panic!("{events:?}") };
    let Detail::OomKill(kill) = &event.detail else { panic!("{event:?}") };
    kill.clone()
}

#[test]
fn frames_behind_a_gap_are_not_of_the_task_before_it() {
    let first = String::from_utf8(fixture("hung-task/6.12.kmsg")).unwrap();
    let first: Vec<String> = first.lines().map(str::to_owned).collect();
    let frame = place(&first, "percpu_rwsem_wait+");
    let second = later("hung-task/6.12.kmsg");
    let other = place(&second, "__mutex_lock.constprop");
    let log = format!("{}\n{}\n", first[..=frame].join("\n"), second[other..].join("\n"));
    let events = Machine::new("gap-frames", log.as_bytes()).live();
    let hang = events[0].hang().unwrap();
    assert_eq!(events[0].tid, Some(186));
    assert_eq!(hang.kernel_stack, ["__schedule+0x4fb/0xc00", "schedule+0x27/0xc0", "percpu_rwsem_wait+0x11f/0x140"]);
}

#[test]
fn garbage_and_a_line_without_end_hide_no_kill() {
    let mut log: Vec<u8> = (0..200_000_u32).map(|byte| (byte.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    log.extend(b"\n3,1,1000,-;");
    log.extend(vec![b'A'; 1 << 20]);
    log.extend(b"\n");
    log.extend(fixture("oom-memcg/7.2.kmsg"));
    let machine = Machine::new("garbage", &log);
    let mut kmsg = machine.open();
    let events = machine.drain(&mut kmsg);
    assert_eq!(events.iter().map(|event| event.pid).collect::<Vec<_>>(), [Some(121)]);
    let (_, lost) = counters(&machine, &mut kmsg);
    assert!(lost > 100.0, "{lost}");
}

#[test]
fn a_log_that_cannot_be_read_says_why_and_what_to_do() {
    let machine = Machine::new("none", b"");
    fs::remove_file(machine.dir.join("dev/kmsg")).unwrap();
    let refused = Kmsg::open(&machine.host, &Values::default(), &machine.files).unwrap_err();
    assert!(refused.reason.contains("dev/kmsg: cannot open: No such file"), "{refused:?}");
    assert!(refused.remedy.contains("--device /dev/kmsg") && !refused.by_configuration, "{refused:?}");

    let mut values = Values::default();
    values.set(sysops_agent::logs::SOURCES.spec(), Value::TextList(vec!["syslog".into()]));
    let refused = Kmsg::open(&machine.host, &values, &machine.files).unwrap_err();
    assert!(refused.reason.contains("log_analyzer.sources") && refused.by_configuration, "{refused:?}");
    assert_eq!(sysops_agent::logs::sources_not_built(&values), ["syslog"]);
}

#[test]
fn a_data_directory_that_cannot_be_written_stops_nothing() {
    let machine = Machine::new("read-only", &fixture("oom-memcg/6.1.kmsg"));
    fs::remove_dir(machine.dir.join("data")).unwrap();
    fs::write(machine.dir.join("data"), "a file in its place").unwrap();
    assert_eq!(machine.live().len(), 1);
    assert_eq!(machine.live().len(), 1);
}

/// On the running machine: begins at the end, keeps its place over a restart, and writes nothing into the log.
#[test]
fn the_live_log_begins_at_its_end() {
    let machine = Machine::new("live", b"");
    let host = Host::live(&sysops_agent::host::Roots::default());
    let data = machine.dir.join("data");
    let mut kmsg = match Kmsg::open(&host, &Values::default(), &machine.files) {
        Ok(kmsg) => kmsg,
        Err(refused) => {
            assert!(!refused.remedy.is_empty(), "{refused:?}");
            return;
        }
    };
    assert_eq!(kmsg.fds().len(), 1);
    assert_eq!(kmsg.records(), 0);
    kmsg.save(host.clock.now());
    machine.files.settle(LONG);
    let saved = fs::read_to_string(data.join("kmsg.position")).unwrap();
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    assert!(saved.starts_with(boot.trim()), "{saved}");
    let mut again = Kmsg::open(&host, &Values::default(), &machine.files).unwrap();
    let started = host.clock.now();
    again.drain(&host, &mut Vec::new());
    assert!(host.clock.now().since(&started) < Duration::from_secs(5));
    // What others logged meanwhile is new; all before is not.
    assert_eq!(again.lost(), 0);
    assert!(again.records() < 100, "{}", again.records());
}

#[test]
fn events_are_what_the_schema_says() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/schemas/event.schema.json");
    let schema = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    assert!(jsonschema::meta::is_valid(&schema));
    let schema = jsonschema::validator_for(&schema).unwrap();
    let mut checked = 0;
    for name in [
        "oom-memcg/5.10",
        "oom-global/7.2",
        "oom-group/6.12",
        "hung-task/7.2",
        "synthetic/oom-3.10-memcg",
        "synthetic/hostile",
    ] {
        for event in told(events_of(name)) {
            let event = serde_json::to_value(&event).unwrap();
            let errors: Vec<_> = schema.iter_errors(&event).map(|error| error.to_string()).collect();
            assert!(errors.is_empty(), "{name}: {event}: {errors:?}");
            for (key, wrong) in [("schema", 2.into()), ("time", "today".into()), ("source", Vec::<u8>::new().into())] {
                let mut broken = event.clone();
                broken[key] = wrong;
                assert!(!schema.is_valid(&broken), "{key}");
            }
            checked += 1;
        }
    }
    assert!(checked > 15);
}

/// The time of a record is put off by `micros`.
fn put_off(line: &str, micros: u64) -> String {
    let mut fields: Vec<_> = line.splitn(4, ',').map(str::to_owned).collect();
    fields[2] = (fields[2].parse::<u64>().unwrap() + micros).to_string();
    fields.join(",")
}

/// The lines of one group, each `pause` later than it was.
fn group_of_pauses(pause: u64, before: &str) -> Vec<Event> {
    let log = console("oom-group/6.12.kmsg");
    let mut late = 0;
    let mut slow = String::from(before);
    for line in log.lines() {
        late += if line.contains("Killed process") { pause } else { 0 };
        slow.push_str(&if line.starts_with(' ') { line.to_owned() } else { put_off(line, late) });
        slow.push('\n');
    }
    Machine::new(&format!("pauses-{pause}-{}", before.len()), slow.as_bytes()).live()
}

/// The CPU that prints may be taken away between two lines.
#[test]
fn a_group_whose_lines_come_late_is_one_incident_and_no_one_is_told_twice() {
    let of = |events: &[Event]| -> Vec<_> {
        let mut of = Vec::new();
        for event in events {
            let Detail::OomKill(kill) = &event.detail else { panic!("{event:?}") };
            of.push((event.pid, kill.incident.clone(), kill.oom_group.clone()));
        }
        of
    };
    let quick = events_of("oom-group/6.12");
    let slow = group_of_pauses(2_000_000, "");
    assert_eq!(of(&slow).len(), of(&quick).len());
    assert!(of(&slow).windows(2).all(|pair| pair[0].1 == pair[1].1), "{slow:#?}");
    assert!(slow[1..].iter().all(|event| of(std::slice::from_ref(event))[0].2.is_some()), "{slow:#?}");
    // After ten reports a line that comes late may be of a kill of which there was none: whose it is, is not told then.
    let flood: String =
        (0..10).map(|at| format!("4,{},3000000,-;dd invoked oom-killer: gfp_mask=0xcc0\n", 369 + at)).collect();
    let flooded = group_of_pauses(2_000_000, &flood);
    assert_eq!(of(&flooded).len(), of(&quick).len(), "and none twice");
    assert!(of(&flooded).windows(2).all(|pair| pair[0].1 != pair[1].1), "{flooded:#?}");
}
