//! The service manager's end of sd_notify(3): a datagram socket that keeps what it hears.
#![expect(clippy::panic, reason = "a test fails by panic")]

use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::time::Duration;

use crate::servers::Scratch;

/// The socket.
pub struct NotifySocket {
    socket: UnixDatagram,
    scratch: Scratch,
}

impl NotifySocket {
    /// A new one.
    ///
    /// # Panics
    /// When it cannot be bound.
    #[must_use]
    pub fn new() -> Self {
        let scratch = Scratch::new();
        let socket = UnixDatagram::bind(scratch.path().join("notify")).expect("a folder of our own");
        socket.set_read_timeout(Some(Duration::from_secs(20))).expect("not zero");
        Self { socket, scratch }
    }

    /// What `NOTIFY_SOCKET` is to be.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.scratch.path().join("notify")
    }

    /// The next datagram of which `is` is true; those before it are passed over.
    ///
    /// # Panics
    /// When none comes within 20 s.
    pub fn wait_for(&self, what: &str, is: impl Fn(&str) -> bool) -> String {
        let mut buffer = [0; 4096];
        let mut heard = Vec::new();
        loop {
            let size = self.socket.recv(&mut buffer).unwrap_or_else(|error| panic!("{what}: {error}; heard {heard:?}"));
            let text = String::from_utf8_lossy(&buffer[..size]).into_owned();
            if is(&text) {
                return text;
            }
            heard.push(text);
        }
    }
}

impl Default for NotifySocket {
    fn default() -> Self {
        Self::new()
    }
}
