//! The agent's binary as a test's own child, as an operator would start it.
#![expect(
    clippy::disallowed_methods,
    clippy::panic,
    reason = "tests are outside of the agent: they read files, run programs and fail by panic"
)]

use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use crate::servers::Scratch;

/// What is missing to run the agent's binary. `cargo xtask test` builds it first.
#[must_use]
pub fn missing() -> Option<String> {
    (!binary().is_file()).then(|| format!("needs {}: cargo build -p sysops-agent", binary().display()))
}

/// The agent's binary: the one that was built beside this test.
#[must_use]
pub fn binary() -> PathBuf {
    let test = std::env::current_exe().expect("a test has a path");
    // target/<profile>/deps/<test>
    test.ancestors().nth(2).expect("tests stand in deps").join("sysops-agent")
}

/// Runs it to its end.
///
/// # Panics
/// When it cannot be started.
#[must_use]
pub fn run(arguments: &[&str]) -> Output {
    Command::new(binary()).args(arguments).stdin(Stdio::null()).output().expect("missing() was asked")
}

/// A running agent; it is killed when dropped.
pub struct Agent {
    child: Child,
    scratch: Scratch,
}

impl Agent {
    /// Starts it with `configuration` (in which `@DATA@` stands for a data directory of its own) and `arguments`.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn start(configuration: &str, arguments: &[&str]) -> Self {
        let scratch = Scratch::new();
        let configuration = configuration.replace("@DATA@", &scratch.path().display().to_string());
        let file = scratch.file("config.toml", &configuration);
        let output = |name: &str| std::fs::File::create(scratch.path().join(name)).expect("our own directory");
        let child = Command::new(binary())
            .arg("--config")
            .arg(file)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(output("stdout"))
            .stderr(output("stderr"))
            .spawn()
            .expect("missing() was asked");
        Self { child, scratch }
    }

    /// Its pid.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it wrote to stdout so far.
    #[must_use]
    pub fn stdout(&self) -> String {
        self.read("stdout")
    }

    /// What it wrote to stderr so far.
    #[must_use]
    pub fn stderr(&self) -> String {
        self.read("stderr")
    }

    /// Writes its configuration anew.
    pub fn configure(&self, configuration: &str) {
        let configuration = configuration.replace("@DATA@", &self.scratch.path().display().to_string());
        let _ = self.scratch.file("config.toml", &configuration);
    }

    /// Sends it a signal.
    ///
    /// # Panics
    /// When it has ended.
    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).expect("it runs");
    }

    /// Waits until `is_so`.
    ///
    /// # Panics
    /// When it is not so within 30 s, with what the agent said.
    pub fn wait_until(&self, what: &str, mut is_so: impl FnMut(&Self) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while !is_so(self) {
            assert!(Instant::now() < deadline, "{what}: not so after 30 s\n{}\n{}", self.stdout(), self.stderr());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits until its collectors ran and its probes stand.
    pub fn wait_until_ready(&self) {
        self.wait_until("the first round of collectors is over", |agent| agent.stderr().contains("ready: "));
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// When it has not ended within `limit`.
    pub fn end(&mut self, limit: Duration) -> ExitStatus {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.child.try_wait().expect("our child") {
                return status;
            }
            assert!(Instant::now() < deadline, "it has not ended within {limit:?}\n{}", self.stderr());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn read(&self, name: &str) -> String {
        let bytes = std::fs::read(self.scratch.path().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
