//! OOM kills as the kernel marks their victims: who, how large, in which cgroup, and who asked for the memory. The
//! constraint and the cgroup whose limit was reached are told by the kernel's log alone and joined in `correlate`.

mod incident;
mod types;

use std::os::fd::BorrowedFd;
use std::time::Duration;

use sysops_common::check::Check;
use sysops_common::counters::Counters;
use sysops_common::oom_kill::{Format, Offsets, Record, SignalFormat, known};
use sysops_common::task::known as task_known;

use self::incident::Incidents;
use super::attach::{Point, Tracepoint};
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
/// The kernel's own SIGKILL right before the mark is what makes it a kill.
const SIGNAL: &str = "signal_generate";

struct OomKills {
    ground: Ground,
    types: Offsets,
    format: Format,
    signal_format: SignalFormat,
    initial_pids: bool,
    extras: Extras,
    incidents: Incidents,
    standing: Option<(Rung, Object)>,
}

/// What the probe can do without, and whether it stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Extras {
    /// Signals are followed, so that kills are told apart from mere marks.
    signals: bool,
    /// Limits of memory cgroups are read.
    limit: bool,
}

fn new(host: &Host, facts: &Facts, _values: &Values) -> OomKills {
    let types = facts.btf.as_ref().map_err(Clone::clone).and_then(types::offsets);
    let format = facts.format(host, "oom/mark_victim").and_then(|format| types::fields(&format));
    let signal_format = facts.format(host, "signal/signal_generate").map(|format| types::signal_fields(&format));
    let mut extras = Extras { signals: true, limit: true };
    let ground = Ground {
        object: loader::embedded("oom_kill").map(drop),
        privilege: facts.privilege.clone(),
        types: types.as_ref().map(drop).map_err(Clone::clone),
        format: format.as_ref().map(drop).map_err(Clone::clone),
        log: Some(facts.log.clone()),
    };
    let mut types = Offsets { check_name: facts.check_name, ..types.unwrap_or(Offsets::ABSENT) };
    if let (Ok(btf), true) = (&facts.btf, ground.types.is_ok()) {
        extras.limit = without("limit_bytes", &types::add_limit(btf, &mut types));
        extras.signals = without("already_exiting", &layout::signal_arguments(btf));
    }
    OomKills {
        ground,
        types,
        format: format.unwrap_or(Format::ABSENT),
        signal_format: signal_format.unwrap_or(SignalFormat::ABSENT),
        initial_pids: facts.initial_pids,
        extras,
        incidents: Incidents::of(host),
        standing: None,
    }
}

/// True when an extra stands; else says why the key is absent.
fn without(key: &str, stands: &Result<(), Refusal>) -> bool {
    if let Err(refusal) = stands {
        tracing::warn!("probe oom_kill: without {key}: {}", refusal.reason);
    }
    stands.is_ok()
}

impl Probe for OomKills {
    fn steps(&self) -> Vec<Step> {
        self.ground.steps()
    }

    fn attach(&mut self, rung: Rung, host: &Host, facts: &Facts) -> Result<(), Refusal> {
        let offsets = match rung {
            Rung::Tracepoint => Offsets { format: self.format, signal_format: self.signal_format, ..Offsets::ABSENT },
            _ => self.types,
        };
        let mut extras = self.extras;
        extras.limit &= rung != Rung::Tracepoint;
        let mut signals = extras.signals;
        let verify = |check: &Check<Record>, own: &Own| {
            check::compare(check, &check.record.task, &offsets.task, own)?;
            types::compare_memory(&check.record, &offsets, own)?;
            if extras.limit {
                extras.limit = without("limit_bytes", &types::compare_limit(&check.record, host, own));
            }
            Ok(())
        };
        let follow_signals = |object: &mut Object| {
            let attached = follow(object, rung, facts);
            if offsets.victim_is_number == 0 {
                signals &= without("already_exiting", &attached);
                return Ok(());
            }
            attached
        };
        let object = MARK_VICTIM.attach_behind(rung, host, facts, &offsets, verify, follow_signals)?;
        self.extras = Extras { signals, ..extras };
        self.standing = Some((rung, object));
        Ok(())
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.standing.as_ref().and_then(|(_, object)| object.fd())
    }

