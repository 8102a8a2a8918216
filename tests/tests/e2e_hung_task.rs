//! A write that hangs for real is one alert, however often the kernel reports it, which is resolved when it is over, also
//! when the agent is killed and starts again in between; and the service's user sees as much of it as root.
#![expect(clippy::disallowed_methods, reason = "a test reads files")]

use std::time::Duration;

use sysops_tests::agent::{self, Agent};
use sysops_tests::feed::until;
use sysops_tests::frozen_mount::{FrozenMount, Sysctl};
use sysops_tests::http_far_end::{FarEnd, Request};
use sysops_tests::own_namespace::is_inside;
use sysops_tests::require::{self, require};
use sysops_tests::schema;
use sysops_tests::servers::Scratch;
use sysops_tests::silent_mount::SilentMount;
use sysops_tests::user;

const LIMIT: Duration = Duration::from_secs(30);

fn ready() -> bool {
    require(FrozenMount::missing().or_else(|| require::programs(&["unshare"])).or_else(agent::missing))
}

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(test);
}

fn configuration(data: &str, early: u32, url: &str) -> String {
    format!(
        "[agent]\ndata_dir = \"{data}\"\n[kernel.hung_task]\nearly_secs = {early}\n[alerting]\nmax_alerts_per_hour = 10000\n\
         [alerting.webhook]\nenabled = true\nurl = \"{url}/alerts\"\n"
    )
}

/// What was posted about the process `pid`: others may hang, and the machine be short of something, at the same time.
fn posts(far_end: &FarEnd, pid: u32) -> Vec<Request> {
    let about = |request: &Request| request.json()["labels"]["pid"] == *pid.to_string();
    far_end.seen().into_iter().filter(about).collect()
}

fn is_resolved(request: &Request) -> bool {
    request.json()["status"] == "resolved"
}

#[test]
fn a_hung_task_is_one_alert() {
    if !ready() || !is_inside("a_hung_task_is_one_alert") {
        return;
    }
    run(async {
        let far_end = FarEnd::start([]).await;
        let agent = Agent::start(&configuration("@DATA@", 0, &far_end.url), &["--view"]);
        agent.wait_until_ready();
        let _timeout = Sysctl::set("kernel/hung_task_timeout_secs", "1");
        let _warnings = Sysctl::set("kernel/hung_task_warnings", "-1");
        let mut mount = FrozenMount::new();
        let mut hung = mount.hang();
        let pid = hung.id();
        until("it is told", LIMIT, || !posts(&far_end, pid).is_empty()).await;
        // The kernel reports it again every second.
        tokio::time::sleep(Duration::from_secs(4)).await;
        assert_eq!(posts(&far_end, pid).len(), 1, "{}", agent.stdout());
        mount.thaw();
        assert!(hung.wait().expect("our child").success());
        until("its end is told", LIMIT, || posts(&far_end, pid).len() > 1).await;
        let posts = posts(&far_end, pid);
        assert_eq!(posts.iter().map(is_resolved).collect::<Vec<_>>(), [false, true], "{}", agent.stdout());
        let (body, end) = (posts[0].json(), posts[1].json());
        assert_eq!((&body["metric"], &body["severity"]), (&"hung_task".into(), &"warn".into()));
        assert_eq!((&body["labels"], &body["severity"]), (&end["labels"], &end["severity"]));
        let live = agent.stdout();
        let line = live.lines().find(|line| line.contains("hung_task") && line.contains(&pid.to_string()));
        let line = line.expect("an event");
        assert!(line.contains("stack ") || line.contains(" in "), "a stack or a wchan: {line}");
    });
}

