//! `completions SHELL`: a script that completes this command line.

use clap::CommandFactory as _;
use clap_complete::Shell;

use super::{Args, output};

/// Prints the script and gives the exit status.
#[must_use]
pub fn run(shell: Shell) -> u8 {
    output::stdout(|out| out.write_all(&script(shell)))
}

/// The script.
#[must_use]
pub fn script(shell: Shell) -> Vec<u8> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Args::command(), "sysops-agent", &mut script);
    script
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum as _;

    use super::*;

    #[test]
    fn every_shell_learns_every_subcommand() {
        for &shell in Shell::value_variants() {
            let script = String::from_utf8(script(shell)).expect("UTF-8");
            for name in ["doctor", "events", "host-root", "inventory-dump", "test-alert", "silence"] {
                assert!(script.contains(name), "{shell}: no {name}");
            }
        }
    }
}
