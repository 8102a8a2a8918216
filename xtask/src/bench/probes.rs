//! What the probes cost: a descriptor as the process that gets it feels it, each probe by the kernel's own account of its
//! programs (BPF stats), and everything together under a given load. A probe that is new is measured with the others.
//! The kernel's account includes what counting itself takes; that is measured with a program that has nothing to do, and taken off.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::agent::{Agent, Wanted};
use super::fd_load::FdLoad;
use super::process::wait_for;
use super::{Row, note, oom, scratch};
use crate::{apt, program};

/// Watched by the fd probe, and not watched.
const WATCHED: &str = "bench-fd-watch";
const OTHER: &str = "bench-fd-other";

const UNARMED_MAX_NS: f64 = 50.0;
const ARMED_MAX_NS: f64 = 1000.0;
const BLOCK_MAX_NS: f64 = 400.0;
const WHOLE_MAX_PERCENT: f64 = 0.5;
const IOPS: u32 = 10_000;
const DESCRIPTORS: u32 = 1000;
const KILLS: u32 = 20;
/// Seconds between two readings of everything by default, and how long a load lasts.
const INTERVAL: u32 = 10;
const STRETCH: u32 = 20;
/// Turns with and without the agent, one after the other.
const TURNS: usize = 3;

/// The part.
pub(super) fn measure() -> Result<Vec<Row>> {
    if !apt::is_root() {
        return Ok(vec![note("cost of the probes", "not measured: needs root for the probes")]);
    }
    apt::ensure(&["fio"])?;
    let dir = scratch("probes")?;
    let mut rows = descriptors(&dir)?;
    rows.extend(accounts(&dir)?);
    Ok(rows)
}

/// What a dup or a close takes the process that does it: without the agent, watched, and while another is watched.
fn descriptors(dir: &Path) -> Result<Vec<Row>> {
    let (mut watched, mut other) = (FdLoad::start(WATCHED)?, FdLoad::start(OTHER)?);
    let [mut without, mut armed, mut unarmed] = [f64::INFINITY; 3];
    let mut is_armed = true;
    for _ in 0..TURNS {
        without = without.min(watched.burst_ns()?).min(other.burst_ns()?);
        let agent = Agent::start_as(dir, &wanted(1, 0, &[WATCHED]))?;
        is_armed &= watched_series(&agent).is_ok();
        armed = armed.min(watched.burst_ns()?);
        unarmed = unarmed.min(other.burst_ns()?);
    }
    let row = |what: &str, with: f64, most: f64, is_valid: bool| Row {
        what: format!("fd: {what}"),
        value: format!("{:+.0} ns ({:.2} x)", with - without, with / without),
        target: format!("at most {most:.0} ns"),
        met: is_valid && with - without <= most,
    };
    let mut rows = vec![
        note("fd: a dup or close without the agent", format!("{without:.0} ns")),
        row("the same while another process is watched", unarmed, UNARMED_MAX_NS, true),
        row("the same in a watched process", armed, ARMED_MAX_NS, is_armed),
    ];
    if !is_armed {
        rows.push(note("fd", "the probe did not watch the process: see doctor"));
    }
    Ok(rows)
}

/// Waits until the probe watches the process.
fn watched_series(agent: &Agent) -> Result<()> {
    wait_for("the fd probe watches", Duration::from_secs(10), || {
        agent.page().ok().filter(|page| page.contains(&format!("comm=\"{WATCHED}\"")))
    })
    .map(drop)
}

/// By BPF stats: each probe under a load of its own kind, then all together.
fn accounts(dir: &Path) -> Result<Vec<Row>> {
    let mut load = FdLoad::start(WATCHED)?;
    let disk = Disk::new(dir)?;
    let agent = Agent::start_as(dir, &wanted(1, 100, &[WATCHED]))?;
    let _ = watched_series(&agent);
    let idle = Account::settled(&agent, 1)?;
    load.signal(IOPS, 3)?;
    let before = Account::settled(&agent, 1)?;
    let counting = counting(&idle, &before)?;
    for _ in 0..KILLS {
        oom::kill()?;
    }
    let killed = Account::settled(&agent, 1)?;
    disk.read(IOPS, 5)?;
    load.rate(DESCRIPTORS, 3)?;
    let after = Account::settled(&agent, 1)?;
    drop(agent);
    let mut rows = vec![note("to count a run, which the kernel counts too", format!("{:.0} ns", counting * 1e9))];
    rows.push(per_event("oom_kill: a kill", "oom_kill", (&before, &killed), counting, None));
    rows.push(per_event("block_io: an I/O", "block_io", (&killed, &after), counting, Some(BLOCK_MAX_NS)));
    for (probe, runs) in &after.runs {
        let runs = runs.since(before.runs.get(probe));
        let each = if runs.count > 0.0 {
            format!("{:.0} ns", runs.own(counting) / runs.count * 1e9)
        } else {
            "never ran".to_owned()
        };
        rows.push(note(format!("{probe}: a run of a program ({:.0} runs)", runs.count), each));
    }
    rows.extend(together(dir, &mut load, &disk, counting)?);
    Ok(rows)
}

