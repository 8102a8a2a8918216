//! What the programs share: reading kernel memory by offsets, naming a task, counting, checking themselves. What
//! a probe reads beyond that is in the file of its name; one such file makes one ELF object.
#![no_std]
// One instruction of BPF that core does not offer: the atomic addition in memory.rs.
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]

pub mod check;
pub mod counters;
pub mod memory;
pub mod sieve;
pub mod stack;
pub mod task;

/// CLOCK_MONOTONIC in nanoseconds.
#[inline(always)]
pub fn clock_ns() -> u64 {
    // SAFETY: the helper takes nothing and cannot fail.
    unsafe { aya_ebpf::helpers::bpf_ktime_get_ns() }
}

/// Helpers that read kernel memory are for programs under a licence that is compatible with the GPL.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
pub static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // The verifier proves that no panic is reached; there is no one to tell.
    loop {}
}
