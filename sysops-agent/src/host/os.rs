//! System calls that tell how the machine stands and have no file: statvfs, uname, page size, clock ticks.

use std::ffi::{CStr, CString};

use rustix::fs::StatVfs;
use rustix::io::Errno;
use rustix::path::Arg;

/// Space and inodes of the file system at `path` (statvfs(3)). May hang for ever on a dead network file system:
/// `space::Asker` asks without waiting for ever.
///
/// # Errors
/// What the kernel said.
pub fn statvfs(path: impl Arg) -> Result<StatVfs, Errno> {
    rustix::fs::statvfs(path)
}

/// Bytes in a page.
#[must_use]
pub fn page_size() -> u64 {
    rustix::param::page_size() as u64
}

/// Clock ticks in a second, in which /proc counts CPU time (USER_HZ).
#[must_use]
pub fn ticks_per_second() -> u64 {
    rustix::param::clock_ticks_per_second()
}

/// Name, release, version and machine of the running kernel.
#[must_use]
pub fn uname() -> rustix::system::Uname {
    rustix::system::uname()
}

/// Name of the calling thread, at most 15 bytes.
///
/// # Errors
/// What the kernel said.
pub fn thread_name() -> Result<CString, Errno> {
    rustix::thread::name()
}

/// Names the calling thread; what is longer than 15 bytes is cut.
///
/// # Errors
/// What the kernel said.
pub fn rename_thread(name: &CStr) -> Result<(), Errno> {
    rustix::thread::set_name(name)
}
