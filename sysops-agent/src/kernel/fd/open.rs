//! The descriptors of one process as /proc shows them, each with the stack that took it if the programs saw it. What does
//! not fit together is dropped: a descriptor without a stack is said to be one, and none is given to a wrong stack.

use std::collections::BTreeMap;
use std::mem::MaybeUninit;
use std::time::Duration;

use rustix::io::Errno;
use sysops_common::fd::{Descriptor, Held};

use super::kind::Link;
use crate::host::Descriptors;
use crate::host::descriptors::LINK_BYTES;
use crate::kernel::loader::Table;
use crate::kernel::stacks::{StackId, Stacks};
use crate::kernel::syscalls;

/// A program may have looked at the clock so long before the descriptor was there to be seen.
const SLACK: Duration = Duration::from_millis(50);
/// Descriptors that are listed at once.
const SLICE: usize = 4096;
/// Most descriptors of a process that are kept though the programs said nothing of them. Of the others there are as many as
/// the programs have room for.
const OTHERS_MAX: usize = 1 << 16;

/// What is needed to look.
pub(super) struct Look<'a> {
    pub descriptors: &'a mut Descriptors,
    pub held: &'a mut Table<Descriptor, Held>,
    pub stacks: &'a Stacks,
    /// Room for numbers.
    pub listed: &'a mut Vec<u32>,
}

/// A process whose descriptors are followed.
pub(super) struct Open {
    pid: u32,
    /// CLOCK_MONOTONIC since when it is watched.
    since: Duration,
    known: BTreeMap<u32, Known>,
    /// How many of these the programs said nothing of, as of the last look.
    others: usize,
    /// Where the next look begins.
    cursor: u32,
    /// When this and the previous pass over all descriptors began; the previous one only once there was one.
    pass: Duration,
    previous: Option<Duration>,
}

/// An open descriptor.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Known {
    /// What the programs said when it was taken; 0 where they said nothing.
    reference: u64,
    taken: Duration,
    inode: u64,
    /// What it stands for.
    pub link: Link,
    /// Who took it.
    pub owner: Owner,
}

/// Who took a descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    /// This stack.
    Stack(StackId),
    /// The same in the process that it was inherited from.
    Inherited(StackId, u32),
    /// It was open before the process was watched.
    Before,
    /// It came by a way that is not seen, or what was remembered is of another file.
    Unseen,
    /// The stack could not be taken, or not be unwound.
    Stackless,
}

impl Known {
    /// For tests: one that this stack took.
    #[cfg(all(test, feature = "ebpf"))]
    pub(super) fn of(stack: StackId, taken: Duration) -> Self {
        let link = Link::parse(b"socket:[7]");
        Self { reference: 1, taken, inode: 7, link, owner: Owner::Stack(stack) }
    }

    /// When it was taken, on CLOCK_MONOTONIC; `None` when nobody knows.
    #[must_use]
    pub(super) fn taken(&self) -> Option<Duration> {
        (!self.taken.is_zero()).then_some(self.taken)
    }

    /// Its stack may have been unwound by now.
    fn resolve(&mut self, stacks: &Stacks) {
        if self.owner == Owner::Stackless && self.reference != 0 {
            self.owner = stacks.resolve(self.reference).map_or(Owner::Stackless, Owner::Stack);
        }
    }

    /// The reference to its stack that is still needed.
    #[must_use]
    pub(super) fn reference(&self) -> Option<u64> {
        (self.reference != 0).then_some(self.reference)
    }
}

impl Open {
    /// Of the process `pid`, which is watched from `since` on.
    #[must_use]
    pub(super) fn new(pid: u32, since: Duration) -> Self {
        Self { pid, since, known: BTreeMap::new(), others: 0, cursor: 0, pass: since, previous: None }
    }

    /// All that is open, as of the last looks.
    pub(super) fn known(&self) -> impl Iterator<Item = &Known> {
        self.known.values()
    }

