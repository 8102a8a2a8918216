//! `config default`, `config schema`, `config show`.

use super::{Args, ConfigCommand, output, validate};
use crate::catalog::{self, documents};

/// Prints what is asked for and gives the exit status.
#[must_use]
pub fn run(command: ConfigCommand, args: &Args) -> u8 {
    let text = match command {
        ConfigCommand::Default => documents::agent_toml(),
        ConfigCommand::Schema => documents::schema(),
        ConfigCommand::Show => match args.settings() {
            Ok(settings) => settings.show(&catalog::declared()),
            Err(problems) => return validate::refuse(&problems),
        },
    };
    output::stdout(|out| out.write_all(text.as_bytes()))
}
