//! Anonymous memory that chosen processes take and do not give back, by the stack that touched it first: page faults
//! that write are seen by the programs, what is still held by /proc/<pid>/pagemap. An allocator that hands out memory
//! again which it kept makes no fault, so this tells who makes the process grow, and not each allocation.

mod account;
mod growth;
mod held;
mod target;

use std::collections::BTreeMap;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use sysops_common::counters::Counters;
use sysops_common::memory_leak::{Offsets, PAGES_MAX, PageKey, Touched, WATCHED_MAX, is_chosen};
use sysops_common::offset::Offset;

use self::growth::Growth;
use self::target::Target;
use super::attach::Point;
use super::btf::Btf;
use super::facts::Facts;
use super::ladder::{Refusal, Step, WORDS};
use super::loader::{self, Object, Table};
use super::stacks::{self, StackId, Stacks};
use super::watched::{Change, Watched};
use super::{Entry, Observation, Probe, Rung, layout, tracefs};
use crate::host::{Host, os};
use crate::model::{Batch, Desc, Event, LeakReport, LeakStack, Metric, Resource, Unit};
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
/// Of the room for pages, how much may be taken before fewer blocks are looked at.
const PAGES_FULL: usize = PAGES_MAX / 4 * 3;
/// Memory for the self-check: above the largest threshold from which glibc maps memory anew (mallopt(3), M_MMAP_THRESHOLD).
const UNTOUCHED: usize = 40 << 20;
/// Stacks in a report.
const STACKS_MAX: usize = 64;

struct MemoryLeaks {
    steps: Vec<Step>,
    types: Offsets,
    formats: Offsets,
    faults: [Option<u32>; 2],
    watched: Watched,
    observation: Option<Growth>,
    standing: Option<Standing>,
    contradiction: Option<Refusal>,
}

struct Standing {
    rung: Rung,
    /// There only while there is something to watch.
    armed: Option<Armed>,
}

/// Programs that run, their tables, and whom they follow. Dropping it detaches them.
struct Armed {
    object: Object,
    masks: Table<u32, u64>,
    pages: Table<PageKey, Touched>,
    stacks: Stacks,
    mask: u64,
    targets: BTreeMap<u32, Target>,
    keys: Vec<PageKey>,
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
        observation: None,
        standing: None,
        contradiction: None,
    }
}

impl Probe for MemoryLeaks {
    fn steps(&self) -> Vec<Step> {
        self.steps.clone()
    }

    fn observe(&mut self, observation: &Observation) -> bool {
        let is_meant = observation.resources.contains(&Resource::Memory);
        if is_meant {
            self.observation = Some(Growth::new(observation, WATCHED_MAX));
        }
        is_meant
    }

    fn attach(&mut self, rung: Rung, host: &Host, _facts: &Facts) -> Result<(), Refusal> {
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
        Some(self.standing.as_ref()?.armed.as_ref()?.stacks.fd())
    }

    fn drain(&mut self, host: &Host, _out: &mut Vec<Event>) {
        if let Some(Standing { armed: Some(armed), .. }) = &mut self.standing {
            armed.stacks.drain(host);
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
        let Some(Standing { rung, armed: Some(armed) }) = &mut self.standing else { return };
        armed.stacks.drain(host);
        armed.take_pages();
        let (rung, now_ns) = (rung.word(), host.clock.now().monotonic.as_nanos());
        let pids: Vec<u32> = armed.targets.keys().copied().collect();
        out.extend(pids.into_iter().filter_map(|pid| armed.report(host, pid, rung, now_ns)));
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
        self.standing.as_ref()?.armed.as_ref()?.object.counters()
    }
}

impl MemoryLeaks {
    fn is_idle(&self) -> bool {
        self.observation.is_none() && self.watched.is_idle()
    }

    fn load(&self, rung: Rung) -> Result<Object, Refusal> {
        Object::load("memory_leak", if rung == Rung::Tracepoint { &self.formats } else { &self.types })
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
            Rung::Fentry | Rung::Kmsg | Rung::Off => Err(Refusal::new("nothing to attach on this rung", "")),
        }
    }

