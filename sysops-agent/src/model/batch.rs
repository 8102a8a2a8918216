//! What one component read in one cycle. The buffers are reused: a steady cycle allocates nothing.

use super::metric::{Desc, Kind, Metric};

/// Stands between label values in [`Batch`] and the store's keys; it is taken out of values.
pub const LABEL_END: char = '\0';

/// A value as it was read. What needs two cycles to be a value is given raw here and computed once, in `store::rate`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Reading {
    /// The value itself.
    Gauge(f64),
    /// A value that only rises, kept raw.
    Counter(f64),
    /// A rising value of which the gauge is the increase in each second.
    PerSecond(f64),
    /// Two rising values; the gauge is 100 × increase of `part` / increase of `whole`.
    Percent {
        /// The part, for example busy time.
        part: f64,
        /// The whole, for example all time.
        whole: f64,
    },
    /// Two rising values; the gauge is increase of `part` / increase of `whole`, in the metric's unit: a share (0 to 1)
    /// where both count the same things, a mean (seconds for each operation) where they do not.
    Ratio {
        /// The part, for example errors, or the seconds that operations took.
        part: f64,
        /// The whole, for example packets, or operations.
        whole: f64,
    },
    /// Counts by bucket (not cumulative; one more than the bounds) in [`Batch::buckets`], with the exact sum.
    Histogram {
        /// Index of the first count.
        first: u32,
        /// Number of counts.
        len: u32,
        /// Sum of all observed values, in the metric's unit.
        sum: f64,
    },
}

/// One reading of one series.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// What is measured.
    pub metric: &'static Desc,
    /// The value.
    pub reading: Reading,
    labels: (u32, u32),
}

/// Readings of one component in one cycle.
#[derive(Debug, Default)]
pub struct Batch {
    entries: Vec<Entry>,
    text: String,
    buckets: Vec<u64>,
}

impl Batch {
    /// Empties the batch and keeps its memory.
    pub fn clear(&mut self) {
        self.entries.clear();
        self.text.clear();
        self.buckets.clear();
    }

    /// Adds a value that goes up and down. NaN and infinities are left out: unknown is absence.
    pub fn gauge<const N: usize>(&mut self, metric: &'static Metric<N>, labels: [&str; N], value: f64) {
        debug_assert!(matches!(metric.desc().kind, Kind::Gauge), "{} is no gauge", metric.desc().name);
        if value.is_finite() {
            self.push(metric.desc(), &labels, Reading::Gauge(value));
        }
    }

    /// Adds a value that only rises.
    pub fn counter<const N: usize>(&mut self, metric: &'static Metric<N>, labels: [&str; N], value: f64) {
        debug_assert!(matches!(metric.desc().kind, Kind::Counter), "{} is no counter", metric.desc().name);
        if value.is_finite() {
            self.push(metric.desc(), &labels, Reading::Counter(value));
        }
    }

    /// Adds a rising value of which the gauge `metric` is the increase in each second.
    pub fn per_second<const N: usize>(&mut self, metric: &'static Metric<N>, labels: [&str; N], total: f64) {
        if total.is_finite() {
            self.push(metric.desc(), &labels, Reading::PerSecond(total));
        }
    }

    /// Adds two rising values of which the gauge `metric` is 100 × increase of part / increase of whole.
    pub fn percent<const N: usize>(&mut self, metric: &'static Metric<N>, labels: [&str; N], part: f64, whole: f64) {
        if part.is_finite() && whole.is_finite() {
            self.push(metric.desc(), &labels, Reading::Percent { part, whole });
        }
    }

    /// Adds two rising values of which the gauge `metric` is increase of part / increase of whole.
    pub fn ratio<const N: usize>(&mut self, metric: &'static Metric<N>, labels: [&str; N], part: f64, whole: f64) {
        if part.is_finite() && whole.is_finite() {
            self.push(metric.desc(), &labels, Reading::Ratio { part, whole });
        }
    }

