//! Reports the victim that the kernel marks for an OOM kill. The tracepoint `mark_victim` runs in the task that asked for
//! memory: `current` is the trigger, the argument is the victim.
//!
//! A victim is marked right after the same task has sent it a SIGKILL of the kernel's own, or without one when it was on
//! its way out already and only gets at the reserves: so the programs follow `signal_generate` too. Up to 5.10 that is
//! also the only place that hands over the victim as a task.
#![no_std]
#![no_main]

use aya_ebpf::EbpfContext;
use aya_ebpf::helpers::{bpf_get_current_pid_tgid, generated};
use aya_ebpf::macros::{btf_tracepoint, map, raw_tracepoint, tracepoint};
use aya_ebpf::maps::{Array, PerCpuArray, RingBuf};
use aya_ebpf::programs::{BtfTracePointContext, RawTracePointContext, TracePointContext};
use sysops_common::check::Check;
use sysops_common::oom_kill::{Offsets, Record, STACK_DEPTH, known};
use sysops_common::task::{COMM_LEN, PATH_DEPTH, known as task_known};
use sysops_ebpf::counters::{Fate, count};
use sysops_ebpf::memory::{copy_current_comm, copy_member, follow, member, offset, read_text};
use sysops_ebpf::{check, task};

#[unsafe(no_mangle)]
static OFFSETS: Offsets = Offsets::ABSENT;

// Room for 217 kills that the agent has not yet taken.
#[map]
static EVENTS: RingBuf = RingBuf::with_byte_size(1 << 20, 0);

#[map]
static CHECK: Array<Check<Record>> = Array::with_max_entries(1, 0);

/// The last SIGKILL of the kernel's own on this CPU. Between it and the mark the kernel holds the victim's lock, so
/// the task that sent it stays on its CPU.
#[derive(Clone, Copy)]
#[repr(C)]
struct Sent {
    /// Process and thread that sent it; 0 when it was used.
    by: u64,
    /// The task that got it; 0 where only its number is known.
    task: u64,
    /// Its thread id.
    tid: u64,
}

#[map]
static SENT: PerCpuArray<Sent> = PerCpuArray::with_max_entries(1, 0);

const SIGKILL: i32 = 9;
/// What the kernel passes as information about a signal of its own (SEND_SIG_PRIV).
const PRIVILEGED: u64 = 1;
/// The code of such a signal in the tracepoint's record.
const SI_KERNEL: i32 = 0x80;

/// The probe on a tracepoint typed by BTF.
#[btf_tracepoint(function = "mark_victim")]
pub fn on_tp_btf(ctx: BtfTracePointContext) -> i32 {
    let victim: u64 = ctx.arg(0);
    report_argument(ctx.as_ptr(), victim)
}

/// The same on a raw tracepoint: the same arguments, untyped.
#[raw_tracepoint(tracepoint = "mark_victim")]
pub fn on_raw_tracepoint(ctx: RawTracePointContext) -> i32 {
    let victim: u64 = ctx.arg(0);
    report_argument(ctx.as_ptr(), victim)
}

/// The probe on the plain tracepoint: what its record holds, no task to follow.
#[tracepoint]
pub fn on_tracepoint(ctx: TracePointContext) -> u32 {
    let base = ctx.as_ptr() as u64;
    report(ctx.as_ptr(), |record| {
        fill_from_format(base, record)?;
        record.signalled = u32::from(sent_to(|sent| sent.tid == u64::from(record.task.tid)).is_some());
        Some(())
    }) as u32
}

/// Keeps who was sent a SIGKILL, by the tracepoint typed by BTF.
#[btf_tracepoint(function = "signal_generate")]
pub fn signal_tp_btf(ctx: BtfTracePointContext) -> i32 {
    if ctx.arg::<i32>(0) == SIGKILL && ctx.arg::<u64>(1) == PRIVILEGED {
        let task: u64 = ctx.arg(2);
        keep(task, member::<u32>(task, &OFFSETS.task.pid));
    }
    0
}

/// The same on a raw tracepoint.
#[raw_tracepoint(tracepoint = "signal_generate")]
pub fn signal_raw_tracepoint(ctx: RawTracePointContext) -> i32 {
    if ctx.arg::<i32>(0) == SIGKILL && ctx.arg::<u64>(1) == PRIVILEGED {
        let task: u64 = ctx.arg(2);
        keep(task, member::<u32>(task, &OFFSETS.task.pid));
    }
    0
}

