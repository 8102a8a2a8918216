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
        // Others may kill at the same time, and their kills are alerts too.
        let limits = "[alerting]\nmax_alerts_per_hour = 10000\n";
        let common = format!("[agent]\ndata_dir = \"@DATA@\"\nhostname = \"e2e\"\n{tables}{limits}");
        let daemon = Agent::start(&format!("{common}{webhook}"), &[]);
        let events = Agent::start(&common, &["events", "--json", "--kind", "oom_kill"]);
        daemon.wait_until_ready();
        events.wait_until("it watches", |agent| agent.stderr().contains("watching: "));
        // Kills of a test before this one count for the kernel's limit, too.
        tokio::time::sleep(pause * 10).await;
        // On a thread of its own: the far end must answer meanwhile.
        let of = name.to_owned();
        let killed = tokio::task::spawn_blocking(move || kill_all(&of, pause)).await.expect("they can be killed");
        let is_ours = |pid: Option<&str>, comm: Option<&str>| {
            killed.iter().any(|one| Some(one.pid.to_string().as_str()) == pid && Some(one.comm.as_str()) == comm)
        };
        let told = || {
            let seen = far_end.seen().into_iter();
            let is_ours = |labels: &serde_json::Value| is_ours(labels["pid"].as_str(), labels["comm"].as_str());
            seen.filter(|post| is_ours(&post.json()["labels"])).collect::<Vec<Request>>()
        };
        let printed = || {
            let all: Vec<Event> =
                events.stdout().lines().map(|line| serde_json::from_str(line).expect("an event a line")).collect();
            let is_ours =
                |event: &Event| is_ours(event.pid.map(|pid| pid.to_string()).as_deref(), event.comm.as_deref());
            all.into_iter().filter(is_ours).collect::<Vec<Event>>()
        };
        let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
        while tokio::time::Instant::now() < deadline && (told().len() < KILLS || printed().len() < KILLS) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        // Time for what must not come: a second word about the same kill.
        tokio::time::sleep(Duration::from_secs(1)).await;
        let (posts, events) = (told(), printed());
        let bodies: Vec<String> = posts.iter().map(|post| post.json().to_string()).collect();
        assert_eq!(
            (posts.len(), events.len()),
            (KILLS, KILLS),
            "all, and none twice: {bodies:#?}\n{}",
            daemon.stderr()
        );
        hold_posts_against(&posts, &killed, right_sources(&[Source::Kmsg]));
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

fn hold_posts_against(posts: &[Request], killed: &[Killed], by_log_alone: bool) {
    let mut told = BTreeSet::new();
    for post in posts {
        let body = post.json();
        assert_eq!((&body["metric"], &body["severity"]), (&"oom_kill".into(), &"critical".into()), "{body}");
        assert!(body.get("status").is_none() && body["hostname"] == "e2e", "{body}");
        let text = |name: &str| body["labels"][name].as_str();
        let one = killed.iter().find(|one| text("pid") == Some(&one.pid.to_string())).expect("it is ours");
        assert_eq!(text("comm"), Some(one.comm.as_str()), "{body}");
        assert_cgroup(text("cgroup"), one, by_log_alone);
        told.insert(one.pid);
    }
    assert_eq!(told.len(), KILLS);
}

/// Of more than ten kills in five seconds, those of other tests included, the kernel's log does not say whose cgroup it was.
fn assert_cgroup(cgroup: Option<&str>, one: &Killed, by_log_alone: bool) {
    let is_right = cgroup == Some(one.cgroup.as_str()) || (by_log_alone && cgroup.is_none());
    assert!(is_right, "{cgroup:?} of {} in {}", one.comm, one.cgroup);
}

fn hold_event_against(event: &Event, killed: &[Killed]) {
    let Detail::OomKill(kill) = &event.detail else { panic!("{event:?}") };
    let one = killed.iter().find(|one| Some(one.pid) == event.pid).unwrap_or_else(|| panic!("who is {event:?}"));
    assert_eq!(event.comm.as_deref(), Some(one.comm.as_str()));
    assert_cgroup(event.cgroup.as_deref(), one, event.source == [Source::Kmsg]);
    assert_eq!(kill.oom_score_adj, Some(one.oom_score_adj));
    let anon_bytes = kill.anon_rss_bytes.unwrap_or_else(|| panic!("{event:?}"));
    // The kernel's counters of one mm are split over CPUs, each of which may hold back a batch of pages.
    assert!((one.anon_bytes_before..=LIMIT + (4 << 20)).contains(&anon_bytes), "{anon_bytes} of {event:?}");
}
