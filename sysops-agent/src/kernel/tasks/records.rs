//! Makes a process of what the iterator tells of its threads, by the kernel's own reckoning, so that each field is what
//! /proc shows. Reading is left to `table`; what cannot be reckoned, to who asks /proc.

use sysops_common::tasks::{IO_MEMBERS, Io, NOT_COUNTED, Process, Thread, Times, Unread};

use super::super::ladder::Refusal;
use crate::host::task_table::{CpuTicks, ROWS_MAX, TaskIo, TaskRow, TaskTable};

/// What holds for all records.
pub(super) struct Known {
    /// The kernel counts what tasks read and write.
    pub(super) io: bool,
    /// A tick of USER_HZ.
    pub(super) tick_ns: u64,
}

/// The records of one reading so far.
#[derive(Default)]
pub(super) struct Records {
    count: u64,
    /// Processes that have further threads, and those of which only threads were told yet, in the order of their ids.
    several: Vec<Several>,
    /// The one that the last thread belonged to: the next mostly does, too.
    last: usize,
}

/// A process whose threads are being added up.
struct Several {
    tgid: u32,
    /// Further threads that were told.
    told_threads: u32,
    ended_runtime: u64,
    /// A thread ended between two of the records: it is in neither sum, or in both.
    is_torn: bool,
    times: Times,
    io: Io,
    process: Option<Leader>,
}

/// What the record of the process itself says. It comes after those of threads whose ids the kernel has begun to give anew.
struct Leader {
    row: usize,
    further_threads: u32,
    told: Times,
}

impl Records {
    /// Forgets the reading before.
    pub(super) fn start(&mut self) {
        self.count = 0;
        self.several.clear();
        self.last = 0;
    }

    /// Takes a process.
    ///
    /// # Errors
    /// When there is no room for more.
    pub(super) fn process(&mut self, read: &Process, known: &Known, table: &mut TaskTable) -> Result<(), Refusal> {
        self.count += 1;
        if table.rows.len() == ROWS_MAX {
            return Err(Refusal::new(format!("task iterator: more than {ROWS_MAX} processes"), ""));
        }
        let times = sum(read.own, read.ended);
        let told = Times { user: read.told_utime, system: read.told_stime, runtime: 0 };
        let process = Leader { row: table.rows.len(), further_threads: read.threads.saturating_sub(1), told };
        match self.several.binary_search_by_key(&read.tgid, |several| several.tgid) {
            Ok(place) => {
                let several = &mut self.several[place];
                several.add(times, &read.io, read.ended.runtime);
                // Threads that are told as processes are no process.
                several.is_torn |= several.process.is_some();
                several.process = Some(process);
            }
            Err(_) if process.further_threads == 0 => {}
            Err(place) => {
                let process = Some(process);
                self.several
                    .insert(place, Several { process, ..Several::new(read.tgid, times, read.io, read.ended.runtime) });
            }
        }
        table.rows.push(row(read, times, told, known));
        Ok(())
    }

    /// Takes a further thread.
    pub(super) fn thread(&mut self, read: &Thread) {
        self.count += 1;
        if self.several.get(self.last).is_none_or(|several| several.tgid != read.tgid) {
            let place = self.several.binary_search_by_key(&read.tgid, |several| several.tgid);
            self.last = place.unwrap_or_else(|place| {
                let none = Several::new(read.tgid, Times::default(), Io::default(), read.ended_runtime);
                self.several.insert(place, none);
                place
            });
        }
        let several = &mut self.several[self.last];
        several.add(read.own, &read.io, read.ended_runtime);
        several.told_threads += 1;
    }

    /// Takes a process that is for /proc to tell.
    pub(super) fn unread(&mut self, read: &Unread, table: &mut TaskTable) {
        self.count += 1;
        table.elsewhere.push(read.tgid);
    }

    /// Ends the reading: `end` is the number of records by the program's count, `rest` the bytes after the last. A process of
    /// which not all threads were seen is left to /proc.
    ///
    /// # Errors
    /// When the kernel did not tell all.
    pub(super) fn finish(
        &mut self,
        end: Option<u64>,
        rest: usize,
        known: &Known,
        table: &mut TaskTable,
    ) -> Result<(), Refusal> {
        let count = self.count;
        match end {
            None => return Err(Refusal::new(format!("task iterator: ended after {count} tasks, without an end"), "")),
            Some(end) if end != count => {
                return Err(Refusal::new(format!("task iterator: told {count} of {end} tasks"), ""));
            }
            Some(_) if rest > 0 => return Err(Refusal::new("task iterator: the last record is cut off", "")),
            Some(_) => {}
        }
        let mut is_torn = false;
        for several in &self.several {
            // One that ended meanwhile has threads alone.
            let Some(process) = &several.process else { continue };
            let Some(row) = table.rows.get_mut(process.row) else { continue };
            if several.is_torn || several.told_threads != process.further_threads {
                table.elsewhere.push(several.tgid);
                row.pid = TORN;
                is_torn = true;
                continue;
            }
            (row.cpu, row.cpu_ns) = cpu(several.times, process.told, known);
            row.io = known.io.then(|| io(several.io));
        }
        if is_torn {
            table.rows.retain(|row| row.pid != TORN);
        }
        Ok(())
    }
}

