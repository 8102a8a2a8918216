//! A running program of the corpus: it waits until it is told to begin, and lives until this is dropped.
#![expect(clippy::disallowed_methods, reason = "tests are outside of the agent: they run programs")]

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};

use super::spec::Spec;

/// One that runs.
pub struct Program {
    /// What it does.
    pub spec: Spec,
    child: Child,
    said: BufReader<ChildStdout>,
}

impl Program {
    /// Starts it; it is ready and has done nothing.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn start(spec: Spec, command: &[PathBuf]) -> Self {
        let (program, script) = command.split_first().expect("a program");
        let child = Command::new(program)
            .args(script)
            .args(spec.arguments())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn();
        let mut child = child.expect("it was compiled");
        let said = BufReader::new(child.stdout.take().expect("it is piped"));
        let mut program = Self { spec, child, said };
        assert_eq!(program.line(), "ready", "{:?}", program.spec);
        program
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Tells it to begin.
    ///
    /// # Panics
    /// When it has ended.
    pub fn begin(&mut self) {
        writeln!(self.child.stdin.as_mut().expect("it is piped"), "go").expect("it reads");
    }

    /// Waits until it has leaked all, and gives how many; at once from a clean one, which goes on.
    ///
    /// # Panics
    /// When it ends before.
    pub fn leaked(&mut self) -> u64 {
        let line = self.line();
        let count = line.strip_prefix("done ").and_then(|count| count.parse().ok());
        count.unwrap_or_else(|| unreachable!("{:?} said {line:?}", self.spec))
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.said.read_line(&mut line).expect("it is a pipe");
        line.trim_end().to_owned()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // A clean one in the middle of a child of its own may take its time: it is not waited for it to end by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
