//! System calls that tell how the machine stands and have no file: statvfs, uname, page size, clock ticks; and those that
//! make what has no name.

use std::ffi::{CStr, CString, c_void};
use std::fs::File;
use std::io::{self, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;

use rustix::fs::{MemfdFlags, StatVfs, memfd_create};
use rustix::io::Errno;
use rustix::ioctl::{Ioctl, IoctlOutput, Opcode, ioctl, opcode};
use rustix::path::Arg;

use super::bytes;

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

/// The first two numbers of the running kernel's release.
#[must_use]
pub fn kernel_version() -> Option<(u64, u64)> {
    version(uname().release().to_bytes())
}

fn version(release: &[u8]) -> Option<(u64, u64)> {
    let mut numbers = release.split(|byte| !byte.is_ascii_digit());
    numbers.next().and_then(bytes::u64).zip(numbers.next().and_then(bytes::u64))
}

/// The user whose rights this process has.
#[must_use]
pub fn effective_user() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// A copy of the first `length` bytes of `file` that no one else can change: it lies in memory alone.
///
/// # Errors
/// When there is no memory for it, or the file cannot be read or is shorter.
pub fn copy_to_memory(file: &File, length: u64) -> io::Result<File> {
    let mut copy = File::from(memfd_create("copy", MemfdFlags::CLOEXEC)?);
    let mut piece = vec![0; 1 << 16];
    let mut at = 0;
    while at < length {
        let wanted = usize::try_from(length - at).map_or(piece.len(), |left| left.min(piece.len()));
        file.read_exact_at(&mut piece[..wanted], at)?;
        copy.write_all(&piece[..wanted])?;
        at += wanted as u64;
    }
    Ok(copy)
}

/// A range of addresses, as PAGEMAP_SCAN tells it (struct page_region, include/uapi/linux/fs.h).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Region {
    /// Its first byte.
    pub start: u64,
    /// Behind its last.
    pub end: u64,
    categories: u64,
}

/// struct pm_scan_arg, include/uapi/linux/fs.h.
#[repr(C)]
struct Scan {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    regions: u64,
    regions_len: u64,
    pages_max: u64,
    inverted: u64,
    mask: u64,
    any_of: u64,
    told: u64,
}

/// Where in `range` a process has the zero page, by its /proc/<pid>/pagemap; how many of `regions` were filled. Since Linux 6.7.
///
/// # Errors
/// ENOTTY where the kernel cannot tell.
pub fn zero_pages(pagemap: &File, range: Range<u64>, regions: &mut [Region]) -> Result<usize, Errno> {
    const IS_ZERO: u64 = 1 << 5;
    let mut scan = Scan {
        size: size_of::<Scan>() as u64,
        flags: 0,
        start: range.start,
        end: range.end,
        walk_end: 0,
        regions: regions.as_mut_ptr() as u64,
        regions_len: regions.len() as u64,
        pages_max: 0,
        inverted: 0,
        mask: IS_ZERO,
        any_of: 0,
        told: IS_ZERO,
    };
    #[expect(unsafe_code, reason = "no crate hands this ioctl on")]
    // SAFETY: number and struct are those of the header; the kernel writes to `scan` and to as many `regions` as it is told of.
    let found = unsafe { ioctl(pagemap, Counted(&mut scan)) };
    found.map(|count| count.min(regions.len()))
}

/// An ioctl that takes a [`Scan`] and returns a number.
struct Counted<'a>(&'a mut Scan);

#[expect(unsafe_code, reason = "as for who calls it")]
// SAFETY: PAGEMAP_SCAN reads and writes one Scan and returns a number that is not negative.
unsafe impl Ioctl for Counted<'_> {
    type Output = usize;
    const IS_MUTATING: bool = true;

    fn opcode(&self) -> Opcode {
        opcode::read_write::<Scan>(b'f', 16)
    }

    fn as_ptr(&mut self) -> *mut c_void {
        std::ptr::from_mut(self.0).cast()
    }

    unsafe fn output_from_ptr(out: IoctlOutput, _: *mut c_void) -> rustix::io::Result<usize> {
        Ok(usize::try_from(out).unwrap_or(0))
    }
}

/// Gives memory that is free back to the kernel (malloc_trim(3)); glibc would keep it for the next time. For after work that took
/// much and is done for long: reading the kernel's types.
pub fn give_memory_back() {
    #[cfg(target_env = "gnu")]
    {
        #[expect(unsafe_code, reason = "glibc has this function, and no crate hands it on")]
        // SAFETY: the declaration is that of malloc.h; it may be called at any time from any thread.
        unsafe extern "C" {
            safe fn malloc_trim(pad: usize) -> std::ffi::c_int;
        }
        // What it says is whether there was any.
        let _ = malloc_trim(0);
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_release_begins_with_its_version() {
        assert_eq!(version(b"7.2.12+deb14-amd64"), Some((7, 2)));
        assert_eq!((version(b"6.18.5"), version(b"10.0-rc1")), (Some((6, 18)), Some((10, 0))));
        assert_eq!((version(b""), version(b"7"), version(b"next")), (None, None, None));
    }
}
