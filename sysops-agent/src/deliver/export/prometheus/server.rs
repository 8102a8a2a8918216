//! A small HTTP/1.1 server for scrapes: GET and HEAD, keep-alive, a bounded number of connections, graceful stop.
//! It runs on the agent's own thread, as the readings do; what it serves is left to `exposition`.

use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::future::Future;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinHandle};

use super::{EVICTED, SCRAPES};
use crate::deliver::export::{Exporter, Feed, exposition};
use crate::model::Batch;

/// Open connections. Prometheus needs one; the rest is for curious people and for other scrapers.
const MAX_CONNECTIONS: usize = 32;

/// How long a connection may take to send the head of a request, and so how long it may be idle:
/// longer than the usual scrape intervals, so that Prometheus keeps its connection.
const HEAD_TIMEOUT: Duration = Duration::from_secs(75);

/// After this a connection is asked to end, and ended [`GRACE`] later: a reader that takes its answer byte by byte
/// does not hold memory for ever.
const MAX_AGE: Duration = Duration::from_secs(600);

/// Time for answers that are on their way when the server stops.
const GRACE: Duration = Duration::from_secs(1);

/// A request without a body needs no more.
const READ_BUFFER_BYTES: usize = 16 << 10;

/// A listening server.
pub(super) struct Server {
    counts: Rc<Counts>,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

#[derive(Default)]
struct Counts {
    scrapes: Cell<u64>,
    evicted: Cell<u64>,
}

/// What a request is answered from.
struct Site {
    path: String,
    feed: Rc<dyn Feed>,
    counts: Rc<Counts>,
    /// Length of the last answer: the next one gets its memory in one piece.
    length: Cell<usize>,
}

impl Server {
    /// Listens at once, so that an address that is taken is an error of the start.
    pub(super) fn start(bind: &str, path: String, feed: Rc<dyn Feed>) -> Result<Self, String> {
        let listener = listen(bind)?;
        let counts = Rc::new(Counts::default());
        let site = Rc::new(Site { path, feed, counts: counts.clone(), length: Cell::new(0) });
        let (stop, stopping) = watch::channel(false);
        let task = tokio::task::spawn_local(accept(listener, site, stopping));
        Ok(Self { counts, stop, task })
    }
}

impl Exporter for Server {
    fn report(&self, out: &mut Batch) {
        out.counter(&SCRAPES, [], count(&self.counts.scrapes));
        out.counter(&EVICTED, [], count(&self.counts.evicted));
    }

    fn problem(&self) -> Option<String> {
        self.task.is_finished().then(|| "prometheus: the server has ended".to_owned())
    }

    fn stop(self: Box<Self>) -> Pin<Box<dyn Future<Output = ()>>> {
        Box::pin(async move {
            // No receiver is left when the task is already over.
            let _ = self.stop.send(true);
            let _ = self.task.await;
        })
    }
}

#[expect(clippy::cast_precision_loss, reason = "a counter of requests stays far below 2^53")]
fn count(cell: &Cell<u64>) -> f64 {
    cell.get() as f64
}

fn listen(bind: &str) -> Result<TcpListener, String> {
    let address: SocketAddr = bind
        .parse()
        .map_err(|_| format!("prometheus.bind: expected address:port such as \"127.0.0.1:9100\", found {bind:?}"))?;
    let failed = |error: &std::io::Error| {
        let remedy = match error.kind() {
            ErrorKind::AddrInUse => format!(
                "; `ss -ltnp 'sport = :{}'` shows who holds it (node_exporter has the same default port)",
                address.port()
            ),
            ErrorKind::AddrNotAvailable => "; `ip address` shows the addresses of this host".to_owned(),
            ErrorKind::PermissionDenied => "; ports below 1024 need CAP_NET_BIND_SERVICE".to_owned(),
            _ => String::new(),
        };
        format!("prometheus.bind: cannot listen on {address}: {error}{remedy}")
    };
    let listener = std::net::TcpListener::bind(address).map_err(|error| failed(&error))?;
    listener.set_nonblocking(true).map_err(|error| failed(&error))?;
    let listener = TcpListener::from_std(listener).map_err(|error| failed(&error))?;
    if !address.ip().is_loopback() {
        tracing::warn!("prometheus: {address} is open to other hosts and asks for no password");
    }
    tracing::info!("prometheus: listening on {address}");
    Ok(listener)
}

/// One open connection, as the eviction sees it.
struct Open {
    task: AbortHandle,
    /// Number of the last request (or of the connection itself) in order of arrival.
    last: Rc<Cell<u64>>,
}

async fn accept(listener: TcpListener, site: Rc<Site>, mut stopping: watch::Receiver<bool>) {
    let order = Rc::new(Cell::new(0));
    let open: Rc<RefCell<Vec<Open>>> = Rc::default();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stopping.wait_for(|stop| *stop) => break,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of file descriptors, mostly: they come back, and accept must not spin until they do.
                tracing::debug!("prometheus: accept: {error}");
                tokio::time::sleep(Duration::from_millis(200)).await;
                continue;
            }
        };
        make_room(&open, &site.counts);
        let last = Rc::new(Cell::new(next(&order)));
        let task = tokio::task::spawn_local(serve(stream, site.clone(), last.clone(), order.clone(), stopping.clone()));
        open.borrow_mut().push(Open { task: task.abort_handle(), last });
    }
    drop(listener);
    let deadline = tokio::time::Instant::now() + GRACE;
    while tokio::time::Instant::now() < deadline && open.borrow().iter().any(|open| !open.task.is_finished()) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    for open in open.borrow().iter() {
        open.task.abort();
    }
}

