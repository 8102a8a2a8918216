//! Reads /sys/block: the disks that are devices. What they carry is left to the disk collector.

use std::path::Path;

use serde::Serialize;

use super::read::{Amount, bound, is_directory, number, said, text};
use crate::host::Host;

/// Sectors in `size` are 512 bytes whatever the device says (Documentation/ABI/stable/sysfs-block).
const SECTOR_BYTES: u64 = 512;

/// One disk.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Disk {
    /// `nvme0n1`.
    pub name: String,
    /// As the disk names itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Who made it, where the model does not say so: SCSI disks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vendor: Option<String>,
    /// Serial number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    /// Gigabytes of 10^9 bytes, as disks are sold. Absent without a medium.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub capacity_gb: Option<Amount>,
    /// `NVMe`, `SATA`, `SAS`, `SCSI`, `USB`, `virtio`, `MMC`, `FC`, `iSCSI`, `Xen`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interface: Option<&'static str>,
    /// Whether it turns, as the kernel sees it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rotational: Option<bool>,
    /// Version of its firmware.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub firmware: Option<String>,
}

pub(super) fn collect(host: &Host, omitted: &mut usize) -> Option<Vec<Disk>> {
    let mut names = host.files.list(&host.files.sys("block")).ok()?;
    names.retain(|name| is_disk(host, name));
    bound(&mut names, omitted);
    Some(names.iter().map(|name| disk(host, name)).collect())
}

/// Loops, memory disks, md and dm have no `device`; optical and floppy drives are no disks; of an NVMe disk with several
/// paths each path is `hidden`.
fn is_disk(host: &Host, name: &str) -> bool {
    let path = host.files.sys("block").join(name);
    let numbered =
        |prefix| name.strip_prefix(prefix).is_some_and(|rest| rest.bytes().all(|byte| byte.is_ascii_digit()));
    is_directory(host, &path.join("device"))
        && !numbered("sr")
        && !numbered("fd")
        && number(host, &path.join("hidden")) != Some(1)
}

fn disk(host: &Host, name: &str) -> Disk {
    let path = host.files.sys("block").join(name);
    let device = |file: &str| text(host, &path.join("device").join(file));
    let link = host.files.link(&path).ok().and_then(|target| Some(target.to_str()?.to_owned())).unwrap_or_default();
    let maker = device("vendor");
    let model = device("model").or_else(|| if name.starts_with("mmcblk") { device("name") } else { None });
    Disk {
        name: said(name.as_bytes()).unwrap_or_default(),
        // `ATA` says which commands it speaks, and in `vendor` of virtio stands a PCI number.
        vendor: maker.clone().filter(|maker| model.is_some() && maker != "ATA" && !maker.starts_with("0x")),
        model,
        serial: device("serial").or_else(|| text(host, &path.join("serial"))).or_else(|| vpd_serial(host, &path)),
        capacity_gb: number(host, &path.join("size"))
            .and_then(|sectors| sectors.checked_mul(SECTOR_BYTES))
            .filter(|&bytes| bytes > 0)
            .map(|bytes| Amount::of(bytes, 1_000_000_000)),
        interface: interface(name, &link, maker.as_deref()),
        rotational: number(host, &path.join("queue/rotational")).map(|rotational| rotational != 0),
        firmware: ["firmware_rev", "rev", "fwrev"].into_iter().find_map(device),
    }
}

/// By name and by the path of the device, as `../devices/pci0000:00/0000:00:04.0/ata1/host1/target1:0:0/…/block/sdb`.
fn interface(name: &str, link: &str, maker: Option<&str>) -> Option<&'static str> {
    let through = |part: &str| link.contains(part);
    Some(match () {
        () if name.starts_with("nvme") => "NVMe",
        () if name.starts_with("mmcblk") => "MMC",
        () if through("/usb") => "USB",
        () if through("/virtio") => "virtio",
        // A SATA disk behind a SAS controller says so by its maker.
        () if through("/ata") || maker == Some("ATA") => "SATA",
        () if through("/end_device-") => "SAS",
        () if through("/rport-") => "FC",
        () if through("/session") => "iSCSI",
        () if through("/vbd-") => "Xen",
        () if through("/target") => "SCSI",
        () => return None,
    })
}

/// The serial number in page 0x80 of a SCSI disk's vital product data: four bytes of header, the fourth its length.
fn vpd_serial(host: &Host, path: &Path) -> Option<String> {
    let page = host.files.read(&path.join("device/vpd_pg80")).ok()?;
    let &[_, 0x80, high, low, ref rest @ ..] = page.as_slice() else { return None };
    said(rest.get(..usize::from(u16::from_be_bytes([high, low])))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interfaces_by_their_path() {
        for (name, link, maker, expected) in [
            (
                "sda",
                "../devices/pci0000:00/0000:3b:00.0/host0/port-0:0/end_device-0:0/target0:0:0/0:0:0:0/block/sda",
                "SEAGATE",
                Some("SAS"),
            ),
            (
                "sdb",
                "../devices/pci0000:00/0000:3b:00.0/host0/port-0:1/end_device-0:1/target0:0:1/0:0:1:0/block/sdb",
                "ATA",
                Some("SATA"),
            ),
            ("sdc", "../devices/pci0000:00/0000:3b:00.0/host0/target0:2:0/0:2:0:0/block/sdc", "DELL", Some("SCSI")),
            (
                "sdd",
                "../devices/pci0000:00/0000:5e:00.0/host3/rport-3:0-0/target3:0:0/3:0:0:1/block/sdd",
                "PURE",
                Some("FC"),
            ),
            ("sde", "../devices/platform/host9/session1/target9:0:0/9:0:0:0/block/sde", "LIO-ORG", Some("iSCSI")),
            ("xvda", "../devices/vbd-51712/block/xvda", "", Some("Xen")),
            ("mmcblk0", "../devices/platform/mmc0/mmc0:0001/block/mmcblk0", "", Some("MMC")),
            ("odd", "", "", None),
        ] {
            assert_eq!(interface(name, link, Some(maker)), expected, "{name}");
        }
    }
}
