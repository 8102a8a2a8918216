//! Reads /sys/class/net: the interfaces that are devices, and the bonds of them. Bridges, tunnels, VLANs and the ends of
//! containers come and go: they are no part of what the machine is. Traffic is left to the network collector.

use std::path::Path;

use serde::Serialize;

use super::read::{bound, is_directory, link_name, number, said, text};
use crate::host::{Host, bytes};

/// One interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Interface {
    /// `eno1`.
    pub name: String,
    /// Hardware address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    /// Mbit/s. Absent while the link is down, and where the driver does not know.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub speed_mbps: Option<u32>,
    /// Bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u64>,
    /// Kernel driver, `mlx5_core`; `bonding` for a bond.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub driver: Option<String>,
}

pub(super) fn collect(host: &Host, omitted: &mut usize) -> Option<Vec<Interface>> {
    let mut names = host.files.list(&host.files.sys("class/net")).ok()?;
    names.retain(|name| {
        let path = host.files.sys("class/net").join(name);
        is_directory(host, &path.join("device")) || is_directory(host, &path.join("bonding"))
    });
    bound(&mut names, omitted);
    Some(names.iter().map(|name| interface(host, name)).collect())
}

fn interface(host: &Host, name: &str) -> Interface {
    let path = host.files.sys("class/net").join(name);
    let bond = || is_directory(host, &path.join("bonding")).then(|| "bonding".to_owned());
    Interface {
        name: said(name.as_bytes()).unwrap_or_default(),
        mac: text(host, &path.join("address")),
        speed_mbps: speed_mbps(host, &path.join("speed")),
        mtu: number(host, &path.join("mtu")),
        driver: link_name(host, &path.join("device/driver")).or_else(bond),
    }
}

/// -1, and 4294967295 from drivers that print it without sign, say that the speed is unknown.
fn speed_mbps(host: &Host, path: &Path) -> Option<u32> {
    let speed = bytes::i64(bytes::trim(&host.files.read(path).ok()?))?;
    u32::try_from(speed).ok().filter(|&speed| speed > 0 && speed < u32::MAX)
}
