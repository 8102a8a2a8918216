//! Alerts to a Telegram chat by a bot. Outside text stands in code, where Telegram finds no style, no link and no mention, and is
//! cut before it is marked up, so that no tag and no escape ever is.

use std::time::Duration;

use serde_json::{Value, json};

use crate::deliver::http::{Answer, Endpoint, HttpError, TlsFiles};
use crate::deliver::own_text::OwnText;
use crate::deliver::text::{self, units};
use crate::model::{Notice, Severity, Status};
use crate::spec::{Key, Secret, Values};

use super::pace::{Pace, seconds};
use super::{Channel, Entry, Receipt, SendError, Sending, verdict};

mod markup;

use markup::Markup;

/// The channel as the list knows it.
pub static ENTRY: Entry = Entry {
    name: "telegram",
    keys: &[
        ENABLED.spec(),
        TOKEN.spec(),
        CHAT.spec(),
        PARSE_MODE.spec(),
        MIN_SEVERITY.spec(),
        TEMPLATE.spec(),
        TIMEOUT.spec(),
        RETRIES.spec(),
        API_URL.spec(),
        CA_FILE.spec(),
    ],
    min_severity: &MIN_SEVERITY,
    grouped: true,
    durable: true,
    build,
};

static ENABLED: Key<bool> = Key::switch("alerting.telegram.enabled", false, "Send alerts to Telegram.");
static TOKEN: Key<Option<Secret>> = Key::secret("alerting.telegram.bot_token", "The bot's token, from @BotFather.");
static CHAT: Key<Option<String>> = Key::optional(
    "alerting.telegram.chat_id",
    "Id of the chat, or @name of a public channel; the bot must be a member of it.",
)
.example("\"-1001234567890\"");
static PARSE_MODE: Key<String> = Key::choice(
    "alerting.telegram.parse_mode",
    Markup::NAMES,
    "HTML",
    "How Telegram reads the text, and so what a template is written in.",
);
static MIN_SEVERITY: Key<String> = Key::choice(
    "alerting.telegram.min_severity",
    Severity::NAMES,
    "warn",
    "The least severity that is sent to Telegram.",
);
static TEMPLATE: Key<Option<String>> = Key::optional(
    "alerting.telegram.template",
    "Text of the message instead of the built-in one, as a template (docs/ALERTING.md) in the language of parse_mode.",
);
static TIMEOUT: Key<Duration> =
    Key::secs("alerting.telegram.timeout_secs", 10, 1, 300, "How long one request may take, answer included.");
static RETRIES: Key<i64> = Key::int(
    "alerting.telegram.retry_count",
    3,
    0,
    20,
    "How many more times an alert is sent at once after a failure that may pass.",
);
static API_URL: Key<String> = Key::text(
    "alerting.telegram.api_url",
    "https://api.telegram.org",
    "The Bot API, for those who run a server of their own.",
);
static CA_FILE: Key<Option<String>> = Key::optional(
    "alerting.telegram.ca_file",
    "Certificate authorities in PEM to trust instead of the machine's (tls-rustls only).",
);

/// Telegram's limit of a message, counted without markup.
const TEXT_MAX: usize = 4096;

/// Messages that a bot may send to one group within a minute.
const GROUP_MESSAGES_MAX: usize = 20;

struct Telegram {
    endpoint: Endpoint,
    chat: String,
    markup: Markup,
    template: Option<OwnText>,
    timeout: Duration,
    retries: u32,
    pace: Pace,
}

fn build(values: &Values) -> Result<Option<Box<dyn Channel>>, String> {
    if !values.get(&ENABLED) {
        return Ok(None);
    }
    let missing = |key: &str| format!("alerting.telegram.{key}: missing, and alerting.telegram.enabled needs it");
    let token = values.get(&TOKEN).ok_or_else(|| missing("bot_token"))?;
    let chat = values.get(&CHAT).ok_or_else(|| missing("chat_id"))?;
    let is_name = chat.len() > 1 && chat.starts_with('@');
    if !is_name && chat.parse::<i64>().is_err() {
        return Err("alerting.telegram.chat_id: expected a number, as -1001234567890, or @name of a channel".to_owned());
    }
    let files = TlsFiles { ca: values.get(&CA_FILE), ..TlsFiles::default() };
    let endpoint = endpoint(&values.get(&API_URL), &token)?;
    let markup = Markup::named(&values.get(&PARSE_MODE));
    let template = values.get(&TEMPLATE);
    let minute = Duration::from_secs(60);
    Ok(Some(Box::new(Telegram {
        endpoint: endpoint.with_tls(&files).map_err(|error| format!("alerting.telegram.{error}"))?,
        // A group's id is negative; what is @named is one too.
        pace: if chat.starts_with(['-', '@']) { Pace::at_most(GROUP_MESSAGES_MAX, minute) } else { Pace::default() },
        chat,
        markup,
        template: OwnText::new(TEMPLATE.spec().path, template.as_deref(), markup.escape())?,
        timeout: values.get(&TIMEOUT),
        retries: u32::try_from(values.get(&RETRIES)).unwrap_or(0),
    })))
}

