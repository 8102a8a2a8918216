//! The table of all processes in one piece, as some kernels give it: a slot that the kernel layer fills and collectors
//! ask. Where the slot is empty they are left to /proc, which tells the same, process by process.

use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::Duration;

use super::{Clock, Host};

/// How long a table may be used by others than who read it.
const SHARED_FOR: Duration = Duration::from_secs(1);

/// Processes that a table may hold: some 13 MiB. Beyond that /proc is asked, which is read one by one.
pub const ROWS_MAX: usize = 65_536;

/// A process, each field as /proc shows it to the initial pid namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TaskRow {
    /// Process id (tgid).
    pub pid: u32,
    /// Process id of the parent.
    pub parent: u32,
    /// Real user id.
    pub uid: u32,
    /// Threads that live.
    pub threads: u32,
    /// The letter in `/proc/<pid>/stat`.
    pub state: u8,
    /// It is a thread of the kernel. Their names in /proc may be longer than `comm`, and change with what they do.
    pub is_kernel: bool,
    /// Name, padded with NUL; any other bytes.
    pub comm: [u8; 16],
    /// CPU time of all threads, ended ones included.
    pub cpu: CpuTicks,
    /// The same, user and system together, before it is cut into two and to ticks: it never goes back.
    pub cpu_ns: u64,
    /// When it started, in ticks of USER_HZ since boot.
    pub start_ticks: u64,
    /// Resident pages.
    pub rss_pages: u64,
    /// Files it has open. `None` when it has room for more than a thousand: counting them is left to /proc.
    pub open_files: Option<u32>,
    /// Its soft limit of open files; `u64::MAX` for none.
    pub open_files_max: u64,
    /// Id of its cgroup in the unified hierarchy: the inode number of the directory.
    pub cgroup_id: Option<u64>,
    /// The same in the hierarchy of the memory controller; the nearest above it that has the controller.
    pub memory_cgroup_id: Option<u64>,
    /// What all its threads have read and written, ended ones included. `None` on a kernel that does not count it.
    pub io: Option<TaskIo>,
}

/// CPU time in ticks of USER_HZ, as `/proc/<pid>/stat` prints it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuTicks {
    /// In user mode.
    pub user: u64,
    /// In the kernel.
    pub system: u64,
}

/// `/proc/<pid>/io`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TaskIo {
    /// Bytes that read calls gave, from wherever.
    pub rchar: u64,
    /// Bytes that write calls took.
    pub wchar: u64,
    /// Read calls.
    pub syscr: u64,
    /// Write calls.
    pub syscw: u64,
    /// Bytes fetched from storage.
    pub read_bytes: u64,
    /// Bytes to be sent to storage.
    pub write_bytes: u64,
    /// Of those, bytes that never will be, as the file was cut off.
    pub cancelled_write_bytes: u64,
}

impl TaskRow {
    /// The name without padding.
    #[must_use]
    pub fn comm(&self) -> &[u8] {
        let end = self.comm.iter().position(|&byte| byte == 0).unwrap_or(self.comm.len());
        &self.comm[..end]
    }
}

/// All processes at one moment. Its memory is used again.
#[derive(Default)]
pub struct TaskTable {
    /// In the order of their ids.
    pub rows: Vec<TaskRow>,
    /// Processes that are not among the rows and must be read from /proc: one whose threads came or went meanwhile.
    pub elsewhere: Vec<u32>,
}

impl TaskTable {
    /// Forgets all.
    pub fn clear(&mut self) {
        self.rows.clear();
        self.elsewhere.clear();
    }

    /// The row of the process `pid`.
    #[must_use]
    pub fn row(&self, pid: u32) -> Option<&TaskRow> {
        self.rows.binary_search_by_key(&pid, |row| row.pid).ok().map(|place| &self.rows[place])
    }
}

