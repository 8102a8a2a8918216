//! The whole path: the kernel kills, a person is told. Twenty kills are twenty alerts at a webhook and twenty events,
//! about the right process, from both sources together and from each alone.
#![expect(clippy::panic, reason = "a test fails by panic")]

use std::collections::BTreeSet;
use std::time::Duration;

use sysops_agent::model::{Detail, Event, Source};
use sysops_tests::agent::{self, Agent};
use sysops_tests::http_far_end::{FarEnd, Request};
use sysops_tests::memory_cgroup::{MemoryCgroup, Victim, be_victim};
use sysops_tests::require::require;

const LIMIT: u64 = 24 << 20;
const KILLS: usize = 20;

/// Not a test: what the others start to be killed.
#[test]
fn victim() {
    be_victim();
}

#[test]
fn twenty_kills_seen_by_probe_and_log_are_twenty_alerts() {
    let log = "[log_analyzer]\nsources = [\"dmesg\"]\n";
    told_once_each("both", log, Duration::ZERO, |sources| sources.len() == 2);
}

#[test]
fn twenty_kills_seen_by_the_probe_alone_are_twenty_alerts() {
    let log = "[log_analyzer]\nenabled = false\n";
    told_once_each("probe", log, Duration::ZERO, |sources| !sources.contains(&Source::Kmsg) && sources.len() == 1);
}

/// The kernel logs whose cgroup it was for at most ten kills in five seconds (DEFAULT_RATELIMIT), so these are paced.
#[test]
fn twenty_kills_seen_by_the_log_alone_are_twenty_alerts() {
    let rungs = "[kernel.oom_kill]\nrung = \"kmsg\"\n";
    told_once_each("log", rungs, Duration::from_millis(600), |sources| sources == [Source::Kmsg]);
}

fn told_once_each(name: &str, tables: &str, pause: Duration, right_sources: impl Fn(&[Source]) -> bool) {
    if !require(MemoryCgroup::missing().or_else(agent::missing)) {
        return;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let far_end = FarEnd::start([]).await;
        let webhook = format!("[alerting.webhook]\nenabled = true\nurl = \"{}/alerts\"\n", far_end.url);
        let common = format!("[agent]\ndata_dir = \"@DATA@\"\nhostname = \"e2e\"\n{tables}");
        let daemon = Agent::start(&format!("{common}{webhook}"), &[]);
        let events = Agent::start(&common, &["events", "--json", "--kind", "oom_kill"]);
        daemon.wait_until_ready();
        events.wait_until("it watches", |agent| agent.stderr().contains("watching: "));
        // Kills of a test before this one count for the kernel's limit, too.
        tokio::time::sleep(pause * 10).await;
        let killed = kill_all(name, pause);
        let is_ours = |cgroup: Option<&str>| killed.iter().any(|one| Some(one.cgroup.as_str()) == cgroup);
        let told = || {
            let seen = far_end.seen().into_iter();
            seen.filter(|post| is_ours(post.json()["labels"]["cgroup"].as_str())).collect::<Vec<Request>>()
        };
        let printed = || {
            let all: Vec<Event> =
                events.stdout().lines().map(|line| serde_json::from_str(line).expect("an event a line")).collect();
            all.into_iter().filter(|event| is_ours(event.cgroup.as_deref())).collect::<Vec<Event>>()
        };
        let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
        while tokio::time::Instant::now() < deadline && (told().len() < KILLS || printed().len() < KILLS) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        // Time for what must not come: a second word about the same kill.
        tokio::time::sleep(Duration::from_secs(1)).await;
        let (posts, events) = (told(), printed());
        assert_eq!((posts.len(), events.len()), (KILLS, KILLS), "all, and none twice: {events:#?}");
        hold_posts_against(&posts, &killed);
        for event in &events {
            assert!(right_sources(&event.source), "{event:?}");
            hold_event_against(event, &killed);
        }
    });
}

/// A process as it was before it was killed.
struct Killed {
    pid: u32,
    comm: String,
    cgroup: String,
    oom_score_adj: i32,
    anon_bytes_before: u64,
}

/// Kills in cgroups of their own, one after another; each cgroup's own count says that the kernel killed one.
fn kill_all(name: &str, pause: Duration) -> Vec<Killed> {
    (0..KILLS)
        .map(|index| {
            let cgroup = MemoryCgroup::new(&format!("sysops-e2e-{}-{name}-{index}", std::process::id()), LIMIT);
            let (comm, adj) = (format!("{name}) {index}\u{1b}(x"), i32::try_from(index).expect("small") * 10);
            let mut victim = Victim::start(&comm, adj, &cgroup);
            let killed = Killed {
                pid: victim.pid,
                comm,
                cgroup: victim.cgroup.clone(),
                oom_score_adj: adj,
                anon_bytes_before: victim.bytes_before("RssAnon"),
            };
            victim.go_on();
            assert!(victim.was_killed());
            assert_eq!(cgroup.oom_kills(), Some(1), "the kernel's own count");
            std::thread::sleep(pause);
            killed
        })
        .collect()
}

fn hold_posts_against(posts: &[Request], killed: &[Killed]) {
    let text = |value: &serde_json::Value| value.as_str().map(str::to_owned);
    let told: BTreeSet<_> = posts
        .iter()
        .map(|post| {
            let body = post.json();
            assert_eq!((&body["metric"], &body["severity"]), (&"oom_kill".into(), &"critical".into()), "{body}");
            assert!(body.get("status").is_none() && body["hostname"] == "e2e", "{body}");
            let labels = &body["labels"];
            (text(&labels["pid"]), text(&labels["comm"]), text(&labels["cgroup"]))
        })
        .collect();
    let right: BTreeSet<_> = killed
        .iter()
        .map(|one| (Some(one.pid.to_string()), Some(one.comm.clone()), Some(one.cgroup.clone())))
        .collect();
    assert_eq!(told, right);
}

fn hold_event_against(event: &Event, killed: &[Killed]) {
    let Detail::OomKill(kill) = &event.detail else { panic!("{event:?}") };
    let one = killed.iter().find(|one| Some(one.pid) == event.pid).unwrap_or_else(|| panic!("who is {event:?}"));
    assert_eq!(event.comm.as_deref(), Some(one.comm.as_str()));
    assert_eq!(event.cgroup.as_deref(), Some(one.cgroup.as_str()));
    assert_eq!(kill.oom_score_adj, Some(one.oom_score_adj));
    let anon_bytes = kill.anon_rss_bytes.unwrap_or_else(|| panic!("{event:?}"));
    // The kernel's counters of one mm are split over CPUs, each of which may hold back a batch of pages.
    assert!((one.anon_bytes_before..=LIMIT + (4 << 20)).contains(&anon_bytes), "{anon_bytes} of {event:?}");
}
