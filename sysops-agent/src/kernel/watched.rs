//! Which processes a probe watches: those whose names the configuration lists, as /proc shows them now, and those that it
//! asks for by number. What is done with them is left to the probe.

use crate::host::{Host, Process, Processes, ReadError, bytes};

/// Bytes of a name without the closing NUL: a longer name in the configuration is cut as the kernel cuts it.
const COMM_BYTES: usize = 15;
/// Looks after which a process that bore another name is asked again: it may have become another program.
const ROUNDS: u32 = 6;

/// Processes by name.
pub(super) struct Watched {
    names: Vec<Vec<u8>>,
    /// By number, whatever their names.
    wanted: Vec<u32>,
    most: usize,
    processes: Processes,
    /// Those that are watched, by pid.
    watched: Vec<Target>,
    /// Those that are not, as of the last look, by pid.
    others: Vec<u32>,
    previous: Vec<u32>,
    left_out: u32,
    round: u32,
}

/// A process that is watched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Target {
    /// Its id, as /proc has it.
    pub pid: u32,
    /// The same as text.
    pub pid_text: String,
    /// Its name.
    pub comm: String,
    /// Clock ticks after boot: tells it from a later one with the same id.
    start_ticks: u64,
    seen: bool,
}

/// What changed at a look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// It is watched from now on.
    Came(u32),
    /// It is gone, or bears another name.
    Went(u32),
}

impl Watched {
    /// None yet; at most `most` of those with one of `names`.
    #[must_use]
    pub(super) fn new(host: &Host, names: &[String], most: usize) -> Self {
        let cut = |name: &String| name.as_bytes()[..name.len().min(COMM_BYTES)].to_vec();
        Self {
            names: names.iter().map(cut).collect(),
            wanted: Vec::new(),
            most,
            processes: Processes::new(host),
            watched: Vec::new(),
            others: Vec::new(),
            previous: Vec::new(),
            left_out: 0,
            round: 0,
        }
    }

    /// True when no name is listed.
    #[must_use]
    pub(super) fn has_no_names(&self) -> bool {
        self.names.is_empty()
    }

    /// From the next look on no process is watched for its name.
    pub(super) fn forget_names(&mut self) {
        self.names.clear();
    }

    /// From the next look on the process `pid` is watched, until it ends or is let go.
    pub(super) fn want(&mut self, pid: u32) {
        if !self.wanted.contains(&pid) {
            self.wanted.push(pid);
        }
    }

    /// From the next look on the process is watched only if its name is listed.
    pub(super) fn let_go(&mut self, pid: u32) {
        self.wanted.retain(|wanted| *wanted != pid);
    }

    /// Processes that are asked for by number.
    #[must_use]
    pub(super) fn wanted(&self) -> &[u32] {
        &self.wanted
    }

    /// Those that are watched.
    #[must_use]
    pub(super) fn targets(&self) -> &[Target] {
        &self.watched
    }

    /// How many bear a listed name and are too many, as of the last look.
    #[must_use]
    pub(super) fn left_out(&self) -> u32 {
        self.left_out
    }

