//! A kernel event as one line for people.

use std::fmt;

use crate::model::event::{FdLeak, HungTask, OomKill};
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
        }
    }
}

fn oom_kill(kill: &OomKill, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let parts = [(kill.anon_rss_bytes, "anonymous"), (kill.file_rss_bytes, "file"), (kill.shmem_rss_bytes, "shared")];
    let mut separator = ": ";
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
    if let (Some(pid), Some(comm)) = (kill.trigger_pid, &kill.trigger_comm) {
        write!(f, ", asked for by {}[{pid}]", shown(comm, 64))?;
    }
    Ok(())
}

fn hung_task(hang: &HungTask, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    if let Some(seconds) = hang.blocked_seconds {
        write!(f, ": blocked for {seconds} s")?;
    }
    if let Some(wchan) = &hang.wchan {
        write!(f, " in {}", shown(wchan, 80))?;
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
