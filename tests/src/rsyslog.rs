//! A real rsyslog, unpacked or installed, that keeps each record as one line of JSON with the fields that it has read.

#![expect(clippy::disallowed_methods, reason = "tests run programs and read files as they like")]

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::servers::{Scratch, Server, find_program, free_port};

/// The running daemon.
pub struct Rsyslog {
    /// Ends with it.
    pub server: Server,
    /// A datagram socket whose records it reads as RFC 5424.
    pub socket: PathBuf,
    /// One whose records it reads as those of syslog(3).
    pub old_socket: PathBuf,
    /// UDP on 127.0.0.1.
    pub udp_port: u16,
    /// TCP on 127.0.0.1.
    pub tcp_port: u16,
    records: PathBuf,
    /// Bytes of the records that were taken.
    taken: u64,
}

impl Rsyslog {
    /// Starts it, or says why this machine cannot. Twice on one `tcp_port` it is the same daemon that comes back.
    #[must_use]
    pub fn start(tcp_port: u16) -> Option<Self> {
        let program = find_program("rsyslogd")?;
        let usr = program.parent().and_then(Path::parent).expect("it stands in /usr/sbin");
        let libraries = usr.join(format!("lib/{}-linux-gnu", std::env::consts::ARCH));
        let scratch = Scratch::new();
        let (folder, udp_port) = (scratch.path().to_owned(), free_port());
        let here = folder.display();
        let fields = [
            ("pri", "name=\"pri\""),
            ("time", "name=\"timereported\" dateFormat=\"rfc3339\""),
            ("host", "name=\"hostname\""),
            ("app", "name=\"app-name\""),
            ("pid", "name=\"procid\""),
            ("id", "name=\"msgid\""),
            ("data", "name=\"structured-data\""),
            ("text", "name=\"msg\""),
        ];
        let fields =
            fields.map(|(name, from)| format!("property(outname=\"{name}\" {from} format=\"jsonf\")")).join("\n");
        let configuration = format!(
            "global(workDirectory=\"{here}\" maxMessageSize=\"64k\")\n\
             module(load=\"imuxsock\" SysSock.Use=\"off\")\nmodule(load=\"imudp\")\nmodule(load=\"imptcp\")\n\
             template(name=\"fields\" type=\"list\" option.jsonf=\"on\") {{ {fields} }}\n\
             ruleset(name=\"keep\") {{ action(type=\"omfile\" file=\"{here}/records\" template=\"fields\") }}\n\
             input(type=\"imuxsock\" Socket=\"{here}/log\" UseSpecialParser=\"off\" ParseHostname=\"on\" \
             RateLimit.Interval=\"0\" ruleset=\"keep\")\n\
             input(type=\"imuxsock\" Socket=\"{here}/old\" RateLimit.Interval=\"0\" ruleset=\"keep\")\n\
             input(type=\"imudp\" address=\"127.0.0.1\" port=\"{udp_port}\" ruleset=\"keep\")\n\
             input(type=\"imptcp\" address=\"127.0.0.1\" port=\"{tcp_port}\" ruleset=\"keep\")\n"
        );
        let configuration = scratch.file("rsyslog.conf", &configuration);
        let arguments = [
            format!("LD_LIBRARY_PATH={}", libraries.display()),
            program.display().to_string(),
            "-n".to_owned(),
            "-f".to_owned(),
            configuration.display().to_string(),
            "-i".to_owned(),
            format!("{here}/pid"),
            "-M".to_owned(),
            libraries.join("rsyslog").display().to_string(),
        ];
        let server = Server::start(Path::new("/usr/bin/env"), &arguments, tcp_port, scratch);
        let records = folder.join("records");
        Some(Self {
            server,
            socket: folder.join("log"),
            old_socket: folder.join("old"),
            udp_port,
            tcp_port,
            records,
            taken: 0,
        })
    }

    /// The next record, once it is there.
    ///
    /// # Panics
    /// When it does not come, or more do.
    pub fn next_record(&mut self) -> Value {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let rest = self.rest();
            if let Some(line) = rest.strip_suffix(b"\n") {
                assert!(!line.contains(&b'\n'), "{}", String::from_utf8_lossy(&rest));
                self.taken += rest.len() as u64;
                return serde_json::from_slice(line).expect("a record is JSON");
            }
            assert!(Instant::now() < deadline, "no record came\n{}", self.server.log());
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// What was written and not taken; the file comes with the first record.
    fn rest(&self) -> Vec<u8> {
        let Ok(file) = File::open(&self.records) else { return Vec::new() };
        let length = file.metadata().map_or(0, |is| is.len());
        let mut rest = vec![0; usize::try_from(length.saturating_sub(self.taken)).expect("it fits in memory")];
        file.read_exact_at(&mut rest, self.taken).expect("it only grows");
        rest
    }
}
