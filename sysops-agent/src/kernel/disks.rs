//! Names of whole disks by their numbers, held against /proc/diskstats, which lists every disk of the machine, the hidden
//! paths of a multipath disk included. What is counted for a disk is left to its probe.

use std::path::{Path, PathBuf};

use crate::host::{Files, ReadError, bytes};

/// Disks that were asked for and are there.
pub(super) struct Disks {
    path: PathBuf,
    diskstats: Vec<u8>,
    known: Vec<Disk>,
    gone: Vec<u32>,
    /// Sum over the names that are listed, and whether the last look gave another.
    listed: u64,
    have_changed: bool,
    /// Where the sizes are of disks that make no requests and have none yet.
    sizeless: Vec<PathBuf>,
}

struct Disk {
    dev: u32,
    name: String,
}

/// What is known of a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found<'a> {
    /// The disk has this name.
    Named(&'a str),
    /// The machine has no disk of this number and name.
    Unknown,
}

/// A line of /proc/diskstats.
struct Line<'a> {
    dev: u32,
    name: &'a [u8],
    completed: u64,
}

/// A disk of the multipath kind hides its paths: they have a name and no number in user space.
const HIDDEN: u32 = 0;

impl Disks {
    /// None yet.
    #[must_use]
    pub(super) fn new(files: &Files) -> Self {
        Self {
            path: files.proc("diskstats"),
            diskstats: Vec::new(),
            known: Vec::new(),
            gone: Vec::new(),
            listed: 0,
            have_changed: false,
            sizeless: Vec::new(),
        }
    }

    /// Reads which disks there are, and forgets those that are no more, or have become others: their numbers.
    ///
    /// # Errors
    /// When /proc/diskstats cannot be read. Then nothing is forgotten.
    pub(super) fn refresh(&mut self, files: &Files) -> Result<&[u32], ReadError> {
        self.gone.clear();
        self.refresh_names(files)?;
        let listed =
            lines(&self.diskstats).fold(0, |sum, line| line.name.iter().fold(sum ^ u64::from(line.dev), mixed));
        self.have_changed = listed != self.listed;
        self.listed = listed;
        let (text, gone) = (&self.diskstats, &mut self.gone);
        self.known.retain(|disk| {
            let there = lines(text).any(|line| line.is(disk.dev, disk.name.as_bytes()));
            if !there {
                gone.push(disk.dev);
            }
            there
        });
        Ok(&self.gone)
    }

    /// Reads which disks there are, and forgets none.
    ///
    /// # Errors
    /// When /proc/diskstats cannot be read.
    pub(super) fn refresh_names(&mut self, files: &Files) -> Result<(), ReadError> {
        files.read_into(&self.path, &mut self.diskstats)
    }

    /// Disks came or went between the last two looks.
    #[must_use]
    pub(super) fn have_changed(&self) -> bool {
        self.have_changed
    }

    /// The disk with the number `dev` is there, as of the last look.
    #[must_use]
    pub(super) fn has(&self, dev: u32) -> bool {
        self.known.iter().any(|disk| disk.dev == dev) || lines(&self.diskstats).any(|line| line.dev == dev)
    }

    /// Names of the disks that make no requests: those without hardware queues, but with any size.
    #[must_use]
    pub(super) fn without_requests(&mut self, files: &Files) -> Vec<String> {
        self.sizeless.clear();
        // A slash in a name is an exclamation mark in sysfs.
        let names = lines(&self.diskstats).map(|line| String::from_utf8_lossy(line.name).replace('/', "!"));
        let mut found = Vec::new();
        for name in names {
            let disk = files.sys("block").join(&name);
            let size = disk.join("size");
            if !files.exists(&size) || files.exists(&disk.join("mq")) {
                continue;
            }
            if has_size(files, &size) {
                found.push(name);
            } else {
                self.sizeless.push(size);
            }
        }
        found
    }

