//! What requests and bios look like: their disk, and what they do.

use sysops_common::block_io::{OPERATIONS, Operation};
use sysops_ebpf::memory::offset;

use crate::OFFSETS;
use crate::reach::Reach;

/// The whole disk of a request; `Some(0)` when it has none.
#[inline(always)]
pub fn disk_of_request<R: Reach>(request: u64) -> Option<u64> {
    let holder = if offset(&OFFSETS.request_q).is_some() { R::follow(request, &OFFSETS.request_q)? } else { request };
    R::member(holder, &OFFSETS.disk)
}

/// The whole disk to which a bio goes.
#[inline(always)]
pub fn disk_of_bio<R: Reach>(bio: u64) -> Option<u64> {
    let holder = if offset(&OFFSETS.bio_bdev).is_some() { R::follow(bio, &OFFSETS.bio_bdev)? } else { bio };
    R::follow(holder, &OFFSETS.bio_disk)
}

/// What the flags of a request or a bio say that it does.
#[inline(always)]
pub fn operation(flags: u32) -> u32 {
    let number = (flags & 0xff) as usize;
    if number >= OPERATIONS {
        return Operation::Other as u32;
    }
    // SAFETY: a reference is valid to read. Volatile, as the loader writes the value after compilation.
    u32::from(unsafe { core::ptr::read_volatile(&OFFSETS.operations[number]) })
}
