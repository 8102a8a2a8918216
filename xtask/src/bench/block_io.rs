//! Completions that the block_io probe counted beside those of /proc/diskstats, over a direct-I/O run.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::agent::Agent;
use super::{Row, note, scratch};
use crate::{apt, program};

/// The probe's count of one series, as /metrics has it.
const COUNT: &str = "block_io_latency_seconds_count{";
/// Requests in each direction.
const REQUESTS: &str = "2000";

/// The part.
pub(super) fn measure() -> Result<Vec<Row>> {
    if !apt::is_root() {
        return Ok(vec![note("block I/O completions", "not measured: needs root for the probe")]);
    }
    let dir = scratch("block")?;
    let Some(device) = device_of(&dir)? else {
        return Ok(vec![note("block I/O completions", "not measured: the build folder is on no block device")]);
    };
    let agent = Agent::start(&dir, None)?;
    let mut rows = Vec::new();
    let before = reading(&agent, &device)?;
    direct_io(&dir)?;
    let after = reading(&agent, &device)?;
    for (way, name) in ["read", "write"].into_iter().enumerate() {
        let probe = after.probe[way] - before.probe[way];
        // Others use the disk too: what the probe counted lies between the kernel's counts just inside and just outside.
        let least = after.disk_before[way] - before.disk_after[way];
        let most = after.disk_after[way] - before.disk_before[way];
        rows.push(Row {
            what: format!("block I/O: {name}s completed on {device}, probe"),
            value: probe.to_string(),
            target: format!("diskstats {least} to {most}"),
            met: (least..=most).contains(&probe),
        });
    }
    Ok(rows)
}

/// Counts of reads and writes: the probe's, and the kernel's before and after asking the probe.
struct Reading {
    disk_before: [u64; 2],
    probe: [u64; 2],
    disk_after: [u64; 2],
}

fn reading(agent: &Agent, device: &str) -> Result<Reading> {
    let disk_before = diskstats(device)?;
    // The page shows the last cycle: two cycles later it holds at least all that was complete before.
    std::thread::sleep(Duration::from_secs(2));
    let page = agent.page()?;
    let disk_after = diskstats(device)?;
    let probe = ["read", "write"].map(|operation| count(&page, device, operation));
    ensure!(page.contains(COUNT), "the page has no {COUNT}: on which rung block_io stands says doctor");
    Ok(Reading { disk_before, probe, disk_after })
}

/// A series that is not there yet has counted nothing.
fn count(page: &str, device: &str, operation: &str) -> u64 {
    let labels = [format!("device=\"{device}\""), format!("operation=\"{operation}\"")];
    page.lines()
        .filter(|line| line.contains(COUNT) && labels.iter().all(|label| line.contains(label)))
        .filter_map(|line| line.rsplit_once(' ')?.1.parse::<u64>().ok())
        .sum()
}

/// Reads and writes completed (fields 1 and 5 of Documentation/admin-guide/iostats.rst).
fn diskstats(device: &str) -> Result<[u64; 2]> {
    let text = std::fs::read_to_string("/proc/diskstats")?;
    let fields: Vec<&str> = text
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .find(|fields| fields.get(2) == Some(&device))
        .with_context(|| format!("/proc/diskstats: no {device}"))?;
    let field =
        |index: usize| fields.get(index).and_then(|text| text.parse().ok()).context("/proc/diskstats: short line");
    Ok([field(3)?, field(7)?])
}

fn direct_io(dir: &Path) -> Result<()> {
    let file = dir.join("file");
    let dd = |from: &str, to: &str, flag: &str| {
        let mut dd = Command::new("dd");
        dd.arg(format!("if={from}")).arg(format!("of={to}")).args(["bs=16k", "status=none", flag]);
        program::show(dd.arg(format!("count={REQUESTS}")))
    };
    let name = file.display().to_string();
    dd("/dev/zero", &name, "oflag=direct")?;
    dd(&name, "/dev/null", "iflag=direct")?;
    std::fs::remove_file(&file).with_context(|| name)
}

/// Name of the whole disk on which `dir` lies; none on a file system without one, as tmpfs or overlay.
fn device_of(dir: &Path) -> Result<Option<String>> {
    let dev = std::fs::metadata(dir)?.dev();
    // The kernel's encoding of st_dev: 12 bits major, 20 bits minor, in the places that glibc's macros know.
    let (major, minor) = ((dev >> 8) & 0xfff, (dev & 0xff) | ((dev >> 12) & 0xfff00));
    let Ok(path) = std::fs::canonicalize(format!("/sys/dev/block/{major}:{minor}")) else { return Ok(None) };
    let whole = if path.join("partition").exists() { path.parent() } else { Some(path.as_path()) };
    Ok(whole.and_then(Path::file_name).map(|name| name.to_string_lossy().into_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_probes_count_is_found_by_its_labels() {
        let page = "x_block_io_latency_seconds_count{device=\"vda\",operation=\"read\"} 12\n\
                    x_block_io_latency_seconds_count{device=\"vdab\",operation=\"read\"} 7\n\
                    x_block_io_latency_seconds_bucket{device=\"vda\",operation=\"read\",le=\"1\"} 5\n";
        assert_eq!(count(page, "vda", "read"), 12);
        assert_eq!(count(page, "vda", "write"), 0);
    }
}
