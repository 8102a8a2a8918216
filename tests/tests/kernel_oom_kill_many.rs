//! Many OOM kills at full load of all CPUs, group kills among them: each is one event with the right process and cgroup, from
//! the probe and from the kernel's log alone; odd victims; and nothing that grows while cgroups come and go.
#![expect(clippy::disallowed_methods, clippy::panic, reason = "a test reads files, runs programs and fails by panic")]

use std::collections::BTreeMap;
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::ScopedJoinHandle;
use std::time::Duration;

use sysops_agent::host::{EventSource, Host, StateFiles};
use sysops_agent::kernel::Kernel;
use sysops_agent::logs::Kmsg;
use sysops_agent::model::event::OomKill;
use sysops_agent::model::{Detail, Event};
use sysops_agent::spec::Values;
use sysops_tests::busy::Busy;
use sysops_tests::events::take_until;
use sysops_tests::frozen_mount::FrozenMount;
use sysops_tests::memory_cgroup::MemoryCgroup;
use sysops_tests::one_probe::{has_tracefs, only};
use sysops_tests::require::{self, require};

const KILLS: usize = 100;
const GROUPS: usize = 10;
const LIMIT: u64 = 8 << 20;
/// Takes 64 MiB at once.
const GREEDY: &str = "dd if=/dev/zero of=/dev/null bs=64M count=1";

/// Processes by their ids: the cgroup of each, and its group.
type Killed = BTreeMap<u32, (String, Option<usize>)>;

#[test]
fn a_hundred_kills_at_full_load_are_a_hundred_events_of_probe_and_log_each() {
    let missing = || require::programs(&["sh", "dd", "unshare"]).or_else(|| require::files(&["/dev/kmsg"]));
    if !require(MemoryCgroup::missing().or_else(missing)) {
        return;
    }
    if !has_tracefs("a_hundred_kills_at_full_load_are_a_hundred_events_of_probe_and_log_each") {
        return;
    }
    hold_both("one", kill_one_by_one);
}

#[test]
#[ignore = "group kills need cgroups of version 2; run by vm-test"]
fn ten_groups_of_five_at_full_load_are_fifty_events_and_ten_incidents_of_probe_and_log_each() {
    if !require(MemoryCgroup::groups_missing().or_else(|| require::programs(&["sh", "dd", "sleep"]))) {
        return;
    }
    hold_both("group", kill_groups);
}

/// A process that has been sent a SIGKILL and cannot die, as it waits for a frozen file system: the kernel marks it when
/// memory runs out, and kills no one.
#[test]
fn a_victim_that_was_already_exiting_is_marked_as_such() {
    let missing = FrozenMount::missing().or_else(|| require::programs(&["sh", "dd", "unshare"]));
    if !require(MemoryCgroup::missing().or(missing)) {
        return;
    }
    // The mount is in a mount namespace of its own.
    if !has_tracefs("a_victim_that_was_already_exiting_is_marked_as_such") {
        return;
    }
    let host = live();
    for rung in ["tp_btf", "raw_tracepoint", "tracepoint"] {
        let Some(mut kernel) = start(&host, rung) else { continue };
        let cgroup = MemoryCgroup::new(&format!("sysops-oom-{}-exiting-{rung}", std::process::id()), 47 << 20);
        let mut mount = FrozenMount::thawed("16M");
        let file = std::fs::File::create(mount.file("big")).expect("it is not frozen yet");
        mount.freeze();
        // It has its file open, so that it hangs in its write and holds its 32 MiB by then.
        let mut exiting = cgroup.start_with("dd if=/dev/zero bs=32M count=1 >&0", Stdio::from(file));
        // A task sleeps like this for a moment now and then; only one that is stuck does so all the time.
        let mut stuck = 0;
        wait_for("it hangs in its write", || {
            let is_stuck = comm(exiting.id()).as_deref() == Some("dd") && state(exiting.id()) == Some('D');
            stuck = if is_stuck { stuck + 1 } else { 0 };
            stuck == 20
        });
        // Sure to be chosen, as it holds more than the other can: this alone leaves it a few pages behind one that has all
        // of the cgroup's memory.
        std::fs::write(format!("/proc/{}/oom_score_adj", exiting.id()), "1000").expect("our child");
        exiting.kill().expect("our child");
        let mut greedy = cgroup.start(GREEDY);
        let about = |events: &[Event], pid: u32| events.iter().filter(|event| event.tid == Some(pid)).count();
        let events = take_until(&mut kernel, &host, Duration::from_secs(20), |events| about(events, exiting.id()) > 0);
        mount.thaw();
        exiting.wait().expect("our child");
        greedy.wait().expect("our child");
        let event =
            events.iter().find(|event| event.tid == Some(exiting.id())).unwrap_or_else(|| panic!("{events:#?}"));
        eprintln!("{}", serde_json::to_string(event).expect("an event is JSON"));
        assert_eq!(kill(event).already_exiting, Some(true), "{rung}: {event:?}");
        // Up to 5.10 nothing but its number is known; up to 6.1 a task counts 63 pages before it says so.
        let anon_rss = kill(event).anon_rss_bytes;
        assert!(anon_rss.is_none_or(|bytes| bytes >= 31 << 20), "{rung}: as it stood when it was marked: {event:?}");
        assert_eq!(about(&events, exiting.id()), 1, "{rung}: {events:#?}");
        let counted = cgroup.oom_kills().expect("the kernel counts");
        let more = take_until(&mut kernel, &host, Duration::from_millis(300), |_| false);
        let killed = events
            .iter()
            .chain(&more)
            .filter(|event| event.tid == Some(greedy.id()) && kill(event).already_exiting == Some(false));
        assert_eq!(killed.count() as u64, counted, "{rung}: what the kernel counts are kills, not marks");
    }
}

