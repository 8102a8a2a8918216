//! systemd-oomd, started by hand, with a test in the place of the manager of the system that tells it what to look at.
#![expect(clippy::disallowed_methods, reason = "tests are outside of the agent: they write files and run programs")]

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::json;

use crate::require;

/// Where systemd-oomd asks the manager of the system (`VARLINK_PATH_MANAGED_OOM_SYSTEM` in its src/oom/oomd-manager.c).
const MANAGER: &str = "/run/systemd/io.system.ManagedOOM";
/// Its own folder, in which it listens to those of users.
const OWN: &str = "/run/systemd/oom";
const SETTINGS: &str = "/etc/systemd/oomd.conf.d/sysops-test.conf";
/// One in ten thousand of the time, of 2^32: more pressure than that is too much.
const LIMIT: u32 = 429_497;

/// The running systemd-oomd. It is ended when this is dropped.
pub struct ManagedOom(Child);

impl ManagedOom {
    /// What is missing to start it.
    #[must_use]
    pub fn missing() -> Option<String> {
        let manager =
            Path::new(MANAGER).exists().then(|| format!("needs a machine without {MANAGER}: it is systemd's"));
        require::root().or_else(|| require::files(&["/proc/pressure/memory"])).or(manager)
    }

    /// Starts it and has it kill what is in the cgroup at `path` after a second of any pressure.
    ///
    /// # Panics
    /// When that cannot be done.
    #[must_use]
    pub fn start(path: &str) -> Self {
        let write = |path: &Path, text: &str| {
            fs::create_dir_all(path.parent().expect("it is in a folder")).and_then(|()| fs::write(path, text))
        };
        write(Path::new(SETTINGS), "[OOM]\nDefaultMemoryPressureDurationSec=1s\n").expect("a file of our own");
        fs::create_dir_all(OWN).expect("a folder of its own");
        let listener = UnixListener::bind(MANAGER).expect("missing() was asked");
        let path = path.to_owned();
        std::thread::spawn(move || listener.incoming().flatten().for_each(|asks| answer(asks, &path)));
        let oomd = Command::new("systemd-oomd").stdin(Stdio::null()).spawn();
        Self(oomd.expect("missing() was asked"))
    }

    /// Its process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for ManagedOom {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
        let _ = fs::remove_file(MANAGER);
        let _ = fs::remove_file(SETTINGS);
    }
}

/// Answers `SubscribeManagedOOMCGroups` (varlink.org: JSON that ends with a zero byte), and leaves the subscription open until the
/// other side ends it. What a reply may say is in `process_managed_oom_message` of the same file.
fn answer(asks: UnixStream, path: &str) {
    let mut asks = BufReader::new(asks);
    let mut call = Vec::new();
    let cgroup = json!({"mode": "kill", "path": path, "property": "ManagedOOMMemoryPressure", "limit": LIMIT});
    let reply = json!({"parameters": {"cgroups": [cgroup]}, "continues": true}).to_string() + "\0";
    while asks.read_until(0, &mut call).is_ok_and(|length| length > 0) {
        assert!(String::from_utf8_lossy(&call).contains("SubscribeManagedOOMCGroups"), "{call:?}");
        asks.get_mut().write_all(reply.as_bytes()).expect("systemd-oomd listens");
        call.clear();
    }
}
