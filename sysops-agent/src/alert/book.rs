//! The book of alerts: pending, firing, resolved, one page for each rule and series, and what people are told of it. What keeps them
//! from being told is in `throttle`, `mutes`, `inhibit` and `flaps`, what goes together in `groups`, what is due again in `care`;
//! carrying it to them is left to `deliver`.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher as _;
use std::time::Duration;

use super::care::{Due, Plan};
use super::context::Surroundings;
use super::flaps::Flaps;
use super::groups::Groups;
use super::hangs::Hangs;
use super::happened::Happenings;
use super::inhibit::{EVENT_EXPLAINS, Inhibition};
use super::mutes::Mutes;
use super::page::{Page, SEVERITIES};
use super::subject::Subject;
use super::throttle::{Reason, Throttle};
use super::{ACTIVE, FIRED, RESOLVED, SUPPRESSED, events, fingerprint};
use crate::model::{Alert, Batch, Change, Context, Event, Finding, Level, Notice, Readings, Severity, Status, Tick};
use crate::spec::Values;

/// A breach with a longer hole in it starts anew: nothing is known of the time between. Where cycles themselves are
/// farther apart, one of them may be missing.
const GAP_MAX: Duration = Duration::from_secs(90);

/// Alerts of one cycle that get a course and the processes around them; of more at once nobody reads each.
const CONTEXTS_MAX: usize = 100;

/// Pages at a time. Further series are not watched until there is room, and that is said.
const PAGES_MAX: usize = 20_000;

/// All alerts that are pending or firing.
#[derive(Debug)]
pub struct Book {
    pub(super) hostname: String,
    /// Tells the ids of this book from those of one that was lost.
    pub(super) epoch: String,
    /// The book's time less the monotonic clock's: the book's goes on over restarts and reboots.
    pub(super) offset: Duration,
    pub(super) pages: HashMap<u64, Page>,
    pub(super) throttle: Throttle,
    pub(super) flaps: Flaps,
    pub(super) mutes: Mutes,
    pub(super) inhibition: Inhibition,
    pub(super) groups: Groups,
    pub(super) plan: Plan,
    pub(super) surroundings: Surroundings,
    pub(super) happened: Happenings,
    pub(super) hangs: Hangs,
    /// The hangs that people were told of in this boot are known: this book was kept in it.
    pub(super) has_its_hangs: bool,
    /// What is over since the last cycle, and people know of.
    over: Vec<(u64, Page)>,
    notices: Vec<Notice>,
    gap_max: Duration,
    fired: [u64; SEVERITIES.len()],
    pub(super) resolved: u64,
    suppressed: [u64; Reason::ALL.len()],
    contexts_left: usize,
    is_full: bool,
    pub(super) has_changed: bool,
}

impl Book {
    /// An empty book.
    #[must_use]
    pub fn new(values: &Values, hostname: &str) -> Self {
        Self {
            hostname: hostname.to_owned(),
            epoch: format!("{:08x}", RandomState::new().hash_one(hostname) >> 32),
            offset: Duration::ZERO,
            pages: HashMap::new(),
            throttle: Throttle::new(values),
            flaps: Flaps::new(values),
            mutes: Mutes::new(values),
            inhibition: Inhibition::new(values),
            groups: Groups::new(values),
            plan: Plan::new(values),
            surroundings: Surroundings::default(),
            happened: Happenings::default(),
            hangs: Hangs::default(),
            has_its_hangs: false,
            over: Vec::new(),
            notices: Vec::new(),
            gap_max: GAP_MAX,
            fired: [0; SEVERITIES.len()],
            resolved: 0,
            suppressed: [0; Reason::ALL.len()],
            contexts_left: CONTEXTS_MAX,
            is_full: false,
            has_changed: false,
        }
    }

    /// Takes new limits and keeps every page.
    pub fn reload(&mut self, values: &Values, hostname: &str) {
        self.throttle.reload(values);
        self.flaps.reload(values);
        self.mutes.reload(values);
        self.groups.reload(values);
        self.inhibition = Inhibition::new(values);
        self.plan = Plan::new(values);
        hostname.clone_into(&mut self.hostname);
    }

