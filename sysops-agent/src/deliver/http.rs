//! Requests to a URL of the configuration: one deadline for everything, a bounded answer, no redirects, no proxies from
//! the environment. A URL may carry a token in any part, so no error and no log shows more of it than scheme, host and
//! port. What an answer means is left to the channel.

mod tls;

use std::fmt;
use std::time::{Duration, SystemTime};

use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt, Full};
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::{Method, Request, Response, StatusCode, Uri};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::{Client, ResponseFuture};
use hyper_util::rt::{TokioExecutor, TokioTimer};

use crate::model::with_causes;
use crate::spec::Secret;

/// What is read of an answer's body; the rest is dropped with the connection.
pub const BODY_BYTES_MAX: usize = 64 << 10;

/// How the agent names itself.
pub const USER_AGENT: &str = concat!("sysops-agent/", env!("CARGO_PKG_VERSION"));

/// Alerts are rare: a connection that stays open serves the next of a burst, not the next of the day.
const IDLE: Duration = Duration::from_secs(10);

/// A URL, and the client for it.
pub struct Endpoint {
    url: Uri,
    client: AnyClient,
}

enum AnyClient {
    Plain(Client<HttpConnector, Full<Bytes>>),
    #[cfg(any(feature = "tls-rustls", feature = "tls-native"))]
    Tls(Client<tls::Connector, Full<Bytes>>),
}

/// What came back.
pub struct Answer {
    /// The status.
    pub status: StatusCode,
    /// The far end's own word on when to come again.
    pub retry_after: Option<Duration>,
    /// All headers.
    pub headers: HeaderMap,
    /// The body's first [`BODY_BYTES_MAX`] bytes.
    pub body: Bytes,
}

/// Files of a user's own for TLS, each in PEM.
#[derive(Clone, Debug, Default)]
pub struct TlsFiles {
    /// Certificate authorities to trust instead of the machine's.
    pub ca: Option<String>,
    /// The certificate, with what leads to its authority, that the agent shows.
    pub certificate: Option<String>,
    /// Its private key.
    pub key: Option<String>,
}

/// Why nothing, or no whole answer, came back. It shows no more of the URL than scheme, host and port.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// The deadline passed.
    #[error("{endpoint}: no answer within {} s", .after.as_secs())]
    Timeout {
        /// Scheme, host and port.
        endpoint: String,
        /// The deadline.
        after: Duration,
    },
    /// The connection could not be made, or broke.
    #[error("{endpoint}: {reason}")]
    Failed {
        /// Scheme, host and port.
        endpoint: String,
        /// What happened.
        reason: String,
    },
}

impl Endpoint {
    /// Checks the URL and makes the client. Nothing is connected yet.
    ///
    /// # Errors
    /// With what is wrong with the URL, or why this build or machine cannot do TLS; the URL itself is not shown.
    pub fn new(url: &Secret) -> Result<Self, String> {
        let expected = "expected http://host/path or https://host/path";
        let url: Uri = url.expose().parse().map_err(|error| format!("{expected}: {error}"))?;
        let Some(authority) = url.authority().filter(|authority| !authority.host().is_empty()) else {
            return Err(format!("{expected}: there is no host"));
        };
        if authority.as_str().contains('@') {
            return Err("a user name or password in the URL is not sent; put it into a header".to_owned());
        }
        let client = match url.scheme_str() {
            Some("http") => AnyClient::Plain(builder().build_http()),
            #[cfg(any(feature = "tls-rustls", feature = "tls-native"))]
            Some("https") => AnyClient::Tls(builder().build(tls::connector()?)),
            #[cfg(not(any(feature = "tls-rustls", feature = "tls-native")))]
            Some("https") => return Err(tls::MISSING.to_owned()),
            _ => return Err(expected.to_owned()),
        };
        Ok(Self { url, client })
    }

