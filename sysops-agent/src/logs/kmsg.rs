//! Reads /dev/kmsg: when to read, what has been told, which record goes to which parser. Cutting records is left to
//! `lines`, their time to `log_clock`, their meaning to `oom_kill` and `hung_task`.

use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::time::Duration;

use rustix::io::Errno;

use super::lines::Lines;
use super::log_clock::{LogClock, Stamps};
use super::position::{Found, Position, Store};
use super::{ENABLED, Entry, SOURCES, Sighting, Unavailable, hung_task, oom_kill, task};
use crate::host::files::open_file;
use crate::host::{EventSource, Host, ReadError, StateFiles};
use crate::model::{Batch, Event, Metric, Tick, Unit};
use crate::spec::Values;

/// Its word in `log_analyzer.sources`.
pub const SOURCE: &str = "dmesg";

/// Major and minor number of the kernel's log (Documentation/admin-guide/devices.txt).
const DEVICE: (u32, u32) = (1, 11);
/// Room for one record: the kernel formats into at most 8 KiB.
const READ_BYTES: usize = 16 << 10;
/// Records taken in one go, so that a flood of messages leaves time for other sources.
const MAX_READS: u32 = 8192;
/// How long the stack of a hung task may pause before it is taken for complete.
const STACK_PAUSE: Duration = Duration::from_millis(50);
/// How long a kill waits for the line that would make it the first of a group: that is the next one which the kernel
/// prints, and `correlate` waits no longer than 60 ms for what the log says.
const KILL_PAUSE: Duration = Duration::from_millis(20);
/// /proc is asked about the task of a record that is not older.
const TASK_DELAY_MAX: Duration = Duration::from_secs(5);
/// Shortest time between two writes of the position while nothing happens but other messages.
const SAVE_INTERVAL: Duration = Duration::from_secs(1);
/// Hung tasks told before a restart that are remembered.
const MAX_TOLD: usize = 256;

static RECORDS: Metric<0> = Metric::counter(
    "kernel_log_records_total",
    Unit::Count,
    "Records of the kernel's log that were read, those of user space included.",
    &[],
);
static LOST: Metric<0> = Metric::counter(
    "kernel_log_records_lost_total",
    Unit::Count,
    "Records of the kernel's log that were overwritten before they were read, or not understood.",
    &[],
);

/// The kernel's log as the list knows it.
pub static ENTRY: Entry =
    Entry { name: "kmsg", metrics: &[RECORDS.desc(), LOST.desc()], keys: &[ENABLED.spec(), SOURCES.spec()] };

/// The kernel's log, open.
#[derive(Debug)]
pub struct Kmsg {
    file: File,
    /// False for a recorded file, which is read once from its start.
    is_device: bool,
    lines: Lines,
    oom_kill: oom_kill::Parser,
    hung_task: hung_task::Parser,
    store: Store,
    /// Records up to this one were told before; they are read again for what they say of later ones only.
    told: Option<u64>,
    told_events: Vec<Sighting>,
    clock: LogClock,
    /// When all that was there had been read; `None` while there is more.
    caught_up: Option<Duration>,
    hold_until: Option<Duration>,
    last_save: Option<Duration>,
    has_told: bool,
    is_broken: bool,
}

