//! SIGHUP against the running binary: what a new configuration does not change goes on, and one that cannot be leaves
//! everything as it was.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use rustix::process::Signal;
use sysops_tests::agent::{self, Agent};
use sysops_tests::require::require;

fn configuration(port: u16, rest: &str) -> String {
    format!(
        "[agent]\ndata_dir = \"@DATA@\"\ncollect_interval_secs = 1\n[collector]\nagent_interval_secs = 1\n[kernel.oom_kill]\nrung = \"off\"\n[kernel.hung_task]\nrung = \"off\"\n\
         [prometheus]\nenabled = true\nbind = \"127.0.0.1:{port}\"\n{rest}"
    )
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a free port").port()
}

fn connect(port: u16) -> TcpStream {
    let stream = TcpStream::connect(("127.0.0.1", port)).expect("the agent listens");
    stream.set_read_timeout(Some(Duration::from_secs(10))).expect("not zero");
    stream
}

/// One scrape over a connection that stays open.
fn scrape(stream: &mut TcpStream) -> std::io::Result<String> {
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n")?;
    let mut answer = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let count = stream.read(&mut buffer)?;
        answer.extend_from_slice(&buffer[..count]);
        let text = String::from_utf8_lossy(&answer);
        let Some((head, body)) = text.split_once("\r\n\r\n") else {
            assert!(count > 0, "the connection was closed");
            continue;
        };
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).expect("it has a length");
        if body.len() >= length.parse().expect("a number") {
            return Ok(body.to_owned());
        }
        assert!(count > 0, "the connection was closed in the middle of an answer");
    }
}

fn uptime_secs(text: &str) -> f64 {
    let value = text.lines().find_map(|line| line.strip_prefix("sysops_agent_uptime_seconds "));
    value.and_then(|value| value.parse().ok()).expect("the agent tells its uptime")
}

#[test]
fn connections_outlive_a_reload_that_does_not_concern_them() {
    if !require(agent::missing()) {
        return;
    }
    let port = free_port();
    let agent = Agent::start(&configuration(port, ""), &[]);
    agent.wait_until_ready();
    let mut connection = connect(port);
    scrape(&mut connection).expect("it answers");
    agent.configure(&configuration(port, "[thresholds]\ncpu_percent = 97\n"));
    agent.signal(Signal::HUP);
    agent.wait_until("it has read the file", |agent| agent.stderr().contains("configuration read again"));
    scrape(&mut connection).expect("the same connection still answers");
    assert_eq!(agent.stderr().matches("prometheus: listening").count(), 1, "{}", agent.stderr());
}

#[test]
fn a_reload_that_fails_midway_leaves_everything_as_it_was() {
    if !require(agent::missing()) {
        return;
    }
    let (port, taken) = (free_port(), TcpListener::bind("127.0.0.1:0").expect("a free port"));
    let agent = Agent::start(&configuration(port, ""), &[]);
    agent.wait_until_ready();
    let has_log = |text: &str| text.contains("\nsysops_kernel_log_records_total ");
    let before = scrape(&mut connect(port)).expect("it answers");
    let other = configuration(taken.local_addr().expect("it is bound").port(), "[log_analyzer]\nenabled = false\n");
    agent.configure(&other);
    agent.signal(Signal::HUP);
    agent
        .wait_until("it says so", |agent| agent.stderr().contains("kept the last good configuration: prometheus.bind"));
    let mut after = scrape(&mut connect(port)).expect("it answers at the old address");
    // The sources give their readings every second; those of before are shown until then.
    let later = uptime_secs(&after) + 3.0;
    agent.wait_until("the sources have given new readings", |_| {
        after = scrape(&mut connect(port)).expect("it answers at the old address");
        uptime_secs(&after) > later
    });
    assert_eq!(has_log(&before), has_log(&after), "the kernel's log is read as before");
    // The file is right again and the address free: nothing of the failure is left.
    drop(taken);
    agent.signal(Signal::HUP);
    agent.wait_until("it has read the file", |agent| agent.stderr().contains("configuration read again"));
}

#[test]
fn what_holds_from_the_next_start_on_is_said() {
    if !require(agent::missing()) {
        return;
    }
    let port = free_port();
    let agent = Agent::start(&configuration(port, ""), &[]);
    agent.wait_until_ready();
    agent.configure(&configuration(port, "[storage]\nmax_series = 30000\n"));
    agent.signal(Signal::HUP);
    agent.wait_until("it says so", |agent| agent.stderr().contains("storage.max_series: the new value holds from"));
}

#[test]
fn the_view_stays_a_view() {
    if !require(agent::missing()) {
        return;
    }
    let limits = "[thresholds]\nmemory_percent = 0.001\nhold_secs = 0\n";
    let agent = Agent::start(&configuration(free_port(), ""), &["--view"]);
    agent.wait_until_ready();
    agent.configure(&configuration(free_port(), limits));
    agent.signal(Signal::HUP);
    agent.wait_until("an alert is shown", |agent| agent.stdout().contains("Memory usage is"));
    agent.wait_until("another round is over", |agent| {
        let text = agent.stdout();
        text.rsplit_once("Memory usage is").is_some_and(|(_, after)| after.contains("mem "))
    });
    assert_eq!(agent.stdout().matches("Memory usage is").count(), 1, "told by the view alone:\n{}", agent.stdout());
}
