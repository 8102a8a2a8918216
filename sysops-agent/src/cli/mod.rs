//! The command line: one file for each subcommand. What it asks for is an [`Action`]; who does it is left to `main`.

pub mod ack;
pub mod alerts;
pub mod ask;
pub mod completions;
pub mod config;
pub mod doctor;
pub mod event_line;
pub mod events;
pub mod inventory;
pub mod leaks;
pub mod live;
pub mod logging;
pub mod man;
pub mod metrics;
pub mod once;
pub mod outbox;
pub mod output;
pub mod overview;
pub mod rules;
pub mod run;
pub mod silence;
pub mod span;
pub mod table;
pub mod test_alert;
pub mod validate;

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{CommandFactory, Parser, Subcommand, ValueEnum};

use crate::catalog;
use crate::kernel::Observation;
use crate::model::Resource;
use crate::settings::{self, DEFAULT_PATH, Problems, Settings};

/// Exit statuses, as sysexits(3) has them.
pub mod exit {
    /// All is well; warnings do not change that.
    pub const OK: u8 = 0;
    /// What was asked for was not possible.
    pub const FAILURE: u8 = 1;
    /// The command line was not understood.
    pub const USAGE: u8 = 64;
    /// Something that is needed is not there.
    pub const UNAVAILABLE: u8 = 69;
    /// A bug in the agent.
    pub const SOFTWARE: u8 = 70;
    /// Output could not be written.
    pub const IO: u8 = 74;
    /// This user may not do that.
    pub const NO_PERMISSION: u8 = 77;
    /// The configuration has mistakes.
    pub const CONFIG: u8 = 78;
}

const AFTER_HELP: &str = "\
Without a subcommand the agent runs in the foreground: readings, kernel events, alerts and telemetry as configured.

Exit status:
   0  well         64  command line not understood   74  output failed
   1  failed       69  something needed is missing   77  not permitted
  78  the configuration has mistakes";

/// Linux monitoring agent that knows what the kernel knows.
#[derive(Clone, Debug, Parser)]
#[command(name = "sysops-agent", version, after_help = AFTER_HELP, max_term_width = 120)]
#[command(subcommand_value_name = "COMMAND", disable_help_subcommand = true)]
pub struct Args {
    /// Configuration file. Without it /etc/sysops-agent/config.toml, and defaults where that does not exist.
    #[arg(short, long, value_name = "FILE", global = true, help_heading = "Global options")]
    pub config: Option<PathBuf>,

    /// Least level that is logged to stderr: trace, debug, info, warn or error. Wins over RUST_LOG and agent.log_level.
    #[arg(
        short,
        long,
        value_name = "LEVEL",
        global = true,
        help_heading = "Global options",
        hide_possible_values = true
    )]
    pub log_level: Option<Level>,

    /// Watch the machine whose /, /proc and /sys are mounted below DIR; wins over HOST_ROOT, HOST_PROC, HOST_SYS.
    #[arg(long, value_name = "DIR", global = true, help_heading = "Global options")]
    pub host_root: Option<PathBuf>,

    /// Check the configuration and end: status 0, or 78 with every mistake and its place.
    #[arg(long, conflicts_with = "inventory_dump")]
    pub validate: bool,

    /// Print what this machine is as JSON and end.
    #[arg(long)]
    pub inventory_dump: bool,

    /// Run as the agent, and show on stdout what `live` shows.
    #[arg(long, conflicts_with_all = ["validate", "inventory_dump"])]
    pub view: bool,

    /// What to do instead of running.
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// Subcommands.
#[derive(Clone, Debug, Subcommand, PartialEq, Eq)]
pub enum Command {
    /// Read everything once, with rates, and print it.
    Once {
        /// How to print it; json is what NATS `…metrics` carries.
        #[arg(long, value_enum, default_value_t = OnceFormat::Text)]
        format: OnceFormat,
    },
    /// Say where each probe and collector stands, why, and what would mend it.
    Doctor {
        /// Print one JSON document.
        #[arg(long)]
        json: bool,
    },
    /// Print kernel events as they happen.
    Events(EventsArgs),
    /// Watch processes for a while and name the stacks that took what was not given back.
    Leaks(LeaksArgs),
    /// Show readings, events and alerts as they happen: sends and keeps nothing, so it may run beside the agent.
    Live,
    /// List the alerts of the agent that runs: firing first, worst first.
    Alerts {
        /// Also those that are in breach, but not yet for long enough.
        #[arg(long)]
        all: bool,
        /// Print one JSON document.
        #[arg(long)]
        json: bool,
    },
    /// Say that you take care of an alert: nobody else is told of it again.
    Ack(ack::AckArgs),
    /// Keep alerts from people for a while.
    #[command(subcommand)]
    Silence(silence::SilenceCommand),
    /// Send a test through the channels, and say what the far ends answer.
    TestAlert(test_alert::TestAlertArgs),
    /// Say how the outbox and each channel do, and what keeps alerts waiting.
    Outbox {
        /// Print one JSON document.
        #[arg(long)]
        json: bool,
    },
    /// Try rules before they are needed.
    #[command(subcommand)]
    Rules(rules::RulesCommand),
    /// List every metric with type, unit and labels.
    Metrics {
        /// How to print it.
        #[arg(long, value_enum, default_value_t = MetricsFormat::Text)]
        format: MetricsFormat,
    },
    /// Print the default configuration, its schema, or what holds.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Print a completion script.
    Completions {
        /// The shell to print it for.
        #[arg(value_enum)]
        shell: clap_complete::Shell,
    },
    /// Print the manual page (roff).
    Man,
}

