//! Cuts what was read of /dev/kmsg into records, puts continued ones together and counts what is missing.
//! Reading is left to `kmsg`.

use super::record::{self, Line, Record};

/// Longest line that is taken; the kernel's are much shorter, a recorded file may hold anything.
const MAX_LINE_BYTES: usize = 64 << 10;

/// Records and how many of them.
#[derive(Debug, Default)]
pub(super) struct Lines {
    /// What one read gives.
    pub(super) buffer: Vec<u8>,
    /// A line that has not ended yet.
    carry: Vec<u8>,
    is_too_long: bool,
    scratch: Vec<u8>,
    /// The newest record's text, with what it continues.
    text: Vec<u8>,
    micros: u64,
    sequence: u64,
    /// False for what user space wrote.
    pub(super) is_kernel: bool,
    /// Records before the newest are missing.
    pub(super) has_gap: bool,
    /// The newest record's sequence.
    pub(super) last: Option<u64>,
    /// Records up to this one were read in an earlier life and count no more.
    pub(super) floor: Option<u64>,
    /// Records read.
    pub(super) records: u64,
    /// Records that were overwritten before they were read, or not understood.
    pub(super) lost: u64,
}

impl Lines {
    /// Takes one line from `rest` and gives its time if it is a record.
    pub(super) fn take(&mut self, rest: &mut &[u8]) -> Option<u64> {
        let Some(end) = rest.iter().position(|&byte| byte == b'\n') else {
            self.carry_on(rest);
            *rest = &[];
            return None;
        };
        let (line, tail) = rest.split_at(end);
        *rest = &tail[1..];
        if self.carry.is_empty() && !self.is_too_long {
            return self.line(line);
        }
        self.carry_on(line);
        let carry = std::mem::take(&mut self.carry);
        let micros = if std::mem::take(&mut self.is_too_long) {
            self.lost += 1;
            None
        } else {
            self.line(&carry)
        };
        self.carry = carry;
        self.carry.clear();
        micros
    }

    fn carry_on(&mut self, piece: &[u8]) {
        if self.carry.len() + piece.len() > MAX_LINE_BYTES {
            self.is_too_long = true;
            self.carry.clear();
        } else if !self.is_too_long {
            self.carry.extend_from_slice(piece);
        }
    }

    fn line(&mut self, line: &[u8]) -> Option<u64> {
        let header = match record::parse(line, &mut self.scratch) {
            Line::Record(header) => header,
            Line::Dictionary => return None,
            Line::Garbage => {
                self.lost += 1;
                return None;
            }
        };
        let next = self.last.and_then(|last| last.checked_add(1));
        if self.floor.is_none_or(|floor| header.sequence > floor) {
            self.records += 1;
            let expected = self.floor.and_then(|floor| floor.checked_add(1)).max(next);
            self.lost += expected.map_or(0, |expected| header.sequence.saturating_sub(expected));
        }
        self.has_gap = next.is_some_and(|next| header.sequence > next);
        self.last = Some(header.sequence);
        let was_kernel = std::mem::replace(&mut self.is_kernel, header.facility == 0);
        // Kernels up to 4.8 mark the first part of a line with `c` and each following with `+`; newer ones mark a
        // following part with `c`. The only two continued lines that matter go on with a comma or a blank.
        let is_part = match header.flag {
            b'+' => true,
            b'c' => matches!(self.scratch.first(), Some(b',' | b' ')),
            _ => false,
        };
        let follows = is_part && was_kernel && self.is_kernel && next == Some(header.sequence);
        if !follows {
            self.text.clear();
        }
        if self.text.len() + self.scratch.len() <= MAX_LINE_BYTES {
            self.text.extend_from_slice(&self.scratch);
        }
        (self.micros, self.sequence) = (header.micros, header.sequence);
        Some(header.micros)
    }

    /// The newest record.
    pub(super) fn record(&self) -> Record<'_> {
        Record { sequence: self.sequence, micros: self.micros, text: &self.text }
    }
}
