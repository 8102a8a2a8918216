//! The thread that waits for kernel events: it polls the descriptors of all sources and hands on what comes. It does
//! nothing else, so that a busy main loop does not make a ring buffer overflow.

use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::fs::Timespec;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::mpsc::{Receiver, Sender, channel};

use crate::host::{EventSource, Host};
use crate::kernel::{self, Kernel};
use crate::logs::Kmsg;
use crate::model::{Batch, Event, Tick};

/// Words that may wait for the main loop. A burst beyond it is dropped and counted: the agent must not grow with it.
const INBOX: usize = 1024;

/// Ends of hangs that wait for room in it, more than are ever followed: without its end an alert would fire for ever.
const ENDS: usize = 1024;

/// How soon to look again whether what was handed on is on disk, and whether there is room for what has to wait.
const SETTLES_WITHIN: Duration = Duration::from_millis(250);

/// What the thread says.
pub(crate) enum Word {
    /// Something happened.
    Event(Box<Event>),
    /// Was told in an earlier life of the agent: the same hang goes on, and on being logged.
    Told(Box<Event>),
    /// The sources' own readings, at every interval.
    Readings(Box<Readings>),
}

/// The sources' own readings.
pub(crate) struct Readings {
    pub(crate) batch: Batch,
    pub(crate) tick: Tick,
    pub(crate) standings: Vec<kernel::Standing>,
}

/// The thread.
pub(crate) struct Watch {
    pub(crate) inbox: Receiver<Word>,
    lost: Arc<AtomicU64>,
    settled: Arc<AtomicU64>,
    stop: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    /// Starts to watch; the sources' own readings come every `interval`.
    pub(crate) fn start(host: &Host, kernel: Kernel, kmsg: Option<Kmsg>, interval: Duration) -> std::io::Result<Self> {
        let (words, inbox) = channel(INBOX);
        let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let (lost, settled) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let mut sources = Sources {
            host: host.clone(),
            kernel,
            kmsg,
            out: Out { words, ends: VecDeque::new(), handed_on: 0, lost: Arc::clone(&lost) },
            settled: Arc::clone(&settled),
        };
        let end = Arc::clone(&stop);
        let thread = std::thread::Builder::new()
            .name("watch".to_owned())
            .stack_size(512 << 10)
            .spawn(move || sources.run(&end, interval))?;
        Ok(Self { inbox, lost, settled, stop, thread: Some(thread) })
    }

    /// Events that were dropped because the main loop did not take them.
    pub(crate) fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// Says that what became of the first `events` events is on disk: the log's position may move behind them.
    pub(crate) fn settle(&self, events: u64) {
        self.settled.store(events, Ordering::Relaxed);
    }

    /// Ends the thread. What it has handed on is in the inbox, and the log's position is saved behind what is settled.
    pub(crate) fn stop(&mut self) {
        // 8 bytes, native endian: eventfd(2). It is never full, as nothing else is written to it.
        _ = rustix::io::write(&self.stop, &1_u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            _ = thread.join();
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop();
    }
}

struct Sources {
    host: Host,
    kernel: Kernel,
    kmsg: Option<Kmsg>,
    out: Out,
    settled: Arc<AtomicU64>,
}

/// The way to the main loop.
struct Out {
    words: Sender<Word>,
    /// Those for which there was no room.
    ends: VecDeque<Box<Event>>,
    handed_on: u64,
    lost: Arc<AtomicU64>,
}

impl Out {
    /// Hands on an event. When there is no room it is lost, and counted; the end of a hang waits.
    fn event(&mut self, event: Box<Event>) {
        match self.words.try_send(Word::Event(event)) {
            Ok(()) => self.handed_on += 1,
            Err(TrySendError::Full(Word::Event(event))) if event.is_end() && self.ends.len() < ENDS => {
                self.ends.push_back(event);
            }
            Err(_) => _ = self.lost.fetch_add(1, Ordering::Relaxed),
        }
    }

    /// Hands on what has waited.
    fn again(&mut self) {
        for _ in 0..self.ends.len() {
            if let Some(event) = self.ends.pop_front() {
                self.event(event);
            }
        }
    }