    /// A disk that makes no requests and had no size when they were last looked for has one now: so dm, md and zram come, first the
    /// disk and then its size.
    #[must_use]
    pub(super) fn have_grown(&self, files: &Files) -> bool {
        self.sizeless.iter().any(|size| has_size(files, size))
    }

    /// The disk with the number `dev`, as of the last look. Where the kernel's own name of it is known, both must be of
    /// one disk.
    pub(super) fn find(&mut self, dev: u32, name: impl FnOnce() -> Option<String>) -> Found<'_> {
        if let Some(place) = self.known.iter().position(|disk| disk.dev == dev) {
            return Found::Named(&self.known[place].name);
        }
        let found = match name() {
            Some(name) => lines(&self.diskstats).any(|line| line.is(dev, name.as_bytes())).then_some(name),
            None => lines(&self.diskstats)
                .find(|line| line.dev == dev && dev != HIDDEN)
                .map(|line| String::from_utf8_lossy(line.name).into_owned()),
        };
        let Some(name) = found else { return Found::Unknown };
        self.known.push(Disk { dev, name });
        self.known.last().map_or(Found::Unknown, |disk| Found::Named(&disk.name))
    }

    /// Reads and writes that the kernel itself counted on all disks and partitions, as of the last look.
    #[must_use]
    pub(super) fn completed(&self) -> u64 {
        lines(&self.diskstats).map(|line| line.completed).sum()
    }
}

impl Line<'_> {
    fn is(&self, dev: u32, name: &[u8]) -> bool {
        (self.dev == dev || self.dev == HIDDEN) && self.name == name
    }
}

/// The attribute says another size than zero.
fn has_size(files: &Files, path: &Path) -> bool {
    let mut text = [0; 32];
    files.attribute(path, &mut text).is_ok_and(|text| bytes::u64(text).is_some_and(|sectors| sectors > 0))
}

