//! The connection to the NATS server: sends windows of the queue, asks the server whether it has them, comes back
//! after every loss. Core NATS confirms nothing by itself; how it is asked all the same is told at [`Link::confirm`].

use std::collections::BTreeSet;
use std::future::Future;
use std::hash::{BuildHasher, RandomState};
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_nats::{Client, ClientError, ConnectOptions, Event, Request, ServerAddr, ServerError, Subject};
use tokio::sync::mpsc;
use tokio::time::{sleep_until, timeout};

use super::publisher::Shared;
use super::queue::{Kind, Message, Reason};
use crate::deliver::nats::access::Access;

/// How often the server is asked for a sign of life; after two without answer the connection is given up.
const PING_INTERVAL: Duration = Duration::from_secs(10);
/// How long the server may take to confirm a window. Its pings end a dead connection sooner or later; this is sooner.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(15);
/// Commands that async-nats holds before `publish` waits. Ours is the queue; this one is only the way to the socket.
const CLIENT_CAPACITY: usize = 16;
/// Events of the connection between two turns of [`Link::run`]: more than one window of denied messages makes.
const EVENTS: usize = 256;
/// The server sends the agent next to nothing.
const READ_BUFFER_BYTES: u16 = 4096;

/// One connection and its state.
pub(super) struct Link {
    options: Option<ConnectOptions>,
    servers: Vec<ServerAddr>,
    /// The same, for messages.
    address: String,
    subjects: [Subject; 3],
    events: mpsc::Receiver<Event>,
    shared: Rc<Shared>,
    /// Kinds of this window that the server does not let this user publish.
    denied: [bool; 3],
    /// False when this user may not use its inbox: then windows count as published when they are in the socket.
    can_confirm: bool,
    /// What was logged since the last connection: the same trouble every five seconds is said once.
    said: BTreeSet<String>,
    gave_up: bool,
}

/// What became of a window.
#[derive(PartialEq)]
enum Sent {
    Confirmed,
    Lost,
}

impl Link {
    /// Prepares the connection; nothing is sent before [`Link::run`].
    pub(super) fn new(
        access: &Access,
        hostname: &str,
        subjects: [Subject; 3],
        max_attempts: Option<usize>,
        delay: Duration,
        shared: Rc<Shared>,
    ) -> Result<Self, String> {
        let (sender, events) = mpsc::channel(EVENTS);
        let abandoned = shared.abandoned.clone();
        let options = ConnectOptions::new()
            .name(format!("sysops-agent {hostname}"))
            .retry_on_initial_connect()
            .max_reconnects(max_attempts)
            .ping_interval(PING_INTERVAL)
            .client_capacity(CLIENT_CAPACITY)
            .subscription_capacity(CLIENT_CAPACITY)
            .read_buffer_capacity(READ_BUFFER_BYTES)
            .request_timeout(None)
            .reconnect_delay_callback(move |attempt| match abandoned.load(Ordering::Relaxed) {
                // async-nats goes on for ever without a connection, even when no one holds it any more.
                true => Duration::MAX,
                false => jittered(delay, attempt),
            })
            .event_callback(move |event| {
                // Full only when the link is gone; it reads events whatever else it waits for.
                let _ = sender.try_send(event);
                std::future::ready(())
            });
        Ok(Self {
            options: Some(access.sign(options)?),
            servers: access.servers.clone(),
            address: access.to_string(),
            subjects,
            events,
            shared,
            denied: [false; 3],
            can_confirm: true,
            said: BTreeSet::new(),
            gave_up: false,
        })
    }

    /// Sends until it is told to stop, then until nothing waits or the time to stop is over.
    pub(super) async fn run(mut self) {
        let Some(options) = self.options.take() else { return };
        let shared = self.shared.clone();
        match options.connect(self.servers.clone()).await {
            Ok(client) => tokio::select! {
                () = self.work(&client) => {}
                () = overdue(&shared) => {}
            },
            Err(error) => self.give_up(&format!("nats: cannot use {}: {error}", self.address)),
        }
        if self.gave_up {
            // What comes before the stop is counted as it comes; what came after it, below.
            while shared.stop_by.get().is_none() {
                shared.queue.borrow_mut().clear(Reason::GaveUp);
                shared.wake.notified().await;
            }
        }
        shared.queue.borrow_mut().clear(Reason::Shutdown);
        shared.connected.set(false);
    }

