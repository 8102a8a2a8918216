//! Alerts to a Telegram chat by a bot. Outside text stands in code, where Telegram finds no style, no link and no mention, and is
//! cut before it is marked up, so that no tag and no escape ever is.

use std::time::Duration;

use serde_json::{Value, json};

use crate::deliver::http::{Answer, Endpoint};
use crate::deliver::text::units;
use crate::model::{Notice, Severity, Status};
use crate::spec::{Key, Secret, Values};

use super::chat::{self, Keys, Service};
use super::pace::{Pace, seconds};
use super::{Channel, Entry, Receipt, SendError, ca_file, needed, timeout, verdict};

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
        KEYS.template.spec(),
        KEYS.timeout.spec(),
        KEYS.retries.spec(),
        API_URL.spec(),
        KEYS.ca_file.spec(),
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
static API_URL: Key<String> = Key::text(
    "alerting.telegram.api_url",
    "https://api.telegram.org",
    "The Bot API, for those who run a server of their own.",
);
static KEYS: Keys = Keys {
    template: Key::optional(
        "alerting.telegram.template",
        "Text of the message instead of the built-in one, as a template (docs/ALERTING.md) in the language of parse_mode.",
    ),
    timeout: timeout("alerting.telegram.timeout_secs"),
    retries: chat::retries("alerting.telegram.retry_count"),
    ca_file: ca_file("alerting.telegram.ca_file"),
};

/// Telegram's limit of a message, counted without markup.
const TEXT_MAX: usize = 4096;

/// Messages that a bot may send to one group within a minute.
const GROUP_MESSAGES_MAX: usize = 20;

struct Telegram {
    chat: String,
    markup: Markup,
}

fn build(values: &Values) -> Result<Option<Box<dyn Channel>>, String> {
    if !values.get(&ENABLED) {
        return Ok(None);
    }
    let token = needed(values, &TOKEN)?;
    let chat = needed(values, &CHAT)?;
    let is_name = chat.len() > 1 && chat.starts_with('@');
    if !is_name && chat.parse::<i64>().is_err() {
        return Err("alerting.telegram.chat_id: expected a number, as -1001234567890, or @name of a channel".to_owned());
    }
    let endpoint = endpoint(&values.get(&API_URL), &token)?;
    let markup = Markup::named(&values.get(&PARSE_MODE));
    chat::build(Telegram { chat, markup }, endpoint, markup.escape(), &KEYS, values)
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

impl Service for Telegram {
    const NAME: &'static str = ENTRY.name;
    // Markup counts for nothing at the far end, so that what fits with it fits.
    const OWN_MAX: usize = TEXT_MAX;

    fn pace(&self) -> Pace {
        // A group's id is negative; what is @named is one too.
        let is_group = self.chat.starts_with(['-', '@']);
        if is_group { Pace::at_most(GROUP_MESSAGES_MAX, Duration::from_secs(60)) } else { Pace::default() }
    }

    fn message(&self, notice: &Notice, own: Option<String>) -> Value {
        let text = own.unwrap_or_else(|| self.markup.render(notice, TEXT_MAX));
        self.body(notice, json!({ "text": text, "parse_mode": self.markup.name() }))
    }

    /// All of it is marked as code by place and length, which nothing in it can end.
    fn plain(&self, notice: &Notice) -> Value {
        let text = Markup::None.render(notice, TEXT_MAX);
        let code = json!({ "type": "pre", "offset": 0, "length": units(&text) });
        self.body(notice, json!({ "text": text, "entities": [code] }))
    }

    fn pause(answer: &Answer) -> Option<Duration> {
        answer.json()["parameters"]["retry_after"].as_f64().and_then(seconds).or(answer.retry_after)
    }

    fn judge(&mut self, answer: &Answer) -> Result<Receipt, SendError> {
        let said = answer.json();
        let status = answer.status;
        let words = said["description"].as_str().unwrap_or_default().to_ascii_lowercase();
        let refused = |what: &str| Err(SendError::Refused { reason: format!("Telegram answered {status}: {what}") });
        if let (400, Some(chat)) = (status.as_u16(), said["parameters"]["migrate_to_chat_id"].as_i64()) {
            self.chat = chat.to_string();
            let reason = format!("the group has become a supergroup: set alerting.telegram.chat_id to {chat}");
            return Err(SendError::Retry { reason, after: None });
        }
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
            _ => verdict(answer),
        }
    }
}

impl Telegram {
    fn body(&self, notice: &Notice, mut body: Value) -> Value {
        body["disable_notification"] = json!(is_quiet(notice));
        body["link_preview_options"] = json!({ "is_disabled": true });
        body["chat_id"] = json!(self.chat);
        body
    }
}

/// True when nobody is to be disturbed.
fn is_quiet(notice: &Notice) -> bool {
    notice.alerts.iter().all(|alert| alert.status == Status::Resolved || alert.severity == Severity::Info)
}
