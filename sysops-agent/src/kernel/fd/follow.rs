//! Follows the descriptors of the processes that are watched: holds what the programs remember against /proc at each look,
//! and tells what leaks. Who is watched is left to `fd`.

use std::ffi::CString;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use sysops_common::counters::Counters;
use sysops_common::fd::{Counts, Descriptor};

use super::groups::{Group, Groups, Key, Tally};
use super::open::{Known, Look, Open};
use super::rungs::{Armed, Rungs};
use crate::host::{Descriptors, Host, OpenFds};
use crate::kernel::Rung;
use crate::kernel::ladder::Refusal;
use crate::kernel::lost_stacks::Lost;
use crate::kernel::process::Process;
use crate::kernel::run_stats::Runs;
use crate::kernel::stacks::Stacks;
use crate::kernel::watched::Target;
use crate::model::event::FdLeak;
use crate::model::time::rfc3339_nanos;
use crate::model::{Detail, Event, LeakReport, LeakStack, Resource, Tick};

/// Descriptors that are looked at in one cycle, of all processes together: some 10 ms of work.
const LOOK_MAX: usize = 4096;
/// Descriptors of one process that a report looks at.
const REPORT_MAX: usize = 1 << 16;
/// Looks after which what is needed no more is thrown away.
const TIDY: u32 = 6;
/// Keys of a table that are asked for when it is tidied.
const KEYS_MAX: usize = 1 << 17;

/// What counts as a leak.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Measures {
    /// How long a stack's descriptors must become more.
    pub window: Duration,
    /// By how many.
    pub rise: u32,
    /// From this share of the limit on less will do, in percent.
    pub limit_percent: f64,
}

/// What a look needs of the machine.
pub(super) struct Around<'a> {
    pub host: &'a Host,
    pub rung: Rung,
    pub descriptors: &'a mut Descriptors,
    pub counter: &'a mut OpenFds,
    /// The processes that are watched.
    pub targets: &'a [Target],
}

/// The programs, and the processes that they watch.
pub(super) struct Followed {
    armed: Armed,
    stacks: Stacks,
    processes: Vec<One>,
    measures: Measures,
    listed: Vec<u32>,
    /// What the programs remember of processes that have more open than can be listed, still to be looked at. Empty as
    /// long as there are none.
    remembered: Vec<Descriptor>,
    round: u32,
    /// Runs that were passed over and descriptors that were seen, as of the last look for them.
    missed: (u64, u64),
}

/// One process.
struct One {
    pid: u32,
    /// Hostile.
    comm: String,
    open: Open,
    groups: Groups,
    /// All that are open, as they were counted last where not all of them are known.
    counted: u64,
}

impl One {
    /// Counts what is open, unless all of it is known; false when that is not to be had.
    fn count(&mut self, counter: &mut OpenFds, descriptors: &Descriptors) -> bool {
        if self.open.is_whole() {
            return true;
        }
        let path = CString::new(format!("{}/fd", self.pid)).ok();
        let counted = path.and_then(|path| counter.at(descriptors.proc(), &path).ok());
        self.counted = counted.unwrap_or(self.counted);
        counted.is_some()
    }

    /// How many are open.
    fn all(&self) -> u64 {
        let known = self.groups.tally().all();
        if self.open.is_whole() { known } else { known.max(self.counted) }
    }
}

impl Followed {
    /// Nobody is followed yet.
    ///
    /// # Errors
    /// When the object lacks a map.
    pub(super) fn start(_host: &Host, mut armed: Armed, measures: Measures) -> Result<Self, Refusal> {
        let stacks = Stacks::new(&mut armed.object)?;
        Ok(Self {
            armed,
            stacks,
            processes: Vec::new(),
            measures,
            listed: Vec::new(),
            remembered: Vec::new(),
            round: 0,
            missed: (0, 0),
        })
    }

