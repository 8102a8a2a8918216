//! The JSON documents that machines get: metrics and heartbeat (docs/schemas describes them, docs/TELEMETRY.md
//! explains them). Subjects, compression and the way there are left to `nats`.

use std::io::Write as _;

use super::Health;
use super::exposition::{as_f64, is_finite};
use super::number::Number;
use crate::model::time::rfc3339_secs;
use crate::model::{Readings, Series, SeriesValue, Tick};

/// Version of the shapes; keys are only ever added within it.
pub const SCHEMA: u32 = 1;

/// How much goes into one metrics document.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Entries of `metrics`.
    pub entries: usize,
    /// Bytes of the whole document.
    pub bytes: usize,
}

/// Gives all readings to `each`, in as many documents as `limits` ask for; none when nothing is known.
/// Returns the number of entries that were left out because one alone is larger than a document may be.
pub fn metrics(hostname: &str, readings: &dyn Readings, limits: Limits, each: &mut dyn FnMut(&[u8])) -> usize {
    let mut writer = Writer::new(hostname, readings, limits, each);
    readings.visit(&mut |series| writer.series(&series));
    writer.finish();
    writer.too_large
}

/// All readings as one document, as `once --format json` prints it: an empty list when nothing is known.
#[must_use]
pub fn metrics_document(hostname: &str, readings: &dyn Readings) -> Vec<u8> {
    let mut document = Vec::new();
    let limits = Limits { entries: usize::MAX, bytes: usize::MAX };
    metrics(hostname, readings, limits, &mut |whole| document.extend_from_slice(whole));
    if document.is_empty() {
        document = head(hostname, readings);
        document.extend_from_slice(END);
    }
    document
}

/// A sign of life. `uptime_secs` is the host's time since boot, suspended time included.
#[must_use]
pub fn heartbeat(hostname: &str, now: Tick, health: Health) -> Vec<u8> {
    serde_json::json!({
        "schema": SCHEMA,
        "hostname": hostname,
        "timestamp": rfc3339_secs(now.wall),
        "uptime_secs": now.boottime.as_secs(),
        "agent_version": env!("CARGO_PKG_VERSION"),
        "status": health.name(),
    })
    .to_string()
    .into_bytes()
}

const END: &[u8] = b"]}";

fn head(hostname: &str, readings: &dyn Readings) -> Vec<u8> {
    let mut head = Vec::with_capacity(128);
    let _ = write!(head, "{{\"schema\":{SCHEMA},\"hostname\":");
    text(&mut head, hostname);
    let _ = write!(head, ",\"timestamp\":\"{}\",\"metrics\":[", rfc3339_secs(readings.time()));
    head
}

fn text(out: &mut Vec<u8>, text: &str) {
    serde_json::to_writer(out, text).expect("a str is JSON, and a Vec takes all");
}

/// Puts entries together until a document is full.
struct Writer<'a> {
    head: Vec<u8>,
    document: Vec<u8>,
    entry: Vec<u8>,
    entries: usize,
    too_large: usize,
    limits: Limits,
    each: &'a mut dyn FnMut(&[u8]),
}

impl<'a> Writer<'a> {
    fn new(hostname: &str, readings: &dyn Readings, limits: Limits, each: &'a mut dyn FnMut(&[u8])) -> Self {
        let head = head(hostname, readings);
        let document = head.clone();
        Self { head, document, entry: Vec::new(), entries: 0, too_large: 0, limits, each }
    }

    fn series(&mut self, series: &Series<'_>) {
        if !is_finite(&series.value) {
            return;
        }
        match series.value {
            SeriesValue::Number(value) => self.entry(series, "", value),
            SeriesValue::Histogram { counts, sum } => {
                let total = counts.iter().fold(0_u64, |total, count| total.saturating_add(*count));
                self.entry(series, "_count", as_f64(total));
                self.entry(series, "_sum", sum);
            }
        }
    }

