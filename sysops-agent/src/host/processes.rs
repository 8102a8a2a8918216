//! Walks the processes of the watched machine: one getdents pass over a kept /proc, and single files below it.
//! What the files say is left to their readers; how many files a process has open is `open_fds`.

use std::ffi::CStr;
use std::io::Write;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use rustix::fs::{Mode, OFlags, PROC_SUPER_MAGIC, RawDir, SeekFrom, fstatfs, openat, seek};
use rustix::io::{Errno, pread};
use rustix::process::{Resource, getrlimit};

use super::files::{ReadError, open_file};
use super::{Clock, Host};

/// Directory entries that one getdents call may return. An entry of a process is 24 bytes: 1,300 processes a call.
const ENTRIES_BYTES: usize = 32 << 10;

/// Most files that [`Kept`] keeps open: each costs some 4.5 KB of the kernel's memory.
const KEPT_MAX: usize = 256;

/// How long a listing of /proc may be used by others than who made it.
const SHARED_FOR: Duration = Duration::from_secs(1);

/// The newest listing of /proc: who walks over it in the same round takes it instead of listing anew, which is dear, as
/// the kernel looks every process up.
#[derive(Debug, Clone, Default)]
pub struct Listing {
    newest: Arc<Mutex<Listed>>,
}

#[derive(Debug, Default)]
struct Listed {
    /// 0 before the first.
    number: u64,
    at: Duration,
    pids: Vec<u32>,
}

/// /proc of the watched machine, opened once.
#[derive(Debug)]
pub struct Processes {
    listing: Listing,
    clock: Clock,
    /// Number of the listing that was walked last, and what stood in it.
    number: u64,
    pids: Vec<u32>,
    path: PathBuf,
    proc: Option<OwnedFd>,
    /// It is the kernel's and not a recorded one.
    live: bool,
    entries: Box<[MaybeUninit<u8>]>,
}

/// A process that was there when /proc was listed; it may be gone at any later read.
#[derive(Debug, Clone, Copy)]
pub struct Process<'a> {
    /// Process id: the tgid, in the pid namespace of that /proc.
    pub pid: u32,
    proc: BorrowedFd<'a>,
    live: bool,
}

impl Processes {
    /// Processes below the /proc of `host`; it is opened when first walked.
    #[must_use]
    pub fn new(host: &Host) -> Self {
        Self {
            listing: host.listing.clone(),
            clock: host.clock.clone(),
            number: 0,
            pids: Vec::new(),
            path: host.files.proc(""),
            proc: None,
            live: false,
            entries: Box::new_uninit_slice(ENTRIES_BYTES),
        }
    }

    /// Calls `each` for every process that there is, or was within the last second. The live /proc gives them in the order
    /// of their ids, a recorded one in any.
    ///
    /// # Errors
    /// With the path, when /proc cannot be opened or listed.
    pub fn walk(&mut self, mut each: impl FnMut(Process<'_>)) -> Result<(), ReadError> {
        let proc = self.take_proc()?;
        let now = self.clock.now().monotonic;
        if !self.take_newest(now) {
            self.list(&proc)?;
            self.share(now);
        }
        for &pid in &self.pids {
            each(Process { pid, proc: proc.as_fd(), live: self.live });
        }
        self.proc = Some(proc);
        Ok(())
    }

    /// Calls `look` for one process, listed or not.
    ///
    /// # Errors
    /// With the path, when /proc cannot be opened.
    pub fn look(&mut self, pid: u32, look: impl FnOnce(Process<'_>)) -> Result<(), ReadError> {
        let proc = self.take_proc()?;
        look(Process { pid, proc: proc.as_fd(), live: self.live });
        self.proc = Some(proc);
        Ok(())
    }

    fn take_proc(&mut self) -> Result<OwnedFd, ReadError> {
        if let Some(fd) = self.proc.take() {
            return Ok(fd);
        }
        let fd = open_file(&self.path)?.into();
        self.live = fstatfs(&fd).is_ok_and(|fs| fs.f_type == PROC_SUPER_MAGIC);
        Ok(fd)
    }

    /// Takes a listing of another walker that this one has not seen; false when there is none, or it is too old.
    fn take_newest(&mut self, now: Duration) -> bool {
        let newest = self.listing.lock();
        // The first walk is of its own: who begins wants to see what there is.
        let is_new = self.number > 0 && newest.number != self.number && now.saturating_sub(newest.at) < SHARED_FOR;
        if is_new {
            self.number = newest.number;
            self.pids.clone_from(&newest.pids);
        }
        is_new
    }

    fn share(&mut self, now: Duration) {
        let mut newest = self.listing.lock();
        newest.number += 1;
        newest.at = now;
        newest.pids.clone_from(&self.pids);
        self.number = newest.number;
    }

    fn list(&mut self, proc: &OwnedFd) -> Result<(), ReadError> {
        let error = |errno: Errno| ReadError { path: self.path.clone(), what: "cannot list", source: errno.into() };
        seek(proc, SeekFrom::Start(0)).map_err(error)?;
        self.pids.clear();
        let mut entries = RawDir::new(proc, &mut self.entries);
        while let Some(entry) = entries.next() {
            self.pids.extend(pid(entry.map_err(error)?.file_name()));
        }
        Ok(())
    }
}

impl Listing {
    fn lock(&self) -> MutexGuard<'_, Listed> {
        self.newest.lock().expect("no holder of this lock panics")
    }
}

impl<'a> Process<'a> {
    /// Reads the start of `/proc/<pid>/<name>` into `buffer` and returns what was read. One read suffices: the kernel
    /// prints the files meant here (`stat`, `comm`, `limits`) whole into a buffer that is large enough.
    ///
    /// # Errors
    /// ENOENT or ESRCH when the process is gone, EACCES or EPERM when this user may not see it.
    pub fn read<'b>(&self, name: &str, buffer: &'b mut [u8]) -> Result<&'b [u8], Errno> {
        let length = read_start(&self.open(name)?, buffer)?;
        Ok(&buffer[..length])
    }

    fn open(&self, name: &str) -> Result<OwnedFd, Errno> {
        let mut path = [0; 64];
        // O_NONBLOCK: in a recorded host someone may have put a FIFO there.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        openat(self.proc, self.path(name, &mut path)?, flags, Mode::empty())
    }

    /// The directory to which [`Process::path`] is relative.
    pub(super) fn proc(&self) -> BorrowedFd<'a> {
        self.proc
    }

    /// `<pid>/<name>`, written into `buffer`.
    pub(super) fn path<'b>(&self, name: &str, buffer: &'b mut [u8; 64]) -> Result<&'b CStr, Errno> {
        write!(&mut buffer[..], "{}/{name}\0", self.pid).map_err(|_| Errno::NAMETOOLONG)?;
        CStr::from_bytes_until_nul(buffer).map_err(|_| Errno::NAMETOOLONG)
    }
}

