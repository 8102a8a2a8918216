//! Kernel events from all sources, joined: probes and the kernel's log on their thread, the correlator behind them.

use std::time::Duration;

use super::sleep_for;
use super::watch::{Readings, Watch, Word};
use crate::correlate::{self, Correlator};
use crate::host::{Host, StateFiles};
use crate::kernel::{self, Kernel, Rung};
use crate::logs::{self, Kmsg, Unavailable};
use crate::model::{Batch, Detail, Event, Frame};
use crate::settings::{Settings, keys};
use crate::spec::{Value, Values};
use crate::symbolize::{Symbolizer, Trust};

/// How long the end waits until the places in the log and among hangs are written.
const DISK_PATIENCE: Duration = Duration::from_secs(1);

/// The sources of kernel events.
pub struct Sources {
    files: StateFiles,
    watch: Watch,
    correlator: Correlator,
    /// Where each probe stands, as of the last word from the kernel.
    pub probes: Vec<kernel::Standing>,
    /// Whether the kernel's log is read, or why not.
    pub log: Result<(), Unavailable>,
    /// The probes' and the log's own readings, when there are new ones.
    readings: Option<Box<Readings>>,
    ready: Vec<Event>,
    /// Were told in an earlier life of the agent.
    told: Vec<Event>,
    /// Events that the watching thread has handed on.
    taken: u64,
    /// Events that watching threads before this one could not hand on.
    lost_before: u64,
}

impl Sources {
    /// Puts the probes up, opens the kernel's log and begins to watch both.
    ///
    /// # Errors
    /// When a rung that the configuration forces cannot stand (with the reason and the remedy), or the system gives no
    /// thread.
    pub fn start(host: &Host, settings: &Settings) -> anyhow::Result<Self> {
        let files = files(settings);
        let opened = Opened::new(host, settings, &files);
        opened.refuse_what_is_forced_and_failed()?;
        let [kills, hangs] = opened.gives();
        Ok(Self {
            files,
            probes: opened.probes,
            log: opened.log,
            watch: Watch::start(host, opened.kernel, opened.kmsg, settings.values.get(&keys::COLLECT_INTERVAL))?,
            correlator: Correlator::new(kills, hangs),
            readings: None,
            ready: Vec::new(),
            told: Vec::new(),
            taken: 0,
            lost_before: 0,
        })
    }

    /// True when both settings want the same sources.
    pub(super) fn are_the_same(values: &Values, others: &Values) -> bool {
        let listed =
            kernel::ALL.iter().flat_map(|entry| entry.keys).chain(logs::ALL.iter().flat_map(|entry| entry.keys));
        let listed = listed.chain(kernel::KEYS);
        let shared = [keys::DATA_DIR.spec(), keys::COLLECT_INTERVAL.spec()];
        values.agree_on(others, listed.copied().chain(shared))
    }

    /// Puts up what `settings` want in the place of what stands. What the old sources have seen comes with the next
    /// [`Sources::next`], and what was told is remembered, so that nothing is lost or told twice.
    ///
    /// # Errors
    /// As [`Sources::start`]. When a rung is forced that cannot stand, everything is as it was.
    pub(super) fn restart(&mut self, host: &Host, settings: &Settings) -> anyhow::Result<()> {
        // Only tried: two readers of the kernel's log would tell everything twice.
        if forces_a_rung(&settings.values) {
            Opened::new(host, settings, &StateFiles::default()).refuse_what_is_forced_and_failed()?;
        }
        self.take_the_rest(host);
        self.lost_before += self.watch.lost();
        let files = files(settings);
        let opened = Opened::new(host, settings, &files);
        let [kills, hangs] = opened.gives();
        self.watch = Watch::start(host, opened.kernel, opened.kmsg, settings.values.get(&keys::COLLECT_INTERVAL))?;
        (self.taken, self.files) = (0, files);
        self.correlator.set_sources(kills, hangs);
        (self.probes, self.log) = (opened.probes, opened.log);
        Ok(())
    }

    /// Puts the probes up and takes them down again: where they would stand, without an error for a forced rung.
    pub fn examine(host: &Host, settings: &Settings) -> (Vec<kernel::Standing>, Result<(), Unavailable>) {
        let opened = Opened::new(host, settings, &StateFiles::default());
        (opened.probes, opened.log)
    }

    /// True when any source of events stands.
    #[must_use]
    pub fn can_see_anything(&self) -> bool {
        let looks =
            |probe: &kernel::Standing| probe.extras.iter().any(|extra| extra.name == "early" && extra.means != "off");
        self.log.is_ok() || self.probes.iter().any(|probe| probe.rung < Rung::Kmsg || looks(probe))
    }

