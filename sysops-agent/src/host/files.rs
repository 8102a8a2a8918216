//! Reads files of the machine: /proc, /sys and / below the roots of this host, each error with its path.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::{Errno, pread};

/// Largest file that is read whole: enough for /proc/stat of 4,096 CPUs, and a bound on what a broken driver prints.
const MAX_BYTES: usize = 8 << 20;
/// Largest file that is read once, at the start: BTF of a kernel has 3 to 7 MB.
const LARGE_BYTES: usize = 64 << 20;

/// Roots of the machine's file systems.
#[derive(Debug, Clone)]
pub struct Files {
    roots: Arc<Roots>,
}

#[derive(Debug)]
struct Roots {
    proc: PathBuf,
    sys: PathBuf,
    root: PathBuf,
}

/// A file that could not be read.
#[derive(Debug, thiserror::Error)]
#[error("{}: {what}", path.display())]
pub struct ReadError {
    /// The file.
    pub path: PathBuf,
    /// What was tried.
    pub what: &'static str,
    /// What the kernel said.
    #[source]
    pub source: io::Error,
}

impl ReadError {
    /// True when the file does not exist: mostly absence and not failure.
    #[must_use]
    pub fn is_absent(&self) -> bool {
        matches!(self.errno(), Some(Errno::NOENT | Errno::NODEV | Errno::OPNOTSUPP | Errno::NOTDIR))
    }

    /// True when the kernel refused it to this user.
    #[must_use]
    pub fn is_denied(&self) -> bool {
        matches!(self.errno(), Some(Errno::ACCESS | Errno::PERM))
    }

    /// True when a process went away between two reads.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        self.is_absent() || self.errno() == Some(Errno::SRCH)
    }

    fn errno(&self) -> Option<Errno> {
        Errno::from_io_error(&self.source)
    }
}

impl Files {
    /// Files below these roots.
    #[must_use]
    pub fn new(proc: PathBuf, sys: PathBuf, root: PathBuf) -> Self {
        Self { roots: Arc::new(Roots { proc, sys, root }) }
    }

    /// Path of `name` in /proc of the watched machine.
    #[must_use]
    pub fn proc(&self, name: &str) -> PathBuf {
        self.roots.proc.join(name)
    }

    /// Path of `name` in /sys of the watched machine.
    #[must_use]
    pub fn sys(&self, name: &str) -> PathBuf {
        self.roots.sys.join(name)
    }

    /// Path of the absolute path `path` as the watched machine sees it.
    #[must_use]
    pub fn root(&self, path: &str) -> PathBuf {
        self.roots.root.join(path.trim_start_matches('/'))
    }

    /// True when the watched machine's files are below another root than `/`.
    #[must_use]
    pub fn is_foreign(&self) -> bool {
        self.roots.root != Path::new("/") || self.roots.proc != Path::new("/proc")
    }

    /// Reads the whole file into `buffer`, whose memory is reused.
    ///
    /// # Errors
    /// With the path, when it cannot be opened or read or is larger than 8 MiB.
    pub fn read_into(&self, path: &Path, buffer: &mut Vec<u8>) -> Result<(), ReadError> {
        let fd = open(path)?;
        read_fd(&fd, path, buffer, MAX_BYTES)
    }

    /// Reads the whole file.
    ///
    /// # Errors
    /// As [`Files::read_into`].
    pub fn read(&self, path: &Path) -> Result<Vec<u8>, ReadError> {
        let mut buffer = Vec::new();
        self.read_into(path, &mut buffer)?;
        Ok(buffer)
    }

    /// Reads a small file as text without the blanks at its ends; invalid UTF-8 becomes U+FFFD.
    ///
    /// # Errors
    /// As [`Files::read_into`].
    pub fn read_text(&self, path: &Path) -> Result<String, ReadError> {
        Ok(String::from_utf8_lossy(&self.read(path)?).trim().to_owned())
    }