    /// Puts kprobes in the place of programs that the kernel passes over. Nothing is forgotten.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(super) fn exchange(&mut self, rungs: &Rungs) -> Result<(), Refusal> {
        rungs.exchange(&mut self.armed)
    }

    /// Runs of the programs that the kernel passed over since this was asked last, and descriptors that were seen meanwhile,
    /// when that is more than what an interrupt now and then explains.
    pub(super) fn passed_over(&mut self) -> Option<(u64, u64)> {
        let now = (self.runs().skipped?, self.counters()?.received);
        let before = std::mem::replace(&mut self.missed, now);
        let (missed, seen) = (now.0.saturating_sub(before.0), now.1.saturating_sub(before.1));
        is_too_much(missed, seen).then_some((missed, seen))
    }

    /// Becomes readable when stacks wait to be taken.
    #[must_use]
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.stacks.fd()
    }

    /// Takes the stacks that wait.
    pub(super) fn drain(&mut self, host: &Host) {
        self.stacks.drain(host);
    }

    /// What the programs counted in all.
    #[must_use]
    pub(super) fn counters(&self) -> Option<Counters> {
        self.armed.object.counters()
    }

    /// Their runs.
    #[must_use]
    pub(super) fn runs(&self) -> Runs {
        self.armed.runs()
    }

    /// What they counted of one process.
    #[must_use]
    pub(super) fn counts(&self, pid: u32) -> Option<Counts> {
        self.armed.counts.get(pid)
    }

    /// How many descriptors of a process have a stack, and how many it has open, as of the last look.
    #[must_use]
    pub(super) fn attributed(&self, pid: u32) -> Option<(u64, u64)> {
        let one = self.processes.iter().find(|one| one.pid == pid)?;
        Some((one.groups.tally().attributed, one.all()))
    }

    /// True when `pid` is followed.
    #[must_use]
    pub(super) fn follows(&self, pid: u32) -> bool {
        self.processes.iter().any(|one| one.pid == pid)
    }

    /// Follows `pid` from now on: what it has open already is seen to be so.
    ///
    /// # Errors
    /// When the programs' table is full.
    pub(super) fn follow(
        &mut self,
        host: &Host,
        target: &Target,
        descriptors: &mut Descriptors,
    ) -> Result<(), Refusal> {
        let pid = target.pid;
        let now = host.clock.now().monotonic;
        self.armed.counts.insert(pid, &Counts::default())?;
        let mut open = Open::new(pid, now);
        let mut look = Look { descriptors, held: &mut self.armed.held, stacks: &self.stacks, listed: &mut self.listed };
        // Gone again: the next look around will say so.
        _ = open.look(&mut look, now, LOOK_MAX, false);
        let parent = Process::thread(host, pid).status("PPid");
        if let Some(parent) = self.processes.iter().find(|one| Some(one.pid) == parent) {
            open.inherit(&parent.open);
        }
        self.processes.push(One { pid, comm: target.comm.clone(), open, groups: Groups::default(), counted: 0 });
        Ok(())
    }

    /// What was known of a process when it was last looked at. It has ended since; `None` when it held nothing by then.
    pub(super) fn last_words(
        &self,
        host: &Host,
        pid: u32,
        rung: Rung,
        stackless: Option<&Refusal>,
    ) -> Option<LeakReport> {
        let one = self.processes.iter().find(|one| one.pid == pid && one.all() > 0)?;
        let about = About { now: host.clock.now().monotonic, rung, stackless, skipped: 0, full: 0 };
        let mut report = report_of(one, &one.comm, &self.stacks, &about);
        let ended = "it ended while it was watched: this is what it held shortly before";
        report.unattributed = [ended, report.unattributed.as_str()].join("; ");
        report.unattributed.truncate(report.unattributed.trim_end_matches("; ").len());
        Some(report)
    }

    /// Follows `pid` no longer.
    pub(super) fn forget(&mut self, pid: u32) {
        self.armed.counts.remove(pid);
        self.processes.retain(|one| one.pid != pid);
        self.stacks.forget_process(pid);
        self.sweep();
    }

    /// Removes what the programs remember of processes that are followed no longer.
    fn sweep(&mut self) {
        let mut keys: Vec<Descriptor> = Vec::new();
        self.armed.held.some_keys(KEYS_MAX, &mut keys);
        for key in keys.iter().filter(|key| !self.processes.iter().any(|one| one.pid == key.tgid)) {
            self.armed.held.remove(key);
        }
    }

    /// Looks what is open, and adds an event for each stack that is seen to leak.
    pub(super) fn look(&mut self, around: &mut Around<'_>, events: &mut Vec<Event>) {
        self.stacks.drain(around.host);
        self.stacks.refresh(around.host);
        let now = around.host.clock.now();
        self.round = self.round.wrapping_add(1);
        let first = self.round as usize % self.processes.len().max(1);
        let mut left = LOOK_MAX;
        let mut whole = true;
        self.look_at_remembered(around.descriptors);
        self.processes.rotate_left(first);
        for one in &mut self.processes {
            let mut look = Look {
                descriptors: around.descriptors,
                held: &mut self.armed.held,
                stacks: &self.stacks,
                listed: &mut self.listed,
            };
            if left > 0 {
                whole &= one.open.look(&mut look, now.monotonic, left, false).unwrap_or(true);
                left = left.saturating_sub(self.listed.len());
            }
            whole &= left > 0;
            one.groups.update(now.monotonic, self.measures.window, one.open.known());
            // Where counting means listing, a million take a while.
            if around.counter.by_size() || self.round.is_multiple_of(TIDY) {
                one.count(around.counter, around.descriptors);
            }
        }
        if whole && self.round.is_multiple_of(TIDY) {
            self.tidy();
        }
        self.tell(around, now, events);
    }

    /// Of a process that has more open than one look lists, what was taken last may be at the list's end: what the programs
    /// remember of it is looked at without the list, so much of it at each look.
    fn look_at_remembered(&mut self, descriptors: &mut Descriptors) {
        if self.remembered.is_empty() {
            self.fill_remembered();
        }
        let rest = self.remembered.len().saturating_sub(LOOK_MAX);
        let mut look = Look { descriptors, held: &mut self.armed.held, stacks: &self.stacks, listed: &mut self.listed };
        for Descriptor { tgid, fd } in self.remembered.drain(rest..) {
            if let Some(one) = self.processes.iter_mut().find(|one| one.pid == tgid) {
                one.open.see(&mut look, fd, false);
            }
        }
    }

    /// Asks for all that the programs remember, and that they remembered, of processes that are not seen as a whole.
    fn fill_remembered(&mut self) {
        let mut parts: Vec<&One> = self.processes.iter().filter(|one| !one.open.is_whole()).collect();
        if parts.is_empty() {
            self.remembered = Vec::new();
            return;
        }
        parts.sort_unstable_by_key(|one| one.pid);
        self.armed.held.some_keys(KEYS_MAX, &mut self.remembered);
        self.remembered.retain(|key| parts.binary_search_by_key(&key.tgid, |one| one.pid).is_ok());
        self.remembered.extend(parts.iter().flat_map(|one| one.open.remembered()));
        self.remembered.sort_unstable();
        self.remembered.dedup();
    }

    /// Forgets stacks by which nothing is open any more.
    fn tidy(&mut self) {
        let mut used: Vec<u64> =
            self.processes.iter().flat_map(|one| one.open.known().filter_map(Known::reference)).collect();
        used.sort_unstable();
        self.stacks.retain(|reference| used.binary_search(&reference).is_ok());
    }

    fn tell(&mut self, around: &Around<'_>, now: Tick, events: &mut Vec<Event>) {
        let Around { host, rung, descriptors, targets, .. } = around;
        let Measures { rise, limit_percent, .. } = self.measures;
        let mut leaking = Vec::new();
        for one in &mut self.processes {
            let Some(target) = targets.iter().find(|target| target.pid == one.pid) else { continue };
            let open = one.all();
            let limit = descriptors.soft_limit(one.pid);
            #[expect(clippy::cast_precision_loss, reason = "a process has fewer than 2^53 open files")]
            let near_limit = limit.is_some_and(|limit| open as f64 * 100.0 >= limit as f64 * limit_percent);
            leaking.clear();
            one.groups.take_leaks(rise, near_limit, &mut leaking);
            for key in &leaking {
                let Some(group) = one.groups.get(key) else { continue };
                let tally = one.groups.tally();
                let stack = leak_stack(&self.stacks, key, group, now.monotonic);
                let leak = FdLeak {
                    descriptor: stack.kind,
                    count: stack.count,
                    oldest_seconds: stack.oldest_seconds,
                    growth_per_hour: stack.growth_per_hour,
                    open,
                    limit,
                    attributed: tally.attributed,
                    coverage: share(tally.attributed, open),
                    frames: stack.frames,
                };
                let process = Process::thread(host, one.pid);
                events.push(Event {
                    schema: Event::SCHEMA,
                    time: rfc3339_nanos(now.wall),
                    source: rung.source().into_iter().collect(),
                    pid: Some(one.pid),
                    tid: None,
                    comm: Some(target.comm.clone()),
                    uid: process.status("Uid"),
                    cgroup: process.memory_path().map(|found| found.path),
                    detail: Detail::FdLeak(leak),
                    monotonic_ns: u64::try_from(now.monotonic.as_nanos()).unwrap_or(u64::MAX),
                });
            }
        }
    }

    /// Adds what each process holds, by stack. All descriptors are held against what they were when they were taken.
    pub(super) fn report(&mut self, around: &mut Around<'_>, stackless: Option<&Refusal>, out: &mut Vec<LeakReport>) {
        let Around { host, rung, descriptors, counter, targets } = around;
        self.stacks.drain_all(host);
        let now = host.clock.now().monotonic;
        // What the kernel does not count, before 5.12, is not spoken of.
        let skipped = self.armed.runs().skipped.unwrap_or(0);
        self.fill_remembered();
        for one in &mut self.processes {
            let mut look =
                Look { descriptors, held: &mut self.armed.held, stacks: &self.stacks, listed: &mut self.listed };
            one.open.look_at_all(&mut look, now, REPORT_MAX);
            let is_part = !one.open.is_whole();
            for key in self.remembered.iter().filter(|key| is_part && key.tgid == one.pid) {
                one.open.see(&mut look, key.fd, true);
            }
        }
        self.remembered.clear();
        // They went on meanwhile.
        self.stacks.drain(host);
        for one in &mut self.processes {
            let Some(target) = targets.iter().find(|target| target.pid == one.pid) else { continue };
            one.open.resolve(&self.stacks);
            one.groups.update(now, self.measures.window, one.open.known());
            // Without the number of all there is no coverage, and so no report: the process has mostly ended.
            if !one.count(counter, descriptors) {
                continue;
            }
            let full = self.armed.counts.get(one.pid).map_or(0, |counts| counts.full);
            let about = About { now, rung: *rung, stackless, skipped, full };
            out.push(report_of(one, &target.comm, &self.stacks, &about));
        }
    }
}