#[cfg(target_arch = "x86_64")]
#[test]
fn a_process_whose_first_thread_has_ended_is_named_as_a_whole() {
    use sysops_tests::leaderless::{FIRST, Leaderless, SECOND};
    if !require(MemoryCgroup::missing()) {
        return;
    }
    let host = live();
    for rung in ["tp_btf", "raw_tracepoint"] {
        let Some(mut kernel) = start(&host, rung) else { continue };
        let cgroup = MemoryCgroup::new(&format!("sysops-oom-{}-leaderless-{rung}", std::process::id()), LIMIT);
        let mut victim = Leaderless::start(&cgroup);
        let second = victim.second();
        assert!(victim.die(), "{rung}: it was not killed");
        let mut events = take_until(&mut kernel, &host, Duration::from_secs(10), |events| !events.is_empty());
        events.extend(take_until(&mut kernel, &host, Duration::from_millis(300), |_| false));
        events.retain(|event| event.pid == Some(victim.pid()) || event.tid == Some(second));
        let [event] = events.as_slice() else { panic!("{rung}: one event for one process: {events:#?}") };
        eprintln!("{}", serde_json::to_string(event).expect("an event is JSON"));
        assert_eq!((event.pid, event.tid), (Some(victim.pid()), Some(second)), "{rung}: {event:?}");
        assert_eq!(event.comm.as_deref(), Some(FIRST), "{rung}: {event:?}");
        assert_eq!(kill(event).thread_comm.as_deref(), Some(SECOND), "{rung}: {event:?}");
        assert_eq!(event.cgroup.as_deref(), Some(cgroup.path.as_str()), "{rung}: {event:?}");
    }
}

/// The probes keep nothing for a cgroup.
#[test]
fn ten_thousand_cgroups_that_come_and_go_leave_nothing_behind() {
    if !require(MemoryCgroup::missing().or_else(|| require::programs(&["sh", "dd"]))) {
        return;
    }
    let host = live();
    let Some(mut kernel) = start(&host, "auto") else { return };
    let before = data_kib();
    for round in 0..10_000 {
        drop(MemoryCgroup::without_limit(&format!("sysops-oom-{}-churn-{}", std::process::id(), round % 7)));
    }
    let after = data_kib();
    assert!(after < before + 1024, "{before} KiB before, {after} KiB after");
    let cgroup = MemoryCgroup::new(&format!("sysops-oom-{}-churned", std::process::id()), LIMIT);
    let mut victim = cgroup.start(GREEDY);
    victim.wait().expect("our child");
    let about = |event: &&Event| event.tid == Some(victim.id());
    let events = take_until(&mut kernel, &host, Duration::from_secs(5), |events| events.iter().any(|e| about(&e)));
    let event = events.iter().find(about).expect("an event about the victim");
    assert_eq!(event.cgroup.as_deref(), Some(cgroup.path.as_str()), "{event:?}");
}

