//! A process that accepts alerts and delivers them, to be killed at any moment: the test's own binary again. It says what it has
//! accepted, one line each, once that is on disk.
#![expect(
    clippy::disallowed_methods,
    reason = "tests are outside of the agent: they run programs and read clocks as they like"
)]

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, SystemTime};

use serde_json::json;
use sysops_agent::deliver::Outbox;
use sysops_agent::deliver::outbox::Plan;
use sysops_agent::model::{Alert, Notice, Severity};
use sysops_agent::spec::Value;

use crate::values::values;

/// How many alerts change in turn: the alert of the change `n` is `n % ALERTS`.
pub const ALERTS: u64 = 20;

/// What the process is to do.
#[derive(Clone, Debug)]
pub struct Task {
    /// Its data directory.
    pub data: PathBuf,
    /// Configuration of its channels: texts, numbers and switches by path.
    pub channels: serde_json::Value,
    /// The first change that it accepts.
    pub first: u64,
    /// The change behind the last.
    pub end: u64,
}

const VARIABLE: &str = "SYSOPS_TEST_OUTBOX";

/// A webhook alone.
#[must_use]
pub fn webhook(url: &str) -> serde_json::Value {
    json!({
        "alerting.webhook.enabled": true,
        "alerting.webhook.url": url,
        "alerting.webhook.timeout_secs": 1,
        "alerting.webhook.retry_count": 1,
    })
}

impl Task {
    /// Starts it: `test` is the name of the test that calls [`be`]. Gives what it says.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn start(&self, test: &str, environment: &[(&str, &str)]) -> (Child, Receiver<String>) {
        let task = format!("{}\n{}\n{}\n{}", self.data.display(), self.channels, self.first, self.end);
        let mut child = Command::new(std::env::current_exe().expect("a test has a path"))
            .args(["--exact", test, "--nocapture"])
            .env(VARIABLE, task)
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("this binary can be run again");
        let output = BufReader::new(child.stdout.take().expect("it is piped"));
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        (child, lines)
    }
}

/// The change `number`.
#[must_use]
pub fn notice(number: u64) -> Notice {
    let alert = number % ALERTS;
    let severity = if alert.is_multiple_of(3) { Severity::Critical } else { Severity::Warn };
    let message = format!("change {number} of the alert {alert}");
    Notice::of(Alert {
        id: format!("{alert}-{number}"),
        fingerprint: alert + 1,
        ..Alert::new("h", SystemTime::now(), severity, "m", message)
    })
}

/// In the process: does its task, and ends when all is delivered. Returns at once in any other.
///
/// # Panics
/// When it cannot do it.
pub fn be() {
    let Ok(task) = std::env::var(VARIABLE) else { return };
    let [data, channels, first, end] = task.split('\n').collect::<Vec<_>>()[..] else { return };
    let (first, end): (u64, u64) = (first.parse().expect("a number"), end.parse().expect("a number"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let channels: BTreeMap<String, serde_json::Value> = serde_json::from_str(channels).expect("an object");
        let set = channels.iter().map(|(path, value)| (path.as_str(), setting(value)));
        let plan = Plan::new(&values(set.chain([("alerting.console.enabled", Value::Bool(false))])));
        let outbox = Outbox::open(plan.expect("right"), Some(Path::new(data)), Arc::new(SystemTime::now));
        say("open");
        // Bursts of one to sixteen, so that some are on disk alone and some together.
        let mut next = first;
        while next < end {
            let burst = (next..end).take(1 + usize::try_from(next % 16).unwrap_or(0));
            let last = burst.clone().last().unwrap_or(next);
            burst.for_each(|number| outbox.send(&notice(number)));
            outbox.wait_durable(outbox.sent()).await;
            say(&format!("accepted {last}"));
            next = last + 1;
        }
        while outbox.status().records > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        outbox.drain(Duration::from_secs(5)).await;
        say("delivered");
    });
}

fn setting(value: &serde_json::Value) -> Value {
    match (value.as_bool(), value.as_i64(), value.as_array()) {
        (Some(switch), ..) => Value::Bool(switch),
        (_, Some(number), _) => Value::Int(number),
        (.., Some(texts)) => {
            Value::TextList(texts.iter().filter_map(|text| text.as_str()).map(str::to_owned).collect())
        }
        _ => Value::Text(value.as_str().expect("a switch, a number, a text or a list").to_owned()),
    }
}

fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    // Who does not listen any more has killed this process, or is about to.
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}
