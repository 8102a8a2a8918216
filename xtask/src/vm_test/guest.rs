//! One guest from start to end: QEMU without KVM, its two serial lines in files, and a deadline.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::kernels::Kernel;
use crate::{apt, program};

/// QEMU for guests of this architecture, and its package.
const QEMU: (&str, &str) = ("qemu-system-x86_64", "qemu-system-x86");
const MEMORY_MIB: u32 = 512;

/// What became of a guest.
pub(crate) struct Ran {
    /// What the init said on the second serial line.
    pub(crate) said: String,
    /// What the kernel said on the first, as a file.
    pub(crate) console: PathBuf,
    /// False when the deadline ended it.
    pub(crate) in_time: bool,
    /// From the start of QEMU to its end.
    pub(crate) took: Duration,
}

/// Gets QEMU where it is missing.
///
/// # Errors
/// When it is missing and cannot be installed by this user: with the package's name.
pub(crate) fn ensure_qemu() -> Result<()> {
    let (name, package) = QEMU;
    if program::find(name).is_none() {
        apt::ensure(&[package]).with_context(|| format!("{name} is missing, the package is {package}"))?;
    }
    Ok(())
}

/// Boots `kernel` and waits for its end, for no longer than `deadline`. Its lines are kept in `dir`.
///
/// # Errors
/// When QEMU cannot be started, or its files not be read.
pub(crate) fn run(kernel: &Kernel, initramfs: &Path, dir: &Path, deadline: Duration) -> Result<Ran> {
    let console = dir.join(format!("{}.console", kernel.series));
    let said = dir.join(format!("{}.said", kernel.series));
    let mut command = Command::new(program::find(QEMU.0).context("QEMU is not there any more")?);
    // With a thread for each CPU some boots die: the kernel patches its own code while another CPU runs it.
    command.args(["-accel", "tcg,thread=single", "-cpu", "max", "-smp", "2", "-m", &MEMORY_MIB.to_string()]);
    command.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
    command.arg("-kernel").arg(&kernel.image).arg("-initrd").arg(initramfs);
    command.args(["-append", "console=ttyS0 quiet panic=1 log_buf_len=4M"]);
    for file in [&console, &said] {
        command.arg("-serial").arg(format!("file:{}", file.display()));
    }
    let start = Instant::now();
    let errors = std::fs::File::create(dir.join(format!("{}.qemu", kernel.series)))?;
    let child = command.stdin(Stdio::null()).stdout(errors.try_clone()?).stderr(errors).spawn();
    let mut running = Running(child.context("QEMU cannot be started")?);
    let in_time = loop {
        if running.0.try_wait()?.is_some() {
            break true;
        }
        if start.elapsed() > deadline {
            break false;
        }
        std::thread::sleep(Duration::from_millis(100));
    };
    drop(running);
    let bytes = std::fs::read(&said).with_context(|| said.display().to_string())?;
    Ok(Ran { said: String::from_utf8_lossy(&bytes).into_owned(), console, in_time, took: start.elapsed() })
}

/// A guest that does not outlive its test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself, which is what is wanted.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
