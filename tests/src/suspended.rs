//! The machine suspended to memory (ACPI S3) and woken by its clock.
#![expect(clippy::disallowed_methods, clippy::panic, reason = "a test reads and writes files and fails by panic")]

use std::time::Duration;

use sysops_agent::host::Host;

use crate::require;

const STATE: &str = "/sys/power/state";
const ALARM: &str = "/sys/class/rtc/rtc0/wakealarm";

/// What is missing to suspend it and to have it back.
#[must_use]
pub fn missing() -> Option<String> {
    let can = || {
        let states = std::fs::read_to_string(STATE).unwrap_or_default();
        (!states.split_whitespace().any(|state| state == "mem")).then(|| "this machine cannot be suspended".to_owned())
    };
    require::root().or_else(|| require::files(&[STATE, ALARM])).or_else(can)
}

/// Suspends it for some seconds. Gives for how long it was, which CLOCK_MONOTONIC does not count.
///
/// # Panics
/// When the kernel refuses, as it does while a task cannot be frozen, or the machine did not sleep.
pub fn suspend(host: &Host, seconds: u32) -> Duration {
    let write = |file: &str, text: &str| {
        std::fs::write(file, text).unwrap_or_else(|error| panic!("{file}: {text}: {error}"));
    };
    // A test may have a file system that cannot be synced.
    let _ = std::fs::write("/sys/power/sync_on_suspend", "0");
    let before = host.clock.now();
    write(ALARM, "0");
    write(ALARM, &format!("+{seconds}"));
    write(STATE, "mem");
    let after = host.clock.now();
    let slept = (after.boottime - before.boottime).saturating_sub(after.monotonic - before.monotonic);
    assert!(slept > Duration::from_secs(u64::from(seconds) / 2), "it slept for {slept:?}");
    slept
}
