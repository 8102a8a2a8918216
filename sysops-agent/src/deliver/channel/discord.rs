//! Alerts to a Discord channel through its webhook, as embeds. Outside text pings no one, links nowhere and has no style; what
//! Discord says of its rate limits is kept.

use std::time::Duration;

use serde_json::{Value, json};

use crate::deliver::http::{Answer, Endpoint};
use crate::deliver::text::{self, Room, fitted, units};
use crate::model::{Alert, Notice, Severity, shown, time};
use crate::spec::{Complaint, Key, Secret, Values};

use super::chat::{self, ALERTS_MAX, Keys, Service};
use super::pace::seconds;
use super::{Channel, Entry, Receipt, SendError, ca_file, needed, timeout, verdict};

/// The channel as the list knows it.
pub static ENTRY: Entry = Entry {
    name: "discord",
    keys: &[
        ENABLED.spec(),
        URL.spec(),
        USERNAME.spec(),
        ROLES.spec(),
        MIN_SEVERITY.spec(),
        KEYS.template.spec(),
        KEYS.timeout.spec(),
        KEYS.retries.spec(),
        KEYS.ca_file.spec(),
    ],
    min_severity: &MIN_SEVERITY,
    grouped: true,
    durable: true,
    build,
};

static ENABLED: Key<bool> = Key::switch("alerting.discord.enabled", false, "Send alerts to Discord.");
static URL: Key<Option<Secret>> = Key::secret(
    "alerting.discord.webhook_url",
    "URL of the channel's webhook (channel settings, Integrations, Webhooks); for a thread with ?thread_id=… behind it.",
);
static USERNAME: Key<String> =
    Key::text("alerting.discord.username", "SysOps Agent", "Name under which alerts appear, at most 80 characters.");
static ROLES: Key<Vec<String>> = Key::list(
    "alerting.discord.mention_roles",
    &[],
    "Roles to mention from critical on, by id (a number); a webhook cannot ping a role by its name, which is then only shown.",
);
static MIN_SEVERITY: Key<String> = Key::choice(
    "alerting.discord.min_severity",
    Severity::NAMES,
    "warn",
    "The least severity that is sent to Discord.",
);
static KEYS: Keys = Keys {
    template: Key::optional(
        "alerting.discord.template",
        "Text of the embed instead of message and fields, as a template (docs/ALERTING.md) in Discord's Markdown.",
    ),
    timeout: timeout("alerting.discord.timeout_secs"),
    retries: chat::retries("alerting.discord.retry_count"),
    ca_file: ca_file("alerting.discord.ca_file"),
};

/// Discord's limits of one message, which takes no more than [`ALERTS_MAX`] embeds, either:
/// <https://discord.com/developers/docs/resources/message>.
const CONTENT_MAX: usize = 2000;
const EMBEDS_UNITS_MAX: usize = 6000;
const TITLE_MAX: usize = 256;
const DESCRIPTION_MAX: usize = 4096;
const FIELDS_MAX: usize = 25;
const NAME_MAX: usize = 256;
const VALUE_MAX: usize = 1024;
const FOOTER_MAX: usize = 160;

/// Roles that one message may be allowed to mention, each with its place in the content.
const ROLES_MAX: usize = 20;

struct Discord {
    username: String,
    roles: Vec<Role>,
}

/// One of `mention_roles`.
enum Role {
    /// An id: it pings.
    Id(String),
    /// A name, which no webhook can turn into an id.
    Name(String),
}

impl Role {
    fn of(text: &str) -> Self {
        let id = text.strip_prefix("<@&").and_then(|rest| rest.strip_suffix('>')).unwrap_or(text);
        let is_id = (15..=20).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_digit());
        if is_id { Self::Id(id.to_owned()) } else { Self::Name(shown(text, 32)) }
    }
}

/// Roles that are mentioned by name.
pub fn doubts(values: &Values) -> Vec<Complaint> {
    let roles = if values.get(&ENABLED) { values.get(&ROLES) } else { Vec::new() };
    let doubt = |role: &String| match Role::of(role) {
        Role::Id(_) => None,
        Role::Name(name) => Some(Complaint {
            path: ROLES.spec().path.to_owned(),
            message: format!("{name:?} pings no one: a webhook knows roles by id (Developer Mode, role, Copy Role ID)"),
        }),
    };
    roles.iter().filter_map(doubt).collect()
}