    async fn work(&mut self, client: &Client) {
        let shared = self.shared.clone();
        while !self.gave_up {
            let is_empty = shared.queue.borrow().is_empty();
            if is_empty && shared.stop_by.get().is_some() {
                return;
            }
            if shared.connected.get() && !is_empty {
                self.send_window(client).await;
                continue;
            }
            tokio::select! {
                event = self.events.recv() => self.on_event(client, event),
                () = shared.wake.notified() => {}
            }
        }
    }

    async fn send_window(&mut self, client: &Client) {
        let window = self.shared.queue.borrow_mut().take_window();
        let sent = self.send(client, &window).await;
        let mut queue = self.shared.queue.borrow_mut();
        if sent == Sent::Lost {
            queue.put_back();
            return;
        }
        let (denied, max_payload) = (self.denied, self.shared.max_payload.get());
        if denied == [false; 3] {
            *self.shared.problem.borrow_mut() = None;
        }
        queue.confirm(&|message| {
            if denied[message.kind as usize] {
                Some(Reason::Permission)
            } else {
                is_too_large(message, max_payload).then_some(Reason::TooLarge)
            }
        });
    }

    async fn send(&mut self, client: &Client, window: &[Message]) -> Sent {
        let max_payload = self.shared.max_payload.get();
        self.denied = [false; 3];
        for message in window.iter().filter(|message| !is_too_large(message, max_payload)) {
            let subject = self.subjects[message.kind as usize].clone();
            let publish =
                client.publish_with_headers(subject, message.encoded.headers(), message.encoded.payload.clone());
            match self.unless_lost(client, timeout(CONFIRM_TIMEOUT, publish)).await {
                Some(Ok(Ok(()))) => {}
                Some(Ok(Err(error))) => {
                    self.say(&format!("nats: cannot publish {}: {error}", message.kind.name()));
                    return Sent::Lost;
                }
                Some(Err(_)) | None => return Sent::Lost,
            }
        }
        self.confirm(client).await
    }

    /// Sends itself a message. The server works through a connection in order, so when it comes back the server has
    /// everything that was published before. async-nats has no other round trip: its `flush` ends at the socket, and
    /// what is in the socket when a connection breaks is lost.
    async fn confirm(&mut self, client: &Client) -> Sent {
        if self.can_confirm {
            let inbox = client.new_inbox();
            let question = Request::new().inbox(inbox.clone()).timeout(Some(CONFIRM_TIMEOUT));
            match self.unless_lost(client, client.send_request(inbox, question)).await {
                Some(Ok(_)) => return Sent::Confirmed,
                Some(Err(error)) => {
                    self.say(&format!("nats: {}: the server does not confirm: {error}", self.address));
                    // A full write buffer keeps this command waiting; then the pings end the connection, or the
                    // server wakes up and the next window shows it.
                    let reconnects = timeout(PING_INTERVAL, client.force_reconnect()).await;
                    self.shared.connected.set(!matches!(reconnects, Ok(Ok(()))));
                    return Sent::Lost;
                }
                None if self.can_confirm => return Sent::Lost,
                None => {}
            }
        }
        match self.unless_lost(client, timeout(CONFIRM_TIMEOUT, client.flush())).await {
            Some(Ok(Ok(()))) => Sent::Confirmed,
            _ => Sent::Lost,
        }
    }

    /// The result of `work`, or `None` when the connection broke (or lost the right to be asked) in the meantime.
    async fn unless_lost<T>(&mut self, client: &Client, work: impl Future<Output = T>) -> Option<T> {
        tokio::pin!(work);
        loop {
            let could_confirm = self.can_confirm;
            tokio::select! {
                biased;
                event = self.events.recv() => self.on_event(client, event),
                result = &mut work => return Some(result),
            }
            if !self.shared.connected.get() || self.can_confirm != could_confirm {
                return None;
            }
        }
    }

    fn on_event(&mut self, client: &Client, event: Option<Event>) {
        match event {
            Some(Event::Connected) => self.on_connected(client),
            Some(Event::Disconnected) => {
                self.shared.connected.set(false);
                self.trouble(&format!("nats: lost the connection to {}; trying again", self.address));
            }
            Some(Event::ClientError(ClientError::MaxReconnects)) => {
                self.give_up(&format!("nats: {}: max_reconnect_attempts is used up, given up", self.address));
            }
            Some(Event::ClientError(error)) => self.on_failed_attempt(&error.to_string()),
            Some(Event::ServerError(ServerError::AuthorizationViolation)) => self.refused(),
            Some(Event::ServerError(error)) => self.on_server_error(&error.to_string()),
            Some(Event::LameDuckMode) => self.say(&format!("nats: {} is about to stop", self.address)),
            Some(Event::Draining | Event::SlowConsumer(_)) => {}
            // The task of async-nats has ended, which it does on MaxReconnects or when the client is dropped.
            Some(Event::Closed) | None => self.give_up(&format!("nats: {}: the connection was closed", self.address)),
        }
    }

