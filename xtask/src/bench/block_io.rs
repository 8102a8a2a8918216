//! Completions that the block_io probe counted beside those of /proc/diskstats, over a direct-I/O run; and its 99th
//! percentile beside that of fio, at depth 32.

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
    rows.push(beside_fio(&dir, &agent)?);
    Ok(rows)
}

/// The bucket in which the 99th percentile of the probe lies (device time: the disk has no scheduler), and fio's.
fn beside_fio(dir: &Path, agent: &Agent) -> Result<Row> {
    const WHAT: &str = "block I/O: p99 of 100,000 reads at depth 32";
    if program::find("fio").is_none() || program::find("losetup").is_none() {
        return Ok(note(WHAT, "not measured: needs fio and losetup"));
    }
    let image = dir.join("disk.img");
    std::fs::File::create(&image)?.set_len(256 << 20)?;
    let disk = program::capture(Command::new("losetup").args(["--find", "--show"]).arg(&image))?.trim().to_owned();
    let measured = fio(&disk, agent);
    program::show(Command::new("losetup").args(["--detach", &disk]))?;
    std::fs::remove_file(&image)?;
    let (bounds, clat_us) = measured?;
    let value = format!("{:.0} to {:.0} us", bounds.0 * 1e6, bounds.1 * 1e6);
    // One bucket is a factor of two.
    let met = (bounds.0 * 1e6 / 2.0..=bounds.1 * 1e6 * 2.0).contains(&clat_us);
    Ok(Row { what: WHAT.into(), value, target: format!("fio: {clat_us:.0} us"), met })
}

/// The bounds in seconds of the probe's bucket, and fio's completion latency in microseconds.
fn fio(disk: &str, agent: &Agent) -> Result<((f64, f64), f64)> {
    let device = disk.trim_start_matches("/dev/");
    std::fs::write(format!("/sys/block/{device}/queue/scheduler"), "none")?;
    let before = buckets(&agent.page()?, device);
    let mut fio = Command::new("fio");
    fio.args(["--name=bench", "--direct=1", "--ioengine=libaio", "--rw=randread", "--bs=4k", "--iodepth=32"]);
    fio.args(["--size=200M", "--io_size=409600000", "--output-format=json", "--filename", disk]);
    let said: serde_json::Value = serde_json::from_str(&program::capture(&mut fio)?)?;
    let clat_ns = &said["jobs"][0]["read"]["clat_ns"]["percentile"]["99.000000"];
    std::thread::sleep(Duration::from_secs(2));
    let after = buckets(&agent.page()?, device);
    let since: Vec<(f64, f64)> = after
        .iter()
        .map(|(bound, count)| (*bound, count - before.iter().find(|old| old.0 == *bound).map_or(0.0, |old| old.1)))
        .collect();
    let total = since.last().context("the page has no buckets of the disk")?.1;
    let place = since.iter().position(|(_, count)| *count >= total * 0.99).context("no bucket has the percentile")?;
    let below = if place == 0 { 0.0 } else { since[place - 1].0 };
    Ok(((below, since[place].0), clat_ns.as_f64().context("fio tells no percentile")? / 1e3))
}

/// Bounds with their cumulative counts, as the page has them: the least first.
fn buckets(page: &str, device: &str) -> Vec<(f64, f64)> {
    let labels = [format!("device=\"{device}\""), "operation=\"read\"".to_owned()];
    let of = |line: &str| {
        let bound = line.split_once("le=\"")?.1.split_once('"')?.0;
        let count = line.rsplit_once(' ')?.1.parse().ok()?;
        Some((if bound == "+Inf" { f64::INFINITY } else { bound.parse().ok()? }, count))
    };
    page.lines()
        .filter(|line| {
            line.contains("block_io_latency_seconds_bucket{") && labels.iter().all(|label| line.contains(label))
        })
        .filter_map(of)
        .collect()
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
        assert_eq!(buckets(page, "vda"), [(1.0, 5.0)]);
    }
}
