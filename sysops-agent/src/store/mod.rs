//! Remembers readings: the newest value of every series, and a bounded ring of samples of those that analyzers look
//! at. Rates are computed here, once. What is too much or too fast is left to `analyze`.

pub mod rate;
pub mod ring;
pub mod view;

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use crate::model::{Batch, Desc, Kind, Metric, Reading, Series, SeriesValue, Tick, Unit};
use crate::spec::{Key, KeySpec, Values};
use ring::{Pool, Ring};

/// Samples of a series that are kept.
pub static CAPACITY: Key<i64> = Key::int(
    "storage.ring_buffer_capacity",
    8640,
    64,
    1_000_000,
    "Samples kept in memory for each series: 8640 is 24 hours at 10 seconds.",
);

/// Bytes for the samples of all series.
pub static MAX_BYTES: Key<i64> = Key::int(
    "storage.ring_buffer_max_bytes",
    4 << 20,
    64 << 10,
    1 << 32,
    "Bytes of memory for the samples of all series together. When they are used up the oldest samples go first, \
     whatever `ring_buffer_capacity` says.",
);

/// Series that are known at a time.
pub static MAX_SERIES: Key<i64> = Key::int(
    "storage.max_series",
    20_000,
    1000,
    1_000_000,
    "Series that are known at a time. Readings of further ones are dropped, and counted in \
     `store_dropped_readings_total`.",
);

/// The keys of this component.
pub static KEYS: &[&KeySpec] = &[CAPACITY.spec(), MAX_BYTES.spec(), MAX_SERIES.spec()];

static SERIES: Metric<0> = Metric::gauge("store_series", Unit::Count, "Series that are known.", &[]);
static SAMPLE_BYTES: Metric<0> =
    Metric::gauge("store_sample_bytes", Unit::Bytes, "Memory of the samples that are remembered.", &[]);
static DROPPED: Metric<0> = Metric::counter(
    "store_dropped_readings_total",
    Unit::Count,
    "Readings dropped because storage.max_series was reached.",
    &[],
);

/// The metrics of this component.
pub static METRICS: &[&Desc] = &[SERIES.desc(), SAMPLE_BYTES.desc(), DROPPED.desc()];

/// A series that was not read for this long is forgotten with its samples.
const FORGET_AFTER: Duration = Duration::from_secs(600);

/// No slot.
const NONE: u32 = u32::MAX;

struct Slot {
    metric: &'static Desc,
    key: Box<str>,
    component: usize,
    cycle: u64,
    seen: Duration,
    value: Option<f64>,
    histogram: Option<Histogram>,
    previous: Option<rate::Previous>,
    ring: Ring,
}

struct Histogram {
    counts: Vec<u64>,
    sum: f64,
}

#[derive(Default)]
struct Component {
    cycle: u64,
    // The slot of the n-th reading of the last cycle. Components read in the same order each time, so nearly every
    // reading finds its series by one comparison.
    hints: Vec<u32>,
}

struct Family {
    metric: &'static Desc,
    slots: BTreeMap<Box<str>, u32>,
}

/// All series.
pub struct Store {
    slots: Vec<Option<Slot>>,
    free: Vec<u32>,
    // Sorted by the metric's name: exporters want families together and in a steady order.
    families: Vec<Family>,
    components: Vec<Component>,
    pool: Pool,
    max_series: usize,
    dropped: u64,
    time: SystemTime,
    swept: Duration,
}

impl Store {
    /// An empty store for `components` components.
    #[must_use]
    pub fn new(values: &Values, components: usize) -> Self {
        let limit = |key| usize::try_from(values.get(key)).unwrap_or(usize::MAX);
        Self {
            slots: Vec::new(),
            free: Vec::new(),
            families: Vec::new(),
            components: (0..components).map(|_| Component::default()).collect(),
            pool: Pool::new(limit(&MAX_BYTES), limit(&CAPACITY)),
            max_series: limit(&MAX_SERIES),
            dropped: 0,
            time: SystemTime::UNIX_EPOCH,
            swept: Duration::ZERO,
        }
    }

    /// Takes in what `component` read at `tick`. Series of that component that are not in `batch` are no longer alive:
    /// a component that failed gives an empty batch, and its old values are not shown as if they were new.
    pub fn ingest(&mut self, component: usize, batch: &Batch, tick: Tick) {
        self.time = tick.wall;
        self.components[component].cycle += 1;
        for (position, (entry, key)) in batch.iter().enumerate() {
            let Some(id) = self.slot(component, position, entry.metric, key) else {
                self.dropped += 1;
                continue;
            };
            let cycle = self.components[component].cycle;
            let Some(slot) = self.slots[id as usize].as_mut() else { continue };
            (slot.component, slot.cycle, slot.seen) = (component, cycle, tick.monotonic);
            if let Reading::Histogram { first, len, sum } = entry.reading {
                let histogram = slot.histogram.get_or_insert_with(|| Histogram { counts: Vec::new(), sum });
                histogram.counts.clear();
                histogram.counts.extend_from_slice(batch.buckets(first, len));
                histogram.sum = sum;
                continue;
            }
            slot.value = rate::advance(&mut slot.previous, entry.reading, tick.monotonic);
            if let Some(value) = slot.value
                && is_remembered(entry.metric)
            {
                self.remember(id, tick.monotonic, value);
            }
        }
        if tick.monotonic.saturating_sub(self.swept) > FORGET_AFTER / 10 {
            self.swept = tick.monotonic;
            self.forget(tick.monotonic);
        }
    }

