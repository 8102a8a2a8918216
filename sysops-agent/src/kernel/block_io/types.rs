//! Where the programs find what they read: members of structures in BTF, fields of records in tracefs. Nothing is
//! attached here.

use sysops_btf::{Argument, Btf};
use sysops_common::block_io::{Format, OPERATIONS, Offsets, Operation};
use sysops_common::offset::Offset;

use super::super::Rung;
use super::super::attach::Point;
use super::super::ladder::Refusal;
use super::super::{layout, tracefs};

/// What happens to a request: the program, its tracepoint, and whether that handed over the queue in front of the request
/// up to 5.10.136. Each is waited for before what it ends
/// can be seen: a request whose wait alone was seen would be one whose issue was missed.
pub(super) const POINTS: [(&str, &str, bool); 4] = [
    ("complete", "block_rq_complete", false),
    ("requeue", "block_rq_requeue", true),
    ("issue", "block_rq_issue", true),
    ("insert", "block_rq_insert", true),
];

/// What a probe can stand without: the program, its tracepoint, what that hands over, and what is missing without it.
pub(super) const EXTRAS: [(&str, &str, &str, &str); 2] =
    [("merge", "block_rq_merge", "request", "without merges"), ("split", "block_split", "bio", "without splits")];

/// Name and point of the program `what` on `tracepoint`, which hands over a `structure`.
///
/// # Errors
/// When this kernel has no such tracepoint, or it hands over something else.
pub(super) fn program(
    btf: &Btf,
    rung: Rung,
    what: &str,
    tracepoint: &'static str,
    structure: &str,
) -> Result<(String, Point<'static>), Refusal> {
    let behind = match place_of(btf, tracepoint, structure)? {
        0 => "",
        1 => "_behind_queue",
        place => {
            let reason = format!("BTF: tracepoint {tracepoint}: the {structure} is argument {place}");
            return Err(layout::contradiction(reason));
        }
    };
    let id =
        btf.tracepoint(tracepoint).ok_or_else(|| Refusal::new(format!("no tracepoint {tracepoint} in BTF"), ""))?;
    let point = if rung == Rung::TpBtf { Point::Typed(tracepoint, id) } else { Point::Raw(tracepoint) };
    Ok((format!("{what}{behind}_{}", rung.word()), point))
}

/// What the programs must know of the running kernel's types to follow requests.
///
/// # Errors
/// Names the first that is missing or not as expected.
pub(super) fn requests(btf: &Btf) -> Result<Offsets, Refusal> {
    for (_, tracepoint, may_have_queue) in POINTS {
        let place = place_of(btf, tracepoint, "request")?;
        if place > usize::from(may_have_queue) {
            return Err(layout::contradiction(format!(
                "BTF: tracepoint {tracepoint}: the request is argument {place}"
            )));
        }
    }
    let name_len = u32::try_from(sysops_common::block_io::NAME_LEN).unwrap_or(0);
    let mut offsets = Offsets {
        major: layout::offset(btf, "gendisk", "major", 4)?,
        first_minor: layout::offset(btf, "gendisk", "first_minor", 4)?,
        disk_name: layout::offset(btf, "gendisk", "disk_name", name_len)?,
        cmd_flags: layout::offset(btf, "request", "cmd_flags", 4)?,
        data_len: layout::offset(btf, "request", "__data_len", 4)?,
        sector: layout::offset(btf, "request", "__sector", 8)?,
        request_bio: layout::offset(btf, "request", "bio", 8)?,
        // Without it what a request before it left behind is not told apart, which is seldom.
        start_time_ns: layout::offset_if_any(btf, "request", "start_time_ns", 8)?,
        operations: operations(btf)?,
        ..Offsets::ABSENT
    };
    // Moved from the request to its queue in 5.17.
    offsets.disk = layout::offset_if_any(btf, "request", "rq_disk", 8)?;
    if offsets.disk == Offset::ABSENT {
        offsets.request_q = layout::offset(btf, "request", "q", 8)?;
        offsets.disk = layout::offset(btf, "request_queue", "disk", 8)?;
    }
    Ok(offsets)
}

