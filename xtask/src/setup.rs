//! `cargo xtask setup`: gets the BPF toolchain by whichever route the machine offers, skips what is there, asks nothing.

use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result};

use crate::toolchain::{self, Facts, Route};
use crate::{apt, no_args, program, workspace};

/// The command.
pub(crate) fn main(args: &[String]) -> Result<()> {
    no_args("setup", args)?;
    ensure();
    Ok(())
}

/// The route that is complete after this, or none: then the reason was said, and the agent builds without objects.
pub(crate) fn ensure() -> Option<Route> {
    let start = Instant::now();
    let facts = Facts::read();
    if let Some(route) = facts.ready() {
        program::say(format!("BPF toolchain: {}, all there ({})", route.name(), program::seconds(start)));
        return Some(route);
    }
    let offered = facts.offered();
    if offered.is_empty() {
        program::say("BPF toolchain: none: packages cannot be installed by this user, and there is no rustup");
    }
    for route in offered {
        program::say(format!("BPF toolchain: {}: getting what is missing", route.name()));
        match get(route, &facts) {
            Ok(()) => {
                program::say(format!("BPF toolchain: {}, ready ({})", route.name(), program::seconds(start)));
                return Some(route);
            }
            Err(error) => program::say(format!("BPF toolchain: {}: not possible: {error:#}", route.name())),
        }
    }
    program::say("going on without BPF objects: every probe will stand on /dev/kmsg or off, and say so");
    None
}

fn get(route: Route, facts: &Facts) -> Result<()> {
    match route {
        Route::Debian => {
            timed("packages", || apt::ensure(toolchain::PACKAGES))?;
        }
        Route::Rustup if !facts.nightly_source => {
            let mut rustup = Command::new("rustup");
            rustup.args(["toolchain", "install", toolchain::NIGHTLY, "--profile=minimal", "--no-self-update"]);
            rustup.args(["--component=rust-src", "--component=clippy", "--component=rustfmt"]);
            timed("nightly", || program::show(&mut rustup))?;
        }
        Route::Rustup => {}
    }
    if !facts.linker {
        timed("bpf-linker", install_linker)?;
    }
    Facts::read()
        .ready()
        .map(|_| ())
        .context("everything was installed, and still core for BPF or bpf-linker is not found")
}

/// Builds the linker with an LLVM of this machine; without one takes a built one, by cargo-binstall.
fn install_linker() -> Result<()> {
    let mut cargo = workspace::cargo();
    if let Some((version, dir)) = toolchain::llvm() {
        // llvm-sys finds the LLVM to link with by the llvm-config that comes first in PATH.
        let path = std::env::var_os("PATH").unwrap_or_default();
        cargo.env("PATH", std::env::join_paths(std::iter::once(dir).chain(std::env::split_paths(&path)))?);
        cargo.args(["install", "bpf-linker", "--locked", "--force", "--version", toolchain::LINKER]);
        cargo.args(["--no-default-features", "--features"]).arg(format!("llvm-{version}"));
        return program::show(&mut cargo);
    }
    let binstall = ["binstall", "--no-confirm", "--force"];
    program::show(cargo.args(binstall).arg(format!("bpf-linker@{}", toolchain::LINKER)))
        .context("there is neither LLVM 22 or 23 with its development files, nor cargo-binstall")
}

fn timed<T>(what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let start = Instant::now();
    let result = work()?;
    program::say(format!("  {what}: {}", program::seconds(start)));
    Ok(result)
}
