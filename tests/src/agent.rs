//! The agent's binary as a test's own child, as an operator would start it.
#![expect(
    clippy::disallowed_methods,
    clippy::panic,
    reason = "tests are outside of the agent: they read files, run programs and fail by panic"
)]

use std::path::{Path, PathBuf};
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
    Launch::default().run(arguments)
}

/// How the agent is started, when not as the test itself: by whom, and with which environment.
#[derive(Debug, Default)]
pub struct Launch {
    before: Vec<String>,
    environment: Vec<(String, String)>,
    /// A copy of the binary in a place that every user can reach, and the user.
    other_user: Option<(Scratch, u32)>,
}

impl Launch {
    /// Through a program that becomes the agent: `program` begins a command line that ends with the agent's own.
    #[must_use]
    pub fn through(program: &[&str]) -> Self {
        Self { before: program.iter().map(ToString::to_string).collect(), ..Self::default() }
    }

    /// As the user `uid`, whom `program` makes of the test's own.
    ///
    /// # Panics
    /// When the binary cannot be copied to where that user can reach it.
    #[must_use]
    pub fn as_user(uid: u32, program: &[&str]) -> Self {
        let scratch = Scratch::new();
        std::fs::copy(binary(), scratch.path().join("sysops-agent")).expect("missing() was asked");
        Self { other_user: Some((scratch, uid)), ..Self::through(program) }
    }

    /// With a variable of the environment.
    #[must_use]
    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Runs it to its end.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn run(&self, arguments: &[&str]) -> Output {
        self.command().args(arguments).output().unwrap_or_else(|error| panic!("{self:?}: {error}"))
    }

    /// Starts it as [`Agent::start`] does.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn start(self, configuration: &str, arguments: &[&str]) -> Agent {
        let scratch = Scratch::new();
        if let Some((_, uid)) = &self.other_user {
            std::os::unix::fs::chown(scratch.path(), Some(*uid), None).expect("the test is root");
        }
        let configuration = configuration.replace("@DATA@", &scratch.path().display().to_string());
        let file = scratch.file("config.toml", &configuration);
        let output = |name: &str| std::fs::File::create(scratch.path().join(name)).expect("our own directory");
        let child = self
            .command()
            .arg("--config")
            .arg(file)
            .args(arguments)
            .stdout(output("stdout"))
            .stderr(output("stderr"))
            .spawn()
            .unwrap_or_else(|error| panic!("{self:?}: {error}"));
        Agent { child, scratch, _launch: self }
    }

    fn command(&self) -> Command {
        let binary = self.other_user.as_ref().map_or_else(binary, |(copy, _)| copy.path().join("sysops-agent"));
        let mut command = match self.before.split_first() {
            Some((first, rest)) => {
                let mut command = Command::new(first);
                command.args(rest).arg(binary);
                command
            }
            None => Command::new(binary),
        };
        // What the machine that runs the test has set must not change what the agent says.
        for name in
            ["RUST_LOG", "NOTIFY_SOCKET", "WATCHDOG_USEC", "JOURNAL_STREAM", "HOST_ROOT", "HOST_PROC", "HOST_SYS"]
        {
            command.env_remove(name);
        }
        command.envs(self.environment.iter().map(|(name, value)| (name, value))).stdin(Stdio::null());
        command
    }
}

/// A running agent; it is killed when dropped.
pub struct Agent {
    child: Child,
    scratch: Scratch,
    _launch: Launch,
}

impl Agent {
    /// Starts it with `configuration` (in which `@DATA@` stands for a data directory of its own) and `arguments`.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn start(configuration: &str, arguments: &[&str]) -> Self {
        Launch::default().start(configuration, arguments)
    }

    /// Its pid.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its own directory: configuration and data.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.scratch.path()
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