fn build(values: &Values) -> Result<Option<Box<dyn Channel>>, String> {
    if !values.get(&ENABLED) {
        return Ok(None);
    }
    let url = waiting(&needed(values, &URL)?);
    let endpoint = Endpoint::new(&url).map_err(|error| format!("alerting.discord.webhook_url: {error}"))?;
    let discord = Discord { username: username(values.get(&USERNAME))?, roles: roles(&values.get(&ROLES))? };
    chat::build(discord, endpoint, escaped, &KEYS, values)
}

/// The URL with `wait=true`: without it Discord answers before it has looked, and says nothing of what it throws away.
fn waiting(url: &Secret) -> Secret {
    let url = url.expose();
    if url.split(['?', '&']).skip(1).any(|pair| pair == "wait=true") {
        return Secret::new(url.to_owned());
    }
    Secret::new(format!("{url}{}wait=true", if url.contains('?') { '&' } else { '?' }))
}

/// Discord refuses every message of a webhook with such a name.
fn username(name: String) -> Result<String, String> {
    let lower = name.to_lowercase();
    let taken = ["discord", "clyde"].into_iter().find(|word| lower.contains(word));
    match taken {
        Some(word) => Err(format!("alerting.discord.username: Discord takes no name with {word:?} in it")),
        None if name.trim().is_empty() || units(&name) > 80 => {
            Err("alerting.discord.username: expected 1 to 80 characters".to_owned())
        }
        None => Ok(name),
    }
}

fn roles(written: &[String]) -> Result<Vec<Role>, String> {
    if written.len() > ROLES_MAX {
        return Err(format!("alerting.discord.mention_roles: expected at most {ROLES_MAX} roles"));
    }
    Ok(written.iter().map(|text| Role::of(text)).collect())
}

impl Service for Discord {
    const NAME: &'static str = ENTRY.name;
    const OWN_MAX: usize = DESCRIPTION_MAX;

    fn message(&self, notice: &Notice, own: Option<String>) -> Value {
        let embeds = match own {
            Some(text) => vec![json!({
                "title": fitted(&text::headline(notice), TITLE_MAX, markdown),
                "description": text,
                "color": text::colour(notice.head()),
                "timestamp": time::rfc3339_secs(notice.head().timestamp),
            })],
            None => embeds(notice),
        };
        let headline = if notice.alerts.len() > 1 { text::headline(notice) } else { String::new() };
        json!({
            "username": self.username,
            "content": self.content(notice, &headline),
            "embeds": embeds,
            "allowed_mentions": self.allowed_mentions(notice),
        })
    }

    fn plain(&self, notice: &Notice) -> Value {
        let content = self.content(notice, &chat::words(notice));
        json!({ "content": content, "allowed_mentions": self.allowed_mentions(notice) })
    }

    fn pause(answer: &Answer) -> Option<Duration> {
        let number = |name: &str| answer.headers.get(name)?.to_str().ok()?.trim().parse::<f64>().ok();
        let reset = number("x-ratelimit-reset-after").and_then(seconds);
        match answer.status.as_u16() {
            429 => answer.json()["retry_after"].as_f64().and_then(seconds).or(answer.retry_after).or(reset),
            _ => answer.retry_after.or(reset.filter(|_| number("x-ratelimit-remaining") == Some(0.0))),
        }
    }

    fn judge(&mut self, answer: &Answer) -> Result<Receipt, SendError> {
        let said = answer.json();
        let code = said["code"].as_u64();
        match verdict(answer) {
            // With wait=true Discord answers with the message that it has made.
            Ok(_) => match said["id"].as_str().and_then(|id| id.parse::<u64>().ok()) {
                Some(id) => Ok(Receipt::new(&format!("message {id}"))),
                None => Err(SendError::Refused {
                    reason: "the server takes it, but answers not as Discord: see alerting.discord.webhook_url"
                        .to_owned(),
                }),
            },
            Err(SendError::Refused { reason }) => Err(SendError::Refused {
                reason: format!("{reason}: set alerting.discord.webhook_url to a webhook that exists"),
            }),
            // 220001 to 220004: what a forum wants of a webhook's messages.
            Err(SendError::Permanent { reason }) if code.is_some_and(|code| (220_001..=220_004).contains(&code)) => {
                Err(SendError::Refused {
                    reason: format!(
                        "{reason}: the channel is a forum: add ?thread_id=… to alerting.discord.webhook_url"
                    ),
                })
            }
            Err(SendError::Permanent { reason }) => {
                let code = code.map(|code| format!(" (Discord's error {code})"));
                Err(SendError::Permanent { reason: reason + &code.unwrap_or_default() })
            }
            other => other,
        }
    }
}

