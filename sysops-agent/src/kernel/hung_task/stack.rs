//! Names for the addresses of a kernel stack, from /proc/kallsyms, written as the kernel writes /proc/<pid>/stack. The file
//! is read only when there is a hang to tell.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::os::fd::AsFd;

use crate::host::Host;
use crate::host::files::open_file;

/// Addresses whose names are kept: stacks of one cause have most of them in common.
const NAMES_MAX: usize = 4096;
/// No function of the kernel is larger: what is farther from a symbol does not belong to it.
const FUNCTION_BYTES: u64 = 1 << 20;
/// Bytes of a read: lines of the file have less than 600.
const READ_BYTES: usize = 64 << 10;

/// The kernel shows this user the addresses of its functions.
///
/// # Errors
/// Why not, and what would mend it.
pub(super) fn are_addresses_shown(host: &Host) -> Result<(), (&'static str, &'static str)> {
    // systemd masks a file with one that has no content and that few may open.
    let masked = (
        "/proc/kallsyms cannot be read, or is empty",
        "show it to the agent: ProtectKernelTunables=yes in a unit hides it",
    );
    let mut buffer = [0; 4096];
    let file = open_file(&host.files.proc("kallsyms")).map_err(|_| masked)?;
    let length = rustix::io::read(&file, &mut buffer).map_err(|_| masked)?;
    let mut lines = buffer[..length].split(|&byte| byte == b'\n');
    if length == 0 {
        Err(masked)
    } else if lines.any(|text| line(text).is_some_and(|line| line.address != 0)) {
        Ok(())
    } else {
        Err((
            "/proc/kallsyms shows this user no addresses",
            "give the agent CAP_SYSLOG; where kernel.kptr_restrict is 2, set it to 1",
        ))
    }
}

/// Names of addresses that were looked up.
#[derive(Debug, Default)]
pub(super) struct Names {
    known: BTreeMap<u64, String>,
}

impl Names {
    /// `io_schedule+0x46/0x80` for each address, `nvme_poll+0x1/0x20 [nvme]` in a module. Empty when one of them has no name:
    /// half a stack misleads.
    #[must_use]
    pub(super) fn of(&mut self, addresses: &[u64], host: &Host) -> Vec<String> {
        if addresses.iter().any(|address| !self.known.contains_key(address)) {
            self.learn(addresses, host);
        }
        let names: Option<Vec<String>> = addresses.iter().map(|address| self.known.get(address).cloned()).collect();
        names.unwrap_or_default()
    }

    /// Forgets all: modules come and go.
    pub(super) fn clear(&mut self) {
        self.known.clear();
    }

    fn learn(&mut self, addresses: &[u64], host: &Host) {
        if self.known.len() > NAMES_MAX {
            self.known.clear();
        }
        let Ok(file) = open_file(&host.files.proc("kallsyms")) else { return };
        let mut search = Search::new(addresses);
        if read_lines(&file, |text| search.take(text)).is_err() {
            return;
        }
        self.known.extend(search.names());
    }
}

/// Looks all addresses up in one pass over a table that is in no order and is never held in memory.
struct Search {
    wanted: Vec<Wanted>,
}

/// An address, and what surrounds it so far, among the symbols below it and above the wanted address before.
struct Wanted {
    address: u64,
    /// The highest symbol at or below it, the first of those of one address.
    below: Option<(u64, String)>,
    /// The lowest symbol above it.
    above: Option<u64>,
}

/// `ffffffff81000000 T _text`, in a module with `\t[name]` behind.
struct Line<'a> {
    address: u64,
    kind: u8,
    name: &'a str,
    module: Option<&'a str>,
}

impl Search {
    fn new(addresses: &[u64]) -> Self {
        let mut addresses = addresses.to_vec();
        addresses.sort_unstable();
        addresses.dedup();
        Self { wanted: addresses.into_iter().map(|address| Wanted { address, below: None, above: None }).collect() }
    }

    fn take(&mut self, text: &[u8]) {
        let Some(line) = line(text) else { return };
        // Functions only, as the kernel itself looks at their section alone.
        if !matches!(line.kind, b't' | b'T' | b'w' | b'W') || line.address == 0 {
            return;
        }
        // A return address may be the first behind a function that does not return: the call is one byte before.
        let place = self.wanted.partition_point(|wanted| wanted.address.saturating_sub(1) < line.address);
        if let Some(wanted) = self.wanted.get_mut(place)
            && wanted.below.as_ref().is_none_or(|(address, _)| *address < line.address)
        {
            let name = line.module.map_or_else(|| line.name.to_owned(), |module| format!("{} {module}", line.name));
            wanted.below = Some((line.address, name));
        }
        if let Some(wanted) = place.checked_sub(1).and_then(|place| self.wanted.get_mut(place))
            && wanted.above.is_none_or(|address| line.address < address)
        {
            wanted.above = Some(line.address);
        }
    }

