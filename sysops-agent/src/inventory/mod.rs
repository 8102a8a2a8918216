//! What the machine is: os, cpu, numa, memory, disks, network and board, as one JSON object
//! (docs/schemas/inventory.schema.json). When it is gathered and where it goes is left to the pipeline.
//!
//! What a source does not tell is a key that is missing. DIMMs, GPUs and SMART need other sources, and come later.

mod board;
mod cpu;
mod cpu_topology;
mod disk;
mod memory;
mod network;
mod numa;
mod os;
mod read;

use std::time::Duration;

use serde::Serialize;

use crate::host::Host;
use crate::model::Tick;
use crate::model::time::rfc3339_secs;
use crate::spec::{Fallback, Key, KeySpec, NotBuilt, Shape, Values};

static ENABLED: Key<bool> =
    Key::switch("inventory.enabled", true, "Tells what the machine is: hardware, system and devices.");
static INTERVAL: Key<Duration> =
    Key::secs("inventory.collect_interval_secs", 300, 1, 86_400, "How often the inventory is gathered.");
static BIOS: Key<bool> =
    Key::switch("inventory.include_bios", true, "Tells firmware, board and system as DMI names them.");
static DIMMS: Key<NotBuilt> = Key::later(
    "inventory.include_dimm_details",
    Shape::Bool,
    Fallback::Bool(true),
    "Tells each memory module: slot, size, type, speed, manufacturer.",
);
static SMART: Key<NotBuilt> =
    Key::later("inventory.include_smart", Shape::Bool, Fallback::Bool(false), "Tells the SMART health of each disk.");

/// Every key of `[inventory]`.
pub static KEYS: &[&KeySpec] = &[ENABLED.spec(), INTERVAL.spec(), DIMMS.spec(), SMART.spec(), BIOS.spec()];

/// `[inventory]` as it is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Whether the inventory is gathered at all.
    pub enabled: bool,
    /// How often.
    pub interval: Duration,
    /// Whether DMI is read.
    pub include_bios: bool,
}

impl Options {
    /// From the configuration.
    #[must_use]
    pub fn new(values: &Values) -> Self {
        Self { enabled: values.get(&ENABLED), interval: values.get(&INTERVAL), include_bios: values.get(&BIOS) }
    }
}

/// What the machine is.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Inventory {
    /// Version of this shape; keys are only ever added within it.
    pub schema: u32,
    /// Name under which the agent reports.
    pub hostname: String,
    /// RFC 3339, whole seconds.
    pub collected_at: String,
    /// The operating system.
    pub os: os::Os,
    /// The processors.
    pub cpu: cpu::Cpu,
    /// NUMA nodes. Absent where the kernel knows none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub numa: Option<numa::Numa>,
    /// Main memory.
    pub memory: memory::Memory,
    /// Disks that are devices: no partitions, loops, memory disks or mapped ones. Absent where there is no /sys/block.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disks: Option<Vec<disk::Disk>>,
    /// Interfaces that are devices, and bonds of them. Absent where there is no /sys/class/net.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<Vec<network::Interface>>,
    /// Firmware, by DMI.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bios: Option<board::Bios>,
    /// Main board, by DMI.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub board: Option<board::Board>,
    /// The machine as a product, by DMI.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub system: Option<board::System>,
    /// Devices beyond the first 1024 of their kind, which are not listed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub omitted: Option<Omitted>,
}

/// How many devices are not listed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Omitted {
    /// Disks.
    pub disks: usize,
    /// Interfaces.
    pub network: usize,
    /// NUMA nodes.
    pub numa: usize,
}

impl Inventory {
    /// The version of the shape.
    pub const SCHEMA: u32 = 1;
}

/// Looks at the machine. It takes some hundred reads: it belongs beside the cycle, not into it.
#[must_use]
pub fn collect(host: &Host, hostname: &str, options: &Options, now: &Tick) -> Inventory {
    let mut omitted = Omitted::default();
    let board = if options.include_bios { board::collect(host) } else { board::Dmi::default() };
    Inventory {
        schema: Inventory::SCHEMA,
        hostname: hostname.to_owned(),
        collected_at: rfc3339_secs(now.wall),
        os: os::collect(host),
        cpu: cpu::collect(host),
        numa: numa::collect(host, &mut omitted.numa),
        memory: memory::collect(host),
        disks: disk::collect(host, &mut omitted.disks),
        network: network::collect(host, &mut omitted.network),
        bios: board.bios,
        board: board.board,
        system: board.system,
        omitted: Some(omitted).filter(|omitted| *omitted != Omitted::default()),
    }
}

#[cfg(test)]
mod tests;
