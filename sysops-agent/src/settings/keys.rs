//! The keys of `[agent]`: what concerns the agent as a whole. All other keys stand beside the code that uses them.

use std::path::PathBuf;
use std::time::Duration;

use crate::spec::{Complaint, Key, KeySpec, Values};

/// `agent.hostname`.
pub static HOSTNAME: Key<Option<String>> = Key::optional(
    "agent.hostname",
    "Name of this machine in alerts, telemetry and NATS subjects. Not set: the kernel's node name.",
)
.example("\"web-server-01\"");

/// `agent.collect_interval_secs`.
pub static COLLECT_INTERVAL: Key<Duration> = Key::secs(
    "agent.collect_interval_secs",
    10,
    1,
    3600,
    "Seconds between two readings of what has no interval of its own in [collector].",
);

/// `agent.log_level`.
pub static LOG_LEVEL: Key<String> = Key::choice(
    "agent.log_level",
    &["trace", "debug", "info", "warn", "error"],
    "info",
    "Least level that is logged to stderr. --log-level wins, then RUST_LOG.",
);

/// `agent.data_dir`.
pub static DATA_DIR: Key<String> = Key::text(
    "agent.data_dir",
    "/var/lib/sysops-agent",
    "Directory for what must survive a restart: alerts and what waits to be delivered, the position in the kernel's log. Empty: nothing \
     is kept.",
);

/// `agent.pid_file`.
pub static PID_FILE: Key<Option<String>> =
    Key::optional("agent.pid_file", "File that holds the agent's process id while it runs. Not set: none is written.")
        .example("\"/run/sysops-agent.pid\"");

/// All of them.
pub static ALL: &[&KeySpec] =
    &[HOSTNAME.spec(), COLLECT_INTERVAL.spec(), LOG_LEVEL.spec(), DATA_DIR.spec(), PID_FILE.spec()];

/// Longest host name (HOST_NAME_MAX is 64; a full domain name has up to 253 characters).
const HOSTNAME_MAX: usize = 253;

/// The directory for what must survive a restart; `None`: nothing is kept.
#[must_use]
pub fn data_dir(values: &Values) -> Option<PathBuf> {
    Some(values.get(&DATA_DIR)).filter(|path| !path.is_empty()).map(PathBuf::from)
}

/// What is wrong with values that have the right type.
#[must_use]
pub fn check(values: &Values) -> Vec<Complaint> {
    let mut complaints = Vec::new();
    let mut complain = |key: &KeySpec, message: &str| {
        complaints.push(Complaint { path: key.path.to_owned(), message: message.to_owned() });
    };
    if let Some(name) = values.get(&HOSTNAME)
        && (name.is_empty() || name.len() > HOSTNAME_MAX || name.chars().any(|c| c.is_whitespace() || c.is_control()))
    {
        complain(HOSTNAME.spec(), "expected a name of 1 to 253 characters without blanks");
    }
    if data_dir(values).is_some_and(|path| path.is_relative()) {
        complain(DATA_DIR.spec(), "expected an absolute path: it would depend on where the agent is started");
    }
    if values.get(&PID_FILE).is_some_and(|path| !path.starts_with('/')) {
        complain(PID_FILE.spec(), "expected an absolute path: it would depend on where the agent is started");
    }
    complaints
}