    /// Each address with its name. What stands nearest among neighbours is nearest for those beyond them too.
    fn names(mut self) -> Vec<(u64, String)> {
        let mut above = None;
        for wanted in self.wanted.iter_mut().rev() {
            wanted.above = wanted.above.or(above);
            above = wanted.above;
        }
        let mut below: Option<(u64, String)> = None;
        let mut names = Vec::new();
        for wanted in self.wanted {
            below = wanted.below.or(below);
            let Some((start, name)) = below.as_ref().filter(|(start, _)| wanted.address - start < FUNCTION_BYTES)
            else {
                continue;
            };
            let (function, module) = name.split_once(' ').map_or((name.as_str(), None), |(name, m)| (name, Some(m)));
            let mut text = format!("{function}+{:#x}", wanted.address - start);
            // Text grows without an error.
            if let Some(end) = wanted.above.filter(|end| end - start < FUNCTION_BYTES) {
                let _ = write!(text, "/{:#x}", end - start);
            }
            if let Some(module) = module {
                let _ = write!(text, " {module}");
            }
            names.push((wanted.address, text));
        }
        names
    }
}

fn line(text: &[u8]) -> Option<Line<'_>> {
    let text = std::str::from_utf8(text).ok()?;
    let mut words = text.split_ascii_whitespace();
    let address = u64::from_str_radix(words.next()?, 16).ok()?;
    let [kind] = words.next()?.as_bytes() else { return None };
    Some(Line { address, kind: *kind, name: words.next()?, module: words.next() })
}

fn read_lines(file: impl AsFd, mut each: impl FnMut(&[u8])) -> rustix::io::Result<()> {
    let mut buffer = vec![0; READ_BYTES];
    let mut held = 0;
    loop {
        let length = rustix::io::read(&file, &mut buffer[held..])?;
        if length == 0 {
            return Ok(());
        }
        held += length;
        let mut start = 0;
        while let Some(end) = buffer[start..held].iter().position(|&byte| byte == b'\n') {
            each(&buffer[start..start + end]);
            start += end + 1;
        }
        if start == 0 && held == buffer.len() {
            return Ok(());
        }
        buffer.copy_within(start..held, 0);
        held -= start;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "0000000000001000 A cpu_data\n\
                         ffffffff81000000 T _text\nffffffff81000000 T startup\n\
                         ffffffff81000100 t schedule\nffffffff81000180 d no_function\nffffffff81000200 W io_schedule\n\
                         ffffffff81000300 T end_of_text\n\
                         ffffffffc0002000 t ext4_write\t[ext4]\nffffffffc0002080 t ext4_read\t[ext4]\n\
                         ffffffffc0001000 t jbd2_wait\t[jbd2]\nffffffffc0001040 t jbd2_end\t[jbd2]\n";

    fn names(addresses: &[u64]) -> Vec<String> {
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::create_dir(dir.path().join("proc")).expect("writable");
        std::fs::write(dir.path().join("proc/kallsyms"), TABLE).expect("writable");
        Names::default().of(addresses, &Host::fixture(dir.path()))
    }

    #[test]
    fn addresses_are_named_as_the_kernel_names_them() {
        let expected = [
            "io_schedule+0x1/0x100",
            "schedule+0x90/0x100",
            "ext4_write+0x10/0x80 [ext4]",
            "jbd2_wait+0x40/0x40 [jbd2]",
        ];
        let addresses = [0xffff_ffff_8100_0201, 0xffff_ffff_8100_0190, 0xffff_ffff_c000_2010, 0xffff_ffff_c000_1040];
        assert_eq!(names(&addresses), expected);
        assert_eq!(names(&addresses[..1]), expected[..1], "alone as with others");
        assert_eq!(names(&[0xffff_ffff_8100_0010, 0xffff_ffff_8100_0020]), ["_text+0x10/0x100", "_text+0x20/0x100"]);
    }

    #[test]
    fn a_stack_with_an_address_of_nothing_has_no_names() {
        assert!(names(&[0xffff_ffff_8100_0201, 0x10]).is_empty());
        assert!(names(&[u64::MAX]).is_empty());
        assert!(Names::default().of(&[1], &Host::fixture(std::path::Path::new("/nonexistent"))).is_empty());
    }

    #[test]
    fn hidden_addresses_are_found_out() {
        let dir = tempfile::tempdir().expect("a directory");
        let host = Host::fixture(dir.path());
        assert!(are_addresses_shown(&host).is_err());
        std::fs::create_dir(dir.path().join("proc")).expect("writable");
        let hidden = "0000000000000000 T _text\n0000000000000000 t a\n";
        for (text, remedy) in [(TABLE, None), (hidden, Some("CAP_SYSLOG")), ("", Some("ProtectKernelTunables"))] {
            std::fs::write(dir.path().join("proc/kallsyms"), text).expect("writable");
            let said = are_addresses_shown(&host).err().map(|(_, said)| said);
            assert_eq!(said.is_some(), remedy.is_some(), "{text}");
            assert!(remedy.is_none_or(|word| said.is_some_and(|said| said.contains(word))), "{said:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_table_is_read_without_a_panic(text: Vec<u8>, table in "([0-9a-f]{1,17} [tTdA] [a-z]{0,3}(\t\\[m\\])?\n){0,9}", wanted: Vec<u64>) {
            let mut search = Search::new(&wanted);
            for line in text.split(|&byte| byte == b'\n').chain(table.as_bytes().split(|&byte| byte == b'\n')) {
                search.take(line);
            }
            let _ = search.names();
        }
    }
}
