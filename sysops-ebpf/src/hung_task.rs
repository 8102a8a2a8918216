//! Reports a task that khungtaskd finds hanging. The tracepoint `sched_process_hang` runs in khungtaskd: only the argument
//! is the task. It fires before the kernel asks `hung_task_warnings`, so also when the kernel's log has gone silent.
//! Its iterators list the tasks in uninterruptible sleep, and walk their kernel stacks.
#![no_std]
#![no_main]

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::{seq_file, task_struct};
use aya_ebpf::helpers::{bpf_jiffies64, generated};
use aya_ebpf::macros::{btf_tracepoint, map, raw_tracepoint, tracepoint};
use aya_ebpf::maps::{Array, HashMap, PerCpuArray, RingBuf};
use aya_ebpf::programs::{BtfTracePointContext, RawTracePointContext, TracePointContext};
use sysops_common::check::Check;
use sysops_common::hung_task::{Asleep, FRAMES_MAX, Offsets, Record, Stack, known, lock, state};
use sysops_common::task::{COMM_LEN, known as task_known};
use sysops_ebpf::counters::{Fate, count};
use sysops_ebpf::memory::{copy_member, follow, member};
use sysops_ebpf::{check, clock_ns, task};

#[unsafe(no_mangle)]
static OFFSETS: Offsets = Offsets::ABSENT;

// Room for 110 reports that the agent has not yet taken.
#[map]
static EVENTS: RingBuf = RingBuf::with_byte_size(1 << 18, 0);

#[map]
static CHECK: Array<Check<Record>> = Array::with_max_entries(1, 0);

// Threads about which `describe` and `stacks` are asked.
#[map]
static WANTED: HashMap<u32, u32> = HashMap::with_max_entries(512, 0);

// Larger than a program's own stack.
#[map]
static STACK: PerCpuArray<Stack> = PerCpuArray::with_max_entries(1, 0);

/// PF_KTHREAD (include/linux/sched.h): in such a thread `vfork_done` means something else.
const KERNEL_THREAD: u32 = 0x0020_0000;
/// The two lowest bits of `task_struct.blocker` (include/linux/hung_task.h) say of which kind the lock is.
const LOCK_KIND: u64 = 3;
/// Bits of a lock's owner that are not of the address: tasks are aligned to more.
const OWNER_FLAGS: u64 = 7;

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

/// What the kernel hands to a program of an iterator over tasks: `struct bpf_iter__task`.
#[repr(C)]
pub struct TaskTurn {
    meta: *const TurnMeta,
    task: *mut task_struct,
}

/// The beginning of `struct bpf_iter_meta`.
#[repr(C)]
pub struct TurnMeta {
    seq: *mut seq_file,
}

/// Lists the tasks in uninterruptible sleep, and the children for which a parent waits in vfork(2).
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task")]
pub extern "C" fn scan(turn: *const TaskTurn) -> i32 {
    let Some((seq, task)) = turn_of(turn) else { return 0 };
    let Some(state) = member::<u32>(task as u64, &OFFSETS.state) else { return 0 };
    let vfork_parent = vfork_parent(task as u64);
    if (state & state::UNINTERRUPTIBLE != 0 && state & state::NOLOAD == 0) || vfork_parent != 0 {
        write_task(seq, task as u64, state, vfork_parent);
    }
    0
}

/// The same about the threads that are WANTED, whatever they do.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task")]
pub extern "C" fn describe(turn: *const TaskTurn) -> i32 {
    let Some((seq, task)) = turn_of(turn) else { return 0 };
    if is_wanted(task as u64).is_none() {
        return 0;
    }
    let Some(state) = member::<u32>(task as u64, &OFFSETS.state) else { return 0 };
    write_task(seq, task as u64, state, vfork_parent(task as u64));
    0
}

/// Walks the kernel stacks of the threads that are WANTED.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task")]
pub extern "C" fn stacks(turn: *const TaskTurn) -> i32 {
    let Some((seq, task)) = turn_of(turn) else { return 0 };
    let Some(tid) = is_wanted(task as u64) else { return 0 };
    let Some(stack) = STACK.get_ptr_mut(0) else { return 0 };
    // SAFETY: the map's value of this CPU, which no other program uses; the helper is given its own size.
    unsafe {
        let room = (&raw mut (*stack).addresses).cast();
        let bytes = generated::bpf_get_task_stack(task, room, (8 * FRAMES_MAX) as u32, 0);
        if bytes <= 0 {
            return 0;
        }
        (*stack).tid = tid;
        (*stack).count = (bytes / 8) as u32;
        generated::bpf_seq_write(seq, stack.cast(), size_of::<Stack>() as u32);
    }
    0
}

