//! What cross-layer tests share: one file for each thing.

pub mod feed;
pub mod http_far_end;
pub mod injection;
pub mod servers;
pub mod values;
//! What the cross-layer tests share. The tests themselves are in `tests/tests`, one file per promise.

pub mod source;
