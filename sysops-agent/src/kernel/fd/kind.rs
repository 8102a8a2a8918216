//! What a descriptor stands for, by its link in /proc: a word for people, and what of it tells one open file from another.

/// What a link says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Link {
    /// `file`, `socket`, `pipe`, `eventfd`, …
    pub kind: &'static str,
    /// The inode, where the link has it.
    pub inode: Option<u64>,
}

/// What stands in the brackets of `anon_inode:[…]`, and before `:[number]`.
#[rustfmt::skip]
const KINDS: &[(&[u8], &str)] = &[
    (b"socket", "socket"), (b"pipe", "pipe"), (b"pidfd", "pidfd"),
    (b"eventfd", "eventfd"), (b"eventpoll", "epoll"), (b"timerfd", "timerfd"), (b"signalfd", "signalfd"),
    (b"inotify", "inotify"), (b"fanotify", "fanotify"), (b"userfaultfd", "userfaultfd"), (b"perf_event", "perf_event"),
    (b"io_uring", "io_uring"), (b"bpf-map", "bpf_map"), (b"bpf-prog", "bpf_prog"), (b"bpf_link", "bpf_link"),
    (b"bpf_iter", "bpf_iter"), (b"btf", "btf"), (b"kvm-vm", "kvm"), (b"sync_file", "sync_file"),
    (b"mnt", "namespace"), (b"net", "namespace"), (b"pid", "namespace"), (b"user", "namespace"), (b"uts", "namespace"),
    (b"ipc", "namespace"), (b"cgroup", "namespace"), (b"time", "namespace"),
];

impl Link {
    /// Reads `/var/log/x`, `socket:[4711]`, `anon_inode:[eventfd]`, `anon_inode:inotify`.
    #[must_use]
    pub(super) fn parse(link: &[u8]) -> Self {
        if link.starts_with(b"/") {
            let kind = if link.starts_with(b"/memfd:") {
                "memfd"
            } else if link.starts_with(b"/dev/") && !link.starts_with(b"/dev/shm/") {
                "device"
            } else {
                "file"
            };
            return Self { kind, inode: None };
        }
        let Some(colon) = link.iter().position(|&byte| byte == b':') else {
            return Self { kind: "other", inode: None };
        };
        let (name, rest) = (&link[..colon], &link[colon + 1..]);
        let inner = rest.strip_prefix(b"[").and_then(|rest| rest.strip_suffix(b"]")).unwrap_or(rest);
        let name = if name == b"anon_inode" { inner } else { name };
        let kind = KINDS.iter().find(|(known, _)| *known == name).map_or("other", |(_, kind)| kind);
        Self { kind, inode: crate::host::bytes::u64(inner) }
    }

    /// True for what has a path: its link changes when it is renamed.
    #[must_use]
    pub(super) fn has_path(&self) -> bool {
        matches!(self.kind, "file" | "device" | "memfd")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_tell_kind_and_inode() {
        let link = |text: &str| {
            let Link { kind, inode } = Link::parse(text.as_bytes());
            (kind, inode)
        };
        assert_eq!(link("socket:[4711]"), ("socket", Some(4711)));
        assert_eq!(link("pipe:[1]"), ("pipe", Some(1)));
        assert_eq!(link("anon_inode:[eventfd]"), ("eventfd", None));
        assert_eq!(link("anon_inode:inotify"), ("inotify", None));
        assert_eq!(link("anon_inode:[eventpoll]"), ("epoll", None));
        assert_eq!(link("/var/log/syslog"), ("file", None));
        assert_eq!(link("/memfd:x (deleted)"), ("memfd", None));
        assert_eq!((link("/dev/null"), link("/dev/shm/a")), (("device", None), ("file", None)));
        assert_eq!(link("net:[4026531840]"), ("namespace", Some(4_026_531_840)));
        assert_eq!((link(""), link("new:[thing]"), link("a")), (("other", None), ("other", None), ("other", None)));
    }
}
