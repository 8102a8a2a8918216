//! A recorded machine that a test writes file by file, and a look at what a collector read from it.

use std::path::{Path, PathBuf};

use super::{CollectError, Collector, Entry, Outcome};
use crate::host::Host;
use crate::model::{Batch, Reading, batch::label_values};
use crate::spec::Values;

/// A directory with `proc` and `sys` that goes when it is dropped.
pub(crate) struct Machine {
    dir: PathBuf,
    pub(crate) values: Values,
}

impl Machine {
    /// An empty machine. `name` is the test's own.
    pub(crate) fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("sysops-machine-{}-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(&dir).expect("the temporary directory is writable");
        Self { dir, values: Values::default() }
    }

    /// Writes a file below the machine's root.
    pub(crate) fn file(self, path: &str, content: impl AsRef<[u8]>) -> Self {
        self.write(path, content);
        self
    }

    /// Writes a file below the machine's root, in between two readings.
    pub(crate) fn write(&self, path: &str, content: impl AsRef<[u8]>) {
        let path = self.dir.join(path);
        std::fs::create_dir_all(path.parent().expect("it is below the root")).expect("writable");
        std::fs::write(path, content).expect("writable");
    }

    pub(crate) fn host(&self) -> Host {
        Host::fixture(&self.dir)
    }

    /// A collector on this machine.
    pub(crate) fn collector(&self, entry: &Entry) -> Box<dyn Collector> {
        (entry.new)(&self.host(), &self.values)
    }

    /// One reading of a new collector.
    pub(crate) fn collect(&self, entry: &Entry) -> Result<(Outcome, Batch), CollectError> {
        let mut batch = Batch::default();
        let outcome = self.collector(entry).collect(&self.host(), &mut batch)?;
        Ok((outcome, batch))
    }

    /// One reading that must give data.
    pub(crate) fn data(&self, entry: &Entry) -> Batch {
        let (outcome, batch) = self.collect(entry).expect("it can be read");
        assert_eq!(outcome, Outcome::Data);
        batch
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// A machine recorded under tests/fixtures/hosts.
pub(crate) fn recorded(name: &str) -> Host {
    Host::fixture(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/hosts").join(name))
}

/// One reading of a recorded machine.
pub(crate) fn read(host: &Host, entry: &Entry) -> Result<(Outcome, Batch), CollectError> {
    let mut batch = Batch::default();
    let outcome = (entry.new)(host, &Values::default()).collect(host, &mut batch)?;
    Ok((outcome, batch))
}

/// The reading of one series.
pub(crate) fn reading(batch: &Batch, name: &str, labels: &[&str]) -> Option<Reading> {
    let mut found =
        batch.iter().filter(|(entry, key)| entry.metric.name == name && label_values(key).eq(labels.iter().copied()));
    let reading = found.next().map(|(entry, _)| entry.reading);
    assert!(found.next().is_none(), "{name} {labels:?} was read twice");
    reading
}

/// The value of a series that is one number (for a rate, the rising total).
pub(crate) fn value(batch: &Batch, name: &str, labels: &[&str]) -> Option<f64> {
    reading(batch, name, labels).map(|reading| match reading {
        Reading::Gauge(value) | Reading::Counter(value) | Reading::PerSecond(value) => value,
        other => panic!("{name} is {other:?}"),
    })
}

/// Part and whole of a series that is a percentage or a ratio.
pub(crate) fn parts(batch: &Batch, name: &str, labels: &[&str]) -> Option<(f64, f64)> {
    reading(batch, name, labels).map(|reading| match reading {
        Reading::Percent { part, whole } | Reading::Ratio { part, whole } => (part, whole),
        other => panic!("{name} is {other:?}"),
    })
}

/// Every series that was read is declared by the collector, and read once.
pub(crate) fn declared(batch: &Batch, entry: &Entry) {
    let mut seen = std::collections::BTreeSet::new();
    for (read, key) in batch.iter() {
        assert!(entry.metrics.iter().any(|desc| std::ptr::eq(*desc, read.metric)), "{}", read.metric.name);
        assert_eq!(label_values(key).count(), read.metric.labels.len(), "{}", read.metric.name);
        assert!(seen.insert((read.metric.name, key.to_owned())), "{} {key:?} twice", read.metric.name);
    }
}
