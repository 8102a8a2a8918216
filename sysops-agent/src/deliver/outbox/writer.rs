//! The two threads of the outbox that touch the disk. One writes all that waits at once and waits for the disk once; the other
//! reads what is due. Either may hang for as long as the disk does: no one waits for them for longer than a moment.

use std::path::Path;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use super::line::Loss;
use super::queue::{Kept, Queue};
use super::shared::{Park, Shared, State};
use crate::deliver::spool::record::{Envelope, Record};
use crate::deliver::spool::{OpenError, Place, Spool};
use crate::model::time;

/// Bytes that are written at once.
const JOB_BYTES: u64 = 1 << 20;

/// How much more than its JSON a record takes, at most in the usual case.
const RECORD_BYTES: usize = 256;

/// What a new segment takes before its first notice, at most.
const SEGMENT_BYTES: u64 = 36 << 10;

/// Pauses between tries of a disk that takes nothing.
const PAUSE_MIN: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// How long a notice that could not be read is left alone.
const READ_PAUSE: Duration = Duration::from_secs(30);

/// What is to be written.
struct Job {
    notices: Vec<Waiting>,
    done: Vec<(u64, String)>,
    released: Vec<Place>,
    parked: Vec<Park>,
    bytes_max: u64,
}

struct Waiting {
    seq: u64,
    json: Arc<[u8]>,
    lines: u64,
    envelope: Envelope,
}

/// Writes until the end.
pub(super) fn write(shared: &Shared, dir: &Path) {
    let mut pause = PAUSE_MIN;
    let mut spool = None;
    let mut is_last = false;
    loop {
        let written = match &mut spool {
            None => open(shared, dir).map(|opened| spool = Some(opened)),
            Some(spool) => {
                let Some(mut job) = next_job(shared, pause == PAUSE_MIN) else { break };
                run(shared, spool, dir, &mut job).map_err(|error| {
                    put_back(shared, job);
                    OpenError::Io(dir.to_owned(), error)
                })
            }
        };
        match written {
            Ok(()) => pause = PAUSE_MIN,
            Err(error) => {
                say(shared, &error);
                let state = shared.lock();
                let waited = shared.work.wait_timeout_while(state, pause, |state| !state.ending);
                // At the end the disk has one more chance.
                if waited.unwrap_or_else(PoisonError::into_inner).0.ending && std::mem::replace(&mut is_last, true) {
                    break;
                }
                pause = (pause * 2).min(PAUSE_MAX);
            }
        }
    }
    if let Some(Err(error)) = spool.as_mut().map(Spool::sync) {
        tracing::warn!("{}: {error}: alerts that were delivered may come again under the same id", dir.display());
    }
    drop(spool);
    shared.ended.notify_one();
}

fn open(shared: &Shared, dir: &Path) -> Result<Spool, OpenError> {
    let started = now();
    let bytes_max = shared.lock().limits.bytes_max;
    let (spool, found) = Spool::open(dir, bytes_max)?;
    let at = dir.display();
    if let Some((aside, version)) = &found.newer {
        tracing::error!(
            "{at}: written by a newer agent (version {version}), and left as it is in {}: install that agent again and rename \
             the folder back to have it delivered, or remove it; going on with an empty outbox",
            aside.display()
        );
    }
    if found.damaged > 0 {
        tracing::error!("{at}: {} records are damaged and skipped: look after the disk", found.damaged);
    }
    let waiting = found.waiting.len();
    if waiting > 0 {
        tracing::info!("{at}: {waiting} alerts wait from before");
    }
    shared.recover(found, started.elapsed());
    let mut state = shared.lock();
    state.disk.bytes = spool.bytes();
    works(&mut state, dir);
    drop(state);
    shared.settled.notify_all();
    Ok(spool)
}

/// The disk takes notices.
fn works(state: &mut State, dir: &Path) {
    state.disk.settled = true;
    if state.disk.problem.take().is_some() {
        tracing::info!("{}: alerts are kept on disk again", dir.display());
    }
}