    /// Waits for events, or for new readings ([`Sources::take_readings`]; the events are then none). May be dropped
    /// and called again. `None` when the watching thread has ended, which is a bug.
    pub async fn next(&mut self, host: &Host) -> Option<&mut Vec<Event>> {
        self.ready.clear();
        loop {
            let now = host.clock.now();
            self.correlator.ready(now, &mut self.ready);
            if !self.ready.is_empty() {
                name_frames(&mut self.ready);
                return Some(&mut self.ready);
            }
            let due = self.correlator.next_deadline().map(|at| at.saturating_sub(now.monotonic));
            tokio::select! {
                word = self.watch.inbox.recv() => if self.take(word?, host) {
                    return Some(&mut self.ready);
                },
                () = sleep_for(due) => {}
            }
        }
    }

    /// The newest readings of the sources themselves, once.
    pub(super) fn take_readings(&mut self) -> Option<Box<Readings>> {
        self.readings.take()
    }

    /// Events of an earlier life of the agent that are not over, once.
    pub(super) fn take_told(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.told)
    }

    /// Takes note of kills that were handled in an earlier life of the agent: the log may tell them again.
    pub(super) fn remember(&mut self, kills: &[Event]) {
        kills.iter().for_each(|kill| self.correlator.remember(kill));
    }

    /// Says that what became of all events so far is on disk. Those that still wait for another source's word count, too.
    pub(super) fn settle(&self) {
        if self.correlator.next_deadline().is_none() {
            self.watch.settle(self.taken);
        }
    }

    /// Ends the watching and gives all events that have not been told yet.
    pub(super) fn end(&mut self, host: &Host) -> Vec<Event> {
        self.take_the_rest(host);
        let mut rest = Vec::new();
        self.correlator.flush(&mut rest);
        rest
    }

    /// Ends the watching thread and takes what it has handed on.
    fn take_the_rest(&mut self, host: &Host) {
        self.watch.stop();
        self.files.settle(DISK_PATIENCE);
        while let Ok(word) = self.watch.inbox.try_recv() {
            self.take(word, host);
        }
    }

    /// Takes a word of the watching thread; true when it brought new readings.
    fn take(&mut self, word: Word, host: &Host) -> bool {
        match word {
            Word::Event(event) => {
                self.taken += 1;
                self.correlator.add(*event, host.clock.now());
            }
            Word::Told(event) => {
                self.correlator.remember(&event);
                self.told.push(*event);
            }
            Word::Readings(readings) => {
                self.probes.clone_from(&readings.standings);
                self.readings = Some(readings);
                return true;
            }
        }
        false
    }

    /// Adds what is known of events and their reports.
    pub(super) fn collect(&self, out: &mut Batch) {
        self.correlator.collect(self.lost_before + self.watch.lost(), out);
    }
}

/// Puts names to the stacks of leaks. Leaks are told rarely, so nothing is remembered from one to the next: what describes
/// programs is large.
fn name_frames(events: &mut [Event]) {
    let stacks = events
        .iter_mut()
        .filter_map(|event| if let Detail::FdLeak(leak) = &mut event.detail { Some(&mut leak.frames) } else { None });
    let stacks: Vec<&mut Vec<Frame>> = stacks.collect();
    if !stacks.is_empty() {
        Symbolizer::new(Trust::Owned).name(stacks);
    }
}

/// Where these settings keep what sources must know after a restart.
fn files(settings: &Settings) -> StateFiles {
    StateFiles::within(keys::data_dir(&settings.values).as_deref())
}

fn forces_a_rung(values: &Values) -> bool {
    let keys = kernel::ALL.iter().flat_map(|entry| entry.keys).filter(|key| key.name() == "rung");
    keys.filter_map(|key| values.written(key)).any(|rung| *rung != Value::Text("auto".to_owned()))
}

/// Sources that stand and that no one watches yet.
struct Opened {
    kernel: Kernel,
    kmsg: Option<Kmsg>,
    probes: Vec<kernel::Standing>,
    log: Result<(), Unavailable>,
}

impl Opened {
    fn new(host: &Host, settings: &Settings, files: &StateFiles) -> Self {
        // Probes first: what happens before the log is opened stands in it, or is told by the probe.
        let mut kernel = Kernel::start(host, &settings.values);
        kernel.keep_in(host, files);
        let (kmsg, log) = match Kmsg::open(host, &settings.values, files) {
            Ok(kmsg) => (Some(kmsg), Ok(())),
            Err(why) => {
                kernel.do_without_log(&why.reason, &why.remedy);
                (None, Err(why))
            }
        };
        Self { probes: kernel.standings(), kernel, kmsg, log }
    }

