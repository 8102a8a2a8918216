//! What the probe `block_io` measured of one disk, beside what the kernel counted of it.

use std::time::Duration;

use sysops_agent::host::{Host, Roots};
use sysops_agent::kernel::Rung;
use sysops_agent::spec::Values;

use crate::loop_device::{Completed, LoopDevice, completed};
use crate::one_probe::OneProbe;
use crate::require::require;

/// The probe on its rung, if this machine lets it stand.
///
/// # Panics
/// When it stands on another one.
#[must_use]
pub fn stands(rung: &str) -> Option<(Host, OneProbe)> {
    stands_with(rung, Values::default())
}

/// The same with these settings.
///
/// # Panics
/// When it stands on another rung.
#[must_use]
pub fn stands_with(rung: &str, values: Values) -> Option<(Host, OneProbe)> {
    if !require(LoopDevice::missing()) {
        return None;
    }
    let host = Host::live(&Roots::default());
    let probe = OneProbe::start(&host, "block_io", rung, values);
    let standing = probe.standing();
    if standing.rung == Rung::Off {
        let _ = require(Some(standing.reason));
        return None;
    }
    assert!(rung == "auto" || standing.rung.word() == rung, "{standing:?}");
    Some((host, probe))
}

/// Reads the probe until neither it nor the kernel counts any more.
///
/// # Panics
/// When that is never so.
pub fn settle(host: &Host, probe: &mut OneProbe, device: &str) {
    let start = host.clock.now();
    let mut last = None;
    loop {
        probe.collect(host);
        let now = Some((completed(device), counts(probe, device)));
        if now == last {
            return;
        }
        assert!(host.clock.now().since(&start) < Duration::from_secs(10), "the disk is never quiet");
        last = now;
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// What the probe measured of the disk.
#[must_use]
pub fn counts(probe: &OneProbe, device: &str) -> Completed {
    let of = |operation: &str| {
        let found = probe.histogram("block_io_latency_seconds", &[device, operation]);
        found.map_or(0, |(buckets, _)| buckets.iter().sum())
    };
    Completed { reads: of("read"), writes: of("write"), discards: of("discard"), flushes: of("flush") }
}
