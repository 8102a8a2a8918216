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

/// How far the memory of the agent may move between a look into /proc and the check: 8 MiB in pages of 4 KiB.
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
        let memory = OwnMemory::read(host);
        let verify = |check: &Check<Record>, own: &Own| {
            check::compare(check, &check.record.task, &offsets.task, own)?;
            compare_memory(&check.record, &offsets, &memory)
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

/// What /proc says about the agent's own memory.
#[derive(Debug, Default)]
struct OwnMemory {
    oom_score_adj: Option<i64>,
    /// Size, resident, of which file and shared pages.
    pages: Option<[u64; 3]>,
}

impl OwnMemory {
    fn read(host: &Host) -> Self {
        let text = |name: &str| host.files.read_text(&host.files.proc(name)).ok();
        Self {
            oom_score_adj: text("self/oom_score_adj").and_then(|text| text.parse().ok()),
            pages: text("self/statm").and_then(|text| {
                let mut numbers = text.split_whitespace().map(str::parse);
                Some([numbers.next()?.ok()?, numbers.next()?.ok()?, numbers.next()?.ok()?])
            }),
        }
    }
}

/// Holds the memory that the program read about the agent against /proc/self.
fn compare_memory(read: &Record, offsets: &Offsets, own: &OwnMemory) -> Result<(), Refusal> {
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
        check::equal("signal.oom_score_adj", i64::from(read.oom_score_adj), truth)?;
    }
    if let (Some([size, resident, shared]), true) = (own.pages, has(known::TOTAL_VM)) {
        check::near("mm.total_vm in pages", read.total_vm, size, SLACK_PAGES)?;
        check::near("mm.rss_stat of file and shmem", read.file.saturating_add(read.shmem), shared, SLACK_PAGES)?;
        check::near("mm.rss_stat of anon", read.anon, resident.saturating_sub(shared), SLACK_PAGES)?;
    }
    Ok(())
}
