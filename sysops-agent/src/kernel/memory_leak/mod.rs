//! Anonymous memory that chosen processes take and do not give back, by the stack that touched it first: page faults
//! that write are seen by the programs, what is still held by /proc/<pid>/pagemap. An allocator that hands out memory
//! again which it kept makes no fault, so this tells who makes the process grow, and not each allocation.

mod account;
mod allocator;
mod armed;
mod growth;
mod held;
mod target;

use std::os::fd::BorrowedFd;

use sysops_btf::Btf;
use sysops_common::counters::Counters;
use sysops_common::memory_leak::{Offsets, WATCHED_MAX};
use sysops_common::offset::Offset;

use self::armed::Armed;
use self::growth::Growth;
use super::attach::Point;
use super::facts::Facts;
use super::ladder::{Refusal, Step, WORDS};
use super::loader::{self, Object};
use super::run_stats::Runs;
use super::watched::Watched;
use super::{Entry, Observation, Probe, Rung, layout, stacks, tracefs};
use crate::host::Host;
use crate::model::{Batch, Desc, Event, LeakReport, Metric, Resource, Unit};
use crate::spec::{Key, Values};

/// The probe in the list.
pub(super) static ENTRY: Entry = Entry {
    name: "memory_leak",
    metrics: METRICS,
    keys: &[RUNG.spec(), WATCH.spec()],
    rung: &RUNG,
    new: |host, facts, values| Box::new(new(host, facts, values)),
};

static RUNG: Key<String> = Key::choice(
    "kernel.memory_leak.rung",
    WORDS,
    "auto",
    "How the growth of a process's anonymous memory is seen. `auto` takes the best rung that stands; one that is named here \
     and cannot stand is an error.",
);
static WATCH: Key<Vec<String>> = Key::list(
    "kernel.memory_leak.watch",
    &[],
    "Names of the processes whose anonymous memory is attributed to stacks, as in /proc/<pid>/comm; at most 16 are watched. \
     While any is, every page fault of the machine passes a program that asks whose it is. While the list is empty, or names \
     nothing that runs, nothing is attached.",
);

static HELD: Metric<2> = Metric::gauge(
    "process_anon_bytes",
    Unit::Bytes,
    "Anonymous memory of a watched process, in memory and in swap.",
    &["pid", "comm"],
);
static ATTRIBUTED: Metric<2> = Metric::gauge(
    "process_anon_attributed_bytes",
    Unit::Bytes,
    "The part of it that is attributed to stacks: what was touched since the process is watched.",
    &["pid", "comm"],
);
static LEFT_OUT: Metric<0> = Metric::gauge(
    "process_anon_unwatched",
    Unit::Count,
    "Processes that bear a name of kernel.memory_leak.watch and are not watched, as 16 others are.",
    &[],
);
static METRICS: &[&Desc] = &[HELD.desc(), ATTRIBUTED.desc(), LEFT_OUT.desc()];

/// The tracepoints: faults in user mode, and those in the kernel when a system call writes to the program's memory.
const FAULTS: [&str; 2] = ["page_fault_user", "page_fault_kernel"];
const GROUP: &str = "exceptions";
/// Said first of a process that has ended.
const ENDED: &str = "it ended while it was watched: this is what it held shortly before";

struct MemoryLeaks {
    steps: Vec<Step>,
    types: Offsets,
    formats: Offsets,
    faults: [Option<u32>; 2],
    watched: Watched,
    /// Who is watched is told by an observation, and not by the configuration.
    is_observed: bool,
    /// Finds whom to watch in an observation that names no process.
    growth: Option<Growth>,
    /// The process whose allocator is followed instead of its page faults.
    allocator_of: Option<u32>,
    standing: Option<Standing>,
    contradiction: Option<Refusal>,
    /// The newest reports of an observation, for those that end while it lasts.
    last: Vec<LeakReport>,
}

struct Standing {
    rung: Rung,
    /// There only while there is something to watch.
    armed: Option<Armed>,
}