    fn drain(&mut self, host: &Host, out: &mut Vec<Event>) {
        let Some((rung, object)) = &mut self.standing else { return };
        let Some(source) = rung.source() else { return };
        let (extras, incidents, initial_pids) = (self.extras, &mut self.incidents, self.initial_pids);
        object.drain(|read: &Record| {
            let exiting = extras.signals && read.signalled == 0;
            let incident = incidents.name(read, exiting);
            if !incidents.first_time(read, exiting) {
                return;
            }
            let mut kill = OomKill { incident: Some(incident), ..detail(read, extras) };
            let leader = (read.known & known::LEADER != 0).then(|| record::name(&read.leader_comm));
            let thread = record::name(&read.task.comm);
            kill.thread_comm = leader.as_ref().filter(|leader| **leader != thread).map(|_| thread);
            let mut event = record::event(host, source, read.monotonic_ns, &read.task, Detail::OomKill(kill));
            event.comm = leader.or(event.comm);
            if let (Detail::OomKill(kill), true) = (&mut event.detail, read.known & known::SAME_PATH != 0) {
                kill.trigger_cgroup.clone_from(&event.cgroup);
            }
            if read.task.known & task_known::TGID == 0 && initial_pids {
                complete(&mut event, host);
            }
            out.push(event);
        });
    }

    fn stands_by(&self) -> Option<&'static str> {
        let (rung, _) = self.standing.as_ref()?;
        // The plain record has no limit, and its fields are told in the documentation.
        match (self.extras.signals, self.extras.limit || *rung == Rung::Tracepoint) {
            (true, true) => None,
            (false, true) => Some("already_exiting is not told: the kernel's own signals cannot be followed"),
            (true, false) => Some("limit_bytes is not told: the limits of memory cgroups are not where BTF says"),
            (false, false) => Some("already_exiting and limit_bytes are not told: the agent's log says why"),
        }
    }

    fn counters(&self) -> Option<Counters> {
        self.standing.as_ref().and_then(|(_, object)| object.counters())
    }

    fn runs(&self) -> Option<Runs> {
        self.standing.as_ref().map(|(_, object)| object.runs())
    }
}

/// Attaches the program that follows the kernel's own signals.
fn follow(object: &mut Object, rung: Rung, facts: &Facts) -> Result<(), Refusal> {
    let (program, point) = match rung {
        Rung::TpBtf => {
            let id = facts.btf.as_ref().ok().and_then(|btf| btf.tracepoint(SIGNAL));
            let id = id.ok_or_else(|| Refusal::new(format!("no tracepoint {SIGNAL} in BTF"), ""))?;
            ("signal_tp_btf", Point::Typed(SIGNAL, id))
        }
        Rung::RawTracepoint => ("signal_raw_tracepoint", Point::Raw(SIGNAL)),
        _ => ("signal_tracepoint", Point::Plain("signal", SIGNAL)),
    };
    object.attach(program, point)
}

/// What the record says beyond its task, in bytes.
fn detail(read: &Record, extras: Extras) -> OomKill {
    let has = |bit: u32| read.known & bit != 0;
    let kib = has(known::KIB);
    let unit = if kib { 1024 } else { os::page_size() };
    let bytes = |bit: u32, count: u64| has(bit).then(|| count.saturating_mul(unit));
    let limit = (extras.limit && has(known::LIMIT)).then(|| read.limit.saturating_mul(os::page_size()));
    OomKill {
        oom_score_adj: has(known::ADJ).then_some(read.oom_score_adj),
        total_vm_bytes: bytes(known::TOTAL_VM, read.total_vm),
        anon_rss_bytes: bytes(known::ANON, read.anon),
        file_rss_bytes: bytes(known::FILE, read.file),
        shmem_rss_bytes: bytes(known::SHMEM, read.shmem),
        pgtables_bytes: has(known::PGTABLES).then(|| read.pgtables.saturating_mul(if kib { 1024 } else { 1 })),
        trigger_pid: has(known::TRIGGER).then_some(read.trigger_tgid),
        trigger_comm: has(known::TRIGGER).then(|| record::name(&read.trigger_comm)),
        trigger_cgroup: has(known::TRIGGER_PATH)
            .then(|| record::names(&read.trigger_path, read.trigger_path_len))
            .flatten(),
        already_exiting: extras.signals.then_some(read.signalled == 0),
        limit_bytes: limit.filter(|bytes| *bytes < types::no_limit_bytes()),
        ..OomKill::default()
    }
}

/// On the plain tracepoint the record has a thread id and no cgroup: /proc is asked at once, and believed only when the
/// thread still bears the name of the victim and was there before it was marked.
fn complete(event: &mut Event, host: &Host) {
    let Some(tid) = event.tid else { return };
    let process = Process::thread(host, tid);
    let comm = process.comm();
    if event.comm.is_some() && event.comm.as_deref().map(str::trim) != comm.as_deref() {
        return;
    }
    if !process.was_there_at(Duration::from_nanos(event.monotonic_ns)) {
        return;
    }
    event.pid = process.status("Tgid");
    event.comm = event.comm.take().or(comm);
    event.uid = event.uid.or_else(|| process.status("Uid"));
    event.cgroup = process.memory_path().map(|found| found.path);
}

