//! Turns what a program read of a task into the head of an event: who, of whom, where.

use std::time::Duration;

use sysops_common::task::{Task, known};

use crate::host::Host;
use crate::model::time::rfc3339_nanos;
use crate::model::{Detail, Event, Source};

/// An event about `task` at `monotonic_ns`; what was not read is absent.
#[must_use]
pub(super) fn event(host: &Host, source: Source, monotonic_ns: u64, task: &Task, detail: Detail) -> Event {
    let has = |bit: u32| task.known & bit != 0;
    Event {
        schema: Event::SCHEMA,
        time: rfc3339_nanos(host.clock.now().wall_at(Duration::from_nanos(monotonic_ns))),
        source: vec![source],
        pid: has(known::TGID).then_some(task.tgid),
        tid: has(known::TID).then_some(task.tid),
        comm: has(known::COMM).then(|| name(&task.comm)),
        uid: has(known::UID).then_some(task.uid),
        cgroup: path(task),
        detail,
        monotonic_ns,
    }
}

/// A name as the kernel keeps it: up to the first NUL, whatever bytes.
#[must_use]
pub(super) fn name(comm: &[u8]) -> String {
    let end = comm.iter().position(|&byte| byte == 0).unwrap_or(comm.len());
    String::from_utf8_lossy(&comm[..end]).into_owned()
}

/// The path of the task's memory cgroup.
#[must_use]
pub(super) fn path(task: &Task) -> Option<String> {
    (task.known & known::PATH != 0).then(|| names(&task.path, task.path_len)).flatten()
}

/// A path from names that lead from the leaf to the root, `len` bytes of them.
#[must_use]
pub(super) fn names(path: &[u8], len: u32) -> Option<String> {
    let names = path.get(..len as usize)?;
    let mut path = String::with_capacity(names.len() + 1);
    for name in names.split(|&byte| byte == 0).rev().filter(|name| !name.is_empty()) {
        path.push('/');
        path.push_str(&String::from_utf8_lossy(name));
    }
    Some(if path.is_empty() { "/".to_owned() } else { path })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use sysops_common::task::{NAME_LEN, PATH_LEN};

    /// A task of which everything is known, with these names from leaf to root.
    pub(in crate::kernel) fn task(names: &[u8]) -> Task {
        let mut path = [0xff; PATH_LEN + NAME_LEN];
        path[..names.len()].copy_from_slice(names);
        let mut comm = [0; 16];
        comm[..4].copy_from_slice(b"java");
        Task {
            start_boottime_ns: 5_000_000_000,
            tgid: 70,
            tid: 71,
            uid: 1000,
            known: known::TGID | known::TID | known::COMM | known::START | known::UID | known::PATH,
            comm,
            path_len: u32::try_from(names.len()).expect("short"),
            reserved: 0,
            path,
        }
    }

    #[test]
    fn names_from_leaf_to_root_become_a_path() {
        assert_eq!(path(&task(b"web.service\0system.slice\0")).as_deref(), Some("/system.slice/web.service"));
        assert_eq!(path(&task(b"")).as_deref(), Some("/"));
    }

    #[test]
    fn what_was_not_read_is_absent() {
        let mut task = task(b"a\0");
        task.known = known::TID;
        let host = Host::fixture(std::path::Path::new("/nonexistent"));
        let event = event(&host, Source::TpBtf, 0, &task, Detail::OomKill(crate::model::event::OomKill::default()));
        assert_eq!((event.pid, event.tid, event.comm, event.uid, event.cgroup), (None, Some(71), None, None, None));
    }

    #[test]
    fn a_length_beyond_the_record_is_no_path() {
        let mut task = task(b"a\0");
        task.path_len = u32::MAX;
        assert_eq!(path(&task), None);
    }

    #[test]
    fn a_name_of_any_bytes_is_shown() {
        assert_eq!(name(b"a\xff\0junk"), "a\u{fffd}");
        assert_eq!(name(b"0123456789abcdef"), "0123456789abcdef");
    }
}
