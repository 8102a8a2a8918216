//! What the threads and tasks of the outbox share: the queue under one lock, held for moments and never over disk or network.

use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::line::{Line, Loss};
use super::queue::{CRITICAL, Entry, Kept, PATIENCE, Queue, rank};
use super::seen::Seen;
use crate::deliver::spool::record::BODY_MAX;
use crate::deliver::spool::{Found, Place};
use crate::model::{Fate, Notice, Outcome};

/// Where the clock of the queue begins, so that what was accepted in an earlier life has a place on it.
const BEFORE: Duration = Duration::from_secs(400 * 86_400);

/// Numbers of notices of this life begin behind all that may be found on disk.
const FIRST: u64 = 1 << 40;

/// Text of notices that memory holds while the disk takes nothing.
const MEMORY_BYTES: u64 = 16 << 20;

/// However old what is found on disk may be, it has this time to be delivered.
const GRACE: Duration = Duration::from_secs(600);

/// Most channels that the outbox ever knows: those of the list, and names that an older agent left in the spool.
const LINES_MAX: usize = 64;

/// Reads the wall clock.
pub type Wall = Arc<dyn Fn() -> SystemTime + Send + Sync>;

pub(super) struct Shared {
    state: Mutex<State>,
    /// There is something to write, or to read, or it is over.
    pub(super) work: Condvar,
    pub(super) reading: Condvar,
    /// The spool was opened, or cannot be.
    pub(super) settled: Condvar,
    /// Something waits for the disk.
    pub(super) unready: Notify,
    /// The one who writes has ended.
    pub(super) ended: Notify,
    pub(super) durable: watch::Sender<u64>,
    pub(super) wall: Wall,
    started: Instant,
}

pub(super) struct State {
    pub(super) queue: Queue,
    pub(super) limits: Limits,
    pub(super) disk: Disk,
    /// Notices that were given up, for the one who writes.
    pub(super) parked: Vec<Park>,
    watchers: HashMap<u64, UnboundedSender<Outcome>>,
    /// Nothing that comes after this time is waited for.
    pub(super) closing: Option<Duration>,
    /// The threads are to end.
    pub(super) ending: bool,
    pub(super) repeated: u64,
}

/// What is configured.
#[derive(Clone, Copy)]
pub(super) struct Limits {
    pub(super) age_max: Duration,
    pub(super) bytes_max: u64,
    pub(super) capacity: usize,
}

/// How the disk does.
#[derive(Default)]
pub(super) struct Disk {
    /// There is to be a spool.
    pub(super) wanted: bool,
    pub(super) settled: bool,
    /// What keeps notices from the disk.
    pub(super) problem: Option<String>,
    pub(super) next_number: u64,
    pub(super) bytes: u64,
    pub(super) not_durable: u64,
    pub(super) damaged: u64,
    pub(super) recovered: u64,
    pub(super) recovery: Duration,
}

/// A notice that was given up.
pub(super) struct Park {
    pub(super) json: Option<Arc<[u8]>>,
    pub(super) place: Option<(Place, u64)>,
    pub(super) channel: String,
    pub(super) reason: String,
    pub(super) time: SystemTime,
}

