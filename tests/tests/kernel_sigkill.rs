//! A SIGKILL from outside is one event with who sent it and who got it, on every rung that has a program; those by the
//! parent, from the victim's own cgroup and by the kernel are none.
#![expect(clippy::disallowed_methods, clippy::panic, reason = "a test reads files, runs programs and fails by panic")]

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use sysops_agent::host::Host;
use sysops_agent::kernel::{ALL, Kernel, Rung};
use sysops_agent::model::event::Sigkill;
use sysops_agent::model::{Detail, Event};
use sysops_agent::spec::{Value, Values};
use sysops_tests::events::take_until;
use sysops_tests::memory_cgroup::MemoryCgroup;
use sysops_tests::one_probe::{has_tracefs, key};
use sysops_tests::require::{self, require};

#[test]
fn kills_from_outside_are_seen_on_tp_btf() {
    from_outside("tp_btf");
}

#[test]
fn kills_from_outside_are_seen_on_raw_tracepoint() {
    from_outside("raw_tracepoint");
}

#[test]
fn kills_from_outside_are_seen_on_tracepoint() {
    if require(require::root().or_else(|| require::programs(&["unshare", "mount"])))
        && has_tracefs("kills_from_outside_are_seen_on_tracepoint")
    {
        from_outside("tracepoint");
    }
}

/// What kills a cgroup at once is a write to its cgroup.kill (since 5.14).
#[test]
fn a_cgroup_that_is_killed_is_an_event_for_each_of_its_processes() {
    let missing = || require::programs(&["sh"]);
    if !require(MemoryCgroup::missing().or_else(missing)) {
        return;
    }
    let (host, cgroup) = (live(), Outside::new("group"));
    if !cgroup.unified.join("cgroup.kill").exists() {
        return eprintln!("skipped: this kernel has no cgroup.kill");
    }
    let Some(mut kernel) = start(&host, "tp_btf", false) else { return };
    let mut victims = [cgroup.sleeper(), cgroup.sleeper(), cgroup.sleeper()];
    // Not its parent: a shell in between.
    let target = cgroup.unified.join("cgroup.kill");
    let mut sender = named("systemd-oomd", &format!("echo 1 >{}", target.display()));
    let sender_pid = sender.id();
    assert!(sender.wait().expect("our child").success());
    victims.iter_mut().for_each(assert_killed);
    let events = take_until(&mut kernel, &host, Duration::from_secs(5), |events| {
        victims.iter().all(|victim| about(events, victim).is_some())
    });
    for victim in &victims {
        let event = about(&events, victim).unwrap_or_else(|| panic!("none about {}: {events:#?}", victim.id()));
        let kill = kill(event);
        assert_eq!((kill.sender_pid, kill.killer.as_deref()), (Some(sender_pid), Some("systemd-oomd")), "{event:?}");
        assert!(kill.for_memory, "{event:?}");
    }
}

/// The kernel's own kills are the OOM probe's to tell.
#[test]
fn an_oom_kill_is_no_sigkill() {
    if !require(MemoryCgroup::missing().or_else(|| require::programs(&["sh", "dd"]))) {
        return;
    }
    let host = live();
    let Some(mut kernel) = start(&host, "tp_btf", true) else { return };
    let cgroup = MemoryCgroup::new(&format!("sysops-sigkill-{}-oom", std::process::id()), 8 << 20);
    let mut victim = cgroup.start("dd if=/dev/zero of=/dev/null bs=64M count=1");
    assert_killed(&mut victim);
    let mut seen = cgroup.start("sleep 1000");
    seen.kill().expect("our child");
    seen.wait().expect("our child");
    let events = take_until(&mut kernel, &host, Duration::from_secs(5), |events| about(events, &seen).is_some());
    assert!(about(&events, &seen).is_some(), "with `all` the one by the parent is told: {events:#?}");
    assert!(about(&events, &victim).is_none(), "{events:#?}");
}

