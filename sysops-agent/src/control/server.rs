//! Serves the control socket: a bounded number of connections, each with one request of bounded length and a deadline.
//! What is asked for is the [`Desk`]'s to do.

use std::os::unix::net::UnixListener as StdListener;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{sleep, timeout};

use super::protocol::{Answer, REQUEST_BYTES_MAX, Request, TEXT_BYTES_MAX, answer_line, too_long};
use super::socket::{Name, Unavailable};
use super::{Desk, SILENCE_MAX, trial, user_name};
use crate::host::{Host, os};
use crate::model::{Matcher, Severity, shown};

/// Connections that are served at a time; others wait in the kernel.
const CONNECTIONS_MAX: usize = 8;

/// Time for a request to come, and for each line of an answer to be taken.
const IDLE: Duration = Duration::from_secs(5);

/// Time for the disk to take what was changed.
const DISK: Duration = Duration::from_secs(2);

/// Pause after the kernel gave no connection, as when the process has no file descriptor left.
const PAUSE: Duration = Duration::from_secs(1);

/// The socket at work. It ends, and its file goes, when this is dropped.
#[derive(Debug)]
pub struct Control {
    _name: Name,
    work: JoinHandle<()>,
}

impl Control {
    /// Serves `desk` at `path`. To be called within a tokio `LocalSet`.
    ///
    /// # Errors
    /// When there can be no socket: an agent is well without.
    pub fn start(path: &Path, host: &Host, desk: Rc<dyn Desk>) -> Result<Self, Unavailable> {
        let (socket, name) = Name::take(&host.files, path)?;
        let listener = UnixListener::from_std(StdListener::from(socket)).map_err(|source| Unavailable::System {
            path: path.to_owned(),
            what: "cannot wait for connections",
            source,
        })?;
        let clerk = Clerk { desk, host: host.clone(), own: os::effective_user() };
        Ok(Self { _name: name, work: tokio::task::spawn_local(serve(listener, Rc::new(clerk))) })
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.work.abort();
    }
}

async fn serve(listener: UnixListener, clerk: Rc<Clerk>) {
    // Those that are served end with this task.
    let mut served = JoinSet::new();
    loop {
        tokio::select! {
            Some(_) = served.join_next() => {}
            taken = listener.accept(), if served.len() < CONNECTIONS_MAX => match taken {
                Ok((stream, _)) => {
                    let clerk = Rc::clone(&clerk);
                    served.spawn_local(async move { clerk.serve(stream).await });
                }
                Err(error) => {
                    tracing::warn!("control socket: no connection taken: {error}");
                    sleep(PAUSE).await;
                }
            },
        }
    }
}

/// Answers those who come.
struct Clerk {
    desk: Rc<dyn Desk>,
    host: Host,
    own: u32,
}

impl Clerk {
    /// One request and its answer.
    async fn serve(&self, mut stream: UnixStream) {
        let answer = match self.who(&stream) {
            Err(error) => Err(error),
            Ok(by) => match timeout(IDLE, request(&mut stream)).await {
                Ok(Ok(Some(Request::TestAlert { channels, severity, resolved }))) => {
                    self.test(&mut stream, channels, severity, resolved, &by).await
                }
                Ok(Ok(Some(Request::Doctor))) => {
                    self.desk.report().await.map(Answer::Doctor).map_err(|_| "the agent is ending".to_owned())
                }
                Ok(Ok(Some(request))) => {
                    let answer = self.answer(request, &by);
                    if let Ok(Answer::Alert(_) | Answer::Silence(_)) = answer {
                        // What was answered holds, whatever becomes of the agent. It holds also where the disk takes nothing, as
                        // long as the agent lives: the log says so then.
                        _ = timeout(DISK, self.desk.kept()).await;
                    }
                    answer
                }
                Ok(Ok(None)) => return,
                Ok(Err(error)) => Err(error),
                Err(_) => Err(format!("no whole request within {} s", IDLE.as_secs())),
            },
        };
        _ = tell(&mut stream, &answer).await;
    }

