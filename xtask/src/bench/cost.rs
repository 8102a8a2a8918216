//! CPU a cycle and resident memory of the agent, beside node_exporter's CPU a scrape, in turns within one run.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::agent::{Agent, series};
use super::process::{Process, wait_for};
use super::{Row, http, note, scratch};
use crate::test;

/// Turns that each of the programs gets.
const TURNS: u32 = 4;
/// Cycles, or scrapes, in a turn: one a second.
const CYCLES: u32 = 10;
/// The agent's CPU a cycle may be this much of node_exporter's a scrape.
const RATIO_MAX: f64 = 0.25;
/// Resident memory of the agent may be this much.
const RSS_MAX_BYTES: u64 = 15_000_000;

/// node_exporter's collectors for the sources that the agent reads too.
const SAME_SOURCES: &[&str] = &[
    "--collector.disable-defaults",
    "--collector.cpu",
    "--collector.stat",
    "--collector.loadavg",
    "--collector.meminfo",
    "--collector.diskstats",
    "--collector.filesystem",
    "--collector.netdev",
    "--collector.netclass",
    "--collector.vmstat",
    "--collector.meminfo_numa",
    "--collector.filefd",
    "--collector.pressure",
    "--collector.processes",
];

/// One of the compared programs.
struct Side<'a> {
    process: &'a Process,
    at: SocketAddr,
    scraped: bool,
    cpu: Duration,
}

/// The part.
pub(super) fn measure() -> Result<Vec<Row>> {
    let dir = scratch("cost")?;
    let agent = Agent::start(&dir, None)?;
    let (defaults, defaults_at) = node_exporter(&dir, "defaults", &[])?;
    let (same, same_at) = node_exporter(&dir, "same", SAME_SOURCES)?;
    let side = |process, at, scraped| Side { process, at, scraped, cpu: Duration::ZERO };
    let mut sides = [
        side(&agent.process, agent.metrics, true),
        side(&same, same_at, true),
        side(&agent.process, agent.metrics, false),
        side(&defaults, defaults_at, true),
    ];
    for _ in 0..TURNS {
        for side in &mut sides {
            turn(side)?;
        }
    }
    let cycle_ms = |side: &Side<'_>| side.cpu.as_secs_f64() * 1000.0 / f64::from(TURNS * CYCLES);
    let count = |at| http::get(at, "/metrics").map(|page| series(&page));
    let [ours, same, unscraped, defaults] = &sides;
    let mut rows = Vec::new();
    for (name, side) in [
        ("agent, a cycle with a scrape", ours),
        ("node_exporter same sources, a scrape", same),
        ("node_exporter defaults, a scrape", defaults),
    ] {
        rows.push(note(format!("CPU: {name}"), format!("{:.2} ms", cycle_ms(side))));
        rows.push(note("     series", count(side.at)?.to_string()));
        rows.push(note("     RSS", format!("{:.1} MB", megabytes(side.process.rss_bytes()?))));
    }
    let ratio = cycle_ms(ours) / cycle_ms(same);
    rows.push(Row {
        what: "CPU ratio, same sources".into(),
        value: format!("{ratio:.3}"),
        target: format!("at most {RATIO_MAX}"),
        met: ratio <= RATIO_MAX,
    });
    rows.push(note("CPU: agent, a cycle without a scrape", format!("{:.2} ms", cycle_ms(unscraped))));
    rows.push(note(
        "CPU ratio, same sources, without a scrape",
        format!("{:.3}", cycle_ms(unscraped) / cycle_ms(same)),
    ));
    let ratio = cycle_ms(ours) / cycle_ms(defaults);
    rows.push(note("CPU ratio, node_exporter's defaults", format!("{ratio:.3}")));
    let (our_series, their_series) = (count(ours.at)?, count(same.at)?);
    rows.push(Row {
        what: "series, agent and node_exporter".into(),
        value: format!("{our_series} and {their_series}"),
        target: "at least as many".into(),
        met: our_series >= their_series,
    });
    let rss = agent.process.rss_bytes()?;
    rows.push(Row {
        what: "RSS of the agent, NATS connected".into(),
        value: format!("{:.1} MB", megabytes(rss)),
        target: format!("at most {:.0} MB", megabytes(RSS_MAX_BYTES)),
        met: rss <= RSS_MAX_BYTES,
    });
    Ok(rows)
}

/// One scrape a second where the side is scraped; the time of the whole turn counts, as the agent works between scrapes too.
fn turn(side: &mut Side<'_>) -> Result<()> {
    let before = side.process.cpu()?;
    let start = Instant::now();
    for cycle in 1..=CYCLES {
        if side.scraped {
            http::get(side.at, "/metrics")?;
        }
        let next = Duration::from_secs(u64::from(cycle));
        std::thread::sleep(next.saturating_sub(start.elapsed()));
    }
    side.cpu += side.process.cpu()?.since(before);
    Ok(())
}

fn node_exporter(dir: &Path, name: &str, args: &[&str]) -> Result<(Process, SocketAddr)> {
    let at = http::free_port()?;
    let program = test::server("prometheus-node-exporter").context("no prometheus-node-exporter on this machine")?;
    let mut command = Command::new(program);
    command.arg(format!("--web.listen-address={at}")).args(args).stdout(Stdio::null());
    let process = Process::start(&mut command, &dir.join(format!("node_exporter-{name}.log")))?;
    wait_for("node_exporter answers", Duration::from_secs(30), || http::get(at, "/metrics").ok())?;
    Ok((process, at))
}

#[expect(clippy::cast_precision_loss, reason = "bytes of memory, for people")]
fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}
