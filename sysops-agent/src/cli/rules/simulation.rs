//! Runs one test: a store, the analyzers and the book as the agent has them, with a clock that is turned by hand.

use std::time::Duration;

use super::expected::{Expected, all_are_there, live_line};
use super::file::Test;
use crate::alert::Book;
use crate::analyze::{self, Analyzer, Entry};
use crate::host::Clock;
use crate::model::{Batch, Desc, Kind, Reading};
use crate::spec::Values;
use crate::store::{Store, view::View};

/// An expectation that does not hold, in lines for people.
pub(super) struct Failure {
    pub(super) line: usize,
    pub(super) at: Duration,
    pub(super) expected: Vec<String>,
    pub(super) got: Vec<String>,
}

/// Gives what does not hold, in the order of time.
pub(super) fn run(test: &Test, values: &Values, thresholds: bool) -> Vec<Failure> {
    let clock = Clock::fixed();
    let mut store = Store::new(values, 1);
    let mut analyzers = analyzers(values, thresholds);
    let mut book = Book::new(values, "test");
    book.expect_cycles_every(test.interval);
    let mut batch = Batch::default();
    let mut failures = Vec::new();
    for cycle in 0..cycles(test) {
        let now = clock.now();
        batch.clear();
        for series in &test.series {
            if let Some(&Some(value)) = series.samples.get(cycle) {
                let labels: Vec<&str> = series.labels.iter().map(String::as_str).collect();
                batch.push(series.metric, &labels, reading(series.metric, value));
            }
        }
        store.ingest(0, &batch, now);
        let view = View::new(&store);
        for analyzer in &mut analyzers {
            analyzer.judge(&view, &mut |finding| book.finding(finding, &now));
        }
        book.tick(&view, &now);
        for expect in test.expect.iter().filter(|expect| cycle_of(expect.at, test) == cycle) {
            let got = book.list(&now);
            if !all_are_there(&expect.alerts, &got) {
                failures.push(Failure {
                    line: expect.line,
                    at: expect.at,
                    expected: expect.alerts.iter().map(Expected::line).collect(),
                    got: got.iter().map(live_line).collect(),
                });
            }
        }
        clock.advance(test.interval);
    }
    failures
}

/// Until the last expectation: what comes later nobody asks for.
fn cycles(test: &Test) -> usize {
    test.expect.iter().map(|expect| cycle_of(expect.at, test) + 1).max().unwrap_or(0)
}

/// The newest cycle at that time.
fn cycle_of(at: Duration, test: &Test) -> usize {
    usize::try_from(at.as_secs() / test.interval.as_secs()).unwrap_or(usize::MAX)
}

fn analyzers(values: &Values, thresholds: bool) -> Vec<Box<dyn Analyzer>> {
    let fixed: [&Entry; 2] = [&analyze::threshold::ENTRY, &analyze::loss::ENTRY];
    let wanted = |entry: &&&Entry| thresholds || !fixed.iter().any(|other| std::ptr::eq(*other, **entry));
    analyze::ALL.iter().filter(wanted).map(|entry| (entry.new)(values)).collect()
}

/// Samples of gauges are what the agent shows of them; those of counters what they have counted.
fn reading(metric: &Desc, value: f64) -> Reading {
    match metric.kind {
        Kind::Counter => Reading::Counter(value),
        Kind::Gauge | Kind::Histogram(_) => Reading::Gauge(value),
    }
}
