//! Debian's kernels and busybox by the names of their packages, unpacked to target/vm and kept there. Getting packages is
//! left to `packages`, what goes into a guest to `payload`.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::packages::{Unpacked, World, remove};
use crate::{apt, program, workspace};

/// A series, the suite that has it, and how the names of its packages begin.
struct Series {
    name: &'static str,
    suite: &'static str,
    prefixes: &'static [&'static str],
    machine: Machine,
}

/// What runs a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Machine {
    /// QEMU, which emulates all of a machine.
    Qemu,
    /// The kernel itself is a program. This one has no types, no tracepoints and no tracefs: nothing can be attached.
    Uml,
}

static SERIES: &[Series] = &[
    Series { name: "5.10", suite: "bullseye", prefixes: &["linux-image-5.10."], machine: Machine::Qemu },
    Series { name: "6.1", suite: "bookworm", prefixes: &["linux-image-6.1."], machine: Machine::Qemu },
    Series { name: "6.12", suite: "bookworm-backports", prefixes: &["linux-image-6.12."], machine: Machine::Qemu },
    // The image package of these is empty: kernel and modules are in two that it depends on.
    Series { name: "7.x", suite: "forky", prefixes: &["linux-binary-7.", "linux-modules-7."], machine: Machine::Qemu },
    Series { name: "uml", suite: "bookworm", prefixes: &["user-mode-linux"], machine: Machine::Uml },
];

/// What tests mount and write to, loaded when the guest starts. One that is not there is built into the kernel. Up to 6.x ext4
/// asks for crc32c only when it mounts.
pub(crate) const LOADED: &[&str] = &["loop", "crc32c_generic", "ext4", "dm_mod", "fuse"];
/// What a test loads for itself, as its disks, or that they can be, would be there for all others too.
const AT_HAND: &[&str] =
    &["null_blk", "scsi_debug", "sd_mod", "dm_multipath", "dm_round_robin", "nvme", "nfsv3", "raid0", "raid1"];

/// Beside a kept kernel: which modules were looked for, and how they were kept.
const WANTED: &str = "wanted";
/// Which modules each of them needs, as modprobe(8) reads it.
const DEPENDENCIES: &str = "modules.dep";

/// A kernel that can be booted.
pub(crate) struct Kernel {
    /// `6.12`.
    pub(crate) series: &'static str,
    /// What runs it.
    pub(crate) machine: Machine,
    /// The image that is started.
    pub(crate) image: PathBuf,
    /// Its modules, unpacked, and modules.dep.
    pub(crate) modules: Vec<PathBuf>,
}

/// Names of all series, oldest first, and last the one where nothing attaches.
pub(crate) fn all() -> Vec<&'static str> {
    SERIES.iter().map(|series| series.name).collect()
}

/// The oldest, the newest, and the one where nothing attaches.
pub(crate) fn usual() -> Vec<&'static str> {
    let of = |machine: Machine| SERIES.iter().filter(move |series| series.machine == machine).map(|series| series.name);
    of(Machine::Qemu).take(1).chain(of(Machine::Qemu).next_back()).chain(of(Machine::Uml)).collect()
}

/// The Debian release that a series is taken from.
///
/// # Errors
/// When there is no such series.
pub(crate) fn suite(name: &str) -> Result<&'static str> {
    let series = SERIES.iter().find(|series| series.name == name);
    series.map(|series| series.suite).with_context(|| format!("no kernel {name:?}"))
}

/// True where programs can be attached.
pub(crate) fn attaches(name: &str) -> bool {
    SERIES.iter().any(|series| series.name == name && series.machine == Machine::Qemu)
}

/// The kernel of a series: the kept one, else the newest that its suite has.
///
/// # Errors
/// When it cannot be fetched or is not laid out as expected.
pub(crate) fn get(name: &str) -> Result<Kernel> {
    let series = SERIES.iter().find(|series| series.name == name).with_context(|| {
        format!(
            "no kernel {name:?}; there are {} and all",
            SERIES.iter().map(|s| s.name).collect::<Vec<_>>().join(", ")
        )
    })?;
    let dir = home().join("kernels").join(series.name);
    // A kept kernel with other modules than are wanted now is fetched anew.
    if std::fs::read_to_string(dir.join(WANTED)).ok() != Some(wanted()) {
        remove(&dir)?;
        program::step(&format!("kernel {}: fetching from {}", series.name, series.suite), || fetch(series, &dir))?;
    }
    let mut modules: Vec<PathBuf> = std::fs::read_dir(dir.join("modules"))
        .with_context(|| dir.join("modules").display().to_string())?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<_, _>>()?;
    modules.sort();
    Ok(Kernel { series: series.name, machine: series.machine, image: dir.join("vmlinuz"), modules })
}

