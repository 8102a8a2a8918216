//! Reads /proc/meminfo and counts the memory blocks of /sys/devices/system/memory: how much memory there is.

use serde::Serialize;

use super::read::{Amount, numbered};
use crate::host::{Host, bytes};

const GIB: u64 = 1 << 30;

/// Main memory.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Memory {
    /// GiB that the kernel manages (MemTotal): what is installed less what firmware and kernel took at boot.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total_gb: Option<Amount>,
    /// GiB of memory blocks, as lsmem(1) counts: what is installed. Absent without memory hotplug in the kernel.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub installed_gb: Option<Amount>,
    /// GiB of swap.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub swap_gb: Option<Amount>,
}

pub(super) fn collect(host: &Host) -> Memory {
    let meminfo = host.files.read(&host.files.proc("meminfo")).unwrap_or_default();
    let of = |item: &[u8]| kib(&meminfo, item).map(|kib| Amount::of(kib, GIB / 1024));
    Memory { total_gb: of(b"MemTotal"), installed_gb: installed(host), swap_gb: of(b"SwapTotal") }
}

/// The number in `MemTotal:       24684096 kB`.
fn kib(meminfo: &[u8], item: &[u8]) -> Option<u64> {
    bytes::lines(meminfo).find_map(|line| {
        let (name, value) = bytes::split_once(line, b':')?;
        if name == item { bytes::u64(bytes::fields(value).next()?) } else { None }
    })
}

fn installed(host: &Host) -> Option<Amount> {
    let size = host.files.read(&host.files.sys("devices/system/memory/block_size_bytes")).ok()?;
    let block_bytes = bytes::hex(bytes::trim(&size))?;
    let blocks = numbered(host, &host.files.sys("devices/system/memory"), "memory")?.len();
    Some(Amount::of(u64::try_from(blocks).ok()?.checked_mul(block_bytes)?, GIB)).filter(|_| blocks > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_of_meminfo() {
        let meminfo = b"MemTotal:       24684096 kB\nSwapTotal:             0 kB\nHugePages_Total:       0\nodd\n";
        assert_eq!(kib(meminfo, b"MemTotal"), Some(24_684_096));
        assert_eq!(kib(meminfo, b"SwapTotal"), Some(0), "no swap is known, not unknown");
        assert_eq!(kib(meminfo, b"MemFree"), None);
        assert_eq!(kib(b"MemTotal: -1 kB", b"MemTotal"), None);
        assert_eq!(kib(b"MemTotal:", b"MemTotal"), None);
    }
}
