//! What waits for which channel, and who is next. Pure: time comes in as a parameter, disk and network are not known here.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use super::line::Line;
use super::seen::Seen;
use crate::deliver::spool::Place;
use crate::model::{Notice, Severity, Status};

/// How many ranks there are.
pub(super) const RANKS: usize = 6;

/// Notices of this rank and above are critical and not over.
pub(super) const CRITICAL: u8 = 4;

/// For how long a notice waits for the disk before it goes out all the same.
pub(super) const PATIENCE: Duration = Duration::from_secs(1);

/// Text that is kept in memory although it is on disk.
const TEXT_BYTES: u64 = 4 << 20;

/// How much a notice matters: the highest goes out first, the lowest is given up first. That an alert is over is worth less
/// than that it fires, and more than what is milder.
pub(super) fn rank(notice: &Notice) -> u8 {
    match (notice.severity(), notice.status()) {
        (Severity::Info, _) => 0,
        (Severity::Warn, Status::Resolved) => 1,
        (Severity::Warn, Status::Firing) => 2,
        (Severity::Critical | Severity::Emergency, Status::Resolved) => 3,
        (Severity::Critical, Status::Firing) => CRITICAL,
        (Severity::Emergency, Status::Firing) => 5,
    }
}

/// A notice that waits for at least one channel.
pub(super) struct Entry {
    pub(super) kept: Kept,
    /// Its number on disk, once it has been written or was about to.
    pub(super) number: Option<u64>,
    /// When it was accepted, on the clock of [`Queue`].
    pub(super) born: Duration,
    /// When it was accepted, from the Unix epoch.
    pub(super) accepted: Duration,
    pub(super) id: u64,
    pub(super) rank: u8,
    pub(super) resolved: bool,
    pub(super) alerts: Box<[u64]>,
    /// Its JSON, unless that is on disk only.
    pub(super) json: Option<Arc<[u8]>>,
    pub(super) bytes: u32,
    /// Lines that it waits for, one bit each.
    pub(super) pending: u64,
    /// It may go out: it is on disk, or the disk was given up on.
    pub(super) ready: bool,
    /// Since when its JSON is being read.
    pub(super) reading: Option<Duration>,
}

impl Entry {
    /// Of a notice with this text, which waits for nothing yet.
    pub(super) fn new(id: u64, kept: Kept, json: Arc<[u8]>) -> Self {
        Self {
            kept,
            number: None,
            born: Duration::ZERO,
            accepted: Duration::ZERO,
            id,
            rank: 0,
            resolved: false,
            alerts: Box::default(),
            json: Some(json),
            bytes: 0,
            pending: 0,
            ready: false,
            reading: None,
        }
    }
}

/// Where a notice is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kept {
    /// In memory, and to be written.
    Memory,
    /// In memory, and being written.
    Writing,
    /// On disk.
    Disk(Place),
    /// In memory only: it is for channels that keep nothing, or too long.
    Never,
}

impl Kept {
    /// On disk, or on its way there.
    fn is_on_disk(self) -> bool {
        matches!(self, Self::Disk(_) | Self::Writing)
    }
}

/// What a line is to do.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Pick {
    /// Send `seq`, which tells all that `with` would tell.
    Send { seq: u64, with: Vec<u64>, json: Arc<[u8]> },
    /// Nothing before this time, or before something arrives.
    Wait(Option<Duration>),
}

/// Something on disk that does not wait any more, for the one who writes.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Done {
    pub(super) number: u64,
    pub(super) line: usize,
}

/// All that waits.
#[derive(Default)]
pub(super) struct Queue {
    pub(super) lines: Vec<Line>,
    pub(super) entries: BTreeMap<u64, Entry>,
    /// Entries by alert, oldest first.
    by_alert: HashMap<u64, VecDeque<u64>>,
    /// Digests of the ids of entries.
    ids: HashSet<u64>,
    /// Digests of the ids that were accepted last.
    seen: Seen,
    /// The newest entry there ever was.
    pub(super) last: u64,
    /// Those that are for the disk and not there yet.
    pub(super) undurable: BTreeSet<u64>,
    /// For the one who writes.
    pub(super) done: Vec<Done>,
    /// Places of which the notice waits no more.
    pub(super) released: Vec<Place>,
    /// For the one who reads: entry, place and number.
    pub(super) reads: VecDeque<(u64, Place, u64)>,
    /// Bytes of the records on disk that wait.
    pub(super) disk_bytes: u64,
    /// Bytes of JSON in memory.
    pub(super) text_bytes: u64,
}

impl Queue {
    /// Empty; what is new comes behind `last`.
    pub(super) fn after(last: u64) -> Self {
        Self { last, ..Self::default() }
    }

    /// True when a notice of this id was not accepted before, as far as is remembered.
    pub(super) fn is_new(&mut self, id: u64) -> bool {
        !self.ids.contains(&id) && self.seen.add(id)
    }

