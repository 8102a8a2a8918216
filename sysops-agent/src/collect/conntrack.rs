//! How full the connection tracking table is, from /proc/sys/net/netfilter/nf_conntrack_{count,max}. When it is full the
//! kernel drops packets of new connections; how near is too near is left to whoever watches it.

use std::time::Duration;

use super::bytes::{complete, need_u64, trim};
use super::{CollectError, Collector, Entry, Outcome, interval};
use crate::host::{Host, Source};
use crate::model::{Batch, Metric, Unit};

static USED: Metric<0> = Metric::gauge(
    "conntrack_used_percent",
    Unit::Percent,
    "Tracked connections, in percent of net.netfilter.nf_conntrack_max.",
    &[],
);
static NODE_ENTRIES: Metric<0> = Metric::gauge(
    "node_nf_conntrack_entries",
    Unit::Count,
    "Number of currently allocated flow entries for connection tracking.",
    &[],
);
static NODE_LIMIT: Metric<0> =
    Metric::gauge("node_nf_conntrack_entries_limit", Unit::Count, "Maximum size of connection tracking table.", &[]);

const COUNT: &str = "/proc/sys/net/netfilter/nf_conntrack_count";
const MAX: &str = "/proc/sys/net/netfilter/nf_conntrack_max";

/// In the list of collectors.
pub(super) static ENTRY: Entry = Entry {
    name: "conntrack",
    metrics: &[USED.desc(), NODE_ENTRIES.desc(), NODE_LIMIT.desc()],
    keys: &[],
    interval: &interval::NETWORK,
    deadline: Duration::from_secs(2),
    new: |host, _| {
        let source = |file: &str| Source::single(host.files.proc(file.trim_start_matches("/proc/")));
        Box::new(Conntrack { count: source(COUNT), max: source(MAX) })
    },
};

struct Conntrack {
    count: Source,
    max: Source,
}

impl Collector for Conntrack {
    #[expect(clippy::cast_precision_loss, reason = "numbers of connections are below 2^53")]
    fn collect(&mut self, _: &Host, out: &mut Batch) -> Result<Outcome, CollectError> {
        let count = match self.count.read() {
            Ok(text) => parse(text, COUNT)?,
            Err(error) if error.is_absent() => {
                let reason = "connections are not tracked: the module nf_conntrack is not loaded".into();
                return Ok(Outcome::Absent { reason, remedy: "".into() });
            }
            Err(error) => return Err(error.into()),
        };
        let max = parse(self.max.read()?, MAX)?;
        out.gauge(&NODE_ENTRIES, [], count as f64);
        out.gauge(&NODE_LIMIT, [], max as f64);
        // 0 is no limit.
        if max > 0 {
            out.gauge(&USED, [], 100.0 * count as f64 / max as f64);
        }
        Ok(Outcome::Data)
    }
}

fn parse(text: &[u8], file: &str) -> Result<u64, CollectError> {
    need_u64(trim(complete(text, file)?), file, || "value".to_owned())
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Machine, declared, value};
    use super::*;

    const DIR: &str = "proc/sys/net/netfilter";

    fn machine(name: &str, count: &[u8], max: &[u8]) -> Machine {
        let dir = |file: &str| format!("{DIR}/nf_conntrack_{file}");
        Machine::new(name).file(&dir("count"), count).file(&dir("max"), max)
    }

    #[test]
    fn a_table_that_is_half_full() {
        let batch = machine("conntrack-half", b"131072\n", b"262144\n").data(&ENTRY);
        declared(&batch, &ENTRY);
        assert_eq!(value(&batch, "conntrack_used_percent", &[]), Some(50.0));
        assert_eq!(value(&batch, "node_nf_conntrack_entries", &[]), Some(131_072.0));
        assert_eq!(value(&batch, "node_nf_conntrack_entries_limit", &[]), Some(262_144.0));
    }

    #[test]
    fn without_a_limit_no_share_is_known() {
        let batch = machine("conntrack-unlimited", b"5\n", b"0\n").data(&ENTRY);
        assert_eq!((value(&batch, "conntrack_used_percent", &[]), batch.len()), (None, 2));
    }

    #[test]
    fn without_the_module_it_is_absent_and_garbage_is_an_error() {
        let absent = Machine::new("conntrack-none").collect(&ENTRY);
        assert!(matches!(absent, Ok((Outcome::Absent { reason, .. }, _)) if reason.contains("nf_conntrack")));
        for bad in [&b""[..], b"13", b"\xff\0\n", b"-1\n", b"1 2\n"] {
            assert!(machine("conntrack-bad", bad, b"1\n").collect(&ENTRY).is_err(), "{bad:?}");
        }
    }
}