    fn refuse_what_is_forced_and_failed(&self) -> anyhow::Result<()> {
        let Some(probe) = self.probes.iter().find(|probe| probe.forced_and_failed) else { return Ok(()) };
        let hint = if probe.remedy.is_empty() { String::new() } else { format!("; {}", probe.remedy) };
        anyhow::bail!("kernel.{}.rung: {}{hint}", probe.name, probe.reason);
    }

    /// Which sources give kills and hangs. On the rung `off` there are none: the operator does not want them.
    fn gives(&self) -> [correlate::Sources; 2] {
        ["oom_kill", "hung_task"].map(|name| {
            let rung = self.probes.iter().find(|probe| probe.name == name).map(|probe| probe.rung);
            let log = self.log.is_ok() && rung != Some(Rung::Off);
            correlate::Sources { probe: rung.is_some_and(|rung| rung < Rung::Kmsg), log }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine without probes, whose kernel's log is a file with one kill.
    struct Machine {
        dir: std::path::PathBuf,
        host: Host,
        settings: Settings,
    }

    impl Machine {
        fn new(name: &str) -> Self {
            let dir = std::env::temp_dir().join(format!("sysops-sources-{}-{name}", std::process::id()));
            std::fs::create_dir_all(dir.join("dev")).expect("the temporary directory is writable");
            std::fs::create_dir_all(dir.join("proc/sys/kernel/random")).expect("writable");
            std::fs::write(dir.join("proc/sys/kernel/random/boot_id"), "b00\n").expect("writable");
            let mut machine = Self { host: Host::fixture(&dir), settings: Settings::default(), dir };
            machine.logs(42);
            for key in kernel::ALL.iter().flat_map(|entry| entry.keys).filter(|key| key.name() == "rung") {
                // The others tell no events, so the log cannot stand in for them.
                let rung = if tells_events(key.path) { "kmsg" } else { "off" };
                machine.settings.values.set(key, Value::Text(rung.to_owned()));
            }
            let data = Value::Text(machine.dir.display().to_string());
            machine.settings.values.set(keys::DATA_DIR.spec(), data);
            machine
        }

        fn logs(&self, pid: u32) {
            let record = format!(
                "3,{pid},{pid}000000,-;Memory cgroup out of memory: Killed process {pid} (dd) total-vm:1kB, \
                 anon-rss:1kB, file-rss:0kB, shmem-rss:0kB, UID:0 pgtables:1kB oom_score_adj:0\n"
            );
            std::fs::write(self.dir.join("dev/kmsg"), record).expect("writable");
        }
    }

    fn tells_events(path: &str) -> bool {
        ["oom_kill", "hung_task"].iter().any(|probe| path.contains(probe))
    }

    impl Drop for Machine {
        fn drop(&mut self) {
            _ = std::fs::remove_dir_all(&self.dir);
        }
    }

    fn pids(events: &[Event]) -> Vec<Option<u32>> {
        events.iter().map(|event| event.pid).collect()
    }

    #[test]
    fn at_the_end_nothing_that_was_seen_is_lost() {
        let machine = Machine::new("end");
        let mut sources = Sources::start(&machine.host, &machine.settings).expect("the log stands");
        assert_eq!(pids(&sources.end(&machine.host)), [Some(42)], "it was seen and never taken");
    }

    #[test]
    fn a_restart_loses_nothing_and_tells_nothing_twice() {
        let machine = Machine::new("restart");
        let mut sources = Sources::start(&machine.host, &machine.settings).expect("the log stands");
        sources.restart(&machine.host, &machine.settings).expect("it stands again");
        machine.logs(43);
        sources.restart(&machine.host, &machine.settings).expect("it stands again");
        assert_eq!(pids(&sources.end(&machine.host)), [Some(42), Some(43)]);
    }

    #[test]
    fn a_restart_that_cannot_be_leaves_what_stands() {
        let machine = Machine::new("refused");
        let mut sources = Sources::start(&machine.host, &machine.settings).expect("the log stands");
        let mut wanted = std::mem::take(&mut Machine::new("wanted").settings);
        for key in kernel::ALL.iter().flat_map(|entry| entry.keys).filter(|key| key.name() == "rung") {
            wanted.values.set(key, Value::Text("tp_btf".to_owned()));
        }
        let error = sources.restart(&machine.host, &wanted).expect_err("the machine has no BTF").to_string();
        assert!(error.starts_with("kernel.oom_kill.rung: "), "{error}");
        assert!(sources.log.is_ok() && sources.can_see_anything());
        assert_eq!(pids(&sources.end(&machine.host)), [Some(42)]);
    }
}