    /// Ids that may be remembered on disk: not those of notices that are not there yet. Whoever sends such a one again after a crash
    /// must not be told that it was accepted.
    pub(super) fn accepted(&self) -> Vec<u64> {
        let undurable: HashSet<u64> =
            self.undurable.iter().filter_map(|seq| self.entries.get(seq)).map(|entry| entry.id).collect();
        self.seen.all().filter(|id| !undurable.contains(id)).collect()
    }

    /// Takes in what is new. Its `pending` lines exist.
    pub(super) fn add(&mut self, seq: u64, entry: Entry) {
        self.last = self.last.max(seq);
        self.ids.insert(entry.id);
        if matches!(entry.kept, Kept::Memory | Kept::Writing) {
            self.undurable.insert(seq);
        }
        if let Kept::Disk(_) = entry.kept {
            self.disk_bytes += u64::from(entry.bytes);
        }
        self.text_bytes += entry.json.as_ref().map_or(0, |json| json.len() as u64);
        for alert in &entry.alerts {
            insert(self.by_alert.entry(*alert).or_default(), seq);
        }
        for (index, line) in self.lines.iter_mut().enumerate() {
            if entry.pending & 1 << index != 0 {
                line.waiting += 1;
                line.bytes += u64::from(entry.bytes);
                insert(&mut line.ranks[usize::from(entry.rank).min(RANKS - 1)], seq);
            }
        }
        self.entries.insert(seq, entry);
    }

    /// What is next for the line: the highest rank first, then the oldest, and of one alert always the oldest.
    pub(super) fn pick(&mut self, line: usize, now: Duration) -> Pick {
        self.forget_stale(line);
        let pause = self.lines[line].pause();
        if let Some(until) = pause.filter(|until| *until > now) {
            return Pick::Wait((self.lines[line].waiting > 0).then_some(until));
        }
        let mut soonest: Option<Duration> = None;
        for rank in (0..RANKS).rev() {
            for place in 0..self.lines[line].ranks[rank].len() {
                let seq = self.lines[line].ranks[rank][place];
                if !self.waits(line, seq) {
                    continue;
                }
                let first = self.first_of(line, seq);
                match self.due(line, first, now) {
                    Due::Now => {
                        if let Some(pick) = self.sending(line, first, now) {
                            return pick;
                        }
                    }
                    Due::At(time) => soonest = Some(soonest.map_or(time, |soonest| soonest.min(time))),
                    Due::Unready => {}
                }
            }
        }
        Pick::Wait(soonest)
    }

    /// `first`, or the notice that tells what it would tell; `None` while its text cannot be had.
    fn sending(&mut self, line: usize, first: u64, now: Duration) -> Option<Pick> {
        let (seq, with) = if self.lines[line].grouped { self.collapsed(line, first) } else { (first, Vec::new()) };
        let entry = self.entries.get_mut(&seq)?;
        if let Some(json) = &entry.json {
            return Some(Pick::Send { seq, with, json: Arc::clone(json) });
        }
        let since = *entry.reading.get_or_insert_with(|| {
            if let (Kept::Disk(place), Some(number)) = (entry.kept, entry.number) {
                self.reads.push_back((seq, place, number));
            }
            now
        });
        // Whoever reads has not answered yet. A disk that hangs keeps back what is on it, and nothing else.
        (now < since + PATIENCE).then_some(Pick::Wait(Some(since + PATIENCE)))
    }

    /// The notice that an alert is over stands for those of it that wait before it: who was not told that it fired is told that
    /// it had.
    fn collapsed(&self, line: usize, first: u64) -> (u64, Vec<u64>) {
        let alone = (first, Vec::new());
        let Some(entry) = self.entries.get(&first) else { return alone };
        let ([alert], false) = (&*entry.alerts, entry.resolved) else { return alone };
        let Some(all) = self.by_alert.get(alert) else { return alone };
        let mut with = Vec::new();
        for seq in all.iter().copied().filter(|seq| *seq >= first && self.waits(line, *seq)) {
            let Some(entry) = self.entries.get(&seq) else { return alone };
            if entry.alerts.len() != 1 || !entry.ready {
                return alone;
            }
            if entry.resolved {
                return (seq, with);
            }
            with.push(seq);
        }
        alone
    }

    /// The oldest notice that waits for the line and has an alert in common with `seq`, or with such a one.
    fn first_of(&self, line: usize, seq: u64) -> u64 {
        let mut first = seq;
        while let Some(entry) = self.entries.get(&first) {
            let oldest = |alert| self.by_alert.get(alert)?.iter().copied().find(|seq| self.waits(line, *seq));
            match entry.alerts.iter().filter_map(oldest).min() {
                Some(older) if older < first => first = older,
                _ => break,
            }
        }
        first
    }

