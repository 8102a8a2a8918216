//! Remembers readings: one bounded ring for each series, rates computed once, a read-only view.

pub mod rate;
pub mod ring;
pub mod view;
