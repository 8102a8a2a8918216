//! What someone may have meant who wrote a key or table that does not exist.

use strsim::osa_distance;

/// Largest edit distance that still counts as a slip of the finger.
const NEAR: usize = 2;

/// Most names that are listed when none is near.
const LISTED: usize = 8;

/// What to say about the unknown key `name` in `table`, given the paths of all known keys.
pub(super) fn key(table: &str, name: &str, known: &[&str]) -> Option<String> {
    let lower = name.to_lowercase().replace('-', "_");
    let here: Vec<&str> = known.iter().copied().filter_map(|path| in_table(path, table)).collect();
    if let Some(near) = nearest(&lower, here.iter().copied()) {
        return Some(format!("did you mean \"{near}\"?"));
    }
    let elsewhere = known.iter().filter(|path| last(path) == lower).map(|path| {
        let table = &path[..path.len() - lower.len()];
        if table.is_empty() { "the top of the file".to_owned() } else { format!("[{}]", table.trim_end_matches('.')) }
    });
    let elsewhere: Vec<String> = elsewhere.take(LISTED).collect();
    if !elsewhere.is_empty() {
        return Some(format!("\"{lower}\" is a key of {}", elsewhere.join(", ")));
    }
    (!here.is_empty()).then(|| format!("expected {}", listed(here)))
}

/// What to say about the unknown table `path`, given the paths of all known tables.
pub(super) fn table(path: &str, known: &[&str]) -> Option<String> {
    let lower = path.to_lowercase().replace('-', "_");
    if let Some(near) = nearest(&lower, known.iter().copied()) {
        return Some(format!("did you mean [{near}]?"));
    }
    let same_name: Vec<&str> = known.iter().copied().filter(|table| last(table) == last(&lower)).collect();
    if let [only] = same_name[..] {
        return Some(format!("did you mean [{only}]?"));
    }
    let parent = path.rsplit_once('.').map_or("", |(parent, _)| parent);
    let beside: Vec<&str> = known.iter().copied().filter(|table| in_table(table, parent).is_some()).collect();
    (!beside.is_empty()).then(|| format!("expected {}", listed(beside)))
}

/// The name of `path` within `table`, when it stands directly in it.
fn in_table<'a>(path: &'a str, table: &str) -> Option<&'a str> {
    let name = if table.is_empty() { path } else { path.strip_prefix(table)?.strip_prefix('.')? };
    (!name.contains('.')).then_some(name)
}

fn last(path: &str) -> &str {
    path.rsplit_once('.').map_or(path, |(_, name)| name)
}

fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    // Two edits turn any name of two letters into any other.
    let near = NEAR.min(name.chars().count() / 2);
    known
        .map(|candidate| (osa_distance(name, candidate), candidate))
        .filter(|&(distance, _)| distance <= near)
        .min()
        .map(|(_, candidate)| candidate)
}

fn listed(mut names: Vec<&str>) -> String {
    names.sort_unstable();
    let more = names.len().saturating_sub(LISTED);
    names.truncate(LISTED);
    let names = names.join(", ");
    if more == 0 { names } else { format!("{names} or {more} more (see docs/CONFIGURATION.md)") }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEYS: &[&str] = &["agent.hostname", "thresholds.cpu_percent", "nats.url", "alerting.webhook.url"];
    const TABLES: &[&str] = &["agent", "thresholds", "alerting", "alerting.webhook"];

    #[test]
    fn keys() {
        assert_eq!(key("agent", "hostnmae", KEYS).as_deref(), Some("did you mean \"hostname\"?"));
        assert_eq!(key("thresholds", "CPU-Percent", KEYS).as_deref(), Some("did you mean \"cpu_percent\"?"));
        assert_eq!(key("agent", "url", KEYS).as_deref(), Some("\"url\" is a key of [nats], [alerting.webhook]"));
        assert_eq!(key("agent", "colour", KEYS).as_deref(), Some("expected hostname"));
        assert_eq!(key("", "xy", KEYS), None);
    }

    #[test]
    fn tables() {
        assert_eq!(table("treshold", TABLES).as_deref(), Some("did you mean [thresholds]?"));
        assert_eq!(table("webhook", TABLES).as_deref(), Some("did you mean [alerting.webhook]?"));
        assert_eq!(table("alerting.pager", TABLES).as_deref(), Some("expected alerting.webhook"));
    }
}
