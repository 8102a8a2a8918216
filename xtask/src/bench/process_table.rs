//! CPU of the collectors of processes and of open files by the kernel's table of processes, at 2,000 and at 10,000 processes:
//! beside their own reading of /proc, which looks at fewer fields, and beside a walk over /proc for all fields of the table.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::process::{Process, wait_for};
use super::{Row, note, scratch};
use crate::{apt, workspace};

/// Processes that sleep beside those of the machine.
const CROWDS: [usize; 2] = [2_000, 10_000];
/// Cycles that are measured for each way and each crowd: one a second.
const CYCLES: u32 = 8;
/// Walks over /proc for all fields.
const WALKS: u32 = 3;
/// Bytes of a file of /proc that are read: none of those that are read here has more.
const FILE_BYTES: usize = 4096;
/// Reading the table must be cheaper by this factor.
const RATIO_MIN: f64 = 15.0;

/// The part.
pub(super) fn measure() -> Result<Vec<Row>> {
    if !apt::is_root() {
        return Ok(vec![note("CPU: table of processes", "not measured: needs root for the probe")]);
    }
    let dir = scratch("process")?;
    let mut rows = Vec::new();
    for collectors in [&["process"][..], &["process", "fd"]] {
        for count in CROWDS {
            let _crowd = Crowd::start(count)?;
            let cpu = [turn(&dir, "iter", collectors)?, turn(&dir, "proc", collectors)?];
            let name = collectors.join(" and ");
            let [iter, proc] = cpu.map(|cpu| cpu.as_secs_f64() * 1000.0 / f64::from(CYCLES));
            rows.push(note(format!("CPU: {name}, {count} processes, table"), format!("{iter:.2} ms")));
            rows.push(note(format!("CPU: {name}, {count} processes, /proc"), format!("{proc:.2} ms")));
            rows.push(note("     ratio", format!("{:.1}", proc / iter)));
            let all = all_fields()?.as_secs_f64() * 1000.0;
            rows.push(note(format!("CPU: all fields of the table, {count} processes, /proc"), format!("{all:.2} ms")));
            rows.push(Row {
                what: "     ratio".into(),
                value: format!("{:.1}", all / iter),
                target: format!("at least {RATIO_MIN}"),
                met: all / iter >= RATIO_MIN,
            });
        }
    }
    Ok(rows)
}

/// Starts an agent whose only work is that of `collectors`, once a second, and gives the CPU time of its thread that
/// collects.
fn turn(dir: &Path, rung: &str, collectors: &[&str]) -> Result<Duration> {
    let config = dir.join(format!("{rung}.toml"));
    std::fs::write(&config, configuration(dir, rung, collectors))?;
    let mut agent = Command::new(workspace::agent());
    let agent = Process::start(
        agent.arg("--config").arg(&config).stdout(Stdio::null()),
        &dir.join(format!("agent-{rung}.log")),
    )?;
    wait_for("the agent collects (agent-*.log)", Duration::from_secs(30), || runtime(agent.pid()).ok())?;
    // Start-up is over, and memory that grows with the number of processes has grown.
    std::thread::sleep(Duration::from_secs(4));
    let before = runtime(agent.pid())?;
    std::thread::sleep(Duration::from_secs(u64::from(CYCLES)));
    let used = runtime(agent.pid())?.saturating_sub(before);
    ensure!(!used.is_zero(), "the agent did not collect (agent-{rung}.log)");
    Ok(used)
}

/// CPU time of one walk over /proc that reads what the table has of every process, a second after the last, as the
/// collectors do it. It is as cheap as one can be that opens files: an open, a read and a close each, nothing is parsed.
fn all_fields() -> Result<Duration> {
    let (mut used, mut buffer) = (Duration::ZERO, [0; FILE_BYTES]);
    for _ in 0..WALKS {
        std::thread::sleep(Duration::from_secs(1));
        let before = own_runtime()?;
        for entry in std::fs::read_dir("/proc")? {
            let process = entry?.path();
            if !process.file_name().is_some_and(|name| name.as_encoded_bytes()[0].is_ascii_digit()) {
                continue;
            }
            for file in ["stat", "status", "io", "cgroup", "limits"] {
                // It may have ended.
                let _ = File::open(process.join(file)).and_then(|mut file| file.read(&mut buffer));
            }
            let _ = std::fs::metadata(process.join("fd"));
        }
        used += own_runtime()?.saturating_sub(before);
    }
    Ok(used / WALKS)
}

fn own_runtime() -> Result<Duration> {
    // The kernel adds up what a thread has run when it lets others run.
    std::thread::yield_now();
    schedstat(Path::new("/proc/thread-self/schedstat"))
}

/// The first number of a schedstat: nanoseconds that a thread has run.
fn schedstat(path: &Path) -> Result<Duration> {
    let text = std::fs::read_to_string(path)?;
    let ns = text.split_whitespace().next().and_then(|ns| ns.parse().ok());
    ns.map(Duration::from_nanos).context("schedstat: expected a number")
}

/// Time that the thread `collect` of a process has run (its schedstat).
fn runtime(pid: u32) -> Result<Duration> {
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let task = task?.path();
        if std::fs::read_to_string(task.join("comm"))?.trim() == "collect" {
            return schedstat(&task.join("schedstat"));
        }
    }
    anyhow::bail!("no thread collect")
}

fn configuration(dir: &Path, rung: &str, collectors: &[&str]) -> String {
    let dir = dir.display();
    let seldom = ["cpu", "memory", "disk", "network", "agent", "process", "fd"];
    let intervals: String = seldom
        .iter()
        .map(|name| {
            let seconds = if collectors.contains(name) { 1 } else { 3600 };
            format!("{name}_interval_secs = {seconds}\n")
        })
        .collect();
    format!(
        "[agent]\nhostname = \"bench\"\ncollect_interval_secs = 3600\ndata_dir = \"{dir}/data\"\n\
         pid_file = \"{dir}/agent.pid\"\n\n[collector]\n{intervals}\n[kernel.tasks]\nrung = \"{rung}\"\n"
    )
}

/// Processes that sleep: one shell's children, which end when its standard input does.
struct Crowd {
    shell: Child,
}

impl Crowd {
    fn start(count: usize) -> Result<Self> {
        // Each waits for input that never comes; the byte says that all are there.
        let script =
            format!("exec 3<&0; i=0; while [ $i -lt {count} ]; do {{ read line <&3; }} & i=$((i+1)); done; echo; wait");
        let mut shell = Command::new("sh")
            .args(["-c", &script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("sh cannot be started")?;
        let mut said = shell.stdout.take().context("its output is piped")?;
        let crowd = Self { shell };
        said.read_exact(&mut [0]).with_context(|| format!("no {count} processes"))?;
        Ok(crowd)
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        // The end of its input is the end of them all; the shell waits for each.
        drop(self.shell.stdin.take());
        let _ = self.shell.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crowd_is_there_and_goes() {
        let crowd = Crowd::start(20).expect("a shell");
        let of_shell = |pid: u32| std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
        let pid = crowd.shell.id();
        // Not every kernel tells who is whose child.
        if let Ok(children) = of_shell(pid) {
            assert_eq!(children.split_whitespace().count(), 20);
        }
        drop(crowd);
        assert!(!Path::new(&format!("/proc/{pid}")).exists());
    }

    #[test]
    fn only_what_is_measured_is_collected_often() {
        let text = configuration(Path::new("/x"), "iter", &["process"]);
        assert!(text.contains("\nprocess_interval_secs = 1\n") && text.contains("\nfd_interval_secs = 3600\n"));
    }
}
