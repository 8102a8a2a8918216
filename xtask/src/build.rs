//! `cargo xtask build`: set-up, objects, and the release agent with the objects embedded.

use anyhow::Result;

use crate::{build_ebpf, no_args, program, setup, workspace};

/// The command.
pub(crate) fn main(args: &[String]) -> Result<()> {
    no_args("build", args)?;
    release()?;
    program::say(format!("the agent: {}", workspace::agent().display()));
    Ok(())
}

/// Builds everything for a release.
///
/// # Errors
/// When a part does not build. A machine without BPF toolchain is no error.
pub(crate) fn release() -> Result<()> {
    build_ebpf::objects(setup::ensure())?;
    program::step("release agent", || {
        program::show(workspace::cargo().args(["build", "--locked", "--release", "--package", "sysops-agent"]))
    })
}
