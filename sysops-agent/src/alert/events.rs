//! A kernel event as an alert that a person can act on. The event's own shape is `model::event`.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::model::container::place;
use crate::model::event::{FdLeak, HungTask, OomKill, Outcome, Phase, Sigkill, SlowIo};
use crate::model::{Alert, Detail, Event, Severity, Tick, bytes_text, cut, shown};

use super::fingerprint;

/// Characters of a name and of a path that a message shows.
const NAME_MAX: usize = 64;
const PATH_MAX: usize = 256;
/// As many digits of a container's id as `docker ps` shows.
const SHORT_ID: usize = 12;

/// Stack frames that a message shows; the event has all.
const FRAMES_MAX: usize = 8;

/// The longest label: a path in Linux has less than 4096 bytes.
const LABEL_BYTES_MAX: usize = 4096;

/// The alert of an event. `None` for one that is everyday: a SIGKILL by someone who is not known to kill when memory
/// runs short.
#[must_use]
pub fn alert(event: &Event, hostname: &str, now: &Tick) -> Option<Alert> {
    let (severity, message) = match &event.detail {
        // The kernel killed no one, but memory had run out.
        Detail::OomKill(kill) if kill.already_exiting == Some(true) => (Severity::Warn, oom_kill(event, kill)),
        Detail::OomKill(kill) => (Severity::Critical, oom_kill(event, kill)),
        Detail::Sigkill(kill) if kill.for_memory => (Severity::Critical, sigkill(event, kill)),
        Detail::Sigkill(_) => return None,
        Detail::HungTask(task) => (Severity::Warn, hung_task(event, task)),
        Detail::FdLeak(leak) => (fd_leak_severity(leak), fd_leak(event, leak)),
        Detail::SlowIo(io) => (Severity::Warn, slow_io(event, io)),
    };
    let labels: BTreeMap<_, _> = event.labels().into_iter().map(|(name, value)| (name, bounded(value))).collect();
    let kind = event.kind();
    Some(Alert {
        value: 1.0,
        fingerprint: fingerprint(kind, kind, labels.iter().map(|(name, value)| (name.as_str(), value.as_str()))),
        labels,
        starts_at: event.time.parse().map_or(now.wall, |time: jiff::Timestamp| time.into()),
        ..Alert::new(hostname, now.wall, severity, kind, message)
    })
}

/// `The kernel killed java (pid 42, uid 1000) in cgroup /web/app: cgroup /web had reached its memory limit. …`
fn oom_kill(event: &Event, kill: &OomKill) -> String {
    let mut text = if kill.already_exiting == Some(true) {
        format!("Memory ran out, and the kernel waits for {}, which was already exiting", process(event))
    } else {
        format!("The kernel killed {}", process(event))
    };
    if let Some(why) = shortage(kill) {
        text += ": ";
        text += &why;
    }
    text.push('.');
    let parts = [("anon", kill.anon_rss_bytes), ("file", kill.file_rss_bytes), ("shmem", kill.shmem_rss_bytes)];
    let known: Vec<_> = parts.iter().filter_map(|(name, bytes)| Some((*name, (*bytes)?))).collect();
    if !known.is_empty() {
        let total = known.iter().fold(0_u64, |sum, (_, bytes)| sum.saturating_add(*bytes));
        let parts: Vec<_> = known.iter().map(|(name, bytes)| format!("{name} {}", bytes_text(*bytes))).collect();
        let _ = write!(text, " It held {} of memory ({}).", bytes_text(total), parts.join(", "));
    }
    if let Some(adj) = kill.oom_score_adj {
        let _ = write!(text, " Its oom_score_adj was {adj}.");
    }
    match (&kill.trigger_comm, kill.trigger_pid) {
        (Some(comm), Some(pid)) => {
            let _ = write!(text, " {} (pid {pid}) had asked for memory.", shown(comm, NAME_MAX));
        }
        (Some(comm), None) => {
            let _ = write!(text, " {} had asked for memory.", shown(comm, NAME_MAX));
        }
        (None, Some(pid)) => {
            let _ = write!(text, " Process {pid} had asked for memory.");
        }
        (None, None) => {}
    }
    if let Some(group) = &kill.oom_group {
        let _ = write!(text, " All processes of cgroup {} were killed with it.", shown(group, PATH_MAX));
    }
    text
}

