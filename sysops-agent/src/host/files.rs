//! Reads files of the machine: /proc, /sys and / below the roots of this host, each error with its path.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::buffer::spare_capacity;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{CWD, Mode, OFlags, PROC_SUPER_MAGIC, ResolveFlags, fstatfs, openat, openat2};
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
        read_fd(&fd, path, End::EmptyRead, buffer, MAX_BYTES)
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

    /// Reads a small attribute of /sys, without the newline at its end: one open, one read, no memory. The error is the
    /// bare number, as for an attribute the refusal is often the answer (`carrier` of an interface that is down).
    ///
    /// # Errors
    /// What the kernel said; E2BIG when it is longer than `buffer`.
    pub fn attribute<'a>(&self, path: &Path, buffer: &'a mut [u8]) -> Result<&'a [u8], Errno> {
        let fd = open_bare(path)?;
        let count = loop {
            match pread(&fd, &mut *buffer, 0) {
                Err(Errno::INTR) => {}
                other => break other?,
            }
        };
        if count == buffer.len() { Err(Errno::TOOBIG) } else { Ok(buffer[..count].trim_ascii()) }
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
        read_fd(&open(path)?, path, End::EmptyRead, &mut buffer, LARGE_BYTES)?;
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

    /// Names of the directories in a directory, in no order. One that cannot be read has none.
    #[must_use]
    pub fn directories(&self, path: &Path) -> Vec<String> {
        #[expect(clippy::disallowed_methods, reason = "this is the door")]
        let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
        let is_directory = |entry: &std::fs::DirEntry| entry.file_type().is_ok_and(|kind| kind.is_dir());
        entries.filter(is_directory).map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
    }

    /// Number of the inode at `path`; `None` when there is nothing.
    #[must_use]
    pub fn inode(&self, path: &Path) -> Option<u64> {
        use std::os::unix::fs::MetadataExt;
        path.symlink_metadata().ok().map(|metadata| metadata.ino())
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

/// A file that is read every cycle: opened once, then as few `pread`s a cycle as the file allows, into memory that is
/// reused.
#[derive(Debug)]
pub struct Source {
    path: PathBuf,
    fd: Option<OwnedFd>,
    buffer: Vec<u8>,
    end: End,
    /// Set when the file was read and the kernel can tell whether it changed since.
    announced: bool,
}

/// How the end of a file shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// By a read that gives nothing: the kernel prints a list page by page.
    EmptyRead,
    /// By a read that does not fill the buffer: the kernel prints the file in one piece.
    ShortRead,
}

impl Source {
    /// The file at `path`; it is opened when first read.
    #[must_use]
    pub fn new(path: PathBuf) -> Self {
        Self { path, fd: None, buffer: Vec::new(), end: End::EmptyRead, announced: false }
    }

    /// A file that the kernel prints in one piece (`single_open` in its source: stat, meminfo, loadavg, pressure; every
    /// file of /proc/sys and attribute of /sys), so that one `pread` reads it all.
    #[must_use]
    pub fn single(path: PathBuf) -> Self {
        Self { end: End::ShortRead, ..Self::new(path) }
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
        self.announced = false;
        let fd = match self.fd.take() {
            Some(fd) => fd,
            None => open(&self.path)?,
        };
        read_fd(&fd, &self.path, self.end, &mut self.buffer, MAX_BYTES)?;
        self.fd = Some(fd);
        Ok(&self.buffer)
    }

    /// Reads a mount table (`mounts`, `mountinfo`) if it changed since the last call; `None` when it did not. The
    /// kernel tells by POLLPRI on the open file. Where the file is not the kernel's (a recorded one), it always counts
    /// as changed.
    ///
    /// # Errors
    /// As [`Files::read_into`].
    pub fn read_if_changed(&mut self) -> Result<Option<&[u8]>, ReadError> {
        if let Some(fd) = self.fd.as_ref().filter(|_| self.announced) {
            // A poll that fails or is interrupted says nothing: the file is read.
            let now = Timespec { tv_sec: 0, tv_nsec: 0 };
            let mut fds = [PollFd::new(fd, PollFlags::PRI | PollFlags::ERR)];
            if poll(&mut fds, Some(&now)) == Ok(0) {
                return Ok(None);
            }
        }
        self.read()?;
        let of_kernel = |fd: &OwnedFd| fstatfs(fd).is_ok_and(|fs| fs.f_type == PROC_SUPER_MAGIC);
        self.announced = self.fd.as_ref().is_some_and(of_kernel);
        Ok(Some(&self.buffer))
    }
}

fn open(path: &Path) -> Result<OwnedFd, ReadError> {
    open_bare(path).map_err(|errno| ReadError { path: path.to_owned(), what: "cannot open", source: errno.into() })
}

fn open_bare(path: &Path) -> Result<OwnedFd, Errno> {
    // O_NONBLOCK: a FIFO that someone put in the place of a file must not stop the agent.
    openat(CWD, path, OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK, Mode::empty())
}