/// The disk takes nothing: what waits for it goes out all the same.
fn say(shared: &Shared, error: &OpenError) {
    let mut state = shared.lock();
    state.disk.settled = true;
    if state.disk.problem.is_none() {
        let kept = "alerts are kept in memory, and are lost with the agent";
        match error {
            OpenError::Taken(_) => tracing::warn!("{error}: {kept}; give each agent an agent.data_dir of its own"),
            OpenError::Io(..) => tracing::error!(
                "{error}: {kept}; make agent.data_dir a directory on a disk that has room and that the agent may write to"
            ),
        }
    }
    state.disk.problem = Some(error.to_string());
    state.make_ready();
    drop(state);
    shared.settled.notify_all();
}

/// What there is to write; waits for it. `None` at the end.
fn next_job(shared: &Shared, healthy: bool) -> Option<Job> {
    let is_idle = |state: &mut State| {
        let queue = &state.queue;
        let unwritten = queue.undurable.iter().any(|seq| is_unwritten(queue, *seq));
        !unwritten && queue.done.is_empty() && queue.released.is_empty() && state.parked.is_empty() && !state.ending
    };
    let state = shared.work.wait_while(shared.lock(), is_idle);
    let mut state = state.unwrap_or_else(PoisonError::into_inner);
    let State { queue, limits, disk, parked, .. } = &mut *state;
    let mut job = Job {
        notices: Vec::new(),
        done: std::mem::take(&mut queue.done)
            .into_iter()
            .map(|done| (done.number, queue.lines[done.line].name.clone()))
            .collect(),
        released: std::mem::take(&mut queue.released),
        parked: std::mem::take(parked),
        bytes_max: limits.bytes_max,
    };
    // A disk that took nothing is tried with little, which may fit into the reserve.
    let most = JOB_BYTES.min(limits.bytes_max / 8) / if healthy { 1 } else { 16 };
    let mut bytes = 0;
    for seq in &queue.undurable {
        let Some(entry) = queue.entries.get_mut(seq).filter(|entry| entry.kept == Kept::Memory) else { continue };
        let Some(json) = entry.json.clone() else { continue };
        bytes += (json.len() + RECORD_BYTES) as u64;
        if bytes > most && !job.notices.is_empty() {
            break;
        }
        let number = *entry.number.get_or_insert_with(|| {
            disk.next_number += 1;
            disk.next_number - 1
        });
        let durable =
            (0..queue.lines.len()).filter(|line| entry.pending & 1 << line != 0 && queue.lines[*line].durable);
        let lines: Vec<usize> = durable.collect();
        let envelope = Envelope {
            number,
            accepted: entry.accepted,
            id: entry.id,
            rank: entry.rank,
            resolved: entry.resolved,
            alerts: entry.alerts.clone(),
            channels: lines.iter().map(|line| queue.lines[*line].name.clone()).collect(),
        };
        entry.kept = Kept::Writing;
        let lines = lines.into_iter().fold(0, |all, line| all | 1 << line);
        job.notices.push(Waiting { seq: *seq, json, lines, envelope });
    }
    let is_empty = job.notices.is_empty() && job.done.is_empty() && job.released.is_empty() && job.parked.is_empty();
    (!is_empty || !state.ending).then_some(job)
}

fn is_unwritten(queue: &Queue, seq: u64) -> bool {
    queue.entries.get(&seq).is_some_and(|entry| entry.kept == Kept::Memory)
}

