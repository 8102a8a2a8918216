//! What the kernel calls the end of a request that failed (blk_errors in block/blk-core.c).

use std::borrow::Cow;

use rustix::io::Errno;

/// A `blk_status_t`, the errno that stands for it up to 5.15 and in records of plain tracepoints, and its word. From 14 to 18
/// numbers were given anew in 6.11 and nothing in a kernel tells which it has, so these have no word but a number.
const WORDS: [(i32, Errno, &str); 14] = [
    (1, Errno::OPNOTSUPP, "not_supported"),
    (2, Errno::TIMEDOUT, "timeout"),
    (3, Errno::NOSPC, "no_space"),
    (4, Errno::NOLINK, "transport"),
    (5, Errno::REMOTEIO, "target"),
    (6, Errno::BADE, "reservation_conflict"),
    (7, Errno::NODATA, "medium"),
    (8, Errno::ILSEQ, "protection"),
    (9, Errno::NOMEM, "resource"),
    (10, Errno::IO, "io"),
    (11, Errno::REMCHG, "dm_requeue"),
    (12, Errno::AGAIN, "again"),
    (13, Errno::BUSY, "device_resource"),
    (19, Errno::INVAL, "invalid"),
];

/// The word for a `blk_status_t`, or for a number of errno below zero.
#[must_use]
pub(super) fn word(status: i32) -> Cow<'static, str> {
    let is_it = |(number, errno, _): &&(i32, Errno, &str)| *number == status || -errno.raw_os_error() == status;
    match WORDS.iter().find(is_it) {
        Some((.., word)) => Cow::Borrowed(word),
        None if status < 0 => Cow::Owned(format!("errno_{}", status.unsigned_abs())),
        None => Cow::Owned(format!("status_{status}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_and_its_errno_have_one_word() {
        assert_eq!((&*word(10), &*word(-5)), ("io", "io"));
        assert_eq!((&*word(2), &*word(-110)), ("timeout", "timeout"));
        assert_eq!((&*word(17), &*word(-9999), &*word(i32::MIN)), ("status_17", "errno_9999", "errno_2147483648"));
    }
}
