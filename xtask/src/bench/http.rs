//! The least HTTP that a bench needs: GET a page, and receive webhook posts with the time at which they came.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// A port on loopback that is free now.
///
/// # Errors
/// When the kernel gives none.
pub(super) fn free_port() -> Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

/// Body of a page.
///
/// # Errors
/// When it cannot be had within 10 s or is not answered with 200.
pub(super) fn get(at: SocketAddr, path: &str) -> Result<String> {
    let mut stream = TcpStream::connect(at).with_context(|| at.to_string())?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {at}\r\nAccept: text/plain\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("answer without a body")?;
    let status = head.lines().next().unwrap_or_default();
    if status.split(' ').nth(1) != Some("200") {
        bail!("{at}{path}: {status}");
    }
    Ok(body.to_owned())
}

/// A body that was posted, and when it had come whole.
pub(super) type Post = (Instant, String);

/// Receives posts for as long as the process lives; each is answered with 200.
///
/// # Errors
/// When no port is free.
pub(super) fn receiver() -> Result<(SocketAddr, Receiver<Post>)> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let (sender, posts) = channel();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let sender = sender.clone();
            std::thread::spawn(move || serve(&stream, &sender));
        }
    });
    Ok((address, posts))
}

/// Answers posts on one connection until its end. A broken one is the sender's to repeat.
fn serve(stream: &TcpStream, sender: &Sender<Post>) -> Option<()> {
    let mut reader = BufReader::new(stream);
    loop {
        let mut length = 0;
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line).ok()? == 0 {
                return None;
            }
            if line.trim().is_empty() {
                break;
            }
            if let Some((name, value)) = line.split_once(':')
                && name.eq_ignore_ascii_case("content-length")
            {
                length = value.trim().parse().ok()?;
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).ok()?;
        sender.send((Instant::now(), String::from_utf8_lossy(&body).into_owned())).ok()?;
        let mut answer = stream;
        answer.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").ok()?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_post_is_received_with_its_body() {
        let (address, posts) = receiver().expect("a free port");
        let mut stream = TcpStream::connect(address).expect("it listens");
        stream.write_all(b"POST / HTTP/1.1\r\ncontent-length: 3\r\n\r\nabc").expect("it reads");
        let (_, body) = posts.recv_timeout(Duration::from_secs(5)).expect("it came");
        assert_eq!(body, "abc");
    }
}
