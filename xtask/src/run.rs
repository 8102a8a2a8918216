//! `cargo xtask run [-- ARGS]`: set-up and main job in one: builds what is not built, then becomes the agent.

use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Error, Result};

use crate::{after_dashes, build, workspace};

/// The command. It returns only when the agent cannot be started.
pub(crate) fn main(args: &[String]) -> Result<()> {
    build::release()?;
    let agent = workspace::agent();
    let error = Command::new(&agent).args(agent_args(after_dashes(args))).env_remove("LD_LIBRARY_PATH").exec();
    Err(Error::new(error).context(format!("{}: cannot be started", agent.display())))
}

/// Without arguments the live view; else what was given, as it is.
fn agent_args(args: &[String]) -> Vec<&str> {
    if args.is_empty() { vec!["live"] } else { args.iter().map(String::as_str).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_arguments_mean_the_live_view() {
        assert_eq!(agent_args(&[]), ["live"]);
        assert_eq!(agent_args(&["doctor".into(), "--json".into()]), ["doctor", "--json"]);
    }
}
