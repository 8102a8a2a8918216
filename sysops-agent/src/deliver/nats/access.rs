//! Where the NATS server is and who the agent is there: addresses, credentials file, token, user and password.
//! No secret leaves this file in a message; connecting is left to `link`.

use std::fmt;
use std::os::unix::fs::MetadataExt as _;

use async_nats::{ConnectOptions, ServerAddr};

use super::{CREDENTIAL_FILE, PASSWORD, TOKEN, URL, URLS, USER};
use crate::spec::{Secret, Values};

/// Addresses without secrets, and who the agent is there.
#[derive(Debug, PartialEq)]
pub(in crate::deliver) struct Access {
    pub(in crate::deliver) servers: Vec<ServerAddr>,
    identity: Identity,
}

/// How the agent shows who it is.
#[derive(Debug, PartialEq)]
enum Identity {
    None,
    Credentials(Secret),
    Token(Secret),
    Password(String, Secret),
}

impl Access {
    /// From `[nats]`. Reads the credentials file.
    pub(in crate::deliver) fn from_values(values: &Values) -> Result<Self, String> {
        let mut urls = values.get(&URLS);
        let key = if urls.is_empty() { "nats.url" } else { "nats.urls" };
        if urls.is_empty() {
            urls.push(values.get(&URL));
        }
        let mut in_url = None;
        let mut servers = Vec::new();
        for url in &urls {
            let (plain, identity) = split_url(url);
            if let Some(identity) = identity {
                in_url = Some(identity);
            }
            // The parser's own message repeats the whole text, in which a secret may still be hidden.
            let server = plain.parse::<ServerAddr>().ok();
            let server = server.filter(|server| matches!(server.scheme(), "nats" | "tls") && !server.host().is_empty());
            servers.push(server.ok_or_else(|| {
                format!("{key}: expected nats://host:port or tls://host:port, found {:?}", redact(&plain))
            })?);
        }
        let identity = configured_identity(values)?.or(in_url).unwrap_or(Identity::None);
        Ok(Self { servers, identity })
    }

    /// Adds the identity to the options of a connection.
    pub(in crate::deliver) fn sign(&self, options: ConnectOptions) -> Result<ConnectOptions, String> {
        Ok(match &self.identity {
            Identity::None => options,
            Identity::Token(token) => options.token(token.expose().to_owned()),
            Identity::Password(user, password) => options.user_and_password(user.clone(), password.expose().to_owned()),
            // The parser's message may quote the file.
            Identity::Credentials(text) => options.credentials(text.expose()).map_err(|_| {
                "nats.credential_file: expected a user's JWT and NKey seed between their BEGIN and END lines, as `nsc \
                 generate creds` writes them"
                    .to_owned()
            })?,
        })
    }
}

impl fmt::Display for Access {
    /// The addresses, for messages.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, server) in self.servers.iter().enumerate() {
            let comma = if index == 0 { "" } else { ", " };
            write!(f, "{comma}{}:{}", server.host(), server.port())?;
        }
        Ok(())
    }
}

fn configured_identity(values: &Values) -> Result<Option<Identity>, String> {
    let file = values.get(&CREDENTIAL_FILE);
    let token = values.get(&TOKEN);
    let (user, password) = (values.get(&USER), values.get(&PASSWORD));
    let set = [("credential_file", file.is_some()), ("token", token.is_some()), ("user", user.is_some())];
    let set: Vec<&str> = set.iter().filter(|(_, set)| *set).map(|(name, _)| *name).collect();
    if set.len() > 1 {
        return Err(format!("[nats]: {} are set; the server takes one of them: remove the others", set.join(" and ")));
    }
    match (file, token, user, password) {
        (Some(path), ..) => read_credentials(&path).map(|text| Some(Identity::Credentials(text))),
        (None, Some(token), ..) => Ok(Some(Identity::Token(token))),
        (None, None, Some(user), Some(password)) => Ok(Some(Identity::Password(user, password))),
        (None, None, Some(_), None) => Err("nats.user is set without nats.password".to_owned()),
        (None, None, None, Some(_)) => Err("nats.password is set without nats.user".to_owned()),
        (None, None, None, None) => Ok(None),
    }
}

#[expect(clippy::disallowed_methods, reason = "a secret of the agent's own, not a file of the watched machine")]
fn read_credentials(path: &str) -> Result<Secret, String> {
    let text = std::fs::read_to_string(path).map_err(|error| {
        let user = rustix::process::geteuid().as_raw();
        format!(
            "nats.credential_file: cannot read {path:?} as user id {user}: {error}; put the file there, readable for that \
             user, or remove the key"
        )
    })?;
    if std::fs::metadata(path).is_ok_and(|file| file.mode() & 0o007 != 0) {
        tracing::warn!("nats.credential_file: {path:?} is open to every user of this host: `chmod o= {path}`");
    }
    Ok(Secret::new(text))
}

