//! What people ask of the running agent by its control socket: the book and the outbox, as they are between two cycles.

use std::cell::RefCell;
use std::rc::{Rc, Weak};
use std::time::Duration;

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};
use tokio::sync::oneshot;

use crate::alert::Book;
use crate::control::{self, trial};
use crate::deliver::Outbox;
use crate::host::Host;
use crate::model::report::Report;
use crate::model::{Listed, Matcher, OutboxStatus, Outcome, Severity, Silence};

/// The agent's desk. It lives on the main thread alone.
pub(super) struct Desk {
    pub(super) host: Host,
    pub(super) hostname: Rc<RefCell<String>>,
    pub(super) book: Rc<RefCell<Book>>,
    /// It goes before the desk does: whoever ends it must have it alone.
    pub(super) outbox: Weak<RefCell<Outbox>>,
    /// Takes receipts: the book is to be kept at once, and each is given when it is.
    pub(super) keep: UnboundedSender<oneshot::Sender<()>>,
    /// Takes wishes for a report: who has all parts makes it.
    pub(super) ask: UnboundedSender<oneshot::Sender<Box<Report>>>,
}

impl Desk {
    /// Lets `change` the book, and says who did what.
    fn write<T>(&self, what: &str, by: &str, change: impl FnOnce(&mut Book) -> Result<T, String>) -> Result<T, String> {
        let changed = change(&mut self.book.borrow_mut())?;
        tracing::info!(by, "{what}");
        Ok(changed)
    }
}

impl control::Desk for Desk {
    fn alerts(&self) -> Vec<Listed> {
        self.book.borrow().list(&self.host.clock.now())
    }

    fn acknowledge(&self, alert: &str, by: &str, note: &str) -> Result<Listed, String> {
        let now = self.host.clock.now();
        self.write("alert acknowledged", by, |book| book.acknowledge(alert, by, note, &now))
    }

    fn unacknowledge(&self, alert: &str, by: &str) -> Result<Listed, String> {
        let now = self.host.clock.now();
        self.write("acknowledgement taken back", by, |book| book.unacknowledge(alert, &now))
    }

    fn silence(&self, matcher: Matcher, length: Duration, by: &str, comment: &str) -> Result<Silence, String> {
        let now = self.host.clock.now();
        self.write("silence begun", by, |book| book.silence(matcher, length, by, comment, &now))
    }

    fn unsilence(&self, id: u64, by: &str) -> Result<Silence, String> {
        self.write("silence ended", by, |book| book.unsilence(id))
    }

    fn kept(&self) -> oneshot::Receiver<()> {
        let (receipt, kept) = oneshot::channel();
        // Whoever would keep it ends with the agent.
        _ = self.keep.send(receipt);
        kept
    }

    fn silences(&self) -> Vec<Silence> {
        self.book.borrow().silences(&self.host.clock.now())
    }

    fn test_alert(
        &self,
        channels: Option<Vec<String>>,
        severity: Severity,
        resolved: bool,
        by: &str,
    ) -> Result<(Vec<String>, UnboundedReceiver<Outcome>), String> {
        let outbox = self.outbox.upgrade().ok_or("the agent is ending")?;
        let outbox = outbox.borrow();
        let enabled = outbox.channels();
        if let Some(unknown) = channels.iter().flatten().find(|name| !enabled.contains(name)) {
            return Err(format!("channel {unknown} is not enabled, but {}", enabled.join(", ")));
        }
        let hostname = self.hostname.borrow();
        let notice = trial::notice(&hostname, by, severity, resolved, channels, &self.host.clock.now());
        Ok(outbox.send_and_watch(&notice))
    }

    fn report(&self) -> oneshot::Receiver<Box<Report>> {
        let (report, comes) = oneshot::channel();
        // Whoever would make it ends with the agent.
        _ = self.ask.send(report);
        comes
    }

    fn outbox(&self) -> OutboxStatus {
        self.outbox.upgrade().map(|outbox| outbox.borrow().status()).unwrap_or_default()
    }
}
