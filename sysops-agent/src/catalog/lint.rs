//! The naming rules of Prometheus for metrics, as `promtool check metrics` knows them, before anything is exposed.

use crate::model::{Desc, Kind, Unit};

/// Words that name a unit that is no base unit, or the type of a metric.
const BANNED: &[&str] = &[
    "s",
    "ms",
    "us",
    "ns",
    "sec",
    "b",
    "kb",
    "mb",
    "gb",
    "tb",
    "pb",
    "m",
    "h",
    "d",
    "milliseconds",
    "microseconds",
    "nanoseconds",
    "minutes",
    "hours",
    "days",
    "bits",
    "kilobytes",
    "megabytes",
    "gigabytes",
    "kibibytes",
    "mebibytes",
    "gibibytes",
    "gauge",
    "counter",
    "histogram",
    "summary",
];

/// What is wrong with a metric's declaration, one sentence each.
#[must_use]
pub fn faults(metric: &Desc) -> Vec<String> {
    let mut faults = Vec::new();
    let mut fault = |what: String| faults.push(format!("{}: {what}", metric.name));
    if metric.help.trim().is_empty() {
        fault("expected help".to_owned());
    }
    for label in metric.labels {
        if !is_snake_case(label) || label.starts_with("__") || matches!(*label, "le" | "quantile") {
            fault(format!("label {label:?}: expected a snake_case name other than le and quantile"));
        }
    }
    // These keep node_exporter's names, good and bad.
    if !metric.name.starts_with("node_") {
        faults.extend(name_faults(metric));
    }
    faults
}

/// True when Prometheus's linter has nothing against the metric as it is exposed (a counter without `_total` is then
/// untyped). Some of node_exporter's do not pass.
#[must_use]
pub fn passes(metric: &Desc) -> bool {
    let words_are_fine = !metric.name.split('_').any(|word| BANNED.contains(&word));
    let is_total = metric.name.ends_with("_total");
    is_snake_case(metric.name) && words_are_fine && (!is_total || matches!(metric.kind, Kind::Counter))
}

fn name_faults(metric: &Desc) -> Vec<String> {
    let mut faults = Vec::new();
    let mut fault = |what: String| faults.push(format!("{}: {what}", metric.name));
    if !is_snake_case(metric.name) {
        fault("expected snake_case: a letter, then letters, digits and single _".to_owned());
    }
    let is_counter = matches!(metric.kind, Kind::Counter);
    if is_counter != metric.name.ends_with("_total") {
        fault("counters, and only they, end in _total".to_owned());
    }
    if let Some(word) = metric.name.split('_').find(|word| BANNED.contains(word)) {
        fault(format!("{word:?} is no base unit, or the name of a type"));
    }
    for suffix in ["_bucket", "_sum", "_count"] {
        if metric.name.ends_with(suffix) {
            fault(format!("{suffix} belongs to histograms' own series"));
        }
    }
    let base = metric.name.strip_suffix("_total").unwrap_or(metric.name);
    let suffix = suffix(metric.unit);
    if !base.ends_with(suffix) {
        fault(format!("expected the unit at the end: …{suffix}"));
    }
    faults
}

/// How the name of a metric with this unit ends, before `_total`.
fn suffix(unit: Unit) -> &'static str {
    match unit {
        Unit::Count | Unit::Bool => "",
        Unit::Percent => "_percent",
        Unit::Ratio => "_ratio",
        Unit::Seconds => "_seconds",
        Unit::Bytes => "_bytes",
        Unit::BytesPerSecond => "_bytes_per_second",
        Unit::PerSecond => "_per_second",
    }
}

/// A lower-case letter, then lower-case letters, digits and single `_`.
pub(super) fn is_snake_case(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
        && !name.contains("__")
        && !name.ends_with('_')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Metric;

    #[test]
    fn good_names_pass() {
        static GOOD: [Metric<0>; 5] = [
            Metric::gauge("cpu_usage_percent", Unit::Percent, "Help.", &[]),
            Metric::counter("events_dropped_total", Unit::Count, "Help.", &[]),
            Metric::counter("read_bytes_total", Unit::Bytes, "Help.", &[]),
            Metric::gauge("network_receive_bytes_per_second", Unit::BytesPerSecond, "Help.", &[]),
            Metric::gauge("node_memory_MemTotal_bytes", Unit::Bytes, "Help.", &[]),
        ];
        for metric in &GOOD {
            assert_eq!(faults(metric.desc()), Vec::<String>::new());
        }
    }

    #[test]
    fn each_rule_bites() {
        static BAD: [(Metric<1>, &str); 8] = [
            (Metric::gauge("a", Unit::Count, " ", &["x"]), "a: expected help"),
            (Metric::gauge("a", Unit::Count, "H.", &["le"]), "a: label \"le\": expected a snake_case"),
            (Metric::gauge("aB", Unit::Count, "H.", &["x"]), "aB: expected snake_case"),
            (Metric::gauge("a:b", Unit::Count, "H.", &["x"]), "a:b: expected snake_case"),
            (Metric::counter("a", Unit::Count, "H.", &["x"]), "a: counters, and only they"),
            (Metric::gauge("a_total", Unit::Count, "H.", &["x"]), "a_total: counters, and only they"),
            (Metric::gauge("a_ms", Unit::Count, "H.", &["x"]), "a_ms: \"ms\" is no base unit"),
            (Metric::gauge("a_time", Unit::Seconds, "H.", &["x"]), "a_time: expected the unit at the end: …_seconds"),
        ];
        for (metric, expected) in &BAD {
            let faults = faults(metric.desc());
            assert!(matches!(&faults[..], [only] if only.starts_with(expected)), "{faults:?}");
        }
    }
}
