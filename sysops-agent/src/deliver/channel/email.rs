//! Alerts by mail. Here are the keys, and which recipients still miss a notice; the mail itself is `message`'s and `html`'s,
//! the conversation with the server `smtp`'s.

#[cfg(feature = "email")]
mod html;
#[cfg(feature = "email")]
mod message;
#[cfg(feature = "email")]
#[cfg_attr(
    not(any(feature = "tls-rustls", feature = "tls-native")),
    expect(deprecated, reason = "without TLS lettre names its parameters still, and none are ever made")
)]
mod smtp;

use std::time::Duration;

use super::{Channel, Entry};
use crate::model::Severity;
use crate::spec::{Key, Secret, Values};

/// The channel as the list knows it.
pub static ENTRY: Entry = Entry {
    name: "email",
    keys: &[
        ENABLED.spec(),
        HOST.spec(),
        PORT.spec(),
        TLS.spec(),
        TLS_MODE.spec(),
        ALLOW_PLAIN.spec(),
        CA_FILE.spec(),
        USERNAME.spec(),
        PASSWORD.spec(),
        FROM.spec(),
        TO.spec(),
        SUBJECT_PREFIX.spec(),
        TEMPLATE.spec(),
        TIMEOUT.spec(),
        RETRIES.spec(),
        MIN_SEVERITY.spec(),
    ],
    min_severity: &MIN_SEVERITY,
    grouped: true,
    durable: true,
    build,
};

static ENABLED: Key<bool> = Key::switch("alerting.email.enabled", false, "Alerts by mail.");
static HOST: Key<Option<String>> =
    Key::optional("alerting.email.smtp_host", "The mail server.").example("\"smtp.example.com\"");
static PORT: Key<i64> = Key::int("alerting.email.smtp_port", 587, 1, 65_535, "Its port.");
static TLS: Key<bool> = Key::switch(
    "alerting.email.smtp_tls",
    true,
    "Nothing but greetings is said before the connection is encrypted, and a server that does not encrypt gets no mail. \
     Without it mail goes to this machine's own server only, unless `allow_plain` says otherwise.",
);
static TLS_MODE: Key<String> = Key::choice(
    "alerting.email.smtp_tls_mode",
    &["auto", "starttls", "implicit"],
    "auto",
    "How encryption begins: asked for by STARTTLS, or from the first byte on (implicit). auto: implicit on port 465, STARTTLS \
     on every other.",
);
static ALLOW_PLAIN: Key<bool> = Key::switch(
    "alerting.email.allow_plain",
    false,
    "With `smtp_tls = false`: sends mail unencrypted to another machine, too. A password is never sent that way.",
);
static CA_FILE: Key<Option<String>> = Key::optional(
    "alerting.email.ca_file",
    "File with the certificates (PEM) that the server's must come from, instead of those that this machine trusts.",
)
.example("\"/etc/ssl/private-ca.pem\"");
static USERNAME: Key<Option<String>> =
    Key::optional("alerting.email.username", "Name to log in with; goes with `password`.")
        .example("\"alerts@example.com\"");
static PASSWORD: Key<Option<Secret>> = Key::secret("alerting.email.password", "Password of `username`.");
static FROM: Key<Option<String>> =
    Key::optional("alerting.email.from", "The sender.").example("\"SysOps Agent <alerts@example.com>\"");
static TO: Key<Vec<String>> =
    Key::list("alerting.email.to", &[], "The recipients. One mail goes to all of them, and each sees who else got it.");
static SUBJECT_PREFIX: Key<String> =
    Key::text("alerting.email.subject_prefix", "[SysOps]", "What every subject begins with.");
static TEMPLATE: Key<Option<String>> = Key::optional(
    "alerting.email.template",
    "Text of the mail in your own words, a template (docs/ALERTING.md). Text that cannot be made is replaced by the built-in \
     one, with a warning.",
)
.example("\"{{ headline }}: {{ alert.message }}\"");
static TIMEOUT: Key<Duration> =
    Key::secs("alerting.email.timeout_secs", 30, 1, 600, "How long sending one mail may take, from connecting on.");
static RETRIES: Key<i64> = Key::int(
    "alerting.email.retry_count",
    3,
    0,
    20,
    "How many more times a mail is sent at once after a network error, a timeout or a 4xx of the server.",
);
static MIN_SEVERITY: Key<String> =
    Key::choice("alerting.email.min_severity", Severity::NAMES, "critical", "The least severity that is mailed.");

#[cfg(not(feature = "email"))]
fn build(values: &Values) -> Result<Option<Box<dyn Channel>>, String> {
    if values.get(&ENABLED) {
        tracing::warn!("alerting.email: enabled, but this agent was built without the feature \"email\"");
    }
    Ok(None)
}

