//! TOML as written becomes checked values, and every mistake is shown with its place. What the values mean is left
//! to the components that declared them.

mod check;
mod document;
mod expand;
mod file;
pub mod keys;
pub mod later;
mod problem;
mod redact;
mod show;
mod suggest;
pub mod write;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

pub use problem::{Problem, Problems};

use crate::spec::{Check, KeySpec, Value, Values};

/// Where the agent looks when no `--config` is given.
pub const DEFAULT_PATH: &str = "/etc/sysops-agent/config.toml";

/// A configuration that was accepted.
#[derive(Debug, Default)]
pub struct Settings {
    /// What was set, checked; what was not has its key's fallback.
    pub values: Values,
    /// The file; `None` when all values are defaults.
    pub file: Option<PathBuf>,
    /// `agent.hostname` when it is set; else the kernel's node name is the name.
    pub hostname: Option<String>,
    /// Keys that were set and belong to parts that come later, sorted.
    pub not_built: Vec<String>,
    /// Tables that were set and whose part was left out of this build, with the feature that brings it.
    pub not_in_build: Vec<Absent>,
    /// What is accepted but should not stay so.
    pub warnings: Vec<Problem>,
    /// What was set, as it was written: `${…}` not expanded.
    written: Values,
    /// In which line each key and table stands that was found.
    lines: BTreeMap<String, usize>,
}

impl Settings {
    /// The agent's name for itself: `agent.hostname`, else `nodename` of uname(2).
    #[must_use]
    pub fn hostname_or(&self, nodename: &str) -> String {
        self.hostname.clone().unwrap_or_else(|| nodename.to_owned())
    }

    /// From now on nothing that these settings make reads or keeps what outlives the process.
    pub fn keep_nothing(&mut self) {
        self.values.set(keys::DATA_DIR.spec(), Value::Text(String::new()));
    }

    /// The line of the file in which a key or table stands: `rule[2].metric`, `rule[2]`. Lines count from 1.
    #[must_use]
    pub fn line_of(&self, path: &str) -> Option<usize> {
        self.lines.get(path).copied()
    }

    /// What was set and does nothing, each kind in one line, for the log and for `--validate`.
    #[must_use]
    pub fn notices(&self) -> Vec<String> {
        let mut lines = Vec::new();
        if !self.not_built.is_empty() {
            lines.push(format!("not built yet: {}", show::grouped(&self.not_built)));
        }
        for absent in &self.not_in_build {
            lines.push(format!("not in this build: [{}] needs feature {}", absent.table, absent.feature));
        }
        lines
    }

    /// Every known key with its effective value as TOML: secrets as `***`, `${…}` as written.
    #[must_use]
    pub fn show(&self, declared: &Declared) -> String {
        show::show(self, declared)
    }
}

/// A table whose part was left out of this build.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Absent {
    /// The table, without brackets.
    pub table: &'static str,
    /// The cargo feature that brings it.
    pub feature: &'static str,
}

/// Everything that a configuration may say.
#[derive(Debug, Default)]
pub struct Declared {
    /// All keys, none twice.
    pub keys: Vec<&'static KeySpec>,
    /// Tables of parts that were left out of this build: accepted and reported, checked as far as their keys are known.
    pub absent: Vec<Absent>,
    /// The components' looks at their values, for what is wrong with them.
    pub checks: Vec<Check>,
    /// The same for what is accepted but does not do what it seems to.
    pub doubts: Vec<Check>,
}

/// Reads and checks a configuration. Without a path every value is the default.
///
/// # Errors
/// All mistakes at once, in order of their places, none with the value of a secret.
pub fn load(
    path: Option<&Path>,
    declared: &Declared,
    lookup_env: &dyn Fn(&str) -> Option<String>,
) -> Result<Settings, Problems> {
    let Some(path) = path else {
        return Ok(Settings::default());
    };
    let file = file::read(path)?;
    let mut settings = parse(&file.name, &file.text, declared, lookup_env)?;
    settings.warnings.extend(file::exposed(&file, &check::literal_secrets(&settings, declared)));
    settings.file = Some(path.to_owned());
    Ok(settings)
}

/// As [`load`], for text that was already read; `name` stands for the file in messages.
///
/// # Errors
/// As [`load`].
pub fn parse(
    name: &str,
    text: &str,
    declared: &Declared,
    lookup_env: &dyn Fn(&str) -> Option<String>,
) -> Result<Settings, Problems> {
    check::check(name, text, declared, lookup_env)
}

/// The process's environment, for [`load`] and for the command line. What is not UTF-8 counts as not set.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "the environment is read here and in host/mod.rs only")]
pub fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok()
}
