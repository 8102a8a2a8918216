//! Bad days: a full disk, a kernel without BTF, a log that is none, no rights, a second agent, a stopped agent, a reload
//! in the middle of events. The agent says what is wrong, once, and goes on.
#![expect(clippy::disallowed_methods, reason = "a test runs programs, reads files and measures time")]

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use sysops_tests::agent::{self, Agent, Launch};
use sysops_tests::feed::until;
use sysops_tests::http_far_end::FarEnd;
use sysops_tests::memory_cgroup::{MemoryCgroup, be_victim, kill_one};
use sysops_tests::require::{self, require};
use sysops_tests::servers::{Scratch, free_port};
use sysops_tests::{schema, user};

const LONG: Duration = Duration::from_secs(20);

/// Memory each second, and no limit on the alerts: others may kill at the same time.
const QUICK: &str = "[agent]\ndata_dir = \"@DATA@\"\ncollect_interval_secs = 1\n[collector]\nmemory_interval_secs = 1\n\
    [alerting]\nmax_alerts_per_hour = 10000\n";

/// Not a test: what the others start to be killed.
#[test]
fn victim() {
    be_victim();
}

/// What is missing to do something to the machine that only the agent sees.
fn no_namespace() -> Option<String> {
    agent::missing().or_else(require::root).or_else(|| require::programs(&["unshare", "mount"]))
}

/// The agent in a mount namespace of its own, after `script`.
fn after(script: &str) -> Launch {
    Launch::through(&["unshare", "-m", "sh", "-c", &format!("{{ {script}; }} && exec \"$@\""), "sh"])
}

/// Rounds of collectors that the live view has shown.
fn rounds(agent: &Agent) -> usize {
    agent.stdout().lines().filter(|line| line.contains("  mem ")).count()
}

/// Kernel events about `pid` that the live view has shown.
fn events(agent: &Agent, pid: u32) -> usize {
    let shown = format!("[{pid}] uid ");
    agent.stdout().lines().filter(|line| line.contains("  oom_kill ") && line.contains(&shown)).count()
}

/// The incident in what it has shown of the kill of `pid`.
fn incident(agent: &Agent, pid: u32) -> Option<String> {
    let shown = format!("[{pid}] uid ");
    let shown = agent.stdout().lines().find(|line| line.contains(&shown))?.to_owned();
    Some(shown.split_once("incident ")?.1.split([',', ' ']).next()?.to_owned())
}

fn wait_for_rounds(agent: &Agent, more: usize) {
    let before = rounds(agent);
    agent.wait_until("rounds go by", |agent| rounds(agent) >= before + more);
}

#[test]
fn a_full_disk_under_data_dir_is_said_once() {
    if !require(no_namespace().or_else(MemoryCgroup::missing)) {
        return;
    }
    let scratch = Scratch::new();
    let disk = scratch.path().display().to_string();
    // dd ends with an error when the disk is full, as it should be.
    let fill = format!("mount -t tmpfs -o size=16k none {disk} && ! dd if=/dev/zero of={disk}/all 2>/dev/null");
    let agent = after(&fill).start(&QUICK.replace("@DATA@", &disk), &["--view"]);
    agent.wait_until_ready();
    for comm in ["full-disk-1", "full-disk-2"] {
        let pid = kill_one(comm);
        agent.wait_until("the kill is told", |agent| events(agent, pid) == 1);
    }
    wait_for_rounds(&agent, 2);
    let said = agent.stderr();
    for said_once in ["kmsg.position: cannot write", "alerts.state: cannot write"] {
        assert_eq!(said.matches(said_once).count(), 1, "{said_once}: {said}");
    }
}

