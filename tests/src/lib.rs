//! What cross-layer tests share: one file for each thing.

pub mod feed;
pub mod servers;