    /// Says how far apart cycles are to be.
    pub fn expect_cycles_every(&mut self, between: Duration) {
        self.gap_max = GAP_MAX.max(between * 2);
    }

    /// Facts of the host for people, name and text: `("kernel", "6.1.0")`.
    pub fn set_host(&mut self, facts: Vec<(String, String)>) {
        self.surroundings.set_host(facts);
    }

    /// True once after something has changed that a restart must not forget.
    pub fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.has_changed)
    }

    /// The book's time: the monotonic clock, going on over restarts and reboots.
    pub(super) fn time(&self, now: &Tick) -> Duration {
        now.monotonic + self.offset
    }

    /// Takes one rule's word on one series. Its notices come with the next [`Book::tick`].
    pub fn finding(&mut self, finding: &Finding<'_>, now: &Tick) {
        if finding.level != Level::Breach && self.pages.is_empty() {
            return;
        }
        let at = self.time(now);
        let fingerprint = fingerprint(finding.rule, finding.metric.name, finding.labels());
        match finding.level {
            Level::Breach => self.breach(fingerprint, finding, at),
            Level::Between => self.between(fingerprint, finding, at),
            Level::Clear => self.clear(fingerprint, finding, at),
        }
    }

    /// The notice of a kernel event, unless it is not worth one, or something holds it back (a limit's is counted for the
    /// summary). The end of a hang resolves what was told of it.
    pub fn event(&mut self, event: &Event, readings: &dyn Readings, now: &Tick) -> Option<Notice> {
        let at = self.time(now);
        let mut alert = self.alert_of(event, now)?;
        self.has_changed = true;
        if event.is_end() {
            let resolved = self.hangs.ended(event, alert)?;
            self.happened.ended(resolved.fingerprint);
            self.resolved += 1;
            return Some(self.groups.add(resolved, None, at));
        }
        self.surroundings.note(&alert, at);
        let held = self.mutes.why(&Subject::of_alert(&alert), at, now).map(|_| Reason::Silenced);
        let held = held.map_or_else(|| self.throttle.admit(alert.fingerprint, alert.severity, at), Err);
        self.hangs.began(event, &alert, held.is_ok());
        match held {
            Ok(()) => {
                self.fired[alert.severity as usize] += 1;
                alert.context = self.surroundings.of(&alert, "", readings, at, now);
                self.happened.add(alert.clone(), at);
                Some(self.groups.add(alert, None, at))
            }
            Err(reason) => {
                self.hold(reason, &alert.metric, alert.severity, &alert.message, at);
                None
            }
        }
    }

    /// Takes note of an event of an earlier life of the agent that is not over. People were told of it, where the book does not
    /// know better: it may have been silenced, or one too many.
    pub fn remember(&mut self, event: &Event, now: &Tick) {
        if let Some(alert) = self.alert_of(event, now) {
            self.hangs.began(event, &alert, !self.has_its_hangs);
        }
    }

    fn alert_of(&self, event: &Event, now: &Tick) -> Option<Alert> {
        let mut alert = events::alert(event, &self.hostname, now)?;
        let happened_at = Duration::from_nanos(event.monotonic_ns) + self.offset;
        alert.id = self.id(alert.fingerprint, happened_at, 0);
        Some(alert)
    }

    /// The same for one change of one alert on every start, and for no other.
    pub(super) fn id(&self, fingerprint: u64, started: Duration, change: u32) -> String {
        format!("{}-{fingerprint:016x}-{:x}-{change}", self.epoch, started.as_millis())
    }

    /// Ends what is no longer reported, tells what was held back as soon as it may be told, and gives all notices
    /// that have come up. To be called once a cycle, after its findings.
    pub fn tick(&mut self, readings: &dyn Readings, now: &Tick) -> Vec<Notice> {
        let at = self.time(now);
        self.contexts_left = CONTEXTS_MAX;
        self.end_stale(at);
        self.end_unconfirmed_hangs(at, now);
        self.tell_summary(at, now);
        for (fingerprint, page) in std::mem::take(&mut self.over) {
            self.tell_over(fingerprint, page, readings, now);
        }
        self.tell_what_is_owed(readings, now);
        self.tell_what_is_due(readings, now);
        let before = self.notices.len();
        self.groups.due(at, &mut self.notices);
        self.has_changed |= self.notices.len() > before;
        self.flaps.sweep(at);
        let hangs = &self.hangs;
        self.happened.sweep(at, |fingerprint| hangs.firing().any(|alert| alert.fingerprint == fingerprint));
        self.has_changed |= self.mutes.sweep(at);
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

    fn breach(&mut self, fingerprint: u64, finding: &Finding<'_>, at: Duration) {
        if self.pages.len() >= PAGES_MAX && !self.pages.contains_key(&fingerprint) {
            if !std::mem::replace(&mut self.is_full, true) {
                tracing::error!(
                    "{PAGES_MAX} alerts are pending or firing: no further series is watched until some are over"
                );
            }
            return;
        }
        let page = self.pages.entry(fingerprint).or_insert_with(|| Page::new(finding, at));
        let comes_again = page.back.is_some();
        let worse = page.breach(finding, at, self.gap_max);
        page.word(finding, &self.throttle, at);
        if comes_again || (worse && page.told.is_none()) {
            self.flaps.came(fingerprint, at);
        }
    }

    fn between(&mut self, fingerprint: u64, finding: &Finding<'_>, at: Duration) {
        let Some(page) = self.pages.get_mut(&fingerprint) else { return };
        page.between(finding, at);
        page.word(finding, &self.throttle, at);
        if page.firing.is_none() {
            // The breach did not last: not an alert.
            self.pages.remove(&fingerprint);
        }
    }

    fn clear(&mut self, fingerprint: u64, finding: &Finding<'_>, at: Duration) {
        let Some(page) = self.pages.get_mut(&fingerprint) else { return };
        if page.firing.is_some() && page.back.is_none() {
            self.flaps.went(fingerprint, at);
        }
        let damped = self.flaps.wait(fingerprint, at);
        if (page.firing.is_none() || page.is_over(finding, damped, at))
            && let Some(mut page) = self.pages.remove(&fingerprint)
        {
            page.value = finding.value;
            if page.told.is_some() {
                page.message = finding.message.to_string();
            }
            self.end(fingerprint, page);
        }
    }

    fn end_stale(&mut self, at: Duration) {
        let mut stale: Vec<_> = self.pages.iter().filter(|(_, page)| page.is_stale(at)).map(|(f, _)| *f).collect();
        stale.sort_unstable();
        for fingerprint in stale {
            let Some(mut page) = self.pages.remove(&fingerprint) else { continue };
            page.message = page.not_reported();
            self.end(fingerprint, page);
        }
    }

    /// An alert is over: it will be told to those who were told that it is so.
    fn end(&mut self, fingerprint: u64, page: Page) {
        self.is_full = false;
        self.has_changed |= page.firing.is_some();
        if page.told.is_some() {
            self.over.push((fingerprint, page));
        }
    }

    fn tell_over(&mut self, fingerprint: u64, mut page: Page, readings: &dyn Readings, now: &Tick) {
        let Some(told) = page.told else { return };
        let at = self.time(now);
        self.resolved += 1;
        page.changes += 1;
        let escalated = page.care.is_escalated.then(|| self.plan.escalated(told));
        let mut alert = self.alert(fingerprint, &page, escalated.unwrap_or(told), readings, now);
        (alert.status, alert.change) = (Status::Resolved, Change::Resolved);
        if let (Some(_), Some(channels)) = (escalated, &self.plan.escalate_channels) {
            let id = format!("{}-e", alert.id);
            let also = Alert { id, ..alert.clone() };
            self.notices.push(Notice { channels: Some(channels.clone()), ..Notice::of(also) });
        }
        let notice = self.groups.add(alert, page.channels.take(), at);
        self.notices.push(notice);
    }

    /// The end of a hang may be lost when the agent dies, and nobody may look any more when it comes back.
    fn end_unconfirmed_hangs(&mut self, at: Duration, now: &Tick) {
        for alert in self.hangs.unconfirmed(at) {
            let why = "Since the agent was started anew nobody looks whether this goes on.";
            let notice = self.hang_without_end(alert, why, at, now.wall);
            self.notices.push(notice);
            self.has_changed = true;
        }
    }

    fn tell_summary(&mut self, at: Duration, now: &Tick) {
        let Some(summary) = self.throttle.summary(at) else { return };
        self.has_changed = true;
        let fingerprint = fingerprint("alerts_suppressed", "", std::iter::empty());
        self.notices.push(Notice::of(Alert {
            #[expect(clippy::cast_precision_loss, reason = "a count of alerts, far below 2^52")]
            value: summary.count as f64,
            fingerprint,
            id: self.id(fingerprint, at, 0),
            change: Change::Digest,
            ..Alert::new(&self.hostname, now.wall, summary.severity, "alerts_suppressed", summary.message)
        }));
    }

    /// Tells, as far as it may be, what fires and people do not know: the worst first, then in an order that does not change
    /// from run to run.
    fn tell_what_is_owed(&mut self, readings: &dyn Readings, now: &Tick) {
        let at = self.time(now);
        let owed = self.pages.iter().filter(|(_, page)| page.may_be_told(&self.throttle, at));
        let mut owed: Vec<_> =
            owed.map(|(fingerprint, page)| (page.firing, std::cmp::Reverse(page.started), *fingerprint)).collect();
        owed.sort_unstable();
        for (_, _, fingerprint) in owed.into_iter().rev() {
            self.tell(fingerprint, readings, now);
        }
    }

    /// Tells people of a page that fires, unless something holds it back.
    fn tell(&mut self, fingerprint: u64, readings: &dyn Readings, now: &Tick) {
        let at = self.time(now);
        let Some(page) = self.pages.get(&fingerprint).filter(|page| page.may_be_told(&self.throttle, at)) else {
            return;
        };
        let Some(severity) = page.firing else { return };
        let held = self.held_back(fingerprint, page, at, now);
        let held = held.map_or_else(|| self.throttle.admit(fingerprint, severity, at), Err);
        let Some(page) = self.pages.get_mut(&fingerprint) else { return };
        if let Err(reason) = held {
            if !std::mem::replace(&mut page.is_counted, true) {
                let (metric, message) = (page.metric.clone(), page.message.clone());
                self.hold(reason, &metric, severity, &message, at);
            }
            return;
        }
        let change = if page.told.is_some() { Change::Worsened } else { Change::Fired };
        (page.told, page.is_counted) = (Some(severity), false);
        page.care.told(at);
        self.fired[severity as usize] += 1;
        self.emit(fingerprint, severity, change, None, readings, now);
    }

    /// What keeps a page from people, beside the limits.
    fn held_back(&self, fingerprint: u64, page: &Page, at: Duration, now: &Tick) -> Option<Reason> {
        if self.mutes.why(&Subject::of_page(page, &self.hostname), at, now).is_some() {
            return Some(Reason::Silenced);
        }
        self.explained_by(fingerprint, page, now).map(|_| Reason::Inhibited)
    }

    /// The metric, or kind of event, of what explains a page. What is milder, or what people do not hear of, explains nothing: they
    /// would know of neither.
    pub(super) fn explained_by(&self, fingerprint: u64, page: &Page, now: &Tick) -> Option<String> {
        let at = self.time(now);
        let target = Subject::of_page(page, &self.hostname);
        if !self.inhibition.concerns(&target) {
            return None;
        }
        let event =
            self.surroundings.of_late(EVENT_EXPLAINS, at).find(|event| self.inhibition.explains(*event, &target));
        if let Some(event) = event {
            return Some(event.kind.clone());
        }
        let explains = |(other, cause): &(&u64, &Page)| {
            let subject = Subject::of_page(cause, &self.hostname);
            **other != fingerprint
                && cause.firing >= page.firing
                && self.inhibition.explains(&subject, &target)
                && (cause.told.is_some() || self.mutes.why(&subject, at, now).is_none())
        };
        self.pages.iter().find(explains).map(|(_, cause)| cause.metric.clone())
    }

    /// Reminders and escalations. Of one that has come and gone people are told when it stays.
    fn tell_what_is_due(&mut self, readings: &dyn Readings, now: &Tick) {
        let at = self.time(now);
        let due = self.pages.iter().filter_map(|(fingerprint, page)| {
            let told = page.told.filter(|_| page.back.is_none())?;
            let stays = || (page.stays(at) && !self.flaps.wait(*fingerprint, at).is_zero()).then_some(Due::Reminder);
            Some((*fingerprint, told, self.plan.due(&page.care, told, at).or_else(stays)?))
        });
        let mut due: Vec<_> = due.collect();
        due.sort_unstable_by_key(|(fingerprint, severity, _)| (std::cmp::Reverse(*severity), *fingerprint));
        for (fingerprint, told, due) in due {
            let Some(page) = self.pages.get(&fingerprint) else { continue };
            let severity = if due == Due::Escalation { self.plan.escalated(told) } else { told };
            if self.held_back(fingerprint, page, at, now).is_some() || !self.throttle.admit_again(severity, at) {
                continue;
            }
            let Some(page) = self.pages.get_mut(&fingerprint) else { continue };
            page.care.told_at = at;
            page.care.is_escalated |= due == Due::Escalation;
            let (change, channels) = match due {
                Due::Escalation => (Change::Escalated, self.plan.escalate_channels.clone()),
                Due::Reminder => (Change::Reminded, None),
            };
            self.emit(fingerprint, severity, change, channels, readings, now);
        }
        self.escalate_events(at, now);
    }

    /// Kernel events that nobody has acknowledged. Of what has happened people are not reminded.
    fn escalate_events(&mut self, at: Duration, now: &Tick) {
        let mut escalated = Vec::new();
        for told in self.happened.iter_mut() {
            let severity = told.alert.severity;
            let is_due = self.plan.due(&told.care, severity, at) == Some(Due::Escalation);
            let severity = self.plan.escalated(severity);
            if is_due && self.throttle.admit_again(severity, at) {
                told.care.is_escalated = true;
                let id = format!("{}-e", told.alert.id);
                escalated.push(Alert {
                    id,
                    severity,
                    change: Change::Escalated,
                    timestamp: now.wall,
                    ..told.alert.clone()
                });
            }
        }
        self.has_changed |= !escalated.is_empty();
        for alert in escalated {
            let notice = self.groups.add(alert, self.plan.escalate_channels.clone(), at);
            self.notices.push(notice);
        }
    }

    /// Makes the notice of a change of a page.
    fn emit(
        &mut self,
        fingerprint: u64,
        severity: Severity,
        change: Change,
        channels: Option<Vec<String>>,
        readings: &dyn Readings,
        now: &Tick,
    ) {
        self.has_changed = true;
        let Some(page) = self.pages.get_mut(&fingerprint) else { return };
        page.changes += 1;
        let page = page.clone();
        let mut alert = self.alert(fingerprint, &page, severity, readings, now);
        alert.change = change;
        let notice = self.groups.add(alert, channels.or(page.channels), self.time(now));
        self.notices.push(notice);
    }

    fn alert(
        &mut self,
        fingerprint: u64,
        page: &Page,
        severity: Severity,
        readings: &dyn Readings,
        now: &Tick,
    ) -> Alert {
        let at = self.time(now);
        let mut alert = Alert {
            value: page.value,
            threshold: page.threshold,
            labels: page.labels.clone(),
            id: self.id(fingerprint, page.started, page.changes),
            fingerprint,
            rule: page.rule.clone(),
            starts_at: page.starts_at(at, now),
            ..Alert::new(&self.hostname, now.wall, severity, &page.metric, page.message.clone())
        };
        let around = if self.contexts_left > 0 {
            self.contexts_left -= 1;
            self.surroundings.of(&alert, &page.key, readings, at, now)
        } else {
            Context::default()
        };
        alert.context = Context { unit: page.unit.clone(), runbook_url: page.runbook_url.clone(), ..around };
        alert
    }

    fn hold(&mut self, reason: Reason, metric: &str, severity: Severity, message: &str, at: Duration) {
        tracing::info!(reason = reason.name(), metric, severity = severity.name(), ?message, "alert held back");
        self.has_changed = true;
        self.suppressed[reason as usize] += 1;
        if reason == Reason::HourlyLimit {
            self.throttle.hold(metric, severity, at);
        }
    }
}
