//! An agent that is killed, over and over, while processes are killed for memory: each of them is told, under one id.
#![expect(clippy::disallowed_methods, reason = "tests are outside of the agent: they read clocks as they like")]

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use sysops_tests::agent::{self, Agent};
use sysops_tests::http_far_end::FarEnd;
use sysops_tests::memory_cgroup::{MemoryCgroup, be_victim, kill_one};
use sysops_tests::require::require;
use sysops_tests::servers::Scratch;

const ROUNDS: u32 = 6;

fn configuration(data: &str, url: &str) -> String {
    format!(
        "[agent]\ndata_dir = \"{data}\"\ncollect_interval_secs = 1\n\
         [alerting]\nmax_alerts_per_hour = 10000\n[alerting.console]\nenabled = false\n\
         [alerting.webhook]\nenabled = true\nurl = \"{url}/\"\ntimeout_secs = 5\nretry_count = 0\n"
    )
}

/// Ids by the pid that they tell of.
fn told(far_end: &FarEnd) -> BTreeMap<String, BTreeSet<String>> {
    let mut told: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for request in far_end.seen() {
        let body = request.json();
        if body["metric"] == "oom_kill" {
            let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
            told.entry(text(&body["labels"]["pid"])).or_default().insert(text(&body["id"]));
        }
    }
    told
}

#[test]
fn victim() {
    be_victim();
}

#[test]
fn a_kill_is_told_once_whenever_the_agent_dies() {
    if !require(agent::missing().or_else(MemoryCgroup::missing)) {
        return;
    }
    let scratch = Scratch::new();
    let data = scratch.path().display().to_string();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let far_end = FarEnd::start([]).await;
        let configuration = configuration(&data, &far_end.url);
        let mut killed: BTreeSet<String> = BTreeSet::new();
        let mut kill = |comm: String| killed.insert(kill_one(&comm).to_string());
        for round in 0..ROUNDS {
            let agent = Agent::start(&configuration, &[]);
            agent.wait_until_ready();
            // While it lives, while it is being killed, and while it is dead.
            kill(format!("alive-{round}"));
            kill(format!("dying-{round}"));
            std::thread::sleep(Duration::from_millis(u64::from(round) * 17));
            // SIGKILL.
            drop(agent);
            kill(format!("dead-{round}"));
        }
        let agent = Agent::start(&configuration, &[]);
        agent.wait_until_ready();
        let end = Instant::now() + Duration::from_secs(60);
        while killed.iter().any(|pid| !told(&far_end).contains_key(pid)) {
            assert!(Instant::now() < end, "killed {killed:?}, told {:?}\n{}", told(&far_end), agent.stderr());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let twice: Vec<_> =
            told(&far_end).into_iter().filter(|(pid, ids)| killed.contains(pid) && ids.len() > 1).collect();
        assert!(twice.is_empty(), "under two ids: {twice:?}");
        println!("{} kills, {} of {ROUNDS} while no agent ran: each told under one id", killed.len(), ROUNDS);
    });
}
