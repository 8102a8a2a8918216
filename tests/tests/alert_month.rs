//! A month of values that are often near their limit, in seconds: how often people are told, and whether they miss anything.

use std::time::Duration;

use sysops_agent::model::{Change, Status};
use sysops_agent::spec::Values;
use sysops_tests::alert_bench::Bench;

const CYCLE: u64 = 30;
const MONTH: u64 = 30 * 86_400;
const LIMIT: f64 = 90.0;

/// A breach that lasts so long is one that people must have been told of by then.
const LASTING: Duration = Duration::from_secs(1800);

/// Numbers that look random and are the same each time (xorshift).
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> f64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as f64 / (1_u64 << 53) as f64
    }
}

/// What is counted of one series.
#[derive(Debug, Default)]
struct Account {
    above: bool,
    since: Duration,
    crossings: u64,
    lasting: u64,
    told: u64,
    missed: u64,
    is_told: bool,
    told_at: Duration,
    reminded: u64,
}

impl Account {
    fn see(&mut self, value: f64, now: Duration) {
        let above = value >= LIMIT;
        if above != self.above {
            (self.above, self.since) = (above, now);
            self.crossings += 1;
        }
        let for_long = above && now - self.since == LASTING;
        self.lasting += u64::from(for_long);
        // What people were told days ago does not count: they must have heard of it within the hour.
        let know = self.is_told && now - self.told_at <= Duration::from_secs(3600 + 2 * CYCLE);
        self.missed += u64::from(for_long && !know);
    }
}

#[test]
fn a_month_of_flapping_is_a_tenth_of_the_notices_and_nothing_that_lasts_is_missed() {
    let mut bench = Bench::new(&Values::default());
    let mut chance = Chance(0x5eed_0000_0001);
    let mut accounts = [const {
        Account {
            above: false,
            since: Duration::ZERO,
            crossings: 0,
            lasting: 0,
            told: 0,
            missed: 0,
            is_told: false,
            told_at: Duration::ZERO,
            reminded: 0,
        }
    }; 3];
    let (mut walk, mut incident_ends) = (LIMIT, 0);
    for step in 0..MONTH / CYCLE {
        // One turns every minute or two, with an incident of two hours now and then; one walks around its limit; one is a saw
        // whose teeth are longer than any hold time.
        if step % 2880 == 2000 {
            incident_ends = step + 240;
        }
        let turning = if step < incident_ends {
            95.0
        } else if chance.next() < 0.5 {
            94.0
        } else {
            70.0
        };
        walk = (walk + (chance.next() - 0.5) * 8.0).clamp(75.0, 99.0);
        let saw = if step % 24 < 14 { 93.0 } else { 60.0 };
        let disks = [turning, walk, saw];
        let notices = bench.cycle(CYCLE, disks.map(Some));
        let now = bench.now();
        for alert in notices.iter().filter(|alert| alert.change != Change::Digest) {
            let which = ["/", "/data", "/srv"].iter().position(|mount| *mount == alert.labels["mountpoint"]);
            let account = &mut accounts[which.expect("one of three")];
            account.told += 1;
            account.reminded += u64::from(alert.change == Change::Reminded);
            (account.is_told, account.told_at) = (alert.status == Status::Firing, now);
        }
        for (account, value) in accounts.iter_mut().zip(disks) {
            account.see(value, now);
        }
    }
    let mut all = (0, 0);
    for (name, account) in ["turning", "walking", "a saw"].iter().zip(&accounts) {
        println!(
            "{name}: {} crossings, {} notices, {} reminders, {} lasting breaches, {} of them missed",
            account.crossings, account.told, account.reminded, account.lasting, account.missed
        );
        assert_eq!(account.missed, 0, "{name}: {account:?}");
        assert!(account.told * 10 <= account.crossings, "{name}: {account:?}");
        all = (all.0 + account.crossings, all.1 + account.told);
    }
    assert!(accounts[0].lasting >= 30, "{:?}", accounts[0]);
    println!("a month: {} crossings of limits, {} notices", all.0, all.1);
}