impl Several {
    fn new(tgid: u32, times: Times, io: Io, ended_runtime: u64) -> Self {
        Self { tgid, told_threads: 0, ended_runtime, is_torn: false, times, io, process: None }
    }

    fn add(&mut self, times: Times, io: &Io, ended_runtime: u64) {
        self.times = sum(self.times, times);
        for (sum, more) in self.io.iter_mut().zip(io) {
            *sum = sum.wrapping_add(*more);
        }
        self.is_torn |= self.ended_runtime != ended_runtime;
    }
}

/// No process has this id.
const TORN: u32 = 0;

/// `PF_KTHREAD` (include/linux/sched.h).
const PF_KTHREAD: u32 = 0x0020_0000;

fn row(read: &Process, times: Times, told: Times, known: &Known) -> TaskRow {
    let is_kernel = read.flags & PF_KTHREAD != 0;
    let (cpu, cpu_ns) = cpu(times, told, known);
    // A thread of the kernel that works for a process borrows its memory.
    let pages = if is_kernel { [0; 3] } else { [read.file_pages, read.anon_pages, read.shmem_pages] };
    TaskRow {
        pid: read.tgid,
        parent: read.parent,
        uid: read.uid,
        threads: read.threads,
        state: state(read.state, read.exit_state),
        is_kernel,
        comm: read.comm,
        cpu,
        cpu_ns,
        start_ticks: read.start_boottime_ns / known.tick_ns,
        // The counters may be below zero for a moment: the kernel shows that as none.
        rss_pages: pages.into_iter().fold(0, |sum: u64, pages| sum.saturating_add(u64::try_from(pages).unwrap_or(0))),
        open_files: Some(read.open_files).filter(|&open| open != NOT_COUNTED),
        open_files_max: read.files_limit,
        cgroup_id: Some(read.cgroup).filter(|&id| id != 0),
        memory_cgroup_id: Some(read.memory_cgroup).filter(|&id| id != 0),
        io: known.io.then(|| io(read.io)),
    }
}

fn sum(one: Times, other: Times) -> Times {
    Times {
        user: one.user.wrapping_add(other.user),
        system: one.system.wrapping_add(other.system),
        runtime: one.runtime.wrapping_add(other.runtime),
    }
}

fn io([rchar, wchar, syscr, syscw, read_bytes, write_bytes, cancelled_write_bytes]: [u64; IO_MEMBERS]) -> TaskIo {
    TaskIo { rchar, wchar, syscr, syscw, read_bytes, write_bytes, cancelled_write_bytes }
}

fn cpu(times: Times, told: Times, known: &Known) -> (CpuTicks, u64) {
    let (user, system) = adjusted(times, told);
    (CpuTicks { user: user / known.tick_ns, system: system / known.tick_ns }, user.saturating_add(system))
}

/// User and system time of a process, as the kernel tells it (cputime_adjust, kernel/sched/cputime.c): the scheduler's
/// exact time, divided as the ticks were, but never less of either than was told before.
fn adjusted(times: Times, told: Times) -> (u64, u64) {
    let Times { user, system, runtime } = times;
    if told.user.saturating_add(told.system) >= runtime {
        return (told.user, told.system);
    }
    let system = match (user, system) {
        (_, 0) => 0,
        (0, _) => runtime,
        (user, system) => {
            let share = u128::from(system) * u128::from(runtime) / (u128::from(user) + u128::from(system));
            u64::try_from(share).map_or(runtime, |share| share.min(runtime))
        }
    };
    let system = system.max(told.system);
    let user = runtime.saturating_sub(system);
    if user < told.user { (told.user, runtime - told.user) } else { (user, system) }
}

/// The letter (task_state_index, fs/proc/array.c). The bits have not changed since 4.14, but that more came.
fn state(state: u32, exit_state: u32) -> u8 {
    const REPORTED: u32 = 0x7f;
    const IDLE: u32 = 0x402;
    const LOCK_WAIT_OR_FROZEN: u32 = 0x9000;
    const LETTERS: &[u8; 8] = b"RSDTtXZP";
    if state & LOCK_WAIT_OR_FROZEN != 0 {
        return b'D';
    }
    if state & IDLE == IDLE {
        return b'I';
    }
    let bits = (state | exit_state) & REPORTED;
    LETTERS[(u32::BITS - bits.leading_zeros()) as usize]
}

