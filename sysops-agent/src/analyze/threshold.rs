//! Fixed limits: the keys of `[thresholds]`, each a row in [`RULES`]. How long a breach must last, and what has
//! been told to whom, is left to `alert`.

use std::fmt;
use std::time::Duration;

use crate::model::{Finding, Level, Policy, Readings, Series, SeriesValue, Severity, shown};
use crate::spec::{Key, KeySpec, Values};

use super::{Analyzer, Entry};

/// The analyzer as the list knows it.
pub static ENTRY: Entry =
    Entry { name: "threshold", keys: KEYS, metrics_used, new: |values| Box::new(Threshold::new(values)) };

/// One rule: a key that sets a limit, and a metric that must stay below it.
struct Rule {
    limit: &'static Key<f64>,
    metric: &'static str,
    /// What the metric is called in a sentence.
    subject: &'static str,
    scale: Scale,
}

/// What the numbers of a rule mean.
#[derive(Clone, Copy)]
enum Scale {
    /// 0 to 100: critical when two thirds of the way from the limit to 100 are used up.
    Percent,
    /// A number without a natural end: critical at twice the limit.
    Number,
}

static RULES: [Rule; 9] = [
    Rule { limit: &CPU, metric: "cpu_usage_percent", subject: "CPU usage", scale: Scale::Percent },
    Rule { limit: &SOCKET, metric: "cpu_socket_usage_percent", subject: "CPU socket usage", scale: Scale::Percent },
    Rule { limit: &MEMORY, metric: "memory_used_percent", subject: "Memory usage", scale: Scale::Percent },
    Rule { limit: &DISK, metric: "disk_usage_percent", subject: "Disk usage", scale: Scale::Percent },
    Rule { limit: &INODE, metric: "disk_inode_usage_percent", subject: "Inode usage", scale: Scale::Percent },
    Rule { limit: &FD, metric: "fd_used_percent", subject: "Use of the system's file handles", scale: Scale::Percent },
    Rule { limit: &FD, metric: "process_fd_used_percent", subject: "File descriptor usage", scale: Scale::Percent },
    Rule { limit: &LOAD, metric: "load_per_cpu", subject: "Load per CPU", scale: Scale::Number },
    Rule { limit: &NETWORK, metric: "network_error_ratio", subject: "Network error ratio", scale: Scale::Number },
];

static CPU: Key<f64> = Key::float(
    "thresholds.cpu_percent",
    90.0,
    0.0,
    100.0,
    "Limit for the usage of all CPUs together, in percent. 0: off.",
);
static SOCKET: Key<f64> = Key::float(
    "thresholds.cpu_per_socket_percent",
    95.0,
    0.0,
    100.0,
    "Limit for the usage of the CPUs of one socket, in percent. 0: off.",
);
static MEMORY: Key<f64> = Key::float(
    "thresholds.memory_percent",
    85.0,
    0.0,
    100.0,
    "Limit for memory that is not available, in percent. 0: off.",
);
static DISK: Key<f64> = Key::float(
    "thresholds.disk_percent",
    90.0,
    0.0,
    100.0,
    "Limit for the usage of a file system, in percent. 0: off.",
);
static INODE: Key<f64> = Key::float(
    "thresholds.disk_inode_percent",
    85.0,
    0.0,
    100.0,
    "Limit for the usage of a file system's inodes, in percent. 0: off.",
);
static FD: Key<f64> = Key::float(
    "thresholds.fd_percent",
    80.0,
    0.0,
    100.0,
    "Limit for file handles of the system, and for file descriptors of a process, in percent of what may be open. 0: off.",
);
static LOAD: Key<f64> = Key::float(
    "thresholds.load_avg_multiplier",
    2.0,
    0.0,
    10_000.0,
    "Limit for the 1-minute load average, as a multiple of the number of online CPUs. 0: off.",
);
static NETWORK: Key<f64> = Key::float(
    "thresholds.network_error_rate",
    0.01,
    0.0,
    1.0,
    "Limit for packets with errors as a part of all packets of a network interface, 0 to 1. 0: off.",
);
static HOLD: Key<Duration> = Key::secs(
    "thresholds.hold_secs",
    30,
    0,
    86_400,
    "How long a value must stay at or past its limit before it is an alert.",
);
static HYSTERESIS: Key<f64> = Key::float(
    "thresholds.hysteresis_percent",
    5.0,
    0.0,
    100.0,
    "How far below its limit a value must fall before its alert is over, in percent of the limit: \
     with 5, an alert at 90 ends below 85.5.",
);

