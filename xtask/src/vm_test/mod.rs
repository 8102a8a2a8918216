//! `cargo xtask vm-test [5.10 6.1 6.12 7.x | all] [--dev] [--kept]`: boots Debian's kernels in QEMU without KVM, forces each probe
//! to each rung in them, runs the kernel tests, and prints what passed and what was refused for which reason.

mod guest;
mod init;
mod initramfs;
mod kernels;
mod matrix;
mod payload;
mod said;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use self::kernels::Kernel;
use self::matrix::Guest;
use self::payload::Payload;
use crate::{after_dashes, program};

/// A test's executable that runs in the guests, and the probe whose rungs its tests show.
struct Suite {
    name: &'static str,
    probe: Option<&'static str>,
}

static SUITES: &[Suite] = &[
    Suite { name: "kernel_oom_kill", probe: Some("oom_kill") },
    Suite { name: "kernel_hung_task", probe: Some("hung_task") },
    Suite { name: "kernel_block_io", probe: Some("block_io") },
    Suite { name: "kernel_fd", probe: Some("fd") },
    Suite { name: "kernel_fd_leaks", probe: Some("fd") },
    Suite { name: "kernel_self_check", probe: None },
];

/// All tests of a guest together; most of it is the emulated processor's.
const DEADLINE: Duration = Duration::from_secs(25 * 60);

/// The command. Without a kernel's name it takes the oldest and the newest. `--dev` takes the agent's dev build; `--kept`
/// boots nothing and prints the tables of what each guest said when it ran last.
pub(crate) fn main(args: &[String]) -> Result<()> {
    let (options, names): (Vec<&str>, Vec<&str>) =
        after_dashes(args).iter().map(String::as_str).partition(|arg| arg.starts_with('-'));
    if let Some(unknown) = options.iter().find(|option| !["--dev", "--kept"].contains(option)) {
        bail!("vm-test has no option {unknown:?}; it has --dev and --kept");
    }
    let dev = options.contains(&"--dev");
    let names = chosen(&names, &kernels::all());
    let (guests, probes) = if options.contains(&"--kept") {
        let guests = names.iter().map(|name| kept(name)).collect::<Result<Vec<Guest>>>()?;
        (guests, payload::probes(&payload::agent(dev)?)?)
    } else {
        boot(&names, dev)?
    };
    let matrix = matrix::of(&guests, &probes);
    print!("{}", matrix.text);
    if !matrix.failures.is_empty() {
        bail!(
            "{} failures; what was said is in {}\n{}",
            matrix.failures.len(),
            kernels::home().display(),
            matrix.failures.join("\n")
        );
    }
    Ok(())
}

/// Each probe with its rungs.
type Probes = Vec<(String, Vec<String>)>;

/// Boots the kernels one after the other.
fn boot(names: &[&str], dev: bool) -> Result<(Vec<Guest>, Probes)> {
    let kernels: Vec<Kernel> = names.iter().map(|name| kernels::get(name)).collect::<Result<_>>()?;
    guest::ensure_qemu()?;
    let payload = Payload::build(dev)?;
    let mut guests = Vec::new();
    for kernel in &kernels {
        guests.push(program::step(&format!("guest {}", kernel.series), || test(kernel, &payload))?);
    }
    Ok((guests, payload.probes))
}

/// What the guest of a kernel said when it ran last.
fn kept(name: &str) -> Result<Guest> {
    let series =
        kernels::all().into_iter().find(|series| *series == name).with_context(|| format!("no kernel {name}"))?;
    let file = guests_dir().join(format!("{series}.said"));
    let said = std::fs::read(&file).with_context(|| format!("{}: has its guest run?", file.display()))?;
    let (sections, done) = said::sections(&String::from_utf8_lossy(&said));
    Ok(Guest { series, sections, stopped: (!done).then(|| "the guest had not come to its end".to_owned()) })
}

fn guests_dir() -> PathBuf {
    kernels::home().join("guests")
}

/// Names of kernels as given, `all`, or the oldest and the newest.
fn chosen<'a>(given: &[&'a str], all: &[&'a str]) -> Vec<&'a str> {
    match given {
        [] => all.first().into_iter().chain(all.last()).copied().collect(),
        given if given.contains(&"all") => all.to_vec(),
        given => given.to_vec(),
    }
}

fn test(kernel: &Kernel, payload: &Payload) -> Result<Guest> {
    let dir = guests_dir();
    std::fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
    let initramfs = dir.join(format!("{}.cpio", kernel.series));
    std::fs::write(&initramfs, payload.initramfs(kernel)?).with_context(|| initramfs.display().to_string())?;
    let ran = guest::run(kernel, &initramfs, &dir, DEADLINE)?;
    std::fs::remove_file(&initramfs).with_context(|| initramfs.display().to_string())?;
    let (sections, done) = said::sections(&ran.said);
    program::say(format!("{}: {} sections in {:.0} s", kernel.series, sections.len(), ran.took.as_secs_f64()));
    let stopped = match (done, ran.in_time) {
        (true, _) => None,
        (false, true) => Some(format!("the guest stopped before its end: {}", ran.console.display())),
        (false, false) => Some(format!("the guest was not at its end after {} s", DEADLINE.as_secs())),
    };
    Ok(Guest { series: kernel.series, sections, stopped })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_name_means_the_oldest_and_the_newest() {
        let all = kernels::all();
        assert_eq!(chosen(&[], &all), ["5.10", "7.x"]);
        assert_eq!(chosen(&["all"], &all), all);
        assert_eq!(chosen(&["6.1"], &all), ["6.1"]);
    }
}