/// Where to write, and the task; `None` at the end of the walk. The task keeps its type for helpers that ask for it.
#[inline(always)]
fn turn_of(turn: *const TaskTurn) -> Option<(*mut seq_file, *mut task_struct)> {
    // SAFETY: the kernel's context; the verifier knows its members.
    let task = unsafe { (*turn).task };
    if task.is_null() {
        return None;
    }
    // SAFETY: as above, and `meta` is never null.
    Some((unsafe { (*(*turn).meta).seq }, task))
}

#[inline(always)]
fn is_wanted(task: u64) -> Option<u32> {
    let tid: u32 = member(task, &OFFSETS.task.pid)?;
    // SAFETY: a number, which may change at any time.
    unsafe { WANTED.get(tid) }.map(|_| tid)
}

/// The thread that waits in vfork(2) for `task`, or 0.
#[inline(always)]
fn vfork_parent(task: u64) -> u32 {
    let waits = member::<u64>(task, &OFFSETS.vfork_done).is_some_and(|done| done != 0);
    if !waits || member::<u32>(task, &OFFSETS.flags).is_none_or(|flags| flags & KERNEL_THREAD != 0) {
        return 0;
    }
    follow(task, &OFFSETS.real_parent).and_then(|parent| member(parent, &OFFSETS.task.pid)).unwrap_or(0)
}

#[inline(always)]
fn write_task(seq: *mut seq_file, task: u64, state: u32, vfork_parent: u32) -> Option<()> {
    let mut found = Asleep {
        start_boottime_ns: member(task, &OFFSETS.task.start_boottime)?,
        switches: member::<u64>(task, &OFFSETS.nvcsw)? + member::<u64>(task, &OFFSETS.nivcsw)?,
        tid: member(task, &OFFSETS.task.pid)?,
        tgid: member(task, &OFFSETS.task.tgid)?,
        state,
        flags: member(task, &OFFSETS.flags)?,
        vfork_parent,
        lock: lock::NONE,
        holder_tid: 0,
        reserved: 0,
        comm: [0; COMM_LEN],
        holder_comm: [0; COMM_LEN],
    };
    copy_member(task, &OFFSETS.task.comm, &mut found.comm)?;
    fill_holder(task, &mut found);
    // SAFETY: `found` has as many bytes; the helper refuses what does not fit and is called again.
    unsafe { generated::bpf_seq_write(seq, (&raw const found).cast(), size_of::<Asleep>() as u32) };
    Some(())
}

/// The lock for which a task waits, and who holds it. The holder may be gone: what is read then is for the agent to doubt.
#[inline(always)]
fn fill_holder(task: u64, found: &mut Asleep) -> Option<()> {
    let blocker = follow(task, &OFFSETS.blocker)?;
    let at = blocker & !LOCK_KIND;
    let (kind, owner) = match blocker & LOCK_KIND {
        0 => (lock::MUTEX, member::<u64>(at, &OFFSETS.mutex_owner)),
        1 => (lock::SEMAPHORE, member(at, &OFFSETS.semaphore_holder)),
        _ => (lock::RW_SEMAPHORE, member(at, &OFFSETS.rwsem_owner)),
    };
    found.lock = kind;
    let holder = owner? & !OWNER_FLAGS;
    copy_member(holder, &OFFSETS.task.comm, &mut found.holder_comm)?;
    found.holder_tid = member(holder, &OFFSETS.task.pid)?;
    Some(())
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
    if let Some(leader) = follow(task, &OFFSETS.group_leader)
        && member::<u32>(leader, &OFFSETS.task.pid) == Some(record.task.tgid)
        && copy_member(leader, &OFFSETS.task.comm, &mut record.leader_comm).is_some()
    {
        record.known |= known::LEADER;
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
    record.leader_comm = [0; COMM_LEN];
    task::clear(&mut record.task);
}
