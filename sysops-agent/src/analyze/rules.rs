//! The user's own rules: `[[rule]]`, each a limit on any metric, for the series whose labels match. What becomes of a breach is
//! left to `alert`.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::Serialize;

use super::{Analyzer, Entry};
use crate::model::matcher::is_like;
use crate::model::{Desc, Finding, Level, Policy, Readings, Series, SeriesValue, Severity, shown};
use crate::spec::{Complaint, Key, Table, Values, path_in};
use crate::template::{self, Template};

/// The analyzer as the list knows it. Its metrics are the user's; the catalog checks them with the configuration.
pub static ENTRY: Entry =
    Entry { name: "rules", keys: &[RULES.spec()], metrics_used: Vec::new, new: |values| Box::new(Rules::new(values)) };

/// The rules.
pub static RULES: Key<Vec<Table>> = Key::tables(
    "rule",
    &[
        NAME.spec(),
        METRIC.spec(),
        LABELS.spec(),
        COMPARISON.spec(),
        THRESHOLD.spec(),
        CLEAR.spec(),
        FOR.spec(),
        KEEP.spec(),
        SEVERITY.spec(),
        SUMMARY.spec(),
        RUNBOOK.spec(),
        CHANNELS.spec(),
    ],
    "A rule of your own: an alert for each series of a metric that passes a limit.",
);
/// Its name.
pub static NAME: Key<Option<String>> =
    Key::optional("name", "Its name in alerts; no two rules have the same.").example("\"database_disk\"");
/// What it watches.
pub static METRIC: Key<Option<String>> =
    Key::optional("metric", "The metric, by its name in `sysops-agent metrics`.").example("\"disk_usage_percent\"");
/// Which series.
pub static LABELS: Key<BTreeMap<String, String>> =
    Key::map("labels", "Which series: labels and patterns in which * is any text. Empty: all.")
        .example("{ mountpoint = \"/data*\" }");
static COMPARISON: Key<String> = Key::choice(
    "comparison",
    &[">", ">=", "<", "<=", "==", "!="],
    ">",
    "How a value stands to threshold when it is in breach.",
);
/// The limit.
pub static THRESHOLD: Key<Option<f64>> =
    Key::optional_float("threshold", f64::MIN, f64::MAX, "The limit.").example("95.0");
static CLEAR: Key<Option<f64>> = Key::optional_float(
    "clear",
    f64::MIN,
    f64::MAX,
    "The value that must be passed on the way back before the alert is over. Not set: threshold.",
)
.example("90.0");
static FOR: Key<Duration> = Key::secs("for_secs", 0, 0, 604_800, "How long a breach must last before it is an alert.");
static KEEP: Key<Duration> = Key::secs(
    "keep_firing_for_secs",
    0,
    0,
    604_800,
    "For how long the alert goes on after the value is back, in case it comes again.",
);
static SEVERITY: Key<String> = Key::choice("severity", Severity::NAMES, "warn", "How bad it is.");
/// What people read.
pub static SUMMARY: Key<Option<String>> = Key::optional(
    "summary",
    "What people read, a template: {{ value }}, {{ threshold }}, {{ metric }}, {{ rule }}, {{ labels.NAME }}. Not set: a \
     sentence with all of them.",
)
.example("\"{{ labels.mountpoint }} is {{ value|round(1) }} % full\"");
static RUNBOOK: Key<Option<String>> = Key::optional("runbook_url", "Where it says what to do; part of each alert.")
    .example("\"https://wiki.example.com/disk\"");
/// Where its alerts go.
pub static CHANNELS: Key<Vec<String>> = Key::list(
    "channels",
    &[],
    "Channels that get its alerts, whatever their min_severity. Empty: those that carry the severity.",
);

/// Bytes of a runbook's address.
const URL_BYTES_MAX: usize = 2048;

/// The rules of a configuration.
pub struct Rules {
    rules: Vec<Rule>,
}

struct Rule {
    name: String,
    metric: String,
    labels: BTreeMap<String, String>,
    comparison: Comparison,
    threshold: f64,
    clear: f64,
    severity: Severity,
    summary: Option<Template>,
    policy: Policy,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Comparison {
    Above,
    AtLeast,
    Below,
    AtMost,
    Equal,
    Unequal,
}

/// What a summary may name.
#[derive(Serialize)]
struct Data<'a> {
    value: f64,
    threshold: f64,
    metric: &'a str,
    rule: &'a str,
    labels: BTreeMap<&'a str, &'a str>,
}

