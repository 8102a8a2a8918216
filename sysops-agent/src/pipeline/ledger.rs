//! Keeps what the agent must not forget when it dies: the book of alerts, notices that are not yet durable in the outbox, kills that
//! were told. It is on disk before a notice goes to the outbox: an alert may go out twice under one id, which the outbox and far
//! ends know again, and is never lost. A disk that hangs, or is not there, holds nothing back.

use std::collections::VecDeque;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;

use super::sleep_for;
use crate::alert::State;
use crate::host::Host;
use crate::host::files::open_file;
use crate::model::{Detail, Event, Notice, Tick, with_causes};

/// How long a notice waits for the disk. A disk that takes longer is an incident, and people must hear of it.
const PATIENCE: Duration = Duration::from_secs(1);

/// Kills that are remembered, and for how long at least: their records in the kernel's log may be read again after a restart, as the
/// position there lags by no more than what is settled.
const KILLS_MAX: usize = 1024;
const KILLS_FOR: Duration = Duration::from_secs(600);

/// Notices that wait for a disk or for the outbox. More than that is a flood, of which the book lets through few.
const WAITING_MAX: usize = 20_000;

/// What an earlier life of the agent has left.
#[derive(Debug)]
pub(super) struct Kept {
    /// The book.
    pub(super) book: State,
    /// The boot in which it was kept.
    rest: Rest,
}

/// What is kept beside the book.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Rest {
    boot: String,
    /// Not yet durable in the outbox.
    outgoing: Vec<Notice>,
    /// Kills that were handled, with their time on the monotonic clock in nanoseconds.
    kills: Vec<(u64, Event)>,
}

/// The file, and what waits for it.
pub(super) struct Ledger {
    path: PathBuf,
    boot: String,
    /// Held as long as this agent may write.
    _lock: Option<OwnedFd>,
    /// Another agent has the directory: it is no business of this one.
    is_anothers: bool,
    /// `None`: nothing is kept.
    disk: Option<Disk>,
    number: u64,
    /// Not yet on disk: number of the writing, when it was ordered, what it holds back.
    waiting: VecDeque<(u64, Duration, Notice)>,
    /// With the outbox and not yet durable there, by the outbox's number.
    sent: VecDeque<(u64, Notice)>,
    kills: VecDeque<(u64, Event)>,
    /// To be given when a writing is on disk, by its number.
    receipts: VecDeque<(u64, oneshot::Sender<()>)>,
    has_failed: bool,
}

/// The thread that writes: it waits for disks, so that no one else has to.
struct Disk {
    orders: std::sync::mpsc::Sender<(u64, Vec<u8>)>,
    done: UnboundedReceiver<(u64, Result<(), String>)>,
    /// The thread has an order. What is to be written meanwhile waits here, the newest alone: a disk that hangs must not cost memory.
    is_writing: bool,
    next: Option<(u64, Vec<u8>)>,
    thread: std::thread::JoinHandle<()>,
}

