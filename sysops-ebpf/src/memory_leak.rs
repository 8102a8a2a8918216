//! Remembers who first touched the pages of watched processes: page faults that write, with the stack that did. Which
//! pages are still held, and what that comes to in bytes, is left to the agent. On demand it follows what one process
//! asks of its allocator instead.
#![no_std]
#![no_main]

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use aya_ebpf::macros::{btf_tracepoint, map, raw_tracepoint, tracepoint, uprobe, uretprobe};
use aya_ebpf::maps::HashMap;
use aya_ebpf::programs::{
    BtfTracePointContext, ProbeContext, RawTracePointContext, RetProbeContext, TracePointContext,
};
use sysops_common::memory_leak::{
    CALL_NS_MAX, Call, Offsets, PAGES_MAX, PIECES_MAX, PageKey, Piece, PieceKey, Touched, WATCHED_MAX, is_chosen,
};
use sysops_ebpf::counters::{Fate, count};
use sysops_ebpf::memory::member;
use sysops_ebpf::sieve::may_be_watched;
use sysops_ebpf::stack::read_user;
use sysops_ebpf::{clock_ns, stack};

#[unsafe(no_mangle)]
static OFFSETS: Offsets = Offsets::ABSENT;

// By process id: the mask by which blocks are chosen. One more than are watched, for the self-check.
#[map]
static WATCHED: HashMap<u32, u64> = HashMap::with_max_entries(WATCHED_MAX as u32 + 1, 0);

#[map]
static PAGES: HashMap<PageKey, Touched> = HashMap::with_max_entries(PAGES_MAX as u32, 0);

// These two are filled only when an allocator is watched.
#[map]
static PIECES: HashMap<PieceKey, Piece> = HashMap::with_max_entries(PIECES_MAX as u32, BPF_F_NO_PREALLOC);
// By process and thread id.
#[map]
static CALLS: HashMap<u64, Call> = HashMap::with_max_entries(1 << 15, BPF_F_NO_PREALLOC);

/// The page is there, and the fault is about what may be done with it (X86_PF_PROT).
const PRESENT: u64 = 1;
/// The fault is a write (X86_PF_WRITE, arch/x86/include/asm/trap_pf.h): a page that was only read is the zero page, which
/// costs nothing.
const WRITE: u64 = 1 << 1;

/// A page fault in user mode.
#[btf_tracepoint]
pub fn user_tp_btf(ctx: BtfTracePointContext) -> i32 {
    on_fault(ctx.arg(0), ctx.arg(2));
    0
}

/// A page fault in the kernel, on the user's behalf.
#[btf_tracepoint]
pub fn kernel_tp_btf(ctx: BtfTracePointContext) -> i32 {
    on_fault(ctx.arg(0), ctx.arg(2));
    0
}

/// A page fault in user mode.
#[raw_tracepoint]
pub fn user_raw_tracepoint(ctx: RawTracePointContext) -> i32 {
    on_fault(ctx.arg(0), ctx.arg(2));
    0
}

/// A page fault in the kernel, on the user's behalf.
#[raw_tracepoint]
pub fn kernel_raw_tracepoint(ctx: RawTracePointContext) -> i32 {
    on_fault(ctx.arg(0), ctx.arg(2));
    0
}

/// A page fault in user mode: what its record says.
#[tracepoint]
pub fn user_tracepoint(ctx: TracePointContext) -> u32 {
    on_record(ctx.as_ptr() as u64)
}

/// A page fault in the kernel, on the user's behalf: what its record says.
#[tracepoint]
pub fn kernel_tracepoint(ctx: TracePointContext) -> u32 {
    on_record(ctx.as_ptr() as u64)
}

#[inline(always)]
fn on_record(base: u64) -> u32 {
    let address = member::<u64>(base, &OFFSETS.format_address);
    match address.zip(member::<u64>(base, &OFFSETS.format_error)) {
        Some((address, error)) => on_fault(address, error),
        None => count(Fate::ReadFault),
    }
    0
}

/// Most faults are of processes that no one watches: that is asked first.
#[inline(always)]
fn on_fault(address: u64, error: u64) {
    let tgid = (bpf_get_current_pid_tgid() >> 32) as u32;
    if !may_be_watched(tgid) {
        return;
    }
    // SAFETY: the value is copied at once.
    let Some(mask) = (unsafe { WATCHED.get(tgid) }).copied() else { return };
    if error & WRITE == 0 || address >> 63 != 0 || !is_chosen(address, mask) {
        return;
    }
    // SAFETY: a reference is valid to read. Volatile, as the loader writes the value after compilation.
    let (page_shift, absent_is_free) = unsafe {
        (core::ptr::read_volatile(&OFFSETS.page_shift) & 31, core::ptr::read_volatile(&OFFSETS.absent_is_free))
    };
    let key = PageKey { tgid, reserved: 0, address: address >> page_shift << page_shift };
    // A page that is known and there is written again after a fork: it stays with who touched it first.
    let is_known = PAGES.get_ptr(key).is_some();
    if is_known && (absent_is_free == 0 || error & PRESENT != 0) {
        return;
    }
    let touched = Touched { stack: stack::capture(&OFFSETS.stack), at_ns: clock_ns(), was_there: error & PRESENT };
    match PAGES.insert(key, touched, 0) {
        Ok(()) => count(Fate::Received),
        Err(_) => count(Fate::MapFull),
    }
}