    /// Name of the user at the other end, as the kernel knows them. The mode of the socket lets nobody else in; it is
    /// looked at again, in case someone has changed it.
    fn who(&self, stream: &UnixStream) -> Result<String, String> {
        let uid = stream.peer_cred().map_err(|error| format!("who asks is not known: {error}"))?.uid();
        if uid != 0 && uid != self.own {
            return Err("only root and the agent's own user may".to_owned());
        }
        Ok(user_name(&self.host.files, uid))
    }

    fn answer(&self, request: Request, by: &str) -> Result<Answer, String> {
        let desk = &self.desk;
        match request {
            Request::Alerts => Ok(Answer::Alerts(desk.alerts())),
            Request::Ack { alert, note } => {
                fits("note", &note)?;
                desk.acknowledge(&digits(&alert)?, by, &note).map(Box::new).map(Answer::Alert)
            }
            Request::Unack { alert } => desk.unacknowledge(&digits(&alert)?, by).map(Box::new).map(Answer::Alert),
            Request::Silence { matcher, secs, comment } => {
                fits("comment", &comment)?;
                let length = Duration::from_secs(secs);
                if length.is_zero() || length > SILENCE_MAX {
                    return Err(format!("a silence holds for 1 s to {} days", SILENCE_MAX.as_secs() / 86_400));
                }
                let matcher = Matcher::new(matcher).map_err(|error| error.to_string())?;
                if matcher.is_empty() {
                    return Err("a silence needs a condition, as metric=disk_*; metric=* is everything".to_owned());
                }
                desk.silence(matcher, length, by, &comment).map(Answer::Silence)
            }
            Request::Unsilence { id } => desk.unsilence(id, by).map(Answer::Silence),
            Request::Silences => Ok(Answer::Silences(desk.silences())),
            Request::Outbox => Ok(Answer::Outbox(desk.outbox())),
            Request::TestAlert { .. } | Request::Doctor => unreachable!("they are met before"),
        }
    }

    /// Tells what far ends answer as it comes; the end is left to the caller to tell.
    async fn test(
        &self,
        stream: &mut UnixStream,
        channels: Option<Vec<String>>,
        severity: Severity,
        resolved: bool,
        by: &str,
    ) -> Result<Answer, String> {
        let gone = |()| "nobody listens".to_owned();
        let (awaited, outcomes) = self.desk.test_alert(channels, severity, resolved, by)?;
        tell(stream, &Ok(Answer::SentTo(awaited.clone()))).await.map_err(gone)?;
        let told = trial::follow(awaited, outcomes, async |timed| tell(stream, &Ok(Answer::Outcome(timed))).await);
        told.await.map(Answer::End).map_err(gone)
    }
}

/// Reads the request; `None` when the other end went away without one.
async fn request(stream: &mut UnixStream) -> Result<Option<Request>, String> {
    let mut line = Vec::new();
    let mut reader = BufReader::new(stream.take(REQUEST_BYTES_MAX as u64));
    reader.read_until(b'\n', &mut line).await.map_err(|error| error.to_string())?;
    match line.last() {
        None => Ok(None),
        Some(b'\n') => Request::parse(&line).map(Some),
        Some(_) if line.len() == REQUEST_BYTES_MAX => Err(too_long()),
        Some(_) => Err("half a request: a request ends with a line break".to_owned()),
    }
}

/// Writes a line of the answer. The error says only that nobody took it.
async fn tell(stream: &mut UnixStream, answer: &Result<Answer, String>) -> Result<(), ()> {
    match timeout(IDLE, stream.write_all(answer_line(answer).as_bytes())).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) | Err(_) => Err(()),
    }
}

fn fits(what: &str, text: &str) -> Result<(), String> {
    if text.len() > TEXT_BYTES_MAX { Err(format!("the {what} has at most {TEXT_BYTES_MAX} bytes")) } else { Ok(()) }
}

/// First digits of a fingerprint, in lower case.
fn digits(alert: &str) -> Result<String, String> {
    if !(1..=16).contains(&alert.len()) || !alert.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(format!(
            "{:?}: expected the first hexadecimal digits of an alert, as `alerts` lists them",
            shown(alert, 64)
        ));
    }
    Ok(alert.to_ascii_lowercase())
}
