//! The book as people look at it and write into it: what is live, who takes care of what, what nobody wants to hear of.

use std::collections::BTreeMap;
use std::time::Duration;

use super::Book;
use super::care::{Acknowledged, Care};
use super::page::Page;
use super::subject::Subject;
use crate::model::{Alert, Listed, Matcher, Silence, Standing, Tick};

/// Digits of a fingerprint that name an alert at least.
const DIGITS_MIN: usize = 4;

impl Book {
    /// What is pending or firing, and kernel events of the last hour, the worst first.
    #[must_use]
    pub fn list(&self, now: &Tick) -> Vec<Listed> {
        let pages = self.pages.iter().map(|(fingerprint, page)| self.listed(*fingerprint, page, now));
        let events = self.happened.iter().map(|told| self.listed_event(&told.alert, &told.care, now));
        let mut all: Vec<Listed> = pages.chain(events).collect();
        all.sort_by(|a, b| {
            let rank = |one: &Listed| (one.standing, std::cmp::Reverse(one.severity), std::cmp::Reverse(one.starts_at));
            rank(a).cmp(&rank(b)).then(a.fingerprint.cmp(&b.fingerprint))
        });
        all
    }

    /// Notes that `by` takes care of an alert: nobody is reminded of it, and it is not escalated, until it is over or worse.
    ///
    /// # Errors
    /// When no alert, or more than one, is named so.
    pub fn acknowledge(&mut self, named: &str, by: &str, note: &str, now: &Tick) -> Result<Listed, String> {
        let acknowledged = Acknowledged { by: by.to_owned(), note: note.to_owned() };
        self.change_care(named, now, |care| care.acknowledged = Some(acknowledged.clone()))
    }

    /// Takes it back; reminder and escalation wait anew.
    ///
    /// # Errors
    /// As [`Book::acknowledge`].
    pub fn unacknowledge(&mut self, named: &str, now: &Tick) -> Result<Listed, String> {
        let at = self.time(now);
        self.change_care(named, now, |care| {
            care.acknowledged = None;
            care.told(at);
        })
    }

    /// Begins a silence.
    ///
    /// # Errors
    /// When it would silence everything, last too long, or be one too many.
    pub fn silence(
        &mut self,
        matcher: Matcher,
        length: Duration,
        by: &str,
        comment: &str,
        now: &Tick,
    ) -> Result<Silence, String> {
        let silence = self.mutes.add(matcher, length, (by, comment), self.time(now), now)?;
        self.has_changed = true;
        Ok(silence)
    }

    /// Ends a silence before its time.
    ///
    /// # Errors
    /// When there is none of this number.
    pub fn unsilence(&mut self, id: u64) -> Result<Silence, String> {
        let silence = self.mutes.remove(id)?;
        self.has_changed = true;
        Ok(silence)
    }

    /// Silences that hold.
    #[must_use]
    pub fn silences(&self, now: &Tick) -> Vec<Silence> {
        self.mutes.list(self.time(now), now)
    }

    fn change_care(&mut self, named: &str, now: &Tick, mut change: impl FnMut(&mut Care)) -> Result<Listed, String> {
        let fingerprint = self.find(named, now)?;
        if let Some(page) = self.pages.get_mut(&fingerprint) {
            change(&mut page.care);
        }
        for told in self.happened.iter_mut().filter(|told| told.alert.fingerprint == fingerprint) {
            change(&mut told.care);
        }
        self.has_changed = true;
        let listed = self.list(now).into_iter().find(|one| one.fingerprint == fingerprint);
        listed.ok_or_else(|| format!("alert {named} is over"))
    }

    fn find(&self, named: &str, now: &Tick) -> Result<u64, String> {
        let named = named.trim().to_ascii_lowercase();
        if named.len() < DIGITS_MIN || !named.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(format!(
                "expected at least {DIGITS_MIN} digits of an alert, as `sysops-agent alerts` shows them"
            ));
        }
        let firing = self.list(now).into_iter().filter(|one| one.standing != Standing::Pending);
        let mut found: Vec<u64> = firing.map(|one| one.fingerprint).collect();
        found.retain(|fingerprint| format!("{fingerprint:016x}").starts_with(&named));
        found.dedup();
        match found[..] {
            [fingerprint] => Ok(fingerprint),
            [] => Err(format!("no alert {named} fires: `sysops-agent alerts` shows those that do")),
            _ => Err(format!("{} alerts begin with {named}: give more digits", found.len())),
        }
    }

    fn listed(&self, fingerprint: u64, page: &Page, now: &Tick) -> Listed {
        let at = self.time(now);
        let (standing, because) = if page.firing.is_none() {
            (Standing::Pending, String::new())
        } else {
            self.standing(&page.care, &Subject::of_page(page, &self.hostname), now).unwrap_or_else(|| {
                let cause = self.explained_by(fingerprint, page, now);
                cause.map_or((Standing::Firing, String::new()), |cause| (Standing::Inhibited, cause))
            })
        };
        Listed {
            fingerprint,
            standing,
            severity: page.severity(),
            rule: page.rule.clone(),
            metric: page.metric.clone(),
            labels: page.labels.clone(),
            value: page.value,
            threshold: page.threshold,
            message: page.message.clone(),
            starts_at: page.starts_at(at, now),
            because,
        }
    }

    fn listed_event(&self, alert: &Alert, care: &Care, now: &Tick) -> Listed {
        let standing = self.standing(care, &Subject::of_alert(alert), now);
        let (standing, because) = standing.unwrap_or((Standing::Firing, String::new()));
        let labels: BTreeMap<String, String> = alert.labels.clone();
        Listed {
            fingerprint: alert.fingerprint,
            standing,
            severity: alert.severity,
            rule: alert.rule.clone(),
            metric: alert.metric.clone(),
            labels,
            value: alert.value,
            threshold: alert.threshold,
            message: alert.message.clone(),
            starts_at: alert.starts_at,
            because,
        }
    }

    /// How something that fires stands by people's word.
    fn standing(&self, care: &Care, subject: &Subject<'_>, now: &Tick) -> Option<(Standing, String)> {
        if let Some(Acknowledged { by, note }) = &care.acknowledged {
            let note = if note.is_empty() { String::new() } else { format!(": {note}") };
            return Some((Standing::Acknowledged, format!("{by}{note}")));
        }
        self.mutes.why(subject, self.time(now), now).map(|why| (Standing::Silenced, why))
    }
}
