//! The control socket on the wire: what it answers, whom, and that nothing that is sent to it does any harm.

use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use rustix::fs::Mode;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use serde_json::Value;
use sysops_agent::control::protocol::{REQUEST_BYTES_MAX, Request};
use sysops_agent::control::{self, AskError, Control, Unavailable};
use sysops_agent::host::{Host, Roots};
use sysops_agent::model::with_causes;
use sysops_agent::spec::Values;
use sysops_tests::desk::{Noting, Served};
use sysops_tests::servers::Scratch;
use tokio::task::LocalSet;

/// What is answered to these bytes, as they are.
fn answered(socket: &Path, bytes: &[u8]) -> String {
    let mut stream = UnixStream::connect(socket).expect("it is served");
    // It may have answered and gone before it has read everything.
    _ = stream.write_all(bytes);
    _ = stream.shutdown(std::net::Shutdown::Write);
    let mut text = Vec::new();
    _ = stream.read_to_end(&mut text);
    String::from_utf8(text).expect("an answer is UTF-8")
}

/// The error in the one line that is answered.
fn refused(socket: &Path, bytes: &[u8]) -> String {
    let text = answered(socket, bytes);
    let line = text.strip_suffix('\n').expect("an answer is a line");
    let line: Value = serde_json::from_str(line).expect("an answer is JSON");
    assert_eq!(line["ok"], false, "{line}");
    line["error"].as_str().expect("an error is text").to_owned()
}

#[test]
fn one_object_a_line_each_way() {
    let served = Served::start("");
    let socket = served.socket();
    let alerts: Value = serde_json::from_str(&answered(&socket, b"{\"schema\":1,\"do\":\"alerts\"}\n")).expect("JSON");
    assert_eq!((&alerts["ok"], &alerts["alerts"][0]["fingerprint"]), (&true.into(), &"8f3a1c2e00112233".into()));
    // Who asks is known by the kernel: no word of the client counts.
    let ack = answered(&socket, b"{\"schema\":1,\"do\":\"ack\",\"alert\":\"8F3A\",\"note\":\"x\",\"by\":\"eve\"}\n");
    assert!(ack.starts_with("{\"ok\":true,\"alert\":{\"fingerprint\":\"8f3a1c2e00112233\""), "{ack}");
    let me = control::user_name(&Host::live(&Roots::default()).files, rustix::process::geteuid().as_raw());
    assert_eq!(
        served.desk.asked()[1..],
        [format!("ack 8f3a by {me}: x"), "kept".to_owned()],
        "it is kept, then answered"
    );
    let test = answered(&socket, b"{\"schema\":1,\"do\":\"test-alert\",\"severity\":\"warn\"}\n");
    let lines: Vec<Value> = test.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(lines[0]["sent_to"], serde_json::json!(["webhook", "syslog"]));
    let outcomes: Vec<_> =
        lines[1..4].iter().map(|line| (&line["outcome"]["channel"], &line["outcome"]["result"])).collect();
    let [webhook, syslog, later, delivered] = ["webhook", "syslog", "later", "delivered"].map(Value::from);
    assert_eq!(outcomes, [(&webhook, &later), (&webhook, &delivered), (&syslog, &later)]);
    assert_eq!((&lines[4]["end"], lines.len()), (&"answered".into(), 5), "what comes in 5 min is not waited for");
}

