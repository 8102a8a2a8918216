//! Starts programs that end with their owner, and reads what /proc says about their cost.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// A running program; it is ended when this is dropped.
pub(super) struct Process {
    child: Child,
}

impl Process {
    /// Starts it; its standard error goes to `log` in the current scratch folder.
    ///
    /// # Errors
    /// When it cannot be started.
    pub(super) fn start(command: &mut Command, log: &std::path::Path) -> Result<Self> {
        let name = command.get_program().to_string_lossy().into_owned();
        let log = std::fs::File::create(log).with_context(|| log.display().to_string())?;
        let child =
            command.stdin(Stdio::null()).stderr(log).spawn().with_context(|| format!("{name}: cannot be started"))?;
        Ok(Self { child })
    }

    /// Its process id.
    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its standard output, once, when it was piped.
    pub(super) fn stdout(&mut self) -> Option<std::process::ChildStdout> {
        self.child.stdout.take()
    }

    /// CPU time that it has used so far.
    ///
    /// # Errors
    /// When it is gone.
    pub(super) fn cpu(&self) -> Result<Cpu> {
        Cpu::read(self.pid())
    }

    /// Resident memory in bytes.
    ///
    /// # Errors
    /// When it is gone.
    pub(super) fn rss_bytes(&self) -> Result<u64> {
        let path = format!("/proc/{}/status", self.pid());
        let status = std::fs::read_to_string(&path).context(path)?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        let kib: u64 = line.trim().trim_end_matches("kB").trim().parse().context("VmRSS: expected a number")?;
        Ok(kib * 1024)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself; then there is nothing left to do.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// CPU time of a process by two counts of the kernel.
#[derive(Clone, Copy)]
pub(super) struct Cpu {
    /// Of the threads that live, in nanoseconds (/proc/PID/task/*/schedstat).
    threads_ns: u64,
    /// Of all threads there ever were, in clock ticks (/proc/PID/stat, utime + stime).
    ticks: u64,
}

/// USER_HZ, the same on every architecture that Linux has today but alpha.
const TICK_NS: u64 = 10_000_000;

impl Cpu {
    fn read(pid: u32) -> Result<Self> {
        let path = format!("/proc/{pid}/stat");
        let stat = std::fs::read_to_string(&path).with_context(|| path.clone())?;
        let after_name = stat.rsplit_once(')').context("stat without a name")?.1;
        let ticks: u64 =
            after_name.split_whitespace().skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
        let mut threads_ns = 0;
        for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
            // A thread may end between the listing and the read.
            let Ok(text) = std::fs::read_to_string(task?.path().join("schedstat")) else { continue };
            threads_ns += text.split_whitespace().next().and_then(|ns| ns.parse::<u64>().ok()).unwrap_or_default();
        }
        Ok(Self { threads_ns, ticks })
    }

    /// Time used since `earlier`: the fine count, unless threads that ended meanwhile make the coarse one larger.
    pub(super) fn since(self, earlier: Self) -> Duration {
        let fine = self.threads_ns.saturating_sub(earlier.threads_ns);
        let coarse = (self.ticks.saturating_sub(earlier.ticks)).saturating_sub(2) * TICK_NS;
        Duration::from_nanos(fine.max(coarse))
    }
}

/// Tries until it gives something, every 20 ms, for at most `limit`.
///
/// # Errors
/// When it gave nothing: with `what` was waited for.
pub(super) fn wait_for<T>(what: &str, limit: Duration, mut probe: impl FnMut() -> Option<T>) -> Result<T> {
    let start = Instant::now();
    while start.elapsed() < limit {
        if let Some(found) = probe() {
            return Ok(found);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    bail!("{what}: not within {} s", limit.as_secs())
}