/// The files `/proc/<pid>/<name>` of processes, kept open from walk to walk, as opening and closing one costs the kernel
/// as much as printing it. Only those of the lowest ids are, which mostly live long; the others are opened each time.
#[derive(Debug)]
pub struct Kept {
    name: &'static str,
    /// In order of pids.
    files: Vec<(u32, OwnedFd)>,
    /// The first that this walk has not come to.
    at: usize,
    most: usize,
}

impl Kept {
    /// Files of this name; at most a quarter of those that the agent may have open.
    #[must_use]
    pub fn new(name: &'static str) -> Self {
        let may_open = getrlimit(Resource::Nofile).current.map_or(usize::MAX, |limit| limit as usize);
        Self { name, files: Vec::new(), at: 0, most: KEPT_MAX.min(may_open / 4) }
    }

    /// Begins a walk.
    pub fn start(&mut self) {
        // What the walk before did not come to, was no longer listed.
        self.files.truncate(self.at);
        self.at = 0;
    }

    /// As [`Process::read`]. A process that has the pid of one that ended is never taken for it: the file of that one
    /// says ESRCH for ever.
    ///
    /// # Errors
    /// As [`Process::read`].
    pub fn read<'b>(&mut self, process: Process<'_>, buffer: &'b mut [u8]) -> Result<&'b [u8], Errno> {
        while self.files.get(self.at).is_some_and(|(pid, _)| *pid < process.pid) {
            self.files.remove(self.at);
        }
        if let Some((_, fd)) = self.files.get(self.at).filter(|(pid, _)| *pid == process.pid) {
            match read_start(fd, buffer) {
                Err(_) => _ = self.files.remove(self.at),
                Ok(length) => {
                    self.at += 1;
                    return Ok(&buffer[..length]);
                }
            }
        }
        let fd = process.open(self.name)?;
        let length = read_start(&fd, buffer)?;
        // A recorded host is in no order, and its files may be replaced.
        if process.live && self.files.len() < self.most {
            self.files.insert(self.at, (process.pid, fd));
            self.at += 1;
        }
        Ok(&buffer[..length])
    }
}

fn read_start(fd: &OwnedFd, buffer: &mut [u8]) -> Result<usize, Errno> {
    loop {
        match pread(fd, &mut *buffer, 0) {
            Err(Errno::INTR) => {}
            result => return result,
        }
    }
}