    fn on_connected(&mut self, client: &Client) {
        let info = client.server_info();
        tracing::info!("nats: connected to {} (nats-server {})", self.address, info.version);
        self.shared.connected.set(true);
        self.shared.max_payload.set(client.max_payload());
        *self.shared.problem.borrow_mut() = None;
        self.can_confirm = true;
        self.said.clear();
    }

    fn on_failed_attempt(&mut self, error: &str) {
        if error.contains("authorization violation") {
            self.refused();
        } else {
            self.trouble(&format!("nats: cannot connect to {}, trying again: {error}", self.address));
        }
    }

    fn refused(&mut self) {
        self.trouble(&format!(
            "nats: {} refuses this user (authorization violation): check token, user and password, or credential_file \
             in [nats]; trying again",
            self.address
        ));
    }

    /// `Permissions Violation for Publish to "sysops.web-1.metrics"`, for our messages or for our inbox.
    fn on_server_error(&mut self, error: &str) {
        if error.to_ascii_lowercase().contains("permissions violation") {
            for kind in Kind::ALL {
                let quoted = format!("\"{}\"", self.subjects[kind as usize]);
                if error.contains(&quoted) {
                    self.denied[kind as usize] = true;
                    self.trouble(&format!("nats: this user may not publish to {quoted}: allow it at the server"));
                    return;
                }
            }
            self.can_confirm = false;
            self.say(
                "nats: this user may not use its inbox, so messages that are on the way when a connection breaks are \
                 lost: allow publish and subscribe to \"_INBOX.>\" at the server",
            );
        } else {
            self.trouble(&format!("nats: {}: {error}", self.address));
        }
    }

    fn give_up(&mut self, why: &str) {
        if self.gave_up {
            return;
        }
        self.gave_up = true;
        self.shared.connected.set(false);
        if self.shared.stop_by.get().is_none() {
            self.trouble(why);
        }
    }

    /// Something that keeps messages from arriving.
    fn trouble(&mut self, what: &str) {
        *self.shared.problem.borrow_mut() = Some(what.to_owned());
        self.say(what);
    }

    fn say(&mut self, what: &str) {
        // Bounded: what servers say is of a few kinds, and a connection clears it.
        if self.said.len() < 16 && self.said.insert(what.to_owned()) {
            tracing::warn!("{what}");
        }
    }
}

/// Waits for the end of the time that a stop leaves.
async fn overdue(shared: &Shared) {
    loop {
        if let Some(deadline) = shared.stop_by.get() {
            return sleep_until(deadline).await;
        }
        shared.stop.notified().await;
    }
}

/// Headers count too; ours are `NATS/1.0`, two names, two values and line ends.
fn is_too_large(message: &Message, max_payload: usize) -> bool {
    const HEADERS_BYTES: usize = 80;
    message.encoded.payload.len() + HEADERS_BYTES > max_payload
}

/// The first attempt comes soon, but not that of all hosts at the same instant; later ones about `delay` apart.
fn jittered(delay: Duration, attempt: usize) -> Duration {
    let random = RandomState::new().hash_one(attempt) % 1000;
    let thousandths = if attempt <= 1 { random / 10 } else { 750 + random / 2 };
    delay.mul_f64(f64::from(u32::try_from(thousandths).unwrap_or(1000)) / 1000.0)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::deliver::nats::encoding::Encoded;

    #[test]
    fn attempts_are_spread() {
        let delay = Duration::from_secs(5);
        for _ in 0..100 {
            assert!(jittered(delay, 1) < Duration::from_millis(500));
            let later = jittered(delay, 7);
            assert!(later >= Duration::from_millis(3750) && later < Duration::from_millis(6250), "{later:?}");
        }
    }

    #[test]
    fn headers_fit_into_what_is_kept_for_them() {
        let message = |bytes| Message {
            kind: Kind::Metrics,
            encoded: Encoded { payload: Bytes::from(vec![0; bytes]), compressed: true },
        };
        // "NATS/1.0\r\nContent-Type: application/json\r\nContent-Encoding: zstd\r\n\r\n"
        assert!("NATS/1.0\r\nContent-Type: application/json\r\nContent-Encoding: zstd\r\n\r\n".len() <= 80);
        assert!(is_too_large(&message(1000), 1079) && !is_too_large(&message(1000), 1080));
    }
}
