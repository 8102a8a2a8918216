//! A process whose first thread has ended while the second goes on: the kernel names the second when it kills, and the process
//! is still that of the first. No safe Rust ends a first thread alone, so it is a program of 212 bytes.
#![expect(clippy::disallowed_methods, reason = "tests are outside of the agent: they write files and run programs")]

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Stdio};

use crate::memory_cgroup::MemoryCgroup;

/// Name of the process: that of its first thread.
pub const FIRST: &str = "first\n\u{1b}[2J";
/// Name of the thread that takes the memory.
pub const SECOND: &str = "second) \t";

/// What the program does, for x86-64: prctl(PR_SET_NAME, FIRST); mmap a stack of 64 KiB; clone(CLONE_VM | CLONE_FS |
/// CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM); the first thread: exit(0); the second: prctl(PR_SET_NAME,
/// SECOND), read(0, …, 1), then for ever mmap 1 MiB and touch each of its pages.
#[rustfmt::skip]
const CODE: [u8; 212] = [
    0xb8, 0x9d, 0x00, 0x00, 0x00, 0xbf, 0x0f, 0x00, 0x00, 0x00, 0x48, 0x8d, 0x35, 0xae, 0x00, 0x00, 0x00, 0x0f, 0x05, 0xb8,
    0x09, 0x00, 0x00, 0x00, 0x31, 0xff, 0xbe, 0x00, 0x00, 0x01, 0x00, 0xba, 0x03, 0x00, 0x00, 0x00, 0x41, 0xba, 0x22, 0x00,
    0x00, 0x00, 0x49, 0xc7, 0xc0, 0xff, 0xff, 0xff, 0xff, 0x45, 0x31, 0xc9, 0x0f, 0x05, 0x48, 0x8d, 0xb0, 0x00, 0x00, 0x01,
    0x00, 0xb8, 0x38, 0x00, 0x00, 0x00, 0xbf, 0x00, 0x0f, 0x05, 0x00, 0x31, 0xd2, 0x45, 0x31, 0xd2, 0x45, 0x31, 0xc0, 0x0f,
    0x05, 0x85, 0xc0, 0x74, 0x09, 0xb8, 0x3c, 0x00, 0x00, 0x00, 0x31, 0xff, 0x0f, 0x05, 0xb8, 0x9d, 0x00, 0x00, 0x00, 0xbf,
    0x0f, 0x00, 0x00, 0x00, 0x48, 0x8d, 0x35, 0x5b, 0x00, 0x00, 0x00, 0x0f, 0x05, 0x31, 0xc0, 0x31, 0xff, 0x48, 0x8d, 0xb4,
    0x24, 0x00, 0xff, 0xff, 0xff, 0xba, 0x01, 0x00, 0x00, 0x00, 0x0f, 0x05, 0xb8, 0x09, 0x00, 0x00, 0x00, 0x31, 0xff, 0xbe,
    0x00, 0x00, 0x10, 0x00, 0xba, 0x03, 0x00, 0x00, 0x00, 0x41, 0xba, 0x22, 0x00, 0x00, 0x00, 0x49, 0xc7, 0xc0, 0xff, 0xff,
    0xff, 0xff, 0x45, 0x31, 0xc9, 0x0f, 0x05, 0x48, 0x89, 0xc7, 0xb9, 0x00, 0x01, 0x00, 0x00, 0xc6, 0x07, 0x01, 0x48, 0x81,
    0xc7, 0x00, 0x10, 0x00, 0x00, 0xff, 0xc9, 0x75, 0xf2, 0xeb, 0xc5, 0x66, 0x69, 0x72, 0x73, 0x74, 0x0a, 0x1b, 0x5b, 0x32,
    0x4a, 0x00, 0x73, 0x65, 0x63, 0x6f, 0x6e, 0x64, 0x29, 0x20, 0x09, 0x00,
];

/// The process. It is killed when dropped.
pub struct Leaderless {
    child: Child,
    file: PathBuf,
}

impl Leaderless {
    /// Starts it in `cgroup` and waits until its first thread has ended: one that has ended is moved no more, and a kernel
    /// that finds no first thread in a cgroup of version 1 finds no one to kill there.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn start(cgroup: &MemoryCgroup) -> Self {
        let file = std::env::temp_dir().join(format!("sysops-leaderless-{}", std::process::id()));
        std::fs::write(&file, program()).expect("a file of our own");
        std::fs::set_permissions(&file, PermissionsExt::from_mode(0o755)).expect("a file of our own");
        let child = cgroup.start_with(&file.display().to_string(), Stdio::piped());
        let started = Self { child, file };
        let stat = format!("/proc/{}/stat", started.pid());
        while !std::fs::read_to_string(&stat).is_ok_and(|stat| stat.contains(") Z ")) {
            std::thread::yield_now();
        }
        started
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its second thread.
    ///
    /// # Panics
    /// When it is gone.
    #[must_use]
    pub fn second(&self) -> u32 {
        let threads = std::fs::read_dir(format!("/proc/{}/task", self.pid())).expect("it is alive");
        let ids = threads.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        ids.filter(|id| *id != self.pid()).max().expect("its second thread")
    }

    /// Lets it take memory until it dies; true when it was killed.
    ///
    /// # Panics
    /// When it does not listen.
    pub fn die(&mut self) -> bool {
        use std::os::unix::process::ExitStatusExt;
        self.child.stdin.as_mut().expect("piped").write_all(b"g").expect("it listens");
        self.child.wait().expect("our child").signal() == Some(9)
    }
}

impl Drop for Leaderless {
    fn drop(&mut self) {
        // It may have died as it should.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_file(&self.file);
    }
}

/// An ELF file with one segment: headers, then the code.
fn program() -> Vec<u8> {
    const BASE: u64 = 0x40_0000;
    const HEADERS: u64 = 64 + 56;
    let size = HEADERS + CODE.len() as u64;
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    file.extend([2_u16, 62].map(u16::to_le_bytes).concat()); // an executable for x86-64
    file.extend(1_u32.to_le_bytes());
    file.extend([BASE + HEADERS, 64, 0].map(u64::to_le_bytes).concat()); // entry, program headers, no sections
    file.extend(0_u32.to_le_bytes());
    file.extend([64_u16, 56, 1, 0, 0, 0].map(u16::to_le_bytes).concat());
    file.extend([1_u32, 5].map(u32::to_le_bytes).concat()); // to be loaded, to be read and run
    file.extend([0, BASE, BASE, size, size, 4096].map(u64::to_le_bytes).concat());
    file.extend(CODE);
    file
}
