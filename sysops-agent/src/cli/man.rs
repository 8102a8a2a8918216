//! `man`: one manual page for the whole command line, rendered from its definition.

use std::io;

use clap::CommandFactory as _;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};

use super::{Args, output};
use crate::settings::DEFAULT_PATH;

/// Prints the page and gives the exit status.
#[must_use]
pub fn run() -> u8 {
    output::stdout(|out| out.write_all(page()?.as_bytes()))
}

/// The page in roff.
///
/// # Errors
/// None that writing to memory can have.
pub fn page() -> io::Result<String> {
    let mut command = Args::command().disable_help_flag(true);
    command.build();
    let mut page = Vec::new();
    let man = Man::new(command.clone());
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    man.render_options_section(&mut page)?;
    Roff::default().control("SH", ["COMMANDS"]).to_writer(&mut page)?;
    for subcommand in command.get_subcommands() {
        subcommand_section(subcommand, "", &mut page)?;
    }
    closing().to_writer(&mut page)?;
    String::from_utf8(page).map_err(io::Error::other)
}

/// A subcommand's heading, text and options.
fn subcommand_section(command: &clap::Command, parent: &str, page: &mut Vec<u8>) -> io::Result<()> {
    let name = format!("{parent}{}", command.get_name());
    Roff::default().control("SS", [name.as_str()]).to_writer(page)?;
    let about = command.get_about().map(ToString::to_string).unwrap_or_default();
    Roff::default().text([roman(about)]).to_writer(page)?;
    for argument in command.get_arguments().filter(|argument| !argument.is_global_set() && !argument.is_hide_set()) {
        let term = argument.get_long().map_or_else(String::new, |long| format!("--{long}"));
        let values = argument.get_value_names().filter(|_| argument.get_action().takes_values()).unwrap_or_default();
        let values: Vec<&str> = values.iter().map(clap::builder::Str::as_str).collect();
        let help = argument.get_help().map(ToString::to_string).unwrap_or_default();
        let possible: Vec<String> =
            argument.get_possible_values().iter().map(|value| value.get_name().to_owned()).collect();
        let help = match &possible[..] {
            [] => help,
            _ if !argument.get_action().takes_values() => help,
            words => format!("{help}. One of: {}.", words.join(", ")),
        };
        let term = [term, values.join(" ")].into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(" ");
        let mut roff = Roff::default();
        roff.control("TP", []).text([bold(term)]).text([roman(help)]);
        roff.to_writer(page)?;
    }
    command.get_subcommands().try_for_each(|inner| subcommand_section(inner, &format!("{name} "), page))
}

fn closing() -> Roff {
    let mut roff = Roff::default();
    let mut section = |title: &str, entries: &[(&str, &str)]| {
        roff.control("SH", [title]);
        for &(term, text) in entries {
            roff.control("TP", []).text([bold(term)]).text([roman(text)]);
        }
    };
    section(
        "SIGNALS",
        &[
            ("SIGHUP", "Read the configuration again; a file with mistakes changes nothing."),
            ("SIGTERM, SIGINT", "Send what is queued and end with status 0."),
        ],
    );
    section("FILES", &[(DEFAULT_PATH, "The configuration; `sysops-agent config default` prints one to start from.")]);
    section(
        "ENVIRONMENT",
        &[
            ("HOST_ROOT, HOST_PROC, HOST_SYS", "Where the watched machine's file systems are mounted."),
            ("RUST_LOG", "Levels of the log by module, as warn,sysops_agent::kernel=debug."),
            ("NO_COLOR", "When set and not empty: no colour."),
        ],
    );
    section(
        "EXIT STATUS",
        &[
            ("0", "All is well."),
            ("1", "What was asked for was not possible."),
            ("64", "The command line was not understood."),
            ("69", "Something that is needed is not there."),
            ("74", "Output could not be written."),
            ("77", "This user may not do that."),
            ("78", "The configuration has mistakes; each is printed with file, line and column."),
        ],
    );
    roff
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_as_a_whole() {
        insta::assert_snapshot!(page().expect("memory can be written").replace(env!("CARGO_PKG_VERSION"), "VERSION"));
    }
}
