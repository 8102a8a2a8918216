//! From the kernel's OOM kill to the event on `events --json`, and to the webhook: 20 kills in cgroups of their own.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::agent::Agent;
use super::process::{Process, wait_for};
use super::{Row, http, note, quantile, scratch, victim};
use crate::{apt, workspace};

const KILLS: usize = 20;
const EVENT_MAX_MS: f64 = 100.0;
const WEBHOOK_MAX_MS: f64 = 1000.0;
/// A notice that takes longer is lost.
const PATIENCE: Duration = Duration::from_secs(15);
/// Memory that a victim may take.
const LIMIT_BYTES: &str = "33554432";

/// The part.
pub(super) fn measure() -> Result<Vec<Row>> {
    if !apt::is_root() {
        return Ok(vec![note("OOM kill to event, to webhook", "not measured: needs root for a memory cgroup")]);
    }
    let dir = scratch("oom")?;
    let (webhook, posts) = http::receiver()?;
    let _agent = Agent::start(&dir, Some(webhook))?;
    let mut reader = Command::new(workspace::agent());
    reader.args(["events", "--json", "--kind", "oom_kill", "--seconds", "600"]).stdout(Stdio::piped());
    let mut reader = Process::start(&mut reader, &dir.join("events.log"))?;
    let events = lines(reader.stdout().context("the reader's output is piped")?);

    // The first kills show that the readers stand; their delays are not counted.
    wait_for("a first event (events.log)", Duration::from_secs(30), || {
        let pid = kill().ok()?.pid;
        arrival(&events, pid, Duration::from_secs(2))
    })?;
    let (mut to_event, mut to_webhook) = (Vec::new(), Vec::new());
    for _ in 0..KILLS {
        let kill = kill()?;
        to_event.push(delay_ms(&kill, arrival(&events, kill.pid, PATIENCE)));
        to_webhook.push(delay_ms(&kill, arrival(&posts, kill.pid, PATIENCE)));
    }
    Ok(vec![row("OOM kill to event", to_event, EVENT_MAX_MS), row("OOM kill to webhook", to_webhook, WEBHOOK_MAX_MS)])
}

fn row(what: &str, mut delays_ms: Vec<f64>, max_ms: f64) -> Row {
    delays_ms.sort_by(f64::total_cmp);
    let (median, p99) = (quantile(&delays_ms, 0.5), quantile(&delays_ms, 0.99));
    Row {
        what: format!("{what}, median and p99 of {}", delays_ms.len()),
        value: format!("{median:.1} and {p99:.1} ms"),
        target: format!("p99 at most {max_ms:.0} ms"),
        met: p99 <= max_ms,
    }
}

/// What never came has an infinite delay, so that it shows.
fn delay_ms(kill: &Kill, arrived: Option<Instant>) -> f64 {
    arrived.map_or(f64::INFINITY, |arrived| arrived.saturating_duration_since(kill.counted).as_secs_f64() * 1000.0)
}

/// When the notice about `pid` came. Notices about others are passed over.
fn arrival(notices: &Receiver<(Instant, String)>, pid: u32, limit: Duration) -> Option<Instant> {
    let deadline = Instant::now() + limit;
    loop {
        let (time, text) = notices.recv_timeout(deadline.saturating_duration_since(Instant::now())).ok()?;
        if pid_of(&text) == Some(pid) {
            return Some(time);
        }
    }
}

/// The pid of an event (`pid`) or of an alert (`labels.pid`, a text).
fn pid_of(json: &str) -> Option<u32> {
    let value: Value = serde_json::from_str(json).ok()?;
    match (&value["pid"], &value["labels"]["pid"]) {
        (Value::Number(pid), _) => u32::try_from(pid.as_u64()?).ok(),
        (_, Value::String(pid)) => pid.parse().ok(),
        _ => None,
    }
}

fn lines(output: impl std::io::Read + Send + 'static) -> Receiver<(Instant, String)> {
    let (sender, lines) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            if sender.send((Instant::now(), line)).is_err() {
                return;
            }
        }
    });
    lines
}

