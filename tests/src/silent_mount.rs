//! A FUSE mount whose server never says a word, as an NFS server that is down: whoever looks into it sleeps in a way that
//! only a signal that kills can end (TASK_KILLABLE), and the kernel's own detector passes it over.

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::require;

/// The mount.
pub struct SilentMount {
    directory: PathBuf,
    /// The server's side: while it is open and nothing is read from it, nobody gets an answer.
    _server: File,
}

impl SilentMount {
    /// What is missing to make one.
    #[must_use]
    pub fn missing() -> Option<String> {
        require::root().or_else(|| require::files(&["/dev/fuse"]))
    }

    /// Mounts it. The caller is in a mount namespace of its own.
    ///
    /// # Panics
    /// When the machine refuses.
    #[must_use]
    pub fn new() -> Self {
        let directory = std::env::temp_dir().join(format!("sysops-silent-{}", std::process::id()));
        std::fs::create_dir_all(&directory).expect("a directory of our own");
        let server = OpenOptions::new().read(true).write(true).open("/dev/fuse").expect("missing() was asked");
        let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", server.as_raw_fd());
        let options = CString::new(options).expect("no NUL");
        mount("silent", &directory, "fuse", MountFlags::empty(), Some(&*options)).expect("FUSE can be mounted");
        Self { directory, _server: server }
    }

    /// Something in it.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.directory.join("program")
    }

    /// Where it is mounted.
    #[must_use]
    pub fn at(&self) -> &Path {
        &self.directory
    }
}

impl Default for SilentMount {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for SilentMount {
    fn drop(&mut self) {
        let _ = unmount(&self.directory, UnmountFlags::DETACH);
        let _ = std::fs::remove_dir(&self.directory);
    }
}