/// The same on the plain tracepoint.
#[tracepoint]
pub fn signal_tracepoint(ctx: TracePointContext) -> u32 {
    let base = ctx.as_ptr() as u64;
    let at = &OFFSETS.signal_format;
    if member::<i32>(base, &at.sig) == Some(SIGKILL) && member::<i32>(base, &at.code) == Some(SI_KERNEL) {
        keep(0, member::<u32>(base, &at.pid));
    }
    0
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
fn keep(task: u64, tid: Option<u32>) -> Option<()> {
    let sent = SENT.get_ptr_mut(0)?;
    // SAFETY: the value of this CPU; nothing else runs on it meanwhile.
    unsafe { *sent = Sent { by: bpf_get_current_pid_tgid(), task, tid: u64::from(tid?) } };
    Some(())
}

/// The signal that the running task sent last on this CPU, if `is_it` says that it is the victim's. It is used up.
#[inline(always)]
fn sent_to(is_it: impl FnOnce(&Sent) -> bool) -> Option<u64> {
    let sent = SENT.get_ptr_mut(0)?;
    // SAFETY: the value of this CPU; nothing else runs on it meanwhile.
    let sent = unsafe { &mut *sent };
    if sent.by != bpf_get_current_pid_tgid() || !is_it(sent) {
        return None;
    }
    sent.by = 0;
    Some(sent.task)
}

/// Reports the victim that the tracepoint hands over as a task, or as a thread id.
#[inline(always)]
fn report_argument(ctx: *mut core::ffi::c_void, argument: u64) -> i32 {
    // SAFETY: a reference is valid to read. Volatile, as the loader writes the value after compilation.
    let is_number = unsafe { core::ptr::read_volatile(&OFFSETS.victim_is_number) } != 0;
    let (victim, signalled) = if is_number {
        let tid = argument as u32;
        match sent_to(|sent| sent.tid == u64::from(tid)) {
            Some(task) => (task, true),
            // SAFETY: the helper takes nothing.
            None if bpf_get_current_pid_tgid() as u32 == tid => (unsafe { generated::bpf_get_current_task() }, false),
            None => (0, false),
        }
    } else {
        (argument, sent_to(|sent| sent.task == argument).is_some())
    };
    report(ctx, |record| {
        if victim == 0 {
            // A process on its way out, of which this kernel tells but the number.
            clear(record);
            record.task.tid = argument as u32;
            record.task.known = task_known::TID;
        } else {
            fill(victim, record)?;
        }
        record.signalled = u32::from(signalled);
        Some(())
    })
}

#[inline(always)]
fn report(ctx: *mut core::ffi::c_void, fill: impl FnOnce(&mut Record) -> Option<()>) -> i32 {
    let Some(mut entry) = EVENTS.reserve::<Record>(0) else {
        count(Fate::RingFull);
        return 0;
    };
    // SAFETY: the entry is ours until it is submitted, and any bytes are a Record.
    let record = unsafe { entry.assume_init_mut() };
    if fill(record).is_some() {
        const BYTES: u32 = (STACK_DEPTH * 8) as u32;
        // SAFETY: the stack has that many bytes; the helper takes any context that a program got.
        let got = unsafe { generated::bpf_get_stack(ctx.cast(), record.stack.as_mut_ptr().cast(), BYTES, 0) };
        if got > 0 {
            record.known |= known::STACK;
        }
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
    if let Some(leader) = follow(victim, &OFFSETS.group_leader)
        && member::<u32>(leader, &OFFSETS.task.pid) == Some(record.task.tgid)
        && copy_member(leader, &OFFSETS.task.comm, &mut record.leader_comm).is_some()
    {
        record.known |= known::LEADER;
    }
    if let Some(state) = task::memory_state(victim, &OFFSETS.task) {
        fill_limit(state, record);
        fill_trigger_path(state, record);
    }
    Some(())
}

/// The smallest limit on the way from the victim's cgroup up, along the counters by which the kernel itself charges.
#[inline(always)]
fn fill_limit(state: u64, record: &mut Record) -> Option<()> {
    let mut counter = state - offset(&OFFSETS.memcg_css)? + offset(&OFFSETS.memcg_memory)?;
    let mut least = u64::MAX;
    for _ in 0..PATH_DEPTH {
        let max: u64 = member(counter, &OFFSETS.counter_max)?;
        least = least.min(max);
        counter = member(counter, &OFFSETS.counter_parent)?;
        if counter == 0 {
            record.limit = least;
            record.known |= known::LIMIT;
            return Some(());
        }
    }
    None
}

/// Where the task is accounted that asks: mostly where the victim is, and then there is no second walk.
#[inline(always)]
fn fill_trigger_path(victim_state: u64, record: &mut Record) -> Option<()> {
    // SAFETY: the helper takes nothing.
    let current = unsafe { generated::bpf_get_current_task() };
    let state = task::memory_state(current, &OFFSETS.task)?;
    if state == victim_state {
        record.known |= known::SAME_PATH;
        return Some(());
    }
    record.trigger_path_len = task::fill_path(state, &OFFSETS.task, &mut record.trigger_path)?;
    record.known |= known::TRIGGER_PATH;
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

/// Sets everything but the paths' bytes, and the trigger: what a reserved entry held before is not handed over.
#[inline(always)]
fn clear(record: &mut Record) {
    record.monotonic_ns = sysops_ebpf::clock_ns();
    record.total_vm = 0;
    record.anon = 0;
    record.file = 0;
    record.shmem = 0;
    record.pgtables = 0;
    record.limit = 0;
    record.stack = [0; STACK_DEPTH];
    record.oom_score_adj = 0;
    record.signalled = 0;
    record.leader_comm = [0; COMM_LEN];
    record.known = 0;
    record.trigger_path_len = 0;
    let trigger = bpf_get_current_pid_tgid();
    record.trigger_tgid = (trigger >> 32) as u32;
    record.trigger_tid = trigger as u32;
    if copy_current_comm(&mut record.trigger_comm).is_some() {
        record.known |= known::TRIGGER;
    }
    task::clear(&mut record.task);
}
