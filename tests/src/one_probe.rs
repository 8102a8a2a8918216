//! One probe on the rung that a test asks for, all others off, and its readings.

use std::process::Command;

use sysops_agent::host::{EventSource, Host, os};
use sysops_agent::kernel::{ALL, Kernel, Standing};
use sysops_agent::model::{Batch, Reading};
use sysops_agent::spec::{KeySpec, Value, Values};

/// A probe that runs.
pub struct OneProbe {
    kernel: Kernel,
    name: &'static str,
    batch: Batch,
}

/// The key at `path` of some probe.
///
/// # Panics
/// When there is none.
#[must_use]
pub fn key(path: &str) -> &'static KeySpec {
    ALL.iter().flat_map(|entry| entry.keys).find(|key| key.path == path).expect("a key of a probe")
}

/// The configuration that puts the probe `name` on `rung` and all others off, with more `values`.
#[must_use]
pub fn only(name: &str, rung: &str, mut values: Values) -> Values {
    for entry in ALL {
        let rung = if entry.name == name { rung } else { "off" };
        values.set(key(&format!("kernel.{}.rung", entry.name)), Value::Text(rung.to_owned()));
    }
    values
}

impl OneProbe {
    /// Puts the probe `name` on `rung`, with more `values`.
    #[must_use]
    pub fn start(host: &Host, name: &'static str, rung: &str, values: Values) -> Self {
        Self { kernel: Kernel::start(host, &only(name, rung, values)), name, batch: Batch::default() }
    }

    /// Where it stands.
    ///
    /// # Panics
    /// When the agent does not know it.
    #[must_use]
    pub fn standing(&self) -> Standing {
        self.kernel.standings().into_iter().find(|standing| standing.name == self.name).expect("it is in the list")
    }

    /// Where its events come from.
    pub fn source(&mut self) -> &mut impl EventSource {
        &mut self.kernel
    }

    /// Reads it once, as each cycle does.
    pub fn collect(&mut self, host: &Host) {
        self.batch.clear();
        self.kernel.collect(host, &mut self.batch);
    }

    /// The number of the series that was read last.
    #[must_use]
    pub fn number(&self, metric: &str, labels: &[&str]) -> Option<u64> {
        match self.reading(metric, labels)? {
            Reading::Counter(value) | Reading::Gauge(value) => Some(value as u64),
            _ => None,
        }
    }

    /// The same with what comes behind its point.
    #[must_use]
    pub fn float(&self, metric: &str, labels: &[&str]) -> Option<f64> {
        match self.reading(metric, labels)? {
            Reading::Counter(value) | Reading::Gauge(value) => Some(value),
            _ => None,
        }
    }

    /// Runs of its programs that the kernel passed over, as of the last reading.
    ///
    /// # Panics
    /// When there are some and the kernel is older than 7.0: it lets every program come to an end.
    #[must_use]
    pub fn passed_over(&self) -> u64 {
        let runs = passed_over(&self.batch, self.name);
        let preempts = os::kernel_version().is_some_and(|version| version >= (7, 0));
        assert!(runs == 0 || preempts, "{runs} runs passed over: {:?}", self.standing());
        runs
    }

    /// Counts by bucket and sum of the histogram that was read last.
    #[must_use]
    pub fn histogram(&self, metric: &str, labels: &[&str]) -> Option<(Vec<u64>, f64)> {
        match self.reading(metric, labels)? {
            Reading::Histogram { first, len, sum } => Some((self.batch.buckets(first, len).to_vec(), sum)),
            _ => None,
        }
    }

    fn reading(&self, metric: &str, labels: &[&str]) -> Option<Reading> {
        let key: String = labels.iter().flat_map(|label| [label, "\0"]).collect();
        let mut found = self.batch.iter().filter(|(entry, labels)| entry.metric.name == metric && **labels == *key);
        found.next().map(|(entry, _)| entry.reading)
    }
}

/// Runs of the programs of `probe` that the kernel passed over, as `batch` has them. What found no room was run, and is not among them.
#[must_use]
pub fn passed_over(batch: &Batch, probe: &str) -> u64 {
    let key = format!("{probe}\0recursion\0");
    let mut readings = batch.iter().filter(|(entry, _)| entry.metric.name == "kernel_probe_dropped_total");
    match readings.find(|(_, labels)| **labels == *key).map(|(entry, _)| entry.reading) {
        Some(Reading::Counter(runs)) => runs as u64,
        _ => 0,
    }
}

/// Set in a test that runs inside of a mount namespace with tracefs.
const INSIDE: &str = "SYSOPS_TEST_HAS_TRACEFS";

/// Runs the test `name` of this binary again in a mount namespace of its own in which tracefs is mounted, and gives false;
/// true in there.
///
/// # Panics
/// When the test fails in there.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "a test runs programs")]
pub fn has_tracefs(name: &str) -> bool {
    if std::env::var(INSIDE).is_ok() {
        return true;
    }
    let output = Command::new("unshare")
        .args(["-m", "sh", "-c"])
        .arg("test -d /sys/kernel/tracing/events || mount -t tracefs tracefs /sys/kernel/tracing; exec \"$0\" \"$@\"")
        .arg(std::env::current_exe().expect("a test has a path"))
        .args(["--exact", name, "--nocapture"])
        .env(INSIDE, "1")
        .output()
        .expect("unshare is there");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    eprintln!("{said}");
    false
}