#[test]
fn without_btf_and_tracefs_the_log_stands_in() {
    if !require(no_namespace().or_else(MemoryCgroup::missing)) {
        return;
    }
    let hide = "umount -l /sys/kernel/tracing 2>/dev/null; mount -t tmpfs none /sys/kernel/debug \
                && mount -t tmpfs none /sys/kernel/btf";
    let events = after(hide).start(QUICK, &["events", "--json", "--kind", "oom_kill"]);
    events.wait_until("it watches", |agent| {
        agent.stderr().contains("watching: oom_kill kmsg, ") && agent.stderr().contains(", hung_task kmsg, ")
    });
    let pid = kill_one("no-btf");
    let of_pid = |agent: &Agent| -> Vec<serde_json::Value> {
        let all = agent.stdout();
        let all = all.lines().map(|line| schema::parse("event", line.as_bytes()));
        all.filter(|event| event["pid"] == pid).collect()
    };
    events.wait_until("the log tells of the kill", |agent| !of_pid(agent).is_empty());
    let event = &of_pid(&events)[0];
    assert_eq!((&event["source"], &event["comm"]), (&serde_json::json!(["kmsg"]), &"no-btf".into()), "{event}");
}

#[test]
fn btf_that_is_none_is_the_next_rung() {
    if !require(no_namespace().or_else(|| require::files(&["/sys/kernel/btf/vmlinux", "/dev/kmsg"]))) {
        return;
    }
    let scratch = Scratch::new();
    let whole = std::fs::read("/sys/kernel/btf/vmlinux").expect("it is there");
    let half = &whole[..whole.len() / 2];
    let noise: Vec<u8> = whole.iter().map(|byte| byte.rotate_left(3)).collect();
    let bad: [(&str, &[u8]); 4] = [("empty", b""), ("half", half), ("noise", &noise), ("zero", &[0; 4096])];
    for (name, bytes) in bad {
        let file = scratch.path().join(name);
        std::fs::write(&file, bytes).expect("a folder of our own");
        let bind = format!("mount --bind {} /sys/kernel/btf/vmlinux", file.display());
        let output = after(&bind).run(&["doctor", "--json"]);
        assert_eq!(output.status.code(), Some(0), "{name}: {output:?}");
        let report = schema::parse("doctor", &output.stdout);
        for probe in report["probes"].as_array().expect("a list") {
            let rung = probe["rung"].as_str().expect("text");
            assert!(["tracepoint", "kmsg", "proc", "off"].contains(&rung), "{name}: {probe}");
            assert!(probe["reason"].as_str().is_some_and(|reason| reason.contains("btf/vmlinux")), "{name}: {probe}");
        }
    }
}

/// CPU time that a process has used, in ticks of 10 ms.
fn cpu_ticks(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("it runs");
    let fields = stat.rsplit_once(") ").expect("a name in parentheses").1.split(' ');
    fields.skip(11).take(2).map(|ticks| ticks.parse::<u64>().expect("a number")).sum()
}

#[test]
fn null_in_the_place_of_the_log_is_seen_and_costs_nothing() {
    if !require(no_namespace().or_else(|| require::files(&["/dev/kmsg"]))) {
        return;
    }
    let null = "mount --bind /dev/null /dev/kmsg";
    let output = after(null).run(&["doctor", "--json"]);
    let report = schema::parse("doctor", &output.stdout);
    assert_eq!((output.status.code(), &report["log"]["state"]), (Some(0), &"failed".into()), "{report:#}");
    assert!(report["log"]["reason"].as_str().is_some_and(|reason| reason.contains("found device 1:3")), "{report:#}");

    let agent = after(null).start(QUICK, &["--view"]);
    agent.wait_until_ready();
    wait_for_rounds(&agent, 1);
    let before = cpu_ticks(agent.pid());
    wait_for_rounds(&agent, 2);
    let used = cpu_ticks(agent.pid()) - before;
    assert!(used < 40, "{used} ticks of 200: it spins");

    // Asked for by name it is an error.
    let mut forced = after(null).start(&format!("{QUICK}[kernel.oom_kill]\nrung = \"kmsg\"\n"), &[]);
    assert_eq!(forced.end(LONG).code(), Some(69), "{}", forced.stderr());
    assert!(forced.stderr().contains("kernel.oom_kill.rung: kmsg is asked for, but: "), "{}", forced.stderr());
}

