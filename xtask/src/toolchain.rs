//! Which BPF toolchain this machine has or can get, and how cargo is called with it. Getting it is left to `setup`.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{apt, program, workspace};

/// Debian's compiler with a prebuilt `core` for BPF, and the LLVM that it was built with.
pub(crate) const PACKAGES: &[&str] =
    &["rustc-web", "cargo-web", "libstd-rust-web-dev-bpf", "llvm-22-dev", "gcc", "g++"];
/// The nightly of the other route. A day is named, because its LLVM (22) may not be newer than the linker's: the newest
/// nightly's bitcode is an "Invalid record" to a bpf-linker that is one LLVM behind.
pub(crate) const NIGHTLY: &str = "nightly-2026-04-15";
/// The bpf-linker that can be built with each of [`LLVMS`].
pub(crate) const LINKER: &str = "0.13.0";
/// LLVMs that read what both routes' compilers write, best first.
const LLVMS: &[u32] = &[22, 23];

/// What the build of one object file needs, and where it comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Route {
    /// Packages of Debian.
    Debian,
    /// A nightly toolchain with rust-src.
    Rustup,
}

impl Route {
    /// For people.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Debian => "Debian packages",
            Self::Rustup => "rustup nightly with rust-src",
        }
    }
}

/// What the machine has and what it could get. Read once; nothing is decided here.
#[derive(Clone, Debug)]
pub(crate) struct Facts {
    /// /usr/bin/rustc and /usr/bin/cargo are there, with `core` for BPF.
    pub(crate) debian_core: bool,
    /// bpf-linker is there and not older than [`LINKER`].
    pub(crate) linker: bool,
    /// rustup has [`NIGHTLY`] with rust-src.
    pub(crate) nightly_source: bool,
    /// Packages can be installed.
    pub(crate) apt: bool,
    /// rustup is there.
    pub(crate) rustup: bool,
}

impl Facts {
    /// Looks at this machine.
    pub(crate) fn read() -> Self {
        Self {
            debian_core: debian_core(),
            linker: linker_version().is_some_and(|version| version >= (0, 13)),
            nightly_source: nightly_source(),
            apt: apt::usable(),
            rustup: program::find("rustup").is_some(),
        }
    }

    /// The route that is complete, if one is.
    pub(crate) fn ready(&self) -> Option<Route> {
        match self {
            Self { linker: false, .. } => None,
            Self { debian_core: true, .. } => Some(Route::Debian),
            Self { nightly_source: true, .. } => Some(Route::Rustup),
            _ => None,
        }
    }

    /// The routes that may be tried, best first: what lacks least, then packages before rustup.
    pub(crate) fn offered(&self) -> Vec<Route> {
        let mut routes = Vec::new();
        if self.debian_core || self.apt {
            routes.push(Route::Debian);
        }
        if self.nightly_source || self.rustup {
            routes.push(Route::Rustup);
        }
        if self.nightly_source && !self.debian_core {
            routes.reverse();
        }
        routes
    }
}

/// cargo for the kernel side, by this route: `verb` is `build` or `clippy`.
pub(crate) fn cargo(route: Route, verb: &str) -> Command {
    let mut command = match (route, verb) {
        // Asked for a subcommand, cargo prefers the one in its own home, which is rustup's and knows no BPF.
        (Route::Debian, "clippy") => Command::new("/usr/bin/cargo-clippy"),
        (Route::Debian, _) => Command::new("/usr/bin/cargo"),
        (Route::Rustup, _) => {
            let mut rustup = Command::new("rustup");
            rustup.args(["run", NIGHTLY, "cargo"]);
            rustup
        }
    };
    // The outer cargo's toolchain and settings must not leak into this one.
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy().into_owned();
        if (name.starts_with("CARGO") && name != "CARGO_HOME") || name.starts_with("RUSTC") || name == "RUSTFLAGS" {
            command.env_remove(name);
        }
    }
    command.env_remove("RUSTUP_TOOLCHAIN").env_remove("LD_LIBRARY_PATH");
    command.current_dir(workspace::ebpf());
    command.arg(verb).args(["--release", "--target", target()]);
    match route {
        Route::Debian => {
            command.envs([("RUSTC_BOOTSTRAP", "1"), ("RUSTC", "/usr/bin/rustc"), ("CARGO", "/usr/bin/cargo")]);
        }
        Route::Rustup => {
            command.args(["-Z", "build-std=core"]);
        }
    }
    command.env("CARGO_ENCODED_RUSTFLAGS", "-Clink-arg=--btf\x1f-Cdebuginfo=2");
    command.env("CARGO_TARGET_DIR", workspace::root().join("target/bpf-build"));
    command.env("PATH", path_with_cargo_bin());
    command
}

