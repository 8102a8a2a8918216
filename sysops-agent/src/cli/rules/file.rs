//! What stands in a file of tests: its keys, and their values put together. It is read as a configuration is, so that a
//! mistake is shown with its place.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use super::expected::Expected;
use super::samples;
use crate::catalog;
use crate::model::{Desc, Kind, Severity, Standing};
use crate::settings::{self, Declared, Problems, Settings};
use crate::spec::{Complaint, Key, Table, Values};

static RULES: Key<Option<String>> =
    Key::optional("rules", "Configuration with the rules, as seen from the test's file. Its other keys count too.");
static THRESHOLDS: Key<bool> = Key::switch("thresholds", false, "Whether [thresholds] and losses are judged as well.");
static TESTS: Key<Vec<Table>> =
    Key::tables("test", &[NAME.spec(), INTERVAL.spec(), SERIES.spec(), EXPECT.spec()], "The tests.");

static NAME: Key<String> = Key::text("name", "", "What the test is about.");
static INTERVAL: Key<Duration> = Key::secs("interval_secs", 10, 1, 3600, "Time between two samples.");
static SERIES: Key<Vec<Table>> =
    Key::tables("series", &[METRIC.spec(), LABELS.spec(), SAMPLES.spec()], "What is measured.");
static EXPECT: Key<Vec<Table>> = Key::tables("expect", &[AT.spec(), ALERTS.spec()], "What is live when.");

static METRIC: Key<String> = Key::text("metric", "", "The metric.");
static LABELS: Key<BTreeMap<String, String>> = Key::map("labels", "Its labels; one that is not given is empty.");
static SAMPLES: Key<String> = Key::text("values", "", "Its samples, the first at 0 s.");

static AT: Key<Duration> = Key::secs("at_secs", 0, 0, 86_400 * 366, "When, from the first sample on.");
static ALERTS: Key<Vec<Table>> = Key::tables(
    "alerts",
    &[RULE.spec(), OF_METRIC.spec(), SEVERITY.spec(), STANDING.spec(), PATTERNS.spec(), SUMMARY.spec()],
    "All alerts that are live then.",
);

static RULE: Key<Option<String>> = Key::optional("rule", "Name of the rule, or the key that sets the limit.");
static OF_METRIC: Key<Option<String>> = Key::optional("metric", "The metric.");
static SEVERITY: Key<String> =
    Key::choice("severity", &["", "info", "warn", "critical", "emergency"], "", "How bad it is.");
static STANDING: Key<String> = Key::choice(
    "standing",
    &["pending", "firing", "acknowledged", "silenced", "inhibited"],
    "firing",
    "How it stands.",
);
static PATTERNS: Key<BTreeMap<String, String>> =
    Key::map("labels", "Labels that it has, among others; * stands for any text.");
static SUMMARY: Key<Option<String>> = Key::optional("summary", "Its sentence for people, word for word.");

/// Cycles that one test may have: a day and more, second by second.
const CYCLES_MAX: u64 = 100_000;

/// A file of tests.
pub(super) struct TestFile {
    pub(super) rules: Option<String>,
    pub(super) thresholds: bool,
    pub(super) tests: Vec<Test>,
}

/// One test.
pub(super) struct Test {
    pub(super) name: String,
    pub(super) line: usize,
    pub(super) interval: Duration,
    pub(super) series: Vec<Series>,
    pub(super) expect: Vec<Expect>,
}

/// One series.
pub(super) struct Series {
    pub(super) metric: &'static Desc,
    /// In the order of the metric's labels.
    pub(super) labels: Vec<String>,
    pub(super) samples: Vec<Option<f64>>,
}

/// What is live at one time.
pub(super) struct Expect {
    pub(super) line: usize,
    pub(super) at: Duration,
    pub(super) alerts: Vec<Expected>,
}

/// Reads the file at `path`.
pub(super) fn load(path: &Path) -> Result<TestFile, Problems> {
    let declared = Declared {
        keys: vec![RULES.spec(), THRESHOLDS.spec(), TESTS.spec()],
        checks: vec![|values| Reader::default().tests(values).1],
        ..Declared::default()
    };
    let settings = settings::load(Some(path), &declared, &settings::environment)?;
    let values = &settings.values;
    let (tests, _) = Reader { settings: Some(&settings), ..Reader::default() }.tests(values);
    Ok(TestFile { rules: values.get(&RULES), thresholds: values.get(&THRESHOLDS), tests })
}