#[test]
fn a_hang_is_one_alert_over_a_restart_and_ends_once() {
    if !ready() || !require(SilentMount::missing()) || !is_inside("a_hang_is_one_alert_over_a_restart_and_ends_once") {
        return;
    }
    run(async {
        let far_end = FarEnd::start([]).await;
        let data = Scratch::new();
        let configuration = configuration(&data.path().display().to_string(), 2, &far_end.url);
        let mut agent = Agent::start(&configuration, &[]);
        agent.wait_until_ready();
        let mut mount = FrozenMount::new();
        let silent = SilentMount::new();
        let mut goes_on = mount.hang();
        let mut ends = std::process::Command::new("cat").arg(silent.path()).spawn().expect("cat is there");
        let pids = [goes_on.id(), ends.id()];
        let all = |count: usize| pids.iter().all(|pid| posts(&far_end, *pid).len() == count);
        until("both are told", LIMIT, || all(1)).await;
        // Where the disk takes longer than a second people are told before the book is written.
        let book = data.path().join("alerts.state");
        let is_kept = |pid: u32| std::fs::read_to_string(&book).is_ok_and(|text| text.contains(&format!("[[{pid},")));
        until("both are in the book", LIMIT, || pids.iter().all(|pid| is_kept(*pid))).await;
        agent.signal(rustix::process::Signal::KILL);
        agent.end(LIMIT);
        // One of them ends while nobody looks.
        ends.kill().and_then(|()| ends.wait()).expect("our child");
        let agent = Agent::start(&configuration, &[]);
        agent.wait_until_ready();
        until("the end that nobody saw is told", LIMIT, || posts(&far_end, pids[1]).len() == 2).await;
        // Longer than the threshold, and then the kernel says it too.
        tokio::time::sleep(Duration::from_secs(4)).await;
        {
            let _warnings = Sysctl::set("kernel/hung_task_warnings", "-1");
            let _timeout = Sysctl::set("kernel/hung_task_timeout_secs", "1");
            tokio::time::sleep(Duration::from_secs(4)).await;
        }
        assert_eq!(posts(&far_end, pids[0]).len(), 1, "{}", agent.stderr());
        mount.thaw();
        assert!(goes_on.wait().expect("our child").success());
        until("both ends are told", LIMIT, || all(2)).await;
        for pid in pids {
            assert_eq!(posts(&far_end, pid).iter().map(is_resolved).collect::<Vec<_>>(), [false, true]);
        }
    });
}

/// The disk of the agent's own directory is what hangs: that, too, is told at once.
#[test]
fn a_hang_of_the_disk_that_the_agent_writes_to_is_told() {
    let name = "a_hang_of_the_disk_that_the_agent_writes_to_is_told";
    if !ready() || !is_inside(name) {
        return;
    }
    run(async {
        let far_end = FarEnd::start([]).await;
        let mut mount = FrozenMount::thawed("16M");
        let agent = Agent::start(&configuration(&mount.at().display().to_string(), 2, &far_end.url), &[]);
        agent.wait_until_ready();
        mount.freeze();
        let mut hung = [mount.hang(), mount.hang()];
        let pids = [hung[0].id(), hung[1].id()];
        for pid in pids {
            until("it is told while the disk hangs", LIMIT, || !posts(&far_end, pid).is_empty()).await;
        }
        // Then the next look is over, and has found the disk as it was.
        let third = mount.hang();
        until("the next one is, too", LIMIT, || !posts(&far_end, third.id()).is_empty()).await;
        mount.thaw();
        for child in hung.iter_mut().chain([third].iter_mut()) {
            assert!(child.wait().expect("our child").success());
        }
        for pid in pids {
            until("its end is told", LIMIT, || posts(&far_end, pid).len() > 1).await;
        }
        drop(agent);
    });
}