/// earlyoom itself, told that memory is always short. It kills on the whole machine, those that sleep first.
#[test]
#[ignore = "earlyoom would kill whatever else runs here; run by vm-test"]
fn the_real_earlyoom_is_known() {
    let missing = || require::programs(&["sh", "earlyoom"]);
    if !require(MemoryCgroup::missing().or_else(missing)) {
        return;
    }
    let host = live();
    let Some(mut kernel) = start(&host, "auto", false) else { return };
    let cgroup = Outside::new("earlyoom");
    // It kills one after another until it is ended.
    let mut sleepers: Vec<Child> = (0..30).map(|_| cgroup.sleeper()).collect();
    let always = ["-m", "99,99", "-s", "100,100", "-r", "0", "--prefer", "^sleep$", "--avoid", "^kernel_sigkill"];
    let mut earlyoom = Command::new("earlyoom").args(always).stdin(Stdio::null()).spawn().expect("it is there");
    let is_told = |events: &[Event]| sleepers.iter().any(|sleeper| about(events, sleeper).is_some());
    let events = take_until(&mut kernel, &host, Duration::from_secs(60), is_told);
    earlyoom.kill().expect("our child");
    earlyoom.wait().expect("our child");
    let victim = sleepers.iter_mut().find(|sleeper| about(&events, sleeper).is_some());
    let victim = victim.unwrap_or_else(|| panic!("none about a sleeper: {events:#?}"));
    let event = about(&events, victim).expect("just found");
    let kill = kill(event);
    assert_eq!((kill.sender_pid, kill.sender_comm.as_deref()), (Some(earlyoom.id()), Some("earlyoom")), "{event:?}");
    assert_eq!((kill.killer.as_deref(), kill.for_memory), (Some("earlyoom"), true), "{event:?}");
    assert_killed(victim);
    for sleeper in &mut sleepers {
        sleeper.kill().expect("our child");
        sleeper.wait().expect("our child");
    }
}

fn from_outside(rung: &str) {
    if !require(MemoryCgroup::missing().or_else(|| require::programs(&["sh"]))) {
        return;
    }
    let host = live();
    let Some(mut kernel) = start(&host, rung, false) else { return };
    let cgroup = Outside::new(rung);
    let (mut victim, mut child, mut neighbour) = (cgroup.sleeper(), cgroup.sleeper(), cgroup.sleeper());
    // Everyday: by the parent, and from the same cgroup.
    child.kill().expect("our child");
    let mut inside =
        cgroup.memory.start(&format!("sh -c 'echo $$ >{}; kill -9 {}; exit 0'", cgroup.procs(), neighbour.id()));
    inside.wait().expect("our child");
    // From outside; a zombie keeps its place in /proc for the rung that asks there.
    let mut sender = named("earlyoom", &format!("kill -9 {}", victim.id()));
    let sender_pid = sender.id();
    let mut events = take_until(&mut kernel, &host, Duration::from_secs(5), |events| about(events, &victim).is_some());
    events.extend(take_until(&mut kernel, &host, Duration::from_millis(300), |_| false));
    assert!(sender.wait().expect("our child").success());
    [&mut victim, &mut child, &mut neighbour].into_iter().for_each(assert_killed);
    let event = about(&events, &victim).unwrap_or_else(|| panic!("{rung}: none about {}: {events:#?}", victim.id()));
    eprintln!("{}", serde_json::to_string(event).expect("an event is JSON"));
    let kill = kill(event);
    assert_eq!((kill.sender_pid, kill.sender_uid), (Some(sender_pid), Some(0)), "{event:?}");
    assert_eq!(kill.sender_comm.as_deref(), Some("earlyoom"), "{event:?}");
    assert_eq!((kill.killer.as_deref(), kill.for_memory), (Some("earlyoom"), true), "{event:?}");
    assert_eq!(event.comm.as_deref(), Some("sleep"), "{event:?}");
    if rung != "tracepoint" {
        assert_eq!((event.pid, event.uid), (Some(victim.id()), Some(0)), "{event:?}");
        assert_eq!(event.cgroup.as_deref(), Some(cgroup.memory.path.as_str()), "{event:?}");
        assert!(kill.sender_cgroup.is_some() && kill.sender_cgroup != event.cgroup, "{event:?}");
    }
    assert_eq!(events.iter().filter(|event| event.tid == Some(victim.id())).count(), 1, "{events:#?}");
    assert!(about(&events, &child).is_none(), "{rung}: by its parent: {events:#?}");
    // The plain rung asks /proc where both were, and tells what it can no longer know.
    let is_known = |event: &&Event| event.cgroup.is_some() && self::kill(event).sender_cgroup.is_some();
    let known = about(&events, &neighbour).filter(is_known);
    assert!(known.is_none(), "{rung}: by its neighbour: {events:#?}");
    let standing = kernel.standings().into_iter().find(|standing| standing.name == "sigkill").expect("in the list");
    assert_eq!(standing.dropped, 0, "{standing:?}");
}