impl Kmsg {
    /// Opens the kernel's log of `host`, after the position in `files`. Where there is none, at the end: who
    /// installs an agent does not want yesterday's kills as news. After a position of another boot all is new.
    ///
    /// # Errors
    /// When the configuration does not want it, or it cannot be read: with the reason and the remedy.
    pub fn open(host: &Host, values: &Values, files: &StateFiles) -> Result<Self, Unavailable> {
        wanted(values)?;
        let path = host.files.root("/dev/kmsg");
        let file = open_file(&path).map_err(|error| refused(&error))?;
        let kind = file
            .metadata()
            .map_err(|source| refused(&ReadError { path: path.clone(), what: "cannot stat", source }))?;
        let is_device = kind.file_type().is_char_device();
        let device = (rustix::fs::major(kind.rdev()), rustix::fs::minor(kind.rdev()));
        if is_device && device != DEVICE {
            return Err(not_the_log(&path, device));
        }
        let (store, found) = Store::open(host, files);
        let mut kmsg = Self {
            file,
            is_device,
            lines: Lines::default(),
            oom_kill: oom_kill::Parser::default(),
            hung_task: hung_task::Parser::default(),
            store,
            told: None,
            told_events: Vec::new(),
            clock: LogClock::default(),
            caught_up: None,
            hold_until: None,
            last_save: None,
            has_told: false,
            is_broken: false,
        };
        if kmsg.is_device {
            // A new reader of the device begins at the oldest record, but of a file that was handed on who knows.
            kmsg.file
                .seek(SeekFrom::Start(0))
                .map_err(|source| refused(&ReadError { path: path.clone(), what: "cannot seek", source }))?;
        }
        match found {
            Found::ThisBoot(position) => {
                kmsg.told = Some(position.sequence);
                kmsg.lines.floor = Some(position.sequence);
                kmsg.clock.offset_ns = position.offset_ns;
            }
            Found::Nothing if kmsg.is_device => kmsg.skip_all(host),
            Found::Nothing | Found::OtherBoot => {}
        }
        Ok(kmsg)
    }

    /// Hung tasks that were told before a restart: the same hang goes on being logged. For `Correlator::remember`,
    /// once, after the first drain.
    pub fn take_told(&mut self, host: &Host) -> Vec<Event> {
        let now = host.clock.now();
        let told = std::mem::take(&mut self.told_events);
        told.into_iter().map(|sighting| self.clock.date(sighting, now)).collect()
    }

    /// Saves the position: at once after an event, else at most once a second. To be called after events were handed
    /// on.
    pub fn save(&mut self, now: Tick) {
        let is_due = self.last_save.is_none_or(|last| now.monotonic.saturating_sub(last) >= SAVE_INTERVAL);
        if is_due || self.has_told {
            self.last_save = Some(now.monotonic);
            self.save_now();
        }
    }

    /// Saves the position: at the end.
    pub fn save_now(&mut self) {
        self.has_told = false;
        // What is held is yet to be told.
        let hung = self.hung_task.progress().map(|(first, _)| first);
        let held = [hung, self.oom_kill.held()].into_iter().flatten();
        let sequence = match held.filter(|first| self.told.is_none_or(|told| *first > told)).min() {
            Some(first) => first.checked_sub(1),
            None => self.lines.last,
        };
        // Behind the old position only while what was told is read again.
        let sequence = sequence.max(self.told);
        if let Some(sequence) = sequence {
            self.store.save(Position { sequence, offset_ns: self.clock.offset_ns });
        }
    }

    /// Records read so far.
    #[must_use]
    pub fn records(&self) -> u64 {
        self.lines.records
    }

