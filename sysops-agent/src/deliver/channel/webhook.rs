//! Alerts as JSON to a URL of the user's. docs/schemas/webhook.schema.json describes the body.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use hyper::Method;
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};

use crate::deliver::http::Endpoint;
use crate::model::{Notice, Severity};
use crate::spec::{Key, Secret, Values};

use super::{Channel, Entry, SendError, Sending, verdict};

/// The channel as the list knows it.
pub static ENTRY: Entry = Entry {
    name: "webhook",
    keys: &[
        ENABLED.spec(),
        URL.spec(),
        METHOD.spec(),
        HEADERS.spec(),
        TIMEOUT.spec(),
        RETRIES.spec(),
        MIN_SEVERITY.spec(),
    ],
    min_severity: &MIN_SEVERITY,
    grouped: false,
    durable: true,
    build,
};

static ENABLED: Key<bool> = Key::switch("alerting.webhook.enabled", false, "Alerts as JSON to a URL.");
static URL: Key<Option<Secret>> = Key::secret("alerting.webhook.url", "Where alerts are sent: http:// or https://.");
static METHOD: Key<String> = Key::choice("alerting.webhook.method", &["POST", "PUT"], "POST", "The method.");
static HEADERS: Key<BTreeMap<String, Secret>> =
    Key::secret_map("alerting.webhook.headers", "Headers that every request carries, for example Authorization.");
static TIMEOUT: Key<Duration> =
    Key::secs("alerting.webhook.timeout_secs", 10, 1, 300, "How long one request may take, answer included.");
static RETRIES: Key<i64> = Key::int(
    "alerting.webhook.retry_count",
    3,
    0,
    20,
    "How many more times an alert is sent after a network error, a timeout, 408, 425, 429 or 5xx.",
);
static MIN_SEVERITY: Key<String> = Key::choice(
    "alerting.webhook.min_severity",
    Severity::NAMES,
    "info",
    "The least severity that is sent to the webhook.",
);

/// Headers that belong to the connection: set by hand, they would break the request.
const RESERVED: [HeaderName; 5] =
    [header::CONTENT_LENGTH, header::TRANSFER_ENCODING, header::CONNECTION, header::HOST, header::UPGRADE];

struct Webhook {
    endpoint: Endpoint,
    method: Method,
    headers: HeaderMap,
    timeout: Duration,
    retries: u32,
}

fn build(values: &Values) -> Result<Option<Box<dyn Channel>>, String> {
    if !values.get(&ENABLED) {
        return Ok(None);
    }
    let url = values.get(&URL).ok_or("alerting.webhook.url: missing, and alerting.webhook.enabled needs it")?;
    let endpoint = Endpoint::new(&url).map_err(|error| format!("alerting.webhook.url: {error}"))?;
    Ok(Some(Box::new(Webhook {
        endpoint,
        method: if values.get(&METHOD) == "PUT" { Method::PUT } else { Method::POST },
        headers: headers(&values.get(&HEADERS))?,
        timeout: values.get(&TIMEOUT),
        retries: u32::try_from(values.get(&RETRIES)).unwrap_or(0),
    })))
}

/// What every request carries; the user's headers win over ours.
fn headers(given: &BTreeMap<String, Secret>) -> Result<HeaderMap, String> {
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    let agent = concat!("sysops-agent/", env!("CARGO_PKG_VERSION"));
    headers.insert(header::USER_AGENT, HeaderValue::from_static(agent));
    for (name, value) in given {
        let key =
            HeaderName::try_from(name).map_err(|_| format!("alerting.webhook.headers: {name:?}: no header name"))?;
        if RESERVED.contains(&key) {
            return Err(format!("alerting.webhook.headers: {key}: is set by the agent itself"));
        }
        let value = HeaderValue::try_from(value.expose());
        let mut value =
            value.map_err(|_| format!("alerting.webhook.headers: {key}: a control character in the value"))?;
        value.set_sensitive(true);
        headers.insert(key, value);
    }
    Ok(headers)
}

impl Channel for Webhook {
    fn send<'a>(&'a mut self, notice: &'a Notice) -> Sending<'a> {
        Box::pin(async move {
            let alert = notice.head();
            let body = serde_json::to_vec(alert)
                .map_err(|error| SendError::Permanent { reason: format!("the alert as JSON: {error}") })?;
            let mut headers = self.headers.clone();
            headers.insert(HeaderName::from_static("idempotency-key"), idempotency_key(&alert.id)?);
            let sent =
                self.endpoint.send(self.method.clone(), headers, Bytes::from(body), self.timeout, alert.timestamp);
            verdict(sent.await)
        })
    }

    fn retries(&self) -> u32 {
        self.retries
    }
}

/// The same for every try of one alert's change, and for no other.
fn idempotency_key(id: &str) -> Result<HeaderValue, SendError> {
    HeaderValue::try_from(id)
        .map_err(|_| SendError::Permanent { reason: "the alert's id is no header value".to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::Value;

    fn refused(url: Option<&str>, headers: &[(&str, &str)]) -> String {
        let mut values = Values::default();
        values.set(ENABLED.spec(), Value::Bool(true));
        if let Some(url) = url {
            values.set(URL.spec(), Value::Text(url.to_owned()));
        }
        let headers = headers.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect();
        values.set(HEADERS.spec(), Value::TextMap(headers));
        build(&values).err().unwrap_or_default()
    }

    #[test]
    fn what_cannot_work_is_refused_with_its_key_and_without_its_secret() {
        assert_eq!(refused(None, &[]), "alerting.webhook.url: missing, and alerting.webhook.enabled needs it");
        assert!(refused(Some("hunter2"), &[]).starts_with("alerting.webhook.url: expected http://"));
        let url = Some("http://h/");
        assert_eq!(refused(url, &[("X Y", "hunter2")]), "alerting.webhook.headers: \"X Y\": no header name");
        assert_eq!(
            refused(url, &[("X-Token", "hunter2\r\nX-Evil: 1")]),
            "alerting.webhook.headers: x-token: a control character in the value"
        );
        assert_eq!(
            refused(url, &[("Content-Length", "0")]),
            "alerting.webhook.headers: content-length: is set by the agent itself"
        );
        assert_eq!(refused(url, &[("Authorization", "Bearer hunter2")]), "");
    }

    #[test]
    fn it_is_off_by_default() {
        assert!(build(&Values::default()).is_ok_and(|channel| channel.is_none()));
    }
}
