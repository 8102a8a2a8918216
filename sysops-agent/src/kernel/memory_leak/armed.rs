//! What runs while there is something to watch: programs at page faults or at an allocator, their tables, and the reports
//! that come of them. Whom to watch is told by the probe.

use std::collections::BTreeMap;
use std::fmt;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use sysops_common::counters::Counters;
use sysops_common::memory_leak::{PAGES_MAX, PageKey, Touched, is_chosen};

use super::allocator::Allocator;
use super::held::{self, Pagemap};
use super::target::Target;
use crate::host::files::ReadError;
use crate::host::{Host, os};
use crate::kernel::ladder::Refusal;
use crate::kernel::layout;
use crate::kernel::loader::{Object, Table};
use crate::kernel::process::Process;
use crate::kernel::run_stats::Runs;
use crate::kernel::sieved::Sieved;
use crate::kernel::stacks::{StackId, Stacks};
use crate::kernel::watched::Target as Watched;
use crate::model::{LeakReport, LeakStack, Resource, bytes_text};

/// Of the room for pages, how much may be taken before fewer blocks are looked at.
const PAGES_FULL: usize = PAGES_MAX / 4 * 3;
/// Memory for the self-check: above the largest threshold from which glibc maps memory anew (mallopt(3), M_MMAP_THRESHOLD).
const UNTOUCHED: usize = 40 << 20;
/// References to stacks that are held before those without a page are forgotten.
const REFERENCES_MANY: usize = PAGES_MAX;
/// Stacks in a report.
const STACKS_MAX: usize = 64;

/// Programs that run. Dropping it detaches them.
pub(super) struct Armed {
    object: Object,
    stacks: Stacks,
    source: Source,
}

/// Where they are attached, and whom they follow.
enum Source {
    /// Page faults of all that are followed.
    Faults(Box<Faults>),
    /// The allocator of one.
    Allocator(Box<(Allocator, Followed)>),
}

struct Faults {
    masks: Sieved<u64>,
    pages: Table<PageKey, Touched>,
    mask: u64,
    targets: BTreeMap<u32, Target>,
    keys: Vec<PageKey>,
    /// What is not present was given back: the kernel takes no pages away for a while (NUMA balancing).
    absent_is_free: bool,
}

/// One whose allocator is followed.
struct Followed {
    pid: u32,
    comm: String,
    began_ns: u64,
    bytes_before: u64,
    pagemap: Pagemap,
    is_another: bool,
}

/// What one stack holds.
struct Held {
    stack: StackId,
    bytes: u64,
    oldest_ns: u64,
}

/// What goes into a report beside its stacks.
struct About<'a> {
    pid: u32,
    comm: &'a str,
    rung: &'static str,
    kind: &'static str,
    began_ns: u64,
    now_ns: u64,
    open: u64,
    /// At most so much of it can be known.
    attributed_max: u64,
    unattributed: Unattributed,
}

/// Why not everything is attributed.
#[derive(Default)]
struct Unattributed {
    /// Bytes that were there before.
    before: u64,
    /// Bytes by stacks that could not be told.
    unknown: u64,
    why: String,
    /// Bytes that were asked for beyond what is held.
    untouched: u64,
    /// Pages or pieces that found no room.
    no_room: u64,
    /// One in so many blocks was looked at.
    one_in: u64,
    /// Another program took the place of the one that was followed.
    is_another: bool,
}

impl Armed {
    /// Takes the tables of an object whose programs are about to be attached to page faults.
    ///
    /// # Errors
    /// When it has none.
    pub(super) fn at_faults(mut object: Object, absent_is_free: bool) -> Result<Self, Refusal> {
        let faults = Faults {
            masks: Sieved::of(&mut object)?,
            pages: object.table("PAGES")?,
            mask: 0,
            targets: BTreeMap::new(),
            keys: Vec::new(),
            absent_is_free,
        };
        Ok(Self { stacks: Stacks::new(&mut object)?, object, source: Source::Faults(Box::new(faults)) })
    }

