//! Runs the agent in the foreground, as a daemon without a view or with one (`live`).

use std::path::Path;

use anyhow::Context as _;

use super::logging::{self, Log};
use super::{exit, output};
use crate::catalog;
use crate::host::Host;
use crate::pipeline::{Observer, Pipeline};
use crate::settings::{self, Problems, Settings, keys};

/// Runs until SIGTERM or SIGINT and gives the exit status. `adapt` is what this way of running wants different in every
/// configuration, the first and those that are read after SIGHUP.
pub async fn run(
    host: Host,
    mut settings: Settings,
    log: Log,
    observer: Box<dyn Observer>,
    adapt: fn(&mut Settings),
) -> u8 {
    adapt(&mut settings);
    let pid_file = settings.values.get(&keys::PID_FILE);
    logging::announce(&settings);
    let reloaded = move |result: Result<&Settings, &Problems>| match result {
        Ok(settings) => {
            log.reload(settings, &settings::environment);
            logging::announce(settings);
        }
        Err(problems) => logging::refused(problems),
    };
    let read = move |file: &Path| {
        let mut settings = settings::load(Some(file), &catalog::declared(), &settings::environment)?;
        adapt(&mut settings);
        Ok(settings)
    };
    match Pipeline::start(host, settings, Box::new(read), observer, Box::new(reloaded)) {
        Ok(pipeline) => {
            let _pid_file = pid_file.as_deref().map(PidFile::write);
            pipeline.run().await;
            exit::OK
        }
        Err(error) => {
            output::say(&format_args!("error: {error:#}"));
            exit::UNAVAILABLE
        }
    }
}

/// The pid file; it goes with the agent. One that cannot be written is said and no reason not to run.
struct PidFile<'a> {
    path: Option<&'a str>,
}

impl<'a> PidFile<'a> {
    fn write(path: &'a str) -> Self {
        let written = std::fs::write(path, format!("{}\n", std::process::id())).with_context(|| path.to_owned());
        if let Err(error) = &written {
            tracing::warn!("agent.pid_file: cannot write {error:#}; running without");
        }
        Self { path: written.is_ok().then_some(path) }
    }
}

impl Drop for PidFile<'_> {
    fn drop(&mut self) {
        if let Some(path) = self.path {
            _ = std::fs::remove_file(path);
        }
    }
}
