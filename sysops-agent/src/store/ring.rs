//! Bounded memory of samples by series.