    /// The same with files of the user's own.
    ///
    /// # Errors
    /// With the key at fault (`ca_file`, `cert_file`, `key_file`) and what is wrong.
    pub fn with_tls(self, files: &TlsFiles) -> Result<Self, String> {
        let Some(key) = files.first_key() else { return Ok(self) };
        if self.url.scheme_str() != Some("https") {
            return Err(format!("{key}: is for https://, and the URL is none"));
        }
        #[cfg(feature = "tls-rustls")]
        {
            Ok(Self { client: AnyClient::Tls(builder().build(tls::connector_with(files)?)), ..self })
        }
        #[cfg(not(feature = "tls-rustls"))]
        {
            Err(format!("{key}: needs a build with the feature tls-rustls"))
        }
    }

    /// Posts a JSON document and reads the answer.
    ///
    /// # Errors
    /// When no whole answer came within `deadline`.
    pub async fn post_json(
        &self,
        body: &serde_json::Value,
        deadline: Duration,
        wall: SystemTime,
    ) -> Result<Answer, HttpError> {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(header::USER_AGENT, HeaderValue::from_static(USER_AGENT));
        self.send(Method::POST, headers, Bytes::from(body.to_string()), deadline, wall).await
    }

    /// Sends one request and reads the answer. `wall` is a wall time of late, for an answer that names a date.
    ///
    /// # Errors
    /// When no whole answer came within `deadline`.
    pub async fn send(
        &self,
        method: Method,
        headers: HeaderMap,
        body: Bytes,
        deadline: Duration,
        wall: SystemTime,
    ) -> Result<Answer, HttpError> {
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = method;
        *request.uri_mut() = self.url.clone();
        *request.headers_mut() = headers;
        let exchange = async {
            let response = self.client.request(request).await.map_err(|error| self.failed(&error))?;
            let (status, headers) = (response.status(), response.headers().clone());
            let body = self.body(response).await?;
            Ok(Answer { status, retry_after: retry_after(&headers, wall), headers, body })
        };
        match tokio::time::timeout(deadline, exchange).await {
            Ok(answer) => answer,
            Err(_) => Err(HttpError::Timeout { endpoint: self.to_string(), after: deadline }),
        }
    }

    async fn body(&self, response: Response<hyper::body::Incoming>) -> Result<Bytes, HttpError> {
        let mut incoming = response.into_body();
        let mut body = BytesMut::new();
        while let Some(frame) = incoming.frame().await {
            let frame = frame.map_err(|error| self.failed(&error))?;
            let Ok(data) = frame.into_data() else { continue };
            let room = BODY_BYTES_MAX - body.len();
            body.extend_from_slice(&data[..data.len().min(room)]);
            if data.len() >= room {
                break;
            }
        }
        Ok(body.freeze())
    }

    /// An error and its causes in one line. hyper and the TLS libraries name hosts at most, never paths or headers.
    fn failed(&self, error: &dyn std::error::Error) -> HttpError {
        HttpError::Failed { endpoint: self.to_string(), reason: with_causes(error) }
    }
}

impl fmt::Debug for Answer {
    /// The status alone: a server may quote a URL or a header back.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Answer").field("status", &self.status).finish_non_exhaustive()
    }
}

impl Answer {
    /// The body as JSON; null when it is none, or longer than what was read.
    #[must_use]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or(serde_json::Value::Null)
    }
}

impl TlsFiles {
    fn first_key(&self) -> Option<&'static str> {
        let named = [(&self.ca, "ca_file"), (&self.certificate, "cert_file"), (&self.key, "key_file")];
        named.into_iter().find_map(|(file, key)| file.as_ref().map(|_| key))
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.url.scheme_str().unwrap_or(""), self.url.host().unwrap_or(""))?;
        self.url.port_u16().map_or(Ok(()), |port| write!(f, ":{port}"))
    }
}

impl AnyClient {
    fn request(&self, request: Request<Full<Bytes>>) -> ResponseFuture {
        match self {
            Self::Plain(client) => client.request(request),
            #[cfg(any(feature = "tls-rustls", feature = "tls-native"))]
            Self::Tls(client) => client.request(request),
        }
    }
}

fn builder() -> hyper_util::client::legacy::Builder {
    let mut builder = Client::builder(TokioExecutor::new());
    builder.pool_idle_timeout(IDLE).pool_max_idle_per_host(1).pool_timer(TokioTimer::new());
    builder
}

