//! Tells whose a request is, where that is not who asked, and counts by cgroup. Who asked is noted by `requests` and `bios`.

use aya_ebpf::bindings::BPF_NOEXIST;
use aya_ebpf::macros::map;
use aya_ebpf::maps::HashMap;
use sysops_common::block_io::{CgroupTotals, Flight, OTHER_CGROUPS, Operation};
use sysops_ebpf::memory::add;

use crate::OFFSETS;
use crate::reach::Reach;
use crate::totals::see;

#[map]
static CGROUPS: HashMap<u64, CgroupTotals> = HashMap::with_max_entries(1024, 0);

/// The root of the unified hierarchy, in which every task of the kernel itself is.
const ROOT_CGROUP: u64 = 1;

/// Where a task in the root asked, whose the request is: that of the cgroup which the kernel charges, so that what is
/// written back counts for those who wrote it. That is asked when someone wants to know, which is seldom.
///
/// # Safety
/// `flight` points into a value of a map.
#[inline(always)]
pub unsafe fn attribute(flight: *mut Flight, charged: impl FnOnce() -> Option<u64>) {
    // SAFETY: the caller's promise.
    unsafe {
        if (*flight).cgroup == ROOT_CGROUP
            && let Some(cgroup) = charged()
        {
            (*flight).cgroup = cgroup;
        }
    }
}

/// The cgroup to which the kernel charges a bio, where its controller is in the unified hierarchy.
#[inline(always)]
pub fn charged<R: Reach>(bio: u64) -> Option<u64> {
    let charged = R::follow(R::follow(bio, &OFFSETS.bio_blkg)?, &OFFSETS.blkg_blkcg)?;
    let cgroup = R::follow(charged, &OFFSETS.blkcg_cgroup)?;
    let root = R::follow(cgroup, &OFFSETS.cgroup_root)?;
    if R::member::<u32>(root, &OFFSETS.hierarchy_id)? != 0 {
        return None;
    }
    R::member(R::follow(cgroup, &OFFSETS.cgroup_kn)?, &OFFSETS.kn_id)
}

/// Counts requests and bytes for the cgroup of who asked; for all others together when no one is known or there is no more room.
#[inline(always)]
pub fn charge(flight: *const Flight) {
    // SAFETY: it points into a value of a map.
    let (cgroup, bytes, operation) = unsafe { ((*flight).cgroup, (*flight).bytes, (*flight).series.operation) };
    let found = CGROUPS.get_ptr_mut(cgroup).or_else(|| {
        let none = CgroupTotals { requests: [0; 2], bytes: [0; 2] };
        let _ = CGROUPS.insert(cgroup, none, u64::from(BPF_NOEXIST));
        CGROUPS.get_ptr_mut(cgroup).or_else(|| CGROUPS.get_ptr_mut(OTHER_CGROUPS))
    });
    let Some(totals) = found else { return see(|seen| &raw mut seen.charges_lost) };
    let way = (operation != Operation::Read as u32) as usize;
    // SAFETY: both point into a value of a map.
    unsafe {
        add((&raw mut (*totals).requests).cast::<u64>().add(way), 1);
        add((&raw mut (*totals).bytes).cast::<u64>().add(way), u64::from(bytes));
    }
}