/// malloc(size).
#[uprobe]
pub fn on_malloc(ctx: ProbeContext) -> u32 {
    called(ctx.arg(0).unwrap_or(0), 0, 0)
}

/// calloc(count, size).
#[uprobe]
pub fn on_calloc(ctx: ProbeContext) -> u32 {
    let (pieces, size) = (ctx.arg::<u64>(0).unwrap_or(0), ctx.arg::<u64>(1).unwrap_or(0));
    called(pieces.wrapping_mul(size), 0, 0)
}

/// realloc(piece, size).
#[uprobe]
pub fn on_realloc(ctx: ProbeContext) -> u32 {
    called(ctx.arg(1).unwrap_or(0), ctx.arg(0).unwrap_or(0), 0)
}

/// aligned_alloc(alignment, size), memalign(alignment, size).
#[uprobe]
pub fn on_memalign(ctx: ProbeContext) -> u32 {
    called(ctx.arg(1).unwrap_or(0), 0, 0)
}

/// posix_memalign(&piece, alignment, size).
#[uprobe]
pub fn on_posix_memalign(ctx: ProbeContext) -> u32 {
    called(ctx.arg(2).unwrap_or(0), 0, ctx.arg(0).unwrap_or(0))
}

/// One of them returns.
#[uretprobe]
pub fn on_return(ctx: RetProbeContext) -> u32 {
    let thread = bpf_get_current_pid_tgid();
    // SAFETY: the value is copied at once; it is this thread's own.
    let Some(call) = (unsafe { CALLS.get(thread) }).copied() else { return 0 };
    // A call within that call returns: realloc may ask malloc for what it hands out.
    let sp = stack::pointer(&OFFSETS.stack);
    if sp != 0 && call.sp != 0 && sp < call.sp + stack::return_bytes(&OFFSETS.stack) {
        return 0;
    }
    let _ = CALLS.remove(thread);
    let returned: u64 = ctx.ret();
    let address = match call.result_at {
        0 => returned,
        // posix_memalign returns a number of errno.
        at if returned as u32 == 0 => read_user(at).unwrap_or(0),
        _ => 0,
    };
    let tgid = (thread >> 32) as u32;
    // A reallocation that failed leaves the piece as it was; one to nothing frees it.
    if call.replaces != 0 && (address != 0 || call.piece.bytes == 0) {
        let _ = PIECES.remove(PieceKey { tgid, reserved: 0, address: call.replaces });
    }
    if address != 0 {
        match PIECES.insert(PieceKey { tgid, reserved: 0, address }, call.piece, 0) {
            Ok(()) => count(Fate::Received),
            Err(_) => count(Fate::MapFull),
        }
    }
    0
}

/// free(piece).
#[uprobe]
pub fn on_free(ctx: ProbeContext) -> u32 {
    if let Some(address) = ctx.arg::<u64>(0).filter(|&address| address != 0) {
        let tgid = (bpf_get_current_pid_tgid() >> 32) as u32;
        let _ = PIECES.remove(PieceKey { tgid, reserved: 0, address });
    }
    0
}

/// The stack is taken now, while the return address is still the program's own. A function of its own, as five programs
/// need it.
#[inline(never)]
fn called(bytes: u64, replaces: u64, result_at: u64) -> u32 {
    let thread = bpf_get_current_pid_tgid();
    let (sp, at_ns) = (stack::pointer(&OFFSETS.stack), clock_ns());
    // An allocator that calls itself, or goes on in another of its functions (glibc: realloc of nothing in malloc): who asked
    // is known already, and from here its caller may not be seen any more.
    // SAFETY: the value is read at once; it is this thread's own.
    if let Some(outer) = unsafe { CALLS.get(thread) }
        && sp != 0
        && outer.sp >= sp
        && at_ns.wrapping_sub(outer.piece.at_ns) < CALL_NS_MAX
    {
        return 0;
    }
    let piece = Piece { stack: stack::capture(&OFFSETS.stack), at_ns, bytes };
    if CALLS.insert(thread, Call { piece, replaces, result_at, sp }, 0).is_err() {
        count(Fate::MapFull);
    }
    0
}
