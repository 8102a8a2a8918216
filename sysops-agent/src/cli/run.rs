//! Runs the agent in the foreground, as a daemon without a view or with one (`live`).

use std::cell::RefCell;
use std::path::Path;
use std::rc::Rc;

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
    let wanted = settings.values.get(&keys::PID_FILE);
    let pid_file = Rc::new(RefCell::new(PidFile::default()));
    logging::announce(&settings);
    let theirs = Rc::clone(&pid_file);
    let reloaded = move |result: Result<&Settings, &Problems>| match result {
        Ok(settings) => {
            log.reload(settings, &settings::environment);
            logging::announce(settings);
            theirs.borrow_mut().be(settings.values.get(&keys::PID_FILE));
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
            pid_file.borrow_mut().be(wanted);
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
#[derive(Default)]
struct PidFile {
    path: Option<String>,
}

impl PidFile {
    /// From now on it is the file `wanted`, or none.
    fn be(&mut self, wanted: Option<String>) {
        if self.path == wanted {
            return;
        }
        self.remove();
        let Some(path) = wanted else { return };
        match std::fs::write(&path, format!("{}\n", std::process::id())) {
            Ok(()) => self.path = Some(path),
            Err(error) => tracing::warn!("agent.pid_file: cannot write {path}: {error}; running without"),
        }
    }

    fn remove(&mut self) {
        if let Some(path) = self.path.take() {
            _ = std::fs::remove_file(path);
        }
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        self.remove();
    }
}
