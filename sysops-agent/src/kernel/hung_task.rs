//! Tasks that khungtaskd finds in uninterruptible sleep for too long: who, for how long, and where in the kernel. It
//! tells each hang once, though the kernel reports it again and again.

use std::collections::VecDeque;
use std::os::fd::BorrowedFd;

use sysops_common::check::Check;
use sysops_common::counters::Counters;
use sysops_common::hung_task::{Offsets, Record, known};
use sysops_common::offset::Offset;
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
use crate::host::Host;
use crate::model::event::{Detail, Event, HungTask};
use crate::spec::{Key, Values};

/// The probe in the list.
pub(super) static ENTRY: Entry =
    Entry { name: "hung_task", metrics: &[], keys: &[RUNG.spec()], rung: &RUNG, new: |h, f, v| Box::new(new(h, f, v)) };

static RUNG: Key<String> = Key::choice(
    "kernel.hung_task.rung",
    WORDS,
    "auto",
    "How hung tasks are seen. `auto` takes the best rung that stands; one that is named here and cannot stand is an error.",
);

const HANG: Tracepoint = Tracepoint { object: "hung_task", group: "sched", name: "sched_process_hang" };

/// Hangs that are remembered as told. More at once than that and the oldest may be told again.
const TOLD_MAX: usize = 1024;

struct HungTasks {
    ground: Ground,
    types: Offsets,
    format_pid: Offset,
    initial_pids: bool,
    told: Told,
    standing: Option<(Rung, Object)>,
}

fn new(host: &Host, facts: &Facts, _values: &Values) -> HungTasks {
    let types = facts.btf.as_ref().map_err(Clone::clone).and_then(offsets);
    let format = facts.format(host, "sched/sched_process_hang").and_then(|format| {
        format
            .offset("pid", 4)
            .and_then(Offset::at)
            .ok_or_else(|| Refusal::new("tracefs: sched/sched_process_hang: expected a field pid of 4 bytes", ""))
    });
    HungTasks {
        ground: Ground {
            object: loader::embedded("hung_task").map(drop),
            privilege: facts.privilege.clone(),
            types: types.as_ref().map(drop).map_err(Clone::clone),
            format: format.as_ref().map(drop).map_err(Clone::clone),
            log: Some(facts.log.clone()),
        },
        types: Offsets { check_name: facts.check_name, ..types.unwrap_or(Offsets::ABSENT) },
        format_pid: format.unwrap_or(Offset::ABSENT),
        initial_pids: facts.initial_pids,
        told: Told::default(),
        standing: None,
    }
}

impl Probe for HungTasks {
    fn steps(&self) -> Vec<Step> {
        self.ground.steps()
    }

    fn attach(&mut self, rung: Rung, host: &Host, facts: &Facts) -> Result<(), Refusal> {
        let offsets = match rung {
            Rung::Tracepoint => Offsets { format_pid: self.format_pid, ..Offsets::ABSENT },
            _ => self.types,
        };
        let verify = |check: &Check<Record>, own: &Own| {
            check::compare(check, &check.record.task, &offsets.task, own)?;
            compare_jiffies(&check.record)
        };
        let object = HANG.attach(rung, host, facts, &offsets, verify)?;
        self.standing = Some((rung, object));
        Ok(())
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.standing.as_ref().and_then(|(_, object)| object.fd())
    }