    /// Attaches the programs to the allocator of the process `pid`.
    ///
    /// # Errors
    /// When it has none, or the kernel refuses.
    pub(super) fn at_allocator(mut object: Object, host: &Host, pid: u32) -> Result<Self, Refusal> {
        let stacks = Stacks::new(&mut object)?;
        let comm = Process::thread(host, pid).comm();
        let comm = comm.ok_or_else(|| Refusal::new(format!("there is no process {pid}"), "name one that runs"))?;
        let bytes_before = held::anonymous_bytes(host, pid).unwrap_or(0);
        let allocator = Allocator::attach(&mut object, host, pid)?;
        let unread =
            |error: ReadError| Refusal::new(format!("{error}: {}", error.source), "give the agent CAP_SYS_PTRACE");
        let pagemap = Pagemap::open(host, pid).map_err(unread)?;
        let followed = Followed { pid, comm, began_ns: now_ns(host), bytes_before, pagemap, is_another: false };
        Ok(Self { object, stacks, source: Source::Allocator(Box::new((allocator, followed))) })
    }

    /// The object whose programs they are.
    pub(super) fn object(&mut self) -> &mut Object {
        &mut self.object
    }

    /// Becomes readable when there are stacks that are not known yet.
    #[must_use]
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.stacks.fd()
    }

    /// Takes the stacks that are not known yet.
    pub(super) fn drain(&mut self, host: &Host) {
        self.stacks.drain(host);
    }

    /// What the programs counted.
    #[must_use]
    pub(super) fn counters(&self) -> Option<Counters> {
        self.object.counters()
    }

    /// Their runs.
    #[must_use]
    pub(super) fn runs(&self) -> Runs {
        self.object.runs()
    }

    /// Follows those that are wanted and no others; an allocator is followed in the one process that it was attached to.
    ///
    /// # Errors
    /// When a table is full.
    pub(super) fn follow(&mut self, host: &Host, wanted: &[Watched]) -> Result<(), Refusal> {
        self.begin_anew(host)?;
        let Source::Faults(faults) = &mut self.source else {
            self.stacks.refresh(host);
            return Ok(());
        };
        let gone = |pid: &u32| !wanted.iter().any(|wanted| wanted.pid == *pid);
        for pid in faults.targets.keys().copied().filter(gone).collect::<Vec<u32>>() {
            faults.forget(pid);
            self.stacks.forget_process(pid);
        }
        for Watched { pid, comm, .. } in wanted {
            if !faults.targets.contains_key(pid) {
                faults.begin(host, *pid, comm)?;
            }
        }
        faults.take_pages();
        self.stacks.refresh(host);
        Ok(())
    }

    /// Where a process runs another program now, by exec, all that is known is of the one before.
    fn begin_anew(&mut self, host: &Host) -> Result<(), Refusal> {
        let Source::Faults(faults) = &mut self.source else { return Ok(()) };
        let over = faults.targets.values().filter(|target| target.is_over()).map(|target| target.pid);
        for pid in over.collect::<Vec<u32>>() {
            let Some(comm) = Process::thread(host, pid).comm() else { continue };
            faults.take_pages();
            faults.forget(pid);
            self.stacks.forget_process(pid);
            faults.begin(host, pid, &comm)?;
            if let Some(target) = faults.targets.get_mut(&pid) {
                target.is_another = true;
            }
        }
        Ok(())
    }

    /// The process whose allocator is followed runs another program now, which may have another allocator.
    #[must_use]
    pub(super) fn is_of_another(&self, host: &Host) -> bool {
        let Source::Allocator(of) = &self.source else { return false };
        let (_, followed) = &**of;
        // One that has ended has no memory to tell of.
        followed.pagemap.is_over() && held::anonymous_bytes(host, followed.pid).is_some()
    }

    /// Says in the reports that another program was followed before.
    pub(super) fn is_another_now(&mut self) {
        if let Source::Allocator(of) = &mut self.source {
            of.1.is_another = true;
        }
    }

    /// A report for each that is followed and has not gone.
    pub(super) fn reports(&mut self, host: &Host, rung: &'static str, out: &mut Vec<LeakReport>) {
        if let Err(refusal) = self.begin_anew(host) {
            tracing::debug!("memory_leak: {}", refusal.reason);
        }
        self.stacks.drain(host);
        let no_room = self.object.counters().map_or(0, |counters| counters.map_full);
        match &mut self.source {
            Source::Faults(faults) => {
                faults.take_pages();
                let pids: Vec<u32> = faults.targets.keys().copied().collect();
                out.extend(pids.into_iter().filter_map(|pid| faults.report(host, &self.stacks, pid, rung, no_room)));
                // A stack that is forgotten has to be told anew when it comes again, so that is done seldom.
                if self.stacks.references() > REFERENCES_MANY {
                    let used = faults.references();
                    self.stacks.retain(|reference| used.binary_search(&reference).is_ok());
                }
            }
            Source::Allocator(of) => {
                let (allocator, followed) = &mut **of;
                out.extend(report_of_allocator(host, &self.stacks, allocator, followed, rung, no_room));
            }
        }
    }

    /// Touches memory of the agent's own: the programs must have seen the page.
    ///
    /// # Errors
    /// When they have not.
    pub(super) fn self_check(&mut self, host: &Host) -> Result<(), Refusal> {
        let Source::Faults(faults) = &mut self.source else { return Ok(()) };
        let own = Process::own(host)
            .status("Tgid")
            .ok_or_else(|| Refusal::new("self-check: /proc/thread-self/status: no Tgid", ""))?;
        faults.masks.insert(own, &0)?;
        // More than any allocator keeps, so that it comes from the kernel, and of all that one page is touched.
        let mut memory = vec![0_u8; UNTOUCHED];
        let middle = std::hint::black_box(&mut memory[UNTOUCHED / 2]);
        *middle = 1;
        let shift = held::page_shift();
        let address = std::ptr::from_mut(middle) as u64 >> shift << shift;
        faults.masks.remove(own);
        let touched = faults.pages.get(&PageKey { tgid: own, reserved: 0, address });
        self.stacks.drain(host);
        faults.pages.keys(&mut faults.keys);
        for key in &faults.keys {
            faults.pages.remove(key);
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

impl Faults {
    fn begin(&mut self, host: &Host, pid: u32, comm: &str) -> Result<(), Refusal> {
        self.masks.insert(pid, &self.mask)?;
        match Target::new(host, pid, comm.to_owned(), now_ns(host)) {
            Ok(target) => _ = self.targets.insert(pid, target),
            Err(error) => {
                self.masks.remove(pid);
                tracing::debug!("memory_leak: {error}: {}", error.source);
            }
        }
        Ok(())
    }

    fn forget(&mut self, pid: u32) {
        self.masks.remove(pid);
        if let Some(mut target) = self.targets.remove(&pid) {
            target.thin(|_| false, |key| self.pages.remove(&key));
        }
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
                _ = self.masks.insert(*pid, &mask);
                target.thin(|address| is_chosen(address, mask), |key| self.pages.remove(&key));
            }
        }
    }

    /// All references to stacks that are in use, in order.
    fn references(&self) -> Vec<u64> {
        let mut used: Vec<u64> = self.targets.values().flat_map(Target::references).collect();
        used.sort_unstable();
        used
    }

    fn report(
        &mut self,
        host: &Host,
        stacks: &Stacks,
        pid: u32,
        rung: &'static str,
        no_room: u64,
    ) -> Option<LeakReport> {
        let Self { targets, pages, mask, absent_is_free, .. } = self;
        let target = targets.get_mut(&pid)?;
        let resolve = |reference| stacks.resolve(reference);
        let account = target.account(host, *absent_is_free, resolve, |key| pages.remove(&key)).ok()?;
        let bytes_each = os::page_size().saturating_mul(*mask + 1);
        let held = account.shares.iter().map(|(&stack, share)| Held {
            stack,
            bytes: share.pages.saturating_mul(bytes_each),
            oldest_ns: share.oldest_ns,
        });
        let open = held::anonymous_bytes(host, pid)?;
        let about = About {
            pid,
            comm: &target.comm,
            rung,
            kind: "page_fault",
            began_ns: target.armed_ns,
            now_ns: now_ns(host),
            open,
            attributed_max: open,
            unattributed: Unattributed {
                before: target.bytes_before.min(open),
                unknown: account.unknown_pages * bytes_each,
                why: stacks.lost().why(),
                no_room,
                one_in: *mask + 1,
                is_another: target.is_another,
                untouched: 0,
            },
        };
        Some(report(stacks, held.collect(), &about))
    }
}

