//! What is taken and what is lost are together what happened, to the last event; what is lost is said in metrics, in an alert
//! and by `doctor`. What happened is the kernel's own count: `oom_kill` of /proc/vmstat.
#![expect(clippy::disallowed_methods, reason = "a test reads files and measures time")]

use std::time::{Duration, Instant};

use rustix::process::Signal;
use sysops_agent::host::{EventSource, Host, Roots};
use sysops_agent::kernel::{Kernel, Standing};
use sysops_agent::model::{Batch, Event, Reading};
use sysops_agent::spec::{Value, Values};
use sysops_tests::agent::{self, Agent};
use sysops_tests::events::take_until;
use sysops_tests::memory_cgroup::MemoryCgroup;
use sysops_tests::one_probe::{OneProbe, only};
use sysops_tests::require::{self, require};
use sysops_tests::servers::free_port;
use sysops_tests::{http, schema, user};

/// More than the ring buffer of `oom_kill` holds, which has room for some 220.
const KILLS: usize = 260;
const LONG: Duration = Duration::from_secs(30);

fn missing() -> Option<String> {
    let built = (!cfg!(feature = "default")).then(|| "needs the agent with the feature ebpf".to_owned());
    let probe = || {
        let standing = standing(&Kernel::start(&Host::live(&Roots::default()), &alone()));
        standing.rung.source().is_none().then_some(standing.reason)
    };
    built.or_else(MemoryCgroup::missing).or_else(|| require::programs(&["sh", "dd"])).or_else(probe)
}

/// Processes that the kernel has killed for memory since boot, on all CPUs.
fn machine_kills() -> u64 {
    let text = std::fs::read_to_string("/proc/vmstat").expect("procfs");
    let line = text.lines().find_map(|line| line.strip_prefix("oom_kill ")).expect("since 4.13");
    line.parse().expect("a number")
}

fn kill_many(name: &str, count: usize) {
    let cgroup = MemoryCgroup::new(&format!("sysops-loss-{}-{name}", std::process::id()), 4 << 20);
    cgroup.kill_many(count);
    assert_eq!(cgroup.oom_kills(), Some(count as u64), "the kernel's own count");
}

fn alone() -> Values {
    only("oom_kill", "auto", Values::default())
}

fn standing(kernel: &Kernel) -> Standing {
    kernel.standings().into_iter().find(|standing| standing.name == "oom_kill").expect("in the list")
}

/// Tries until it is so. Others may kill meanwhile; then both sides move.
fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < LONG, "in vain: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Two readers of one machine: one takes all, the other none. Each is right for itself.
#[test]
fn received_and_dropped_are_together_all_that_happened() {
    if !require(missing()) {
        return;
    }
    let host = Host::live(&Roots::default());
    let (mut reader, stalled, before) = loop {
        let before = machine_kills();
        let (reader, stalled) = (Kernel::start(&host, &alone()), Kernel::start(&host, &alone()));
        // One that came while they were put up may be known to one and not to the other.
        if machine_kills() == before {
            break (reader, stalled, before);
        }
    };
    let killer = std::thread::spawn(|| kill_many("two", KILLS));
    let events: Vec<Event> = take_until(&mut reader, &host, Duration::from_secs(120), |_| killer.is_finished());
    killer.join().expect("all were killed");
    let mut rest = Vec::new();
    until("what was dropped and what was received make up all", || {
        reader.drain(&host, &mut rest);
        let (taken, lost) = (standing(&reader), standing(&stalled));
        let happened = machine_kills() - before;
        taken.received == happened && lost.received + lost.dropped == happened
    });
    let (taken, lost) = (standing(&reader), standing(&stalled));
    eprintln!(
        "read: {} and {} lost; not read: {} and {} lost",
        taken.received, taken.dropped, lost.received, lost.dropped
    );
    assert_eq!((events.len() + rest.len()) as u64, taken.received);
    assert_eq!(taken.dropped, 0, "{taken:?}");
    assert!(lost.dropped > 0 && lost.received > 100, "{lost:?}");
}

