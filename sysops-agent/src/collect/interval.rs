//! How often collectors run, for the keys that several of them share. A key that one collector uses alone stands in
//! its own file.

use std::time::Duration;

use crate::spec::Key;

const MAX_SECS: i64 = 86_400;

/// cpu, load, pressure.
pub(super) static CPU: Key<Duration> = Key::secs(
    "collector.cpu_interval_secs",
    10,
    1,
    MAX_SECS,
    "Seconds between two readings of CPU, load and pressure.",
);

/// memory, swap, vmstat, numa.
pub(super) static MEMORY: Key<Duration> = Key::secs(
    "collector.memory_interval_secs",
    10,
    1,
    MAX_SECS,
    "Seconds between two readings of memory, swap, paging and NUMA nodes.",
);

/// filesystem, diskstats.
pub(super) static DISK: Key<Duration> = Key::secs(
    "collector.disk_interval_secs",
    60,
    1,
    MAX_SECS,
    "Seconds between two readings of file systems and disk I/O.",
);

/// network, conntrack.
pub(super) static NETWORK: Key<Duration> = Key::secs(
    "collector.network_interval_secs",
    10,
    1,
    MAX_SECS,
    "Seconds between two readings of network interfaces and tracked connections.",
);
