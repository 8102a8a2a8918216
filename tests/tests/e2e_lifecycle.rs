//! The life of the daemon: start, service manager, reload, end; and the files that it is started with.
#![expect(clippy::disallowed_methods, reason = "a test runs programs, reads files and measures time")]

use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use sysops_tests::agent::{self, Agent, Launch};
use sysops_tests::http_far_end::{Answer, FarEnd};
use sysops_tests::notify_socket::NotifySocket;
use sysops_tests::require::{self, require};
use sysops_tests::servers::{Scratch, free_port};
use sysops_tests::user;

/// Everything each second; alerts at once.
const QUICK: &str = "[agent]\ndata_dir = \"@DATA@\"\nhostname = \"e2e\"\ncollect_interval_secs = 1\n\
    [collector]\ncpu_interval_secs = 1\nmemory_interval_secs = 1\ndisk_interval_secs = 1\nnetwork_interval_secs = 1\n\
    process_interval_secs = 1\nfd_interval_secs = 1\nagent_interval_secs = 1\n";

/// How long the agent may take to end.
const END: Duration = Duration::from_secs(5);

fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(work)
}

#[test]
fn it_ends_in_time_whatever_hangs() {
    if !require(agent::missing()) {
        return;
    }
    block_on(async {
        let far_end = FarEnd::start([Answer::Hang, Answer::Hang, Answer::Hang]).await;
        let mut agent = Agent::start(
            &format!(
                "{QUICK}[thresholds]\nmemory_percent = 0.1\nhold_secs = 0\n\
                 [alerting.webhook]\nenabled = true\nurl = \"{}/x\"\ntimeout_secs = 60\n\
                 [nats]\nenabled = true\nurl = \"nats://127.0.0.1:{}\"\n\
                 [prometheus]\nenabled = true\nbind = \"127.0.0.1:{}\"\n",
                far_end.url,
                free_port(),
                free_port()
            ),
            &[],
        );
        agent.wait_until_ready();
        far_end.wait_for(1).await;
        let (status, took) = terminate(&mut agent);
        assert_eq!(status, Some(0), "{}", agent.stderr());
        assert!(took < END, "{took:?}");
        let said = agent.stderr();
        assert!(
            said.contains("not delivered before the end") && said.contains("webhook"),
            "what is lost is said: {said}"
        );
    });
}

fn terminate(agent: &mut Agent) -> (Option<i32>, Duration) {
    let start = Instant::now();
    agent.signal(Signal::TERM);
    let status = agent.end(END + Duration::from_secs(5));
    (status.code(), start.elapsed())
}

#[test]
fn with_nothing_on_its_way_it_ends_at_once() {
    if !require(agent::missing()) {
        return;
    }
    for signal in [Signal::TERM, Signal::INT] {
        let mut agent = Agent::start(QUICK, &[]);
        agent.wait_until_ready();
        let start = Instant::now();
        agent.signal(signal);
        assert_eq!(agent.end(END).code(), Some(0), "{}", agent.stderr());
        // Less than it would wait for deliveries.
        assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
    }
}

#[test]
fn the_service_manager_hears_each_step() {
    if !require(agent::missing()) {
        return;
    }
    let manager = NotifySocket::new();
    let launch =
        Launch::default().with("NOTIFY_SOCKET", &manager.path().display().to_string()).with("WATCHDOG_USEC", "2000000");
    let mut agent = launch.start(QUICK, &[]);
    let ready = manager.wait_for("ready", |text| text.starts_with("READY=1\n"));
    assert!(ready.contains("STATUS=") && ready.contains(" collectors, 0 failed"), "{ready}");
    manager.wait_for("a sign of life", |text| text == "WATCHDOG=1");
    manager.wait_for("and the next", |text| text == "WATCHDOG=1");
    agent.signal(Signal::HUP);
    let reloading = manager.wait_for("a reload", |text| text.contains("RELOADING=1"));
    // systemd takes them together or not at all.
    let time = reloading.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").expect("one datagram with the time");
    let uptime = std::fs::read_to_string("/proc/uptime").expect("/proc");
    let uptime: f64 = uptime.split(' ').next().and_then(|secs| secs.parse().ok()).expect("a number");
    let time: f64 = time.parse().expect("a number");
    assert!((uptime - time / 1e6).abs() < 20.0, "{uptime} {time}");
    manager.wait_for("ready again", |text| text.starts_with("READY=1\n"));
    agent.signal(Signal::TERM);
    manager.wait_for("the end", |text| text == "STOPPING=1");
    assert_eq!(agent.end(END).code(), Some(0));
}

