//! What the book of alerts costs a cycle with 10,000 series. The work is done by the test `alert_scale`; this reads what it prints.

use std::process::Command;

use anyhow::{Context, Result, bail};

use super::Row;
use crate::workspace;

const CYCLE_MAX_MS: f64 = 5.0;

/// The part.
pub(super) fn measure() -> Result<Vec<Row>> {
    let mut test = Command::new("cargo");
    test.args(["test", "--quiet", "--release", "-p", "sysops-tests", "--test", "alert_scale", "--", "--nocapture"]);
    let output = test.current_dir(workspace::root()).output().context("cargo test")?;
    let said = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        bail!("{said}{}", String::from_utf8_lossy(&output.stderr));
    }
    rows(&said)
}

fn rows(said: &str) -> Result<Vec<Row>> {
    let line = said.lines().find_map(|line| line.split_once(" series: ")).context("the test says nothing of series")?.1;
    line.split(", ")
        .map(|part| {
            let named = part.strip_suffix(" ms").and_then(|part| part.rsplit_once(' '));
            let (what, ms) = named.with_context(|| format!("expected a time in {part:?}"))?;
            let ms: f64 = ms.parse().with_context(|| format!("expected a time in {part:?}"))?;
            Ok(Row {
                what: format!("alert decision, 10,000 series, {what}"),
                value: format!("{ms:.3} ms"),
                target: format!("at most {CYCLE_MAX_MS:.0} ms"),
                met: ms <= CYCLE_MAX_MS,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_time_is_a_row() {
        let rows = rows("10000 series: quiet 1.000 ms, held back 7.500 ms\n").expect("two");
        assert_eq!(rows.iter().map(|row| row.met).collect::<Vec<_>>(), [true, false]);
        assert!(super::rows("").is_err());
    }
}
