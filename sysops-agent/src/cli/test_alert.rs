//! `test-alert`: sends a notice that says it is a test through the channels, and says what each far end answered. The agent
//! that runs does it; where none runs, this process does, by the same channels.

use std::io::{self, Write as _};
use std::time::Duration;

use clap::builder::{PossibleValuesParser, TypedValueParser as _};
use serde::Serialize;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use super::output::{Colour, Style};
use super::{Args, ask, exit, output, validate};
use crate::control::protocol::{Answer, End, Request, Timed};
use crate::control::{self, Answers, AskError, trial};
use crate::deliver::channel::{self, SendError, console};
use crate::host::{Host, Roots, os};
use crate::model::delivery::{Outcome, OutcomeResult};
use crate::model::{Severity, shown};
use crate::pipeline;
use crate::settings::{self, Settings};
use crate::spec::Value;

/// Time for a far end to answer, where this process sends.
const WAIT: Duration = Duration::from_secs(60);

/// Arguments of `test-alert`.
#[derive(Clone, Debug, clap::Args, PartialEq, Eq)]
pub struct TestAlertArgs {
    /// Only this channel, whatever severity it carries; may be given more than once. Without it all that carry the severity.
    #[arg(long, value_name = "C", value_parser = channel_name)]
    pub channel: Vec<String>,
    /// How bad the alert pretends to be.
    #[arg(long, value_name = "S", default_value = "critical", value_parser = severity())]
    pub severity: Severity,
    /// Send one that is over.
    #[arg(long)]
    pub resolved: bool,
    /// Print one JSON document.
    #[arg(long)]
    pub json: bool,
}

/// Which channels there are depends on the build; the help does not.
fn channel_name(text: &str) -> Result<String, String> {
    let names: Vec<&str> = channel::ALL.iter().map(|entry| entry.name).collect();
    if names.contains(&text) { Ok(text.to_owned()) } else { Err(format!("expected one of {}", names.join(", "))) }
}

fn severity() -> impl clap::builder::TypedValueParser<Value = Severity> {
    PossibleValuesParser::new(Severity::NAMES)
        .map(|name| Severity::from_name(&name).expect("clap takes none but these names"))
}

/// docs/schemas/test-alert.schema.json describes it.
#[derive(Serialize)]
struct Document {
    schema: u32,
    /// True when the agent that runs sent it, false when this process did.
    agent: bool,
    channels: Vec<Row>,
}

/// What came of one channel.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Row {
    channel: String,
    result: &'static str,
    /// What the far end said, or why it has nothing.
    answer: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    secs: Option<f64>,
}

/// Sends, prints, and gives the exit status: 0 when every channel that was to carry it has delivered it.
pub async fn run(args: &Args, test: &TestAlertArgs) -> u8 {
    let mut report = Report { json: test.json, style: Style::stdout(&settings::environment), rows: Vec::new() };
    let settings = args.settings();
    let path = match ask::socket(args) {
        Ok(path) => path,
        Err(problems) => return validate::refuse(&problems),
    };
    let request = Request::TestAlert {
        channels: (!test.channel.is_empty()).then(|| test.channel.clone()),
        severity: test.severity,
        resolved: test.resolved,
    };
    let asked = path.as_deref().map_or(Err(AskError::NoAgent), |path| control::ask(path, &request));
    let (agent, end) = match (asked, &path) {
        (Ok(answers), Some(path)) => match report.follow(answers) {
            Ok(end) => (true, end),
            Err(error) => return ask::refuse(path, &error),
        },
        (Err(error), Some(path)) if !matches!(error, AskError::NoAgent) => return ask::refuse(path, &error),
        _ => {
            let mut settings = match settings {
                Ok(settings) => settings,
                Err(problems) => return validate::refuse(&problems),
            };
            output::say(&"no agent runs with this configuration: sending from here");
            if let Err(error) = report.send(args, &mut settings, test).await {
                output::say(&format_args!("error: {error}"));
                return exit::FAILURE;
            }
            report.rest(&settings, test, End::Answered, false);
            return report.finish(false);
        }
    };
    // What the agent left out is known only by its configuration; its secrets may be in its own environment alone.
    if let Ok(settings) = &settings {
        report.rest(settings, test, end, true);
    }
    report.finish(agent)
}

struct Report {
    json: bool,
    style: Style,
    rows: Vec<Row>,
}

impl Report {
    /// Takes what the agent tells, as it comes.
    fn follow(&mut self, mut answers: Answers) -> Result<End, AskError> {
        loop {
            match answers.next_answer()? {
                Answer::Outcome(timed) => self.take(timed),
                Answer::End(end) => return Ok(end),
                _ => return Err(AskError::Strange("the answer to another question".to_owned())),
            }
        }
    }