/// Kills at full load while probe and log watch, each for itself, and holds what they say against what was done; and what
/// the log says of it to an agent that is started anew: nothing.
fn hold_both(name: &str, kill_all: impl FnOnce(&str) -> Killed + Send) {
    let host = live();
    let data = std::env::temp_dir().join(format!("sysops-kmsg-{}-{name}", std::process::id()));
    std::fs::create_dir_all(&data).expect("a directory of our own");
    let files = StateFiles::within(Some(&data));
    let open = || Kmsg::open(&host, &Values::default(), &files).unwrap_or_else(|error| panic!("{error:?}"));
    let mut kmsg = open();
    // The raw tracepoint reads what the typed one does.
    let rungs = ["tp_btf", "tracepoint"];
    let mut kernels: Vec<_> = rungs.into_iter().filter_map(|rung| Some((rung, start(&host, rung)?))).collect();
    let is_over = AtomicBool::new(false);
    let busy = Busy::start();
    let (killed, probes, log) = std::thread::scope(|scope| {
        let (host, is_over) = (&host, &is_over);
        let log = scope.spawn(|| watch("log", &mut kmsg, host, is_over));
        let probes: Vec<_> = kernels
            .iter_mut()
            .map(|(rung, kernel)| (*rung, scope.spawn(|| watch(rung, kernel, host, is_over))))
            .collect();
        let killed = kill_all(name);
        is_over.store(true, Ordering::Relaxed);
        let join = |watch: ScopedJoinHandle<'_, Vec<Event>>| watch.join().expect("who watches does not fail");
        let probes: Vec<_> = probes.into_iter().map(|(rung, watch)| (rung, join(watch))).collect();
        (killed, probes, join(log))
    });
    drop(busy);
    for (rung, events) in probes {
        hold_incidents(&hold_against(&events, &killed, rung != "tracepoint"));
    }
    let told = hold_against(&log, &killed, false);
    hold_incidents(&told);
    let with_cgroup = told.values().filter(|(event, _)| event.cgroup.is_some()).count();
    eprintln!("the log: {} of {} kills, {with_cgroup} with their cgroup", told.len(), killed.len());
    kmsg.save_now();
    drop(kmsg);
    files.settle(Duration::from_secs(10));
    let again = take_until(&mut open(), &host, Duration::from_millis(500), |_| false);
    std::fs::remove_dir_all(&data).expect("a directory of our own");
    assert!(!again.iter().any(|event| event.tid.is_some_and(|tid| killed.contains_key(&tid))), "{again:#?}");
}

/// Takes what `source` gives until a second after all is over, and prints how late it came.
fn watch(name: &str, source: &mut impl EventSource, host: &Host, is_over: &AtomicBool) -> Vec<Event> {
    let (mut late, mut over_at) = (Vec::new(), None);
    let events = take_until(source, host, Duration::from_secs(200), |events| {
        let now = host.clock.now().monotonic;
        let new = &events[late.len()..];
        late.extend(new.iter().map(|event| now.saturating_sub(Duration::from_nanos(event.monotonic_ns))));
        // Time for what must not come: a second word about the same kill.
        let since = is_over.load(Ordering::Relaxed).then(|| *over_at.get_or_insert(now));
        since.is_some_and(|since| now.saturating_sub(since) > Duration::from_secs(1))
    });
    late.sort_unstable();
    let at = |share: usize| late.get((late.len() * share / 100).min(late.len().saturating_sub(1))).copied();
    eprintln!("{name}: {} events: half within {:?}, p99 {:?}, the last {:?}", late.len(), at(50), at(99), late.last());
    events
}

/// Each that was killed is told once, with the right cgroup, and no other of our cgroups.
fn hold_against(events: &[Event], killed: &Killed, needs_cgroup: bool) -> BTreeMap<u32, (Event, Option<usize>)> {
    let ours = format!("/sysops-oom-{}-", std::process::id());
    let mut told = BTreeMap::new();
    for event in events.iter().filter(|event| event.kind() == "oom_kill") {
        let Some((cgroup, group)) = event.tid.and_then(|tid| killed.get(&tid)) else {
            assert!(!event.cgroup.as_ref().is_some_and(|path| path.starts_with(&ours)), "who is it? {event:?}");
            continue;
        };
        assert!(event.cgroup.as_ref().map_or(!needs_cgroup, |path| path == cgroup), "{event:?} was in {cgroup}");
        assert_ne!(kill(event).already_exiting, Some(true), "{event:?}");
        let before = told.insert(event.tid.unwrap_or_default(), (event.clone(), *group));
        assert!(before.is_none(), "told twice: {before:?} and {event:?}");
    }
    let missed: Vec<_> = killed.iter().filter(|(pid, _)| !told.contains_key(pid)).collect();
    assert!(missed.is_empty(), "{} of {} were not told: {missed:?}", missed.len(), killed.len());
    told
}

/// Each group is one incident, and those that are in none of them are each their own.
fn hold_incidents(told: &BTreeMap<u32, (Event, Option<usize>)>) {
    let mut of: BTreeMap<&str, Vec<Option<usize>>> = BTreeMap::new();
    for (event, group) in told.values() {
        of.entry(kill(event).incident.as_deref().expect("on each rung")).or_default().push(*group);
    }
    let are_one = |groups: &[Option<usize>]| match groups {
        [None] => true,
        [first @ Some(_), ..] => groups.len() == 5 && groups.iter().all(|group| group == first),
        _ => false,
    };
    let (groups, wrong): (Vec<_>, Vec<_>) = of.iter().partition(|(_, groups)| are_one(groups));
    assert!(wrong.is_empty(), "incidents, and of which groups their kills are: {wrong:#?}");
    eprintln!("{} incidents of {} kills", groups.len(), told.len());
}