/// `earlyoom (pid 7, uid 0) killed java (pid 42, uid 1000) in cgroup /web/app with SIGKILL, as it does when memory …`
fn sigkill(event: &Event, kill: &Sigkill) -> String {
    let mut text = kill.sender_comm.as_ref().map_or_else(|| "A process".to_owned(), |comm| shown(comm, NAME_MAX));
    if let Some(pid) = kill.sender_pid {
        let _ = write!(text, " (pid {pid})");
    }
    let _ = write!(text, " killed {} with SIGKILL, as it does when memory runs short.", process(event));
    text
}

/// What had run out, as far as the kernel said.
fn shortage(kill: &OomKill) -> Option<String> {
    if let Some(path) = &kill.oom_memcg {
        let limit = kill.oom_memcg_limit_bytes.map(|bytes| format!(" of {}", bytes_text(bytes))).unwrap_or_default();
        return Some(format!("cgroup {} had reached its memory limit{limit}", shown(path, PATH_MAX)));
    }
    Some(match kill.constraint.as_deref()? {
        "CONSTRAINT_NONE" => "the machine had run out of memory".to_owned(),
        "CONSTRAINT_MEMCG" => "its cgroup, or one above, had reached its memory limit".to_owned(),
        "CONSTRAINT_CPUSET" => "the memory nodes of its cpuset had run out of memory".to_owned(),
        "CONSTRAINT_MEMORY_POLICY" => "the memory nodes of its memory policy had run out of memory".to_owned(),
        other => shown(other, NAME_MAX),
    })
}

/// `jbd2/sda1 (pid 33) has been blocked in the kernel for 122 s, waiting in …. Stack: …`
fn hung_task(event: &Event, task: &HungTask) -> String {
    if task.phase == Phase::Ended {
        return hang_over(event, task);
    }
    let mut text = format!("{} has been blocked in the kernel", thread(event, task));
    if let Some(seconds) = task.blocked_seconds {
        let _ = write!(text, " for {seconds} s");
    }
    if let Some(wchan) = &task.wchan {
        let _ = write!(text, ", waiting in {}", shown(wchan, NAME_MAX));
    }
    text.push('.');
    if let Some(lock) = task.lock {
        let _ = write!(text, " It waits for a {}", lock.name());
        if let (Some(tid), Some(comm)) = (task.holder_tid, &task.holder_comm) {
            let _ = write!(text, ", likely held by {} (thread {tid})", shown(comm, NAME_MAX));
        }
        text.push('.');
    }
    if !task.kernel_stack.is_empty() {
        let frames: Vec<_> = task.kernel_stack.iter().take(FRAMES_MAX).map(|frame| shown(frame, NAME_MAX)).collect();
        let more = if task.kernel_stack.len() > FRAMES_MAX { " < …" } else { "" };
        let _ = write!(text, " Stack: {}{more}", frames.join(" < "));
    }
    text
}

/// `mysqld (pid 42, uid 27) in cgroup /db, thread ib_log_writer,`.
fn thread(event: &Event, task: &HungTask) -> String {
    let thread = task.thread_comm.as_ref().map(|comm| format!(", thread {},", shown(comm, NAME_MAX)));
    process(event) + &thread.unwrap_or_default()
}

/// `nginx (pid 42) takes file descriptors (socket) and does not close them: 812 are open, the oldest for 2 h; …`
fn fd_leak(event: &Event, leak: &FdLeak) -> String {
    let mut text = format!(
        "{} takes file descriptors ({}) and does not close them: {} are open, the oldest for {:.0} s, and {:.0} more come in an \
         hour. It has {} open",
        process(event),
        shown(&leak.descriptor, NAME_MAX),
        leak.count,
        leak.oldest_seconds,
        leak.growth_per_hour,
        leak.open,
    );
    if let Some(limit) = leak.limit {
        let _ = write!(text, " and may have {limit}");
    }
    text.push('.');
    if !leak.frames.is_empty() {
        let frames: Vec<_> = leak.frames.iter().take(FRAMES_MAX).map(|frame| shown(&frame.place(), NAME_MAX)).collect();
        let more = if leak.frames.len() > FRAMES_MAX { " < …" } else { "" };
        let _ = write!(text, " They are taken by: {}{more}", frames.join(" < "));
    }
    text
}

/// Above this share of its limit a process is about to fail.
const LIMIT_CRITICAL_PERCENT: u64 = 90;