    /// Records that were overwritten before they were read, or not understood.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.lines.lost
    }

    /// Reads what is there without telling it.
    fn skip_all(&mut self, host: &Host) {
        let (mut new, mut stamps) = (Vec::new(), Stamps::default());
        while !self.read_all(&mut new, &mut stamps) {
            new.clear();
        }
        self.hung_task.flush();
        self.oom_kill.flush();
        self.told = self.lines.last;
        self.lines.floor = self.told;
        (self.lines.records, self.lines.lost) = (0, 0);
        self.caught_up = (!self.is_broken).then(|| host.clock.now().monotonic);
    }

    /// One record of the kernel to the parsers.
    fn feed(&mut self, new: &mut Vec<Sighting>) {
        let record = self.lines.record();
        let ([held, kill], hung) = (self.oom_kill.feed(&record), self.hung_task.feed(&record));
        for sighting in [held, kill, hung].into_iter().flatten() {
            self.sort(sighting, new);
        }
    }

    /// Records are missing: what follows is of no report from before them.
    fn pass_gap(&mut self, new: &mut Vec<Sighting>) {
        let micros = self.lines.record().micros;
        for ended in [self.oom_kill.pass_gap(micros), self.hung_task.flush()].into_iter().flatten() {
            self.sort(ended, new);
        }
    }

    /// What has been told before is not told again.
    fn sort(&mut self, sighting: Sighting, new: &mut Vec<Sighting>) {
        if self.told.is_none_or(|told| sighting.sequence > told) {
            new.push(sighting);
        } else if sighting.event.kind() == "hung_task" {
            if self.told_events.len() == MAX_TOLD {
                self.told_events.remove(0);
            }
            self.told_events.push(sighting);
        }
    }

    /// What the parsers hold, and how far it has come.
    fn holding(&self) -> (Option<(u64, u32)>, Option<u64>) {
        (self.hung_task.progress(), self.oom_kill.held())
    }

    /// Gives what is held when nothing has come behind it for long enough: a hung task's stack is whole then, and a kill
    /// the first of no group.
    fn end_pause(&mut self, has_grown: bool, now: Tick, new: &mut Vec<Sighting>) {
        let pause = match self.holding() {
            (None, None) => return self.hold_until = None,
            (None, Some(_)) => KILL_PAUSE,
            (Some(_), _) => STACK_PAUSE,
        };
        if has_grown || self.hold_until.is_none() {
            self.hold_until = Some(now.monotonic + pause);
        } else if self.hold_until.is_some_and(|until| until <= now.monotonic) {
            self.hold_until = None;
            for ended in [self.oom_kill.flush(), self.hung_task.flush()].into_iter().flatten() {
                self.sort(ended, new);
            }
        }
    }

    /// A position past the end is of another log (a machine set back to a snapshot keeps its boot id): all is new.
    fn start_again(&mut self, new: &mut Vec<Sighting>, stamps: &mut Stamps) -> bool {
        tracing::warn!("/dev/kmsg ends before the saved position: it is read from its start");
        self.told = None;
        self.told_events.clear();
        self.lines = Lines::default();
        self.oom_kill = oom_kill::Parser::default();
        self.hung_task = hung_task::Parser::default();
        self.clock = LogClock::default();
        self.file.seek(SeekFrom::Start(0)).is_ok() && self.read_all(new, stamps)
    }

    /// Reads until there is no more; false when the budget ended before.
    fn read_all(&mut self, new: &mut Vec<Sighting>, stamps: &mut Stamps) -> bool {
        let mut buffer = std::mem::take(&mut self.lines.buffer);
        buffer.resize(READ_BYTES, 0);
        let mut is_end = false;
        for _ in 0..MAX_READS {
            match rustix::io::read(&self.file, &mut buffer[..]) {
                Ok(0) | Err(Errno::AGAIN) => {
                    is_end = true;
                    break;
                }
                Ok(count) => {
                    let mut rest = &buffer[..count];
                    while !rest.is_empty() {
                        if let Some(micros) = self.lines.take(&mut rest) {
                            stamps.add(micros);
                            if self.lines.has_gap {
                                self.pass_gap(new);
                            }
                            if self.lines.is_kernel {
                                self.feed(new);
                            }
                        }
                    }
                }
                // PIPE: records were overwritten, the next read goes on after them. INVAL: one is larger than the
                // buffer and is passed over. The gap in the sequence counts both.
                Err(Errno::INTR | Errno::PIPE | Errno::INVAL) => {}
                Err(errno) => {
                    tracing::warn!("/dev/kmsg: cannot read: {errno}: the kernel's log is not read any more");
                    self.is_broken = true;
                    is_end = true;
                    break;
                }
            }
        }
        self.lines.buffer = buffer;
        is_end
    }
}

impl EventSource for Kmsg {
    fn fds(&self) -> Vec<BorrowedFd<'_>> {
        // A plain file is always readable: whoever waits for it would never sleep.
        if self.is_device && !self.is_broken { vec![self.file.as_fd()] } else { Vec::new() }
    }

    fn drain(&mut self, host: &Host, out: &mut Vec<Event>) {
        let mut new = Vec::new();
        let mut stamps = Stamps::default();
        let before = self.holding();
        let mut is_end = !self.is_broken && self.read_all(&mut new, &mut stamps);
        if is_end && self.caught_up.is_none() && self.told > self.lines.last && self.lines.last.is_some() {
            is_end = self.start_again(&mut new, &mut stamps);
        }
        let now = host.clock.now();
        let is_live = self.is_device && self.caught_up.is_some();
        if let (true, Some(caught_up)) = (is_live, self.caught_up) {
            self.clock.learn(stamps, caught_up, now);
        }
        self.caught_up = is_end.then_some(now.monotonic);
        let has_grown = before != self.holding();
        self.end_pause(has_grown, now, &mut new);
        self.has_told |= !new.is_empty();
        for sighting in new {
            let mut event = self.clock.date(sighting, now);
            if is_live && is_new(&event, now) {
                task::complete(&mut event, host);
            }
            out.push(event);
        }
    }

    /// What is held may be whole then.
    fn next_deadline(&self) -> Option<Duration> {
        self.hold_until
    }

    #[expect(clippy::cast_precision_loss, reason = "exact up to 2^53 records")]
    fn collect(&mut self, _host: &Host, out: &mut Batch) {
        out.counter(&RECORDS, [], self.lines.records as f64);
        out.counter(&LOST, [], self.lines.lost as f64);
    }
}

