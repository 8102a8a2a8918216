//! A disk of NVMe with two ways to it, as the guests of `cargo xtask vm-test` have one: its head makes no requests, its paths,
//! which are hidden, do. It comes and goes with the driver.
#![expect(clippy::disallowed_methods, reason = "a test reads files and runs programs")]

use std::process::Command;
use std::time::{Duration, Instant};

use crate::loop_device::completed;
use crate::require;

/// The disk, until it is dropped.
pub struct Multipath {
    head: String,
}

impl Multipath {
    /// What is missing to have one.
    #[must_use]
    pub fn missing() -> Option<String> {
        let is_there = || {
            let deadline = Instant::now() + Duration::from_secs(20);
            while paths().len() < 2 && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(20));
            }
            (paths().len() < 2).then(|| "needs a disk of NVMe with two paths".to_owned())
        };
        require::root().or_else(|| require::modules(&["nvme"])).or_else(is_there)
    }

    /// The one of this machine.
    ///
    /// # Panics
    /// When it has none.
    #[must_use]
    pub fn of_the_machine() -> Self {
        Self { head: disks(false).pop().expect("missing() was asked") }
    }

    /// The disk that is seen.
    #[must_use]
    pub fn head(&self) -> &str {
        &self.head
    }

    /// Takes the path away, as when its controller is pulled out.
    ///
    /// # Panics
    /// When the machine refuses.
    pub fn remove(path: &str) {
        // The disk's folder is in that of its controller, and that is in the device's.
        let controller = std::fs::canonicalize(format!("/sys/block/{path}/device")).expect("it is there");
        std::fs::write(controller.join("device/remove"), "1").expect("root may");
    }
}

impl Drop for Multipath {
    /// The driver goes, and both ways are there when it comes again.
    fn drop(&mut self) {
        let _ = Command::new("modprobe").args(["-r", "nvme"]).output();
        let _ = std::fs::write("/sys/bus/pci/rescan", "1");
    }
}

/// The hidden disks below it, each with a way of its own.
#[must_use]
pub fn paths() -> Vec<String> {
    disks(true)
}

/// The path that takes most requests.
///
/// # Panics
/// When there is none.
#[must_use]
pub fn busiest() -> String {
    paths().into_iter().max_by_key(|path| completed(path).writes).expect("it has paths")
}

fn disks(hidden: bool) -> Vec<String> {
    let names = std::fs::read_dir("/sys/block").into_iter().flatten().filter_map(Result::ok);
    let names = names.filter_map(|disk| disk.file_name().into_string().ok()).filter(|name| name.starts_with("nvme"));
    let is_so = |name: &String| {
        let attribute = std::fs::read_to_string(format!("/sys/block/{name}/hidden"));
        attribute.is_ok_and(|attribute| (attribute.trim() == "1") == hidden)
    };
    let mut names: Vec<String> = names.filter(is_so).collect();
    names.sort();
    names
}
