//! Hung tasks in the kernel's text, from 3.10 to 7.x: the line `INFO: task … blocked …`, the stack that follows it, and
//! since 6.16 who holds the lock that the task waits for.
//! That a task is reported again at every check is left to `correlate`.
//!
//! The number in the line is a thread's; the process is named by the `task:` line from 6.12 or so on, else unknown here.

use super::Sighting;
use super::record::{Record, find, leading_number, lossy, rfind, whole_number};
use crate::model::event::{HungTask, Lock, Tier};
use crate::model::{Detail, Event, Source};

/// Frames that are kept; the kernel prints at most 64 of a task.
const MAX_FRAMES: usize = 64;
/// Longest frame that is kept: a symbol of the kernel has at most 511 bytes.
const MAX_FRAME_BYTES: usize = 600;
/// Records that may follow the first; more is no report.
const MAX_RECORDS: u32 = 512;

/// The hung task whose stack is being printed.
#[derive(Debug, Default)]
pub struct Parser {
    pending: Option<Pending>,
}

#[derive(Debug)]
struct Pending {
    sighting: Sighting,
    tid: u64,
    comm: Vec<u8>,
    part: Part,
    records: u32,
}

/// Which part of the report comes next.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Part {
    State,
    Stack,
    Holder,
}

/// What a record is to the report before it.
enum Step {
    /// A line of it.
    Part,
    /// Its last line.
    Last,
    /// Not of it.
    Other,
}

impl Parser {
    /// Takes the next record of the kernel (facility 0) and gives a hung task whose report has ended with it.
    pub fn feed(&mut self, record: &Record<'_>) -> Option<Sighting> {
        let step = self.pending.as_mut().map(|pending| pending.step(record.text));
        match step {
            Some(Step::Part) => return None,
            Some(Step::Last) => return self.flush(),
            Some(Step::Other) | None => {}
        }
        let ended = self.flush();
        self.pending = Pending::open(record);
        ended
    }

    /// Sequence of the first record of the report that is being printed, and how many have followed.
    #[must_use]
    pub fn progress(&self) -> Option<(u64, u32)> {
        self.pending.as_ref().map(|pending| (pending.sighting.sequence, pending.records))
    }

    /// Ends the report that is being printed.
    pub fn flush(&mut self) -> Option<Sighting> {
        self.pending.take().map(|pending| pending.sighting)
    }
}

impl Pending {
    /// `INFO: task dd:122 blocked for more than 2 seconds.`, or `… blocked in I/O wait for more than …`. The lines that
    /// name a lock's likely owner say `blocked on`. Vendors change the word after the number.
    fn open(record: &Record<'_>) -> Option<Self> {
        let text = record.text.strip_prefix(b"INFO: task ")?;
        let (task, rest) = [b" blocked for more than ".as_slice(), b" blocked in I/O wait for more than "]
            .into_iter()
            .find_map(|words| rfind(text, words).map(|at| (&text[..at], &text[at + words.len()..])))?;
        let (seconds, _) = leading_number(rest)?;
        let colon = rfind(task, b":")?;
        let tid = whole_number(&task[colon + 1..])?;
        let detail = HungTask { tier: Some(Tier::Kernel), blocked_seconds: Some(seconds), ..HungTask::default() };
        let event = Event {
            schema: Event::SCHEMA,
            time: String::new(),
            source: vec![Source::Kmsg],
            pid: None,
            tid: Some(u32::try_from(tid).ok()?),
            comm: Some(lossy(&task[..colon])),
            uid: None,
            cgroup: None,
            detail: Detail::HungTask(detail),
            monotonic_ns: 0,
        };
        let sighting = Sighting { sequence: record.sequence, micros: record.micros, event };
        Some(Self { sighting, tid, comm: task[..colon].to_vec(), part: Part::State, records: 0 })
    }

    fn step(&mut self, text: &[u8]) -> Step {
        self.records += 1;
        if self.records > MAX_RECORDS {
            return Step::Other;
        }
        match self.part {
            Part::State => self.before_stack(text),
            Part::Stack => self.in_stack(text),
            Part::Holder => self.behind_stack(text),
        }
    }

