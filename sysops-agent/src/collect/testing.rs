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

mod tests {
    use std::fs;

    use proptest::prelude::*;
    use proptest::strategy::ValueTree as _;

    use super::super::ALL;
    use super::*;

    /// Files of the recorded machine below `dir`, with their content.
    #[expect(clippy::disallowed_methods, reason = "the test changes what the collectors read")]
    fn files(dir: &Path, below: &Path, found: &mut Vec<(String, Vec<u8>)>) {
        for entry in fs::read_dir(dir).expect("a recorded machine") {
            let path = entry.expect("a recorded machine").path();
            if path.is_dir() {
                files(&path, below, found);
            } else {
                let name = path.strip_prefix(below).expect("it is below").display().to_string();
                found.push((name, fs::read(&path).expect("readable")));
            }
        }
    }

    fn copy(name: &str, of: &str) -> (Machine, Vec<(String, Vec<u8>)>) {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/hosts").join(of);
        let mut found = Vec::new();
        files(&dir, &dir, &mut found);
        let machine = Machine::new(name);
        for (path, content) in &found {
            machine.write(path, content);
        }
        (machine, found)
    }

    #[derive(Clone, Debug)]
    enum Damage {
        Cut(prop::sample::Index),
        Set(prop::sample::Index, u8),
        Insert(prop::sample::Index, Vec<u8>),
        Lose(prop::sample::Index),
        Replace(Vec<u8>),
    }

    fn damage() -> impl Strategy<Value = Damage> {
        let at = any::<prop::sample::Index>;
        prop_oneof![
            at().prop_map(Damage::Cut),
            (at(), any::<u8>()).prop_map(|(at, byte)| Damage::Set(at, byte)),
            (at(), prop::collection::vec(any::<u8>(), 1..40)).prop_map(|(at, bytes)| Damage::Insert(at, bytes)),
            at().prop_map(Damage::Lose),
            prop::collection::vec(any::<u8>(), 0..2000).prop_map(Damage::Replace),
        ]
    }

    impl Damage {
        fn apply(&self, content: &[u8]) -> Vec<u8> {
            let mut content = content.to_vec();
            match self {
                Self::Replace(bytes) => content.clone_from(bytes),
                _ if content.is_empty() => {}
                Self::Cut(at) => content.truncate(at.index(content.len())),
                Self::Set(at, byte) => *at.get_mut(&mut content) = *byte,
                Self::Insert(at, bytes) => {
                    let at = at.index(content.len());
                    content.splice(at..at, bytes.iter().copied());
                }
                Self::Lose(line) => {
                    let lines: Vec<&[u8]> = content.split_inclusive(|&byte| byte == b'\n').collect();
                    let lost = line.index(lines.len());
                    content = [&lines[..lost], &lines[lost + 1..]].concat().concat();
                }
            }
            content
        }
    }

    /// Whatever happens to one file, no collector panics, what it gives is declared and given once, and when the file
    /// is whole again the same collector reads what it read before.
    fn survives(name: &str, of: &str) {
        let (machine, files) = copy(name, of);
        let host = machine.host();
        let mut collectors: Vec<_> = ALL.iter().map(|entry| (*entry, machine.collector(entry))).collect();
        let mut counts = vec![0; collectors.len()];
        let mut read = |is_whole: bool| {
            for ((entry, collector), count) in collectors.iter_mut().zip(&mut counts) {
                let mut batch = Batch::default();
                if collector.collect(&host, &mut batch).is_ok() {
                    declared(&batch, entry);
                }
                if is_whole && *count == 0 {
                    *count = batch.len();
                }
                assert!(!is_whole || batch.len() == *count, "{}: {} after {count}", entry.name, batch.len());
            }
        };
        read(true);
        let mut runner = prop::test_runner::TestRunner::deterministic();
        let case = (any::<prop::sample::Index>(), damage());
        for _ in 0..300 {
            let (which, damage) = case.new_tree(&mut runner).expect("no case is refused").current();
            let (path, content) = which.get(&files);
            println!("{path}: {damage:?}"); // Shown when the test fails.
            machine.write(path, damage.apply(content));
            read(false);
            machine.write(path, content);
        }
        read(true);
    }

    #[test]
    fn damaged_files_of_a_machine_of_today() {
        survives("damaged-today", "debian12-6.18");
    }

    #[test]
    fn damaged_files_of_an_old_machine() {
        survives("damaged-old", "centos7-3.10");
    }
}