/// Puts tests together, and notes what is wrong with values that have the right type.
#[derive(Default)]
struct Reader<'a> {
    settings: Option<&'a Settings>,
    complaints: Vec<Complaint>,
}

impl Reader<'_> {
    fn tests(mut self, values: &Values) -> (Vec<Test>, Vec<Complaint>) {
        let tables = values.get(&TESTS);
        if tables.is_empty() {
            self.complain("test", "nothing is tested: expected [[test]]");
        }
        if values.get(&RULES).is_none() && !values.get(&THRESHOLDS) {
            self.complain("rules", "nothing is tested: expected the file with the rules, or thresholds = true");
        }
        let tests = tables.iter().enumerate().map(|(i, table)| self.test(table, &format!("test[{i}]"))).collect();
        (tests, self.complaints)
    }

    fn complain(&mut self, path: &str, message: &str) {
        self.complaints.push(Complaint { path: path.to_owned(), message: message.to_owned() });
    }

    fn line(&self, path: &str) -> usize {
        self.settings.and_then(|settings| settings.line_of(path)).unwrap_or(1)
    }

    fn test(&mut self, table: &Table, path: &str) -> Test {
        let interval = table.get(&INTERVAL);
        let within = |list, i: usize| format!("{path}.{list}[{i}]");
        if table.get(&EXPECT).is_empty() {
            self.complain(path, "it expects nothing: expected [[test.expect]]");
        }
        Test {
            name: table.get(&NAME),
            line: self.line(path),
            interval,
            series: (table.get(&SERIES).iter().enumerate())
                .filter_map(|(i, series)| self.series(series, &within("series", i)))
                .collect(),
            expect: (table.get(&EXPECT).iter().enumerate())
                .map(|(i, expect)| self.expect(expect, interval, &within("expect", i)))
                .collect(),
        }
    }

    /// `None` when there is no such series, which is noted.
    fn series(&mut self, table: &Table, path: &str) -> Option<Series> {
        let labels = table.get(&LABELS);
        let samples = samples::parse(&table.get(&SAMPLES)).unwrap_or_else(|error| {
            self.complain(&format!("{path}.values"), &error);
            Vec::new()
        });
        let name = table.get(&METRIC);
        let metrics = catalog::components().into_iter().flat_map(|component| component.metrics.iter().copied());
        let Some(metric) = metrics.into_iter().find(|metric| metric.name == name) else {
            let message = format!("no metric {name:?}: `sysops-agent metrics` lists them");
            self.complain(&format!("{path}.metric"), &message);
            return None;
        };
        if matches!(metric.kind, Kind::Histogram(_)) {
            self.complain(&format!("{path}.metric"), "it is a histogram, which no rule can watch");
            return None;
        }
        if let Some(unknown) = labels.keys().find(|name| !metric.labels.contains(&name.as_str())) {
            let known = if metric.labels.is_empty() { "none".to_owned() } else { metric.labels.join(", ") };
            let message = format!("no label {unknown:?}: {name} has {known}");
            self.complain(&format!("{path}.labels.{unknown}"), &message);
        }
        let labels = metric.labels.iter().map(|name| labels.get(*name).cloned().unwrap_or_else(String::new));
        Some(Series { metric, labels: labels.collect(), samples })
    }

    fn expect(&mut self, table: &Table, interval: Duration, path: &str) -> Expect {
        let at = table.get(&AT);
        if at.as_secs() / interval.as_secs() > CYCLES_MAX {
            let message = format!("expected at most {CYCLES_MAX} times interval_secs");
            self.complain(&format!("{path}.at_secs"), &message);
        }
        let alerts = table.get(&ALERTS);
        for (i, _) in alerts.iter().enumerate().filter(|(_, alert)| **alert == Table::default()) {
            self.complain(&format!("{path}.alerts[{i}]"), "expected something that the alert has, as rule or labels");
        }
        Expect { line: self.line(path), at, alerts: alerts.iter().map(expected).collect() }
    }
}

fn expected(table: &Table) -> Expected {
    let standing = table.get(&STANDING);
    let all = [Standing::Pending, Standing::Firing, Standing::Acknowledged, Standing::Silenced, Standing::Inhibited];
    Expected {
        rule: table.get(&RULE),
        metric: table.get(&OF_METRIC),
        severity: Severity::from_name(&table.get(&SEVERITY)),
        standing: all.into_iter().find(|one| one.name() == standing).expect("the key takes none but these names"),
        labels: table.get(&PATTERNS),
        summary: table.get(&SUMMARY),
    }
}