/// A process that the kernel killed.
pub(super) struct Kill {
    pid: u32,
    /// When the cgroup's own kill count was seen to rise: the kernel's word, not the agent's.
    counted: Instant,
}

pub(super) fn kill() -> Result<Kill> {
    let group = Group::new()?;
    let mut child = Command::new(std::env::current_exe()?)
        .arg(victim::COMMAND)
        .stdin(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .context("the victim cannot be started")?;
    let counted = group.watch(&mut child);
    let status = child.wait()?;
    if status.success() || status.code().is_some() {
        bail!("the victim ended by itself: {status}");
    }
    Ok(Kill { pid: child.id(), counted: counted? })
}

/// A memory cgroup with a low limit; it is removed with this.
struct Group {
    dir: PathBuf,
    /// File that holds a line `oom_kill N`.
    counter: PathBuf,
}

impl Group {
    fn new() -> Result<Self> {
        let mounts = std::fs::read_to_string("/proc/self/mounts")?;
        let v1 = mounts.lines().find(|line| mount(line, "cgroup") && line.contains("memory"));
        let v2 = mounts.lines().find(|line| mount(line, "cgroup2"));
        let at = v1.or(v2).and_then(|line| line.split(' ').nth(1)).context("no memory cgroup is mounted")?;
        let dir = Path::new(at).join(format!("sysops-bench-{}", std::process::id()));
        if !dir.exists() {
            std::fs::create_dir(&dir).with_context(|| dir.display().to_string())?;
        }
        let (limit, counter) = if v1.is_some() {
            ("memory.limit_in_bytes", "memory.oom_control")
        } else {
            ("memory.max", "memory.events")
        };
        let group = Self { counter: dir.join(counter), dir };
        group.write(limit, LIMIT_BYTES)?;
        if v1.is_none() && group.dir.join("memory.swap.max").exists() {
            group.write("memory.swap.max", "0")?;
        }
        Ok(group)
    }

    fn write(&self, file: &str, text: &str) -> Result<()> {
        let path = self.dir.join(file);
        std::fs::write(&path, text).with_context(|| path.display().to_string())
    }

    fn kills(&self) -> Option<u64> {
        let text = std::fs::read_to_string(&self.counter).ok()?;
        text.lines().find_map(|line| line.strip_prefix("oom_kill "))?.trim().parse().ok()
    }

    /// Puts the victim into the group, lets it go, and watches the kill count from a thread that does not sleep long.
    fn watch(&self, child: &mut Child) -> Result<Instant> {
        self.write("cgroup.procs", &child.id().to_string())?;
        let before = self.kills().context("the cgroup does not count kills")?;
        let over = AtomicBool::new(false);
        let seen = std::thread::scope(|scope| {
            let watcher = scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    if self.kills().is_some_and(|now| now > before) {
                        return Some(Instant::now());
                    }
                    std::thread::sleep(Duration::from_micros(200));
                }
                None
            });
            let go = child.stdin.take().map(|mut stdin| stdin.write_all(b"g"));
            let deadline = Instant::now() + PATIENCE;
            while go.is_some() && !watcher.is_finished() && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(1));
            }
            over.store(true, Ordering::Relaxed);
            watcher.join().ok().flatten()
        });
        seen.context("the kernel killed nothing")
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // The group is empty once its victim is reaped; a late exit only delays that.
        let _ = wait_for("the cgroup is empty", Duration::from_secs(5), || std::fs::remove_dir(&self.dir).ok());
    }
}

fn mount(line: &str, kind: &str) -> bool {
    line.split(' ').nth(2) == Some(kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_and_alerts_tell_their_pid() {
        assert_eq!(pid_of(r#"{"kind":"oom_kill","pid":7}"#), Some(7));
        assert_eq!(pid_of(r#"{"labels":{"pid":"8"}}"#), Some(8));
        assert_eq!(pid_of(r#"{"labels":{}}"#), None);
    }

    #[test]
    fn what_never_came_misses_the_target() {
        let kill = Kill { pid: 1, counted: Instant::now() };
        assert!(!row("x", vec![1.0, delay_ms(&kill, None)], 100.0).met);
    }
}
