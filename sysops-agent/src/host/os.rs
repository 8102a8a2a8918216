//! System calls that tell how the machine stands and have no file: statvfs, uname, page size, clock ticks.

use std::path::Path;

use rustix::fs::StatVfs;
use rustix::io::Errno;

/// Space and inodes of the file system at `path` (statvfs(3)). May hang for ever on a dead network file system.
///
/// # Errors
/// What the kernel said.
pub fn statvfs(path: &Path) -> Result<StatVfs, Errno> {
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
