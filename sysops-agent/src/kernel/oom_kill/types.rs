//! What the program must know of the running kernel, and whether what it read with that is true.

use sysops_btf::{Argument, Btf};
use sysops_common::offset::Offset;
use sysops_common::oom_kill::{Format, Offsets, Record, SignalFormat, known};

use super::super::check::{self, Own};
use super::super::ladder::Refusal;
use super::super::{layout, tracefs};
use crate::host::{Host, os};

/// How far the memory of the agent may move between a look into /proc and the check: 8 MiB in pages of 4 KiB, for a
/// thread that allocates at that very moment.
const SLACK_PAGES: u64 = 2048;

/// What the program must know of the running kernel's types.
pub(super) fn offsets(btf: &Btf) -> Result<Offsets, Refusal> {
    let mut offsets = Offsets {
        victim_is_number: u16::from(victim_is_number(btf)?),
        task: layout::task(btf)?,
        signal: layout::offset(btf, "task_struct", "signal", 8)?,
        oom_score_adj: layout::offset(btf, "signal_struct", "oom_score_adj", 2)?,
        mm: layout::offset(btf, "task_struct", "mm", 8)?,
        total_vm: layout::offset(btf, "mm_struct", "total_vm", 8)?,
        pgtables_bytes: layout::offset_if_any(btf, "mm_struct", "pgtables_bytes", 8)?,
        group_leader: layout::offset(btf, "task_struct", "group_leader", 8)?,
        ..Offsets::ABSENT
    };
    offsets.file_pages = layout::resident_pages(btf, "MM_FILEPAGES")?;
    offsets.anon_pages = layout::resident_pages(btf, "MM_ANONPAGES")?;
    offsets.shmem_pages = layout::resident_pages(btf, "MM_SHMEMPAGES")?;
    Ok(offsets)
}

/// Up to 5.10 `mark_victim` hands over a thread id. The task is then the one to which `signal_generate` saw the kernel's
/// SIGKILL go right before.
fn victim_is_number(btf: &Btf) -> Result<bool, Refusal> {
    let arguments = btf.arguments("mark_victim").map_err(|error| layout::contradiction(error.to_string()))?;
    if arguments != [Argument::Value] {
        return layout::task_argument(btf, "mark_victim").map(|()| false);
    }
    layout::signal_arguments(btf).map(|()| true)
}

/// Adds where the kernel keeps the limits of memory cgroups, which the probe can do
/// without.
///
/// # Errors
/// Names the first that is missing or not as expected; none of them is added then.
pub(super) fn add_limit(btf: &Btf, offsets: &mut Offsets) -> Result<(), Refusal> {
    let memcg_css = layout::offset(btf, "mem_cgroup", "css.cgroup", 8)?;
    let css_cgroup = layout::offset(btf, "cgroup_subsys_state", "cgroup", 8)?;
    let start = memcg_css.bytes().zip(css_cgroup.bytes()).and_then(|(whole, part)| whole.checked_sub(part));
    let start = start.and_then(|start| u32::try_from(start).ok());
    let memcg_css = layout::at("mem_cgroup", "css", start.unwrap_or(u32::MAX))?;
    let memory = btf.member("mem_cgroup", "memory").map_err(|error| layout::contradiction(error.to_string()))?;
    if btf.structure_name(memory.type_id) != Some("page_counter") {
        return Err(layout::contradiction("BTF: mem_cgroup.memory: expected a page_counter".to_owned()));
    }
    let memcg_memory = layout::at("mem_cgroup", "memory", memory.offset)?;
    let counter_max = layout::offset(btf, "page_counter", "max", 8)?;
    let counter_parent = layout::offset(btf, "page_counter", "parent", 8)?;
    *offsets = Offsets { memcg_css, memcg_memory, counter_max, counter_parent, ..*offsets };
    Ok(())
}

/// Where the fields of the record of `signal/signal_generate` are; what is missing is absent.
pub(super) fn signal_fields(format: &tracefs::Format) -> SignalFormat {
    let at = |name: &str| format.offset(name, 4).and_then(Offset::at).unwrap_or(Offset::ABSENT);
    SignalFormat { sig: at("sig"), code: at("code"), pid: at("pid") }
}

