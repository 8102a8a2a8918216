//! Limits and book together, driven by hand: a clock that a test turns, values that it makes up.

use std::time::{Duration, SystemTime};

use sysops_agent::alert::{Book, State};
use sysops_agent::analyze::{Analyzer, threshold::Threshold};
use sysops_agent::host::Clock;
use sysops_agent::model::event::OomKill;
use sysops_agent::model::{
    Alert, Audience, Batch, Desc, Detail, Event, Metric, Notice, Reading, Readings, Series, SeriesValue, Source, Unit,
};
use sysops_agent::spec::Values;

static DISK: Metric<3> = Metric::gauge("disk_usage_percent", Unit::Percent, "", &["device", "mountpoint", "fstype"]);

/// Label values of the file systems.
pub const KEYS: [&str; 3] = ["/dev/a\0/\0ext4\0", "/dev/b\0/data\0ext4\0", "/dev/c\0/srv\0xfs\0"];
/// Where they are mounted.
pub const MOUNTS: [&str; 3] = ["/", "/data", "/srv"];

/// Values of the three file systems; one without a value is not there.
pub struct Now(pub [Option<f64>; 3]);

impl Readings for Now {
    fn time(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH
    }

    fn visit(&self, each: &mut dyn FnMut(Series<'_>)) {
        let metric: &'static Desc = DISK.desc();
        for (key, value) in KEYS.into_iter().zip(self.0) {
            if let Some(value) = value {
                each(Series { metric, key, value: SeriesValue::Number(value) });
            }
        }
    }
}

/// The limits and the book of one configuration, and their clock.
pub struct Bench {
    /// Turned by hand.
    pub clock: Clock,
    threshold: Threshold,
    /// The book.
    pub book: Book,
}

impl Bench {
    /// An empty book.
    #[must_use]
    pub fn new(values: &Values) -> Self {
        Self { clock: Clock::fixed(), threshold: Threshold::new(values), book: Book::new(values, "web-1") }
    }

    /// One cycle, `secs` after the last.
    pub fn cycle(&mut self, secs: u64, disks: [Option<f64>; 3]) -> Vec<Alert> {
        machines(self.notices(secs, disks))
    }

    /// A kernel event.
    pub fn event(&mut self, event: &Event) -> Option<Alert> {
        let notice = self.book.event(event, &Now([None; 3]), &self.clock.now())?;
        machines(vec![notice]).pop()
    }

    /// The same with what is told as it is told.
    pub fn notices(&mut self, secs: u64, disks: [Option<f64>; 3]) -> Vec<Notice> {
        self.clock.advance(Duration::from_secs(secs));
        let now = self.clock.now();
        self.threshold.judge(&Now(disks), &mut |finding| self.book.finding(finding, &now));
        self.book.tick(&Now(disks), &now)
    }

    /// The agent ends and begins anew, in the same boot or another.
    ///
    /// # Panics
    /// When the book cannot read what it wrote.
    pub fn restart(&mut self, values: &Values, boots: [&str; 2]) -> Vec<Notice> {
        let kept = self.book.state(boots[0], &self.clock.now());
        self.book = Book::new(values, "web-1");
        self.book.restore(State::parse(&kept).expect("its own"), boots[1], &self.clock.now())
    }

    /// Cycles of 10 s with one value for the first file system.
    pub fn run(&mut self, cycles: usize, value: f64) -> Vec<Alert> {
        (0..cycles).flat_map(|_| self.cycle(10, [Some(value), None, None])).collect()
    }

    /// Now, by the monotonic clock.
    #[must_use]
    pub fn now(&self) -> Duration {
        self.clock.now().monotonic
    }

    /// What the book counts.
    ///
    /// # Panics
    /// When there is no such counter.
    #[must_use]
    pub fn counter(&self, name: &str, label: &str) -> f64 {
        let mut batch = Batch::default();
        self.book.collect(&mut batch);
        let found = batch.iter().find(|(entry, key)| entry.metric.name == name && key.trim_end_matches('\0') == label);
        let (Reading::Counter(value) | Reading::Gauge(value)) = found.expect("it is collected").0.reading else {
            unreachable!("{name} is a counter or a gauge")
        };
        value
    }
}

/// What machines get: each alert by itself and at once.
#[must_use]
pub fn machines(notices: Vec<Notice>) -> Vec<Alert> {
    let for_machines = notices.into_iter().filter(|notice| notice.audience != Audience::People);
    for_machines.flat_map(|notice| notice.alerts).collect()
}

/// An OOM kill of this process.
#[must_use]
pub fn oom_kill(pid: u32) -> Event {
    let detail = Detail::OomKill(OomKill { oom_memcg: Some("/a".to_owned()), ..OomKill::default() });
    Event {
        schema: Event::SCHEMA,
        time: "2026-02-22T16:30:00.000000000Z".to_owned(),
        source: vec![Source::TpBtf, Source::Kmsg],
        pid: Some(pid),
        tid: Some(pid),
        comm: Some("hog".to_owned()),
        uid: Some(0),
        cgroup: Some("/a/b".to_owned()),
        detail,
        monotonic_ns: 0,
    }
}
