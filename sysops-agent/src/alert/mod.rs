//! Findings and kernel events become alerts with a life of their own: held, fired once, escalated, resolved, and kept
//! within limits. No network and no clock: time is the tick that is passed in.

pub mod book;
pub mod events;
mod hangs;
pub mod throttle;

pub use book::Book;

use crate::model::{Desc, Metric, Unit};
use crate::spec::KeySpec;

/// What can be configured.
pub static KEYS: &[&KeySpec] = &[
    throttle::MIN_INTERVAL.spec(),
    throttle::PER_HOUR.spec(),
    throttle::DEDUP_WINDOW.spec(),
    throttle::EMERGENCY_BYPASS.spec(),
];

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
