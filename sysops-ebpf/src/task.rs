//! Names a task: ids, name, owner, and its path in the memory controller's hierarchy, which is walked here and now, so
//! that it is right even if the cgroup is removed the moment after.

use sysops_common::task::{COMM_LEN, NAME_LEN, PATH_DEPTH, PATH_LEN, Task, TaskOffsets, known};

use crate::memory::{copy_member, follow, member, offset, read, read_text};

/// Fills `out` with what can be read of the task at `task`; `None` when not even its ids can.
///
/// `current` is never asked: the one who triggers a tracepoint is mostly not the one whom it is about.
#[inline(always)]
pub fn fill(task: u64, at: &'static TaskOffsets, out: &mut Task) -> Option<()> {
    clear(out);
    out.tgid = member(task, &at.tgid)?;
    out.tid = member(task, &at.pid)?;
    let mut seen = known::TGID | known::TID;
    if copy_member(task, &at.comm, &mut out.comm).is_some() {
        seen |= known::COMM;
    }
    if let Some(start) = member(task, &at.start_boottime) {
        out.start_boottime_ns = start;
        seen |= known::START;
    }
    if let Some(uid) = follow(task, &at.real_cred).and_then(|cred| member(cred, &at.cred_uid)) {
        out.uid = uid;
        seen |= known::UID;
    }
    if let Some(len) = memory_state(task, at).and_then(|state| fill_path(state, at, &mut out.path)) {
        out.path_len = len;
        seen |= known::PATH;
    }
    out.known = seen;
    Some(())
}

/// Marks everything as unknown but for the path's bytes, which have no meaning then: what a reserved entry held before
/// is not handed over.
#[inline(always)]
pub fn clear(out: &mut Task) {
    out.start_boottime_ns = 0;
    out.tgid = 0;
    out.tid = 0;
    out.uid = 0;
    out.known = 0;
    out.comm = [0; COMM_LEN];
    out.path_len = 0;
    out.reserved = 0;
}

/// `len` below [`PATH_LEN`], which the verifier must see where it is used: up to 5.10 it forgets the bounds of a number that
/// was put aside on the stack, and a mask that says nothing new is left out by the compiler.
#[inline(always)]
fn masked(len: u32) -> usize {
    let number = len as usize & (PATH_LEN - 1);
    // SAFETY: arithmetic on a register.
    #[cfg(target_arch = "bpf")]
    let number = unsafe {
        let mut number = number;
        core::arch::asm!("{0} &= {1}", inout(reg) number, const PATH_LEN - 1, options(pure, nomem, nostack));
        number
    };
    number
}

/// The task's state in the memory controller: the first member of its `struct mem_cgroup`.
#[inline(always)]
pub fn memory_state(task: u64, at: &'static TaskOffsets) -> Option<u64> {
    follow(follow(task, &at.cgroups)?, &at.css_set_memory)
}

/// Writes the names from the cgroup of a state up to the root and gives their length. In both versions of cgroups that
/// is the path which the kernel's own OOM report prints as `task_memcg`.
#[inline(always)]
pub fn fill_path(state: u64, at: &'static TaskOffsets, out: &mut [u8; PATH_LEN + NAME_LEN]) -> Option<u32> {
    let cgroup = follow(state, &at.css_cgroup)?;
    let mut node = follow(cgroup, &at.cgroup_kn)?;
    // Read once: the walk repeats, the offset does not change.
    let (parent_at, name_at) = (offset(&at.kn_parent)?, offset(&at.kn_name)?);
    let path = out.as_mut_ptr();
    let mut len = 0_u32;
    for _ in 0..PATH_DEPTH {
        let parent: u64 = read(node + parent_at)?;
        if parent == 0 {
            return Some(len);
        }
        let name: u64 = read(node + name_at)?;
        if len as usize >= PATH_LEN {
            return None;
        }
        let start = masked(len);
        // SAFETY: start < PATH_LEN and the array has NAME_LEN bytes beyond that.
        len += unsafe { read_text(name, path.add(start), NAME_LEN as u32) }?;
        node = parent;
    }
    None
}
