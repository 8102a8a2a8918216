//! Space and inodes of file systems, asked on threads of its own, so that a file system that hangs costs one waiting
//! thread and not the readings of the others. Which mounts to ask, and what to say of those that hang, is left to
//! the caller.

use std::ffi::{CStr, CString};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;
use std::time::Duration;

use rustix::io::Errno;

use super::os;

/// Most threads that may wait in hung file systems. When all but one of them do, file systems that others serve
/// (network, FUSE) are no longer asked, so that the last thread is left for the machine's own disks.
const MAX_THREADS: usize = 8;

/// A thread makes one system call.
const STACK_BYTES: usize = 64 << 10;

/// Space and inodes of one file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// Bytes in the units in which the blocks are counted.
    pub block_bytes: u64,
    /// Blocks in all.
    pub blocks: u64,
    /// Blocks that are free.
    pub blocks_free: u64,
    /// Blocks that are free for ordinary users.
    pub blocks_avail: u64,
    /// Inodes in all; 0 where the file system has no fixed number.
    pub files: u64,
    /// Inodes that are free.
    pub files_free: u64,
}

/// What came of asking one file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It answered.
    Known(Space),
    /// It answered with an error.
    Failed(Errno),
    /// It has not answered yet; it is not asked again until it does.
    Hung,
    /// It was not asked, as too many others hang.
    Skipped,
}

/// How a file system is asked: statvfs(2), or a test's.
pub type Ask = Arc<dyn Fn(&CStr) -> Result<Space, Errno> + Send + Sync>;

/// Asks statvfs(2).
///
/// # Errors
/// What the kernel said.
pub fn statvfs(path: &CStr) -> Result<Space, Errno> {
    let fs = os::statvfs(path)?;
    Ok(Space {
        block_bytes: fs.f_frsize,
        blocks: fs.f_blocks,
        blocks_free: fs.f_bfree,
        blocks_avail: fs.f_bavail,
        files: fs.f_files,
        files_free: fs.f_ffree,
    })
}

/// Asks a list of file systems in order, again and again.
pub struct Asker {
    shared: Arc<Shared>,
    ask: Ask,
    patience: Duration,
}

struct Shared {
    state: Mutex<State>,
    /// There is something to ask, or to leave for.
    work: Condvar,
    /// A round is over.
    over: Condvar,
}

#[derive(Default)]
struct State {
    slots: Vec<Slot>,
    ids: u64,
    /// First slot that this round has not come to.
    next: usize,
    /// Counts answers, so that a slow round is known from one that stands.
    answers: u64,
    /// Number of the one thread that may take slots. One that was given up has an older number, and leaves when its
    /// call returns.
    turn: u64,
    /// There is a thread with that number.
    manned: bool,
    /// The slot for which it is in a call.
    working: Option<usize>,
    /// Threads that live.
    threads: usize,
}

struct Slot {
    id: u64,
    mount: u64,
    path: Arc<CStr>,
    remote: bool,
    /// A thread is in the call for this slot.
    busy: bool,
    answer: Answer,
}

impl Asker {
    /// `patience`: how long one file system may take before the others go on without it.
    #[must_use]
    pub fn new(ask: Ask, patience: Duration) -> Self {
        let shared = Shared { state: Mutex::default(), work: Condvar::new(), over: Condvar::new() };
        Self { shared: Arc::new(shared), ask, patience }
    }

    /// Sets what is asked: number of the mount, path, and whether another machine or program serves the file system
    /// (network, FUSE). A mount that hangs stays known as such.
    pub fn set(&mut self, mounts: impl Iterator<Item = (u64, CString, bool)>) {
        let mut state = self.shared.lock();
        let mut hung: Vec<Slot> = std::mem::take(&mut state.slots).into_iter().filter(|slot| slot.busy).collect();
        for (mount, path, remote) in mounts {
            let same = |slot: &Slot| slot.mount == mount && *slot.path == *path;
            let known = hung.iter().position(same).map(|at| hung.swap_remove(at));
            state.ids += 1;
            let id = state.ids;
            let fresh = || Slot { id, mount, path: path.into(), remote, busy: false, answer: Answer::Skipped };
            state.slots.push(known.unwrap_or_else(fresh));
        }
        state.next = state.slots.len();
    }

