//! Carries alerts to people (`channel`) and data to machines (`export`).

pub mod channel;
pub mod export;
pub mod http;
