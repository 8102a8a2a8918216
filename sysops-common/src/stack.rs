//! Stacks of user programs: what the kernel side needs to walk one by rules, and what it hands over when it cannot. The
//! rules are made in user space, from each program's own unwind tables, one for each place that a stack leads through.

use crate::offset::Offset;
use crate::plain::plain;

/// Frames of a stack that are told apart; what lies further out is cut off.
pub const FRAMES_MAX: usize = 64;
/// Bytes of a stack that are handed over at most. A multiple of [`CHUNK`]. Of a deeper one the next capture hands over what
/// lies further out, as by then there are rules for what was handed over.
pub const COPY_MAX: usize = 8 << 10;
/// The stack is copied in pieces of this size, aligned to it: one that is not in memory does not cost the others.
pub const CHUNK: usize = 512;
/// Set in a reference that is a token: it names one capture, where the others name a stack.
pub const TOKEN: u64 = 1 << 63;
/// Where the registers of a program may lie, as the size of kernel stacks is in no table.
pub const CANDIDATES: usize = 4;

/// What the program must know about the running kernel.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StackOffsets {
    /// `task_struct.stack`.
    pub stack: Offset,
    /// `task_struct.mm`.
    pub mm: Offset,
    /// `mm_struct.start_stack`: differs each time that a program is executed.
    pub start_stack: Offset,
    /// `task_struct.group_leader`.
    pub group_leader: Offset,
    /// `task_struct.start_boottime`.
    pub start_boottime: Offset,
    /// `pt_regs` with the place in the program.
    pub ip: Offset,
    /// `pt_regs` with the stack pointer.
    pub sp: Offset,
    /// `pt_regs` with the frame pointer.
    pub bp: Offset,
    /// `pt_regs` with the return address, on machines that have a register for it.
    pub lr: Offset,
    /// `pt_regs` with the mode that the registers were saved in, of which four bytes are read.
    pub mode: Offset,
    /// Bits of the mode that count.
    pub mode_mask: u32,
    /// What they are in a 64-bit user program.
    pub mode_value: u32,
    /// Bytes from `task_struct.stack` to `pt_regs`, nearest first; 0 ends the list.
    pub registers: [u32; CANDIDATES],
    /// Bits of a return address that are its place; on arm64 those above may sign it.
    pub address_bits: u32,
}

/// A process whose stacks are walked by rules. Written by the agent only, like all that follows here.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StackProcess {
    /// [`Walk::identity`] of the program that it runs: after exec the rules are not for it.
    pub identity: u64,
    /// Names its rules; never 0.
    pub epoch: u32,
    /// 1 when its stacks that cannot be walked are not handed over: too many of them led nowhere.
    pub silent: u32,
}

/// A place in a program that a stack leads through.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RuleKey {
    /// Of the process.
    pub epoch: u32,
    /// 1 when the program stands there itself, 0 when something that it called will return there.
    pub first: u32,
    /// Address.
    pub ip: u64,
}

/// How to come from one frame to the frame that called it, as a row of an unwind table says it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    /// Bits of [`way`].
    pub ways: u32,
    /// Leads to the stack pointer of the caller, which unwind tables call the canonical frame address.
    pub sp: i32,
    /// Leads to the return address in memory.
    pub ra: i32,
    /// Leads to the frame pointer of the caller in memory.
    pub bp: i32,
}

/// Bits of [`Rule::ways`].
pub mod way {
    /// `sp` is added to the frame pointer; without, to the stack pointer.
    pub const SP_FROM_BP: u32 = 1;
    /// The caller's stack pointer is the value in memory there.
    pub const SP_IN_MEMORY: u32 = 1 << 1;
    /// `ra` is added to the stack pointer; without, to the caller's.
    pub const RA_FROM_SP: u32 = 1 << 2;
    /// The return address is in the register for it, not in memory.
    pub const RA_IN_REGISTER: u32 = 1 << 3;
    /// The caller has the same frame pointer.
    pub const BP_SAME: u32 = 1 << 4;
    /// `bp` is added to the stack pointer; without, to the caller's.
    pub const BP_FROM_SP: u32 = 1 << 5;
    /// `bp` is added to the frame pointer.
    pub const BP_FROM_BP: u32 = 1 << 6;
    /// A signal came here: the return address is where the program stands, not where it will return to.
    pub const SIGNAL: u32 = 1 << 7;
    /// This is the outermost frame.
    pub const LAST: u32 = 1 << 8;
    /// No code is there: the frame before was the outermost one that can be told.
    pub const NOWHERE: u32 = 1 << 9;
}

