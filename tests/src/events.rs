//! Waits for events of a source with a deadline, as the agent's own loop does: poll, then drain.

use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use sysops_agent::host::{EventSource, Host};
use sysops_agent::model::Event;

/// Takes events of `source` until `enough` says so or `limit` has passed.
pub fn take_until(
    source: &mut impl EventSource,
    host: &Host,
    limit: Duration,
    mut enough: impl FnMut(&[Event]) -> bool,
) -> Vec<Event> {
    let start = host.clock.now();
    let mut events = Vec::new();
    loop {
        source.drain(host, &mut events);
        let left = limit.saturating_sub(host.clock.now().since(&start));
        if enough(&events) || left.is_zero() {
            return events;
        }
        let mut fds: Vec<PollFd<'_>> =
            source.fds().into_iter().map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)).collect();
        let due = source.next_deadline().map_or(left, |due| due.saturating_sub(host.clock.now().monotonic));
        let wait = due.min(left).min(Duration::from_millis(100));
        let wait = Timespec { tv_sec: 0, tv_nsec: wait.subsec_nanos().into() };
        // An interrupted wait is as good as one that ended.
        let _ = poll(&mut fds, Some(&wait));
    }
}
