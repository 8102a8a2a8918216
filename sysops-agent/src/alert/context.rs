//! What a person needs to understand an alert: its value of late, who uses most of what it is about, kernel events that have to do
//! with it, the likely cause. It is gathered when someone is told, never in a steady cycle.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::inhibit::Named;
use crate::model::{Alert, Context, Readings, SeriesValue, Tick, Usage, bytes_text, cut};

/// Points of a course.
const COURSE_POINTS: usize = 30;

/// How far back a course goes.
const COURSE_SPAN: Duration = Duration::from_secs(3600);

/// Kernel events that are remembered, how long they have to do with anything, and bytes that are kept of each.
const EVENTS_MAX: usize = 64;
const EVENT_AGE_MAX: Duration = Duration::from_secs(1800);
const EVENT_BYTES_MAX: usize = 1024;

/// Events and processes that an alert shows.
const SHOWN_MAX: usize = 5;

/// A process that uses this much of what all listed use is the likely cause.
const DOMINATES: f64 = 0.5;

/// The metric that ranks processes by what alerts of a metric are about.
const TOP_CPU: &str = "process_top_cpu_percent";
const TOP_RSS: &str = "process_top_rss_bytes";
const TOP_FD: &str = "process_fd_used_percent";

/// What words in a metric's name are about: who uses most of it, and which kernel events have to do with it.
const ABOUT: [(&str, Option<&str>, &[&str]); 8] = [
    ("cpu", Some(TOP_CPU), &["hung_task"]),
    ("load", Some(TOP_CPU), &["hung_task", "slow_io"]),
    ("memory", Some(TOP_RSS), &["oom_kill", "sigkill"]),
    ("swap", Some(TOP_RSS), &["oom_kill", "sigkill"]),
    ("oom_kill", Some(TOP_RSS), &["oom_kill", "sigkill"]),
    ("fd_", Some(TOP_FD), &["fd_leak"]),
    ("disk", None, &["slow_io", "hung_task"]),
    ("hung_task", None, &["slow_io", "oom_kill"]),
];

/// Labels that name whom something happened to: an event with the same has to do with an alert.
const WHO: [&str; 3] = ["pid", "cgroup", "device"];

/// Kernel events of late, and facts of the host.
#[derive(Debug, Default)]
pub(super) struct Surroundings {
    events: VecDeque<Happened>,
    host: Vec<(String, String)>,
}

/// A kernel event as its alert told it. The time is the book's.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Happened {
    pub(super) at: Duration,
    pub(super) kind: String,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) message: String,
}

impl Named for Happened {
    fn get(&self, name: &str) -> Option<&str> {
        match name {
            "metric" | "rule" => Some(&self.kind),
            label => self.labels.get(label).map(String::as_str),
        }
    }
}

impl Surroundings {
    /// Facts of the host that do not change, for every alert.
    pub(super) fn set_host(&mut self, facts: Vec<(String, String)>) {
        self.host = facts;
    }

    /// Takes note of a kernel event.
    pub(super) fn note(&mut self, alert: &Alert, at: Duration) {
        self.events.truncate(EVENTS_MAX - 1);
        self.events.push_front(Happened {
            at,
            kind: alert.metric.clone(),
            labels: alert.labels.clone(),
            message: cut(&alert.message, EVENT_BYTES_MAX).to_owned(),
        });
    }

    /// Kernel events of the last `age`, newest first.
    pub(super) fn of_late(&self, age: Duration, at: Duration) -> impl Iterator<Item = &Happened> {
        self.events.iter().filter(move |event| at.saturating_sub(event.at) < age)
    }

    /// The context of an alert whose series has `key` (empty for a kernel event).
    pub(super) fn of(&self, alert: &Alert, key: &str, readings: &dyn Readings, at: Duration, now: &Tick) -> Context {
        let about = ABOUT.iter().find(|(word, ..)| alert.metric.contains(word));
        let top = about.and_then(|(_, metric, _)| *metric).map(|metric| top(metric, readings)).unwrap_or_default();
        let kinds = about.map_or(&[][..], |(.., kinds)| kinds);
        let is_same = |event: &Happened| {
            WHO.iter().any(|label| event.labels.get(*label).is_some_and(|who| alert.labels.get(*label) == Some(who)))
        };
        let itself = |event: &&Happened| event.kind != alert.metric || event.labels != alert.labels;
        let related = self.of_late(EVENT_AGE_MAX, at).filter(itself);
        let related: Vec<_> = related.filter(|event| is_same(event) || kinds.contains(&event.kind.as_str())).collect();
        let cause = related.iter().find(|event| is_same(event)).map(|event| event.message.clone());
        let (course, course_secs) = course(&alert.metric, key, now.monotonic, readings);
        let mut host = self.host.clone();
        host.push(("up".to_owned(), days(now.boottime)));
        Context {
            course,
            course_secs,
            cause: cause.or_else(|| dominant(&top)),
            top: top.into_iter().map(|(usage, _)| usage).take(SHOWN_MAX).collect(),
            events: related.iter().take(SHOWN_MAX).map(|event| event.message.clone()).collect(),
            host,
            ..Context::default()
        }
    }

    pub(super) fn state(&self) -> Vec<Happened> {
        self.events.iter().cloned().collect()
    }

    pub(super) fn restore(&mut self, events: Vec<Happened>) {
        self.events = events.into_iter().take(EVENTS_MAX).collect();
    }
}