    /// Adds the store's own readings.
    pub fn collect(&self, out: &mut Batch) {
        let number = |count: usize| u32::try_from(count).map_or(f64::from(u32::MAX), f64::from);
        out.gauge(&SERIES, [], number(self.slots.len() - self.free.len()));
        out.gauge(&SAMPLE_BYTES, [], number(self.pool.bytes()));
        #[expect(clippy::cast_precision_loss, reason = "exact up to 2^53")]
        out.counter(&DROPPED, [], self.dropped as f64);
    }

    fn slot(&mut self, component: usize, position: usize, metric: &'static Desc, key: &str) -> Option<u32> {
        let hint = self.components[component].hints.get(position).copied().unwrap_or(NONE);
        if let Some(Some(slot)) = self.slots.get(hint as usize)
            && std::ptr::eq(slot.metric, metric)
            && *slot.key == *key
        {
            return Some(hint);
        }
        let id = self.find_or_add(component, metric, key)?;
        let hints = &mut self.components[component].hints;
        if hints.len() <= position {
            hints.resize(position + 1, NONE);
        }
        hints[position] = id;
        Some(id)
    }

    fn find_or_add(&mut self, component: usize, metric: &'static Desc, key: &str) -> Option<u32> {
        let family = match self.families.binary_search_by(|family| family.metric.name.cmp(metric.name)) {
            Ok(found) => found,
            Err(place) => {
                self.families.insert(place, Family { metric, slots: BTreeMap::new() });
                place
            }
        };
        if let Some(&id) = self.families[family].slots.get(key) {
            return Some(id);
        }
        if self.slots.len() - self.free.len() >= self.max_series {
            return None;
        }
        let slot = Slot {
            metric,
            key: key.into(),
            component,
            cycle: 0,
            seen: Duration::ZERO,
            value: None,
            histogram: None,
            previous: None,
            ring: Ring::default(),
        };
        let id = if let Some(id) = self.free.pop() {
            self.slots[id as usize] = Some(slot);
            id
        } else {
            self.slots.push(Some(slot));
            u32::try_from(self.slots.len() - 1).ok()?
        };
        self.families[family].slots.insert(key.into(), id);
        Some(id)
    }

    fn remember(&mut self, id: u32, at: Duration, value: f64) {
        let Some(Some(slot)) = self.slots.get_mut(id as usize) else { return };
        let mut ring = std::mem::take(&mut slot.ring);
        let mut fits = self.pool.push(&mut ring, at, value);
        while !fits {
            let others = self.slots.iter_mut().flatten().map(|slot| &mut slot.ring);
            match ring::oldest(others.chain(std::iter::once(&mut ring))) {
                Some(victim) => _ = self.pool.drop_oldest(victim),
                None => break, // A budget below one chunk: nothing can be remembered.
            }
            fits = self.pool.push(&mut ring, at, value);
        }
        if let Some(Some(slot)) = self.slots.get_mut(id as usize) {
            slot.ring = ring;
        }
    }

    fn forget(&mut self, now: Duration) {
        for (index, place) in self.slots.iter_mut().enumerate() {
            if let Some(slot) = place
                && now.saturating_sub(slot.seen) > FORGET_AFTER
                && let Some(mut gone) = place.take()
            {
                self.pool.reclaim(&mut gone.ring);
                if let Ok(family) = self.families.binary_search_by(|family| family.metric.name.cmp(gone.metric.name)) {
                    self.families[family].slots.remove(&gone.key);
                }
                self.free.push(u32::try_from(index).unwrap_or(NONE));
            }
        }
    }

    fn time(&self) -> SystemTime {
        self.time
    }

    fn ring(&self, metric: &str, key: &str) -> Option<&Ring> {
        let family = self.families.binary_search_by(|family| family.metric.name.cmp(metric)).ok()?;
        let id = *self.families[family].slots.get(key)?;
        self.slots[id as usize].as_ref().filter(|slot| is_remembered(slot.metric)).map(|slot| &slot.ring)
    }