    /// Asks all in order and gives each answer with its index. Waits for at most two times the patience for one that
    /// newly hangs, and for a tenth of that for each further one that others serve.
    pub fn ask(&mut self, each: &mut dyn FnMut(usize, Answer)) {
        let shared = Arc::clone(&self.shared);
        let mut state = shared.lock();
        state.next = 0;
        let mut any_hung = false;
        while !state.is_round_over() {
            if !state.manned && !self.spawn(&mut state) {
                state.skip_rest();
                break;
            }
            shared.work.notify_one();
            let answers = state.answers;
            let patience = if any_hung && state.is_remote() { self.patience / 10 } else { self.patience };
            let waited = shared.over.wait_timeout_while(state, patience, |state| !state.is_round_over());
            state = waited.expect("no holder of this lock panics").0;
            if state.answers == answers {
                any_hung |= state.leave_worker();
            }
        }
        for (index, slot) in state.slots.iter().enumerate() {
            each(index, slot.answer);
        }
    }

    fn spawn(&self, state: &mut State) -> bool {
        if state.threads >= MAX_THREADS {
            return false;
        }
        let (shared, ask, turn) = (Arc::clone(&self.shared), Arc::clone(&self.ask), state.turn);
        let builder = thread::Builder::new().name("statvfs".to_owned()).stack_size(STACK_BYTES);
        // Without a thread (a limit was reached) the file systems are not asked, rather than asked on this one.
        let spawned = builder.spawn(move || shared.serve(&*ask, turn)).is_ok();
        if spawned {
            state.threads += 1;
            state.manned = true;
        }
        spawned
    }
}

impl Drop for Asker {
    fn drop(&mut self) {
        // Threads that wait for work leave now, those in a call when it returns.
        self.shared.lock().turn = u64::MAX;
        self.shared.work.notify_all();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder of this lock panics")
    }

    /// A thread's life: takes slots while `turn` is the current one.
    fn serve(&self, ask: &dyn Fn(&CStr) -> Result<Space, Errno>, turn: u64) {
        let mut state = self.lock();
        while state.turn == turn {
            let Some((index, id, path)) = state.take() else {
                state = self.work.wait(state).expect("no holder of this lock panics");
                continue;
            };
            drop(state);
            let answer = ask(&path).map_or_else(Answer::Failed, Answer::Known);
            state = self.lock();
            state.answers += 1;
            state.put(index, id, answer);
            if state.turn == turn {
                state.working = None;
                if state.is_round_over() {
                    self.over.notify_one();
                }
            }
        }
        state.threads -= 1;
    }
}

impl State {
    /// Passes over the slots that must not be asked now. True when none is left and none is being asked.
    fn is_round_over(&mut self) -> bool {
        let waiting = self.threads - usize::from(self.manned);
        while let Some(slot) = self.slots.get_mut(self.next) {
            if !slot.busy {
                if !slot.remote || waiting + 1 < MAX_THREADS {
                    return false;
                }
                slot.answer = Answer::Skipped;
            }
            self.next += 1;
        }
        self.working.is_none()
    }

    fn take(&mut self) -> Option<(usize, u64, Arc<CStr>)> {
        self.is_round_over();
        let index = self.next;
        let slot = self.slots.get_mut(index)?;
        slot.busy = true;
        self.next += 1;
        self.working = Some(index);
        Some((index, slot.id, Arc::clone(&slot.path)))
    }

