//! Which pages of anonymous memory a process holds just now: /proc/<pid>/pagemap, read a block at a time. Whose they are
//! is left to `account`.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use sysops_common::memory_leak::BLOCK_SHIFT;

use crate::host::files::{ReadError, open_file};
use crate::host::{Host, os};

/// Bytes of an entry (Documentation/admin-guide/mm/pagemap.rst).
const ENTRY: usize = 8;
/// Page is present.
const PRESENT: u64 = 1 << 63;
/// Page is swapped.
const SWAPPED: u64 = 1 << 62;
/// Page is of a file or shared: no anonymous memory.
const OF_FILE: u64 = 1 << 61;
/// Pages of the smallest size that a block can have.
const PAGES_MAX: usize = 1 << (BLOCK_SHIFT - 12);

/// The pagemap of a process, kept open: after the process ended it says so and never tells of another.
pub(super) struct Pagemap {
    file: File,
    page_shift: u32,
    buffer: Box<[u8]>,
}

/// The pages of one block that are held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Held {
    pages: [u64; PAGES_MAX / 64],
    page_shift: u32,
}

impl Pagemap {
    /// That of the process `pid`.
    ///
    /// # Errors
    /// When it has gone, or this user may not look at it (CAP_SYS_PTRACE).
    pub(super) fn open(host: &Host, pid: u32) -> Result<Self, ReadError> {
        let file = open_file(&host.files.proc(&format!("{pid}/pagemap")))?;
        let page_shift = page_shift();
        let entries = 1_usize << BLOCK_SHIFT.saturating_sub(page_shift);
        Ok(Self { file, page_shift, buffer: vec![0; entries * ENTRY].into_boxed_slice() })
    }

    /// What is held of the block in which `address` lies.
    ///
    /// # Errors
    /// When the process has gone.
    pub(super) fn block(&mut self, address: u64) -> io::Result<Held> {
        let first = address >> BLOCK_SHIFT << (BLOCK_SHIFT - self.page_shift);
        let read = self.file.read_at(&mut self.buffer, first * ENTRY as u64)?;
        Ok(Held::of_entries(&self.buffer[..read], self.page_shift))
    }
}

impl Held {
    /// Reads the entries of a block; those that are missing at the end of the address space are not held.
    fn of_entries(entries: &[u8], page_shift: u32) -> Self {
        let mut pages = [0; PAGES_MAX / 64];
        for (index, entry) in entries.chunks_exact(ENTRY).take(PAGES_MAX).enumerate() {
            let entry = entry.try_into().map_or(0, u64::from_ne_bytes);
            if entry & (PRESENT | SWAPPED) != 0 && entry & OF_FILE == 0 {
                pages[index / 64] |= 1 << (index % 64);
            }
        }
        Self { pages, page_shift }
    }

    /// Pages of 4 KiB by number, for tests.
    #[cfg(test)]
    #[must_use]
    pub(super) fn of_pages(numbers: &[usize]) -> Self {
        let mut pages = [0; PAGES_MAX / 64];
        for number in numbers {
            pages[number / 64] |= 1 << (number % 64);
        }
        Self { pages, page_shift: 12 }
    }

    /// Number of pages that are held.
    #[must_use]
    pub(super) fn count(&self) -> u64 {
        self.pages.iter().map(|word| u64::from(word.count_ones())).sum()
    }

    /// True when the page at `address` is.
    #[must_use]
    pub(super) fn has(&self, address: u64) -> bool {
        let in_block = address & ((1 << BLOCK_SHIFT) - 1);
        let index = usize::try_from(in_block >> self.page_shift).unwrap_or(usize::MAX);
        self.pages.get(index / 64).is_some_and(|word| word >> (index % 64) & 1 == 1)
    }
}

/// log2 of the size of a page.
#[must_use]
pub(super) fn page_shift() -> u32 {
    os::page_size().trailing_zeros()
}

/// Bytes of anonymous memory that the process holds, in memory and in swap; `None` when it has gone or does not tell.
#[must_use]
pub(super) fn anonymous_bytes(host: &Host, pid: u32) -> Option<u64> {
    let status = host.files.read_text(&host.files.proc(&format!("{pid}/status"))).ok()?;
    bytes_in_status(&status)
}

/// `RssAnon` (since 4.5) and `VmSwap`, proc(5). A kernel thread has neither.
fn bytes_in_status(status: &str) -> Option<u64> {
    let kib = |name: &str| {
        let rest = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        rest.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()
    };
    kib("RssAnon")?.saturating_add(kib("VmSwap").unwrap_or(0)).checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::Roots;

    #[test]
    fn pages_that_are_present_or_swapped_and_of_no_file_are_held() {
        let entries: Vec<u8> = [PRESENT, SWAPPED, PRESENT | OF_FILE, 0, PRESENT | 7]
            .iter()
            .flat_map(|entry: &u64| entry.to_ne_bytes())
            .collect();
        let held = Held::of_entries(&entries, 12);
        assert_eq!(held.count(), 3);
        let base = 0x7f00_0020_0000;
        assert_eq!(
            [0, 1, 2, 3, 4, 5, 511].map(|page| held.has(base + page * 4096)),
            [true, true, false, false, true, false, false]
        );
        assert_eq!(Held::of_entries(&[0xff; 8 * 4096], 12).count(), 0, "of files");
        assert_eq!(Held::of_entries(&[1, 2, 3], 12).count(), 0);
    }

    #[test]
    fn anonymous_memory_is_what_is_in_memory_and_in_swap() {
        assert_eq!(bytes_in_status("Name:\tx\nRssAnon:\t     100 kB\nVmSwap:\t       5 kB\n"), Some(105 * 1024));
        assert_eq!(bytes_in_status("RssAnon:\t7 kB\n"), Some(7 * 1024));
        assert_eq!(bytes_in_status("Name:\tkthreadd\n"), None);
        assert_eq!(bytes_in_status("RssAnon:\t18446744073709551615 kB\n"), None);
    }

    /// The live pagemap of this very process: memory that was written is held, memory that was not is not.
    #[test]
    fn memory_is_held_from_the_first_write_on() {
        let host = Host::live(&Roots { root: Some("/".into()) });
        let mut pagemap = Pagemap::open(&host, std::process::id()).expect("our own");
        let mut memory = Vec::<u8>::with_capacity(8 << BLOCK_SHIFT);
        let address = (memory.as_ptr() as u64 + (2 << BLOCK_SHIFT)) >> BLOCK_SHIFT << BLOCK_SHIFT;
        assert!(!pagemap.block(address).expect("a block").has(address), "no one wrote to it");
        memory.resize(8 << BLOCK_SHIFT, 1);
        let held = pagemap.block(address).expect("a block");
        assert!(held.has(address) && held.count() == 1 << (BLOCK_SHIFT - page_shift()));
        assert!(anonymous_bytes(&host, std::process::id()).is_some_and(|bytes| bytes >= 8 << BLOCK_SHIFT));
    }
}