#[test]
fn a_log_that_is_switched_off_carries_no_probe() {
    if !require(agent::missing()) {
        return;
    }
    let scratch = Scratch::new();
    let text = "[log_analyzer]\nenabled = false\n[kernel.oom_kill]\nrung = \"kmsg\"\n";
    let file = scratch.file("config.toml", text).display().to_string();
    let output = agent::run(&["--config", &file, "doctor", "--json"]);
    let report = schema::parse("doctor", &output.stdout);
    let probe = &report["probes"][0];
    assert_eq!((output.status.code(), &probe["rung"]), (Some(1), &"off".into()), "{probe}");
    assert_eq!(report["log"]["state"], "absent", "{report:#}");
}

#[test]
fn an_ordinary_user_gets_what_anyone_may_see() {
    if !require(agent::missing().or_else(user::missing)) {
        return;
    }
    let mut agent = user::ordinary().start(QUICK, &["--view"]);
    agent.wait_until_ready();
    wait_for_rounds(&agent, 2);
    assert!(agent.stdout().contains("because: ") && agent.stdout().contains("CAP_BPF"), "{}", agent.stdout());
    assert!(agent.stderr().contains("ready: 0 of "), "{}", agent.stderr());
    agent.signal(Signal::TERM);
    assert_eq!(agent.end(Duration::from_secs(5)).code(), Some(0));

    // Tasks that hang are seen by anyone, in /proc.
    let nothing = format!("{QUICK}[kernel.hung_task]\nearly_secs = 0\n");
    let mut events = user::ordinary().start(&nothing, &["events"]);
    let status = events.end(LONG);
    // Where the log is open to everyone there is something to see, and it goes on; then `end` has failed already.
    assert_eq!(status.code(), Some(69), "{}", events.stderr());
    assert!(events.stderr().contains("sysops-agent doctor"), "{}", events.stderr());
}

#[test]
fn two_agents_at_once_do_not_disturb_each_other() {
    if !require(agent::missing().or_else(MemoryCgroup::missing)) {
        return;
    }
    let scratch = Scratch::new();
    let port = free_port();
    let shared = QUICK.replace("@DATA@", &scratch.path().display().to_string());
    let configuration = format!("{shared}[prometheus]\nenabled = true\nbind = \"127.0.0.1:{port}\"\n");
    let first = Agent::start(&configuration, &["--view"]);
    first.wait_until_ready();

    // The same port cannot be had twice.
    let mut refused = Agent::start(&configuration, &["--view"]);
    assert_eq!(refused.end(LONG).code(), Some(69), "{}", refused.stderr());
    let said = refused.stderr();
    assert!(said.contains("prometheus") && said.contains(&format!(":{port}")) && said.contains("ss -ltnp"), "{said}");

    let second = Agent::start(&shared, &["--view"]);
    second.wait_until_ready();
    let pids = [kill_one("two-agents-1"), kill_one("two-agents-2")];
    let agents = [&first, &second];
    for agent in agents {
        for pid in pids {
            agent.wait_until("each tells of each", |agent| events(agent, pid) == 1);
        }
        assert!(!agent.stderr().contains("ERROR"), "{}", agent.stderr());
    }
    for pid in pids {
        let [one, other] = agents.map(|agent| incident(agent, pid));
        assert!(one.is_some() && one == other, "an incident has one name on a machine: {one:?}, {other:?}");
    }
}

