//! How exporters see what is stored: the newest value of each series, without knowing the store.

use std::time::{Duration, SystemTime};

use super::metric::Desc;

/// The newest value of a series.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum SeriesValue<'a> {
    /// Gauge or counter.
    Number(f64),
    /// Counts by bucket (not cumulative; one more than the metric's bounds) and the exact sum.
    Histogram {
        /// Counts by bucket.
        counts: &'a [u64],
        /// Sum of all observations, in the metric's unit.
        sum: f64,
    },
}

/// One series with its newest value.
#[derive(Clone, Copy, Debug)]
pub struct Series<'a> {
    /// What is measured.
    pub metric: &'static Desc,
    /// Label values as one key: every value followed by NUL; see [`Series::labels`].
    pub key: &'a str,
    /// The newest value.
    pub value: SeriesValue<'a>,
}

impl<'a> Series<'a> {
    /// Label names and values.
    pub fn labels(&self) -> impl Iterator<Item = (&'static str, &'a str)> + use<'a> {
        self.metric.labels.iter().copied().zip(super::batch::label_values(self.key))
    }
}

/// Everything that is known now. Series of one metric come together, metrics in order of their names.
pub trait Readings {
    /// Wall time of the newest reading.
    fn time(&self) -> SystemTime;
    /// Calls `each` for every series that is alive (was read in its component's last cycle).
    fn visit(&self, each: &mut dyn FnMut(Series<'_>));
    /// As [`Readings::visit`], for the series of one metric.
    fn visit_metric(&self, name: &str, each: &mut dyn FnMut(Series<'_>)) {
        self.visit(&mut |series| {
            if series.metric.name == name {
                each(series);
            }
        });
    }
    /// Calls `each` for the remembered samples of a series with their monotonic time, oldest first; for none when its
    /// metric is not remembered. `key` is [`Series::key`].
    fn history(&self, _metric: &str, _key: &str, _each: &mut dyn FnMut(Duration, f64)) {}
}