/// Seconds that the kernel counts of a run of a program that returns at once, as that of `sigkill` does for other signals.
/// They come one by one, as the I/Os do, from a process that sleeps in between.
fn counting(before: &Account, after: &Account) -> Result<f64> {
    let runs = after.runs.get("sigkill").map(|runs| runs.since(before.runs.get("sigkill")));
    let enough = runs.filter(|runs| runs.count >= f64::from(IOPS));
    let runs = enough.context("sigkill: its programs did not run for each signal: see doctor")?;
    Ok(runs.seconds / runs.count)
}

/// The whole cost of an agent with its default intervals, in percent of one CPU: as it is by itself, when no process draws
/// suspicion, and while one is followed.
fn together(dir: &Path, load: &mut FdLoad, disk: &Disk, counting: f64) -> Result<Vec<Row>> {
    let rest = || {
        std::thread::sleep(Duration::from_secs(u64::from(STRETCH)));
        Ok(())
    };
    let agent = Agent::start_as(dir, &wanted(INTERVAL, 100, &[]))?;
    let idle = Side::measure(&agent, counting, rest)?;
    let busy = Side::measure(&agent, counting, || under_load(load, disk))?;
    drop(agent);
    let agent = Agent::start_as(dir, &wanted(INTERVAL, 100, &[WATCHED]))?;
    let followed = Side::measure(&agent, counting, || under_load(load, disk))?;
    let io = busy.events.get("block_io").copied().unwrap_or_default() / busy.seconds;
    let parts = |side: &Side| format!("{:.3} % and {:.3} %", side.percent(side.bpf), side.percent(side.cpu));
    let whole = busy.percent(busy.bpf + busy.cpu);
    Ok(vec![
        note("at rest: the probes, and the agent that reads everything every 10 s", parts(&idle)),
        note(format!("at {io:.0} I/Os and {DESCRIPTORS} descriptors a second"), parts(&busy)),
        Row {
            what: "     together, of one CPU".into(),
            value: format!("{whole:.3} %"),
            target: format!("below {WHOLE_MAX_PERCENT} %"),
            met: whole < WHOLE_MAX_PERCENT && io > f64::from(IOPS) * 0.95,
        },
        note("     while the process that takes the descriptors is followed", parts(&followed)),
    ])
}

fn under_load(load: &mut FdLoad, disk: &Disk) -> Result<()> {
    std::thread::scope(|scope| {
        let io = scope.spawn(|| disk.read(IOPS, STRETCH));
        load.rate(DESCRIPTORS, STRETCH)?;
        io.join().map_err(|_| anyhow::anyhow!("fio's thread ended"))?
    })
}

/// What a stretch of time cost.
struct Side {
    seconds: f64,
    bpf: f64,
    cpu: f64,
    events: BTreeMap<String, f64>,
}

impl Side {
    fn measure(agent: &Agent, counting: f64, work: impl FnOnce() -> Result<()>) -> Result<Self> {
        let before = Account::settled(agent, INTERVAL)?;
        let (cpu, start) = (agent.process.cpu()?, Instant::now());
        work()?;
        let (cpu, seconds) = (agent.process.cpu()?.since(cpu).as_secs_f64(), start.elapsed().as_secs_f64());
        let after = Account::settled(agent, INTERVAL)?;
        let runs = after.runs.iter();
        let bpf = runs.map(|(probe, runs)| runs.since(before.runs.get(probe)).own(counting)).sum();
        let events = after.received.iter();
        let events = events.map(|(probe, count)| (probe.clone(), count - before.received.get(probe).unwrap_or(&0.0)));
        Ok(Self { seconds, bpf, cpu, events: events.collect() })
    }
}

impl Side {
    fn percent(&self, seconds: f64) -> f64 {
        100.0 * seconds / self.seconds
    }
}

fn per_event(what: &str, probe: &str, (before, after): (&Account, &Account), counting: f64, most: Option<f64>) -> Row {
    let runs = after.runs.get(probe).map(|runs| runs.since(before.runs.get(probe)));
    let received = |account: &Account| account.received.get(probe).copied();
    let events = received(after).map(|count| count - received(before).unwrap_or(0.0)).filter(|count| *count > 0.0);
    let Some((runs, events)) = runs.zip(events) else {
        return Row { met: false, ..note(what, "not measured: the probe told nothing") };
    };
    let each = runs.own(counting) / events * 1e9;
    Row {
        what: format!("{what}, of {events:.0}"),
        value: format!("{each:.0} ns, as counted {:.0} ns", runs.seconds / events * 1e9),
        target: most.map(|most| format!("at most {most:.0} ns")).unwrap_or_default(),
        met: most.is_none_or(|most| each <= most),
    }
}

/// What /metrics says of the probes.
#[derive(Default)]
struct Account {
    runs: BTreeMap<String, Runs>,
    received: BTreeMap<String, f64>,
}

