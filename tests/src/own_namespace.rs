//! Runs a test in a mount namespace of its own, by running its binary again, so that what it mounts is seen by no one else
//! and is gone with it.
#![expect(clippy::disallowed_methods, reason = "tests are outside of the agent: they run programs as they like")]

use std::process::Command;

/// Tells the second run that it is one.
const INSIDE: &str = "SYSOPS_TEST_IN_NAMESPACE";

/// tracefs is mounted where it is not, as the rung `tracepoint` needs it.
const PREPARE: &str =
    "test -d /sys/kernel/tracing/events || mount -t tracefs tracefs /sys/kernel/tracing; exec \"$0\" \"$@\"";

/// True in the second run. In the first it does that run, which must pass.
///
/// # Panics
/// When the test `name` fails in its namespace, with what it said.
#[must_use]
pub fn is_inside(name: &str) -> bool {
    if std::env::var(INSIDE).is_ok() {
        return true;
    }
    let output = Command::new("unshare")
        .args(["-m", "sh", "-c", PREPARE])
        .arg(std::env::current_exe().expect("a test has a path"))
        .args(["--exact", name, "--nocapture"])
        .env(INSIDE, "1")
        .output()
        .expect("unshare is there");
    let said = String::from_utf8_lossy(&output.stderr);
    let counted = String::from_utf8_lossy(&output.stdout).contains("1 passed");
    assert!(output.status.success() && counted, "{said}");
    eprintln!("{said}");
    false
}
