//! Readings, inventory, health and clock by hand, for exporters under test, and the way to run and read them.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, SystemTime};

use sysops_agent::deliver::export::{Context, Entry, Exporter, Feed, Health};
use sysops_agent::model::batch::label_values;
use sysops_agent::model::{
    Alert, Batch, Desc, Metric, Reading, Readings, Series, SeriesValue, Severity, Status, Tick, Unit,
};
use sysops_agent::spec::{Value, Values};

/// A number without labels.
pub static USAGE: Metric<0> =
    Metric::gauge("cpu_usage_percent", Unit::Percent, "CPU use of all CPUs together, \"idle\" and \\ left out.", &[]);
/// A counter with labels.
pub static CPU_SECONDS: Metric<2> =
    Metric::counter("node_cpu_seconds_total", Unit::Seconds, "Time of each CPU by mode.", &["cpu", "mode"]);
/// A histogram.
pub static LATENCY: Metric<2> = Metric::histogram(
    "block_io_latency_seconds",
    Unit::Seconds,
    "Time from issue to completion.",
    &[0.000_001, 0.001, 1.0],
    &["device", "operation"],
);
/// How often the readings were asked for before.
pub static COUNT: Metric<0> = Metric::gauge("aa_count", Unit::Count, "Readings so far.", &[]);
/// A label value of any text.
pub static TEXT: Metric<1> = Metric::gauge("zz_text_bytes", Unit::Bytes, "Hostile label values.", &["text"]);

/// A label value that Prometheus must read back as it is.
pub const HOSTILE: &str = "a\"b\\n\\ \n\r\t\u{1b}[31m {}=, é 🦀 \u{7f}\u{1}";

/// One series: its declaration, its labels as one key, its value or bucket counts.
type Row = (&'static Desc, String, f64, Vec<u64>);

/// What an exporter is fed with.
#[derive(Default)]
pub struct Hand {
    /// The series, sorted by name.
    pub rows: RefCell<Vec<Row>>,
    /// The inventory.
    pub inventory: RefCell<Option<Rc<serde_json::Value>>>,
    /// Not healthy.
    pub degraded: Cell<bool>,
    /// How often the readings were asked for; where it is set, they hold the number of the time.
    pub count: Cell<Option<u32>>,
}

impl Hand {
    /// One series of each kind.
    #[must_use]
    pub fn with_each_kind() -> Self {
        let rows = vec![
            (LATENCY.desc(), "sda\0read\0".to_owned(), 1.25, vec![1, 2, 3, 4]),
            (USAGE.desc(), String::new(), 45.2, vec![]),
            (CPU_SECONDS.desc(), "0\0idle\0".to_owned(), 1e6, vec![]),
            (CPU_SECONDS.desc(), "1\0idle\0".to_owned(), f64::NAN, vec![]),
            (TEXT.desc(), format!("{HOSTILE}\0"), 7.0, vec![]),
        ];
        let inventory = serde_json::json!({"hostname": "h", "cpu": {"sockets": 2}});
        Self { rows: RefCell::new(rows), inventory: RefCell::new(Some(Rc::new(inventory))), ..Self::default() }
    }
}

impl Readings for Hand {
    fn time(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_771_777_800)
    }

    fn visit(&self, each: &mut dyn FnMut(Series<'_>)) {
        if let Some(count) = self.count.get() {
            self.count.set(Some(count + 1));
            each(Series { metric: COUNT.desc(), key: "", value: SeriesValue::Number(f64::from(count)) });
        }
        for (metric, key, value, counts) in self.rows.borrow().iter() {
            let value = if counts.is_empty() {
                SeriesValue::Number(*value)
            } else {
                SeriesValue::Histogram { counts, sum: *value }
            };
            each(Series { metric, key, value });
        }
    }
}

impl Feed for Hand {
    fn readings(&self, see: &mut dyn FnMut(&dyn Readings)) {
        see(self);
    }

    fn inventory(&self) -> Option<Rc<serde_json::Value>> {
        self.inventory.borrow().clone()
    }

    fn health(&self) -> Health {
        if self.degraded.get() { Health::Degraded } else { Health::Healthy }
    }

    fn now(&self) -> Tick {
        Tick { monotonic: Duration::from_secs(5), boottime: Duration::from_secs(864_000), wall: self.time() }
    }
}

/// Runs a test as the agent runs: on one thread, with tasks that stay on it, and never for more than a minute.
///
/// # Panics
/// When the time is over.
pub fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let local = tokio::task::LocalSet::new();
    let limited = async { tokio::time::timeout(Duration::from_secs(60), test).await };
    local.block_on(&runtime, limited).expect("the test ends within a minute");
}

