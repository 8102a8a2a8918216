//! The channels that speak HTTP, over TLS with an authority of the test's own and against far ends that fail: what is trusted,
//! what is shown, and that no token appears in an error or in a log of any level.

use std::io::Write;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use sysops_agent::deliver::channel::Channel;
use sysops_agent::model::Notice;
use sysops_agent::spec::Value;
use sysops_tests::certificates::Authority;
use sysops_tests::channels::{CANARY, build, made, samples, send, text};
use sysops_tests::http_far_end::{Answer, FarEnd, Request};
use sysops_tests::values::values;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::util::SubscriberInitExt as _;

const CHANNELS: [&str; 4] = ["discord", "slack", "telegram", "webhook"];

fn folder(name: &str) -> PathBuf {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder of the test's own");
    folder
}

fn written(folder: &std::path::Path, name: &str, contents: &str) -> String {
    let path = folder.join(name);
    std::fs::write(&path, contents).expect("the file can be written");
    path.display().to_string()
}

/// The channel `name` at `url`, with the canary wherever a secret can stand.
fn at(name: &str, url: &str, ca: Option<&str>) -> Box<dyn Channel> {
    let ca = ca.map(|path| text(path));
    let path = format!("{url}/{CANARY}?token={CANARY}");
    let (switch, timeout, set) = match name {
        "discord" => {
            ("alerting.discord.enabled", "alerting.discord.timeout_secs", ("alerting.discord.webhook_url", text(path)))
        }
        "slack" => {
            ("alerting.slack.enabled", "alerting.slack.timeout_secs", ("alerting.slack.webhook_url", text(path)))
        }
        "telegram" => (
            "alerting.telegram.enabled",
            "alerting.telegram.timeout_secs",
            ("alerting.telegram.bot_token", text(format!("1:{CANARY}"))),
        ),
        _ => ("alerting.webhook.enabled", "alerting.webhook.timeout_secs", ("alerting.webhook.url", text(path))),
    };
    let mut all = values([(switch, Value::Bool(true)), (timeout, Value::Int(1)), set]);
    let entry = sysops_agent::deliver::channel::ALL.iter().find(|entry| entry.name == name).expect("it is in the list");
    let mut put = |key: &str, value: Value| {
        let spec = entry.keys.iter().find(|spec| spec.path == format!("alerting.{name}.{key}")).expect("a key");
        all.set(spec, value);
    };
    if let Some(ca) = ca {
        put("ca_file", ca);
    }
    if name == "telegram" {
        put("api_url", text(url));
        put("chat_id", text("1"));
    }
    if name == "webhook" {
        put("hmac_secret", text(CANARY));
        put("headers", Value::TextMap([("Authorization".to_owned(), format!("Bearer {CANARY}"))].into()));
    }
    build(name, &all).expect("the values are right")
}

fn notice() -> Notice {
    let [(_, oom), _] = samples();
    Notice::of(oom)
}

/// What each of the four takes for success.
fn thanks(_: &Request) -> Answer {
    Answer::Status("200 OK", String::new(), b"ok".to_vec())
}

/// Everything that is logged on this thread.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("no holder panics").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Log {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().expect("no holder panics")).into_owned()
    }
}

#[tokio::test]
async fn no_token_is_in_any_error_or_log_whatever_fails() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt().with_max_level(LevelFilter::TRACE).with_ansi(false);
    let _guard = subscriber.with_writer(move || writer.clone()).finish().set_default();
    let folder = folder("canary");
    let (ours, other) = (Authority::new(), Authority::new());
    let ca = written(&folder, "ca.pem", &ours.pem());
    let echo = |request: &Request| {
        let echoed = format!("location: /{CANARY}\r\nx-echo: {}\r\n", request.head.lines().next().unwrap_or_default());
        let status = [
            "400 Bad Request",
            "401 Unauthorized",
            "404 Not Found",
            "429 Too Many Requests",
            "500 Internal Server Error",
            "302 Found",
        ];
        let at = request.body.len() % status.len();
        Answer::Status(
            status[at],
            echoed,
            format!("{}\n{}", request.head, String::from_utf8_lossy(&request.body)).into_bytes(),
        )
    };
    for name in CHANNELS {
        let closed = FarEnd::start([]).await.url.replace("127.0.0.1", "127.0.0.2");
        let cases = [
            ("nobody listens", closed, None),
            ("it hangs", FarEnd::answering(|_| Answer::Hang).await.url, None),
            ("it closes", FarEnd::answering(|_| Answer::Close).await.url, None),
            ("it quotes", FarEnd::answering(echo).await.url, None),
            (
                "another's name",
                FarEnd::over_tls(ours.server("other.example", false), thanks).await.url,
                Some(ca.as_str()),
            ),
            (
                "another authority",
                FarEnd::over_tls(other.server("127.0.0.1", false), thanks).await.url,
                Some(ca.as_str()),
            ),
            ("no TLS there", FarEnd::answering(thanks).await.url.replace("http://", "https://"), Some(ca.as_str())),
        ];
        for (what, url, ca) in cases {
            let error = send(&mut *at(name, &url, ca), &notice()).await.err();
            assert!(error.is_some(), "{name}: {what}");
        }
    }
    let log = log.text();
    assert!(
        log.contains("TRACE") && !log.contains(CANARY),
        "{}",
        log.lines().find(|line| line.contains(CANARY)).unwrap_or("no TRACE")
    );
    std::fs::remove_dir_all(folder).expect("it is there");
}