/// An LLVM that bpf-linker can be built with: its version, and the folder of its `llvm-config`.
pub(crate) fn llvm() -> Option<(u32, PathBuf)> {
    LLVMS.iter().find_map(|version| {
        let debian = Path::new("/usr/lib").join(format!("llvm-{version}/bin"));
        let others = std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()).collect::<Vec<_>>();
        let dir = std::iter::once(debian).chain(others).find(|dir| {
            program::capture(Command::new(dir.join("llvm-config")).arg("--version"))
                .is_ok_and(|found| found.split('.').next().is_some_and(|major| major.parse() == Ok(*version)))
        })?;
        Some((*version, dir))
    })
}

/// BPF programs run on this machine, so they have its byte order.
fn target() -> &'static str {
    if cfg!(target_endian = "big") { "bpfeb-unknown-none" } else { "bpfel-unknown-none" }
}

/// PATH with cargo's own bin folder in front, where `cargo install` put bpf-linker.
fn path_with_cargo_bin() -> std::ffi::OsString {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs = cargo_bin().into_iter().chain(std::env::split_paths(&path));
    std::env::join_paths(dirs).unwrap_or(path)
}

fn cargo_bin() -> Option<PathBuf> {
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    home.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cargo"))).map(|home| home.join("bin"))
}

fn debian_core() -> bool {
    if !Path::new("/usr/bin/rustc").is_file() || !Path::new("/usr/bin/cargo").is_file() {
        return false;
    }
    let mut rustc = Command::new("/usr/bin/rustc");
    rustc.env("RUSTC_BOOTSTRAP", "1").env_remove("LD_LIBRARY_PATH").args([
        "--print",
        "target-libdir",
        "--target",
        target(),
    ]);
    program::capture(&mut rustc).is_ok_and(|dir| has_core(Path::new(dir.trim())))
}

fn has_core(dir: &Path) -> bool {
    let Ok(entries) = std::fs::read_dir(dir) else { return false };
    entries.flatten().any(|entry| {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        name.starts_with("libcore-") && name.ends_with(".rlib")
    })
}

fn linker_version() -> Option<(u32, u32)> {
    let mut linker = Command::new("bpf-linker");
    linker.env("PATH", path_with_cargo_bin()).env_remove("LD_LIBRARY_PATH").arg("--version");
    parse_version(&program::capture(&mut linker).ok()?)
}

/// `bpf-linker 0.13.0` → (0, 13)
fn parse_version(line: &str) -> Option<(u32, u32)> {
    let mut numbers = line.split_whitespace().last()?.split('.').map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

fn nightly_source() -> bool {
    let mut rustc = Command::new("rustup");
    rustc.args(["run", NIGHTLY, "rustc", "--print", "sysroot"]);
    program::capture(&mut rustc)
        .is_ok_and(|sysroot| Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library/core/Cargo.toml").is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bare() -> Facts {
        Facts { debian_core: false, linker: false, nightly_source: false, apt: false, rustup: false }
    }

    #[test]
    fn nothing_is_offered_where_nothing_can_be_had() {
        assert_eq!(bare().offered(), []);
        assert_eq!(bare().ready(), None);
    }

    #[test]
    fn packages_come_before_rustup() {
        let facts = Facts { apt: true, rustup: true, ..bare() };
        assert_eq!(facts.offered(), [Route::Debian, Route::Rustup]);
    }

    #[test]
    fn what_is_there_comes_before_what_must_be_fetched() {
        let facts = Facts { apt: true, rustup: true, nightly_source: true, ..bare() };
        assert_eq!(facts.offered(), [Route::Rustup, Route::Debian]);
    }

    #[test]
    fn a_compiler_without_linker_is_not_ready() {
        let facts = Facts { debian_core: true, ..bare() };
        assert_eq!(facts.ready(), None);
        assert_eq!(Facts { linker: true, ..facts }.ready(), Some(Route::Debian));
    }

    #[test]
    fn an_ordinary_user_needs_no_root_for_rustup() {
        assert_eq!(Facts { rustup: true, ..bare() }.offered(), [Route::Rustup]);
    }

    #[test]
    fn linker_versions_are_read() {
        assert_eq!(parse_version("bpf-linker 0.13.0\n"), Some((0, 13)));
        assert_eq!(parse_version("bpf-linker"), None);
    }
}