impl Ledger {
    /// The file in `data_dir`, and what it holds. One that cannot be used is set aside, and said. Without a `data_dir` nothing is kept.
    pub(super) fn open(host: &Host, data_dir: Option<&Path>) -> (Self, Option<Kept>) {
        let boot = host.files.read_text(&host.files.proc("sys/kernel/random/boot_id")).unwrap_or_default();
        let path = data_dir.map(|path| path.join("alerts.state")).unwrap_or_default();
        let (mut lock, mut is_anothers) = (None, false);
        if let Some(data_dir) = data_dir {
            match self::lock(&path.with_extension("lock")) {
                Ok(held) => lock = Some(held),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    is_anothers = true;
                    tracing::warn!(
                        "{}: another agent keeps its state here, so this one keeps nothing: its alerts, and what waits to be \
                         delivered, do not outlive it, and it has no socket there; give each an agent.data_dir of its own",
                        data_dir.display()
                    );
                }
                Err(error) => tracing::warn!(
                    "{}: {error}: alerts do not outlive the agent; make agent.data_dir a directory that the agent may write to",
                    data_dir.display()
                ),
            }
        }
        let (mut kept, mut disk) = (None, None);
        if lock.is_some() {
            kept = read(host, &path);
            disk = Disk::start(path.clone())
                .inspect_err(|error| {
                    tracing::error!("no thread for {}: {error}: alerts do not outlive the agent", path.display());
                })
                .ok();
        }
        let ledger = Self {
            path,
            boot,
            _lock: lock,
            is_anothers,
            disk,
            number: 0,
            waiting: VecDeque::new(),
            sent: VecDeque::new(),
            kills: VecDeque::new(),
            receipts: VecDeque::new(),
            has_failed: false,
        };
        (ledger, kept)
    }

    /// True when another agent has the directory: nothing of it is to be used.
    pub(super) fn is_anothers(&self) -> bool {
        self.is_anothers
    }

    /// The kernel's id of this boot; empty when it is not known.
    pub(super) fn boot(&self) -> &str {
        &self.boot
    }

    /// Takes over what an earlier life has left: its kills, when they were in this boot, and notices that are to go out again.
    pub(super) fn take_over(&mut self, kept: Kept) -> (State, Vec<Event>, Vec<Notice>) {
        let Kept { book, rest } = kept;
        if rest.boot == self.boot {
            self.kills = rest.kills.into();
        }
        let kill = |(monotonic_ns, event): &(u64, Event)| Event { monotonic_ns: *monotonic_ns, ..event.clone() };
        (book, self.kills.iter().map(kill).collect(), rest.outgoing)
    }

    /// Remembers that an event was handled.
    pub(super) fn handled(&mut self, event: &Event) {
        if matches!(event.detail, Detail::OomKill(_)) {
            if self.kills.len() >= KILLS_MAX {
                self.kills.pop_front();
            }
            self.kills.push_back((event.monotonic_ns, event.clone()));
        }
    }

    /// Writes the book, and then lets go of `notices` and gives the receipt. Where nothing is written none is given.
    pub(super) fn keep(
        &mut self,
        book: Vec<u8>,
        notices: Vec<Notice>,
        receipt: Option<oneshot::Sender<()>>,
        now: &Tick,
    ) {
        self.number += 1;
        if self.is_settled() {
            let old = now.monotonic.saturating_sub(KILLS_FOR).as_nanos();
            self.kills.retain(|(monotonic_ns, _)| u128::from(*monotonic_ns) >= old);
        }
        self.waiting.extend(notices.into_iter().map(|notice| (self.number, now.monotonic, notice)));
        let outgoing = self.sent.iter().map(|(_, notice)| notice).chain(self.waiting.iter().map(|(.., notice)| notice));
        let rest = Rest {
            boot: self.boot.clone(),
            outgoing: outgoing.take(WAITING_MAX).cloned().collect(),
            kills: self.kills.iter().cloned().collect(),
        };
        let mut text = book;
        text.push(b'\n');
        match serde_json::to_vec(&rest) {
            Ok(rest) => text.extend_from_slice(&rest),
            Err(error) => tracing::error!("{}: no JSON form: {error}; that is a bug", self.path.display()),
        }
        self.take_what_is_done();
        if let Some(disk) = &mut self.disk {
            disk.next = Some((self.number, text));
            disk.go_on();
            self.receipts.extend(receipt.map(|receipt| (self.number, receipt)));
        }
    }

    /// Waits until a notice may go out ([`Ledger::due`]), or a writing has come to its end. May be dropped and called again.
    pub(super) async fn next(&mut self, host: &Host) {
        let has_more = self.disk.as_ref().is_some_and(|disk| disk.next.is_some());
        if self.waiting.is_empty() && self.receipts.is_empty() && !has_more {
            return std::future::pending().await;
        }
        let now = host.clock.now().monotonic;
        let left = self.waiting.front().map(|(_, since, _)| (*since + PATIENCE).saturating_sub(now));
        let Some(disk) = &mut self.disk else { return };
        tokio::select! {
            Some((number, result)) = disk.done.recv() => self.written(number, result),
            () = sleep_for(left) => {}
        }
    }

    /// Waits, at the end, for what is yet to be written, for no longer than `deadline`.
    pub(super) async fn next_or(&mut self, deadline: Duration, host: &Host) {
        let all = async {
            while self.waiting.iter().any(|(number, ..)| *number != 0) && self.disk.is_some() {
                self.next(host).await;
            }
        };
        // What has waited for too long goes out all the same.
        _ = tokio::time::timeout(deadline.min(PATIENCE), all).await;
        self.waiting.iter_mut().for_each(|(number, ..)| *number = 0);
    }

    /// Notices that are on disk, or have waited long enough for it.
    pub(super) fn due(&mut self, now: &Tick) -> Vec<Notice> {
        self.take_what_is_done();
        let mut due = Vec::new();
        while let Some((number, since, notice)) = self.waiting.pop_front() {
            let is_kept = number == 0 || self.disk.is_none();
            if !is_kept && now.monotonic.saturating_sub(since) < PATIENCE {
                self.waiting.push_front((number, since, notice));
                break;
            }
            if !is_kept && !std::mem::replace(&mut self.has_failed, true) {
                let path = self.path.display();
                tracing::error!(
                    "{path}: the disk takes longer than {} s: alerts go out all the same",
                    PATIENCE.as_secs()
                );
            }
            due.push(notice);
        }
        due
    }

    /// A notice is with the outbox, as its `number`-th.
    pub(super) fn sent(&mut self, number: u64, notice: Notice) {
        if self.sent.len() >= WAITING_MAX {
            self.sent.pop_front();
        }
        self.sent.push_back((number, notice));
    }

    /// What the outbox got up to `number` is durable there.
    pub(super) fn durable(&mut self, number: u64) {
        while self.sent.front().is_some_and(|(sent, _)| *sent <= number) {
            self.sent.pop_front();
        }
    }

    /// True when the outbox has yet to make something durable.
    pub(super) fn is_sending(&self) -> bool {
        !self.sent.is_empty()
    }

    /// True when all that was handled is on disk, here or in the outbox.
    pub(super) fn is_settled(&self) -> bool {
        self.waiting.is_empty() && self.sent.is_empty()
    }

    /// Writes what is ordered and ends; a disk that hangs is left alone after `deadline`.
    pub(super) async fn end(self, deadline: Duration) {
        let Some(Disk { orders, mut done, thread, next, .. }) = self.disk else { return };
        if let Some(next) = next {
            _ = orders.send(next);
        }
        drop(orders);
        let all = async { while done.recv().await.is_some() {} };
        if tokio::time::timeout(deadline, all).await.is_ok() {
            _ = thread.join();
        }
    }

    fn take_what_is_done(&mut self) {
        while let Some((number, result)) = self.disk.as_mut().and_then(|disk| disk.done.try_recv().ok()) {
            self.written(number, result);
        }
    }

    /// Writing `number`, and with it each before it, has come to its end.
    fn written(&mut self, number: u64, result: Result<(), String>) {
        if let Some(disk) = &mut self.disk {
            disk.is_writing = false;
            disk.go_on();
        }
        while let Some((_, receipt)) = self.receipts.pop_front_if(|(receipt, _)| *receipt <= number) {
            if result.is_ok() {
                // Whoever waits for it no longer has gone away.
                _ = receipt.send(());
            }
        }
        match result {
            Ok(()) => self.has_failed = false,
            Err(error) => {
                if !std::mem::replace(&mut self.has_failed, true) {
                    tracing::error!(
                        "{error}: alerts do not outlive the agent; make agent.data_dir writable, with room on it"
                    );
                }
            }
        }
        for (waiting, ..) in self.waiting.iter_mut().filter(|(waiting, ..)| *waiting <= number) {
            *waiting = 0;
        }
    }
}

