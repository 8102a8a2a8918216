//! Finds in BTF what the task iterator's program must know. The verifier holds each load against the kernel's own types
//! once more.

use sysops_btf::Btf;
use sysops_common::offset::Offset;
use sysops_common::tasks::{IO_MEMBERS, Offsets};

use super::super::ladder::Refusal;
use super::super::layout::{comm, contradiction, element, offset, resident_pages};

/// `RLIMIT_NOFILE` (include/uapi/asm-generic/resource.h), the same but on alpha, mips and sparc.
const RLIMIT_NOFILE: u32 = 7;

/// The members of `struct task_io_accounting` in the order in which /proc prints them.
const IO: [&str; IO_MEMBERS] =
    ["rchar", "wchar", "syscr", "syscw", "read_bytes", "write_bytes", "cancelled_write_bytes"];

/// Where everything is.
///
/// # Errors
/// Names the first member that is missing or not as expected.
pub(super) fn offsets(btf: &Btf) -> Result<Offsets, Refusal> {
    let task = |path: &str, size: u32| offset(btf, "task_struct", path, size);
    let signal = |path: &str, size: u32| offset(btf, "signal_struct", path, size);
    let mut offsets = Offsets {
        tgid: task("tgid", 4)?,
        pid: task("pid", 4)?,
        comm: comm(btf)?,
        // `state`, a long, before 5.14.
        state: task("__state", 4).or_else(|_| task("state", 8))?,
        exit_state: task("exit_state", 4)?,
        flags: task("flags", 4)?,
        real_parent: task("real_parent", 8)?,
        start_boottime: task("start_boottime", 8)?,
        real_cred: task("real_cred", 8)?,
        cred_uid: offset(btf, "cred", "uid", 4)?,
        utime: task("utime", 8)?,
        stime: task("stime", 8)?,
        runtime: task("se.sum_exec_runtime", 8)?,
        signal: task("signal", 8)?,
        nr_threads: signal("nr_threads", 4)?,
        ended_utime: signal("utime", 8)?,
        ended_stime: signal("stime", 8)?,
        ended_runtime: signal("sum_sched_runtime", 8)?,
        told_utime: signal("prev_cputime.utime", 8)?,
        told_stime: signal("prev_cputime.stime", 8)?,
        // struct rlimit: the soft limit, then the hard one.
        files_limit: element(btf, "signal_struct", "rlim", RLIMIT_NOFILE, 16)?,
        mm: task("mm", 8)?,
        file_pages: resident_pages(btf, "MM_FILEPAGES")?,
        anon_pages: resident_pages(btf, "MM_ANONPAGES")?,
        shmem_pages: resident_pages(btf, "MM_SHMEMPAGES")?,
        files: task("files", 8)?,
        fdt: offset(btf, "files_struct", "fdt", 8)?,
        max_fds: offset(btf, "fdtable", "max_fds", 4)?,
        open_fds: offset(btf, "fdtable", "open_fds", 8)?,
        pages_by_copy: u16::from(btf.member("mm_struct", "rss_stat.count").is_ok()),
        ..Offsets::ABSENT
    };
    cgroups(btf, &mut offsets)?;
    io(btf, &mut offsets)?;
    Ok(offsets)
}

/// A kernel without cgroups has none of this; one without the memory controller has no place for it.
fn cgroups(btf: &Btf, offsets: &mut Offsets) -> Result<(), Refusal> {
    if btf.member("task_struct", "cgroups").is_err() {
        return Ok(());
    }
    offsets.cgroups = offset(btf, "task_struct", "cgroups", 8)?;
    offsets.default_cgroup = offset(btf, "css_set", "dfl_cgrp", 8)?;
    offsets.cgroup_kn = offset(btf, "cgroup", "kn", 8)?;
    offsets.kn_id = offset(btf, "kernfs_node", "id", 8)?;
    if let Some(controller) = btf.enumerator("memory_cgrp_id") {
        offsets.memory_state = element(btf, "css_set", "subsys", controller, 8)?;
        offsets.state_cgroup = offset(btf, "cgroup_subsys_state", "cgroup", 8)?;
    }
    Ok(())
}

/// All or nothing: without CONFIG_TASK_XACCT and CONFIG_TASK_IO_ACCOUNTING some are missing.
fn io(btf: &Btf, offsets: &mut Offsets) -> Result<(), Refusal> {
    if IO.iter().any(|name| btf.member("task_io_accounting", name).is_err()) {
        return Ok(());
    }
    for (place, name) in offsets.io_members.iter_mut().zip(IO) {
        *place = offset(btf, "task_io_accounting", name, 8)?;
    }
    let whole = |name: &str| {
        let member = btf.member(name, "ioac").map_err(|error| contradiction(error.to_string()))?;
        if btf.structure_name(member.type_id) != Some("task_io_accounting") {
            return Err(contradiction(format!("BTF: {name}.ioac: expected a task_io_accounting")));
        }
        Offset::at(member.offset).ok_or_else(|| contradiction(format!("BTF: {name}.ioac is too far into it")))
    };
    (offsets.io, offsets.ended_io) = (whole("task_struct")?, whole("signal_struct")?);
    Ok(())
}
