//! Mail through a real Postfix, encrypted under a private authority and with a login, read back from the mailbox by an independent
//! parser.

use sysops_agent::deliver::channel::{self, Channel, SendError};
use sysops_agent::spec::Value;
use sysops_tests::injection;
use sysops_tests::mail_reader;
use sysops_tests::postfix::{LOGIN, Postfix};
use sysops_tests::values::values;

fn text(text: &str) -> Value {
    Value::Text(text.to_owned())
}

/// A channel with these settings, the last of a key winning.
fn mailer(postfix: &Postfix, more: &[(&'static str, Value)]) -> Box<dyn Channel> {
    let ca_file = postfix.ca_file.display().to_string();
    let mut values = values([
        ("alerting.email.enabled", Value::Bool(true)),
        ("alerting.email.smtp_host", text("localhost")),
        ("alerting.email.smtp_port", Value::Int(i64::from(postfix.port))),
        ("alerting.email.ca_file", text(&ca_file)),
        ("alerting.email.username", text(LOGIN.0)),
        ("alerting.email.password", text(LOGIN.1)),
        ("alerting.email.from", text("SysOps Agent <alerts@mail.example>")),
        ("alerting.email.to", Value::TextList(vec!["oncall@example.com".to_owned(), "devops@example.com".to_owned()])),
    ]);
    let entry = channel::ALL.iter().find(|entry| entry.name == "email").expect("it is in the list");
    for (path, value) in more {
        values.set(entry.keys.iter().find(|key| key.path == *path).expect("a key"), value.clone());
    }
    (entry.build)(&values).expect("the settings are right").expect("it is enabled")
}

async fn refused(postfix: &Postfix, more: &[(&'static str, Value)]) -> String {
    let error = mailer(postfix, more).send(&injection::notice("dd")).await.expect_err("it cannot be sent");
    assert!(matches!(error, SendError::Refused { .. }), "{error:?}");
    assert!(!format!("{error} {error:?}").contains(LOGIN.1), "{error:?}");
    error.to_string()
}

#[tokio::test]
async fn a_real_server_takes_and_delivers_it() {
    let Some(postfix) = Postfix::start() else { return };
    let receipt = mailer(&postfix, &[]).send(&injection::notice("dd")).await.expect("STARTTLS and AUTH");
    assert!(receipt.answer.starts_with("250 2.0.0 Ok: queued as "), "{}", receipt.answer);
    for user in ["oncall", "devops"] {
        let mails = mail_reader::read(&postfix.delivered(user, 1));
        assert_eq!(mails[0].header("message-id"), Some("<1234-1@web-1>"));
        assert!(mails[0].plain().contains("The kernel killed dd."), "{}", mails[0].plain());
        let received = mails[0].header("received").expect("Postfix says how it came");
        assert!(received.contains("with ESMTPSA"), "encrypted and with a login: {received}");
    }
    let implicit = [
        ("alerting.email.smtp_port", Value::Int(i64::from(postfix.implicit_port))),
        ("alerting.email.smtp_tls_mode", text("implicit")),
    ];
    mailer(&postfix, &implicit).send(&injection::notice("java")).await.expect("TLS from the first byte on");
    assert_eq!(postfix.delivered("oncall", 2).len(), 2);

    let unknown = Value::TextList(vec!["nobody@example.com".to_owned(), "oncall@example.com".to_owned()]);
    let receipt = mailer(&postfix, &[("alerting.email.to", unknown)]).send(&injection::notice("dd")).await;
    let answer = receipt.expect("one of them is known").answer;
    assert!(answer.contains("; not for nobody@example.com: ") && answer.contains("550 5.1.1"), "{answer}");
}

#[tokio::test]
async fn a_real_server_that_refuses_is_quoted_and_the_password_is_not() {
    let Some(postfix) = Postfix::start() else { return };
    let wrong = refused(&postfix, &[("alerting.email.password", text("canary-wrong"))]).await;
    assert!(wrong.ends_with("AUTH: 535: check username and password"), "{wrong}");
    let relay = Value::TextList(vec!["someone@elsewhere.example".to_owned()]);
    let relay = refused(&postfix, &[("alerting.email.to", relay)]).await;
    assert!(relay.contains("554 5.7.1 <someone@elsewhere.example>: Relay access denied"), "{relay}");
    // Another authority; and a name that is not in the certificate.
    let other = postfix.other_authority();
    let other = refused(&postfix, &[("alerting.email.ca_file", text(&other.display().to_string()))]).await;
    assert!(other.contains("STARTTLS") && other.contains("certificate"), "{other}");
    let name = refused(&postfix, &[("alerting.email.smtp_host", text("127.0.0.1"))]).await;
    assert!(name.contains("STARTTLS") && name.contains("certificate"), "{name}");
}

#[tokio::test]
async fn a_real_server_reads_every_hostile_text_as_one_mail() {
    let Some(postfix) = Postfix::start() else { return };
    let to = ("alerting.email.to", Value::TextList(vec!["oncall@example.com".to_owned()]));
    let texts = injection::corpus();
    // A conversation is mostly waiting, so four are held at once.
    let mut conversations = tokio::task::JoinSet::new();
    for part in texts.chunks(texts.len().div_ceil(4)) {
        let (mut mailer, part) = (mailer(&postfix, std::slice::from_ref(&to)), part.to_vec());
        conversations.spawn(async move {
            for text in part {
                mailer.send(&injection::notice(&text)).await.expect("the server takes it");
            }
        });
    }
    conversations.join_all().await;
    let mails = mail_reader::read(&postfix.delivered("oncall", texts.len()));
    assert_eq!(mails.len(), texts.len());
    for mail in &mails {
        assert_eq!(mail.shape(), mails[0].shape());
        assert_eq!(mail.header("bcc"), None);
    }
}
