//! Limits and book over ten thousand series: what a cycle decides, and how long that takes (`cargo xtask bench alerts` reads it).
#![expect(clippy::disallowed_methods, reason = "a test reads clocks as it likes")]

use std::time::{Duration, Instant, SystemTime};

use sysops_agent::alert::Book;
use sysops_agent::analyze::{Analyzer, threshold::Threshold};
use sysops_agent::host::Clock;
use sysops_agent::model::{Audience, Metric, Readings, Series, SeriesValue, Unit};
use sysops_agent::spec::{Value, Values};
use sysops_tests::values::values;

const SERIES: usize = 10_000;
const CYCLES: u32 = 20;

static DISK: Metric<3> = Metric::gauge("disk_usage_percent", Unit::Percent, "", &["device", "mountpoint", "fstype"]);

struct Disks {
    keys: Vec<String>,
    value: f64,
}

impl Readings for Disks {
    fn time(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH
    }

    fn visit(&self, each: &mut dyn FnMut(Series<'_>)) {
        for key in &self.keys {
            each(Series { metric: DISK.desc(), key, value: SeriesValue::Number(self.value) });
        }
    }
}

struct Bench {
    clock: Clock,
    threshold: Threshold,
    book: Book,
    disks: Disks,
    told: usize,
}

impl Bench {
    fn new(values: &Values) -> Self {
        let keys = (0..SERIES).map(|n| format!("/dev/mapper/vg-{n}\0/srv/volumes/{n}\0ext4\0")).collect();
        Self {
            clock: Clock::fixed(),
            threshold: Threshold::new(values),
            book: Book::new(values, "web-1"),
            disks: Disks { keys, value: 0.0 },
            told: 0,
        }
    }

    /// The middle of what cycles with this value take.
    fn cycles(&mut self, value: f64) -> Duration {
        let mut cycle = |n: u32| {
            // It is never twice the same.
            self.disks.value = value + f64::from(n) / 100.0;
            self.cycle()
        };
        let mut times: Vec<Duration> = (0..CYCLES).map(&mut cycle).collect();
        times.sort_unstable();
        times[times.len() / 2]
    }

    fn cycle(&mut self) -> Duration {
        self.clock.advance(Duration::from_secs(10));
        let (now, start) = (self.clock.now(), Instant::now());
        self.threshold.judge(&self.disks, &mut |finding| self.book.finding(finding, &now));
        let notices = self.book.tick(&self.disks, &now);
        let took = start.elapsed();
        let for_machines = notices.iter().filter(|notice| notice.audience != Audience::People);
        self.told += for_machines.map(|notice| notice.alerts.len()).sum::<usize>();
        took
    }
}

#[test]
fn ten_thousand_series_are_decided_in_every_cycle() {
    let mut bench = Bench::new(&values([("alerting.max_alerts_per_hour", Value::Int(10_000))]));
    let quiet = bench.cycles(50.0);
    assert_eq!(bench.told, 0);
    let firing = bench.cycles(93.0);
    assert_eq!(bench.told, SERIES, "each is an alert of its own");
    let limited = {
        let mut bench = Bench::new(&Values::default());
        let limited = bench.cycles(93.0);
        assert_eq!(bench.told, 60, "the hour's limit");
        limited
    };
    let ms = |time: Duration| time.as_secs_f64() * 1000.0;
    println!(
        "{SERIES} series: quiet {:.3} ms, firing {:.3} ms, held back {:.3} ms",
        ms(quiet),
        ms(firing),
        ms(limited)
    );
}
