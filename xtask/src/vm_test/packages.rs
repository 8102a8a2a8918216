//! Debian packages of any suite, downloaded and unpacked in a world of apt's own: nothing is installed, and no root is
//! needed. Which packages, and what of them is kept, is left to callers.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::kernels::home;
use crate::{apt, program};

/// A repository other than the one that this machine's apt takes Debian from.
const MIRROR: &str = "SYSOPS_DEBIAN_MIRROR";
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// apt with lists, cache and status of its own.
pub(super) struct World {
    dir: PathBuf,
}

impl World {
    /// With the lists of a suite, fetched anew.
    ///
    /// # Errors
    /// When apt is missing, knows no repository, or cannot reach it.
    pub(super) fn new(suite: &str) -> Result<Self> {
        if program::find("apt-get").is_none() || program::find("dpkg-deb").is_none() {
            bail!("kernels are fetched as Debian packages: neither apt-get nor dpkg-deb may be missing");
        }
        if !Path::new(KEYRING).is_file() {
            apt::ensure(&["debian-archive-keyring"]).with_context(|| format!("{KEYRING} is missing"))?;
        }
        let world = Self { dir: home().join("apt").join(suite) };
        for part in ["state/lists/partial", "cache/archives/partial"] {
            let part = world.dir.join(part);
            std::fs::create_dir_all(&part).with_context(|| part.display().to_string())?;
        }
        let source = format!("deb [signed-by={KEYRING}] {} {suite} main\n", mirror()?);
        std::fs::write(world.dir.join("sources.list"), source)?;
        std::fs::write(world.dir.join("status"), "")?;
        // Only what is not kept is fetched, so the lists are always those of today.
        program::capture(world.command("apt-get").args(["-q", "update"]))?;
        Ok(world)
    }

    /// Names of packages that begin with `prefix`.
    ///
    /// # Errors
    /// When apt cannot be asked.
    pub(super) fn names(&self, prefix: &str) -> Result<Vec<String>> {
        let names = program::capture(self.command("apt-cache").args(["pkgnames", prefix]))?;
        Ok(names.lines().map(str::to_owned).collect())
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let at = |part: &str| self.dir.join(part).display().to_string();
        for (option, value) in [
            ("Dir::Etc::SourceList", at("sources.list")),
            ("Dir::Etc::SourceParts", "/dev/null".to_owned()),
            ("Dir::State", at("state")),
            ("Dir::State::Status", at("status")),
            ("Dir::Cache", at("cache")),
            ("Acquire::Languages", "none".to_owned()),
            // Else root's apt reads as a user that may not enter this folder.
            ("APT::Sandbox::User", String::new()),
        ] {
            command.arg("-o").arg(format!("{option}={value}"));
        }
        command
    }
}

/// The repository that this machine's own apt takes Debian from.
fn mirror() -> Result<String> {
    if let Ok(mirror) = std::env::var(MIRROR) {
        return Ok(mirror);
    }
    let uris = program::capture(Command::new("apt-get").args(["indextargets", "--format", "$(REPO_URI)"]))?;
    let debian = uris.lines().map(|uri| uri.trim_end_matches('/')).find(|uri| uri.ends_with("/debian"));
    debian
        .map(str::to_owned)
        .with_context(|| format!("apt of this machine has no Debian repository: name one in {MIRROR}"))
}

/// Packages unpacked in a folder that goes when it goes.
pub(super) struct Unpacked {
    dir: PathBuf,
}

impl Unpacked {
    /// The packages alone.
    ///
    /// # Errors
    /// When one cannot be downloaded or unpacked.
    pub(super) fn new(world: &World, packages: &[String]) -> Result<Self> {
        let (unpacked, debs) = Self::empty()?;
        program::capture(world.command("apt-get").args(["-q", "download"]).args(packages).current_dir(&debs))?;
        unpacked.unpack(&debs)?;
        Ok(unpacked)
    }

    /// The packages with all that they depend on.
    ///
    /// # Errors
    /// When one cannot be downloaded or unpacked.
    pub(super) fn with_dependencies(world: &World, packages: &[&str]) -> Result<Self> {
        let (unpacked, debs) = Self::empty()?;
        let cache = format!("Dir::Cache::Archives={}", debs.display());
        std::fs::create_dir_all(debs.join("partial"))?;
        let install = ["-q", "-y", "install", "--download-only", "--no-install-recommends"];
        program::capture(
            world.command("apt-get").args(["-o", &cache, "-o", "Debug::NoLocking=1"]).args(install).args(packages),
        )?;
        unpacked.unpack(&debs)?;
        Ok(unpacked)
    }

    fn empty() -> Result<(Self, PathBuf)> {
        let unpacked = Self { dir: home().join("unpacked") };
        remove(&unpacked.dir)?;
        let debs = unpacked.dir.join("debs");
        std::fs::create_dir_all(&debs).with_context(|| debs.display().to_string())?;
        Ok((unpacked, debs))
    }

    fn unpack(&self, debs: &Path) -> Result<()> {
        for entry in std::fs::read_dir(debs)? {
            let deb = entry?.path();
            if deb.extension().is_some_and(|extension| extension == "deb") {
                program::capture(Command::new("dpkg-deb").arg("-x").arg(deb).arg(&self.dir))?;
            }
        }
        Ok(())
    }

    /// Where the packages' files are.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The first file that is `wanted`.
    ///
    /// # Errors
    /// When a folder cannot be read.
    pub(super) fn find(&self, wanted: impl Fn(&Path) -> bool) -> Result<Option<PathBuf>> {
        let mut folders = vec![self.dir.clone()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
                let entry = entry?;
                let kind = entry.file_type()?;
                if kind.is_dir() {
                    folders.push(entry.path());
                } else if kind.is_file() && wanted(&entry.path()) {
                    return Ok(Some(entry.path()));
                }
            }
        }
        Ok(None)
    }
}

impl Drop for Unpacked {
    fn drop(&mut self) {
        // Left behind, it is removed before the next is unpacked.
        let _ = remove(&self.dir);
    }
}

/// Removes a folder, if it is there.
///
/// # Errors
/// When it cannot be removed.
pub(super) fn remove(dir: &Path) -> Result<()> {
    if dir.exists() {
        std::fs::remove_dir_all(dir).with_context(|| dir.display().to_string())?;
    }
    Ok(())
}
