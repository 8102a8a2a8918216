//! The book of alerts: pending, firing, resolved, one page for each rule and series. What people are told of it is
//! kept within limits by `throttle`; carrying it to them is left to `deliver`.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use crate::model::{Alert, Batch, Event, Finding, Level, Severity, Status, Tick, shown};
use crate::spec::Values;

use super::hangs::Hangs;
use super::throttle::{Reason, Throttle};
use super::{ACTIVE, FIRED, RESOLVED, SUPPRESSED, events, fingerprint};

/// A series that is not seen for this long ends its alert: the process is gone, the disk unplugged.
const STALE_AFTER: Duration = Duration::from_secs(300);

/// A breach with a longer hole in it starts anew: nothing is known of the time between. Where cycles themselves are
/// farther apart, one of them may be missing.
const GAP_MAX: Duration = Duration::from_secs(90);

const SEVERITIES: [Severity; 4] = Severity::ALL;

/// All alerts that are pending or firing.
#[derive(Debug)]
pub struct Book {
    hostname: String,
    throttle: Throttle,
    pages: HashMap<u64, Page>,
    hangs: Hangs,
    notices: Vec<Alert>,
    gap_max: Duration,
    fired: [u64; SEVERITIES.len()],
    resolved: u64,
    suppressed: [u64; Reason::ALL.len()],
}

/// One rule on one series that is in breach. Times are monotonic.
#[derive(Debug)]
struct Page {
    metric: &'static str,
    labels: BTreeMap<String, String>,
    /// Since when the value has been at least this bad, by severity.
    since: [Option<Duration>; SEVERITIES.len()],
    seen: Duration,
    firing: Option<Severity>,
    /// The severity at which people were told; lower than `firing` while a limit holds it back.
    told: Option<Severity>,
    value: f64,
    threshold: f64,
    message: String,
}

impl Book {
    /// An empty book.
    #[must_use]
    pub fn new(values: &Values, hostname: &str) -> Self {
        Self {
            hostname: hostname.to_owned(),
            throttle: Throttle::new(values),
            pages: HashMap::new(),
            hangs: Hangs::default(),
            notices: Vec::new(),
            gap_max: GAP_MAX,
            fired: [0; SEVERITIES.len()],
            resolved: 0,
            suppressed: [0; Reason::ALL.len()],
        }
    }

    /// Takes new limits and keeps every page.
    pub fn reload(&mut self, values: &Values, hostname: &str) {
        self.throttle.reload(values);
        hostname.clone_into(&mut self.hostname);
    }

    /// Says how far apart cycles are to be.
    pub fn expect_cycles_every(&mut self, between: Duration) {
        self.gap_max = GAP_MAX.max(between * 2);
    }

    /// Takes one rule's word on one series. Its notices come with the next [`Book::tick`].
    pub fn finding(&mut self, finding: &Finding<'_>, now: &Tick) {
        if finding.level != Level::Breach && self.pages.is_empty() {
            return;
        }
        let fingerprint = fingerprint(finding.rule, finding.metric.name, finding.labels());
        match finding.level {
            Level::Breach => self.breach(fingerprint, finding, now),
            Level::Between => self.between(fingerprint, finding, now),
            Level::Clear => {
                if let Some(page) = self.pages.remove(&fingerprint) {
                    self.resolve(fingerprint, page, finding.value, || finding.message.to_string(), now);
                }
            }
        }
    }

    /// The alert of a kernel event, unless it is not worth one, or a limit holds it back (then it is counted for the
    /// summary). The end of a hang resolves what was told of it.
    pub fn event(&mut self, event: &Event, now: &Tick) -> Option<Alert> {
        let alert = events::alert(event, &self.hostname, now)?;
        if event.is_end() {
            let resolved = self.hangs.ended(event, alert);
            self.resolved += u64::from(resolved.is_some());
            return resolved;
        }
        let admitted = self.throttle.admit(alert.fingerprint, alert.severity, now.monotonic);
        self.hangs.began(event, &alert, admitted.is_ok());
        match admitted {
            Ok(()) => {
                self.fired[alert.severity as usize] += 1;
                Some(alert)
            }
            Err(reason) => {
                self.hold(reason, &alert.metric, alert.severity, &alert.message, now);
                None
            }
        }
    }

