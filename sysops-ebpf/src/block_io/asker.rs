//! Tells who asks for a request: the running task and its cgroup.

use aya_ebpf::helpers::{bpf_get_current_pid_tgid, generated};
use sysops_common::task::COMM_LEN;
use sysops_ebpf::memory::{copy_current_comm, offset};

use crate::OFFSETS;
use crate::reach::{Reach, Typed};

/// A task that asks for a request.
pub struct Asker {
    /// Its process.
    pub tgid: u32,
    /// Its number.
    pub tid: u32,
    /// Its cgroup in the unified hierarchy.
    pub cgroup: u64,
    /// Its name, with whatever the kernel has behind the NUL.
    pub comm: [u8; COMM_LEN],
}

/// The running task as the helpers tell it, each at the price of a call: `None` when one fails.
#[inline(always)]
pub fn told() -> Option<Asker> {
    let id = bpf_get_current_pid_tgid();
    let mut comm = [0; COMM_LEN];
    copy_current_comm(&mut comm)?;
    // SAFETY: the helper takes nothing.
    let cgroup = unsafe { generated::bpf_get_current_cgroup_id() };
    Some(Asker { tgid: (id >> 32) as u32, tid: id as u32, cgroup, comm })
}

/// The same as it stands in the task: `None` where the kernel does not give the task with its type (before 5.11), or that
/// lacks a member.
#[inline(always)]
fn read() -> Option<Asker> {
    let comm = offset(&OFFSETS.task_comm)?;
    // SAFETY: the helper takes nothing and cannot fail.
    let task = unsafe { generated::bpf_get_current_task_btf() } as u64;
    let cgroup = Typed::follow(Typed::follow(task, &OFFSETS.task_cgroups)?, &OFFSETS.css_set_dfl_cgrp)?;
    let halves: [u64; 2] = [Typed::read(task + comm)?, Typed::read(task + comm + 8)?];
    Some(Asker {
        tgid: Typed::member(task, &OFFSETS.task_tgid)?,
        tid: Typed::member(task, &OFFSETS.task_pid)?,
        cgroup: Typed::member(Typed::follow(cgroup, &OFFSETS.cgroup_kn)?, &OFFSETS.kn_id)?,
        // SAFETY: both are sixteen bytes of which any is one.
        comm: unsafe { core::mem::transmute::<[u64; 2], [u8; COMM_LEN]>(halves) },
    })
}

/// The running task, in the cheapest way that this reach has.
#[inline(always)]
pub fn asker<R: Reach>() -> Option<Asker> {
    if R::KNOWS_TYPES && offset(&OFFSETS.task_comm).is_some() { read() } else { told() }
}
