//! `cargo xtask bench [PART…]`: the numbers of the release agent on this machine, beside node_exporter in the same run.

mod agent;
mod alerts;
mod block_io;
mod cost;
mod delivery;
pub(crate) mod fd_load;
mod forks;
mod http;
mod oom;
mod probes;
mod process;
mod process_table;
pub(crate) mod victim;

use std::path::PathBuf;

use anyhow::{Context, Result, bail};

use crate::{after_dashes, build, program, test, workspace};

/// One number with its target.
struct Row {
    what: String,
    value: String,
    target: String,
    met: bool,
}

type Part = (&'static str, fn() -> Result<Vec<Row>>);

const PARTS: &[Part] = &[
    ("cost", cost::measure),
    ("oom", oom::measure),
    ("forks", forks::measure),
    ("block", block_io::measure),
    ("process", process_table::measure),
    ("probes", probes::measure),
    ("alerts", alerts::measure),
    ("delivery", delivery::measure),
];

/// The command.
pub(crate) fn main(args: &[String]) -> Result<()> {
    let args = after_dashes(args);
    if let Some(unknown) = args.iter().find(|arg| PARTS.iter().all(|(name, _)| name != arg)) {
        let names: Vec<&str> = PARTS.iter().map(|(name, _)| *name).collect();
        bail!("bench has no part {unknown:?}; it has {}", names.join(", "));
    }
    build::release()?;
    test::get_tools();
    let mut rows = Vec::new();
    for (name, measure) in PARTS.iter().filter(|(name, _)| args.is_empty() || args.iter().any(|arg| arg == name)) {
        // A part that cannot be measured is a miss, and does not hide the numbers of the others.
        rows.extend(
            program::step(&format!("bench {name}"), measure).unwrap_or_else(|error| vec![failed(name, &error)]),
        );
    }
    print(&rows);
    let missed = rows.iter().filter(|row| !row.met).count();
    if missed > 0 {
        bail!("{missed} of {} numbers miss their target", rows.len());
    }
    Ok(())
}

fn print(rows: &[Row]) {
    let width = |cell: fn(&Row) -> &str| rows.iter().map(|row| cell(row).len()).max().unwrap_or(0);
    let (what, value) = (width(|row| &row.what), width(|row| &row.value));
    for row in rows {
        let word = if row.met { "ok" } else { "MISSED" };
        println!("{:<what$}  {:>value$}  {:<24} {word}", row.what, row.value, row.target);
    }
}

/// A number without a target, for the reader.
fn note(what: impl Into<String>, value: impl Into<String>) -> Row {
    Row { what: what.into(), value: value.into(), target: String::new(), met: true }
}

fn failed(part: &str, error: &anyhow::Error) -> Row {
    Row { what: part.into(), value: format!("not measured: {error:#}"), target: "a number".into(), met: false }
}

/// An empty folder of its own for one part, below the build folder.
fn scratch(part: &str) -> Result<PathBuf> {
    let dir = workspace::root().join("target/bench").join(part);
    if dir.exists() {
        std::fs::remove_dir_all(&dir).with_context(|| dir.display().to_string())?;
    }
    std::fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
    Ok(dir)
}

/// The value below which `share` of the sorted values lie, by nearest rank.
fn quantile(sorted: &[f64], share: f64) -> f64 {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "few values"
    )]
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_by_nearest_rank() {
        let values: Vec<f64> = (1..=20).map(f64::from).collect();
        assert_eq!((quantile(&values, 0.5), quantile(&values, 0.99)), (10.0, 20.0));
        assert!(quantile(&[], 0.5).is_nan());
    }
}
