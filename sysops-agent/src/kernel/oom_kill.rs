//! OOM kills as the kernel marks their victims: who, how large, in which cgroup, and who asked for the memory. The
//! constraint and the cgroup whose limit was reached are told by the kernel's log alone and joined in `correlate`.

use std::os::fd::BorrowedFd;

use sysops_common::check::Check;
use sysops_common::counters::Counters;
use sysops_common::offset::Offset;
use sysops_common::oom_kill::{Format, Offsets, Record, known};
use sysops_common::task::known as task_known;

use super::attach::Tracepoint;
use super::btf::Btf;
use super::check::{self, Own};
use super::facts::Facts;
use super::ladder::{Ground, Refusal, Step, WORDS};
use super::loader::{self, Object};
use super::process::Process;
use super::run_stats::Runs;
use super::{Entry, Probe, Rung, layout, record};
use crate::host::{Host, os};
use crate::model::event::{Detail, Event, OomKill};
use crate::spec::{Key, Values};

/// The probe in the list.
pub(super) static ENTRY: Entry =
    Entry { name: "oom_kill", metrics: &[], keys: &[RUNG.spec()], rung: &RUNG, new: |h, f, v| Box::new(new(h, f, v)) };

static RUNG: Key<String> = Key::choice(
    "kernel.oom_kill.rung",
    WORDS,
    "auto",
    "How OOM kills are seen. `auto` takes the best rung that stands; one that is named here and cannot stand is an error.",
);

const MARK_VICTIM: Tracepoint = Tracepoint { object: "oom_kill", group: "oom", name: "mark_victim" };

/// How far the memory of the agent may move between a look into /proc and the check: 8 MiB in pages of 4 KiB, for a
/// thread that allocates at that very moment.
const SLACK_PAGES: u64 = 2048;

struct OomKills {
    ground: Ground,
    types: Offsets,
    format: Format,
    initial_pids: bool,
    standing: Option<(Rung, Object)>,
}

fn new(host: &Host, facts: &Facts, _values: &Values) -> OomKills {
    let types = facts.btf.as_ref().map_err(Clone::clone).and_then(offsets);
    let format = facts.format(host, "oom/mark_victim").and_then(|format| fields(&format));
    OomKills {
        ground: Ground {
            object: loader::embedded("oom_kill").map(drop),
            privilege: facts.privilege.clone(),
            types: types.as_ref().map(drop).map_err(Clone::clone),
            format: format.as_ref().map(drop).map_err(Clone::clone),
            log: Some(facts.log.clone()),
        },
        types: Offsets { check_name: facts.check_name, ..types.unwrap_or(Offsets::ABSENT) },
        format: format.unwrap_or(Format::ABSENT),
        initial_pids: facts.initial_pids,
        standing: None,
    }
}

impl Probe for OomKills {
    fn steps(&self) -> Vec<Step> {
        self.ground.steps()
    }

    fn attach(&mut self, rung: Rung, host: &Host, facts: &Facts) -> Result<(), Refusal> {
        let offsets = match rung {
            Rung::Tracepoint => Offsets { format: self.format, ..Offsets::ABSENT },
            _ => self.types,
        };
        let verify = |check: &Check<Record>, own: &Own| {
            check::compare(check, &check.record.task, &offsets.task, own)?;
            compare_memory(&check.record, &offsets, own)
        };
        let object = MARK_VICTIM.attach(rung, host, facts, &offsets, verify)?;
        self.standing = Some((rung, object));
        Ok(())
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.standing.as_ref().and_then(|(_, object)| object.fd())
    }

    fn drain(&mut self, host: &Host, out: &mut Vec<Event>) {
        let Some((rung, object)) = &mut self.standing else { return };
        let Some(source) = rung.source() else { return };
        object.drain(|read: &Record| {
            let mut event = record::event(host, source, read.monotonic_ns, &read.task, Detail::OomKill(detail(read)));
            if read.task.known & task_known::TGID == 0 && self.initial_pids {
                complete(&mut event, host);
            }
            out.push(event);
        });
    }

