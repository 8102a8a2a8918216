//! A cgroup of a test's own in the unified hierarchy, without controllers.
#![expect(clippy::disallowed_methods, reason = "a test reads files and runs programs")]

use std::path::PathBuf;
use std::process::Command;

use crate::require;

/// A cgroup; removed when dropped.
pub struct UnifiedCgroup {
    directory: PathBuf,
    /// Path in the hierarchy.
    pub path: String,
}

impl UnifiedCgroup {
    /// What is missing to make one.
    #[must_use]
    pub fn missing() -> Option<String> {
        require::root().or_else(|| mount().is_none().then(|| "no unified hierarchy of cgroups".to_owned()))
    }

    /// Makes one named by `name` below the root.
    ///
    /// # Panics
    /// When the machine refuses.
    #[must_use]
    pub fn new(name: &str) -> Self {
        let name = format!("sysops-{name}-{}", std::process::id());
        let directory = mount().expect("missing() was asked").join(&name);
        std::fs::create_dir(&directory).expect("root may");
        Self { directory, path: format!("/{name}") }
    }

    /// Writes `count` blocks of 64 KiB to the disk at `disk`, past the page cache, by a process in it.
    ///
    /// # Panics
    /// When that fails.
    pub fn write(&self, disk: &str, count: u32) {
        let dd = format!("exec dd if=/dev/zero of={disk} bs=65536 count={count} oflag=direct conv=notrunc 2>/dev/null");
        let script = format!("echo $$ > {}/cgroup.procs && {dd}", self.directory.display());
        assert!(Command::new("sh").args(["-c", &script]).status().expect("there is a shell").success());
    }
}

impl Drop for UnifiedCgroup {
    fn drop(&mut self) {
        // Left behind, it is an empty directory of cgroupfs.
        let _ = std::fs::remove_dir(&self.directory);
    }
}

fn mount() -> Option<PathBuf> {
    let mounts = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].into_iter().map(PathBuf::from);
    mounts.into_iter().find(|mount| mount.join("cgroup.procs").exists())
}
