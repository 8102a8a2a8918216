//! Pages of anonymous memory that watched processes touch for the first time, and pieces that their allocators hand out,
//! with the stack that did or asked.

use crate::offset::Offset;
use crate::plain::plain;
use crate::stack::StackOffsets;

/// Processes that can be watched at once.
pub const WATCHED_MAX: usize = 16;
/// Pages that are remembered, of all watched processes together.
pub const PAGES_MAX: usize = 65_536;
/// Pieces that are remembered when allocators are watched.
pub const PIECES_MAX: usize = 1 << 18;
/// Memory is chosen in blocks of this size, 2 to the power of 21 bytes: what one fault brings at most where huge pages
/// are on, so that the pages of a block can be shared out among the faults in it.
pub const BLOCK_SHIFT: u32 = 21;
/// A call of an allocator that has not returned for so long never will: a signal handler jumped out of it, or its thread ended.
pub const CALL_NS_MAX: u64 = 1_000_000_000;

/// What the program must know about the running kernel.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offsets {
    /// What it takes to see user stacks.
    pub stack: StackOffsets,
    /// `address` in the record of the plain tracepoints, by tracefs.
    pub format_address: Offset,
    /// `error_code` in the record of the plain tracepoints, by tracefs.
    pub format_error: Offset,
    /// log2 of the size of a page.
    pub page_shift: u16,
    /// 1 when a page that is not present was given back: its old owner is forgotten. 0 where the kernel takes pages away for
    /// a while to see who uses them (NUMA balancing).
    pub absent_is_free: u16,
}

/// A page of a process.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PageKey {
    /// Process id in the initial pid namespace.
    pub tgid: u32,
    /// Keeps the size a multiple of the alignment without hidden bytes.
    pub reserved: u32,
    /// Address of its first byte.
    pub address: u64,
}

/// Who touched a page first.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Touched {
    /// The stack, as `stack` refers to it; 0 when none could be taken.
    pub stack: u64,
    /// CLOCK_MONOTONIC.
    pub at_ns: u64,
    /// 1 when a page was there already and was written to: what was shared by a fork, or the zero page.
    pub was_there: u64,
}

/// A piece of memory that an allocator handed out.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PieceKey {
    /// Process id in the initial pid namespace.
    pub tgid: u32,
    /// Keeps the size a multiple of the alignment without hidden bytes.
    pub reserved: u32,
    /// Address.
    pub address: u64,
}

/// Who asked for a piece.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// The stack, as `stack` refers to it; 0 when none could be taken.
    pub stack: u64,
    /// CLOCK_MONOTONIC.
    pub at_ns: u64,
    /// Bytes that were asked for.
    pub bytes: u64,
}

/// A call of an allocator that has not returned yet.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    /// What it asks for.
    pub piece: Piece,
    /// The piece that it replaces; 0 for none.
    pub replaces: u64,
    /// Where the address is left (posix_memalign); 0 when it is returned.
    pub result_at: u64,
    /// The stack pointer at its entry; 0 when it is not known.
    pub sp: u64,
}

plain!(Offsets, PageKey, Touched, PieceKey, Piece, Call);

impl Offsets {
    /// Nothing is known.
    pub const ABSENT: Self = Self {
        stack: StackOffsets::ABSENT,
        format_address: Offset::ABSENT,
        format_error: Offset::ABSENT,
        page_shift: 12,
        absent_is_free: 0,
    };
}

/// True when the block of `address` is among those that are looked at: one in `mask` + 1, which is a power of two, so
/// that a greater mask chooses some of the blocks which a smaller one chose.
#[inline(always)]
#[must_use]
pub const fn is_chosen(address: u64, mask: u64) -> bool {
    // Neighbouring blocks must not fall together: the multiplier spreads them (Knuth, TAOCP 3, 6.4).
    let spread = (address >> BLOCK_SHIFT).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (spread >> 40) & mask == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_in_so_many_blocks_is_chosen_and_a_greater_mask_keeps_some_of_them() {
        let blocks = || (0..100_000_u64).map(|block| 0x7f00_0000_0000 + (block << BLOCK_SHIFT));
        for mask in [0_u64, 1, 7, 63] {
            let chosen = blocks().filter(|&address| is_chosen(address, mask)).count() as u64;
            let expected = 100_000 / (mask + 1);
            assert!(chosen.abs_diff(expected) < expected / 10 + 1, "{mask}: {chosen}");
        }
        assert!(blocks().all(|address| !is_chosen(address, 63) || is_chosen(address, 7)));
        assert_eq!(is_chosen(0x1234_5678, 7), is_chosen(0x1234_5678 + 4096, 7), "one block");
    }
}
