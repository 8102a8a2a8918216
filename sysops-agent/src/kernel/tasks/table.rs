//! Runs the task iterator and takes what it writes, part by part. What a record says is `records`'.

use std::io::{ErrorKind, Read};

use sysops_common::counters::Counters;
use sysops_common::plain::view;
use sysops_common::tasks::{End, Offsets, Process, Thread, Unread, kind};

use super::super::ladder::Refusal;
use super::super::loader::Object;
use super::records::{Known, Records};
use crate::host::os;
use crate::host::task_table::{ReadTasks, TaskTable};
use crate::kernel::run_stats::Runs;

/// The program in the object.
pub(super) const PROGRAM: &str = "on_task";

/// What the kernel hands over at once, at most (bpf_seq_read: eight pages), and the rest of a record before it.
const PART_BYTES: usize = 64 << 10;

/// So many readings one after the other that came to nothing are no accident.
const FAILURES_MAX: u32 = 3;

/// The iterator with the memory that its readings need, which is used again.
pub(super) struct Table {
    object: Object,
    known: Known,
    /// The agent's process.
    own: u32,
    part: Vec<u8>,
    records: Records,
    /// The process whose record is kept as the kernel wrote it: 0 for none.
    pub(super) watched: u32,
    pub(super) seen: Option<Process>,
    /// Processes that /proc shows and the iterator does not.
    pub(super) hidden: Vec<u32>,
    failures: u32,
    failure: Option<Refusal>,
}

impl Table {
    /// Of an object whose program is loaded with `offsets`.
    pub(super) fn new(object: Object, offsets: &Offsets) -> Self {
        let known = Known { io: offsets.io.bytes().is_some(), tick_ns: 1_000_000_000 / os::ticks_per_second().max(1) };
        Self {
            object,
            known,
            own: std::process::id(),
            part: vec![0; PART_BYTES + align_of::<Process>()],
            records: Records::default(),
            watched: 0,
            seen: None,
            hidden: Vec::new(),
            failures: 0,
            failure: None,
        }
    }

    /// What the program counted.
    pub(super) fn counters(&self) -> Option<Counters> {
        self.object.counters()
    }

    /// Its runs.
    pub(super) fn runs(&self) -> Runs {
        self.object.runs()
    }

    /// Why the table is not to be asked any more, once it is so.
    pub(super) fn given_up(&mut self) -> Option<Refusal> {
        if self.failures < FAILURES_MAX { None } else { self.failure.take() }
    }

    /// Reads all processes.
    ///
    /// # Errors
    /// When the kernel refuses, or does not tell all.
    pub(super) fn try_read(&mut self, table: &mut TaskTable) -> Result<(), Refusal> {
        self.seen = None;
        self.records.start();
        let mut file = self.object.iterate(PROGRAM)?;
        let start = self.part.as_ptr().align_offset(align_of::<Process>()).min(align_of::<Process>());
        let part = &mut self.part[start..];
        let (mut filled, mut end) = (0, None);
        // A read behind the end would tell of processes that have come since.
        while end.is_none() {
            match file.read(&mut part[filled..]) {
                Ok(0) => break,
                Ok(length) => filled += length,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(Refusal::new(format!("task iterator: {error}"), "")),
            }
            let taken = take(&part[..filled], |record| {
                if let Record::Process(process) = record
                    && process.tgid == self.watched
                {
                    self.seen = Some(*process);
                }
                match record {
                    Record::End(last) => {
                        end = Some(last.records);
                        Ok(())
                    }
                    Record::Process(process) => self.records.process(process, &self.known, table),
                    Record::Thread(thread) => {
                        self.records.thread(thread);
                        Ok(())
                    }
                    Record::Unread(unread) => {
                        self.records.unread(unread, table);
                        Ok(())
                    }
                }
            })?;
            part.copy_within(taken..filled, 0);
            filled -= taken;
        }
        self.records.finish(end, filled, &self.known, table)?;
        // The open iterator is the agent's own file, and there for this moment only.
        let own = table.rows.binary_search_by_key(&self.own, |row| row.pid).ok().map(|place| &mut table.rows[place]);
        if let Some(open) = own.and_then(|row| row.open_files.as_mut()) {
            *open = open.saturating_sub(1);
        }
        // One that has ended may have left its id to a process that is not hidden.
        self.hidden.retain(|&pid| table.row(pid).is_none());
        table.elsewhere.extend(&self.hidden);
        Ok(())
    }
}