/// A process as a walk comes to it.
#[derive(Clone, Copy, Debug)]
pub enum Walked<'a> {
    /// All that there is to know.
    Row(&'a TaskRow),
    /// Only its id: read it from /proc.
    Elsewhere(u32),
}

/// Who can read the table.
pub trait ReadTasks: Send {
    /// Fills `table`, which is empty. False when it could not be read whole; why, is the reader's to say.
    fn read(&mut self, table: &mut TaskTable) -> bool;
}

/// The slot. Clones share it.
#[derive(Clone, Default)]
pub struct TaskTables {
    shared: Arc<Mutex<Shared>>,
}

#[derive(Default)]
struct Shared {
    /// The newest last. Whoever offered one takes it away by dropping it.
    readers: Vec<Weak<Mutex<dyn ReadTasks>>>,
    /// 0 before the first.
    number: u64,
    at: Duration,
    table: TaskTable,
}

impl std::fmt::Debug for TaskTables {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("TaskTables").finish_non_exhaustive()
    }
}

impl TaskTables {
    /// Offers a reader; it is asked in the place of those offered before, for as long as the caller holds it.
    pub fn offer(&self, reader: &Arc<Mutex<dyn ReadTasks>>) {
        let mut shared = self.lock();
        shared.readers.retain(|reader| reader.strong_count() > 0);
        shared.readers.push(Arc::downgrade(reader));
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().expect("no holder of this lock panics")
    }
}

impl Shared {
    fn read(&mut self, now: Duration) -> bool {
        let reader = self.readers.iter().rev().find_map(Weak::upgrade);
        let Some(reader) = reader else { return false };
        self.table.clear();
        let is_whole = reader.lock().expect("no reader panics").read(&mut self.table) && !self.table.rows.is_empty();
        self.table.elsewhere.sort_unstable();
        self.number += 1;
        self.at = now;
        if !is_whole {
            self.table.clear();
        }
        is_whole
    }
}

/// One who walks over the table from time to time.
#[derive(Debug)]
pub struct TaskWalk {
    tables: TaskTables,
    clock: Clock,
    /// Number of the table that was walked last.
    number: u64,
}

impl TaskWalk {
    /// A walker over the processes of `host`.
    #[must_use]
    pub fn new(host: &Host) -> Self {
        Self { tables: host.tasks.clone(), clock: host.clock.clone(), number: 0 }
    }

