//! The kernel's log as second source and fallback: /dev/kmsg records in, the events that their text tells out.

pub mod kmsg;
