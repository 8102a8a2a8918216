//! Debian packages: which are missing, and installing them without a question. What they are for is left to callers.

use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::program;

/// Installs those of `packages` that are missing. True when something had to be installed.
///
/// # Errors
/// When a package is missing and this machine or this user cannot install it: with the reason.
pub(crate) fn ensure(packages: &[&str]) -> Result<bool> {
    let missing = missing(packages);
    if missing.is_empty() {
        return Ok(false);
    }
    let root = Root::find().with_context(|| format!("missing packages: {}", missing.join(" ")))?;
    install(&root, &missing)?;
    Ok(true)
}

/// Those of `packages` that are not installed; all of them where there is no dpkg.
pub(crate) fn missing<'a>(packages: &[&'a str]) -> Vec<&'a str> {
    let installed = |package: &str| {
        program::capture(Command::new("dpkg-query").args(["-W", "-f=${db:Status-Status}", package]))
            .is_ok_and(|status| status == "installed")
    };
    packages.iter().copied().filter(|package| !installed(package)).collect()
}

/// True when the machine has apt-get and this user may install packages with it.
pub(crate) fn usable() -> bool {
    Root::find().is_ok()
}

/// How a command becomes root's.
enum Root {
    /// It is already.
    Already,
    /// By sudo, which asks for no password.
    Sudo,
}

impl Root {
    fn find() -> Result<Self> {
        if program::find("apt-get").is_none() {
            bail!("no apt-get on this machine");
        }
        if is_root() {
            return Ok(Self::Already);
        }
        if program::succeeds(Command::new("sudo").args(["-n", "true"])) {
            return Ok(Self::Sudo);
        }
        bail!("not root, and sudo is absent or asks for a password");
    }

    fn apt_get(&self) -> Command {
        let mut command = match self {
            Self::Already => Command::new("env"),
            Self::Sudo => {
                let mut sudo = Command::new("sudo");
                sudo.args(["-n", "env"]);
                sudo
            }
        };
        // Another process may hold dpkg's lock for a while: wait for it instead of failing.
        command.args(["DEBIAN_FRONTEND=noninteractive", "apt-get", "-q", "-y", "-o", "DPkg::Lock::Timeout=300"]);
        command
    }
}

/// True for user id 0.
pub(crate) fn is_root() -> bool {
    std::fs::read_to_string("/proc/self/status").is_ok_and(|status| {
        status.lines().any(|line| line.starts_with("Uid:") && line.split_whitespace().nth(2) == Some("0"))
    })
}

fn install(root: &Root, packages: &[&str]) -> Result<()> {
    let install = || program::show(root.apt_get().args(["install", "--no-install-recommends"]).args(packages));
    // Package lists may be absent (a fresh container) or older than the archive; they are fetched only then.
    if packages.iter().all(|package| has_candidate(package)) && install().is_ok() {
        return Ok(());
    }
    program::show(root.apt_get().arg("update"))?;
    if let Some(unknown) = packages.iter().find(|package| !has_candidate(package)) {
        bail!("the configured archives have no package {unknown}");
    }
    install()
}

fn has_candidate(package: &str) -> bool {
    program::capture(Command::new("apt-cache").env("LC_ALL", "C").args(["policy", package]))
        .is_ok_and(|policy| policy.lines().any(|line| line.contains("Candidate:") && !line.contains("(none)")))
}

/// Unpacks a package's files below `dir` without installing it, so that no service of it is started and no root needed.
///
/// # Errors
/// When it cannot be downloaded or unpacked.
pub(crate) fn unpack(package: &str, dir: &std::path::Path) -> Result<()> {
    if !has_candidate(package) {
        program::show(Root::find()?.apt_get().arg("update"))?;
    }
    let download = dir.join("download");
    std::fs::create_dir_all(&download).with_context(|| download.display().to_string())?;
    program::capture(Command::new("apt-get").args(["-q", "download", package]).current_dir(&download))?;
    for entry in std::fs::read_dir(&download)? {
        let file = entry?.path();
        program::capture(Command::new("dpkg-deb").arg("-x").arg(&file).arg(dir))?;
        std::fs::remove_file(&file).with_context(|| file.display().to_string())?;
    }
    Ok(())
}