fn report_of_allocator(
    host: &Host,
    stacks: &Stacks,
    allocator: &mut Allocator,
    followed: &Followed,
    rung: &'static str,
    no_room: u64,
) -> Option<LeakReport> {
    let open = held::anonymous_bytes(host, followed.pid)?;
    let (mut held, mut unknown) = (BTreeMap::<StackId, Held>::new(), 0_u64);
    for (reference, unfreed) in allocator.unfreed() {
        let Some(stack) = stacks.resolve(reference) else {
            unknown = unknown.saturating_add(unfreed.bytes);
            continue;
        };
        let of = held.entry(stack).or_insert(Held { stack, bytes: 0, oldest_ns: unfreed.oldest_ns });
        of.bytes = of.bytes.saturating_add(unfreed.bytes);
        of.oldest_ns = of.oldest_ns.min(unfreed.oldest_ns);
    }
    let before = followed.bytes_before.min(open);
    let asked = held.values().fold(unknown, |sum, held| sum.saturating_add(held.bytes));
    let about = About {
        pid: followed.pid,
        comm: &followed.comm,
        rung,
        kind: "malloc",
        began_ns: followed.began_ns,
        now_ns: now_ns(host),
        open,
        // What was there before is not what was asked for since.
        attributed_max: open - before,
        unattributed: Unattributed {
            before,
            unknown,
            why: stacks.lost().why(),
            untouched: asked.saturating_sub(open - before),
            no_room,
            one_in: 1,
            is_another: followed.is_another,
        },
    };
    Some(report(stacks, held.into_values().collect(), &about))
}

