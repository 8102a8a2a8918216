//! The processes that programs watch: a table, and the sieve that lets them pass over all others.

use sysops_common::plain::Plain;
use sysops_common::sieve::place;

use super::ladder::Refusal;
use super::loader::{Object, Slots, Table};

/// What programs and agent share of each process that is watched.
pub(super) struct Sieved<V: Plain> {
    table: Table<u32, V>,
    sieve: Slots<u64>,
    pids: Vec<u32>,
}

impl<V: Plain> Sieved<V> {
    /// The map WATCHED of the object, and its SIEVE.
    ///
    /// # Errors
    /// When it lacks one.
    pub(super) fn of(object: &mut Object) -> Result<Self, Refusal> {
        Ok(Self { table: object.table("WATCHED")?, sieve: object.slots("SIEVE")?, pids: Vec::new() })
    }

    /// What there is of `pid`; `None` when it is not watched.
    #[must_use]
    pub(super) fn get(&self, pid: u32) -> Option<V> {
        self.table.get(&pid)
    }

    /// Has `pid` watched, or sets what there is of it.
    ///
    /// # Errors
    /// When the table is full.
    pub(super) fn insert(&mut self, pid: u32, value: &V) -> Result<(), Refusal> {
        self.table.insert(&pid, value)?;
        if !self.pids.contains(&pid) {
            self.pids.push(pid);
            self.sift(pid);
        }
        Ok(())
    }

    /// Has `pid` watched no longer.
    pub(super) fn remove(&mut self, pid: u32) {
        self.table.remove(&pid);
        self.pids.retain(|watched| *watched != pid);
        self.sift(pid);
    }

    fn sift(&mut self, pid: u32) {
        let (word, _) = place(pid);
        self.sieve.set(word, &bits(word, &self.pids));
    }
}

/// A word of the sieve, by all that have a bit in it.
fn bits(word: u32, pids: &[u32]) -> u64 {
    let places = pids.iter().map(|pid| place(*pid));
    places.filter(|(other, _)| *other == word).fold(0, |bits, (_, bit)| bits | bit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_who_goes_takes_no_ones_bit_along() {
        let (word, bit) = place(640);
        assert_eq!(bits(word, &[640, 641, 704, 640 + 65_536]), bit | bit << 1);
        assert_eq!(bits(word, &[641, 704, 640 + 65_536]), bit | bit << 1, "two share a bit");
        assert_eq!(bits(word, &[704]), 0);
    }
}
