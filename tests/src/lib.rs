//! What the cross-layer tests share: one file for each thing.

pub mod events;
pub mod falsified_btf;
pub mod frozen_mount;
pub mod memory_cgroup;
pub mod require;