impl Shared {
    pub(super) fn new(limits: Limits, wanted: bool, wall: Wall) -> Self {
        let queue = Queue::after(FIRST);
        let state = State {
            queue,
            limits,
            disk: Disk { wanted, ..Disk::default() },
            parked: Vec::new(),
            watchers: HashMap::new(),
            closing: None,
            ending: false,
            repeated: 0,
        };
        Self {
            state: Mutex::new(state),
            work: Condvar::new(),
            reading: Condvar::new(),
            settled: Condvar::new(),
            unready: Notify::new(),
            ended: Notify::new(),
            durable: watch::Sender::new(FIRST),
            wall,
            started: Instant::now(),
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing is done under this lock that could leave the queue half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn now(&self) -> Duration {
        BEFORE + self.started.elapsed()
    }

    pub(super) fn instant(&self, time: Duration) -> Instant {
        self.started + time.saturating_sub(BEFORE)
    }

    /// Takes a notice in. Gives the channels that it is for: none when it was taken in before.
    pub(super) fn accept(&self, notice: &Notice, watcher: Option<UnboundedSender<Outcome>>) -> Vec<String> {
        let now = self.now();
        let mut state = self.lock();
        let wanting = |line: &Line| line.worker.is_some() && line.wants(notice);
        let (mut pending, mut durable) = (0, 0);
        for (index, line) in state.queue.lines.iter().enumerate().filter(|(_, line)| wanting(line)) {
            pending |= 1 << index;
            durable |= u64::from(line.durable) << index;
        }
        if pending == 0 {
            return Vec::new();
        }
        let id = Seen::digest(&notice.id);
        if !notice.id.is_empty() && !state.queue.is_new(id) {
            state.repeated += 1;
            return Vec::new();
        }
        let json: Arc<[u8]> = serde_json::to_vec(notice).expect("maps of a notice have texts as keys").into();
        let too_long = json.len() as u64 > (state.limits.bytes_max / 8).min(BODY_MAX as u64 - (64 << 10));
        let for_disk = state.disk.wanted && durable != 0;
        let kept = if for_disk && !too_long { Kept::Memory } else { Kept::Never };
        let ready = kept == Kept::Never || state.disk.problem.is_some();
        state.disk.not_durable += u64::from(for_disk && ready);
        let seq = state.queue.last + 1;
        let names = state.queue.lines.iter().filter(|line| wanting(line)).map(|line| line.name.clone()).collect();
        state.watchers.extend(watcher.map(|watcher| (seq, watcher)));
        let bytes = u32::try_from(json.len()).unwrap_or(u32::MAX);
        let alerts = notice.alerts.iter().map(|alert| alert.fingerprint).collect();
        let accepted = (self.wall)().duration_since(UNIX_EPOCH).unwrap_or_default();
        let resolved = notice.status() == crate::model::Status::Resolved;
        let rank = rank(notice);
        state.queue.add(
            seq,
            Entry { born: now, accepted, rank, resolved, alerts, bytes, pending, ready, ..Entry::new(id, kept, json) },
        );
        state.keep_bounds(pending);
        for line in state.queue.lines.iter_mut().filter(|line| wanting(line)) {
            if rank >= CRITICAL {
                line.hurry();
            }
            if ready || !line.durable {
                line.wake.notify_one();
            }
        }
        self.publish(&state);
        drop(state);
        if kept == Kept::Memory {
            self.work.notify_one();
            self.unready.notify_one();
        }
        names
    }

    /// Tells who waits for it up to where all is on disk.
    pub(super) fn publish(&self, state: &State) {
        let durable = state.durable();
        self.durable.send_if_modified(|value| std::mem::replace(value, durable) != durable);
    }

    /// Takes in what was found on disk.
    pub(super) fn recover(&self, found: Found, took: Duration) {
        let (now, wall) = (self.now(), (self.wall)().duration_since(UNIX_EPOCH).unwrap_or_default());
        let mut state = self.lock();
        state.disk.next_number = found.next;
        state.disk.damaged += found.damaged;
        state.disk.recovered = found.waiting.len() as u64;
        state.disk.recovery = took;
        found.seen.iter().for_each(|id| _ = state.queue.is_new(*id));
        let age_max = state.limits.age_max;
        for (seq, (envelope, place)) in (1..).zip(found.waiting) {
            // A clock that was set back since says nothing about the age.
            let age = wall.checked_sub(envelope.accepted).unwrap_or(age_max / 2);
            let age = age.min(age_max.saturating_sub(GRACE.min(age_max / 2)));
            let pending =
                envelope.channels.iter().filter_map(|name| state.line(name)).fold(0, |all, line| all | 1 << line);
            if pending == 0 {
                state.queue.released.push(place);
                continue;
            }
            let entry = Entry {
                number: Some(envelope.number),
                born: now.saturating_sub(age),
                accepted: envelope.accepted,
                rank: envelope.rank,
                resolved: envelope.resolved,
                alerts: envelope.alerts,
                bytes: place.length,
                pending,
                ready: true,
                json: None,
                ..Entry::new(envelope.id, Kept::Disk(place), Arc::default())
            };
            state.queue.add(seq, entry);
        }
        state.queue.lines.iter().for_each(|line| line.wake.notify_one());
    }
}

impl State {
    /// All up to this one are on disk, or need not be any more.
    pub(super) fn durable(&self) -> u64 {
        self.queue.undurable.first().map_or(self.queue.last, |first| first - 1)
    }

    /// The line of this name, made where it is not.
    pub(super) fn line(&mut self, name: &str) -> Option<usize> {
        let lines = &mut self.queue.lines;
        lines.iter().position(|line| line.name == name).or_else(|| {
            (lines.len() < LINES_MAX).then(|| {
                lines.push(Line::new(name));
                lines.len() - 1
            })
        })
    }

    /// What is in memory only is bounded.
    fn keep_bounds(&mut self, pending: u64) {
        for line in 0..self.queue.lines.len() {
            let one = &self.queue.lines[line];
            if pending & 1 << line == 0 || one.durable || one.waiting <= self.limits.capacity {
                continue;
            }
            if let Some(seq) = self.queue.least_of(line) {
                self.queue.finish(line, seq);
                self.lost(line, seq, Loss::QueueFull);
            }
        }
        let excess = self.queue.text_bytes.saturating_sub(MEMORY_BYTES);
        for (line, seq) in self.queue.give_up(false, excess) {
            self.lost(line, seq, Loss::MemoryFull);
        }
    }

    /// The far end of `line` took them.
    pub(super) fn delivered(&mut self, line: usize, seqs: &[u64], answer: &str) {
        self.queue.lines[line].on_its_way.clear();
        self.queue.lines[line].succeeded();
        for seq in seqs {
            self.queue.lines[line].delivered += u64::from(self.queue.finish(line, *seq));
            self.tell(line, *seq, Fate::Delivered { answer: answer.to_owned() });
        }
    }

    /// Gives a notice up, and has its text kept.
    pub(super) fn park(&mut self, line: usize, seq: u64, reason: &str, time: SystemTime) {
        self.queue.lines[line].on_its_way.retain(|other| *other != seq);
        let Some(entry) = self.queue.entries.get(&seq).filter(|_| self.queue.waits(line, seq)) else { return };
        let channel = self.queue.lines[line].name.clone();
        let place = match (entry.kept, entry.number) {
            (Kept::Disk(place), Some(number)) => Some((place, number)),
            _ => None,
        };
        if self.disk.wanted && self.disk.problem.is_none() {
            let (json, reason) = (entry.json.clone(), reason.to_owned());
            self.parked.push(Park { json, place, channel, reason, time });
        }
        self.queue.finish(line, seq);
        self.queue.lines[line].parked += 1;
        self.tell(line, seq, Fate::Parked { reason: reason.to_owned() });
    }

    /// A notice was given up for want of room, or cannot be read. Said when it is the first, the second, the fourth, …
    pub(super) fn lost(&mut self, line: usize, seq: u64, loss: Loss) {
        let one = &mut self.queue.lines[line];
        let count = &mut one.lost[loss as usize];
        *count += 1;
        if count.is_power_of_two() {
            let (channel, reason) = (one.name.as_str(), loss.name());
            tracing::error!(channel, reason, lost = *count, "an alert that waited for the channel is lost");
        }
        self.tell(line, seq, Fate::Parked { reason: format!("lost: {}", loss.name()) });
    }

    /// Tells who watches the notice.
    pub(super) fn tell(&mut self, line: usize, seq: u64, result: Fate) {
        let Some(watcher) = self.watchers.get(&seq) else { return };
        // Who does not listen any more is not told.
        let _ = watcher.send(Outcome { channel: self.queue.lines[line].name.clone(), result });
        if !self.queue.entries.contains_key(&seq) {
            self.watchers.remove(&seq);
        }
    }

    /// What has waited for too long, whether its channel is enabled or not.
    pub(super) fn expire(&mut self, now: Duration, time: SystemTime) {
        let age_max = self.limits.age_max;
        let is_old = |entry: &Entry| now.saturating_sub(entry.born) >= age_max;
        let old: Vec<u64> = self.queue.entries.iter().filter(|(_, entry)| is_old(entry)).map(|(seq, _)| *seq).collect();
        for seq in old {
            for line in 0..self.queue.lines.len() {
                let one = &self.queue.lines[line];
                if !self.queue.waits(line, seq) || one.on_its_way.contains(&seq) {
                    continue;
                }
                let last = one.last_error.as_deref().unwrap_or("the channel was not tried");
                let reason = format!("not delivered within {} s: {last}", age_max.as_secs());
                tracing::error!(channel = one.name, reason, "alert parked");
                self.park(line, seq, &reason, time);
            }
        }
    }

    /// Lets go out what has waited for the disk for too long. Gives when to look again.
    pub(super) fn lose_patience(&mut self, now: Duration) -> Option<Duration> {
        let Self { queue, disk, .. } = self;
        let mut woken = 0;
        let mut next = None;
        for seq in &queue.undurable {
            let Some(entry) = queue.entries.get_mut(seq).filter(|entry| !entry.ready) else { continue };
            if entry.born + PATIENCE > now {
                next = Some(entry.born + PATIENCE);
                break;
            }
            entry.ready = true;
            disk.not_durable += 1;
            woken |= entry.pending;
        }
        for (index, line) in queue.lines.iter().enumerate() {
            if woken & 1 << index != 0 {
                line.wake.notify_one();
            }
        }
        next
    }

    /// Lets all go out, on disk or not.
    pub(super) fn make_ready(&mut self) {
        for seq in &self.queue.undurable {
            if let Some(entry) = self.queue.entries.get_mut(seq).filter(|entry| !entry.ready) {
                entry.ready = true;
                self.disk.not_durable += 1;
            }
        }
        self.queue.lines.iter().for_each(|line| line.wake.notify_one());
    }
}