/// Arguments of `events`.
#[derive(Clone, Debug, clap::Args, PartialEq, Eq)]
pub struct EventsArgs {
    /// Print one JSON object a line.
    #[arg(long)]
    pub json: bool,
    /// Only events of this kind; may be given more than once.
    #[arg(long, value_name = "KIND", value_parser = clap::builder::PossibleValuesParser::new(catalog::EVENT_KINDS))]
    pub kind: Vec<String>,
    /// End after this many events.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,
    /// End after this many seconds.
    #[arg(long, value_name = "S", value_parser = clap::value_parser!(u64).range(1..))]
    pub seconds: Option<u64>,
}

impl EventsArgs {
    /// How long to listen; without end when `None`.
    #[must_use]
    pub fn limit(&self) -> Option<Duration> {
        self.seconds.map(Duration::from_secs)
    }

    /// True when an event of this kind is asked for.
    #[must_use]
    pub fn wants(&self, kind: &str) -> bool {
        self.kind.is_empty() || self.kind.iter().any(|wanted| wanted == kind)
    }
}

/// Arguments of `leaks`.
#[derive(Clone, Debug, clap::Args, PartialEq, Eq)]
pub struct LeaksArgs {
    /// The process; may be given more than once. Without it those are watched that look as if they leaked.
    #[arg(long, value_name = "P", value_parser = clap::value_parser!(u32).range(1..))]
    pub pid: Vec<u32>,
    /// Watch for this many seconds; an interrupt ends it early.
    #[arg(long, value_name = "N", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub seconds: u64,
    /// What may leak; may be given more than once.
    #[arg(long, value_enum, value_name = "WHAT", default_values_t = [LeakResource::Fd])]
    pub resource: Vec<LeakResource>,
    /// Follow the memory of one process from each call of its allocator, to the byte. It slows the process down: by some
    /// microseconds a call.
    #[arg(long, requires = "pid")]
    pub malloc: bool,
    /// Print one JSON object a line for each process, with all stacks.
    #[arg(long)]
    pub json: bool,
}

impl LeaksArgs {
    /// What is to be watched.
    #[must_use]
    pub fn observation(&self) -> Observation {
        let mut resources: Vec<Resource> = self.resource.iter().map(|one| one.resource()).collect();
        resources.dedup();
        let malloc = self.malloc;
        if malloc && !resources.contains(&Resource::Memory) {
            resources = vec![Resource::Memory];
        }
        Observation { resources, pids: self.pid.clone(), malloc, length: Duration::from_secs(self.seconds) }
    }
}

/// What `leaks` looks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LeakResource {
    /// File descriptors.
    Fd,
    /// Anonymous memory.
    Memory,
}

impl LeakResource {
    const fn resource(self) -> Resource {
        match self {
            Self::Fd => Resource::Fd,
            Self::Memory => Resource::Memory,
        }
    }
}

/// Formats of `once`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OnceFormat {
    /// A table for people.
    Text,
    /// One JSON document.
    Json,
    /// Prometheus text format; without the names of node_exporter that Prometheus's linter refuses, which the endpoint has.
    Prometheus,
}

/// Formats of `metrics`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum MetricsFormat {
    /// A table for people.
    Text,
    /// docs/METRICS.md.
    Markdown,
    /// One JSON document.
    Json,
}

/// Subcommands of `config`.
#[derive(Clone, Copy, Debug, Subcommand, PartialEq, Eq)]
pub enum ConfigCommand {
    /// Every key with its default, commented: a file to start from.
    Default,
    /// JSON schema of the file, for editors.
    Schema,
    /// Every key with the value that holds; secrets as ***, ${…} as written.
    Show,
}

/// Levels of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Level {
    /// Everything.
    Trace,
    /// What a developer wants to know.
    Debug,
    /// What an operator wants to know.
    Info,
    /// What is not as it should be.
    Warn,
    /// What failed.
    Error,
}

impl Level {
    /// As `agent.log_level` has it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Trace => "trace",
            Self::Debug => "debug",
            Self::Info => "info",
            Self::Warn => "warn",
            Self::Error => "error",
        }
    }
}

/// What the command line asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Run in the foreground.
    Run,
    /// `--view`.
    RunWithView,
    /// `--validate`.
    Validate,
    /// `--inventory-dump`.
    InventoryDump,
    /// A subcommand.
    Command(Command),
}

