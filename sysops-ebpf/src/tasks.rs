//! Writes the table of all processes: the kernel calls the program for every task and once at the end. The agent gets
//! all tasks by a few system calls, where /proc takes three for every process.
#![no_std]
#![no_main]

use aya_ebpf::helpers::generated::{bpf_probe_read_kernel, bpf_seq_write};
use aya_ebpf::macros::map;
use aya_ebpf::maps::Array;
use sysops_common::offset::Offset;
use sysops_common::task::COMM_LEN;
use sysops_common::tasks::{End, FD_WORDS, IO_MEMBERS, Io, NOT_COUNTED, Offsets, Process, Thread, Times, Unread, kind};
use sysops_ebpf::counters::{Fate, count};
use sysops_ebpf::memory::{member, offset};

#[unsafe(no_mangle)]
static OFFSETS: Offsets = Offsets::ABSENT;

/// Where records are written before they are handed over: too large for the stack.
#[repr(C)]
struct Desk {
    process: Process,
    thread: Thread,
    open: [u64; FD_WORDS],
    /// Records of this reading that found room. The kernel's own number also counts a task that ended before it was told.
    records: u64,
}

#[map]
static DESK: Array<Desk> = Array::with_max_entries(1, 0);

/// `struct bpf_iter__task`, which is the kernel's word to programs and does not move.
#[repr(C)]
pub struct Context {
    meta: *const Meta,
    task: u64,
}

/// `struct bpf_iter_meta`, likewise.
#[repr(C)]
pub struct Meta {
    seq: u64,
    session_id: u64,
    seq_num: u64,
}

/// The task iterator.
///
/// # Safety
/// Called by the kernel, with a context.
#[unsafe(link_section = "iter/task")]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn on_task(ctx: *const Context) -> i32 {
    // SAFETY: the kernel hands over a context whose members are valid; the verifier checks what is done with them.
    let (meta, task) = unsafe { ((*ctx).meta, core::ptr::read_volatile(&raw const (*ctx).task)) };
    // SAFETY: as above.
    let (seq, number) = unsafe { ((*meta).seq, (*meta).seq_num) };
    let Some(desk) = DESK.get_ptr_mut(0) else { return 0 };
    // SAFETY: the map's one value. The agent reads the table in one thread at a time, so no one else is at it.
    let desk = unsafe { &mut *desk };
    if task == 0 {
        write(seq, &End { kind: kind::END, reserved: 0, records: desk.records });
        count(Fate::Received);
        return 0;
    }
    if number == 0 {
        desk.records = 0;
    }
    match tell(seq, task, desk) {
        Some(true) => desk.records += 1,
        Some(false) => {}
        None => count(Fate::ReadFault),
    }
    0
}

/// True when the record found room. Of a process that could not be read its id alone is told; the agent misses a thread
/// that could not.
#[inline(always)]
fn tell(seq: u64, task: u64, desk: &mut Desk) -> Option<bool> {
    let (tgid, signal) = (load::<u32>(task, &OFFSETS.tgid)?, follow(task, &OFFSETS.signal)?);
    if load::<u32>(task, &OFFSETS.pid)? != tgid {
        fill_thread(task, tgid, signal, &mut desk.thread)?;
        return Some(write(seq, &desk.thread));
    }
    if fill_process(task, tgid, signal, desk).is_none() {
        count(Fate::ReadFault);
        return Some(write(seq, &Unread { kind: kind::UNREAD, tgid }));
    }
    Some(write(seq, &desk.process))
}

#[inline(always)]
fn fill_thread(task: u64, tgid: u32, signal: u64, out: &mut Thread) -> Option<()> {
    out.kind = kind::THREAD;
    out.tgid = tgid;
    fill_times(task, &mut out.own)?;
    out.ended_runtime = load(signal, &OFFSETS.ended_runtime)?;
    out.io = [0; IO_MEMBERS];
    add_io(task, &OFFSETS.io, &mut out.io);
    Some(())
}

#[inline(always)]
fn fill_process(task: u64, tgid: u32, signal: u64, desk: &mut Desk) -> Option<()> {
    let out = &mut desk.process;
    out.kind = kind::PROCESS;
    out.tgid = tgid;
    out.parent = load(follow(task, &OFFSETS.real_parent)?, &OFFSETS.tgid)?;
    out.uid = load(follow(task, &OFFSETS.real_cred)?, &OFFSETS.cred_uid)?;
    out.threads = load(signal, &OFFSETS.nr_threads)?;
    out.state = load(task, &OFFSETS.state)?;
    out.exit_state = load(task, &OFFSETS.exit_state)?;
    out.flags = load(task, &OFFSETS.flags)?;
    out.start_boottime_ns = load(task, &OFFSETS.start_boottime)?;
    fill_times(task, &mut out.own)?;
    out.ended.user = load(signal, &OFFSETS.ended_utime)?;
    out.ended.system = load(signal, &OFFSETS.ended_stime)?;
    out.ended.runtime = load(signal, &OFFSETS.ended_runtime)?;
    out.told_utime = load(signal, &OFFSETS.told_utime)?;
    out.told_stime = load(signal, &OFFSETS.told_stime)?;
    out.files_limit = load(signal, &OFFSETS.files_limit)?;
    fill_name(task, &mut out.comm)?;
    fill_memory(task, out)?;
    fill_cgroups(task, out);
    out.io = [0; IO_MEMBERS];
    add_io(task, &OFFSETS.io, &mut out.io);
    add_io(signal, &OFFSETS.ended_io, &mut out.io);
    out.reserved = 0;
    out.open_files = match follow(task, &OFFSETS.files) {
        Some(files) => open_files(files, &mut desk.open)?,
        None => 0,
    };
    Some(())
}

