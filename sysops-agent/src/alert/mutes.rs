//! What people do not want to hear of for a while: silences, made by hand and ending by themselves, and maintenance windows of the
//! configuration. What goes on when they end is told then.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use jiff::civil::{Time, Weekday};
use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};

use super::inhibit::Named;
use crate::model::{Matcher, Silence, Tick};
use crate::spec::{Complaint, Key, Table, Values, path_in};

pub(super) static WINDOWS: Key<Vec<Table>> = Key::tables(
    "alerting.maintenance",
    &[NAME.spec(), MATCH.spec(), DAYS.spec(), FROM.spec(), TO.spec(), STARTS.spec(), ENDS.spec(), ZONE.spec()],
    "Windows in which alerts are not told: each day, or on some, from a time to a time; or once, from starts to ends.",
)
.example(
    "[{ name = \"backup\", match = { metric = \"disk_*\" }, days = [\"sat\"], from = \"22:00\", to = \"04:00\" }]",
);
static NAME: Key<String> = Key::text("name", "maintenance", "What people read of why an alert was not told.");
static MATCH: Key<BTreeMap<String, String>> = Key::map(
    "match",
    "Which alerts: severity, metric, rule, hostname or labels, each a pattern in which * is any text. Empty: all.",
);
static DAYS: Key<Vec<String>> = Key::list("days", &[], "Days on which it begins: mon, tue, … sun. Empty: every day.");
static FROM: Key<Option<String>> = Key::optional("from", "Local time at which it begins, as 22:00.");
static TO: Key<Option<String>> = Key::optional("to", "Local time at which it ends; before from: on the next day.");
static STARTS: Key<Option<String>> =
    Key::optional("starts", "When it begins once, RFC 3339: 2026-12-24T22:00:00+01:00.");
static ENDS: Key<Option<String>> = Key::optional("ends", "When it ends then, RFC 3339.");
static ZONE: Key<Option<String>> =
    Key::optional("timezone", "Time zone of from and to, as Europe/Berlin. Not set: this machine's.");

/// Silences at a time.
const SILENCES_MAX: usize = 1000;

/// The longest silence: what lasts longer belongs into the configuration.
pub(super) const SILENCE_MAX: Duration = Duration::from_secs(30 * 86_400);

const DAY_NAMES: [(&str, Weekday); 7] = [
    ("mon", Weekday::Monday),
    ("tue", Weekday::Tuesday),
    ("wed", Weekday::Wednesday),
    ("thu", Weekday::Thursday),
    ("fri", Weekday::Friday),
    ("sat", Weekday::Saturday),
    ("sun", Weekday::Sunday),
];

/// Silences and maintenance windows.
#[derive(Debug, Default)]
pub(super) struct Mutes {
    windows: Vec<Window>,
    silences: Vec<Held>,
    next_id: u64,
}

/// A silence with its end by the book's time, which no one can set.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Held {
    silence: Silence,
    until: Duration,
}

#[derive(Debug)]
struct Window {
    name: String,
    matcher: Matcher,
    when: When,
}

#[derive(Debug)]
enum When {
    Once { starts: Timestamp, ends: Timestamp },
    Weekly { days: Vec<Weekday>, from: Time, to: Time, zone: TimeZone },
}

impl Mutes {
    pub(super) fn new(values: &Values) -> Self {
        let mut mutes = Self { next_id: 1, ..Self::default() };
        mutes.reload(values);
        mutes
    }

    /// Takes other windows; silences stay.
    pub(super) fn reload(&mut self, values: &Values) {
        self.windows = values.get(&WINDOWS).iter().filter_map(|table| Window::new(table).ok()).collect();
    }

    /// What keeps an alert from people now: `silence 3 by ann: …`, `maintenance backup`.
    pub(super) fn why(&self, alert: &dyn Named, at: Duration, now: &Tick) -> Option<String> {
        let silence = self.silences.iter().find(|held| held.until > at && held.silence.matches(alert));
        if let Some(Held { silence, .. }) = silence {
            let comment = if silence.comment.is_empty() { String::new() } else { format!(": {}", silence.comment) };
            return Some(format!("silence {} by {}{comment}", silence.id, silence.by));
        }
        let window =
            self.windows.iter().find(|window| window.matcher.matches(|name| alert.get(name)) && window.holds(now.wall));
        window.map(|window| format!("maintenance {}", window.name))
    }