#[cfg(test)]
pub(super) mod tests {
    use sysops_common::tasks::kind;

    use super::*;

    const KNOWN: Known = Known { io: true, tick_ns: 10_000_000 };
    const TICK: u64 = 10_000_000;

    fn times(user: u64, system: u64, runtime: u64) -> Times {
        Times { user: user * TICK, system: system * TICK, runtime: runtime * TICK }
    }

    pub(in crate::kernel::tasks) fn process(tgid: u32, threads: u32) -> Process {
        Process {
            kind: kind::PROCESS,
            tgid,
            parent: 1,
            uid: 0,
            threads,
            state: 1,
            exit_state: 0,
            flags: 0x400_000,
            start_boottime_ns: 5 * TICK + 3,
            own: times(3, 1, 4),
            ended: times(0, 0, 0),
            told_utime: 0,
            told_stime: 0,
            file_pages: 5,
            anon_pages: 7,
            shmem_pages: -1,
            files_limit: 1024,
            cgroup: 1,
            memory_cgroup: 0,
            io: [1, 2, 3, 4, 5, 6, 7],
            comm: *b"a) S 1 (b\0\0\0\0\0\0\0",
            open_files: 3,
            reserved: 0,
        }
    }

    fn thread(tgid: u32) -> Thread {
        Thread { kind: kind::THREAD, tgid, own: times(2, 2, 4), ended_runtime: 0, io: [10; 7] }
    }

    fn table(processes: &[Process], threads: &[Thread]) -> TaskTable {
        let (mut records, mut table) = (Records::default(), TaskTable::default());
        records.start();
        for read in processes {
            records.process(read, &KNOWN, &mut table).expect("there is room");
        }
        for read in threads {
            records.thread(read);
        }
        let count = processes.len() + threads.len();
        records.finish(Some(count as u64), 0, &KNOWN, &mut table).expect("all told");
        table
    }

    fn rows(processes: &[Process], threads: &[Thread]) -> Vec<TaskRow> {
        table(processes, threads).rows
    }

    #[test]
    fn a_process_is_what_its_record_says() {
        let row = rows(&[process(9, 1)], &[])[0];
        assert_eq!((row.pid, row.comm(), row.state, row.start_ticks), (9, &b"a) S 1 (b"[..], b'S', 5));
        assert_eq!((row.rss_pages, row.open_files, row.cgroup_id, row.memory_cgroup_id), (12, Some(3), Some(1), None));
        assert_eq!((row.cpu, row.cpu_ns), (CpuTicks { user: 3, system: 1 }, 4 * TICK));
        assert_eq!(row.io.map(|io| (io.rchar, io.cancelled_write_bytes)), Some((1, 7)));
        let kernel = rows(&[Process { flags: PF_KTHREAD, open_files: NOT_COUNTED, ..process(2, 1) }], &[])[0];
        assert_eq!((kernel.is_kernel, kernel.rss_pages, kernel.open_files), (true, 0, None));
    }

    #[test]
    fn threads_are_added_to_their_process_in_whichever_order() {
        let both = rows(&[process(9, 3), process(20, 2), process(21, 1)], &[thread(9), thread(20), thread(9)]);
        assert_eq!(both[0].cpu, CpuTicks { user: 7, system: 5 });
        assert_eq!(both[1].cpu, CpuTicks { user: 5, system: 3 });
        assert_eq!(both[0].io.map(|io| (io.rchar, io.wchar)), Some((21, 22)));
        assert_eq!(both[2].cpu, CpuTicks { user: 3, system: 1 });
    }

    #[test]
    fn a_process_whose_threads_come_and_go_meanwhile_is_told_by_proc_alone() {
        let ended = Thread { ended_runtime: 5, ..thread(9) };
        for threads in [&[thread(9)][..], &[thread(9), ended], &[thread(9), thread(9), thread(9)], &[]] {
            let table = table(&[process(8, 1), process(9, 3), process(10, 1)], threads);
            let pids: Vec<u32> = table.rows.iter().map(|row| row.pid).collect();
            assert_eq!((pids, table.elsewhere), (vec![8, 10], vec![9]), "{} threads", threads.len());
        }
        // A thread whose process is not known ended with it.
        assert_eq!(rows(&[process(9, 1)], &[thread(700)]).len(), 1);
    }