fn run(shared: &Shared, spool: &mut Spool, dir: &Path, job: &mut Job) -> std::io::Result<()> {
    spool.set_bytes_max(job.bytes_max);
    for park in job.parked.drain(..) {
        if let Err(error) = keep_text(spool, dir, &park) {
            tracing::warn!("{}: {error}: the text of an alert that was given up is not kept", dir.display());
        }
    }
    for place in job.released.drain(..) {
        spool.release(place);
    }
    let more: usize = job.notices.iter().map(|waiting| waiting.json.len() + RECORD_BYTES).sum();
    make_room(shared, spool, dir, (more + job.done.len() * RECORD_BYTES) as u64)?;
    {
        // What was given up at once need not be written.
        let state = shared.lock();
        job.notices.retain(|waiting| state.queue.entries.contains_key(&waiting.seq));
    }
    let mut bytes = Vec::new();
    let mut offsets = Vec::new();
    for waiting in &job.notices {
        let start = bytes.len();
        let fits = Record::Notice(waiting.envelope.clone(), &waiting.json).encode(&mut bytes);
        debug_assert!(fits, "what is too long is not meant for the disk");
        offsets.push((start as u64, u32::try_from(bytes.len() - start).unwrap_or(u32::MAX)));
    }
    for (number, channel) in &job.done {
        Record::Done { number: *number, channel: channel.clone() }.encode(&mut bytes);
    }
    if !bytes.is_empty() {
        let (segment, base) = spool.append(&bytes, !job.notices.is_empty(), || shared.lock().queue.accepted())?;
        let mut state = shared.lock();
        for (waiting, (offset, length)) in job.notices.drain(..).zip(offsets) {
            let place = Place { segment, offset: base + offset, length };
            spool.keep(place);
            state.queue.written(waiting.seq, waiting.envelope.number, place, waiting.lines);
        }
        job.done.clear();
        works(&mut state, dir);
        state.queue.lines.iter().filter(|line| line.waiting > 0).for_each(|line| line.wake.notify_one());
        shared.publish(&state);
    }
    spool.trim();
    shared.lock().disk.bytes = spool.bytes();
    Ok(())
}

/// Takes back what could not be written.
fn put_back(shared: &Shared, job: Job) {
    let mut state = shared.lock();
    for waiting in job.notices {
        match state.queue.entries.get_mut(&waiting.seq) {
            Some(entry) => entry.kept = Kept::Memory,
            None => _ = state.queue.undurable.remove(&waiting.seq),
        }
    }
    let State { queue, .. } = &mut *state;
    for (number, channel) in job.done {
        if let Some(line) = queue.lines.iter().position(|line| line.name == channel) {
            queue.done.push(super::queue::Done { number, line });
        }
    }
}

/// Keeps the files within their bound: what waits may take three quarters of it at most, so that a quarter is there to be tidied up.
fn make_room(shared: &Shared, spool: &mut Spool, dir: &Path, more: u64) -> std::io::Result<()> {
    let more = more + SEGMENT_BYTES;
    let most = spool.bytes_max();
    let mut state = shared.lock();
    let waited_for = state.queue.lines.iter().filter(|line| line.waiting > 0).count() as u64;
    let excess = (state.queue.disk_bytes + more).saturating_sub(most / 8 * 5);
    let mut given = state.queue.give_up_of_most(excess, most / 2 / waited_for.max(1));
    let excess = (state.queue.disk_bytes + more).saturating_sub(most / 4 * 3);
    given.extend(state.queue.give_up(true, excess));
    for (line, seq) in given {
        state.lost(line, seq, Loss::NoRoom);
    }
    let released = std::mem::take(&mut state.queue.released);
    drop(state);
    released.into_iter().for_each(|place| spool.release(place));
    spool.trim();
    if spool.bytes() + more > most {
        spool.drop_parked();
    }
    while spool.bytes() + more > most
        && let Some(oldest) = spool.oldest()
    {
        tidy(shared, spool, dir, oldest)?;
        let before = spool.bytes();
        spool.trim();
        if spool.bytes() >= before {
            break;
        }
    }
    Ok(())
}

