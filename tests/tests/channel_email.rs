//! Mail against a server that misbehaves: what is on the wire, what is tried again, what is given up, who gets what; and what
//! independent parsers read of every hostile text.

use std::time::Duration;

use sysops_agent::deliver::channel::{self, Channel, Receipt, SendError};
use sysops_agent::model::{Alert, Audience, Change, Context, Notice, Severity, Status, Usage};
use sysops_agent::spec::{Value, Values};
use sysops_tests::injection;
use sysops_tests::log::Log;
use sysops_tests::mail_reader::{self, Read};
use sysops_tests::smtp_far_end::{FarEnd, Fault, Stage};
use sysops_tests::values::values;

/// The password: it may stand on the wire, encoded, and nowhere else.
const CANARY: &str = "hunter2";

fn text(text: &str) -> Value {
    Value::Text(text.to_owned())
}

fn settings(port: u16) -> Values {
    values([
        ("alerting.email.enabled", Value::Bool(true)),
        ("alerting.email.smtp_host", text("127.0.0.1")),
        ("alerting.email.smtp_port", Value::Int(i64::from(port))),
        ("alerting.email.smtp_tls", Value::Bool(false)),
        ("alerting.email.username", text("alerts@mail.example")),
        ("alerting.email.password", text(CANARY)),
        ("alerting.email.from", text("SysOps Agent <alerts@mail.example>")),
        ("alerting.email.to", Value::TextList(vec!["a@example.com".to_owned(), "Ops <b@example.com>".to_owned()])),
    ])
}

fn build(values: &Values) -> Result<Option<Box<dyn Channel>>, String> {
    let entry = channel::ALL.iter().find(|entry| entry.name == "email").expect("it is in the list");
    (entry.build)(values)
}

fn mailer(port: u16) -> Box<dyn Channel> {
    build(&settings(port)).expect("the settings are right").expect("it is enabled")
}

async fn try_once(far_end: &FarEnd) -> Result<Receipt, SendError> {
    try_within(far_end, 60).await
}

async fn try_within(far_end: &FarEnd, secs: i64) -> Result<Receipt, SendError> {
    let mut values = settings(far_end.port);
    let entry = channel::ALL.iter().find(|entry| entry.name == "email").expect("it is in the list");
    let key = entry.keys.iter().find(|key| key.path == "alerting.email.timeout_secs").expect("it has one");
    values.set(key, Value::Int(secs));
    let sent = build(&values).expect("right").expect("enabled").send(&injection::notice("dd")).await;
    if let Err(error) = &sent {
        assert!(!format!("{error} {error:?}").contains(CANARY), "{error:?}");
    }
    sent
}

fn disk() -> Alert {
    let mut alert = injection::alert("dd");
    alert.metric = "disk_usage_percent".to_owned();
    alert.message = "/data is 97.2 % full: at this pace it is full in 40 min.".to_owned();
    (alert.value, alert.threshold, alert.rule) = (97.2, 90.0, "thresholds.disk_percent".to_owned());
    alert.starts_at = alert.timestamp - Duration::from_secs(720);
    alert.labels = [("device", "/dev/sdb1"), ("fstype", "ext4"), ("mountpoint", "/data")]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into();
    alert.context = Context {
        unit: "percent".to_owned(),
        course: vec![61.0, 62.0, 62.5, 66.0, 71.0, 78.0, 84.0, 90.5, 94.0, 97.2],
        course_secs: 3600,
        top: vec![
            Usage { pid: Some(4711), comm: "postgres".to_owned(), uses: "38.1 GiB written".to_owned() },
            Usage { pid: Some(812), comm: "rsync".to_owned(), uses: "2.4 GiB written".to_owned() },
        ],
        events: vec!["slow I/O on sdb: 1.2 s for a write of 512 KiB by postgres (pid 4711)".to_owned()],
        cause: Some("postgres writes 14 MiB/s to /data since 16:05.".to_owned()),
        runbook_url: Some("https://wiki.example.com/runbooks/disk-full".to_owned()),
        host: vec![("kernel".to_owned(), "6.1.0-28-amd64".to_owned()), ("uptime".to_owned(), "12 d".to_owned())],
    };
    alert
}