fn endpoint(api: &str, token: &Secret) -> Result<Endpoint, String> {
    // The token is a part of the path, and must stay one.
    if token.expose().is_empty() || token.expose().bytes().any(|b| !b.is_ascii_graphic() || b"/?#%".contains(&b)) {
        return Err("alerting.telegram.bot_token: expected a token as @BotFather gives it".to_owned());
    }
    Endpoint::new(&Secret::new(api.to_owned())).map_err(|error| format!("alerting.telegram.api_url: {error}"))?;
    let url = format!("{}/bot{}/sendMessage", api.trim_end_matches('/'), token.expose());
    Endpoint::new(&Secret::new(url)).map_err(|error| format!("alerting.telegram.bot_token: {error}"))
}

impl Channel for Telegram {
    fn send<'a>(&'a mut self, notice: &'a Notice) -> Sending<'a> {
        Box::pin(async move {
            self.pace.take()?;
            let message = self.message(notice);
            match self.post(message, notice).await {
                // Telegram has found something wrong with the text: its words without markup are better than nothing.
                Err(SendError::Permanent { reason }) => {
                    tracing::warn!(channel = "telegram", %reason, "the message is not taken, sending plain text");
                    self.post(plain(notice), notice).await
                }
                other => other,
            }
        })
    }

    fn retries(&self) -> u32 {
        self.retries
    }
}

impl Telegram {
    /// Posts to the chat, and once more where the chat has gone to.
    async fn post(&mut self, mut body: Value, notice: &Notice) -> Result<Receipt, SendError> {
        body["disable_notification"] = json!(is_quiet(notice));
        body["link_preview_options"] = json!({ "is_disabled": true });
        body["chat_id"] = json!(self.chat);
        let answer = self.call(&body, notice).await;
        let Some(chat) = answer.as_ref().ok().and_then(moved_to) else { return self.judge(answer) };
        tracing::warn!(
            channel = "telegram",
            chat,
            "the group has become a supergroup: set alerting.telegram.chat_id to this"
        );
        self.chat = chat.to_string();
        body["chat_id"] = json!(self.chat);
        let answer = self.call(&body, notice).await;
        self.judge(answer)
    }

    async fn call(&self, body: &Value, notice: &Notice) -> Result<Answer, HttpError> {
        self.endpoint.post_json(body, self.timeout, notice.head().timestamp).await
    }

    fn judge(&mut self, answer: Result<Answer, HttpError>) -> Result<Receipt, SendError> {
        let Ok(mut answer) = answer else { return verdict(answer) };
        let said = answer.json();
        if answer.status.as_u16() == 429 {
            answer.retry_after = said["parameters"]["retry_after"].as_f64().and_then(seconds).or(answer.retry_after);
            if let Some(pause) = answer.retry_after {
                self.pace.pause(pause);
            }
        }
        let status = answer.status;
        let words = said["description"].as_str().unwrap_or_default().to_ascii_lowercase();
        let refused = |what: &str| Err(SendError::Refused { reason: format!("Telegram answered {status}: {what}") });
        match status.as_u16() {
            200 if said["ok"] == true => {
                let number = said["result"]["message_id"].as_i64();
                Ok(Receipt::new(&number.map_or_else(|| "ok".to_owned(), |number| format!("message {number}"))))
            }
            200 => refused("but not as Telegram does: see alerting.telegram.api_url"),
            401 | 404 => refused("it knows no such bot: set alerting.telegram.bot_token"),
            403 => refused("the bot may not write there: add it to the chat, or start it there again"),
            400 if words.contains("chat not found") || words.contains("chat_id") => {
                refused("it knows no such chat: add the bot to it, or set alerting.telegram.chat_id")
            }
            400 if words.contains("not enough rights") || words.contains("chat_write_forbidden") => {
                refused("the bot may not write there: give it the right to send messages")
            }
            400 if words.contains("can't parse entities") => {
                Err(SendError::Permanent { reason: format!("Telegram answered {status}: it cannot read the markup") })
            }
            _ => verdict(Ok(answer)),
        }
    }

    fn message(&mut self, notice: &Notice) -> Value {
        // Markup counts for nothing at the far end, so that what fits with it fits.
        let own = self.template.as_mut().and_then(|own| own.of(notice, |text| text::held(text, TEXT_MAX)));
        let text = own.unwrap_or_else(|| self.markup.render(notice, TEXT_MAX));
        json!({ "text": text, "parse_mode": self.markup.name() })
    }
}

/// The words alone. All of them are marked as code by place and length, which nothing in them can end.
fn plain(notice: &Notice) -> Value {
    let text = Markup::None.render(notice, TEXT_MAX);
    json!({ "text": text, "entities": [{ "type": "pre", "offset": 0, "length": units(&text) }] })
}

/// True when nobody is to be disturbed.
fn is_quiet(notice: &Notice) -> bool {
    notice.alerts.iter().all(|alert| alert.status == Status::Resolved || alert.severity == Severity::Info)
}

/// The id of the supergroup that the group has become.
fn moved_to(answer: &Answer) -> Option<i64> {
    answer.json()["parameters"]["migrate_to_chat_id"].as_i64().filter(|_| answer.status.as_u16() == 400)
}
