//! Lists of everything that registered components declare: the source of generated documents and checks.

pub mod documents;
pub mod lint;

use crate::deliver::{channel, export, outbox};
use crate::model::Desc;
use crate::settings::{Absent, Declared, keys, later};
use crate::spec::{Check, Complaint, KeySpec, Values};
use crate::{alert, analyze, collect, control, correlate, inventory, kernel, logs, schedule, store};

/// A part of the agent and what it declares.
#[derive(Clone, Copy, Debug)]
pub struct Component {
    /// Its layer: `collect`, `kernel`, …
    pub layer: &'static str,
    /// Its file's name.
    pub name: &'static str,
    /// What it gives.
    pub metrics: &'static [&'static Desc],
    /// What can be configured.
    pub keys: &'static [&'static KeySpec],
}

/// Components that stand in no list of their own layer: one line for each.
pub static OTHERS: &[Component] = &[
    Component { layer: "settings", name: "agent", metrics: &[], keys: keys::ALL },
    Component { layer: "control", name: "socket", metrics: &[], keys: control::KEYS },
    Component { layer: "settings", name: "later", metrics: &[], keys: later::ALL },
    Component { layer: "kernel", name: "probes", metrics: kernel::METRICS, keys: kernel::KEYS },
    Component { layer: "inventory", name: "inventory", metrics: &[], keys: inventory::KEYS },
    Component { layer: "store", name: "store", metrics: store::METRICS, keys: store::KEYS },
    Component { layer: "alert", name: "book", metrics: alert::METRICS, keys: alert::KEYS },
    Component { layer: "deliver", name: "outbox", metrics: outbox::METRICS, keys: outbox::KEYS },
    Component { layer: "schedule", name: "collectors", metrics: schedule::METRICS, keys: &[] },
    Component { layer: "correlate", name: "correlate", metrics: correlate::METRICS, keys: &[] },
];

/// Components' looks at their own values: one line for each.
pub static CHECKS: &[Check] = &[keys::check, alert::check, control::check, rules, channels];

/// Their looks at what is accepted but does not do what it seems to.
pub static DOUBTS: &[Check] = &[channel::discord::doubts];

/// Tables of parts that were left out of this build.
pub static ABSENT: &[Absent] = &[
    #[cfg(not(feature = "email"))]
    Absent { table: "alerting.email", feature: "email" },
    #[cfg(not(feature = "nats"))]
    Absent { table: "nats", feature: "nats" },
    #[cfg(not(feature = "prometheus"))]
    Absent { table: "prometheus", feature: "prometheus" },
];

/// Kinds of kernel events, as [`crate::model::Event::kind`] names them.
pub static EVENT_KINDS: &[&str] = &["oom_kill", "hung_task", "fd_leak", "sigkill", "slow_io"];

/// Tables of the configuration in the order in which documents show them, each with what it is about.
/// A table that is not named here follows in the order of its name.
pub static TABLES: &[(&str, &str)] = &[
    ("agent", "The agent as a whole."),
    ("collector", "How often each collector reads."),
    ("inventory", "What the machine is: hardware, system, devices."),
    ("thresholds", "Limits at which a reading becomes an alert."),
    ("", "Rules of your own: each a table `[[rule]]`."),
    ("kernel", "All probes together."),
    ("kernel.oom_kill", "The probe of processes that the kernel kills for memory."),
    ("kernel.hung_task", "The probe of tasks that sleep and cannot be woken."),
    ("kernel.block_io", "The probe of block devices' latency and errors."),
    ("kernel.fd", "The probe of file descriptors."),
    ("cpu", "Machines with several sockets or NUMA nodes."),
    ("analyzer", "Analyzers that know what is usual."),
    ("storage", "What is remembered, and for how long."),
    ("log_analyzer", "Which logs are read, and what is looked for."),
    ("nats", "Telemetry to a NATS server."),
    ("prometheus", "Readings for a Prometheus server that asks."),
    ("alerting", "How often alerts may be sent. Channels have tables of their own."),
    ("alerting.console", "Alerts on standard output."),
    ("alerting.webhook", "Alerts as JSON to an HTTP server."),
    ("alerting.syslog", "Alerts to this machine's syslog."),
    ("alerting.discord", "Alerts to Discord."),
    ("alerting.slack", "Alerts to Slack."),
    ("alerting.telegram", "Alerts to Telegram."),
    ("alerting.email", "Alerts by mail."),
    ("alerting.nats", "Alerts to the NATS server of `[nats]`."),
];

/// All components: first what reads, then what carries, then the rest.
#[must_use]
pub fn components() -> Vec<Component> {
    let collectors = collect::ALL.iter().map(|entry| Component {
        layer: "collect",
        name: entry.name,
        metrics: entry.metrics,
        keys: entry.keys,
    });
    let probes = kernel::ALL.iter().map(|entry| Component {
        layer: "kernel",
        name: entry.name,
        metrics: entry.metrics,
        keys: entry.keys,
    });
    let logs = logs::ALL.iter().map(|entry| Component {
        layer: "logs",
        name: entry.name,
        metrics: entry.metrics,
        keys: entry.keys,
    });
    let analyzers = analyze::ALL.iter().map(|entry| Component {
        layer: "analyze",
        name: entry.name,
        metrics: &[],
        keys: entry.keys,
    });
    let channels = channel::ALL.iter().map(|entry| Component {
        layer: "channel",
        name: entry.name,
        metrics: &[],
        keys: entry.keys,
    });
    let exporters = export::ALL.iter().map(|entry| Component {
        layer: "export",
        name: entry.name,
        metrics: entry.metrics,
        keys: entry.keys,
    });
    let listed = collectors.chain(probes).chain(logs).chain(analyzers).chain(channels).chain(exporters);
    OTHERS.iter().copied().chain(listed).collect()
}

