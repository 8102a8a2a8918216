//! What the readers of /proc/<pid> share: the line of `stat`, and names and ids of processes as labels.
//! Which numbers matter is left to `process`, `fd` and `agent`.

use std::io::Write;

use super::bytes;
use crate::host::Process;

/// Enough for every `stat` line: 52 numbers of at most 20 digits, and a name of at most 64 bytes.
pub(super) const STAT_BYTES: usize = 2048;

/// The part of `/proc/<pid>/stat` that is used (proc_pid_stat(5)).
#[derive(Debug, PartialEq)]
pub(super) struct Stat<'a> {
    /// The name as the kernel has it: any bytes but NUL, also `)` and newlines.
    pub comm: &'a [u8],
    /// One letter, as `R`.
    pub state: u8,
    /// User and system time of all threads, dead ones included, in ticks of USER_HZ.
    pub cpu_ticks: u64,
    /// Threads that live.
    pub threads: u64,
    /// When it started, in ticks of USER_HZ since boot. With the pid it tells a process from a later one of the same pid.
    pub start_ticks: u64,
    /// Resident pages.
    pub rss_pages: u64,
}

/// Reads a line of `/proc/<pid>/stat`; `None` when it is no such line.
pub(super) fn parse_stat(line: &[u8]) -> Option<Stat<'_>> {
    // The name stands in parentheses and may hold others, so it ends at the last one: only numbers follow it.
    let open = line.iter().position(|&byte| byte == b'(')?;
    let close = line.iter().rposition(|&byte| byte == b')').filter(|&close| close > open)?;
    let mut fields = bytes::fields(line[close + 1..].trim_ascii_end());
    let &[state] = fields.next()? else { return None };
    let mut skip_to = |skipped: usize| bytes::u64(fields.nth(skipped)?);
    // Fields 4 to 13 are not used; 14 and 15 are utime and stime, 20 threads, 22 the start, 24 the resident pages.
    let (user, system) = (skip_to(10)?, skip_to(0)?);
    Some(Stat {
        comm: &line[open + 1..close],
        state,
        cpu_ticks: user.checked_add(system)?,
        threads: skip_to(4)?,
        start_ticks: skip_to(1)?,
        rss_pages: skip_to(1)?,
    })
}

/// The name of a process as a label: up to 64 bytes of UTF-8. Invalid bytes are shown as U+FFFD, as in kernel events;
/// everything else is kept, newlines and ESC too: escaping is left to what prints it.
#[derive(Clone, Copy)]
pub(super) struct Comm {
    text: [u8; 64],
    length: usize,
}

impl Comm {
    /// From the bytes that the kernel gave.
    pub(super) fn new(bytes: &[u8]) -> Self {
        let mut comm = Self { text: [0; 64], length: 0 };
        for chunk in bytes.utf8_chunks() {
            let replacement = if chunk.invalid().is_empty() { "" } else { "\u{fffd}" };
            if !comm.push(chunk.valid()) || !comm.push(replacement) {
                break;
            }
        }
        comm
    }

    /// The name.
    pub(super) fn as_str(&self) -> &str {
        std::str::from_utf8(&self.text[..self.length]).expect("push adds whole characters")
    }

    /// Adds as many whole characters as there is room for; false when some were left out.
    fn push(&mut self, text: &str) -> bool {
        let room = text.len().min(self.text.len() - self.length);
        let end = (0..=room).rfind(|&end| text.is_char_boundary(end)).expect("0 is a boundary");
        self.text[self.length..self.length + end].copy_from_slice(&text.as_bytes()[..end]);
        self.length += end;
        end == text.len()
    }
}

/// The name in `/proc/<pid>/comm`, which the kernel ends with one newline; one before it belongs to the name. `None` when
/// the process has ended.
pub(super) fn comm_of<'b>(process: Process<'_>, buffer: &'b mut [u8; 256]) -> Option<&'b [u8]> {
    let comm = process.read("comm", buffer).ok()?;
    Some(comm.strip_suffix(b"\n").unwrap_or(comm))
}

/// A process id as a label, without allocation.
pub(super) struct PidText {
    text: [u8; 10],
    length: usize,
}

impl PidText {
    /// `pid` in decimal.
    pub(super) fn new(pid: u32) -> Self {
        let mut text = [0; 10];
        let mut rest = &mut text[..];
        write!(rest, "{pid}").expect("a u32 has at most 10 digits");
        let length = 10 - rest.len();
        Self { text, length }
    }