#[tokio::test]
async fn an_authority_of_ones_own_is_trusted_and_no_other() {
    let folder = folder("authority");
    let authority = Authority::new();
    let ca = written(&folder, "ca.pem", &authority.pem());
    for name in ["slack", "webhook"] {
        let far_end = FarEnd::over_tls(authority.server("127.0.0.1", false), thanks).await;
        send(&mut *at(name, &far_end.url, Some(&ca)), &notice()).await.expect("it is trusted");
        assert_eq!(far_end.seen().len(), 1, "{name}");
        // The machine does not know this authority.
        let error = send(&mut *at(name, &far_end.url, None), &notice()).await.expect_err("it is not trusted");
        assert!(error.to_string().contains("UnknownIssuer"), "{name}: {error}");
        let wrong = FarEnd::over_tls(authority.server("other.example", false), thanks).await;
        let error = send(&mut *at(name, &wrong.url, Some(&ca)), &notice()).await.expect_err("it is another's name");
        assert!(error.to_string().contains("not valid for name"), "{name}: {error}");
    }
    std::fs::remove_dir_all(folder).expect("it is there");
}

#[tokio::test]
async fn a_client_certificate_is_shown_to_who_asks_for_it() {
    let folder = folder("client");
    let authority = Authority::new();
    let ca = written(&folder, "ca.pem", &authority.pem());
    let (certificate, key) = (folder.join("agent.pem"), folder.join("agent.key"));
    authority.client(&certificate, &key);
    let (certificate, key) = (certificate.display().to_string(), key.display().to_string());
    let far_end = FarEnd::over_tls(authority.server("127.0.0.1", true), thanks).await;
    let enabled = || ("alerting.webhook.enabled", Value::Bool(true));
    let (url, ca_file) = (text(&far_end.url), text(&ca));
    let with = [
        enabled(),
        ("alerting.webhook.url", url.clone()),
        ("alerting.webhook.ca_file", ca_file.clone()),
        ("alerting.webhook.cert_file", text(&certificate)),
        ("alerting.webhook.key_file", text(&key)),
    ];
    send(&mut *made("webhook", with), &notice()).await.expect("its certificate is taken");
    let without = [enabled(), ("alerting.webhook.url", url.clone()), ("alerting.webhook.ca_file", ca_file)];
    send(&mut *made("webhook", without), &notice()).await.expect_err("it has none to show");
    assert_eq!(far_end.seen().len(), 1);
    for (cert, key, words) in [
        (Some(&certificate), None, "alerting.webhook.cert_file: needs key_file"),
        (None, Some(&key), "alerting.webhook.key_file: needs cert_file"),
        (Some(&ca), Some(&certificate), "alerting.webhook.key_file: "),
        (Some(&key), Some(&key), "alerting.webhook.cert_file: "),
    ] {
        let mut all = values([enabled(), ("alerting.webhook.url", url.clone())]);
        let keys = sysops_agent::deliver::channel::webhook::ENTRY.keys;
        for (name, file) in [("alerting.webhook.cert_file", cert), ("alerting.webhook.key_file", key)] {
            let spec = keys.iter().find(|spec| spec.path == name).expect("a key");
            file.into_iter().for_each(|file| all.set(spec, text(file)));
        }
        let error = build("webhook", &all).err().unwrap_or_default();
        assert!(error.starts_with(words), "{error}");
    }
    std::fs::remove_dir_all(folder).expect("it is there");
}