    fn arm(&self, rung: Rung) -> Result<Armed, Refusal> {
        let mut object = self.load(rung)?;
        let (masks, pages) = (object.table("WATCHED")?, object.table("PAGES")?);
        let stacks = Stacks::new(&mut object)?;
        for index in 0..FAULTS.len() {
            let (program, point) = self.program(rung, index)?;
            object.attach(program, point)?;
        }
        Ok(Armed { object, masks, pages, stacks, mask: 0, targets: BTreeMap::new(), keys: Vec::new() })
    }

    /// Looks which processes there are to watch, and attaches or detaches when the first comes or the last goes.
    fn refresh(&mut self, host: &Host) -> Result<(), Refusal> {
        let Some(Standing { rung, mut armed }) = self.standing.take() else { return Ok(()) };
        let wanted: Vec<(u32, String)> = if let Some(observation) = &mut self.observation {
            observation.look(host)
        } else {
            if let Err(error) = self.watched.look(|_: Change| {}) {
                tracing::debug!("memory_leak: {error}: {}", error.source);
            }
            self.watched.targets().iter().map(|target| (target.pid, target.comm.clone())).collect()
        };
        if wanted.is_empty() && self.observation.is_none() {
            armed = None;
        } else if !wanted.is_empty() {
            let mut running = match armed {
                Some(running) => running,
                None => self.arm(rung)?,
            };
            running.follow(host, &wanted)?;
            armed = Some(running);
        }
        self.standing = Some(Standing { rung, armed });
        Ok(())
    }
}

impl Armed {
    /// Follows those that are wanted and no others.
    fn follow(&mut self, host: &Host, wanted: &[(u32, String)]) -> Result<(), Refusal> {
        let gone: Vec<u32> =
            self.targets.keys().copied().filter(|pid| !wanted.iter().any(|(wanted, _)| wanted == pid)).collect();
        for pid in gone {
            self.forget(pid);
        }
        for (pid, comm) in wanted {
            if self.targets.contains_key(pid) {
                continue;
            }
            self.masks.insert(pid, &self.mask)?;
            let armed_ns = u64::try_from(host.clock.now().monotonic.as_nanos()).unwrap_or(u64::MAX);
            match Target::new(host, *pid, comm.clone(), armed_ns) {
                Ok(target) => _ = self.targets.insert(*pid, target),
                Err(error) => {
                    self.masks.remove(pid);
                    tracing::debug!("memory_leak: {error}: {}", error.source);
                }
            }
        }
        self.take_pages();
        Ok(())
    }

    fn forget(&mut self, pid: u32) {
        self.masks.remove(&pid);
        if let Some(mut target) = self.targets.remove(&pid) {
            target.thin(|_| false, |key| self.pages.remove(&key));
        }
        self.stacks.forget_process(pid);
    }

    /// Takes over the pages that were touched since the last time, and looks at fewer blocks when there are too many.
    fn take_pages(&mut self) {
        self.pages.keys(&mut self.keys);
        for key in &self.keys {
            let Some(target) = self.targets.get_mut(&key.tgid) else {
                self.pages.remove(key);
                continue;
            };
            if let Some(touched) = self.pages.get(key) {
                target.add(key, touched);
            }
        }
        while self.targets.values().map(Target::pages).sum::<usize>() > PAGES_FULL && self.mask < 1 << 20 {
            self.mask = self.mask * 2 + 1;
            let mask = self.mask;
            for (pid, target) in &mut self.targets {
                // It is there already: the map cannot be full.
                _ = self.masks.insert(pid, &mask);
                target.thin(|address| is_chosen(address, mask), |key| self.pages.remove(&key));
            }
        }
    }