    fn due(&self, line: usize, seq: u64, now: Duration) -> Due {
        let line = &self.lines[line];
        let is_ready = self.entries.get(&seq).is_some_and(|entry| entry.ready || !line.durable);
        match line.put_off.get(&seq) {
            _ if !is_ready || line.on_its_way.contains(&seq) => Due::Unready,
            Some(put_off) if put_off.until > now => Due::At(put_off.until),
            _ => Due::Now,
        }
    }

    pub(super) fn waits(&self, line: usize, seq: u64) -> bool {
        self.entries.get(&seq).is_some_and(|entry| entry.pending & 1 << line != 0)
    }

    /// It waits for the line no more. True when it did.
    pub(super) fn finish(&mut self, line: usize, seq: u64) -> bool {
        let Some(entry) = self.entries.get_mut(&seq).filter(|entry| entry.pending & 1 << line != 0) else {
            return false;
        };
        entry.pending &= !(1 << line);
        let (bytes, kept) = (u64::from(entry.bytes), entry.kept);
        // What is being written is spoken of when that is over.
        if let (Some(number), true) = (entry.number, kept != Kept::Writing && self.lines[line].durable) {
            self.done.push(Done { number, line });
        }
        let one = &mut self.lines[line];
        one.waiting -= 1;
        one.bytes -= bytes;
        one.put_off.remove(&seq);
        if entry.pending == 0 {
            self.remove(seq);
        } else if self.text_bytes > TEXT_BYTES {
            self.drop_text(seq);
        }
        true
    }

    fn remove(&mut self, seq: u64) {
        self.drop_text(seq);
        let Some(entry) = self.entries.remove(&seq) else { return };
        self.text_bytes -= entry.json.map_or(0, |json| json.len() as u64);
        self.undurable.remove(&seq);
        self.ids.remove(&entry.id);
        if let Kept::Disk(place) = entry.kept {
            self.disk_bytes -= u64::from(entry.bytes);
            self.released.push(place);
        }
        for alert in &entry.alerts {
            if let Some(all) = self.by_alert.get_mut(alert) {
                all.retain(|other| *other != seq);
                if all.is_empty() {
                    self.by_alert.remove(alert);
                }
            }
        }
    }

    /// The notice is on disk now, as one that waits for the lines of `wrote`.
    pub(super) fn written(&mut self, seq: u64, number: u64, place: Place, wrote: u64) {
        self.undurable.remove(&seq);
        let pending = self.entries.get(&seq).map_or(0, |entry| entry.pending);
        let over = (0..self.lines.len()).filter(|line| wrote & !pending & 1 << line != 0);
        self.done.extend(over.map(|line| Done { number, line }));
        let Some(entry) = self.entries.get_mut(&seq) else {
            self.released.push(place);
            return;
        };
        entry.kept = Kept::Disk(place);
        self.disk_bytes += u64::from(entry.bytes);
        entry.ready = true;
        if self.text_bytes > TEXT_BYTES {
            self.drop_text(seq);
        }
    }

    /// Forgets the text of what is on disk.
    fn drop_text(&mut self, seq: u64) {
        if let Some(entry) = self.entries.get_mut(&seq)
            && matches!(entry.kept, Kept::Disk(_))
            && let Some(json) = entry.json.take()
        {
            self.text_bytes -= json.len() as u64;
        }
    }

    /// The text of a notice was read.
    pub(super) fn read(&mut self, seq: u64, json: Arc<[u8]>) {
        if let Some(entry) = self.entries.get_mut(&seq) {
            entry.reading = None;
            self.text_bytes += json.len() as u64;
            entry.json = Some(json);
        }
    }

    /// The text of a notice could not be read; it is asked for again after `until`.
    pub(super) fn unread(&mut self, seq: u64, until: Duration) {
        let Some(entry) = self.entries.get_mut(&seq) else { return };
        entry.reading = None;
        let pending = entry.pending;
        for (_, line) in self.lines.iter_mut().enumerate().filter(|(line, _)| pending & 1 << line != 0) {
            line.leave_alone(seq, until);
        }
    }

    /// When the oldest that waits for the line was accepted.
    pub(super) fn oldest(&mut self, line: usize) -> Option<Duration> {
        self.forget_stale(line);
        let fronts = self.lines[line].ranks.iter().filter_map(VecDeque::front);
        fronts.filter_map(|seq| self.entries.get(seq)).map(|entry| entry.born).min()
    }

    /// How many of those that wait for the line are on disk.
    pub(super) fn on_disk(&self, line: usize) -> usize {
        let is_kept = |entry: &&Entry| entry.pending & 1 << line != 0 && matches!(entry.kept, Kept::Disk(_));
        if self.lines[line].durable { self.entries.values().filter(is_kept).count() } else { 0 }
    }