#[derive(Clone, Copy, Default)]
struct Runs {
    count: f64,
    seconds: f64,
}

impl Runs {
    /// Those since `before`. A count that fell was begun anew: the programs were taken away and put up again.
    fn since(self, before: Option<&Self>) -> Self {
        match before {
            Some(before) if self.count >= before.count => {
                Self { count: self.count - before.count, seconds: self.seconds - before.seconds }
            }
            _ => self,
        }
    }

    /// Seconds without what it took to count them.
    fn own(self, counting: f64) -> f64 {
        (self.seconds - self.count * counting).max(0.0)
    }
}

impl Account {
    /// The page shows the last cycle: two cycles later it holds all that was before.
    fn settled(agent: &Agent, interval: u32) -> Result<Self> {
        std::thread::sleep(Duration::from_secs(u64::from(2 * interval)));
        Ok(Self::of_page(&agent.page()?))
    }

    fn of_page(page: &str) -> Self {
        let mut account = Self::default();
        for line in page.lines() {
            let Some((series, value)) = line.rsplit_once(' ') else { continue };
            let (Some((name, labels)), Ok(value)) = (series.split_once('{'), value.parse::<f64>()) else { continue };
            let Some(probe) = labels.strip_prefix("probe=\"").and_then(|rest| rest.split('"').next()) else { continue };
            let probe = probe.to_owned();
            match name {
                "sysops_kernel_probe_runs_total" => account.runs.entry(probe).or_default().count = value,
                "sysops_kernel_probe_run_seconds_total" => account.runs.entry(probe).or_default().seconds = value,
                "sysops_kernel_probe_received_total" => _ = account.received.insert(probe, value),
                _ => {}
            }
        }
        account
    }
}

fn wanted(interval_secs: u32, stats_percent: u32, watch: &[&str]) -> Wanted {
    let more = format!("\n[kernel]\nstats_percent = {stats_percent}\n\n[kernel.fd]\nwatch = {watch:?}\n");
    Wanted { interval_secs, more, ..Wanted::default() }
}

/// A loop device whose file is in memory, so that the load is the same on every machine.
struct Disk {
    device: String,
    file: std::path::PathBuf,
}

impl Disk {
    fn new(dir: &Path) -> Result<Self> {
        let memory = Path::new("/dev/shm");
        let name = format!("sysops-bench-{}", std::process::id());
        let file = if memory.is_dir() { memory.join(name) } else { dir.join(name) };
        std::fs::File::create(&file)
            .and_then(|made| made.set_len(64 << 20))
            .with_context(|| file.display().to_string())?;
        let device = program::capture(Command::new("losetup").args(["--find", "--show"]).arg(&file));
        match device {
            Ok(device) => Ok(Self { device: device.trim().to_owned(), file }),
            Err(error) => {
                std::fs::remove_file(&file)?;
                Err(error)
            }
        }
    }

    /// Random reads of 4 KiB, past the page cache, so many a second.
    fn read(&self, iops: u32, seconds: u32) -> Result<()> {
        let mut fio = Command::new("fio");
        fio.args(["--name=bench", "--rw=randread", "--bs=4k", "--direct=1", "--ioengine=libaio", "--iodepth=8"]);
        fio.args(["--time_based", "--output-format=terse", &format!("--filename={}", self.device)]);
        fio.args([format!("--rate_iops={iops}"), format!("--runtime={seconds}")]);
        program::capture(fio.stderr(Stdio::null())).map(drop)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // What cannot be taken away is seen by `losetup`; there is no one else to tell.
        let _ = program::capture(Command::new("losetup").args(["--detach", &self.device]));
        let _ = std::fs::remove_file(&self.file);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_is_read_from_the_page() {
        let page = "sysops_kernel_probe_runs_total{probe=\"fd\"} 10\nsysops_kernel_probe_run_seconds_total{probe=\"fd\"} 5e-06\n\
                    sysops_kernel_probe_received_total{probe=\"fd\"} 7\nsysops_kernel_probe_dropped_total{probe=\"fd\",reason=\"x\"} 1\n";
        let account = Account::of_page(page);
        assert_eq!((account.runs["fd"].count, account.runs["fd"].seconds, account.received["fd"]), (10.0, 5e-6, 7.0));
        let row = |most| per_event("fd", "fd", (&Account::default(), &account), 1e-7, Some(most));
        assert_eq!((row(570.0).value.as_str(), row(570.0).met), ("571 ns, as counted 714 ns", false));
        assert!(row(572.0).met && !per_event("x", "x", (&account, &account), 0.0, None).met);
    }

    #[test]
    fn programs_that_were_put_up_again_count_from_nothing() {
        let (now, before) = (Runs { count: 3.0, seconds: 3.0 }, Runs { count: 9.0, seconds: 5.0 });
        let since = |one: Runs, other: &Runs| (one.since(Some(other)).count, one.since(Some(other)).seconds);
        assert_eq!((since(now, &before), since(before, &now)), ((3.0, 3.0), (6.0, 2.0)));
    }
}