/// A busybox that needs no library.
///
/// # Errors
/// When it cannot be fetched.
pub(crate) fn busybox() -> Result<PathBuf> {
    let file = home().join("busybox");
    if !file.is_file() {
        program::step("busybox: fetching", || {
            let unpacked = Unpacked::new(&World::new("bookworm")?, &["busybox-static".to_owned()])?;
            let found =
                unpacked.find(|path| path.ends_with("bin/busybox"))?.context("busybox-static has no busybox")?;
            std::fs::copy(&found, &file).map(|_| ()).with_context(|| file.display().to_string())
        })?;
    }
    Ok(file)
}

/// Where kernels, guests and what they said are kept.
pub(crate) fn home() -> PathBuf {
    workspace::root().join("target/vm")
}

fn wanted() -> String {
    format!("{} {DEPENDENCIES}", [LOADED, AT_HAND].concat().join(" "))
}

/// Fetches into a folder beside `dir` and renames it: what was interrupted is not taken for a kernel.
fn fetch(series: &Series, dir: &Path) -> Result<()> {
    let world = World::new(series.suite)?;
    let packages = series.prefixes.iter().map(|prefix| newest(&world.names(prefix)?, prefix));
    let packages: Vec<String> = packages.collect::<Result<_>>()?;
    program::say(packages.join(" "));
    let unpacked = Unpacked::new(&world, &packages)?;
    let begins = match series.machine {
        Machine::Qemu => "vmlinuz",
        Machine::Uml => "linux.uml",
    };
    let image = unpacked.find(|path| name_of(path).starts_with(begins))?;
    let image = image.with_context(|| format!("no {begins} in the package"))?;
    let new = dir.with_extension("new");
    remove(&new)?;
    std::fs::create_dir_all(new.join("modules")).with_context(|| new.display().to_string())?;
    std::fs::copy(&image, new.join("vmlinuz")).with_context(|| image.display().to_string())?;
    let mut found = Vec::new();
    for module in LOADED.iter().chain(AT_HAND) {
        self::module(&unpacked, module, &mut found)?;
    }
    for (name, bytes) in &found {
        let file = new.join("modules").join(format!("{name}.ko"));
        std::fs::write(&file, bytes).with_context(|| file.display().to_string())?;
    }
    std::fs::write(new.join("modules").join(DEPENDENCIES), dependencies(&found))?;
    std::fs::write(new.join(WANTED), wanted())?;
    std::fs::rename(&new, dir).with_context(|| dir.display().to_string())
}

/// The newest of `names`: the highest numbers, and no flavour (`cloud`, `rt`), signature or symbols in the name.
fn newest(names: &[String], prefix: &str) -> Result<String> {
    if names.iter().any(|name| name == prefix) {
        return Ok(prefix.to_owned());
    }
    let plain = |name: &&String| {
        let version = name.strip_prefix(prefix).and_then(|rest| rest.strip_suffix("-amd64"));
        let word = |word: &str| word.chars().all(|c| c.is_ascii_digit()) || word.starts_with("deb") || word == "bpo";
        version.is_some_and(|version| version.split(['.', '-', '+']).all(word))
    };
    let numbers = |name: &&String| -> Vec<u64> {
        name.split(|c: char| !c.is_ascii_digit()).filter_map(|digits| digits.parse().ok()).collect()
    };
    names
        .iter()
        .filter(plain)
        .max_by_key(numbers)
        .cloned()
        .with_context(|| format!("no package is named {prefix}…-amd64"))
}

/// Adds a module behind those that it needs. One that there is no file of is built in.
fn module(unpacked: &Unpacked, name: &str, loaded: &mut Vec<(String, Vec<u8>)>) -> Result<()> {
    if loaded.iter().any(|(there, _)| there == name) {
        return Ok(());
    }
    let file = unpacked.find(|path| {
        let file = name_of(path);
        file.contains(".ko") && file.split('.').next().is_some_and(|stem| stem.replace('-', "_") == name)
    })?;
    let Some(file) = file else { return Ok(()) };
    let bytes = uncompressed(&file)?;
    for need in depends(&bytes) {
        module(unpacked, &need, loaded)?;
    }
    loaded.push((name.to_owned(), bytes));
    Ok(())
}