    /// Looks through /proc, shows `each` process and tells what changed. Processes that were there and bore another name are
    /// asked again every sixth time only.
    ///
    /// # Errors
    /// When /proc cannot be listed. Then nothing has changed.
    pub(super) fn look(
        &mut self,
        mut each: impl FnMut(Process<'_>),
        mut change: impl FnMut(Change),
    ) -> Result<(), ReadError> {
        std::mem::swap(&mut self.others, &mut self.previous);
        self.others.clear();
        self.round = self.round.wrapping_add(1);
        self.left_out = 0;
        for target in &mut self.watched {
            target.seen = false;
        }
        let Self { names, wanted, most, processes, watched, others, previous, left_out, round } = self;
        let mut fresh = Vec::new();
        let listed = processes.walk(|process| {
            let pid = process.pid;
            each(process);
            if let Some(target) = watched.iter_mut().find(|target| target.pid == pid) {
                target.seen = target.is_still(process, names, wanted);
                if target.seen {
                    return;
                }
                // Whoever has the number now is not who was meant.
                wanted.retain(|wanted| *wanted != pid);
            }
            if wanted.contains(&pid) {
                fresh.extend(Target::read(process, None));
                return;
            }
            // The live /proc lists by number, so that the list is sorted.
            if names.is_empty() || (pid ^ *round) % ROUNDS != 0 && previous.binary_search(&pid).is_ok() {
                others.push(pid);
                return;
            }
            match Target::read(process, Some(names)) {
                Some(target) => fresh.push(target),
                None => others.push(pid),
            }
        });
        if let Err(error) = listed {
            std::mem::swap(&mut self.others, &mut self.previous);
            return Err(error);
        }
        watched.retain(|target| {
            if !target.seen {
                change(Change::Went(target.pid));
                wanted.retain(|wanted| *wanted != target.pid);
            }
            target.seen
        });
        for target in fresh {
            if watched.len() < *most {
                change(Change::Came(target.pid));
                watched.push(target);
            } else {
                *left_out += 1;
            }
        }
        Ok(())
    }
}

impl Target {
    /// The process, if it bears one of `names`; whatever it is called when there are none.
    fn read(process: Process<'_>, names: Option<&[Vec<u8>]>) -> Option<Self> {
        let mut buffer = [0; 64];
        // Cheaper than stat, and for most processes all that is read.
        let comm = process.read("comm", &mut buffer).ok()?;
        let comm = comm.strip_suffix(b"\n").unwrap_or(comm);
        if names.is_some_and(|names| !names.iter().any(|name| name == comm)) {
            return None;
        }
        let mut buffer = [0; 1024];
        let (_, start_ticks) = name_and_start(process.read("stat", &mut buffer).ok()?)?;
        Some(Self {
            pid: process.pid,
            pid_text: process.pid.to_string(),
            comm: String::from_utf8_lossy(comm).into_owned(),
            start_ticks,
            seen: true,
        })
    }

