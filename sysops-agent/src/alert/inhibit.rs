//! Causes silence what follows from them: while an alert fires, or a kernel event is fresh, alerts that it explains are not told.
//! Should one still fire when its cause is over, it is told then.

use std::time::Duration;

use crate::model::{Matcher, MatcherError};
use crate::spec::{Complaint, Key, Table, Values, path_in};

pub(super) static RULES: Key<Vec<Table>> = Key::tables(
    "alerting.inhibit",
    &[SOURCE.spec(), TARGET.spec(), EQUAL.spec()],
    "What explains what: while an alert that matches source fires (a kernel event: for 5 minutes), those that match target and \
     have the same value for each label of equal are not told. Built in: load explains CPU usage, CPU usage that of a socket, \
     an OOM kill what its victim's cgroup shows.",
)
.example("[{ source = { metric = \"disk_io_errors\" }, target = { metric = \"disk_*\" }, equal = [\"device\"] }]");
static SOURCE: Key<std::collections::BTreeMap<String, String>> =
    Key::map("source", "The cause: severity, metric, rule, hostname or labels, each a pattern in which * is any text.");
static TARGET: Key<std::collections::BTreeMap<String, String>> =
    Key::map("target", "What it explains, in the same words.");
static EQUAL: Key<Vec<String>> = Key::list("equal", &[], "Labels that both must have with the same value.");

/// For how long a kernel event explains.
pub(super) const EVENT_EXPLAINS: Duration = Duration::from_secs(300);

/// One rule: who explains whom.
#[derive(Clone, Debug)]
struct Rule {
    source: Matcher,
    target: Matcher,
    equal: Vec<String>,
}

/// The built-in rules: source, target, labels that must be equal.
const BUILT_IN: [(&str, &str, &[&str]); 3] = [
    ("metric=load_per_cpu", "metric=cpu_*usage_percent", &[]),
    ("metric=cpu_usage_percent", "metric=cpu_socket_usage_percent", &[]),
    ("metric=oom_kill", "metric=service_*", &["cgroup"]),
];

/// Who explains whom.
#[derive(Clone, Debug)]
pub(super) struct Inhibition {
    rules: Vec<Rule>,
}

/// What an alert is called by matchers: its labels, and what every alert has.
pub(super) trait Named {
    fn get(&self, name: &str) -> Option<&str>;
}

impl Inhibition {
    /// The rules of a configuration that was checked; others are left out.
    pub(super) fn new(values: &Values) -> Self {
        let built_in = BUILT_IN.iter().filter_map(|(source, target, equal)| {
            let equal = equal.iter().map(|label| (*label).to_owned()).collect();
            Some(Rule { source: source.parse().ok()?, target: target.parse().ok()?, equal })
        });
        let own = values.get(&RULES).into_iter().filter_map(|table| {
            let matcher = |key| Matcher::new(table.get(key)).ok().filter(|matcher| !matcher.is_empty());
            Some(Rule { source: matcher(&SOURCE)?, target: matcher(&TARGET)?, equal: table.get(&EQUAL) })
        });
        Self { rules: built_in.chain(own).collect() }
    }

    /// True when something explains alerts such as `target` at all.
    pub(super) fn concerns(&self, target: &dyn Named) -> bool {
        self.rules.iter().any(|rule| rule.target.matches(|name| target.get(name)))
    }

    /// True when `source` explains `target`.
    pub(super) fn explains(&self, source: &dyn Named, target: &dyn Named) -> bool {
        self.rules.iter().any(|rule| {
            let is_equal = |label: &String| source.get(label).is_some() && source.get(label) == target.get(label);
            rule.target.matches(|name| target.get(name))
                && rule.source.matches(|name| source.get(name))
                && rule.equal.iter().all(is_equal)
        })
    }
}

/// What is wrong with the user's rules.
pub(super) fn check(values: &Values, complaints: &mut Vec<Complaint>) {
    for (index, table) in values.get(&RULES).iter().enumerate() {
        for key in [&SOURCE, &TARGET] {
            let message = match Matcher::new(table.get(key)) {
                Ok(matcher) if !matcher.is_empty() => continue,
                Ok(_) => "expected at least one condition, as { metric = \"load_per_cpu\" }".to_owned(),
                Err(error @ (MatcherError::TooMuch | MatcherError::NoCondition(_) | MatcherError::Twice(_))) => {
                    error.to_string()
                }
            };
            complaints.push(Complaint { path: path_in(RULES.spec(), index, key.spec()), message });
        }
    }
}