    /// Adds a histogram: `counts` by bucket (not cumulative), one more than the metric's bounds, and the exact sum.
    pub fn histogram<const N: usize>(
        &mut self,
        metric: &'static Metric<N>,
        labels: [&str; N],
        counts: &[u64],
        sum: f64,
    ) {
        debug_assert!(
            matches!(metric.desc().kind, Kind::Histogram(bounds) if bounds.len() + 1 == counts.len()),
            "{}: one count for each bound and one for +Inf",
            metric.desc().name
        );
        let first = u32::try_from(self.buckets.len()).unwrap_or(u32::MAX);
        let len = u32::try_from(counts.len()).unwrap_or(0);
        self.buckets.extend_from_slice(counts);
        self.push(metric.desc(), &labels, Reading::Histogram { first, len, sum });
    }

    /// Adds a reading by the declaration alone, for who has no [`Metric`] at hand: the test of a rule. `labels` are as many as
    /// the metric has.
    pub fn push(&mut self, metric: &'static Desc, labels: &[&str], reading: Reading) {
        debug_assert_eq!(labels.len(), metric.labels.len(), "{}: one value for each label", metric.name);
        let start = self.text.len();
        for label in labels {
            if label.as_bytes().contains(&0) {
                self.text.extend(label.split(LABEL_END));
            } else {
                self.text.push_str(label);
            }
            self.text.push(LABEL_END);
        }
        let (Ok(start), Ok(end)) = (u32::try_from(start), u32::try_from(self.text.len())) else {
            self.text.truncate(start);
            return; // 4 GiB of label text in one cycle: nothing that a bounded collector makes.
        };
        self.entries.push(Entry { metric, reading, labels: (start, end) });
    }

    /// The readings in the order in which they came, each with its label values as one key
    /// (every value followed by [`LABEL_END`]).
    pub fn iter(&self) -> impl Iterator<Item = (&Entry, &str)> {
        self.entries.iter().map(|entry| (entry, &self.text[entry.labels.0 as usize..entry.labels.1 as usize]))
    }

    /// The counts of a [`Reading::Histogram`].
    #[must_use]
    pub fn buckets(&self, first: u32, len: u32) -> &[u64] {
        &self.buckets[first as usize..(first + len) as usize]
    }

    /// Number of readings.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// True when nothing was read.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

/// The label values in a key made by [`Batch`].
pub fn label_values(key: &str) -> impl Iterator<Item = &str> {
    let mut rest = key;
    // Labels are short: looking at each byte is faster than a search made for long texts.
    std::iter::from_fn(move || {
        let end = rest.bytes().position(|byte| byte == LABEL_END as u8)?;
        let value = &rest[..end];
        rest = &rest[end + 1..];
        Some(value)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Unit;

    static LOAD: Metric<0> = Metric::gauge("load", Unit::Count, "", &[]);
    static BYTES: Metric<2> = Metric::counter("bytes_total", Unit::Bytes, "", &["device", "way"]);
    static TIME: Metric<1> = Metric::histogram("time", Unit::Seconds, "", &[0.1, 1.0], &["device"]);

    #[test]
    fn labels_come_back_as_given_but_for_nul() {
        let mut batch = Batch::default();
        batch.gauge(&LOAD, [], 1.0);
        batch.counter(&BYTES, ["a\0b", ""], 2.0);
        let keys: Vec<Vec<&str>> = batch.iter().map(|(_, key)| label_values(key).collect()).collect();
        assert_eq!(keys, [vec![], vec!["ab", ""]]);
    }

    #[test]
    fn unknown_is_absence() {
        let mut batch = Batch::default();
        batch.gauge(&LOAD, [], f64::NAN);
        batch.percent(&LOAD, [], 1.0, f64::INFINITY);
        assert!(batch.is_empty());
    }

    #[test]
    fn histogram_counts_are_kept() {
        let mut batch = Batch::default();
        batch.histogram(&TIME, ["sda"], &[1, 2, 3], 4.5);
        let (entry, _) = batch.iter().next().expect("one entry");
        let Reading::Histogram { first, len, sum } = entry.reading else { panic!("a histogram") };
        assert_eq!((batch.buckets(first, len), sum), (&[1, 2, 3][..], 4.5));
    }
}
