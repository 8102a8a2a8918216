//! `cargo xtask vm-test [5.10 6.1 6.12 7.x uml | all] [--dev] [--kept] [--only=WORDS,…]`: boots Debian's kernels in QEMU without KVM, forces each probe
//! to each rung in them, runs the kernel tests, and prints what passed and what was refused for which reason.

mod compare;
mod compared;
mod conditions;
mod guest;
mod init;
mod initramfs;
mod kernels;
mod matrix;
mod packages;
mod payload;
mod said;
mod suites;

use std::path::PathBuf;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use self::kernels::Kernel;
use self::matrix::Guest;
use self::payload::Payload;
use crate::{after_dashes, program};

/// All tests of a guest together; most of it is the emulated processor's. Each section has a limit of its own, so a guest in which one
/// hangs comes to its end; that of a release has taken from 13 minutes to more than 25.
const DEADLINE: Duration = Duration::from_secs(60 * 60);
/// Memory of a guest, if its archive does not need more.
const MEMORY_MIB: u32 = 1024;
/// Memory that must be left while the archive is unpacked.
const SPARE_MIB: u32 = 512;

const OPTIONS: &[&str] = &["--dev", "--quick", "--kept", "--compare", "--only=WORDS,…"];

/// Which tests run.
#[derive(Clone, Copy, Default)]
pub(crate) struct Choice<'a> {
    /// Not those that are about no rung.
    pub(crate) quick: bool,
    /// Those whose suite and name have one of these words in them, and nothing else of a guest.
    pub(crate) only: Option<&'a str>,
}

/// The command. Without a kernel's name it takes the oldest, the newest, and the one where nothing attaches. `--dev` takes the
/// agent's dev build; `--quick` leaves out the tests that are about no rung and no probe alone; `--kept` boots nothing and prints the tables of
/// what each guest said when it ran last; `--only=WORDS,…` runs those tests alone that have one of the words in `suite name`, and
/// those that run only when they are asked for; `--compare` runs other tools beside the agent.
pub(crate) fn main(args: &[String]) -> Result<()> {
    let (options, names): (Vec<&str>, Vec<&str>) =
        after_dashes(args).iter().map(String::as_str).partition(|arg| arg.starts_with('-'));
    let only = options.iter().find_map(|option| option.strip_prefix("--only="));
    let is_known = |option: &&str| OPTIONS.contains(option) || option.starts_with("--only=");
    if let Some(unknown) = options.iter().find(|option| !is_known(option)) {
        bail!("vm-test has no option {unknown:?}; it has {}", OPTIONS.join(", "));
    }
    let dev = options.contains(&"--dev");
    if options.contains(&"--compare") {
        return compare::main(&names, dev, options.contains(&"--kept"));
    }
    let names = chosen(&names);
    let (guests, probes) = if options.contains(&"--kept") {
        let guests = names.iter().map(|name| kept(name)).collect::<Result<Vec<Guest>>>()?;
        (guests, payload::probes(&payload::agent(dev)?)?)
    } else {
        boot(&fetch(&names)?, dev, Choice { quick: options.contains(&"--quick"), only })?
    };
    print(&guests, if only.is_some() { &[] } else { &probes })
}

/// The usual kernels with the agent's dev build, each probe on each rung. Tests that are about no rung have run on the machine
/// itself. Where kernels or QEMU cannot be had that is said, and in CI a failure.
///
/// # Errors
/// When a test fails in a guest.
pub(crate) fn usual() -> Result<()> {
    let kernels = match fetch(&kernels::usual()) {
        Err(error) if !std::env::var("CI").is_ok_and(|value| value == "true") => {
            program::say(format!("no guests: {error:#}"));
            return Ok(());
        }
        fetched => fetched?,
    };
    let (guests, probes) = boot(&kernels, true, Choice { quick: true, only: None })?;
    print(&guests, &probes)
}

