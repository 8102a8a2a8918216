//! One mail to one server, over a connection of its own: alerts are rare, and servers close what is idle. Everything together
//! has one deadline, which lettre's own timeout is not: it ends when the connection stands. What the server's codes mean for
//! the notice is decided here.

use std::error::Error as _;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use lettre::Address;
use lettre::transport::smtp::Error;
use lettre::transport::smtp::authentication::{Credentials, Mechanism};
use lettre::transport::smtp::client::{AsyncSmtpConnection, TlsParameters};
use lettre::transport::smtp::commands::{Data, Mail, Rcpt};
use lettre::transport::smtp::extension::ClientId;
use lettre::transport::smtp::response::{Code, Response, Severity};
use tokio::time::{Instant, timeout, timeout_at};

use crate::deliver::channel::SendError;
use crate::model::{shown, with_causes};
use crate::spec::Secret;

/// How long a server may take to say goodbye. The mail is delivered by then, or not.
const GOODBYE: Duration = Duration::from_secs(1);

/// A certificates' file that is larger is something else.
const CA_BYTES_MAX: u64 = 1 << 20;

/// What the configuration says of the server.
pub(super) struct Wanted {
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) tls: bool,
    pub(super) tls_mode: String,
    pub(super) allow_plain: bool,
    pub(super) ca_file: Option<String>,
    pub(super) username: Option<String>,
    pub(super) password: Option<Secret>,
    pub(super) timeout: Duration,
}

/// A mail server, and how it is talked to.
pub(super) struct Server {
    host: String,
    port: u16,
    encryption: Encryption,
    login: Option<(String, Secret)>,
    timeout: Duration,
}

enum Encryption {
    /// From the first byte on.
    Implicit(TlsParameters),
    /// Asked for; without it nothing more is said.
    StartTls(TlsParameters),
    /// None, and only to this machine.
    Loopback,
    /// None; the user wants it so.
    Plain,
}

/// What the server took.
pub(super) struct Handed {
    /// Its words, and whom it refused.
    pub(super) answer: String,
    /// For whom it took it.
    pub(super) took: Vec<Address>,
    /// Why it wants others to be tried again later.
    pub(super) deferred: Option<String>,
}

/// What is being done, for messages and for the meaning of a refusal.
#[derive(Clone, Copy, PartialEq)]
enum Step {
    Connect,
    Encrypt,
    LogIn,
    Sender,
    Recipient,
    Message,
}

impl Server {
    pub(super) fn new(wanted: &Wanted) -> Result<Self, String> {
        let Wanted { host, port, .. } = wanted;
        let login = match (&wanted.username, &wanted.password) {
            (Some(name), Some(password)) => Some((name.clone(), password.clone())),
            (None, None) => None,
            (Some(_), None) => return Err("alerting.email.password: missing, and username needs it".to_owned()),
            (None, Some(_)) => return Err("alerting.email.username: missing, and password needs it".to_owned()),
        };
        let is_local = host == "localhost" || host.parse().is_ok_and(|address: IpAddr| address.is_loopback());
        let encryption = match (wanted.tls, wanted.tls_mode.as_str()) {
            (true, "implicit") => Encryption::Implicit(tls(wanted)?),
            (true, "auto") if *port == 465 => Encryption::Implicit(tls(wanted)?),
            (true, _) => Encryption::StartTls(tls(wanted)?),
            (false, _) if is_local => Encryption::Loopback,
            (false, _) if login.is_some() => {
                return Err(format!(
                    "alerting.email.smtp_tls: false would send the password to {host:?} in the clear: \
                                    set it to true, or use a server on this machine"
                ));
            }
            (false, _) if wanted.allow_plain => Encryption::Plain,
            (false, _) => {
                return Err(format!(
                    "alerting.email.smtp_tls: false would send mail to {host:?} in the clear: set it to \
                                    true, or allow_plain = true if that network is yours"
                ));
            }
        };
        Ok(Self { host: host.clone(), port: *port, encryption, login, timeout: wanted.timeout })
    }

    /// Hands the mail over for those of `to` that the server takes.
    pub(super) async fn send(
        &self,
        own_name: &str,
        from: &Address,
        to: &[Address],
        mail: &[u8],
    ) -> Result<Handed, SendError> {
        let deadline = Instant::now() + self.timeout;
        let mut connection = self.connect(deadline, &ClientId::Domain(own_name.to_owned())).await?;
        let handed = self.hand_over(&mut connection, deadline, from, to, mail).await;
        // What the server has it has, whether or not it says goodbye.
        let _ = timeout(GOODBYE, connection.quit()).await;
        handed
    }