/// The same to follow bios through disks that make no requests.
///
/// # Errors
/// Names the first that is missing or not as expected; then nothing is set.
pub(super) fn bios(btf: &Btf, offsets: &mut Offsets) -> Result<(), Refusal> {
    let mut found = Offsets {
        fops: layout::offset(btf, "gendisk", "fops", 8)?,
        submit_bio: layout::offset(btf, "block_device_operations", "submit_bio", 8)?,
        bio_next: layout::offset(btf, "bio", "bi_next", 8)?,
        // The flags are numbered by an enumeration. Without it the driver tells of the first bio of a request, or of none.
        of_a_head: btf.enumerator("__REQ_DRV").filter(|&bit| bit < 32).map_or(0, |bit| 1 << bit),
        bio_flags: layout::offset(btf, "bio", "bi_opf", 4)?,
        bio_status: layout::offset(btf, "bio", "bi_status", 1)?,
        bio_sector: layout::offset(btf, "bio", "bi_iter.bi_sector", 8)?,
        bio_size: layout::offset(btf, "bio", "bi_iter.bi_size", 4)?,
        ..*offsets
    };
    // A block device came between the bio and the disk in 5.12.
    found.bio_disk = layout::offset_if_any(btf, "bio", "bi_disk", 8)?;
    if found.bio_disk == Offset::ABSENT {
        found.bio_bdev = layout::offset(btf, "bio", "bi_bdev", 8)?;
        found.bio_disk = layout::offset(btf, "block_device", "bd_disk", 8)?;
    }
    *offsets = found;
    Ok(())
}

/// The same to tell which cgroup the kernel charges.
///
/// # Errors
/// Names the first that is missing or not as expected; then nothing is set.
pub(super) fn charges(btf: &Btf, offsets: &mut Offsets) -> Result<(), Refusal> {
    *offsets = Offsets {
        bio_blkg: layout::offset(btf, "bio", "bi_blkg", 8)?,
        blkg_blkcg: layout::offset(btf, "blkcg_gq", "blkcg", 8)?,
        blkcg_cgroup: layout::offset(btf, "blkcg", "css.cgroup", 8)?,
        cgroup_kn: layout::offset(btf, "cgroup", "kn", 8)?,
        kn_id: layout::offset(btf, "kernfs_node", "id", 8)?,
        cgroup_root: layout::offset(btf, "cgroup", "root", 8)?,
        hierarchy_id: layout::offset(btf, "cgroup_root", "hierarchy_id", 4)?,
        ..*offsets
    };
    Ok(())
}

/// The same to tell who asks without a call for each fact; without it the programs call the helpers.
///
/// # Errors
/// Names the first that is missing or not as expected; then nothing is set.
pub(super) fn askers(btf: &Btf, offsets: &mut Offsets) -> Result<(), Refusal> {
    // Since 5.11.
    const HELPER: &str = "BPF_FUNC_get_current_task_btf";
    btf.enumerator(HELPER).ok_or_else(|| layout::contradiction(format!("no {HELPER} in BTF")))?;
    *offsets = Offsets {
        task_comm: layout::comm(btf)?,
        task_pid: layout::offset(btf, "task_struct", "pid", 4)?,
        task_tgid: layout::offset(btf, "task_struct", "tgid", 4)?,
        task_cgroups: layout::offset(btf, "task_struct", "cgroups", 8)?,
        css_set_dfl_cgrp: layout::offset(btf, "css_set", "dfl_cgrp", 8)?,
        cgroup_kn: layout::offset(btf, "cgroup", "kn", 8)?,
        kn_id: layout::offset(btf, "kernfs_node", "id", 8)?,
        ..*offsets
    };
    Ok(())
}

/// Which argument of the tracepoint points to a `structure`. By the prototype, never by the version: stable kernels have
/// changed it.
///
/// # Errors
/// When this kernel has no such tracepoint, or none of its arguments does.
pub(super) fn place_of(btf: &Btf, tracepoint: &str, structure: &str) -> Result<usize, Refusal> {
    let arguments = btf.arguments(tracepoint).map_err(|error| layout::contradiction(error.to_string()))?;
    let wanted = |argument: &Argument| matches!(argument, Argument::Pointer(name) if name == structure);
    arguments
        .iter()
        .position(wanted)
        .ok_or_else(|| layout::contradiction(format!("BTF: tracepoint {tracepoint} hands over no {structure}")))
}

