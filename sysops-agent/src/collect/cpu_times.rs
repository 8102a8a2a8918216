//! Remembers the CPU time of every process, to tell what each has used since the cycle before.
//! Who uses most is left to `process`.

use crate::host::os;
use crate::model::Tick;

/// Processes that are remembered. At 24 bytes, kept twice, this bounds the memory to 3 MiB.
pub(super) const TRACKED_MAX: usize = 65_536;

/// CPU times of one cycle, and of the one that is being read.
#[derive(Default)]
pub(super) struct CpuTimes {
    known_at: Option<Tick>,
    /// In order of pids.
    known: Vec<CpuTime>,
    reading: Vec<CpuTime>,
    untracked: u64,
}

/// CPU time of one process, in ticks of USER_HZ.
#[derive(Clone, Copy)]
pub(super) struct CpuTime {
    pub pid: u32,
    pub ticks: u64,
    pub start_ticks: u64,
}

impl CpuTimes {
    /// Begins a cycle. One that was not finished is forgotten.
    pub(super) fn begin(&mut self) {
        self.reading.clear();
        self.untracked = 0;
    }

    /// Remembers a process, and tells its CPU since the cycle before in percent of one core: `None` where that cycle
    /// does not know it.
    ///
    /// Rates belong to `store::rate`. This one cannot go there: who the N greatest users are is known only after all
    /// rates, and handing thousands of series over each cycle to keep ten of them is what the bound is to prevent.
    pub(super) fn add(&mut self, now: CpuTime, tick: &Tick) -> Option<f64> {
        if self.reading.len() < TRACKED_MAX {
            self.reading.push(now);
        } else {
            self.untracked += 1;
        }
        let known_at = self.known_at.as_ref()?;
        let elapsed_secs = tick.since(known_at).as_secs_f64();
        let ticks = self.ticks_since(known_at, now)?;
        #[expect(clippy::cast_precision_loss, reason = "ticks of a process are below 2^53")]
        (elapsed_secs > 0.0).then(|| 100.0 * ticks as f64 / hertz() / elapsed_secs)
    }

    /// Ends the cycle that was read at `tick`; it is what the next one is compared with.
    pub(super) fn finish(&mut self, tick: Tick) {
        // The live /proc is in order already; this costs one pass over it and no memory.
        self.reading.sort_unstable_by_key(|time| time.pid);
        std::mem::swap(&mut self.known, &mut self.reading);
        self.known_at = Some(tick);
    }

    /// Processes of this cycle that there was no room for.
    pub(super) fn untracked(&self) -> u64 {
        self.untracked
    }

    fn ticks_since(&self, known_at: &Tick, now: CpuTime) -> Option<u64> {
        let known = self.known.binary_search_by_key(&now.pid, |time| time.pid).ok().map(|at| self.known[at]);
        match known.filter(|known| known.start_ticks == now.start_ticks) {
            Some(known) => now.ticks.checked_sub(known.ticks),
            // Not the process that was known. When it began later than that, all that it has used was used since.
            #[expect(clippy::cast_precision_loss, reason = "ticks since boot are below 2^53")]
            None => (now.start_ticks as f64 >= known_at.boottime.as_secs_f64() * hertz()).then_some(now.ticks),
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "USER_HZ is 100 or 1024")]
fn hertz() -> f64 {
    os::ticks_per_second() as f64
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::*;

    #[test]
    fn what_is_beyond_the_bound_is_counted() {
        let tick = |secs| {
            let since_boot = Duration::from_secs(secs);
            Tick { monotonic: since_boot, boottime: since_boot, wall: SystemTime::UNIX_EPOCH }
        };
        let bound = u32::try_from(TRACKED_MAX).expect("it fits");
        let mut times = CpuTimes::default();
        for cycle in 0..2 {
            times.begin();
            // In no order, as a recorded host may give them.
            for pid in (1..=bound + 2).rev() {
                let now = CpuTime { pid, ticks: 100 * (u64::from(pid) + cycle), start_ticks: 7 };
                let percent = times.add(now, &tick(100 + cycle));
                let expected = if cycle == 1 && pid > 2 { Some(100.0) } else { None };
                assert_eq!(percent, expected, "cycle {cycle} pid {pid}");
            }
            times.finish(tick(100 + cycle));
            assert_eq!(times.untracked(), 2);
        }
    }
}
