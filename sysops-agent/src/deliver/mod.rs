//! One HTTP client for all: TLS, timeout, bounded answers, no redirects.
//! Carries alerts to people (`channel`, through `outbox`) and data to machines (`export`).

pub mod channel;
pub mod export;
pub mod http;
mod nats;
pub mod outbox;
pub mod own_text;
mod spool;
pub mod text;

pub use outbox::Outbox;
