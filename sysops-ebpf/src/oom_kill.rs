//! Reports the victim that the kernel marks for an OOM kill. The tracepoint `mark_victim` runs in the task that asked for
//! memory: `current` is the trigger, the argument is the victim.
#![no_std]
#![no_main]

use aya_ebpf::EbpfContext;
use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use aya_ebpf::macros::{btf_tracepoint, map, raw_tracepoint, tracepoint};
use aya_ebpf::maps::{Array, RingBuf};
use aya_ebpf::programs::{BtfTracePointContext, RawTracePointContext, TracePointContext};
use sysops_common::check::Check;
use sysops_common::oom_kill::{Offsets, Record, known};
use sysops_common::task::{COMM_LEN, known as task_known};
use sysops_ebpf::counters::{Fate, count};
use sysops_ebpf::memory::{copy_current_comm, follow, member, read_text};
use sysops_ebpf::{check, task};

#[unsafe(no_mangle)]
static OFFSETS: Offsets = Offsets::ABSENT;

// Room for 220 kills that the agent has not yet taken.
#[map]
static EVENTS: RingBuf = RingBuf::with_byte_size(1 << 19, 0);

#[map]
static CHECK: Array<Check<Record>> = Array::with_max_entries(1, 0);

/// The probe on a tracepoint typed by BTF.
#[btf_tracepoint(function = "mark_victim")]
pub fn on_tp_btf(ctx: BtfTracePointContext) -> i32 {
    let victim: u64 = ctx.arg(0);
    report(|record| fill(victim, record))
}

/// The same on a raw tracepoint: the same arguments, untyped.
#[raw_tracepoint(tracepoint = "mark_victim")]
pub fn on_raw_tracepoint(ctx: RawTracePointContext) -> i32 {
    let victim: u64 = ctx.arg(0);
    report(|record| fill(victim, record))
}

/// The probe on the plain tracepoint: what its record holds, no task to follow.
#[tracepoint]
pub fn on_tracepoint(ctx: TracePointContext) -> u32 {
    let base = ctx.as_ptr() as u64;
    report(|record| fill_from_format(base, record)) as u32
}

/// Self-check on a tracepoint typed by BTF.
#[btf_tracepoint(function = "task_rename")]
pub fn check_tp_btf(ctx: BtfTracePointContext) -> i32 {
    let (task, name): (u64, u64) = (ctx.arg(0), ctx.arg(1));
    check::run(&CHECK, &OFFSETS.check_name, name, |record| fill(task, record));
    0
}

/// Self-check on a raw tracepoint.
#[raw_tracepoint(tracepoint = "task_rename")]
pub fn check_raw_tracepoint(ctx: RawTracePointContext) -> i32 {
    let (task, name): (u64, u64) = (ctx.arg(0), ctx.arg(1));
    check::run(&CHECK, &OFFSETS.check_name, name, |record| fill(task, record));
    0
}

#[inline(always)]
fn report(fill: impl FnOnce(&mut Record) -> Option<()>) -> i32 {
    let Some(mut entry) = EVENTS.reserve::<Record>(0) else {
        count(Fate::RingFull);
        return 0;
    };
    // SAFETY: the entry is ours until it is submitted, and any bytes are a Record.
    let record = unsafe { entry.assume_init_mut() };
    if fill(record).is_some() {
        entry.submit(0);
        count(Fate::Received);
    } else {
        entry.discard(0);
        count(Fate::ReadFault);
    }
    0
}

#[inline(always)]
fn fill(victim: u64, record: &mut Record) -> Option<()> {
    clear(record);
    task::fill(victim, &OFFSETS.task, &mut record.task)?;
    if let Some(adj) = follow(victim, &OFFSETS.signal).and_then(|s| member::<i16>(s, &OFFSETS.oom_score_adj)) {
        record.oom_score_adj = i32::from(adj);
        record.known |= known::ADJ;
    }
    if let Some(mm) = follow(victim, &OFFSETS.mm) {
        fill_memory(mm, record);
    }
    Some(())
}

#[inline(always)]
fn fill_memory(mm: u64, record: &mut Record) {
    if let Some(pages) = member(mm, &OFFSETS.total_vm) {
        record.total_vm = pages;
        record.known |= known::TOTAL_VM;
    }
    // The counters are signed and may be below zero for a moment: the kernel prints that as zero.
    if let Some(pages) = member::<i64>(mm, &OFFSETS.anon_pages) {
        record.anon = pages.max(0) as u64;
        record.known |= known::ANON;
    }
    if let Some(pages) = member::<i64>(mm, &OFFSETS.file_pages) {
        record.file = pages.max(0) as u64;
        record.known |= known::FILE;
    }
    if let Some(pages) = member::<i64>(mm, &OFFSETS.shmem_pages) {
        record.shmem = pages.max(0) as u64;
        record.known |= known::SHMEM;
    }
    if let Some(bytes) = member(mm, &OFFSETS.pgtables_bytes) {
        record.pgtables = bytes;
        record.known |= known::PGTABLES;
    }
}

#[inline(always)]
fn fill_from_format(base: u64, record: &mut Record) -> Option<()> {
    clear(record);
    let at = &OFFSETS.format;
    let out = &mut record.task;
    out.tid = member(base, &at.pid)?;
    let mut seen = task_known::TID;
    // __data_loc: the low half is where the text is, the high half how long.
    if let Some(location) = member::<u32>(base, &at.comm) {
        let text = base + u64::from(location & 0xffff);
        // SAFETY: the array has COMM_LEN bytes.
        if unsafe { read_text(text, out.comm.as_mut_ptr(), COMM_LEN as u32) }.is_some() {
            seen |= task_known::COMM;
        }
    }
    if let Some(uid) = member(base, &at.uid) {
        out.uid = uid;
        seen |= task_known::UID;
    }
    out.known = seen;
    record.known |= known::KIB;
    for (field, value, bit) in [
        (&at.total_vm, &mut record.total_vm, known::TOTAL_VM),
        (&at.anon_rss, &mut record.anon, known::ANON),
        (&at.file_rss, &mut record.file, known::FILE),
        (&at.shmem_rss, &mut record.shmem, known::SHMEM),
        (&at.pgtables, &mut record.pgtables, known::PGTABLES),
    ] {
        if let Some(kib) = member(base, field) {
            *value = kib;
            record.known |= bit;
        }
    }
    if let Some(adj) = member::<i16>(base, &at.oom_score_adj) {
        record.oom_score_adj = i32::from(adj);
        record.known |= known::ADJ;
    }
    Some(())
}

/// Sets everything but the path's bytes, and the trigger: what a reserved entry held before is not handed over.
#[inline(always)]
fn clear(record: &mut Record) {
    record.monotonic_ns = sysops_ebpf::clock_ns();
    record.total_vm = 0;
    record.anon = 0;
    record.file = 0;
    record.shmem = 0;
    record.pgtables = 0;
    record.oom_score_adj = 0;
    record.reserved = 0;
    record.known = 0;
    record.trigger_tgid = (bpf_get_current_pid_tgid() >> 32) as u32;
    if copy_current_comm(&mut record.trigger_comm).is_some() {
        record.known |= known::TRIGGER;
    }
    task::clear(&mut record.task);
}
