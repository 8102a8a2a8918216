//! An alert that a test expects, held against those that are live.

use std::collections::BTreeMap;

use crate::model::matcher::is_like;
use crate::model::{Listed, Severity, Standing, shown};

/// What an alert must be like; what is `None` may be anything.
pub(super) struct Expected {
    pub(super) rule: Option<String>,
    pub(super) metric: Option<String>,
    pub(super) severity: Option<Severity>,
    pub(super) standing: Standing,
    /// Names and patterns.
    pub(super) labels: BTreeMap<String, String>,
    pub(super) summary: Option<String>,
}

impl Expected {
    fn is(&self, alert: &Listed) -> bool {
        let same = |wanted: &Option<String>, found: &String| wanted.as_ref().is_none_or(|wanted| wanted == found);
        let label =
            |(name, pattern): (&String, &String)| is_like(pattern, alert.labels.get(name).map_or("", String::as_str));
        same(&self.rule, &alert.rule)
            && same(&self.metric, &alert.metric)
            && same(&self.summary, &alert.message)
            && self.severity.is_none_or(|severity| severity == alert.severity)
            && self.standing == alert.standing
            && self.labels.iter().all(label)
    }

    /// In one line, for people.
    pub(super) fn line(&self) -> String {
        let severity = self.severity.map(Severity::name);
        line(
            self.standing,
            severity,
            self.rule.as_deref(),
            self.metric.as_deref(),
            &self.labels,
            self.summary.as_deref(),
        )
    }
}

/// An alert that is live, in the words in which it is expected.
pub(super) fn live_line(alert: &Listed) -> String {
    let Listed { standing, severity, rule, metric, labels, message, .. } = alert;
    // What is pending has no sentence yet.
    let summary = Some(message.as_str()).filter(|message| !message.is_empty());
    line(*standing, Some(severity.name()), Some(rule), Some(metric), labels, summary)
}

fn line(
    standing: Standing,
    severity: Option<&str>,
    rule: Option<&str>,
    metric: Option<&str>,
    labels: &BTreeMap<String, String>,
    summary: Option<&str>,
) -> String {
    let fields = [("severity", severity), ("rule", rule), ("metric", metric)];
    let fields = fields.into_iter().filter_map(|(name, value)| Some((name, value?)));
    let labels = labels.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    let named = fields.chain(labels).map(|(name, value)| format!("{}={}", shown(name, 64), shown(value, 200)));
    let summary = summary.map(|summary| format!("summary={:?}", shown(summary, 500)));
    let words: Vec<String> = std::iter::once(standing.name().to_owned()).chain(named).chain(summary).collect();
    words.join(" ")
}

/// True when each of `expected` is another one of `live`, and no other is live. What is pending is no alert yet: it may be
/// there unexpected.
pub(super) fn all_are_there(expected: &[Expected], live: &[Listed]) -> bool {
    let mut taken_by = vec![None; live.len()];
    let found = (0..expected.len()).all(|one| find(one, expected, live, &mut taken_by, &mut vec![false; live.len()]));
    let unexpected = |(alert, taken): (&Listed, &Option<usize>)| taken.is_none() && alert.standing != Standing::Pending;
    found && !live.iter().zip(&taken_by).any(unexpected)
}

/// Finds a live alert for `one`; those who have it already look for another (Kuhn's way to a matching).
fn find(
    one: usize,
    expected: &[Expected],
    live: &[Listed],
    taken_by: &mut [Option<usize>],
    asked: &mut [bool],
) -> bool {
    for at in 0..live.len() {
        if asked[at] || !expected[one].is(&live[at]) {
            continue;
        }
        asked[at] = true;
        if taken_by[at].is_none_or(|other| find(other, expected, live, taken_by, asked)) {
            taken_by[at] = Some(one);
            return true;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    fn live(mount: &str, standing: Standing) -> Listed {
        Listed {
            fingerprint: 1,
            standing,
            severity: Severity::Warn,
            rule: "r".to_owned(),
            metric: "m".to_owned(),
            labels: [("mountpoint".to_owned(), mount.to_owned())].into(),
            value: 1.0,
            threshold: 1.0,
            message: "text".to_owned(),
            starts_at: SystemTime::UNIX_EPOCH,
            because: String::new(),
        }
    }

    fn expected(mount: &str) -> Expected {
        Expected {
            rule: None,
            metric: None,
            severity: None,
            standing: Standing::Firing,
            labels: [("mountpoint".to_owned(), mount.to_owned())].into(),
            summary: None,
        }
    }

    #[test]
    fn exactly_those_are_live() {
        let two = [live("/data", Standing::Firing), live("/", Standing::Firing)];
        assert!(all_are_there(&[expected("/"), expected("/data")], &two));
        assert!(all_are_there(&[expected("*"), expected("/data")], &two), "the pattern makes room");
        assert!(all_are_there(&[expected("/data"), expected("*")], &two));
        assert!(!all_are_there(&[expected("*")], &two), "one is unexpected");
        assert!(!all_are_there(&[expected("*"), expected("*"), expected("*")], &two), "one is missing");
        assert!(!all_are_there(&[expected("/data"), expected("/data")], &two));
        assert!(all_are_there(&[], &[live("/", Standing::Pending)]) && !all_are_there(&[], &two));
        let pending = Expected { standing: Standing::Pending, ..expected("/") };
        assert!(all_are_there(&[pending], &[live("/", Standing::Pending)]));
    }
}
