//! The outbox in full size: 10,000 alerts to all channels through 1,000 kills and random outages, 10,000 accepted in a burst,
//! 100,000 found at a start.
//! The work is done by the test `outbox_kill`, which asserts what no number tells; this reads the numbers that it prints.

use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use super::{Row, note};
use crate::{test, workspace};

const ALERTS: &str = "10000";
const KILLS: &str = "1000";
const BURST: &str = "10000";
const BACKLOG: &str = "100000";
const BURST_MAX_S: f64 = 5.0;
const CHANNELS: usize = 7;
const RECOVERY_MAX_S: f64 = 1.0;

/// The part.
pub(super) fn measure() -> Result<Vec<Row>> {
    let mut test = Command::new("cargo");
    test.args(["test", "--quiet", "--release", "-p", "sysops-tests", "--test", "outbox_kill", "--"]);
    test.args(["--nocapture", "--test-threads=1", "the_"]).current_dir(workspace::root()).env("PATH", test::path());
    test.envs([
        ("SYSOPS_ALERTS", ALERTS),
        ("SYSOPS_KILLS", KILLS),
        ("SYSOPS_BURST", BURST),
        ("SYSOPS_BACKLOG", BACKLOG),
    ]);
    let output = test.output().context("cargo test")?;
    let said = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        bail!("the account is wrong: {said}{}", String::from_utf8_lossy(&output.stderr));
    }
    rows(&said)
}

fn rows(said: &str) -> Result<Vec<Row>> {
    let line = |begin: &str| {
        let line = said.lines().find_map(|line| Some(&line[line.find(begin)?..]));
        line.with_context(|| format!("the test does not say {begin:?}: {said}"))
    };
    let mut rows = vec![note("alerts through kills and outages", line("accepted ")?)];
    rows.extend(said.lines().filter_map(|line| line.split_once(": delivered ")).map(|(channel, account)| Row {
        what: format!("delivered by {channel}"),
        value: account.into(),
        target: "lost 0".into(),
        met: account.ends_with(" lost 0"),
    }));
    ensure!(rows.len() == 1 + CHANNELS, "the test does not tell of {CHANNELS} channels: {said}");
    rows.push(at_most("burst accepted", line("burst ")?, BURST_MAX_S)?);
    rows.push(at_most("waiting alerts read at a start", line("backlog ")?, RECOVERY_MAX_S)?);
    Ok(rows)
}

/// A line that says `… in 1.234 s`.
fn at_most(what: &str, line: &str, max_s: f64) -> Result<Row> {
    let seconds =
        line.split(" in ").nth(1).and_then(|rest| rest.split(' ').next()).and_then(|text| text.parse::<f64>().ok());
    let seconds = seconds.with_context(|| format!("expected a time in {line:?}"))?;
    Ok(Row { what: what.into(), value: line.into(), target: format!("at most {max_s:.0} s"), met: seconds <= max_s })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_account_is_read() {
        let channels: String = (0..CHANNELS).map(|n| format!("c{n}: delivered 9, again 1, lost {}\n", n % 2)).collect();
        let said = format!(
            "test the_account ... accepted 9, killed 3 times, 2 outages\n{channels}burst 9 accepted in 0.100 s, handed over \
             in 0.001 s\nbacklog 9 read in 1.500 s\n"
        );
        let met: Vec<bool> = rows(&said).expect("all is there").iter().map(|row| row.met).collect();
        assert_eq!(met, [true, true, false, true, false, true, false, true, true, false]);
        assert!(rows(&said.replace("c6: ", "")).is_err(), "one channel is missing");
        assert!(rows("").is_err());
    }
}
