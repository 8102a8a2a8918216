//! Holds the first requests against their bios, which tell the same facts at other offsets, by a program of its own that is
//! taken out when they agree. What becomes of the probe when they do not is left to the ladder.

use sysops_btf::Btf;
use sysops_common::block_io::{Agreement, Offsets};

use super::super::Rung;
use super::super::ladder::Refusal;
use super::super::layout;
use super::super::loader::{Object, Slots};
use super::types;

/// A program that compares, while it is attached.
pub(super) struct Comparison {
    seen: Slots<Agreement>,
    /// Dropping it takes the program out.
    _object: Object,
}

/// What the comparison has come to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// There were too few requests to tell.
    Open,
    /// Requests and bios say the same.
    Agreed,
    /// They do not, in this.
    Contradicted(Refusal),
}

impl Comparison {
    /// Attaches the program.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(super) fn begin(btf: &Btf, rung: Rung, offsets: &Offsets) -> Result<Self, Refusal> {
        let mut object = Object::load("block_io_check", offsets)?;
        let seen = object.slots("AGREEMENT")?;
        let (program, point) = types::program(btf, rung, "issue", "block_rq_issue", "request")?;
        object.attach(&program, point)?;
        Ok(Self { seen, _object: object })
    }

    /// What it has come to so far.
    #[must_use]
    pub(super) fn look(&self) -> Verdict {
        self.seen.get(0).map_or(Verdict::Open, |agreement| judge(&agreement))
    }
}

/// Requests that are enough to judge by.
const ENOUGH: u64 = 64;
/// Of these as many must be no reads: an operation that is always read as zero is one.
const NOT_READS: u64 = 16;
/// With so many requests it is judged without.
const MOST: u64 = 4096;

fn judge(agreement: &Agreement) -> Verdict {
    let Agreement { compared, not_reads, alone, operation, sector, bytes, disk, made, asker } = *agreement;
    if compared < ENOUGH {
        return Verdict::Open;
    }
    // One path of request-based dm has the bios of the disk above it: every second request goes to another disk then.
    let nearly_all = |differ: u64, of: u64| differ >= NOT_READS && differ.saturating_mul(4) > of.saturating_mul(3);
    let found = [
        (operation >= NOT_READS, operation, compared, "do not what their bios do", "request.cmd_flags, bio.bi_opf"),
        (
            nearly_all(sector, compared),
            sector,
            compared,
            "begin not where their bios do",
            "request.__sector, bio.bi_iter",
        ),
        (nearly_all(bytes, alone), bytes, alone, "are not as long as their bios", "request.__data_len, bio.bi_iter"),
        (nearly_all(disk, compared), disk, compared, "go not where their bios go", "request.q, bio.bi_bdev"),
        (nearly_all(made, compared), made, compared, "were made at no time that can be", "request.start_time_ns"),
        (
            nearly_all(asker, compared),
            asker,
            compared,
            "are not of who asks for them",
            "task_struct.pid, tgid, comm or cgroups, css_set.dfl_cgrp, cgroup.kn, kernfs_node.id",
        ),
    ]
    .into_iter()
    .find(|&(is_so, ..)| is_so);
    match found {
        Some((_, differ, of, what, members)) => Verdict::Contradicted(layout::contradiction(format!(
            "self-check: {differ} of {of} requests {what} ({members})"
        ))),
        None if not_reads >= NOT_READS || compared >= MOST => Verdict::Agreed,
        None => Verdict::Open,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: Agreement = Agreement {
        compared: 64,
        not_reads: 16,
        alone: 64,
        operation: 0,
        sector: 0,
        bytes: 0,
        disk: 0,
        made: 0,
        asker: 0,
    };

    fn reason(agreement: Agreement) -> String {
        match judge(&agreement) {
            Verdict::Contradicted(refusal) => refusal.reason,
            verdict => format!("{verdict:?}"),
        }
    }

    #[test]
    fn it_waits_for_enough_requests_and_for_some_that_are_no_reads() {
        assert_eq!(judge(&GOOD), Verdict::Agreed);
        assert_eq!(judge(&Agreement { compared: 63, operation: 63, ..GOOD }), Verdict::Open);
        assert_eq!(judge(&Agreement { compared: 4095, not_reads: 15, ..GOOD }), Verdict::Open);
        assert_eq!(judge(&Agreement { compared: 4096, not_reads: 0, ..GOOD }), Verdict::Agreed, "no one writes here");
    }

    #[test]
    fn what_contradicts_is_named_with_the_members_of_which_one_is_elsewhere() {
        assert!(
            reason(Agreement { compared: 1000, operation: 16, ..GOOD }).contains("16 of 1000"),
            "most may be reads"
        );
        assert!(reason(Agreement { sector: 60, ..GOOD }).contains("request.__sector, bio.bi_iter"));
        assert!(reason(Agreement { alone: 20, bytes: 20, ..GOOD }).contains("20 of 20 requests are not as long"));
        assert!(reason(Agreement { disk: 64, ..GOOD }).contains("bio.bi_bdev"));
        assert!(reason(Agreement { made: 64, ..GOOD }).contains("start_time_ns"));
        assert!(reason(Agreement { asker: 64, ..GOOD }).contains("task_struct.pid"));
        assert_eq!(judge(&Agreement { disk: 32, ..GOOD }), Verdict::Agreed, "each path of a multipath disk");
        assert_eq!(judge(&Agreement { alone: 2, bytes: 2, ..GOOD }), Verdict::Agreed, "two are not enough");
    }
}
