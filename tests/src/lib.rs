//! What the cross-layer tests share: one file for each thing.

pub mod falsified_btf;
pub mod loop_device;
pub mod one_probe;
pub mod require;
