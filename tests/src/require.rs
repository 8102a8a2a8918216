//! What a test needs of the machine that runs it. Where that is missing the test says so and passes, but not in CI.
#![expect(
    clippy::disallowed_methods,
    reason = "tests are outside of the agent: they read files and run programs as they like"
)]

use std::path::Path;

/// True when nothing is missing. Else the reason is printed, and the test returns; with `CI=true` that is a failure,
/// so that no test is left out there unseen.
///
/// # Panics
/// In CI, when something is missing.
#[must_use]
pub fn require(missing: Option<String>) -> bool {
    let Some(reason) = missing else { return true };
    let ci = std::env::var("CI").is_ok_and(|value| value == "true");
    assert!(!ci, "this test must run in CI, but: {reason}");
    eprintln!("skipped: {reason}");
    false
}

/// What is missing to act as root.
#[must_use]
pub fn root() -> Option<String> {
    (!rustix::process::geteuid().is_root()).then(|| "needs root".to_owned())
}

/// What is missing of these programs.
#[must_use]
pub fn programs(names: &[&str]) -> Option<String> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let there = |name: &str| std::env::split_paths(&path).any(|directory| directory.join(name).is_file());
    names.iter().find(|name| !there(name)).map(|name| format!("needs the program {name}"))
}

/// What is missing of these files.
#[must_use]
pub fn files(paths: &[&str]) -> Option<String> {
    paths.iter().find(|path| !Path::new(path).exists()).map(|path| format!("needs {path}"))
}

/// What is missing of these modules of the kernel, which are loaded.
#[must_use]
pub fn modules(names: &[&str]) -> Option<String> {
    names.iter().find_map(|name| module_with(name, &[]))
}

/// What is missing of a module of the kernel, which is loaded with these parameters.
#[must_use]
pub fn module_with(name: &str, parameters: &[&str]) -> Option<String> {
    let output = std::process::Command::new("modprobe").arg(name).args(parameters).output();
    let loaded = output.is_ok_and(|output| output.status.success());
    (!loaded).then(|| format!("needs the kernel's module {name}"))
}
