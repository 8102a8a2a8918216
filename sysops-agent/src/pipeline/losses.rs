//! What was lost in the life of this agent, for `doctor`. What is a loss is decided in `analyze::loss`.

use crate::analyze::loss;
use crate::model::report::{Loss, Lost};
use crate::model::{Finding, Level, Tick, time};

/// What was lost.
#[derive(Default)]
pub(super) struct Losses {
    /// Series, with how much of it was lost at the last look, and what is told of it.
    known: Vec<(u64, f64, Loss)>,
}

impl Losses {
    /// Takes a finding, if it is about a loss.
    pub(super) fn finding(&mut self, finding: &Finding<'_>, now: &Tick) {
        if finding.rule != loss::RULE || finding.level == Level::Clear {
            return;
        }
        let series = crate::alert::fingerprint(finding.rule, finding.metric.name, finding.labels());
        let place = self.known.iter().position(|(known, ..)| *known == series);
        if place.is_some_and(|place| self.known[place].1.total_cmp(&finding.value).is_eq()) {
            return;
        }
        let loss = Loss { time: time::rfc3339_secs(now.wall), message: finding.message.to_string() };
        let known = (series, finding.value, loss);
        match place {
            Some(place) => self.known[place] = known,
            None => self.known.push(known),
        }
    }

    /// All of it; `None` when nothing was lost.
    pub(super) fn all(&self) -> Option<Lost> {
        let losses: Vec<Loss> = self.known.iter().map(|(.., loss)| loss.clone()).collect();
        (!losses.is_empty()).then(|| Lost { pid: std::process::id(), losses })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::model::{Metric, Policy, Severity, Unit};

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
    fn what_was_lost_last_is_told_of_each() {
        let mut losses = Losses::default();
        assert_eq!(losses.all(), None);
        let now = Tick { wall: std::time::SystemTime::UNIX_EPOCH, monotonic: Duration::ZERO, boottime: Duration::ZERO };
        losses.finding(&finding("oom_kill\0ring_full\0", 1.0, &"one"), &now);
        losses.finding(&finding("oom_kill\0ring_full\0", 2.0, &"two"), &now);
        losses.finding(&finding("block_io\0map_full\0", 5.0, &"five"), &now);
        losses.finding(&Finding { level: Level::Clear, ..finding("block_io\0map_full\0", 0.0, &"over") }, &now);
        losses.finding(&Finding { rule: "thresholds.disk_percent", ..finding("fd\0x\0", 9.0, &"not a loss") }, &now);
        let lost = losses.all().expect("something was lost");
        let said: Vec<_> = lost.losses.iter().map(|loss| loss.message.as_str()).collect();
        assert_eq!((lost.pid, said), (std::process::id(), vec!["two", "five"]));
    }
}