    fn counters(&self) -> Option<Counters> {
        self.standing.as_ref().and_then(|(_, object)| object.counters())
    }

    fn runs(&self) -> Option<Runs> {
        self.standing.as_ref().map(|(_, object)| object.runs())
    }
}

/// What the record says beyond its task, in bytes.
fn detail(read: &Record) -> OomKill {
    let has = |bit: u32| read.known & bit != 0;
    let kib = has(known::KIB);
    let unit = if kib { 1024 } else { os::page_size() };
    let bytes = |bit: u32, count: u64| has(bit).then(|| count.saturating_mul(unit));
    OomKill {
        oom_score_adj: has(known::ADJ).then_some(read.oom_score_adj),
        total_vm_bytes: bytes(known::TOTAL_VM, read.total_vm),
        anon_rss_bytes: bytes(known::ANON, read.anon),
        file_rss_bytes: bytes(known::FILE, read.file),
        shmem_rss_bytes: bytes(known::SHMEM, read.shmem),
        pgtables_bytes: has(known::PGTABLES).then(|| read.pgtables.saturating_mul(if kib { 1024 } else { 1 })),
        constraint: None,
        oom_memcg: None,
        trigger_pid: has(known::TRIGGER).then_some(read.trigger_tgid),
        trigger_comm: has(known::TRIGGER).then(|| record::name(&read.trigger_comm)),
    }
}

/// On the plain tracepoint the record has a thread id and no cgroup: /proc is asked at once, and believed only when the
/// thread still bears the name of the victim.
fn complete(event: &mut Event, host: &Host) {
    let Some(tid) = event.tid else { return };
    let process = Process::thread(host, tid);
    let comm = process.comm();
    if event.comm.is_some() && event.comm.as_deref().map(str::trim) != comm.as_deref() {
        return;
    }
    event.pid = process.status("Tgid");
    event.comm = event.comm.take().or(comm);
    event.uid = event.uid.or_else(|| process.status("Uid"));
    event.cgroup = process.memory_path().map(|found| found.path);
}

/// What the program must know of the running kernel's types.
fn offsets(btf: &Btf) -> Result<Offsets, Refusal> {
    layout::task_argument(btf, "mark_victim")?;
    let mut offsets = Offsets {
        task: layout::task(btf)?,
        signal: layout::offset(btf, "task_struct", "signal", 8)?,
        oom_score_adj: layout::offset(btf, "signal_struct", "oom_score_adj", 2)?,
        mm: layout::offset(btf, "task_struct", "mm", 8)?,
        total_vm: layout::offset(btf, "mm_struct", "total_vm", 8)?,
        pgtables_bytes: layout::offset_if_any(btf, "mm_struct", "pgtables_bytes", 8)?,
        ..Offsets::ABSENT
    };
    offsets.file_pages = counter(btf, "MM_FILEPAGES")?;
    offsets.anon_pages = counter(btf, "MM_ANONPAGES")?;
    offsets.shmem_pages = counter(btf, "MM_SHMEMPAGES")?;
    Ok(offsets)
}

