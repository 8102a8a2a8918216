//! Tells which stack of its user program the running task has come by: frame after frame by the rules that the agent made
//! for the process. Where a rule is missing the rest of the stack is handed over as it is, and the agent makes the rule.
//!
//! Frame pointers alone would not do: most libraries have none, and then the very caller of the system call is missing.

use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::helpers::{bpf_get_current_pid_tgid, bpf_get_current_task, generated};
use aya_ebpf::macros::map;
use aya_ebpf::maps::{HashMap, PerCpuArray, RingBuf};
use sysops_common::stack::{
    self, CANDIDATES, CHUNK, COPY_MAX, Copied, FRAMES_MAX, Rule, RuleKey, StackHash, StackOffsets, StackProcess, TOKEN,
    Walk, way,
};

use crate::clock_ns;
use crate::counters::{Fate, count};
use crate::memory::{follow, masked, member, offset};

// Room for 240 stacks that are not known yet.
#[map]
static STACK_EVENTS: RingBuf = RingBuf::with_byte_size(1 << 21, 0);

// These three are filled by the agent alone: no memory is taken before it does.
#[map]
static STACK_PROCESSES: HashMap<u32, StackProcess> = HashMap::with_max_entries(1024, BPF_F_NO_PREALLOC);
#[map]
static STACK_RULES: HashMap<RuleKey, Rule> = HashMap::with_max_entries(1 << 17, BPF_F_NO_PREALLOC);
#[map]
static STACK_KNOWN: HashMap<u64, u32> = HashMap::with_max_entries(1 << 16, BPF_F_NO_PREALLOC);

#[map]
static STACK_SCRATCH: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(1, 0);

/// A capture on this CPU. It lies here and not on the stack of the program, so that [`walk`] and [`copy`] need no arguments but
/// numbers: then the verifier looks at them once and not again for each place that they are called from.
#[repr(C)]
struct Scratch {
    /// Tokens that this CPU has given out.
    tokens: u64,
    tgid_tid: u64,
    identity: u64,
    epoch: u32,
    address_bits: u32,
    /// Where the walk stands.
    place: Place,
    /// How many frames came before.
    frames: u32,
    /// 1 when the program stands at the place itself, 0 when something that it called will return there.
    first: u32,
    /// 1 when what cannot be walked is not handed over.
    silent: u32,
    /// 1 while a program is at it: where the kernel preempts programs, another may come in between.
    busy: u32,
    ips: [u64; FRAMES_MAX],
    /// What [`word`] found.
    word: u64,
    /// Where the piece of the user program's stack begins that is in `window`: to copy all of it costs what one word does.
    window_at: u64,
    window: [u64; WINDOW],
    /// Rules that this CPU has looked up, each where the key leads: most stacks lead through the same few places. They stay right: a rule
    /// does not change, and no epoch comes twice.
    rules: [Known; KNOWN],
}

/// A rule with what it is for.
#[repr(C)]
#[derive(Clone, Copy)]
struct Known {
    key: RuleKey,
    rule: Rule,
}

/// As many as there are rules at hand, a power of two.
const KNOWN: usize = 1 << KNOWN_BITS;
const KNOWN_BITS: u32 = 7;

/// Words of a piece, a power of two: some five frames.
const WINDOW: usize = 64;
/// Where a piece begins below the word that is wanted first: the registers that a function saves lie below the address to which it returns.
const BELOW: u64 = 7 * 8;
/// Where no piece is.
const NO_WINDOW: u64 = u64::MAX;

/// Where a user program stands.
#[repr(C)]
#[derive(Clone, Copy)]
struct Place {
    ip: u64,
    sp: u64,
    bp: u64,
    lr: u64,
}

/// A reference to the stack of the running task's user program; 0 when it has none, or none that can be told.
#[inline(always)]
pub fn capture(at: &'static StackOffsets) -> u64 {
    let Some(scratch) = STACK_SCRATCH.get_ptr_mut(0) else { return 0 };
    // SAFETY: this CPU's one value; only what runs on this CPU writes this member.
    if unsafe { core::mem::replace(&mut (*scratch).busy, 1) } != 0 {
        return 0;
    }
    let reference = capture_alone(at, scratch);
    // SAFETY: as above.
    unsafe { (*scratch).busy = 0 };
    reference
}

#[inline(always)]
fn capture_alone(at: &'static StackOffsets, scratch: *mut Scratch) -> u64 {
    let Some(epoch) = begin(at, scratch) else { return 0 };
    let reference = if epoch == 0 { 0 } else { walk(epoch) };
    if reference != 0 {
        // SAFETY: the value is not read.
        if unsafe { STACK_KNOWN.get(reference) }.is_some() {
            return reference;
        }
    }
    hand_over(reference, start_boottime(at))
}

