//! One alert at a time to the server: as a request, so that a stream's word comes back where one keeps the subject. Where none
//! does, the server itself confirms that it has it, as core NATS can. The id of the change is the message's id, so that a stream
//! stores it once however often it is sent.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use async_nats::client::RequestErrorKind;
use async_nats::{Client, ConnectErrorKind, ConnectOptions, Event, HeaderMap, Request, Subject};
use bytes::Bytes;
use serde::Deserialize;
use tokio::sync::{Mutex, mpsc};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::deliver::channel::{Channel, Receipt, SendError, Sending};
use crate::deliver::nats::SUBJECT_PREFIX;
use crate::deliver::nats::access::Access;
use crate::deliver::nats::encoding::Encoder;
use crate::deliver::nats::subject::{check_prefix, subject};
use crate::model::{Alert, Notice, shown};
use crate::spec::Values;

/// How long the way to a server may take.
const CONNECT: Duration = Duration::from_secs(10);

/// How long a stream or the server may take for its word.
const ANSWER: Duration = Duration::from_secs(5);

/// How long it is believed that no stream keeps the subject. One that is made meanwhile gets the alerts all the same; only its
/// word is not waited for.
const BELIEVED: Duration = Duration::from_secs(60);

/// Alerts are rare: a connection that stays open serves the next of a burst, not the next of the day.
const IDLE: Duration = Duration::from_secs(10);

/// What the server tells beside answers, between two looks at it.
const EVENTS: usize = 64;

/// Where JetStream says which streams keep a subject.
const STREAM_NAMES: &str = "$JS.API.STREAM.NAMES";

/// Where answers come to.
const INBOX: &str = "_INBOX.";

/// `[nats]`, for alerts.
pub(super) struct Publisher {
    values: Values,
    prefix: String,
    encoder: Encoder,
    connection: Arc<Mutex<Option<Connection>>>,
    closing: Option<JoinHandle<()>>,
}

struct Connection {
    client: Client,
    events: mpsc::Receiver<Event>,
    /// For messages.
    address: String,
    /// False when this user may not use its inbox: then nothing can be confirmed.
    can_hear: bool,
    keeper: Keeper,
}

/// Whether a stream keeps the subject.
#[derive(Clone, Copy, PartialEq)]
enum Keeper {
    /// Not asked, or the server does not let this user ask.
    Unknown,
    Stream,
    NoneUntil(Instant),
}

/// Why there was no answer.
enum Silence {
    /// The time is over.
    Late,
    /// The connection broke.
    Lost,
    /// `Permissions Violation for Publish to "…"`.
    Denied(String),
}

/// A stream's word.
#[derive(Deserialize)]
struct PubAck {
    #[serde(default)]
    stream: String,
    #[serde(default)]
    seq: u64,
    #[serde(default)]
    duplicate: bool,
    error: Option<ApiError>,
}

#[derive(Deserialize)]
struct ApiError {
    code: u16,
    #[serde(default)]
    err_code: u32,
    #[serde(default)]
    description: String,
}

#[derive(Deserialize)]
struct StreamNames {
    #[serde(default)]
    streams: Option<Vec<String>>,
}

impl Publisher {
    pub(super) fn new(values: &Values) -> Result<Self, String> {
        let prefix = values.get(&SUBJECT_PREFIX);
        check_prefix(&prefix)?;
        let (values, encoder) = (values.clone(), Encoder::new(values)?);
        Ok(Self { values, prefix, encoder, connection: Arc::default(), closing: None })
    }

