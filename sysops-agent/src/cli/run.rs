//! Runs the agent in the foreground, as a daemon without a view or with one (`live`).

use anyhow::Context as _;

use super::logging::{self, Log};
use super::{exit, output};
use crate::catalog;
use crate::host::Host;
use crate::pipeline::{Observer, Pipeline};
use crate::settings::{self, Problems, Settings, keys};

/// Runs until SIGTERM or SIGINT and gives the exit status.
pub async fn run(host: Host, settings: Settings, log: Log, observer: Box<dyn Observer>) -> u8 {
    let pid_file = settings.values.get(&keys::PID_FILE);
    logging::announce(&settings);
    let reloaded = move |result: Result<&Settings, &Problems>| match result {
        Ok(settings) => {
            log.reload(settings, &settings::environment);
            logging::announce(settings);
        }
        Err(problems) => logging::refused(problems),
    };
    match Pipeline::start(host, settings, catalog::declared(), observer, Box::new(reloaded)) {
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
