//! What the kernel's own report says of a hang: which sleep, and for how long.

use std::time::Duration;

use sysops_common::hung_task::{Record, known};
use sysops_common::task::known as task_known;

use super::super::check;
use super::super::ladder::Refusal;
use super::super::process::Process;
use super::hangs::Sleep;
use super::{DELAY_MAX, sleepers};
use crate::host::{Host, os};

/// Which sleep the kernel reported. Where the record does not tell, it is the one in which the thread is `now`; `None`
/// where that is not known either.
pub(super) fn sleep(read: &Record, now: Option<Sleep>) -> Option<Sleep> {
    let start = (read.task.known & task_known::START != 0).then_some(read.task.start_boottime_ns);
    let ticks = |ns: u64| ns.checked_div(1_000_000_000_u64.checked_div(os::ticks_per_second())?);
    let start = start.and_then(ticks);
    if read.known & known::SWITCH_COUNT == 0 {
        return now;
    }
    Some(Sleep { tid: read.task.tid, start, switches: read.last_switch_count })
}

/// The sleep in which the thread is, if it may be the one of a report of `at`: it was there then, and hangs since a moment
/// ago at most.
pub(super) fn asleep_since(host: &Host, tid: u32, at: Duration) -> Option<Sleep> {
    let is_new = host.clock.now().monotonic.saturating_sub(at) < DELAY_MAX;
    let sleep = sleepers::asleep(host, tid).filter(|_| is_new)?;
    Process::thread(host, tid).was_there_at(at).then_some(sleep)
}

/// Whole seconds since the kernel saw the task run; else what the kernel's own timeout says: at least that.
pub(super) fn blocked_seconds(read: &Record, host: &Host) -> Option<u64> {
    let since = |jiffies_per_second: u64| {
        read.jiffies.checked_sub(read.last_switch_time).map(|jiffies| jiffies / jiffies_per_second)
    };
    let by_jiffies = (read.known & known::SWITCH_TIME != 0).then(|| jiffies_per_second(read)).flatten().and_then(since);
    by_jiffies.or_else(|| {
        let path = host.files.proc("sys/kernel/hung_task_timeout_secs");
        host.files.read_text(&path).ok()?.parse().ok()
    })
}

/// CONFIG_HZ of the running kernel, which tells it to no one: jiffies begin five minutes before 2^32 at boot
/// (INITIAL_JIFFIES), so one look at both clocks singles out one of the rates that can be configured. `None` when it
/// does not, as in the fifth minute after boot, or when the kernel counts otherwise.
fn jiffies_per_second(read: &Record) -> Option<u64> {
    const RATES: [i128; 5] = [100, 250, 300, 1000, 1024];
    let (jiffies, ns) = (i128::from(read.jiffies), i128::from(read.monotonic_ns));
    let error = |rate: i128| (jiffies - ((1_i128 << 32) - 300 * rate) - ns * rate / 1_000_000_000).abs();
    let mut ranked = RATES.map(|rate| (error(rate), rate));
    ranked.sort_unstable();
    let [(best, rate), (second, _), ..] = ranked;
    // The clocks do not start at the same instant: up to two seconds apart are the same.
    (best <= 2 * rate && best.saturating_mul(4) < second).then(|| u64::try_from(rate).ok()).flatten()
}

/// A task that runs was seen to run before now.
pub(super) fn compare_jiffies(read: &Record) -> Result<(), Refusal> {
    if read.known & known::SWITCH_TIME != 0 && read.last_switch_time > read.jiffies {
        return check::equal("last_switch_time", read.last_switch_time, read.jiffies);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use sysops_common::task::COMM_LEN;

    use super::super::super::record::tests::task;
    use super::*;

    /// A report `seconds` after boot by a kernel that counts `rate` jiffies a second, `blocked` jiffies after the last run.
    fn report(rate: u64, seconds: u64, blocked: u64) -> Record {
        let jiffies = (1 << 32) - 300 * rate + seconds * rate;
        Record {
            monotonic_ns: seconds * 1_000_000_000 + 400_000_000,
            jiffies,
            last_switch_time: jiffies - blocked,
            last_switch_count: 7,
            known: known::SWITCH_TIME | known::SWITCH_COUNT,
            reserved: 0,
            leader_comm: [0; COMM_LEN],
            task: task(b"a\0"),
        }
    }

    #[test]
    fn the_rate_of_jiffies_is_told_by_both_clocks() {
        for rate in [100, 250, 300, 1000] {
            for seconds in [10, 4000, 400 * 86400] {
                assert_eq!(jiffies_per_second(&report(rate, seconds, 0)), Some(rate), "{rate} at {seconds} s");
            }
        }
        assert_eq!(jiffies_per_second(&report(250, 300, 0)), None, "all rates meet five minutes after boot");
        assert_eq!(jiffies_per_second(&report(427, 4000, 0)), None, "no rate that can be configured");
    }

    #[test]
    fn the_time_blocked_is_known_or_that_of_the_kernels_timeout() {
        let host = Host::fixture(std::path::Path::new("/nonexistent"));
        assert_eq!(blocked_seconds(&report(250, 4000, 125 * 250), &host), Some(125));
        let unknown = Record { known: 0, ..report(250, 4000, 125 * 250) };
        assert_eq!(blocked_seconds(&unknown, &host), None);
        assert!(blocked_seconds(&unknown, &Host::fixture(std::path::Path::new("/"))).is_some());
    }

    #[test]
    fn what_the_kernel_reports_is_the_sleep_that_a_look_finds() {
        let read = report(250, 4000, 0);
        let tick = 1_000_000_000 / os::ticks_per_second();
        let expected = Sleep { tid: 71, start: Some(5_000_000_000 / tick), switches: 7 };
        assert_eq!(sleep(&read, None), Some(expected));
        let (silent, other) = (Record { known: 0, ..read }, Sleep { switches: 8, ..expected });
        assert_eq!((sleep(&silent, None), sleep(&silent, Some(other))), (None, Some(other)));
        assert_eq!(sleep(&read, Some(other)), Some(expected), "what it says itself counts");
    }

    #[test]
    fn a_time_that_has_not_come_is_a_contradiction() {
        let read = report(250, 4000, 5);
        assert_eq!(compare_jiffies(&read), Ok(()));
        assert!(compare_jiffies(&Record { last_switch_time: read.jiffies + 1, ..read }).is_err());
    }
}