    fn before_stack(&mut self, text: &[u8]) -> Step {
        if text.starts_with(b"      ") || text.starts_with(b"\"echo 0 > /proc/sys/kernel/hung_task_timeout_secs\"") {
            return Step::Part; // taint and release; how to switch it off
        }
        let Some((tid, tgid)) = state_line(text, &self.comm) else { return Step::Other };
        if tid != self.tid {
            return Step::Other;
        }
        self.sighting.event.pid = tgid.and_then(|tgid| u32::try_from(tgid).ok());
        self.part = Part::Stack;
        Step::Part
    }

    fn in_stack(&mut self, text: &[u8]) -> Step {
        let trimmed = text.trim_ascii();
        if trimmed == b"</TASK>" {
            // The holder of the lock may come behind it; if nothing comes, a pause ends the report.
            self.part = Part::Holder;
            return Step::Part;
        }
        if let Some(frame) = frame(trimmed).filter(|_| text.starts_with(b" ")) {
            if let Detail::HungTask(detail) = &mut self.sighting.event.detail
                && detail.kernel_stack.len() < MAX_FRAMES
                && frame.len() <= MAX_FRAME_BYTES
            {
                detail.kernel_stack.push(lossy(frame));
            }
            return Step::Part;
        }
        // Where stacks have no closing line the holder follows the last frame.
        if is_around_stack(trimmed) { Step::Part } else { self.behind_stack(text) }
    }

    fn behind_stack(&mut self, text: &[u8]) -> Step {
        let Some((lock, holder)) = holder(text, &self.comm, self.tid) else { return Step::Other };
        if let Detail::HungTask(detail) = &mut self.sighting.event.detail {
            detail.lock = Some(lock);
            if let Some((tid, comm)) = holder {
                (detail.holder_tid, detail.holder_comm) = (Some(tid), Some(comm));
            }
        }
        Step::Last
    }
}

/// A lock, and the thread that holds it where the line names it.
type Held = (Lock, Option<(u32, String)>);

/// The line that follows the stack of the task `comm:tid`, in the forms
/// - `INFO: task dd:150 is blocked on a mutex likely owned by task dd:148.`;
/// - `INFO: task dd:150 is blocked on a mutex, but the owner is not found.`;
/// - `INFO: task dd:150 blocked on a semaphore likely last held by task dd:148`;
/// - `INFO: task tee:154 <writer> blocked on an rw-semaphore likely owned by task dd:152 <writer>`.
///
/// A name may hold any of these words, so what stands before it is known and what follows is read from the end.
fn holder(text: &[u8], comm: &[u8], tid: u64) -> Option<Held> {
    let rest = text.strip_prefix(b"INFO: task ")?.strip_prefix(comm)?.strip_prefix(b":")?;
    let rest = rest.strip_prefix(tid.to_string().as_bytes())?;
    let words: [(&[u8], Lock); 3] = [
        (b" blocked on a mutex", Lock::Mutex),
        (b" blocked on a semaphore", Lock::Semaphore),
        (b" blocked on an rw-semaphore", Lock::RwSemaphore),
    ];
    let rest = [b" is".as_slice(), b" <reader>", b" <writer>"]
        .into_iter()
        .find_map(|word| rest.strip_prefix(word))
        .unwrap_or(rest);
    let (rest, lock) = words.into_iter().find_map(|(words, lock)| Some((rest.strip_prefix(words)?, lock)))?;
    let owner = [b" likely owned by task ".as_slice(), b" likely last held by task "]
        .into_iter()
        .find_map(|words| rest.strip_prefix(words));
    let thread = owner.and_then(|owner| {
        let owner = [b".".as_slice(), b" <reader>", b" <writer>"]
            .into_iter()
            .find_map(|end| owner.strip_suffix(end))
            .unwrap_or(owner);
        let colon = rfind(owner, b":")?;
        let tid = u32::try_from(whole_number(&owner[colon + 1..])?).ok()?;
        Some((tid, lossy(&owner[..colon])))
    });
    Some((lock, thread))
}

