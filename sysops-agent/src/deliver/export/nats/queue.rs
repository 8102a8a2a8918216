//! What waits for the NATS server: bounded, what is dropped counted by kind and reason.
//! Nothing here knows the network.

use std::collections::VecDeque;

use super::{CONNECTED, DROPPED, PUBLISHED};
use crate::deliver::nats::encoding::Encoded;
use crate::model::Batch;

/// What a message is about; its name is the last token of the subject.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Metrics,
    Inventory,
    Heartbeat,
}

impl Kind {
    pub(super) const ALL: [Self; 3] = [Self::Metrics, Self::Inventory, Self::Heartbeat];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Metrics => "metrics",
            Self::Inventory => "inventory",
            Self::Heartbeat => "heartbeat",
        }
    }
}

/// Why a message was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reason {
    /// The queue was full: the oldest goes.
    Overflow,
    /// A newer heartbeat or inventory came before this one could leave.
    Superseded,
    /// Larger than the server takes.
    TooLarge,
    /// The server does not let this user publish there.
    Permission,
    /// `max_reconnect_attempts` is used up.
    GaveUp,
    /// Still waiting when the time to stop was over.
    Shutdown,
}

impl Reason {
    const ALL: [Self; 6] =
        [Self::Overflow, Self::Superseded, Self::TooLarge, Self::Permission, Self::GaveUp, Self::Shutdown];

    fn name(self) -> &'static str {
        match self {
            Self::Overflow => "overflow",
            Self::Superseded => "superseded",
            Self::TooLarge => "too_large",
            Self::Permission => "permission",
            Self::GaveUp => "gave_up",
            Self::Shutdown => "shutdown",
        }
    }
}

/// One message as it goes out.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Message {
    pub(super) kind: Kind,
    pub(super) encoded: Encoded,
}

/// The most that is held.
#[derive(Clone, Copy, Debug)]
struct Limit {
    messages: usize,
    bytes: usize,
}

/// Hours of compressed telemetry of an ordinary host (about 10 kB each 30 s).
const WAITING: Limit = Limit { messages: 4096, bytes: 1 << 20 };
/// What is sent before the server is asked whether it has it.
const WINDOW: Limit = Limit { messages: 64, bytes: 256 << 10 };

/// The queue in front of the connection. Messages leave through a window: they are taken, sent, and counted as
/// published when the server has confirmed them; until then a broken connection puts them back.
#[derive(Debug, Default)]
pub(super) struct Queue {
    waiting: VecDeque<Message>,
    bytes: usize,
    window: Vec<Message>,
    published: [u64; 3],
    dropped: [[u64; 6]; 3],
}

impl Queue {
    /// Takes a message. When there is no room the oldest goes; a heartbeat and an inventory take the place of
    /// one that still waits, as only the newest is of use.
    pub(super) fn push(&mut self, message: Message) {
        let kind = message.kind;
        if matches!(kind, Kind::Heartbeat | Kind::Inventory)
            && let Some(older) = self.waiting.iter().position(|waiting| waiting.kind == kind)
            && let Some(older) = self.waiting.remove(older)
        {
            self.bytes -= older.encoded.payload.len();
            self.drop_one(kind, Reason::Superseded);
        }
        self.bytes += message.encoded.payload.len();
        self.waiting.push_back(message);
        self.trim();
    }

    /// Messages to send now; empty when nothing waits.
    pub(super) fn take_window(&mut self) -> Vec<Message> {
        let mut bytes = 0;
        while self.window.len() < WINDOW.messages && bytes < WINDOW.bytes {
            let Some(message) = self.pop() else { break };
            bytes += message.encoded.payload.len();
            self.window.push(message);
        }
        self.window.clone()
    }

    /// The server has the window, but for what `refused` names a reason for.
    pub(super) fn confirm(&mut self, refused: &dyn Fn(&Message) -> Option<Reason>) {
        for message in std::mem::take(&mut self.window) {
            match refused(&message) {
                Some(reason) => self.drop_one(message.kind, reason),
                None => self.published[message.kind as usize] += 1,
            }
        }
    }

    /// The connection broke before the server confirmed: the window goes back to where it came from.
    pub(super) fn put_back(&mut self) {
        while let Some(message) = self.window.pop() {
            self.bytes += message.encoded.payload.len();
            self.waiting.push_front(message);
        }
        self.trim();
    }

    /// Drops all that waits.
    pub(super) fn clear(&mut self, reason: Reason) {
        self.put_back();
        while let Some(message) = self.pop() {
            self.drop_one(message.kind, reason);
        }
    }

