//! sysops-agent: kernel events and readings in, alerts and telemetry out.
//!
//! Modules stand in layer order; `tests/tests/layers.rs` holds who may import whom (docs/ARCHITECTURE.md).

pub mod model;

pub mod host;
pub mod spec;
pub mod template;

pub mod collect;
pub mod correlate;
pub mod inventory;
pub mod kernel;
pub mod logs;
pub mod symbolize;

pub mod store;

pub mod analyze;

pub mod alert;
pub mod control;
pub mod deliver;
pub mod settings;

pub mod catalog;
pub mod schedule;

pub mod cli;
pub mod pipeline;