/// A sum that is another when any byte, or their order, is another (FNV-1a).
fn mixed(sum: u64, byte: &u8) -> u64 {
    (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
}

/// The number of a device as the kernel has it in `dev_t`.
#[must_use]
pub(super) fn number(major: u64, minor: u64) -> Option<u32> {
    (major < 1 << 12 && minor < 1 << 20).then(|| u32::try_from(major << 20 | minor).ok()).flatten()
}

/// `254 0 vda 562990 38532 … 84008 …`: numbers, name, reads completed, three more of reads, writes completed
/// (Documentation/admin-guide/iostats.rst). A line that is none is passed over.
fn lines(text: &[u8]) -> impl Iterator<Item = Line<'_>> {
    bytes::lines(text).filter_map(|line| {
        let mut fields = bytes::fields(line);
        let (major, minor) = (bytes::u64(fields.next()?)?, bytes::u64(fields.next()?)?);
        let name = fields.next()?;
        let (reads, writes) = (bytes::u64(fields.next()?)?, bytes::u64(fields.nth(3)?)?);
        Some(Line { dev: number(major, minor)?, name, completed: reads.saturating_add(writes) })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::Host;

    const TWO: &str = "   7       0 loop0 84 0 1376 16 38 14 84 54 0 56 124 0 0 0 0 28 53\n \
                       254       0 vda 562990 38532 29295674 483397 84008 266481 71262048 404994 0 69948 908579\n   \
                       0       0 nvme0c0n1 1 0 8 0 2 0 8 0 0 0 0\n";
    const VDA: u32 = 254 << 20;

    fn host(diskstats: &str) -> (tempfile::TempDir, Host) {
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::create_dir(dir.path().join("proc")).expect("created");
        std::fs::write(dir.path().join("proc/diskstats"), diskstats).expect("written");
        let host = Host::fixture(dir.path());
        (dir, host)
    }

    fn named(name: &str) -> impl FnOnce() -> Option<String> {
        let name = name.to_owned();
        || Some(name)
    }

    #[test]
    fn a_disk_is_known_by_number_and_where_the_kernel_told_it_by_name() {
        let (_dir, host) = host(TWO);
        let mut disks = Disks::new(&host.files);
        assert!(disks.refresh(&host.files).expect("it is there").is_empty());
        assert_eq!(disks.find(VDA, || None), Found::Named("vda"));
        assert_eq!(disks.find(7 << 20, named("loop0")), Found::Named("loop0"));
        assert_eq!(disks.find(7 << 20 | 1, named("loop0")), Found::Unknown, "the name of another number");
        assert_eq!(disks.find(1, || None), Found::Unknown);
        assert_eq!(disks.completed(), 84 + 38 + 562_990 + 84_008 + 3);
    }

    #[test]
    fn a_hidden_path_is_known_by_its_name_alone() {
        let (_dir, host) = host(TWO);
        let mut disks = Disks::new(&host.files);
        disks.refresh(&host.files).expect("it is there");
        assert_eq!(disks.find(259 << 20 | 3, named("nvme0c0n1")), Found::Named("nvme0c0n1"));
        assert_eq!(disks.find(0, || None), Found::Unknown);
        assert!(disks.refresh(&host.files).expect("it is there").is_empty());
    }

    #[test]
    fn a_disk_that_went_away_or_became_another_is_told_once() {
        let (dir, host) = host(TWO);
        let mut disks = Disks::new(&host.files);
        disks.refresh(&host.files).expect("it is there");
        assert_eq!(disks.find(VDA, || None), Found::Named("vda"));
        std::fs::write(dir.path().join("proc/diskstats"), TWO.replace(" vda ", " vdb ")).expect("written");
        assert_eq!(disks.refresh(&host.files).expect("it is there"), [VDA]);
        assert!(disks.refresh(&host.files).expect("it is there").is_empty());
        assert_eq!(disks.find(VDA, || None), Found::Named("vdb"));
    }

    #[test]
    fn without_the_file_nothing_is_forgotten_and_nothing_new_found() {
        let (dir, host) = host(TWO);
        let mut disks = Disks::new(&host.files);
        disks.refresh(&host.files).expect("it is there");
        assert_eq!(disks.find(VDA, || None), Found::Named("vda"));
        std::fs::remove_file(dir.path().join("proc/diskstats")).expect("removed");
        assert!(disks.refresh(&host.files).is_err());
        assert_eq!(disks.find(VDA, || None), Found::Named("vda"));
    }

    #[test]
    fn a_disk_that_gets_its_size_later_is_told() {
        let (dir, host) =
            host(" 252 0 zram0 0 0 0 0 0 0 0 0 0 0 0\n 8 0 sda 0 0 0 0 0 0 0 0 0 0 0\n 8 1 sda1 0 0 0 0 0\n");
        let block = dir.path().join("sys/block");
        let set = |name: &str, sectors: &str| {
            std::fs::create_dir_all(block.join(name)).expect("created");
            std::fs::write(block.join(name).join("size"), sectors).expect("written");
        };
        set("zram0", "0\n");
        set("sda", "0\n");
        std::fs::create_dir(block.join("sda/mq")).expect("created");
        let mut disks = Disks::new(&host.files);
        disks.refresh(&host.files).expect("it is there");
        assert!(disks.without_requests(&host.files).is_empty() && !disks.have_grown(&host.files));
        set("sda", "2048\n");
        assert!(!disks.have_grown(&host.files), "it makes requests");
        set("zram0", "2048\n");
        assert!(disks.have_grown(&host.files));
        assert_eq!(disks.without_requests(&host.files), ["zram0"]);
        assert!(!disks.have_grown(&host.files), "that is known");
    }

    #[test]
    fn lines_that_are_none_are_passed_over() {
        for text in ["", "\n", "a b c", "1 2 sda", "1 2 sda x", "99999 0 sda 1 2 3 4 5", "1 2 sda 1 2 3 4"] {
            assert_eq!(lines(text.as_bytes()).count(), 0, "{text:?}");
        }
        assert_eq!(lines(b"8 16 sdb 1 2 3 4 5 6").map(|line| line.dev).collect::<Vec<_>>(), [8 << 20 | 16]);
    }
}
