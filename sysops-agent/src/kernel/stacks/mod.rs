//! Stacks of user programs, as the kernel side captures them (sysops-ebpf/src/stack.rs): a reference in the kernel becomes
//! frames here. The rules by which the kernel walks a stack are made here too, when a first stack leads through a place.
//! Names are left to `symbolize`.

mod elf;
mod images;
mod maps;
mod offsets;
mod space;
mod table;

use std::collections::HashMap;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Duration;

use sysops_common::plain::view;
use sysops_common::stack::{Copied, Rule, RuleKey, StackHash, StackProcess, TOKEN, Walk};

use self::images::Images;
use self::space::{Access, End, Followed, Place, Space, Unread};
use self::table::Context;
use super::ladder::Refusal;
use super::loader::{Object, Ring, Table};
use super::lost_stacks::Lost;
use super::process::Process;
use crate::host::{Host, os};
use crate::model::Frame;

pub(super) use self::elf::functions;
pub(super) use self::images::open;
pub(super) use self::maps::parse as mappings;
pub(super) use self::offsets::offsets;

/// Stacks that are told apart at once.
const STACKS_MAX: usize = 1 << 13;
/// References that are remembered at once.
const REFERENCES_MAX: usize = 1 << 17;
/// Processes whose stacks are walked at once.
const PROCESSES_MAX: usize = 512;
/// Records that are taken at once, and for how long: a process can make them faster than they are taken.
const RECORDS_MAX: usize = 1000;
const DRAIN_MAX: Duration = Duration::from_millis(500);
/// For how long they are taken for a report.
const DRAIN_ALL_MAX: Duration = Duration::from_secs(5);
/// How often between two refreshes a process is looked at for code that is not known: each look reads all its mappings.
const LOOKS_MAX: u32 = 4;
/// Bits of a return address, as [`offsets`] has them.
const ADDRESS_BITS: u32 = if cfg!(target_arch = "aarch64") { 48 } else { 64 };

/// A stack. The same frames have the same number, whichever capture they come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct StackId(u32);

#[cfg(test)]
impl StackId {
    /// For tests of those who count by stacks.
    pub(super) const SOME: Self = Self(7);
}

/// The stacks that one object captures. Dropping it forgets them all.
pub(super) struct Stacks {
    ring: Ring,
    processes: Table<u32, StackProcess>,
    rules: Table<RuleKey, Rule>,
    known: Table<u64, u32>,
    images: Images,
    context: Context,
    spaces: HashMap<u32, Space>,
    epochs: u32,
    references: HashMap<u64, Reference>,
    stacks: HashMap<StackId, Arc<[Place]>>,
    ids: HashMap<Box<[(usize, u64)]>, StackId>,
    next: u32,
    lost: Lost,
}

/// What the kernel hands over, each too large for the stack.
enum Record {
    /// A walk that is not complete.
    Copied(Box<Copied>),
    /// One that is.
    Walk(Box<Walk>),
}

impl Record {
    fn read(bytes: &[u8]) -> Option<Self> {
        match view::<Copied>(bytes) {
            Some(copied) => Some(Self::Copied(Box::new(*copied))),
            None => view::<Walk>(bytes).map(|walk| Self::Walk(Box::new(*walk))),
        }
    }
}

struct Reference {
    pid: u32,
    /// `None`: it leads through a file that cannot be had.
    stack: Option<StackId>,
}

impl Stacks {
    /// Of an object that has sysops-ebpf's stack.rs in it.
    ///
    /// # Errors
    /// When it has not.
    pub(super) fn new(object: &mut Object) -> Result<Self, Refusal> {
        Ok(Self {
            ring: object.ring("STACK_EVENTS")?,
            processes: object.table("STACK_PROCESSES")?,
            rules: object.table("STACK_RULES")?,
            known: object.table("STACK_KNOWN")?,
            images: Images::default(),
            context: Context::new(),
            spaces: HashMap::new(),
            epochs: 0,
            references: HashMap::new(),
            stacks: HashMap::new(),
            ids: HashMap::new(),
            next: 0,
            lost: Lost::default(),
        })
    }

