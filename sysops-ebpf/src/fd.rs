//! Remembers of each file descriptor that a watched process gets which stack took it, and forgets it when it is closed.
//! Which processes, and what each system call does, is told by the agent; what no call tells is left to it, too: it
//! compares what is remembered here with /proc.
#![no_std]
#![no_main]

use aya_ebpf::EbpfContext;
use aya_ebpf::helpers::{bpf_get_current_pid_tgid, bpf_get_current_task, bpf_probe_read_user};
use aya_ebpf::macros::{btf_tracepoint, fentry, kprobe, map, raw_tracepoint, tracepoint};
use aya_ebpf::maps::{HashMap, LruHashMap};
use aya_ebpf::programs::{BtfTracePointContext, FEntryContext, ProbeContext, RawTracePointContext, TracePointContext};
use sysops_common::fd::{ARGUMENTS, CALLS, Counts, Descriptor, Effect, Held, Offsets, Pending, WATCHED_MAX};
use sysops_ebpf::counters::{Fate, count};
use sysops_ebpf::memory::{add, follow, masked, member, offset, read};
use sysops_ebpf::sieve::may_be_watched;
use sysops_ebpf::{clock_ns, stack};

#[unsafe(no_mangle)]
static OFFSETS: Offsets = Offsets::ABSENT;

// By process id; one more than are watched, for the self-check.
#[map]
static WATCHED: HashMap<u32, Counts> = HashMap::with_max_entries(WATCHED_MAX as u32 + 1, 0);

// How many there are room for is set when it is loaded.
#[map]
static OPEN: HashMap<Descriptor, Held> = HashMap::with_max_entries(1 << 16, 0);

// By thread. One that dies within a call leaves its entry, so the oldest must give way.
#[map]
static PENDING: LruHashMap<u64, Pending> = LruHashMap::with_max_entries(4096, 0);

/// TS_COMPAT (arch/x86/include/asm/thread_info.h): the call is one of a 32-bit program.
const COMPAT: u32 = 2;
/// EBADF: nothing was closed. Other errors of close(2) come when the descriptor is gone already.
const NOT_OPEN: i64 = -9;
/// F_DUPFD and F_DUPFD_CLOEXEC (include/uapi/linux/fcntl.h).
const DUPLICATE: u64 = 0;
const DUPLICATE_CLOEXEC: u64 = 1030;
/// SOL_SOCKET and SCM_RIGHTS (include/linux/socket.h) as the second half of a `cmsghdr` has them.
const RIGHTS: [u32; 2] = [1, 1];
/// Control messages of a received message that are looked at.
const MESSAGES: u32 = 4;
/// Descriptors that one call gives, as far as they are followed; a message may bring up to 253 (SCM_MAX_FD).
const TAKEN_MAX: u64 = 64;

/// A descriptor comes to be: the one place in the kernel that all but dup2 and dup3 come through.
#[fentry(function = "fd_install")]
pub fn on_install(ctx: FEntryContext) -> i32 {
    if let Some(process) = watched() {
        hold(process.tgid, ctx.arg(0), address(&ctx, 1), stack_of(&process), 0);
    }
    0
}

/// A descriptor comes to be another: dup2, dup3, and what puts a file under a given number.
#[fentry(function = "do_dup2")]
pub fn on_replace(ctx: FEntryContext) -> i32 {
    if let Some(process) = watched() {
        hold(process.tgid, ctx.arg(2), address(&ctx, 1), stack_of(&process), 0);
    }
    0
}

/// A descriptor is closed by its number.
#[fentry(function = "file_close_fd")]
pub fn on_close(ctx: FEntryContext) -> i32 {
    close(ctx.arg(0));
    0
}

/// The same three by kprobes. They cost more, and the kernel lets no other task run before they are through.
#[kprobe]
pub fn on_install_kprobe(ctx: ProbeContext) -> u32 {
    if let Some(process) = watched()
        && let Some((fd, file)) = ctx.arg(0).zip(ctx.arg(1))
    {
        hold(process.tgid, fd, file, stack_of(&process), 0);
    }
    0
}

/// As [`on_replace`].
#[kprobe]
pub fn on_replace_kprobe(ctx: ProbeContext) -> u32 {
    if let Some(process) = watched()
        && let Some((file, fd)) = ctx.arg(1).zip(ctx.arg(2))
    {
        hold(process.tgid, fd, file, stack_of(&process), 0);
    }
    0
}

