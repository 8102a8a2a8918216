//! Runs programs: shown with their output, or quietly with the output as result.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};

/// Says what happens now; steps are told apart from their programs' output by the arrow.
pub(crate) fn say(text: impl AsRef<str>) {
    eprintln!("=> {}", text.as_ref());
}

/// Shows the command line, runs it with its output visible.
///
/// # Errors
/// When it cannot be started or does not end with status 0.
pub(crate) fn show(command: &mut Command) -> Result<()> {
    let line = line(command);
    eprintln!("   $ {line}");
    let status = command.status().with_context(|| format!("{line}: cannot be started"))?;
    if !status.success() {
        bail!("{line}: {status}");
    }
    Ok(())
}

/// Runs it quietly and gives its standard output.
///
/// # Errors
/// When it cannot be started or does not end with status 0: with the last lines of its standard error.
pub(crate) fn capture(command: &mut Command) -> Result<String> {
    let line = line(command);
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("{line}: cannot be started"))?;
    if !output.status.success() {
        let errors = String::from_utf8_lossy(&output.stderr);
        let lines: Vec<&str> = errors.lines().collect();
        bail!("{line}: {}\n{}", output.status, lines[lines.len().saturating_sub(20)..].join("\n"));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// True when it could be started and ended with status 0. Its output is thrown away.
pub(crate) fn succeeds(command: &mut Command) -> bool {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// Where a program is: in PATH, else where Debian keeps what it thinks is root's alone (`/usr/sbin`, `/sbin`).
pub(crate) fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|dir| dir.join(name))
        .find(|file| file.is_file())
}

/// Runs `work` as one step: named before, timed after.
pub(crate) fn step<T>(name: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    say(name);
    let start = Instant::now();
    let result = work().with_context(|| format!("{name}: failed"))?;
    say(format!("{name}: done in {}", seconds(start)));
    Ok(result)
}

/// Time since `start` for people, `4.2 s`.
pub(crate) fn seconds(start: Instant) -> String {
    format!("{:.1} s", start.elapsed().as_secs_f64())
}

fn line(command: &Command) -> String {
    let mut line = command.get_program().to_string_lossy().into_owned();
    for arg in command.get_args() {
        line.push(' ');
        line.push_str(&arg.to_string_lossy());
    }
    line
}