/// Finds where the program stands, and by whose rules it is walked; 0 when there are none. Kernel threads and workers of
/// io_uring have no program to tell of; 32-bit programs are not unwound.
#[inline(always)]
fn begin(at: &'static StackOffsets, scratch: *mut Scratch) -> Option<u32> {
    // SAFETY: the helper takes nothing and cannot fail.
    let task = unsafe { bpf_get_current_task() };
    let tgid_tid = bpf_get_current_pid_tgid();
    let mm = follow(task, &at.mm)?;
    let identity = mm ^ member::<u64>(mm, &at.start_stack)?.rotate_left(16);
    let registers = registers(task, at)?;
    let place = Place {
        ip: member(registers, &at.ip)?,
        sp: member(registers, &at.sp)?,
        bp: member(registers, &at.bp)?,
        lr: if offset(&at.lr).is_some() { member(registers, &at.lr)? } else { 0 },
    };
    // SAFETY: the agent changes a process by one write of the whole value.
    let (epoch, silent) = match unsafe { STACK_PROCESSES.get((tgid_tid >> 32) as u32) } {
        Some(process) if process.identity == identity => (process.epoch, process.silent),
        _ => (0, 0),
    };
    // SAFETY: this CPU's one value; the read as the loader writes the value after compilation.
    unsafe {
        (*scratch).tgid_tid = tgid_tid;
        (*scratch).identity = identity;
        (*scratch).epoch = epoch;
        (*scratch).address_bits = core::ptr::read_volatile(&at.address_bits);
        (*scratch).place = place;
        (*scratch).frames = 0;
        (*scratch).first = 1;
        (*scratch).silent = silent;
        (*scratch).window_at = NO_WINDOW;
    }
    Some(epoch)
}

/// Whenever a program enters the kernel its registers are saved at the end of the kernel stack.
#[inline(always)]
fn registers(task: u64, at: &'static StackOffsets) -> Option<u64> {
    let stack = follow(task, &at.stack)?;
    for index in 0..CANDIDATES {
        // SAFETY: references are valid to read. Volatile, as the loader writes the values after compilation.
        let (distance, mask, value) = unsafe {
            (
                core::ptr::read_volatile(&at.registers[index]),
                core::ptr::read_volatile(&at.mode_mask),
                core::ptr::read_volatile(&at.mode_value),
            )
        };
        if distance == 0 {
            return None;
        }
        let registers = stack + u64::from(distance);
        if member::<u32>(registers, &at.mode).is_some_and(|mode| mode & mask == value) {
            return Some(registers);
        }
    }
    None
}

#[inline(always)]
fn start_boottime(at: &'static StackOffsets) -> u64 {
    // SAFETY: the helper takes nothing and cannot fail.
    let task = unsafe { bpf_get_current_task() };
    follow(task, &at.group_leader).and_then(|leader| member(leader, &at.start_boottime)).unwrap_or(0)
}

/// Walks by the rules of `epoch` to the end of the stack and gives its reference; 0 when a rule or a piece of the stack is
/// missing on the way.
#[inline(never)]
extern "C" fn walk(epoch: u32) -> u64 {
    let Some(scratch) = STACK_SCRATCH.get_ptr_mut(0) else { return 0 };
    // SAFETY: this CPU's one value.
    let (mut place, address_bits) = unsafe { ((*scratch).place, (*scratch).address_bits) };
    let mut hash = StackHash::new(epoch);
    let mut first = 1;
    let mut frames = 0;
    let mut complete = false;
    for index in 0..FRAMES_MAX {
        let known = rule(epoch, first, place.ip);
        if known == 0 {
            break;
        }
        // SAFETY: the mask keeps the index within the map's one value.
        let rule = unsafe { (*scratch).rules[masked(known - 1, KNOWN as u64 - 1) as usize].rule };
        if rule.ways & way::NOWHERE != 0 {
            complete = true;
            break;
        }
        // SAFETY: index < FRAMES_MAX, in the map's one value.
        unsafe { (*scratch).ips[index] = place.ip };
        hash = hash.with(place.ip);
        // A frame pointer below the stack pointer points to nothing: Go's outermost frames have 0.
        let lost = rule.ways & way::SP_FROM_BP != 0 && place.bp < place.sp;
        if rule.ways & way::LAST != 0 || lost || index + 1 == FRAMES_MAX {
            frames = index as u32 + 1;
            complete = true;
            break;
        }
        let Some(caller) = step(&rule, &place, address_bits, scratch) else { break };
        frames = index as u32 + 1;
        // A stack that does not grow outwards, or ends in nothing.
        if caller.ip == 0 || caller.sp <= place.sp {
            complete = true;
            break;
        }
        place = caller;
        first = u32::from(rule.ways & way::SIGNAL != 0);
    }
    // SAFETY: this CPU's one value.
    unsafe {
        (*scratch).place = place;
        (*scratch).frames = frames;
        (*scratch).first = first;
    }
    if complete { hash.reference() } else { 0 }
}

