//! An HTTP server that behaves as badly as it is told, written on bare TCP so that what it sees is the wire itself. With a
//! certificate it speaks TLS.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;

/// How one request is answered.
#[derive(Clone, Debug)]
pub enum Answer {
    /// With this status line, header lines (each ended by CRLF) and body.
    Status(&'static str, String, Vec<u8>),
    /// Never; the connection stays open.
    Hang,
    /// With half a body, then the connection ends.
    CloseMidBody,
    /// Not at all: the connection ends.
    Close,
    /// With a byte a second.
    SlowLoris,
}

impl Answer {
    /// A status without a body.
    #[must_use]
    pub fn status(line: &'static str) -> Self {
        Self::Status(line, String::new(), Vec::new())
    }

    /// A status with a JSON body.
    #[must_use]
    pub fn json(line: &'static str, body: &serde_json::Value) -> Self {
        Self::Status(line, "content-type: application/json\r\n".to_owned(), body.to_string().into_bytes())
    }
}

/// One request as it came.
#[derive(Clone, Debug)]
pub struct Request {
    /// When it was whole.
    pub at: Instant,
    /// Request line and header lines.
    pub head: String,
    /// The body's bytes.
    pub body: Vec<u8>,
}

impl Request {
    /// The value of a header, by its name in any case.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        let lines = self.head.lines().skip(1).filter_map(|line| line.split_once(": "));
        lines.into_iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    /// The body as JSON.
    ///
    /// # Panics
    /// When it is none.
    #[must_use]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).expect("the body is JSON")
    }
}

type Answering = dyn FnMut(&Request) -> Answer + Send;

/// The server. It ends with the runtime.
pub struct FarEnd {
    /// `http://127.0.0.1:PORT`, or `https://…`.
    pub url: String,
    seen: Arc<Mutex<Vec<Request>>>,
}

impl FarEnd {
    /// Answers as told, one after another, then `204 No Content`.
    ///
    /// # Panics
    /// When there is no free port.
    pub async fn start(answers: impl IntoIterator<Item = Answer>) -> Self {
        let mut answers = answers.into_iter().collect::<VecDeque<_>>();
        Self::answering(move |_| answers.pop_front().unwrap_or(Answer::status("204 No Content"))).await
    }

    /// Answers each request as `answer` says.
    ///
    /// # Panics
    /// When there is no free port.
    pub async fn answering(answer: impl FnMut(&Request) -> Answer + Send + 'static) -> Self {
        Self::listening(None, answer).await
    }

    /// The same over TLS.
    ///
    /// # Panics
    /// When there is no free port.
    pub async fn over_tls(config: ServerConfig, answer: impl FnMut(&Request) -> Answer + Send + 'static) -> Self {
        Self::listening(Some(TlsAcceptor::from(Arc::new(config))), answer).await
    }

    async fn listening(tls: Option<TlsAcceptor>, answer: impl FnMut(&Request) -> Answer + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let scheme = if tls.is_some() { "https" } else { "http" };
        let url = format!("{scheme}://{}", listener.local_addr().expect("it is bound"));
        let seen = Arc::new(Mutex::new(Vec::new()));
        let answering: Arc<Mutex<Answering>> = Arc::new(Mutex::new(answer));
        let theirs = Arc::clone(&seen);
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let (answering, seen, tls) = (Arc::clone(&answering), Arc::clone(&theirs), tls.clone());
                tokio::spawn(async move {
                    match tls {
                        None => serve(socket, answering, seen).await,
                        // Who does not like the certificate goes away.
                        Some(tls) => {
                            if let Ok(socket) = tls.accept(socket).await {
                                serve(socket, answering, seen).await;
                            }
                        }
                    }
                });
            }
        });
        Self { url, seen }
    }

    /// What came so far.
    #[must_use]
    pub fn seen(&self) -> Vec<Request> {
        self.seen.lock().expect("no holder panics").clone()
    }

    /// What came, once it is `count` requests.
    ///
    /// # Panics
    /// When they have not come within 20 s.
    pub async fn wait_for(&self, count: usize) -> Vec<Request> {
        let deadline = Instant::now() + Duration::from_secs(20);
        while self.seen().len() < count {
            assert!(Instant::now() < deadline, "{} of {count} requests came", self.seen().len());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        self.seen()
    }
}

async fn serve(
    mut socket: impl AsyncRead + AsyncWrite + Unpin,
    answering: Arc<Mutex<Answering>>,
    seen: Arc<Mutex<Vec<Request>>>,
) {
    while let Some(request) = read(&mut socket).await {
        let answer = answering.lock().expect("no holder panics")(&request);
        seen.lock().expect("no holder panics").push(request);
        if !write(&mut socket, answer).await {
            return;
        }
    }
}

/// One request, or `None` at the end of the connection.
async fn read(socket: &mut (impl AsyncRead + Unpin)) -> Option<Request> {
    let mut bytes = Vec::new();
    let head_end = loop {
        if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            break end;
        }
        if socket.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    };
    let head = String::from_utf8_lossy(&bytes[..head_end]).into_owned();
    let mut request = Request { at: Instant::now(), head, body: bytes.split_off(head_end + 4) };
    let length = request.header("content-length")?.parse().ok()?;
    while request.body.len() < length {
        if socket.read_buf(&mut request.body).await.ok()? == 0 {
            return None;
        }
    }
    request.at = Instant::now();
    Some(request)
}

/// False when the connection is over.
async fn write(socket: &mut (impl AsyncWrite + Unpin), answer: Answer) -> bool {
    match answer {
        Answer::Status(line, headers, body) => {
            let length =
                if line.starts_with("204") { String::new() } else { format!("content-length: {}\r\n", body.len()) };
            let head = format!("HTTP/1.1 {line}\r\n{headers}{length}\r\n");
            // In one piece: a second small one would wait for the first to be acknowledged.
            socket.write_all(&[head.as_bytes(), &body].concat()).await.is_ok()
        }
        Answer::Hang => std::future::pending().await,
        Answer::CloseMidBody => {
            let _ = socket.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{\"ok\"").await;
            false
        }
        Answer::Close => false,
        Answer::SlowLoris => {
            for byte in b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok" {
                if socket.write_all(&[*byte]).await.is_err() {
                    break;
                }
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            false
        }
    }
}