    async fn publish(&mut self, alert: &Alert) -> Result<Receipt, SendError> {
        if let Some(closing) = self.closing.take() {
            closing.abort();
        }
        let subject = subject(&self.prefix, &alert.hostname, "alerts");
        let document = serde_json::to_vec(alert)
            .map_err(|error| SendError::Permanent { reason: format!("the alert as JSON: {error}") })?;
        let message = self.encoder.encode(&document);
        let mut headers = message.headers();
        headers.insert(async_nats::header::NATS_MESSAGE_ID, header_value(&alert.id).as_str());
        let mut held = self.connection.lock().await;
        let mut connection = match held.take() {
            Some(connection) => connection,
            None => Connection::open(&self.values, &alert.hostname).await?,
        };
        let sent = connection.publish(&subject, headers, message.payload).await;
        // A connection in which something went wrong is not used again.
        if matches!(sent, Ok(_) | Err(SendError::Permanent { .. })) {
            *held = Some(connection);
            drop(held);
            let connection = Arc::clone(&self.connection);
            self.closing = Some(tokio::spawn(async move {
                sleep(IDLE).await;
                *connection.lock().await = None;
            }));
        }
        sent
    }
}

impl Channel for Publisher {
    fn send<'a>(&'a mut self, notice: &'a Notice) -> Sending<'a> {
        Box::pin(self.publish(notice.head()))
    }
}

impl Connection {
    async fn open(values: &Values, hostname: &str) -> Result<Self, SendError> {
        // A credentials file that was renewed since is read anew.
        let access = Access::from_values(values).map_err(|reason| SendError::Refused { reason })?;
        let (sender, events) = mpsc::channel(EVENTS);
        let options = ConnectOptions::new()
            .name(format!("sysops-agent {hostname} alerts"))
            .connection_timeout(CONNECT)
            .request_timeout(None)
            // One round through the servers; what comes after is the outbox's.
            .max_reconnects(access.servers.len())
            .reconnect_delay_callback(|_| Duration::ZERO)
            .event_callback(move |event| {
                let _ = sender.try_send(event);
                std::future::ready(())
            });
        let options = access.sign(options).map_err(|reason| SendError::Refused { reason })?;
        let address = access.to_string();
        let client = match timeout(CONNECT, options.connect(access.servers)).await {
            Ok(Ok(client)) => client,
            Ok(Err(error)) => {
                return Err(match error.kind() {
                    ConnectErrorKind::AuthorizationViolation | ConnectErrorKind::Authentication => {
                        let mend = "check token, user and password, or credential_file in [nats]";
                        SendError::Refused { reason: format!("{address} refuses this user: {mend}") }
                    }
                    _ => SendError::Retry { reason: format!("{address}: {error}"), after: None },
                });
            }
            Err(_) => {
                let reason = format!("{address}: not connected within {} s", CONNECT.as_secs());
                return Err(SendError::Retry { reason, after: None });
            }
        };
        Ok(Self { client, events, address, can_hear: true, keeper: Keeper::Unknown })
    }

    async fn publish(&mut self, subject: &Subject, headers: HeaderMap, payload: Bytes) -> Result<Receipt, SendError> {
        if payload.len() + headers_bytes(&headers) > self.client.max_payload() {
            let reason = format!("{}: larger than the {} bytes that it takes", self.address, self.client.max_payload());
            return Err(SendError::Permanent { reason });
        }
        self.look_for_keeper(subject).await?;
        if !self.can_hear {
            return self.publish_unheard(subject, headers, payload).await;
        }
        let request = Request::new().headers(headers).payload(payload).timeout(None);
        let client = self.client.clone();
        let mut asked = std::pin::pin!(client.send_request(subject.clone(), request));
        if let Keeper::NoneUntil(_) = self.keeper {
            // The server works through a connection in order: when this comes back it has the alert. A stream that was made
            // a moment ago may be faster.
            let own = self.client.new_inbox();
            let mut back = std::pin::pin!(client.send_request(own.clone(), Request::new().inbox(own).timeout(None)));
            let either = async {
                tokio::select! {
                    biased;
                    answer = &mut asked => Some(answer),
                    _ = &mut back => None,
                }
            };
            return match hear(&mut self.events, &[subject, INBOX], either).await {
                Ok(Some(answer)) => self.verdict(answer, subject),
                Ok(None) => Ok(Receipt::new("core NATS, confirmed by the server; no stream keeps it")),
                Err(Silence::Denied(what)) if what.contains(INBOX) => {
                    self.can_hear = false;
                    self.flushed(subject).await
                }
                Err(silence) => Err(self.unheard(silence)),
            };
        }
        match hear(&mut self.events, &[subject, INBOX], &mut asked).await {
            Ok(answer) => self.verdict(answer, subject),
            // Others listen, and this user may not ask for streams: had there been one, it would have said so.
            Err(Silence::Late) if self.keeper == Keeper::Unknown => {
                self.keeper = Keeper::NoneUntil(Instant::now() + BELIEVED);
                Ok(Receipt::new("core NATS; no stream said that it keeps it"))
            }
            Err(Silence::Denied(what)) if what.contains(INBOX) => {
                self.can_hear = false;
                self.flushed(subject).await
            }
            Err(silence) => Err(self.unheard(silence)),
        }
    }