#[test]
fn a_good_file_is_taken_and_a_bad_one_is_not() {
    if !require(agent::missing()) {
        return;
    }
    let agent = Agent::start(&format!("{QUICK}[thresholds]\nmemory_percent = 99.9\nhold_secs = 0\n"), &[]);
    agent.wait_until_ready();
    let memory = |agent: &Agent| agent.stdout().matches("memory_used_percent").count();
    assert_eq!(memory(&agent), 0, "{}", agent.stdout());

    let good = QUICK.replace("[collector]", "log_level = \"debug\"\n[collector]");
    let limit = "[thresholds]\nmemory_percent = 0.5\nhold_secs = 0\n";
    agent.configure(&format!("{good}{limit}"));
    agent.signal(Signal::HUP);
    agent.wait_until("the new limit holds", |agent| memory(agent) == 1);
    assert!(agent.stderr().contains("configuration read again"), "{}", agent.stderr());

    let lines = good.lines().count();
    agent.configure(&format!("{good}[thresholds]\nmemory_percnt = 1\nhold_secs = 0\ncpu_percent = \"many\"\n"));
    agent.signal(Signal::HUP);
    let place = |line: usize, column: usize| format!("config.toml:{}:{column}: ", lines + line);
    agent.wait_until("the mistakes are said", |agent| agent.stderr().contains(&place(4, 15)));
    let said = agent.stderr();
    assert!(said.contains("2 errors") && said.contains("the configuration before it stays in force"), "{said}");
    let typo = said.lines().find(|line| line.contains(&place(2, 1))).expect("the place of the first");
    assert!(typo.contains("memory_percnt") && typo.contains("did you mean \"memory_percent\"?"), "{typo}");

    // What held before still does, and the next good file is taken.
    agent.configure(&format!("{QUICK}[thresholds]\nmemory_percent = 99.9\nhold_secs = 0\n"));
    agent.signal(Signal::HUP);
    agent.wait_until("it is over", |agent| agent.stdout().contains("resolved") || memory(agent) == 2);
    assert_eq!(memory(&agent), 2, "fired once, resolved once: {}", agent.stdout());

    std::fs::remove_file(agent.directory().join("config.toml")).expect("it is ours");
    agent.signal(Signal::HUP);
    agent.wait_until("that it is gone is said", |agent| agent.stderr().contains("cannot open the configuration"));
}

/// `/dev/stderr` is the journal when systemd says so; then lines begin with their priority and have no time.
#[test]
fn under_the_journal_lines_have_priorities() {
    if !require(agent::missing()) {
        return;
    }
    let name_stream = "JOURNAL_STREAM=$(stat -L -c %d:%i /dev/stderr) exec \"$@\"";
    let agent = Launch::through(&["sh", "-c", name_stream, "sh"]).start(QUICK, &[]);
    agent.wait_until_ready();
    let said = agent.stderr();
    assert!(said.contains("<6>pipeline: ready: "), "{said}");
    assert!(said.lines().all(|line| line.starts_with('<')), "{said}");
}

#[test]
fn the_pid_file_is_there_as_long_as_the_agent() {
    if !require(agent::missing()) {
        return;
    }
    let with = |name: &str| QUICK.replace("hostname", &format!("pid_file = \"@DATA@/{name}\"\nhostname"));
    let mut agent = Agent::start(&with("pid"), &[]);
    agent.wait_until_ready();
    let read = |agent: &Agent, name: &str| std::fs::read_to_string(agent.directory().join(name)).ok();
    assert_eq!(read(&agent, "pid"), Some(format!("{}\n", agent.pid())));
    agent.configure(&with("other"));
    agent.signal(Signal::HUP);
    agent.wait_until("it is the other file", |agent| read(agent, "other") == Some(format!("{}\n", agent.pid())));
    assert_eq!(read(&agent, "pid"), None);
    agent.signal(Signal::TERM);
    assert_eq!(agent.end(END).code(), Some(0));
    assert_eq!(read(&agent, "other"), None);

    let agent = Agent::start(&with("no/such/folder"), &[]);
    agent.wait_until_ready();
    assert!(agent.stderr().contains("agent.pid_file: cannot write "), "{}", agent.stderr());
}