/// What a report says beside what a process holds.
struct About<'a> {
    now: Duration,
    rung: Rung,
    stackless: Option<&'a Refusal>,
    skipped: u64,
    full: u64,
}

fn report_of(one: &One, comm: &str, stacks: &Stacks, about: &About<'_>) -> LeakReport {
    let (tally, open) = (one.groups.tally(), one.all());
    let groups = one.groups.largest_first();
    LeakReport {
        schema: LeakReport::SCHEMA,
        resource: Resource::Fd,
        pid: one.pid,
        comm: comm.to_owned(),
        open,
        attributed: tally.attributed,
        coverage: share(tally.attributed, open),
        rung: about.rung.word(),
        unattributed: unattributed(tally, open, about.full, about.skipped, about.stackless, stacks.lost()),
        stacks: groups.iter().map(|(key, group)| leak_stack(stacks, key, group, about.now)).collect(),
    }
}

/// Eight, and one in a hundred of what was seen: less would not show in the coverage that the rung promises.
fn is_too_much(missed: u64, seen: u64) -> bool {
    missed >= 8 && missed.saturating_mul(100) >= seen
}

fn leak_stack(stacks: &Stacks, key: &Key, group: &Group, now: Duration) -> LeakStack {
    let kind = match key.parent {
        Some(parent) => format!("{}, inherited from process {parent}", key.kind),
        None => key.kind.to_owned(),
    };
    LeakStack {
        count: u64::from(group.count),
        kind,
        oldest_seconds: group.oldest.map_or(0.0, |oldest| now.saturating_sub(oldest).as_secs_f64()),
        growth_per_hour: group.hourly(now),
        frames: stacks.frames(key.stack),
    }
}