fn new(host: &Host, facts: &Facts, values: &Values) -> MemoryLeaks {
    let types = facts.btf.as_ref().map_err(Clone::clone).and_then(offsets);
    let stack = facts.btf.as_ref().map_err(Clone::clone).and_then(stacks::offsets);
    let formats = facts.format(host, "exceptions/page_fault_user").and_then(|format| fields(&format));
    let ground = |found: Result<(), Refusal>| {
        let pids = if facts.initial_pids { Ok(()) } else { Err(super::other_pids()) };
        let stack = stack.as_ref().map(drop).map_err(Clone::clone);
        loader::embedded("memory_leak").map(drop).and(facts.privilege.clone()).and(pids).and(found).and(stack)
    };
    let typed = ground(types.as_ref().map(drop).map_err(Clone::clone));
    let traced = ground(formats.as_ref().map(drop).map_err(Clone::clone));
    let steps = vec![
        Step { rung: Rung::TpBtf, stands: typed.clone() },
        Step { rung: Rung::RawTracepoint, stands: typed },
        Step { rung: Rung::Tracepoint, stands: traced },
    ];
    let balancing = host.files.read_text(&host.files.proc("sys/kernel/numa_balancing"));
    let known = Offsets {
        stack: stack.unwrap_or(sysops_common::stack::StackOffsets::ABSENT),
        page_shift: u16::try_from(held::page_shift()).unwrap_or(12),
        // Without the file the kernel has no NUMA balancing.
        absent_is_free: u16::from(!balancing.is_ok_and(|mode| mode != "0")),
        ..Offsets::ABSENT
    };
    let format = formats.unwrap_or(Offsets::ABSENT);
    let id = |name: &str| facts.btf.as_ref().ok().and_then(|btf| btf.tracepoint(name));
    MemoryLeaks {
        steps,
        types: known,
        formats: Offsets { format_address: format.format_address, format_error: format.format_error, ..known },
        faults: FAULTS.map(id),
        watched: Watched::new(host, &values.get(&WATCH), WATCHED_MAX),
        is_observed: false,
        growth: None,
        allocator_of: None,
        standing: None,
        contradiction: None,
        last: Vec::new(),
    }
}

impl Probe for MemoryLeaks {
    fn steps(&self) -> Vec<Step> {
        self.steps.clone()
    }

    fn observe(&mut self, observation: &Observation) -> bool {
        let is_meant = observation.resources.contains(&Resource::Memory);
        if !is_meant {
            return false;
        }
        if observation.malloc {
            let ground = self.steps.iter().map(|step| step.stands.clone()).find(Result::is_ok);
            let refused = || self.steps.first().map_or(Ok(()), |step| step.stands.clone());
            self.allocator_of = if let [pid] = observation.pids.as_slice() { Some(*pid) } else { None };
            self.steps = vec![Step { rung: Rung::Uprobe, stands: ground.unwrap_or_else(refused) }];
        }
        self.is_observed = true;
        self.watched.forget_names();
        for pid in &observation.pids {
            self.watched.want(*pid);
        }
        self.growth = observation.pids.is_empty().then(|| Growth::new(observation.length));
        true
    }

    fn attach(&mut self, rung: Rung, host: &Host, _facts: &Facts) -> Result<(), Refusal> {
        if rung == Rung::Uprobe {
            let missing = || Refusal::new("an allocator is followed in one process", "name it: --pid");
            let armed = Armed::at_allocator(self.load(rung)?, host, self.allocator_of.ok_or_else(missing)?)?;
            self.standing = Some(Standing { rung, armed: Some(armed) });
            return Ok(());
        }
        if self.is_idle() {
            let mut object = self.load(rung)?;
            for index in 0..FAULTS.len() {
                let (program, point) = self.program(rung, index)?;
                object.verify(program, point)?;
            }
            self.standing = Some(Standing { rung, armed: None });
            return Ok(());
        }
        let mut armed = self.arm(rung)?;
        armed.self_check(host)?;
        self.standing = Some(Standing { rung, armed: Some(armed) });
        self.refresh(host)
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.standing.as_ref()?.armed.as_ref()?.fd())
    }

    fn drain(&mut self, host: &Host, _out: &mut Vec<Event>) {
        if let Some(Standing { armed: Some(armed), .. }) = &mut self.standing {
            armed.drain(host);
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "bytes below 2^53 are exact")]
    fn collect(&mut self, host: &Host, out: &mut Batch) {
        if self.is_idle() {
            return;
        }
        if let Err(refusal) = self.refresh(host) {
            self.contradiction = Some(refusal);
            return;
        }
        out.gauge(&LEFT_OUT, [], f64::from(self.watched.left_out()));
        let mut reports = Vec::new();
        self.leaks(host, &mut reports);
        for report in &reports {
            let labels = [report.pid.to_string(), report.comm.clone()];
            let labels = [labels[0].as_str(), labels[1].as_str()];
            out.gauge(&HELD, labels, report.open as f64);
            out.gauge(&ATTRIBUTED, labels, report.attributed as f64);
        }
    }

    fn leaks(&mut self, host: &Host, out: &mut Vec<LeakReport>) {
        self.attach_anew(host);
        let mut reports = Vec::new();
        if let Some(Standing { rung, armed: Some(armed) }) = &mut self.standing {
            armed.reports(host, rung.word(), &mut reports);
        }
        if self.is_observed {
            for mut last in std::mem::take(&mut self.last) {
                if !reports.iter().any(|report| report.pid == last.pid) {
                    if !last.unattributed.starts_with(ENDED) {
                        last.unattributed = [ENDED, last.unattributed.as_str()].join("; ");
                    }
                    reports.push(last);
                }
            }
            self.last.clone_from(&reports);
        }
        out.append(&mut reports);
    }

    fn contradiction(&mut self) -> Option<Refusal> {
        let refusal = self.contradiction.take()?;
        self.standing = None;
        Some(refusal)
    }

    fn stands_by(&self) -> Option<&'static str> {
        self.is_idle().then_some("stands by: kernel.memory_leak.watch is empty")
    }

    fn counters(&self) -> Option<Counters> {
        self.standing.as_ref()?.armed.as_ref()?.counters()
    }

    fn runs(&self) -> Option<Runs> {
        Some(self.standing.as_ref()?.armed.as_ref()?.runs())
    }
}

