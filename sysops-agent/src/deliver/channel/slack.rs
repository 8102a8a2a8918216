//! Alerts to a Slack channel through an incoming webhook, as blocks. Outside text stands in plain text objects, where Slack looks
//! for no style, no link and no mention; delivered is what Slack answers `ok` to.

use serde_json::{Value, json};

use crate::deliver::http::{Answer, Endpoint};
use crate::deliver::text::{self, Escape, fitted};
use crate::model::{Alert, Notice, Severity, shown};
use crate::spec::{Key, Secret, Values};

use super::chat::{self, ALERTS_MAX, Keys, Service};
use super::{Channel, Entry, Receipt, SendError, ca_file, needed, timeout, verdict};

/// The channel as the list knows it.
pub static ENTRY: Entry = Entry {
    name: "slack",
    keys: &[
        ENABLED.spec(),
        URL.spec(),
        CHANNEL.spec(),
        USERS.spec(),
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

static ENABLED: Key<bool> = Key::switch("alerting.slack.enabled", false, "Send alerts to Slack.");
static URL: Key<Option<Secret>> = Key::secret(
    "alerting.slack.webhook_url",
    "URL of the incoming webhook (the Slack app's page, Incoming Webhooks), or of what takes the same, as Mattermost.",
);
static CHANNEL: Key<Option<String>> = Key::optional(
    "alerting.slack.channel",
    "Channel, as #server-alerts; only webhooks of the old kind heed it, others have theirs from Slack.",
)
.example("\"#server-alerts\"");
static USERS: Key<Vec<String>> = Key::list(
    "alerting.slack.mention_users",
    &[],
    "Members (U…, W…) or user groups (S…) to mention from critical on, by id: profile, ⋮, Copy member ID.",
);
static MIN_SEVERITY: Key<String> =
    Key::choice("alerting.slack.min_severity", Severity::NAMES, "warn", "The least severity that is sent to Slack.");
static KEYS: Keys = Keys {
    template: Key::optional(
        "alerting.slack.template",
        "Text of the message instead of the built-in one, as a template (docs/ALERTING.md) in Slack's mrkdwn.",
    ),
    timeout: timeout("alerting.slack.timeout_secs"),
    retries: chat::retries("alerting.slack.retry_count"),
    ca_file: ca_file("alerting.slack.ca_file"),
};

/// Slack's limits: <https://docs.slack.dev/reference/block-kit/blocks>. With [`ALERTS_MAX`] alerts of four blocks each a message
/// keeps below its 50 blocks, too.
const HEADER_MAX: usize = 150;
const SECTION_MAX: usize = 3000;
const FIELD_MAX: usize = 2000;
const FIELDS_MAX: usize = 10;

/// What of the alternative text is worth sending: notifications show its beginning.
const FALLBACK_MAX: usize = 3000;

struct Slack {
    channel: Option<String>,
    mentions: String,
}

fn build(values: &Values) -> Result<Option<Box<dyn Channel>>, String> {
    if !values.get(&ENABLED) {
        return Ok(None);
    }
    let url = needed(values, &URL)?;
    let endpoint = Endpoint::new(&url).map_err(|error| format!("alerting.slack.webhook_url: {error}"))?;
    let slack = Slack { channel: values.get(&CHANNEL), mentions: mentions(&values.get(&USERS))? };
    chat::build(slack, endpoint, |text| fitted(text, usize::MAX, entities), &KEYS, values)
}

/// `<@U12345> <!subteam^S12345>`
fn mentions(ids: &[String]) -> Result<String, String> {
    let mention = |id: &String| {
        let is_id = (2..=24).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit());
        match id.bytes().next() {
            Some(b'U' | b'W') if is_id => Ok(format!("<@{id}>")),
            Some(b'S') if is_id => Ok(format!("<!subteam^{id}>")),
            _ => Err(format!(
                "alerting.slack.mention_users: {id:?}: expected a member's id, as U12345: names ping no one"
            )),
        }
    };
    if ids.len() > 50 {
        return Err("alerting.slack.mention_users: expected at most 50".to_owned());
    }
    Ok(ids.iter().map(mention).collect::<Result<Vec<_>, _>>()?.join(" "))
}

impl Service for Slack {
    const NAME: &'static str = ENTRY.name;
    const OWN_MAX: usize = SECTION_MAX;

    fn message(&self, notice: &Notice, own: Option<String>) -> Value {
        let mut blocks = vec![json!({ "type": "header", "text": plain_text(&headline(notice), HEADER_MAX) })];
        let mentions = self.mentions(notice);
        if !mentions.is_empty() {
            blocks.push(json!({ "type": "section", "text": { "type": "mrkdwn", "text": mentions } }));
        }
        let attachments = match own {
            Some(text) => {
                let section =
                    json!({ "type": "section", "text": { "type": "mrkdwn", "text": text, "verbatim": true } });
                vec![json!({ "color": colour(notice.head()), "blocks": [section] })]
            }
            None => attachments(notice),
        };
        let text = fitted(&headline(notice), FALLBACK_MAX, entities);
        self.body(json!({ "text": text, "blocks": blocks, "attachments": attachments }))
    }

    fn plain(&self, notice: &Notice) -> Value {
        let words = format!("{} {}", text::dot(notice.head()), chat::words(notice));
        let text = format!("{} {}", self.mentions(notice), fitted(&words, FALLBACK_MAX, entities));
        self.body(json!({ "text": text.trim_start() }))
    }

    /// Slack says it in one word of the body.
    fn judge(&mut self, answer: &Answer) -> Result<Receipt, SendError> {
        let status = answer.status;
        let word = String::from_utf8_lossy(&answer.body).trim().to_ascii_lowercase().replace(' ', "_");
        let refused = |what: &str| Err(SendError::Refused { reason: format!("Slack answered {status}: {what}") });
        match word.as_str() {
            "ok" if status.is_success() => Ok(Receipt::new("ok")),
            "no_service" | "no_service_id" | "no_active_hooks" | "invalid_token" => {
                refused("the webhook is not there any more: set alerting.slack.webhook_url to a new one")
            }
            "channel_not_found" | "no_team" | "team_disabled" => {
                refused("it has no such channel: set alerting.slack.channel")
            }
            "channel_is_archived" => refused("the channel is archived: give the webhook another"),
            "action_prohibited" | "posting_to_general_channel_denied" => {
                refused("an administrator has forbidden the webhook to post there")
            }
            _ if status.is_success() => refused("without Slack's \"ok\": see alerting.slack.webhook_url"),
            _ => match verdict(answer) {
                Err(SendError::Refused { reason }) => Err(SendError::Refused {
                    reason: format!("{reason}: set alerting.slack.webhook_url to a webhook that exists"),
                }),
                other => other,
            },
        }
    }
}

impl Slack {
    /// With no style, no links and no names: what Slack looks for by itself.
    fn body(&self, mut body: Value) -> Value {
        if let Some(channel) = &self.channel {
            body["channel"] = json!(channel);
        }
        body["mrkdwn"] = json!(false);
        body["parse"] = json!("none");
        body["link_names"] = json!(false);
        body["unfurl_links"] = json!(false);
        body["unfurl_media"] = json!(false);
        body
    }

    fn mentions(&self, notice: &Notice) -> &str {
        if text::is_urgent(notice) { &self.mentions } else { "" }
    }
}

fn headline(notice: &Notice) -> String {
    format!("{} {}", text::dot(notice.head()), text::headline(notice))
}

/// One for each alert, with its colour; what there is no room for is counted in the last.
fn attachments(notice: &Notice) -> Vec<Value> {
    let is_alone = notice.alerts.len() == 1;
    let told = notice.alerts.iter().take(ALERTS_MAX);
    let mut all: Vec<Value> =
        told.map(|alert| json!({ "color": colour(alert), "blocks": blocks(alert, is_alone) })).collect();
    if let Some(more) = text::and_more(notice, ALERTS_MAX) {
        all.push(json!({ "blocks": [{ "type": "section", "text": plain_text(&more, SECTION_MAX) }] }));
    }
    all
}

fn blocks(alert: &Alert, is_alone: bool) -> Vec<Value> {
    let message = shown(&alert.message, SECTION_MAX);
    // Slack takes no text of nothing.
    let is_enough = is_alone && !message.trim().is_empty();
    let words = if is_enough { message } else { format!("{}\n{message}", text::title(alert)) };
    let mut blocks = vec![json!({ "type": "section", "text": plain_text(&words, SECTION_MAX) })];
    let facts = text::facts(alert);
    let (short, long): (Vec<_>, Vec<_>) =
        facts.iter().filter(|fact| fact.name != "Runbook").partition(|fact| fact.short);
    let named = |fact: &&text::Fact| format!("{}\n{}", fact.name, fact.text);
    let fields: Vec<Value> = short.iter().take(FIELDS_MAX).map(|fact| plain_text(&named(fact), FIELD_MAX)).collect();
    if !fields.is_empty() {
        blocks.push(json!({ "type": "section", "fields": fields }));
    }
    if !long.is_empty() {
        let text = long.iter().map(named).collect::<Vec<_>>().join("\n\n");
        blocks.push(json!({ "type": "section", "text": plain_text(&text, SECTION_MAX) }));
    }
    let mut context = vec![plain_text(&text::origin(alert), FIELD_MAX)];
    if let Some(url) = text::runbook(alert) {
        let link = format!("<{}|Runbook>", fitted(url, usize::MAX, entities));
        context.push(json!({ "type": "mrkdwn", "text": link, "verbatim": true }));
    }
    blocks.push(json!({ "type": "context", "elements": context }));
    blocks
}

fn plain_text(text: &str, units_max: usize) -> Value {
    let escape: Escape = entities;
    json!({ "type": "plain_text", "text": fitted(text, units_max, escape), "emoji": false })
}

fn colour(alert: &Alert) -> String {
    format!("#{:06x}", text::colour(alert))
}

/// The three characters that Slack wants written otherwise; with them nothing is a mention.
fn entities(out: &mut String, c: char) {
    match c {
        '&' => out.push_str("&amp;"),
        '<' => out.push_str("&lt;"),
        '>' => out.push_str("&gt;"),
        _ => out.push(c),
    }
}
