//! Tells systemd how the service stands (sd_notify(3)): one datagram to $NOTIFY_SOCKET. Without that variable nothing
//! is said.

use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::net::{AddressFamily, SendFlags, SocketAddrUnix, SocketFlags, SocketType, sendto, socket_with};

use crate::model::Tick;

/// The way to the service manager, if there is one.
#[derive(Debug, Default)]
pub struct Systemd {
    socket: Option<(OwnedFd, SocketAddrUnix)>,
    watchdog: Option<Duration>,
}

impl Systemd {
    /// From the environment that systemd gives to a service.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "the protocol hands its address over in the environment")]
    pub fn from_env() -> Self {
        let watchdog = std::env::var("WATCHDOG_USEC").ok().and_then(|usec| usec.parse().ok());
        let for_us = std::env::var("WATCHDOG_PID").map_or(true, |pid| pid == std::process::id().to_string());
        Self {
            socket: std::env::var("NOTIFY_SOCKET").ok().and_then(|path| connect(&path)),
            watchdog: watchdog.filter(|_| for_us).map(Duration::from_micros),
        }
    }

    /// How often [`Systemd::alive`] is to be called: half of what systemd allows.
    #[must_use]
    pub fn watchdog_interval(&self) -> Option<Duration> {
        self.watchdog.map(|limit| limit / 2)
    }

    /// Start-up is done.
    pub fn ready(&self, status: &str) {
        self.say(&format!("READY=1\nSTATUS={}", one_line(status)));
    }

    /// The configuration is being read again; [`Systemd::ready`] ends it. systemd wants the time in the same datagram.
    pub fn reloading(&self, now: Tick) {
        self.say(&format!("RELOADING=1\nMONOTONIC_USEC={}", now.monotonic.as_micros()));
    }

    /// The way to the exit has begun.
    pub fn stopping(&self) {
        self.say("STOPPING=1");
    }

    /// The agent gets on with its work.
    pub fn alive(&self) {
        self.say("WATCHDOG=1");
    }

    fn say(&self, text: &str) {
        if let Some((socket, address)) = &self.socket {
            // A service manager that does not listen is no reason to stop.
            _ = sendto(socket, text.as_bytes(), SendFlags::NOSIGNAL | SendFlags::DONTWAIT, address);
        }
    }
}

fn connect(path: &str) -> Option<(OwnedFd, SocketAddrUnix)> {
    let address = match path.strip_prefix('@') {
        Some(name) => SocketAddrUnix::new_abstract_name(name.as_bytes()),
        None => SocketAddrUnix::new(path),
    };
    let socket = socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None);
    Some((socket.ok()?, address.ok()?))
}

fn one_line(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(200).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;

    use super::*;

    #[test]
    fn systemd_hears_ready_and_a_status_of_one_line() {
        let dir = std::env::temp_dir().join(format!("sysops-notify-{}", std::process::id()));
        let server = UnixDatagram::bind(&dir).expect("a socket");
        let systemd = Systemd { socket: connect(dir.to_str().expect("UTF-8")), watchdog: None };
        systemd.ready("4 probes\nWATCHDOG=trigger");
        let mut buffer = [0; 256];
        let length = server.recv(&mut buffer).expect("a datagram");
        assert_eq!(&buffer[..length], b"READY=1\nSTATUS=4 probesWATCHDOG=trigger");
        std::fs::remove_file(dir).expect("it is ours");
    }
}
