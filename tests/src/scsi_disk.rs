//! A SCSI disk that the kernel's module scsi_debug plays, with one request at a time.
#![expect(clippy::disallowed_methods, reason = "a test reads files and runs programs")]

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::require;

/// The disk, until it is dropped.
pub struct ScsiDisk {
    name: String,
}

impl ScsiDisk {
    /// What is missing to have one. The module is loaded by this, with these parameters more.
    #[must_use]
    pub fn missing(parameters: &[&str]) -> Option<String> {
        let all = [&["dev_size_mb=16", "max_queue=1", "delay=0"], parameters].concat();
        require::root()
            .or_else(|| require::modules(&["sd_mod"]))
            .or_else(|| require::module_with("scsi_debug", &all))
            .or_else(|| {
                let deadline = Instant::now() + Duration::from_secs(20);
                while find().is_none() && Instant::now() < deadline {
                    std::thread::sleep(Duration::from_millis(20));
                }
                find().is_none().then(|| "scsi_debug gives no disk".to_owned())
            })
    }

    /// The one that is there now.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    pub fn of_the_machine() -> Self {
        let disk = Self { name: find().expect("missing() was asked") };
        disk.set("queue/scheduler", "none");
        disk
    }

    /// `sda`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Sets an attribute of the disk.
    ///
    /// # Panics
    /// When the kernel refuses.
    pub fn set(&self, attribute: &str, value: &str) {
        std::fs::write(format!("/sys/block/{}/{attribute}", self.name), value).expect("root may");
    }

    /// Reads the first block `count` times from a disk that is taken offline when it is open; all fail.
    ///
    /// # Panics
    /// When one does not.
    pub fn read_offline(&self, count: u32) {
        let state = format!("/sys/block/{}/device/state", self.name);
        let dd = "dd bs=4096 count=1 iflag=direct of=/dev/null <&3 2>/dev/null && exit 1";
        let script = format!(
            "exec 3</dev/{}; echo offline >{state}; i=0; while [ $i -lt {count} ]; do {dd}; i=$((i+1)); done; \
             echo running >{state}",
            self.name
        );
        assert!(Command::new("sh").args(["-c", &script]).status().expect("there is a shell").success());
    }
}

impl Drop for ScsiDisk {
    fn drop(&mut self) {
        // Left behind, it is a disk that no one uses.
        let _ = Command::new("modprobe").args(["-r", "scsi_debug"]).output();
    }
}

fn find() -> Option<String> {
    let inside = |dir: PathBuf, prefix: &'static str| {
        let entries = std::fs::read_dir(dir).into_iter().flatten().filter_map(Result::ok);
        entries
            .filter(move |entry| entry.file_name().to_string_lossy().starts_with(prefix))
            .map(|entry| entry.path())
            .collect::<Vec<_>>()
    };
    let mut found = inside("/sys/bus/pseudo/drivers/scsi_debug".into(), "adapter");
    for prefix in ["host", "target", ""] {
        found = found.into_iter().flat_map(|dir| inside(dir, prefix)).collect();
    }
    let disk = found.into_iter().flat_map(|device| inside(device.join("block"), "sd")).next()?;
    Some(disk.file_name()?.to_string_lossy().into_owned())
}
