//! `cargo xtask build-ebpf`: builds the kernel side and lays one object a probe into target/bpf. Embedding them is
//! left to the agent's build script.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::toolchain::{self, Route};
use crate::{no_args, program, setup, workspace};

/// The command.
pub(crate) fn main(args: &[String]) -> Result<()> {
    no_args("build-ebpf", args)?;
    let Some(route) = setup::ensure() else { bail!("no BPF toolchain, so there are no objects to build") };
    objects(Some(route)).map(|_| ())
}

/// Builds what `route` allows. Gives the names of the probes of which there is an object.
///
/// # Errors
/// When the kernel side does not build. Without a route nothing is built, and that is no error.
pub(crate) fn objects(route: Option<Route>) -> Result<Vec<String>> {
    let built = match route {
        Some(route) => program::step("BPF objects", || build(route))?,
        None => Vec::new(),
    };
    let dir = workspace::objects();
    std::fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
    let mut names = BTreeSet::new();
    for file in &built {
        let name = file.file_name().context("cargo named an object without a name")?.to_string_lossy().into_owned();
        place(file, &dir.join(format!("{name}.o")))?;
        names.insert(name);
    }
    remove_stale(&dir, &names)?;
    if !names.is_empty() {
        program::say(format!("{} objects in target/bpf: {}", names.len(), Vec::from_iter(names.clone()).join(" ")));
    }
    Ok(names.into_iter().collect())
}

/// Every binary of the kernel side is one probe; cargo says where it put each.
fn build(route: Route) -> Result<Vec<PathBuf>> {
    let mut cargo = toolchain::cargo(route, "build");
    cargo.args(["--locked", "--bins", "--message-format=json-render-diagnostics"]);
    let output = cargo.stdin(Stdio::null()).stderr(Stdio::inherit()).output().context("cargo cannot be started")?;
    if !output.status.success() {
        bail!("cargo build of sysops-ebpf: {}", output.status);
    }
    let messages = String::from_utf8_lossy(&output.stdout);
    let objects = executables(&messages);
    if objects.is_empty() {
        bail!("cargo built no binary in sysops-ebpf");
    }
    Ok(objects)
}

/// Paths of the binaries in cargo's JSON messages.
fn executables(messages: &str) -> Vec<PathBuf> {
    messages
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|message| message["reason"] == "compiler-artifact")
        .filter_map(|message| message["executable"].as_str().map(PathBuf::from))
        .collect()
}

/// Copies only what changed, so that the agent is not built again for nothing. Debug sections are left out where LLVM's
/// `llvm-strip` is at hand: they are four fifths of an object, and the kernel wants the BTF alone.
fn place(from: &Path, to: &Path) -> Result<()> {
    let stripped = from.with_extension("stripped");
    let from = if strip(from, &stripped) { &stripped } else { from };
    let new = std::fs::read(from).with_context(|| from.display().to_string())?;
    if std::fs::read(to).is_ok_and(|old| old == new) {
        return Ok(());
    }
    std::fs::write(to, new).with_context(|| to.display().to_string())
}

fn strip(from: &Path, to: &Path) -> bool {
    let Some((_, dir)) = toolchain::llvm() else { return false };
    let mut strip = Command::new(dir.join("llvm-strip"));
    strip.arg("--strip-debug").arg("-o").arg(to).arg(from).stdin(Stdio::null()).stderr(Stdio::null());
    strip.status().is_ok_and(|status| status.success())
}

/// An object of a probe that is no more, or of a machine that had a toolchain once, must not be embedded.
fn remove_stale(dir: &Path, names: &BTreeSet<String>) -> Result<()> {
    for entry in std::fs::read_dir(dir).with_context(|| dir.display().to_string())? {
        let path = entry?.path();
        let name = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
        if !names.contains(&name) {
            std::fs::remove_file(&path).with_context(|| path.display().to_string())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn binaries_are_taken_from_cargos_messages() {
        let messages = concat!(
            "{\"reason\":\"compiler-artifact\",\"target\":{\"name\":\"aya_ebpf\"},\"executable\":null}\n",
            "{\"reason\":\"compiler-artifact\",\"target\":{\"name\":\"fd\"},\"executable\":\"/t/release/fd\"}\n",
            "not json\n",
            "{\"reason\":\"build-finished\",\"success\":true}\n",
        );
        assert_eq!(executables(messages), [PathBuf::from("/t/release/fd")]);
    }
}