    fn visit(&self, each: &mut dyn FnMut(Series<'_>)) {
        for family in &self.families {
            self.visit_family(family, each);
        }
    }

    fn visit_metric(&self, name: &str, each: &mut dyn FnMut(Series<'_>)) {
        if let Ok(family) = self.families.binary_search_by(|family| family.metric.name.cmp(name)) {
            self.visit_family(&self.families[family], each);
        }
    }

    fn visit_family(&self, family: &Family, each: &mut dyn FnMut(Series<'_>)) {
        for &id in family.slots.values() {
            let Some(slot) = &self.slots[id as usize] else { continue };
            if slot.cycle != self.components[slot.component].cycle {
                continue;
            }
            let value = match (&slot.histogram, slot.value) {
                (Some(histogram), _) => SeriesValue::Histogram { counts: &histogram.counts, sum: histogram.sum },
                (None, Some(value)) => SeriesValue::Number(value),
                (None, None) => continue,
            };
            each(Series { metric: slot.metric, key: &slot.key, value });
        }
    }
}

/// Raw series under node_exporter's names are for scrapers, which remember them; the analyzers look at the agent's own
/// gauges. So only these are remembered, and the byte budget lasts for hours and not for minutes.
fn is_remembered(metric: &Desc) -> bool {
    metric.kind == Kind::Gauge && !metric.name.starts_with("node_")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::Value;
    use view::View;

    static LOAD: Metric<0> = Metric::gauge("load", Unit::Count, "", &[]);
    static RATE: Metric<1> = Metric::gauge("rate", Unit::PerSecond, "", &["device"]);
    static RAW: Metric<1> = Metric::counter("node_raw_total", Unit::Count, "", &["device"]);

    fn tick(second: u64) -> Tick {
        let time = Duration::from_secs(second);
        Tick { monotonic: time, boottime: time, wall: SystemTime::UNIX_EPOCH + time }
    }

    fn alive(store: &Store) -> Vec<String> {
        let mut all = Vec::new();
        store.visit(&mut |series| {
            let labels: Vec<&str> = series.labels().map(|(_, value)| value).collect();
            let SeriesValue::Number(value) = series.value else { panic!("a number") };
            all.push(format!("{}{labels:?} {value}", series.metric.name));
        });
        all
    }

    fn devices(names: &[&str], total: f64) -> Batch {
        let mut batch = Batch::default();
        for name in names {
            batch.per_second(&RATE, [name], total);
            batch.counter(&RAW, [name], total);
        }
        batch
    }

    #[test]
    fn series_of_one_name_and_other_labels_are_kept_apart() {
        let mut store = Store::new(&Values::default(), 1);
        store.ingest(0, &devices(&["sda", "sdb"], 0.0), tick(0));
        assert_eq!(alive(&store), ["node_raw_total[\"sda\"] 0", "node_raw_total[\"sdb\"] 0"]);
        store.ingest(0, &devices(&["sdb", "sda"], 20.0), tick(10));
        assert_eq!(alive(&store).len(), 4);
        assert_eq!(View::new(&store).samples("rate", "sdb\0").map(Iterator::count), Some(1));
        assert!(View::new(&store).samples("node_raw_total", "sdb\0").is_none(), "raw counters are not remembered");
    }

    #[test]
    fn a_series_that_was_not_read_is_not_alive_and_later_forgotten() {
        let mut store = Store::new(&Values::default(), 2);
        store.ingest(0, &devices(&["sda", "sdb"], 0.0), tick(0));
        store.ingest(0, &devices(&["sda"], 1.0), tick(10));
        store.ingest(1, &Batch::default(), tick(11));
        assert_eq!(alive(&store), ["node_raw_total[\"sda\"] 1", "rate[\"sda\"] 0.1"]);
        store.ingest(0, &Batch::default(), tick(20));
        assert!(alive(&store).is_empty(), "a failed component shows nothing old");
        store.ingest(0, &devices(&["sda"], 2.0), tick(1000));
        assert_eq!(store.slots.len() - store.free.len(), 2);
    }

    #[test]
    fn series_are_bounded_and_what_is_dropped_is_counted() {
        let mut values = Values::default();
        values.set(MAX_SERIES.spec(), Value::Int(3));
        let mut store = Store::new(&values, 1);
        store.ingest(0, &devices(&["a", "b", "c"], 0.0), tick(0));
        assert_eq!((store.slots.len(), store.dropped), (3, 3));
    }

    #[test]
    fn memory_is_bounded_by_bytes_however_long_it_runs() {
        let mut values = Values::default();
        values.set(MAX_BYTES.spec(), Value::Int(64 << 10));
        let mut store = Store::new(&values, 1);
        let mut batch = Batch::default();
        batch.gauge(&LOAD, [], 1.0);
        for device in 0..50 {
            batch.per_second(&RATE, [&device.to_string()], 1.0);
        }
        for second in 0..2000 {
            store.ingest(0, &batch, tick(second));
            assert!(store.pool.bytes() <= 64 << 10);
        }
        let newest = View::new(&store).samples("load", "").and_then(|mut samples| samples.next_back());
        assert_eq!(newest, Some((Duration::from_secs(1999), 1.0)));
    }
}
