//! Processes that keep every CPU busy while a test measures what the agent sees under load.
#![expect(clippy::disallowed_methods, reason = "tests are outside of the agent: they run programs")]

use std::process::{Child, Command, Stdio};

/// One process for each CPU that does nothing but run. They end when it is dropped.
pub struct Busy(Vec<Child>);

impl Busy {
    /// Starts them.
    ///
    /// # Panics
    /// When no shell can be started.
    #[must_use]
    pub fn start() -> Self {
        let count = std::thread::available_parallelism().map_or(1, usize::from);
        let run = || Command::new("sh").args(["-c", "while :; do :; done"]).stdin(Stdio::null()).spawn();
        Self((0..count).map(|_| run().expect("there is a shell")).collect())
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        for child in &mut self.0 {
            // A loop without an end is still running.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