    /// Says a word that can be said again later, or not at all.
    fn say(&self, word: Word) {
        _ = self.words.try_send(word);
    }
}

impl Sources {
    fn run(&mut self, stop: &OwnedFd, interval: Duration) {
        let mut events = Vec::new();
        let mut next = self.host.clock.now().monotonic;
        loop {
            self.hand_on(&mut events);
            let now = self.host.clock.now();
            if now.monotonic >= next {
                self.tell(now);
                next = now.monotonic + interval;
            }
            let is_waiting = !self.is_settled() || !self.out.ends.is_empty();
            let unsettled = is_waiting.then(|| now.monotonic + SETTLES_WITHIN);
            let due = [self.kernel.next_deadline(), self.kmsg.as_ref().and_then(EventSource::next_deadline), unsettled];
            let deadline = due.into_iter().flatten().fold(next, Duration::min);
            if !self.wait(stop, deadline.saturating_sub(now.monotonic)) {
                break;
            }
        }
        self.hand_on(&mut events);
        if self.is_settled()
            && let Some(kmsg) = &mut self.kmsg
        {
            kmsg.save_now();
        }
    }

    /// True when what became of all that was handed on is on disk.
    fn is_settled(&self) -> bool {
        self.settled.load(Ordering::Relaxed) >= self.out.handed_on
    }

    /// Hands on what is there. The log's position is saved when what became of it is on disk: what an agent that dies has not
    /// brought so far is read again.
    fn hand_on(&mut self, events: &mut Vec<Event>) {
        for event in self.kernel.take_told() {
            self.out.say(Word::Told(Box::new(event)));
        }
        self.out.again();
        self.kernel.drain(&self.host, events);
        if let Some(kmsg) = &mut self.kmsg {
            let from_log = events.len();
            kmsg.drain(&self.host, events);
            for event in &mut events[from_log..] {
                self.kernel.follow(&self.host, event);
            }
            for event in kmsg.take_told(&self.host) {
                self.out.say(Word::Told(Box::new(event)));
            }
        }
        events.drain(..).for_each(|event| self.out.event(Box::new(event)));
        if self.is_settled()
            && let Some(kmsg) = &mut self.kmsg
        {
            kmsg.save(self.host.clock.now());
        }
    }

    /// Waits until a source has something or `timeout` is over; false when the end has come.
    fn wait(&self, stop: &OwnedFd, timeout: Duration) -> bool {
        let mut fds = vec![PollFd::new(stop, PollFlags::IN)];
        let kernel = self.kernel.fds();
        let kmsg = self.kmsg.as_ref().map(EventSource::fds).unwrap_or_default();
        fds.extend(kernel.iter().chain(&kmsg).map(|fd| PollFd::from_borrowed_fd(fd.as_fd(), PollFlags::IN)));
        let timeout = Timespec {
            tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(timeout.subsec_nanos()),
        };
        // An interrupted poll is a wake-up for nothing: the sources are looked at and have nothing.
        _ = poll(&mut fds, Some(&timeout));
        fds[0].revents().is_empty()
    }

    fn tell(&mut self, tick: Tick) {
        let mut batch = Batch::default();
        self.kernel.collect(&self.host, &mut batch);
        if let Some(kmsg) = &mut self.kmsg {
            kmsg.collect(&self.host, &mut batch);
        }
        let readings = Readings { batch, tick, standings: self.kernel.standings() };
        // Readings are only the newest state: when nobody takes them, the next ones will do.
        self.out.say(Word::Readings(Box::new(readings)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::event::{HungTask, Phase};
    use crate::model::{Detail, Source};

    fn hang(phase: Phase) -> Box<Event> {
        Box::new(Event {
            schema: Event::SCHEMA,
            time: String::new(),
            source: vec![Source::TpBtf],
            pid: Some(1),
            tid: Some(1),
            comm: None,
            uid: None,
            cgroup: None,
            detail: Detail::HungTask(HungTask { phase, ..HungTask::default() }),
            monotonic_ns: 0,
        })
    }

    #[test]
    fn the_end_of_a_hang_waits_for_room_and_what_else_does_not_fit_is_counted() {
        let (words, mut inbox) = channel(1);
        let mut out = Out { words, ends: VecDeque::new(), handed_on: 0, lost: Arc::default() };
        for phase in [Phase::Began, Phase::Began, Phase::Ended, Phase::Ended] {
            out.event(hang(phase));
        }
        assert_eq!((out.handed_on, out.lost.load(Ordering::Relaxed), out.ends.len()), (1, 1, 2));
        for left in [1, 0] {
            assert!(inbox.try_recv().is_ok());
            out.again();
            assert_eq!(out.ends.len(), left);
        }
        assert!(matches!(inbox.try_recv(), Ok(Word::Event(event)) if event.is_end()));
        assert_eq!((out.handed_on, out.lost.load(Ordering::Relaxed)), (3, 1));
        // Whoever has gone takes nothing any more.
        drop(inbox);
        out.event(hang(Phase::Ended));
        assert_eq!((out.ends.len(), out.lost.load(Ordering::Relaxed)), (0, 2));
    }
}
