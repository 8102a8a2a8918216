//! Syslog against a datagram socket that stands in for the daemon's: the frame on the wire read back by a parser of its
//! own, a daemon that restarts, and one that does not read.

use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sysops_agent::deliver::channel::{self, Channel, SendError};
use sysops_agent::spec::Value;
use sysops_tests::injection;
use sysops_tests::values::values;

/// A socket in a directory of its own, which goes with it.
struct Daemon {
    socket: UnixDatagram,
    dir: PathBuf,
}

impl Daemon {
    fn start(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("sysops-syslog-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("the directory for temporary files takes one more");
        Self { socket: bind(&dir.join("log")), dir }
    }

    fn path(&self) -> PathBuf {
        self.dir.join("log")
    }

    fn receive(&self) -> String {
        let mut buffer = vec![0; 64 << 10];
        let len = self.socket.recv(&mut buffer).expect("a datagram comes");
        buffer.truncate(len);
        String::from_utf8(buffer).expect("a frame is UTF-8")
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

fn bind(path: &Path) -> UnixDatagram {
    let _ = std::fs::remove_file(path);
    let socket = UnixDatagram::bind(path).expect("the path is free");
    socket.set_read_timeout(Some(Duration::from_secs(10))).expect("a socket has a timeout");
    socket
}

fn syslog(path: &Path) -> Box<dyn Channel> {
    let values = values([
        ("alerting.syslog.enabled", Value::Bool(true)),
        ("alerting.syslog.path", Value::Text(path.display().to_string())),
    ]);
    let entry = channel::ALL.iter().find(|entry| entry.name == "syslog").expect("it is in the list");
    (entry.build)(&values).expect("the settings are right").expect("it is enabled")
}

/// What RFC 5424 makes of a frame: header fields, parameters of all elements with escapes undone, message.
struct Parsed {
    header: Vec<String>,
    params: Vec<(String, String)>,
    message: String,
}

fn parse(frame: &str) -> Parsed {
    let (header, mut rest) = frame.split_at(frame.find(" [").expect("structured data"));
    rest = &rest[1..];
    let mut params = Vec::new();
    while let Some(element) = rest.strip_prefix('[') {
        let name_end = element.find([' ', ']']).expect("an element has an id");
        rest = &element[name_end..];
        while let Some(param) = rest.strip_prefix(' ') {
            let (name, value) = param.split_once("=\"").expect("a parameter has a value");
            let (value, after) = unquote(value).expect("a value is closed and its brackets are escaped");
            params.push((name.to_owned(), value));
            rest = after;
        }
        rest = rest.strip_prefix(']').expect("an element is closed");
    }
    let message = rest.strip_prefix(" \u{feff}").expect("a blank and a BOM").to_owned();
    Parsed { header: header.split(' ').map(ToOwned::to_owned).collect(), params, message }
}

/// A value with its escapes undone, and what stands after it; `None` when it is not closed or not escaped.
fn unquote(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    loop {
        match chars.next()? {
            (at, '"') => return Some((value, &text[at + 1..])),
            (_, '\\') => value.push(chars.next()?.1),
            (_, ']') => return None,
            (_, c) => value.push(c),
        }
    }
}

#[tokio::test]
async fn hostile_text_stays_inside_its_field_of_one_record() {
    let daemon = Daemon::start("corpus");
    let mut channel = syslog(&daemon.path());
    for text in injection::corpus() {
        channel.send(&injection::notice(&text)).await.expect("the socket takes it");
        let frame = daemon.receive();
        assert!(frame.len() <= 8192, "{}", frame.len());
        let body = frame.replacen('\u{feff}', "", 1);
        let misleading =
            |c: &char| c.is_control() || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{feff}');
        assert_eq!(body.chars().find(misleading), None, "in the frame of {text:?}");
        let parsed = parse(&frame);
        let pid = std::process::id().to_string();
        assert_eq!(parsed.header, ["<26>1", "2026-02-22T16:30:00Z", "web-1", "sysops-agent", &pid, "oom_kill"]);
        let names: Vec<_> = parsed.params.iter().map(|(name, _)| name.as_str()).collect();
        let own =
            ["metric", "severity", "status", "value", "threshold", "change", "rule", "id", "fingerprint", "starts_at"];
        assert_eq!(names, [&own[..], &["cgroup", "comm"]].concat(), "{text:?}");
        assert!(parsed.message.starts_with("The kernel killed "), "{}", parsed.message);
    }
}

#[tokio::test]
async fn quoting_is_undone_by_the_other_side() {
    let daemon = Daemon::start("quoting");
    syslog(&daemon.path()).send(&injection::notice("a \"b\" [c] \\d")).await.expect("the socket takes it");
    let parsed = parse(&daemon.receive());
    assert!(parsed.params.contains(&("comm".to_owned(), "a \"b\" [c] \\d".to_owned())), "{:?}", parsed.params);
}

#[tokio::test]
async fn a_daemon_that_starts_late_or_again_is_found() {
    let mut daemon = Daemon::start("restart");
    std::fs::remove_file(daemon.path()).expect("it is there");
    let mut channel = syslog(&daemon.path());
    let early = channel.send(&injection::notice("dd")).await;
    assert!(matches!(early, Err(SendError::Retry { .. })), "{early:?}");
    for _ in 0..2 {
        daemon.socket = bind(&daemon.path());
        channel.send(&injection::notice("dd")).await.expect("the daemon is there, on a new socket");
        assert!(daemon.receive().contains("The kernel killed dd."));
    }
}

#[tokio::test]
async fn a_daemon_that_does_not_read_blocks_nobody() {
    let daemon = Daemon::start("full");
    let mut channel = syslog(&daemon.path());
    let full = async {
        loop {
            if let Err(error) = channel.send(&injection::notice("dd")).await {
                return error;
            }
        }
    };
    let error = tokio::time::timeout(Duration::from_secs(10), full).await.expect("no send blocks");
    assert!(matches!(error, SendError::Retry { .. }), "{error:?}");
    daemon.receive();
    channel.send(&injection::notice("dd")).await.expect("there is room again");
}
