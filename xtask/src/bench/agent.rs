//! Starts the release agent as an operator would: every default feature on, NATS connected, Prometheus on a free port.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use super::http;
use super::process::{Process, wait_for};
use crate::{test, workspace};

/// How the agent is to run.
pub(super) struct Wanted {
    /// Where alerts are posted.
    pub(super) webhook: Option<SocketAddr>,
    /// Every collector and the probes are read this often.
    pub(super) interval_secs: u32,
    /// More of the configuration.
    pub(super) more: String,
}

impl Default for Wanted {
    fn default() -> Self {
        Self { webhook: None, interval_secs: 1, more: String::new() }
    }
}

/// A running agent and the NATS server that it is connected to.
pub(super) struct Agent {
    /// The agent.
    pub(super) process: Process,
    /// Where it serves /metrics.
    pub(super) metrics: SocketAddr,
    _nats: Process,
}

impl Agent {
    /// Starts both in `dir`; every collector runs once a second. Returns when readings are served and NATS is connected.
    ///
    /// # Errors
    /// When something does not start within 30 s; what it said is in `dir`.
    pub(super) fn start(dir: &Path, webhook: Option<SocketAddr>) -> Result<Self> {
        Self::start_as(dir, &Wanted { webhook, ..Wanted::default() })
    }

    /// The same with another configuration.
    ///
    /// # Errors
    /// As [`Agent::start`].
    pub(super) fn start_as(dir: &Path, wanted: &Wanted) -> Result<Self> {
        let (nats_at, monitor, metrics) = (http::free_port()?, http::free_port()?, http::free_port()?);
        let server = test::server("nats-server").context("no nats-server on this machine")?;
        let mut nats = Command::new(server);
        nats.args(["-a", "127.0.0.1", "-p"]).arg(nats_at.port().to_string()).arg("-m").arg(monitor.port().to_string());
        let nats = Process::start(nats.stdout(Stdio::null()), &dir.join("nats.log"))?;
        wait_for("nats-server answers", Duration::from_secs(30), || http::get(monitor, "/varz").ok())?;

        let config = dir.join("agent.toml");
        std::fs::write(&config, configuration(dir, nats_at, metrics, wanted))?;
        let mut agent = Command::new(workspace::agent());
        agent.arg("--config").arg(&config).stdout(Stdio::null());
        let process = Process::start(&mut agent, &dir.join("agent.log"))?;
        wait_for("the agent serves readings (agent.log)", Duration::from_secs(30), || {
            http::get(metrics, "/metrics").ok().filter(|page| series(page) > 0)
        })?;
        wait_for("the agent is connected to NATS", Duration::from_secs(30), || {
            let connections: Value = serde_json::from_str(&http::get(monitor, "/connz").ok()?).ok()?;
            connections["num_connections"].as_u64().filter(|count| *count > 0)
        })?;
        Ok(Self { process, metrics, _nats: nats })
    }

    /// What /metrics says now.
    ///
    /// # Errors
    /// When it does not answer.
    pub(super) fn page(&self) -> Result<String> {
        http::get(self.metrics, "/metrics")
    }
}

/// Number of series in an exposition.
pub(super) fn series(page: &str) -> usize {
    page.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).count()
}

fn configuration(dir: &Path, nats: SocketAddr, metrics: SocketAddr, wanted: &Wanted) -> String {
    let Wanted { webhook, interval_secs: every, more } = wanted;
    let dir = dir.display();
    let agent = format!(
        r#"[agent]
hostname = "bench"
collect_interval_secs = {every}
data_dir = "{dir}/data"
pid_file = "{dir}/agent.pid"

[collector]
cpu_interval_secs = {every}
memory_interval_secs = {every}
disk_interval_secs = {every}
network_interval_secs = {every}
process_interval_secs = {every}
fd_interval_secs = {every}

[nats]
enabled = true
url = "nats://{nats}"

[prometheus]
enabled = true
bind = "{metrics}"
"#
    );
    let alerting = webhook.map(|webhook| {
        format!(
            r#"
[alerting]
min_interval_secs = 1
dedup_window_secs = 1
max_alerts_per_hour = 1000

[alerting.webhook]
enabled = true
url = "http://{webhook}/"
"#
        )
    });
    agent + &alerting.unwrap_or_default() + more
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_are_lines_with_a_value() {
        assert_eq!(series("# HELP a b\n# TYPE a gauge\na 1\nb{c=\"#\"} 2\n\n"), 2);
    }
}
