//! What the cross-layer tests share. The tests themselves are in `tests/tests`, one file per promise.

pub mod source;