/// As [`on_close`].
#[kprobe]
pub fn on_close_kprobe(ctx: ProbeContext) -> u32 {
    if let Some(fd) = ctx.arg(0) {
        close(fd);
    }
    0
}

/// A system call returns.
#[btf_tracepoint(function = "sys_exit")]
pub fn on_tp_btf(ctx: BtfTracePointContext) -> i32 {
    on_exit(ctx.arg(0), ctx.arg::<u64>(1) as i64);
    0
}

/// The same on a raw tracepoint.
#[raw_tracepoint(tracepoint = "sys_exit")]
pub fn on_raw_tracepoint(ctx: RawTracePointContext) -> i32 {
    on_exit(ctx.arg(0), ctx.arg::<u64>(1) as i64);
    0
}

/// One of the system calls begins whose arguments matter. The kernel leaves out those of 32-bit programs.
#[tracepoint]
pub fn on_enter(ctx: TracePointContext) -> u32 {
    let Some(process) = watched() else { return 0 };
    let base = ctx.as_ptr() as u64;
    let first = offset(&OFFSETS.format_arguments);
    let Some((number, first)) = member::<u32>(base, &OFFSETS.format_number).zip(first) else {
        count(Fate::ReadFault);
        return 0;
    };
    let argument = |index: u64| read::<u64>(base + first + index * 8);
    let effect = effect(number);
    if effect == Effect::Close as u8 {
        // No one can get a descriptor of this number before it is closed. Whether it is open is told by what is remembered:
        // a second program at the end of each close(2) of each process would cost as much again.
        if let Some(fd) = argument(0)
            && forget(&process, fd as u32)
        {
            // SAFETY: `counts` points into a value of a map.
            unsafe { add(&raw mut (*process.counts).closes, 1) };
            count(Fate::Received);
        }
        return 0;
    }
    if effect == Effect::Duplicate as u8 && !argument(1).is_some_and(duplicates) {
        return 0;
    }
    let mut pending = Pending { number: u64::from(number), ..Pending::default() };
    for index in 0..ARGUMENTS {
        // What a call does not have is whatever lies there, and is not used.
        pending.arguments[index] = argument(index as u64).unwrap_or(0);
    }
    if PENDING.insert(bpf_get_current_pid_tgid(), pending, 0).is_err() {
        count(Fate::MapFull);
    }
    0
}

/// One of the system calls that matter returns.
#[tracepoint]
pub fn on_tracepoint(ctx: TracePointContext) -> u32 {
    let base = ctx.as_ptr() as u64;
    let Some(process) = watched() else { return 0 };
    let number = member::<u32>(base, &OFFSETS.format_number);
    let Some((number, result)) = number.zip(member::<i64>(base, &OFFSETS.format_result)) else {
        count(Fate::ReadFault);
        return 0;
    };
    let effect = effect(number);
    let thread = bpf_get_current_pid_tgid();
    let mut arguments = Arguments::Unknown;
    if needs_arguments(effect) {
        // SAFETY: only this thread writes or removes its value.
        if let Some(pending) = unsafe { PENDING.get(thread) }
            && pending.number == u64::from(number)
        {
            arguments = Arguments::Pending(pending);
        }
    }
    enter(&process, number, effect, result, &arguments);
    if needs_arguments(effect) {
        // It is not there when the program was attached while the call waited.
        let _ = PENDING.remove(thread);
    }
    0
}

/// Most calls are of processes that no one watches: that is asked first.
#[inline(always)]
fn on_exit(registers: u64, result: i64) {
    let Some(process) = watched() else { return };
    // SAFETY: the helper takes nothing and cannot fail.
    let task = unsafe { bpf_get_current_task() };
    if offset(&OFFSETS.status).is_some()
        && member::<u32>(task, &OFFSETS.status).is_none_or(|status| status & COMPAT != 0)
    {
        return;
    }
    let Some(number) = member::<u32>(registers, &OFFSETS.number) else {
        count(Fate::ReadFault);
        return;
    };
    let effect = effect(number);
    if effect == Effect::Close as u8
        && result != NOT_OPEN
        && let Some(fd) = member::<u64>(registers, &OFFSETS.arguments[0])
    {
        forget_unless_taken_again(&process, task, fd as u32);
    }
    enter(&process, number, effect, result, &Arguments::Registers(registers));
}