    /// True when it is the same process and still meant: one that is asked for by number may change its name.
    fn is_still(&mut self, process: Process<'_>, names: &[Vec<u8>], wanted: &[u32]) -> bool {
        let mut buffer = [0; 1024];
        let Ok(stat) = process.read("stat", &mut buffer) else { return false };
        let Some((comm, start)) = name_and_start(stat) else { return false };
        let same_name = *self.comm == *String::from_utf8_lossy(comm);
        if start != self.start_ticks {
            return false;
        }
        if wanted.contains(&self.pid) {
            if !same_name {
                self.comm = String::from_utf8_lossy(comm).into_owned();
            }
            return true;
        }
        same_name && names.iter().any(|name| name == comm)
    }
}

/// The name and field 22 of a stat line. The name may hold anything, so fields are counted from its last parenthesis.
fn name_and_start(stat: &[u8]) -> Option<(&[u8], u64)> {
    let open = stat.iter().position(|&byte| byte == b'(')?;
    let close = stat.iter().rposition(|&byte| byte == b')')?;
    let start = bytes::fields(stat.get(close + 1..)?).nth(19)?;
    Some((stat.get(open + 1..close)?, bytes::u64(start)?))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::host::Host;

    struct Machine {
        dir: tempfile::TempDir,
        host: Host,
    }

    impl Machine {
        fn new() -> Self {
            let dir = tempfile::tempdir().expect("a directory");
            fs::create_dir(dir.path().join("proc")).expect("created");
            let host = Host::fixture(dir.path());
            Self { dir, host }
        }

        fn run(&self, pid: u32, comm: &str, start_ticks: u64) {
            let proc = self.dir.path().join(format!("proc/{pid}"));
            fs::create_dir_all(&proc).expect("created");
            fs::write(proc.join("comm"), format!("{comm}\n")).expect("written");
            let zeros = "0 ".repeat(18);
            fs::write(proc.join("stat"), format!("{pid} ({comm}) S {zeros}{start_ticks} 0 0")).expect("written");
        }

        fn end(&self, pid: u32) {
            fs::remove_dir_all(self.dir.path().join(format!("proc/{pid}"))).expect("removed");
        }
    }

    fn look(watched: &mut Watched) -> Vec<Change> {
        let mut changes = Vec::new();
        watched.look(|_| (), |change| changes.push(change)).expect("listed");
        changes.sort_by_key(|change| match change {
            Change::Came(pid) | Change::Went(pid) => *pid,
        });
        changes
    }

    #[test]
    fn processes_come_and_go_by_name() {
        let machine = Machine::new();
        machine.run(7, "nginx", 100);
        machine.run(8, "sshd", 100);
        let mut watched = Watched::new(&machine.host, &["nginx".to_owned()], 64);
        assert_eq!(look(&mut watched), [Change::Came(7)]);
        assert_eq!(look(&mut watched), []);
        machine.run(9, "nginx", 200);
        assert_eq!(look(&mut watched), [Change::Came(9)]);
        machine.end(7);
        assert_eq!(look(&mut watched), [Change::Went(7)]);
        assert_eq!(watched.targets().iter().map(|target| target.pid_text.as_str()).collect::<Vec<_>>(), ["9"]);
    }

    #[test]
    fn the_same_number_is_another_process_when_it_began_later() {
        let machine = Machine::new();
        machine.run(7, "nginx", 100);
        let mut watched = Watched::new(&machine.host, &["nginx".to_owned()], 64);
        assert_eq!(look(&mut watched), [Change::Came(7)]);
        machine.run(7, "nginx", 300);
        let mut changes = Vec::new();
        watched.look(|_| (), |change| changes.push(change)).expect("listed");
        assert_eq!(changes, [Change::Went(7), Change::Came(7)], "first the old one goes");
    }

    #[test]
    fn a_process_that_becomes_another_program_is_found_within_six_looks() {
        let machine = Machine::new();
        machine.run(7, "sh", 100);
        let mut watched = Watched::new(&machine.host, &["nginx".to_owned()], 64);
        assert_eq!(look(&mut watched), []);
        machine.run(7, "nginx", 100);
        assert!((0..6).any(|_| look(&mut watched) == [Change::Came(7)]));
        machine.run(7, "sh", 100);
        assert_eq!(look(&mut watched), [Change::Went(7)]);
    }

    #[test]
    fn names_are_cut_as_the_kernel_cuts_them_and_may_hold_anything() {
        let machine = Machine::new();
        machine.run(7, "a-long-name-of-", 1);
        machine.run(8, "a) S 1 (b", 2);
        let names = ["a-long-name-of-a-program".to_owned(), "a) S 1 (b".to_owned()];
        let mut watched = Watched::new(&machine.host, &names, 64);
        assert_eq!(look(&mut watched), [Change::Came(7), Change::Came(8)]);
        assert_eq!(look(&mut watched), []);
    }

    #[test]
    fn more_than_can_be_watched_are_counted() {
        let machine = Machine::new();
        for pid in 1..=5 {
            machine.run(pid, "nginx", 1);
        }
        let mut watched = Watched::new(&machine.host, &["nginx".to_owned()], 3);
        assert_eq!(look(&mut watched).len(), 3);
        assert_eq!(watched.left_out(), 2);
        let one = watched.targets()[0].pid;
        machine.end(one);
        let changes = look(&mut watched);
        assert!(changes.contains(&Change::Went(one)) && changes.len() == 2, "{changes:?}");
        assert_eq!(watched.left_out(), 1);
    }

    #[test]
    fn a_number_is_watched_until_its_process_ends_or_is_let_go() {
        let machine = Machine::new();
        machine.run(7, "java", 100);
        machine.run(8, "java", 100);
        let mut watched = Watched::new(&machine.host, &[], 64);
        assert_eq!(look(&mut watched), []);
        [7, 8, 7].into_iter().for_each(|pid| watched.want(pid));
        assert_eq!(look(&mut watched), [Change::Came(7), Change::Came(8)]);
        assert_eq!(look(&mut watched), []);
        machine.run(7, "java", 200);
        watched.let_go(8);
        assert_eq!(look(&mut watched), [Change::Went(7), Change::Went(8)], "another process has its number");
        assert!(watched.wanted().is_empty());
        assert_eq!(look(&mut watched), []);
    }

    #[test]
    fn nothing_changes_while_proc_cannot_be_listed() {
        let machine = Machine::new();
        machine.run(7, "nginx", 1);
        let mut watched = Watched::new(&machine.host, &["nginx".to_owned()], 64);
        assert_eq!(look(&mut watched), [Change::Came(7)]);
        let mut nowhere = Watched::new(&Host::fixture("/nonexistent".as_ref()), &["nginx".to_owned()], 64);
        assert!(nowhere.look(|_| (), |_| ()).is_err());
    }
}