/// A cgroup of the memory controller, and one of the unified hierarchy where that is another.
struct Outside {
    memory: MemoryCgroup,
    unified: std::path::PathBuf,
}

impl Outside {
    fn new(name: &str) -> Self {
        let name = format!("sysops-sigkill-{}-{name}", std::process::id());
        let memory = MemoryCgroup::without_limit(&name);
        let hybrid = std::path::Path::new("/sys/fs/cgroup/unified");
        let root = if hybrid.join("cgroup.procs").exists() { hybrid } else { "/sys/fs/cgroup".as_ref() };
        let unified = root.join(name);
        std::fs::create_dir_all(&unified).expect("a cgroup can be made");
        Self { memory, unified }
    }

    fn procs(&self) -> String {
        self.unified.join("cgroup.procs").display().to_string()
    }

    fn sleeper(&self) -> Child {
        let child = self.memory.start(&format!("sh -c 'echo $$ >{}; exec sleep 1000'", self.procs()));
        let start = live().clock.now();
        let comm = format!("/proc/{}/comm", child.id());
        while std::fs::read_to_string(&comm).is_ok_and(|comm| comm != "sleep\n") {
            assert!(live().clock.now().since(&start) < Duration::from_secs(20), "it does not sleep");
            std::thread::sleep(Duration::from_millis(5));
        }
        child
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        // Empty by now, or the test has failed anyway.
        let _ = std::fs::remove_dir(&self.unified);
    }
}

/// A shell that calls itself `name` and is not the victims' parent.
fn named(name: &str, command: &str) -> Child {
    let script = format!("echo -n {name} >/proc/$$/comm; {command}");
    Command::new("sh").args(["-c", &script]).stdin(Stdio::null()).spawn().expect("there is a shell")
}

fn assert_killed(child: &mut Child) {
    use std::os::unix::process::ExitStatusExt;
    let status = child.wait().expect("our child");
    assert_eq!(status.signal(), Some(9), "it was not killed: {status}");
}

fn about<'a>(events: &'a [Event], child: &Child) -> Option<&'a Event> {
    events.iter().find(|event| event.kind() == "sigkill" && event.tid == Some(child.id()))
}

fn kill(event: &Event) -> &Sigkill {
    let Detail::Sigkill(kill) = &event.detail else { panic!("{event:?}") };
    kill
}

/// The probe alone on `rung`; `None` when it cannot stand on it and this machine may go without.
fn start(host: &Host, rung: &str, all: bool) -> Option<Kernel> {
    let mut values = Values::default();
    for name in ALL.iter().map(|entry| entry.name) {
        let rung = if name == "sigkill" { rung } else { "off" };
        values.set(key(&format!("kernel.{name}.rung")), Value::Text(rung.to_owned()));
    }
    values.set(key("kernel.sigkill.all"), Value::Bool(all));
    let kernel = Kernel::start(host, &values);
    let standing = kernel.standings().into_iter().find(|standing| standing.name == "sigkill").expect("in the list");
    let stands = standing.rung != Rung::Off;
    (stands || require(Some(format!("{rung}: {}", standing.reason)))).then_some(kernel)
}

fn live() -> Host {
    Host::live(&sysops_agent::host::Roots::default())
}