/// Finds the rule of a place; gives the number behind its index among those at hand, 0 when there is none. A function of its own like
/// [`walk`].
#[inline(never)]
extern "C" fn rule(epoch: u32, first: u32, ip: u64) -> u64 {
    let Some(scratch) = STACK_SCRATCH.get_ptr_mut(0) else { return 0 };
    let key = RuleKey { epoch, first, ip };
    // Fibonacci hashing: the upper bits of the product depend on all of the factor's.
    let index = (ip ^ u64::from(first)).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (u64::BITS - KNOWN_BITS);
    // SAFETY: the mask keeps the index within the map's one value.
    let known = unsafe { &mut (*scratch).rules[masked(index, KNOWN as u64 - 1) as usize] };
    if known.key != key {
        // SAFETY: the agent does not change a rule.
        let Some(rule) = (unsafe { STACK_RULES.get(key) }) else { return 0 };
        *known = Known { key, rule: *rule };
    }
    index + 1
}

#[inline(always)]
fn step(rule: &Rule, place: &Place, address_bits: u32, scratch: *const Scratch) -> Option<Place> {
    let has = |bit: u32| rule.ways & bit != 0;
    // SAFETY: this CPU's one value.
    let read_stack = |address: u64| if word(address) == 0 { None } else { Some(unsafe { (*scratch).word }) };
    let plus = |register: u64, by: i32| register.wrapping_add(i64::from(by) as u64);
    let mut sp = plus(if has(way::SP_FROM_BP) { place.bp } else { place.sp }, rule.sp);
    if has(way::SP_IN_MEMORY) {
        sp = read_stack(sp)?;
    }
    let ip = if has(way::RA_IN_REGISTER) {
        place.lr
    } else {
        read_stack(plus(if has(way::RA_FROM_SP) { place.sp } else { sp }, rule.ra))?
    };
    let bp = if has(way::BP_SAME) {
        place.bp
    } else {
        let from = if has(way::BP_FROM_SP) { place.sp } else { sp };
        read_stack(plus(if has(way::BP_FROM_BP) { place.bp } else { from }, rule.bp))?
    };
    Some(Place { ip: stack::place(ip, address_bits), sp, bp, lr: 0 })
}

/// Finds the word at `address` of the user program's stack, in the piece that was copied last or in a new one; 0 when it cannot be
/// read. A function of its own like [`walk`].
#[inline(never)]
extern "C" fn word(address: u64) -> u64 {
    let Some(scratch) = STACK_SCRATCH.get_ptr_mut(0) else { return 0 };
    // SAFETY: all points into this CPU's one value, as the mask keeps the index within the piece; the helpers check addresses.
    unsafe {
        let mut distance = address.wrapping_sub((*scratch).window_at);
        if distance >= (WINDOW * 8) as u64 || distance & 7 != 0 {
            let begin = address.wrapping_sub(BELOW);
            let piece = (&raw mut (*scratch).window).cast();
            if generated::bpf_probe_read_user(piece, (WINDOW * 8) as u32, begin as *const _) != 0 {
                // The piece goes beyond the end of the stack; the word may not.
                (*scratch).window_at = NO_WINDOW;
                let word = (&raw mut (*scratch).word).cast();
                return u64::from(generated::bpf_probe_read_user(word, 8, address as *const _) == 0);
            }
            (*scratch).window_at = begin;
            distance = BELOW;
        }
        (*scratch).word = (*scratch).window[masked(distance >> 3, WINDOW as u64 - 1) as usize];
    }
    1
}

/// The stack pointer of the running task's user program; 0 when it is not known.
#[inline(always)]
pub fn pointer(at: &'static StackOffsets) -> u64 {
    // SAFETY: the helper takes nothing and cannot fail.
    let task = unsafe { bpf_get_current_task() };
    registers(task, at).and_then(|registers| member(registers, &at.sp)).unwrap_or(0)
}

