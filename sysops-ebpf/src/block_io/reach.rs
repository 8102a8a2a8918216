//! Two ways to read a member of a kernel structure. What is read is left to who asks.

use sysops_common::offset::Offset;
use sysops_ebpf::memory::{self, offset};

/// Reads at addresses in the kernel.
pub trait Reach {
    /// The verifier knows types here.
    const KNOWS_TYPES: bool;

    /// The value at `address`.
    fn read<T: Copy>(address: u64) -> Option<T>;

    /// The member `field` of the structure at `base`.
    #[inline(always)]
    fn member<T: Copy>(base: u64, field: &'static Offset) -> Option<T> {
        Self::read(base + offset(field)?)
    }

    /// The structure that the member `field` of the structure at `base` points to.
    #[inline(always)]
    fn follow(base: u64, field: &'static Offset) -> Option<u64> {
        match Self::member::<u64>(base, field)? {
            0 => None,
            address => Some(address),
        }
    }
}

/// Loads where the verifier knows the type of what is pointed to: it allows what lies within one member, and the kernel
/// answers a load that faults with zero. A load costs a nanosecond, a helper that copies twenty.
pub enum Typed {}

/// The helper, where nothing is known of what is pointed to.
pub enum Copied {}

impl Reach for Typed {
    const KNOWS_TYPES: bool = true;

    #[inline(always)]
    fn read<T: Copy>(address: u64) -> Option<T> {
        // SAFETY: the verifier has proved that the address is that of a member of this size.
        Some(unsafe { core::ptr::read_volatile(address as *const T) })
    }
}

impl Reach for Copied {
    const KNOWS_TYPES: bool = false;

    #[inline(always)]
    fn read<T: Copy>(address: u64) -> Option<T> {
        memory::read(address)
    }
}