/// An argument of a kernel function as nothing but a number: the verifier would know the pointer itself for what it is, and
/// not let it be handed on.
#[inline(always)]
fn address(ctx: &FEntryContext, index: u64) -> u64 {
    read(ctx.as_ptr() as u64 + index * 8).unwrap_or(0)
}

/// Where the arguments of a call that returns are found.
enum Arguments {
    /// Nowhere.
    Unknown,
    /// In what was kept when it began.
    Pending(*const Pending),
    /// In the registers of the program.
    Registers(u64),
}

impl Arguments {
    #[inline(always)]
    fn get(&self, index: usize) -> Option<u64> {
        match self {
            Self::Unknown => None,
            // SAFETY: it points into a value of a map.
            Self::Pending(pending) => Some(unsafe { (**pending).arguments[index] }),
            Self::Registers(registers) => member(*registers, &OFFSETS.arguments[index]),
        }
    }
}

/// A process that is watched.
struct Process {
    tgid: u32,
    counts: *mut Counts,
}

#[inline(always)]
fn watched() -> Option<Process> {
    let tgid = (bpf_get_current_pid_tgid() >> 32) as u32;
    if !may_be_watched(tgid) {
        return None;
    }
    WATCHED.get_ptr_mut(tgid).map(|counts| Process { tgid, counts })
}

#[inline(always)]
fn effect(number: u32) -> u8 {
    if number as usize >= CALLS {
        return Effect::None as u8;
    }
    let number = masked(u64::from(number), CALLS as u64 - 1) as usize;
    // SAFETY: a reference is valid to read. Volatile, as the loader writes the value after compilation.
    unsafe { core::ptr::read_volatile(&OFFSETS.calls[number]) }
}

#[inline(always)]
fn needs_arguments(effect: u8) -> bool {
    effect >= Effect::Pipe as u8 && effect <= Effect::Receive as u8
}

#[inline(always)]
fn duplicates(command: u64) -> bool {
    let command = command & 0xffff_ffff;
    command == DUPLICATE || command == DUPLICATE_CLOEXEC
}

#[inline(always)]
fn enter(process: &Process, number: u32, effect: u8, result: i64, arguments: &Arguments) {
    if effect == Effect::None as u8 || result < 0 {
        return;
    }
    if effect == Effect::Close as u8 {
        // SAFETY: `counts` points into a value of a map.
        unsafe { add(&raw mut (*process.counts).closes, 1) };
        count(Fate::Received);
        return;
    }
    let Some(taken) = taken(effect, result, arguments) else { return };
    // Once for all, and at one place only: the verifier goes through it again for each.
    let stack = stack_of(process);
    for index in 0..TAKEN_MAX {
        if index >= taken.count {
            break;
        }
        let fd = if taken.list == 0 { Some(taken.first as u32) } else { read_user(taken.list + index * 4) };
        if let Some(fd) = fd {
            hold(process.tgid, fd, 0, stack, number + 1);
        }
    }
}

/// The descriptors that a call gave.
struct Taken {
    /// One, when there is no list.
    first: i64,
    /// Where the program has the list of them; 0 for none.
    list: u64,
    count: u64,
}

#[inline(always)]
fn taken(effect: u8, result: i64, arguments: &Arguments) -> Option<Taken> {
    let list = |list: u64, count| Taken { first: 0, list, count };
    if effect == Effect::Pipe as u8 {
        return arguments.get(0).map(|array| list(array, 2));
    }
    if effect == Effect::Pair as u8 {
        return arguments.get(3).map(|array| list(array, 2));
    }
    if effect == Effect::Receive as u8 {
        return received(arguments.get(1)?).map(|(array, count)| list(array, count));
    }
    let is_new = if effect == Effect::Replace as u8 {
        arguments.get(0)? as u32 != result as u32
    } else if effect == Effect::Duplicate as u8 {
        duplicates(arguments.get(1)?)
    } else {
        true
    };
    if is_new { Some(Taken { first: result, list: 0, count: 1 }) } else { None }
}

