//! The console against a pipe: hostile text cannot leave its line, and a reader that has stopped stops nobody.

use std::fs::File;
use std::io::{Read, pipe};
use std::os::fd::OwnedFd;

use sysops_agent::deliver::channel::console::Console;
use sysops_agent::deliver::channel::{Channel, SendError};
use sysops_tests::injection;

#[tokio::test]
async fn hostile_text_stays_on_one_plain_line() {
    let (mut reader, writer) = pipe().expect("a pipe");
    let mut console = Console::new(File::from(OwnedFd::from(writer)));
    for text in injection::corpus() {
        console.send(&injection::notice(&text)).await.expect("the pipe has room");
        let mut line = vec![0; 8192];
        let len = reader.read(&mut line).expect("a line comes");
        let line = std::str::from_utf8(&line[..len]).expect("a line is UTF-8");
        let line = line.strip_suffix('\n').expect("a line ends");
        assert!(line.starts_with("2026-02-22T16:30:00Z CRITICAL oom_kill web-1: The kernel killed "), "{line}");
        let misleading =
            |c: &char| c.is_control() || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{feff}');
        assert_eq!(line.chars().find(misleading), None, "{line:?}");
    }
}

#[tokio::test]
async fn a_reader_that_has_stopped_stops_nobody() {
    let (mut reader, writer) = pipe().expect("a pipe");
    let mut console = Console::new(File::from(OwnedFd::from(writer)));
    let error = loop {
        if let Err(error) = console.send(&injection::notice("dd")).await {
            break error;
        }
    };
    assert!(matches!(error, SendError::Retry { .. }), "{error:?}");
    let mut some = vec![0; 64 << 10];
    reader.read_exact(&mut some[..32 << 10]).expect("the pipe is full");
    console.send(&injection::notice("dd")).await.expect("there is room again");
    drop(reader);
    let gone = console.send(&injection::notice("dd")).await;
    assert!(matches!(gone, Err(SendError::Permanent { .. })), "{gone:?}");
}
