//! What cross-layer tests share: one file for each thing.

pub mod credentials;
pub mod feed;
pub mod servers;
pub mod subscriber;
