//! A NATS subscriber that keeps and decodes all that it gets, and a wire between an agent and its server that a
//! test can cut. Both belong on the test's own thread.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use futures_util::StreamExt as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// One message.
#[derive(Clone, Debug)]
pub struct Got {
    /// Where it was published.
    pub subject: String,
    /// `Content-Type`.
    pub content_type: Option<String>,
    /// `Content-Encoding`.
    pub encoding: Option<String>,
    /// The document, decompressed.
    pub document: serde_json::Value,
}

/// All messages so far.
pub type Inbox = Rc<RefCell<Vec<Got>>>;

/// Subscribes to `subject` and keeps what comes.
///
/// # Panics
/// When it cannot connect, and when a message cannot be decoded.
pub async fn subscribe(options: async_nats::ConnectOptions, port: u16, subject: &'static str) -> Inbox {
    let client = options.connect(format!("nats://127.0.0.1:{port}")).await.expect("the server is there");
    let mut messages = client.subscribe(subject).await.expect("a right subject");
    // A round trip: from now on the server knows the subscription.
    let own = client.new_inbox();
    let back = client.send_request(own.clone(), async_nats::Request::new().inbox(own)).await;
    assert!(back.is_ok(), "{back:?}");
    let inbox = Inbox::default();
    let kept = inbox.clone();
    tokio::task::spawn_local(async move {
        while let Some(message) = messages.next().await {
            // What clients send to themselves, which only a subscriber to everything sees.
            if message.subject.starts_with("_INBOX.") {
                continue;
            }
            let header =
                |name: &str| message.headers.as_ref().and_then(|headers| headers.get(name)).map(ToString::to_string);
            let encoding = header("Content-Encoding");
            assert!(
                matches!(encoding.as_deref(), None | Some("zstd")),
                "an encoding that is not documented: {encoding:?}"
            );
            let plain = match encoding {
                None => message.payload.to_vec(),
                Some(_) => zstd::bulk::decompress(&message.payload, 16 << 20).expect("zstd"),
            };
            kept.borrow_mut().push(Got {
                subject: message.subject.to_string(),
                content_type: header("Content-Type"),
                encoding,
                document: serde_json::from_slice(&plain).expect("JSON"),
            });
        }
        drop(client);
    });
    inbox
}

/// A wire that hands on what comes, until it is cut.
pub struct Wire {
    /// Where the agent connects.
    pub port: u16,
    state: Rc<State>,
}

#[derive(Default)]
struct State {
    /// What comes on connections up to this number is read and thrown away: it is lost in flight.
    swallow: Cell<u32>,
    connections: Cell<u32>,
    cut: tokio::sync::Notify,
}

impl Wire {
    /// A wire to the server on `to`.
    ///
    /// # Panics
    /// When there is no free port.
    pub async fn to(to: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let port = listener.local_addr().expect("bound").port();
        let state = Rc::new(State::default());
        tokio::task::spawn_local(hand_on(listener, to, state.clone()));
        Self { port, state }
    }

    /// From now on what is sent on the connections that there are gets lost, both ways; they stay open, and new ones
    /// work.
    pub fn swallow(&self) {
        self.state.swallow.set(self.state.connections.get());
    }

    /// Cuts all connections; new ones work.
    pub fn cut(&self) {
        self.state.cut.notify_waiters();
    }

    /// Connections so far.
    #[must_use]
    pub fn connections(&self) -> u32 {
        self.state.connections.get()
    }
}

async fn hand_on(listener: TcpListener, to: u16, state: Rc<State>) {
    let mut open = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((agent, _)) = accepted else { return };
                state.connections.set(state.connections.get() + 1);
                open.spawn_local(pump(agent, to, state.connections.get(), state.clone()));
            }
            () = state.cut.notified() => open.abort_all(),
            Some(_) = open.join_next() => {}
        }
    }
}

async fn pump(mut agent: TcpStream, to: u16, number: u32, state: Rc<State>) {
    let is_swallowed = || number <= state.swallow.get();
    let Ok(mut server) = TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], to))).await else { return };
    let (mut up, mut down) = ([0; 4096], [0; 4096]);
    loop {
        tokio::select! {
            size = agent.read(&mut up) => match size {
                Ok(size) if size > 0 => {
                    if !is_swallowed() && server.write_all(&up[..size]).await.is_err() { return }
                }
                _ => return,
            },
            size = server.read(&mut down) => match size {
                Ok(size) if size > 0 => {
                    if !is_swallowed() && agent.write_all(&down[..size]).await.is_err() { return }
                }
                _ => return,
            },
        }
    }
}

/// Waits until `inbox` holds at least one message of which `is` is true, and gives it.
///
/// # Panics
/// When none comes within twenty seconds.
pub async fn first(inbox: &Inbox, what: &str, is: impl Fn(&Got) -> bool) -> Got {
    crate::feed::until(what, Duration::from_secs(20), || inbox.borrow().iter().any(&is)).await;
    inbox.borrow().iter().find(|got| is(got)).cloned().expect("it was there")
}