/// `Retry-After` in seconds, or as a date: that date against the answer's own `Date`, so that a wrong clock on either
/// side does no harm, else against `wall`.
fn retry_after(headers: &HeaderMap, wall: SystemTime) -> Option<Duration> {
    let text = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(secs) = text.parse() {
        return Some(Duration::from_secs(secs));
    }
    let then = date(text)?;
    let now = headers.get(header::DATE).map(HeaderValue::to_str).and_then(|text| date(text.ok()?)).unwrap_or(wall);
    Some(then.duration_since(now).unwrap_or(Duration::ZERO))
}

/// `Sun, 22 Feb 2026 16:30:00 GMT`.
fn date(text: &str) -> Option<SystemTime> {
    jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(text).ok().map(SystemTime::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(header::HeaderName, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.clone(), HeaderValue::from_static(value))).collect()
    }

    fn refused(url: &str) -> String {
        Endpoint::new(&Secret::new(url.to_owned())).err().unwrap_or_default()
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let wall = SystemTime::UNIX_EPOCH + Duration::from_secs(1_771_777_800);
        let after = |pairs: &[_]| retry_after(&headers(pairs), wall);
        assert_eq!(after(&[]), None);
        assert_eq!(after(&[(header::RETRY_AFTER, "7")]), Some(Duration::from_secs(7)));
        assert_eq!(after(&[(header::RETRY_AFTER, "-7")]), None);
        assert_eq!(after(&[(header::RETRY_AFTER, "soon")]), None);
        assert_eq!(after(&[(header::RETRY_AFTER, "99999999999999999999999")]), None);
        let date = (header::RETRY_AFTER, "Sun, 22 Feb 2026 16:30:09 GMT");
        assert_eq!(after(std::slice::from_ref(&date)), Some(Duration::from_secs(9)));
        let server = (header::DATE, "Sun, 22 Feb 2026 16:29:09 GMT");
        assert_eq!(after(&[date.clone(), server]), Some(Duration::from_secs(60)));
        let late = (header::DATE, "Sun, 22 Feb 2026 17:29:09 GMT");
        assert_eq!(after(&[date, late]), Some(Duration::ZERO));
    }

    #[test]
    fn a_url_that_cannot_work_is_refused_and_not_shown() {
        for url in
            ["", "hunter2", "/hunter2", "ftp://h/hunter2", "http:///hunter2", "http://hun ter2/", "http://u:hunter2@h/"]
        {
            let error = refused(url);
            assert!(!error.is_empty(), "{url} was taken");
            assert!(!error.contains("hunter2"), "{error}");
        }
        assert_eq!(refused("http://127.0.0.1:9/hunter2?token=hunter2"), "");
    }

    #[test]
    fn only_scheme_host_and_port_are_shown() {
        let endpoint = Endpoint::new(&Secret::new("http://h.example:8080/hunter2?x=hunter2".to_owned()));
        assert_eq!(endpoint.map_err(|_| "refused").expect("it is a URL").to_string(), "http://h.example:8080");
    }

    #[cfg(not(any(feature = "tls-rustls", feature = "tls-native")))]
    #[test]
    fn without_tls_the_error_names_the_features() {
        assert!(refused("https://h/").contains("tls-rustls"));
    }

    #[cfg(any(feature = "tls-rustls", feature = "tls-native"))]
    #[tokio::test]
    async fn a_far_end_that_speaks_no_tls_is_an_error_without_the_path() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let port = listener.local_addr().expect("it is bound").port();
        let server = tokio::spawn(async move {
            let (mut socket, _) = listener.accept().await.expect("the client comes");
            tokio::io::AsyncWriteExt::write_all(&mut socket, b"HTTP/1.1 400 Bad Request\r\n\r\n").await
        });
        let url = Secret::new(format!("https://127.0.0.1:{port}/hunter2"));
        let endpoint = Endpoint::new(&url).unwrap_or_else(|error| panic!("{error}"));
        let sent = endpoint
            .send(Method::POST, HeaderMap::new(), Bytes::new(), Duration::from_secs(5), SystemTime::UNIX_EPOCH)
            .await;
        let error = sent.expect_err("no TLS there").to_string();
        assert!(error.starts_with(&format!("https://127.0.0.1:{port}: ")) && !error.contains("hunter2"), "{error}");
        let _ = server.await;
    }
}
