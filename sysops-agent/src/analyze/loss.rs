//! Losses: counters of what the agent should have taken and could not. A finding for each series that ever rose; it is in
//! breach while the counter rises, and for a while after, so that losses in bursts are one alert.

use std::fmt;
use std::time::{Duration, SystemTime};

use crate::model::{Finding, Level, Policy, Readings, Series, SeriesValue, Severity};
use crate::spec::{Key, KeySpec, Values};

use super::{Analyzer, Entry};

/// The analyzer as the list knows it.
pub static ENTRY: Entry = Entry { name: "loss", keys: KEYS, metrics_used, new: |values| Box::new(Losses::new(values)) };

static QUIET: Key<Duration> = Key::secs(
    RULE,
    60,
    0,
    86_400,
    "An alert says when a probe loses events, or the agent loses what a probe or the kernel's log told. It is over when nothing was \
     lost for this long. 0: no such alerts; `sysops-agent doctor` tells what was lost all the same.",
);

/// What every finding of this analyzer names as its rule.
pub const RULE: &str = "thresholds.loss_quiet_secs";

static KEYS: &[&KeySpec] = &[QUIET.spec()];

/// A counter of losses.
struct Counter {
    metric: &'static str,
    /// The one label value of it that means a loss; empty: all do.
    outcome: &'static str,
    /// What was lost, as a sentence begins, for a series with these label values.
    lost: fn(&mut fmt::Formatter<'_>, &[&str], f64) -> fmt::Result,
    /// What to do about it.
    remedy: fn(&[&str]) -> &'static str,
}

static COUNTERS: [Counter; 6] = [
    Counter {
        metric: "kernel_probe_dropped_total",
        outcome: "",
        lost: |f, labels, count| {
            let [probe, reason] = *labels else { return Ok(()) };
            write!(f, "probe {probe} lost {count:.0} events: {reason}")
        },
        remedy: |labels| match labels.last() {
            Some(&"ring_full") => {
                "they came faster than the agent took them, or the agent was stopped: look for what holds it (CPUQuota=, SIGSTOP, \
                 a full machine)"
            }
            Some(&"map_full") => "more was going on at once than the probe has room for: its numbers are too low",
            Some(&"read_fault") => {
                "the kernel's memory could not be read: try another rung (kernel.<probe>.rung), and report it"
            }
            Some(&STALE) => {
                "their beginning or end was not seen, as when other tools attach to the same tracepoints: they are in no number"
            }
            _ => "see docs/KERNEL-EVENTS.md",
        },
    },
    Counter {
        metric: "block_io_details_lost_total",
        outcome: "",
        lost: |f, labels, count| {
            let [detail] = *labels else { return Ok(()) };
            write!(f, "block_io counted {count:.0} requests without a detail of theirs: {detail}")
        },
        remedy: |labels| match labels.last() {
            Some(&"slow_event") => {
                "slow requests came faster than the agent took them, or the agent was stopped: look for what holds it (CPUQuota=, \
                 SIGSTOP, a full machine)"
            }
            Some(&"cgroup") => {
                "more cgroups did I/O than kernel.block_io.cgroups has room for: what they did is under no cgroup"
            }
            _ => "more kinds of errors than there is room for: the sum of errors is right",
        },
    },
    Counter {
        metric: "kernel_event_reports_total",
        outcome: "dropped",
        lost: |f, _, count| write!(f, "the agent's main thread did not take {count:.0} kernel events"),
        remedy: |_| {
            "of OOM kills and of hung tasks that the kernel reported its log tells, of the rest nothing: look for what holds the agent \
             (CPUQuota=, a full machine)"
        },
    },
    Counter {
        metric: "kernel_log_records_lost_total",
        outcome: "",
        lost: |f, _, count| write!(f, "{count:.0} records of the kernel's log were overwritten before they were read"),
        remedy: |_| "make the log larger (log_buf_len= on the kernel's command line), or find what floods it",
    },
    Counter {
        metric: "outbox_lost_total",
        outcome: "",
        lost: |f, labels, count| {
            let [channel, reason] = *labels else { return Ok(()) };
            write!(f, "{count:.0} alerts that waited for {channel} were lost: {reason}")
        },
        remedy: |labels| match labels.last() {
            Some(&"no_room") => {
                "see why the channel takes nothing (sysops-agent outbox), or raise alerting.outbox_max_bytes"
            }
            Some(&"memory_full") => "give agent.data_dir a disk that can be written to: memory holds no more",
            Some(&"queue_full") => "see why standard output is not read",
            _ => "look after the disk of agent.data_dir",
        },
    },
    Counter {
        metric: "outbox_damaged_total",
        outcome: "",
        lost: |f, _, count| {
            write!(f, "{count:.0} records of the outbox were damaged and skipped: each may have been an alert")
        },
        remedy: |_| "look after the disk of agent.data_dir",
    },
];

/// A run that the kernel skipped may have been about anything, most of which is no event, and no one can do anything about it.
const NO_EVENT: &str = "recursion";

/// Requests that are left out of sums of millions: worth knowing, and waking nobody.
const STALE: &str = "stale";

/// Names of the metrics that are watched.
#[must_use]
pub fn metrics_used() -> Vec<&'static str> {
    COUNTERS.iter().map(|counter| counter.metric).collect()
}