fn print(guests: &[Guest], probes: &[(String, Vec<String>)]) -> Result<()> {
    let matrix = matrix::of(guests, probes);
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

fn fetch(names: &[&str]) -> Result<Vec<Kernel>> {
    let kernels = names.iter().map(|name| kernels::get(name)).collect::<Result<_>>()?;
    kernels::busybox()?;
    guest::ensure_qemu()?;
    Ok(kernels)
}

/// Boots the kernels, as many at a time as there are processors: each guest keeps one busy. The newest take longest and
/// begin.
fn boot(kernels: &[Kernel], dev: bool, choice: Choice<'_>) -> Result<(Vec<Guest>, Probes)> {
    let payload = Payload::build(dev, choice)?;
    let start = Instant::now();
    let at_once = std::thread::available_parallelism().map_or(1, usize::from);
    let (waiting, ran) = (Mutex::new((0..kernels.len()).collect::<Vec<_>>()), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..at_once.min(kernels.len()) {
            scope.spawn(|| {
                loop {
                    let next = waiting.lock().expect("no guest panics").pop();
                    let Some(place) = next else { return };
                    let guest = test(&kernels[place], &payload);
                    ran.lock().expect("no guest panics").push((place, guest));
                }
            });
        }
    });
    let mut ran = ran.into_inner().expect("no guest panics");
    ran.sort_by_key(|(place, _)| *place);
    let guests = ran.into_iter().map(|(_, guest)| guest).collect::<Result<_>>()?;
    program::say(format!("{} guests: done in {}", kernels.len(), program::seconds(start)));
    Ok((guests, payload.probes))
}

/// What the guest of a kernel said when it ran last.
fn kept(name: &str) -> Result<Guest> {
    let series =
        kernels::all().into_iter().find(|series| *series == name).with_context(|| format!("no kernel {name}"))?;
    let file = guests_dir().join(format!("{series}.said"));
    let said = std::fs::read(&file).with_context(|| format!("{}: has its guest run?", file.display()))?;
    let (sections, done) = said::sections(&String::from_utf8_lossy(&said));
    let stopped = (!done).then(|| "the guest had not come to its end".to_owned());
    Ok(Guest { series, sections, stopped, attaches: kernels::attaches(series) })
}

fn guests_dir() -> PathBuf {
    kernels::home().join("guests")
}

/// Names of kernels as given, `all`, or the usual ones.
fn chosen<'a>(given: &[&'a str]) -> Vec<&'a str> {
    match given {
        [] => kernels::usual(),
        given if given.contains(&"all") => kernels::all(),
        given => given.to_vec(),
    }
}

fn test(kernel: &Kernel, payload: &Payload) -> Result<Guest> {
    let dir = guests_dir();
    std::fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
    let initramfs = dir.join(format!("{}.cpio", kernel.series));
    let archive = payload.initramfs(kernel)?;
    let memory_mib = memory_mib(archive.len());
    std::fs::write(&initramfs, archive).with_context(|| initramfs.display().to_string())?;
    let ran = guest::run(kernel, &initramfs, &dir, kernel.series, memory_mib, DEADLINE)?;
    std::fs::remove_file(&initramfs).with_context(|| initramfs.display().to_string())?;
    let (sections, done) = said::sections(&ran.said);
    program::say(format!("{}: {} sections in {:.0} s", kernel.series, sections.len(), ran.took.as_secs_f64()));
    let stopped = match (done, ran.in_time) {
        (true, _) => None,
        (false, true) => Some(format!("the guest stopped before its end: {}", ran.console.display())),
        (false, false) => Some(format!("the guest was not at its end after {} s", DEADLINE.as_secs())),
    };
    Ok(Guest { series: kernel.series, sections, stopped, attaches: kernels::attaches(kernel.series) })
}

/// Memory for a guest that unpacks an archive of so many bytes: its kernel drops the archive only when all files are written.
fn memory_mib(archive: usize) -> u32 {
    let archive_mib = u32::try_from(archive >> 20).unwrap_or(u32::MAX / 4);
    MEMORY_MIB.max((2 * archive_mib + SPARE_MIB).next_multiple_of(256))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_has_room_for_what_it_unpacks() {
        assert_eq!(memory_mib(100 << 20), MEMORY_MIB);
        assert_eq!(memory_mib(337 << 20), 1280);
    }

    #[test]
    fn no_name_means_the_oldest_the_newest_and_the_one_without_programs() {
        assert_eq!(chosen(&[]), ["5.10", "7.x", "uml"]);
        assert_eq!(chosen(&["all"]), kernels::all());
        assert_eq!(chosen(&["6.1"]), ["6.1"]);
    }
}
