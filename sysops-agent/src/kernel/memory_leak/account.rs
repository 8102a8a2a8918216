//! Shares out what a process holds among the stacks that touched it first. Pure: pages, what is held of their blocks and
//! stacks come as parameters.

use std::collections::BTreeMap;

use sysops_common::memory_leak::BLOCK_SHIFT;

use super::held::Held;

/// What one stack holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Share {
    /// Pages, as far as the chosen blocks tell.
    pub pages: u64,
    /// CLOCK_MONOTONIC of the oldest first touch of a page that is still held.
    pub oldest_ns: u64,
}

/// A page that someone touched first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Page<S> {
    /// Address of its first byte.
    pub address: u64,
    /// CLOCK_MONOTONIC.
    pub at_ns: u64,
    /// It was there then, or may have been: if it was held when the observation began it is no one's.
    pub may_be_old: bool,
    /// Who; `None` when no stack could be had.
    pub stack: Option<S>,
}

/// What comes of sharing out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Account<S: Ord> {
    /// By stack.
    pub shares: BTreeMap<S, Share>,
    /// Pages of which it is not known who touched them, in the chosen blocks.
    pub unknown_pages: u64,
    /// Pages that are not held any more.
    pub gone: Vec<u64>,
}

impl<S: Ord> Default for Account<S> {
    fn default() -> Self {
        Self { shares: BTreeMap::new(), unknown_pages: 0, gone: Vec::new() }
    }
}

impl<S: Ord + Copy> Account<S> {
    /// Adds one block: the pages of it that were touched, what is held of it now, and what of it has been held since the
    /// observation began. One fault may bring many pages (a huge page, a large folio), so what has come since is shared out
    /// among the faults of the block, at least a page each. What was held before and was written to again, after a fork, has not
    /// come.
    pub(super) fn add_block(&mut self, pages: &[Page<S>], held: &Held, before: Option<&mut Held>) {
        let (mut here, gone): (Vec<&Page<S>>, Vec<&Page<S>>) = pages.iter().partition(|page| held.has(page.address));
        self.gone.extend(gone.iter().map(|page| page.address));
        let mut came = held.count();
        if let Some(before) = before {
            before.keep(held);
            here.iter().filter(|page| !page.may_be_old).for_each(|page| before.remove(page.address));
            here.retain(|page| !before.has(page.address));
            came = held.count_beside(before);
        }
        let faults = here.len() as u64;
        let came = came.max(faults);
        let Some(each) = came.checked_div(faults) else { return };
        // The division's rest goes to the first ones, so that nothing is lost.
        let mut rest = came - each * faults;
        for page in here {
            let extra = u64::from(rest > 0);
            rest -= extra;
            self.add(page, each + extra);
        }
    }

    fn add(&mut self, page: &Page<S>, pages: u64) {
        let Some(stack) = page.stack else {
            self.unknown_pages += pages;
            return;
        };
        let share = self.shares.entry(stack).or_insert(Share { pages: 0, oldest_ns: page.at_ns });
        share.pages += pages;
        share.oldest_ns = share.oldest_ns.min(page.at_ns);
    }
}

/// Number of the block in which `address` lies.
#[must_use]
pub(super) const fn block(address: u64) -> u64 {
    address >> BLOCK_SHIFT
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: u64 = 0x7f12_3460_0000;

    fn page(index: u64, at_ns: u64, stack: Option<u8>) -> Page<u8> {
        Page { address: BASE + index * 4096, at_ns, may_be_old: false, stack }
    }

    fn account(pages: &[Page<u8>], held: &[usize], before: &[usize]) -> Account<u8> {
        let mut account = Account::default();
        account.add_block(pages, &Held::of_pages(held), Some(&mut Held::of_pages(before)));
        account
    }

    fn pages_of(account: &Account<u8>) -> Vec<(u8, u64)> {
        account.shares.iter().map(|(&stack, share)| (stack, share.pages)).collect()
    }

    #[test]
    fn pages_that_were_faulted_in_one_by_one_are_one_each() {
        let found = account(&[page(0, 5, Some(1)), page(1, 3, Some(1)), page(2, 4, Some(2))], &[0, 1, 2], &[]);
        assert_eq!(pages_of(&found), [(1, 2), (2, 1)]);
        assert_eq!(found.shares[&1].oldest_ns, 3);
        assert!(found.gone.is_empty());
    }

    #[test]
    fn one_fault_that_brought_a_huge_page_holds_it_all() {
        let all: Vec<usize> = (0..512).collect();
        assert_eq!(pages_of(&account(&[page(17, 1, Some(1))], &all, &[])), [(1, 512)]);
        let two = account(&[page(17, 1, Some(1)), page(18, 1, Some(2)), page(19, 1, Some(3))], &all, &[]);
        assert_eq!(pages_of(&two), [(1, 171), (2, 171), (3, 170)], "nothing is lost");
    }

    #[test]
    fn what_was_there_before_is_no_ones() {
        let held: Vec<usize> = (0..101).collect();
        let before = &held[..100];
        assert_eq!(pages_of(&account(&[page(100, 1, Some(1))], &held, before)), [(1, 1)]);
        // Others were given back meanwhile: the page that was touched is held all the same.
        assert_eq!(pages_of(&account(&[page(100, 1, Some(1))], &[100], before)), [(1, 1)]);
        // That very page was given back and taken again.
        assert_eq!(pages_of(&account(&[page(7, 1, Some(1))], &held, &held)), [(1, 1)]);
    }

    #[test]
    fn what_was_there_before_and_is_written_to_after_a_fork_stays_no_ones() {
        let written = |index, stack| Page { may_be_old: true, ..page(index, 1, Some(stack)) };
        let held: Vec<usize> = (0..100).collect();
        assert_eq!(account(&[written(3, 1), written(4, 1)], &held, &held), Account::default());
        // One was the zero page, or of the file, before.
        assert_eq!(pages_of(&account(&[written(3, 1), written(99, 2)], &held, &held[..99])), [(2, 1)]);
        // It was seen to be gone at an earlier look, and came back.
        let mut before = Held::of_pages(&held);
        Account::default().add_block(&[page(50, 1, Some(1))], &Held::of_pages(&[50]), Some(&mut before));
        let mut again = Account::default();
        again.add_block(&[written(3, 1)], &Held::of_pages(&held), Some(&mut before));
        assert_eq!(pages_of(&again), [(1, 100)]);
    }

    #[test]
    fn what_is_not_held_any_more_is_gone_and_what_has_no_stack_is_unknown() {
        let found = account(&[page(0, 1, Some(1)), page(1, 1, None)], &[1], &[]);
        assert_eq!((pages_of(&found), found.unknown_pages, found.gone.clone()), (vec![], 1, vec![BASE]));
        assert_eq!(account(&[], &[1, 2, 3], &[]), Account::default());
        assert_eq!(account(&[page(0, 1, Some(1))], &[], &[]).gone, [BASE]);
    }
}