/// What was counted, as of the last look.
pub struct Losses {
    quiet: Duration,
    /// There are a few series of these at most; those that never rose are not here.
    known: Vec<Known>,
    policy: Policy,
}

/// A series that rose.
struct Known {
    metric: &'static str,
    key: String,
    /// As of the last look.
    total: f64,
    /// What was lost since the breach began.
    lost: f64,
    /// When it rose last; `None` when that is long enough ago.
    rose: Option<SystemTime>,
}

impl Losses {
    /// Reads how long it must be quiet.
    #[must_use]
    pub fn new(values: &Values) -> Self {
        Self { quiet: values.get(&QUIET), known: Vec::new(), policy: Policy::default() }
    }

    fn see(&mut self, counter: &Counter, series: &Series<'_>, total: f64, now: SystemTime) -> Option<(Level, f64)> {
        let place = self.known.iter().position(|known| known.metric == counter.metric && known.key == series.key);
        let known = match place {
            Some(place) => &mut self.known[place],
            // Counters begin with the agent, so what is there at the first look was lost in its life.
            None if total > 0.0 => {
                let (metric, key) = (counter.metric, series.key.to_owned());
                self.known.push(Known { metric, key, total: 0.0, lost: 0.0, rose: None });
                self.known.last_mut()?
            }
            None => return None,
        };
        // One that fell was begun anew: its probe went to another rung.
        let more = if total >= known.total { total - known.total } else { total };
        known.total = total;
        if more > 0.0 {
            known.lost += more;
            known.rose = Some(now);
        }
        let lost = known.lost;
        let has_been_quiet = known.rose.is_none_or(|rose| {
            // A wall clock that was set back begins the wait anew.
            let since = now.duration_since(rose);
            known.rose = known.rose.min(Some(now));
            since.is_ok_and(|since| since >= self.quiet)
        });
        let is_over = has_been_quiet || self.quiet.is_zero();
        if is_over {
            (known.rose, known.lost) = (None, 0.0);
        }
        // Where it need not be quiet at all there is no alert, and what was lost is told all the same.
        let level = if !is_over {
            Level::Breach
        } else if more > 0.0 {
            Level::Between
        } else {
            Level::Clear
        };
        Some((level, lost))
    }
}

impl Analyzer for Losses {
    fn reload(&mut self, values: &Values) {
        self.quiet = values.get(&QUIET);
    }