/// The report, largest stack first.
fn report(stacks: &Stacks, mut held: Vec<Held>, about: &About<'_>) -> LeakReport {
    let since = |then_ns: u64| Duration::from_nanos(about.now_ns.saturating_sub(then_ns));
    let hours = since(about.began_ns).as_secs_f64() / 3600.0;
    // What is estimated, or was asked for and never touched, may come out above what there is.
    let attributed = held.iter().map(|held| held.bytes).fold(0, u64::saturating_add).min(about.attributed_max);
    held.sort_by(|one, other| other.bytes.cmp(&one.bytes).then(one.stack.cmp(&other.stack)));
    held.truncate(STACKS_MAX);
    let stack = |held: Held| LeakStack {
        count: held.bytes,
        kind: about.kind.to_owned(),
        oldest_seconds: since(held.oldest_ns).as_secs_f64(),
        growth_per_hour: per_hour(held.bytes, hours),
        frames: stacks.frames(held.stack),
    };
    LeakReport {
        schema: LeakReport::SCHEMA,
        resource: Resource::Memory,
        pid: about.pid,
        comm: about.comm.to_owned(),
        open: about.open,
        attributed,
        coverage: ratio(attributed, about.open),
        rung: about.rung,
        stacks: held.into_iter().map(stack).collect(),
        unattributed: about.unattributed.to_string(),
    }
}

fn now_ns(host: &Host) -> u64 {
    u64::try_from(host.clock.now().monotonic.as_nanos()).unwrap_or(u64::MAX)
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

/// For people.
impl fmt::Display for Unattributed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut reasons = Vec::new();
        let mut say = |bytes: u64, what: &str| {
            if bytes > 0 {
                reasons.push(format!("{} {what}", bytes_text(bytes)));
            }
        };
        say(self.before, "were there before the observation");
        say(self.unknown, &format!("came by stacks that could not be told{}", self.why));
        say(self.untouched, "more were asked for than came: not touched yet, or in memory that was there before");
        if self.no_room > 0 {
            reasons.push(format!("{} times there was no room in a table", self.no_room));
        }
        if self.one_in > 1 {
            reasons.push(format!("estimated from one in {} blocks of 2 MiB", self.one_in));
        }
        if self.is_another {
            reasons.push("the process runs another program since it is watched, and only that one is told of".into());
        }
        f.write_str(&reasons.join("; "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_attributed_is_said_by_reason() {
        assert_eq!(Unattributed { one_in: 1, ..Unattributed::default() }.to_string(), "");
        let all = Unattributed {
            before: 3 << 20,
            unknown: 2048,
            why: " (of all captures 1 were cut off)".into(),
            untouched: 5,
            no_room: 7,
            one_in: 4,
            is_another: true,
        };
        assert_eq!(
            all.to_string(),
            "3.0 MiB were there before the observation; 2.0 KiB came by stacks that could not be told (of all captures 1 \
             were cut off); 5 B more were asked for than came: not touched yet, or in memory that was there before; 7 times \
             there was no room in a table; estimated from one in 4 blocks of 2 MiB; the process runs another program since \
             it is watched, and only that one is told of"
        );
    }
}