/// What each of the kernel's operations counts as; its numbers have changed, its names have not.
fn operations(btf: &Btf) -> Result<[u8; OPERATIONS], Refusal> {
    let mut operations = Offsets::ABSENT.operations;
    let mut set = |name: &str, operation: Operation| {
        let place = btf.enumerator(name).and_then(|number| operations.get_mut(usize::try_from(number).ok()?));
        place.map(|place| *place = operation as u8)
    };
    for (name, operation) in [
        ("REQ_OP_READ", Operation::Read),
        ("REQ_OP_WRITE", Operation::Write),
        ("REQ_OP_FLUSH", Operation::Flush),
        ("REQ_OP_DISCARD", Operation::Discard),
    ] {
        set(name, operation).ok_or_else(|| layout::contradiction(format!("no {name} in BTF")))?;
    }
    // Not in every kernel.
    let _ = (set("REQ_OP_SECURE_ERASE", Operation::Discard), set("REQ_OP_ZONE_APPEND", Operation::Write));
    Ok(operations)
}

/// Where the fields of the plain tracepoints' records are.
///
/// # Errors
/// When tracefs lacks one of them.
pub(super) fn formats(read: impl Fn(&str) -> Result<tracefs::Format, Refusal>) -> Result<Offsets, Refusal> {
    let fields = |event: &str, error: bool| {
        let format = read(event)?;
        let at = |name: &str, sizes: std::ops::RangeInclusive<u32>| {
            let found = sizes.clone().find_map(|size| format.offset(name, size)).and_then(Offset::at);
            found.ok_or_else(|| {
                let (least, most) = (sizes.start(), sizes.end());
                let size = if least == most { least.to_string() } else { format!("{least} to {most}") };
                Refusal::new(format!("tracefs: {event}: expected a field {name} of {size} bytes"), "")
            })
        };
        Ok(Format {
            dev: at("dev", 4..=4)?,
            sector: at("sector", 8..=8)?,
            nr_sector: at("nr_sector", 4..=4)?,
            rwbs: at("rwbs", 2..=32)?,
            error: if error { at("error", 4..=4)? } else { Offset::ABSENT },
            reserved: [Offset::ABSENT; 3],
        })
    };
    Ok(Offsets {
        insert: fields("block/block_rq_insert", false)?,
        issue: fields("block/block_rq_issue", false)?,
        complete: fields("block/block_rq_complete", true)?,
        requeue: fields("block/block_rq_requeue", false)?,
        merge: fields("block/block_rq_merge", false).unwrap_or(Format::ABSENT),
        ..Offsets::ABSENT
    })
}

#[cfg(test)]
mod tests {
    use super::super::super::btf_builder::Builder;
    use super::*;
    use crate::host::Host;

    /// What differs between kernels in what the probe reads.
    #[derive(Clone, Copy)]
    struct Kernel {
        queue_first: bool,
        disk_in_request: bool,
        data_len: u32,
        zone_append: Option<u32>,
    }

    /// As in 6.18.
    const NEW: Kernel = Kernel { queue_first: false, disk_in_request: false, data_len: 44, zone_append: Some(7) };
    /// As before 5.10.137.
    const OLD: Kernel = Kernel { queue_first: true, disk_in_request: true, data_len: 40, zone_append: Some(13) };

    fn btf(kernel: Kernel) -> Btf {
        let mut types = Builder::new();
        let (byte, number, long) = (types.int(1), types.int(4), types.int(8));
        let name = types.array(byte, 32);
        let disk =
            types.structure("gendisk", &[("major", number, 0), ("first_minor", number, 4), ("disk_name", name, 12)]);
        let disk = types.pointer(disk);
        let in_queue = ("disk", disk, 104);
        let queue = types
            .structure("request_queue", if kernel.disk_in_request { &[] } else { std::slice::from_ref(&in_queue) });
        let queue = types.pointer(queue);
        let mut members = vec![("q", queue, 0), ("cmd_flags", number, 24), ("__data_len", number, kernel.data_len)];
        members.extend([("__sector", long, 48), ("bio", queue, 56)]);
        if kernel.disk_in_request {
            members.push(("rq_disk", disk, 160));
        }
        let request = types.structure("request", &members);
        let request = types.pointer(request);
        for tracepoint in ["block_rq_insert", "block_rq_issue", "block_rq_requeue"] {
            let arguments = [queue, request];
            types.tracepoint(tracepoint, &arguments[usize::from(!kernel.queue_first)..]);
        }
        types.tracepoint("block_rq_complete", &[request, number, number]);
        let mut operations = vec![("REQ_OP_READ", 0), ("REQ_OP_WRITE", 1), ("REQ_OP_FLUSH", 2), ("REQ_OP_DISCARD", 3)];
        operations.extend(kernel.zone_append.map(|number| ("REQ_OP_ZONE_APPEND", number)));
        types.enumeration(&operations);
        types.build()
    }

