//! Keeps what was lost in a file, so that `doctor`, which is a process of its own, can tell it of the agent that runs. The file
//! is there only once something was lost. What is a loss is decided in `analyze::loss`.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::analyze::loss;
use crate::host::{Host, ReadError};
use crate::model::{Finding, Level, Tick, time};
use crate::settings::{Settings, keys};

/// What an agent lost in its life.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lost {
    /// The agent's process id.
    pub pid: u32,
    /// One entry for each thing that can be lost and was.
    pub losses: Vec<Loss>,
}

/// One thing that was lost.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Loss {
    /// When last, RFC 3339.
    pub time: String,
    /// What, how much, and what to do about it.
    pub message: String,
}

/// What the agent that runs, or ran last, lost; `None` when nothing was.
///
/// # Errors
/// When its file cannot be read.
pub fn read(host: &Host, settings: &Settings) -> Result<Option<Lost>, String> {
    let path = path(settings);
    match host.files.read(&path) {
        Ok(text) => serde_json::from_slice(&text)
            .map(Some)
            .map_err(|error| format!("{}: expected what the agent lost: {error}", path.display())),
        Err(error) if error.is_absent() => Ok(None),
        Err(error) => Err(format!("{error}: {}", error.source)),
    }
}

fn path(settings: &Settings) -> PathBuf {
    Path::new(&settings.values.get(&keys::DATA_DIR)).join("losses.json")
}

/// The file of this agent.
pub(super) struct Losses {
    path: PathBuf,
    lost: Lost,
    /// Series, with how much of it was lost at the last look: one for each of `lost.losses`.
    known: Vec<(u64, f64)>,
    has_changed: bool,
    failed: bool,
}

impl Losses {
    /// Nothing was lost yet: what an agent before lost is of no interest any more.
    pub(super) fn new(settings: &Settings) -> Self {
        let path = path(settings);
        // Mostly there is none; one that cannot be removed cannot be written either, and that is said then.
        let _ = std::fs::remove_file(&path);
        let lost = Lost { pid: std::process::id(), losses: Vec::new() };
        Self { path, lost, known: Vec::new(), has_changed: false, failed: false }
    }

    /// Takes a finding, if it is about a loss.
    pub(super) fn finding(&mut self, finding: &Finding<'_>, now: &Tick) {
        if finding.rule != loss::RULE || finding.level != Level::Breach {
            return;
        }
        let series = crate::alert::fingerprint(finding.rule, finding.metric.name, finding.labels());
        let place = self.known.iter().position(|(known, _)| *known == series);
        if place.is_some_and(|place| self.known[place].1.total_cmp(&finding.value).is_eq()) {
            return;
        }
        let loss = Loss { time: time::rfc3339_secs(now.wall), message: finding.message.to_string() };
        if let Some(place) = place {
            self.known[place].1 = finding.value;
            self.lost.losses[place] = loss;
        } else {
            self.known.push((series, finding.value));
            self.lost.losses.push(loss);
        }
        self.has_changed = true;
    }

    /// Writes the file if there is news. A failure is told once, until a write succeeds again.
    pub(super) fn save(&mut self) {
        if !std::mem::take(&mut self.has_changed) {
            return;
        }
        match replace(&self.path, &self.lost) {
            Ok(()) => self.failed = false,
            Err(error) => {
                if !self.failed {
                    tracing::warn!("{error}: {}: doctor will not tell what was lost", error.source);
                }
                (self.failed, self.has_changed) = (true, true);
            }
        }
    }
}

/// Puts a whole file in the place of `path`.
fn replace(path: &Path, lost: &Lost) -> Result<(), ReadError> {
    let new = path.with_extension("json.new");
    let written = serde_json::to_vec(lost).map_err(std::io::Error::from).and_then(|text| {
        std::fs::write(&new, text)?;
        std::fs::rename(&new, path)
    });
    written.map_err(|source| ReadError { path: path.to_owned(), what: "cannot write", source })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::model::{Metric, Policy, Severity, Unit};
    use crate::spec::Value;

    static DROPPED: Metric<2> = Metric::counter("kernel_probe_dropped_total", Unit::Count, "", &["probe", "reason"]);

    static POLICY: Policy =
        Policy { hold_for: Duration::ZERO, keep_firing_for: Duration::ZERO, channels: None, runbook_url: None };

    fn finding<'a>(key: &'a str, value: f64, message: &'a dyn std::fmt::Display) -> Finding<'a> {
        Finding {
            rule: loss::RULE,
            metric: DROPPED.desc(),
            key,
            level: Level::Breach,
            value,
            threshold: 0.0,
            severity: Severity::Warn,
            policy: &POLICY,
            message,
        }
    }

    #[test]
    fn what_was_lost_last_is_read_back_and_a_new_agent_begins_with_nothing() {
        let dir = tempfile::tempdir().expect("a directory");
        let host = Host::fixture(dir.path());
        let mut settings = Settings::default();
        settings.values.set(keys::DATA_DIR.spec(), Value::Text(dir.path().display().to_string()));
        let mut losses = Losses::new(&settings);
        losses.save();
        assert_eq!(read(&host, &settings), Ok(None), "no file while nothing is lost");
        let now = host.clock.now();
        losses.finding(&finding("oom_kill\0ring_full\0", 1.0, &"one"), &now);
        losses.finding(&finding("oom_kill\0ring_full\0", 2.0, &"two"), &now);
        losses.finding(&finding("block_io\0map_full\0", 5.0, &"five"), &now);
        losses.finding(&Finding { level: Level::Clear, ..finding("block_io\0map_full\0", 0.0, &"over") }, &now);
        losses.finding(&Finding { rule: "thresholds.disk_percent", ..finding("fd\0x\0", 9.0, &"not a loss") }, &now);
        losses.save();
        let lost = read(&host, &settings).expect("it can be read").expect("something was lost");
        let said: Vec<_> = lost.losses.iter().map(|loss| loss.message.as_str()).collect();
        assert_eq!((lost.pid, said), (std::process::id(), vec!["two", "five"]));
        std::fs::write(dir.path().join("losses.json"), "{").expect("our own");
        assert!(read(&host, &settings).is_err_and(|error| error.contains("losses.json: expected what")));
        drop(Losses::new(&settings));
        assert_eq!(read(&host, &settings), Ok(None));
    }
}
