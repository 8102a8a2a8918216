//! Reads /sys/devices/system/cpu: how CPUs sit in cores and sockets, and which L3 caches they share.

use std::collections::{BTreeMap, BTreeSet};

use super::read::{number, numbered, text};
use crate::host::Host;

/// CPUs that are looked at: what kernels are built for at most.
const CPUS_MAX: usize = 8192;

/// Numbers of sockets, cores and threads; what is not told is absent.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Topology {
    pub sockets: Option<usize>,
    pub cores_per_socket: Option<usize>,
    pub threads_per_core: Option<usize>,
}

/// The topology; `None` where no CPU tells its own. CPUs that are offline have none.
pub(super) fn collect(host: &Host) -> Option<Topology> {
    let mut threads: BTreeMap<String, usize> = BTreeMap::new();
    let mut sockets = BTreeSet::new();
    for cpu in cpus(host) {
        let file = |name: &str| host.files.sys(&format!("devices/system/cpu/cpu{cpu}/topology/{name}"));
        // CPUs of one core name the same list. `core_id` alone does not do: each socket counts anew.
        let Some(core) = text(host, &file("thread_siblings_list")) else { continue };
        *threads.entry(core).or_default() += 1;
        // Some ARM firmware tells none: -1.
        sockets.extend(number(host, &file("physical_package_id")));
    }
    let threads_per_core = threads.values().copied().max()?;
    let sockets = Some(sockets.len()).filter(|&sockets| sockets > 0);
    // With a core offline in one of the sockets the other ones tell what a socket has.
    let cores_per_socket = sockets.map(|sockets| threads.len().div_ceil(sockets));
    Some(Topology { sockets, cores_per_socket, threads_per_core: Some(threads_per_core) })
}

/// KiB of all L3 caches together; a socket may have several.
pub(super) fn l3_kib(host: &Host) -> Option<u64> {
    let mut caches = BTreeMap::new();
    for cpu in cpus(host) {
        for index in 0..8 {
            let file = |name: &str| host.files.sys(&format!("devices/system/cpu/cpu{cpu}/cache/index{index}/{name}"));
            let Some(level) = number(host, &file("level")) else { break };
            if level != 3 {
                continue;
            }
            let Some(shared) = text(host, &file("shared_cpu_list")) else { break };
            // `16384K` on every architecture (drivers/base/cacheinfo.c).
            let size = text(host, &file("size")).and_then(|size| size.strip_suffix('K')?.parse::<u64>().ok());
            caches.insert(shared, size?);
        }
    }
    let total = caches.values().try_fold(0, |total: u64, &kib| total.checked_add(kib))?;
    (total > 0).then_some(total)
}

fn cpus(host: &Host) -> impl Iterator<Item = u32> {
    numbered(host, &host.files.sys("devices/system/cpu"), "cpu").unwrap_or_default().into_iter().take(CPUS_MAX)
}
