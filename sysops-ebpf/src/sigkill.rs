//! Reports a SIGKILL that a process sends to another: `current` is the sender, the argument the one that gets it. Those of
//! the kernel's own (OOM kills, ends of pid namespaces) are not among them; nor, unless they are asked for, those by the
//! victim's parent and from its own cgroup, which are everyday.
#![no_std]
#![no_main]

use aya_ebpf::EbpfContext;
use aya_ebpf::helpers::{bpf_get_current_pid_tgid, bpf_get_current_uid_gid, generated};
use aya_ebpf::macros::{btf_tracepoint, map, raw_tracepoint, tracepoint};
use aya_ebpf::maps::{Array, RingBuf};
use aya_ebpf::programs::{BtfTracePointContext, RawTracePointContext, TracePointContext};
use sysops_common::check::Check;
use sysops_common::sigkill::{Offsets, Record};
use sysops_common::task::known;
use sysops_ebpf::counters::{Fate, count};
use sysops_ebpf::memory::{copy_current_comm, copy_member, follow, member};
use sysops_ebpf::{check, clock_ns, task};

#[unsafe(no_mangle)]
static OFFSETS: Offsets = Offsets::ABSENT;

// Room for 220 kills that the agent has not yet taken.
#[map]
static EVENTS: RingBuf = RingBuf::with_byte_size(1 << 20, 0);

#[map]
static CHECK: Array<Check<Record>> = Array::with_max_entries(1, 0);

const SIGKILL: i32 = 9;
/// What the kernel passes as information: none (a cgroup is killed), or that the signal is its own.
const NO_INFORMATION: u64 = 0;
const PRIVILEGED: u64 = 1;
/// Flags of a task: on its way out, when it sends what its children asked for at its death; of the kernel.
const PF_EXITING: u32 = 0x4;
const PF_KTHREAD: u32 = 0x20_0000;

/// The probe on a tracepoint typed by BTF.
#[btf_tracepoint(function = "signal_generate")]
pub fn on_tp_btf(ctx: BtfTracePointContext) -> i32 {
    if ctx.arg::<i32>(0) == SIGKILL && ctx.arg::<i32>(4) == 0 {
        sent(ctx.arg(1), ctx.arg(2));
    }
    0
}

/// The same on a raw tracepoint: the same arguments, untyped.
#[raw_tracepoint(tracepoint = "signal_generate")]
pub fn on_raw_tracepoint(ctx: RawTracePointContext) -> i32 {
    if ctx.arg::<i32>(0) == SIGKILL && ctx.arg::<i32>(4) == 0 {
        sent(ctx.arg(1), ctx.arg(2));
    }
    0
}

/// The probe on the plain tracepoint: a thread id and its name. Whether it comes from outside is for /proc to tell.
#[tracepoint]
pub fn on_tracepoint(ctx: TracePointContext) -> u32 {
    let (base, at) = (ctx.as_ptr() as u64, &OFFSETS.format);
    if member::<i32>(base, &at.sig) != Some(SIGKILL) || member::<i32>(base, &at.result) != Some(0) {
        return 0;
    }
    if member::<i32>(base, &at.code).is_none_or(|code| code > 0) {
        return 0;
    }
    report(|record| {
        record.task.tid = member(base, &at.pid)?;
        record.task.known = known::TID;
        if copy_member(base, &at.comm, &mut record.task.comm).is_some() {
            record.task.known |= known::COMM;
        }
        name_sender(record);
        Some(())
    });
    0
}

/// Self-check on a tracepoint typed by BTF.
#[btf_tracepoint(function = "task_rename")]
pub fn check_tp_btf(ctx: BtfTracePointContext) -> i32 {
    let (task, name): (u64, u64) = (ctx.arg(0), ctx.arg(1));
    check::run(&CHECK, &OFFSETS.check_name, name, |record| fill_check(task, record));
    0
}

/// Self-check on a raw tracepoint.
#[raw_tracepoint(tracepoint = "task_rename")]
pub fn check_raw_tracepoint(ctx: RawTracePointContext) -> i32 {
    let (task, name): (u64, u64) = (ctx.arg(0), ctx.arg(1));
    check::run(&CHECK, &OFFSETS.check_name, name, |record| fill_check(task, record));
    0
}