    /// Becomes readable when there are stacks that are not known yet.
    #[must_use]
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.ring.fd()
    }

    /// Takes the stacks that are not known yet, as many as a moment allows. Until this is done their captures do not
    /// [`Self::resolve`].
    pub(super) fn drain(&mut self, host: &Host) {
        let now = || host.clock.now().monotonic;
        let end = now() + DRAIN_MAX;
        for _ in 0..RECORDS_MAX {
            let Some(record) = self.ring.next(Record::read) else {
                self.lost.is_behind = false;
                return;
            };
            match record {
                Some(Record::Copied(copied)) => self.follow(host, &copied),
                Some(Record::Walk(walk)) => {
                    self.remember(host, walk.tgid, walk.reference, &walk.ips[..walk_len(&walk)]);
                }
                None => {}
            }
            if now() >= end {
                break;
            }
        }
        self.lost.is_behind = true;
    }

    /// Takes all that are not known yet, but for no longer than somebody waits for an answer: they may come faster.
    pub(super) fn drain_all(&mut self, host: &Host) {
        let end = host.clock.now().monotonic + DRAIN_ALL_MAX;
        self.drain(host);
        while self.lost.is_behind && host.clock.now().monotonic < end {
            self.drain(host);
        }
    }

    /// The stack of a capture; `None` when it could not be told, or is not told yet.
    #[must_use]
    pub(super) fn resolve(&self, reference: u64) -> Option<StackId> {
        self.references.get(&reference).and_then(|found| found.stack)
    }

    /// The frames of a stack, innermost first, without names.
    #[must_use]
    pub(super) fn frames(&self, id: StackId) -> Vec<Frame> {
        let frame = |place: &Place| Frame {
            module: place.loaded.as_ref().map(|loaded| loaded.image.path.clone()),
            offset: place.offset,
            image: place.loaded.as_ref().map(|loaded| Arc::clone(&loaded.image)),
            ..Frame::default()
        };
        self.stacks.get(&id).map(|places| places.iter().map(frame).collect()).unwrap_or_default()
    }

    /// Captures that led to no stack.
    #[must_use]
    pub(super) fn lost(&self) -> Lost {
        self.lost
    }

    /// References that are remembered.
    #[must_use]
    pub(super) fn references(&self) -> usize {
        self.references.len()
    }

    /// Forgets the captures of which `used` says no: their descriptors are closed. A stack that is captured again
    /// comes anew.
    pub(super) fn retain(&mut self, mut used: impl FnMut(u64) -> bool) {
        let known = &mut self.known;
        self.references.retain(|reference, _| {
            let used = used(*reference);
            if !used && reference & TOKEN == 0 {
                known.remove(reference);
            }
            used
        });
        self.forget_stacks();
    }

    /// Looks whether a process has unloaded code or runs another program: what is known of its code does not hold then.
    /// What was captured before still does.
    pub(super) fn refresh(&mut self, host: &Host) {
        let pids: Vec<u32> = self.spaces.keys().copied().collect();
        for pid in pids {
            let Some(space) = self.spaces.get_mut(&pid) else { continue };
            let was_silent = space.is_silent();
            (space.stuck, space.looks) = (0, 0);
            if !space.look(host, pid) {
                self.forget_rules(pid);
            } else if was_silent {
                // It is in the table already, which cannot be full.
                _ = self.processes.insert(&pid, &space.process());
            }
        }
    }

    /// Forgets all of a process, and of those that are no more what only they had.
    pub(super) fn forget_process(&mut self, pid: u32) {
        self.forget_rules(pid);
        let known = &mut self.known;
        self.references.retain(|reference, found| {
            if found.pid == pid && reference & TOKEN == 0 {
                known.remove(reference);
            }
            found.pid != pid
        });
        self.forget_stacks();
    }

    fn forget_rules(&mut self, pid: u32) {
        let Some(space) = self.spaces.remove(&pid) else { return };
        self.processes.remove(&pid);
        for (first, ip) in space.ruled() {
            self.rules.remove(&RuleKey { epoch: space.epoch, first: u32::from(first), ip });
        }
        drop(space);
        self.images.forget_unused();
    }

    fn forget_stacks(&mut self) {
        let mut used: Vec<StackId> = self.references.values().filter_map(|found| found.stack).collect();
        used.sort_unstable();
        self.stacks.retain(|id, _| used.binary_search(id).is_ok());
        self.ids.retain(|_, id| used.binary_search(id).is_ok());
        self.images.forget_unused();
    }

    /// A stack with places that have no rule yet.
    fn follow(&mut self, host: &Host, copied: &Copied) {
        let walk = &copied.walk;
        let Some(mut space) = self.space(host, walk) else { return };
        let mut followed = self.follow_in(&mut space, host, copied, false);
        let mut has_learned = !followed.made.is_empty();
        // Code that is not known: a library that was loaded since.
        if followed.end == End::Strange && space.looks < LOOKS_MAX {
            space.looks += 1;
            if !space.look(host, walk.tgid) {
                self.spaces.insert(walk.tgid, space);
                self.forget_rules(walk.tgid);
                self.lost.gone += 1;
                return;
            }
            followed = self.follow_in(&mut space, host, copied, true);
            has_learned |= !followed.made.is_empty();
        }
        if followed.end != End::Reached {
            self.lost.cut += 1;
            space.stuck += u32::from(!has_learned);
            // Without a rule it is not in the table, and there is no room for one that has none.
            if space.is_silent() && self.processes.get(&walk.tgid).is_some() {
                _ = self.processes.insert(&walk.tgid, &space.process());
            }
            self.spaces.insert(walk.tgid, space);
            return;
        }
        self.spaces.insert(walk.tgid, space);
        self.remember(host, walk.tgid, walk.reference, &followed.ips);
    }

    fn follow_in(&mut self, space: &mut Space, host: &Host, copied: &Copied, complete: bool) -> Followed {
        let Self { images, context, .. } = self;
        let pid = copied.walk.tgid;
        let mut access = Access { host, pid, images, context, complete };
        let followed = space.follow(copied, ADDRESS_BITS, &mut access);
        self.teach(pid, space, &followed.made);
        followed
    }

    /// The process as it was when the stack was captured.
    fn space(&mut self, host: &Host, walk: &Walk) -> Option<Space> {
        let pid = walk.tgid;
        if self.spaces.get(&pid).is_some_and(|space| space.identity != walk.identity) {
            self.forget_rules(pid);
        }
        if let Some(space) = self.spaces.remove(&pid) {
            return Some(space);
        }
        if self.spaces.len() >= PROCESSES_MAX {
            self.lost.full += 1;
            return None;
        }
        self.epochs = self.epochs.wrapping_add(1).max(1);
        let space = Space::read(host, pid, walk.identity, self.epochs).filter(|_| is_same(host, walk));
        if space.is_none() {
            self.lost.gone += 1;
        }
        space
    }

    /// Hands new rules to the kernel, and then the process to which they belong.
    fn teach(&mut self, pid: u32, space: &Space, made: &[((bool, u64), Rule)]) {
        if made.is_empty() {
            return;
        }
        for ((first, ip), rule) in made {
            let key = RuleKey { epoch: space.epoch, first: u32::from(*first), ip: *ip };
            if self.rules.insert(&key, rule).is_err() {
                self.lost.full += 1;
            }
        }
        if self.processes.insert(&pid, &space.process()).is_err() {
            self.lost.full += 1;
        }
    }

    fn remember(&mut self, host: &Host, pid: u32, reference: u64, ips: &[u64]) {
        if ips.is_empty() {
            self.lost.cut += 1;
            return;
        }
        if self.references.len() >= REFERENCES_MAX {
            self.lost.full += 1;
            return;
        }
        let Self { images, context, spaces, .. } = self;
        let Some(space) = spaces.get_mut(&pid) else { return };
        let mut access = Access { host, pid, images, context, complete: false };
        let places = space.places(ips, &mut access);
        let hash = ips.iter().fold(StackHash::new(space.epoch), |hash, ip| hash.with(*ip)).reference();
        let stack = match places.map(|places| self.intern(places)) {
            Ok(Some(stack)) => Some(stack),
            Ok(None) => {
                self.lost.full += 1;
                return;
            }
            // It ends in that file, whoever called what is in it: it would stand for all of them.
            Err(Unread) => {
                self.lost.unread += 1;
                None
            }
        };
        for reference in [reference, hash] {
            self.references.insert(reference, Reference { pid, stack });
        }
        if self.known.insert(&hash, &1).is_err() {
            self.lost.full += 1;
        }
    }

    fn intern(&mut self, places: Vec<Place>) -> Option<StackId> {
        let address = |place: &Place| place.loaded.as_ref().map_or(0, |loaded| Arc::as_ptr(loaded).addr());
        let key: Box<[(usize, u64)]> = places.iter().map(|place| (address(place), place.offset)).collect();
        if let Some(id) = self.ids.get(&key) {
            return Some(*id);
        }
        if self.stacks.len() >= STACKS_MAX {
            return None;
        }
        let id = StackId(self.next);
        self.next = self.next.wrapping_add(1);
        self.stacks.insert(id, places.into());
        self.ids.insert(key, id);
        Some(id)
    }
}

fn walk_len(walk: &Walk) -> usize {
    (walk.frames as usize).min(walk.ips.len())
}

/// The process that has the number now is the one that was captured.
fn is_same(host: &Host, walk: &Walk) -> bool {
    let tick_ns = 1_000_000_000_u64.checked_div(os::ticks_per_second());
    let Some(tick_ns) = tick_ns.filter(|_| walk.start_boottime_ns != 0) else { return true };
    Process::thread(host, walk.tgid).start_ticks() == Some(walk.start_boottime_ns / tick_ns)
}

#[cfg(test)]
mod tests;
