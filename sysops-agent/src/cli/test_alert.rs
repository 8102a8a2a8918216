//! `test-alert`: sends a notice that says it is a test through the channels, and says what each far end answered. The agent
//! that runs does it; where none runs, this process does, by an outbox of its own.

use std::convert::Infallible;
use std::io::{self, Write as _};

use clap::builder::{PossibleValuesParser, TypedValueParser as _};
use serde::Serialize;

use super::output::{Colour, Style};
use super::{Args, ask, exit, output, validate};
use crate::control::protocol::{Answer, End, Request, Timed};
use crate::control::{self, Answers, AskError, trial};
use crate::deliver::Outbox;
use crate::deliver::channel::{self, console};
use crate::host::{Host, Roots, os};
use crate::model::{Fate, Severity, shown};
use crate::pipeline;
use crate::settings::{self, Settings};
use crate::spec::Value;

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
    let path = match ask::socket(args) {
        Ok(path) => path,
        Err(problems) => return validate::refuse(&problems),
    };
    let request = Request::TestAlert { channels: test.channels(), severity: test.severity, resolved: test.resolved };
    let settings = args.settings();
    let asked = path.as_deref().map(|path| control::ask(path, &request).and_then(|answers| report.follow(answers)));
    match (asked, path) {
        (None, _) | (Some(Err(AskError::NoAgent)), _) => match settings {
            Ok(settings) => report.send(args, settings, test).await,
            Err(problems) => validate::refuse(&problems),
        },
        (Some(Err(error)), path) => ask::refuse(&path.unwrap_or_default(), &error),
        (Some(Ok(heard)), _) => {
            // What the agent left out is known only by the configuration, which may need what the agent alone has in its environment.
            report.rest(settings.ok().as_ref(), test, &heard);
            report.finish(true)
        }
    }
}

/// What is known of a test as a whole.
struct Heard {
    /// The agent that runs told it.
    agent: bool,
    sent_to: Vec<String>,
    end: End,
}

struct Report {
    json: bool,
    style: Style,
    rows: Vec<Row>,
}

impl Report {
    /// Takes what the agent tells, as it comes.
    fn follow(&mut self, mut answers: Answers) -> Result<Heard, AskError> {
        let mut sent_to = Vec::new();
        loop {
            match answers.next_answer()? {
                Answer::SentTo(channels) => sent_to = channels,
                Answer::Outcome(timed) => self.take(timed),
                Answer::End(end) => return Ok(Heard { agent: true, sent_to, end }),
                _ => return Err(AskError::Strange("the answer to another question".to_owned())),
            }
        }
    }

    /// Sends it from this process and gives the exit status.
    async fn send(mut self, args: &Args, mut settings: Settings, test: &TestAlertArgs) -> u8 {
        output::say(&"no agent runs with this configuration: sending from here");
        if self.json {
            // It would write between the lines of the document.
            settings.values.set(console::ENABLED.spec(), Value::Bool(false));
        }
        match self.send_all(args, &settings, test).await {
            Ok(heard) => {
                self.rest(Some(&settings), test, &heard);
                self.finish(false)
            }
            Err(error) => {
                output::say(&format_args!("error: {error}"));
                exit::FAILURE
            }
        }
    }

    /// Sends it by an outbox of its own, as the agent does by its.
    async fn send_all(&mut self, args: &Args, settings: &Settings, test: &TestAlertArgs) -> Result<Heard, String> {
        let outbox = Outbox::start(&settings.values).map_err(|errors| errors.join("; "))?;
        let enabled = outbox.channels();
        if let Some(missing) = test.channel.iter().find(|name| !enabled.contains(name)) {
            return Err(format!("{missing}: not enabled: set alerting.{missing}.enabled = true"));
        }
        let host = Host::live(&Roots { root: args.host_root.clone() });
        let by = control::user_name(&host.files, os::effective_user());
        let hostname = pipeline::hostname(settings);
        let now = host.clock.now();
        let notice = trial::notice(&hostname, &by, test.severity, test.resolved, test.channels(), &now);
        let (sent_to, outcomes) = outbox.send_and_watch(&notice);
        let take = async |mut timed: Timed| {
            // This process may end before.
            if let Fate::Later { in_secs, .. } = &mut timed.outcome.result {
                *in_secs = 0;
            }
            self.take(timed);
            Ok::<_, Infallible>(())
        };
        let Ok(end) = trial::follow(sent_to.clone(), outcomes, take).await;
        Ok(Heard { agent: false, sent_to, end })
    }

    fn take(&mut self, Timed { outcome, secs }: Timed) {
        let (result, answer) = match outcome.result {
            Fate::Delivered { answer } => ("delivered", answer),
            Fate::Later { reason, in_secs: 0 } => ("not now", reason),
            Fate::Later { reason, in_secs } => ("not now", format!("{reason}; tried again in {in_secs} s")),
            Fate::Refused { reason } => ("refused", reason),
            Fate::Parked { reason } => ("given up", reason),
        };
        self.add(Row { channel: outcome.channel, result, answer, secs: Some(secs) });
    }

    /// What is known of channels that gave no word: of those that it went to, and of those of the configuration.
    fn rest(&mut self, settings: Option<&Settings>, test: &TestAlertArgs, heard: &Heard) {
        let silent = match heard.end {
            End::Deadline => {
                let goes_on = if heard.agent { "; the outbox goes on" } else { "" };
                format!("none within {} s{goes_on}", trial::PATIENCE.as_secs())
            }
            End::Answered => "none; the log of the agent says more".to_owned(),
        };
        for channel in &heard.sent_to {
            if self.has(channel) {
                continue;
            }
            self.add(Row { channel: channel.clone(), result: "no answer", answer: silent.clone(), secs: None });
        }
        let Some(settings) = settings else { return };
        for entry in channel::ALL.iter().filter(|entry| test.channel.is_empty() || test.names(entry)) {
            if self.has(entry.name) || !matches!((entry.build)(&settings.values), Ok(Some(_))) {
                continue;
            }
            let (result, answer) = if test.wants(entry, settings) {
                ("not sent", "the agent that runs does not have this channel: reload it".to_owned())
            } else {
                let least = settings.values.get(entry.min_severity);
                (
                    "skipped",
                    format!("alerting.{}.min_severity is {least}: --channel {0} sends all the same", entry.name),
                )
            };
            self.add(Row { channel: entry.name.to_owned(), result, answer, secs: None });
        }
    }

    fn has(&self, channel: &str) -> bool {
        self.rows.iter().any(|row| row.channel == channel)
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
        // A further try takes the place of the one before.
        self.rows.retain(|earlier| earlier.channel != row.channel);
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
    fn channels(&self) -> Option<Vec<String>> {
        (!self.channel.is_empty()).then(|| self.channel.clone())
    }

    fn names(&self, entry: &channel::Entry) -> bool {
        self.channel.iter().any(|name| name == entry.name)
    }

    /// True when the channel is to carry it.
    fn wants(&self, entry: &channel::Entry, settings: &Settings) -> bool {
        if !self.channel.is_empty() {
            return self.names(entry);
        }
        Severity::from_name(&settings.values.get(entry.min_severity)).is_none_or(|least| self.severity >= least)
    }
}
