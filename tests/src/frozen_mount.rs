//! An ext4 on a loop device, frozen, so that whoever writes to it hangs in uninterruptible sleep: a hung task made for
//! real. Everything is undone when it is dropped.
#![expect(
    clippy::disallowed_methods,
    clippy::panic,
    reason = "tests are outside of the agent: they read files, run programs and fail by panic"
)]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::require;

/// The file system, frozen.
pub struct FrozenMount {
    directory: PathBuf,
    mounted: bool,
    frozen: bool,
}

const PROGRAMS: [&str; 5] = ["mkfs.ext4", "mount", "umount", "fsfreeze", "truncate"];

impl FrozenMount {
    /// What is missing to make one.
    #[must_use]
    pub fn missing() -> Option<String> {
        require::root()
            .or_else(|| require::programs(&PROGRAMS))
            .or_else(|| require::files(&["/dev/loop-control", "/proc/sys/kernel/hung_task_timeout_secs"]))
    }

    /// Makes, mounts and freezes it. The caller is in a mount namespace of its own.
    ///
    /// # Panics
    /// When the machine refuses.
    #[must_use]
    pub fn new() -> Self {
        let mut mount = Self::thawed("16M");
        mount.freeze();
        mount
    }

    /// Makes and mounts it with `size`, as truncate(1) has it, and does not freeze it yet.
    ///
    /// # Panics
    /// When the machine refuses.
    #[must_use]
    pub fn thawed(size: &str) -> Self {
        let directory = std::env::temp_dir().join(format!("sysops-frozen-{}", std::process::id()));
        std::fs::create_dir_all(directory.join("mnt")).expect("a directory of our own");
        let mut mount = Self { directory, mounted: false, frozen: false };
        let (image, at) = (mount.directory.join("image"), mount.at());
        run("truncate", &["-s".as_ref(), size.as_ref(), &image]);
        run("mkfs.ext4", &["-q".as_ref(), "-F".as_ref(), &image]);
        run("mount", &["-o".as_ref(), "loop".as_ref(), &image, &at]);
        mount.mounted = true;
        mount
    }

    /// Lets whoever writes to it wait.
    ///
    /// # Panics
    /// When the machine refuses.
    pub fn freeze(&mut self) {
        run("fsfreeze", &["--freeze".as_ref(), &self.at()]);
        self.frozen = true;
    }

    /// Starts a process that hangs in a write to it.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn hang(&self) -> Child {
        Command::new("truncate")
            .args(["-s", "4k"])
            .arg(self.at().join("file"))
            .stdin(Stdio::null())
            .spawn()
            .expect("truncate is there")
    }

    /// Lets everyone go on.
    pub fn thaw(&mut self) {
        if std::mem::take(&mut self.frozen) {
            run("fsfreeze", &["--unfreeze".as_ref(), &self.at()]);
        }
    }

    /// The path of a file in it.
    #[must_use]
    pub fn file(&self, name: &str) -> PathBuf {
        self.at().join(name)
    }

    /// Where it is mounted.
    #[must_use]
    pub fn at(&self) -> PathBuf {
        self.directory.join("mnt")
    }
}

impl Default for FrozenMount {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for FrozenMount {
    fn drop(&mut self) {
        self.thaw();
        if self.mounted {
            run("umount", &[&self.at()]);
        }
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

fn run(program: &str, arguments: &[&Path]) {
    let output = Command::new(program).args(arguments).output().unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A sysctl set to another value; set back when dropped.
pub struct Sysctl {
    path: PathBuf,
    before: String,
}

impl Sysctl {
    /// Sets `name` (`kernel/hung_task_timeout_secs`).
    ///
    /// # Panics
    /// When the machine refuses.
    #[must_use]
    pub fn set(name: &str, value: &str) -> Self {
        let path = Path::new("/proc/sys").join(name);
        let before = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{name}: {error}"));
        std::fs::write(&path, value).unwrap_or_else(|error| panic!("{name}: {error}"));
        Self { path, before }
    }
}

impl Drop for Sysctl {
    fn drop(&mut self) {
        let _ = std::fs::write(&self.path, self.before.trim());
    }
}
