//! Which jobs are due when. Pure: time is a parameter.

use std::time::Duration;

/// Due times of jobs with fixed intervals. All jobs count from the same start, so that those whose intervals are
/// multiples of each other wake the machine together; a job that is late skips what it missed and makes no burst.
#[derive(Debug)]
pub(super) struct Plan {
    start: Duration,
    jobs: Vec<(Duration, Duration)>,
}

impl Plan {
    /// Jobs with these intervals, all due at once at `start` (CLOCK_MONOTONIC).
    #[must_use]
    pub(super) fn new(start: Duration, intervals: impl IntoIterator<Item = Duration>) -> Self {
        let at_least_a_millisecond = |interval: Duration| interval.max(Duration::from_millis(1));
        Self { start, jobs: intervals.into_iter().map(|interval| (at_least_a_millisecond(interval), start)).collect() }
    }

    /// When the next job is due; `None` without jobs.
    #[must_use]
    pub(super) fn next(&self) -> Option<Duration> {
        self.jobs.iter().map(|&(_, due)| due).min()
    }

    /// Takes the jobs that are due at `now`: calls `take` with each job's index and how many of its turns were missed.
    pub(super) fn take_due(&mut self, now: Duration, mut take: impl FnMut(usize, u64)) {
        for (job, (interval, due)) in self.jobs.iter_mut().enumerate() {
            if *due > now {
                continue;
            }
            let turns = |time: Duration| (time.saturating_sub(self.start).as_nanos() / interval.as_nanos()) as u64;
            let missed = turns(now) - turns(*due);
            *due = self.start + Duration::from_nanos(interval.as_nanos() as u64 * (turns(now) + 1));
            take(job, missed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn due(plan: &mut Plan, now: u64) -> Vec<(usize, u64)> {
        let mut all = Vec::new();
        plan.take_due(Duration::from_secs(now), |job, missed| all.push((job, missed)));
        all
    }

    #[test]
    fn jobs_keep_their_cadence_and_meet() {
        let mut plan = Plan::new(Duration::from_secs(5), [10, 30].map(Duration::from_secs));
        assert_eq!(due(&mut plan, 5), [(0, 0), (1, 0)]);
        assert_eq!(plan.next(), Some(Duration::from_secs(15)));
        assert_eq!(due(&mut plan, 14), []);
        assert_eq!(due(&mut plan, 16), [(0, 0)]);
        assert_eq!(due(&mut plan, 25), [(0, 0)]);
        assert_eq!(due(&mut plan, 35), [(0, 0), (1, 0)]);
    }

    #[test]
    fn a_stopped_agent_skips_what_it_missed() {
        let mut plan = Plan::new(Duration::ZERO, [Duration::from_secs(10)]);
        assert_eq!(due(&mut plan, 0), [(0, 0)]);
        assert_eq!(due(&mut plan, 75), [(0, 6)]);
        assert_eq!(plan.next(), Some(Duration::from_secs(80)));
    }
}
