//! Small files that outlive the agent, in one directory. Each is replaced whole, by a thread of its own: a disk that hangs holds up
//! nobody who watches the kernel.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::{Files, ReadError};

/// How soon a write that failed is tried again.
const TRIED_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// The directory, or none: then nothing is there and nothing is kept.
#[derive(Clone, Debug, Default)]
pub struct StateFiles {
    directory: Option<Arc<Directory>>,
}

#[derive(Debug)]
struct Directory {
    path: PathBuf,
    slots: Arc<Slots>,
    /// Wakes the thread, which ends with the last sender. `None` until something is to be written.
    wake: Mutex<Option<SyncSender<()>>>,
}

#[derive(Debug, Default)]
struct Slots {
    state: Mutex<State>,
    settled: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// The newest content of each file that is to be written; what it replaces is never missed.
    waiting: Vec<Slot>,
    is_writing: bool,
    /// Files whose last write failed: that has been said.
    failed: Vec<&'static str>,
}

#[derive(Debug)]
struct Slot {
    name: &'static str,
    text: Vec<u8>,
    without: &'static str,
}

impl StateFiles {
    /// Files in `directory`; without one nothing is kept.
    #[must_use]
    pub fn within(directory: Option<&Path>) -> Self {
        let directory = directory
            .map(|path| Arc::new(Directory { path: path.to_owned(), slots: Arc::default(), wake: Mutex::new(None) }));
        Self { directory }
    }