impl Args {
    /// What is asked for.
    #[must_use]
    pub fn action(&self) -> Action {
        match &self.command {
            Some(command) => Action::Command(command.clone()),
            None if self.validate => Action::Validate,
            None if self.inventory_dump => Action::InventoryDump,
            None if self.view => Action::RunWithView,
            None => Action::Run,
        }
    }

    /// The configuration file: `--config`, else the default one where it exists.
    #[must_use]
    pub fn config_file(&self) -> Option<&Path> {
        let default = Path::new(DEFAULT_PATH);
        // A file that is there and cannot be read is an error, not a reason for defaults; so is a broken link.
        self.config.as_deref().or_else(|| default.symlink_metadata().is_ok().then_some(default))
    }

    /// Reads and checks the configuration.
    ///
    /// # Errors
    /// All its mistakes.
    pub fn settings(&self) -> Result<Settings, Problems> {
        settings::load(self.config_file(), &catalog::declared(), &settings::environment)
    }
}

/// The arguments; when they are not understood, or ask for help or the version, the text is printed and the exit
/// status returned.
///
/// # Errors
/// The exit status.
pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Args, u8> {
    let parsed = Args::try_parse_from(args).and_then(|args| {
        let flags = [(args.validate, "--validate"), (args.inventory_dump, "--inventory-dump"), (args.view, "--view")];
        if let Some((_, flag)) = flags.into_iter().find(|(given, _)| *given && args.command.is_some()) {
            let message = format!("{flag} cannot be used with a subcommand");
            return Err(Args::command().error(clap::error::ErrorKind::ArgumentConflict, message));
        }
        Ok(args)
    });
    parsed.map_err(|error| {
        let status = if error.use_stderr() { exit::USAGE } else { exit::OK };
        match error.print() {
            Err(failure) if failure.kind() != io::ErrorKind::BrokenPipe => exit::IO,
            _ => status,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Args {
        parse(line.split(' ').map(OsString::from)).unwrap_or_else(|status| panic!("{line}: status {status}"))
    }

    fn refused(line: &str) -> clap::error::ErrorKind {
        Args::try_parse_from(line.split(' ')).expect_err(line).kind()
    }

    #[test]
    fn the_definition_is_sound() {
        Args::command().debug_assert();
    }

    #[test]
    fn help() {
        let help = |command: &mut clap::Command| command.clone().term_width(100).render_long_help().to_string();
        let mut command = Args::command();
        command.build();
        let mut pages = vec![help(&mut command)];
        pages.extend(command.get_subcommands_mut().map(help));
        insta::assert_snapshot!(pages.join("\n────────\n"));
    }

    #[test]
    fn every_argument_says_what_it_is_for() {
        fn walk(command: &clap::Command) {
            assert!(command.get_about().is_some(), "{} has no help", command.get_name());
            for argument in command.get_arguments() {
                assert!(argument.get_help().is_some(), "{} {} has no help", command.get_name(), argument.get_id());
            }
            command.get_subcommands().for_each(walk);
        }
        let mut command = Args::command();
        command.build();
        walk(&command);
    }

    #[test]
    fn actions() {
        assert_eq!(parsed("sysops-agent").action(), Action::Run);
        assert_eq!(parsed("sysops-agent --config a.toml --validate").action(), Action::Validate);
        assert_eq!(parsed("sysops-agent --inventory-dump").action(), Action::InventoryDump);
        let once = parsed("sysops-agent once --format json --host-root /host --config a.toml");
        assert_eq!(once.action(), Action::Command(Command::Once { format: OnceFormat::Json }));
        assert_eq!((once.config, once.host_root), (Some("a.toml".into()), Some("/host".into())));
        let Action::Command(Command::Events(events)) =
            parsed("sysops-agent events --kind oom_kill --seconds 5").action()
        else {
            panic!("events");
        };
        assert_eq!(events.limit(), Some(Duration::from_secs(5)));
        assert!(events.wants("oom_kill") && !events.wants("hung_task"));
    }

    #[test]
    fn what_is_not_understood_is_a_usage_error() {
        use clap::error::ErrorKind;
        assert_eq!(refused("sysops-agent --confg x"), ErrorKind::UnknownArgument);
        assert_eq!(refused("sysops-agent once --format yaml"), ErrorKind::InvalidValue);
        assert_eq!(refused("sysops-agent events --kind oom"), ErrorKind::InvalidValue);
        assert_eq!(refused("sysops-agent events --count 0"), ErrorKind::ValueValidation);
        assert_eq!(refused("sysops-agent --validate --inventory-dump"), ErrorKind::ArgumentConflict);
        assert_eq!(parse(["sysops-agent", "--validate", "live"].map(OsString::from)).err(), Some(exit::USAGE));
        assert_eq!(parse(["sysops-agent", "--nope"].map(OsString::from)).err(), Some(exit::USAGE));
    }
}
