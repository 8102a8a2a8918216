//! Load averages from /proc/loadavg, and how much of them falls to each CPU. When a load is too high is left to the
//! threshold on `load_per_cpu`.

use std::time::Duration;

use super::bytes::{complete, fields, lines, need_decimal, trim, u64};
use super::{CollectError, Collector, Entry, Outcome, interval};
use crate::host::{Host, Source};
use crate::model::{Batch, Metric, Unit};

static LOAD_1M: Metric<0> = Metric::gauge("load_avg_1m", Unit::Count, "Load average of the last minute.", &[]);
static LOAD_5M: Metric<0> = Metric::gauge("load_avg_5m", Unit::Count, "Load average of the last 5 minutes.", &[]);
static LOAD_15M: Metric<0> = Metric::gauge("load_avg_15m", Unit::Count, "Load average of the last 15 minutes.", &[]);
static PER_CPU: Metric<0> =
    Metric::gauge("load_per_cpu", Unit::Count, "Load average of the last minute for each online CPU.", &[]);
static NODE_LOAD1: Metric<0> = Metric::gauge("node_load1", Unit::Count, "1m load average.", &[]);
static NODE_LOAD5: Metric<0> = Metric::gauge("node_load5", Unit::Count, "5m load average.", &[]);
static NODE_LOAD15: Metric<0> = Metric::gauge("node_load15", Unit::Count, "15m load average.", &[]);

const FILE: &str = "/proc/loadavg";

/// In the list of collectors.
pub(super) static ENTRY: Entry = Entry {
    name: "load",
    metrics: &[
        LOAD_1M.desc(),
        LOAD_5M.desc(),
        LOAD_15M.desc(),
        PER_CPU.desc(),
        NODE_LOAD1.desc(),
        NODE_LOAD5.desc(),
        NODE_LOAD15.desc(),
    ],
    keys: &[],
    interval: &interval::CPU,
    deadline: Duration::from_secs(2),
    new: |host, _| Box::new(Load::new(host)),
};

struct Load {
    loadavg: Source,
    online: Source,
    stat: Source,
}

impl Load {
    fn new(host: &Host) -> Self {
        Self {
            loadavg: Source::single(host.files.proc("loadavg")),
            online: Source::single(host.files.sys("devices/system/cpu/online")),
            stat: Source::single(host.files.proc("stat")),
        }
    }

    /// CPUs that run, from /sys, or where that is not mounted from the lines of /proc/stat.
    fn online_cpus(&mut self) -> Option<u64> {
        if let Some(count) = self.online.read().ok().and_then(|text| range_count(trim(text))) {
            return Some(count);
        }
        let text = self.stat.read().ok()?;
        let is_cpu = |line: &&[u8]| line.strip_prefix(b"cpu").is_some_and(|rest| rest.first() != Some(&b' '));
        let count = lines(text).skip(1).take_while(is_cpu).count() as u64;
        (count > 0).then_some(count)
    }
}

impl Collector for Load {
    fn collect(&mut self, _: &Host, out: &mut Batch) -> Result<Outcome, CollectError> {
        let [one, five, fifteen] = parse(self.loadavg.read()?)?;
        for (metric, node, value) in
            [(&LOAD_1M, &NODE_LOAD1, one), (&LOAD_5M, &NODE_LOAD5, five), (&LOAD_15M, &NODE_LOAD15, fifteen)]
        {
            out.gauge(metric, [], value);
            out.gauge(node, [], value);
        }
        if let Some(cpus) = self.online_cpus() {
            out.gauge(&PER_CPU, [], one / cpus as f64);
        }
        Ok(Outcome::Data)
    }
}

/// `0.13 0.18 0.20 1/96 15204`: the load averages of 1, 5 and 15 minutes.
fn parse(text: &[u8]) -> Result<[f64; 3], CollectError> {
    let mut columns = fields(trim(complete(text, FILE)?));
    let mut next = |item: &str| need_decimal(columns.next().unwrap_or_default(), FILE, || item.to_owned());
    Ok([next("1 minute")?, next("5 minutes")?, next("15 minutes")?])
}

/// How many numbers are in `0-3,8,10-11`; `None` when it is no such list, or an empty one.
fn range_count(list: &[u8]) -> Option<u64> {
    let mut count: u64 = 0;
    for range in list.split(|&byte| byte == b',') {
        let (first, last) = super::bytes::split_once(range, b'-').unwrap_or((range, range));
        count = count.checked_add(u64(last)?.checked_sub(u64(first)?)?)?.checked_add(1)?;
    }
    Some(count)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Machine, value};
    use super::*;

    #[test]
    fn the_three_averages_and_the_share_of_a_cpu() {
        let machine = Machine::new("load").file("proc/loadavg", "6.00 0.18 1e0.20 1/96 15204\n");
        assert!(machine.collect(&ENTRY).is_err());
        let machine = machine.file("proc/loadavg", "6.00 0.18 0.20 1/96 15204\n");
        let batch = machine.data(&ENTRY);
        assert_eq!((value(&batch, "load_avg_1m", &[]), value(&batch, "node_load15", &[])), (Some(6.0), Some(0.2)));
        assert_eq!(value(&batch, "load_per_cpu", &[]), None, "nobody knows how many CPUs there are");
        let machine = machine.file("proc/stat", "cpu  1 2\ncpu0 1\ncpu1 1\nintr 5\n");
        assert_eq!(value(&machine.data(&ENTRY), "load_per_cpu", &[]), Some(3.0));
        let machine = machine.file("sys/devices/system/cpu/online", "0-1,3\n");
        assert_eq!(value(&machine.data(&ENTRY), "load_per_cpu", &[]), Some(2.0));
    }

    #[test]
    fn lists_of_cpus() {
        assert_eq!((range_count(b"0"), range_count(b"0-3,8,10-11")), (Some(1), Some(7)));
        for bad in [&b""[..], b"3-1", b"0-", b"a", b"0,,1", b"0-18446744073709551615"] {
            assert_eq!(range_count(bad), None);
        }
    }

    #[test]
    fn cut_anywhere_it_is_an_error() {
        let text = b"0.13 0.18 0.20 1/96 15204\n";
        for end in 0..text.len() {
            assert!(parse(&text[..end]).is_err(), "{end}");
        }
        assert!(parse(b"\xff\0\x01 2 3\n").is_err());
        let error = parse(b"0.13 x 0.2\n").expect_err("x is no number").to_string();
        assert_eq!(error, "/proc/loadavg: 5 minutes: expected a decimal number, found \"x\"");
    }
}