/// The process id in a name that is nothing but a number without leading zero.
fn pid(name: &CStr) -> Option<u32> {
    let name = name.to_bytes();
    let number = super::bytes::u64(name).filter(|&number| number > 0 && name[0] != b'0')?;
    u32::try_from(number).ok()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;
    use std::process::{Child, Command};

    use super::*;
    use crate::host::{Files, Roots};

    fn host(dir: &Path) -> Host {
        Host { files: Files::new(dir.to_owned(), dir.to_owned(), dir.to_owned()), ..Host::fixture(dir) }
    }

    #[test]
    fn only_numbers_are_processes_and_a_second_walk_starts_anew() {
        let dir = tempfile::tempdir().expect("a directory");
        for name in ["1", "27", "4294967295", "4294967296", "007", "0", "self", "1a", "-1", "\u{661}"] {
            fs::create_dir(dir.path().join(name)).expect("created");
        }
        let mut processes = Processes::new(&host(dir.path()));
        for _ in 0..2 {
            let mut pids = Vec::new();
            processes.walk(|process| pids.push(process.pid)).expect("listed");
            pids.sort_unstable();
            assert_eq!(pids, [1, 27, u32::MAX]);
        }
    }

    #[test]
    fn kept_files_are_those_of_the_processes_that_live() {
        #[expect(clippy::disallowed_methods, reason = "a test needs processes that end")]
        let sleep = |_| Command::new("sleep").arg("60").spawn().expect("sleep");
        let mut children = [0, 1, 2].map(sleep);
        let host = Host::live(&Roots { root: Some("/".into()) });
        let (mut processes, mut kept) = (Processes::new(&host), Kept::new("stat"));
        kept.most = usize::MAX;
        let mut walk = |kept: &mut Kept| {
            let mut seen = Vec::new();
            kept.start();
            let read = |process: Process<'_>| {
                let mut buffer = [0; 64];
                if let Ok(line) = kept.read(process, &mut buffer) {
                    assert!(line.starts_with(format!("{} (", process.pid).as_bytes()), "the line of another");
                    seen.push(process.pid);
                }
            };
            processes.walk(read).expect("listed");
            seen
        };
        let pids = children.each_ref().map(Child::id);
        for (ended, child) in children.iter_mut().enumerate() {
            let seen = walk(&mut kept);
            assert_eq!(kept.files.iter().map(|(pid, _)| *pid).collect::<Vec<_>>(), seen);
            assert_eq!(pids.map(|pid| seen.contains(&pid)), [0, 1, 2].map(|at| at >= ended));
            child.kill().expect("it lives");
            child.wait().expect("it is ours");
        }
        kept.most = 2;
        kept.files.clear();
        kept.at = 0;
        assert!(walk(&mut kept).len() > 2 && walk(&mut kept).len() > 2);
        assert_eq!(kept.files.len(), 2);
    }

    #[test]
    fn a_missing_proc_is_an_error_with_its_path_and_is_tried_again() {
        let dir = tempfile::tempdir().expect("a directory");
        let root = dir.path().join("proc");
        let mut processes = Processes::new(&host(&root));
        let error = processes.walk(|_| ()).expect_err("there is no such directory");
        assert!(error.is_absent() && error.to_string().contains("/proc"), "{error}");
        fs::create_dir_all(root.join("7")).expect("created");
        let mut pids = Vec::new();
        processes.walk(|process| pids.push(process.pid)).expect("listed");
        assert_eq!(pids, [7]);
    }

    #[test]
    fn a_listing_serves_each_walker_once_and_for_a_second() {
        let dir = tempfile::tempdir().expect("a directory");
        let host = host(dir.path());
        let mut walkers = [Processes::new(&host), Processes::new(&host)];
        let mut count = |walker: usize| {
            let mut count = 0;
            walkers[walker].walk(|_| count += 1).expect("listed");
            count
        };
        let add = |pid: &str| fs::create_dir(dir.path().join(pid)).expect("created");
        add("1");
        assert_eq!(count(0), 1);
        add("2");
        assert_eq!(count(1), 2, "the first walk lists");
        add("3");
        assert_eq!((count(0), count(0), count(1)), (2, 3, 3), "that of the other, then its own, which the other takes");
        add("4");
        assert_eq!(count(1), 4);
        add("5");
        host.clock.advance(SHARED_FOR);
        assert_eq!(count(0), 5);
    }

    #[test]
    fn a_process_may_be_gone_at_any_read() {
        let dir = tempfile::tempdir().expect("a directory");
        let of_process = dir.path().join("5");
        fs::create_dir(&of_process).expect("created");
        fs::write(of_process.join("comm"), "init\n").expect("written");
        let mut seen = 0;
        Processes::new(&host(dir.path()))
            .walk(|process| {
                seen += 1;
                let mut buffer = [0; 4];
                assert_eq!(process.read("comm", &mut buffer).expect("read"), b"init", "cut to the buffer");
                assert_eq!(process.read("stat", &mut buffer), Err(Errno::NOENT));
                assert_eq!(process.read(&"x".repeat(100), &mut buffer), Err(Errno::NAMETOOLONG));
            })
            .expect("listed");
        assert_eq!(seen, 1);
        let mut processes = Processes::new(&host(dir.path()));
        let mut found = |pid: u32| {
            let mut found = false;
            processes.look(pid, |process| found = process.read("comm", &mut [0; 4]).is_ok()).expect("opened");
            found
        };
        assert_eq!([found(5), found(6), found(5)], [true, false, true]);
    }
}
