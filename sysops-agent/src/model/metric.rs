//! A metric is declared once, as a static [`Metric`]: HELP and TYPE, payloads, docs/METRICS.md and the check
//! that a threshold names a real metric all render from it.

/// What the value does over time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    /// Goes up and down.
    Gauge,
    /// Only rises, until its source restarts.
    Counter,
    /// Counts of observations below each upper bound (in the metric's unit), the last bucket (+Inf) not listed.
    Histogram(&'static [f64]),
}

/// The unit of the value. Names end in it as Prometheus wants it (`_seconds`, `_bytes`, …).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// A plain number of things.
    Count,
    /// 0 to 100.
    Percent,
    /// 0 to 1.
    Ratio,
    /// Seconds.
    Seconds,
    /// Bytes.
    Bytes,
    /// Bytes in each second.
    BytesPerSecond,
    /// Things in each second.
    PerSecond,
    /// 1 stands for yes, 0 for no.
    Bool,
}

impl Unit {
    /// For people and documents: `percent`, `bytes/s`, `1/s`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Count => "count",
            Self::Percent => "percent",
            Self::Ratio => "ratio",
            Self::Seconds => "seconds",
            Self::Bytes => "bytes",
            Self::BytesPerSecond => "bytes/s",
            Self::PerSecond => "1/s",
            Self::Bool => "yes/no",
        }
    }
}

/// The declaration of a metric without its number of labels.
#[derive(Debug)]
pub struct Desc {
    /// Full name. One that begins with `node_` keeps node_exporter's name, meaning and labels;
    /// every other is exposed to Prometheus with the prefix `sysops_`.
    pub name: &'static str,
    /// Gauge, counter or histogram.
    pub kind: Kind,
    /// Unit of the value.
    pub unit: Unit,
    /// One sentence for people.
    pub help: &'static str,
    /// Label names, in the order in which values are given.
    pub labels: &'static [&'static str],
}

/// A metric with `N` labels, so that the compiler checks the number of label values.
#[derive(Debug)]
pub struct Metric<const N: usize> {
    desc: Desc,
}

impl<const N: usize> Metric<N> {
    /// A value that goes up and down.
    #[must_use]
    pub const fn gauge(name: &'static str, unit: Unit, help: &'static str, labels: &'static [&'static str; N]) -> Self {
        Self { desc: Desc { name, kind: Kind::Gauge, unit, help, labels } }
    }

    /// A value that only rises. `name` ends in `_total`.
    #[must_use]
    pub const fn counter(
        name: &'static str,
        unit: Unit,
        help: &'static str,
        labels: &'static [&'static str; N],
    ) -> Self {
        Self { desc: Desc { name, kind: Kind::Counter, unit, help, labels } }
    }

    /// Observations counted by upper bound.
    #[must_use]
    pub const fn histogram(
        name: &'static str,
        unit: Unit,
        help: &'static str,
        bounds: &'static [f64],
        labels: &'static [&'static str; N],
    ) -> Self {
        Self { desc: Desc { name, kind: Kind::Histogram(bounds), unit, help, labels } }
    }

    /// The declaration, for lists.
    #[must_use]
    pub const fn desc(&'static self) -> &'static Desc {
        &self.desc
    }
}