/// Values of configuration keys, each by its path.
///
/// # Panics
/// When no exporter has such a key.
#[must_use]
pub fn values(entry: &Entry, pairs: &[(&str, Value)]) -> Values {
    let mut values = Values::default();
    for (path, value) in pairs {
        let key = entry.keys.iter().find(|key| key.path == *path).expect(path);
        values.set(key, value.clone());
    }
    values
}

/// Text as a configuration value.
#[must_use]
pub fn text(text: impl Into<String>) -> Value {
    Value::Text(text.into())
}

/// Starts an exporter with `enabled = true` and these values.
///
/// # Errors
/// As the exporter says.
///
/// # Panics
/// When it does not start though it is enabled.
pub fn start(
    entry: &Entry,
    hostname: &str,
    feed: &Rc<Hand>,
    pairs: &[(&str, Value)],
) -> Result<Box<dyn Exporter>, String> {
    let mut values = values(entry, pairs);
    let enabled = entry.keys.iter().find(|key| key.path.ends_with(".enabled")).expect("each exporter has a switch");
    values.set(enabled, Value::Bool(true));
    let context = Context { hostname: hostname.to_owned(), feed: feed.clone() };
    Ok((entry.start)(&values, &context)?.expect("it is enabled"))
}

/// What an exporter says about itself: the value of the metric with these label values.
#[must_use]
pub fn reported(exporter: &dyn Exporter, name: &str, labels: &[&str]) -> Option<f64> {
    let mut batch = Batch::default();
    exporter.report(&mut batch);
    batch.iter().find_map(|(entry, key)| match entry.reading {
        Reading::Gauge(value) | Reading::Counter(value)
            if entry.metric.name == name && label_values(key).eq(labels.iter().copied()) =>
        {
            Some(value)
        }
        _ => None,
    })
}

/// Waits until `done`, and says `what` when that does not happen.
///
/// # Panics
/// After `limit`.
pub async fn until(what: &str, limit: Duration, mut done: impl FnMut() -> bool) {
    let reached = tokio::time::timeout(limit, async {
        while !done() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    assert!(reached.await.is_ok(), "not within {limit:?}: {what}");
}

/// The same for what has to be asked.
///
/// # Panics
/// After 20 s.
pub async fn until_async<F: Future<Output = bool>>(what: &str, mut done: impl FnMut() -> F) {
    let reached = tokio::time::timeout(Duration::from_secs(20), async {
        while !done().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    assert!(reached.await.is_ok(), "not within 20 s: {what}");
}

/// An alert that can be told from others by its number.
#[must_use]
pub fn alert(number: u32) -> Alert {
    Alert {
        value: f64::from(number),
        threshold: 0.0,
        labels: [("comm".to_owned(), HOSTILE.to_owned())].into(),
        status: if number.is_multiple_of(2) { Status::Firing } else { Status::Resolved },
        fingerprint: u64::from(number),
        id: format!("{number}-1"),
        ..Alert::new(
            "h",
            SystemTime::UNIX_EPOCH + Duration::from_secs(1_771_777_800),
            Severity::Critical,
            "oom_kill",
            format!("alert {number}"),
        )
    }
}

/// The text of a file of the repository, as `docs/schemas/metrics.schema.json`.
///
/// # Panics
/// When it is not there.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "a file of the repository")]
pub fn repository_file(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name(path);
    std::fs::read_to_string(&path).expect("the file is in the repository")
}
