//! Counts the open files of a process. Which counts matter is left to the readers.

use std::ffi::CStr;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Mode, OFlags, RawDir, openat, statat};
use rustix::io::Errno;

use super::processes::Process;

/// How often the two ways of counting are compared before the cheap one is given up: another thread of the agent may
/// open a file between them.
const ATTEMPTS: u32 = 5;

/// Counts open files the cheapest way that the kernel offers.
#[derive(Debug)]
pub struct OpenFds {
    by_size: bool,
    entries: Box<[MaybeUninit<u8>]>,
}

impl OpenFds {
    /// Finds out which way `proc` offers, by the agent's own entry in it. From Linux 6.2 on the size of `/proc/<pid>/fd`
    /// is the number of open files: one system call a process, which any user may make. Older kernels say 0 and
    /// recorded hosts say what their file system says; there, the directory must be listed.
    #[must_use]
    pub fn new(proc: &Path) -> Self {
        let mut counter = Self { by_size: false, entries: Box::new_uninit_slice(16 << 10) };
        let own = proc.join("self/fd");
        counter.by_size = (0..ATTEMPTS).any(|_| counter.size_is_count(&own).unwrap_or(false));
        counter
    }

    /// True when the size of `/proc/<pid>/fd` is the count.
    #[must_use]
    pub fn by_size(&self) -> bool {
        self.by_size
    }

    /// Number of files that `process` has open.
    ///
    /// # Errors
    /// ENOENT or ESRCH when the process is gone, EACCES or EPERM when this user may not list its files.
    pub fn of(&mut self, process: Process<'_>) -> Result<u64, Errno> {
        let mut path = [0; 64];
        self.at(process.proc(), process.path("fd", &mut path)?)
    }

    /// Number of entries of `path`, an `fd` directory in the /proc for which this counter was made.
    ///
    /// # Errors
    /// As [`OpenFds::of`].
    pub fn at(&mut self, directory: BorrowedFd<'_>, path: &CStr) -> Result<u64, Errno> {
        if self.by_size {
            let size = statat(directory, path, AtFlags::empty())?.st_size;
            return u64::try_from(size).map_err(|_| Errno::OVERFLOW);
        }
        let fds = openat(directory, path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        self.list(fds.as_fd())
    }

    fn list(&mut self, fds: BorrowedFd<'_>) -> Result<u64, Errno> {
        let mut entries = RawDir::new(fds, &mut self.entries);
        let mut count = 0;
        while let Some(entry) = entries.next() {
            count += u64::from(!matches!(entry?.file_name().to_bytes(), b"." | b".."));
        }
        Ok(count)
    }

    fn size_is_count(&mut self, own: &Path) -> Result<bool, Errno> {
        let fds = openat(CWD, own, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let size = rustix::fs::fstat(&fds)?.st_size;
        let listed = self.list(fds.as_fd())?;
        // An empty directory is no live process, which holds this very directory open.
        Ok(listed > 0 && u64::try_from(size) == Ok(listed))
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};

    use super::*;

    /// Opens files until the agent's own count has risen by as many, so that files of other threads do not disturb.
    #[test]
    fn own_open_files_are_counted_on_the_live_machine() {
        let mut counter = OpenFds::new(Path::new("/proc"));
        let own = c"/proc/self/fd";
        let held: Vec<File> = (0..300).map(|_| tempfile::tempfile().expect("a file")).collect();
        let by_size = counter.by_size();
        for _ in 0..1000 {
            counter.by_size = by_size;
            let chosen = counter.at(CWD, own).expect("counted");
            counter.by_size = false;
            // Listing holds the directory open, which the other way does not.
            let listed = counter.at(CWD, own).expect("listed") - u64::from(by_size);
            assert!(chosen >= held.len() as u64);
            if chosen == listed {
                return;
            }
        }
        panic!("the two counts never met");
    }

    #[test]
    fn a_directory_that_is_no_proc_is_listed() {
        let dir = tempfile::tempdir().expect("a directory");
        let fds = dir.path().join("self/fd");
        fs::create_dir_all(&fds).expect("created");
        let mut counter = OpenFds::new(dir.path());
        assert!(!counter.by_size(), "the size of a directory on disk is not its number of entries");
        for number in 0..700 {
            File::create(fds.join(number.to_string())).expect("created");
        }
        let path = std::ffi::CString::new(fds.to_str().expect("UTF-8")).expect("no NUL");
        assert_eq!(counter.at(CWD, &path), Ok(700));
        assert_eq!(counter.at(CWD, c"/nowhere/fd"), Err(Errno::NOENT));
    }
}
