//! `cargo xtask docs [--check]`: writes, or checks, the documents that render from the agent's own declarations.
//! What stands in them is the agent's word (`config`, `metrics`); here is only where it goes.

use anyhow::{Context, Result, bail};

use crate::{program, workspace};

/// Each document and the agent's arguments that print it.
const DOCUMENTS: &[(&str, &[&str])] = &[
    ("config/agent.toml", &["config", "default"]),
    ("config/agent.schema.json", &["config", "schema"]),
    ("docs/CONFIGURATION.md", &["config", "markdown"]),
    ("docs/METRICS.md", &["metrics", "--format", "markdown"]),
];

/// The command.
pub(crate) fn main(args: &[String]) -> Result<()> {
    match args {
        [] => each(|path, text| {
            let file = workspace::root().join(path);
            if let Some(dir) = file.parent() {
                std::fs::create_dir_all(dir)?;
            }
            std::fs::write(&file, text).with_context(|| path.to_owned())?;
            program::say(format!("{path}: written"));
            Ok(())
        }),
        [flag] if flag == "--check" => check(),
        _ => bail!("docs takes --check or nothing"),
    }
}

/// Every document is what the agent says now.
///
/// # Errors
/// With the names of those that are not.
pub(crate) fn check() -> Result<()> {
    let mut stale = Vec::new();
    each(|path, text| {
        if std::fs::read_to_string(workspace::root().join(path)).is_ok_and(|found| found == text) {
            program::say(format!("{path}: current"));
        } else {
            stale.push(path.to_owned());
        }
        Ok(())
    })?;
    if !stale.is_empty() {
        bail!("not what the agent says now: {}; run `cargo xtask docs`", stale.join(", "));
    }
    Ok(())
}

fn each(mut with: impl FnMut(&str, &str) -> Result<()>) -> Result<()> {
    program::show(workspace::cargo().args(["build", "--locked", "--quiet", "--package", "sysops-agent"]))?;
    let agent = workspace::target().join("debug/sysops-agent");
    for (path, args) in DOCUMENTS {
        let text = program::capture(std::process::Command::new(&agent).args(*args)).context(*path)?;
        with(path, &text)?;
    }
    Ok(())
}
