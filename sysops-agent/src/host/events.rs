//! What a source of kernel events is to the thread that waits for all of them: file descriptors to poll and a way
//! to take what is there.

use std::os::fd::BorrowedFd;
use std::time::Duration;

use super::Host;
use crate::model::{Batch, Event};

/// A source of kernel events: BPF ring buffers, /dev/kmsg.
pub trait EventSource: Send {
    /// Descriptors that become readable when there may be events.
    fn fds(&self) -> Vec<BorrowedFd<'_>>;
    /// Takes all events that are there, without waiting.
    fn drain(&mut self, host: &Host, out: &mut Vec<Event>);
    /// When to drain again although nothing becomes readable, on the monotonic clock.
    fn next_deadline(&self) -> Option<Duration> {
        None
    }
    /// Adds the source's own readings (histograms in kernel maps, counters of received / dropped / lost).
    fn collect(&mut self, host: &Host, out: &mut Batch);
}
