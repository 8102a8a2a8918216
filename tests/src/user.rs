//! The agent as others than root: an ordinary user, and the user of the service with its five capabilities alone.

use crate::agent::Launch;
use crate::require;

/// A user with no rights and no files: `nobody`.
pub const UID: u32 = 65534;

/// Capabilities that deploy/systemd/sysops-agent.service grants, as setpriv(1) writes them.
const CAPABILITIES: &str = "-all,+bpf,+perfmon,+syslog,+dac_read_search,+sys_ptrace";

/// What is missing to become someone else.
#[must_use]
pub fn missing() -> Option<String> {
    require::root().or_else(|| require::programs(&["setpriv"]))
}

/// As an ordinary user.
#[must_use]
pub fn ordinary() -> Launch {
    Launch::as_user(UID, &["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"])
}

/// As the service runs it: not root, five capabilities, no way to more.
#[must_use]
pub fn service() -> Launch {
    let [inheritable, ambient, bounding] =
        ["inh-caps", "ambient-caps", "bounding-set"].map(|set| format!("--{set}={CAPABILITIES}"));
    let user = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--no-new-privs"];
    Launch::as_user(UID, &[&user[..], &[&inheritable, &ambient, &bounding]].concat())
}
