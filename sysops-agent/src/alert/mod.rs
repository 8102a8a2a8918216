//! Findings and kernel events become alerts with a life of their own: held, fired once, grouped, silenced, escalated, resolved, and
//! kept within limits. No network and no clock: time is the tick that is passed in.

pub mod book;
mod care;
mod context;
mod desk;
pub mod events;
mod flaps;
mod groups;
mod hangs;
mod happened;
mod inhibit;
mod mutes;
mod page;
pub mod state;
mod subject;
pub mod throttle;

pub use book::Book;
pub use state::State;

use crate::model::{Desc, Metric, Unit};
use crate::spec::{Complaint, KeySpec, Values};

/// What can be configured.
pub static KEYS: &[&KeySpec] = &[
    throttle::MIN_INTERVAL.spec(),
    throttle::PER_HOUR.spec(),
    throttle::DEDUP_WINDOW.spec(),
    throttle::EMERGENCY_BYPASS.spec(),
    groups::BY.spec(),
    groups::WAIT.spec(),
    groups::INTERVAL.spec(),
    care::REPEAT.spec(),
    care::ESCALATE_AFTER.spec(),
    care::ESCALATE_MIN.spec(),
    care::ESCALATE_CHANNELS.spec(),
    flaps::FLAPS.spec(),
    flaps::WINDOW.spec(),
    inhibit::RULES.spec(),
    mutes::WINDOWS.spec(),
];

/// What is wrong with values that are right one by one.
#[must_use]
pub fn check(values: &Values) -> Vec<Complaint> {
    let mut complaints = Vec::new();
    inhibit::check(values, &mut complaints);
    mutes::check(values, &mut complaints);
    complaints
}

/// What the book tells about itself.
pub static METRICS: &[&Desc] = &[FIRED.desc(), RESOLVED.desc(), SUPPRESSED.desc(), ACTIVE.desc()];

static FIRED: Metric<1> =
    Metric::counter("alerts_fired_total", Unit::Count, "Alerts handed to the channels as firing.", &["severity"]);
static RESOLVED: Metric<0> =
    Metric::counter("alerts_resolved_total", Unit::Count, "Alerts handed to the channels as resolved.", &[]);
static SUPPRESSED: Metric<1> = Metric::counter(
    "alerts_suppressed_total",
    Unit::Count,
    "Alerts that fired and were held back, by the limit that held them.",
    &["reason"],
);
static ACTIVE: Metric<1> =
    Metric::gauge("alerts_active", Unit::Count, "Alerts that are firing now, told or held back.", &["severity"]);

/// The number that all notices of one alert share, the same on every start (FNV-1a of its rule, metric and labels).
pub(crate) fn fingerprint<'n, 'v>(rule: &str, metric: &str, labels: impl Iterator<Item = (&'n str, &'v str)>) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    let mut part = |text: &str| {
        for &byte in text.as_bytes().iter().chain(&[0xff]) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    };
    part(rule);
    part(metric);
    for (name, value) in labels {
        part(name);
        part(value);
    }
    hash
}