    /// Takes note of an event that was told in an earlier life of the agent and is not over.
    pub fn remember(&mut self, event: &Event, now: &Tick) {
        if let Some(alert) = events::alert(event, &self.hostname, now) {
            self.hangs.began(event, &alert, true);
        }
    }

    /// Ends what is no longer reported, tells what limits held back as soon as they allow it, and gives all notices
    /// that have come up. To be called once a cycle, after its findings.
    pub fn tick(&mut self, now: &Tick) -> Vec<Alert> {
        self.end_stale(now);
        if let Some(summary) = self.throttle.summary(now.monotonic) {
            self.notices.push(Alert {
                #[expect(clippy::cast_precision_loss, reason = "a count of alerts, far below 2^52")]
                value: summary.count as f64,
                fingerprint: fingerprint("alerts_suppressed", "", std::iter::empty()),
                ..Alert::new(&self.hostname, now.wall, summary.severity, "alerts_suppressed", summary.message)
            });
        }
        self.tell_what_was_held_back(now);
        std::mem::take(&mut self.notices)
    }

    /// What the book tells about itself.
    pub fn collect(&self, out: &mut Batch) {
        let mut active = [0_u32; SEVERITIES.len()];
        let hangs = self.hangs.firing().map(|alert| alert.severity);
        for severity in self.pages.values().filter_map(|page| page.firing).chain(hangs) {
            active[severity as usize] += 1;
        }
        #[expect(clippy::cast_precision_loss, reason = "counts of alerts, far below 2^52")]
        let count = |count: u64| count as f64;
        for (i, severity) in SEVERITIES.iter().enumerate() {
            out.counter(&FIRED, [severity.name()], count(self.fired[i]));
            out.gauge(&ACTIVE, [severity.name()], f64::from(active[i]));
        }
        out.counter(&RESOLVED, [], count(self.resolved));
        for reason in Reason::ALL {
            out.counter(&SUPPRESSED, [reason.name()], count(self.suppressed[reason as usize]));
        }
    }

    fn breach(&mut self, fingerprint: u64, finding: &Finding<'_>, now: &Tick) {
        let page = self.pages.entry(fingerprint).or_insert_with(|| Page::new(finding, now.monotonic));
        page.see(finding, now.monotonic, self.gap_max);
        let held = page.held(finding.policy.hold_for, now.monotonic);
        if held > page.firing {
            page.firing = held;
            page.message = finding.message.to_string();
            self.tell(fingerprint, true, now);
        } else if page.told < page.firing {
            // It will be told as soon as a limit allows it, with what is true then.
            page.message = finding.message.to_string();
        }
    }

    fn between(&mut self, fingerprint: u64, finding: &Finding<'_>, now: &Tick) {
        let Some(page) = self.pages.get_mut(&fingerprint) else { return };
        if page.firing.is_none() {
            // The breach did not last: not an alert.
            self.pages.remove(&fingerprint);
            return;
        }
        page.since = [None; SEVERITIES.len()];
        page.seen = now.monotonic;
        page.value = finding.value;
    }

    /// Tells people of a page that fires, if the limits allow it.
    fn tell(&mut self, fingerprint: u64, first: bool, now: &Tick) {
        let Some((page, severity)) = self.pages.get_mut(&fingerprint).and_then(|page| {
            let severity = page.firing?;
            Some((page, severity))
        }) else {
            return;
        };
        match self.throttle.admit(fingerprint, severity, now.monotonic) {
            Ok(()) => {
                page.told = Some(severity);
                self.fired[severity as usize] += 1;
                self.notices.push(page.notice(fingerprint, &self.hostname, severity, now));
            }
            Err(reason) if first => {
                let (metric, message) = (page.metric, page.message.clone());
                self.hold(reason, metric, severity, &message, now);
            }
            Err(_) => {}
        }
    }