/// Where the fields of the plain tracepoint's record are.
pub(super) fn fields(format: &tracefs::Format) -> Result<Format, Refusal> {
    let at = |name: &str, size: u32| format.offset(name, size).and_then(Offset::at).unwrap_or(Offset::ABSENT);
    let pid = format
        .offset("pid", 4)
        .and_then(Offset::at)
        .ok_or_else(|| Refusal::new("tracefs: oom/mark_victim: expected a field pid of 4 bytes", ""))?;
    let mut found = Format { pid, ..Format::ABSENT };
    // Sizes mean something only in the unit that the kernel itself prints.
    if format.print.contains("total-vm=%lukB") && format.print.contains("pgtables=%lukB") {
        found.total_vm = at("total_vm", 8);
        found.anon_rss = at("anon_rss", 8);
        found.file_rss = at("file_rss", 8);
        found.shmem_rss = at("shmem_rss", 8);
        found.pgtables = at("pgtables", 8);
    }
    found.comm = at("comm", 4);
    found.uid = at("uid", 4);
    found.oom_score_adj = at("oom_score_adj", 2);
    Ok(found)
}

/// Holds the memory that the program read about the agent against /proc/self.
pub(super) fn compare_memory(read: &Record, offsets: &Offsets, own: &Own) -> Result<(), Refusal> {
    let has = |bit: u32| read.known & bit != 0;
    for (name, offset, bit) in [
        ("signal.oom_score_adj", offsets.signal, known::ADJ),
        ("mm.total_vm", offsets.total_vm, known::TOTAL_VM),
        ("mm.rss_stat", offsets.anon_pages, known::ANON),
        ("group_leader", offsets.group_leader, known::LEADER),
    ] {
        if offset.bytes().is_some() && !has(bit) {
            check::equal(name, "a fault", "a value")?;
        }
    }
    if let (Some(truth), true) = (own.oom_score_adj, has(known::ADJ)) {
        check::equal("signal.oom_score_adj", read.oom_score_adj, truth)?;
    }
    let (Some([size, resident, shared]), Some(cpus), true) = (own.pages, own.possible_cpus, has(known::TOTAL_VM))
    else {
        return Ok(());
    };
    check::near("mm.total_vm in pages", read.total_vm, size, SLACK_PAGES)?;
    // Each CPU may hold back a batch of pages that /proc counts and the program cannot (percpu_counter_batch).
    let slack = cpus.saturating_mul((2 * cpus).max(32)).saturating_add(SLACK_PAGES);
    check::near("mm.rss_stat of file and shmem", read.file.saturating_add(read.shmem), shared, slack)?;
    check::near("mm.rss_stat of anon", read.anon, resident.saturating_sub(shared), slack)
}

/// Holds the limit that the program read about the agent's own cgroup against what the cgroup's files say.
pub(super) fn compare_limit(read: &Record, host: &Host, own: &Own) -> Result<(), Refusal> {
    let Some(truth) = own_limit_bytes(host, own) else { return Ok(()) };
    if read.known & known::LIMIT == 0 {
        return check::equal("mem_cgroup.memory.max", "a fault", "a value");
    }
    check::equal("mem_cgroup.memory.max", read.limit.saturating_mul(os::page_size()), truth)
}

/// The smallest limit of the agent's own cgroup and those above it; `None` when it cannot be told from here.
fn own_limit_bytes(host: &Host, own: &Own) -> Option<u64> {
    let path = own.memory.as_ref().filter(|_| own.whole_paths)?;
    let text = |file: String| host.files.read_text(&host.files.sys(&file)).ok();
    if path.v1 {
        let stat = text(format!("fs/cgroup/memory{}/memory.stat", path.path))?;
        let line = stat.lines().find_map(|line| line.strip_prefix("hierarchical_memory_limit "))?;
        return line.parse().ok();
    }
    let mut least = no_limit_bytes();
    let mut at = path.path.as_str();
    // The root has no limit and no such file.
    while !at.is_empty() && at != "/" {
        // One without the controller has no file, and is not limited.
        let limit = text(format!("fs/cgroup{at}/memory.max")).filter(|limit| limit != "max");
        if let Some(limit) = limit {
            least = least.min(limit.parse().ok()?);
        }
        at = at.rsplit_once('/')?.0;
    }
    text("fs/cgroup/cgroup.controllers".to_owned())?.split(' ').any(|name| name == "memory").then_some(least)
}

/// What the kernel sets where there is no limit (PAGE_COUNTER_MAX), in bytes.
pub(super) fn no_limit_bytes() -> u64 {
    let page = os::page_size();
    i64::MAX.unsigned_abs() / page * page
}

#[cfg(test)]
mod tests {
    use sysops_common::task::TaskOffsets;

    use super::super::super::btf_builder::kernel;
    use super::super::tests::record;
    use super::*;