static KEYS: &[&KeySpec] = &[
    CPU.spec(),
    SOCKET.spec(),
    MEMORY.spec(),
    DISK.spec(),
    INODE.spec(),
    FD.spec(),
    LOAD.spec(),
    NETWORK.spec(),
    HOLD.spec(),
    HYSTERESIS.spec(),
];

/// Names of the metrics that have a limit.
#[must_use]
pub fn metrics_used() -> Vec<&'static str> {
    RULES.iter().map(|rule| rule.metric).collect()
}

/// The rules with the limits of a configuration.
pub struct Threshold {
    limits: [Limit; RULES.len()],
    policy: Policy,
}

/// A rule's numbers, ready to compare with.
#[derive(Clone, Copy)]
struct Limit {
    rule: &'static Rule,
    warn: f64,
    critical: f64,
    lets_go_below: f64,
}

impl Threshold {
    /// Reads the limits.
    #[must_use]
    pub fn new(values: &Values) -> Self {
        let keep = 1.0 - values.get(&HYSTERESIS) / 100.0;
        let limits = RULES.each_ref().map(|rule| {
            let warn = values.get(rule.limit);
            let critical = match rule.scale {
                Scale::Percent => warn + (100.0 - warn) * 2.0 / 3.0,
                Scale::Number => warn * 2.0,
            };
            Limit { rule, warn, critical, lets_go_below: warn * keep }
        });
        Self { limits, policy: Policy { hold_for: values.get(&HOLD), ..Policy::default() } }
    }
}

impl Analyzer for Threshold {
    fn reload(&mut self, values: &Values) {
        *self = Self::new(values);
    }

    fn judge(&mut self, readings: &dyn Readings, each: &mut dyn FnMut(&Finding<'_>)) {
        for limit in self.limits.iter().filter(|limit| limit.warn > 0.0) {
            readings.visit_metric(limit.rule.metric, &mut |series| {
                if let SeriesValue::Number(value) = series.value {
                    each(&limit.finding(&series, value, &self.policy, &limit.sentence(&series, value)));
                }
            });
        }
    }
}

impl Limit {
    fn finding<'a>(
        &self,
        series: &Series<'a>,
        value: f64,
        policy: &'a Policy,
        message: &'a dyn fmt::Display,
    ) -> Finding<'a> {
        Finding {
            rule: self.rule.limit.spec().path,
            metric: series.metric,
            key: series.key,
            level: self.level(value),
            value,
            threshold: self.warn,
            severity: if value >= self.critical { Severity::Critical } else { Severity::Warn },
            policy,
            message,
        }
    }

    fn level(&self, value: f64) -> Level {
        if value >= self.warn {
            Level::Breach
        } else if value >= self.lets_go_below {
            Level::Between
        } else {
            Level::Clear
        }
    }

    fn sentence<'a>(&self, series: &Series<'a>, value: f64) -> Sentence<'a> {
        Sentence { limit: *self, series: *series, value }
    }
}

/// `Disk usage is 93.4 % (threshold 90 %): device /dev/sdb1, mountpoint /data, fstype ext4`.
struct Sentence<'a> {
    limit: Limit,
    series: Series<'a>,
    value: f64,
}