    fn hold(&mut self, reason: Reason, metric: &str, severity: Severity, message: &str, now: &Tick) {
        tracing::info!(reason = reason.name(), metric, severity = severity.name(), ?message, "alert held back");
        self.suppressed[reason as usize] += 1;
        if reason == Reason::HourlyLimit {
            self.throttle.hold(metric, severity, now.monotonic);
        }
    }

    fn tell_what_was_held_back(&mut self, now: &Tick) {
        let mut owed: Vec<_> = self
            .pages
            .iter()
            .filter(|(_, page)| page.told < page.firing)
            .map(|(fingerprint, page)| (page.firing, std::cmp::Reverse(page.seen), *fingerprint))
            .collect();
        // The worst first, then in an order that does not change from run to run.
        owed.sort_unstable();
        for (_, _, fingerprint) in owed.into_iter().rev() {
            self.tell(fingerprint, false, now);
        }
    }

    fn end_stale(&mut self, now: &Tick) {
        let gone = |page: &Page| now.monotonic.saturating_sub(page.seen) >= STALE_AFTER;
        let mut stale: Vec<_> = self.pages.iter().filter(|(_, page)| gone(page)).map(|(f, _)| *f).collect();
        stale.sort_unstable();
        for fingerprint in stale {
            let Some(page) = self.pages.remove(&fingerprint) else { continue };
            let (value, message) = (page.value, page.not_reported());
            self.resolve(fingerprint, page, value, || message, now);
        }
    }

    /// Tells that it is over to those who were told that it is so.
    fn resolve(&mut self, fingerprint: u64, mut page: Page, value: f64, message: impl FnOnce() -> String, now: &Tick) {
        let Some(severity) = page.told else { return };
        page.value = value;
        page.message = message();
        self.resolved += 1;
        let mut notice = page.notice(fingerprint, &self.hostname, severity, now);
        notice.status = Status::Resolved;
        self.notices.push(notice);
    }
}

impl Page {
    fn new(finding: &Finding<'_>, now: Duration) -> Self {
        Self {
            metric: finding.metric.name,
            labels: finding.labels().map(|(name, value)| (name.to_owned(), value.to_owned())).collect(),
            since: [None; SEVERITIES.len()],
            seen: now,
            firing: None,
            told: None,
            value: finding.value,
            threshold: finding.threshold,
            message: String::new(),
        }
    }

    /// Notes a breach, which is a new one after a hole of more than `gap_max`.
    fn see(&mut self, finding: &Finding<'_>, now: Duration, gap_max: Duration) {
        if now.saturating_sub(self.seen) > gap_max {
            self.since = [None; SEVERITIES.len()];
        }
        for (severity, since) in SEVERITIES.iter().zip(&mut self.since) {
            if *severity <= finding.severity {
                since.get_or_insert(now);
            } else {
                *since = None;
            }
        }
        self.seen = now;
        self.value = finding.value;
        self.threshold = finding.threshold;
    }

    /// The highest severity at which the breach has lasted for `hold_for`.
    fn held(&self, hold_for: Duration, now: Duration) -> Option<Severity> {
        let lasted = |since: Option<Duration>| since.is_some_and(|since| now.saturating_sub(since) >= hold_for);
        SEVERITIES.iter().zip(self.since).rev().find(|(_, since)| lasted(*since)).map(|(severity, _)| *severity)
    }

    fn not_reported(&self) -> String {
        let Self { metric, value, threshold, .. } = self;
        let minutes = STALE_AFTER.as_secs() / 60;
        let mut text =
            format!("{metric} has not been reported for {minutes} min; it was {value:.3} (threshold {threshold})");
        for (i, (name, label)) in self.labels.iter().enumerate() {
            text += if i == 0 { ": " } else { ", " };
            text += name;
            text.push(' ');
            text += &shown(label, 256);
        }
        text
    }

    fn notice(&self, fingerprint: u64, hostname: &str, severity: Severity, now: &Tick) -> Alert {
        Alert {
            value: self.value,
            threshold: self.threshold,
            labels: self.labels.clone(),
            status: Status::Firing,
            fingerprint,
            ..Alert::new(hostname, now.wall, severity, self.metric, self.message.clone())
        }
    }
}