/// The newest value of each of the last hour's [`COURSE_POINTS`] parts, and from when to when they reach.
fn course(metric: &str, key: &str, now: Duration, readings: &dyn Readings) -> (Vec<f64>, u64) {
    let from = now.saturating_sub(COURSE_SPAN);
    let mut first = None;
    readings.history(metric, key, &mut |time, _| {
        if time >= from {
            first.get_or_insert(time);
        }
    });
    let Some(first) = first else { return (Vec::new(), 0) };
    let span = now.saturating_sub(first);
    let mut points = [None; COURSE_POINTS];
    readings.history(metric, key, &mut |time, value| {
        if time >= first {
            let part = time.saturating_sub(first).as_millis() * (COURSE_POINTS as u128 - 1) / span.as_millis().max(1);
            points[usize::try_from(part).unwrap_or(0).min(COURSE_POINTS - 1)] = Some(value);
        }
    });
    (points.into_iter().flatten().collect(), span.as_secs())
}

/// Processes by a metric with the labels `pid` and `comm`, most first, with the value by which they rank.
fn top(metric: &str, readings: &dyn Readings) -> Vec<(Usage, f64)> {
    let mut top = Vec::new();
    readings.visit_metric(metric, &mut |series| {
        let SeriesValue::Number(value) = series.value else { return };
        let label = |wanted: &str| series.labels().find(|(name, _)| *name == wanted).map(|(_, value)| value);
        let uses = if metric == TOP_RSS { bytes(value) } else { format!("{value:.1} %") };
        let comm = label("comm").unwrap_or("").to_owned();
        top.push((Usage { pid: label("pid").and_then(|pid| pid.parse().ok()), comm, uses }, value));
    });
    top.sort_by(|a, b| b.1.total_cmp(&a.1));
    top
}

/// `java (pid 7) uses most of it: 1.2 GiB`, where one process does.
fn dominant(top: &[(Usage, f64)]) -> Option<String> {
    let (first, value) = top.first()?;
    let all: f64 = top.iter().map(|(_, value)| value).sum();
    let pid = first.pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default();
    (top.len() > 1 && *value > all * DOMINATES).then(|| format!("{}{pid} uses most of it: {}", first.comm, first.uses))
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "bytes of memory, below 2^63")]
fn bytes(value: f64) -> String {
    bytes_text(value.max(0.0) as u64)
}

/// `12 d`, `5 h`, `3 min`.
fn days(length: Duration) -> String {
    match length.as_secs() {
        secs @ 0..7200 => format!("{} min", secs / 60),
        secs @ 7200..172_800 => format!("{} h", secs / 3600),
        secs => format!("{} d", secs / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::Clock;
    use crate::model::{Metric, Series, Severity, Unit};

    static MEMORY: Metric<0> = Metric::gauge("memory_used_percent", Unit::Percent, "", &[]);
    static RSS: Metric<2> = Metric::gauge(TOP_RSS, Unit::Bytes, "", &["pid", "comm"]);

    /// Memory that has risen by one percent a minute for two hours, and two processes.
    struct Now(Duration);

    impl Readings for Now {
        fn time(&self) -> std::time::SystemTime {
            std::time::SystemTime::UNIX_EPOCH
        }

        fn visit(&self, each: &mut dyn FnMut(Series<'_>)) {
            each(Series { metric: MEMORY.desc(), key: "", value: SeriesValue::Number(97.0) });
            for (key, value) in [("8\0small\0", 1024.0), ("7\0ja\u{1b}va\0", 3_221_225_472.0)] {
                each(Series { metric: RSS.desc(), key, value: SeriesValue::Number(value) });
            }
        }

        fn history(&self, metric: &str, _: &str, each: &mut dyn FnMut(Duration, f64)) {
            if metric == MEMORY.desc().name {
                for minute in 0..=120_u32 {
                    each(self.0.saturating_sub(Duration::from_secs(60) * (120 - minute)), f64::from(minute) * 0.8);
                }
            }
        }
    }

    fn alert(metric: &str, labels: &[(&str, &str)], message: &str) -> Alert {
        let labels = labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let time = std::time::SystemTime::UNIX_EPOCH;
        Alert { labels, ..Alert::new("h", time, Severity::Warn, metric, message.to_owned()) }
    }

    #[test]
    fn an_alert_has_its_last_hour_who_uses_most_and_what_happened() {
        let now = Clock::fixed().now();
        let (at, readings) = (now.monotonic, Now(now.monotonic));
        let mut around = Surroundings::default();
        around.set_host(vec![("kernel".to_owned(), "6.1".to_owned())]);
        around.note(&alert("slow_io", &[("device", "sda")], "a slow disk"), at);
        around.note(&alert("oom_kill", &[("pid", "9"), ("cgroup", "/db")], "a kill"), at);
        let memory = alert("memory_used_percent", &[], "97 %");
        let context = around.of(&memory, "", &readings, at, &now);
        assert_eq!((context.course.len(), context.course_secs), (30, 3600));
        assert!(context.course.is_sorted() && context.course.last() == Some(&96.0), "{:?}", context.course);
        assert_eq!(context.top[0], Usage { pid: Some(7), comm: "ja\u{1b}va".to_owned(), uses: "3.0 GiB".to_owned() });
        assert_eq!(context.events, ["a kill"], "a slow disk has nothing to do with it");
        assert_eq!(context.cause.as_deref(), Some("ja\u{1b}va (pid 7) uses most of it: 3.0 GiB"));
        assert_eq!(context.host[0].1, "6.1");
        let service = around.of(&alert("service_up", &[("cgroup", "/db")], "down"), "", &readings, at, &now);
        assert_eq!(service.cause.as_deref(), Some("a kill"), "what happened to the same cgroup is the cause");
        assert_eq!((service.course.len(), service.top.len()), (0, 0));
        let later = around.of(&memory, "", &readings, at + EVENT_AGE_MAX, &now);
        assert_eq!(later.events, Vec::<String>::new());
    }
}