/// False when the number of the task may be another's by now, as when the agent was stopped.
fn is_new(event: &Event, now: Tick) -> bool {
    now.monotonic.saturating_sub(Duration::from_nanos(event.monotonic_ns)) < TASK_DELAY_MAX
}

fn wanted(values: &Values) -> Result<(), Unavailable> {
    let not = |reason: &str, remedy: &str| {
        Err(Unavailable { reason: reason.to_owned(), remedy: remedy.to_owned(), by_configuration: true })
    };
    if !values.get(&ENABLED) {
        return not("log_analyzer.enabled is false", "set log_analyzer.enabled = true");
    }
    if !values.get(&SOURCES).iter().any(|source| source == SOURCE) {
        return not("log_analyzer.sources does not name \"dmesg\"", "add \"dmesg\" to log_analyzer.sources");
    }
    Ok(())
}

const HAND_IN: &str =
    "in a container, hand the device in: --device /dev/kmsg, or mount the host's root and set HOST_ROOT";

/// Container runtimes put /dev/null in its place, which is always readable and never says anything.
fn not_the_log(path: &Path, (major, minor): (u32, u32)) -> Unavailable {
    let (path, log) = (path.display(), format!("{}:{}", DEVICE.0, DEVICE.1));
    let reason = format!("{path}: expected the kernel's log, device {log}, found device {major}:{minor}");
    Unavailable { reason, remedy: HAND_IN.to_owned(), by_configuration: false }
}

fn refused(error: &ReadError) -> Unavailable {
    let remedy = if error.is_denied() {
        "grant CAP_SYSLOG (systemd: AmbientCapabilities=CAP_SYSLOG), or allow all users: sysctl kernel.dmesg_restrict=0"
    } else if error.is_absent() {
        HAND_IN
    } else {
        ""
    };
    let reason = format!("{error}: {}", error.source);
    Unavailable { reason, remedy: remedy.to_owned(), by_configuration: false }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proc_is_asked_about_the_task_of_a_record_that_was_just_logged() {
        let at =
            |seconds: u64| Tick { monotonic: Duration::from_secs(seconds), ..Host::fixture("/".as_ref()).clock.now() };
        let event = |seconds: u64| Event {
            schema: Event::SCHEMA,
            time: String::new(),
            source: Vec::new(),
            pid: None,
            tid: Some(7),
            comm: None,
            uid: None,
            cgroup: None,
            detail: crate::model::Detail::OomKill(crate::model::event::OomKill::default()),
            monotonic_ns: seconds * 1_000_000_000,
        };
        assert!(is_new(&event(100), at(100)) && is_new(&event(100), at(104)));
        assert!(!is_new(&event(100), at(105)) && !is_new(&event(100), at(160)));
    }

    #[test]
    fn each_refusal_has_its_remedy() {
        let error = |errno: Errno| ReadError { path: "/dev/kmsg".into(), what: "cannot open", source: errno.into() };
        let denied = refused(&error(Errno::PERM));
        assert_eq!(denied.reason, "/dev/kmsg: cannot open: Operation not permitted (os error 1)");
        assert!(denied.remedy.contains("CAP_SYSLOG") && denied.remedy.contains("dmesg_restrict"));
        assert!(refused(&error(Errno::NOENT)).remedy.contains("--device /dev/kmsg"));
        assert_eq!(refused(&error(Errno::IO)).remedy, "");
    }
}