/// Where a counter of resident pages lies: up to 6.1 in `struct mm_rss_stat` as one of an array of numbers, since 6.2
/// in an array of `struct percpu_counter`, whose `count` the kernel itself prints when it kills.
fn counter(btf: &Btf, enumerator: &str) -> Result<Offset, Refusal> {
    let index = btf.enumerator(enumerator).ok_or_else(|| layout::contradiction(format!("no {enumerator} in BTF")))?;
    if btf.member("mm_struct", "rss_stat.count").is_ok() {
        return layout::element(btf, "mm_struct", "rss_stat.count", index, 8);
    }
    let missing = || layout::contradiction("BTF: mm_struct.rss_stat: expected an array of percpu_counter".to_owned());
    let array = btf.member("mm_struct", "rss_stat").map_err(|error| layout::contradiction(error.to_string()))?;
    let element = btf.element(array.type_id).ok_or_else(missing)?;
    let count =
        btf.member_in(element, "count").filter(|count| btf.size(count.type_id) == Some(8)).ok_or_else(missing)?;
    let (size, whole) = (btf.size(element).ok_or_else(missing)?, btf.size(array.type_id).ok_or_else(missing)?);
    let start = index.checked_mul(size).filter(|&start| start < whole).ok_or_else(missing)?;
    layout::at("mm_struct", "rss_stat", array.offset.saturating_add(start).saturating_add(count.offset))
}

/// Where the fields of the plain tracepoint's record are.
fn fields(format: &super::tracefs::Format) -> Result<Format, Refusal> {
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
fn compare_memory(read: &Record, offsets: &Offsets, own: &Own) -> Result<(), Refusal> {
    let has = |bit: u32| read.known & bit != 0;
    for (name, offset, bit) in [
        ("signal.oom_score_adj", offsets.signal, known::ADJ),
        ("mm.total_vm", offsets.total_vm, known::TOTAL_VM),
        ("mm.rss_stat", offsets.anon_pages, known::ANON),
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

#[cfg(test)]
mod tests {
    use sysops_common::task::TaskOffsets;

    use super::super::btf::tests::kernel;
    use super::super::record::tests::task;
    use super::super::tracefs;
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
                .map(|counter_name| counter(&btf, counter_name).ok().and_then(bytes))
        };
        assert_eq!(found("5.10"), [Some(712), Some(720), Some(736)]);
        assert_eq!(found("6.1"), [Some(720), Some(728), Some(744)]);
        assert_eq!(found("6.12"), [Some(824), Some(864), Some(944)]);
        assert_eq!(found("6.18"), [Some(968), Some(1008), Some(1088)]);
    }

    #[test]
    fn a_kernel_that_hands_over_a_number_is_refused_with_the_reason() {
        let refused = offsets(&kernel("5.10")).expect_err("mark_victim(int pid)");
        assert!(refused.reason.contains("mark_victim hands over a number"), "{refused:?}");
        for name in ["6.1", "6.12", "6.18", "7.2"] {
            let found = offsets(&kernel(name)).unwrap_or_else(|refused| panic!("{name}: {refused:?}"));
            assert_ne!(found.task, TaskOffsets::ABSENT);
            assert!(
                [found.task.kn_parent, found.mm, found.anon_pages, found.pgtables_bytes]
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

    fn record(known: u32) -> Record {
        Record {
            monotonic_ns: 1,
            total_vm: 10,
            anon: 3,
            file: 2,
            shmem: 1,
            pgtables: 8192,
            oom_score_adj: -5,
            trigger_tgid: 9,
            trigger_comm: *b"asks\0\0\0\0\0\0\0\0\0\0\0\0",
            known,
            reserved: 0,
            task: task(b"b\0"),
        }
    }

    #[test]
    fn sizes_are_bytes_whatever_the_rung_counts_in() {
        let all =
            known::TOTAL_VM | known::ANON | known::FILE | known::SHMEM | known::PGTABLES | known::ADJ | known::TRIGGER;
        let pages = detail(&record(all));
        assert_eq!(pages.anon_rss_bytes, Some(3 * os::page_size()));
        assert_eq!((pages.pgtables_bytes, pages.oom_score_adj, pages.trigger_pid), (Some(8192), Some(-5), Some(9)));
        assert_eq!(pages.trigger_comm.as_deref(), Some("asks"));
        let kib = detail(&record(all | known::KIB));
        assert_eq!((kib.total_vm_bytes, kib.pgtables_bytes), (Some(10 * 1024), Some(8192 * 1024)));
        assert_eq!(detail(&record(0)), OomKill::default());
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
