//! Disks of a test's own that make no requests of their own: one in memory that is compressed, one that is mapped onto
//! another, and one that is an array of two.
#![expect(clippy::disallowed_methods, clippy::panic, reason = "a test reads files, runs programs and fails by panic")]

use std::process::Command;

use crate::loop_device::LoopDevice;
use crate::require;
use crate::scsi_disk::ScsiDisk;

/// A disk that is taken down when dropped.
pub struct StackedDisk {
    name: String,
    kind: Kind,
}

enum Kind {
    InMemory,
    /// Its name for the device mapper, and what it is mapped onto.
    Mapped(String, LoopDevice),
    /// The same of a multipath disk with one path.
    OneWay(String, ScsiDisk),
    /// What it is made of.
    Array([LoopDevice; 2]),
}

/// A number that no array gets that the machine itself makes.
const ARRAY: &str = "md126";

impl StackedDisk {
    /// A zram disk, if this kernel has any.
    ///
    /// # Panics
    /// When the machine refuses.
    #[must_use]
    pub fn in_memory() -> Option<Self> {
        let disk = Self::in_memory_without_size()?;
        disk.give_size();
        Some(disk)
    }

    /// A zram disk that has no size yet.
    #[must_use]
    pub fn in_memory_without_size() -> Option<Self> {
        let number = std::fs::read_to_string("/sys/class/zram-control/hot_add").ok()?;
        Some(Self { name: format!("zram{}", number.trim()), kind: Kind::InMemory })
    }

    /// Gives it one.
    ///
    /// # Panics
    /// When the machine refuses.
    pub fn give_size(&self) {
        std::fs::write(format!("/sys/block/{}/disksize", self.name), "16M").expect("a disk of our own");
    }

    /// What is missing to map one.
    #[must_use]
    pub fn mapping_missing() -> Option<String> {
        require::programs(&["dmsetup"]).or_else(|| require::files(&["/dev/mapper/control"]))
    }

    /// All of `below`, sector by sector.
    ///
    /// # Panics
    /// When the machine refuses.
    #[must_use]
    pub fn mapped_onto(below: LoopDevice) -> Self {
        let mapping = mapping_of(below.name());
        let table = format!("0 {} linear {} 0", sectors(below.name()), below.path());
        let name = map(&mapping, &table);
        Self { name, kind: Kind::Mapped(mapping, below) }
    }

    /// A disk of the device mapper with requests of its own, for which it makes others of `below`.
    ///
    /// # Panics
    /// When the machine refuses.
    #[must_use]
    pub fn one_way_to(below: ScsiDisk) -> Self {
        let mapping = mapping_of(below.name());
        let way = format!("round-robin 0 1 1 /dev/{} 1000", below.name());
        let table = format!("0 {} multipath 0 0 1 1 {way}", sectors(below.name()));
        let name = map(&mapping, &table);
        Self { name, kind: Kind::OneWay(mapping, below) }
    }

    /// The disk that it is mapped onto.
    #[must_use]
    pub fn below(&self) -> Option<&str> {
        match &self.kind {
            Kind::Mapped(_, below) => Some(below.name()),
            Kind::OneWay(_, below) => Some(below.name()),
            Kind::InMemory | Kind::Array(_) => None,
        }
    }

    /// What is missing to make arrays.
    #[must_use]
    pub fn arrays_missing() -> Option<String> {
        require::modules(&["raid0", "raid1"])
    }

    /// An array of `level` (`raid0`, `raid1`) over `below`.
    ///
    /// # Panics
    /// When the machine refuses.
    #[must_use]
    pub fn array(level: &str, below: [LoopDevice; 2]) -> Self {
        std::fs::write("/sys/module/md_mod/parameters/new_array", ARRAY).expect("arrays_missing() was asked");
        let read = |disk: &LoopDevice, name: &str| {
            std::fs::read_to_string(format!("/sys/block/{}/{name}", disk.name())).expect("it is there")
        };
        let kib = |disk| (read(disk, "size").trim().parse::<u64>().expect("sectors") / 2).to_string();
        // Nothing of it is written to the disks, and they are taken to be the same already.
        let whole = [("metadata_version", "none"), ("level", level), ("raid_disks", "2"), ("resync_start", "none")];
        whole.iter().for_each(|(name, value)| set(name, value));
        set("chunk_size", "65536");
        set("component_size", &kib(&below[0]));
        for (slot, disk) in below.iter().enumerate() {
            set("new_dev", &read(disk, "dev"));
            set(&format!("dev-{}/size", disk.name()), &kib(disk));
            set(&format!("dev-{}/slot", disk.name()), &slot.to_string());
        }
        set("array_state", "active");
        Self { name: ARRAY.to_owned(), kind: Kind::Array(below) }
    }

