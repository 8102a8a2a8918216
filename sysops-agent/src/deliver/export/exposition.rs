//! Renders readings in the Prometheus text format, version 0.0.4.
//! Names, kinds and help are the declarations' own; serving the text is left to `prometheus`.

use std::borrow::Cow;
use std::fmt::Write as _;

use super::number::Number;
use crate::model::{Desc, Kind, Readings, Series, SeriesValue};

/// The Content-Type of what [`render`] writes.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Appends all readings to `out`: HELP and TYPE once a family, no time stamps (Prometheus knows when it asked).
/// Numbers that are not finite are left out: unknown is absence.
pub fn render(readings: &dyn Readings, out: &mut String) {
    render_some(readings, &|_| true, out);
}

/// As [`render`], for the metrics that `wanted` takes.
pub fn render_some(readings: &dyn Readings, wanted: &dyn Fn(&Desc) -> bool, out: &mut String) {
    let mut family: Option<&'static Desc> = None;
    readings.visit(&mut |series| {
        let metric = series.metric;
        if !is_finite(&series.value) || !wanted(metric) {
            return;
        }
        if family.is_none_or(|family| !std::ptr::eq(family, metric) && family.name != metric.name) {
            family = Some(metric);
            head(metric, out);
        }
        match series.value {
            SeriesValue::Number(value) => sample(out, &series, "", None, value),
            SeriesValue::Histogram { counts, sum } => histogram(out, &series, counts, sum),
        }
    });
}

/// The name under which Prometheus gets a metric: `node_…` as it is, every other with `sysops_` in front.
#[must_use]
pub fn exposed_name(metric: &Desc) -> Cow<'static, str> {
    match prefix(metric) {
        "" => Cow::Borrowed(metric.name),
        prefix => Cow::Owned(format!("{prefix}{}", metric.name)),
    }
}

pub(super) fn is_finite(value: &SeriesValue<'_>) -> bool {
    match *value {
        SeriesValue::Number(value) => value.is_finite(),
        SeriesValue::Histogram { sum, .. } => sum.is_finite(),
    }
}

fn prefix(metric: &Desc) -> &'static str {
    if metric.name.starts_with("node_") { "" } else { "sysops_" }
}

fn head(metric: &Desc, out: &mut String) {
    let (prefix, name) = (prefix(metric), metric.name);
    let kind = match metric.kind {
        Kind::Gauge => "gauge",
        Kind::Counter if name.ends_with("_total") => "counter",
        // node_exporter's node_vmstat_…, which it exposes as untyped too.
        Kind::Counter => "untyped",
        Kind::Histogram(_) => "histogram",
    };
    out.push_str("# HELP ");
    out.push_str(prefix);
    out.push_str(name);
    out.push(' ');
    escape(out, metric.help, false);
    // Writing to a String cannot fail.
    let _ = writeln!(out, "\n# TYPE {prefix}{name} {kind}");
}

/// Cumulative buckets, as the format wants them; the store keeps them apart.
fn histogram(out: &mut String, series: &Series<'_>, counts: &[u64], sum: f64) {
    let bounds = match series.metric.kind {
        Kind::Histogram(bounds) => bounds,
        Kind::Gauge | Kind::Counter => &[],
    };
    let mut total = 0_u64;
    for (index, count) in counts.iter().enumerate() {
        total = total.saturating_add(*count);
        if let Some(bound) = bounds.get(index) {
            sample(out, series, "_bucket", Some(*bound), as_f64(total));
        }
    }
    sample(out, series, "_bucket", Some(f64::INFINITY), as_f64(total));
    sample(out, series, "_sum", None, sum);
    sample(out, series, "_count", None, as_f64(total));
}

#[expect(clippy::cast_precision_loss, reason = "the format knows only f64; counts above 2^53 lose their last digits")]
pub(super) fn as_f64(count: u64) -> f64 {
    count as f64
}

fn sample(out: &mut String, series: &Series<'_>, suffix: &str, le: Option<f64>, value: f64) {
    out.push_str(prefix(series.metric));
    out.push_str(series.metric.name);
    out.push_str(suffix);
    let mut open = '{';
    for (name, text) in series.labels() {
        out.push(open);
        out.push_str(name);
        out.push_str("=\"");
        escape(out, text, true);
        out.push('"');
        open = ',';
    }
    if let Some(bound) = le {
        out.push(open);
        let _ = if bound.is_finite() { write!(out, "le=\"{}\"", Number(bound)) } else { write!(out, "le=\"+Inf\"") };
        open = ',';
    }
    if open == ',' {
        out.push('}');
    }
    let _ = writeln!(out, " {}", Number(value));
}

