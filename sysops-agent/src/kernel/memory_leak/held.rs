//! Which pages of anonymous memory a process holds just now: /proc/<pid>/pagemap, read a block at a time. Whose they are
//! is left to `account`.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use sysops_common::memory_leak::BLOCK_SHIFT;

use crate::host::files::{ReadError, open_file};
use crate::host::os::Region;
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
    /// Empty where the kernel does not tell the zero page from others (before 6.7).
    regions: Vec<Region>,
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
        // Every other page at the most begins a range.
        let regions = vec![Region::default(); PAGES_MAX / 2];
        Ok(Self { file, page_shift, buffer: vec![0; entries * ENTRY].into_boxed_slice(), regions })
    }

    /// True when the program whose memory this is has ended, or became another: then nothing can be read of it.
    #[must_use]
    pub(super) fn is_over(&self) -> bool {
        // The lowest page that a program may have (vm.mmap_min_addr is 64 KiB); whether it has it is told all the same.
        const LOWEST: u64 = 1 << 16;
        let mut entry = [0; ENTRY];
        matches!(self.file.read_at(&mut entry, (LOWEST >> self.page_shift) * ENTRY as u64), Ok(0))
    }

    /// What is held of the block in which `address` lies.
    ///
    /// # Errors
    /// When the process has gone, or runs another program.
    pub(super) fn block(&mut self, address: u64) -> io::Result<Held> {
        let number = address >> BLOCK_SHIFT;
        let first = number << (BLOCK_SHIFT - self.page_shift);
        let read = self.file.read_at(&mut self.buffer, first * ENTRY as u64)?;
        if read == 0 {
            return Err(io::ErrorKind::NotFound.into());
        }
        let mut held = Held::of_entries(&self.buffer[..read], self.page_shift);
        if held.count() > 0 {
            self.leave_out_zeros(number << BLOCK_SHIFT, &mut held);
        }
        Ok(held)
    }

    /// The zero page, which a page is as long as it was only read, costs nothing.
    fn leave_out_zeros(&mut self, start: u64, held: &mut Held) {
        if self.regions.is_empty() {
            return;
        }
        let Ok(count) = os::zero_pages(&self.file, start..start + (1 << BLOCK_SHIFT), &mut self.regions) else {
            self.regions = Vec::new();
            return;
        };
        for region in &self.regions[..count] {
            (region.start..region.end).step_by(1 << self.page_shift).for_each(|address| held.remove(address));
        }
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
        let index = self.index(address);
        self.pages.get(index / 64).is_some_and(|word| word >> (index % 64) & 1 == 1)
    }

    /// Takes the page at `address` out.
    pub(super) fn remove(&mut self, address: u64) {
        let index = self.index(address);
        if let Some(word) = self.pages.get_mut(index / 64) {
            *word &= !(1 << (index % 64));
        }
    }

    /// Number of pages that are held and are not among `others`.
    #[must_use]
    pub(super) fn count_beside(&self, others: &Self) -> u64 {
        self.pages.iter().zip(&others.pages).map(|(word, other)| u64::from((word & !other).count_ones())).sum()
    }

    /// Takes out what is not among `others`.
    pub(super) fn keep(&mut self, others: &Self) {
        self.pages.iter_mut().zip(&others.pages).for_each(|(word, other)| *word &= other);
    }

    fn index(&self, address: u64) -> usize {
        let in_block = address & ((1 << BLOCK_SHIFT) - 1);
        usize::try_from(in_block >> self.page_shift).unwrap_or(usize::MAX)
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
    anonymous(host, pid).map(|(bytes, _)| bytes)
}

/// The same, and how much of it is in swap.
#[must_use]
pub(super) fn anonymous(host: &Host, pid: u32) -> Option<(u64, u64)> {
    let status = host.files.read_text(&host.files.proc(&format!("{pid}/status"))).ok()?;
    bytes_in_status(&status)
}

/// `RssAnon` (since 4.5) and `VmSwap`, proc(5). A kernel thread has neither.
fn bytes_in_status(status: &str) -> Option<(u64, u64)> {
    let kib = |name: &str| {
        let rest = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        rest.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()
    };
    let swapped = kib("VmSwap").unwrap_or(0);
    Some((kib("RssAnon")?.saturating_add(swapped).checked_mul(1024)?, swapped.checked_mul(1024)?))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU8, Ordering};

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
        assert_eq!(
            bytes_in_status("Name:\tx\nRssAnon:\t     100 kB\nVmSwap:\t       5 kB\n"),
            Some((105 * 1024, 5 * 1024))
        );
        assert_eq!(bytes_in_status("RssAnon:\t7 kB\n"), Some((7 * 1024, 0)));
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

    /// Memory that was only read is the zero page.
    #[test]
    fn memory_that_was_only_read_is_not_held() {
        // No allocator has written to it.
        static MEMORY: [AtomicU8; 8 << BLOCK_SHIFT] = [const { AtomicU8::new(0) }; 8 << BLOCK_SHIFT];
        let host = Host::live(&Roots { root: Some("/".into()) });
        let mut pagemap = Pagemap::open(&host, std::process::id()).expect("our own");
        let address = (MEMORY.as_ptr() as u64 + (2 << BLOCK_SHIFT)) >> BLOCK_SHIFT << BLOCK_SHIFT;
        let sum: u64 = MEMORY.iter().step_by(4096).map(|byte| u64::from(byte.load(Ordering::Relaxed))).sum();
        let held = pagemap.block(address).expect("a block");
        let tells = os::kernel_version().is_some_and(|version| version >= (6, 7));
        assert_eq!((sum, held.count()), (0, if tells { 0 } else { 1 << (BLOCK_SHIFT - page_shift()) }));
    }

    #[test]
    fn pages_are_taken_out_and_compared() {
        let (mut one, other) = (Held::of_pages(&[0, 1, 511]), Held::of_pages(&[1, 2]));
        assert_eq!((one.count_beside(&other), other.count_beside(&one)), (2, 1));
        one.remove(0x7f00_0020_0000 + 511 * 4096);
        assert_eq!(one, Held::of_pages(&[0, 1]));
        one.keep(&other);
        assert_eq!(one, Held::of_pages(&[1]));
    }
}
