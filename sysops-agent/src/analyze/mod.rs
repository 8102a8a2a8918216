//! Pure analyzers: what is known now in, findings out. Each is one file and one line in [`ALL`].
//! What a finding comes to is left to `alert`.

pub mod loss;
pub mod rules;
pub mod threshold;

use crate::model::{Finding, Readings};
use crate::spec::{KeySpec, Values};

/// Judges readings.
pub trait Analyzer {
    /// Gives a finding for every series that a rule watches, each time.
    fn judge(&mut self, readings: &dyn Readings, each: &mut dyn FnMut(&Finding<'_>));

    /// From now on judges by these values. What it has seen stays seen.
    fn reload(&mut self, values: &Values);
}

/// An analyzer as the list knows it.
pub struct Entry {
    /// Its file's name.
    pub name: &'static str,
    /// What can be configured.
    pub keys: &'static [&'static KeySpec],
    /// Names of the metrics that it watches; each must exist in the catalog.
    pub metrics_used: fn() -> Vec<&'static str>,
    /// Makes it.
    pub new: fn(&Values) -> Box<dyn Analyzer>,
}

/// All analyzers.
pub static ALL: &[&Entry] = &[&threshold::ENTRY, &rules::ENTRY, &loss::ENTRY];