    /// Asks JetStream for a stream that keeps the subject.
    async fn look_for_keeper(&mut self, subject: &Subject) -> Result<(), SendError> {
        match self.keeper {
            Keeper::Stream => return Ok(()),
            Keeper::NoneUntil(end) if Instant::now() < end => return Ok(()),
            _ => self.keeper = Keeper::Unknown,
        }
        let question = serde_json::json!({ "subject": subject.as_str() }).to_string();
        let request = Request::new().payload(question.into()).timeout(None);
        let client = self.client.clone();
        match hear(&mut self.events, &[STREAM_NAMES, INBOX], client.send_request(STREAM_NAMES, request)).await {
            Ok(Ok(answer)) => {
                let names = serde_json::from_slice(&answer.payload).unwrap_or(StreamNames { streams: None });
                let is_kept = names.streams.is_some_and(|names| !names.is_empty());
                self.keeper = if is_kept { Keeper::Stream } else { Keeper::NoneUntil(Instant::now() + BELIEVED) };
            }
            // No JetStream there.
            Ok(Err(error)) if error.kind() == RequestErrorKind::NoResponders => {
                self.keeper = Keeper::NoneUntil(Instant::now() + BELIEVED);
            }
            Err(Silence::Denied(what)) if what.contains(STREAM_NAMES) => {}
            Err(Silence::Denied(_)) => self.can_hear = false,
            Err(Silence::Lost) => return Err(self.unheard(Silence::Lost)),
            Ok(Err(_)) | Err(Silence::Late) => {}
        }
        Ok(())
    }

    /// For a user without an inbox: what is in the socket is all that can be known.
    async fn publish_unheard(
        &mut self,
        subject: &Subject,
        headers: HeaderMap,
        payload: Bytes,
    ) -> Result<Receipt, SendError> {
        let client = self.client.clone();
        let published = client.publish_with_headers(subject.clone(), headers, payload);
        match hear(&mut self.events, &[subject], published).await {
            Ok(Ok(())) => self.flushed(subject).await,
            Ok(Err(error)) => Err(SendError::Retry { reason: format!("{}: {error}", self.address), after: None }),
            Err(silence) => Err(self.unheard(silence)),
        }
    }

    async fn flushed(&mut self, subject: &Subject) -> Result<Receipt, SendError> {
        let client = self.client.clone();
        match hear(&mut self.events, &[subject], client.flush()).await {
            Ok(Ok(())) => Ok(Receipt::new(
                "core NATS, written to the connection; this user may not use its inbox, so nothing confirms it",
            )),
            Ok(Err(error)) => Err(SendError::Retry { reason: format!("{}: {error}", self.address), after: None }),
            Err(silence) => Err(self.unheard(silence)),
        }
    }