/// A notice that carries `text` in its context, too.
fn everywhere(text: &str) -> Notice {
    let context = Context {
        top: vec![Usage { pid: Some(1), comm: text.to_owned(), uses: text.to_owned() }],
        events: vec![text.to_owned()],
        cause: Some(text.to_owned()),
        host: vec![("name".to_owned(), text.to_owned())],
        ..Context::default()
    };
    Notice::of(Alert { context, ..injection::alert(text) })
}

async fn mailed(notices: &[Notice]) -> Vec<String> {
    let far_end = FarEnd::start([]).await;
    let mut mailer = mailer(far_end.port);
    for notice in notices {
        mailer.send(notice).await.expect("the server takes it");
    }
    far_end.mails().into_iter().map(|mail| mail.data).collect()
}

async fn read(notices: &[Notice]) -> Vec<Read> {
    mail_reader::read(&mailed(notices).await)
}

#[tokio::test]
async fn a_mail_says_what_is_to_be_known_as_text_and_as_html() {
    let sent = mailed(&[Notice::of(disk())]).await;
    insta::assert_snapshot!("mail.eml", sent[0].replace("\r\n", "\n"));
    let read = &mail_reader::read(&sent)[0];
    assert_eq!(read.shape()[1], serde_json::json!(["multipart/alternative", "text/plain", "text/html"]));
    assert_eq!(read.shape()[2], serde_json::json!([]), "a parser finds no defect");
    assert_eq!(
        read.header("subject"),
        Some("[SysOps] CRITICAL disk_usage_percent on web-1: /data is 97.2 % full: at this pace it is full in 40 min.")
    );
    assert_eq!(read.header("date"), Some("Sun, 22 Feb 2026 16:30:00 +0000"));
    assert_eq!(read.header("to"), Some("a@example.com, Ops <b@example.com>"));
    assert_eq!(read.header("auto-submitted"), Some("auto-generated"));
    assert_eq!((read.header("x-priority"), read.header("importance")), (Some("1"), Some("high")));
    for said in ["/dev/sdb1", "97.2 % (limit 90.0 %)", "▁▁▁▂▃▄▅▇▇█ (60 min)", "postgres (pid 4711) 38.1 GiB written"]
    {
        assert!(read.plain().contains(said) && read.text().contains(said), "{said}\n{}", read.plain());
    }
    assert!(read.html().contains("<a href=\"https://wiki.example.com/runbooks/disk-full\""), "{}", read.html());
    for elsewhere in ["<img", "<link", "<script", "url(", "src=", "@import"] {
        assert!(!read.html().contains(elsewhere), "{elsewhere}");
    }
}

#[tokio::test]
async fn the_changes_of_one_alert_are_one_thread() {
    let resolved = Alert {
        status: Status::Resolved,
        change: Change::Resolved,
        id: "1234-2".to_owned(),
        timestamp: disk().timestamp + Duration::from_secs(3600),
        ..disk()
    };
    let other = Alert { id: "77-1".to_owned(), fingerprint: 0x77, severity: Severity::Warn, ..disk() };
    let mails = read(&[Notice::of(disk()), Notice::of(resolved), Notice::of(other)]).await;
    let [first, second, other] = &mails[..] else { panic!("{} mails", mails.len()) };
    assert_eq!(first.header("message-id"), Some("<1234-1@web-1>"));
    assert_eq!(second.header("message-id"), Some("<1234-2@web-1>"));
    for name in ["references", "in-reply-to"] {
        assert_eq!(first.header(name), Some("<0000000000001234@web-1>"));
        assert_eq!(second.header(name), first.header(name));
        assert_ne!(other.header(name), first.header(name));
    }
    assert!(second.header("subject").is_some_and(|subject| subject.starts_with("[SysOps] RESOLVED ")));
    assert_eq!((second.header("x-priority"), other.header("x-priority")), (None, None));
    assert!(second.plain().contains("(it lasted 72 min)"), "{}", second.plain());
}

