//! What goes over the control socket: one JSON object a line each way. A newer client is told so, and what is not
//! understood is refused with what would be.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::model::report::Report;
use crate::model::{Listed, OutboxStatus, Outcome, Severity, Silence};

/// Version of the protocol. It rises only when an old agent could not answer a new client.
pub const SCHEMA: u64 = 1;

/// Longest request.
pub const REQUEST_BYTES_MAX: usize = 64 << 10;

/// Longest note or comment.
pub const TEXT_BYTES_MAX: usize = 1000;

/// What a client asks for: `{"schema":1,"do":"alerts"}`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "kebab-case")]
pub enum Request {
    /// The alerts that are live.
    Alerts,
    /// Acknowledge an alert.
    Ack {
        /// First digits of its fingerprint.
        alert: String,
        /// Why, or what is done about it.
        #[serde(default)]
        note: String,
    },
    /// Take an acknowledgement back.
    Unack {
        /// First digits of its fingerprint.
        alert: String,
    },
    /// Silence what matches.
    Silence {
        /// Names and patterns.
        matcher: BTreeMap<String, String>,
        /// For how long.
        secs: u64,
        /// Why.
        #[serde(default)]
        comment: String,
    },
    /// End a silence.
    Unsilence {
        /// Its number.
        id: u64,
    },
    /// The silences that hold.
    Silences,
    /// Try channels.
    TestAlert {
        /// These, whatever their severity; else those that carry it.
        #[serde(default)]
        channels: Option<Vec<String>>,
        /// How bad it pretends to be.
        severity: Severity,
        /// As one that is over.
        #[serde(default)]
        resolved: bool,
    },
    /// How the outbox and each channel do.
    Outbox,
    /// What the agent sees and what it does not, and why.
    Doctor,
}

/// What the agent answers: `{"ok":true,"alerts":[…]}`. [`Request::TestAlert`] gets the channels, an outcome for each try, and the end;
/// every other request one line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// The alerts that are live.
    Alerts(Vec<Listed>),
    /// The alert as it now is.
    Alert(Box<Listed>),
    /// The silence as it now is, or was.
    Silence(Silence),
    /// The silences that hold.
    Silences(Vec<Silence>),
    /// How the outbox and each channel do.
    Outbox(OutboxStatus),
    /// What the agent sees and what it does not, and why.
    Doctor(Box<Report>),
    /// The channels that the test goes to.
    SentTo(Vec<String>),
    /// What came of a try.
    Outcome(Timed),
    /// No more outcomes come.
    End(End),
}

/// What came of a try, and how long that took.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Timed {
    /// What came of it.
    #[serde(flatten)]
    pub outcome: Outcome,
    /// Seconds since it was sent.
    pub secs: f64,
}

/// Why no more outcomes come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    /// No channel is left that may have more to say soon.
    Answered,
    /// Nobody waits any longer; what is left goes on in the outbox.
    Deadline,
}

impl Request {
    /// The request as a line.
    ///
    /// # Errors
    /// When it is too long, with what is.
    pub fn line(&self) -> Result<String, String> {
        #[derive(Serialize)]
        struct Line<'a> {
            schema: u64,
            #[serde(flatten)]
            request: &'a Request,
        }
        let line = serde_json::to_string(&Line { schema: SCHEMA, request: self }).map_err(|error| error.to_string())?;
        if line.len() >= REQUEST_BYTES_MAX {
            return Err(too_long());
        }
        Ok(line + "\n")
    }

    /// The request in a line.
    ///
    /// # Errors
    /// With what was expected instead.
    pub fn parse(line: &[u8]) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Version {
            schema: u64,
        }
        let no_request = |error: serde_json::Error| format!("no request: {error}");
        let Version { schema } = serde_json::from_slice(line).map_err(no_request)?;
        if schema != SCHEMA {
            return Err(format!(
                "this agent understands schema {SCHEMA}, not {schema}: use its own sysops-agent to ask it"
            ));
        }
        serde_json::from_slice(line).map_err(no_request)
    }
}

