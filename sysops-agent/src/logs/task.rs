//! What /proc says of a thread that the kernel's log has just named: process, user, cgroup, where it sleeps.
//! Only for records that were read right after they were logged: later the number may be another's.

use crate::host::{Host, MemoryPath};
use crate::model::{Detail, Event};

/// Adds to `event` what its text does not say and /proc still knows. An OOM victim may be gone already.
pub(super) fn complete(event: &mut Event, host: &Host) {
    let (Some(tid), Some(comm)) = (event.tid, &event.comm) else { return };
    let read = |name: &str| host.files.read(&host.files.proc(&format!("{tid}/{name}"))).ok();
    let is_it = |now: Vec<u8>| String::from_utf8_lossy(now.strip_suffix(b"\n").unwrap_or(&now)) == comm.as_str();
    if !read("comm").is_some_and(is_it) {
        return;
    }
    if let Some(status) = read("status") {
        if let Some(tgid) = status_number(&status, "Tgid:") {
            event.pid = Some(tgid);
            name_process(event, host, tid, tgid);
        }
        event.uid = event.uid.or_else(|| status_number(&status, "Uid:"));
    }
    if event.cgroup.is_none() {
        let found = read("cgroup").and_then(|text| MemoryPath::parse(&String::from_utf8_lossy(&text)));
        let hangs = matches!(event.detail, Detail::HungTask(_));
        event.cgroup = found.filter(|found| hangs || !found.is_of_any_that_exit()).map(|found| found.path);
    }
    if let Detail::HungTask(hung) = &mut event.detail
        && hung.wchan.is_none()
    {
        // "0" where the kernel does not tell: running, or no symbols for this user, or before 5.16 or so.
        let wchan = read("wchan").map(|name| String::from_utf8_lossy(&name).trim().to_owned());
        // One that has come out of it since waits elsewhere.
        let hangs = read("stat").is_some_and(|stat| state(&stat) == Some(b'D'));
        hung.wchan = wchan.filter(|name| hangs && !name.is_empty() && name != "0");
    }
}

/// A hang bears the name of the process, and that of the thread where it is another.
fn name_process(event: &mut Event, host: &Host, tid: u32, tgid: u32) {
    let Detail::HungTask(hung) = &mut event.detail else { return };
    let Ok(text) = host.files.read(&host.files.proc(&format!("{tgid}/comm"))) else { return };
    let leader = String::from_utf8_lossy(text.strip_suffix(b"\n").unwrap_or(&text)).into_owned();
    if tid != tgid && event.comm.as_ref() != Some(&leader) {
        hung.thread_comm = event.comm.replace(leader);
    }
}

/// The field behind the name, which may hold anything.
fn state(stat: &[u8]) -> Option<u8> {
    let end = stat.iter().rposition(|&byte| byte == b')')?;
    stat.get(end + 2).copied()
}

/// The first number of a line of /proc/PID/status.
fn status_number(status: &[u8], key: &str) -> Option<u32> {
    // The name of the task is the first line, and a newline in it is escaped there.
    let text = std::str::from_utf8(&status[status.iter().position(|&byte| byte == b'\n')?..]).ok()?;
    text.lines().find_map(|line| line.strip_prefix(key))?.split_ascii_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;

    use super::*;
    use crate::model::Source;
    use crate::model::event::{HungTask, OomKill};

    fn completed(name: &str, comm: &str, cgroup: &str, detail: Detail) -> Event {
        completed_in('D', name, comm, cgroup, detail)
    }

    fn completed_in(state: char, name: &str, comm: &str, cgroup: &str, detail: Detail) -> Event {
        let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../target/tmp");
        let dir = dir.join(format!("task-{}-{name}", std::process::id()));
        fs::create_dir_all(dir.join("proc/12")).unwrap();
        fs::create_dir_all(dir.join("proc/11")).unwrap();
        fs::write(dir.join("proc/11/comm"), "leader\n").unwrap();
        let files = [
            ("comm", format!("{comm}\n")),
            ("status", "Name:\tx\nTgid:\t11\nUid:\t5\t6\t6\t6\n".to_owned()),
            ("cgroup", format!("4:memory:{cgroup}\n0::/u\n")),
            ("wchan", "io_schedule".to_owned()),
            ("stat", format!("12 (a) D) {state} 1 2 3")),
        ];
        for (file, text) in files {
            fs::write(dir.join("proc/12").join(file), text).unwrap();
        }
        let mut event = Event {
            schema: Event::SCHEMA,
            time: String::new(),
            source: vec![Source::Kmsg],
            pid: None,
            tid: Some(12),
            comm: Some("a\nb".into()),
            uid: None,
            cgroup: None,
            detail,
            monotonic_ns: 0,
        };
        complete(&mut event, &Host::fixture(&dir));
        fs::remove_dir_all(&dir).unwrap();
        event
    }

    #[test]
    fn a_hung_task_gets_what_proc_knows() {
        let event = completed("hung", "a\nb", "/", Detail::HungTask(HungTask::default()));
        assert_eq!((event.pid, event.uid, event.cgroup.as_deref()), (Some(11), Some(5), Some("/")));
        assert_eq!(event.comm.as_deref(), Some("leader"));
        let Detail::HungTask(hung) = event.detail else { panic!("{event:?}") };
        assert_eq!(hung.thread_comm.as_deref(), Some("a\nb"));
        assert_eq!(hung.wchan.as_deref(), Some("io_schedule"));
    }

    #[test]
    fn who_has_come_out_of_it_waits_elsewhere() {
        let event = completed_in('S', "awake", "a\nb", "/", Detail::HungTask(HungTask::default()));
        assert_eq!((event.pid, event.hang().and_then(|hung| hung.wchan.as_deref())), (Some(11), None));
    }

    #[test]
    fn the_root_is_no_cgroup_of_a_victim_and_another_process_is_not_asked() {
        let kill = || Detail::OomKill(OomKill::default());
        assert_eq!(completed("kill", "a\nb", "/", kill()).cgroup, None);
        assert_eq!(completed("alive", "a\nb", "/a", kill()).cgroup.as_deref(), Some("/a"));
        assert_eq!(completed("removed", "a\nb", "/a (deleted)", kill()).cgroup.as_deref(), Some("/a"));
        let other = completed("other", "sh", "/a", kill());
        assert_eq!((other.pid, other.uid, other.cgroup), (None, None, None));
    }

    #[test]
    fn numbers_of_a_status_file() {
        let status = b"Name:\tTgid:\\n1\nUmask:\t0022\nTgid:\t118\nUid:\t1000\t1000\t1000\t1000\n";
        assert_eq!((status_number(status, "Tgid:"), status_number(status, "Uid:")), (Some(118), Some(1000)));
        assert_eq!(status_number(b"", "Tgid:"), None);
    }
}