/// Who only looks on disturbs nothing: no alert twice, nothing of the agent's own read or written.
#[test]
fn views_leave_the_agent_alone() {
    if !require(agent::missing().or_else(MemoryCgroup::missing)) {
        return;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let far_end = FarEnd::start([]).await;
        let scratch = Scratch::new();
        let configuration = format!(
            "{}[alerting.webhook]\nenabled = true\nurl = \"{}/x\"\n[prometheus]\nenabled = true\nbind = \"127.0.0.1:{}\"\n",
            QUICK.replace("@DATA@", &scratch.path().display().to_string()),
            far_end.url,
            free_port()
        );
        let agent = Agent::start(&configuration, &[]);
        agent.wait_until_ready();
        let view = Agent::start(&configuration, &["live"]);
        let list = Agent::start(&configuration, &["events", "--json"]);
        wait_for_rounds(&view, 1);
        list.wait_until("it watches", |list| list.stderr().contains("watching: "));

        let pid = kill_one("is-told-once");
        view.wait_until("it shows the kill", |view| events(view, pid) == 1);
        let told = format!("\"pid\":{pid},");
        list.wait_until("it prints the kill", |list| list.stdout().contains(&told));
        let posts = || far_end.seen().iter().filter(|post| post.json()["labels"]["pid"] == *pid.to_string()).count();
        until("the agent tells of the kill", LONG, || posts() > 0).await;
        wait_for_rounds(&view, 3);
        assert_eq!(posts(), 1, "{}", view.stderr());

        let file = view.directory().join("config.toml").display().to_string();
        let asked = agent::run(&["--config", &file, "doctor", "--json"]);
        let report = schema::parse("doctor", &asked.stdout);
        assert_eq!(report["agent"]["pid"], agent.pid(), "{report:#}");
        let asked = agent::run(&["--config", &file, "alerts", "--json"]);
        let alerts = String::from_utf8_lossy(&asked.stdout);
        assert!(asked.status.success() && alerts.contains(&format!("\"{pid}\"")), "{asked:?}");
        for one in [&agent, &view, &list] {
            let said = one.stderr();
            // That the file of a test can be read by all is warned of, and right.
            let complaints = said.lines().filter(|line| line.contains("WARN") || line.contains("ERROR"));
            assert_eq!(complaints.filter(|line| !line.contains("  settings: ")).count(), 0, "{said}");
        }
    });
}

#[test]
fn a_stopped_agent_goes_on_without_a_burst() {
    if !require(agent::missing().or_else(MemoryCgroup::missing)) {
        return;
    }
    let agent = Agent::start(QUICK, &["--view"]);
    agent.wait_until_ready();
    wait_for_rounds(&agent, 1);
    agent.signal(Signal::STOP);
    let stopped = Instant::now();
    let pid = kill_one("while-stopped");
    std::thread::sleep(Duration::from_millis(3500).saturating_sub(stopped.elapsed()));
    let before = rounds(&agent);
    agent.signal(Signal::CONT);
    let start = Instant::now();
    agent.wait_until("what happened meanwhile is told", |agent| events(agent, pid) == 1);
    wait_for_rounds(&agent, 2);
    let (rounds, seconds) = (rounds(&agent) - before, start.elapsed().as_secs_f64());
    // One that is late, and one each second: not those that were missed.
    #[expect(clippy::cast_precision_loss, reason = "a handful")]
    let is_calm = rounds as f64 <= seconds + 2.0;
    assert!(is_calm, "{rounds} rounds in {seconds} s");
    assert_eq!(events(&agent, pid), 1, "{}", agent.stdout());
}

#[test]
fn a_reload_loses_and_doubles_no_event() {
    if !require(agent::missing().or_else(MemoryCgroup::missing)) {
        return;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let far_end = FarEnd::start([]).await;
        // A new interval is a new start of all that watches.
        let with = |interval: usize| {
            let quick = QUICK.replace("collect_interval_secs = 1", &format!("collect_interval_secs = {interval}"));
            format!("{quick}[alerting.webhook]\nenabled = true\nurl = \"{}/x\"\n", far_end.url)
        };
        let agent = Agent::start(&with(1), &[]);
        agent.wait_until_ready();
        let mut posts: BTreeMap<String, usize> = BTreeMap::new();
        for index in 0..5 {
            agent.configure(&with(2 + index));
            agent.signal(Signal::HUP);
            posts.insert(kill_one(&format!("reload-{index}")).to_string(), 0);
        }
        let mut count = || {
            posts.values_mut().for_each(|count| *count = 0);
            for post in far_end.seen() {
                let body = post.json();
                if let Some(count) = body["labels"]["pid"].as_str().and_then(|pid| posts.get_mut(pid)) {
                    *count += 1;
                }
            }
            posts.values().copied().collect::<Vec<usize>>()
        };
        until("all are told", LONG, || count().iter().all(|count| *count > 0)).await;
        // One more, by which time what would come twice has come.
        let last = kill_one("reload-last").to_string();
        until("the last is told", LONG, || far_end.seen().iter().any(|post| post.json()["labels"]["pid"] == *last))
            .await;
        assert_eq!(count(), [1; 5], "{}", agent.stderr());
        assert!(agent.stderr().matches("configuration read again").count() > 1, "{}", agent.stderr());
    });
}
