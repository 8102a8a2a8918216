//! Reports a task that khungtaskd finds hanging. The tracepoint `sched_process_hang` runs in khungtaskd: only the argument
//! is the task. It fires before the kernel asks `hung_task_warnings`, so also when the kernel's log has gone silent.
#![no_std]
#![no_main]

use aya_ebpf::EbpfContext;
use aya_ebpf::helpers::bpf_jiffies64;
use aya_ebpf::macros::{btf_tracepoint, map, raw_tracepoint, tracepoint};
use aya_ebpf::maps::{Array, RingBuf};
use aya_ebpf::programs::{BtfTracePointContext, RawTracePointContext, TracePointContext};
use sysops_common::check::Check;
use sysops_common::hung_task::{Offsets, Record, known};
use sysops_common::task::known as task_known;
use sysops_ebpf::counters::{Fate, count};
use sysops_ebpf::memory::member;
use sysops_ebpf::{check, clock_ns, task};

#[unsafe(no_mangle)]
static OFFSETS: Offsets = Offsets::ABSENT;

// Room for 110 reports that the agent has not yet taken.
#[map]
static EVENTS: RingBuf = RingBuf::with_byte_size(1 << 18, 0);

#[map]
static CHECK: Array<Check<Record>> = Array::with_max_entries(1, 0);

/// The probe on a tracepoint typed by BTF.
#[btf_tracepoint(function = "sched_process_hang")]
pub fn on_tp_btf(ctx: BtfTracePointContext) -> i32 {
    let task: u64 = ctx.arg(0);
    report(|record| fill(task, record))
}

/// The same on a raw tracepoint: the same argument, untyped.
#[raw_tracepoint(tracepoint = "sched_process_hang")]
pub fn on_raw_tracepoint(ctx: RawTracePointContext) -> i32 {
    let task: u64 = ctx.arg(0);
    report(|record| fill(task, record))
}

/// The probe on the plain tracepoint: a thread id, the rest is for /proc.
#[tracepoint]
pub fn on_tracepoint(ctx: TracePointContext) -> u32 {
    let base = ctx.as_ptr() as u64;
    report(|record| {
        clear(record);
        record.task.tid = member(base, &OFFSETS.format_pid)?;
        record.task.known = task_known::TID;
        Some(())
    }) as u32
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
fn fill(task: u64, record: &mut Record) -> Option<()> {
    clear(record);
    task::fill(task, &OFFSETS.task, &mut record.task)?;
    if let Some(time) = member(task, &OFFSETS.last_switch_time) {
        record.last_switch_time = time;
        record.known |= known::SWITCH_TIME;
    }
    if let Some(count) = member(task, &OFFSETS.last_switch_count) {
        record.last_switch_count = count;
        record.known |= known::SWITCH_COUNT;
    }
    Some(())
}

/// Sets everything but the path's bytes: what a reserved entry held before is not handed over.
#[inline(always)]
fn clear(record: &mut Record) {
    record.monotonic_ns = clock_ns();
    // SAFETY: the helper takes nothing and cannot fail.
    record.jiffies = unsafe { bpf_jiffies64() };
    record.last_switch_time = 0;
    record.last_switch_count = 0;
    record.known = 0;
    record.reserved = 0;
    task::clear(&mut record.task);
}