    async fn connect(&self, deadline: Instant, own_name: &ClientId) -> Result<AsyncSmtpConnection, SendError> {
        let implicit = match &self.encryption {
            Encryption::Implicit(tls) => Some(tls.clone()),
            _ => None,
        };
        let addresses = self.addresses(deadline).await?;
        let connect = AsyncSmtpConnection::connect_tokio1(&addresses[..], None, own_name, implicit, None);
        let mut connection = self.step(deadline, Step::Connect, connect).await?;
        if let Encryption::StartTls(tls) = &self.encryption {
            if !connection.can_starttls() {
                return Err(SendError::Refused {
                    reason: format!(
                        "{self}: the server offers no STARTTLS, so it got neither password nor mail: use a \
                                     server or port that encrypts (465 with smtp_tls_mode \"implicit\")"
                    ),
                });
            }
            self.step(deadline, Step::Encrypt, connection.starttls(tls.clone(), own_name)).await?;
        }
        if let Some((name, password)) = &self.login {
            let known = [Mechanism::Plain, Mechanism::Login];
            if connection.server_info().get_auth_mechanism(&known).is_none() {
                return Err(SendError::Refused {
                    reason: format!("{self}: the server offers neither AUTH PLAIN nor AUTH LOGIN"),
                });
            }
            let credentials = Credentials::new(name.clone(), password.expose().to_owned());
            self.step(deadline, Step::LogIn, connection.auth(&known, &credentials)).await?;
        }
        Ok(connection)
    }

    async fn addresses(&self, deadline: Instant) -> Result<Vec<SocketAddr>, SendError> {
        let retry = |what: String| SendError::Retry { reason: format!("{self}: {what}"), after: None };
        let found = timeout_at(deadline, tokio::net::lookup_host((self.host.as_str(), self.port))).await;
        let found = found.map_err(|_| retry(format!("no address within {} s", self.timeout.as_secs())))?;
        let mut addresses: Vec<_> = found.map_err(|error| retry(error.to_string()))?.collect();
        if matches!(self.encryption, Encryption::Loopback) {
            addresses.retain(|address| address.ip().is_loopback());
        }
        if addresses.is_empty() { Err(retry("the name has no address".to_owned())) } else { Ok(addresses) }
    }

    async fn hand_over(
        &self,
        connection: &mut AsyncSmtpConnection,
        deadline: Instant,
        from: &Address,
        to: &[Address],
        mail: &[u8],
    ) -> Result<Handed, SendError> {
        self.step(deadline, Step::Sender, connection.command(Mail::new(Some(from.clone()), Vec::new()))).await?;
        let (mut took, mut refused, mut deferred) = (Vec::new(), Vec::new(), None);
        for one in to {
            let asked = self.ask(deadline, Step::Recipient, connection.command(Rcpt::new(one.clone(), Vec::new())));
            match asked.await {
                Ok(_) => took.push(one.clone()),
                Err((Some(_), SendError::Refused { reason })) => refused.push(format!("{one}: {reason}")),
                // Without an answer, and after 421, the connection is over.
                Err((Some(code), error)) if code.to_string() != "421" => deferred = Some(format!("{one}: {error}")),
                Err((_, error)) => return Err(error),
            }
        }
        if took.is_empty() {
            return Err(match deferred {
                Some(reason) => SendError::Retry { reason, after: None },
                None => SendError::Refused { reason: refused.join("; ") },
            });
        }
        self.step(deadline, Step::Message, connection.command(Data)).await?;
        let answer = self.step(deadline, Step::Message, connection.message(mail)).await?;
        let mut said = self.without_password(&words(&answer));
        if answer.code().severity != Severity::PositiveCompletion {
            return Err(SendError::Retry { reason: format!("{self}: DATA: {said}"), after: None });
        }
        if !refused.is_empty() {
            let refused = refused.join("; ");
            tracing::warn!("alerting.email.to: not for everyone: {refused}");
            said = format!("{said}; not for {refused}");
        }
        Ok(Handed { answer: said, took, deferred })
    }