#[tokio::test]
async fn a_group_is_one_mail_and_one_of_hundreds_is_bounded() {
    let of = |count: usize| {
        let alerts = (0..count).map(|i| Alert { message: format!("disk {i} is full"), ..disk() }).collect();
        Notice { id: format!("g-{count}"), alerts, audience: Audience::People, channels: None }
    };
    let mails = read(&[of(3), of(400)]).await;
    let [few, many] = &mails[..] else { panic!("{} mails", mails.len()) };
    assert_eq!(few.header("subject"), Some("[SysOps] CRITICAL 3 alerts on web-1: disk_usage_percent"));
    for index in 0..3 {
        let said = format!("disk {index} is full");
        assert!(few.plain().contains(&said) && few.text().contains(&said), "{said}");
    }
    for part in [many.plain(), many.text()] {
        assert!(part.contains("disk 49 is full") && !part.contains("disk 50 is full"), "{part}");
        assert!(part.contains("and 350 more") && part.len() < 64 << 10, "{}", part.len());
    }
}

#[tokio::test]
async fn hostile_text_changes_nothing_but_text() {
    // Where nothing is said there is no line for it.
    let texts: Vec<String> = injection::corpus().into_iter().filter(|text| !text.trim().is_empty()).collect();
    let notices: Vec<Notice> = ["dd".to_owned()].iter().chain(&texts).map(|text| everywhere(text)).collect();
    let sent = mailed(&notices).await;
    for mail in &sent {
        assert!(mail.lines().all(|line| line.len() <= 998) && mail.len() < 64 << 10 && mail.is_ascii());
    }
    let mails = mail_reader::read(&sent);
    let (plain, hostile) = mails.split_first().expect("the first is harmless");
    for (mail, text) in hostile.iter().zip(&texts) {
        let name: String = text.chars().take(40).collect();
        assert_eq!(mail.shape(), plain.shape(), "{name:?}");
        let subject = mail.header("subject").expect("a subject");
        assert!(subject.starts_with("[SysOps] CRITICAL oom_kill on web-1: The kernel killed"), "{subject:?}");
        assert!(subject.chars().count() <= 161, "{subject:?}");
        let misleading =
            |c: &char| c.is_control() && *c != '\n' || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}');
        for part in [subject, mail.plain(), mail.text()] {
            assert_eq!(part.chars().find(misleading), None, "{name:?}");
        }
    }
}

#[tokio::test]
async fn a_template_of_the_users_own_is_the_text_and_hostile_text_is_none() {
    let far_end = FarEnd::start([]).await;
    let mut values = settings(far_end.port);
    let entry = channel::ALL.iter().find(|entry| entry.name == "email").expect("it is in the list");
    let key = entry.keys.iter().find(|key| key.path == "alerting.email.template").expect("it has one");
    values.set(
        key,
        text("{{ headline }}\n{{ alert.message }}\n{% for one in alerts %}<b>{{ one.labels.comm|default('') }}</b>{% endfor %}"),
    );
    let mut mailer = build(&values).expect("right").expect("enabled");
    mailer.send(&injection::notice("{{ 7*7 }}<i>")).await.expect("the server takes it");
    let mails: Vec<String> = far_end.mails().into_iter().map(|mail| mail.data).collect();
    let mails = mail_reader::read(&mails);
    assert_eq!(
        mails[0].plain().trim(),
        "CRITICAL oom_kill on web-1\nThe kernel killed {{ 7*7 }}<i>.\n<b>{{ 7*7 }}<i></b>"
    );
    assert!(mails[0].text().contains("<b>{{ 7*7 }}<i></b>"), "{}", mails[0].text());
    for broken in ["{{ a", "{{ alert.labels.nobody_has_this }}"] {
        values.set(key, text(broken));
        let error = build(&values).err().expect("it is no template");
        assert!(error.starts_with("alerting.email.template: line 1: "), "{error}");
    }
}

#[tokio::test]
async fn a_server_that_hangs_or_goes_away_is_tried_again() {
    let steps = ["connecting", "connecting", "AUTH", "MAIL FROM", "RCPT TO", "DATA", "DATA"];
    for (stage, step) in Stage::ALL.into_iter().zip(steps) {
        for fault in [Fault::Hang(stage), Fault::Drop(stage)] {
            let name = format!("{fault:?}");
            let far_end = FarEnd::start([fault]).await;
            let error = try_within(&far_end, 1).await.expect_err(&name);
            assert!(matches!(error, SendError::Retry { .. }), "{name}: {error:?}");
            assert!(error.to_string().contains(step), "{name}: {error}");
            assert!(error.to_string().starts_with(&format!("127.0.0.1:{}: ", far_end.port)), "{name}: {error}");
        }
    }
}

