//! An NFS server (RFC 1813, over TCP) with one file, and its mount by the kernel's own client. It can stop answering, as a
//! server does that is stopped: the connection stands, and what is sent is taken.
#![expect(clippy::panic, reason = "tests fail by panic")]

use std::ffi::CString;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex};

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::require;

/// A mount whose server runs in threads of this process.
pub struct NfsMount {
    directory: PathBuf,
    answers: Arc<Answers>,
}

/// Whether the server answers.
struct Answers {
    are_given: Mutex<bool>,
    changed: Condvar,
}

const NFS: u32 = 100_003;
const MOUNT: u32 = 100_005;
/// File handles, which are the numbers of the files, too.
const ROOT: u32 = 1;
const FILE: u32 = 2;
const SIZE: u32 = 4096;

impl NfsMount {
    /// What is missing to make one.
    #[must_use]
    pub fn missing() -> Option<String> {
        require::root().or_else(|| require::modules(&["nfsv3"]))
    }

    /// Starts the server and mounts it. Nothing is kept in the client's caches, so that each look at the file asks the server.
    ///
    /// # Panics
    /// When the machine refuses.
    #[must_use]
    pub fn new() -> Self {
        let answers = Arc::new(Answers { are_given: Mutex::new(true), changed: Condvar::new() });
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port of our own");
        let port = listener.local_addr().expect("it is bound").port();
        let all = Arc::clone(&answers);
        std::thread::spawn(move || {
            for connection in listener.incoming().flatten() {
                let answers = Arc::clone(&all);
                std::thread::spawn(move || serve(connection, &answers));
            }
        });
        let directory = std::env::temp_dir().join(format!("sysops-nfs-{}", std::process::id()));
        std::fs::create_dir_all(&directory).expect("a directory of our own");
        let options = format!(
            "addr=127.0.0.1,vers=3,proto=tcp,port={port},mountaddr=127.0.0.1,mountvers=3,mountproto=tcp,mountport={port},hard,nolock,noacl,noac"
        );
        let options = CString::new(options).expect("no NUL");
        mount("127.0.0.1:/export", &directory, "nfs", MountFlags::empty(), Some(&*options))
            .unwrap_or_else(|error| panic!("NFS cannot be mounted: {error}"));
        Self { directory, answers }
    }

    /// Where it is mounted.
    #[must_use]
    pub fn at(&self) -> &Path {
        &self.directory
    }

    /// Its file, of one page.
    #[must_use]
    pub fn file(&self) -> PathBuf {
        self.directory.join("file")
    }

    /// The server answers no more, or again.
    ///
    /// # Panics
    /// When a thread of the server has panicked.
    pub fn answer(&self, whether: bool) {
        *self.answers.are_given.lock().expect("no thread panics with it") = whether;
        self.answers.changed.notify_all();
    }
}

impl Default for NfsMount {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for NfsMount {
    fn drop(&mut self) {
        let _ = unmount(&self.directory, UnmountFlags::DETACH);
        let _ = std::fs::remove_dir(&self.directory);
    }
}

/// Answers the calls of one connection, each of which is one record with its length before it (RFC 5531).
fn serve(mut connection: TcpStream, answers: &Answers) {
    let mut length = [0; 4];
    while connection.read_exact(&mut length).is_ok() {
        let mut call = vec![0; (u32::from_be_bytes(length) & 0x7fff_ffff) as usize];
        if connection.read_exact(&mut call).is_err() {
            return;
        }
        let mut given = answers.are_given.lock().expect("no thread panics with it");
        while !*given {
            given = answers.changed.wait(given).expect("no thread panics with it");
        }
        drop(given);
        let reply = reply(&mut Call { rest: &call });
        let last = 0x8000_0000 | u32::try_from(reply.len()).expect("it is short");
        if connection.write_all(&[&last.to_be_bytes()[..], &reply].concat()).is_err() {
            return;
        }
    }
}

/// What is left of a call.
struct Call<'a> {
    rest: &'a [u8],
}

impl Call<'_> {
    fn word(&mut self) -> u32 {
        let (word, rest) = self.rest.split_first_chunk().expect("the kernel's calls are whole");
        self.rest = rest;
        u32::from_be_bytes(*word)
    }

    fn opaque(&mut self) -> &[u8] {
        let length = self.word() as usize;
        let (bytes, rest) = self.rest.split_at(length.next_multiple_of(4));
        self.rest = rest;
        &bytes[..length]
    }

    /// A file handle of this server.
    fn file(&mut self) -> u32 {
        self.opaque().first_chunk().map_or(ROOT, |handle| u32::from_be_bytes(*handle))
    }
}

fn reply(call: &mut Call<'_>) -> Vec<u8> {
    let [id, _call, _version, program, _version_of_it, procedure] = std::array::from_fn(|_| call.word());
    for _credential_and_verifier in 0..2 {
        call.word();
        call.opaque();
    }
    let results = results(call, program, procedure);
    // A reply that is accepted, with no verifier, and done; or there is no such procedure.
    let head = [id, 1, 0, 0, 0, if results.is_some() { 0 } else { 3 }];
    let words = head.into_iter().chain(results.unwrap_or_default());
    words.flat_map(u32::to_be_bytes).collect()
}

/// Results of a procedure in words. All succeed: their first word is zero.
fn results(call: &mut Call<'_>, program: u32, procedure: u32) -> Option<Vec<u32>> {
    // Attributes that are given beside what was asked for.
    let beside = |file| [vec![0, 1], attributes(file)].concat();
    Some(match (program, procedure) {
        (NFS | MOUNT, 0) | (MOUNT, 3) => Vec::new(),
        // MNT: the handle, and the way to say who asks (AUTH_SYS).
        (MOUNT, 1) => vec![0, 4, ROOT, 1, 1],
        // GETATTR
        (NFS, 1) => [vec![0], attributes(call.file())].concat(),
        // LOOKUP: there is one file, by any name.
        (NFS, 3) => [vec![0, 4, FILE, 1], attributes(FILE), vec![0]].concat(),
        // ACCESS: to all.
        (NFS, 4) => [beside(call.file()), vec![0x3f]].concat(),
        // READ: all of it, to its end.
        (NFS, 6) => [beside(FILE), vec![SIZE, 1, SIZE], vec![0; SIZE as usize / 4]].concat(),
        // FSSTAT: bytes and files, all of which are free.
        (NFS, 18) => [beside(ROOT), [0, 1 << 20].repeat(6), vec![0]].concat(),
        // FSINFO: sizes of reads, writes and directories, the largest file, the grain of times, and no more than that.
        (NFS, 19) => [beside(ROOT), vec![SIZE; 7], vec![0, 1 << 30, 0, 1, 0x8]].concat(),
        // PATHCONF
        (NFS, 20) => [beside(ROOT), vec![1, 255, 1, 1, 0, 1]].concat(),
        _ => return None,
    })
}

fn attributes(file: u32) -> Vec<u32> {
    let (kind, mode) = if file == ROOT { (2, 0o755) } else { (1, 0o644) };
    // Kind, mode, links, owner, group; size, space, device, file system and number, of two words each; three times.
    [vec![kind, mode, 1, 0, 0], vec![0, SIZE, 0, SIZE, 0, 0, 0, 1, 0, file], vec![1, 0, 1, 0, 1, 0]].concat()
}