/// A stack that the agent does not know yet, or as much of it as the rules lead through.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Walk {
    /// What the capture was answered with: [`stack_hash`], or a token when the walk is not complete.
    pub reference: u64,
    /// CLOCK_MONOTONIC.
    pub monotonic_ns: u64,
    /// When the process started, in nanoseconds after boot; 0 when not known.
    pub start_boottime_ns: u64,
    /// Tells this address space from others that the process has had.
    pub identity: u64,
    /// By whose rules; 0 when there were none.
    pub epoch: u32,
    /// Process id in the initial pid namespace.
    pub tgid: u32,
    /// Thread id in the initial pid namespace.
    pub tid: u32,
    /// How many of `ips` hold.
    pub frames: u32,
    /// Innermost first.
    pub ips: [u64; FRAMES_MAX],
    /// The place that no rule is known for.
    pub ip: u64,
    /// The stack pointer there.
    pub sp: u64,
    /// The frame pointer there.
    pub bp: u64,
    /// The register for the return address there, on machines that have one.
    pub lr: u64,
    /// Address of the first byte that was copied.
    pub base: u64,
    /// Bytes that were copied.
    pub copied: u32,
    /// 1 when the program stands at `ip` itself, 0 when something that it called will return there.
    pub first: u32,
}

/// A walk that is not complete, with the stack from there on.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Copied {
    /// What is known.
    pub walk: Walk,
    /// The stack from `walk.base` on.
    pub bytes: [u8; COPY_MAX],
}

plain!(StackOffsets, StackProcess, RuleKey, Rule, Walk, Copied);

impl StackOffsets {
    /// Nothing is known: no stack can be taken.
    pub const ABSENT: Self = Self {
        stack: Offset::ABSENT,
        mm: Offset::ABSENT,
        start_stack: Offset::ABSENT,
        group_leader: Offset::ABSENT,
        start_boottime: Offset::ABSENT,
        ip: Offset::ABSENT,
        sp: Offset::ABSENT,
        bp: Offset::ABSENT,
        lr: Offset::ABSENT,
        mode: Offset::ABSENT,
        mode_mask: 0,
        mode_value: 0,
        registers: [0; CANDIDATES],
        address_bits: 64,
    };
}

/// A hash of a stack, begun for the rules of one process and carried on with each frame, innermost first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StackHash(u64);

/// The place in a return address, without its signature.
#[inline(always)]
#[must_use]
pub const fn place(address: u64, address_bits: u32) -> u64 {
    if address_bits == 0 || address_bits >= 64 { address } else { address & ((1 << address_bits) - 1) }
}

impl StackHash {
    /// Of no frames.
    #[inline(always)]
    #[must_use]
    pub const fn new(epoch: u32) -> Self {
        Self((epoch as u64 ^ 0x9e37_79b9_7f4a_7c15).wrapping_mul(0xff51_afd7_ed55_8ccd))
    }

    /// With one more frame.
    #[inline(always)]
    #[must_use]
    pub const fn with(self, ip: u64) -> Self {
        let mixed = (self.0 ^ ip).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
        Self(mixed ^ mixed >> 29)
    }

    /// The reference: neither 0 nor a token.
    #[inline(always)]
    #[must_use]
    pub const fn reference(self) -> u64 {
        self.0 & !TOKEN | 1
    }
}

const _: () = assert!(size_of::<StackOffsets>() == 48 && size_of::<Rule>() == 16 && size_of::<RuleKey>() == 16);
const _: () = assert!(size_of::<Walk>() == 96 + FRAMES_MAX * 8 && size_of::<Copied>() == size_of::<Walk>() + COPY_MAX);
const _: () = assert!(COPY_MAX.is_multiple_of(CHUNK));