/// The address without what stands before the `@`, and that as an identity: `user:password` or a token.
fn split_url(url: &str) -> (String, Option<Identity>) {
    let (scheme, rest) = url.split_once("://").unwrap_or(("nats", url));
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    let Some((before, host)) = authority.rsplit_once('@') else { return (url.to_owned(), None) };
    let identity = match before.split_once(':') {
        Some((user, password)) => Identity::Password(percent_decode(user), Secret::new(percent_decode(password))),
        None => Identity::Token(Secret::new(percent_decode(before))),
    };
    (format!("{scheme}://{host}{path}"), Some(identity))
}

/// A text that is no address, without what may be a secret in it.
fn redact(text: &str) -> String {
    match text.rsplit_once('@') {
        Some((_, host)) => format!("***@{host}"),
        None => text.to_owned(),
    }
}

/// `%40` becomes `@`; a `%` without two hexadecimal digits stands for itself.
fn percent_decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let hex = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
        match (first, tail) {
            (b'%', [high, low, after @ ..]) if hex(*high).is_some() && hex(*low).is_some() => {
                bytes.extend(hex(*high).zip(hex(*low)).map(|(high, low)| high << 4 | low));
                rest = after;
            }
            _ => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::Value;

    fn with(pairs: &[(&'static crate::spec::KeySpec, &str)]) -> Result<Access, String> {
        let mut values = Values::default();
        for (key, text) in pairs {
            let value = if key.path == "nats.urls" {
                Value::TextList(text.split(' ').map(str::to_owned).collect())
            } else {
                Value::Text((*text).to_owned())
            };
            values.set(key, value);
        }
        Access::from_values(&values)
    }

    #[test]
    fn the_default_is_the_local_server_without_identity() {
        let access = with(&[]).expect("the default is right");
        assert_eq!(access.to_string(), "127.0.0.1:4222");
        assert!(matches!(access.identity, Identity::None));
    }

    #[test]
    fn secrets_in_an_address_are_taken_out_of_it() {
        let access = with(&[(URLS.spec(), "nats://ops:p%40ss@n1:4222 n2 tls://n3:5222")]).expect("three addresses");
        assert_eq!(access.to_string(), "n1:4222, n2:4222, n3:5222");
        let Identity::Password(user, password) = &access.identity else { panic!("{:?}", access.identity) };
        assert_eq!((user.as_str(), password.expose()), ("ops", "p@ss"));
        assert!(!format!("{access:?}").contains("p@ss") && !format!("{access:?}").contains("p%40ss"));

        let access = with(&[(URL.spec(), "nats://s3cr3t@n1:4222")]).expect("a token");
        assert!(matches!(&access.identity, Identity::Token(token) if token.expose() == "s3cr3t"));
    }

    #[test]
    fn wrong_addresses_are_shown_without_secrets() {
        for url in ["nats://ops:hunter2@n1:notaport", "ws://ops:hunter2@n1:80", "nats://a:hunter2@"] {
            let error = with(&[(URL.spec(), url)]).expect_err(url);
            assert!(error.starts_with("nats.url: expected nats://host:port"), "{error}");
            assert!(!error.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn contradictions_name_the_keys() {
        let error = with(&[(TOKEN.spec(), "t"), (USER.spec(), "u"), (PASSWORD.spec(), "p")]).expect_err("two");
        assert_eq!(error, "[nats]: token and user are set; the server takes one of them: remove the others");
        assert_eq!(with(&[(USER.spec(), "u")]).expect_err("half"), "nats.user is set without nats.password");
        assert_eq!(with(&[(PASSWORD.spec(), "u")]).expect_err("half"), "nats.password is set without nats.user");
    }

    #[test]
    fn an_unreadable_credentials_file_is_named() {
        let error = with(&[(CREDENTIAL_FILE.spec(), "/nonexistent/nats.creds")]).expect_err("not there");
        let user = rustix::process::geteuid().as_raw();
        assert!(
            error.starts_with(&format!(
                "nats.credential_file: cannot read \"/nonexistent/nats.creds\" as user id {user}: No such file"
            )),
            "{error}"
        );
    }

    #[test]
    fn a_credentials_file_of_another_kind_is_not_quoted() {
        let access = Access { servers: Vec::new(), identity: Identity::Credentials(Secret::new("hunter2".into())) };
        let error = access.sign(ConnectOptions::new()).expect_err("no credentials");
        assert!(error.starts_with("nats.credential_file: expected") && !error.contains("hunter2"), "{error}");
    }
}