#[tokio::test]
async fn what_the_server_took_it_has_whether_or_not_it_says_goodbye() {
    for fault in [Fault::Hang(Stage::Quit), Fault::Drop(Stage::Quit)] {
        let far_end = FarEnd::start([fault]).await;
        let receipt = try_once(&far_end).await.expect("it said 250");
        assert_eq!(receipt.answer, "250 2.0.0 queued as F4R");
    }
}

#[tokio::test]
async fn each_code_means_retry_or_mend_or_the_end() {
    let cases = [
        (Stage::Greeting, "421 4.3.2 closing", "retry"),
        (Stage::Greeting, "554 5.7.1 not you", "refused"),
        (Stage::Hello, "421 4.3.2 closing", "retry"),
        (Stage::Auth, "454 4.7.0 later", "retry"),
        (Stage::Auth, "535 5.7.8 wrong", "refused"),
        (Stage::Sender, "451 4.3.0 later", "retry"),
        (Stage::Sender, "530 5.7.0 log in first", "refused"),
        (Stage::Sender, "550 5.1.0 no such sender", "refused"),
        (Stage::Recipient, "421 4.3.2 closing", "retry"),
        (Stage::Recipient, "450 4.2.0 greylisted", "retry"),
        (Stage::Recipient, "550 5.1.1 nobody", "refused"),
        (Stage::Data, "451 4.3.0 later", "retry"),
        (Stage::Data, "554 5.5.1 no", "permanent"),
        (Stage::Body, "452 4.3.1 disk full", "retry"),
        (Stage::Body, "421 4.3.2 closing", "retry"),
        (Stage::Body, "552 5.3.4 too large", "permanent"),
        (Stage::Body, "554 5.7.1 spam", "permanent"),
        (Stage::Body, "354 again", "retry"),
    ];
    for (stage, words, means) in cases {
        let far_end = FarEnd::start([Fault::Answer(stage, words)]).await;
        let error = try_once(&far_end).await.expect_err(words);
        let found = match &error {
            SendError::Retry { .. } => "retry",
            SendError::Refused { .. } => "refused",
            SendError::Permanent { .. } => "permanent",
        };
        assert_eq!(found, means, "{stage:?} {words}: {error}");
        let shows = if stage == Stage::Auth { &words[..3] } else { words };
        assert!(error.to_string().contains(shows), "{stage:?} {words}: {error}");
    }
}

#[tokio::test]
async fn a_mail_whose_250_was_lost_comes_again_as_the_same_mail() {
    let far_end = FarEnd::start([Fault::Drop(Stage::Body)]).await;
    let mut mailer = mailer(far_end.port);
    let lost = mailer.send(&injection::notice("dd")).await;
    assert!(matches!(lost, Err(SendError::Retry { .. })), "{lost:?}");
    mailer.send(&injection::notice("dd")).await.expect("the server takes it");
    let mails = far_end.mails();
    assert_eq!(mails.len(), 2);
    assert_eq!(mails[0], mails[1], "byte by byte, Message-ID included");
}

#[tokio::test]
async fn a_refused_recipient_keeps_the_mail_from_nobody_else() {
    let far_end = FarEnd::start([Fault::Recipient("a@example.com", "550 5.1.1 nobody here")]).await;
    let receipt = try_once(&far_end).await.expect("the other has it");
    assert_eq!(far_end.mails()[0].to, ["b@example.com"]);
    assert!(receipt.answer.starts_with("250 2.0.0 queued as F4R; not for a@example.com: "), "{}", receipt.answer);
    assert!(receipt.answer.contains("550 5.1.1 nobody here"), "{}", receipt.answer);
}

#[tokio::test]
async fn a_recipient_who_was_put_off_is_asked_again_and_the_others_get_it_once() {
    let put_off = Fault::Recipient("a@example.com", "450 4.2.0 greylisted");
    let far_end = FarEnd::start([put_off, Fault::Drop(Stage::Sender)]).await;
    let mut mailer = mailer(far_end.port);
    for what in ["greylisted", "MAIL FROM"] {
        let error = mailer.send(&injection::notice("dd")).await.expect_err(what);
        assert!(matches!(&error, SendError::Retry { reason, .. } if reason.contains(what)), "{error:?}");
    }
    mailer.send(&injection::notice("dd")).await.expect("the server takes it");
    let recipients: Vec<_> = far_end.mails().into_iter().map(|mail| mail.to).collect();
    assert_eq!(recipients, [["b@example.com"], ["a@example.com"]]);
}