fn fd_leak_severity(leak: &FdLeak) -> Severity {
    let is_near = |limit: u64| leak.open.saturating_mul(100) > limit.saturating_mul(LIMIT_CRITICAL_PERCENT);
    if leak.limit.is_some_and(is_near) { Severity::Critical } else { Severity::Warn }
}

/// `jbd2/sda1 (pid 33) runs again; it had been blocked in the kernel for 300 s.`
fn hang_over(event: &Event, task: &HungTask) -> String {
    let what = match task.outcome {
        Some(Outcome::Ran) => "runs again",
        Some(Outcome::Exited) => "is gone",
        None => "is not looked at any more, so that nobody knows when it goes on",
    };
    let mut text = format!("{} {what}; it had been blocked in the kernel", thread(event, task));
    if let Some(seconds) = task.blocked_seconds {
        let _ = write!(text, " for {seconds} s");
    }
    text.push('.');
    text
}

/// `A write of 16 KiB to vda took 2.310 s: 0.100 s in the queue, 2.210 s in the device. It was asked for by …`
fn slow_io(event: &Event, io: &SlowIo) -> String {
    let operation = io.operation.as_deref().unwrap_or("request");
    let mut text = format!("A block I/O request ({}", shown(operation, NAME_MAX));
    if let Some(bytes) = io.bytes.filter(|&bytes| bytes > 0) {
        let _ = write!(text, " of {}", bytes_text(bytes));
    }
    let (queue, device) = (io.queue_seconds, io.device_seconds);
    let _ = write!(text, ") on {}", shown(io.device.as_deref().unwrap_or("an unknown disk"), NAME_MAX));
    let _ = write!(text, " took {:.3} s: {queue:.3} s in the queue, {device:.3} s in the device", queue + device);
    if let Some(status) = &io.status {
        let _ = write!(text, ", and failed: {}", shown(status, NAME_MAX));
    }
    if event.comm.is_some() {
        let kernel = if io.kernel_thread == Some(true) { ", for the kernel itself or on behalf of others" } else { "" };
        let _ = write!(text, ". It was asked for by {}{kernel}", process(event));
    }
    text + "."
}

/// `java (pid 42, uid 1000) in cgroup /web/app`, as far as it is known.
fn process(event: &Event) -> String {
    let mut text = event.comm.as_ref().map_or_else(|| "a process".to_owned(), |comm| shown(comm, NAME_MAX));
    match (event.pid, event.uid) {
        (Some(pid), Some(uid)) => {
            let _ = write!(text, " (pid {pid}, uid {uid})");
        }
        (Some(pid), None) => {
            let _ = write!(text, " (pid {pid})");
        }
        (None, Some(uid)) => {
            let _ = write!(text, " (uid {uid})");
        }
        (None, None) => {}
    }
    if let Some(cgroup) = &event.cgroup {
        let _ = write!(text, " in cgroup {}", shown(cgroup, PATH_MAX));
        // The id is in the path, too, but there it is easily overlooked.
        if let Some(container) = place(cgroup).container {
            let _ = write!(text, " (container {})", shown(container, SHORT_ID));
        }
    }
    text
}

