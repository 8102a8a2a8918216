//! A process that duplicates and closes descriptors when it is told to, and says what an operation took it; or that sends itself
//! signals that mean nothing.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// The hidden command by which the bench starts itself as this process.
pub(crate) const COMMAND: &str = "bench-fd";

/// Operations of a burst, and how many bursts there are: the least counts, as others use the CPUs too.
const BURST: u32 = 20_000;
const BURSTS: u32 = 15;

/// The process's side: a name, then one order a line.
pub(crate) fn main(args: &[String]) -> Result<()> {
    let name = args.first().context("a name is expected")?;
    std::fs::write("/proc/self/comm", name)?;
    println!("ready");
    for line in std::io::stdin().lines() {
        let line = line?;
        let mut words = line.split(' ');
        match (words.next(), words.next().map(str::parse::<u32>)) {
            (Some("burst"), _) => println!("{}", burst()?),
            (Some("second"), Some(Ok(count))) => println!("{}", second(count, 10, duplicate)?),
            (Some("signals"), Some(Ok(count))) => println!("{}", second(count, 1, signal)?),
            _ => bail!("no such order: {line}"),
        }
    }
    Ok(())
}

/// Nanoseconds that a dup or a close took in the best burst.
fn burst() -> Result<f64> {
    let mut least = f64::INFINITY;
    for _ in 0..BURSTS {
        let start = Instant::now();
        for _ in 0..BURST {
            duplicate()?;
        }
        least = least.min(start.elapsed().as_secs_f64() * 1e9 / f64::from(BURST) / 2.0);
    }
    Ok(least)
}

/// Does something `count` times within a second, some at a time.
fn second(count: u32, at_a_time: u32, act: fn() -> rustix::io::Result<()>) -> Result<u32> {
    let start = Instant::now();
    let turns = count.div_ceil(at_a_time).max(1);
    for turn in 1..=turns {
        for _ in 0..at_a_time {
            act()?;
        }
        let next = Duration::from_secs(1) * turn / turns;
        std::thread::sleep(next.saturating_sub(start.elapsed()));
    }
    Ok(turns * at_a_time)
}

/// Gets a descriptor and closes it.
fn duplicate() -> rustix::io::Result<()> {
    rustix::io::dup(std::io::stderr()).map(drop)
}

/// A signal that is ignored: to the kernel it is one like any.
fn signal() -> rustix::io::Result<()> {
    rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::WINCH)
}

/// The bench's side.
pub(super) struct FdLoad {
    child: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl FdLoad {
    /// Starts a process with this name, at most 15 bytes.
    ///
    /// # Errors
    /// When it does not start.
    pub(super) fn start(name: &str) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args([COMMAND, name]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("{name}: cannot be started"))?;
        let orders = child.stdin.take().context("it is piped")?;
        let answers = BufReader::new(child.stdout.take().context("it is piped")?);
        let mut load = Self { child, orders, answers };
        let ready = load.answer()?;
        if ready != "ready" {
            bail!("{name}: said {ready:?} and not that it is ready");
        }
        Ok(load)
    }

    /// Nanoseconds that an operation takes it.
    ///
    /// # Errors
    /// When it has ended.
    pub(super) fn burst_ns(&mut self) -> Result<f64> {
        writeln!(self.orders, "burst")?;
        self.answer()?.parse().context("a number is expected")
    }

    /// Has it get and close `count` descriptors each second, for some seconds; returns when it is through.
    ///
    /// # Errors
    /// When it has ended.
    pub(super) fn rate(&mut self, count: u32, seconds: u32) -> Result<()> {
        for _ in 0..seconds {
            writeln!(self.orders, "second {count}")?;
            self.answer()?;
        }
        Ok(())
    }

    /// Has it send itself `count` signals each second, for some seconds; returns when it is through.
    ///
    /// # Errors
    /// When it has ended.
    pub(super) fn signal(&mut self, count: u32, seconds: u32) -> Result<()> {
        for _ in 0..seconds {
            writeln!(self.orders, "signals {count}")?;
            self.answer()?;
        }
        Ok(())
    }

    fn answer(&mut self) -> Result<String> {
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        Ok(line.trim().to_owned())
    }
}

impl Drop for FdLoad {
    fn drop(&mut self) {
        // It may have ended by itself; then there is nothing left to do.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