    /// True when the notice still stands there.
    pub(super) fn is_at(&self, seq: u64, place: Place) -> bool {
        self.entries.get(&seq).is_some_and(|entry| entry.kept == Kept::Disk(place))
    }

    /// The notice stands at another place of the disk now, as one that waits for the lines of `wrote`. False when it waits no more.
    pub(super) fn moved(&mut self, seq: u64, number: u64, place: Place, wrote: u64) -> bool {
        let pending = self.entries.get(&seq).map_or(0, |entry| entry.pending);
        let over = (0..self.lines.len()).filter(|line| wrote & !pending & 1 << line != 0);
        self.done.extend(over.map(|line| Done { number, line }));
        self.entries.get_mut(&seq).map(|entry| entry.kept = Kept::Disk(place)).is_some()
    }

    /// Has the channels that hold most give up what matters least, oldest first and nothing critical, until `excess` bytes are free
    /// of what is on disk or on its way there; so one that is stuck does not cost the others. What is left to channels that hold
    /// less than `fair` counts as free: they are about to deliver it.
    pub(super) fn give_up_of_most(&mut self, mut excess: u64, fair: u64) -> Vec<(usize, u64)> {
        let mut given = Vec::new();
        let mut spent = vec![false; self.lines.len()];
        while excess > 0 {
            let most = (0..self.lines.len()).filter(|line| !spent[*line] && self.lines[*line].durable);
            let Some(line) = most.max_by_key(|line| self.lines[*line].bytes) else { break };
            let Some(seq) = self.least(line, 0..usize::from(CRITICAL), true) else {
                spent[line] = true;
                continue;
            };
            let bytes = self.entries.get(&seq).map_or(0, |entry| u64::from(entry.bytes));
            self.finish(line, seq);
            let pending = self.entries.get(&seq).map_or(0, |entry| entry.pending);
            let is_held = |(line, one): (usize, &Line)| pending & 1 << line != 0 && one.bytes >= fair;
            if !self.lines.iter().enumerate().any(is_held) {
                excess = excess.saturating_sub(bytes);
            }
            given.push((line, seq));
        }
        given
    }

    /// Gives up what matters least, oldest first and whoever waits for it, until `excess` bytes are free: of what is on disk or on
    /// its way there, or of what is in memory only.
    pub(super) fn give_up(&mut self, on_disk: bool, mut excess: u64) -> Vec<(usize, u64)> {
        let mut victims = Vec::new();
        for rank in 0..RANKS {
            for (seq, entry) in &self.entries {
                if excess == 0 {
                    break;
                }
                let is_sent = self.lines.iter().any(|line| line.on_its_way.contains(seq));
                if usize::from(entry.rank) == rank && entry.kept.is_on_disk() == on_disk && !is_sent {
                    victims.push(*seq);
                    excess = excess.saturating_sub(u64::from(entry.bytes));
                }
            }
        }
        let mut given = Vec::new();
        for seq in victims {
            for line in 0..self.lines.len() {
                if self.finish(line, seq) {
                    given.push((line, seq));
                }
            }
        }
        given
    }

    fn least(&mut self, line: usize, ranks: std::ops::Range<usize>, on_disk: bool) -> Option<u64> {
        self.forget_stale(line);
        let fits = |seq: &u64| {
            self.entries.get(seq).is_some_and(|entry| entry.kept.is_on_disk() == on_disk)
                && self.waits(line, *seq)
                && !self.lines[line].on_its_way.contains(seq)
        };
        self.lines[line].ranks[ranks].iter().find_map(|rank| rank.iter().copied().find(|seq| fits(seq)))
    }

    /// The least of a line that keeps nothing.
    pub(super) fn least_of(&mut self, line: usize) -> Option<u64> {
        self.least(line, 0..RANKS, false)
    }

    /// Lists keep what was finished out of their order until it comes to the front, or is most of them.
    fn forget_stale(&mut self, line: usize) {
        let entries = &self.entries;
        let waits = |seq: &u64| entries.get(seq).is_some_and(|entry| entry.pending & 1 << line != 0);
        let Line { ranks, waiting, .. } = &mut self.lines[line];
        let listed: usize = ranks.iter().map(VecDeque::len).sum();
        for rank in ranks {
            while rank.front().is_some_and(|seq| !waits(seq)) {
                rank.pop_front();
            }
            if listed > *waiting * 2 + 64 {
                rank.retain(waits);
            }
        }
    }
}

/// At its place; what a slow disk gave late is older than what came meanwhile.
fn insert(list: &mut VecDeque<u64>, seq: u64) {
    let place = if list.back().is_none_or(|last| *last < seq) {
        list.len()
    } else {
        list.partition_point(|other| *other < seq)
    };
    list.insert(place, seq);
}

enum Due {
    Now,
    At(Duration),
    Unready,
}