    /// True when all descriptors were looked at at least once, and none had to be left out.
    #[must_use]
    pub(super) fn is_whole(&self) -> bool {
        self.previous.is_some() && self.others < OTHERS_MAX
    }

    /// Those of which the programs said something when they were seen last.
    pub(super) fn remembered(&self) -> impl Iterator<Item = Descriptor> {
        let remembered = self.known.iter().filter(|(_, known)| !known.taken.is_zero());
        remembered.map(|(&fd, _)| Descriptor { tgid: self.pid, fd })
    }

    /// Looks at up to `most` descriptors, from where the last look ended; true when that was the end of the list. With
    /// `thorough` each is held against what it was when it was taken, though nothing has changed.
    ///
    /// # Errors
    /// When the process is gone or closed to this user.
    pub(super) fn look(
        &mut self,
        look: &mut Look<'_>,
        now: Duration,
        most: usize,
        thorough: bool,
    ) -> Result<bool, Errno> {
        let from = self.cursor;
        if from == 0 {
            self.pass = now;
        }
        let mut listed = std::mem::take(look.listed);
        let whole = look.descriptors.list(self.pid, from, most, &mut listed);
        let whole = whole.inspect_err(|_| look.listed.clear())?;
        let end = if whole { u32::MAX } else { listed.last().map_or(u32::MAX, |last| last + 1) };
        self.drop_closed(look, from, end, &listed);
        self.others = self.known.values().filter(|known| known.taken.is_zero()).count();
        for &fd in &listed {
            self.see(look, fd, thorough);
        }
        *look.listed = listed;
        self.cursor = if whole { 0 } else { end };
        if whole {
            self.previous = Some(self.pass);
        }
        Ok(whole)
    }

    /// Looks at all descriptors thoroughly, from the first on, but at no more than `most`.
    pub(super) fn look_at_all(&mut self, look: &mut Look<'_>, now: Duration, most: usize) {
        self.cursor = 0;
        let mut left = most;
        while left > 0 && self.look(look, now, left.min(SLICE), true) == Ok(false) {
            left = left.saturating_sub(look.listed.len());
        }
        self.cursor = 0;
    }

    /// Attributes those of which the stack was not known yet when they were looked at.
    pub(super) fn resolve(&mut self, stacks: &Stacks) {
        self.known.values_mut().for_each(|known| known.resolve(stacks));
    }

    /// Forgets descriptors between `from` and `end` that are not open any more.
    fn drop_closed(&mut self, look: &mut Look<'_>, from: u32, end: u32, listed: &[u32]) {
        let pid = self.pid;
        // Both are in order.
        let mut open = listed.iter().copied().peekable();
        let mut closed = |fd: u32| {
            while open.next_if(|&listed| listed < fd).is_some() {}
            open.peek() != Some(&fd)
        };
        let mut drop_from = |fd: u32, known: &Known| {
            let gone = fd >= from && (fd < end || end == u32::MAX) && closed(fd);
            if gone && !known.taken.is_zero() {
                forget(look.held, Descriptor { tgid: pid, fd }, known.taken);
            }
            gone
        };
        self.known.retain(|&fd, known| !drop_from(fd, known));
    }