impl Rules {
    /// The rules of a configuration that was checked; others are left out.
    #[must_use]
    pub fn new(values: &Values) -> Self {
        Self { rules: values.get(&RULES).iter().filter_map(|table| Rule::new(table).ok()).collect() }
    }
}

impl Analyzer for Rules {
    fn reload(&mut self, values: &Values) {
        *self = Self::new(values);
    }

    fn judge(&mut self, readings: &dyn Readings, each: &mut dyn FnMut(&Finding<'_>)) {
        for rule in &self.rules {
            readings.visit_metric(&rule.metric, &mut |series| {
                let SeriesValue::Number(value) = series.value else { return };
                if !rule.wants(&series) {
                    return;
                }
                each(&Finding {
                    rule: &rule.name,
                    metric: series.metric,
                    key: series.key,
                    level: rule.level(value),
                    value,
                    threshold: rule.threshold,
                    severity: rule.severity,
                    policy: &rule.policy,
                    message: &Sentence { rule, series, value },
                });
            });
        }
    }
}

impl Rule {
    /// Of a table of the configuration.
    ///
    /// # Errors
    /// With the key that is wrong, and what was expected.
    fn new(table: &Table) -> Result<Self, (&'static str, String)> {
        let needed = |key: &'static Key<Option<String>>| {
            let text = table.get(key).filter(|text| !text.is_empty());
            text.ok_or((key.spec().path, "missing, and every rule needs it".to_owned()))
        };
        let (name, metric) = (needed(&NAME)?, needed(&METRIC)?);
        let threshold = table.get(&THRESHOLD).ok_or(("threshold", "missing, and every rule needs it".to_owned()))?;
        let comparison = Comparison::from_name(&table.get(&COMPARISON));
        let clear = table.get(&CLEAR).unwrap_or(threshold);
        if !comparison.lets_go(clear, threshold) {
            return Err(("clear", format!("expected a value on the good side of threshold ({threshold})")));
        }
        let summary = table.get(&SUMMARY).map(|text| Template::new(&text, template::plain)).transpose();
        let summary = summary.map_err(|error| ("summary", error))?;
        let runbook_url = table.get(&RUNBOOK);
        if runbook_url.as_ref().is_some_and(|url| !is_address(url)) {
            return Err(("runbook_url", "expected an address as https://wiki.example.com/page".to_owned()));
        }
        let policy = Policy {
            hold_for: table.get(&FOR),
            keep_firing_for: table.get(&KEEP),
            channels: Some(table.get(&CHANNELS)).filter(|channels| !channels.is_empty()),
            runbook_url,
        };
        let severity = Severity::from_name(&table.get(&SEVERITY)).unwrap_or(Severity::Warn);
        let labels = table.get(&LABELS);
        Ok(Self { name, metric, labels, comparison, threshold, clear, severity, summary, policy })
    }

    fn wants(&self, series: &Series<'_>) -> bool {
        self.labels.iter().all(|(name, pattern)| {
            let value = series.labels().find(|(known, _)| known == name).map(|(_, value)| value);
            is_like(pattern, value.unwrap_or(""))
        })
    }

    fn level(&self, value: f64) -> Level {
        if self.comparison.is_breach(value, self.threshold) {
            Level::Breach
        } else if self.comparison.is_breach(value, self.clear) {
            Level::Between
        } else {
            Level::Clear
        }
    }
}

impl Comparison {
    /// By its sign; `settings` has checked it.
    fn from_name(sign: &str) -> Self {
        match sign {
            ">=" => Self::AtLeast,
            "<" => Self::Below,
            "<=" => Self::AtMost,
            "==" => Self::Equal,
            "!=" => Self::Unequal,
            _ => Self::Above,
        }
    }

    fn is_breach(self, value: f64, limit: f64) -> bool {
        match self {
            Self::Above => value > limit,
            Self::AtLeast => value >= limit,
            Self::Below => value < limit,
            Self::AtMost => value <= limit,
            Self::Equal => value.total_cmp(&limit).is_eq(),
            Self::Unequal => value.total_cmp(&limit).is_ne(),
        }
    }

    /// True when `clear` may be the value at which it lets go.
    fn lets_go(self, clear: f64, threshold: f64) -> bool {
        match self {
            Self::Above | Self::AtLeast => clear <= threshold,
            Self::Below | Self::AtMost => clear >= threshold,
            Self::Equal | Self::Unequal => clear.total_cmp(&threshold).is_eq(),
        }
    }

