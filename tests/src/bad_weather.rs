//! The far ends of all channels at once, in bad weather: each reads what it gets as the real one does, and is out again and again in
//! ways of its own. They belong on the test's own thread.

use std::collections::BTreeMap;
use std::hash::{BuildHasher as _, RandomState};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::far_ends::{discord, slack, telegram};
use crate::http_far_end::{Answer, FarEnd, Request};
use crate::servers::{self, Scratch, Server, free_port};
use crate::smtp_far_end::{self, Fault, Stage};
use crate::subscriber::Wire;

/// Changes that a channel's far end has taken, by number, in their order and as often as it took them.
type Taken = Arc<Mutex<BTreeMap<&'static str, Vec<u64>>>>;

/// All of them.
pub struct FarEnds {
    http: [(&'static str, FarEnd); 4],
    mail: smtp_far_end::FarEnd,
    syslog: Syslog,
    nats: u16,
    wire: Wire,
    taken: Taken,
    outages: Arc<AtomicU64>,
    scratch: Scratch,
    _server: Server,
}

/// Below `end`, by the kernel's randomness.
#[must_use]
pub fn random(end: u64) -> u64 {
    RandomState::new().hash_one(0) % end
}

impl FarEnds {
    /// Starts them, for about `alerts` changes; `None` without a nats-server.
    ///
    /// # Panics
    /// When one of them cannot be started.
    pub async fn start(alerts: u64) -> Option<Self> {
        let (taken, outages, scratch) = (Taken::default(), Arc::<AtomicU64>::default(), Scratch::new());
        let nats = free_port();
        let server = servers::nats(nats, &format!("jetstream {{ store_dir: {:?} }}", scratch.path()))?;
        let stream = json!({
            "name": "ALERTS", "subjects": ["sysops.*.alerts"], "retention": "limits", "storage": "file",
            "num_replicas": 1, "allow_direct": true, "duplicate_window": 3_600_000_000_000_u64,
        });
        let made = client(nats).await.request("$JS.API.STREAM.CREATE.ALERTS", stream.to_string().into()).await;
        assert!(made.is_ok_and(|made| !made.payload.windows(7).any(|part| part == b"\"error\"")), "the stream is made");
        let http = |name, answer| http(name, answer, Arc::clone(&taken), Arc::clone(&outages));
        let http = [
            ("discord", http("discord", discord::answer).await),
            ("slack", http("slack", slack::answer).await),
            ("telegram", http("telegram", telegram::answer).await),
            ("webhook", http("webhook", |_| Answer::status("204 No Content")).await),
        ];
        let faults: Vec<Fault> = (0..alerts).map(|_| mail_fault(&outages)).collect();
        let wire = Wire::to(nats).await;
        let syslog = Syslog::listen(&scratch.path().join("log"), Arc::clone(&taken), Arc::clone(&outages));
        let mail = smtp_far_end::FarEnd::start(faults).await;
        Some(Self { http, mail, syslog, nats, wire, taken, outages, scratch, _server: server })
    }

    /// Configuration of all channels, for whoever delivers to them.
    #[must_use]
    pub fn settings(&self) -> Value {
        let [discord, slack, telegram, webhook] = [0, 1, 2, 3].map(|at: usize| &self.http[at].1.url);
        let mut settings = json!({
            "alerting.discord.webhook_url": format!("{discord}/api/webhooks/1/x"),
            "alerting.slack.webhook_url": format!("{slack}/services/x"),
            "alerting.telegram.bot_token": "1:x",
            "alerting.telegram.chat_id": "1",
            "alerting.telegram.api_url": telegram,
            "alerting.webhook.url": webhook,
            "alerting.email.smtp_host": "127.0.0.1",
            "alerting.email.smtp_port": self.mail.port,
            "alerting.email.smtp_tls": false,
            "alerting.email.from": "agent@h.example",
            "alerting.email.to": ["ann@example.com"],
            "alerting.email.min_severity": "warn",
            "alerting.syslog.enabled": true,
            "alerting.syslog.path": self.scratch.path().join("log"),
            "nats.enabled": true,
            "nats.url": format!("nats://127.0.0.1:{}", self.wire.port),
        });
        for channel in ["discord", "slack", "telegram", "webhook", "email"] {
            settings[format!("alerting.{channel}.enabled")] = json!(true);
            settings[format!("alerting.{channel}.timeout_secs")] = json!(1);
            settings[format!("alerting.{channel}.retry_count")] = json!(1);
        }
        settings
    }

    /// Cuts and swallows what goes to the NATS server, now and then, as often as told.
    pub async fn storm(&self, times: u64) {
        for time in 0..times {
            sleep(Duration::from_millis(random(1000))).await;
            self.outages.fetch_add(1, Ordering::Relaxed);
            if time % 8 == 7 { self.wire.swallow() } else { self.wire.cut() }
        }
    }

    /// How often one of them was out.
    #[must_use]
    pub fn outages(&self) -> u64 {
        self.outages.load(Ordering::Relaxed)
    }

    /// What each of them has, once all is delivered.
    ///
    /// # Panics
    /// When the stream cannot be read.
    pub async fn end(self) -> BTreeMap<&'static str, Vec<u64>> {
        self.syslog.end();
        let mut taken = self.taken.lock().expect("no holder panics").clone();
        let mails = self.mail.mails();
        let number = |data: &str| id_number(data.split_once("Message-ID: <")?.1.split_once('@')?.0);
        taken.insert("email", mails.iter().filter_map(|mail| number(&mail.data)).collect());
        taken.insert("nats", stored(self.nats).await);
        taken
    }
}

async fn client(port: u16) -> async_nats::Client {
    async_nats::connect(format!("nats://127.0.0.1:{port}")).await.expect("the server is there")
}

/// What the stream keeps, one after another.
async fn stored(port: u16) -> Vec<u64> {
    let client = client(port).await;
    let mut numbers = Vec::new();
    for seq in 1_u64.. {
        let question = json!({ "seq": seq }).to_string();
        let message = client.request("$JS.API.DIRECT.GET.ALERTS", question.into()).await.expect("JetStream answers");
        // It answers with the message itself, or with a status.
        let Some(id) = message.headers.as_ref().and_then(|headers| headers.get("Nats-Msg-Id")) else { break };
        numbers.extend(id_number(id.as_str()));
    }
    numbers
}

/// The number of the change, from its id.
fn id_number(id: &str) -> Option<u64> {
    id.split_once('-')?.1.parse().ok()
}

/// The number of the change, from the words of its message.
fn said_number(text: &str) -> Option<u64> {
    let (before, _) = text.split_once(" of the alert")?;
    before.rsplit("change ").next()?.parse().ok()
}

/// One that is reached by HTTP.
async fn http(name: &'static str, real: fn(&Request) -> Answer, taken: Taken, outages: Arc<AtomicU64>) -> FarEnd {
    let (mut is_out, mut until, mut kind) = (true, Instant::now(), 0);
    FarEnd::answering(move |request| {
        let now = Instant::now();
        if now >= until {
            (is_out, kind) = (!is_out, random(5));
            until = now + Duration::from_millis(random(if is_out { 150 } else { 600 }));
            outages.fetch_add(u64::from(is_out), Ordering::Relaxed);
        }
        if is_out {
            return match kind {
                0 => Answer::Hang,
                1 => Answer::Status("429 Too Many Requests", "retry-after: 1\r\n".to_owned(), Vec::new()),
                2 => Answer::status("500 Internal Server Error"),
                3 => Answer::Close,
                _ => Answer::CloseMidBody,
            };
        }
        let answer = real(request);
        let body = String::from_utf8_lossy(&request.body);
        let number = match request.header("idempotency-key") {
            Some(id) => id_number(id).filter(|_| request.json()["id"] == id),
            None => said_number(&body),
        };
        if matches!(answer, Answer::Status(line, ..) if line.starts_with('2')) {
            taken.lock().expect("no holder panics").entry(name).or_default().extend(number);
        }
        answer
    })
    .await
}

/// What a connection to the mail server meets: one in forty nothing good. A mail that it drops the connection after, it has.
fn mail_fault(outages: &AtomicU64) -> Fault {
    let fault = match random(400) {
        0 => Fault::Hang(Stage::Hello),
        1..=2 => Fault::Answer(Stage::Greeting, "421 4.3.2 not now"),
        3..=4 => Fault::Answer(Stage::Sender, "451 4.3.0 not now"),
        5..=6 => Fault::Answer(Stage::Data, "452 4.3.1 no room"),
        7..=8 => Fault::Drop(Stage::Data),
        9 => Fault::Drop(Stage::Body),
        _ => return Fault::None,
    };
    outages.fetch_add(1, Ordering::Relaxed);
    fault
}

/// A reader of log records that stops reading now and then, so that its socket is full.
struct Syslog {
    is_over: Arc<AtomicBool>,
    reader: JoinHandle<()>,
}

impl Syslog {
    fn listen(path: &Path, taken: Taken, outages: Arc<AtomicU64>) -> Self {
        let socket = UnixDatagram::bind(path).expect("a directory of our own");
        socket.set_read_timeout(Some(Duration::from_millis(20))).expect("a socket of our own");
        let is_over = Arc::<AtomicBool>::default();
        let over = Arc::clone(&is_over);
        let reader = std::thread::spawn(move || {
            let mut record = [0; 64 << 10];
            loop {
                match socket.recv(&mut record) {
                    Ok(length) => {
                        let number = said_number(&String::from_utf8_lossy(&record[..length]));
                        taken.lock().expect("no holder panics").entry("syslog").or_default().extend(number);
                    }
                    Err(_) if over.load(Ordering::Relaxed) => return,
                    Err(_) => {}
                }
                if random(100) == 0 {
                    outages.fetch_add(1, Ordering::Relaxed);
                    std::thread::sleep(Duration::from_millis(random(300)));
                }
            }
        });
        Self { is_over, reader }
    }

    /// Reads what is left.
    fn end(self) {
        self.is_over.store(true, Ordering::Relaxed);
        self.reader.join().expect("it reads");
    }
}
