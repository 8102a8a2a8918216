//! Swap space from /proc/swaps. Paging in and out is left to vmstat.

use std::time::Duration;

use super::bytes::{complete, fields, lines, need_u64, text};
use super::{CollectError, Collector, Entry, Outcome, interval};
use crate::host::{Host, Source};
use crate::model::{Batch, Metric, Unit};

static USED_PERCENT: Metric<0> =
    Metric::gauge("swap_used_percent", Unit::Percent, "Swap space in use; absent where there is none.", &[]);
static USED: Metric<0> = Metric::gauge("swap_used_bytes", Unit::Bytes, "Swap space in use.", &[]);
static TOTAL: Metric<0> = Metric::gauge("swap_total_bytes", Unit::Bytes, "Swap space.", &[]);

const FILE: &str = "/proc/swaps";

/// In the list of collectors.
pub(super) static ENTRY: Entry = Entry {
    name: "swap",
    metrics: &[USED_PERCENT.desc(), USED.desc(), TOTAL.desc()],
    keys: &[],
    interval: &interval::MEMORY,
    deadline: Duration::from_secs(2),
    new: |host, _| Box::new(Swap { swaps: Source::new(host.files.proc("swaps")) }),
};

struct Swap {
    swaps: Source,
}

impl Collector for Swap {
    fn collect(&mut self, _: &Host, out: &mut Batch) -> Result<Outcome, CollectError> {
        let file = match self.swaps.read() {
            Ok(file) => file,
            Err(error) if error.is_absent() => {
                return Ok(absent("no /proc/swaps: the kernel was built without CONFIG_SWAP"));
            }
            Err(error) => return Err(error.into()),
        };
        let (total, used) = parse(file)?;
        if total == 0 {
            return Ok(absent("no swap space is in use"));
        }
        out.gauge(&TOTAL, [], total as f64);
        out.gauge(&USED, [], used as f64);
        out.gauge(&USED_PERCENT, [], 100.0 * used as f64 / total as f64);
        Ok(Outcome::Data)
    }
}

fn absent(reason: &'static str) -> Outcome {
    Outcome::Absent { reason: reason.into(), remedy: "".into() }
}

/// Bytes in all and in use. A line is `/dev/vda2 partition 8388604 1024 -2` with sizes in kB; blanks in the name of a
/// swap file are escaped.
fn parse(file: &[u8]) -> Result<(u64, u64), CollectError> {
    let mut rows = lines(complete(file, FILE)?);
    if !rows.next().is_some_and(|header| header.starts_with(b"Filename")) {
        return Err(CollectError::parse(FILE, "first line", "a header", file));
    }
    let (mut total, mut used) = (0_u64, 0_u64);
    for row in rows {
        let mut columns = fields(row);
        let name = columns.next().unwrap_or_default();
        let mut bytes = |column: usize, item: &str| {
            need_u64(columns.nth(column).unwrap_or_default(), FILE, || format!("{} {item}", text(name)))
                .map(|kb| kb.saturating_mul(1024))
        };
        total = total.saturating_add(bytes(1, "size")?);
        used = used.saturating_add(bytes(0, "used")?);
    }
    Ok((total, used))
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Machine, read, recorded, value};
    use super::*;

    const TWO: &str = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n\
                       /dev/vda2                               partition\t3072\t\t1024\t\t-2\n\
                       /swap\\040file                          file\t\t1024\t\t0\t\t-3\n";

    #[test]
    fn all_swap_areas_together() {
        let batch = Machine::new("swap").file("proc/swaps", TWO).data(&ENTRY);
        assert_eq!(value(&batch, "swap_used_percent", &[]), Some(25.0));
        assert_eq!(value(&batch, "swap_total_bytes", &[]), Some(4096.0 * 1024.0));
    }

    #[test]
    fn no_swap_is_absence() {
        let outcome = |host: Host| read(&host, &ENTRY).expect("it can be read").0;
        let Outcome::Absent { reason, .. } = outcome(recorded("debian12-6.18")) else { panic!("absent") };
        assert_eq!(reason, "no swap space is in use");
        let Outcome::Absent { reason, .. } = outcome(Machine::new("swap-none").host()) else { panic!("absent") };
        assert!(reason.contains("CONFIG_SWAP"));
    }

    #[test]
    fn cut_anywhere_but_behind_a_line_it_is_an_error() {
        for end in 0..TWO.len() {
            let cut = &TWO.as_bytes()[..end];
            assert_eq!(parse(cut).is_ok(), cut.ends_with(b"\n"), "{end}");
        }
        assert!(parse(b"\xff\n").is_err());
        let error = parse(b"Filename\n/a file x 0 0\n").expect_err("x").to_string();
        assert_eq!(error, "/proc/swaps: /a size: expected a number, found \"x\"");
    }
}
