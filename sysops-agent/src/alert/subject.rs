//! What matchers see of an alert: severity, metric, rule, host and labels, whatever form it is in.

use std::collections::BTreeMap;

use super::inhibit::Named;
use super::page::Page;
use crate::model::{Alert, Severity};

/// An alert as matchers see it.
pub(super) struct Subject<'a> {
    severity: Severity,
    metric: &'a str,
    rule: &'a str,
    hostname: &'a str,
    labels: &'a BTreeMap<String, String>,
}

impl<'a> Subject<'a> {
    pub(super) fn of_page(page: &'a Page, hostname: &'a str) -> Self {
        let Page { metric, rule, labels, .. } = page;
        Self { severity: page.severity(), metric, rule, hostname, labels }
    }

    pub(super) fn of_alert(alert: &'a Alert) -> Self {
        let Alert { severity, metric, rule, hostname, labels, .. } = alert;
        Self { severity: *severity, metric, rule, hostname, labels }
    }
}

impl Named for Subject<'_> {
    fn get(&self, name: &str) -> Option<&str> {
        match name {
            "severity" => Some(self.severity.name()),
            "metric" => Some(self.metric),
            "rule" => Some(self.rule),
            "hostname" => Some(self.hostname),
            label => self.labels.get(label).map(String::as_str),
        }
    }
}