    #[test]
    fn threads_with_ids_that_were_given_anew_come_before_their_process() {
        let early = |threads: &[Thread], leader: Process| {
            let (mut records, mut table) = (Records::default(), TaskTable::default());
            records.start();
            records.process(&process(7, 2), &KNOWN, &mut table).expect("there is room");
            threads.iter().for_each(|read| records.thread(read));
            records.thread(&thread(7));
            records.process(&leader, &KNOWN, &mut table).expect("there is room");
            records.thread(&thread(leader.tgid));
            records.finish(Some(4 + threads.len() as u64), 0, &KNOWN, &mut table).expect("all told");
            table
        };
        let table = early(&[thread(9), thread(9)], process(9, 4));
        assert_eq!(table.rows[0].cpu, CpuTicks { user: 5, system: 3 });
        assert_eq!(table.rows[1].cpu, CpuTicks { user: 9, system: 7 });
        assert_eq!(table.rows[1].io.map(|io| (io.rchar, io.wchar)), Some((31, 32)));
        let ended = Process { ended: times(1, 1, 2), ..process(9, 3) };
        for (threads, leader) in [(&[thread(9)][..], process(9, 4)), (&[thread(9), thread(9)], ended)] {
            let table = early(threads, leader);
            assert_eq!((table.rows.len(), table.elsewhere), (1, vec![9]));
        }
    }

    #[test]
    fn a_process_that_could_not_be_read_is_told_by_proc_alone() {
        let (mut records, mut table) = (Records::default(), TaskTable::default());
        records.process(&process(9, 1), &KNOWN, &mut table).expect("there is room");
        records.unread(&Unread { kind: kind::UNREAD, tgid: 12 }, &mut table);
        records.finish(Some(2), 0, &KNOWN, &mut table).expect("all told");
        assert_eq!((table.rows.len(), table.elsewhere), (1, vec![12]));
    }

    #[test]
    fn what_is_not_whole_is_an_error() {
        let refused = |end, rest| {
            let (mut records, mut table) = (Records::default(), TaskTable::default());
            records.process(&process(9, 1), &KNOWN, &mut table).expect("there is room");
            records.finish(end, rest, &KNOWN, &mut table).err().map(|refusal| refusal.reason)
        };
        assert_eq!(refused(Some(1), 0), None);
        assert!(refused(None, 0).is_some_and(|reason| reason.contains("without an end")));
        assert!(refused(Some(2), 0).is_some_and(|reason| reason.contains("told 1 of 2")));
        assert!(refused(Some(1), 8).is_some_and(|reason| reason.contains("cut off")));
    }

    #[test]
    fn more_processes_than_there_is_room_for_are_an_error() {
        let (mut records, mut table) = (Records::default(), TaskTable::default());
        for tgid in 0..u32::try_from(ROWS_MAX).expect("small") {
            records.process(&process(tgid, 1), &KNOWN, &mut table).expect("there is room");
        }
        assert!(records.process(&process(0, 1), &KNOWN, &mut table).is_err());
    }

    /// Numbers worked out by hand from the kernel's function.
    #[test]
    fn time_is_divided_as_the_kernel_does() {
        let of =
            |times, told_user, told_system| adjusted(times, Times { user: told_user, system: told_system, runtime: 0 });
        let plain = |user, system, runtime| Times { user, system, runtime };
        assert_eq!(of(plain(30, 10, 100), 0, 0), (75, 25));
        assert_eq!(of(plain(30, 0, 100), 0, 0), (100, 0));
        assert_eq!(of(plain(0, 10, 100), 0, 0), (0, 100));
        assert_eq!(of(plain(0, 0, 100), 0, 0), (100, 0), "without ticks it counts as user time");
        assert_eq!(of(plain(30, 10, 100), 0, 40), (60, 40), "never less system time than was told");
        assert_eq!(of(plain(30, 10, 100), 90, 0), (90, 10), "never less user time");
        assert_eq!(of(plain(30, 10, 100), 90, 20), (90, 20), "nor less of both");
        let far = u64::MAX / 2;
        assert_eq!(of(plain(far, far, far), 0, 0), (far - far / 2, far / 2));
    }

    #[test]
    fn states_have_the_letters_of_proc() {
        let letters = [
            (0, 0, b'R'),
            (1, 0, b'S'),
            (2, 0, b'D'),
            (4, 0, b'T'),
            (0x104, 0, b'T'),
            (8, 0, b't'),
            (0x80, 0x10, b'X'),
            (0x80, 0x20, b'Z'),
            (0x40, 0, b'P'),
            (0x402, 0, b'I'),
            (0x102, 0, b'D'),
            (0x1000, 0, b'D'),
            (0x8000, 0, b'D'),
            (0x8402, 0, b'D'),
            (0x2001, 0, b'S'),
        ];
        for (bits, exit, letter) in letters {
            assert_eq!(state(bits, exit), letter, "{bits:x} {exit:x}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_numbers_are_met(user: u64, system: u64, runtime: u64, told: (u64, u64), bits: u32, exit: u32) {
            let told = Times { user: told.0, system: told.1, runtime: 0 };
            let _ = adjusted(Times { user, system, runtime }, told);
            let _ = state(bits, exit);
        }
    }
}