/// Thread and process id of the line with the task's state. Its name stands in 15 columns, so that it cannot be
/// mistaken for what follows:
/// - `task:dd              state:D stack:    0 pid:  106 ppid:    92 flags:0x00000002`, from 6.12 or so with `tgid:`;
/// - `dd              D ffff8817dddf80b0     0 26120  26119 0x00000080` before 5.10, with or without the address.
///
/// The older line has no word of its own; it must begin with the name (it may have changed since).
fn state_line(text: &[u8], comm: &[u8]) -> Option<(u64, Option<u64>)> {
    if let Some(rest) = text.strip_prefix(b"task:") {
        let rest = rest.get(15..)?;
        let field = |key: &[u8]| {
            let value = &rest[find(rest, key)? + key.len()..];
            leading_number(value.trim_ascii_start()).map(|(number, _)| number)
        };
        return rest.starts_with(b" state:").then(|| Some((field(b" pid:")?, field(b" tgid:"))))?;
    }
    let (name, rest) = text.split_at_checked(15)?;
    let mut fields = rest.split(|&byte| byte == b' ').filter(|field| !field.is_empty());
    let is_state = fields.next().is_some_and(|state| state.len() == 1 && state[0].is_ascii_uppercase());
    let flags = fields.next_back()?.starts_with(b"0x");
    let _parent = fields.next_back()?;
    let tid = whole_number(fields.next_back()?)?;
    (is_state && flags && (name.starts_with(comm) || name.ends_with(b" "))).then_some((tid, None))
}

/// `schedule+0x46/0xb0`, `ext4_write+0x33/0x160 [ext4]`, before 4.10 or so ` [<ffffffff8163a879>] schedule+0x29/0x70`.
/// Frames that the unwinder found on the stack and did not trust (`? schedule+…`) are none.
fn frame(text: &[u8]) -> Option<&[u8]> {
    let text = match text.strip_prefix(b"[<") {
        Some(address) => address[find(address, b">]")? + 2..].trim_ascii_start(),
        None => text,
    };
    let symbol = text.split(|&byte| byte == b' ').next()?;
    let plus = find(symbol, b"+0x")?;
    (plus > 0 && find(&symbol[plus..], b"/0x").is_some()).then_some(text)
}

/// What stands around the frames: headings, frames that are not trusted, registers, raw words of the stack (3.10).
fn is_around_stack(text: &[u8]) -> bool {
    let words: [&[u8]; 9] =
        [b"Call Trace:", b"Call trace:", b"<TASK>", b"? ", b"Code:", b"ORIG_RAX:", b"Workqueue:", b"Stopper:", b"[<"];
    let is_register = |text: &[u8]| {
        let name = text.split(|&byte| byte == b':').next().unwrap_or_default();
        matches!(name, b"RIP" | b"RSP" | b"RAX" | b"RDX" | b"RBP" | b"R10" | b"R13") && name.len() < text.len()
    };
    let is_raw = |text: &[u8]| {
        !text.is_empty()
            && text.split(|&byte| byte == b' ').all(|word| word.len() == 16 && word.iter().all(u8::is_ascii_hexdigit))
    };
    words.iter().any(|word| text.starts_with(word)) || is_register(text) || is_raw(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_holder_is_read_whatever_its_name() {
        let held = |tid: u32, comm: &str| Some((tid, comm.to_owned()));
        let cases: [(&str, Held); 6] = [
            (" is blocked on a mutex likely owned by task dd:148.", (Lock::Mutex, held(148, "dd"))),
            (" is blocked on a mutex likely owned by task a task b: 1:2:3.", (Lock::Mutex, held(3, "a task b: 1:2"))),
            (" is blocked on a mutex, but the owner is not found.", (Lock::Mutex, None)),
            (" blocked on a semaphore likely last held by task dd:1", (Lock::Semaphore, held(1, "dd"))),
            (
                " <writer> blocked on an rw-semaphore likely owned by task dd:5 <writer>",
                (Lock::RwSemaphore, held(5, "dd")),
            ),
            (
                " <reader> blocked on an rw-semaphore likely owned by task x:7 <reader>",
                (Lock::RwSemaphore, held(7, "x")),
            ),
        ];
        for (text, expected) in cases {
            let line = format!("INFO: task a:1 is b:150{text}");
            assert_eq!(holder(line.as_bytes(), b"a:1 is b", 150), Some(expected), "{line}");
            assert_eq!(holder(line.as_bytes(), b"a:1 is b", 15), None);
            assert_eq!(holder(line.as_bytes(), b"c", 150), None);
        }
        assert_eq!(holder(b"INFO: task a:1 blocked for more than 5 seconds.", b"a", 1), None);
    }
}