impl ReadTasks for Table {
    fn read(&mut self, table: &mut TaskTable) -> bool {
        match self.try_read(table) {
            Ok(()) => {
                self.failures = 0;
                true
            }
            Err(refusal) => {
                tracing::debug!("tasks: {}", refusal.reason);
                self.failures = self.failures.saturating_add(1);
                self.failure = Some(refusal);
                false
            }
        }
    }
}

/// One record, as the kernel wrote it.
enum Record<'a> {
    Process(&'a Process),
    Thread(&'a Thread),
    Unread(&'a Unread),
    End(&'a End),
}

/// Hands the whole records at the beginning of `bytes` to `each`; gives their length.
fn take(bytes: &[u8], mut each: impl FnMut(Record<'_>) -> Result<(), Refusal>) -> Result<usize, Refusal> {
    let mut at = 0;
    while let Some(kind) = view::<u32>(&bytes[at..]) {
        let rest = &bytes[at..];
        let (record, size) = match *kind {
            kind::PROCESS => (view(rest).map(Record::Process), size_of::<Process>()),
            kind::THREAD => (view(rest).map(Record::Thread), size_of::<Thread>()),
            kind::UNREAD => (view(rest).map(Record::Unread), size_of::<Unread>()),
            kind::END => (view(rest).map(Record::End), size_of::<End>()),
            other => return Err(Refusal::new(format!("task iterator: expected a record, found kind {other}"), "")),
        };
        let Some(record) = record else { break };
        each(record)?;
        at += size;
    }
    Ok(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Records as bytes, aligned as the kernel's are.
    fn words(records: &[&[u64]]) -> Vec<u64> {
        records.concat()
    }

    fn bytes(words: &[u64]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_ne_bytes()).collect()
    }

    fn kinds(bytes: &[u8]) -> (Vec<u32>, Result<usize, String>) {
        assert_eq!(bytes.as_ptr().align_offset(8), 0, "the allocator aligns to eight bytes");
        let mut seen = Vec::new();
        let taken = take(bytes, |record| {
            seen.push(match record {
                Record::Process(process) => process.kind,
                Record::Thread(thread) => thread.kind,
                Record::Unread(unread) => unread.kind,
                Record::End(end) => end.kind,
            });
            Ok(())
        });
        (seen, taken.map_err(|refusal| refusal.reason))
    }

    #[test]
    fn whole_records_are_taken_and_the_rest_waits() {
        let mut process = [0_u64; size_of::<Process>() / 8];
        process[0] = u64::from(kind::PROCESS);
        let mut thread = [0_u64; size_of::<Thread>() / 8];
        thread[0] = u64::from(kind::THREAD);
        let end = [u64::from(kind::END), 2];
        let unread = [u64::from(kind::UNREAD)];
        let all = bytes(&words(&[&process, &thread, &unread, &end]));
        assert_eq!(kinds(&all), (vec![1, 2, 4, 3], Ok(all.len())));
        let both = size_of::<Process>() + size_of::<Thread>();
        let whole = [0, size_of::<Process>(), both, both + size_of::<Unread>(), all.len()];
        for cut in 0..all.len() {
            let taken = whole.iter().copied().filter(|&end| end <= cut).max().expect("0 is there");
            assert_eq!(kinds(&all[..cut]).1, Ok(taken), "cut at {cut}");
        }
    }

    #[test]
    fn what_is_no_record_is_an_error() {
        let (seen, taken) = kinds(&bytes(&[7, 7]));
        assert!(seen.is_empty() && taken.is_err_and(|reason| reason.contains("found kind 7")));
    }
}
