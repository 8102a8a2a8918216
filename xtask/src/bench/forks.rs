//! Counts the processes that the agent makes in steady cycles, by strace; threads are counted apart.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use super::agent::Agent;
use super::{Row, note, scratch};
use crate::program;

const SECONDS: u32 = 60;

/// The part.
pub(super) fn measure() -> Result<Vec<Row>> {
    if program::find("strace").is_none() {
        return Ok(vec![note("forks in steady cycles", "not measured: no strace")]);
    }
    let dir = scratch("forks")?;
    let agent = Agent::start(&dir, None)?;
    // Start-up (inventory, probes) is over and every collector has run before the count begins.
    std::thread::sleep(Duration::from_secs(5));
    let trace = trace(&agent, &dir)?;
    let (forks, threads) = count(&trace);
    Ok(vec![
        Row {
            what: format!("forks and execs in {SECONDS} steady cycles"),
            value: forks.to_string(),
            target: "none".into(),
            met: forks == 0,
        },
        note(format!("threads made in {SECONDS} steady cycles"), threads.to_string()),
    ])
}

fn trace(agent: &Agent, dir: &Path) -> Result<String> {
    let file = dir.join("strace.txt");
    let calls = "trace=fork,vfork,clone,clone3,execve,execveat";
    let mut strace = Command::new("timeout");
    strace.args(["--signal=INT", &SECONDS.to_string(), "strace", "-f", "-e", calls, "-o"]).arg(&file);
    let output = strace.arg("-p").arg(agent.process.pid().to_string()).output().context("timeout cannot be started")?;
    let said = String::from_utf8_lossy(&output.stderr);
    anyhow::ensure!(said.contains("attached"), "strace did not attach: {said}");
    anyhow::ensure!(agent.process.cpu().is_ok(), "the agent ended while it was traced");
    std::fs::read_to_string(&file).with_context(|| file.display().to_string())
}

/// Calls that make a process or replace one, and calls that make a thread.
fn count(trace: &str) -> (usize, usize) {
    let (mut forks, mut threads) = (0, 0);
    for line in trace.lines() {
        let call = line.trim_start_matches(|c: char| c.is_ascii_digit() || c == ' ');
        if call.starts_with("clone") && call.contains("CLONE_THREAD") {
            threads += 1;
        } else if ["clone", "fork", "vfork", "execve"].iter().any(|name| call.starts_with(name)) {
            forks += 1;
        }
    }
    (forks, threads)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_are_not_forks() {
        let trace = "12 clone3({flags=CLONE_VM|CLONE_THREAD|CLONE_SYSVSEM, exit_signal=0}, 88) = 13\n\
                     12 clone(child_stack=NULL, flags=CLONE_CHILD_SETTID|SIGCHLD) = 14\n\
                     14 execve(\"/bin/true\", [\"true\"], 0x7ffc) = 0\n\
                     14 +++ exited with 0 +++\n\
                     12 --- SIGCHLD {si_signo=SIGCHLD} ---\n";
        assert_eq!(count(trace), (2, 1));
    }
}