fn read_fd(fd: &OwnedFd, path: &Path, end: End, buffer: &mut Vec<u8>, max_bytes: usize) -> Result<(), ReadError> {
    let error = |source: io::Error| ReadError { path: path.to_owned(), what: "cannot read", source };
    buffer.clear();
    loop {
        let spare = buffer.capacity() - buffer.len();
        if spare < 1024 {
            buffer.reserve(buffer.len().max(4096));
            continue;
        }
        let offset = buffer.len() as u64;
        match pread(fd, spare_capacity(buffer), offset) {
            Ok(0) => return Ok(()),
            Ok(count) if end == End::ShortRead && count < spare => return Ok(()),
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(error(errno.into())),
        }
        if buffer.len() > max_bytes {
            return Err(error(io::Error::other(format!("larger than {} MiB", max_bytes >> 20))));
        }
    }
}

/// Opens a file for a caller that must keep it, such as /dev/kmsg.
///
/// # Errors
/// With the path.
pub fn open_file(path: &Path) -> Result<File, ReadError> {
    open(path).map(File::from)
}

/// Finds what is at a path without opening it: a device or a FIFO that someone put there notices nothing. [`reopen`] opens it once
/// it is known what it is. The last link is followed only if `follow` says so.
///
/// # Errors
/// With the path.
pub fn find(path: &Path, follow: bool) -> Result<File, ReadError> {
    let last = if follow { OFlags::empty() } else { OFlags::NOFOLLOW };
    let found = openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC | last, Mode::empty());
    found.map(File::from).map_err(|errno| not_found(path, errno))
}

/// The same for a path in the root `root` of some process: no link on the way is followed.
///
/// # Errors
/// With the path.
pub fn find_in_root(root: &Path, path: &Path) -> Result<File, ReadError> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let directory =
        openat(CWD, root, flags | OFlags::DIRECTORY, Mode::empty()).map_err(|errno| not_found(root, errno))?;
    let within = ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let found = openat2(&directory, path, flags | OFlags::NOFOLLOW, Mode::empty(), within);
    found.map(File::from).map_err(|errno| not_found(path, errno))
}

/// Opens for reading what [`find`] has found.
///
/// # Errors
/// When the kernel refuses.
pub fn reopen(found: &File) -> Result<File, ReadError> {
    open_file(Path::new(&format!("/proc/self/fd/{}", found.as_raw_fd())))
}

fn not_found(path: &Path, errno: Errno) -> ReadError {
    ReadError { path: path.to_owned(), what: "cannot find", source: errno.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file in a directory that goes with it.
    struct Made {
        path: PathBuf,
    }

    impl Made {
        fn new(name: &str, content: &[u8]) -> Self {
            let dir = std::env::temp_dir().join(format!("sysops-files-{}-{name}", std::process::id()));
            std::fs::create_dir_all(&dir).expect("the temporary directory is writable");
            let path = dir.join("file");
            std::fs::write(&path, content).expect("the temporary directory is writable");
            Self { path }
        }
    }

    impl Drop for Made {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(self.path.parent().expect("it is in a directory"));
        }
    }

    #[test]
    fn every_length_around_the_buffer_is_read_whole() {
        for length in [0, 1, 3071, 3072, 4095, 4096, 4097, 8191, 8192, 100_000] {
            let content: Vec<u8> = (0..length).map(|at| b'a' + (at % 23) as u8).collect();
            let made = Made::new("length", &content);
            for mut source in [Source::new(made.path.clone()), Source::single(made.path.clone())] {
                for _ in 0..3 {
                    assert_eq!(source.read().expect("it is there"), content, "{length} bytes");
                }
            }
        }
    }

    #[test]
    fn a_file_that_grows_without_end_is_an_error() {
        let made = Made::new("large", &vec![b'x'; MAX_BYTES + 5000]);
        let error = Source::new(made.path.clone()).read().map(<[u8]>::len).expect_err("too large");
        assert!(error.to_string().contains("cannot read") && error.to_string().contains("file"), "{error}");
    }

    #[test]
    fn after_an_error_a_source_is_opened_anew() {
        let made = Made::new("anew", b"one");
        let mut source = Source::new(made.path.clone());
        std::fs::remove_file(&made.path).expect("it was written above");
        assert!(source.read().expect_err("it is gone").is_absent());
        std::fs::write(&made.path, b"two").expect("the temporary directory is writable");
        assert_eq!(source.read().expect("it is back"), b"two");
    }

    #[test]
    fn the_live_mount_table_is_read_once_until_it_changes_and_a_recorded_one_always() {
        let mut live = Source::new(PathBuf::from("/proc/self/mountinfo"));
        assert!(live.read_if_changed().expect("procfs").is_some_and(|text| text.ends_with(b"\n")));
        // Another test, or the machine, may mount something in between: not in each of a hundred turns.
        assert!((0..100).any(|_| live.read_if_changed().expect("procfs").is_none()));
        let made = Made::new("mounts", b"a\n");
        let mut recorded = Source::new(made.path.clone());
        assert!((0..3).all(|_| recorded.read_if_changed().expect("it is there").is_some()));
    }

    #[test]
    fn attributes_come_without_newline_or_with_the_bare_error() {
        let files = Files::new("/proc".into(), "/sys".into(), "/".into());
        let made = Made::new("attribute", b"1400\n");
        assert_eq!(files.attribute(&made.path, &mut [0; 16]), Ok(&b"1400"[..]));
        assert_eq!(files.attribute(&made.path, &mut [0; 5]), Err(Errno::TOOBIG));
        assert_eq!(files.attribute(Path::new("/nowhere/at/all"), &mut [0; 16]), Err(Errno::NOENT));
    }
}