    /// The list may have been set anew while the call lasted.
    fn put(&mut self, index: usize, id: u64, answer: Answer) {
        let at = if self.slots.get(index).is_some_and(|slot| slot.id == id) {
            Some(index)
        } else {
            self.slots.iter().position(|slot| slot.id == id)
        };
        if let Some(slot) = at.and_then(|at| self.slots.get_mut(at)) {
            slot.busy = false;
            slot.answer = answer;
        }
    }

    /// True when others serve the file system that is being asked, or is the next to be.
    fn is_remote(&self) -> bool {
        self.slots.get(self.working.unwrap_or(self.next)).is_some_and(|slot| slot.remote)
    }

    /// Gives up the thread that is in a call. False when it is in none, but was not yet given time to run.
    fn leave_worker(&mut self) -> bool {
        let Some(index) = self.working.take() else { return false };
        self.slots[index].answer = Answer::Hung;
        self.manned = false;
        self.turn += 1;
        true
    }

    fn skip_rest(&mut self) {
        for slot in self.slots[self.next..].iter_mut().filter(|slot| !slot.busy) {
            slot.answer = Answer::Skipped;
        }
        self.next = self.slots.len();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_millis(200);
    const SPACE: Space =
        Space { block_bytes: 4096, blocks: 10, blocks_free: 5, blocks_avail: 4, files: 0, files_free: 0 };

    /// Gates that hold back calls for paths that begin with `/hung`.
    #[derive(Default)]
    struct Gate {
        open: Mutex<bool>,
        opened: Condvar,
        calls: Mutex<Vec<CString>>,
    }

    impl Gate {
        fn ask(self: &Arc<Self>) -> Ask {
            let gate = Arc::clone(self);
            Arc::new(move |path| {
                gate.calls.lock().unwrap().push(path.to_owned());
                if path.to_bytes().starts_with(b"/hung") {
                    let _open = gate.opened.wait_while(gate.open.lock().unwrap(), |open| !*open).unwrap();
                }
                if path.to_bytes() == b"/bad" { Err(Errno::IO) } else { Ok(SPACE) }
            })
        }

        fn set(&self, open: bool) {
            *self.open.lock().unwrap() = open;
            self.opened.notify_all();
        }

        fn calls(&self, path: &CStr) -> usize {
            self.calls.lock().unwrap().iter().filter(|call| call.as_c_str() == path).count()
        }
    }

    fn asker(gate: &Arc<Gate>, paths: &[(&str, bool)]) -> Asker {
        let mut asker = Asker::new(gate.ask(), PATIENCE);
        set(&mut asker, paths);
        asker
    }

    fn set(asker: &mut Asker, paths: &[(&str, bool)]) {
        asker.set(paths.iter().map(|&(path, remote)| (7, CString::new(path).unwrap(), remote)));
    }

    fn answers(asker: &mut Asker) -> Vec<Answer> {
        let mut answers = Vec::new();
        asker.ask(&mut |index, answer| {
            assert_eq!(index, answers.len());
            answers.push(answer);
        });
        answers
    }

    #[test]
    fn all_are_asked_in_order_by_one_thread() {
        let gate = Arc::new(Gate::default());
        let mut asker = asker(&gate, &[("/", false), ("/bad", false), ("/net", true)]);
        for _ in 0..2 {
            assert_eq!(answers(&mut asker), [Answer::Known(SPACE), Answer::Failed(Errno::IO), Answer::Known(SPACE)]);
        }
        let calls: Vec<_> = gate.calls.lock().unwrap().iter().map(|path| path.to_string_lossy().into_owned()).collect();
        assert_eq!(calls, ["/", "/bad", "/net", "/", "/bad", "/net"]);
        assert_eq!(asker.shared.lock().threads, 1);
    }

    #[test]
    fn one_that_hangs_costs_one_thread_and_comes_back() {
        let gate = Arc::new(Gate::default());
        let mut asker = asker(&gate, &[("/", false), ("/hung", true), ("/b", false)]);
        let hung = [Answer::Known(SPACE), Answer::Hung, Answer::Known(SPACE)];
        for _ in 0..3 {
            assert_eq!(answers(&mut asker), hung);
        }
        assert_eq!((gate.calls(c"/hung"), gate.calls(c"/b")), (1, 3));
        // The list changes while it hangs: it is known still, at its new place.
        set(&mut asker, &[("/hung", true), ("/c", false)]);
        assert_eq!(answers(&mut asker), [Answer::Hung, Answer::Known(SPACE)]);
        assert_eq!((gate.calls(c"/hung"), asker.shared.lock().threads), (1, 2));
        gate.set(true);
        let back = (0..1000).find(|_| {
            thread::sleep(Duration::from_millis(5));
            answers(&mut asker) == [Answer::Known(SPACE); 2]
        });
        assert!(back.is_some() && gate.calls(c"/hung") > 1);
        assert_eq!(asker.shared.lock().threads, 1, "the thread that was given up has left");
    }

    #[test]
    fn another_mount_at_the_place_of_one_that_hangs_is_asked() {
        let gate = Arc::new(Gate::default());
        let mut asker = asker(&gate, &[("/hung", true)]);
        assert_eq!(answers(&mut asker), [Answer::Hung]);
        asker.set([(8, c"/hung".to_owned(), true)].into_iter());
        assert_eq!(answers(&mut asker), [Answer::Hung]);
        assert_eq!((gate.calls(c"/hung"), asker.shared.lock().threads), (2, 2));
        gate.set(true);
    }

    #[test]
    fn many_that_hang_leave_a_thread_for_local_disks() {
        let gate = Arc::new(Gate::default());
        let names: Vec<String> = (0..20).map(|at| format!("/hung{at}")).collect();
        let mut paths: Vec<(&str, bool)> = names.iter().map(|name| (name.as_str(), true)).collect();
        paths.push(("/", false));
        let mut asker = asker(&gate, &paths);
        for _ in 0..2 {
            let answers = answers(&mut asker);
            assert_eq!(answers[..7], [Answer::Hung; 7]);
            assert_eq!(answers[7..20], [Answer::Skipped; 13]);
            assert_eq!(answers[20], Answer::Known(SPACE));
        }
        assert_eq!(asker.shared.lock().threads, MAX_THREADS);
        // Then a local one hangs too: no thread is left, and nothing waits for ever.
        paths.push(("/hung-disk", false));
        set(&mut asker, &paths);
        assert_eq!(answers(&mut asker)[20..], [Answer::Known(SPACE), Answer::Hung]);
        assert_eq!(answers(&mut asker)[20..], [Answer::Skipped, Answer::Hung]);
        assert_eq!(asker.shared.lock().threads, MAX_THREADS);
        gate.set(true);
        let back = (0..1000).any(|_| {
            thread::sleep(Duration::from_millis(5));
            answers(&mut asker) == [Answer::Known(SPACE); 22]
        });
        assert!(back);
    }

    #[test]
    fn threads_leave_with_the_asker() {
        let gate = Arc::new(Gate::default());
        let mut asker = asker(&gate, &[("/hung", true), ("/", false)]);
        assert_eq!(answers(&mut asker), [Answer::Hung, Answer::Known(SPACE)]);
        let shared = Arc::clone(&asker.shared);
        drop(asker);
        gate.set(true);
        let left = (0..1000).any(|_| {
            thread::sleep(Duration::from_millis(5));
            shared.lock().threads == 0
        });
        assert!(left);
    }

    #[test]
    fn a_real_file_system_answers_as_statvfs_does() {
        let space = statvfs(c"/").expect("/ answers");
        assert!(space.blocks >= space.blocks_free && space.blocks_free >= space.blocks_avail && space.blocks > 0);
        assert_eq!(statvfs(c"/nowhere/at/all"), Err(Errno::NOENT));
    }
}
