//! Counts the file descriptors that watched processes get and close, when their system calls return. Which processes,
//! and what each call does, is told by the agent.
#![no_std]
#![no_main]

use aya_ebpf::EbpfContext;
use aya_ebpf::helpers::{bpf_get_current_pid_tgid, bpf_get_current_task};
use aya_ebpf::macros::{btf_tracepoint, map, raw_tracepoint, tracepoint};
use aya_ebpf::maps::HashMap;
use aya_ebpf::programs::{BtfTracePointContext, RawTracePointContext, TracePointContext};
use sysops_common::fd::{CALLS, Counts, Effect, Offsets, WATCHED_MAX};
use sysops_ebpf::counters::{Fate, count};
use sysops_ebpf::memory::{add, member, offset};

#[unsafe(no_mangle)]
static OFFSETS: Offsets = Offsets::ABSENT;

// By process id; one more than are watched, for the self-check.
#[map]
static WATCHED: HashMap<u32, Counts> = HashMap::with_max_entries(WATCHED_MAX as u32 + 1, 0);

/// TS_COMPAT (arch/x86/include/asm/thread_info.h): the call is one of a 32-bit program.
const COMPAT: u32 = 2;

/// A system call returns.
#[btf_tracepoint]
pub fn on_tp_btf(ctx: BtfTracePointContext) -> i32 {
    on_exit(ctx.arg(0), ctx.arg::<u64>(1) as i64);
    0
}

/// The same on a raw tracepoint.
#[raw_tracepoint]
pub fn on_raw_tracepoint(ctx: RawTracePointContext) -> i32 {
    on_exit(ctx.arg(0), ctx.arg::<u64>(1) as i64);
    0
}

/// One of the system calls that matter returns. The kernel leaves out those of 32-bit programs.
#[tracepoint]
pub fn on_tracepoint(ctx: TracePointContext) -> u32 {
    let base = ctx.as_ptr() as u64;
    let Some(counts) = watched() else { return 0 };
    let number = member::<u32>(base, &OFFSETS.format_number);
    let Some((number, result)) = number.zip(member::<i64>(base, &OFFSETS.format_result)) else {
        count(Fate::ReadFault);
        return 0;
    };
    if result >= 0 {
        enter(counts, number);
    }
    0
}

/// Most calls are of processes that no one watches: that is asked first.
#[inline(always)]
fn on_exit(registers: u64, result: i64) {
    if result < 0 {
        return;
    }
    let Some(counts) = watched() else { return };
    if offset(&OFFSETS.status).is_some() {
        // SAFETY: the helper takes nothing and cannot fail.
        let task = unsafe { bpf_get_current_task() };
        if member::<u32>(task, &OFFSETS.status).is_none_or(|status| status & COMPAT != 0) {
            return;
        }
    }
    match member::<u32>(registers, &OFFSETS.number) {
        Some(number) => enter(counts, number),
        None => count(Fate::ReadFault),
    }
}

#[inline(always)]
fn watched() -> Option<*mut Counts> {
    WATCHED.get_ptr_mut((bpf_get_current_pid_tgid() >> 32) as u32)
}

#[inline(always)]
fn enter(counts: *mut Counts, number: u32) {
    let number = number as usize;
    if number >= CALLS {
        return;
    }
    // SAFETY: a reference is valid to read. Volatile, as the loader writes the value after compilation.
    let effect = unsafe { core::ptr::read_volatile(&OFFSETS.calls[number]) };
    // SAFETY: `counts` points into a value of a map.
    let (counter, amount) = unsafe {
        if effect == Effect::Close as u8 {
            (&raw mut (*counts).closes, 1)
        } else {
            (&raw mut (*counts).installs, u64::from(effect))
        }
    };
    if amount == 0 {
        return;
    }
    // SAFETY: as above.
    unsafe { add(counter, amount) };
    count(Fate::Received);
}