impl fmt::Display for Sentence<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { limit, value, series } = self;
        let back = if limit.level(*value) == Level::Clear { "is back at" } else { "is" };
        let subject = limit.rule.subject;
        match limit.rule.scale {
            Scale::Percent => write!(f, "{subject} {back} {value:.1} % (threshold {} %)", limit.warn)?,
            Scale::Number => write!(f, "{subject} {back} {value:.3} (threshold {})", limit.warn)?,
        }
        for (i, (name, label)) in series.labels().enumerate() {
            write!(f, "{} {name} {}", if i == 0 { ":" } else { "," }, shown(label, 256))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::model::{Desc, Metric, Unit};
    use crate::spec::Value;

    static DISK_USAGE: Metric<3> =
        Metric::gauge("disk_usage_percent", Unit::Percent, "", &["device", "mountpoint", "fstype"]);
    static LOAD_PER_CPU: Metric<0> = Metric::gauge("load_per_cpu", Unit::Count, "", &[]);
    static OTHER: Metric<0> = Metric::gauge("disk_usage", Unit::Percent, "", &[]);

    struct Now(Vec<(&'static Desc, &'static str, f64)>);

    impl Readings for Now {
        fn time(&self) -> SystemTime {
            SystemTime::UNIX_EPOCH
        }

        fn visit(&self, each: &mut dyn FnMut(Series<'_>)) {
            for &(metric, key, value) in &self.0 {
                each(Series { metric, key, value: SeriesValue::Number(value) });
            }
        }
    }

    fn judge(values: &Values, now: Vec<(&'static Desc, &'static str, f64)>) -> Vec<(Level, Severity, String)> {
        let mut found = Vec::new();
        Threshold::new(values).judge(&Now(now), &mut |finding| {
            found.push((finding.level, finding.severity, finding.message.to_string()));
        });
        found
    }

    #[test]
    fn every_rule_names_a_metric_of_the_seed() {
        let known = [
            "cpu_usage_percent",
            "cpu_socket_usage_percent",
            "memory_used_percent",
            "disk_usage_percent",
            "disk_inode_usage_percent",
            "fd_used_percent",
            "process_fd_used_percent",
            "load_per_cpu",
            "network_error_ratio",
        ];
        assert_eq!(metrics_used(), known);
        assert!(RULES.iter().all(|rule| KEYS.contains(&rule.limit.spec())), "a limit that no one can set");
    }

    #[test]
    fn levels_have_a_gap_between_limit_and_letting_go() {
        let disk = |value| (DISK_USAGE.desc(), "/dev/sda1\0/\0ext4\0", value);
        let found = judge(&Values::default(), vec![disk(90.0), disk(89.9), disk(85.5), disk(85.4), disk(97.0)]);
        let levels: Vec<_> = found.iter().map(|(level, severity, _)| (*level, *severity)).collect();
        assert_eq!(
            levels,
            [
                (Level::Breach, Severity::Warn),
                (Level::Between, Severity::Warn),
                (Level::Between, Severity::Warn),
                (Level::Clear, Severity::Warn),
                (Level::Breach, Severity::Critical),
            ]
        );
    }

    #[test]
    fn messages_carry_value_limit_and_labels_and_stay_on_one_line() {
        let found = judge(
            &Values::default(),
            vec![
                (DISK_USAGE.desc(), "/dev/sda1\0/a\nb\0ext4\0", 93.44),
                (LOAD_PER_CPU.desc(), "", 0.5),
                (LOAD_PER_CPU.desc(), "", 4.0),
            ],
        );
        assert_eq!(
            found[0].2,
            r"Disk usage is 93.4 % (threshold 90 %): device /dev/sda1, mountpoint /a\nb, fstype ext4"
        );
        assert_eq!(found[1].2, "Load per CPU is back at 0.500 (threshold 2)");
        assert_eq!((found[2].0, found[2].1), (Level::Breach, Severity::Critical));
    }

    #[test]
    fn limits_come_from_the_configuration_and_other_metrics_are_left_alone() {
        let mut values = Values::default();
        values.set(DISK.spec(), Value::Float(50.0));
        values.set(HYSTERESIS.spec(), Value::Float(0.0));
        let found = judge(&values, vec![(OTHER.desc(), "", 99.0), (DISK_USAGE.desc(), "a\0b\0c\0", 49.9)]);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].0, Level::Clear);
    }
}
