//! Reads /sys/class/dmi/id: firmware, board and system as the firmware names them. Serial numbers are root's to read.

use serde::Serialize;

use super::read::text;
use crate::host::Host;

/// The firmware.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Bios {
    /// Who made it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vendor: Option<String>,
    /// Its version.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Its date, as it writes it: `01/02/2024`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub date: Option<String>,
}

/// The main board.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Board {
    /// Who made it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vendor: Option<String>,
    /// Its name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Its version.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Its serial number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
}

/// The machine as it is sold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct System {
    /// Who made it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vendor: Option<String>,
    /// Its name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub product: Option<String>,
    /// Its version.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Its serial number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
}

/// What DMI tells.
#[derive(Debug, Default)]
pub(super) struct Dmi {
    pub bios: Option<Bios>,
    pub board: Option<Board>,
    pub system: Option<System>,
}

/// What firmware says where its maker said nothing (compared without regard to case).
const SAYS_NOTHING: &[&str] = &[
    "to be filled by o.e.m.",
    "default string",
    "not specified",
    "not applicable",
    "not available",
    "none",
    "n/a",
    "unknown",
    "empty",
    "o.e.m.",
    "oem",
    "system manufacturer",
    "system product name",
    "system version",
    "system serial number",
    "base board serial number",
    "0123456789",
];

pub(super) fn collect(host: &Host) -> Dmi {
    let dmi = |name: &str| {
        let value = text(host, &host.files.sys(&format!("class/dmi/id/{name}")))?;
        (!SAYS_NOTHING.iter().any(|nothing| nothing.eq_ignore_ascii_case(&value))).then_some(value)
    };
    let bios = Bios { vendor: dmi("bios_vendor"), version: dmi("bios_version"), date: dmi("bios_date") };
    let board = Board {
        vendor: dmi("board_vendor"),
        name: dmi("board_name"),
        version: dmi("board_version"),
        serial: dmi("board_serial"),
    };
    let system = System {
        vendor: dmi("sys_vendor"),
        product: dmi("product_name"),
        version: dmi("product_version"),
        serial: dmi("product_serial"),
    };
    Dmi { bios: known(bios), board: known(board), system: known(system) }
}

/// `None` where nothing at all is known.
fn known<T: Default + PartialEq>(part: T) -> Option<T> {
    (part != T::default()).then_some(part)
}