/// What is said of a request that is too long.
#[must_use]
pub fn too_long() -> String {
    format!("a request has at most {REQUEST_BYTES_MAX} bytes")
}

#[derive(Serialize, Deserialize)]
struct Line<A> {
    ok: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    #[serde(flatten)]
    answer: Option<A>,
}

/// An answer, or why there is none, as a line.
#[must_use]
pub fn answer_line(answer: &Result<Answer, String>) -> String {
    let line = match answer {
        Ok(answer) => Line { ok: true, error: None, answer: Some(answer) },
        Err(error) => Line { ok: false, error: Some(error.clone()), answer: None },
    };
    let text = serde_json::to_string(&line).expect("names are text and numbers are finite or become null");
    text + "\n"
}

/// The answer in a line, or why there is none.
///
/// # Errors
/// When it is no answer.
pub fn parse_answer(line: &[u8]) -> Result<Result<Answer, String>, String> {
    let line: Line<Answer> = serde_json::from_slice(line).map_err(|error| error.to_string())?;
    match line {
        Line { ok: true, answer: Some(answer), .. } => Ok(Ok(answer)),
        Line { ok: false, error: Some(error), .. } => Ok(Err(error)),
        Line { .. } => Err("neither an answer nor an error".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::Fate;

    #[test]
    fn requests_come_back_from_their_lines() {
        for request in [
            Request::Alerts,
            Request::Ack { alert: "8f3a".to_owned(), note: "on it\n".to_owned() },
            Request::Silence { matcher: [("a".to_owned(), "*".to_owned())].into(), secs: 5, comment: String::new() },
            Request::TestAlert { channels: None, severity: Severity::Critical, resolved: true },
        ] {
            let line = request.line().expect("short");
            assert!(line.starts_with("{\"schema\":1,\"do\":\"") && line.find('\n') == Some(line.len() - 1), "{line}");
            assert_eq!(Request::parse(line.as_bytes()), Ok(request));
        }
        let long = Request::Ack { alert: "x".repeat(REQUEST_BYTES_MAX), note: String::new() };
        assert_eq!(long.line(), Err(too_long()));
    }

    #[test]
    fn what_is_not_understood_is_refused_with_what_would_be() {
        let refused = |line: &str| Request::parse(line.as_bytes()).expect_err(line);
        assert!(refused("{\"schema\":1,\"do\":\"reboot\"}").contains("expected one of `alerts`, `ack`"));
        assert!(refused("{\"schema\":2,\"do\":\"alerts\"}").contains("understands schema 1, not 2"));
        for line in
            ["", "\n", "[]", "{", "{\"do\":\"alerts\"}", "{\"schema\":1}", "{\"schema\":1,\"do\":\"ack\"}", "\u{0}"]
        {
            assert!(refused(line).starts_with("no request: "), "{line:?}");
        }
        assert!(refused(&"[".repeat(5000)).contains("no request"), "depth is bounded");
    }

    #[test]
    fn answers_come_back_from_their_lines() {
        let outcome =
            Outcome { channel: "slack".to_owned(), result: Fate::Later { reason: "429".to_owned(), in_secs: 3 } };
        for (answer, begins) in [
            (Ok(Answer::Alerts(vec![])), "{\"ok\":true,\"alerts\":[]"),
            (
                Ok(Answer::Outcome(Timed { outcome, secs: 0.5 })),
                "{\"ok\":true,\"outcome\":{\"channel\":\"slack\",\"result\":\"later\"",
            ),
            (Ok(Answer::End(End::Deadline)), "{\"ok\":true,\"end\":\"deadline\"}"),
            (Err("no".to_owned()), "{\"ok\":false,\"error\":\"no\"}"),
        ] {
            let line = answer_line(&answer);
            assert!(line.starts_with(begins), "{line}");
            assert_eq!(parse_answer(line.as_bytes()), Ok(answer));
        }
        assert!(parse_answer(b"{\"ok\":true}").is_err() && parse_answer(b"HTTP/1.1 400").is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            drop((Request::parse(&bytes), parse_answer(&bytes)));
        }
    }
}