impl Disk {
    fn start(path: PathBuf) -> std::io::Result<Self> {
        let (orders, inbox) = std::sync::mpsc::channel::<(u64, Vec<u8>)>();
        let (tell, done) = unbounded_channel();
        let write = move || write_all(&path, &inbox, &tell);
        let thread = std::thread::Builder::new().name("ledger".to_owned()).stack_size(256 << 10).spawn(write)?;
        Ok(Self { orders, done, is_writing: false, next: None, thread })
    }

    /// Gives the thread what waits, when it has nothing else to do.
    fn go_on(&mut self) {
        if !self.is_writing
            && let Some(next) = self.next.take()
        {
            // The thread ends with the ledger only.
            self.is_writing = self.orders.send(next).is_ok();
        }
    }
}

/// The thread. Each writing is whole, so that of several that wait the newest will do.
fn write_all(
    path: &Path,
    inbox: &std::sync::mpsc::Receiver<(u64, Vec<u8>)>,
    tell: &UnboundedSender<(u64, Result<(), String>)>,
) {
    while let Ok((number, text)) = inbox.recv() {
        let result = replace(path, &text).map_err(|error| format!("{}: cannot write: {error}", path.display()));
        if tell.send((number, result)).is_err() {
            return;
        }
    }
}

/// Puts a whole file in the place of `path`, and waits until the disk has it.
fn replace(path: &Path, text: &[u8]) -> std::io::Result<()> {
    let new = path.with_extension("state.new");
    // It tells of processes and paths: nobody's business but the agent's.
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    file.write_all(text)?;
    file.sync_data()?;
    std::fs::rename(&new, path)?;
    let dir = path.parent().unwrap_or(Path::new("."));
    open_file(dir).map_err(|error| error.source)?.sync_all()
}

