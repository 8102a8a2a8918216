//! A kernel event as one line for people.

use std::fmt;

use crate::model::event::{FdLeak, HungTask, OomKill, Outcome, Phase, Sigkill, SlowIo};
use crate::model::{Detail, Event, bytes_text, shown};

/// `14:02:07Z  oom_kill   postgres[4242] uid 26 in /db.slice: 1.9 GiB anonymous, …`.
pub struct EventLine<'a>(pub &'a Event);

impl fmt::Display for EventLine<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let event = self.0;
        let clock = event.time.get(11..19).unwrap_or(&event.time);
        write!(f, "{clock}Z  {:<9}  ", event.kind())?;
        match &event.comm {
            Some(comm) => write!(f, "{}", shown(comm, 64))?,
            None => write!(f, "?")?,
        }
        match event.pid.or(event.tid) {
            Some(pid) => write!(f, "[{pid}]")?,
            None => write!(f, "[?]")?,
        }
        if let Some(uid) = event.uid {
            write!(f, " uid {uid}")?;
        }
        if let Some(cgroup) = &event.cgroup {
            write!(f, " in {}", shown(cgroup, 200))?;
        }
        match &event.detail {
            Detail::OomKill(kill) => oom_kill(kill, f),
            Detail::HungTask(hang) => hung_task(hang, f),
            Detail::FdLeak(leak) => fd_leak(leak, f),
            Detail::Sigkill(kill) => sigkill(kill, f),
            Detail::SlowIo(io) => slow_io(io, f),
        }
    }
}

fn oom_kill(kill: &OomKill, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let parts = [(kill.anon_rss_bytes, "anonymous"), (kill.file_rss_bytes, "file"), (kill.shmem_rss_bytes, "shared")];
    let mut separator = ": ";
    if kill.already_exiting == Some(true) {
        write!(f, "{separator}already exiting, not killed")?;
        separator = ", ";
    }
    for (bytes, name) in parts {
        if let Some(bytes) = bytes {
            write!(f, "{separator}{} {name}", bytes_text(bytes))?;
            separator = ", ";
        }
    }
    if let Some(adj) = kill.oom_score_adj {
        write!(f, "{separator}oom_score_adj {adj}")?;
    }
    match (&kill.oom_memcg, &kill.constraint) {
        (Some(limit), _) => write!(f, ", limit of {}", shown(limit, 200))?,
        (None, Some(constraint)) => write!(f, ", {}", shown(constraint, 40))?,
        (None, None) => {}
    }
    if let Some(bytes) = kill.oom_memcg_limit_bytes.or(kill.limit_bytes) {
        write!(f, ", limit {}", bytes_text(bytes))?;
    }
    if let (Some(pid), Some(comm)) = (kill.trigger_pid, &kill.trigger_comm) {
        write!(f, ", asked for by {}[{pid}]", shown(comm, 64))?;
    }
    if let Some(incident) = &kill.incident {
        write!(f, ", incident {}", shown(incident, 40))?;
    }
    Ok(())
}

fn sigkill(kill: &Sigkill, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    write!(f, ": sent by {}", kill.sender_comm.as_ref().map_or_else(|| "?".to_owned(), |comm| shown(comm, 64)))?;
    if let Some(pid) = kill.sender_pid {
        write!(f, "[{pid}]")?;
    }
    if let Some(uid) = kill.sender_uid {
        write!(f, " uid {uid}")?;
    }
    if let Some(cgroup) = &kill.sender_cgroup {
        write!(f, " in {}", shown(cgroup, 200))?;
    }
    Ok(())
}

fn hung_task(hang: &HungTask, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    if let Some(thread) = &hang.thread_comm {
        write!(f, ", thread {}", shown(thread, 64))?;
    }
    if hang.phase == Phase::Ended {
        f.write_str(match hang.outcome {
            Some(Outcome::Ran) => ": runs again",
            Some(Outcome::Exited) => ": is gone",
            None => ": is not looked at any more",
        })?;
        return hang.blocked_seconds.map_or(Ok(()), |seconds| write!(f, ", was blocked for {seconds} s"));
    }
    if let Some(seconds) = hang.blocked_seconds {
        write!(f, ": blocked for {seconds} s")?;
    }
    if let Some(wchan) = &hang.wchan {
        write!(f, " in {}", shown(wchan, 80))?;
    }
    if let Some(lock) = hang.lock {
        write!(f, ", waits for a {}", lock.name())?;
    }
    if let (Some(tid), Some(comm)) = (hang.holder_tid, &hang.holder_comm) {
        write!(f, ", held by {}[{tid}]", shown(comm, 64))?;
    }
    for (frame, separator) in hang.kernel_stack.iter().take(6).zip([", stack "].into_iter().chain([" < "; 5])) {
        write!(f, "{separator}{}", shown(frame, 80))?;
    }
    Ok(())
}

fn fd_leak(leak: &FdLeak, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    write!(f, ": {} × {}, {:+.0} an hour", leak.count, shown(&leak.descriptor, 64), leak.growth_per_hour)?;
    write!(f, ", {} open", leak.open)?;
    if let Some(limit) = leak.limit {
        write!(f, " of {limit}")?;
    }
    for (frame, separator) in leak.frames.iter().take(6).zip([", taken by "].into_iter().chain([" < "; 5])) {
        write!(f, "{separator}{}", shown(&frame.place(), 80))?;
    }
    Ok(())
}

/// `: write of 16 KiB on vda at 2048 took 2.310 s (queue 0.100 s, device 2.210 s): timeout`.
fn slow_io(io: &SlowIo, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    write!(f, ": {}", io.operation.as_deref().unwrap_or("request"))?;
    if let Some(bytes) = io.bytes.filter(|&bytes| bytes > 0) {
        write!(f, " of {}", bytes_text(bytes))?;
    }
    write!(f, " on {}", shown(io.device.as_deref().unwrap_or("?"), 64))?;
    if let Some(sector) = io.sector {
        write!(f, " at {sector}")?;
    }
    let (queue, device) = (io.queue_seconds, io.device_seconds);
    write!(f, " took {:.3} s (queue {queue:.3} s, device {device:.3} s)", queue + device)?;
    if let Some(status) = &io.status {
        write!(f, ": {}", shown(status, 40))?;
    }
    if io.kernel_thread == Some(true) {
        write!(f, ", asked for by the kernel")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Source;
    use crate::model::event::OomKill;

    #[test]
    fn a_line_tells_who_where_and_why_and_a_name_cannot_break_it() {
        let event = Event {
            schema: Event::SCHEMA,
            time: "2026-02-22T16:30:00.000000005Z".into(),
            source: vec![Source::TpBtf],
            pid: Some(42),
            tid: Some(43),
            comm: Some("a\n\x1b[2Jb".into()),
            uid: Some(1000),
            cgroup: Some("/web".into()),
            detail: Detail::OomKill(OomKill { anon_rss_bytes: Some(3 << 20), ..OomKill::default() }),
            monotonic_ns: 0,
        };
        let line = EventLine(&event).to_string();
        assert_eq!(line, r"16:30:00Z  oom_kill   a\n\u{1b}[2Jb[42] uid 1000 in /web: 3.0 MiB anonymous");
    }
}