/// An agent that is stopped while more happens than its ring buffer holds.
#[test]
fn a_stopped_agent_tells_what_fits_and_counts_the_rest() {
    if !require(missing().or_else(agent::missing)) {
        return;
    }
    let port = free_port();
    let configuration = format!(
        "[agent]\ndata_dir = \"@DATA@\"\ncollect_interval_secs = 1\n[collector]\nmemory_interval_secs = 1\n\
         [alerting]\nmax_alerts_per_hour = 10000\n[thresholds]\nloss_quiet_secs = 3\n\
         disk_percent = 100.0\ndisk_inode_percent = 100.0\n[log_analyzer]\nenabled = false\n\
         [prometheus]\nenabled = true\nbind = \"127.0.0.1:{port}\"\n"
    );
    let agent = Agent::start(&configuration, &["--view"]);
    agent.wait_until_ready();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let count = |name: &str, reason: &str| {
        let page = runtime.block_on(http::get(port, "/metrics"));
        let line = page.lines().find(|line| {
            line.starts_with(&format!("sysops_{name}{{")) && line.contains("\"oom_kill\"") && line.contains(reason)
        });
        line.and_then(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok())
    };
    let received = || count("kernel_probe_received_total", "").map(|count| count as u64);
    until("the probe counts", || received().is_some());
    let (at_first, before) = (received().expect("seen"), machine_kills());
    agent.signal(Signal::STOP);
    kill_many("stopped", KILLS);
    agent.signal(Signal::CONT);
    let lost = || count("kernel_probe_dropped_total", "ring_full").map_or(0, |count| count as u64);
    until("what was dropped and what was received make up all", || {
        received().expect("seen") - at_first + lost() == machine_kills() - before
    });
    assert!(lost() > 0);
    let told = |agent: &Agent| agent.stdout().lines().filter(|line| line.contains("Z  oom_kill ")).count() as u64;
    agent.wait_until("all that was received is told", |agent| received() == Some(told(agent)));

    let alerts = |agent: &Agent, text: &str| -> Vec<String> {
        let stdout = agent.stdout();
        stdout.lines().filter(|line| line.contains(text)).map(str::to_owned).collect()
    };
    // Another probe may have lost something, too.
    let over = |agent: &Agent| alerts(agent, "No more losses: probe oom_kill");
    agent.wait_until("the loss is told, and that it is over", |agent| !over(agent).is_empty());
    let losses = alerts(&agent, "  Losses: probe oom_kill lost ");
    assert_eq!(losses.len(), 1, "{losses:?}");
    assert!(
        losses[0].contains("ALERT warn") && losses[0].contains("events: ring_full; they came faster"),
        "{losses:?}"
    );
    let over = over(&agent);
    assert!(over[0].contains(&format!("lost {} events: ring_full", lost())), "{over:?}, {}", lost());
    let others = alerts(&agent, "ALERT").into_iter().filter(|alert| !alert.contains("The kernel killed"));
    let others: Vec<_> = others.filter(|alert| !alert.contains("osses: ")).collect();
    assert!(others.is_empty(), "no burst of other alerts: {others:?}");

    let file = agent.directory().join("config.toml").display().to_string();
    let doctor = agent::run(&["--config", &file, "doctor", "--json"]);
    let report = schema::parse("doctor", &doctor.stdout);
    assert_eq!(report["lost"]["pid"], agent.pid(), "{report:#}");
    let losses = report["lost"]["losses"].as_array().expect("a list").iter();
    let said: Vec<&str> = losses.filter_map(|loss| loss["message"].as_str()).collect();
    let wanted = format!("probe oom_kill lost {} events", lost());
    assert!(said.iter().any(|message| message.contains(&wanted)), "{said:?}");
    let doctor = agent::run(&["--config", &file, "doctor"]);
    let text = String::from_utf8_lossy(&doctor.stdout);
    assert!(text.contains("lost in its life") && text.contains("probe oom_kill lost"), "{text}");
}