#[tokio::test]
async fn without_starttls_nothing_is_said() {
    let far_end = FarEnd::start([]).await;
    let mut values = settings(far_end.port);
    let entry = channel::ALL.iter().find(|entry| entry.name == "email").expect("it is in the list");
    let key = entry.keys.iter().find(|key| key.path == "alerting.email.smtp_tls").expect("it has one");
    values.set(key, Value::Bool(true));
    let mut mailer = build(&values).expect("right").expect("enabled");
    let error = mailer.send(&injection::notice("dd")).await.expect_err("it was stripped");
    assert!(matches!(&error, SendError::Refused { reason } if reason.contains("no STARTTLS")), "{error:?}");
    assert!(far_end.lines().iter().all(|line| line.starts_with("EHLO ")), "{:?}", far_end.lines());
}

#[tokio::test]
async fn a_server_that_repeats_the_password_is_not_quoted() {
    let far_end = FarEnd::start([Fault::EchoedAuth]).await;
    let error = try_once(&far_end).await.expect_err("it refuses");
    assert!(matches!(error, SendError::Refused { .. }), "{error:?}");
    // What AUTH PLAIN sent, as the server repeated it.
    assert!(!format!("{error:?}").contains("AGFsZXJ0"), "{error:?}");
    assert!(error.to_string().ends_with("AUTH: 535: check username and password"), "{error}");
}

#[tokio::test]
async fn no_fault_brings_the_password_into_a_log() {
    let log = Log::catch();
    let mut faults: Vec<Fault> = Stage::ALL.into_iter().map(Fault::Drop).collect();
    faults.extend(Stage::ALL.into_iter().map(|stage| Fault::Answer(stage, "550 5.0.0 hunter2, no")));
    faults.extend([Fault::EchoedAuth, Fault::Recipient("a@example.com", "550 5.1.1 hunter2"), Fault::None]);
    for fault in faults {
        let far_end = FarEnd::start([fault]).await;
        if let Ok(receipt) = try_once(&far_end).await {
            assert!(!receipt.answer.contains(CANARY), "{receipt:?}");
        }
    }
    let logged = log.text();
    assert!(logged.contains("alerting.email.to: not for everyone"), "something is logged: {logged}");
    // As it is, and as AUTH PLAIN sends it.
    assert!(!logged.contains(CANARY) && !logged.contains("AGFsZXJ0c0BtYWlsLmV4YW1wbGUAaHVudGVyMg"), "{logged}");
}

#[test]
fn what_would_be_unsafe_or_cannot_work_is_refused_with_its_key() {
    let keys = channel::ALL.iter().find(|entry| entry.name == "email").expect("it is in the list").keys;
    let refused = |changes: &[(&str, Value)]| {
        let mut values = settings(25);
        for (name, value) in changes {
            let path = format!("alerting.email.{name}");
            values.set(keys.iter().find(|key| key.path == path).expect("a key"), value.clone());
        }
        let error = build(&values).err().unwrap_or_default();
        assert!(!error.contains(CANARY), "{error}");
        error
    };
    assert_eq!(refused(&[]), "");
    let far = ("smtp_host", text("mail.example.com"));
    assert!(
        refused(std::slice::from_ref(&far)).starts_with("alerting.email.smtp_tls: false would send the password to")
    );
    let allow = ("allow_plain", Value::Bool(true));
    assert!(refused(&[far.clone(), allow.clone()]).contains("would send the password"), "no key allows that");
    assert!(refused(&[("from", text("nobody"))]).starts_with("alerting.email.from: expected user@host"));
    assert!(refused(&[("to", Value::TextList(vec!["a@b\r\nBcc: x@y".to_owned()]))]).starts_with("alerting.email.to: "));
    assert!(refused(&[("to", Value::TextList(vec![]))]).starts_with("alerting.email.to: missing"));
    let tls = ("smtp_tls", Value::Bool(true));
    assert_eq!(refused(&[far.clone(), tls.clone()]), "");
    let error = refused(&[far, tls, ("ca_file", text("/nonexistent/ca.pem"))]);
    assert!(error.starts_with("alerting.email.ca_file: \"/nonexistent/ca.pem\": No such file"), "{error}");
}