/// All metrics with the component that gives them; one that several give stands once.
#[must_use]
pub fn metrics() -> Vec<(Component, &'static Desc)> {
    let mut all: Vec<(Component, &'static Desc)> = Vec::new();
    for component in components() {
        for &metric in component.metrics {
            if !all.iter().any(|(_, known)| std::ptr::eq(*known, metric)) {
                all.push((component, metric));
            }
        }
    }
    all
}

/// All keys, none twice, by table as [`TABLES`] has them and then as their components list them.
#[must_use]
pub fn keys() -> Vec<&'static KeySpec> {
    let mut all: Vec<&'static KeySpec> = Vec::new();
    for key in components().into_iter().flat_map(|component| component.keys) {
        if !all.iter().any(|known| known.path == key.path) {
            all.push(key);
        }
    }
    let rank = |table: &str| TABLES.iter().position(|(name, _)| *name == table).unwrap_or(TABLES.len());
    all.sort_by_key(|key| (rank(key.table()), key.table(), !key.built));
    all
}

/// Everything that a configuration may say.
#[must_use]
pub fn declared() -> Declared {
    Declared { keys: keys(), absent: ABSENT.to_vec(), checks: CHECKS.to_vec(), doubts: DOUBTS.to_vec() }
}

/// What is wrong with the user's rules.
fn rules(values: &Values) -> Vec<Complaint> {
    let metrics: Vec<&Desc> = metrics().into_iter().map(|(_, metric)| metric).collect();
    let channels: Vec<&str> = channel::ALL.iter().map(|entry| entry.name).collect();
    analyze::rules::check(values, &metrics, &channels)
}

/// What channels find wrong with their values when they are made of them.
fn channels(values: &Values) -> Vec<Complaint> {
    let refused = channel::ALL.iter().filter_map(|entry| Some((entry, (entry.build)(values).err()?)));
    refused.map(|(entry, message)| complaint(&format!("alerting.{}", entry.name), message)).collect()
}

/// A complaint about the key with which the message begins (`alerting.webhook.url: …`), else about the table.
fn complaint(table: &str, message: String) -> Complaint {
    let key = message.split(':').next().filter(|path| path.starts_with(table) && !path.contains(' '));
    Complaint { path: key.unwrap_or(table).to_owned(), message }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::model::event::{FdLeak, HungTask, OomKill, Sigkill, SlowIo};
    use crate::model::{Detail, Event};

    #[test]
    fn one_path_is_one_key() {
        let mut seen: BTreeMap<&str, (&KeySpec, &str)> = BTreeMap::new();
        for component in components() {
            for &key in component.keys {
                if let Some((other, name)) = seen.insert(key.path, (key, component.name)) {
                    assert_eq!(key, other, "{} is declared by {name} and, otherwise, by {}", key.path, component.name);
                }
            }
        }
    }

    #[test]
    fn every_key_says_what_it_is_for() {
        for key in keys() {
            assert!(
                key.doc.ends_with('.') && key.doc.len() > 5,
                "{}: expected a sentence, found {:?}",
                key.path,
                key.doc
            );
            assert!(key.path.split('.').all(lint::is_snake_case), "{}: expected snake_case", key.path);
        }
    }

    #[test]
    fn one_name_is_one_metric() {
        let mut seen: BTreeMap<&str, Component> = BTreeMap::new();
        for (component, metric) in metrics() {
            if let Some(other) = seen.insert(metric.name, component) {
                panic!("{} is declared by {} and by {}", metric.name, other.name, component.name);
            }
        }
    }

    #[test]
    fn every_metric_is_named_by_the_rules() {
        let faults: Vec<String> = metrics().into_iter().flat_map(|(_, metric)| lint::faults(metric)).collect();
        assert!(faults.is_empty(), "{}", faults.join("\n"));
    }

    #[test]
    fn every_kind_of_event_is_listed() {
        let kind = |detail| {
            let (time, source) = (String::new(), Vec::new());
            let (pid, tid, comm, uid, cgroup) = (None, None, None, None, None);
            Event { schema: 1, time, source, pid, tid, comm, uid, cgroup, detail, monotonic_ns: 0 }.kind()
        };
        let kinds = [
            kind(Detail::OomKill(OomKill::default())),
            kind(Detail::HungTask(HungTask::default())),
            kind(Detail::FdLeak(FdLeak::default())),
            kind(Detail::Sigkill(Sigkill::default())),
            kind(Detail::SlowIo(SlowIo::default())),
        ];
        assert_eq!(kinds, *EVENT_KINDS);
    }

    #[test]
    fn a_channels_complaint_finds_its_key() {
        let path = |message: &str| complaint("alerting.webhook", message.to_owned()).path;
        assert_eq!(path("alerting.webhook.url: expected http:// or https://"), "alerting.webhook.url");
        assert_eq!(path("no TLS in this build: use http"), "alerting.webhook");
    }
}
