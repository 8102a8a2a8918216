//! A kernel event as one line for people.

use crate::model::{Detail, Event, shown};

/// `14:02:07  oom_kill  postgres[4242] uid 26 in /db.slice: 1.9 GiB anonymous, …`.
#[must_use]
pub fn event_line(event: &Event) -> String {
    let clock = event.time.get(11..19).unwrap_or(&event.time);
    let comm = event.comm.as_deref().map_or_else(|| "?".to_owned(), |comm| shown(comm, 64));
    let id = event.pid.or(event.tid).map_or_else(|| "?".to_owned(), |pid| pid.to_string());
    let mut line = format!("{clock}Z  {:<9}  {comm}[{id}]", event.kind());
    if let Some(uid) = event.uid {
        line += &format!(" uid {uid}");
    }
    if let Some(cgroup) = &event.cgroup {
        line += &format!(" in {}", shown(cgroup, 200));
    }
    match &event.detail {
        Detail::OomKill(kill) => {
            let parts =
                [(kill.anon_rss_bytes, "anonymous"), (kill.file_rss_bytes, "file"), (kill.shmem_rss_bytes, "shared")];
            let parts: Vec<String> =
                parts.into_iter().filter_map(|(bytes, name)| Some(format!("{} {name}", bytes_text(bytes?)))).collect();
            if !parts.is_empty() {
                line += &format!(": {}", parts.join(", "));
            }
            if let Some(adj) = kill.oom_score_adj {
                line += &format!(", oom_score_adj {adj}");
            }
            if let Some(limit) = &kill.oom_memcg {
                line += &format!(", limit of {}", shown(limit, 200));
            } else if let Some(constraint) = &kill.constraint {
                line += &format!(", {}", shown(constraint, 40));
            }
            if let (Some(pid), Some(comm)) = (kill.trigger_pid, &kill.trigger_comm) {
                line += &format!(", asked for by {}[{pid}]", shown(comm, 64));
            }
        }
        Detail::HungTask(hang) => {
            if let Some(seconds) = hang.blocked_seconds {
                line += &format!(": blocked for {seconds} s");
            }
            if let Some(wchan) = &hang.wchan {
                line += &format!(" in {}", shown(wchan, 80));
            }
            let stack: Vec<String> = hang.kernel_stack.iter().take(6).map(|frame| shown(frame, 80)).collect();
            if !stack.is_empty() {
                line += &format!(", stack {}", stack.join(" < "));
            }
        }
    }
    line
}

/// Bytes in the largest binary unit that leaves at least 1, with one decimal.
#[must_use]
pub fn bytes_text(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    #[expect(clippy::cast_precision_loss, reason = "shown with one decimal")]
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Source;
    use crate::model::event::OomKill;

    #[test]
    fn bytes_are_readable() {
        let texts = [0, 1023, 1024, 1024 * 1024 - 1, 5 << 30].map(bytes_text);
        assert_eq!(texts, ["0 B", "1023 B", "1.0 KiB", "1.0 MiB", "5.0 GiB"]);
    }

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
        let line = event_line(&event);
        assert_eq!(line, r"16:30:00Z  oom_kill   a\n\u{1b}[2Jb[42] uid 1000 in /web: 3.0 MiB anonymous");
    }
}