fn next(order: &Cell<u64>) -> u64 {
    order.set(order.get() + 1);
    order.get()
}

/// Forgets connections that are over, and ends the one that has been silent the longest when too many are left:
/// idle ones of a slow loris must not lock Prometheus out.
fn make_room(open: &RefCell<Vec<Open>>, counts: &Counts) {
    let mut open = open.borrow_mut();
    open.retain(|open| !open.task.is_finished());
    if open.len() < MAX_CONNECTIONS {
        return;
    }
    if let Some(oldest) = (0..open.len()).min_by_key(|&index| open[index].last.get()) {
        open.swap_remove(oldest).task.abort();
        counts.evicted.set(counts.evicted.get() + 1);
    }
}

async fn serve(
    stream: TcpStream,
    site: Rc<Site>,
    last: Rc<Cell<u64>>,
    order: Rc<Cell<u64>>,
    mut stopping: watch::Receiver<bool>,
) {
    // An answer is written in one piece; without it the last segment may wait for the peer's delayed ACK.
    let _ = stream.set_nodelay(true);
    let service = service_fn(|request: Request<Incoming>| {
        last.set(next(&order));
        let response = site.answer(&request);
        async move { Ok::<_, Infallible>(response) }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(READ_BUFFER_BYTES)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    tokio::select! {
        // What went wrong on a connection (reset, time-out, not HTTP) is the peer's business.
        _ = connection.as_mut() => return,
        _ = stopping.wait_for(|stop| *stop) => {}
        () = tokio::time::sleep(MAX_AGE) => {}
    }
    connection.as_mut().graceful_shutdown();
    let _ = tokio::time::timeout(GRACE, connection).await;
}

impl Site {
    fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        let path = request.uri().path();
        if path != self.path && path != "/" {
            return plain(StatusCode::NOT_FOUND, format!("Not found. Metrics are at {}\n", self.path));
        }
        // hyper leaves the body of an answer to HEAD out and keeps its Content-Length.
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            let mut response = plain(StatusCode::METHOD_NOT_ALLOWED, "Only GET and HEAD.\n".to_owned());
            response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return response;
        }
        if path == self.path {
            return respond(StatusCode::OK, exposition::CONTENT_TYPE, self.metrics());
        }
        let page = format!(
            "<!doctype html><title>sysops-agent</title><h1>sysops-agent</h1><a href=\"{}\">Metrics</a>\n",
            self.path.replace('&', "&amp;").replace('"', "&quot;").replace('<', "&lt;")
        );
        respond(StatusCode::OK, "text/html; charset=utf-8", page)
    }

    fn metrics(&self) -> String {
        let mut text = String::with_capacity(self.length.get() + self.length.get() / 8);
        self.feed.readings(&mut |readings| exposition::render(readings, &mut text));
        self.length.set(text.len());
        self.counts.scrapes.set(self.counts.scrapes.get() + 1);
        text
    }
}

fn plain(status: StatusCode, text: String) -> Response<Full<Bytes>> {
    respond(status, "text/plain; charset=utf-8", text)
}

fn respond(status: StatusCode, kind: &'static str, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}