    /// Begins a silence.
    ///
    /// # Errors
    /// When it would silence everything, last too long, or be one too many.
    pub(super) fn add(
        &mut self,
        matcher: Matcher,
        length: Duration,
        (by, comment): (&str, &str),
        at: Duration,
        now: &Tick,
    ) -> Result<Silence, String> {
        if matcher.is_empty() {
            return Err(
                "expected at least one condition, as metric=disk_usage_percent; severity=* is everything".to_owned()
            );
        }
        if length.is_zero() || length > SILENCE_MAX {
            return Err("expected a length of more than nothing and at most 30 days".to_owned());
        }
        self.sweep(at);
        if self.silences.len() >= SILENCES_MAX {
            return Err(format!("there are {SILENCES_MAX} silences already: take some back"));
        }
        let silence = Silence {
            id: self.next_id,
            matcher,
            starts_at: now.wall,
            ends_at: now.wall + length,
            by: by.to_owned(),
            comment: comment.to_owned(),
        };
        self.next_id += 1;
        self.silences.push(Held { silence: silence.clone(), until: at + length });
        Ok(silence)
    }

    /// Ends a silence before its time.
    ///
    /// # Errors
    /// When there is none of this number.
    pub(super) fn remove(&mut self, id: u64) -> Result<Silence, String> {
        let place = self.silences.iter().position(|held| held.silence.id == id);
        let place = place.ok_or_else(|| format!("there is no silence {id}: `sysops-agent silence list` shows them"))?;
        Ok(self.silences.remove(place).silence)
    }

    /// Silences that hold. Their ends are by the clock as it stands, should it have been set since.
    pub(super) fn list(&self, at: Duration, now: &Tick) -> Vec<Silence> {
        let holding = self.silences.iter().filter(|held| held.until > at);
        holding.map(|held| Silence { ends_at: now.wall + (held.until - at), ..held.silence.clone() }).collect()
    }

    /// Forgets what is over; true when there was something.
    pub(super) fn sweep(&mut self, at: Duration) -> bool {
        let before = self.silences.len();
        self.silences.retain(|held| held.until > at);
        self.silences.len() < before
    }

    pub(super) fn state(&self) -> (Vec<Held>, u64) {
        (self.silences.clone(), self.next_id)
    }

    pub(super) fn restore(&mut self, (silences, next_id): (Vec<Held>, u64)) {
        (self.silences, self.next_id) = (silences, next_id.max(1));
        self.silences.truncate(SILENCES_MAX);
    }
}

impl Silence {
    fn matches(&self, alert: &dyn Named) -> bool {
        self.matcher.matches(|name| alert.get(name))
    }
}

impl Window {
    /// Of a table of the configuration.
    ///
    /// # Errors
    /// With the key that is wrong, and what was expected.
    fn new(table: &Table) -> Result<Self, (&'static str, String)> {
        let matcher = Matcher::new(table.get(&MATCH)).map_err(|error| ("match", error.to_string()))?;
        let when = match (table.get(&STARTS), table.get(&ENDS)) {
            (None, None) => weekly(table)?,
            (starts, ends) => {
                let moment = |key, text: Option<String>| {
                    let text = text.ok_or((key, "missing: starts and ends go together".to_owned()))?;
                    text.parse()
                        .map_err(|_| (key, format!("expected a time as 2026-12-24T22:00:00+01:00, found {text:?}")))
                };
                let (starts, ends): (Timestamp, Timestamp) = (moment("starts", starts)?, moment("ends", ends)?);
                if ends <= starts {
                    return Err(("ends", "expected a time after starts".to_owned()));
                }
                When::Once { starts, ends }
            }
        };
        Ok(Self { name: table.get(&NAME), matcher, when })
    }

    fn holds(&self, wall: SystemTime) -> bool {
        let Ok(now) = Timestamp::try_from(wall) else { return false };
        match &self.when {
            When::Once { starts, ends } => (*starts..*ends).contains(&now),
            When::Weekly { days, from, to, zone } => {
                let local = now.to_zoned(zone.clone());
                let (time, today) = (local.time(), local.weekday());
                let on = |day: Weekday| days.is_empty() || days.contains(&day);
                if from < to {
                    return on(today) && (*from..*to).contains(&time);
                }
                (on(today) && time >= *from) || (on(today.previous()) && time < *to)
            }
        }
    }
}

