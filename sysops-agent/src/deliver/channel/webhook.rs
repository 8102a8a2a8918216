//! Alerts to a URL of the user's: as JSON, as Alertmanager sends them, or as a template of the user's own has them. What goes out
//! can be signed. docs/schemas/webhook.schema.json describes the JSON.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use hyper::Method;
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};

use crate::deliver::http::{Endpoint, TlsFiles, USER_AGENT};
use crate::deliver::own_text::OwnText;
use crate::model::{Notice, Severity};
use crate::spec::{Key, Secret, Values};
use crate::template;

use super::{Channel, Entry, SendError, Sending, ca_file, needed, timeout, verdict};

mod payload;
mod signature;

use payload::Payload;
use signature::Signer;

/// The channel as the list knows it.
pub static ENTRY: Entry = Entry {
    name: "webhook",
    keys: &[
        ENABLED.spec(),
        URL.spec(),
        METHOD.spec(),
        HEADERS.spec(),
        PAYLOAD.spec(),
        TEMPLATE.spec(),
        HMAC_SECRET.spec(),
        CA_FILE.spec(),
        CERT_FILE.spec(),
        KEY_FILE.spec(),
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
static PAYLOAD: Key<String> = Key::choice(
    "alerting.webhook.payload",
    Payload::NAMES,
    "full",
    "The body: all that is known, only the eight keys of old (and status), or a document of Alertmanager's version 4.",
);
static TEMPLATE: Key<Option<String>> = Key::optional(
    "alerting.webhook.template",
    "The body instead of a payload, as a template (docs/ALERTING.md); JSON, unless headers have another Content-Type.",
);
static HMAC_SECRET: Key<Option<Secret>> = Key::secret(
    "alerting.webhook.hmac_secret",
    "Signs every request as Standard Webhooks has it: whsec_ and the key in base64, or any text as the key.",
);
static CA_FILE: Key<Option<String>> = ca_file("alerting.webhook.ca_file");
static CERT_FILE: Key<Option<String>> = Key::optional(
    "alerting.webhook.cert_file",
    "Certificate in PEM that the agent shows to the server (tls-rustls only).",
);
static KEY_FILE: Key<Option<String>> =
    Key::optional("alerting.webhook.key_file", "Private key in PEM of that certificate.");
static TIMEOUT: Key<Duration> = timeout("alerting.webhook.timeout_secs");
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

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
const JSON: HeaderValue = HeaderValue::from_static("application/json");

struct Webhook {
    endpoint: Endpoint,
    method: Method,
    headers: HeaderMap,
    payload: Payload,
    template: Option<OwnText>,
    signer: Option<Signer>,
    timeout: Duration,
    retries: u32,
}

fn build(values: &Values) -> Result<Option<Box<dyn Channel>>, String> {
    if !values.get(&ENABLED) {
        return Ok(None);
    }
    let url = needed(values, &URL)?;
    let endpoint = Endpoint::new(&url).map_err(|error| format!("alerting.webhook.url: {error}"))?;
    let files = TlsFiles { ca: values.get(&CA_FILE), certificate: values.get(&CERT_FILE), key: values.get(&KEY_FILE) };
    let headers = headers(&values.get(&HEADERS))?;
    let signer = values.get(&HMAC_SECRET).map(|secret| Signer::new(&secret)).transpose();
    Ok(Some(Box::new(Webhook {
        endpoint: endpoint.with_tls(&files).map_err(|error| format!("alerting.webhook.{error}"))?,
        method: if values.get(&METHOD) == "PUT" { Method::PUT } else { Method::POST },
        template: own_body(values.get(&TEMPLATE).as_deref(), is_json(&headers))?,
        headers,
        payload: Payload::named(&values.get(&PAYLOAD)),
        signer: signer.map_err(|error| format!("alerting.webhook.hmac_secret: {error}"))?,
        timeout: values.get(&TIMEOUT),
        retries: u32::try_from(values.get(&RETRIES)).unwrap_or(0),
    })))
}

/// What every request carries; the user's headers win over ours.
fn headers(given: &BTreeMap<String, Secret>) -> Result<HeaderMap, String> {
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_TYPE, JSON);
    headers.insert(header::USER_AGENT, HeaderValue::from_static(USER_AGENT));
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

fn is_json(headers: &HeaderMap) -> bool {
    headers.get(header::CONTENT_TYPE).is_some_and(|value| value.as_bytes().windows(4).any(|word| word == b"json"))
}

/// The user's template; one for JSON must give JSON, and values stand in it within quotes.
fn own_body(source: Option<&str>, is_json: bool) -> Result<Option<OwnText>, String> {
    let key = TEMPLATE.spec().path;
    if is_json {
        OwnText::checked(key, source, json_escaped, |body| json_checked(body).map(|_| ()))
    } else {
        OwnText::new(key, source, template::plain)
    }
}

fn json_checked(body: &str) -> Result<&str, String> {
    let checked = serde_json::from_str::<serde::de::IgnoredAny>(body);
    checked.map(|_| body).map_err(|error| format!("it gives no JSON: {error}"))
}

/// As text stands between the quotes of a JSON string.
fn json_escaped(text: &str) -> String {
    let quoted = serde_json::Value::from(text).to_string();
    quoted[1..quoted.len() - 1].to_owned()
}

impl Channel for Webhook {
    fn send<'a>(&'a mut self, notice: &'a Notice) -> Sending<'a> {
        Box::pin(async move {
            let alert = notice.head();
            let (headers, body) = self.request(notice)?;
            let sent =
                self.endpoint.send(self.method.clone(), headers, Bytes::from(body), self.timeout, alert.timestamp);
            verdict(&sent.await?)
        })
    }

    fn retries(&self) -> u32 {
        self.retries
    }
}

impl Webhook {
    fn request(&mut self, notice: &Notice) -> Result<(HeaderMap, Vec<u8>), SendError> {
        let alert = notice.head();
        let mut headers = self.headers.clone();
        let is_json = is_json(&headers);
        let hold = |body: String| if is_json { json_checked(&body).map(|_| ()).map(|()| body) } else { Ok(body) };
        let own = self.template.as_mut().and_then(|own| own.of(notice, hold)).map(String::into_bytes);
        let body = match own {
            Some(body) => body,
            None => {
                if self.template.is_some() {
                    headers.insert(header::CONTENT_TYPE, JSON);
                }
                self.payload.body(alert)
            }
        };
        // The same for every try of one alert's change, and for no other.
        headers.insert(IDEMPOTENCY_KEY, header_value(&alert.id)?);
        if let Some(signer) = &self.signer {
            for (name, value) in signer.headers(&alert.id, &body) {
                headers.insert(HeaderName::from_static(name), header_value(&value)?);
            }
        }
        Ok((headers, body))
    }
}

fn header_value(text: &str) -> Result<HeaderValue, SendError> {
    HeaderValue::try_from(text)
        .map_err(|_| SendError::Permanent { reason: "the alert's id is no header value".to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{KeySpec, Value};

    fn refused(set: &[(&'static KeySpec, Value)]) -> String {
        let mut values = Values::default();
        values.set(ENABLED.spec(), Value::Bool(true));
        for (key, value) in set {
            values.set(key, value.clone());
        }
        build(&values).err().unwrap_or_default()
    }

    fn with_header(name: &str, value: &str) -> String {
        let headers = Value::TextMap(BTreeMap::from([(name.to_owned(), value.to_owned())]));
        refused(&[(URL.spec(), Value::Text("http://h/".to_owned())), (HEADERS.spec(), headers)])
    }

    fn with(key: &'static KeySpec, value: &str) -> String {
        refused(&[(URL.spec(), Value::Text("http://h/".to_owned())), (key, Value::Text(value.to_owned()))])
    }

    #[test]
    fn what_cannot_work_is_refused_with_its_key_and_without_its_secret() {
        assert_eq!(refused(&[]), "alerting.webhook.url: missing, and alerting.webhook.enabled needs it");
        assert!(with(URL.spec(), "hunter2").starts_with("alerting.webhook.url: expected http://"));
        assert_eq!(with_header("X Y", "hunter2"), "alerting.webhook.headers: \"X Y\": no header name");
        assert_eq!(
            with_header("X-Token", "hunter2\r\nX-Evil: 1"),
            "alerting.webhook.headers: x-token: a control character in the value"
        );
        assert_eq!(
            with_header("Content-Length", "0"),
            "alerting.webhook.headers: content-length: is set by the agent itself"
        );
        assert_eq!(with_header("Authorization", "Bearer hunter2"), "");
        assert_eq!(
            with(HMAC_SECRET.spec(), "whsec_hunter2!"),
            "alerting.webhook.hmac_secret: expected base64 behind whsec_"
        );
        let error = with(CA_FILE.spec(), "/nowhere/ca.pem");
        assert!(error.starts_with("alerting.webhook.ca_file: "), "{error}");
    }

    #[test]
    fn a_template_for_json_must_give_json() {
        assert_eq!(with(TEMPLATE.spec(), r#"{"text": "{{ headline }}: {{ alert.message }}"}"#), "");
        let error = with(TEMPLATE.spec(), r#"{"text": {{ headline }} }"#);
        assert!(error.starts_with("alerting.webhook.template: it gives no JSON: "), "{error}");
        assert!(with(TEMPLATE.spec(), "{\n{{ nobody }}}").starts_with("alerting.webhook.template: line 2: "));
    }

    #[test]
    fn it_is_off_by_default() {
        assert!(build(&Values::default()).is_ok_and(|channel| channel.is_none()));
    }
}
