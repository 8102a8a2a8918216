//! What a process logs, for tests that hold that something is said, or never is.

use std::io::{Result, Write};
use std::sync::{Arc, Mutex};

use tracing_subscriber::filter::LevelFilter;

/// Everything that is logged, by everyone, at the finest level.
#[derive(Clone, Default)]
pub struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    /// Begins. A process has one log: each test that catches it is a process of its own.
    #[must_use]
    pub fn catch() -> Self {
        let log = Self::default();
        let writer = log.clone();
        let all = tracing_subscriber::fmt().with_max_level(LevelFilter::TRACE).with_ansi(false);
        all.with_writer(move || writer.clone()).init();
        log
    }

    /// All so far.
    ///
    /// # Panics
    /// When a thread has died while it logged.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().expect("no holder panics")).into_owned()
    }

    /// How often `text` is in it.
    #[must_use]
    pub fn count(&self, text: &str) -> usize {
        self.text().matches(text).count()
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> Result<usize> {
        self.0.lock().expect("no holder panics").write(bytes)
    }

    fn flush(&mut self) -> Result<()> {
        Ok(())
    }
}
