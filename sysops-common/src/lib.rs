//! What crosses the kernel boundary: one file for each probe, `repr(C)`, the same bytes on both sides. Reading the
//! kernel is left to sysops-ebpf, making sense of what was read to `sysops-agent::kernel`.
#![no_std]

pub mod block_io;
pub mod check;
pub mod counters;
pub mod fd;
pub mod hung_task;
pub mod memory_leak;
pub mod offset;
pub mod oom_kill;
pub mod plain;
pub mod sieve;
pub mod sigkill;
pub mod stack;
pub mod task;
pub mod tasks;