#[cfg(feature = "email")]
fn build(values: &Values) -> Result<Option<Box<dyn Channel>>, String> {
    if !values.get(&ENABLED) {
        return Ok(None);
    }
    Ok(Some(Box::new(mailer::Mailer::new(values)?)))
}

#[cfg(feature = "email")]
mod mailer {
    use std::collections::{BTreeSet, VecDeque};

    use lettre::Address;
    use lettre::message::{Mailbox, Mailboxes};

    use super::message::Look;
    use super::smtp::{Handed, Server};
    use super::{
        ALLOW_PLAIN, CA_FILE, FROM, HOST, PASSWORD, PORT, RETRIES, SUBJECT_PREFIX, TEMPLATE, TIMEOUT, TLS, TLS_MODE,
        TO, USERNAME,
    };
    use crate::deliver::channel::{Channel, Receipt, SendError, Sending, missing, needed};
    use crate::deliver::own_text::OwnText;
    use crate::model::Notice;
    use crate::spec::Values;
    use crate::template::plain;

    /// Notices that some recipients have and others were asked to wait for. Past that the oldest is forgotten, and who has
    /// that mail already may get it twice, under the same Message-ID.
    const PARTLY_MAX: usize = 64;

    pub(super) struct Mailer {
        server: Server,
        look: Look,
        retries: u32,
        partly: VecDeque<(String, BTreeSet<Address>)>,
    }

    impl Mailer {
        pub(super) fn new(values: &Values) -> Result<Self, String> {
            let from = needed(values, &FROM)?;
            let mut to = Mailboxes::new();
            for recipient in values.get(&TO) {
                to.push(mailbox("to", &recipient)?);
            }
            if to.iter().next().is_none() {
                return Err(missing(TO.spec()));
            }
            let own = OwnText::new(TEMPLATE.spec().path, values.get(&TEMPLATE).as_deref(), plain)?;
            Ok(Self {
                server: Server::new(&super::smtp::Wanted {
                    host: needed(values, &HOST)?,
                    port: u16::try_from(values.get(&PORT)).unwrap_or(587),
                    tls: values.get(&TLS),
                    tls_mode: values.get(&TLS_MODE),
                    allow_plain: values.get(&ALLOW_PLAIN),
                    ca_file: values.get(&CA_FILE),
                    username: values.get(&USERNAME),
                    password: values.get(&PASSWORD),
                    timeout: values.get(&TIMEOUT),
                })?,
                look: Look { from: mailbox("from", &from)?, to, prefix: values.get(&SUBJECT_PREFIX), own },
                retries: u32::try_from(values.get(&RETRIES)).unwrap_or(0),
                partly: VecDeque::new(),
            })
        }

        async fn send(&mut self, notice: &Notice) -> Result<Receipt, SendError> {
            let mail =
                super::message::mail(notice, &mut self.look).map_err(|reason| SendError::Permanent { reason })?;
            let has = self.take_partly(&notice.id);
            let misses: Vec<Address> =
                self.look.to.iter().map(|one| &one.email).filter(|one| !has.contains(*one)).cloned().collect();
            let name = super::message::domain(&notice.head().hostname);
            match self.server.send(&name, &self.look.from.email, &misses, &mail).await {
                Ok(Handed { answer, deferred: None, .. }) => Ok(Receipt::new(&answer)),
                Ok(Handed { answer, took, deferred: Some(why) }) => {
                    let has = has.into_iter().chain(took).collect();
                    self.partly.truncate(PARTLY_MAX - 1);
                    self.partly.push_front((notice.id.clone(), has));
                    Err(SendError::Retry { reason: format!("{why}; for the others: {answer}"), after: None })
                }
                Err(error) => {
                    if !has.is_empty() {
                        self.partly.push_front((notice.id.clone(), has));
                    }
                    Err(error)
                }
            }
        }

        fn take_partly(&mut self, id: &str) -> BTreeSet<Address> {
            let at = self.partly.iter().position(|(known, _)| known == id);
            at.and_then(|at| self.partly.remove(at)).map(|(_, has)| has).unwrap_or_default()
        }
    }

    impl Channel for Mailer {
        fn send<'a>(&'a mut self, notice: &'a Notice) -> Sending<'a> {
            Box::pin(Mailer::send(self, notice))
        }

        fn retries(&self) -> u32 {
            self.retries
        }
    }

    /// `Name <user@host>` or `user@host`, in ASCII before the `@`: not every server knows SMTPUTF8.
    fn mailbox(key: &str, text: &str) -> Result<Mailbox, String> {
        let mailbox: Mailbox = text
            .parse()
            .map_err(|_| format!("alerting.email.{key}: expected user@host or \"Name <user@host>\", found {text:?}"))?;
        if !mailbox.email.to_string().is_ascii() {
            return Err(format!("alerting.email.{key}: expected an address in ASCII, found {text:?}"));
        }
        Ok(mailbox)
    }
}