    /// Looks at one descriptor, which may have been closed.
    pub(super) fn see(&mut self, look: &mut Look<'_>, fd: u32, thorough: bool) {
        let key = Descriptor { tgid: self.pid, fd };
        let held = look.held.get(&key).filter(|held| self.is_current(fd, held));
        let taken = held.map_or(Duration::ZERO, |held| Duration::from_nanos(held.monotonic_ns));
        let full = held.is_none() && self.others >= OTHERS_MAX;
        match self.known.get_mut(&fd) {
            // Nothing has changed.
            Some(known) if known.taken == taken => {
                known.resolve(look.stacks);
                let is_attributed = matches!(known.owner, Owner::Stack(_));
                if !is_attributed || (known.link.has_path() && !thorough) {
                    return;
                }
            }
            None if full => return,
            _ => {}
        }
        let Some(link) = self.link(look, fd) else {
            if let Some(known) = self.known.remove(&fd).filter(|known| !known.taken.is_zero()) {
                forget(look.held, key, known.taken);
            }
            return;
        };
        let known = match held {
            None => {
                self.others += usize::from(!self.known.contains_key(&fd));
                let owner = if self.previous.is_none() && !self.known.contains_key(&fd) {
                    Owner::Before
                } else {
                    Owner::Unseen
                };
                Known { reference: 0, taken, inode: 0, link, owner }
            }
            Some(held) if self.is_as_it_was(fd, taken, link) && self.is_the_same(look, fd, &held, link) => {
                let owner = look.stacks.resolve(held.stack).map_or(Owner::Stackless, Owner::Stack);
                Known { reference: held.stack, taken, inode: held.inode, link, owner }
            }
            Some(held) => {
                // It may be that it was closed and taken again between the two looks: then the next look will tell.
                if look.held.get(&key) != Some(held) {
                    self.known.remove(&fd);
                    return;
                }
                forget(look.held, key, taken);
                Known { reference: 0, taken: Duration::ZERO, inode: 0, link, owner: Owner::Unseen }
            }
        };
        self.known.insert(fd, known);
    }

    /// False for what was remembered of a descriptor that has been closed unseen: one from before the process was watched, or
    /// one that was not open at the previous pass though it is older than that.
    fn is_current(&self, fd: u32, held: &Held) -> bool {
        let taken = Duration::from_nanos(held.monotonic_ns);
        let was_there = || self.known.get(&fd).is_some_and(|known| known.taken == taken);
        let is_new = self.previous.is_none_or(|previous| taken + SLACK >= previous);
        taken >= self.since && (is_new || was_there())
    }

    fn link(&self, look: &Look<'_>, fd: u32) -> Option<Link> {
        let mut buffer = [MaybeUninit::uninit(); LINK_BYTES];
        look.descriptors.link(self.pid, fd, &mut buffer).ok().map(Link::parse)
    }

    /// False when it was something else at an earlier look, though the programs saw no one take it since. Paths may change.
    fn is_as_it_was(&self, fd: u32, taken: Duration, link: Link) -> bool {
        let known = self.known.get(&fd).filter(|known| known.taken == taken);
        known.is_none_or(|known| known.link == link || (known.link.has_path() && link.has_path()))
    }

    /// True when nothing speaks against the descriptor being what it was when it was taken.
    fn is_the_same(&self, look: &Look<'_>, fd: u32, held: &Held, link: Link) -> bool {
        if syscalls::makes(held.call).is_some_and(|kind| kind != link.kind) {
            return false;
        }
        if held.inode == 0 {
            return true;
        }
        let inode = match link.inode {
            Some(inode) => Some(inode),
            None if link.has_path() => look.descriptors.inode(self.pid, fd).ok().flatten(),
            // All of the kernel's nameless files share one.
            None => None,
        };
        inode.is_none_or(|inode| inode == held.inode)
    }

    /// Gives this process, which has just come to be watched, what it has in common with its parent.
    pub(super) fn inherit(&mut self, parent: &Self) {
        for (fd, known) in &mut self.known {
            // Only these have an inode that no other file has: it is the very same open file.
            let is_unique = matches!(known.link.kind, "socket" | "pipe") && known.owner == Owner::Before;
            let same = parent.known.get(fd).filter(|theirs| is_unique && theirs.link == known.link);
            if let Some((theirs, Owner::Stack(stack))) = same.map(|theirs| (theirs, theirs.owner)) {
                known.owner = Owner::Inherited(stack, parent.pid);
                known.inode = theirs.inode;
            }
        }
    }
}

/// Removes what is remembered of a descriptor, unless it is of a later one.
fn forget(held: &mut Table<Descriptor, Held>, key: Descriptor, taken: Duration) {
    if held.get(&key).is_some_and(|held| Duration::from_nanos(held.monotonic_ns) == taken) {
        held.remove(&key);
    }
}
