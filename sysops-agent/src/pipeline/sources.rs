//! Kernel events from all sources, joined: probes and the kernel's log on their thread, the correlator behind them.

use std::path::Path;

use super::sleep_for;
use super::watch::{Readings, Watch, Word};
use crate::correlate::{self, Correlator};
use crate::host::Host;
use crate::kernel::{self, Kernel, Rung};
use crate::logs::{Kmsg, Unavailable};
use crate::model::{Batch, Event};
use crate::settings::{Settings, keys};

/// The sources of kernel events.
pub struct Sources {
    watch: Watch,
    correlator: Correlator,
    /// Where each probe stands, as of the last word from the kernel.
    pub probes: Vec<kernel::Standing>,
    /// Whether the kernel's log is read, or why not.
    pub log: Result<(), Unavailable>,
    /// The probes' and the log's own readings, when there are new ones.
    readings: Option<Box<Readings>>,
    ready: Vec<Event>,
}

impl Sources {
    /// Puts the probes up, opens the kernel's log and begins to watch both.
    ///
    /// # Errors
    /// When a rung that the configuration forces cannot stand (with the reason and the remedy), or the system gives no
    /// thread.
    pub fn start(host: &Host, settings: &Settings) -> anyhow::Result<Self> {
        let (kernel, kmsg) = open(host, settings);
        let probes = kernel.standings();
        if let Some(probe) = probes.iter().find(|probe| probe.forced_and_failed) {
            let hint = if probe.remedy.is_empty() { String::new() } else { format!("; {}", probe.remedy) };
            anyhow::bail!("kernel.{}.rung: {}{hint}", probe.name, probe.reason);
        }
        let log = kmsg.as_ref().map(|_| ()).map_err(Clone::clone);
        let [kills, hangs] = sources_of_events(&probes, log.is_ok());
        let interval = settings.values.get(&keys::COLLECT_INTERVAL);
        Ok(Self {
            watch: Watch::start(host, kernel, kmsg.ok(), interval)?,
            correlator: Correlator::new(kills, hangs),
            probes,
            log,
            readings: None,
            ready: Vec::new(),
        })
    }

    /// Takes the place of `old`. Both have watched since `self` began, so nothing is missed in between; what both saw is
    /// told once, as the memory of what was told goes on.
    pub(super) fn succeed(&mut self, old: Self, host: &Host) {
        let Self { watch, mut correlator, .. } = old;
        let [kills, hangs] = sources_of_events(&self.probes, self.log.is_ok());
        correlator.set_sources(kills, hangs);
        self.correlator = correlator;
        for word in watch.end() {
            self.take(word, host);
        }
    }

    /// Puts the probes up and takes them down again: where they would stand, without an error for a forced rung.
    pub fn examine(host: &Host, settings: &Settings) -> (Vec<kernel::Standing>, Result<(), Unavailable>) {
        let (kernel, kmsg) = open(host, settings);
        (kernel.standings(), kmsg.map(|_| ()))
    }

    /// True when any source of events stands.
    #[must_use]
    pub fn can_see_anything(&self) -> bool {
        self.log.is_ok() || self.probes.iter().any(|probe| probe.rung < Rung::Kmsg)
    }

    /// Waits for events, or for new readings ([`Sources::take_readings`]; the events are then none). May be dropped
    /// and called again. `None` when the watching thread has ended, which is a bug.
    pub async fn next(&mut self, host: &Host) -> Option<&mut Vec<Event>> {
        self.ready.clear();
        loop {
            let now = host.clock.now();
            self.correlator.ready(now, &mut self.ready);
            if !self.ready.is_empty() {
                return Some(&mut self.ready);
            }
            let due = self.correlator.next_deadline().map(|at| at.saturating_sub(now.monotonic));
            tokio::select! {
                word = self.watch.inbox.recv() => match word? {
                    Word::Readings(readings) => {
                        self.probes.clone_from(&readings.standings);
                        self.readings = Some(readings);
                        return Some(&mut self.ready);
                    }
                    word => self.take(word, host),
                },
                () = sleep_for(due) => {}
            }
        }
    }

    fn take(&mut self, word: Word, host: &Host) {
        match word {
            Word::Event(event) => self.correlator.add(*event, host.clock.now()),
            Word::Told(event) => self.correlator.remember(&event),
            // Of sources that have ended: the next ones are newer.
            Word::Readings(_) => {}
        }
    }

    /// The newest readings of the sources themselves, once.
    pub(super) fn take_readings(&mut self) -> Option<Box<Readings>> {
        self.readings.take()
    }

    /// What still waits for a second source: at the end.
    pub(super) fn flush(&mut self) -> Vec<Event> {
        let mut rest = Vec::new();
        self.correlator.flush(&mut rest);
        rest
    }

    /// Adds what is known of events and their reports.
    pub(super) fn collect(&self, out: &mut Batch) {
        self.correlator.collect(self.watch.lost(), out);
    }
}

fn open(host: &Host, settings: &Settings) -> (Kernel, Result<Kmsg, Unavailable>) {
    let data_dir = settings.values.get(&keys::DATA_DIR);
    // Probes first: what happens before the log is opened stands in it, or is told by the probe.
    let mut kernel = Kernel::start(host, &settings.values);
    let kmsg = Kmsg::open(host, &settings.values, Path::new(&data_dir));
    if let Err(why) = &kmsg {
        kernel.do_without_log(&why.reason, &why.remedy);
    }
    (kernel, kmsg)
}

/// Which sources give kills, and which hangs.
fn sources_of_events(probes: &[kernel::Standing], log: bool) -> [correlate::Sources; 2] {
    ["oom_kill", "hung_task"].map(|name| sources_of(name, probes, log))
}

/// Which sources give events of the probe `name`. On the rung `off` there are none: the operator does not want them.
fn sources_of(name: &str, probes: &[kernel::Standing], log: bool) -> correlate::Sources {
    let rung = probes.iter().find(|probe| probe.name == name).map(|probe| probe.rung);
    correlate::Sources { probe: rung.is_some_and(|rung| rung < Rung::Kmsg), log: log && rung != Some(Rung::Off) }
}
