//! The channels that speak HTTP, over TLS with an authority of the test's own and against far ends that fail: what is trusted,
//! what is shown, and that no token appears in an error or in a log of any level.

use std::path::PathBuf;

use sysops_agent::deliver::channel::Channel;
use sysops_agent::model::Notice;
use sysops_agent::spec::Value;
use sysops_tests::certificates::Authority;
use sysops_tests::channels::{CANARY, made, of, samples, send, text};
use sysops_tests::http_far_end::{Answer, FarEnd, Request};
use sysops_tests::log::Log;
use sysops_tests::require::require;

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
    let with_path = text(format!("{url}/{CANARY}?token={CANARY}"));
    let own = match name {
        "telegram" => {
            vec![("bot_token", text(format!("1:{CANARY}"))), ("api_url", text(url)), ("chat_id", text("1"))]
        }
        "webhook" => {
            let headers = [("Authorization".to_owned(), format!("Bearer {CANARY}"))].into();
            vec![("url", with_path), ("hmac_secret", text(CANARY)), ("headers", Value::TextMap(headers))]
        }
        _ => vec![("webhook_url", with_path)],
    };
    let ca = ca.map(|path| ("ca_file", text(path)));
    made(name, own.into_iter().chain(ca).chain([("timeout_secs", Value::Int(1))]))
}

fn missing() -> Option<String> {
    (!cfg!(feature = "default")).then(|| "needs the agent with the feature tls-rustls".to_owned())
}

fn notice() -> Notice {
    let [(_, oom), _] = samples();
    Notice::of(oom)
}

/// What each of the four takes for success.
fn thanks(_: &Request) -> Answer {
    Answer::Status("200 OK", String::new(), b"ok".to_vec())
}

#[tokio::test]
async fn no_token_is_in_any_error_or_log_whatever_fails() {
    if !require(missing()) {
        return;
    }
    let log = Log::catch();
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
    if !require(missing()) {
        return;
    }
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
    if !require(missing()) {
        return;
    }
    let folder = folder("client");
    let authority = Authority::new();
    let ca = written(&folder, "ca.pem", &authority.pem());
    let (certificate, key) = (folder.join("agent.pem"), folder.join("agent.key"));
    authority.client(&certificate, &key);
    let (certificate, key) = (certificate.display().to_string(), key.display().to_string());
    let far_end = FarEnd::over_tls(authority.server("127.0.0.1", true), thanks).await;
    let webhook = |more: &[(&'static str, &str)]| {
        let more = more.iter().map(|(key, value)| (*key, text(*value)));
        of("webhook", more.chain([("url", text(&far_end.url)), ("timeout_secs", Value::Int(5))]))
    };
    let with = webhook(&[("ca_file", &ca), ("cert_file", &certificate), ("key_file", &key)]);
    send(&mut *with.expect("the files are right"), &notice()).await.expect("its certificate is taken");
    let without = webhook(&[("ca_file", &ca)]);
    send(&mut *without.expect("the file is right"), &notice()).await.expect_err("it has none to show");
    assert_eq!(far_end.seen().len(), 1);
    let cases: [(&[(&'static str, &str)], &str); 4] = [
        (&[("cert_file", &certificate)], "cert_file: needs key_file"),
        (&[("key_file", &key)], "key_file: needs cert_file"),
        (&[("cert_file", &ca), ("key_file", &certificate)], "key_file: "),
        (&[("cert_file", &key), ("key_file", &key)], "cert_file: "),
    ];
    for (files, words) in cases {
        let error = webhook(files).err().unwrap_or_default();
        assert!(error.starts_with(&format!("alerting.webhook.{words}")), "{error}");
    }
    std::fs::remove_dir_all(folder).expect("it is there");
}