    /// One question to the server, and what its answer means.
    async fn step<T>(
        &self,
        deadline: Instant,
        step: Step,
        work: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, SendError> {
        self.ask(deadline, step, work).await.map_err(|(_, error)| error)
    }

    /// The same with the server's code, where it gave one.
    async fn ask<T>(
        &self,
        deadline: Instant,
        step: Step,
        work: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, (Option<Code>, SendError)> {
        let doing = step.name();
        let Ok(done) = timeout_at(deadline, work).await else {
            let reason = format!("{self}: {doing}: not done within {} s", self.timeout.as_secs());
            return Err((None, SendError::Retry { reason, after: None }));
        };
        done.map_err(|error| {
            // Whatever a server says to a password may be the password.
            let what = match error.status() {
                Some(code) if step == Step::LogIn => format!("{code}: check username and password"),
                Some(code) => format!("{code} {}", error.source().map(ToString::to_string).unwrap_or_default()),
                None if step == Step::LogIn => "the connection broke".to_owned(),
                None => with_causes(&error),
            };
            let reason = self.without_password(&shown(&format!("{self}: {doing}: {what}"), 400));
            let means = match error.status() {
                Some(code) if code.severity == Severity::PermanentNegativeCompletion => step.refusal(reason),
                None if is_certificate(&error) => SendError::Refused { reason },
                _ => SendError::Retry { reason, after: None },
            };
            (error.status(), means)
        })
    }

    fn without_password(&self, text: &str) -> String {
        match &self.login {
            Some((_, password)) if !password.expose().is_empty() => text.replace(password.expose(), "***"),
            _ => text.to_owned(),
        }
    }
}

impl std::fmt::Display for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

impl Step {
    fn name(self) -> &'static str {
        match self {
            Self::Connect => "connecting",
            Self::Encrypt => "STARTTLS",
            Self::LogIn => "AUTH",
            Self::Sender => "MAIL FROM",
            Self::Recipient => "RCPT TO",
            Self::Message => "DATA",
        }
    }

    /// What a 5yz means: what concerns the mail itself is final, everything before it is a matter of the configuration.
    fn refusal(self, reason: String) -> SendError {
        if self == Self::Message { SendError::Permanent { reason } } else { SendError::Refused { reason } }
    }
}

/// `250 2.0.0 Ok: queued as 50ED1A3C2DE`.
fn words(response: &Response) -> String {
    let lines: Vec<&str> = response.message().collect();
    format!("{} {}", response.code(), lines.join(" "))
}

/// True when the server cannot show that it is who it should be: that does not pass by itself. TLS libraries give a broken
/// connection as an I/O error of its own kind, and everything that they do not like as `InvalidData` or an error of theirs.
fn is_certificate(error: &Error) -> bool {
    let mut cause = error.source();
    while let Some(one) = cause {
        if let Some(io) = one.downcast_ref::<io::Error>() {
            return io.kind() == io::ErrorKind::InvalidData;
        }
        cause = one.source();
    }
    false
}

#[cfg(any(feature = "tls-rustls", feature = "tls-native"))]
fn tls(wanted: &Wanted) -> Result<TlsParameters, String> {
    use lettre::transport::smtp::client::{Certificate, CertificateStore};

    let mut builder = TlsParameters::builder(wanted.host.clone());
    if let Some(path) = &wanted.ca_file {
        let expected = |what: &str| format!("alerting.email.ca_file: {path:?}: {what}");
        let pem = read_ca(path).map_err(|error| expected(&error.to_string()))?;
        builder = builder.certificate_store(CertificateStore::None);
        for certificate in pem.split_inclusive("-----END CERTIFICATE-----").filter(|text| text.contains("-----BEGIN")) {
            let certificate = Certificate::from_pem(certificate.trim().as_bytes());
            builder = builder.add_root_certificate(certificate.map_err(|_| expected("expected certificates as PEM"))?);
        }
        if !pem.contains("-----BEGIN CERTIFICATE-----") {
            return Err(expected("expected certificates as PEM"));
        }
    }
    #[cfg(feature = "tls-rustls")]
    let built = builder.build_rustls();
    #[cfg(not(feature = "tls-rustls"))]
    let built = builder.build_native();
    built.map_err(|error| format!("alerting.email.smtp_host: {:?}: {}", wanted.host, with_causes(&error)))
}

#[cfg(not(any(feature = "tls-rustls", feature = "tls-native")))]
fn tls(_: &Wanted) -> Result<TlsParameters, String> {
    Err("alerting.email.smtp_tls: needs a build with the feature tls-rustls or tls-native".to_owned())
}

#[cfg(any(feature = "tls-rustls", feature = "tls-native"))]
#[expect(clippy::disallowed_methods, reason = "a certificate of the agent's own, not a file of the watched machine")]
fn read_ca(path: &str) -> io::Result<String> {
    use std::io::Read as _;

    let mut text = String::new();
    std::fs::File::open(path)?.take(CA_BYTES_MAX).read_to_string(&mut text)?;
    Ok(text)
}