    /// Counts something that never became a message.
    pub(super) fn count_dropped(&mut self, kind: Kind, reason: Reason, count: usize) {
        self.dropped[kind as usize][reason as usize] += count as u64;
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.window.is_empty()
    }

    #[expect(clippy::cast_precision_loss, reason = "counters of messages stay far below 2^53")]
    pub(super) fn report(&self, connected: bool, out: &mut Batch) {
        out.gauge(&CONNECTED, [], f64::from(u8::from(connected)));
        for kind in Kind::ALL {
            out.counter(&PUBLISHED, [kind.name()], self.published[kind as usize] as f64);
            for reason in Reason::ALL {
                let count = self.dropped[kind as usize][reason as usize];
                // Zero for the usual reason, so that a first drop is an increase; the others when they happen.
                if count > 0 || reason == Reason::Overflow {
                    out.counter(&DROPPED, [kind.name(), reason.name()], count as f64);
                }
            }
        }
    }

    fn pop(&mut self) -> Option<Message> {
        let message = self.waiting.pop_front()?;
        self.bytes -= message.encoded.payload.len();
        Some(message)
    }

    fn trim(&mut self) {
        while self.waiting.len() > WAITING.messages || self.bytes > WAITING.bytes {
            let Some(oldest) = self.pop() else { break };
            self.drop_one(oldest.kind, Reason::Overflow);
        }
    }

    fn drop_one(&mut self, kind: Kind, reason: Reason) {
        self.count_dropped(kind, reason, 1);
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn message(kind: Kind, bytes: usize) -> Message {
        Message { kind, encoded: Encoded { payload: Bytes::from(vec![0; bytes]), compressed: false } }
    }

    fn size(message: &Message) -> usize {
        message.encoded.payload.len()
    }

    #[test]
    fn what_waits_is_bounded_in_bytes_and_in_number() {
        let mut queue = Queue::default();
        for _ in 0..200 {
            queue.push(message(Kind::Metrics, 10_000));
        }
        assert!(queue.bytes <= WAITING.bytes);
        assert_eq!(queue.dropped[Kind::Metrics as usize][Reason::Overflow as usize], 200 - (1 << 20) / 10_000);
        let mut queue = Queue::default();
        for _ in 0..WAITING.messages + 3 {
            queue.push(message(Kind::Metrics, 0));
        }
        assert_eq!(queue.waiting.len(), WAITING.messages);
        assert_eq!(queue.dropped[Kind::Metrics as usize][Reason::Overflow as usize], 3);
    }

    #[test]
    fn only_the_newest_heartbeat_waits() {
        let mut queue = Queue::default();
        for size in [1, 2, 3] {
            queue.push(message(Kind::Heartbeat, size));
        }
        let window = queue.take_window();
        assert_eq!((window.len(), size(&window[0])), (1, 3));
        assert_eq!(queue.dropped[Kind::Heartbeat as usize][Reason::Superseded as usize], 2);
    }

    #[test]
    fn a_broken_connection_puts_the_window_back_in_order() {
        let mut queue = Queue::default();
        for (kind, size) in [(Kind::Metrics, 1), (Kind::Inventory, 2), (Kind::Metrics, 3), (Kind::Heartbeat, 4)] {
            queue.push(message(kind, size));
        }
        assert_eq!(queue.take_window().iter().map(size).collect::<Vec<_>>(), [1, 2, 3, 4]);
        queue.put_back();
        queue.push(message(Kind::Metrics, 5));
        assert_eq!(queue.take_window().iter().map(size).collect::<Vec<_>>(), [1, 2, 3, 4, 5]);
        queue.confirm(&|message| (size(message) == 3).then_some(Reason::Permission));
        assert_eq!(queue.published, [2, 1, 1]);
        assert_eq!(queue.dropped[Kind::Metrics as usize][Reason::Permission as usize], 1);
        assert!(queue.is_empty() && queue.bytes == 0);
    }

    #[test]
    fn what_is_left_at_the_end_is_counted() {
        let mut queue = Queue::default();
        queue.push(message(Kind::Metrics, 2));
        queue.push(message(Kind::Inventory, 2));
        queue.take_window();
        queue.clear(Reason::Shutdown);
        assert!(queue.is_empty());
        assert_eq!(queue.dropped[Kind::Metrics as usize][Reason::Shutdown as usize], 1);
        assert_eq!(queue.dropped[Kind::Inventory as usize][Reason::Shutdown as usize], 1);
    }
}