    fn drain(&mut self, host: &Host, out: &mut Vec<Event>) {
        let Some((rung, object)) = &mut self.standing else { return };
        let Some(source) = rung.source() else { return };
        let (told, initial_pids) = (&mut self.told, self.initial_pids);
        object.drain(|read: &Record| {
            let process = initial_pids.then(|| Process::thread(host, read.task.tid));
            if !told.first_time(key(read, process.as_ref())) {
                return;
            }
            let detail = HungTask { blocked_seconds: blocked_seconds(read, host), ..HungTask::default() };
            let mut event = record::event(host, source, read.monotonic_ns, &read.task, Detail::HungTask(detail));
            if let Some(process) = process {
                complete(&mut event, &process);
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

/// Adds what /proc tells of a task that is going nowhere, and on the plain tracepoint also who it is.
fn complete(event: &mut Event, process: &Process<'_>) {
    let (wchan, kernel_stack) = (process.wchan(), process.kernel_stack());
    if let Detail::HungTask(detail) = &mut event.detail {
        detail.wchan = wchan;
        detail.kernel_stack = kernel_stack;
    }
    event.pid = event.pid.or_else(|| process.status("Tgid"));
    event.uid = event.uid.or_else(|| process.status("Uid"));
    if event.comm.is_none() {
        event.comm = process.comm();
    }
    if event.cgroup.is_none() {
        event.cgroup = process.memory_path().map(|found| found.path);
    }
}

/// One hang of one thread: the same thread has another count when it hangs again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Hang {
    tid: u32,
    start: Option<u64>,
    switches: Option<u64>,
}

fn key(read: &Record, process: Option<&Process<'_>>) -> Hang {
    let start = (read.task.known & task_known::START != 0).then_some(read.task.start_boottime_ns);
    let switches = (read.known & known::SWITCH_COUNT != 0).then_some(read.last_switch_count);
    Hang {
        tid: read.task.tid,
        start: start.or_else(|| process.and_then(Process::start_ticks)),
        switches: switches.or_else(|| process.and_then(Process::switches)),
    }
}

/// The hangs that were told, the newest last.
#[derive(Debug, Default)]
struct Told(VecDeque<Hang>);

impl Told {
    fn first_time(&mut self, hang: Hang) -> bool {
        let known = self.0.iter().position(|told| *told == hang);
        if let Some(place) = known {
            self.0.remove(place);
        } else if self.0.len() >= TOLD_MAX {
            self.0.pop_front();
        }
        self.0.push_back(hang);
        known.is_none()
    }
}

/// Whole seconds since the kernel saw the task run; else what the kernel's own timeout says: at least that.
fn blocked_seconds(read: &Record, host: &Host) -> Option<u64> {
    let since = |jiffies_per_second: u64| {
        read.jiffies.checked_sub(read.last_switch_time).map(|jiffies| jiffies / jiffies_per_second)
    };
    let by_jiffies = (read.known & known::SWITCH_TIME != 0).then(|| jiffies_per_second(read)).flatten().and_then(since);
    by_jiffies.or_else(|| {
        let path = host.files.proc("sys/kernel/hung_task_timeout_secs");
        host.files.read_text(&path).ok()?.parse().ok()
    })
}

/// CONFIG_HZ of the running kernel, which tells it to no one: jiffies begin five minutes before 2^32 at boot
/// (INITIAL_JIFFIES), so one look at both clocks singles out one of the rates that can be configured. `None` when it
/// does not, as in the fifth minute after boot, or when the kernel counts otherwise.
fn jiffies_per_second(read: &Record) -> Option<u64> {
    const RATES: [i128; 5] = [100, 250, 300, 1000, 1024];
    let (jiffies, ns) = (i128::from(read.jiffies), i128::from(read.monotonic_ns));
    let error = |rate: i128| (jiffies - ((1_i128 << 32) - 300 * rate) - ns * rate / 1_000_000_000).abs();
    let mut ranked = RATES.map(|rate| (error(rate), rate));
    ranked.sort_unstable();
    let [(best, rate), (second, _), ..] = ranked;
    // The clocks do not start at the same instant: up to two seconds apart are the same.
    (best <= 2 * rate && best.saturating_mul(4) < second).then(|| u64::try_from(rate).ok()).flatten()
}

/// A task that runs was seen to run before now.
fn compare_jiffies(read: &Record) -> Result<(), Refusal> {
    if read.known & known::SWITCH_TIME != 0 && read.last_switch_time > read.jiffies {
        return check::equal("last_switch_time", read.last_switch_time, read.jiffies);
    }
    Ok(())
}

/// What the program must know of the running kernel's types.
fn offsets(btf: &Btf) -> Result<Offsets, Refusal> {
    layout::task_argument(btf, "sched_process_hang")?;
    Ok(Offsets {
        task: layout::task(btf)?,
        last_switch_time: layout::offset_if_any(btf, "task_struct", "last_switch_time", 8)?,
        last_switch_count: layout::offset_if_any(btf, "task_struct", "last_switch_count", 8)?,
        ..Offsets::ABSENT
    })
}

#[cfg(test)]
mod tests {
    use super::super::btf::tests::KERNELS;
    use super::super::record::tests::task;
    use super::*;

    /// A report `seconds` after boot by a kernel that counts `rate` jiffies a second, `blocked` jiffies after the last run.
    fn report(rate: u64, seconds: u64, blocked: u64) -> Record {
        let jiffies = (1 << 32) - 300 * rate + seconds * rate;
        Record {
            monotonic_ns: seconds * 1_000_000_000 + 400_000_000,
            jiffies,
            last_switch_time: jiffies - blocked,
            last_switch_count: 7,
            known: known::SWITCH_TIME | known::SWITCH_COUNT,
            reserved: 0,
            task: task(b"a\0"),
        }
    }

    #[test]
    fn the_rate_of_jiffies_is_told_by_both_clocks() {
        for rate in [100, 250, 300, 1000] {
            for seconds in [10, 4000, 400 * 86400] {
                assert_eq!(jiffies_per_second(&report(rate, seconds, 0)), Some(rate), "{rate} at {seconds} s");
            }
        }
        assert_eq!(jiffies_per_second(&report(250, 300, 0)), None, "all rates meet five minutes after boot");
        assert_eq!(jiffies_per_second(&report(427, 4000, 0)), None, "no rate that can be configured");
    }

    #[test]
    fn the_time_blocked_is_known_or_that_of_the_kernels_timeout() {
        let host = Host::fixture(std::path::Path::new("/nonexistent"));
        assert_eq!(blocked_seconds(&report(250, 4000, 125 * 250), &host), Some(125));
        let unknown = Record { known: 0, ..report(250, 4000, 125 * 250) };
        assert_eq!(blocked_seconds(&unknown, &host), None);
        assert!(blocked_seconds(&unknown, &Host::fixture(std::path::Path::new("/"))).is_some());
    }

    #[test]
    fn one_hang_is_told_once_and_the_next_again() {
        let mut told = Told::default();
        let first = key(&report(250, 4000, 0), None);
        assert!(told.first_time(first));
        assert!(!told.first_time(first));
        assert!(told.first_time(key(&Record { last_switch_count: 8, ..report(250, 4000, 0) }, None)));
        assert!(!told.first_time(first));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut told = Told::default();
        for tid in 0..10_000 {
            told.first_time(Hang { tid, start: None, switches: None });
        }
        assert_eq!(told.0.len(), TOLD_MAX);
    }

    #[test]
    fn a_time_that_has_not_come_is_a_contradiction() {
        let read = report(250, 4000, 5);
        assert_eq!(compare_jiffies(&read), Ok(()));
        assert!(compare_jiffies(&Record { last_switch_time: read.jiffies + 1, ..read }).is_err());
    }

    #[test]
    fn every_kernel_has_what_the_program_needs() {
        for (name, data) in KERNELS {
            let found = Btf::parse(data.to_vec()).map_err(|error| error.to_string());
            let found = found.and_then(|btf| offsets(&btf).map_err(|refused| refused.reason));
            let found = found.unwrap_or_else(|reason| panic!("{name}: {reason}"));
            assert!(found.last_switch_time.bytes().is_some() && found.task.css_set_memory.bytes().is_some(), "{name}");
        }
    }
}