/// The three escapes that the format knows. Other control characters stand as they are, which Prometheus reads, but
/// for NUL, at which its lexer stops: a batch takes it out of label values, and it is left out here too.
fn escape(out: &mut String, text: &str, quotes: bool) {
    // Without an early end, so that the compiler looks at many bytes at once.
    let is_special = |byte| byte == b'\\' || byte == b'\n' || byte == b'"' || byte == b'\0';
    if !text.bytes().fold(false, |any, byte| any | is_special(byte)) {
        return out.push_str(text);
    }
    for character in text.chars() {
        match character {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '"' if quotes => out.push_str("\\\""),
            '\0' => {}
            other => out.push(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use proptest::prelude::*;

    use super::*;
    use crate::model::{Metric, Unit};

    static USAGE: Metric<0> = Metric::gauge("cpu_usage_percent", Unit::Percent, "CPU use.\nAll \"cores\" \\ 1.", &[]);
    static LATENCY: Metric<2> = Metric::histogram(
        "block_io_latency_seconds",
        Unit::Seconds,
        "Issue to completion.",
        &[0.000_001, 0.5, 1.0],
        &["device", "operation"],
    );
    static SECONDS: Metric<2> = Metric::counter("node_cpu_seconds_total", Unit::Seconds, "CPU time.", &["cpu", "mode"]);

    struct Fixed(Vec<(&'static Desc, String, f64, Vec<u64>)>);

    impl Readings for Fixed {
        fn time(&self) -> SystemTime {
            SystemTime::UNIX_EPOCH
        }
        fn visit(&self, each: &mut dyn FnMut(Series<'_>)) {
            for (metric, key, value, counts) in &self.0 {
                let value = match metric.kind {
                    Kind::Histogram(_) => SeriesValue::Histogram { counts, sum: *value },
                    Kind::Gauge | Kind::Counter => SeriesValue::Number(*value),
                };
                each(Series { metric, key, value });
            }
        }
    }

    #[test]
    fn families_labels_and_histograms() {
        let readings = Fixed(vec![
            (LATENCY.desc(), "sda\0read\0".into(), 4.5, vec![1, 2, 0, 3]),
            (USAGE.desc(), String::new(), 45.2, vec![]),
            (SECONDS.desc(), "0\0idle\0".into(), 1e9, vec![]),
            (SECONDS.desc(), "0\0\"\\\n\0".into(), f64::NAN, vec![]),
            (SECONDS.desc(), "1\0a \"b\" \\ \n\u{1b}é\0".into(), 2.0, vec![]),
        ]);
        let mut text = String::new();
        render(&readings, &mut text);
        insta::assert_snapshot!(text.replace('\u{1b}', "<ESC>"), @r#"
        # HELP sysops_block_io_latency_seconds Issue to completion.
        # TYPE sysops_block_io_latency_seconds histogram
        sysops_block_io_latency_seconds_bucket{device="sda",operation="read",le="1e-6"} 1
        sysops_block_io_latency_seconds_bucket{device="sda",operation="read",le="0.5"} 3
        sysops_block_io_latency_seconds_bucket{device="sda",operation="read",le="1"} 3
        sysops_block_io_latency_seconds_bucket{device="sda",operation="read",le="+Inf"} 6
        sysops_block_io_latency_seconds_sum{device="sda",operation="read"} 4.5
        sysops_block_io_latency_seconds_count{device="sda",operation="read"} 6
        # HELP sysops_cpu_usage_percent CPU use.\nAll "cores" \\ 1.
        # TYPE sysops_cpu_usage_percent gauge
        sysops_cpu_usage_percent 45.2
        # HELP node_cpu_seconds_total CPU time.
        # TYPE node_cpu_seconds_total counter
        node_cpu_seconds_total{cpu="0",mode="idle"} 1000000000
        node_cpu_seconds_total{cpu="1",mode="a \"b\" \\ \n<ESC>é"} 2
        "#);
    }

    #[test]
    fn what_is_not_finite_has_no_head_either() {
        let mut text = String::new();
        render(&Fixed(vec![(USAGE.desc(), String::new(), f64::NAN, vec![])]), &mut text);
        assert_eq!(text, "");
    }

    proptest! {
        #[test]
        fn a_label_value_stays_on_its_line_and_reads_back(value in "[^\0]*") {
            let mut text = String::new();
            render(&Fixed(vec![(SECONDS.desc(), format!("0\0{value}\0"), 1.0, vec![])]), &mut text);
            let lines: Vec<&str> = text.split('\n').collect();
            prop_assert_eq!(lines.len(), 4, "HELP, TYPE, one sample, the end");
            let quoted = lines[2].strip_prefix("node_cpu_seconds_total{cpu=\"0\",mode=\"").expect("its start");
            let quoted = quoted.strip_suffix("\"} 1").expect("its end");
            let back = quoted.replace("\\\\", "\u{10ffff}").replace("\\n", "\n").replace("\\\"", "\"").replace('\u{10ffff}', "\\");
            if !value.contains('\u{10ffff}') {
                prop_assert_eq!(back, value);
            }
        }
    }
}
