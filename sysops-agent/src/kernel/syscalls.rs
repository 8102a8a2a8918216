//! System calls that make or close file descriptors, by name and number. Those whose descriptors cannot be told from number
//! and arguments (bpf, ioctl, clone, io_uring) and those that close many at once (close_range, exec) are not among them.

use std::path::Path;

use sysops_common::fd::{CALLS, Effect};

use crate::host::Host;

/// Name, effect, number on x86_64, number on arm64 (asm/unistd_64.h, asm-generic/unistd.h).
type Call = (&'static str, Effect, Option<usize>, Option<usize>);

#[rustfmt::skip]
const TABLE: &[Call] = &[
    ("open", Effect::One, Some(2), None),
    ("openat", Effect::One, Some(257), Some(56)),
    ("openat2", Effect::One, Some(437), Some(437)),
    ("open_by_handle_at", Effect::One, Some(304), Some(265)),
    ("creat", Effect::One, Some(85), None),
    ("socket", Effect::One, Some(41), Some(198)),
    ("accept", Effect::One, Some(43), Some(202)),
    ("accept4", Effect::One, Some(288), Some(242)),
    ("dup", Effect::One, Some(32), Some(23)),
    ("dup2", Effect::Replace, Some(33), None),
    ("dup3", Effect::One, Some(292), Some(24)),
    ("epoll_create", Effect::One, Some(213), None),
    ("epoll_create1", Effect::One, Some(291), Some(20)),
    ("eventfd", Effect::One, Some(284), None),
    ("eventfd2", Effect::One, Some(290), Some(19)),
    ("signalfd", Effect::One, Some(282), None),
    ("signalfd4", Effect::One, Some(289), Some(74)),
    ("timerfd_create", Effect::One, Some(283), Some(85)),
    ("inotify_init", Effect::One, Some(253), None),
    ("inotify_init1", Effect::One, Some(294), Some(26)),
    ("fanotify_init", Effect::One, Some(300), Some(262)),
    ("memfd_create", Effect::One, Some(319), Some(279)),
    ("memfd_secret", Effect::One, Some(447), Some(447)),
    ("userfaultfd", Effect::One, Some(323), Some(282)),
    ("perf_event_open", Effect::One, Some(298), Some(241)),
    ("pidfd_open", Effect::One, Some(434), Some(434)),
    ("pidfd_getfd", Effect::One, Some(438), Some(438)),
    ("mq_open", Effect::One, Some(240), Some(180)),
    ("io_uring_setup", Effect::One, Some(425), Some(425)),
    ("open_tree", Effect::One, Some(428), Some(428)),
    ("fsopen", Effect::One, Some(430), Some(430)),
    ("fsmount", Effect::One, Some(432), Some(432)),
    ("fspick", Effect::One, Some(433), Some(433)),
    ("pipe", Effect::Pipe, Some(22), None),
    ("pipe2", Effect::Pipe, Some(293), Some(59)),
    ("socketpair", Effect::Pair, Some(53), Some(199)),
    ("fcntl", Effect::Duplicate, Some(72), Some(25)),
    ("recvmsg", Effect::Receive, Some(47), Some(212)),
    ("close", Effect::Close, Some(3), Some(57)),
];

/// [`Effect`] by number of the call on this machine. Where the numbers are not known, none has an effect.
pub(super) static EFFECTS: [u8; CALLS] = effects();

/// The members of `struct pt_regs` that still have the first arguments when a call returns, each of eight bytes.
pub(super) const ARGUMENTS: [(&str, u32); 4] = if cfg!(target_arch = "aarch64") {
    [("orig_x0", 0), ("regs", 1), ("regs", 2), ("regs", 3)]
} else {
    [("di", 0), ("si", 0), ("dx", 0), ("r10", 0)]
};

/// The member of `struct pt_regs` that has the number of the call, with its size.
pub(super) const NUMBER: (&str, u32) = if cfg!(target_arch = "aarch64") { ("syscallno", 4) } else { ("orig_ax", 8) };

/// A thread's status tells calls of 32-bit programs.
pub(super) const HAS_STATUS: bool = cfg!(target_arch = "x86_64");

const fn effects() -> [u8; CALLS] {
    let mut effects = [Effect::None as u8; CALLS];
    let mut place = 0;
    while place < TABLE.len() {
        if let Some(number) = number(&TABLE[place]) {
            effects[number] = TABLE[place].1 as u8;
        }
        place += 1;
    }
    effects
}

const fn number(call: &Call) -> Option<usize> {
    if cfg!(target_arch = "x86_64") {
        call.2
    } else if cfg!(target_arch = "aarch64") {
        call.3
    } else {
        None
    }
}

/// Tracepoints at the end and at the beginning of the calls that this kernel has, in the group `syscalls`.
#[must_use]
pub(super) fn traced(host: &Host, tracefs: &Path) -> [Vec<&'static str>; 2] {
    let events = host.files.list(&tracefs.join("events/syscalls")).unwrap_or_default();
    let there = |name: &&str| events.binary_search_by(|event| event.as_str().cmp(name)).is_ok();
    [TRACEPOINTS, BEGINNINGS].map(|names| names.iter().copied().filter(there).collect())
}

/// The same by the names of their tracepoints. How close(2) ends is not asked.
const TRACEPOINTS: &[&str] = &[
    "sys_exit_open",
    "sys_exit_openat",
    "sys_exit_openat2",
    "sys_exit_open_by_handle_at",
    "sys_exit_creat",
    "sys_exit_socket",
    "sys_exit_accept",
    "sys_exit_accept4",
    "sys_exit_dup",
    "sys_exit_dup2",
    "sys_exit_dup3",
    "sys_exit_epoll_create",
    "sys_exit_epoll_create1",
    "sys_exit_eventfd",
    "sys_exit_eventfd2",
    "sys_exit_signalfd",
    "sys_exit_signalfd4",
    "sys_exit_timerfd_create",
    "sys_exit_inotify_init",
    "sys_exit_inotify_init1",
    "sys_exit_fanotify_init",
    "sys_exit_memfd_create",
    "sys_exit_memfd_secret",
    "sys_exit_userfaultfd",
    "sys_exit_perf_event_open",
    "sys_exit_pidfd_open",
    "sys_exit_pidfd_getfd",
    "sys_exit_mq_open",
    "sys_exit_io_uring_setup",
    "sys_exit_open_tree",
    "sys_exit_fsopen",
    "sys_exit_fsmount",
    "sys_exit_fspick",
    "sys_exit_pipe",
    "sys_exit_pipe2",
    "sys_exit_socketpair",
    "sys_exit_fcntl",
    "sys_exit_recvmsg",
];

/// Tracepoints at the beginning of calls whose arguments matter.
const BEGINNINGS: &[&str] = &[
    "sys_enter_close",
    "sys_enter_dup2",
    "sys_enter_pipe",
    "sys_enter_pipe2",
    "sys_enter_socketpair",
    "sys_enter_fcntl",
    "sys_enter_recvmsg",
];

/// What the descriptors that a call makes are called when they are of one kind only: `call` is the number plus one, as the
/// programs have it.
#[must_use]
pub(super) fn makes(call: u32) -> Option<&'static str> {
    let number = (call as usize).checked_sub(1)?;
    let name = TABLE.iter().find(|call| self::number(call) == Some(number))?.0;
    Some(match name {
        "socket" | "accept" | "accept4" | "socketpair" => "socket",
        "pipe" | "pipe2" => "pipe",
        "eventfd" | "eventfd2" => "eventfd",
        "epoll_create" | "epoll_create1" => "epoll",
        "signalfd" | "signalfd4" => "signalfd",
        "timerfd_create" => "timerfd",
        "inotify_init" | "inotify_init1" => "inotify",
        "fanotify_init" => "fanotify",
        "userfaultfd" => "userfaultfd",
        "perf_event_open" => "perf_event",
        "pidfd_open" => "pidfd",
        "io_uring_setup" => "io_uring",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_call_has_its_tracepoint_and_numbers_of_its_own() {
        let ends = TABLE.iter().filter(|call| call.1 != Effect::Close);
        let named: Vec<String> = ends.map(|call| format!("sys_exit_{}", call.0)).collect();
        assert_eq!(named, TRACEPOINTS);
        for numbers in [TABLE.iter().map(|call| call.2).collect::<Vec<_>>(), TABLE.iter().map(|call| call.3).collect()]
        {
            let mut present: Vec<usize> = numbers.into_iter().flatten().collect();
            let count = present.len();
            present.sort_unstable();
            present.dedup();
            assert_eq!(present.len(), count);
        }
    }

    #[test]
    fn calls_do_what_their_names_say() {
        let by_name = |name: &str| {
            let call = TABLE.iter().find(|call| call.0 == name).expect("in the table");
            number(call).map(|number| EFFECTS[number])
        };
        assert_eq!(by_name("openat"), Some(Effect::One as u8));
        assert_eq!(by_name("socketpair"), Some(Effect::Pair as u8));
        assert_eq!(by_name("close"), Some(Effect::Close as u8));
        let known = TABLE.iter().filter(|call| number(call).is_some()).count();
        assert_eq!(EFFECTS.iter().filter(|&&effect| effect != Effect::None as u8).count(), known);
    }

    #[test]
    fn a_call_is_seen_to_begin_when_its_arguments_matter() {
        let plain = [Effect::None, Effect::One];
        let matter = TABLE.iter().filter(|call| !plain.contains(&call.1)).map(|call| format!("sys_enter_{}", call.0));
        let (mut matter, mut begin) = (matter.collect::<Vec<_>>(), BEGINNINGS.to_vec());
        matter.sort_unstable();
        begin.sort_unstable();
        assert_eq!(matter, begin);
    }

    #[test]
    fn calls_tell_what_they_make() {
        let call = |name: &str| {
            let number = TABLE.iter().find(|call| call.0 == name).and_then(number);
            number.map(|number| u32::try_from(number).expect("small") + 1)
        };
        assert_eq!(call("eventfd2").and_then(makes), call("eventfd2").map(|_| "eventfd"));
        assert_eq!(call("openat").and_then(makes), None);
        assert_eq!((makes(0), makes(u32::MAX)), (None, None));
    }

    #[test]
    fn only_calls_that_the_kernel_traces_are_attached_to() {
        let dir = tempfile::tempdir().expect("a directory");
        for name in ["sys_exit_close", "sys_exit_openat", "sys_enter_openat", "sys_exit_read", "sys_enter_close"] {
            std::fs::create_dir_all(dir.path().join("events/syscalls").join(name)).expect("created");
        }
        let host = Host::fixture(dir.path());
        assert_eq!(traced(&host, dir.path()), [["sys_exit_openat"], ["sys_enter_close"]]);
    }
}