    fn bytes(offset: Offset) -> Option<u64> {
        offset.bytes()
    }

    /// Page counters: one of an array of numbers up to 6.1, since then one of an array of structures of forty bytes with
    /// the count eight bytes in.
    #[test]
    fn counters_of_resident_pages_are_found_in_both_shapes() {
        let found = |name: &str| {
            let btf = kernel(name);
            ["MM_FILEPAGES", "MM_ANONPAGES", "MM_SHMEMPAGES"]
                .map(|counter_name| layout::resident_pages(&btf, counter_name).ok().and_then(bytes))
        };
        assert_eq!(found("5.10"), [Some(712), Some(720), Some(736)]);
        assert_eq!(found("6.1"), [Some(720), Some(728), Some(744)]);
        assert_eq!(found("6.12"), [Some(824), Some(864), Some(944)]);
        assert_eq!(found("6.18"), [Some(968), Some(1008), Some(1088)]);
    }

    #[test]
    fn every_kernel_has_what_the_program_needs_and_one_hands_over_a_number() {
        for name in ["5.10", "6.1", "6.12", "6.18", "7.2"] {
            let found = offsets(&kernel(name)).unwrap_or_else(|refused| panic!("{name}: {refused:?}"));
            assert_ne!(found.task, TaskOffsets::ABSENT);
            assert_eq!(found.victim_is_number, u16::from(name == "5.10"), "{name}");
            let limit = [found.memcg_css, found.memcg_memory, found.counter_max, found.counter_parent];
            assert_eq!(limit, [Offset::ABSENT; 4]);
            let mut found = found;
            add_limit(&kernel(name), &mut found).unwrap_or_else(|refused| panic!("{name}: {refused:?}"));
            let limit = [found.memcg_css, found.memcg_memory, found.counter_max, found.counter_parent].map(bytes);
            assert_eq!(limit[0], Some(0), "{name}");
            assert!(limit.iter().all(Option::is_some), "{name}: {limit:?}");
            assert!(
                [found.task.kn_parent, found.mm, found.anon_pages, found.pgtables_bytes, found.group_leader]
                    .map(bytes)
                    .iter()
                    .all(Option::is_some)
            );
        }
    }

    fn format(kernel: &str) -> Format {
        let path = format!("{}/../tests/fixtures/tracefs/{kernel}/oom/mark_victim/format", env!("CARGO_MANIFEST_DIR"));
        let host = Host::fixture(std::path::Path::new("/"));
        fields(&tracefs::parse(&host.files.read(path.as_ref()).expect("a fixture"))).expect("a pid at least")
    }

    #[test]
    fn the_plain_record_has_what_its_kernel_writes_into_it() {
        assert_eq!(bytes(format("5.10").pid), Some(8));
        assert_eq!(Format { pid: format("5.10").pid, ..Format::ABSENT }, format("5.10"));
        for kernel in ["6.1", "6.12", "6.18", "7.2"] {
            let found = format(kernel);
            let all = [
                found.comm,
                found.total_vm,
                found.anon_rss,
                found.file_rss,
                found.uid,
                found.pgtables,
                found.oom_score_adj,
            ];
            assert!(all.map(bytes).iter().all(Option::is_some), "{kernel}: {found:?}");
        }
        assert!(fields(&tracefs::parse(b"field:int other;\toffset:8;\tsize:4;\tsigned:1;")).is_err());
    }

    #[test]
    fn memory_that_was_read_wrong_is_a_contradiction() {
        let at = Offset::at(8).expect("small");
        let offsets = Offsets { signal: at, total_vm: at, anon_pages: at, ..Offsets::ABSENT };
        let own = Own { oom_score_adj: Some(-5), pages: Some([10, 6, 3]), possible_cpus: Some(2), ..Own::default() };
        let all = known::TOTAL_VM | known::ANON | known::FILE | known::SHMEM | known::ADJ;
        assert_eq!(compare_memory(&record(all), &offsets, &own), Ok(()));
        let reason = |read: &Record| compare_memory(read, &offsets, &own).expect_err("a contradiction").reason;
        assert!(reason(&Record { oom_score_adj: 0, ..record(all) }).contains("oom_score_adj: read 0, but it is -5"));
        assert!(reason(&Record { total_vm: 1 << 40, ..record(all) }).contains("total_vm"));
        assert!(reason(&Record { anon: 1 << 40, ..record(all) }).contains("anon"));
        assert!(reason(&record(all & !known::ADJ)).contains("oom_score_adj: read a fault"));
    }
}