    fn entry(&mut self, series: &Series<'_>, suffix: &str, value: f64) {
        self.entry.clear();
        // Names of metrics and labels are identifiers: they need no escaping. Writing to a Vec cannot fail.
        let _ = write!(
            self.entry,
            "{{\"name\":\"{}{suffix}\",\"value\":{},\"labels\":{{",
            series.metric.name,
            Number(value)
        );
        for (index, (name, value)) in series.labels().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            let _ = write!(self.entry, "{comma}\"{name}\":");
            text(&mut self.entry, value);
        }
        self.entry.extend_from_slice(b"}}");
        self.append();
    }

    fn append(&mut self) {
        let room = self.limits.bytes.saturating_sub(END.len() + 1);
        if self.head.len() + self.entry.len() > room {
            self.too_large += 1;
            return;
        }
        if self.entries == self.limits.entries || self.document.len() + self.entry.len() > room {
            self.finish();
        }
        if self.entries > 0 {
            self.document.push(b',');
        }
        self.document.extend_from_slice(&self.entry);
        self.entries += 1;
    }

    fn finish(&mut self) {
        if self.entries == 0 {
            return;
        }
        self.document.extend_from_slice(END);
        (self.each)(&self.document);
        self.document.clear();
        self.document.extend_from_slice(&self.head);
        self.entries = 0;
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use proptest::prelude::*;

    use super::*;
    use crate::model::{Desc, Metric, Unit};

    static USAGE: Metric<1> = Metric::gauge("cpu_socket_usage_percent", Unit::Percent, "", &["socket"]);
    static LATENCY: Metric<1> = Metric::histogram("latency_seconds", Unit::Seconds, "", &[0.5], &["device"]);

    struct Fixed(Vec<(&'static Desc, String, f64)>);

    impl Readings for Fixed {
        fn time(&self) -> SystemTime {
            SystemTime::UNIX_EPOCH + Duration::from_secs(1_771_777_800)
        }
        fn visit(&self, each: &mut dyn FnMut(Series<'_>)) {
            for (metric, key, value) in &self.0 {
                let value = if metric.name == "latency_seconds" {
                    SeriesValue::Histogram { counts: &[3, 4], sum: *value }
                } else {
                    SeriesValue::Number(*value)
                };
                each(Series { metric, key, value });
            }
        }
    }

    fn numbers(count: usize) -> Fixed {
        Fixed((0..count).map(|index| (USAGE.desc(), format!("{index}\0"), 78.1)).collect())
    }

    fn split(readings: &Fixed, limits: Limits) -> (Vec<serde_json::Value>, Vec<usize>, usize) {
        let (mut documents, mut sizes) = (Vec::new(), Vec::new());
        let too_large = metrics("web-1", readings, limits, &mut |document| {
            sizes.push(document.len());
            documents.push(serde_json::from_slice(document).expect("JSON"));
        });
        (documents, sizes, too_large)
    }

    #[test]
    fn the_seeds_document_with_histograms_as_count_and_sum() {
        let readings = Fixed(vec![
            (USAGE.desc(), "0\0".into(), 78.1),
            (USAGE.desc(), "1\0".into(), f64::INFINITY),
            (LATENCY.desc(), "sda\"\0".into(), 2.0),
        ]);
        let text = String::from_utf8(metrics_document("web.1", &readings)).expect("UTF-8");
        assert_eq!(
            text,
            r#"{"schema":1,"hostname":"web.1","timestamp":"2026-02-22T16:30:00Z","metrics":["#.to_owned()
                + r#"{"name":"cpu_socket_usage_percent","value":78.1,"labels":{"socket":"0"}},"#
                + r#"{"name":"latency_seconds_count","value":7,"labels":{"device":"sda\""}},"#
                + r#"{"name":"latency_seconds_sum","value":2,"labels":{"device":"sda\""}}]}"#
        );
    }

    #[test]
    fn nothing_known_is_no_batch_and_an_empty_document() {
        assert_eq!(split(&numbers(0), Limits { entries: 9, bytes: 9999 }).0.len(), 0);
        let document: serde_json::Value = serde_json::from_slice(&metrics_document("h", &numbers(0))).expect("JSON");
        assert_eq!(document["metrics"], serde_json::json!([]));
    }

    #[test]
    fn an_entry_that_no_document_holds_is_counted() {
        let readings =
            Fixed(vec![(USAGE.desc(), format!("{}\0", "x".repeat(500)), 1.0), (USAGE.desc(), "1\0".into(), 1.0)]);
        let (documents, _, too_large) = split(&readings, Limits { entries: 10, bytes: 400 });
        assert_eq!((documents.len(), too_large), (1, 1));
    }

    #[test]
    fn heartbeat_has_the_seeds_keys() {
        let now = Tick {
            monotonic: Duration::from_secs(1),
            boottime: Duration::from_secs(864_000),
            wall: SystemTime::UNIX_EPOCH + Duration::from_secs(1_771_777_800),
        };
        let document: serde_json::Value =
            serde_json::from_slice(&heartbeat("gpu-server-01", now, Health::Degraded)).expect("JSON");
        assert_eq!(
            document,
            serde_json::json!({
                "schema": 1, "hostname": "gpu-server-01", "timestamp": "2026-02-22T16:30:00Z", "uptime_secs": 864_000,
                "agent_version": env!("CARGO_PKG_VERSION"), "status": "degraded",
            })
        );
    }

    proptest! {
        #[test]
        fn batches_keep_both_limits_and_lose_nothing(count in 0_usize..300, entries in 1_usize..120, bytes in 200_usize..2000) {
            let (documents, sizes, too_large) = split(&numbers(count), Limits { entries, bytes });
            prop_assert_eq!(too_large, 0);
            let lists: Vec<&Vec<serde_json::Value>> = documents.iter().filter_map(|document| document["metrics"].as_array()).collect();
            prop_assert!(lists.iter().all(|list| !list.is_empty() && list.len() <= entries));
            prop_assert!(sizes.iter().all(|size| *size <= bytes));
            let sockets: Vec<String> = lists.iter().flat_map(|list| list.iter()).map(|entry| entry["labels"]["socket"].as_str().expect("a label").to_owned()).collect();
            prop_assert_eq!(sockets, (0..count).map(|index| index.to_string()).collect::<Vec<_>>());
        }
    }
}
