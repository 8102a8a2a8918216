//! Where things are in the repository, and what cargo knows about its packages.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::program;

/// The repository's root: the parent of this package.
pub(crate) fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).parent().map(PathBuf::from).unwrap_or_default()
}

/// Where cargo puts what it builds for the host: `CARGO_TARGET_DIR`, else `target`.
pub(crate) fn target() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(dir) => root().join(dir),
        None => root().join("target"),
    }
}

/// The kernel side, a workspace of its own.
pub(crate) fn ebpf() -> PathBuf {
    root().join("sysops-ebpf")
}

/// Where the objects lie that the agent's build script embeds when no `SYSOPS_BPF_DIR` says otherwise.
pub(crate) fn objects() -> PathBuf {
    root().join("target/bpf")
}

/// The release agent.
pub(crate) fn agent() -> PathBuf {
    target().join("release/sysops-agent")
}

/// The cargo that runs this program, in the repository's root.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

/// Names of a package's features, `default` left out.
pub(crate) fn features(package: &str) -> Result<Vec<String>> {
    let text = program::capture(cargo().args(["metadata", "--no-deps", "--format-version=1"]))?;
    let metadata: Value = serde_json::from_str(&text).context("cargo metadata: not JSON")?;
    let features = metadata["packages"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|found| found["name"] == package)
        .and_then(|found| found["features"].as_object())
        .with_context(|| format!("cargo metadata: no package {package}"))?;
    Ok(features.keys().filter(|name| *name != "default" && !name.starts_with("dep:")).cloned().collect())
}
