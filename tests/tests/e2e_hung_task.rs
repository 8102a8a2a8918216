//! A write that hangs for real is one alert, however often the kernel reports it.
#![expect(clippy::disallowed_methods, reason = "a test runs programs")]

use std::process::Command;
use std::time::Duration;

use sysops_tests::agent::{self, Agent};
use sysops_tests::feed::until;
use sysops_tests::frozen_mount::{FrozenMount, Sysctl};
use sysops_tests::http_far_end::{FarEnd, Request};
use sysops_tests::require::{self, require};

/// The test runs itself again in a mount namespace of its own.
const INSIDE: &str = "SYSOPS_TEST_IN_NAMESPACE";

#[test]
fn a_hung_task_is_one_alert() {
    if std::env::var(INSIDE).is_ok() {
        return inside();
    }
    if !require(FrozenMount::missing().or_else(|| require::programs(&["unshare"])).or_else(agent::missing)) {
        return;
    }
    let output = Command::new("unshare")
        .arg("-m")
        .arg(std::env::current_exe().expect("a test has a path"))
        .args(["--exact", "a_hung_task_is_one_alert", "--nocapture"])
        .env(INSIDE, "1")
        .output()
        .expect("unshare is there");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn inside() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let far_end = FarEnd::start([]).await;
        let agent = Agent::start(
            &format!(
                "[agent]\ndata_dir = \"@DATA@\"\n[alerting]\nmax_alerts_per_hour = 10000\n\
                 [alerting.webhook]\nenabled = true\nurl = \"{}/alerts\"\n",
                far_end.url
            ),
            &["live"],
        );
        agent.wait_until_ready();
        let _timeout = Sysctl::set("kernel/hung_task_timeout_secs", "1");
        let _warnings = Sysctl::set("kernel/hung_task_warnings", "-1");
        let mut mount = FrozenMount::new();
        let mut hung = mount.hang();
        let pid = hung.id().to_string();
        // Others may hang, and the machine be short of something, at the same time: this is about ours.
        let about = |request: &Request| request.json()["labels"]["pid"] == *pid;
        let posts = || far_end.seen().into_iter().filter(about).collect::<Vec<Request>>();
        until("it is told", Duration::from_secs(20), || !posts().is_empty()).await;
        // The kernel reports it again every second.
        tokio::time::sleep(Duration::from_secs(4)).await;
        mount.thaw();
        assert!(hung.wait().expect("our child").success());
        assert_eq!(posts().len(), 1, "{}", agent.stdout());
        let body = posts()[0].json();
        assert_eq!((&body["metric"], &body["severity"]), (&"hung_task".into(), &"warn".into()));
        let live = agent.stdout();
        let line = live.lines().find(|line| line.contains("hung_task") && line.contains(&pid)).expect("an event");
        assert!(line.contains("stack ") || line.contains(" in "), "a stack or a wchan: {line}");
    });
}