fn kill_one_by_one(name: &str) -> Killed {
    let one = |index: usize| {
        let cgroup = MemoryCgroup::new(&format!("sysops-oom-{}-{name}-{index}", std::process::id()), LIMIT);
        let mut victim = cgroup.start(GREEDY);
        assert_killed(&mut victim);
        assert_eq!(cgroup.oom_kills(), Some(1), "the kernel's own count");
        // With this the cgroup is removed at once, whether its event was taken or not.
        (victim.id(), (cgroup.path.clone(), None))
    };
    (0..KILLS).map(one).collect()
}

/// Groups of five, in two cgroups below that which has the limit and kills as a group; two of them at once, so that the
/// kernel goes over to the second right behind the first.
fn kill_groups(name: &str) -> Killed {
    let mut killed = Killed::new();
    for pair in 0..GROUPS / 2 {
        let mut groups = [2 * pair, 2 * pair + 1].map(|index| Group::new(name, index));
        groups.iter_mut().for_each(Group::start_greedy);
        groups.iter_mut().for_each(|group| group.hold_killed(&mut killed));
    }
    killed
}

struct Group {
    index: usize,
    /// With the place of its cgroup in `below`.
    children: Vec<(Child, usize)>,
    // Removed in this order.
    below: [MemoryCgroup; 2],
    top: MemoryCgroup,
}

impl Group {
    /// With four that sleep.
    fn new(name: &str, index: usize) -> Self {
        let path = format!("sysops-oom-{}-{name}-group-{index}", std::process::id());
        let top = MemoryCgroup::new(&path, LIMIT);
        top.kill_as_group();
        let below = ["a", "b"].map(|name| MemoryCgroup::without_limit(&format!("{path}/{name}")));
        let children: Vec<_> = (0..4).map(|place| (below[place % 2].start("sleep 1000"), place % 2)).collect();
        for (child, _) in &children {
            wait_for("it sleeps in its cgroup", || comm(child.id()).as_deref() == Some("sleep"));
        }
        Self { index, children, below, top }
    }

    fn start_greedy(&mut self) {
        self.children.push((self.below[0].start(GREEDY), 0));
    }

    fn hold_killed(&mut self, killed: &mut Killed) {
        for (child, place) in &mut self.children {
            assert_killed(child);
            killed.insert(child.id(), (self.below[*place].path.clone(), Some(self.index)));
        }
        let (kills, groups) = (self.top.event("oom_kill"), self.top.event("oom_group_kill"));
        // The kernel counts the chosen one twice when it comes to it again before it is gone.
        assert!(matches!(kills, Some(5 | 6)), "the kernel's own count: {kills:?}");
        assert!(groups.is_none_or(|groups| groups == 1), "{groups:?}");
    }
}

fn assert_killed(child: &mut Child) {
    use std::os::unix::process::ExitStatusExt;
    let status = child.wait().expect("our child");
    assert_eq!(status.signal(), Some(9), "it was not killed: {status}");
}

fn kill(event: &Event) -> &OomKill {
    let Detail::OomKill(kill) = &event.detail else { panic!("{event:?}") };
    kill
}

fn comm(pid: u32) -> Option<String> {
    std::fs::read_to_string(format!("/proc/{pid}/comm")).ok().map(|comm| comm.trim_end().to_owned())
}

fn state(pid: u32) -> Option<char> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}

/// What the process has asked for; what is resident of that grows by itself where the kernel makes huge pages of it.
fn data_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("there is one");
    let line = status.lines().find_map(|line| line.strip_prefix("VmData:")).expect("in each status");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

fn wait_for(what: &str, mut is_so: impl FnMut() -> bool) {
    let host = live();
    let start = host.clock.now();
    while !is_so() {
        assert!(host.clock.now().since(&start) < Duration::from_secs(20), "it never came: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The OOM probe alone on `rung`; `None` when it cannot stand on it and this machine may go without.
fn start(host: &Host, rung: &str) -> Option<Kernel> {
    let kernel = Kernel::start(host, &only("oom_kill", rung, Values::default()));
    let standing = kernel.standings().into_iter().find(|standing| standing.name == "oom_kill").expect("in the list");
    let stands = standing.rung.source().is_some();
    (stands || require(Some(format!("{rung}: {}", standing.reason)))).then_some(kernel)
}

fn live() -> Host {
    Host::live(&sysops_agent::host::Roots::default())
}