    /// Calls `each` for every process that there is, or was within the last second, in the order of their ids. False,
    /// and nothing called, when no table can be had: ask /proc then.
    pub fn walk(&mut self, mut each: impl FnMut(Walked<'_>)) -> bool {
        let now = self.clock.now().monotonic;
        let mut shared = self.tables.lock();
        // The first walk is of its own: who begins wants to see what there is.
        let is_new = self.number > 0 && shared.number != self.number && now.saturating_sub(shared.at) < SHARED_FOR;
        let can_share = is_new && !shared.table.rows.is_empty();
        if !can_share && !shared.read(now) {
            return false;
        }
        self.number = shared.number;
        let mut elsewhere = shared.table.elsewhere.iter().copied().peekable();
        for row in &shared.table.rows {
            while let Some(pid) = elsewhere.next_if(|&pid| pid < row.pid) {
                each(Walked::Elsewhere(pid));
            }
            each(Walked::Row(row));
        }
        elsewhere.for_each(|pid| each(Walked::Elsewhere(pid)));
        true
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::path::Path;

    use super::*;

    /// A table that a test writes.
    #[derive(Default)]
    pub(crate) struct Made {
        pub(crate) rows: Vec<TaskRow>,
        pub(crate) elsewhere: Vec<u32>,
        pub(crate) is_broken: bool,
        pub(crate) reads: u32,
    }

    impl ReadTasks for Made {
        fn read(&mut self, table: &mut TaskTable) -> bool {
            self.reads += 1;
            table.rows.extend(&self.rows);
            table.elsewhere.extend(&self.elsewhere);
            !self.is_broken
        }
    }

    /// A process that sleeps and has nothing.
    pub(crate) fn row(pid: u32) -> TaskRow {
        TaskRow {
            pid,
            parent: 1,
            uid: 0,
            threads: 1,
            state: b'S',
            is_kernel: false,
            comm: *b"made\0\0\0\0\0\0\0\0\0\0\0\0",
            cpu: CpuTicks::default(),
            cpu_ns: 0,
            start_ticks: 7,
            rss_pages: 1,
            open_files: Some(0),
            open_files_max: 1024,
            cgroup_id: None,
            memory_cgroup_id: None,
            io: None,
        }
    }

    fn offered(host: &Host) -> (Arc<Mutex<Made>>, Arc<Mutex<dyn ReadTasks>>) {
        let made = Arc::new(Mutex::new(Made { rows: vec![row(1), row(2)], ..Made::default() }));
        let reader: Arc<Mutex<dyn ReadTasks>> = made.clone();
        host.tasks.offer(&reader);
        (made, reader)
    }

    fn count(walk: &mut TaskWalk) -> Option<usize> {
        let mut count = 0;
        walk.walk(|_| count += 1).then_some(count)
    }

    #[test]
    fn the_newest_reader_is_asked_as_long_as_it_is_held() {
        let host = Host::fixture(Path::new("/nonexistent"));
        let mut walk = TaskWalk::new(&host);
        assert_eq!(count(&mut walk), None);
        let first = offered(&host);
        let second = offered(&host);
        second.0.lock().expect("ours").rows.push(row(3));
        assert_eq!(count(&mut walk), Some(3));
        drop(second);
        assert_eq!(count(&mut walk), Some(2));
        drop(first);
        assert_eq!(count(&mut walk), None);
    }

    #[test]
    fn what_is_elsewhere_comes_in_its_place() {
        let host = Host::fixture(Path::new("/nonexistent"));
        let (made, _held) = offered(&host);
        made.lock().expect("ours").rows.push(row(9));
        made.lock().expect("ours").elsewhere = vec![12, 5];
        let mut seen = Vec::new();
        assert!(TaskWalk::new(&host).walk(|walked| {
            seen.push(match walked {
                Walked::Row(row) => (row.pid, true),
                Walked::Elsewhere(pid) => (pid, false),
            });
        }));
        assert_eq!(seen, [(1, true), (2, true), (5, false), (9, true), (12, false)]);
    }

    #[test]
    fn a_table_serves_each_walker_once_and_for_a_second() {
        let host = Host::fixture(Path::new("/nonexistent"));
        let (made, _held) = offered(&host);
        let mut walkers = [TaskWalk::new(&host), TaskWalk::new(&host)];
        let mut reads = |walker: usize| {
            assert_eq!(count(&mut walkers[walker]), Some(2));
            made.lock().expect("ours").reads
        };
        assert_eq!((reads(0), reads(1)), (1, 2), "the first walk of each reads");
        assert_eq!((reads(0), reads(0), reads(1)), (2, 3, 3));
        host.clock.advance(SHARED_FOR);
        assert_eq!(reads(1), 4);
    }

    #[test]
    fn what_could_not_be_read_whole_is_not_used_by_anyone() {
        let host = Host::fixture(Path::new("/nonexistent"));
        let (made, _held) = offered(&host);
        let mut walkers = [TaskWalk::new(&host), TaskWalk::new(&host)];
        assert_eq!((count(&mut walkers[0]), count(&mut walkers[1])), (Some(2), Some(2)));
        made.lock().expect("ours").is_broken = true;
        assert_eq!((count(&mut walkers[1]), count(&mut walkers[0])), (None, None));
        made.lock().expect("ours").is_broken = false;
        assert_eq!((count(&mut walkers[0]), count(&mut walkers[1])), (Some(2), Some(2)));
    }
}
