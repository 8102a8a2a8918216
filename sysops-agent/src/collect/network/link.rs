//! State of network interfaces from /sys/class/net. Their counters are left to `network`.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use super::super::bytes::{i64, text, u64};
use crate::host::Host;
use crate::model::{Batch, Metric, Unit};

pub(super) static CARRIER: Metric<1> = Metric::gauge(
    "node_network_carrier",
    Unit::Bool,
    "Network device property: carrier; absent while the interface is administratively down.",
    &["device"],
);
pub(super) static MTU: Metric<1> =
    Metric::gauge("node_network_mtu_bytes", Unit::Bytes, "Network device property: mtu_bytes.", &["device"]);
pub(super) static SPEED: Metric<1> = Metric::gauge(
    "node_network_speed_bytes",
    Unit::Bytes,
    "Network device property: speed_bytes; absent where the driver does not know it.",
    &["device"],
);
pub(super) static UP: Metric<1> =
    Metric::gauge("node_network_up", Unit::Bool, "Value is 1 if operstate is 'up', 0 otherwise.", &["device"]);

/// Speed and MTU, which hardly ever change, are asked for anew after so many readings: for the speed the kernel takes its
/// lock over all interfaces.
const FRESH_READINGS: u32 = 60;

/// What is remembered of an interface.
pub(super) struct Link {
    name: Vec<u8>,
    up: bool,
    speed_bytes: Option<f64>,
    mtu_bytes: Option<u64>,
    /// Readings for which the two hold.
    fresh: u32,
}

impl Link {
    /// The interface that stands at `at` in the file, where it mostly stood before.
    pub(super) fn find<'a>(links: &'a mut Vec<Self>, at: usize, name: &[u8]) -> &'a mut Self {
        if links.get(at).is_none_or(|link| link.name != name) {
            match links.iter().skip(at).position(|link| link.name == name) {
                Some(offset) => links.swap(at, at + offset),
                None => links
                    .insert(at, Self { name: name.to_vec(), up: false, speed_bytes: None, mtu_bytes: None, fresh: 0 }),
            }
        }
        &mut links[at]
    }

    pub(super) fn emit(&mut self, host: &Host, attribute: &mut Attribute, out: &mut Batch) {
        let name = text(&self.name);
        let mut buffer = [0; 64];
        if let Some(state) = attribute.read(host, &self.name, "operstate", &mut buffer) {
            let up = state == b"up";
            self.fresh = if up == self.up { self.fresh.saturating_sub(1) } else { 0 };
            self.up = up;
            out.gauge(&UP, [&name], f64::from(u8::from(up)));
        }
        if let Some(carrier) = attribute.read(host, &self.name, "carrier", &mut buffer).and_then(u64) {
            out.gauge(&CARRIER, [&name], carrier as f64);
        }
        if self.fresh == 0 {
            // Mbit/s; -1 (and 2^32 - 1 of old kernels) stands for unknown, as does the refusal of an interface that
            // is down or has no speed.
            let mbit = attribute.read(host, &self.name, "speed", &mut buffer).and_then(i64);
            self.speed_bytes = mbit.filter(|mbit| (0..0xffff_ffff).contains(mbit)).map(|mbit| mbit as f64 * 125_000.0);
            self.mtu_bytes = None;
            self.fresh = FRESH_READINGS;
        }
        if self.mtu_bytes.is_none() {
            self.mtu_bytes = attribute.read(host, &self.name, "mtu", &mut buffer).and_then(u64);
        }
        if let Some(mtu) = self.mtu_bytes {
            out.gauge(&MTU, [&name], mtu as f64);
        }
        if let Some(speed) = self.speed_bytes {
            out.gauge(&SPEED, [&name], speed);
        }
    }
}

/// The path of an attribute below /sys/class/net, made anew in the same memory.
pub(super) struct Attribute {
    path: PathBuf,
}

impl Attribute {
    pub(super) fn new(host: &Host) -> Self {
        Self { path: host.files.sys("class/net") }
    }

    /// `None` when it does not exist or is refused, which says that it is unknown.
    fn read<'a>(&mut self, host: &Host, device: &[u8], name: &str, buffer: &'a mut [u8; 64]) -> Option<&'a [u8]> {
        if device.contains(&b'/') {
            return None; // No interface has such a name, and no name leads elsewhere.
        }
        self.path.push(OsStr::from_bytes(device));
        self.path.push(name);
        let value = host.files.attribute(&self.path, buffer).ok();
        self.path.pop();
        self.path.pop();
        value
    }
}