    fn words(self) -> &'static str {
        match self {
            Self::Above => "above",
            Self::AtLeast => "at or above",
            Self::Below => "below",
            Self::AtMost => "at or below",
            Self::Equal => "equal to",
            Self::Unequal => "other than",
        }
    }
}

/// The summary, or `disk_usage_percent is 97.2, above 95: device /dev/sdb1, mountpoint /data`.
struct Sentence<'a> {
    rule: &'a Rule,
    series: Series<'a>,
    value: f64,
}

impl fmt::Display for Sentence<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rule, series, value } = self;
        if let Some(template) = &rule.summary {
            let labels = series.labels().collect();
            let data =
                Data { value: *value, threshold: rule.threshold, metric: &rule.metric, rule: &rule.name, labels };
            // A summary that fails is said by the check of the configuration; what it was for is told all the same.
            if let Ok(text) = template.render(&data) {
                return f.write_str(&text);
            }
        }
        let is_back = if rule.level(*value) == Level::Clear { "not " } else { "" };
        write!(f, "{} is {value:.3}, {is_back}{} {}", rule.metric, rule.comparison.words(), rule.threshold)?;
        for (i, (name, label)) in series.labels().enumerate() {
            write!(f, "{}{name} {}", if i == 0 { ": " } else { ", " }, shown(label, 256))?;
        }
        Ok(())
    }
}

fn is_address(url: &str) -> bool {
    let rest = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"));
    url.len() <= URL_BYTES_MAX
        && rest.is_some_and(|rest| !rest.is_empty())
        && !url.chars().any(|c| c.is_whitespace() || c.is_control() || matches!(c, '<' | '>' | '"'))
}

/// What is wrong with the rules of a configuration. `metrics` and `channels` are those that exist.
#[must_use]
pub fn check(values: &Values, metrics: &[&Desc], channels: &[&str]) -> Vec<Complaint> {
    let keys = ENTRY.keys.iter().find_map(|key| match key.shape {
        crate::spec::Shape::TableList(keys) => Some(keys),
        _ => None,
    });
    let mut complaints = Vec::new();
    let mut names = BTreeMap::new();
    for (index, table) in values.get(&RULES).iter().enumerate() {
        let mut complain = |name: &str, message: String| {
            let key = keys.into_iter().flatten().find(|key| key.path == name);
            complaints.push(Complaint { path: path_in(RULES.spec(), index, key.unwrap_or(&NAME.spec())), message });
        };
        let rule = match Rule::new(table) {
            Ok(rule) => rule,
            Err((key, message)) => {
                complain(key, message);
                continue;
            }
        };
        if let Some(first) = names.insert(rule.name.clone(), index) {
            complain("name", format!("rule {} has this name, too: alerts could not be told apart", first + 1));
        }
        let Some(metric) = metrics.iter().find(|metric| metric.name == rule.metric) else {
            let near =
                metrics.iter().map(|metric| (strsim::osa_distance(metric.name, &rule.metric), metric.name)).min();
            let near = near.filter(|(distance, _)| *distance <= 4).map(|(_, name)| format!("did you mean {name}? "));
            let near = near.unwrap_or_default();
            complain(
                "metric",
                format!("there is no metric {:?}: {near}`sysops-agent metrics` lists them", rule.metric),
            );
            continue;
        };
        for label in rule.labels.keys().filter(|label| !metric.labels.contains(&label.as_str())) {
            complain("labels", format!("{} has no label {label:?}, but {}", metric.name, words(metric.labels)));
        }
        for channel in rule.policy.channels.iter().flatten().filter(|one| !channels.contains(&one.as_str())) {
            complain("channels", format!("there is no channel {channel:?}, but {}", words(channels)));
        }
        if let Some(error) = rule.summary.as_ref().and_then(|summary| unusable(summary, &rule, metric)) {
            complain("summary", error);
        }
    }
    complaints
}

/// What is wrong with a summary, tried with every label that the metric has.
fn unusable(summary: &Template, rule: &Rule, metric: &Desc) -> Option<String> {
    let labels = metric.labels.iter().map(|label| (*label, "x")).collect();
    let data = Data { value: 1.5, threshold: rule.threshold, metric: metric.name, rule: &rule.name, labels };
    summary.render(&data).err()
}

