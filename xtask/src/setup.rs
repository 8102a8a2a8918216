//! `cargo xtask setup`: gets the BPF toolchain by whichever route the machine offers, skips what is there, asks nothing.

use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result};

use crate::toolchain::{self, Facts, Route};
use crate::{apt, no_args, program};

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
            if !facts.debian_core || !facts.linker {
                timed("packages", || apt::ensure(toolchain::PACKAGES))?;
            }
            if !facts.linker {
                timed("bpf-linker", || {
                    let mut cargo = install_linker();
                    // llvm-sys finds the LLVM to link with by the llvm-config in PATH.
                    let path = std::env::var("PATH").unwrap_or_default();
                    cargo.env("PATH", format!("{}:{path}", toolchain::LLVM_BIN));
                    program::show(cargo.args(["--no-default-features", "--features", "llvm-22"]))
                })?;
            }
        }
        Route::Rustup => {
            if !facts.nightly_source {
                timed("nightly", || {
                    let install = ["toolchain", "install", "nightly", "--profile=minimal", "--component=rust-src"];
                    program::show(Command::new("rustup").args(install))
                })?;
            }
            if !facts.linker {
                timed("bpf-linker", || program::show(&mut install_linker()))?;
            }
        }
    }
    let now = Facts::read();
    now.ready().map(|_| ()).context("everything was installed, and still core for BPF or bpf-linker is not found")
}

fn install_linker() -> Command {
    let mut cargo = crate::workspace::cargo();
    cargo.args(["install", "bpf-linker", "--locked", "--force", "--version", toolchain::LINKER]);
    cargo
}

fn timed<T>(what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let start = Instant::now();
    let result = work()?;
    program::say(format!("  {what}: {}", program::seconds(start)));
    Ok(result)
}