    /// As the kernel names it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Writes or reads `count` times 4 KiB, past the page cache.
    ///
    /// # Panics
    /// When it fails.
    pub fn transfer(&self, write: bool, count: u32) {
        transfer(&self.name, write, count);
    }
}

/// Writes to the disk `name`, or reads from it, `count` times 4 KiB, past the page cache.
///
/// # Panics
/// When it fails.
pub fn transfer(name: &str, write: bool, count: u32) {
    let output = transferring(name, write, count).output().expect("require() was asked");
    assert!(output.status.success(), "{output:?}");
}

/// The program that does so.
#[must_use]
pub fn transferring(name: &str, write: bool, count: u32) -> Command {
    let device = format!("/dev/{name}");
    let (from, to) = if write { ("/dev/zero", &*device) } else { (&*device, "/dev/null") };
    let flag = if write { "oflag=direct" } else { "iflag=direct" };
    let mut dd = Command::new("dd");
    dd.args([format!("if={from}"), format!("of={to}"), format!("count={count}"), "bs=4096".into(), flag.into()]);
    dd
}

/// The program that writes so many pages by way of the page cache, and waits for the disk.
#[must_use]
pub fn transferring_by_cache(name: &str, pages: u32) -> Command {
    let mut dd = Command::new("dd");
    dd.args(["if=/dev/zero", "bs=65536", "conv=fsync"]);
    dd.args([format!("of=/dev/{name}"), format!("count={}", pages / 16)]);
    dd
}

fn set(attribute: &str, value: &str) {
    let file = format!("/sys/block/{ARRAY}/md/{attribute}");
    std::fs::write(&file, value).unwrap_or_else(|error| panic!("{file}: {value}: {error}"));
}

fn mapping_of(below: &str) -> String {
    format!("sysops-{below}-{}", std::process::id())
}

fn sectors(name: &str) -> String {
    std::fs::read_to_string(format!("/sys/block/{name}/size")).expect("it is there").trim().to_owned()
}

/// Makes the mapping by this table, and gives the kernel's name of it.
fn map(mapping: &str, table: &str) -> String {
    dmsetup(&["create", "--noudevsync", "--noudevrules", mapping, "--table", table]);
    let disks = std::fs::read_dir("/sys/block").expect("it is there").filter_map(Result::ok);
    let is_ours = |name: &String| {
        let found = std::fs::read_to_string(format!("/sys/block/{name}/dm/name"));
        found.is_ok_and(|found| found.trim() == mapping)
    };
    disks.filter_map(|disk| disk.file_name().into_string().ok()).find(is_ours).expect("it was made")
}

fn dmsetup(arguments: &[&str]) {
    let output = Command::new("dmsetup").args(arguments).output().expect("require() was asked");
    assert!(output.status.success(), "{output:?}");
}

impl Drop for StackedDisk {
    fn drop(&mut self) {
        match &self.kind {
            // Left behind, it is an empty disk.
            Kind::InMemory => {
                let number = self.name.trim_start_matches("zram");
                let _ = std::fs::write("/sys/class/zram-control/hot_remove", number);
            }
            // The disk below goes behind it.
            Kind::Mapped(mapping, _) | Kind::OneWay(mapping, _) => {
                let _ = Command::new("dmsetup").args(["remove", "--noudevsync", mapping]).output();
            }
            Kind::Array(_below) => {
                let _ = std::fs::write(format!("/sys/block/{ARRAY}/md/array_state"), "clear");
            }
        }
    }
}
