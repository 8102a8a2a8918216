//! A request that took long, as an event; and how many more there were than are told.

use sysops_common::block_io::{Operation, Slow, SlowLimit};

use super::super::ladder::Refusal;
use super::super::loader::{Object, Slots};
use super::super::process::Process;
use super::super::record;
use super::cgroups::path_of;
use super::series::SLOW_UNTOLD;
use super::status;
use crate::host::Host;
use crate::model::event::{Detail, Event, SlowIo};
use crate::model::time::rfc3339_nanos;
use crate::model::{Batch, Source};

/// The event of a slow request of `device`, when that is known.
pub(super) fn event(host: &Host, source: Source, read: &Slow, device: Option<String>) -> Event {
    let flight = &read.flight;
    let has_task = flight.tid != 0;
    let has_place = flight.series.operation != Operation::Flush as u32;
    let seconds = |ns: u64| std::time::Duration::from_nanos(ns).as_secs_f64();
    let process = has_task.then(|| Process::thread(host, flight.tid));
    let comm = has_task.then(|| record::name(&flight.comm));
    // The thread may be another by now: only one of the same name is believed. /proc adds to that of a worker what it does.
    let is_same = |process: &Process<'_>| {
        process.comm().zip(comm.as_ref()).is_some_and(|(now, then)| now.starts_with(then.trim()))
    };
    let process = process.filter(is_same);
    Event {
        schema: Event::SCHEMA,
        time: rfc3339_nanos(host.clock.now().wall_at(std::time::Duration::from_nanos(read.complete_ns))),
        source: vec![source],
        pid: has_task.then_some(flight.tgid),
        tid: has_task.then_some(flight.tid),
        comm,
        uid: process.as_ref().and_then(|process| process.status("Uid")),
        cgroup: cgroup(host, read, process.as_ref()),
        detail: Detail::SlowIo(SlowIo {
            device,
            operation: Operation::ALL
                .get(flight.series.operation as usize)
                .map(|operation| operation.word().to_owned()),
            sector: has_place.then_some(flight.sector),
            bytes: Some(u64::from(flight.bytes)),
            queue_seconds: seconds(flight.queue_ns()),
            device_seconds: seconds(read.complete_ns.saturating_sub(flight.issue_ns)),
            status: (read.status != 0).then(|| status::word(read.status).into_owned()),
            kernel_thread: process.as_ref().and_then(Process::is_kernel_thread),
        }),
        monotonic_ns: read.complete_ns,
    }
}

/// That of the process; for a task of the kernel, and for a process that is gone, the one that the program noted.
fn cgroup(host: &Host, read: &Slow, process: Option<&Process<'_>>) -> Option<String> {
    let own = process.filter(|process| process.is_kernel_thread() == Some(false));
    let noted = || {
        let is_below_root = read.flight.cgroup > ROOT_CGROUP;
        is_below_root.then(|| path_of(&host.files, read.flight.cgroup)).flatten()
    };
    own.and_then(Process::memory_path).map(|found| found.path).or_else(noted)
}

/// The root of the unified hierarchy, of which is said nothing.
const ROOT_CGROUP: u64 = 1;

/// Slow requests that were too many to be told.
pub(super) struct Limit(Slots<SlowLimit>);

impl Limit {
    /// That of the object.
    ///
    /// # Errors
    /// When the object has no such map.
    pub(super) fn of(object: &mut Object) -> Result<Self, Refusal> {
        object.slots("SLOW_LIMIT").map(Self)
    }

    /// Adds the reading.
    #[expect(clippy::cast_precision_loss, reason = "counts below 2^53 are exact")]
    pub(super) fn collect(&self, out: &mut Batch) {
        if let Some(limit) = self.0.get(0) {
            out.counter(&SLOW_UNTOLD, [], limit.untold as f64);
        }
    }
}
