//! Reads kernel memory at addresses that are never trusted: every read goes through a helper that may fail.

use aya_ebpf::helpers::{bpf_probe_read_kernel, generated};
use sysops_common::offset::Offset;
use sysops_common::task::COMM_LEN;

/// Where a member is, if the running kernel has it. `field` lies in the program's frozen offsets, so that the verifier
/// knows the value and drops the code of absent members.
#[inline(always)]
pub fn offset(field: &'static Offset) -> Option<u64> {
    // SAFETY: a reference is valid to read. Volatile, as the loader writes the value after compilation.
    unsafe { core::ptr::read_volatile(field) }.bytes()
}

/// The value at `address`.
#[inline(always)]
pub fn read<T: Copy>(address: u64) -> Option<T> {
    // SAFETY: the helper checks the address and fails on one that cannot be read.
    unsafe { bpf_probe_read_kernel(address as *const T) }.ok()
}

/// The member `field` of the structure at `base`.
#[inline(always)]
pub fn member<T: Copy>(base: u64, field: &'static Offset) -> Option<T> {
    read(base + offset(field)?)
}

/// The structure that the member `field` of the structure at `base` points to.
#[inline(always)]
pub fn follow(base: u64, field: &'static Offset) -> Option<u64> {
    match member::<u64>(base, field)? {
        0 => None,
        address => Some(address),
    }
}

/// Copies `SIZE` bytes from the member `field` of the structure at `base` straight to where they belong.
#[inline(always)]
pub fn copy_member<const SIZE: usize>(base: u64, field: &'static Offset, to: &mut [u8; SIZE]) -> Option<()> {
    let address = base + offset(field)?;
    // SAFETY: `to` has SIZE bytes; the helper checks `address`.
    let failed = unsafe { generated::bpf_probe_read_kernel(to.as_mut_ptr().cast(), SIZE as u32, address as *const _) };
    if failed == 0 { Some(()) } else { None }
}

/// Copies the name of the running task.
#[inline(always)]
pub fn copy_current_comm(to: &mut [u8; COMM_LEN]) -> Option<()> {
    // SAFETY: `to` has COMM_LEN bytes, all of which the helper writes.
    let failed = unsafe { generated::bpf_get_current_comm(to.as_mut_ptr().cast(), COMM_LEN as u32) };
    if failed == 0 { Some(()) } else { None }
}

/// Copies the text at `address` with its NUL to `to`, at most `size` bytes; gives the number copied.
///
/// # Safety
/// `size` bytes at `to` are the caller's to write.
#[inline(always)]
pub unsafe fn read_text(address: u64, to: *mut u8, size: u32) -> Option<u32> {
    // SAFETY: the caller's promise for `to`; the helper checks `address`.
    let copied = unsafe { generated::bpf_probe_read_kernel_str(to.cast(), size, address as *const _) };
    if copied > 0 && copied <= i64::from(size) { Some(copied as u32) } else { None }
}

/// `index` without the bits that are not in `mask`. The compiler must not take it away where the index was compared before:
/// the verifiers of older kernels forget that.
#[inline(always)]
pub fn masked(index: u64, mask: u64) -> u64 {
    let masked = index;
    #[cfg(target_arch = "bpf")]
    let masked = {
        let mut masked = masked;
        // SAFETY: nothing but these two numbers is touched.
        unsafe { core::arch::asm!("{0} &= {1}", inout(reg) masked, in(reg) mask) };
        masked
    };
    masked & mask
}

/// Adds to a number in a map that other CPUs add to at the same time. BPF has had this instruction since 3.19, with which
/// nothing is lost even when an interrupt comes in between; core's atomics do not offer it for BPF.
///
/// # Safety
/// `number` points into a value of a map.
#[inline(always)]
pub unsafe fn add(number: *mut u64, amount: u64) {
    // SAFETY: the caller's promise; the verifier checks it again.
    #[cfg(target_arch = "bpf")]
    unsafe {
        core::arch::asm!("lock *(u64 *)({0} + 0) += {1}", in(reg) number, in(reg) amount);
    }
    // Never run: the crate is checked on the machine that builds it, too.
    #[cfg(not(target_arch = "bpf"))]
    let _ = (number, amount);
}