#[expect(clippy::cast_precision_loss, reason = "a process has fewer than 2^53 open files")]
fn share(part: u64, whole: u64) -> f64 {
    if whole == 0 { 1.0 } else { part as f64 / whole as f64 }
}

/// Why not all are attributed. `skipped` are runs of the programs that the kernel passed over, of all processes, as one was
/// running on that CPU: where it may preempt a program, those who come meanwhile are not seen.
fn unattributed(tally: Tally, open: u64, full: u64, skipped: u64, stackless: Option<&Refusal>, lost: Lost) -> String {
    let beyond = open.saturating_sub(tally.all());
    let mut reasons = Vec::new();
    let mut say = |count: u64, what: &str| {
        if count > 0 {
            reasons.push(format!("{count} {what}"));
        }
    };
    say(tally.before, "open before the process was followed");
    let no_room = full.min(tally.unseen);
    let passed_over = format!(", or while the kernel passed over the programs ({skipped} times in all)");
    let passed_over = if skipped > 0 { passed_over.as_str() } else { "" };
    say(tally.unseen - no_room, &format!("came by a way that this rung does not see{passed_over}"));
    say(no_room, "found no room in the table (kernel.fd.descriptors_max)");
    match stackless {
        Some(refusal) => say(tally.stackless, &format!("without a stack ({})", refusal.reason)),
        None => say(tally.stackless, &format!("without a stack that could be unwound{}", lost.why())),
    }
    say(beyond, "beyond those that are looked at");
    reasons.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_in_a_hundred_is_too_much_and_an_interrupt_now_and_then_is_not() {
        assert!(!is_too_much(7, 0) && is_too_much(8, 0) && is_too_much(8, 800) && !is_too_much(8, 801));
    }

    #[test]
    fn what_is_not_attributed_is_said_by_reason() {
        let tally = Tally { attributed: 90, before: 3, unseen: 9, stackless: 5 };
        assert_eq!(
            unattributed(tally, 117, 7, 0, None, Lost { cut: 4, full: 1, ..Lost::default() }),
            "3 open before the process was followed; 2 came by a way that this rung does not see; 7 found no room in the \
             table (kernel.fd.descriptors_max); 5 without a stack that could be unwound (of all captures 4 were \
             cut off, 1 more than there is room for); 10 beyond those that are looked at"
        );
        let no_types = Refusal::new("no BTF", "");
        let of = |tally, stackless, skipped| unattributed(tally, 1, 0, skipped, stackless, Lost::default());
        let said = of(Tally { stackless: 1, ..Tally::default() }, Some(&no_types), 3);
        assert_eq!(said, "1 without a stack (no BTF)");
        assert_eq!(of(Tally { attributed: 1, ..Tally::default() }, None, 3), "");
        let behind = Lost { is_behind: true, cut: 2, ..Lost::default() };
        assert_eq!(
            unattributed(Tally { stackless: 6, ..Tally::default() }, 6, 0, 0, None, behind),
            "6 without a stack that could be unwound (of all captures some are still to be taken, 2 were cut off)"
        );
        assert_eq!(
            of(Tally { unseen: 1, ..Tally::default() }, None, 3),
            "1 came by a way that this rung does not see, or while the kernel passed over the programs (3 times in all)"
        );
        assert_eq!((share(0, 0), share(1, 4)), (1.0, 0.25));
    }
}