    /// Reads a file that may be larger than what a cycle reads, such as the kernel's BTF: at most 64 MiB.
    ///
    /// # Errors
    /// With the path, when it cannot be opened or read or is larger.
    pub fn read_large(&self, path: &Path) -> Result<Vec<u8>, ReadError> {
        let mut buffer = Vec::new();
        read_fd(&open(path)?, path, &mut buffer, LARGE_BYTES)?;
        Ok(buffer)
    }

    /// True when something is at `path` that this user may know of.
    #[must_use]
    pub fn exists(&self, path: &Path) -> bool {
        path.symlink_metadata().is_ok()
    }

    /// Names in a directory, sorted.
    ///
    /// # Errors
    /// With the path, when it cannot be opened or read.
    pub fn list(&self, path: &Path) -> Result<Vec<String>, ReadError> {
        let error = |source: io::Error| ReadError { path: path.to_owned(), what: "cannot list", source };
        #[expect(clippy::disallowed_methods, reason = "this is the door")]
        let entries = std::fs::read_dir(path).map_err(error)?;
        let mut names = Vec::new();
        for entry in entries {
            names.push(entry.map_err(error)?.file_name().to_string_lossy().into_owned());
        }
        names.sort_unstable();
        Ok(names)
    }

    /// Target of a link as it is written in it, as `../../bus/virtio/drivers/virtio_blk`.
    ///
    /// # Errors
    /// With the path, when it is no link or cannot be read.
    pub fn link(&self, path: &Path) -> Result<PathBuf, ReadError> {
        std::fs::read_link(path).map_err(|source| ReadError {
            path: path.to_owned(),
            what: "cannot read the link",
            source,
        })
    }
}

/// A file that is read every cycle: opened once, then one `pread` a cycle into memory that is reused.
#[derive(Debug)]
pub struct Source {
    path: PathBuf,
    fd: Option<OwnedFd>,
    buffer: Vec<u8>,
}

impl Source {
    /// The file at `path`; it is opened when first read.
    #[must_use]
    pub fn new(path: PathBuf) -> Self {
        Self { path, fd: None, buffer: Vec::new() }
    }

    /// Its path, for messages.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads it again from the start. After an error it is opened anew next time.
    ///
    /// # Errors
    /// As [`Files::read_into`].
    pub fn read(&mut self) -> Result<&[u8], ReadError> {
        let fd = match self.fd.take() {
            Some(fd) => fd,
            None => open(&self.path)?,
        };
        read_fd(&fd, &self.path, &mut self.buffer, MAX_BYTES)?;
        self.fd = Some(fd);
        Ok(&self.buffer)
    }
}

fn open(path: &Path) -> Result<OwnedFd, ReadError> {
    // O_NONBLOCK: a FIFO that someone put in the place of a file must not stop the agent.
    openat(CWD, path, OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK, Mode::empty()).map_err(|errno| ReadError {
        path: path.to_owned(),
        what: "cannot open",
        source: errno.into(),
    })
}

fn read_fd(fd: &OwnedFd, path: &Path, buffer: &mut Vec<u8>, max_bytes: usize) -> Result<(), ReadError> {
    let error = |source: io::Error| ReadError { path: path.to_owned(), what: "cannot read", source };
    buffer.clear();
    let mut filled = 0;
    loop {
        if buffer.len() - filled < 1024 {
            let grown = (buffer.capacity().max(4096)).max(filled * 2);
            buffer.resize(grown, 0);
        }
        match pread(fd, &mut buffer[filled..], filled as u64) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(error(errno.into())),
        }
        if filled > max_bytes {
            return Err(error(io::Error::other(format!("larger than {} MiB", max_bytes >> 20))));
        }
    }
    buffer.truncate(filled);
    Ok(())
}

/// Opens a file for a caller that must keep it, such as /dev/kmsg.
///
/// # Errors
/// With the path.
pub fn open_file(path: &Path) -> Result<File, ReadError> {
    open(path).map(File::from)
}