/// Cuts what no kernel writes, so that a forged line cannot make an alert of any size.
fn bounded(mut text: String) -> String {
    text.truncate(cut(&text, LABEL_BYTES_MAX).len());
    text
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::*;
    use crate::model::Source;
    use crate::model::event::Lock;
    use crate::model::stack::Frame;

    fn now() -> Tick {
        let up = Duration::from_secs(6000);
        Tick { monotonic: up, boottime: up, wall: SystemTime::UNIX_EPOCH + Duration::from_secs(1_771_777_800) }
    }

    fn alert(event: &Event, hostname: &str, now: &Tick) -> Alert {
        super::alert(event, hostname, now).expect("worth an alert")
    }

    fn event(comm: &str, detail: Detail) -> Event {
        Event {
            schema: Event::SCHEMA,
            time: "2026-02-22T16:30:00.000000000Z".to_owned(),
            source: vec![Source::TpBtf],
            pid: Some(92),
            tid: Some(92),
            comm: Some(comm.to_owned()),
            uid: Some(1000),
            cgroup: Some("/web.slice/app.service".to_owned()),
            detail,
            monotonic_ns: 0,
        }
    }

    fn kill() -> OomKill {
        // The victim of kernel-logs oom-memcg: `Killed process 92 (dd) total-vm:207060kB, anon-rss:48724kB, …`
        OomKill {
            oom_score_adj: Some(300),
            total_vm_bytes: Some(207_060 << 10),
            anon_rss_bytes: Some(48_724 << 10),
            file_rss_bytes: Some(4 << 10),
            shmem_rss_bytes: Some(1516 << 10),
            constraint: Some("CONSTRAINT_MEMCG".to_owned()),
            oom_memcg: Some("/web.slice".to_owned()),
            trigger_pid: Some(91),
            trigger_comm: Some("tar".to_owned()),
            ..OomKill::default()
        }
    }

    #[test]
    fn an_oom_kill_tells_who_where_how_much_and_why() {
        let alert = alert(&event("dd", Detail::OomKill(kill())), "web-1", &now());
        assert_eq!(
            alert.message,
            "The kernel killed dd (pid 92, uid 1000) in cgroup /web.slice/app.service: cgroup /web.slice had reached \
             its memory limit. It held 49.1 MiB of memory (anon 47.6 MiB, file 4.0 KiB, shmem 1.5 MiB). \
             Its oom_score_adj was 300. tar (pid 91) had asked for memory."
        );
        let json = serde_json::to_value(&alert).expect("an alert is JSON");
        assert_eq!(
            json,
            serde_json::json!({
                "hostname": "web-1", "timestamp": "2026-02-22T16:30:00Z", "severity": "critical",
                "metric": "oom_kill", "value": 1.0, "threshold": 0.0, "message": alert.message,
                "labels": { "pid": "92", "comm": "dd", "cgroup": "/web.slice/app.service" },
                "id": "", "fingerprint": "f0f0307622ba4bb7", "change": "fired", "rule": "oom_kill",
                "starts_at": "2026-02-22T16:30:00Z",
            })
        );
    }

    #[test]
    fn what_a_source_cannot_know_is_left_out() {
        let mut bare = event("dd", Detail::OomKill(OomKill::default()));
        (bare.pid, bare.uid, bare.cgroup, bare.comm) = (None, None, None, None);
        let bare = alert(&bare, "h", &now());
        assert_eq!(bare.message, "The kernel killed a process.");
        assert!(bare.labels.is_empty());
    }

    #[test]
    fn a_mark_without_a_kill_is_no_kill_and_a_group_is_named() {
        let exiting = OomKill { already_exiting: Some(true), ..OomKill::default() };
        let told = alert(&event("dd", Detail::OomKill(exiting)), "h", &now());
        assert_eq!(told.severity, Severity::Warn);
        assert!(told.message.starts_with("Memory ran out, and the kernel waits for dd (pid 92"), "{}", told.message);
        let group = OomKill {
            oom_memcg: Some("/db".into()),
            oom_memcg_limit_bytes: Some(48 << 20),
            oom_group: Some("/db".into()),
            ..OomKill::default()
        };
        let told = alert(&event("dd", Detail::OomKill(group)), "h", &now());
        assert!(told.message.contains("cgroup /db had reached its memory limit of 48.0 MiB."), "{}", told.message);
        assert!(told.message.ends_with("All processes of cgroup /db were killed with it."), "{}", told.message);
    }

    #[test]
    fn a_sigkill_is_worth_an_alert_when_it_was_for_memory() {
        let kill = Sigkill { sender_pid: Some(7), sender_comm: Some("earlyoom".into()), ..Sigkill::default() };
        assert_eq!(super::alert(&event("dd", Detail::Sigkill(kill.clone())), "h", &now()), None);
        let mut killed = event("dd", Detail::Sigkill(Sigkill { for_memory: true, ..kill }));
        killed.cgroup = Some(format!("/docker/{}", "0123456789abcdef".repeat(4)));
        let told = alert(&killed, "h", &now());
        assert_eq!((told.severity, told.metric.as_str()), (Severity::Critical, "sigkill"));
        assert!(told.message.starts_with("earlyoom (pid 7) killed dd (pid 92, uid 1000) in cgroup /docker/"));
        assert!(told.message.contains("(container 0123456789a"), "{}", told.message);
    }

    #[test]
    fn a_hung_task_tells_how_long_and_where() {
        let task = HungTask {
            blocked_seconds: Some(122),
            wchan: Some("folio_wait_bit".to_owned()),
            kernel_stack: (0..10).map(|i| format!("f{i}")).collect(),
            lock: Some(Lock::Mutex),
            holder_tid: Some(44),
            holder_comm: Some("tar\n".to_owned()),
            ..HungTask::default()
        };
        let over = HungTask {
            phase: Phase::Ended,
            outcome: Some(Outcome::Ran),
            blocked_seconds: Some(300),
            ..HungTask::default()
        };
        let unwatched = HungTask { outcome: None, blocked_seconds: None, ..over.clone() };
        assert_eq!(
            alert(&event("jbd2/sda1", Detail::HungTask(unwatched)), "h", &now()).message,
            "jbd2/sda1 (pid 92, uid 1000) in cgroup /web.slice/app.service is not looked at any more, so that nobody knows \
             when it goes on; it had been blocked in the kernel."
        );
        assert_eq!(
            alert(&event("jbd2/sda1", Detail::HungTask(over)), "h", &now()).message,
            "jbd2/sda1 (pid 92, uid 1000) in cgroup /web.slice/app.service runs again; it had been blocked in the \
             kernel for 300 s."
        );
        let alert = alert(&event("jbd2/sda1", Detail::HungTask(task)), "h", &now());
        assert_eq!(alert.severity, Severity::Warn);
        assert_eq!(
            alert.message,
            "jbd2/sda1 (pid 92, uid 1000) in cgroup /web.slice/app.service has been blocked in the kernel for 122 s, \
             waiting in folio_wait_bit. It waits for a mutex, likely held by tar\\n (thread 44). Stack: f0 < f1 < f2 < f3 < f4 < f5 < f6 < f7 < …"
        );
    }

    #[test]
    fn threads_of_one_process_are_one_alert_whatever_their_names() {
        let hang = |name: &str| HungTask { thread_comm: Some(name.to_owned()), ..HungTask::default() };
        let of = |name: &str| alert(&event("mysqld", Detail::HungTask(hang(name))), "h", &now());
        let (one, other) = (of("ib_log_writer"), of("connection\n"));
        assert_eq!((one.fingerprint, &one.labels), (other.fingerprint, &other.labels));
        assert_eq!(
            other.message,
            "mysqld (pid 92, uid 1000) in cgroup /web.slice/app.service, thread connection\\n, has been blocked in the kernel."
        );
    }

    #[test]
    fn a_leak_tells_what_how_many_and_where_and_is_critical_near_the_limit() {
        let frame = |function: &str| Frame { function: Some(function.to_owned()), ..Frame::default() };
        let leak = |open| FdLeak {
            descriptor: "socket".to_owned(),
            count: 800,
            oldest_seconds: 7200.4,
            growth_per_hour: 400.0,
            open,
            limit: Some(1024),
            attributed: 810,
            coverage: 0.95,
            frames: vec![frame("connect_backend"), Frame { offset: 0x1234, ..Frame::default() }],
        };
        let told = alert(&event("nginx", Detail::FdLeak(leak(850))), "h", &now());
        assert_eq!(
            told.message,
            "nginx (pid 92, uid 1000) in cgroup /web.slice/app.service takes file descriptors (socket) and does not close \
             them: 800 are open, the oldest for 7200 s, and 400 more come in an hour. It has 850 open and may have 1024. \
             They are taken by: connect_backend < 0x1234"
        );
        assert_eq!(told.severity, Severity::Warn);
        assert_eq!(alert(&event("nginx", Detail::FdLeak(leak(930))), "h", &now()).severity, Severity::Critical);
    }

    #[test]
    fn hostile_text_stays_on_one_line_and_is_bounded() {
        let mut hostile = event("a\n<34>1 \x1b[2J\u{202e}", Detail::OomKill(kill()));
        hostile.cgroup = Some("/x".repeat(1 << 20));
        let alert = alert(&hostile, "h", &now());
        assert!(alert.message.len() < 2048, "{}", alert.message.len());
        assert!(!alert.message.contains(['\n', '\x1b', '\u{202e}']));
        assert_eq!(alert.labels["comm"], "a\n<34>1 \x1b[2J\u{202e}", "labels are for machines, and exact");
        assert_eq!(alert.labels["cgroup"].len(), LABEL_BYTES_MAX);
    }
}