/// One agent at a time may write here. A full disk has room for a file without content.
fn lock(path: &Path) -> std::io::Result<OwnedFd> {
    let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path)?;
    rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive)?;
    Ok(file.into())
}

fn read(host: &Host, path: &Path) -> Option<Kept> {
    match host.files.read(path) {
        Ok(text) => parse(&text).map_err(|error| set_aside(path, &error)).ok(),
        Err(error) if error.is_absent() => None,
        Err(error) => {
            tracing::warn!("{error}: {}: alerts of before are not known", error.source);
            None
        }
    }
}

fn parse(text: &[u8]) -> Result<Kept, String> {
    let end = text.iter().position(|byte| *byte == b'\n').ok_or("expected two lines")?;
    let book = State::parse(&text[..end])?;
    let rest = serde_json::from_slice(&text[end + 1..]).map_err(|error| error.to_string())?;
    Ok(Kept { book, rest })
}

/// A file that this agent cannot use may be of use to a newer one, or to whoever looks for the reason.
fn set_aside(path: &Path, why: &str) {
    let aside = path.with_extension("state.unused");
    let kept = std::fs::rename(path, &aside).map_or_else(
        |error| format!("it is overwritten, as it cannot be set aside: {}", with_causes(&error)),
        |()| format!("kept as {}", aside.display()),
    );
    tracing::error!("{}: {why}: {kept}; what fires is told anew", path.display());
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::alert::Book;
    use crate::model::{Alert, Severity};
    use crate::spec::Values;

    fn notice(id: &str) -> Notice {
        let alert = Alert::new("h", SystemTime::UNIX_EPOCH, Severity::Warn, "m", id.to_owned());
        Notice::of(Alert { id: id.to_owned(), ..alert })
    }

    fn ids(notices: &[Notice]) -> Vec<&str> {
        notices.iter().map(|notice| notice.id.as_str()).collect()
    }

    fn host(dir: &Path) -> Host {
        std::fs::create_dir_all(dir.join("proc/sys/kernel/random")).expect("writable");
        std::fs::write(dir.join("proc/sys/kernel/random/boot_id"), "b00\n").expect("writable");
        Host::fixture(dir)
    }

    fn book(now: &Tick) -> Vec<u8> {
        Book::new(&Values::default(), "h").state("b00", now)
    }

    #[tokio::test]
    async fn a_notice_goes_out_when_it_is_kept_and_is_there_until_it_is_durable() {
        let dir = tempfile::tempdir().expect("a directory");
        let host = host(dir.path());
        let now = host.clock.now();
        let (mut ledger, kept) = Ledger::open(&host, Some(dir.path()));
        assert!(kept.is_none() && ledger.is_settled());
        ledger.keep(book(&now), vec![notice("a"), notice("b")], None, &now);
        assert!(!ledger.is_settled());
        ledger.next(&host).await;
        let due = ledger.due(&now);
        assert_eq!(ids(&due), ["a", "b"]);
        for (number, notice) in (1..).zip(due) {
            ledger.sent(number, notice);
        }
        ledger.durable(1);
        assert!(ledger.is_sending());
        let (receipt, kept) = oneshot::channel();
        ledger.keep(book(&now), Vec::new(), Some(receipt), &now);
        ledger.next(&host).await;
        kept.await.expect("it is on disk");
        ledger.end(Duration::from_secs(60)).await;
        let (mut again, kept) = Ledger::open(&host, Some(dir.path()));
        let (_, kills, outgoing) = again.take_over(kept.expect("it was written"));
        assert_eq!((kills, ids(&outgoing)), (Vec::new(), vec!["b"]));
    }

    #[tokio::test]
    async fn a_directory_that_is_not_there_holds_nothing_back() {
        let dir = tempfile::tempdir().expect("a directory");
        let host = host(dir.path());
        let now = host.clock.now();
        let (mut ledger, _) = Ledger::open(&host, Some(&dir.path().join("nowhere")));
        let (receipt, kept) = oneshot::channel();
        ledger.keep(book(&now), vec![notice("a")], Some(receipt), &now);
        assert!(kept.await.is_err(), "nothing is kept");
        ledger.next(&host).await;
        assert_eq!(ids(&ledger.due(&now)), ["a"]);
    }

    #[tokio::test]
    async fn a_disk_that_hangs_costs_no_memory_and_gets_the_newest() {
        let dir = tempfile::tempdir().expect("a directory");
        let host = host(dir.path());
        let now = host.clock.now();
        let (mut ledger, _) = Ledger::open(&host, Some(dir.path()));
        // Whoever opens a pipe to write waits for a reader: the thread hangs, as it does with a disk.
        let pipe = dir.path().join("alerts.state.new");
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU, 0)
            .expect("a pipe");
        for count in 0..100 {
            ledger.keep(book(&now), vec![notice(&count.to_string())], None, &now);
        }
        let disk = ledger.disk.as_ref().expect("there is a thread");
        assert_eq!((disk.is_writing, disk.next.as_ref().map(|(number, _)| *number)), (true, Some(100)));
        // The write that hung fails, and the next finds a disk.
        drop(OpenOptions::new().read(true).write(true).open(&pipe).expect("our own"));
        std::fs::remove_file(&pipe).expect("our own");
        while ledger.disk.as_ref().is_some_and(|disk| disk.is_writing) {
            ledger.next(&host).await;
        }
        ledger.end(Duration::from_secs(60)).await;
        let (_, kept) = Ledger::open(&host, Some(dir.path()));
        assert_eq!(kept.expect("it was written").rest.outgoing.len(), 100);
    }

    #[tokio::test]
    async fn without_a_directory_nothing_is_kept_and_nothing_waits() {
        let dir = tempfile::tempdir().expect("a directory");
        let host = host(dir.path());
        let now = host.clock.now();
        let (mut ledger, kept) = Ledger::open(&host, None);
        ledger.keep(book(&now), vec![notice("a")], None, &now);
        assert_eq!((kept.is_none(), ledger.is_anothers(), ids(&ledger.due(&now))), (true, false, vec!["a"]));
    }

    #[test]
    fn a_directory_has_one_agent() {
        let dir = tempfile::tempdir().expect("a directory");
        let host = host(dir.path());
        let (first, _) = Ledger::open(&host, Some(dir.path()));
        let (second, _) = Ledger::open(&host, Some(dir.path()));
        assert_eq!((first.is_anothers(), second.is_anothers()), (false, true));
    }

    #[test]
    fn a_file_that_cannot_be_used_is_set_aside() {
        let dir = tempfile::tempdir().expect("a directory");
        let host = host(dir.path());
        for text in ["", "{}", "{\"schema\":2}\n{}", "\0\0\n\0"] {
            std::fs::write(dir.path().join("alerts.state"), text).expect("writable");
            let (_, kept) = Ledger::open(&host, Some(dir.path()));
            assert!(kept.is_none());
            let aside = host.files.read(&dir.path().join("alerts.state.unused")).expect("it is set aside");
            assert_eq!(aside, text.as_bytes());
        }
    }
}
