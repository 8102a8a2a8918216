//! `cargo xtask docs [--check]`: the documents that render from the agent's own declarations. Which there are, and what
//! stands in them, is the catalog's; the test `generated_docs` writes stale ones anew and fails then.

use anyhow::{Context, Result, bail};

use crate::{program, workspace};

/// The command.
pub(crate) fn main(args: &[String]) -> Result<()> {
    match args {
        [] => {
            if check().is_ok() {
                program::say("every document was current");
                return Ok(());
            }
            check().context("the documents do not become current by writing them")?;
            program::say("stale documents were written anew: look at the difference and commit it");
            Ok(())
        }
        [flag] if flag == "--check" => check(),
        _ => bail!("docs takes --check or nothing"),
    }
}

/// Every document is what the declarations render to.
///
/// # Errors
/// When one is not; it has been written anew.
pub(crate) fn check() -> Result<()> {
    // Of the whole workspace, or else what it depends on would have other features and be built for it alone.
    program::show(workspace::cargo().args(["test", "--locked", "--workspace", "--test", "generated_docs"]))
}