    /// What the file says; `None` where there is none.
    ///
    /// # Errors
    /// When there is one that cannot be read.
    pub fn read(&self, files: &Files, name: &'static str) -> Result<Option<String>, ReadError> {
        let Some(directory) = &self.directory else { return Ok(None) };
        match files.read_text(&directory.path.join(name)) {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.is_absent() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Puts `text` in the place of what the file says, and does not wait for it. It is not synced to the disk. A failure is told once,
    /// with what the agent is `without` then, and the write tried again until one succeeds.
    pub fn write(&self, name: &'static str, text: Vec<u8>, without: &'static str) {
        let Some(directory) = &self.directory else { return };
        let mut state = directory.slots.lock();
        state.waiting.retain(|slot| slot.name != name);
        state.waiting.push(Slot { name, text, without });
        drop(state);
        directory.wake();
    }

    /// Waits until all is written, for no longer than `at_most`.
    pub fn settle(&self, at_most: Duration) {
        let Some(Directory { slots, .. }) = self.directory.as_deref() else { return };
        let is_busy = |state: &mut State| {
            // What failed may fail for long.
            state.is_writing || state.waiting.iter().any(|slot| !state.failed.contains(&slot.name))
        };
        _ = slots.settled.wait_timeout_while(slots.lock(), at_most, is_busy).unwrap_or_else(PoisonError::into_inner);
    }
}

impl Directory {
    fn wake(&self) {
        let mut wake = self.wake.lock().unwrap_or_else(PoisonError::into_inner);
        let is_awake =
            wake.as_ref().is_some_and(|wake| !matches!(wake.try_send(()), Err(TrySendError::Disconnected(()))));
        if is_awake {
            return;
        }
        let (sender, woken) = sync_channel(1);
        let (slots, path) = (Arc::clone(&self.slots), self.path.clone());
        let write = move || write_all(&slots, &path, &woken);
        match std::thread::Builder::new().name("state-files".to_owned()).stack_size(128 << 10).spawn(write) {
            Ok(_) => {
                _ = sender.try_send(());
                *wake = Some(sender);
            }
            Err(error) => tracing::error!("no thread for {}: {error}: nothing is kept there", self.path.display()),
        }
    }
}

impl Slots {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The thread: writes what waits, until nobody can bring more.
fn write_all(slots: &Slots, directory: &Path, woken: &Receiver<()>) {
    let mut again = Vec::new();
    loop {
        let has_ended = if again.is_empty() {
            woken.recv().is_err()
        } else {
            matches!(woken.recv_timeout(TRIED_AGAIN_AFTER), Err(RecvTimeoutError::Disconnected))
        };
        let mut state = slots.lock();
        for slot in again.drain(..) {
            let is_outdated = |slot: &Slot| state.waiting.iter().any(|newer| newer.name == slot.name);
            if !is_outdated(&slot) {
                state.waiting.push(slot);
            }
        }
        while !state.waiting.is_empty() {
            let slot = state.waiting.remove(0);
            state.is_writing = true;
            drop(state);
            let result = replace(&directory.join(slot.name), &slot.text);
            state = slots.lock();
            state.is_writing = false;
            match result {
                Ok(()) => state.failed.retain(|name| *name != slot.name),
                Err(error) => {
                    if !state.failed.contains(&slot.name) {
                        state.failed.push(slot.name);
                        tracing::warn!(
                            "{error}: {}: {}; make agent.data_dir a directory that the agent may write to, with room on it",
                            error.source,
                            slot.without
                        );
                    }
                    again.push(slot);
                }
            }
        }
        drop(state);
        slots.settled.notify_all();
        if has_ended {
            return;
        }
    }
}

/// Puts a whole file in the place of `path`.
fn replace(path: &Path, text: &[u8]) -> Result<(), ReadError> {
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    std::fs::write(&new, text).and_then(|()| std::fs::rename(&new, path)).map_err(|source| ReadError {
        path: path.to_owned(),
        what: "cannot write",
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::Host;

    const LONG: Duration = Duration::from_secs(10);

    fn said(files: &StateFiles, host: &Host) -> Option<String> {
        files.read(&host.files, "a").expect("it can be read")
    }

    #[test]
    fn the_newest_is_kept_and_read_by_the_next_life() {
        let dir = tempfile::tempdir().expect("a directory");
        let (host, files) = (Host::fixture(dir.path()), StateFiles::within(Some(dir.path())));
        assert_eq!(said(&files, &host), None);
        for text in ["one", "two", "three"] {
            files.write("a", text.into(), "nothing");
        }
        files.settle(LONG);
        assert_eq!(said(&StateFiles::within(Some(dir.path())), &host).as_deref(), Some("three"));
    }

    #[test]
    fn without_a_directory_nothing_is_there_and_nothing_is_kept() {
        let (host, files) = (Host::fixture(Path::new("/nonexistent")), StateFiles::default());
        files.write("a", b"text".to_vec(), "nothing");
        files.settle(LONG);
        assert_eq!(said(&files, &host), None);
    }

    #[test]
    fn a_disk_that_hangs_holds_up_nobody_and_gets_the_newest() {
        let dir = tempfile::tempdir().expect("a directory");
        let (host, files) = (Host::fixture(dir.path()), StateFiles::within(Some(dir.path())));
        // Whoever opens a pipe to write waits for a reader: the thread hangs, as it does with a disk.
        let pipe = dir.path().join("a.new");
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU, 0)
            .expect("a pipe");
        files.write("a", b"hangs".to_vec(), "nothing");
        files.write("a", b"outdated".to_vec(), "nothing");
        files.write("a", b"newest".to_vec(), "nothing");
        files.settle(Duration::from_millis(10));
        assert_eq!(said(&files, &host), None);
        let reader = std::fs::OpenOptions::new().read(true).write(true).open(&pipe).expect("our own");
        files.settle(LONG);
        drop(reader);
        std::fs::remove_file(dir.path().join("a")).ok();
        files.write("a", b"newest".to_vec(), "nothing");
        files.settle(LONG);
        assert_eq!(said(&files, &host).as_deref(), Some("newest"));
    }

    #[test]
    fn what_cannot_be_written_is_tried_again() {
        let dir = tempfile::tempdir().expect("a directory");
        let below = dir.path().join("below");
        let (host, files) = (Host::fixture(dir.path()), StateFiles::within(Some(&below)));
        files.write("a", b"text".to_vec(), "nothing");
        files.settle(LONG);
        assert_eq!(said(&files, &host), None);
        std::fs::create_dir(&below).expect("our own");
        let mut tries = 0..100;
        while said(&files, &host).is_none() && tries.next().is_some() {
            std::thread::sleep(Duration::from_millis(100));
        }
        assert_eq!(said(&files, &host).as_deref(), Some("text"));
    }
}
