//! The agent's binary: arguments → settings → what was asked for → exit status.

use std::process::ExitCode;

use sysops_agent::cli::logging::Log;
use sysops_agent::cli::{self, Action, Args, Command, exit, output};
use sysops_agent::host::{Host, Roots};
use sysops_agent::pipeline::{self, Nobody};
use sysops_agent::settings::{self, Settings};
use tokio::task::LocalSet;

fn main() -> ExitCode {
    let status = match cli::parse(std::env::args_os()) {
        Ok(args) => run(&args),
        Err(status) => status,
    };
    // A collector that hangs in the kernel keeps its thread; the process does not wait for it.
    std::process::exit(status.into())
}

fn run(args: &Args) -> u8 {
    match args.action() {
        Action::Validate => return cli::validate::run(args),
        Action::Command(Command::Metrics { format }) => return cli::metrics::run(format),
        Action::Command(Command::Config(command)) => return cli::config::run(command, args),
        Action::Command(Command::Completions { shell }) => return cli::completions::run(shell),
        Action::Command(Command::Man) => return cli::man::run(),
        Action::Command(Command::Alerts { all, json }) => return cli::alerts::run(args, all, json),
        Action::Command(Command::Ack(ack)) => return cli::ack::run(args, &ack),
        Action::Command(Command::Silence(command)) => return cli::silence::run(args, &command),
        Action::Command(Command::Outbox { json }) => return cli::outbox::run(args, json),
        Action::Command(Command::Rules(command)) => return cli::rules::run(&command),
        Action::Command(Command::TestAlert(test)) => return on_a_loop(cli::test_alert::run(args, &test)),
        Action::Run | Action::RunWithView | Action::InventoryDump | Action::Command(_) => {}
    }
    let settings = match args.settings() {
        Ok(settings) => settings,
        Err(problems) => return cli::validate::refuse(&problems),
    };
    let log = cli::logging::start(args.log_level, &settings, &settings::environment);
    let host = Host::live(&Roots { root: args.host_root.clone() });
    on_a_loop(work(args.action(), host, settings, log))
}

fn on_a_loop(work: impl Future<Output = u8>) -> u8 {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    match runtime {
        Ok(runtime) => LocalSet::new().block_on(&runtime, work),
        Err(error) => {
            output::say(&format_args!("error: no event loop: {error}"));
            exit::UNAVAILABLE
        }
    }
}

async fn work(action: Action, host: Host, settings: Settings, log: Log) -> u8 {
    let hostname = pipeline::hostname(&settings);
    match action {
        Action::InventoryDump => cli::inventory::run(&host, &settings, &hostname),
        Action::Command(Command::Once { format }) => cli::once::run(&host, &settings, &hostname, format).await,
        Action::Command(Command::Doctor { json }) => cli::doctor::run(&host, &settings, json).await,
        Action::Command(Command::Events(events)) => cli::events::run(&host, settings, &events).await,
        Action::Command(Command::Leaks(leaks)) => cli::leaks::run(&host, &settings, &leaks).await,
        Action::Command(Command::Live) => cli::run::run(host, settings, log, view(), cli::live::adapt).await,
        Action::RunWithView => cli::run::run(host, settings, log, view(), cli::live::adapt_agent).await,
        _ => cli::run::run(host, settings, log, Box::new(Nobody), |_| ()).await,
    }
}

fn view() -> Box<cli::live::Live> {
    Box::new(cli::live::Live::new(output::Style::stdout(&settings::environment)))
}