    fn judge(&mut self, readings: &dyn Readings, each: &mut dyn FnMut(&Finding<'_>)) {
        let now = readings.time();
        for counter in &COUNTERS {
            readings.visit_metric(counter.metric, &mut |series| {
                let SeriesValue::Number(total) = series.value else { return };
                let has = |outcome: &str| series.labels().any(|(_, value)| value == outcome);
                if !counter.outcome.is_empty() && !has(counter.outcome) || has(NO_EVENT) {
                    return;
                }
                let Some((level, lost)) = self.see(counter, &series, total, now) else { return };
                each(&Finding {
                    rule: RULE,
                    metric: series.metric,
                    key: series.key,
                    level,
                    value: lost,
                    threshold: 0.0,
                    severity: if has(STALE) { Severity::Info } else { Severity::Warn },
                    policy: &self.policy,
                    message: &Sentence { counter, series, lost, total, level },
                });
            });
        }
    }
}

/// `Losing: probe oom_kill lost 12 events: ring_full (20 since it was attached). What to do: …`
struct Sentence<'a> {
    counter: &'a Counter,
    series: Series<'a>,
    lost: f64,
    total: f64,
    level: Level,
}

impl fmt::Display for Sentence<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let labels: Vec<&str> = self.series.labels().map(|(_, value)| value).collect();
        let is_over = self.level == Level::Clear;
        f.write_str(if is_over { "No more losses: " } else { "Losses: " })?;
        (self.counter.lost)(f, &labels, if is_over { self.total } else { self.lost })?;
        if is_over {
            return f.write_str(", in all");
        }
        if self.total > self.lost {
            write!(f, " ({:.0} in all)", self.total)?;
        }
        write!(f, "; {}", (self.counter.remedy)(&labels))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Desc, Metric, Unit};
    use crate::spec::Value;

    static DROPPED: Metric<2> = Metric::counter("kernel_probe_dropped_total", Unit::Count, "", &["probe", "reason"]);
    static REPORTS: Metric<1> = Metric::counter("kernel_event_reports_total", Unit::Count, "", &["outcome"]);

    struct Now(u64, Vec<(&'static Desc, &'static str, f64)>);

    impl Readings for Now {
        fn time(&self) -> SystemTime {
            SystemTime::UNIX_EPOCH + Duration::from_secs(self.0)
        }

        fn visit(&self, each: &mut dyn FnMut(Series<'_>)) {
            for &(metric, key, value) in &self.1 {
                each(Series { metric, key, value: SeriesValue::Number(value) });
            }
        }
    }

    fn look(losses: &mut Losses, second: u64, total: f64) -> Vec<(Level, f64, String)> {
        let now = Now(second, vec![(DROPPED.desc(), "oom_kill\0ring_full\0", total)]);
        let mut found = Vec::new();
        losses.judge(&now, &mut |finding| found.push((finding.level, finding.value, finding.message.to_string())));
        found
    }

    #[test]
    fn what_never_rose_is_not_spoken_of() {
        let mut losses = Losses::new(&Values::default());
        assert_eq!(look(&mut losses, 0, 0.0), []);
        assert_eq!(look(&mut losses, 10, 0.0), []);
    }

    #[test]
    fn it_is_a_breach_while_it_rises_and_over_when_it_was_quiet_for_long_enough() {
        let mut losses = Losses::new(&Values::default());
        let first = look(&mut losses, 10, 12.0);
        assert_eq!((first[0].0, first[0].1), (Level::Breach, 12.0));
        assert!(
            first[0].2.starts_with("Losses: probe oom_kill lost 12 events: ring_full; they came faster than"),
            "{first:?}"
        );
        assert_eq!(look(&mut losses, 20, 20.0)[0].1, 20.0);
        assert_eq!(look(&mut losses, 79, 20.0)[0].0, Level::Breach, "59 s of quiet");
        let over = look(&mut losses, 80, 20.0);
        assert_eq!(
            (over[0].0, over[0].2.as_str()),
            (Level::Clear, "No more losses: probe oom_kill lost 20 events: ring_full, in all")
        );
        assert_eq!(look(&mut losses, 90, 20.0)[0].0, Level::Clear);
        let again = look(&mut losses, 100, 23.0);
        assert_eq!((again[0].0, again[0].1), (Level::Breach, 3.0));
        assert!(again[0].2.contains("lost 3 events: ring_full (23 in all)"), "{again:?}");
    }

    #[test]
    fn a_counter_that_began_anew_tells_what_it_has() {
        let mut losses = Losses::new(&Values::default());
        look(&mut losses, 10, 12.0);
        look(&mut losses, 100, 12.0);
        assert_eq!(look(&mut losses, 110, 0.0)[0].0, Level::Clear);
        let again = look(&mut losses, 120, 2.0);
        assert_eq!((again[0].0, again[0].1), (Level::Breach, 2.0));
    }

    #[test]
    fn what_was_told_is_not_told_again_after_a_reload() {
        let mut losses = Losses::new(&Values::default());
        look(&mut losses, 10, 12.0);
        assert_eq!(look(&mut losses, 100, 12.0)[0].0, Level::Clear);
        let mut values = Values::default();
        values.set(QUIET.spec(), Value::Int(5));
        losses.reload(&values);
        assert_eq!(look(&mut losses, 110, 12.0)[0].0, Level::Clear, "it was told");
        assert_eq!(look(&mut losses, 120, 13.0)[0].1, 1.0);
        assert_eq!(look(&mut losses, 125, 13.0)[0].0, Level::Clear, "the new wait holds");
    }

    #[test]
    fn a_clock_that_is_set_back_ends_nothing_early() {
        let mut losses = Losses::new(&Values::default());
        look(&mut losses, 1000, 1.0);
        assert_eq!(look(&mut losses, 10, 1.0)[0].0, Level::Breach);
        assert_eq!(look(&mut losses, 69, 1.0)[0].0, Level::Breach);
        assert_eq!(look(&mut losses, 70, 1.0)[0].0, Level::Clear);
    }

    #[test]
    fn reports_that_were_joined_are_no_loss() {
        let mut losses = Losses::new(&Values::default());
        let mut found = Vec::new();
        let now = Now(0, vec![(REPORTS.desc(), "joined\0", 7.0), (REPORTS.desc(), "dropped\0", 2.0)]);
        losses.judge(&now, &mut |finding| found.push(finding.message.to_string()));
        assert_eq!(found.len(), 1);
        losses.judge(&Now(1, vec![(DROPPED.desc(), "block_io\0recursion\0", 9.0)]), &mut |_| unreachable!("no event"));
        let mut severities = Vec::new();
        let now = Now(2, vec![(DROPPED.desc(), "block_io\0stale\0", 9.0), (DROPPED.desc(), "fd\0map_full\0", 1.0)]);
        losses.judge(&now, &mut |finding| severities.push(finding.severity));
        assert_eq!(severities, [Severity::Info, Severity::Warn], "a few requests without a time wake nobody");
        assert!(found[0].starts_with("Losses: the agent's main thread did not take 2 kernel events; "), "{found:?}");
    }

    #[test]
    fn alerts_can_be_turned_off_and_what_was_lost_is_told_all_the_same() {
        let mut values = Values::default();
        values.set(QUIET.spec(), Value::Int(0));
        let mut losses = Losses::new(&values);
        let lost = look(&mut losses, 10, 5.0);
        assert_eq!((lost[0].0, lost[0].1), (Level::Between, 5.0), "neither begins an alert nor ends one");
        assert!(lost[0].2.starts_with("Losses: probe oom_kill lost 5 events"), "{lost:?}");
        assert_eq!(look(&mut losses, 9, 6.0)[0].0, Level::Between, "also when the clock is set back");

        let mut losses = Losses::new(&Values::default());
        assert_eq!(look(&mut losses, 10, 5.0)[0].0, Level::Breach);
        losses.reload(&values);
        assert_eq!(look(&mut losses, 20, 5.0)[0].0, Level::Clear, "an alert that fires ends");
    }
}