#[cfg(test)]
mod tests {
    use super::super::record::tests::task;
    use super::*;
    use sysops_common::oom_kill::STACK_DEPTH;
    use sysops_common::task::{NAME_LEN, PATH_LEN};

    pub(super) fn record(known: u32) -> Record {
        let mut trigger_path = [0xff; PATH_LEN + NAME_LEN];
        trigger_path[..4].copy_from_slice(b"c\0a\0");
        Record {
            monotonic_ns: 1,
            total_vm: 10,
            anon: 3,
            file: 2,
            shmem: 1,
            pgtables: 8192,
            limit: 4,
            stack: [0; STACK_DEPTH],
            oom_score_adj: -5,
            trigger_tgid: 9,
            trigger_tid: 9,
            signalled: 1,
            trigger_comm: *b"asks\0\0\0\0\0\0\0\0\0\0\0\0",
            leader_comm: [0; 16],
            known,
            trigger_path_len: 4,
            trigger_path,
            task: task(b"b\0"),
        }
    }

    const ALL: Extras = Extras { signals: true, limit: true };

    #[test]
    fn sizes_are_bytes_whatever_the_rung_counts_in() {
        let all =
            known::TOTAL_VM | known::ANON | known::FILE | known::SHMEM | known::PGTABLES | known::ADJ | known::TRIGGER;
        let pages = detail(&record(all), ALL);
        assert_eq!(pages.anon_rss_bytes, Some(3 * os::page_size()));
        assert_eq!((pages.pgtables_bytes, pages.oom_score_adj, pages.trigger_pid), (Some(8192), Some(-5), Some(9)));
        assert_eq!(pages.trigger_comm.as_deref(), Some("asks"));
        let kib = detail(&record(all | known::KIB), ALL);
        assert_eq!((kib.total_vm_bytes, kib.pgtables_bytes), (Some(10 * 1024), Some(8192 * 1024)));
        assert_eq!(detail(&record(0), Extras::default()), OomKill::default());
    }

    #[test]
    fn extras_are_told_only_where_they_stand_and_no_limit_is_none() {
        let read = record(known::LIMIT | known::TRIGGER_PATH);
        let kill = detail(&read, ALL);
        assert_eq!((kill.limit_bytes, kill.already_exiting), (Some(4 * os::page_size()), Some(false)));
        assert_eq!(kill.trigger_cgroup.as_deref(), Some("/a/c"));
        let kill = detail(&Record { signalled: 0, limit: i64::MAX as u64 / os::page_size(), ..read }, ALL);
        assert_eq!((kill.limit_bytes, kill.already_exiting), (None, Some(true)));
        let kill = detail(&read, Extras::default());
        assert_eq!((kill.limit_bytes, kill.already_exiting), (None, None));
    }

    /// The number of the victim is used again, by a process of the same name that started after the kill.
    #[test]
    fn a_process_that_came_later_is_not_taken_for_the_victim() {
        let dir = tempfile::tempdir().expect("a directory");
        let write = |name: &str, text: &str| std::fs::write(dir.path().join("proc/42").join(name), text).expect("ours");
        std::fs::create_dir_all(dir.path().join("proc/42")).expect("ours");
        write("comm", "java\n");
        write("status", "Name:\tjava\nTgid:\t42\nUid:\t5\t5\t5\t5\n");
        write("cgroup", "0::/other\n");
        let host = Host::fixture(dir.path());
        let now = host.clock.now();
        let mut read = record(0);
        (read.task.known, read.task.tid) = (task_known::TID | task_known::COMM, 42);
        let killed_at = now.boottime.saturating_sub(Duration::from_secs(10));
        let at = u64::try_from(now.monotonic.saturating_sub(Duration::from_secs(10)).as_nanos()).expect("small");
        let told = |start: Duration| {
            let ticks = start.as_secs_f64() * os::ticks_per_second() as f64;
            write("stat", &format!("42 (java) R{} {} 0", " 1".repeat(18), ticks as u64));
            let mut event = record::event(
                &host,
                crate::model::Source::Tracepoint,
                at,
                &read.task,
                Detail::OomKill(OomKill::default()),
            );
            complete(&mut event, &host);
            (event.pid, event.cgroup)
        };
        assert_eq!(told(killed_at.saturating_sub(Duration::from_secs(1))), (Some(42), Some("/other".into())));
        assert_eq!(told(killed_at + Duration::from_secs(1)), (None, None));
        assert_eq!(told(killed_at), (None, None), "it may have started in that very tick");
    }
}