/// A line for each of `modules`, which stand behind those that they need: all that it needs, what is loaded first last.
fn dependencies(modules: &[(String, Vec<u8>)]) -> String {
    let mut needs: Vec<(&str, Vec<&str>)> = Vec::new();
    for (name, bytes) in modules {
        let mut mine: Vec<&str> = Vec::new();
        for direct in depends(bytes) {
            for (name, theirs) in needs.iter().filter(|(name, _)| *name == direct) {
                mine.extend(theirs.iter().rev().chain([name]));
            }
        }
        mine.reverse();
        needs.push((name, mine));
    }
    needs
        .into_iter()
        .map(|(name, needs)| {
            let needs: Vec<String> = needs.iter().map(|name| format!("{name}.ko")).collect();
            format!("{name}.ko: {}\n", needs.join(" "))
        })
        .collect()
}

fn uncompressed(file: &Path) -> Result<Vec<u8>> {
    let (tool, package) = match file.extension().and_then(|extension| extension.to_str()) {
        Some("xz") => ("xz", "xz-utils"),
        Some("zst") => ("zstd", "zstd"),
        _ => return std::fs::read(file).with_context(|| file.display().to_string()),
    };
    if program::find(tool).is_none() {
        apt::ensure(&[package]).with_context(|| format!("{tool} is missing, the package is {package}"))?;
    }
    let output =
        Command::new(tool).arg("-dc").arg(file).output().with_context(|| format!("{tool}: cannot be started"))?;
    if !output.status.success() {
        bail!("{tool} -dc {}: {}", file.display(), output.status);
    }
    Ok(output.stdout)
}

/// What a module says that it needs, in the kernel's spelling.
fn depends(module: &[u8]) -> Vec<String> {
    let lines = module.split(|&byte| byte == 0).filter_map(|line| line.strip_prefix(b"depends="));
    lines
        .flat_map(|line| {
            String::from_utf8_lossy(line).split(',').map(|name| name.replace('-', "_")).collect::<Vec<_>>()
        })
        .filter(|name| !name.is_empty())
        .collect()
}

fn name_of(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    #[test]
    fn the_newest_plain_kernel_is_taken() {
        let found = names(&[
            "linux-image-6.1.0-9-amd64",
            "linux-image-6.1.0-50-amd64",
            "linux-image-6.1.0-50-amd64-unsigned",
            "linux-image-6.1.0-50-amd64-dbg",
            "linux-image-6.1.0-51-cloud-amd64",
            "linux-image-6.1.0-51-rt-amd64",
        ]);
        assert_eq!(newest(&found, "linux-image-6.1.").expect("one"), "linux-image-6.1.0-50-amd64");
        let found = names(&["linux-image-6.12.9+bpo-amd64", "linux-image-6.12.95+deb12-amd64"]);
        assert_eq!(newest(&found, "linux-image-6.12.").expect("one"), "linux-image-6.12.95+deb12-amd64");
        assert!(newest(&[], "linux-image-6.1.").is_err());
    }

    #[test]
    fn what_a_module_needs_is_read_from_it() {
        let module = b"\x7fELF\0\0license=GPL\0depends=mbcache,jbd2,crc16\0retpoline=Y\0";
        assert_eq!(depends(module), ["mbcache", "jbd2", "crc16"]);
        assert!(depends(b"name=loop\0depends=\0").is_empty());
    }

    #[test]
    fn what_is_loaded_first_stands_last() {
        let module = |name: &str, needs: &str| (name.to_owned(), format!("\0depends={needs}\0").into_bytes());
        let modules =
            [module("sunrpc", ""), module("grace", ""), module("lockd", "sunrpc,grace"), module("nfs", "lockd")];
        assert_eq!(
            dependencies(&modules),
            "sunrpc.ko: \ngrace.ko: \nlockd.ko: grace.ko sunrpc.ko\nnfs.ko: lockd.ko grace.ko sunrpc.ko\n"
        );
    }
}