/// The kernel's own account of what the programs cost.
#[test]
fn each_run_of_a_probe_is_counted() {
    if !require(missing()) {
        return;
    }
    let host = Host::live(&Roots::default());
    let mut values = Values::default();
    values.set(key_of_all("kernel.stats_percent"), Value::Float(100.0));
    let mut probe = OneProbe::start(&host, "oom_kill", "auto", values);
    let before = loop {
        let before = machine_kills();
        probe.collect(&host);
        if machine_kills() == before {
            break before - probe.standing().received;
        }
    };
    kill_many("runs", 5);
    // Each kill is a run on its mark and one on its signal; other signals are runs, too.
    until("each kill was two runs", || {
        probe.collect(&host);
        probe
            .number("kernel_probe_runs_total", &["oom_kill"])
            .is_some_and(|runs| runs >= 2 * (machine_kills() - before))
    });
    let seconds = probe.float("kernel_probe_run_seconds_total", &["oom_kill"]).expect("told with the runs");
    let runs = probe.float("kernel_probe_runs_total", &["oom_kill"]).expect("told");
    eprintln!("{:.0} ns a run", seconds / runs * 1e9);
    assert!(seconds / runs > 10e-9 && seconds / runs < 1e-3, "{seconds} s in {runs} runs");
    assert!(probe.float("kernel_probe_run_counted_seconds_total", &[]).is_some_and(|counted| counted > seconds));
}

fn key_of_all(path: &str) -> &'static sysops_agent::spec::KeySpec {
    sysops_agent::kernel::KEYS.iter().find(|key| key.path == path).expect("a key of all probes")
}

#[test]
fn what_programs_cost_is_read_without_memory() {
    if !require(missing()) {
        return;
    }
    let host = Host::live(&Roots::default());
    let mut probe = OneProbe::start(&host, "oom_kill", "auto", Values::default());
    probe.collect(&host);
    let least = (0..50).map(|_| allocation_counter::measure(|| probe.collect(&host)).count_total).min();
    assert_eq!(least, Some(0));
    assert!(probe.number("kernel_probe_runs_total", &["oom_kill"]).is_some(), "counted in the first interval");
}

#[test]
fn every_probe_with_programs_tells_their_runs() {
    if !require(missing()) {
        return;
    }
    let host = Host::live(&Roots::default());
    let mut values = Values::default();
    values.set(key_of_all("kernel.stats_percent"), Value::Float(100.0));
    let mut kernel = Kernel::start(&host, &values);
    let mut batch = Batch::default();
    kernel.collect(&host, &mut batch);
    batch.clear();
    kernel.collect(&host, &mut batch);
    let probes = |metric: &str| -> Vec<String> {
        let series = batch.iter().filter(|(entry, _)| entry.metric.name == metric);
        series
            .filter(|(entry, _)| matches!(entry.reading, Reading::Counter(_)))
            .map(|(_, key)| key.to_string())
            .collect()
    };
    assert!(!probes("kernel_probe_received_total").is_empty());
    assert_eq!(probes("kernel_probe_runs_total"), probes("kernel_probe_received_total"));
}

#[test]
fn without_the_right_to_it_runs_are_absent_and_doctor_says_why() {
    if !require(missing().or_else(agent::missing).or_else(user::missing)) {
        return;
    }
    let output = user::service().run(&["doctor", "--json"]);
    let stats = &schema::parse("doctor", &output.stdout)["run_stats"];
    if std::fs::read_to_string("/proc/sys/kernel/bpf_stats_enabled").is_ok_and(|text| text.trim() == "1") {
        assert_eq!(stats["state"], "ok", "the machine counts for everyone: {stats}");
        return;
    }
    assert_eq!(stats["state"], "absent", "{stats}");
    assert!(stats["reason"].as_str().is_some_and(|reason| reason.contains("CAP_SYS_ADMIN")), "{stats}");
    assert!(stats["remedy"].as_str().is_some_and(|remedy| remedy.contains("kernel.bpf_stats_enabled=1")), "{stats}");
}
