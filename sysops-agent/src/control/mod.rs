//! The agent's control socket: whoever may lists its alerts, acknowledges and silences them, and tries its channels. What
//! is asked for is done by a [`Desk`], which `pipeline` has; the command line is a client.

mod client;
pub mod protocol;
mod server;
mod socket;
pub mod trial;
mod user;

use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

pub use client::{Answers, AskError, ask};
pub use server::Control;
pub use socket::Unavailable;
pub use user::user_name;

use crate::host::Host;
use crate::model::report::Report;
use crate::model::{Listed, Matcher, OutboxStatus, Outcome, Severity, Silence, with_causes};
use crate::spec::{Complaint, Key, KeySpec, Values};

/// Where the socket is.
pub static SOCKET: Key<Option<String>> = Key::optional(
    "agent.control_socket",
    "Socket by which `sysops-agent alerts`, `ack`, `silence`, `test-alert`, `outbox` and `doctor` reach the agent; root and the agent's \
     user may. Not set: `control.sock` in `agent.data_dir`, and none where that is empty. Empty: none.",
)
.example("\"/run/sysops-agent/control.sock\"");

/// What can be configured.
pub static KEYS: &[&KeySpec] = &[SOCKET.spec()];

/// The longest time for which a silence may hold.
pub const SILENCE_MAX: Duration = Duration::from_secs(30 * 86_400);

/// What the socket may ask of the running agent. Asked on the main thread, between two cycles; nothing in it waits.
pub trait Desk {
    /// All alerts that are live, those first that want attention first.
    fn alerts(&self) -> Vec<Listed>;

    /// Notes that `by` takes care of the alert whose fingerprint begins with the hexadecimal digits `alert`.
    ///
    /// # Errors
    /// When there is none, or more than one.
    fn acknowledge(&self, alert: &str, by: &str, note: &str) -> Result<Listed, String>;

    /// Takes that back.
    ///
    /// # Errors
    /// As [`Desk::acknowledge`], and when nobody has acknowledged it.
    fn unacknowledge(&self, alert: &str, by: &str) -> Result<Listed, String>;

    /// Keeps alerts that match from people for `length`.
    ///
    /// # Errors
    /// When there are too many silences already.
    fn silence(&self, matcher: Matcher, length: Duration, by: &str, comment: &str) -> Result<Silence, String>;

    /// Ends a silence.
    ///
    /// # Errors
    /// When there is none of this number.
    fn unsilence(&self, id: u64, by: &str) -> Result<Silence, String>;

    /// Comes when all that was changed so far is on disk; its error is that it does not come to be.
    fn kept(&self) -> oneshot::Receiver<()>;

    /// All silences that hold.
    fn silences(&self) -> Vec<Silence>;

    /// Sends [`trial::notice`] through the outbox: to these channels, or to those that carry its severity. Gives the channels that
    /// it goes to; outcomes come try by try, as the far ends answer.
    ///
    /// # Errors
    /// When a channel is not enabled, with those that are.
    fn test_alert(
        &self,
        channels: Option<Vec<String>>,
        severity: Severity,
        resolved: bool,
        by: &str,
    ) -> Result<(Vec<String>, mpsc::UnboundedReceiver<Outcome>), String>;

    /// How the outbox and each channel do.
    fn outbox(&self) -> OutboxStatus;

    /// What the agent sees and what it does not; its error is that it ends.
    fn report(&self) -> oneshot::Receiver<Box<Report>>;
}

/// Where the socket is by this configuration; `None` when there is to be none.
#[must_use]
pub fn path(values: &Values, data_dir: Option<&Path>) -> Option<PathBuf> {
    match values.get(&SOCKET) {
        None => data_dir.map(|path| path.join("control.sock")),
        Some(path) if path.is_empty() => None,
        Some(path) => Some(path.into()),
    }
}

/// Serves `desk` on the socket of this configuration. An agent is well without one: that there can be none is said, with what
/// would mend it. To be called within a tokio `LocalSet`.
pub fn start(values: &Values, data_dir: Option<&Path>, host: &Host, desk: Rc<dyn Desk>) -> Option<Control> {
    let path = path(values, data_dir)?;
    match Control::start(&path, host, desk) {
        Ok(control) => Some(control),
        Err(error) => {
            let remedy = match error {
                Unavailable::Taken { .. } => "give each agent an agent.data_dir of its own",
                Unavailable::NoSocket { .. } => "take it away, or set agent.control_socket",
                Unavailable::System { .. } => {
                    "make agent.data_dir a directory that the agent may write to, or set agent.control_socket"
                }
            };
            tracing::warn!(
                "no control socket, so that `sysops-agent alerts` and others reach no one: {}: {remedy}",
                with_causes(&error)
            );
            None
        }
    }
}

/// What is wrong with values that have the right type.
#[must_use]
pub fn check(values: &Values) -> Vec<Complaint> {
    let complain = |message: String| Complaint { path: SOCKET.spec().path.to_owned(), message };
    let message = match values.get(&SOCKET) {
        Some(path) if path.is_empty() => None,
        Some(path) if !path.starts_with('/') => {
            Some("expected an absolute path: it would depend on where the agent is started".to_owned())
        }
        Some(path) if path.len() > socket::PATH_BYTES_MAX => Some(format!(
            "expected at most {} bytes, found {}: the kernel takes no longer paths of sockets",
            socket::PATH_BYTES_MAX,
            path.len()
        )),
        _ => None,
    };
    message.into_iter().map(complain).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::Value;

    #[test]
    fn where_the_socket_is() {
        let mut values = Values::default();
        let dir = Some(Path::new("/d"));
        assert_eq!((path(&values, dir), path(&values, None)), (Some("/d/control.sock".into()), None));
        values.set(SOCKET.spec(), Value::Text("/run/s".into()));
        assert_eq!((path(&values, dir), path(&values, None)), (Some("/run/s".into()), Some("/run/s".into())));
        values.set(SOCKET.spec(), Value::Text(String::new()));
        assert_eq!((path(&values, dir), check(&values)), (None, vec![]));
        for wrong in ["run/s".to_owned(), format!("/{}", "x".repeat(200))] {
            values.set(SOCKET.spec(), Value::Text(wrong));
            assert_eq!(check(&values).len(), 1);
        }
    }
}