impl Discord {
    /// Mentions and `words`.
    fn content(&self, notice: &Notice, words: &str) -> String {
        let mention = |role: &Role| match role {
            Role::Id(id) => format!("<@&{id}> "),
            Role::Name(name) => format!("{} ", fitted(name, 80, markdown)),
        };
        let mut out: String = self.roles.iter().filter(|_| text::is_urgent(notice)).map(mention).collect();
        out.push_str(&fitted(words, CONTENT_MAX - units(&out), markdown));
        out.trim_end().to_owned()
    }

    /// Nothing is pinged but the configured roles, whatever the text says.
    fn allowed_mentions(&self, notice: &Notice) -> Value {
        let ids = self.roles.iter().filter_map(|role| match role {
            Role::Id(id) if text::is_urgent(notice) => Some(id.as_str()),
            _ => None,
        });
        json!({ "parse": [], "roles": ids.collect::<Vec<_>>(), "users": [], "replied_user": false })
    }
}

/// One embed for each alert, as many as there may be, which share the room that there is.
fn embeds(notice: &Notice) -> Vec<Value> {
    let told = notice.alerts.len().min(ALERTS_MAX);
    let more = text::and_more(notice, told);
    let each = EMBEDS_UNITS_MAX / told.max(1);
    let last = told.saturating_sub(1);
    let embed = |(i, alert)| embed(alert, more.as_deref().filter(|_| i == last), each);
    notice.alerts.iter().take(told).enumerate().map(embed).collect()
}

/// The embed of one alert, in at most `room` units.
fn embed(alert: &Alert, more: Option<&str>, room: usize) -> Value {
    let mut room = Room::new(room - FOOTER_MAX);
    let title = room.take(&text::title(alert), TITLE_MAX.min(room.left() / 3), markdown);
    let description = room.take(&shown(&alert.message, DESCRIPTION_MAX), DESCRIPTION_MAX, markdown);
    let mut fields = Vec::new();
    let mut facts = text::facts(alert).into_iter().take(FIELDS_MAX);
    for fact in facts.by_ref() {
        // A field of a few characters says nothing, and Discord takes no empty one.
        if room.left() < 80 {
            break;
        }
        let name = room.take(fact.name, NAME_MAX, markdown);
        let link = text::runbook(alert).filter(|_| fact.name == "Runbook").map(|url| format!("<{url}>"));
        let link = link.and_then(|link| room.take_whole(link));
        let value = link.unwrap_or_else(|| room.take(&fact.text, VALUE_MAX, markdown));
        fields.push(json!({ "name": name, "value": value, "inline": fact.short }));
    }
    let left_out = if fields.len() < text::facts(alert).len() { Some("…") } else { None };
    let footer: Vec<String> = [Some(text::origin(alert)), left_out.map(str::to_owned), more.map(str::to_owned)]
        .into_iter()
        .flatten()
        .collect();
    json!({
        "title": title,
        "description": description,
        "color": text::colour(alert),
        "fields": fields,
        "footer": { "text": fitted(&footer.join(" "), FOOTER_MAX, text::as_it_is) },
        "timestamp": time::rfc3339_secs(alert.timestamp),
    })
}

/// Text in which nothing is Markdown, a mention, an emoji or a link to Discord.
fn markdown(out: &mut String, c: char) {
    // `1.` at the beginning of a line makes a list of it.
    let is_list = || out.rsplit('\n').next().is_some_and(|line| line.bytes().all(|byte| byte.is_ascii_digit()));
    if r"\*_~`|>#-+[]()<@:".contains(c) || (c == '.' && is_list()) {
        out.push('\\');
    }
    out.push(c);
}

fn escaped(text: &str) -> String {
    fitted(text, usize::MAX, markdown)
}