impl MemoryLeaks {
    fn is_idle(&self) -> bool {
        !self.is_observed && self.watched.has_no_names()
    }

    fn load(&self, rung: Rung) -> Result<Object, Refusal> {
        let offsets = if rung == Rung::Tracepoint { &self.formats } else { &self.types };
        // These are for the programs at the functions of an allocator alone.
        let unused: &[_] = if rung == Rung::Uprobe { &[] } else { &[("PIECES", 1), ("CALLS", 1)] };
        Object::load_sized("memory_leak", offsets, unused)
    }

    fn program(&self, rung: Rung, fault: usize) -> Result<(&'static str, Point<'static>), Refusal> {
        let name = FAULTS[fault];
        let missing = || Refusal::new(format!("no tracepoint {name} in BTF"), "");
        match rung {
            Rung::TpBtf => Ok((
                ["user_tp_btf", "kernel_tp_btf"][fault],
                Point::Typed(name, self.faults[fault].ok_or_else(missing)?),
            )),
            Rung::RawTracepoint => Ok((["user_raw_tracepoint", "kernel_raw_tracepoint"][fault], Point::Raw(name))),
            Rung::Tracepoint => Ok((["user_tracepoint", "kernel_tracepoint"][fault], Point::Plain(GROUP, name))),
            _ => Err(Refusal::new("nothing to attach on this rung", "")),
        }
    }

    fn arm(&self, rung: Rung) -> Result<Armed, Refusal> {
        let mut armed = Armed::at_faults(self.load(rung)?, self.types.absent_is_free != 0)?;
        for index in 0..FAULTS.len() {
            let (program, point) = self.program(rung, index)?;
            armed.object().attach(program, point)?;
        }
        Ok(armed)
    }

    /// Attaches to the allocator of the program that has taken the place of the one that was followed.
    fn attach_anew(&mut self, host: &Host) {
        let Some(Standing { rung, armed: Some(armed) }) = &self.standing else { return };
        let Some(pid) = self.allocator_of.filter(|_| armed.is_of_another(host)) else { return };
        let rung = *rung;
        let armed = match self.load(rung).and_then(|object| Armed::at_allocator(object, host, pid)) {
            Ok(mut armed) => {
                armed.is_another_now();
                Some(armed)
            }
            Err(refusal) => {
                tracing::warn!("memory_leak: process {pid} runs another program now: {}", refusal.reason);
                None
            }
        };
        self.standing = Some(Standing { rung, armed });
    }

    /// Looks which processes there are to watch, and attaches or detaches when the first comes or the last goes.
    fn refresh(&mut self, host: &Host) -> Result<(), Refusal> {
        self.attach_anew(host);
        let Some(Standing { rung, mut armed }) = self.standing.take() else { return Ok(()) };
        if rung == Rung::Uprobe {
            let followed = armed.as_mut().map_or(Ok(()), |armed| armed.follow(host, &[]));
            self.standing = Some(Standing { rung, armed });
            return followed;
        }
        if let Some(growth) = &mut self.growth {
            for pid in growth.look(host) {
                self.watched.want(pid);
            }
        }
        if let Err(error) = self.watched.look(|_| {}, |_| {}) {
            tracing::debug!("memory_leak: {error}: {}", error.source);
        }
        let wanted = self.watched.targets();
        if wanted.is_empty() {
            armed = None;
        } else {
            let mut running = match armed {
                Some(running) => running,
                None => self.arm(rung)?,
            };
            running.follow(host, wanted)?;
            armed = Some(running);
        }
        self.standing = Some(Standing { rung, armed });
        Ok(())
    }
}

/// The tracepoints hand over the address, the registers and the error code.
fn offsets(btf: &Btf) -> Result<(), Refusal> {
    for name in FAULTS {
        let arguments = btf.arguments(name).map_err(|error| layout::contradiction(error.to_string()))?;
        if arguments.len() != 3 {
            let found = arguments.len();
            return Err(layout::contradiction(format!("BTF: {name}: expected 3 arguments, found {found}")));
        }
    }
    Ok(())
}

/// Where the fields of the plain tracepoints' records are: the same for both.
fn fields(format: &tracefs::Format) -> Result<Offsets, Refusal> {
    let at = |name: &str| {
        format.offset(name, 8).and_then(Offset::at).ok_or_else(|| {
            Refusal::new(format!("tracefs: exceptions/page_fault_user: expected a field {name} of 8 bytes"), "")
        })
    };
    Ok(Offsets { format_address: at("address")?, format_error: at("error_code")?, ..Offsets::ABSENT })
}