/// A SIGKILL is on its way to `victim`.
#[inline(always)]
fn sent(information: u64, victim: u64) -> Option<()> {
    if information == PRIVILEGED {
        return None;
    }
    if information != NO_INFORMATION && member::<i32>(information, &OFFSETS.si_code)? > 0 {
        return None;
    }
    // SAFETY: the helper takes nothing.
    let current = unsafe { generated::bpf_get_current_task() };
    if member::<u32>(current, &OFFSETS.flags)? & (PF_EXITING | PF_KTHREAD) != 0 {
        return None;
    }
    let own = (bpf_get_current_pid_tgid() >> 32) as u32;
    if member::<u32>(victim, &OFFSETS.task.tgid)? == own {
        return None;
    }
    // SAFETY: a reference is valid to read. Volatile, as the loader writes the value after compilation.
    let all = unsafe { core::ptr::read_volatile(&OFFSETS.all) } != 0;
    if !all && (parent(victim).unwrap_or(0) == own || is_inside(victim, current)) {
        return None;
    }
    report(|record| fill(victim, current, record));
    Some(())
}

/// True when both are in one cgroup, of the memory controller and of the unified hierarchy. Numbers are compared, and
/// not options: of one that is none the compiler may put aside the value that it does not have, which verifiers up to
/// 5.10 refuse as a read of the stack that was not written.
#[inline(always)]
fn is_inside(victim: u64, current: u64) -> bool {
    let its = task::memory_state(victim, &OFFSETS.task).unwrap_or(0);
    let own = task::memory_state(current, &OFFSETS.task).unwrap_or(0);
    its == own && cgroup_id(victim).unwrap_or(0) == own_cgroup_id()
}

#[inline(always)]
fn own_cgroup_id() -> u64 {
    // SAFETY: the helper takes nothing.
    unsafe { generated::bpf_get_current_cgroup_id() }
}

#[inline(always)]
fn cgroup_id(task: u64) -> Option<u64> {
    let cgroup = follow(follow(task, &OFFSETS.task.cgroups)?, &OFFSETS.default_cgroup)?;
    member(follow(cgroup, &OFFSETS.task.cgroup_kn)?, &OFFSETS.kn_id)
}

#[inline(always)]
fn parent(task: u64) -> Option<u32> {
    member(follow(task, &OFFSETS.real_parent)?, &OFFSETS.task.tgid)
}

#[inline(always)]
fn report(fill: impl FnOnce(&mut Record) -> Option<()>) {
    let Some(mut entry) = EVENTS.reserve::<Record>(0) else {
        return count(Fate::RingFull);
    };
    // SAFETY: the entry is ours until it is submitted, and any bytes are a Record.
    let record = unsafe { entry.assume_init_mut() };
    clear(record);
    if fill(record).is_some() {
        entry.submit(0);
        count(Fate::Received);
    } else {
        entry.discard(0);
        count(Fate::ReadFault);
    }
}

#[inline(always)]
fn fill(victim: u64, current: u64, record: &mut Record) -> Option<()> {
    // A signal to one thread kills all of them: the process is named by its first.
    let leader = follow(victim, &OFFSETS.group_leader)?;
    task::fill(leader, &OFFSETS.task, &mut record.task)?;
    task::fill(current, &OFFSETS.task, &mut record.sender)?;
    record.cgroup_id = cgroup_id(victim)?;
    record.parent_tgid = parent(victim)?;
    Some(())
}

/// The agent as if it had sent itself a SIGKILL: victim and sender are the thread that is renamed.
#[inline(always)]
fn fill_check(task: u64, record: &mut Record) -> Option<()> {
    clear(record);
    task::fill(task, &OFFSETS.task, &mut record.task)?;
    // What cannot be read is zero, so that the agent can say what it is.
    let leader = follow(task, &OFFSETS.group_leader);
    record.leader_tid = leader.and_then(|leader| member(leader, &OFFSETS.task.pid)).unwrap_or(0);
    record.cgroup_id = cgroup_id(task).unwrap_or(0);
    record.parent_tgid = parent(task).unwrap_or(0);
    if member::<u32>(task, &OFFSETS.flags)? & (PF_EXITING | PF_KTHREAD) != 0 {
        return None;
    }
    Some(())
}

/// What the kernel's helpers tell of the running task, whatever its types.
#[inline(always)]
fn name_sender(record: &mut Record) {
    let ids = bpf_get_current_pid_tgid();
    let sender = &mut record.sender;
    sender.tgid = (ids >> 32) as u32;
    sender.tid = ids as u32;
    sender.uid = bpf_get_current_uid_gid() as u32;
    sender.known = known::TGID | known::TID | known::UID;
    if copy_current_comm(&mut sender.comm).is_some() {
        sender.known |= known::COMM;
    }
}

/// Sets everything but the paths' bytes: what a reserved entry held before is not handed over.
#[inline(always)]
fn clear(record: &mut Record) {
    record.monotonic_ns = clock_ns();
    record.cgroup_id = 0;
    record.sender_cgroup_id = own_cgroup_id();
    record.parent_tgid = 0;
    record.leader_tid = 0;
    task::clear(&mut record.task);
    task::clear(&mut record.sender);
}