    fn verdict(
        &mut self,
        answer: Result<async_nats::Message, async_nats::RequestError>,
        subject: &Subject,
    ) -> Result<Receipt, SendError> {
        let message = match answer {
            Ok(message) => message,
            // The server itself says so, so it has read the alert.
            Err(error) if error.kind() == RequestErrorKind::NoResponders => {
                self.keeper = Keeper::NoneUntil(Instant::now() + BELIEVED);
                let words =
                    format!("core NATS, confirmed by the server; no stream keeps it and nobody listens on {subject}");
                return Ok(Receipt::new(&words));
            }
            Err(error) => return Err(SendError::Retry { reason: format!("{}: {error}", self.address), after: None }),
        };
        match serde_json::from_slice(&message.payload) {
            Ok(PubAck { error: None, stream, seq, duplicate }) if !stream.is_empty() => {
                self.keeper = Keeper::Stream;
                let again = if duplicate { ", which had it already" } else { "" };
                Ok(Receipt::new(&format!("PubAck stream {stream} seq {seq}{again}")))
            }
            Ok(PubAck { error: Some(error), stream, .. }) => Err(error.meaning(&self.address, &stream)),
            // Whoever answered is no stream. The server brought it the alert.
            _ => Ok(Receipt::new("core NATS, answered by a subscriber; no stream said that it keeps it")),
        }
    }

    fn unheard(&self, silence: Silence) -> SendError {
        let address = &self.address;
        match silence {
            Silence::Late if self.keeper == Keeper::Stream => SendError::Retry {
                reason: format!("{address}: the stream has not answered within {} s", ANSWER.as_secs()),
                after: None,
            },
            Silence::Late => {
                SendError::Retry { reason: format!("{address}: no answer within {} s", ANSWER.as_secs()), after: None }
            }
            Silence::Lost => SendError::Retry { reason: format!("{address}: lost the connection"), after: None },
            Silence::Denied(what) => {
                SendError::Refused { reason: format!("{address}: {}: allow it at the server", shown(&what, 200)) }
            }
        }
    }
}

impl ApiError {
    /// A stream that is full or has no leader may be well again; one that is sealed has to be mended; what is too large for it
    /// stays too large.
    fn meaning(&self, address: &str, stream: &str) -> SendError {
        const TOO_LARGE: u32 = 10054;
        let Self { code, err_code, description } = self;
        let reason = shown(&format!("{address}: stream {stream}: {code} {description} ({err_code})"), 300);
        match (*err_code, *code) {
            (TOO_LARGE, _) => SendError::Permanent { reason },
            (_, 500..) => SendError::Retry { reason, after: None },
            _ => SendError::Refused { reason },
        }
    }
}

/// What comes of `work`, unless the server tells first that it lets no one use one of `needs`, or the time is over.
async fn hear<T>(
    events: &mut mpsc::Receiver<Event>,
    needs: &[&str],
    work: impl Future<Output = T>,
) -> Result<T, Silence> {
    let end = Instant::now() + ANSWER;
    let mut work = std::pin::pin!(work);
    loop {
        tokio::select! {
            biased;
            event = events.recv() => match event {
                Some(Event::ServerError(error)) => {
                    let what = error.to_string();
                    let is_permission = what.to_ascii_lowercase().contains("permissions violation");
                    if is_permission && needs.iter().any(|need| what.contains(need)) {
                        return Err(Silence::Denied(what));
                    }
                }
                Some(Event::Disconnected | Event::Closed) | None => return Err(Silence::Lost),
                Some(_) => {}
            },
            done = &mut work => return Ok(done),
            () = sleep_until(end) => return Err(Silence::Late),
        }
    }
}

/// An id as it may stand in a header. Ours is letters, digits and hyphens already.
fn header_value(id: &str) -> String {
    id.chars().take(64).filter(char::is_ascii_graphic).collect()
}

/// `NATS/1.0`, each name and value with its separators, an empty line.
fn headers_bytes(headers: &HeaderMap) -> usize {
    let one = |(name, values): (&async_nats::HeaderName, &Vec<async_nats::HeaderValue>)| {
        values.iter().map(|value| AsRef::<[u8]>::as_ref(name).len() + value.as_str().len() + 4).sum::<usize>()
    };
    12 + headers.iter().map(one).sum::<usize>()
}
