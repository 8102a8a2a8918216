//! What a process has open: the numbers of its descriptors from any number on, and what each stands for. How many there
//! are is counted by `open_fds`.

use std::ffi::CStr;
use std::io::Write;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags, RawDir, SeekFrom, openat, readlinkat_raw, seek};
use rustix::io::{Errno, pread};

use super::files::open_file;
use super::{Host, ReadError, bytes};

/// Bytes of a link that are read. Longer paths are cut: they are compared, not opened.
pub const LINK_BYTES: usize = 256;

/// The open files of any process, one after another.
#[derive(Debug)]
pub struct Descriptors {
    proc: OwnedFd,
    entries: Box<[MaybeUninit<u8>]>,
}

impl Descriptors {
    /// Opens the /proc of `host`.
    ///
    /// # Errors
    /// With the path, when it cannot be opened.
    pub fn new(host: &Host) -> Result<Self, ReadError> {
        let proc = open_file(&host.files.proc(""))?.into();
        Ok(Self { proc, entries: Box::new_uninit_slice(16 << 10) })
    }

    /// Puts the numbers of the descriptors of `pid` into `fds`, in their order, from `from` on, at most `most`; true when
    /// there are none beyond. The kernel is asked for no others: one that has a million open costs no more than any.
    ///
    /// # Errors
    /// ENOENT or ESRCH when the process is gone, EACCES when this user may not list them.
    pub fn list(&mut self, pid: u32, from: u32, most: usize, fds: &mut Vec<u32>) -> Result<bool, Errno> {
        fds.clear();
        let mut path = [0; 64];
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = openat(&self.proc, path_of(&mut path, pid, "fd", None)?, flags, Mode::empty())?;
        // fs/proc/fd.c: the descriptor n stands at the position n + 2, behind `.` and `..`.
        seek(&directory, SeekFrom::Start(u64::from(from) + 2))?;
        let mut entries = RawDir::new(&directory, &mut self.entries);
        while let Some(entry) = entries.next() {
            let Some(fd) = bytes::u64(entry?.file_name().to_bytes()) else { continue };
            let Ok(fd) = u32::try_from(fd) else { continue };
            if fds.len() == most {
                return Ok(false);
            }
            fds.push(fd);
        }
        Ok(true)
    }

    /// What the descriptor stands for, as its link in /proc has it: a path, `socket:[4711]`, `anon_inode:[eventfd]`.
    ///
    /// # Errors
    /// ENOENT when it is not open any more, EACCES when this user may not know.
    pub fn link<'b>(
        &self,
        pid: u32,
        fd: u32,
        buffer: &'b mut [MaybeUninit<u8>; LINK_BYTES],
    ) -> Result<&'b [u8], Errno> {
        let mut path = [0; 64];
        let (link, _) = readlinkat_raw(&self.proc, path_of(&mut path, pid, "fd", Some(fd))?, &mut buffer[..])?;
        Ok(link)
    }

    /// The number of its inode, as the kernel knows it; `None` before Linux 5.14, which does not tell.
    ///
    /// # Errors
    /// As [`Self::link`].
    pub fn inode(&self, pid: u32, fd: u32) -> Result<Option<u64>, Errno> {
        let mut path = [0; 64];
        let path = path_of(&mut path, pid, "fdinfo", Some(fd))?;
        let file = openat(&self.proc, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        // pos, flags, mnt_id, ino: the first lines, whatever stands behind.
        let mut buffer = [0; 160];
        let length = pread(&file, &mut buffer, 0)?;
        let line = bytes::lines(&buffer[..length]).find_map(|line| line.strip_prefix(b"ino:"));
        Ok(line.and_then(|number| bytes::u64(bytes::trim(number))))
    }

    /// How many files `pid` may open; `None` when there is no limit, or it is unknown.
    #[must_use]
    pub fn soft_limit(&self, pid: u32) -> Option<u64> {
        let mut path = [0; 64];
        let path = path_of(&mut path, pid, "limits", None).ok()?;
        let file = openat(&self.proc, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
        let mut buffer = [0; 2048];
        let length = pread(&file, &mut buffer, 0).ok()?;
        let line = bytes::lines(&buffer[..length]).find_map(|line| line.strip_prefix(b"Max open files "))?;
        bytes::u64(bytes::fields(line).next()?)
    }

    /// The directory to which paths of processes are relative.
    #[must_use]
    pub fn proc(&self) -> BorrowedFd<'_> {
        self.proc.as_fd()
    }
}

fn path_of<'b>(buffer: &'b mut [u8; 64], pid: u32, name: &str, fd: Option<u32>) -> Result<&'b CStr, Errno> {
    let mut rest = &mut buffer[..];
    let written = match fd {
        Some(fd) => write!(rest, "{pid}/{name}/{fd}\0"),
        None => write!(rest, "{pid}/{name}\0"),
    };
    written.map_err(|_| Errno::NAMETOOLONG)?;
    CStr::from_bytes_until_nul(buffer).map_err(|_| Errno::NAMETOOLONG)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsRawFd;

    use super::*;
    use crate::host::Roots;

    fn own() -> (Descriptors, u32) {
        (Descriptors::new(&Host::live(&Roots::default())).expect("there is a /proc"), std::process::id())
    }

    fn number(file: &impl AsRawFd) -> u32 {
        u32::try_from(file.as_raw_fd()).expect("open")
    }

    #[test]
    fn own_descriptors_are_listed_from_any_number_on() {
        let (mut descriptors, pid) = own();
        let held: Vec<File> = (0..50).map(|_| tempfile::tempfile().expect("a file")).collect();
        let (first, last) = (number(&held[0]), number(&held[49]));
        let mut fds = Vec::new();
        assert_eq!(descriptors.list(pid, 0, usize::MAX, &mut fds), Ok(true));
        assert!(fds.is_sorted() && held.iter().all(|file| fds.contains(&number(file))), "{fds:?}");
        assert_eq!(descriptors.list(pid, last, 1, &mut fds).map(|_| fds[0]), Ok(last));
        assert_eq!(descriptors.list(pid, first, 3, &mut fds), Ok(false));
        assert_eq!(fds.len(), 3);
        assert_eq!(descriptors.list(pid, 1 << 30, 3, &mut fds), Ok(true));
        assert!(fds.is_empty());
        assert!(descriptors.list(u32::MAX, 0, 3, &mut fds).is_err());
    }

    #[test]
    fn a_descriptor_tells_what_it_stands_for() {
        let (descriptors, pid) = own();
        let mut buffer = [MaybeUninit::uninit(); LINK_BYTES];
        let file = tempfile::NamedTempFile::new().expect("a file");
        let link = descriptors.link(pid, number(file.as_file()), &mut buffer).expect("open");
        assert_eq!(link, file.path().as_os_str().as_encoded_bytes());
        let inode = std::os::unix::fs::MetadataExt::ino(&file.as_file().metadata().expect("it is there"));
        let told = descriptors.inode(pid, number(file.as_file())).expect("open");
        assert!(told.is_none() || told == Some(inode), "{told:?} {inode}");
        assert_eq!(descriptors.link(pid, 1 << 30, &mut buffer), Err(Errno::NOENT));
        assert!(descriptors.soft_limit(pid).is_some_and(|limit| limit > 3));
    }
}