/// Whoever is told of a hang is not left waiting for its end when the operator turns the probe off.
#[test]
fn a_hang_that_nobody_looks_at_any_more_is_no_alert() {
    if !ready() || !is_inside("a_hang_that_nobody_looks_at_any_more_is_no_alert") {
        return;
    }
    run(async {
        let far_end = FarEnd::start([]).await;
        let on = configuration("@DATA@", 2, &far_end.url);
        let off = on.replace("[kernel.hung_task]\n", "[kernel.hung_task]\nrung = \"off\"\n");
        let agent = Agent::start(&on, &[]);
        agent.wait_until_ready();
        let mut mount = FrozenMount::new();
        let mut hung = mount.hang();
        let pid = hung.id();
        let told = |count: usize| posts(&far_end, pid).len() >= count;
        until("it is told", LIMIT, || told(1)).await;
        agent.configure(&off);
        agent.signal(rustix::process::Signal::HUP);
        until("it is resolved", LIMIT, || told(2)).await;
        let message = posts(&far_end, pid)[1].json()["message"].to_string();
        assert!(message.contains("is not looked at any more"), "{message}");
        mount.thaw();
        assert!(hung.wait().expect("our child").success());
        let posts = posts(&far_end, pid);
        assert_eq!(posts.iter().map(is_resolved).collect::<Vec<_>>(), [false, true], "{}", agent.stderr());
    });
}

/// Not root, five capabilities: /proc/<pid>/stack is closed, and the stack is the same.
#[test]
fn the_service_sees_the_stack_that_root_sees() {
    if !ready() || !require(user::missing()) || !is_inside("the_service_sees_the_stack_that_root_sees") {
        return;
    }
    run(async {
        let service = user::service().start(
            "[agent]\ndata_dir = \"@DATA@\"\n[kernel.hung_task]\nearly_secs = 2\n",
            &["events", "--json", "--kind", "hung_task"],
        );
        service.wait_until("the probes stand", |agent| agent.stderr().contains("watching: "));
        let mut mount = FrozenMount::new();
        let mut hung = mount.hang();
        let pid = hung.id();
        let event = || {
            let said = service.stdout();
            // The last line may be half written.
            let whole = said.rfind('\n').map_or("", |end| &said[..end]);
            whole.lines().map(|line| schema::parse("event", line.as_bytes())).find(|event| event["pid"] == pid)
        };
        until("it is told", LIMIT, || event().is_some()).await;
        let stack = std::fs::read_to_string(format!("/proc/{pid}/stack")).expect("the test is root");
        let expected: Vec<&str> = stack.lines().filter_map(|line| line.strip_prefix("[<0>] ")).collect();
        mount.thaw();
        assert!(hung.wait().expect("our child").success());
        let event = event().expect("seen above");
        assert!(!expected.is_empty(), "{stack}");
        assert_eq!(event["kernel_stack"], serde_json::json!(expected), "{event}");
        assert_eq!((&event["tier"], &event["source"][0]), (&"early".into(), &"task_iter".into()), "{event}");
    });
}

/// No probe, no log: what anyone may read in /proc shows who hangs.
#[test]
fn an_ordinary_user_sees_who_hangs() {
    if !ready() || !require(user::missing()) || !is_inside("an_ordinary_user_sees_who_hangs") {
        return;
    }
    run(async {
        let agent = user::ordinary().start(
            "[agent]\ndata_dir = \"@DATA@\"\n[kernel.hung_task]\nearly_secs = 2\n",
            &["events", "--json", "--kind", "hung_task"],
        );
        agent.wait_until("it watches", |agent| agent.stderr().contains("watching: "));
        let mut mount = FrozenMount::new();
        let mut hung = mount.hang();
        let pid = hung.id();
        let count = |phase: &str| {
            let said = agent.stdout();
            let whole = said.rfind('\n').map_or("", |end| &said[..end]);
            let events = whole.lines().map(|line| schema::parse("event", line.as_bytes()));
            events
                .filter(|event| event["pid"] == pid && event["phase"] == phase && event["source"][0] == "proc")
                .count()
        };
        until("it is told", LIMIT, || count("began") == 1).await;
        mount.thaw();
        assert!(hung.wait().expect("our child").success());
        until("its end is told", LIMIT, || count("ended") == 1).await;
        assert_eq!(count("began"), 1);
    });
}