    fn bytes(offset: Offset) -> Option<u64> {
        offset.bytes()
    }

    #[test]
    fn the_disk_is_found_in_the_queue_or_in_the_request() {
        let found = requests(&btf(NEW)).expect("as in 6.18");
        assert_eq!([found.request_q, found.disk, found.data_len].map(bytes), [Some(0), Some(104), Some(44)]);
        let found = requests(&btf(OLD)).expect("as in 5.10");
        assert_eq!([found.request_q, found.disk, found.data_len].map(bytes), [None, Some(160), Some(40)]);
        assert_eq!([found.major, found.first_minor, found.disk_name].map(bytes), [Some(0), Some(4), Some(12)]);
    }

    #[test]
    fn the_prototype_tells_where_the_request_is() {
        assert_eq!(place_of(&btf(NEW), "block_rq_issue", "request"), Ok(0));
        assert_eq!(place_of(&btf(OLD), "block_rq_issue", "request"), Ok(1));
        assert_eq!(place_of(&btf(OLD), "block_rq_complete", "request"), Ok(0));
        let refused = place_of(&btf(OLD), "block_rq_error", "request").expect_err("none");
        assert!(refused.reason.contains("block_rq_error"), "{refused:?}");
    }

    #[test]
    fn operations_are_told_by_name_whatever_their_number() {
        let new = operations(&btf(NEW)).expect("all there");
        let old = operations(&btf(OLD)).expect("all there");
        let (write, other) = (Operation::Write as u8, Operation::Other as u8);
        assert_eq!((new[7], new[13], old[7], old[13]), (write, other, other, write));
        assert_eq!(
            new[..4],
            [Operation::Read, Operation::Write, Operation::Flush, Operation::Discard].map(|o| o as u8)
        );
        assert_eq!((new[5], new[63]), (other, other), "not in this kernel");
    }

    #[test]
    fn a_number_of_another_size_is_refused() {
        let refused = requests(&btf(Kernel { data_len: 70_000, ..NEW })).expect_err("too far");
        assert!(refused.reason.contains("request.__data_len"), "{refused:?}");
    }

    fn format(kernel: &str, event: &str) -> Result<tracefs::Format, Refusal> {
        // All three are of one class of events in every kernel (DEFINE_EVENT(block_rq, …)), so one file stands for all.
        let of_one_class = ["block/block_rq_insert", "block/block_rq_merge"];
        let event = if of_one_class.contains(&event) { "block/block_rq_issue" } else { event };
        let path = format!("{}/../tests/fixtures/tracefs/{kernel}/{event}/format", env!("CARGO_MANIFEST_DIR"));
        let read = Host::fixture(std::path::Path::new("/")).files.read(path.as_ref());
        read.map(|text| tracefs::parse(&text)).map_err(|error| Refusal::new(error.to_string(), ""))
    }

    #[test]
    fn records_are_read_where_their_kernel_writes_them() {
        for (kernel, rwbs) in [("5.10", 32), ("6.1", 32), ("6.12", 34), ("6.18", 34), ("7.2", 34)] {
            let found =
                formats(|event| format(kernel, event)).unwrap_or_else(|refused| panic!("{kernel}: {refused:?}"));
            let Format { dev, sector, nr_sector, error, .. } = found.complete;
            assert_eq!([dev, sector, nr_sector, error].map(bytes), [Some(8), Some(16), Some(24), Some(28)], "{kernel}");
            assert_eq!((bytes(found.issue.rwbs), bytes(found.complete.rwbs)), (Some(rwbs), Some(rwbs)), "{kernel}");
            assert_ne!(found.requeue, Format::ABSENT);
        }
        let no_sector = |_: &str| Ok(tracefs::parse(b"field:dev_t dev;\toffset:8;\tsize:4;\tsigned:0;"));
        let refused = formats(no_sector).expect_err("no sector");
        assert_eq!(refused.reason, "tracefs: block/block_rq_insert: expected a field sector of 8 bytes");
    }
}