#[test]
fn what_is_not_understood_or_not_allowed_is_refused_politely() {
    let served = Served::start("");
    let socket = served.socket();
    let long = "x".repeat(1001);
    for (request, expected) in [
        ("{\"schema\":1,\"do\":\"reboot\"}\n", "unknown variant `reboot`, expected one of `alerts`, `ack`"),
        ("{\"schema\":9,\"do\":\"alerts\"}\n", "understands schema 1, not 9"),
        ("GET / HTTP/1.1\r\n\r\n", "no request: "),
        ("\n", "no request: "),
        ("{\"schema\":1,\"do\":\"alerts\"}", "half a request"),
        ("{\"schema\":1,\"do\":\"ack\",\"alert\":\"; rm\"}\n", "expected the first hexadecimal digits"),
        ("{\"schema\":1,\"do\":\"ack\",\"alert\":\"\"}\n", "expected the first hexadecimal digits"),
        ("{\"schema\":1,\"do\":\"ack\",\"alert\":\"ffff\"}\n", "no alert begins with ffff"),
        ("{\"schema\":1,\"do\":\"silence\",\"matcher\":{},\"secs\":60}\n", "needs a condition"),
        ("{\"schema\":1,\"do\":\"silence\",\"matcher\":{\"a\":\"b\"},\"secs\":0}\n", "for 1 s to 30 days"),
        ("{\"schema\":1,\"do\":\"silence\",\"matcher\":{\"a\":\"b\"},\"secs\":2592001}\n", "for 1 s to 30 days"),
        ("{\"schema\":1,\"do\":\"silence\",\"matcher\":{\"a\":\"b\"},\"secs\":-1}\n", "no request: "),
        ("{\"schema\":1,\"do\":\"unsilence\",\"id\":4}\n", "no silence has the number 4"),
        (&format!("{{\"schema\":1,\"do\":\"ack\",\"alert\":\"8f\",\"note\":\"{long}\"}}\n"), "at most 1000 bytes"),
        (
            &format!("{{\"schema\":1,\"do\":\"silence\",\"matcher\":{{\"a\":\"{long}{long}\"}},\"secs\":1}}\n"),
            "of at most 1024",
        ),
    ] {
        let error = refused(&socket, request.as_bytes());
        assert!(error.contains(expected), "{request}: {error}");
    }
    assert_eq!(
        served
            .desk
            .asked()
            .iter()
            .filter(|asked| !asked.starts_with("ack ffff") && !asked.starts_with("unsilence 4"))
            .count(),
        0
    );
}

#[test]
fn hostile_bytes_harm_nothing() {
    let served = Served::start("");
    let socket = served.socket();
    assert!(refused(&socket, b"\xff\xfe\0\n").starts_with("no request: "));
    assert!(refused(&socket, &vec![b'['; REQUEST_BYTES_MAX - 1]).starts_with("half a request"));
    assert!(refused(&socket, &[&vec![b'['; REQUEST_BYTES_MAX - 1][..], b"\n"].concat()).starts_with("no request: "));
    assert!(refused(&socket, &vec![b' '; 16 << 20]).starts_with("a request has at most"));
    // Gone without a word, in the middle of one, and without hearing the answer.
    drop(UnixStream::connect(&socket).expect("it is served"));
    for bytes in [&b"{\"schema\":1,"[..], b"{\"schema\":1,\"do\":\"alerts\"}\n{\"schema\":1,\"do\":\"alerts\"}\n"] {
        UnixStream::connect(&socket).expect("it is served").write_all(bytes).expect("it is taken");
    }
    assert!(control::ask(&socket, &Request::Alerts).and_then(|mut answers| answers.next_answer()).is_ok());
}

#[test]
fn who_dawdles_is_sent_away_and_delays_nobody() {
    let served = Served::start("");
    let mut dawdler = UnixStream::connect(served.socket()).expect("it is served");
    dawdler.set_read_timeout(Some(Duration::from_millis(100))).expect("not zero");
    // A byte now and then never makes a request.
    let mut answer = String::new();
    while !answer.ends_with('\n') {
        _ = dawdler.write_all(b" ");
        let others = control::ask(&served.socket(), &Request::Outbox).and_then(|mut answers| answers.next_answer());
        assert!(others.is_ok(), "{others:?}");
        _ = dawdler.read_to_string(&mut answer);
    }
    assert!(answer.contains("no whole request within 5 s"), "{answer:?}");
}

#[test]
fn a_thousand_connections_are_borne() {
    let served = Served::start("");
    let address = SocketAddrUnix::new(served.socket()).expect("a short path");
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let crowd: Vec<_> = (0..1000)
        .map(|_| {
            let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).expect("a socket");
            // Most are not even let into the queue.
            _ = connect(&socket, &address);
            socket
        })
        .collect();
    drop(crowd);
    assert!(control::ask(&served.socket(), &Request::Alerts).and_then(|mut answers| answers.next_answer()).is_ok());
}

/// Within a `LocalSet`, as the agent has one.
fn within<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("an event loop");
    LocalSet::new().block_on(&runtime, work)
}

