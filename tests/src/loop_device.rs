//! A disk of the test's own: a loop device over a file, read and written without the page cache.

use std::path::PathBuf;
use std::process::{Child, Command, Output};

use crate::require;

/// Bytes of the disk.
pub const SIZE: u64 = 64 << 20;

/// A loop device. It is taken down when dropped.
pub struct LoopDevice {
    file: PathBuf,
    path: String,
}

/// What /proc/diskstats counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Completed {
    /// Reads.
    pub reads: u64,
    /// Writes.
    pub writes: u64,
    /// Discards.
    pub discards: u64,
    /// Flushes.
    pub flushes: u64,
}

impl LoopDevice {
    /// What is missing to make one.
    #[must_use]
    pub fn missing() -> Option<String> {
        require::root()
            .or_else(|| require::programs(&["losetup", "dd", "blkdiscard", "unshare", "mount"]))
            .or_else(|| require::files(&["/dev/loop-control", "/proc/diskstats"]))
    }

    /// Makes one over a new file named by `name`.
    ///
    /// # Panics
    /// When the machine refuses.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self::over(std::env::temp_dir().join(format!("sysops-{name}-{}.img", std::process::id())))
    }

    /// Makes one over a new file at `file`.
    ///
    /// # Panics
    /// When the machine refuses.
    #[must_use]
    pub fn over(file: PathBuf) -> Self {
        std::fs::File::create(&file).and_then(|file| file.set_len(SIZE)).expect("a file of our own");
        let output = run(program("losetup").args(["--find", "--show"]).arg(&file));
        assert!(output.status.success(), "{output:?}");
        let device = Self { file, path: String::from_utf8_lossy(&output.stdout).trim().to_owned() };
        // The queue outlives the disk, and with it what an earlier test set.
        device.set("iostats", "1");
        device.set("scheduler", "none");
        // With another scheduler fewer may have been wanted. The kernel forgets to say so when that one goes, but not to mean it, and takes
        // for nothing new what it says already.
        device.set("nr_requests", "64");
        device.set("nr_requests", "128");
        device
    }

    /// `/dev/loop3`.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Starts a process that writes the block `place` of 4096 bytes as one request.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn start_write(&self, place: u32) -> Child {
        let mut dd = program("dd");
        dd.args(["if=/dev/zero", "bs=4096", "count=1", "oflag=direct", "conv=notrunc", "status=none"]);
        dd.arg(format!("of={}", self.path)).arg(format!("seek={place}")).spawn().expect("require() was asked")
    }

    /// Starts a process that writes `count` blocks of 4096 bytes, one after the other.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn start_writes(&self, count: u32) -> Child {
        let mut dd = program("dd");
        dd.args(["if=/dev/zero", "bs=4096", "oflag=direct", "conv=notrunc", "status=none"]);
        dd.arg(format!("of={}", self.path)).arg(format!("count={count}")).spawn().expect("require() was asked")
    }

    /// Reads blocks of 4096 bytes at random, `requests` in all and `depth` at a time; true when that succeeds.
    #[must_use]
    pub fn read_at_random(&self, requests: u32, depth: u32) -> bool {
        let mut fio = program("fio");
        fio.args(["--name=test", "--direct=1", "--ioengine=libaio", "--rw=randread", "--bs=4k", "--size=48M"]);
        fio.args([
            format!("--filename={}", self.path),
            format!("--iodepth={depth}"),
            "--allow_file_create=0".to_owned(),
        ]);
        fio.arg(format!("--io_size={}", u64::from(requests) * 4096));
        run(&mut fio).status.success()
    }

    /// `loop3`.
    #[must_use]
    pub fn name(&self) -> &str {
        self.path.trim_start_matches("/dev/")
    }

    /// Writes (or reads) `count` blocks of `bytes` bytes from block `first` on, each as one request; true when that succeeds.
    #[must_use]
    pub fn transfer(&self, write: bool, bytes: u32, first: u32, count: u32) -> bool {
        let (from, to) = if write { ("/dev/zero", &*self.path) } else { (&*self.path, "/dev/null") };
        let (place, flag) = if write { ("seek", "oflag=direct") } else { ("skip", "iflag=direct") };
        let mut dd = program("dd");
        dd.args([format!("if={from}"), format!("of={to}"), format!("bs={bytes}"), format!("count={count}")]);
        dd.args([format!("{place}={first}"), flag.to_owned(), "conv=notrunc".to_owned(), "status=none".to_owned()]);
        run(&mut dd).status.success()
    }

    /// Discards the first `bytes` bytes as one request.
    #[must_use]
    pub fn discard(&self, bytes: u32) -> bool {
        run(program("blkdiscard").args(["-f", "-l", &bytes.to_string(), &self.path])).status.success()
    }

    /// Flushes the disk's cache, as fsync(2) does.
    ///
    /// # Panics
    /// When that fails.
    pub fn flush(&self) {
        let disk = std::fs::File::options().write(true).open(&self.path).expect("it is there");
        disk.sync_all().expect("the disk of our own is well");
    }

    /// Cuts the file below the disk to `bytes`: reads across the new end are short.
    ///
    /// # Panics
    /// When the file cannot be cut.
    pub fn cut(&self, bytes: u64) {
        let file = std::fs::File::options().write(true).open(&self.file);
        file.and_then(|file| file.set_len(bytes)).expect("a file of our own");
    }

    /// Sets an attribute of the queue, as `iostats`.
    ///
    /// # Panics
    /// When the kernel refuses.
    pub fn set(&self, attribute: &str, value: &str) {
        std::fs::write(format!("/sys/block/{}/queue/{attribute}", self.name()), value).expect("root may");
    }

    /// What the kernel itself counted.
    ///
    /// # Panics
    /// When /proc/diskstats does not list it.
    #[must_use]
    pub fn completed(&self) -> Completed {
        completed(self.name())
    }
}

/// What the kernel itself counted of the disk `name`.
///
/// # Panics
/// When /proc/diskstats does not list it.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "a test reads files as it likes")]
pub fn completed(name: &str) -> Completed {
    let text = std::fs::read_to_string("/proc/diskstats").expect("require() was asked");
    let line = text.lines().find(|line| line.split_whitespace().nth(2) == Some(name));
    let fields: Vec<u64> =
        line.expect("it is listed").split_whitespace().skip(3).map(|field| field.parse().expect("a number")).collect();
    let of = |place: usize| fields.get(place).copied().unwrap_or(0);
    Completed { reads: of(0), writes: of(4), discards: of(11), flushes: of(15) }
}

impl Completed {
    /// What was counted since `before`.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        Self {
            reads: self.reads - before.reads,
            writes: self.writes - before.writes,
            discards: self.discards - before.discards,
            flushes: self.flushes - before.flushes,
        }
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        self.set("iostats", "1");
        self.set("scheduler", "none");
        run(program("losetup").args(["-d", &self.path]));
        // Left behind, it is a file in the temporary directory.
        let _ = std::fs::remove_file(&self.file);
    }
}

#[expect(clippy::disallowed_methods, reason = "a test runs programs")]
fn program(name: &str) -> Command {
    Command::new(name)
}

fn run(command: &mut Command) -> Output {
    command.output().expect("require() was asked")
}
