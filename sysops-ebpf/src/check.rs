//! Runs when the agent renames a thread of its own: the probe fills its record about the agent, kernel helpers tell
//! the truth beside it. Comparing both with /proc/self is left to the agent.

use aya_ebpf::helpers::{bpf_get_current_pid_tgid, bpf_get_current_uid_gid};
use aya_ebpf::maps::Array;
use sysops_common::check::Check;

use crate::memory::{copy_current_comm, read};

/// Fills the check if `new_name` (what `task_rename` says the task will be called) is the name that the agent
/// gave to this program. `fill` is the probe's own.
#[inline(always)]
pub fn run<T>(
    map: &'static Array<Check<T>>,
    check_name: &'static u64,
    new_name: u64,
    fill: impl FnOnce(&mut T) -> Option<()>,
) -> Option<()> {
    // SAFETY: a reference is valid to read. Volatile, as the loader writes the value after compilation.
    let wanted = unsafe { core::ptr::read_volatile(check_name) };
    if wanted == 0 || read::<u64>(new_name)? != wanted {
        return None;
    }
    let check = map.get_ptr_mut(0)?;
    // SAFETY: the map's one value; only the thread that the agent renames gets here.
    let check = unsafe { &mut *check };
    let ids = bpf_get_current_pid_tgid();
    check.helpers.tgid = (ids >> 32) as u32;
    check.helpers.tid = ids as u32;
    check.helpers.uid = bpf_get_current_uid_gid() as u32;
    copy_current_comm(&mut check.helpers.comm)?;
    check.helpers.filled = u32::from(fill(&mut check.record).is_some());
    check.helpers.runs += 1;
    Some(())
}
