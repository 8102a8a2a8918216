//! Configuration values by path, as a test writes them.

use sysops_agent::spec::{KeySpec, Value, Values};
use sysops_agent::{alert, analyze, deliver};

/// Values with these keys set.
///
/// # Panics
/// When no component has such a key.
#[must_use]
pub fn values<'a>(set: impl IntoIterator<Item = (&'a str, Value)>) -> Values {
    let mut values = Values::default();
    for (path, value) in set {
        values.set(key(path), value);
    }
    values
}

fn key(path: &str) -> &'static KeySpec {
    let analyzers = analyze::ALL.iter().flat_map(|entry| entry.keys);
    let channels = deliver::channel::ALL.iter().flat_map(|entry| entry.keys);
    let mut keys = alert::KEYS.iter().chain(deliver::outbox::KEYS).chain(analyzers).chain(channels);
    keys.find(|key| key.path == path).expect("a key that some component declares")
}