fn weekly(table: &Table) -> Result<When, (&'static str, String)> {
    let time = |key, text: Option<String>| {
        let text = text.ok_or((key, "missing: expected from and to, or starts and ends".to_owned()))?;
        let time = Time::strptime("%H:%M", &text);
        time.map_err(|_| (key, format!("expected a time as 22:00, found {text:?}")))
    };
    let (from, to) = (time("from", table.get(&FROM))?, time("to", table.get(&TO))?);
    let day = |name: String| {
        let known = DAY_NAMES.iter().find(|(known, _)| *known == name);
        known
            .map(|(_, day)| *day)
            .ok_or(("days", format!("expected mon, tue, wed, thu, fri, sat or sun, found {name:?}")))
    };
    let days = table.get(&DAYS).into_iter().map(day).collect::<Result<_, _>>()?;
    let zone = match table.get(&ZONE) {
        None => TimeZone::system(),
        Some(name) => TimeZone::get(&name).map_err(|_| {
            (
                "timezone",
                format!(
                    "{name:?} is not known on this machine: expected a name such as Europe/Berlin (package tzdata)"
                ),
            )
        })?,
    };
    Ok(When::Weekly { days, from, to, zone })
}

/// What is wrong with the windows of a configuration.
pub(super) fn check(values: &Values, complaints: &mut Vec<Complaint>) {
    for (index, table) in values.get(&WINDOWS).iter().enumerate() {
        if let Err((name, message)) = Window::new(table) {
            let keys = [MATCH.spec(), DAYS.spec(), FROM.spec(), TO.spec(), STARTS.spec(), ENDS.spec(), ZONE.spec()];
            let key = keys.into_iter().find(|key| key.path == name).unwrap_or(NAME.spec());
            complaints.push(Complaint { path: path_in(WINDOWS.spec(), index, key), message });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::Value;

    fn window(pairs: &[(&str, &str)]) -> Result<Window, (&'static str, String)> {
        let mut table: BTreeMap<String, Value> =
            pairs.iter().map(|(name, text)| ((*name).to_owned(), Value::Text((*text).to_owned()))).collect();
        if let Some(Value::Text(days)) = table.get("days") {
            let days = Value::TextList(days.split(' ').map(str::to_owned).collect());
            table.insert("days".to_owned(), days);
        }
        let mut values = Values::default();
        values.set(WINDOWS.spec(), Value::TableList(vec![table]));
        Window::new(&values.get(&WINDOWS)[0])
    }

    fn at(text: &str) -> SystemTime {
        text.parse::<Timestamp>().expect("a time").into()
    }

    #[test]
    fn a_window_over_midnight_belongs_to_the_day_on_which_it_begins() {
        let window =
            window(&[("days", "sat"), ("from", "22:00"), ("to", "04:00"), ("timezone", "UTC")]).expect("it is one");
        // 2026-02-21 is a Saturday.
        for (time, holds) in [
            ("2026-02-21T21:59:59Z", false),
            ("2026-02-21T22:00:00Z", true),
            ("2026-02-22T03:59:59Z", true),
            ("2026-02-22T04:00:00Z", false),
            ("2026-02-22T23:00:00Z", false),
            ("2026-02-21T03:00:00Z", false),
        ] {
            assert_eq!(window.holds(at(time)), holds, "{time}");
        }
    }

    #[test]
    fn summer_time_moves_a_window_with_the_clock_on_the_wall() {
        let window = window(&[("from", "01:30"), ("to", "03:30"), ("timezone", "Europe/Berlin")]).expect("it is one");
        // 2026-03-29: 02:00 becomes 03:00 at 01:00 UTC; 2026-10-25: 03:00 becomes 02:00 at 01:00 UTC.
        for (time, holds) in [
            ("2026-03-29T00:45:00Z", true),
            ("2026-03-29T01:15:00Z", true),
            ("2026-03-29T01:45:00Z", false),
            ("2026-10-25T00:15:00Z", true),
            ("2026-10-25T01:45:00Z", true),
            ("2026-10-25T02:45:00Z", false),
        ] {
            assert_eq!(window.holds(at(time)), holds, "{time}");
        }
    }

    #[test]
    fn what_is_no_window_is_said_with_its_key() {
        for (pairs, key) in [
            (&[("from", "22:00")][..], "to"),
            (&[("from", "25:00"), ("to", "1:00")], "from"),
            (&[("from", "22:00"), ("to", "23:00"), ("days", "saturday")], "days"),
            (&[("from", "22:00"), ("to", "23:00"), ("timezone", "Mars/Base")], "timezone"),
            (&[("starts", "2026-12-24T22:00:00Z")], "ends"),
            (&[("starts", "2026-12-24T22:00:00Z"), ("ends", "2026-12-24T22:00:00Z")], "ends"),
        ] {
            assert_eq!(window(pairs).map(|_| ()).expect_err("it is none").0, key);
        }
        let once = window(&[("starts", "2026-12-24T22:00:00+01:00"), ("ends", "2026-12-25T00:00:00Z")]).expect("one");
        assert!(once.holds(at("2026-12-24T21:00:00Z")) && !once.holds(at("2026-12-25T00:00:00Z")));
    }
}