fn words(names: &[&str]) -> String {
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::model::{Metric, Unit};
    use crate::spec::Value;

    static DISK: Metric<2> = Metric::gauge("disk_usage_percent", Unit::Percent, "", &["device", "mountpoint"]);

    fn text(text: &str) -> Value {
        Value::Text(text.to_owned())
    }

    fn values(pairs: &[(&str, Value)]) -> Values {
        let named = [("name", text("db")), ("metric", text("disk_usage_percent")), ("threshold", Value::Float(95.0))];
        let table = named.iter().chain(pairs).map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
        let mut values = Values::default();
        values.set(RULES.spec(), Value::TableList(vec![table]));
        values
    }

    struct One(f64, &'static str);

    impl Readings for One {
        fn time(&self) -> SystemTime {
            SystemTime::UNIX_EPOCH
        }

        fn visit(&self, each: &mut dyn FnMut(Series<'_>)) {
            each(Series { metric: DISK.desc(), key: self.1, value: SeriesValue::Number(self.0) });
        }
    }

    fn judged(values: &Values, value: f64, key: &'static str) -> Option<(Level, String)> {
        let mut found = None;
        Rules::new(values).judge(&One(value, key), &mut |finding| {
            found = Some((finding.level, finding.message.to_string()));
        });
        found
    }

    #[test]
    fn a_rule_watches_the_series_whose_labels_match() {
        let labels = Value::TextMap(BTreeMap::from([("mountpoint".to_owned(), "/data*".to_owned())]));
        let values = values(&[("labels", labels), ("clear", Value::Float(90.0))]);
        assert_eq!(judged(&values, 99.0, "sda\0/\0"), None);
        let (level, message) = judged(&values, 97.25, "sdb\0/data/1\0").expect("it is watched");
        assert_eq!(level, Level::Breach);
        assert_eq!(message, "disk_usage_percent is 97.250, above 95: device sdb, mountpoint /data/1");
        assert_eq!(judged(&values, 92.0, "sdb\0/data\0").map(|found| found.0), Some(Level::Between));
        assert_eq!(judged(&values, 90.0, "sdb\0/data\0").map(|found| found.0), Some(Level::Clear));
    }

    #[test]
    fn comparisons_are_what_they_say() {
        for (sign, value, breach) in [
            (">", 95.0, false),
            (">=", 95.0, true),
            ("<", 95.0, false),
            ("<=", 95.0, true),
            ("==", 95.0, true),
            ("!=", 94.0, true),
        ] {
            let found = judged(&values(&[("comparison", text(sign))]), value, "a\0b\0").expect("it is watched");
            assert_eq!(found.0 == Level::Breach, breach, "{sign}");
        }
    }

    #[test]
    fn a_summary_has_the_values_and_text_from_outside_is_no_template() {
        let values = values(&[("summary", text("{{ labels.mountpoint }}: {{ value }} > {{ threshold }}"))]);
        let (_, message) = judged(&values, 97.25, "sdb\0{{ value }}\0").expect("it is watched");
        assert_eq!(message, "{{ value }}: 97.25 > 95.0");
    }

    #[test]
    fn what_cannot_work_is_said_with_its_place() {
        let complaint = |pairs: &[(&str, Value)]| {
            let found = check(&values(pairs), &[DISK.desc()], &["slack"]);
            found.into_iter().map(|one| format!("{}: {}", one.path, one.message)).collect::<Vec<_>>()
        };
        assert_eq!(complaint(&[]), Vec::<String>::new());
        assert_eq!(
            complaint(&[("metric", text("disk_usage_precent"))]),
            ["rule[0].metric: there is no metric \"disk_usage_precent\": did you mean disk_usage_percent? \
                 `sysops-agent metrics` lists them"]
        );
        assert_eq!(complaint(&[("name", text(""))]), ["rule[0].name: missing, and every rule needs it"]);
        assert_eq!(
            complaint(&[("clear", Value::Float(96.0))]),
            ["rule[0].clear: expected a value on the good side of threshold (95)"]
        );
        assert!(complaint(&[("summary", text("{{ labels.nobody }}"))])[0].starts_with("rule[0].summary: line 1: "));
        assert!(complaint(&[("runbook_url", text("javascript:x"))])[0].starts_with("rule[0].runbook_url: "));
        let channels = Value::TextList(vec!["slak".to_owned()]);
        assert_eq!(complaint(&[("channels", channels)]), ["rule[0].channels: there is no channel \"slak\", but slack"]);
        let labels = Value::TextMap(BTreeMap::from([("mount".to_owned(), "/".to_owned())]));
        assert_eq!(
            complaint(&[("labels", labels)]),
            ["rule[0].labels: disk_usage_percent has no label \"mount\", but device, mountpoint"]
        );
    }
}