    /// Sends it from this process: one try for each channel, all at once.
    async fn send(&mut self, args: &Args, settings: &mut Settings, test: &TestAlertArgs) -> Result<(), String> {
        if self.json {
            // It would write between the lines of the document.
            settings.values.set(console::ENABLED.spec(), Value::Bool(false));
        }
        let host = Host::live(&Roots { root: args.host_root.clone() });
        let by = control::user_name(&host.files, os::effective_user());
        let hostname = pipeline::hostname(settings);
        let notice = trial::notice(&hostname, &by, test.severity, test.resolved, None, &host.clock.now());
        let mut tries = JoinSet::new();
        for entry in channel::ALL.iter().filter(|entry| test.wants(entry, settings)) {
            let Some(mut channel) = (entry.build)(&settings.values)? else {
                if test.channel.iter().any(|name| name == entry.name) {
                    return Err(format!("{}: not enabled: set alerting.{0}.enabled = true", entry.name));
                }
                continue;
            };
            let notice = notice.clone();
            tries.spawn(async move {
                let start = Instant::now();
                let result = timeout(WAIT, channel.send(&notice)).await;
                let result = result.unwrap_or_else(|_| {
                    Err(SendError::Retry { reason: format!("no answer within {} s", WAIT.as_secs()), after: None })
                });
                let outcome = Outcome { channel: entry.name.to_owned(), result: outcome(result) };
                Timed { outcome, secs: start.elapsed().as_secs_f64() }
            });
        }
        while let Some(tried) = tries.join_next().await {
            self.take(tried.map_err(|error| format!("a channel has failed; that is a bug: {error}"))?);
        }
        Ok(())
    }

    fn take(&mut self, Timed { outcome, secs }: Timed) {
        let (result, answer) = match outcome.result {
            OutcomeResult::Delivered { answer } => ("delivered", answer),
            OutcomeResult::Later { reason, in_secs: 0 } => ("not now", reason),
            OutcomeResult::Later { reason, in_secs } => ("not now", format!("{reason}; tried again in {in_secs} s")),
            OutcomeResult::Refused { reason } => ("refused", reason),
            OutcomeResult::Parked { reason } => ("given up", reason),
        };
        self.add(Row { channel: outcome.channel, result, answer, secs: Some(secs) });
    }

    /// What is known of channels of the configuration that gave no word.
    fn rest(&mut self, settings: &Settings, test: &TestAlertArgs, end: End, agent: bool) {
        for entry in channel::ALL {
            let named = test.channel.iter().any(|name| name == entry.name);
            let heard = self.rows.iter().any(|row| row.channel == entry.name);
            if heard || (!test.channel.is_empty() && !named) || !matches!((entry.build)(&settings.values), Ok(Some(_)))
            {
                continue;
            }
            let (result, answer) = if !test.wants(entry, settings) {
                let least = settings.values.get(entry.min_severity);
                (
                    "skipped",
                    format!("alerting.{}.min_severity is {least}: --channel {0} sends all the same", entry.name),
                )
            } else if end == End::Deadline {
                ("no answer", format!("none within {} s; the outbox goes on", WAIT.as_secs()))
            } else if agent {
                ("not sent", "the agent that runs does not have this channel: reload it".to_owned())
            } else {
                continue;
            };
            self.add(Row { channel: entry.name.to_owned(), result, answer, secs: None });
        }
    }

    /// Shows it to people at once: a far end may take a minute.
    fn add(&mut self, row: Row) {
        if !self.json {
            let mut out = io::stdout().lock();
            if self.rows.is_empty() {
                let header = format!("{:<10} {:<10} {:>8}  ANSWER", "CHANNEL", "RESULT", "TIME");
                _ = writeln!(out, "{}", self.style.paint(Colour::Dim, header));
            }
            let colour = match row.result {
                "delivered" => Colour::Green,
                "skipped" => Colour::Dim,
                "not now" => Colour::Yellow,
                _ => Colour::Red,
            };
            let secs = row.secs.map_or_else(String::new, |secs| format!("{secs:.2} s"));
            let result = self.style.paint(colour, row.result);
            let answer = shown(&row.answer, 500);
            // A reader that went away loses nothing but this; the status says how it went.
            _ = writeln!(out, "{:<10} {result:<10} {secs:>8}  {answer}", shown(&row.channel, 32));
            _ = out.flush();
        }
        self.rows.push(row);
    }

    fn finish(self, agent: bool) -> u8 {
        let delivered = self.rows.iter().filter(|row| row.result == "delivered").count();
        let well = delivered > 0 && self.rows.iter().all(|row| matches!(row.result, "delivered" | "skipped"));
        if self.rows.is_empty() {
            output::say(&"error: no channel is enabled that carries it: alerts reach nobody");
        }
        if self.json {
            let document = Document { schema: 1, agent, channels: self.rows };
            let document = serde_json::to_string(&document).expect("it has a JSON form");
            let status = output::document(&(document + "\n"));
            if status != exit::OK {
                return status;
            }
        }
        if well { exit::OK } else { exit::FAILURE }
    }
}

impl TestAlertArgs {
    /// True when the channel is to carry it.
    fn wants(&self, entry: &channel::Entry, settings: &Settings) -> bool {
        if !self.channel.is_empty() {
            return self.channel.iter().any(|name| name == entry.name);
        }
        Severity::from_name(&settings.values.get(entry.min_severity)).is_none_or(|least| self.severity >= least)
    }
}

fn outcome(result: Result<channel::Receipt, SendError>) -> OutcomeResult {
    match result {
        Ok(receipt) => OutcomeResult::Delivered { answer: receipt.answer },
        Err(SendError::Retry { reason, after }) => {
            OutcomeResult::Later { reason, in_secs: after.map_or(0, |after| after.as_secs()) }
        }
        Err(SendError::Refused { reason }) => OutcomeResult::Refused { reason },
        Err(SendError::Permanent { reason }) => OutcomeResult::Parked { reason },
    }
}
