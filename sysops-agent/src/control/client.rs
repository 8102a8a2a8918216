//! Asks a running agent over its control socket, and says why it cannot where it cannot. What to do then is the command
//! line's to say.

use std::io::{self, BufRead as _, BufReader, Read as _, Take, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

use super::protocol::{Answer, Request, parse_answer};
use super::trial;

/// Time for the agent to answer: it does so between two cycles.
const WAIT: Duration = Duration::from_secs(15);

/// The same where it waits for far ends, for a minute at most.
const WAIT_TEST: Duration = trial::PATIENCE.saturating_add(WAIT);

/// Longest answer: some 100,000 alerts.
const ANSWER_BYTES_MAX: u64 = 64 << 20;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Nobody listens there.
    #[error("no agent listens there")]
    NoAgent,
    /// This user may not ask.
    #[error("this user may not ask it")]
    Denied,
    /// It does not answer.
    #[error("it does not answer: {0}")]
    Silent(String),
    /// What it said is no answer: it is another program, or another version.
    #[error("it answers what is not understood: {0}")]
    Strange(String),
    /// It says that it cannot.
    #[error("{0}")]
    Refused(String),
}

/// The lines of an answer, as they come.
pub struct Answers {
    lines: BufReader<Take<UnixStream>>,
}

/// Asks the agent whose socket is at `path`.
///
/// # Errors
/// When nobody is there, or may be asked.
pub fn ask(path: &Path, request: &Request) -> Result<Answers, AskError> {
    let line = request.line().map_err(AskError::Refused)?;
    let wait = if matches!(request, Request::TestAlert { .. }) { WAIT_TEST } else { WAIT };
    let mut stream = connected(path, wait)?;
    match stream.write_all(line.as_bytes()) {
        // It has answered before it was asked, with why it will not be.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
        other => other.map_err(|error| silent(&error))?,
    }
    Ok(Answers { lines: BufReader::new(stream.take(ANSWER_BYTES_MAX)) })
}

fn connected(path: &Path, wait: Duration) -> Result<UnixStream, AskError> {
    let connected = SocketAddrUnix::new(path).and_then(|address| {
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        // The first also bounds the time that connecting takes: a stopped agent takes no connections.
        set_socket_timeout(&socket, Timeout::Send, Some(WAIT))?;
        set_socket_timeout(&socket, Timeout::Recv, Some(wait))?;
        connect(&socket, &address)?;
        Ok(socket)
    });
    match connected {
        Ok(socket) => Ok(socket.into()),
        Err(Errno::NOENT | Errno::CONNREFUSED | Errno::NOTDIR) => Err(AskError::NoAgent),
        Err(Errno::ACCESS | Errno::PERM) => Err(AskError::Denied),
        Err(errno) => Err(silent(&errno.into())),
    }
}

/// What the kernel says of a wait that is over, in words.
fn silent(error: &io::Error) -> AskError {
    AskError::Silent(match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => "no word has come in time".to_owned(),
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset => "it has gone in the middle of it".to_owned(),
        _ => error.to_string(),
    })
}

impl Answers {
    /// The next line.
    ///
    /// # Errors
    /// When none comes, or it says that the agent cannot.
    pub fn next_answer(&mut self) -> Result<Answer, AskError> {
        let mut line = Vec::new();
        self.lines.read_until(b'\n', &mut line).map_err(|error| silent(&error))?;
        if line.last() != Some(&b'\n') {
            return Err(silent(&io::ErrorKind::UnexpectedEof.into()));
        }
        parse_answer(&line).map_err(AskError::Strange)?.map_err(AskError::Refused)
    }
}
