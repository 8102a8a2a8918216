//! Tells the processes that no one watches from those that someone may, by one look at one word: each has a bit, which it
//! shares with those whose numbers are 65,536 apart.

/// Words of 64 bits each: eight KiB in all.
pub const WORDS: u32 = 1024;

/// The word that has the bit of a process, and the bit.
#[inline(always)]
#[must_use]
pub const fn place(tgid: u32) -> (u32, u64) {
    (tgid / u64::BITS % WORDS, 1 << (tgid % u64::BITS))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_of_65536_processes_has_a_bit_of_its_own() {
        let mut words = [0_u64; WORDS as usize];
        for tgid in 100_000..165_536 {
            let (word, bit) = place(tgid);
            assert_eq!((words[word as usize] & bit, bit.count_ones()), (0, 1), "{tgid}");
            words[word as usize] |= bit;
        }
        assert_eq!((place(1), place(1 + 65_536)), ((0, 2), (0, 2)));
    }
}
