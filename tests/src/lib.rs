//! What cross-layer tests share: one file for each thing. The tests themselves are in `tests/tests`.

pub mod credentials;
pub mod feed;
pub mod http_far_end;
pub mod injection;
pub mod servers;
pub mod source;
pub mod subscriber;
pub mod values;