    /// The digits.
    pub(super) fn as_str(&self) -> &str {
        std::str::from_utf8(&self.text[..self.length]).expect("digits are ASCII")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `/proc/self/stat` of `cat` on Linux 6.18.
    const CAT: &[u8] = b"16179 (cat) R 16171 16171 10599 0 -1 4194304 101 0 0 0 3 4 0 0 20 0 1 0 161285 3133440 388 \
        18446744073709551615 94479488782336 94479488802217 140732888608320 0 0 0 0 0 0 0 0 0 17 0 0 0 0 0 0 \
        94479488818224 94479488819840 94480309600256 140732888611549 140732888611569 140732888611569 140732888612843 0\n";

    #[test]
    fn a_stat_line_is_read_from_its_last_parenthesis() {
        let cat = Stat { comm: b"cat", state: b'R', cpu_ticks: 7, threads: 1, start_ticks: 161_285, rss_pages: 388 };
        assert_eq!(parse_stat(CAT), Some(cat));
        for comm in ["a) S 1 (b", "x\ny", "\u{1b}[31m", ")", "((", "", " ", "1 (2) 3"] {
            let line = String::from_utf8_lossy(CAT).replace("cat", comm);
            let stat = parse_stat(line.as_bytes()).expect("a stat line");
            assert_eq!((stat.comm, stat.state, stat.rss_pages), (comm.as_bytes(), b'R', 388), "{comm:?}");
        }
        // The name of a process that ended in the middle of a character.
        let line: Vec<u8> = CAT.iter().map(|&byte| if byte == b'a' { 0xc3 } else { byte }).collect();
        assert_eq!(parse_stat(&line).map(|stat| stat.comm), Some(&b"c\xc3t"[..]));
    }

    #[test]
    fn what_is_no_stat_line_is_refused() {
        let rss = CAT.windows(4).position(|window| window == b" 388").expect("it is there");
        for end in 0..rss + 2 {
            assert_eq!(parse_stat(&CAT[..end]), None, "cut at {end}");
        }
        assert!(parse_stat(&CAT[..rss + 4]).is_some(), "what follows the resident pages is not needed");
        for bad in [&b""[..], b"\0\0\0", b")(", b"1 (a) RR 1", b"(a)\n\n\n", b"1 a R 1 2 3", b"\xff\xfe"] {
            assert_eq!(parse_stat(bad), None);
        }
        let huge = String::from_utf8_lossy(CAT).replace(" 3 4 0", " 18446744073709551615 4 0");
        assert_eq!(parse_stat(huge.as_bytes()), None, "a sum that does not fit is no number");
    }

    #[test]
    fn names_are_bounded_and_keep_whole_characters() {
        let of = |bytes: &[u8]| Comm::new(bytes).as_str().to_owned();
        assert_eq!(of(b"a) S 1 (b\n\x1b[31m\\"), "a) S 1 (b\n\u{1b}[31m\\");
        assert_eq!(of(b"a\xffb\xc3"), "a\u{fffd}b\u{fffd}");
        assert_eq!(of(&[b'x'; 65]), "x".repeat(64));
        assert_eq!(of("ä".repeat(40).as_bytes()), "ä".repeat(32));
        assert_eq!(of(format!("x{}", "ä".repeat(40)).as_bytes()), format!("x{}", "ä".repeat(31)));
        assert_eq!(of(&[0xff; 64]), "\u{fffd}".repeat(21), "after what did not fit nothing is added");
        assert_eq!(PidText::new(u32::MAX).as_str(), "4294967295");
        assert_eq!(PidText::new(0).as_str(), "0");
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_met(line: Vec<u8>, comm: Vec<u8>) {
            let _ = parse_stat(&line);
            let lossy = String::from_utf8_lossy(&comm).into_owned();
            let bounded = Comm::new(&comm);
            assert!(lossy.starts_with(bounded.as_str()));
            assert!(bounded.as_str() == lossy || lossy.len() > 60);
            // However a process is named, its line is read right.
            let mut line = b"7 (".to_vec();
            line.extend_from_slice(&comm);
            line.extend_from_slice(b") S 1 1 1 0 -1 4 1 0 0 0 30 12 0 0 20 0 5 0 99 1 44\n");
            let stat = Stat { comm: &comm, state: b'S', cpu_ticks: 42, threads: 5, start_ticks: 99, rss_pages: 44 };
            assert_eq!(parse_stat(&line), Some(stat));
        }
    }
}
