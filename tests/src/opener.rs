//! A shell that takes file descriptors and gives them back, the same number in each turn.
#![expect(clippy::disallowed_methods, reason = "a test runs programs")]

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdout, Command, Stdio};

/// A shell that opens a hundred files whenever it is asked to.
pub struct Opener {
    child: Child,
    said: BufReader<ChildStdout>,
}

impl Opener {
    /// Starts it.
    ///
    /// # Panics
    /// When there is no shell.
    #[must_use]
    pub fn start() -> Self {
        let script = "while read -r turn; do for i in 0 1 2 3 4 5 6 7 8 9; do for j in 0 1 2 3 4 5 6 7 8 9; do : </dev/null; done; done; echo done; done";
        let mut child = Command::new("sh")
            .args(["-c", script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("sh is there");
        let said = BufReader::new(child.stdout.take().expect("it was asked for"));
        Self { child, said }
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Has it open and close them, and waits for that.
    ///
    /// # Panics
    /// When it has ended.
    pub fn turn(&mut self) {
        self.child.stdin.as_mut().expect("it was asked for").write_all(b"turn\n").expect("it runs");
        self.said.read_line(&mut String::new()).expect("it runs");
    }
}

impl Drop for Opener {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