/// How far the stack pointer behind the call of a function is above that at its entry: a return address that is in memory is
/// taken from the stack.
#[inline(always)]
pub fn return_bytes(at: &'static StackOffsets) -> u64 {
    if offset(&at.lr).is_some() { 0 } else { 8 }
}

/// Eight bytes of the user program's memory.
#[inline(always)]
pub fn read_user(address: u64) -> Option<u64> {
    let mut value = 0_u64;
    // SAFETY: `value` has eight bytes; the helper checks the address.
    let failed = unsafe { generated::bpf_probe_read_user((&raw mut value).cast(), 8, address as *const _) };
    if failed == 0 { Some(value) } else { None }
}

/// Hands over a stack that is not known yet: one that was walked to its end (`reference`) by its frames, another with what of it
/// is left to walk. Gives the reference by which the agent will know it; 0 when it cannot be handed over.
#[inline(never)]
extern "C" fn hand_over(reference: u64, start_boottime_ns: u64) -> u64 {
    let Some(scratch) = STACK_SCRATCH.get_ptr_mut(0) else { return 0 };
    if reference != 0 {
        match STACK_EVENTS.reserve::<Walk>(0) {
            Some(mut entry) => {
                fill(scratch, reference, start_boottime_ns, entry.as_mut_ptr());
                entry.submit(0);
            }
            // The next capture of the same stack hands it over.
            None => count(Fate::RingFull),
        }
        return reference;
    }
    // SAFETY: `scratch` is this CPU's one value.
    if unsafe { (*scratch).silent } != 0 {
        return 0;
    }
    // SAFETY: as above.
    let tokens = unsafe {
        (*scratch).tokens += 1;
        (*scratch).tokens
    };
    // SAFETY: the helper takes nothing and cannot fail.
    let cpu = unsafe { generated::bpf_get_smp_processor_id() };
    let token = TOKEN | u64::from(cpu) << 48 | tokens & ((1 << 48) - 1);
    let Some(mut entry) = STACK_EVENTS.reserve::<Copied>(0) else {
        count(Fate::RingFull);
        return 0;
    };
    let copied = entry.as_mut_ptr();
    // SAFETY: the entry is ours until it is submitted.
    let (walk, bytes) = unsafe { (&raw mut (*copied).walk, (&raw mut (*copied).bytes).cast::<u8>()) };
    fill(scratch, token, start_boottime_ns, walk);
    // SAFETY: as above; `scratch` is this CPU's one value.
    let base = unsafe { (*scratch).place.sp } & !(CHUNK as u64 - 1);
    let mut length = 0;
    while length < COPY_MAX {
        // SAFETY: CHUNK divides COPY_MAX, so there are CHUNK bytes at `length`; the helper checks the address.
        let failed = unsafe {
            generated::bpf_probe_read_user(bytes.add(length).cast(), CHUNK as u32, (base + length as u64) as *const _)
        };
        if failed != 0 {
            break;
        }
        length += CHUNK;
    }
    // SAFETY: the entry is ours until it is submitted.
    unsafe {
        (*walk).base = base;
        (*walk).copied = length as u32;
    }
    entry.submit(0);
    token
}

/// Writes every member: what a reserved entry held before is not handed over.
#[inline(always)]
fn fill(scratch: *const Scratch, reference: u64, start_boottime_ns: u64, walk: *mut Walk) {
    // SAFETY: `scratch` is this CPU's one value, `walk` lies in an entry that is ours until it is submitted.
    unsafe {
        (*walk).reference = reference;
        (*walk).monotonic_ns = clock_ns();
        (*walk).start_boottime_ns = start_boottime_ns;
        (*walk).identity = (*scratch).identity;
        (*walk).epoch = (*scratch).epoch;
        (*walk).tgid = ((*scratch).tgid_tid >> 32) as u32;
        (*walk).tid = (*scratch).tgid_tid as u32;
        (*walk).frames = (*scratch).frames;
        (*walk).ip = (*scratch).place.ip;
        (*walk).sp = (*scratch).place.sp;
        (*walk).bp = (*scratch).place.bp;
        (*walk).lr = (*scratch).place.lr;
        (*walk).base = 0;
        (*walk).copied = 0;
        (*walk).first = (*scratch).first;
        let (from, to) = (&raw const (*scratch).ips, &raw mut (*walk).ips);
        // The one way to copy much in one instruction. It cannot fail on the map's own memory.
        generated::bpf_probe_read_kernel(to.cast(), (FRAMES_MAX * 8) as u32, from.cast());
    }
}
