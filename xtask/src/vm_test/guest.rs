//! One guest from start to end: QEMU without KVM or a kernel that is a program, what it says in files, and a deadline.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::kernels::{self, Kernel, Machine};
use crate::{apt, program};

/// QEMU for guests of this architecture, and its package.
const QEMU: (&str, &str) = ("qemu-system-x86_64", "qemu-system-x86");

/// The kernel hands `said` and `end` on to the init: the line to speak on, and how to come to an end. To wait for RCU would be most of
/// what it takes to detach a program, and to guard against the processor's own faults much of what a system call takes. With
/// two nodes the kernel would take pages away to see who uses them, which tells less of who touched memory first.
const APPEND: &str = "console=ttyS0 quiet panic=1 log_buf_len=4M rcupdate.rcu_expedited=1 mitigations=off \
                      numa_balancing=disable said=ttyS1 end=reboot";

/// What became of a guest.
pub(crate) struct Ran {
    /// What the init said, on a serial line of its own.
    pub(crate) said: String,
    /// What the kernel said, as a file.
    pub(crate) console: PathBuf,
    /// False when the deadline ended it.
    pub(crate) in_time: bool,
    /// From its start to its end.
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

/// Boots `kernel` with `memory_mib` and waits for its end, for no longer than `deadline`. Its lines are kept in `dir` under
/// `name`.
///
/// # Errors
/// When it cannot be started, or its files not be read.
pub(crate) fn run(
    kernel: &Kernel,
    initramfs: &Path,
    dir: &Path,
    name: &str,
    memory_mib: u32,
    deadline: Duration,
) -> Result<Ran> {
    let console = dir.join(format!("{name}.console"));
    let said = dir.join(format!("{name}.said"));
    let mut command = match kernel.machine {
        Machine::Qemu => qemu(kernel, initramfs, memory_mib, [&console, &said], &dir.join(format!("{name}.qemu")))?,
        Machine::Uml => uml(kernel, initramfs, memory_mib, &console, &said)?,
    };
    // What an earlier guest said must not be taken for what one said that could not begin.
    File::create(&said).with_context(|| said.display().to_string())?;
    let start = Instant::now();
    let child = command.stdin(Stdio::null()).spawn();
    let mut running =
        Running(child.with_context(|| format!("{}: cannot be started", command.get_program().display()))?);
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

fn qemu(kernel: &Kernel, initramfs: &Path, memory_mib: u32, lines: [&PathBuf; 2], errors: &Path) -> Result<Command> {
    let mut command = Command::new(program::find(QEMU.0).context("QEMU is not there any more")?);
    // With a thread for each CPU some boots die: the kernel patches its own code while another CPU runs it.
    command.args(["-accel", "tcg,thread=single", "-cpu", "max", "-smp", "2", "-m", &memory_mib.to_string()]);
    command.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
    // Two nodes of memory with a CPU each.
    for node in 0..2 {
        let half = memory_mib / 2;
        command.args(["-object", &format!("memory-backend-ram,id=node{node},size={half}M")]);
        command.args(["-numa", &format!("node,nodeid={node},cpus={node},memdev=node{node}")]);
    }
    // A disk of NVMe with two ways to it, for the test that loads the driver.
    command.args(["-blockdev", "null-co,node-name=shared,size=33554432,read-zeroes=on"]);
    command.args(["-device", "nvme-subsys,id=subsystem,nqn=shared"]);
    for path in ["one", "other"] {
        command.args(["-device", &format!("nvme,id={path},serial=shared,subsys=subsystem")]);
    }
    command.args(["-device", "nvme-ns,drive=shared,bus=one,shared=on"]);
    command.arg("-kernel").arg(&kernel.image).arg("-initrd").arg(initramfs);
    command.args(["-append", APPEND]);
    for file in lines {
        command.arg("-serial").arg(format!("file:{}", file.display()));
    }
    let errors = File::create(errors).with_context(|| errors.display().to_string())?;
    command.stdout(errors.try_clone()?).stderr(errors);
    Ok(command)
}

fn uml(kernel: &Kernel, initramfs: &Path, memory_mib: u32, console: &Path, said: &Path) -> Result<Command> {
    let mut command = Command::new(&kernel.image);
    command.env("LD_PRELOAD", whole_state()?);
    command.arg(format!("mem={memory_mib}M")).arg(format!("initrd={}", initramfs.display()));
    command.args(["con0=null,fd:2", "con=null", "ssl0=null,fd:1", "quiet", "panic=1", "said=ttyS0", "end=poweroff"]);
    // Its memory is a file, larger than what a container gives to /dev/shm.
    command.env("TMPDIR", console.parent().context("a file is in a folder")?);
    command.stdout(File::create(said).with_context(|| said.display().to_string())?);
    command.stderr(File::create(console).with_context(|| console.display().to_string())?);
    Ok(command)
}

/// What has to be loaded into it where the processor has more registers than it knows.
fn whole_state() -> Result<PathBuf> {
    let (source, library) = (kernels::home().join("whole_state.c"), kernels::home().join("whole_state.so"));
    std::fs::write(&source, include_str!("whole_state.c")).with_context(|| source.display().to_string())?;
    let mut compiler = Command::new("cc");
    compiler.args(["-shared", "-fPIC", "-O2", "-o"]).arg(&library).arg(&source).arg("-ldl");
    program::capture(&mut compiler).map(|_| library)
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
