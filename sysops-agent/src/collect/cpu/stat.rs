//! Text of /proc/stat (proc_stat(5)): CPU time by column, and what stands behind it. What it means is left to `cpu`.

use super::super::CollectError;
use super::super::bytes::{complete, fields, need_u64};

pub(super) const FILE: &str = "/proc/stat";

/// Columns of a `cpu` line by node_exporter's names for them. The first four have always been there.
pub(super) const MODES: [&str; 8] = ["user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal"];
pub(super) const GUEST_MODES: [&str; 2] = ["user", "nice"];

/// Ticks by column: [`MODES`], then guest and guest nice. What an old kernel does not print is `None`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Times(pub(super) [Option<u64>; 10]);

impl Times {
    pub(super) fn get(&self, column: usize) -> u64 {
        self.0[column].unwrap_or_default()
    }

    /// All time. That of guests is in user and nice.
    pub(super) fn total(&self) -> u64 {
        (0..MODES.len()).map(|column| self.get(column)).fold(0, u64::saturating_add)
    }

    pub(super) fn busy(&self) -> u64 {
        self.total().saturating_sub(self.get(3)).saturating_sub(self.get(4))
    }

    /// Takes newer times. The kernel lets idle and iowait step back a little (proc_stat(5)), which must not look like
    /// a restart: such a column stands until it is passed again. A step of 3 seconds or more is believed, as
    /// node_exporter does.
    pub(super) fn advance(&mut self, newer: Self, ticks_per_second: u64) {
        for (old, new) in self.0.iter_mut().zip(newer.0) {
            match (*old, new) {
                (Some(before), Some(now)) if now < before && before - now < 3 * ticks_per_second => {}
                _ => *old = new,
            }
        }
    }
}

/// What stands in /proc/stat behind the CPUs.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Rest {
    pub(super) intr: Option<u64>,
    pub(super) ctxt: Option<u64>,
    pub(super) btime: Option<u64>,
    pub(super) processes: Option<u64>,
    pub(super) procs_running: Option<u64>,
    pub(super) procs_blocked: Option<u64>,
}

/// Gives the times of each CPU to `each`, those of all with `None`, and returns what stands behind them.
pub(super) fn parse(
    text: &[u8],
    each: &mut dyn FnMut(Option<u64>, Times) -> Result<(), CollectError>,
) -> Result<Rest, CollectError> {
    let mut rest = complete(text, FILE)?;
    let mut seen_all = false;
    while let Some(line) = rest.strip_prefix(b"cpu") {
        let end = line.iter().position(|&byte| byte == b'\n').unwrap_or(line.len());
        let mut columns = line[..end].split(|&byte| byte == b' ');
        let name = columns.next().unwrap_or_default();
        let id = if name.is_empty() { None } else { Some(need_u64(name, FILE, || "number of a CPU".to_owned())?) };
        each(id, times(&line[name.len()..end], name)?)?;
        seen_all |= id.is_none();
        rest = line.get(end + 1..).unwrap_or_default();
    }
    if !seen_all {
        return Err(CollectError::parse(FILE, "first line", "times of all CPUs", rest));
    }
    tail(rest)
}

fn times(line: &[u8], name: &[u8]) -> Result<Times, CollectError> {
    let mut times = Times::default();
    let item = |column: usize| format!("cpu{} column {}", String::from_utf8_lossy(name), column + 1);
    for (column, field) in fields(line).take(times.0.len()).enumerate() {
        times.0[column] = Some(need_u64(field, FILE, || item(column))?);
    }
    // The first four columns are as old as the file.
    if let Some(missing) = times.0[..4].iter().position(Option::is_none) {
        return Err(CollectError::parse(FILE, item(missing), "a number", b""));
    }
    Ok(times)
}

/// Reads the lines behind the CPUs from the last one on, so that the interrupts by number (100 KiB and more on a large
/// machine) are never looked through: their total is the first number of the first line.
fn tail(text: &[u8]) -> Result<Rest, CollectError> {
    let mut rest = Rest::default();
    let number = |value: &[u8], name: &str| need_u64(value, FILE, || name.to_owned()).map(Some);
    if let Some(line) = text.strip_prefix(b"intr ") {
        let end = line.iter().position(|byte| !byte.is_ascii_digit()).unwrap_or(line.len());
        rest.intr = number(&line[..end], "intr")?;
    }
    for line in text.strip_suffix(b"\n").unwrap_or(text).rsplit(|&byte| byte == b'\n') {
        let mut columns = fields(line);
        let (name, value) = (columns.next().unwrap_or_default(), columns.next().unwrap_or_default());
        match name {
            b"procs_blocked" => rest.procs_blocked = number(value, "procs_blocked")?,
            b"procs_running" => rest.procs_running = number(value, "procs_running")?,
            b"processes" => rest.processes = number(value, "processes")?,
            b"btime" => rest.btime = number(value, "btime")?,
            b"ctxt" => {
                rest.ctxt = number(value, "ctxt")?;
                break; // Before it stands intr.
            }
            _ => {}
        }
    }
    Ok(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_understood_is_an_error_that_names_it() {
        let read = |content: &[u8]| parse(content, &mut |_, _| Ok(())).map_err(|error| error.to_string());
        assert_eq!(
            read(b"cpu  1 2 3 4 x\n"),
            Err("/proc/stat: cpu column 5: expected a number, found \"x\"".to_owned())
        );
        assert_eq!(
            read(b"cpu  1 2 3 4\ncpu0 1 2 3\n"),
            Err("/proc/stat: cpu0 column 4: expected a number, found \"\"".to_owned())
        );
        assert!(read(b"cpu  1 2 3 4\ncpux 1 2 3 4\n").is_err_and(|error| error.contains("number of a CPU")));
        assert!(read(b"cpu  1 2 3 4\nctxt -1\n").is_err_and(|error| error.contains("ctxt")));
        assert!(read(b"cpu0 1 2 3 4\n").is_err_and(|error| error.contains("times of all CPUs")));
        let whole = b"cpu  31209 0 8091 235488\ncpu0 14833 0 2806 120633\nintr 400284 0 0\nctxt 662294\n";
        for end in 0..whole.len() {
            assert!(read(&whole[..end]).is_err() || whole[..end].ends_with(b"\n"), "{end}");
        }
        assert!(read(b"").is_err() && read(b"\xff\0\n").is_err());
    }
}
