//! Holds what the programs found against what the machine says: a contradiction means that an offset is wrong. What then
//! becomes of the probe is left to the ladder.

use sysops_common::block_io::Seen;

use super::super::ladder::Refusal;
use super::super::layout;

/// Completions of one look, by what is known of them.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Sums {
    /// Since the probe was attached, on disks that the machine knows.
    pub known: u64,
    /// Since the last look, on disks that it does not know.
    pub unknown: u64,
    /// Since the probe was attached, by the kernel's own count.
    pub kernel: u64,
    pub seen: Seen,
    pub faults: u64,
}

/// Holds what the programs found against what the machine says. A single disk may have been taken away between two
/// looks; that all of a hundred completions are of no disk, look after look, says that an offset is wrong.
#[derive(Debug, Default)]
pub(super) struct Suspicion {
    known: u64,
    unknown: u64,
    looks: u32,
}

impl Suspicion {
    /// Completions that are enough to judge by.
    const ENOUGH: u64 = 64;

    pub(super) fn look(&mut self, sums: &Sums) -> Option<Refusal> {
        let Seen { without_disk, partial, beyond, .. } = sums.seen;
        if beyond >= Self::ENOUGH && beyond > sums.known / 2 {
            return Some(contradiction(&format!("{beyond} requests completed more than they had to do")));
        }
        if sums.known != self.known {
            *self = Self { known: sums.known, unknown: 0, looks: 0 };
            return None;
        }
        if sums.unknown > 0 {
            self.unknown += sums.unknown;
            self.looks += 1;
        }
        if self.unknown >= Self::ENOUGH && self.looks >= 2 {
            let count = self.unknown;
            return Some(contradiction(&format!(
                "{count} completions in a row are of disks that are not in /proc/diskstats"
            )));
        }
        // What follows says something only while nothing at all was measured though the kernel counted much.
        if self.known > 0 || self.unknown > 0 || sums.kernel < Self::ENOUGH {
            return None;
        }
        [
            (sums.faults, "requests could not be read"),
            (without_disk, "requests are of no disk"),
            (partial, "completions are of a part of a request"),
        ]
        .into_iter()
        .find(|(count, _)| *count >= Self::ENOUGH)
        .map(|(count, what)| contradiction(&format!("all of {count} {what}")))
    }
}

fn contradiction(what: &str) -> Refusal {
    layout::contradiction(format!("self-check: {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOTHING: Seen = Seen {
        without_disk: 0,
        partial: 0,
        beyond: 0,
        without_room: 0,
        slow_lost: 0,
        failures_lost: 0,
        charges_lost: 0,
    };
    const QUIET: Sums = Sums { known: 0, unknown: 0, kernel: 1000, seen: NOTHING, faults: 0 };

    #[test]
    fn completions_of_no_disk_are_a_contradiction_only_when_there_are_no_others() {
        let mut suspicion = Suspicion::default();
        assert_eq!(suspicion.look(&Sums { unknown: 500, ..QUIET }), None, "one disk may have been taken away");
        let refusal = suspicion.look(&Sums { unknown: 1, ..QUIET }).expect("again");
        assert!(refusal.reason.contains("501 completions in a row"), "{refusal:?}");

        let mut suspicion = Suspicion::default();
        for known in 1..100 {
            assert_eq!(suspicion.look(&Sums { known, unknown: 60, ..QUIET }), None);
        }
        assert_eq!(suspicion.look(&Sums { known: 99, unknown: 60, ..QUIET }), None);
        assert!(suspicion.look(&Sums { known: 99, unknown: 60, ..QUIET }).is_some());
    }

    #[test]
    fn nothing_measured_while_the_kernel_counts_is_a_contradiction_with_its_cause() {
        let seen = |without_disk, partial, beyond| Seen { without_disk, partial, beyond, ..NOTHING };
        let reason = |sums: Sums| Suspicion::default().look(&sums).map(|refusal| refusal.reason);
        assert_eq!(reason(QUIET), None, "the kernel counts disks without requests, too");
        assert!(reason(Sums { faults: 64, ..QUIET }).is_some_and(|text| text.contains("could not be read")));
        assert!(reason(Sums { seen: seen(64, 0, 0), ..QUIET }).is_some_and(|text| text.contains("of no disk")));
        assert!(reason(Sums { seen: seen(0, 64, 0), ..QUIET }).is_some_and(|text| text.contains("of a part")));
        assert_eq!(reason(Sums { seen: seen(64, 64, 0), known: 1, ..QUIET }), None);
        assert_eq!(reason(Sums { seen: seen(64, 0, 0), kernel: 10, ..QUIET }), None);
        assert!(
            reason(Sums { seen: seen(0, 0, 64), known: 64, ..QUIET }).is_some_and(|text| text.contains("more than"))
        );
        assert_eq!(reason(Sums { seen: seen(0, 0, 64), known: 1000, ..QUIET }), None);
    }
}