/// Two words: an array is no number to the verifier.
#[inline(always)]
fn fill_name(task: u64, out: &mut [u8; COMM_LEN]) -> Option<()> {
    let start = task + offset(&OFFSETS.comm)?;
    for (word, to) in out.chunks_exact_mut(8).enumerate() {
        // SAFETY: as in `load`.
        let bytes: u64 = unsafe { core::ptr::read_volatile((start + 8 * word as u64) as *const u64) };
        to.copy_from_slice(&bytes.to_ne_bytes());
    }
    Some(())
}

#[inline(always)]
fn fill_memory(task: u64, out: &mut Process) -> Option<()> {
    (out.file_pages, out.anon_pages, out.shmem_pages) = (0, 0, 0);
    if let Some(mm) = follow(task, &OFFSETS.mm) {
        out.file_pages = pages(mm, &OFFSETS.file_pages)?;
        out.anon_pages = pages(mm, &OFFSETS.anon_pages)?;
        out.shmem_pages = pages(mm, &OFFSETS.shmem_pages)?;
    }
    Some(())
}

#[inline(always)]
fn pages(mm: u64, counter: &'static Offset) -> Option<i64> {
    // SAFETY: a reference is valid to read. Volatile, as the loader writes the value after compilation.
    if unsafe { core::ptr::read_volatile(&OFFSETS.pages_by_copy) } != 0 {
        return member(mm, counter);
    }
    load(mm, counter)
}

#[inline(always)]
fn fill_cgroups(task: u64, out: &mut Process) {
    (out.cgroup, out.memory_cgroup) = (0, 0);
    let Some(set) = follow(task, &OFFSETS.cgroups) else { return };
    if let Some(id) = follow(set, &OFFSETS.default_cgroup).and_then(cgroup_id) {
        out.cgroup = id;
    }
    let memory = follow(set, &OFFSETS.memory_state).and_then(|state| follow(state, &OFFSETS.state_cgroup));
    if let Some(id) = memory.and_then(cgroup_id) {
        out.memory_cgroup = id;
    }
}

#[inline(always)]
fn fill_times(task: u64, out: &mut Times) -> Option<()> {
    out.user = load(task, &OFFSETS.utime)?;
    out.system = load(task, &OFFSETS.stime)?;
    out.runtime = load(task, &OFFSETS.runtime)?;
    Some(())
}

/// Nothing is added on a kernel that does not count it.
#[inline(always)]
fn add_io(base: u64, at: &'static Offset, sums: &mut Io) {
    let Some(at) = offset(at) else { return };
    for (sum, member) in sums.iter_mut().zip(&OFFSETS.io_members) {
        if let Some(number) = load::<u64>(base + at, member) {
            *sum += number;
        }
    }
}

#[inline(always)]
fn cgroup_id(cgroup: u64) -> Option<u64> {
    load(follow(cgroup, &OFFSETS.cgroup_kn)?, &OFFSETS.kn_id)
}

/// Counts bits as /proc does for the size of `/proc/<pid>/fd`.
#[inline(always)]
fn open_files(files: u64, words: &mut [u64; FD_WORDS]) -> Option<u32> {
    let table = follow(files, &OFFSETS.fdt)?;
    let count = load::<u32>(table, &OFFSETS.max_fds)? / 64;
    let bits: u64 = load(table, &OFFSETS.open_fds)?;
    if count > FD_WORDS as u32 {
        return Some(NOT_COUNTED);
    }
    // SAFETY: there are FD_WORDS words, and `count` is not more; the helper checks the address.
    let failed = unsafe { bpf_probe_read_kernel(words.as_mut_ptr().cast(), count * 8, bits as *const _) };
    if failed != 0 {
        return None;
    }
    let mut open = 0;
    for (at, word) in words.iter().enumerate() {
        if at as u32 >= count {
            break;
        }
        open += word.count_ones();
    }
    Some(open)
}

/// The member `field` of the structure at `base`, a pointer whose type the verifier knows. It holds every load against
/// the kernel's own types, and an address that cannot be read gives 0: a load costs no more than any other.
#[inline(always)]
fn load<T: Copy>(base: u64, field: &'static Offset) -> Option<T> {
    let address = (base + offset(field)?) as *const T;
    // SAFETY: the verifier lets only loads pass that the kernel can make.
    Some(unsafe { core::ptr::read_volatile(address) })
}

#[inline(always)]
fn follow(base: u64, field: &'static Offset) -> Option<u64> {
    match load::<u64>(base, field)? {
        0 => None,
        address => Some(address),
    }
}

/// Appends a record. What does not fit any more is told again in the next part: the kernel sees to that.
#[inline(always)]
fn write<T>(seq: u64, record: &T) -> bool {
    // SAFETY: the record has as many bytes, and `seq` is the kernel's own.
    unsafe { bpf_seq_write(seq as *mut _, core::ptr::from_ref(record).cast(), size_of::<T>() as u32) == 0 }
}