    fn report(&mut self, host: &Host, pid: u32, rung: &'static str, now_ns: u128) -> Option<LeakReport> {
        let Self { targets, stacks, pages, .. } = self;
        let target = targets.get_mut(&pid)?;
        let account = target.account(|reference| stacks.resolve(reference), |key| pages.remove(&key)).ok()?;
        let target = self.targets.get(&pid)?;
        let open = held::anonymous_bytes(host, pid)?;
        let bytes_each = os::page_size().saturating_mul(self.mask + 1);
        let since =
            |then_ns: u64| Duration::from_nanos(u64::try_from(now_ns).unwrap_or(u64::MAX).saturating_sub(then_ns));
        let hours = since(target.armed_ns).as_secs_f64() / 3600.0;
        let mut stacks: Vec<(StackId, u64, f64)> = account
            .shares
            .iter()
            .map(|(id, share)| (*id, share.pages.saturating_mul(bytes_each), since(share.oldest_ns).as_secs_f64()))
            .collect();
        // What is estimated from some of the blocks may come out above what there is.
        let attributed = stacks.iter().map(|(_, bytes, _)| bytes).sum::<u64>().min(open);
        stacks.sort_by(|one, other| other.1.cmp(&one.1).then(one.0.cmp(&other.0)));
        stacks.truncate(STACKS_MAX);
        let stacks = stacks.into_iter().map(|(id, bytes, oldest_seconds)| LeakStack {
            count: bytes,
            kind: "page_fault".to_owned(),
            oldest_seconds,
            growth_per_hour: per_hour(bytes, hours),
            frames: self.stacks.frames(id),
        });
        Some(LeakReport {
            schema: LeakReport::SCHEMA,
            resource: Resource::Memory,
            pid,
            comm: target.comm.clone(),
            open,
            attributed,
            coverage: ratio(attributed, open),
            rung,
            unattributed: unattributed(
                target.bytes_before.min(open),
                account.unknown_pages * bytes_each,
                self.mask + 1,
            ),
            stacks: stacks.collect(),
        })
    }

    /// Touches memory of the agent's own, whose first page the programs must have seen.
    fn self_check(&mut self, host: &Host) -> Result<(), Refusal> {
        let own = super::process::Process::own(host)
            .status("Tgid")
            .ok_or_else(|| Refusal::new("self-check: /proc/thread-self/status: no Tgid", ""))?;
        self.masks.insert(&own, &0)?;
        // More than any allocator keeps, so that it comes from the kernel, and of all that one page is touched.
        let mut memory = vec![0_u8; UNTOUCHED];
        let middle = std::hint::black_box(&mut memory[UNTOUCHED / 2]);
        *middle = 1;
        let shift = held::page_shift();
        let address = std::ptr::from_mut(middle) as u64 >> shift << shift;
        self.masks.remove(&own);
        let touched = self.pages.get(&PageKey { tgid: own, reserved: 0, address });
        self.stacks.drain(host);
        self.pages.keys(&mut self.keys);
        for key in &self.keys {
            self.pages.remove(key);
        }
        self.stacks.forget_process(own);
        match touched {
            Some(Touched { stack: 0, .. }) => {
                Err(layout::contradiction("self-check: memory was touched and its page fault had no stack".into()))
            }
            Some(_) => Ok(()),
            None => Err(layout::contradiction("self-check: memory was touched and no page fault was seen".into())),
        }
    }
}

/// `count` in an hour at the pace of `hours`.
#[expect(clippy::cast_precision_loss, reason = "bytes below 2^53 are exact")]
fn per_hour(count: u64, hours: f64) -> f64 {
    if hours > 0.0 { count as f64 / hours } else { 0.0 }
}

#[expect(clippy::cast_precision_loss, reason = "bytes below 2^53 are exact")]
fn ratio(part: u64, whole: u64) -> f64 {
    if whole == 0 { 1.0 } else { part as f64 / whole as f64 }
}

/// Why not everything is attributed, for people.
fn unattributed(before: u64, unknown: u64, one_in: u64) -> String {
    let mut reasons = Vec::new();
    if before > 0 {
        reasons.push(format!("{} were there before the observation", crate::model::bytes_text(before)));
    }
    if unknown > 0 {
        reasons.push(format!("{} came by stacks that could not be told", crate::model::bytes_text(unknown)));
    }
    if one_in > 1 {
        reasons.push(format!("estimated from one in {one_in} blocks of 2 MiB"));
    }
    reasons.join("; ")
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
