//! The mail of a notice: headers, a text for any reader, the same as HTML. The same notice gives the same bytes in every try, so
//! that whoever gets it twice can tell.

use std::fmt::Write as _;

use lettre::message::header::{ContentTransferEncoding, ContentType, HeaderName, HeaderValue, MIME_VERSION_1_0};
use lettre::message::{Body, Mailbox, Mailboxes, Message, MultiPart, MultiPartKind, SinglePart};

use super::html;
use crate::deliver::own_text::OwnText;
use crate::deliver::text;
use crate::model::{Notice, Severity, Status, cut, shown};

/// Characters of a subject. Phones show some sixty of them, mail servers fold what is longer.
const SUBJECT_MAX: usize = 160;

/// Alerts of one mail that are told in full, and those that have a line each; the rest is counted.
pub(super) const FULL_MAX: usize = 8;
pub(super) const LINES_MAX: usize = 50;

/// Characters of a message in the mail's body.
pub(super) const MESSAGE_MAX: usize = 2000;

/// What the configuration says of the mail.
pub(super) struct Look {
    pub(super) from: Mailbox,
    pub(super) to: Mailboxes,
    pub(super) prefix: String,
    pub(super) own: Option<OwnText>,
}

/// The whole mail as it goes to the server.
pub(super) fn mail(notice: &Notice, look: &mut Look) -> Result<Vec<u8>, String> {
    let head = notice.head();
    let domain = domain(&head.hostname);
    // No mail bears the thread's own id: it is where all changes of one alert meet, whichever of them arrives first.
    let thread = format!("<{:016x}@{domain}>", head.fingerprint);
    let headline = text::headline(notice);
    let own = look.own.as_mut().and_then(|own| own.of(notice, Ok));
    let (plain, html) = match &own {
        Some(text) => (text.clone(), html::own(&headline, head, text)),
        None => (plain(notice, &headline), html::page(notice, &headline)),
    };
    let mut builder = Message::builder()
        .from(look.from.clone())
        .date(head.timestamp)
        .subject(subject(&look.prefix, notice, &headline))
        .message_id(Some(format!("<{}@{domain}>", header_token(&notice.id))))
        .in_reply_to(thread.clone())
        .references(thread)
        .header(MIME_VERSION_1_0);
    for one in look.to.iter() {
        builder = builder.to(one.clone());
    }
    // RFC 3834: no one's holiday notice answers.
    builder = raw(builder, "Auto-Submitted", "auto-generated");
    if notice.severity() >= Severity::Critical && notice.status() == Status::Firing {
        builder = raw(raw(builder, "X-Priority", "1"), "Importance", "high");
    }
    // Quoted-printable has no line that begins with `--=`, so that no text ends its part.
    let boundary = format!("=_{}", header_token(&notice.id));
    let parts = MultiPart::builder()
        .kind(MultiPartKind::Alternative)
        .boundary(boundary)
        .singlepart(part(ContentType::TEXT_PLAIN, plain)?)
        .singlepart(part(ContentType::TEXT_HTML, html)?);
    let message = builder.multipart(parts).map_err(|error| format!("the mail cannot be made: {error}"))?;
    Ok(message.formatted())
}

fn part(kind: ContentType, text: String) -> Result<SinglePart, String> {
    let body = Body::new_with_encoding(text, ContentTransferEncoding::QuotedPrintable);
    let body = body.map_err(|_| "the text cannot be written as quoted-printable".to_owned())?;
    Ok(SinglePart::builder().content_type(kind).body(body))
}

fn raw(builder: lettre::message::MessageBuilder, name: &'static str, value: &str) -> lettre::message::MessageBuilder {
    builder.raw_header(HeaderValue::new(HeaderName::new_from_ascii_str(name), value.to_owned()))
}

/// `[SysOps] CRITICAL disk_usage_percent on web-1: /data is 97 % full.`
fn subject(prefix: &str, notice: &Notice, headline: &str) -> String {
    let message = if notice.alerts.len() == 1 { format!(": {}", notice.head().message) } else { String::new() };
    shown(format!("{prefix} {headline}{message}").trim(), SUBJECT_MAX)
}

fn plain(notice: &Notice, headline: &str) -> String {
    let mut out = format!("{headline}\n");
    for (index, alert) in notice.alerts.iter().take(LINES_MAX).enumerate() {
        let message = shown(&alert.message, MESSAGE_MAX);
        // Writing into a String does not fail, here and below.
        if index >= FULL_MAX {
            let _ = write!(out, "\n{} {}: {}", text::word(alert), shown(&alert.metric, 64), cut(&message, 200));
            continue;
        }
        out.push('\n');
        if notice.alerts.len() > 1 {
            let _ = write!(out, "{} {}: ", text::word(alert), shown(&alert.metric, 64));
        }
        let _ = writeln!(out, "{message}\n");
        for fact in text::facts(alert) {
            let lines = fact.text.replace('\n', "\n  ");
            let between = if lines.contains('\n') { ":\n  " } else { ": " };
            let _ = writeln!(out, "{}{between}{lines}", fact.name);
        }
    }
    if let Some(more) = notice.alerts.len().checked_sub(LINES_MAX).filter(|more| *more > 0) {
        let _ = write!(out, "\n\nand {more} more");
    }
    out.push('\n');
    out
}

/// The host's name as the domain of an id and of the greeting: letters, digits, hyphens and dots.
pub(super) fn domain(hostname: &str) -> String {
    let name: String = hostname
        .chars()
        .take(253)
        .map(|c| if c.is_ascii_alphanumeric() || matches!(c, '-' | '.') { c } else { '-' })
        .collect();
    let name = name.trim_matches(['-', '.']);
    if name.is_empty() { "localhost".to_owned() } else { name.to_owned() }
}

/// An id as it may stand in a header. Ours is letters, digits and hyphens already.
fn header_token(id: &str) -> String {
    id.chars().take(64).map(|c| if c.is_ascii_alphanumeric() || c == '-' { c } else { '-' }).collect()
}