fn start(path: &Path) -> Result<Control, Unavailable> {
    Control::start(path, &Host::live(&Roots::default()), Rc::new(Noting::default()))
}

#[test]
fn the_file_is_for_its_owner_alone_whatever_the_umask() {
    let scratch = Scratch::new();
    let path = scratch.path().join("control.sock");
    within(async {
        let before = rustix::process::umask(Mode::empty());
        let control = start(&path);
        rustix::process::umask(before);
        let control = control.expect("the folder is ours");
        let metadata = path.symlink_metadata().expect("it is there");
        assert_eq!(metadata.permissions().mode() & 0o7777, 0o600);
        assert_eq!(metadata.uid(), rustix::process::geteuid().as_raw());
        let left: Vec<_> =
            scratch.path().read_dir().expect("ours").map(|entry| entry.expect("ours").file_name()).collect();
        assert_eq!(left, ["control.sock"], "nothing else is left");
        drop(control);
        assert!(!path.exists(), "it goes with the agent");
    });
}

#[test]
fn a_dead_agents_socket_is_replaced_and_a_living_ones_is_not() {
    let scratch = Scratch::new();
    let path = scratch.path().join("control.sock");
    // Its file stays behind.
    drop(UnixListener::bind(&path).expect("the folder is ours"));
    within(async {
        let first = start(&path).expect("whoever was here is dead");
        let inode = path.symlink_metadata().expect("it is there").ino();
        let second = start(&path).expect_err("the first lives");
        let pid = std::process::id();
        assert_eq!(second.to_string(), format!("{}: another agent (pid {pid}) listens there", path.display()));
        assert_eq!(path.symlink_metadata().expect("it is there").ino(), inode, "and keeps its socket");
        // What stands there when the first ends is not the first's: it stays.
        std::fs::remove_file(&path).expect("ours");
        let third = start(&path).expect("the place is free");
        drop(first);
        assert!(path.exists());
        drop(third);
        assert!(!path.exists());
    });
}

#[test]
fn where_there_can_be_none_it_is_said() {
    let scratch = Scratch::new();
    let file = scratch.file("control.sock", "precious");
    within(async {
        let error = start(&file).expect_err("a file stands there");
        assert!(error.to_string().ends_with("expected a socket or nothing, found another file"), "{error}");
        assert!(file.is_file());
        let error = start(&scratch.path().join("no/control.sock")).expect_err("there is no such folder");
        assert!(with_causes(&error).contains("No such file or directory"), "{error}");
        let none =
            control::start(&Values::default(), Some(&file), &Host::live(&Roots::default()), Rc::new(Noting::default()));
        assert!(none.is_none(), "the agent runs without");
        let error = start(&scratch.path().join("x".repeat(120))).expect_err("too long");
        assert!(error.to_string().contains("no path for a socket"), "{error}");
    });
}

#[test]
fn a_client_says_why_there_is_no_answer() {
    let scratch = Scratch::new();
    let path = scratch.path().join("control.sock");
    let asked = |path: &Path| control::ask(path, &Request::Outbox).and_then(|mut answers| answers.next_answer());
    assert!(matches!(asked(&path), Err(AskError::NoAgent)));
    assert!(matches!(asked(&path.join("x")), Err(AskError::NoAgent)));
    let listener = UnixListener::bind(&path).expect("the folder is ours");
    for (answer, is_strange) in [("", false), ("{\"ok\":true", false), ("220 mail ESMTP\r\n", true)] {
        let answering = std::thread::scope(|scope| {
            let asking = scope.spawn(|| asked(&path));
            let (mut stream, _) = listener.accept().expect("it asks");
            stream.read_exact(&mut [0; 8]).expect("it asks");
            stream.write_all(answer.as_bytes()).expect("it waits");
            drop(stream);
            asking.join().expect("no panic")
        });
        match answering {
            Err(AskError::Strange(_)) => assert!(is_strange, "{answer}"),
            Err(AskError::Silent(reason)) => {
                assert!(!is_strange && reason == "it has gone in the middle of it", "{reason}");
            }
            other => panic!("{answer}: {other:?}"),
        }
    }
    drop(listener);
    assert!(matches!(asked(&path), Err(AskError::NoAgent)), "its file is left over");
}