#[test]
fn validate_tells_good_from_bad() {
    if !require(agent::missing()) {
        return;
    }
    let fixture =
        |name: &str| sysops_tests::source::root().join("tests/fixtures/config").join(name).display().to_string();
    let output = agent::run(&["--config", &fixture("full.toml"), "--validate"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let file = fixture("broken/unknown_key.toml");
    let output = agent::run(&["--config", &file, "--validate"]);
    assert_eq!(output.status.code(), Some(78), "{output:?}");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains(&format!("{file}:29:1")) && said.contains("did you mean \"cpu_percent\"?"), "{said}");
}

const SECRET: &str = "canary-7f3a";

#[test]
fn a_file_with_secrets_that_others_may_read_is_said_and_the_secret_is_not() {
    if !require(agent::missing()) {
        return;
    }
    let nats = format!("[nats]\nenabled = true\ntoken = \"{SECRET}\"\nurl = \"nats://127.0.0.1:{}\"\n", free_port());
    let agent = Agent::start(&format!("{QUICK}{nats}"), &["--log-level", "trace"]);
    agent.wait_until_ready();
    agent.wait_until("it says that NATS is away", |agent| agent.stderr().contains("nats: cannot connect"));
    let said = agent.stderr();
    let line =
        said.lines().find(|line| line.contains("every user of this machine can read the secrets")).expect("a warning");
    assert!(line.contains("nats.token") && line.contains("chmod 640 "), "{line}");
    assert!(!said.contains(SECRET) && !agent.stdout().contains(SECRET), "{said}");
    let shown =
        agent::run(&["--config", &agent.directory().join("config.toml").display().to_string(), "config", "show"]);
    assert!(shown.status.success() && !String::from_utf8_lossy(&shown.stdout).contains(SECRET), "{shown:?}");
}

#[test]
fn files_that_the_agents_user_cannot_read_are_named() {
    if !require(agent::missing().or_else(user::missing)) {
        return;
    }
    let scratch = Scratch::new();
    let private = |name: &str, text: &str| {
        let path = scratch.file(name, text);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("it is ours");
        path.display().to_string()
    };
    let file = private("config.toml", QUICK);
    let output = user::ordinary().run(&["--config", &file, "--validate"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(78), "{said}");
    assert!(said.contains(&file) && said.contains("the agent's user must be able to read it"), "{said}");

    let credentials = private("nats.creds", SECRET);
    let configuration = format!("{QUICK}[nats]\nenabled = true\ncredential_file = \"{credentials}\"\n");
    let mut agent = user::ordinary().start(&configuration, &[]);
    assert_eq!(agent.end(Duration::from_secs(20)).code(), Some(69), "{}", agent.stderr());
    let said = agent.stderr();
    assert!(said.contains("nats.credential_file") && said.contains(&credentials) && said.contains("65534"), "{said}");
}

#[test]
fn a_steady_cycle_forks_nothing() {
    if !require(agent::missing().or_else(|| require::programs(&["strace"]))) {
        return;
    }
    let agent = Agent::start(QUICK, &["--view"]);
    let rounds = |agent: &Agent| agent.stdout().lines().filter(|line| line.contains("  cpu ")).count();
    // The first rounds start what then stays; the inventory has a thread of its own, once in five minutes.
    agent.wait_until("it goes steadily", |agent| rounds(agent) >= 2 && !has_thread(agent, "inventory"));
    let trace = agent.directory().join("trace");
    let mut strace = Command::new("strace")
        .args(["-f", "-qq", "-e", "trace=fork,vfork,clone,clone3,execve,execveat", "-o"])
        .arg(&trace)
        .args(["-p", &agent.pid().to_string()])
        .stderr(Stdio::null())
        .spawn()
        .expect("it is there");
    let traced = || {
        std::fs::read_to_string(format!("/proc/{}/status", agent.pid()))
            .expect("it runs")
            .contains(&format!("TracerPid:\t{}\n", strace.id()))
    };
    agent.wait_until("it is traced", |_| traced());
    let before = rounds(&agent);
    agent.wait_until("rounds go by", |agent| rounds(agent) >= before + 3);
    let strace_pid = rustix::process::Pid::from_child(&strace);
    rustix::process::kill_process(strace_pid, Signal::INT).expect("it runs");
    strace.wait().expect("our child");
    let calls = std::fs::read_to_string(&trace).expect("strace wrote it");
    assert_eq!(calls, "", "a steady cycle starts no process and no thread");
    let children = format!("/proc/{0}/task/{0}/children", agent.pid());
    assert_eq!(std::fs::read_to_string(children).unwrap_or_default(), "");
}

fn has_thread(agent: &Agent, name: &str) -> bool {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", agent.pid())).expect("it runs");
    let mut names = tasks.flatten().filter_map(|task| std::fs::read_to_string(task.path().join("comm")).ok());
    names.any(|comm| comm.trim() == name)
}
