//! Finds in BTF what the programs need to know of a task, and holds each member against the size that the program
//! will read: a member of another size is a missing fact, never a guess.

use sysops_btf::{Argument, Btf, TypeId};
use sysops_common::offset::Offset;
use sysops_common::task::{COMM_LEN, TaskOffsets};

use super::ladder::Refusal;

/// The offset of `path` in `struct name`, which must have `size` bytes.
///
/// # Errors
/// When it is missing, of another size, or further away than a program can read.
pub(super) fn offset(btf: &Btf, name: &str, path: &str, size: u32) -> Result<Offset, Refusal> {
    let member = btf.member(name, path).map_err(|error| contradiction(error.to_string()))?;
    let found = btf.size(member.type_id);
    if found != Some(size) {
        let found = found.map_or_else(|| "no size".to_owned(), |bytes| format!("{bytes} bytes"));
        return Err(contradiction(format!("BTF: {name}.{path}: expected {size} bytes, found {found}")));
    }
    at(name, path, member.offset)
}

/// The same where an older or newer kernel has no such member at all: [`Offset::ABSENT`] then.
///
/// # Errors
/// When it is there, but not as expected.
pub(super) fn offset_if_any(btf: &Btf, name: &str, path: &str, size: u32) -> Result<Offset, Refusal> {
    if btf.member(name, path).is_err() { Ok(Offset::ABSENT) } else { offset(btf, name, path, size) }
}

/// An offset that was computed.
///
/// # Errors
/// When it is further away than a program can read.
pub(super) fn at(name: &str, path: &str, bytes: u32) -> Result<Offset, Refusal> {
    Offset::at(bytes).ok_or_else(|| contradiction(format!("BTF: {name}.{path}: {bytes} bytes into it is too far")))
}

/// The tracepoint `name` hands over a pointer to `struct task_struct` first.
///
/// # Errors
/// When this kernel has no such tracepoint, or hands over something else.
pub(super) fn task_argument(btf: &Btf, name: &str) -> Result<(), Refusal> {
    match btf.arguments(name).map_err(|error| contradiction(error.to_string()))?.first() {
        Some(Argument::Pointer(structure)) if structure == "task_struct" => Ok(()),
        Some(Argument::Pointer(other)) => {
            Err(contradiction(format!("BTF: tracepoint {name} hands over a {other} and no task_struct")))
        }
        Some(Argument::Value) => Err(contradiction(format!("BTF: tracepoint {name} hands over a number and no task"))),
        None => Err(contradiction(format!("BTF: tracepoint {name} hands over nothing"))),
    }
}

/// Where a counter of resident pages lies: up to 6.1 in `struct mm_rss_stat` as one of an array of numbers, since 6.2
/// in an array of `struct percpu_counter`, whose `count` the kernel itself prints when it kills.
///
/// # Errors
/// When it is of another shape.
pub(super) fn resident_pages(btf: &Btf, enumerator: &str) -> Result<Offset, Refusal> {
    let index = btf.enumerator(enumerator).ok_or_else(|| contradiction(format!("no {enumerator} in BTF")))?;
    if btf.member("mm_struct", "rss_stat.count").is_ok() {
        return element(btf, "mm_struct", "rss_stat.count", index, 8);
    }
    let missing = || contradiction("BTF: mm_struct.rss_stat: expected an array of percpu_counter".to_owned());
    let array = btf.member("mm_struct", "rss_stat").map_err(|error| contradiction(error.to_string()))?;
    let element = btf.element(array.type_id).ok_or_else(missing)?;
    let count =
        btf.member_in(element, "count").filter(|count| btf.size(count.type_id) == Some(8)).ok_or_else(missing)?;
    let (size, whole) = (btf.size(element).ok_or_else(missing)?, btf.size(array.type_id).ok_or_else(missing)?);
    let start = index.checked_mul(size).filter(|&start| start < whole).ok_or_else(missing)?;
    at("mm_struct", "rss_stat", array.offset.saturating_add(start).saturating_add(count.offset))
}

/// The tracepoint `signal_generate` hands over number, information and task.
///
/// # Errors
/// When this kernel's does not.
pub(super) fn signal_arguments(btf: &Btf) -> Result<(), Refusal> {
    match btf.arguments("signal_generate").map_err(|error| contradiction(error.to_string()))?.as_slice() {
        [Argument::Value, Argument::Pointer(_), Argument::Pointer(task), ..] if task == "task_struct" => Ok(()),
        _ => Err(contradiction(
            "BTF: tracepoint signal_generate: expected a number, information and a task_struct".to_owned(),
        )),
    }
}

/// Where the name of a task is.
///
/// # Errors
/// When it is missing, or of another length than a program copies.
pub(super) fn comm(btf: &Btf) -> Result<Offset, Refusal> {
    offset(btf, "task_struct", "comm", u32::try_from(COMM_LEN).expect("it is sixteen"))
}

/// Where the members are that name a process.
///
/// # Errors
/// Names the first that is missing or not as expected.
pub(super) fn task(btf: &Btf) -> Result<TaskOffsets, Refusal> {
    let mut offsets = TaskOffsets {
        tgid: offset(btf, "task_struct", "tgid", 4)?,
        pid: offset(btf, "task_struct", "pid", 4)?,
        comm: comm(btf)?,
        start_boottime: offset_if_any(btf, "task_struct", "start_boottime", 8)?,
        real_cred: offset(btf, "task_struct", "real_cred", 8)?,
        cred_uid: offset(btf, "cred", "uid", 4)?,
        ..TaskOffsets::ABSENT
    };
    // Without the memory controller in the kernel there is no path to tell.
    let Some(controller) = btf.enumerator("memory_cgrp_id") else { return Ok(offsets) };
    offsets.cgroups = offset(btf, "task_struct", "cgroups", 8)?;
    offsets.css_set_memory = element(btf, "css_set", "subsys", controller, 8)?;
    offsets.css_cgroup = offset(btf, "cgroup_subsys_state", "cgroup", 8)?;
    offsets.cgroup_kn = offset(btf, "cgroup", "kn", 8)?;
    // Renamed in 6.15, when it came under RCU.
    offsets.kn_parent =
        offset(btf, "kernfs_node", "__parent", 8).or_else(|_| offset(btf, "kernfs_node", "parent", 8))?;
    offsets.kn_name = offset(btf, "kernfs_node", "name", 8)?;
    Ok(offsets)
}

/// Where element `index` of the array `path` in `struct name` lies; its elements must have `size` bytes.
///
/// # Errors
/// When it is no such array, or shorter.
pub(super) fn element(btf: &Btf, name: &str, path: &str, index: u32, size: u32) -> Result<Offset, Refusal> {
    let member = btf.member(name, path).map_err(|error| contradiction(error.to_string()))?;
    let (element, whole) = (btf.element(member.type_id), btf.size(member.type_id));
    let fits = |id: &TypeId| btf.size(*id) == Some(size);
    let end = index.checked_add(1).and_then(|count| count.checked_mul(size));
    match (element.filter(fits), whole, end) {
        (Some(_), Some(whole), Some(end)) if end <= whole => at(name, path, member.offset + end - size),
        _ => Err(contradiction(format!("BTF: {name}.{path}: expected an array with element {index} of {size} bytes"))),
    }
}

/// A fact that speaks against the rungs which read the kernel by its types.
#[must_use]
pub(super) fn contradiction(reason: String) -> Refusal {
    Refusal::new(reason, "report it with the kernel's name: cat /proc/version")
}