/// Where the descriptors are that came with a message, and how many (recvmsg(2), cmsg(3)). The program could lie about its
/// own only.
#[inline(always)]
fn received(header: u64) -> Option<(u64, u64)> {
    let (mut at, mut left) = (read_user::<u64>(header + 32)?, read_user::<u64>(header + 40)?);
    for _ in 0..MESSAGES {
        let length = read_user::<u64>(at)?;
        if length < 16 || length > left {
            return None;
        }
        if read_user::<[u32; 2]>(at + 8)? == RIGHTS {
            return Some((at + 16, (length - 16) / 4));
        }
        let whole = (length + 7) & !7;
        at += whole;
        left = left.saturating_sub(whole);
    }
    None
}

#[inline(always)]
fn stack_of(process: &Process) -> u64 {
    // SAFETY: `counts` points into a value of a map, and only the agent writes this member.
    if unsafe { (*process.counts).stackless } != 0 { 0 } else { capture() }
}

/// A function of its own, which the verifier goes through once and not once for each way that leads here.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn capture() -> u64 {
    stack::capture(&OFFSETS.stack)
}

/// Remembers a descriptor; `file` is 0 where it must be looked up. Where the table of descriptors can be read, one that is
/// not in it any more is not remembered. A function of its own like [`capture`], so its arguments are numbers.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn hold(tgid: u32, fd: u32, file: u64, stack: u64, call: u32) -> u64 {
    let Some(counts) = WATCHED.get_ptr_mut(tgid) else { return 0 };
    let mut held = Held { stack, monotonic_ns: clock_ns(), file, inode: 0, call, reserved: 0 };
    if file == 0 {
        // SAFETY: the helper takes nothing and cannot fail.
        let task = unsafe { bpf_get_current_task() };
        // None: no types, or a table that is being replaced.
        if let Some(found) = opened(task, fd) {
            if found == 0 {
                return 0;
            }
            held.file = found;
        }
    }
    if held.file != 0 {
        let inode = follow(held.file, &OFFSETS.inode);
        held.inode = inode.and_then(|inode| member(inode, &OFFSETS.inode_number)).unwrap_or(0);
    }
    let full = OPEN.insert(Descriptor { tgid, fd }, held, 0).is_err();
    // SAFETY: `counts` points into a value of a map.
    unsafe {
        add(&raw mut (*counts).installs, 1);
        if full {
            add(&raw mut (*counts).full, 1);
        }
    }
    count(if full { Fate::MapFull } else { Fate::Received });
    0
}

/// The function that closes is told a descriptor, which may not be open.
#[inline(always)]
fn close(fd: u32) {
    let Some(process) = watched() else { return };
    // SAFETY: `counts` points into a value of a map.
    unsafe { add(&raw mut (*process.counts).closes, 1) };
    let _ = forget(&process, fd);
}

#[inline(always)]
fn forget(process: &Process, fd: u32) -> bool {
    // It is not there when it was open before the process was watched.
    OPEN.remove(Descriptor { tgid: process.tgid, fd }).is_ok()
}

/// The call that closed it returns only now: meanwhile another thread may have been given the same number. Then the table
/// has the file that is remembered; if it has that file and the other call has not returned, that call will say so.
#[inline(always)]
fn forget_unless_taken_again(process: &Process, task: u64, fd: u32) {
    // SAFETY: the value is read at once.
    let Some(file) = unsafe { OPEN.get(Descriptor { tgid: process.tgid, fd }) }.map(|held| held.file) else { return };
    if file == 0 || opened(task, fd) != Some(file) {
        let _ = forget(process, fd);
    }
}

/// The file that the descriptor `fd` of `task` stands for, 0 when it is not open; `None` when that cannot be read.
#[inline(always)]
fn opened(task: u64, fd: u32) -> Option<u64> {
    let table = follow(follow(task, &OFFSETS.files)?, &OFFSETS.fdt)?;
    if fd >= member::<u32>(table, &OFFSETS.max_fds)? {
        return Some(0);
    }
    read(follow(table, &OFFSETS.fd)? + u64::from(fd) * 8)
}

#[inline(always)]
fn read_user<T: Copy>(address: u64) -> Option<T> {
    // SAFETY: the helper checks the address and fails on one that cannot be read.
    unsafe { bpf_probe_read_user(address as *const T) }.ok()
}
