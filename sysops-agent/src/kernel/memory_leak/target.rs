//! One process whose anonymous memory is followed: what it held before, which pages it has touched since, and what of
//! them it still holds. Where the pages come from is left to the probe.

use std::collections::{BTreeMap, HashMap};
use std::io;

use sysops_common::memory_leak::{BLOCK_SHIFT, PageKey, Touched};

use super::account::{Account, Page, block};
use super::held::{Held, Pagemap, anonymous};
use crate::host::Host;
use crate::host::files::ReadError;

/// Blocks whose state at the beginning is remembered: 128 GiB of blocks that hold anything.
const BLOCKS_BEFORE_MAX: usize = 65_536;
/// Blocks that are asked for at the beginning, 256 GiB of addresses: some programs map terabytes that they hardly use.
const BLOCKS_ASKED_MAX: usize = 131_072;

/// A process that is followed.
pub(super) struct Target {
    /// Process id.
    pub pid: u32,
    /// Its name. Hostile.
    pub comm: String,
    /// Bytes that it held when it was armed.
    pub bytes_before: u64,
    /// CLOCK_MONOTONIC when it was armed.
    pub armed_ns: u64,
    /// It took the place of another program in the same process, which was followed before.
    pub is_another: bool,
    pagemap: Pagemap,
    /// By block, which pages have been held since it was armed.
    before: HashMap<u64, Held>,
    /// Some of its memory is or was in swap: what is not present need not have been given back.
    swaps: bool,
    /// Pages that were touched since, by address.
    touched: BTreeMap<u64, Touched>,
}

impl Target {
    /// Looks at what the process holds now, block by block. It must be armed already: what it touches meanwhile is counted
    /// as touched.
    ///
    /// # Errors
    /// When it has gone, or this user may not look at it.
    pub(super) fn new(host: &Host, pid: u32, comm: String, armed_ns: u64) -> Result<Self, ReadError> {
        // A task of the kernel has none; of a process that has gone the pagemap cannot be opened next.
        let (bytes_before, swapped) = anonymous(host, pid).unwrap_or_default();
        let mut target = Self {
            pid,
            comm,
            bytes_before,
            armed_ns,
            is_another: false,
            swaps: swapped > 0,
            pagemap: Pagemap::open(host, pid)?,
            before: HashMap::new(),
            touched: BTreeMap::new(),
        };
        let maps = host.files.read_text(&host.files.proc(&format!("{pid}/maps")))?;
        for number in blocks(maps.lines().filter_map(writable)) {
            if target.before.len() >= BLOCKS_BEFORE_MAX {
                break;
            }
            if let Ok(held) = target.pagemap.block(number << BLOCK_SHIFT)
                && held.count() > 0
            {
                target.before.insert(number, held);
            }
        }
        Ok(target)
    }

    /// True when the program has ended, or the process runs another one now.
    #[must_use]
    pub(super) fn is_over(&self) -> bool {
        self.pagemap.is_over()
    }

    /// A page that was touched.
    pub(super) fn add(&mut self, key: &PageKey, touched: Touched) {
        self.touched.insert(key.address, touched);
    }

    /// Pages that are remembered.
    #[must_use]
    pub(super) fn pages(&self) -> usize {
        self.touched.len()
    }

    /// References to the stacks that touched them.
    pub(super) fn references(&self) -> impl Iterator<Item = u64> {
        self.touched.values().map(|touched| touched.stack)
    }

    /// Forgets the pages that `keep` does not want, and tells each.
    pub(super) fn thin(&mut self, keep: impl Fn(u64) -> bool, mut forget: impl FnMut(PageKey)) {
        let pid = self.pid;
        self.touched.retain(|&address, _| {
            let kept = keep(address);
            if !kept {
                forget(PageKey { tgid: pid, reserved: 0, address });
            }
            kept
        });
    }

    /// Shares out what is held among the stacks that `resolve` names, and forgets and tells the pages that are not held
    /// any more. What is not present was given back, if `absent_is_free`, unless the process has memory in swap.
    ///
    /// # Errors
    /// When the process has gone.
    pub(super) fn account<S: Ord + Copy>(
        &mut self,
        host: &Host,
        absent_is_free: bool,
        resolve: impl Fn(u64) -> Option<S>,
        mut forget: impl FnMut(PageKey),
    ) -> io::Result<Account<S>> {
        self.swaps |= anonymous(host, self.pid).is_some_and(|(_, swapped)| swapped > 0);
        let is_vague = self.swaps || !absent_is_free;
        let mut account = Account::default();
        let mut pages: Vec<Page<S>> = Vec::new();
        let mut touched = self.touched.iter().peekable();
        while let Some((&address, page)) = touched.next() {
            let may_be_old = page.was_there != 0 || is_vague;
            pages.push(Page { address, at_ns: page.at_ns, may_be_old, stack: resolve(page.stack) });
            if touched.peek().is_some_and(|(next, _)| block(**next) == block(address)) {
                continue;
            }
            let held = self.pagemap.block(address)?;
            account.add_block(&pages, &held, self.before.get_mut(&block(address)));
            pages.clear();
        }
        for address in &account.gone {
            self.touched.remove(address);
            forget(PageKey { tgid: self.pid, reserved: 0, address: *address });
        }
        Ok(account)
    }
}

/// The blocks of all ranges, those of the smallest range first, as many as may be asked for.
fn blocks(ranges: impl Iterator<Item = (u64, u64)>) -> impl Iterator<Item = u64> {
    let mut ranges: Vec<(u64, u64)> = ranges.collect();
    ranges.sort_unstable_by_key(|(start, end)| end - start);
    ranges.into_iter().flat_map(|(start, end)| block(start)..=block(end - 1)).take(BLOCKS_ASKED_MAX)
}

/// The range of a line of /proc/<pid>/maps that the process may write to privately: `7f12-7f34 rw-p …`.
fn writable(line: &str) -> Option<(u64, u64)> {
    let mut words = line.split(' ');
    let (range, rights) = (words.next()?, words.next()?);
    if !rights.contains('w') || !rights.ends_with('p') {
        return None;
    }
    let (start, end) = range.split_once('-')?;
    let (start, end) = (u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?);
    (start < end).then_some((start, end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn private_memory_that_can_be_written_is_looked_at() {
        assert_eq!(writable("7f10-7f20 rw-p 00000000 00:00 0 "), Some((0x7f10, 0x7f20)));
        for line in ["7f10-7f20 r-xp 0 0:0 0", "7f10-7f20 rw-s 0 0:0 0", "7f20-7f10 rw-p", "x-y rw-p", "", "7f10 rw-p"]
        {
            assert_eq!(writable(line), None, "{line}");
        }
    }

    #[test]
    fn terabytes_that_are_mapped_are_not_asked_for_and_not_in_the_way_of_the_rest() {
        let ranges = [(1 << 44, 1 << 45), (0x40_0000, 0x80_0000), (0x7f00_0010_0000, 0x7f00_0010_1000)];
        let found: Vec<u64> = blocks(ranges.into_iter()).collect();
        assert_eq!(found.len(), BLOCKS_ASKED_MAX);
        assert_eq!(found[..4], [0x7f00_0010_0000 >> BLOCK_SHIFT, 2, 3, (1 << 44) >> BLOCK_SHIFT]);
    }
}