/// Writes what still waits in the oldest segment anew, so that the segment can go.
fn tidy(shared: &Shared, spool: &mut Spool, dir: &Path, oldest: u64) -> std::io::Result<()> {
    let mut found = Vec::new();
    {
        let state = shared.lock();
        for (seq, entry) in &state.queue.entries {
            if let (Kept::Disk(place), Some(number)) = (entry.kept, entry.number)
                && place.segment == oldest
            {
                let waits = |line: &usize| entry.pending & 1 << line != 0 && state.queue.lines[*line].durable;
                let lines = (0..state.queue.lines.len()).filter(waits);
                let envelope = Envelope {
                    number,
                    accepted: entry.accepted,
                    id: entry.id,
                    rank: entry.rank,
                    resolved: entry.resolved,
                    alerts: entry.alerts.clone(),
                    channels: lines.map(|line| state.queue.lines[line].name.clone()).collect(),
                };
                found.push((*seq, place, entry.pending, envelope));
            }
        }
    }
    let mut bytes = Vec::new();
    let mut moved = Vec::new();
    for (seq, place, lines, envelope) in found {
        let start = bytes.len();
        let number = envelope.number;
        // What cannot be read now must not keep all that is new from the disk.
        let record = Spool::read(dir, place).unwrap_or_default();
        let fits = Spool::notice(&record, number).is_some_and(|json| Record::Notice(envelope, json).encode(&mut bytes));
        let length = u32::try_from(bytes.len() - start).unwrap_or(u32::MAX);
        moved.push((seq, number, place, lines, fits.then_some((start as u64, length))));
    }
    let (segment, base) = spool.append(&bytes, true, || shared.lock().queue.accepted())?;
    let mut state = shared.lock();
    for (seq, number, old, lines, new) in moved {
        let Some((offset, length)) = new else {
            damaged(&mut state, seq);
            continue;
        };
        let place = Place { segment, offset: base + offset, length };
        spool.keep(place);
        spool.release(old);
        if !state.queue.moved(seq, number, place, lines) {
            spool.release(place);
        }
    }
    Ok(())
}

/// What is on disk is no notice.
fn damaged(state: &mut State, seq: u64) {
    state.disk.damaged += 1;
    for line in 0..state.queue.lines.len() {
        if state.queue.finish(line, seq) {
            state.lost(line, seq, Loss::Unreadable);
        }
    }
}

/// One line of JSON with the notice that was given up.
fn keep_text(spool: &mut Spool, dir: &Path, park: &Park) -> std::io::Result<()> {
    let read;
    let text = match (&park.json, park.place) {
        (Some(json), _) => &**json,
        (None, Some((place, number))) => {
            read = Spool::read(dir, place)?;
            Spool::notice(&read, number).unwrap_or_default()
        }
        (None, None) => &[],
    };
    let Ok(notice) = serde_json::from_slice::<serde_json::Value>(text) else { return Ok(()) };
    let line = serde_json::json!({
        "time": time::rfc3339_secs(park.time), "id": notice["id"], "channel": park.channel, "reason": park.reason,
        "notice": notice,
    });
    spool.park(line.to_string().as_bytes())
}

/// Reads what is due until the end.
pub(super) fn read(shared: &Shared, dir: &Path) {
    let is_idle = |state: &mut State| state.queue.reads.is_empty() && !state.ending;
    loop {
        let state = shared.reading.wait_while(shared.lock(), is_idle);
        let mut state = state.unwrap_or_else(PoisonError::into_inner);
        if state.ending {
            return;
        }
        let Some((seq, place, number)) = state.queue.reads.pop_front() else { continue };
        drop(state);
        let record = Spool::read(dir, place);
        let mut state = shared.lock();
        match record.as_ref().map(|record| Spool::notice(record, number)) {
            Ok(Some(json)) => state.queue.read(seq, json.into()),
            Ok(None) => damaged(&mut state, seq),
            Err(error) if state.queue.is_at(seq, place) => {
                tracing::warn!("{}: {error}: an alert that waits cannot be read now", dir.display());
                state.queue.unread(seq, shared.now() + READ_PAUSE);
            }
            // It has been moved since.
            Err(_) => state.queue.unread(seq, Duration::ZERO),
        }
        state.queue.lines.iter().filter(|line| line.waiting > 0).for_each(|line| line.wake.notify_one());
    }
}

#[expect(clippy::disallowed_methods, reason = "how long the disk took, for people; nothing is decided by it")]
fn now() -> Instant {
    Instant::now()
}
