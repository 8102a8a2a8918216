//! Space and inodes of mounted file systems: what is mounted from /proc/1/mountinfo, how full it is from statvfs(2).
//! I/O of the disks below is left to diskstats.

use std::collections::HashMap;
use std::collections::hash_map::Entry as Place;
use std::ffi::{CString, OsStr};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::bytes::{complete, lines, text};
use super::{CollectError, Collector, Entry, Outcome, interval};
use crate::host::mounts::{self, Mount};
use crate::host::space::{self, Answer, Ask, Asker, Space};
use crate::host::{Errno, Host, Source};
use crate::model::{Batch, Metric, Unit};
use crate::spec::Key;

const LABELS: &[&str; 3] = &["device", "mountpoint", "fstype"];

static USAGE: Metric<3> = Metric::gauge(
    "disk_usage_percent",
    Unit::Percent,
    "Space in use, as df counts it: 100 x used / (used + available to ordinary users). Not for file systems that are \
     read-only.",
    LABELS,
);
static INODE_USAGE: Metric<3> = Metric::gauge(
    "disk_inode_usage_percent",
    Unit::Percent,
    "Inodes in use. Not for file systems that are read-only or have no fixed number of inodes.",
    LABELS,
);
static DROPPED: Metric<0> = Metric::gauge(
    "disk_mounts_dropped",
    Unit::Count,
    "Mounts that were not looked at, as there are more than collector.max_mounts.",
    &[],
);
static NODE_SIZE: Metric<3> =
    Metric::gauge("node_filesystem_size_bytes", Unit::Bytes, "Filesystem size in bytes.", LABELS);
static NODE_FREE: Metric<3> =
    Metric::gauge("node_filesystem_free_bytes", Unit::Bytes, "Filesystem free space in bytes.", LABELS);
static NODE_AVAIL: Metric<3> = Metric::gauge(
    "node_filesystem_avail_bytes",
    Unit::Bytes,
    "Filesystem space available to non-root users in bytes.",
    LABELS,
);
static NODE_FILES: Metric<3> =
    Metric::gauge("node_filesystem_files", Unit::Count, "Filesystem total file nodes.", LABELS);
static NODE_FILES_FREE: Metric<3> =
    Metric::gauge("node_filesystem_files_free", Unit::Count, "Filesystem total free file nodes.", LABELS);
static NODE_READONLY: Metric<3> =
    Metric::gauge("node_filesystem_readonly", Unit::Bool, "Filesystem read-only status.", LABELS);
static NODE_ERROR: Metric<4> = Metric::gauge(
    "node_filesystem_device_error",
    Unit::Bool,
    "Whether an error occurred while getting statistics for the given device.",
    &["device", "mountpoint", "fstype", "device_error"],
);

static MAX_MOUNTS: Key<i64> = Key::int(
    "collector.max_mounts",
    1000,
    1,
    100_000,
    "Most mounts that are looked at. Those that come after are counted in disk_mounts_dropped.",
);

const FILE: &str = "/proc/1/mountinfo";

/// How long one file system may take to answer before the others go on without it.
const PATIENCE: Duration = Duration::from_secs(1);

/// In the list of collectors.
pub(super) static ENTRY: Entry = Entry {
    name: "filesystem",
    metrics: &[
        USAGE.desc(),
        INODE_USAGE.desc(),
        DROPPED.desc(),
        NODE_SIZE.desc(),
        NODE_FREE.desc(),
        NODE_AVAIL.desc(),
        NODE_FILES.desc(),
        NODE_FILES_FREE.desc(),
        NODE_READONLY.desc(),
        NODE_ERROR.desc(),
    ],
    keys: &[interval::DISK.spec(), MAX_MOUNTS.spec()],
    interval: &interval::DISK,
    deadline: Duration::from_secs(15),
    new: |host, values| {
        let max_mounts = usize::try_from(values.get(&MAX_MOUNTS)).unwrap_or(usize::MAX);
        Box::new(Filesystem::new(host, max_mounts, Arc::new(space::statvfs), PATIENCE))
    },
};

struct Filesystem {
    table: Source,
    /// `table` is that of process 1 and may be refused.
    of_init: bool,
    asker: Asker,
    /// In the order in which `asker` asks.
    mounted: Vec<Mounted>,
    max_mounts: usize,
    dropped: usize,
}

/// A mount that is looked at.
struct Mounted {
    id: u64,
    device: String,
    point: String,
    fstype: String,
    read_only: bool,
    path: CString,
}

impl Filesystem {
    /// `ask` and `patience` are statvfs and a second, but for tests.
    fn new(host: &Host, max_mounts: usize, ask: Ask, patience: Duration) -> Self {
        Self {
            table: Source::new(host.files.proc("1/mountinfo")),
            of_init: true,
            asker: Asker::new(ask, patience),
            mounted: Vec::new(),
            max_mounts,
            dropped: 0,
        }
    }

    /// Reads the mount table if it changed.
    fn refresh(&mut self, host: &Host) -> Result<(), CollectError> {
        let table = match self.table.read_if_changed() {
            Err(error) if self.of_init && (error.is_denied() || error.is_gone()) => {
                // A container without the host's PIDs, or hidepid: the own mounts are better than none.
                self.of_init = false;
                self.table = Source::new(host.files.proc("self/mountinfo"));
                self.table.read_if_changed()
            }
            other => other,
        };
        let Some(table) = table? else { return Ok(()) };
        let mounted = parse(table, host)?;
        let same = |(old, new): (&Mounted, &Mounted)| old.id == new.id && old.path == new.path;
        let kept = mounted.len().min(self.max_mounts);
        let moved = self.mounted.len() != kept || !self.mounted.iter().zip(&mounted).all(same);
        self.dropped = mounted.len() - kept;
        self.mounted = mounted;
        self.mounted.truncate(kept);
        if moved {
            let remote = |mount: &Mounted| (mount.id, mount.path.clone(), is_remote(&mount.fstype));
            self.asker.set(self.mounted.iter().map(remote));
        }
        Ok(())
    }
}

impl Collector for Filesystem {
    fn collect(&mut self, host: &Host, out: &mut Batch) -> Result<Outcome, CollectError> {
        self.refresh(host)?;
        let mounted = &self.mounted;
        self.asker.ask(&mut |at, answer| mounted[at].emit(answer, out));
        out.gauge(&DROPPED, [], self.dropped as f64);
        Ok(Outcome::Data)
    }
}

impl Mounted {
    fn emit(&self, answer: Answer, out: &mut Batch) {
        let labels = [self.device.as_str(), self.point.as_str(), self.fstype.as_str()];
        out.gauge(&NODE_READONLY, labels, f64::from(u8::from(self.read_only)));
        let (error, space) = match answer {
            Answer::Known(space) => ("", Some(space)),
            Answer::Failed(Errno::ACCESS) => ("permission denied", None),
            Answer::Failed(_) => ("error", None),
            Answer::Hung => ("mountpoint timeout", None),
            Answer::Skipped => ("skipped", None),
        };
        let [device, point, fstype] = labels;
        out.gauge(&NODE_ERROR, [device, point, fstype, error], f64::from(u8::from(space.is_none())));
        let Some(space) = space else { return };
        let Space { block_bytes, blocks, blocks_free, blocks_avail, files, files_free } = space;
        let bytes = |blocks: u64| blocks as f64 * block_bytes as f64;
        out.gauge(&NODE_SIZE, labels, bytes(blocks));
        out.gauge(&NODE_FREE, labels, bytes(blocks_free));
        out.gauge(&NODE_AVAIL, labels, bytes(blocks_avail));
        out.gauge(&NODE_FILES, labels, files as f64);
        out.gauge(&NODE_FILES_FREE, labels, files_free as f64);
        if self.read_only {
            return; // It cannot fill up, and images (ISO, verity) are always full.
        }
        let used = blocks.saturating_sub(blocks_free) as f64;
        // 0 / 0 is NaN, which the batch leaves out: a file system without blocks has no usage.
        out.gauge(&USAGE, labels, 100.0 * used / (used + blocks_avail as f64));
        out.gauge(&INODE_USAGE, labels, 100.0 * files.saturating_sub(files_free) as f64 / files as f64);
    }
}

/// The mounts that count, one for each mount point: what is mounted over another hides it.
fn parse(table: &[u8], host: &Host) -> Result<Vec<Mounted>, CollectError> {
    let mut mounted: Vec<Mounted> = Vec::new();
    let mut places = HashMap::new();
    for line in lines(complete(table, FILE)?) {
        let mount = mounts::parse(line).ok_or_else(|| CollectError::parse(FILE, "line", "a mount", line))?;
        if is_left_out(&mount) {
            continue;
        }
        let new = Mounted::new(&mount, host)?;
        match places.entry(new.path.clone()) {
            Place::Occupied(place) => mounted[*place.get()] = new,
            Place::Vacant(place) => {
                place.insert(mounted.len());
                mounted.push(new);
            }
        }
    }
    Ok(mounted)
}

impl Mounted {
    fn new(mount: &Mount<'_>, host: &Host) -> Result<Self, CollectError> {
        let bad = || CollectError::parse(FILE, "mount point", "an absolute path", &mount.point);
        let seen = Path::new(OsStr::from_bytes(&mount.point));
        // The table of another process than the host's first has the root of the host in its mount points.
        let root = host.files.root("/");
        let inside = seen.strip_prefix(&root).unwrap_or(seen);
        let inside = inside.strip_prefix("/").unwrap_or(inside);
        let path = CString::new(root.join(inside).as_os_str().as_bytes()).map_err(|_| bad())?;
        if !seen.is_absolute() {
            return Err(bad());
        }
        Ok(Self {
            id: mount.id,
            device: text(&mount.source).into_owned(),
            point: format!("/{}", text(inside.as_os_str().as_bytes())),
            fstype: text(&mount.fstype).into_owned(),
            read_only: mount.is_read_only(),
            path,
        })
    }
}

/// node_exporter's defaults: file systems without storage of their own, and mount points of containers.
fn is_left_out(mount: &Mount<'_>) -> bool {
    const TYPES: [&str; 25] = [
        "autofs",
        "binfmt_misc",
        "bpf",
        "cgroup",
        "cgroup2",
        "configfs",
        "debugfs",
        "devpts",
        "devtmpfs",
        "erofs",
        "fusectl",
        "hugetlbfs",
        "iso9660",
        "mqueue",
        "nsfs",
        "overlay",
        "proc",
        "procfs",
        "pstore",
        "rpc_pipefs",
        "securityfs",
        "selinuxfs",
        "squashfs",
        "sysfs",
        "tracefs",
    ];
    /// These and what is below them, and what is below (not at) those that end in a slash.
    const POINTS: [&str; 6] =
        ["/dev", "/proc", "/sys", "/run/credentials/", "/var/lib/docker/", "/var/lib/containers/storage/"];
    let below = |place: &str| match mount.point.strip_prefix(place.as_bytes()) {
        Some(rest) if place.ends_with('/') => !rest.is_empty(),
        Some(rest) => matches!(rest, [] | [b'/', ..]),
        None => false,
    };
    TYPES.iter().any(|fstype| fstype.as_bytes() == &*mount.fstype) || POINTS.into_iter().any(below)
}

/// True for file systems that another machine or a program serves: those that hang.
fn is_remote(fstype: &str) -> bool {
    const TYPES: [&str; 17] = [
        "9p",
        "afs",
        "beegfs",
        "ceph",
        "cifs",
        "coda",
        "gfs2",
        "glusterfs",
        "gpfs",
        "lustre",
        "ncpfs",
        "nfs",
        "nfs4",
        "ocfs2",
        "smb3",
        "smbfs",
        "virtiofs",
    ];
    TYPES.contains(&fstype) || fstype == "fuse" || fstype.starts_with("fuse.")
}

#[cfg(test)]
mod tests {
    use std::ffi::CStr;
    use std::sync::{Condvar, Mutex};

    use super::super::testing::{Machine, declared, value};
    use super::*;

    const SPACE: Space =
        Space { block_bytes: 4096, blocks: 100, blocks_free: 40, blocks_avail: 20, files: 50, files_free: 10 };

    fn line(id: usize, point: &str, options: &str, fstype: &str, source: &str) -> String {
        format!("{id} 1 0:{id} / {point} rw,relatime shared:1 - {fstype} {source} {options}\n")
    }

    /// One reading with a file system that answers [`SPACE`], or as `ask` does.
    fn filesystem(
        machine: &Machine,
        ask: impl Fn(&CStr) -> Result<Space, Errno> + Send + Sync + 'static,
    ) -> Filesystem {
        Filesystem::new(&machine.host(), 1000, Arc::new(ask), Duration::from_millis(200))
    }

    fn collect(filesystem: &mut Filesystem, machine: &Machine) -> Batch {
        let mut batch = Batch::default();
        filesystem.collect(&machine.host(), &mut batch).expect("it can be read");
        declared(&batch, &ENTRY);
        batch
    }

    #[test]
    fn usage_is_what_df_says() {
        let table = line(1, "/", "rw", "ext4", "/dev/vda") + &line(2, "/home", "ro", "xfs", "/dev/vdb");
        let machine = Machine::new("fs").file("proc/1/mountinfo", table);
        let batch = collect(&mut filesystem(&machine, |_| Ok(SPACE)), &machine);
        let (root, home) = (["/dev/vda", "/", "ext4"], ["/dev/vdb", "/home", "xfs"]);
        assert_eq!(value(&batch, "disk_usage_percent", &root), Some(75.0));
        assert_eq!(value(&batch, "disk_inode_usage_percent", &root), Some(80.0));
        assert_eq!(value(&batch, "node_filesystem_avail_bytes", &root), Some(81_920.0));
        assert_eq!(value(&batch, "node_filesystem_device_error", &["/dev/vda", "/", "ext4", ""]), Some(0.0));
        assert_eq!(value(&batch, "node_filesystem_readonly", &home), Some(1.0));
        assert_eq!(value(&batch, "node_filesystem_size_bytes", &home), Some(409_600.0));
        assert_eq!(value(&batch, "disk_usage_percent", &home), None, "it cannot fill up");
    }

    #[test]
    fn the_live_root_is_asked() {
        let host = Host::live(&crate::host::Roots { root: Some("/".into()) });
        let mut batch = Batch::default();
        (ENTRY.new)(&host, &crate::spec::Values::default()).collect(&host, &mut batch).expect("it can be read");
        let root = |(entry, key): &(&crate::model::batch::Entry, &str)| {
            entry.metric.name == "node_filesystem_size_bytes" && key.contains("\0/\0")
        };
        assert_eq!(batch.iter().filter(root).count(), 1);
    }

    #[test]
    fn no_storage_and_no_fixed_inodes_have_no_usage() {
        let machine = Machine::new("fs-zero").file("proc/1/mountinfo", line(1, "/", "rw", "btrfs", "/dev/vda"));
        let empty = Space { blocks: 0, blocks_free: 0, blocks_avail: 0, files: 0, files_free: 0, ..SPACE };
        let batch = collect(&mut filesystem(&machine, move |_| Ok(empty)), &machine);
        assert_eq!(value(&batch, "disk_usage_percent", &["/dev/vda", "/", "btrfs"]), None);
        assert_eq!(value(&batch, "disk_inode_usage_percent", &["/dev/vda", "/", "btrfs"]), None);
        assert_eq!(value(&batch, "node_filesystem_files", &["/dev/vda", "/", "btrfs"]), Some(0.0));
    }

    #[test]
    fn hostile_mount_points_and_what_is_left_out() {
        let long = format!("/mnt/{}\\040\\012end", "x".repeat(200));
        let table = line(1, &long, "rw", "fuse.sshfs", "u@h:/a\\040b")
            + &line(2, "/dev/shm", "rw", "tmpfs", "tmpfs")
            + &line(3, "/devices", "rw", "tmpfs", "tmpfs")
            + &line(4, "/var/lib/docker/overlay2/1/merged", "rw", "ext4", "x")
            + &line(5, "/var/lib/docker", "rw", "ext4", "/dev/vdb")
            + &line(6, "/snap/x", "ro", "squashfs", "/dev/loop1")
            + &line(7, "/over", "rw", "ext4", "/dev/below")
            + &line(8, "/over", "rw", "xfs", "/dev/above");
        let machine = Machine::new("fs-names").file("proc/1/mountinfo", table);
        let batch = collect(&mut filesystem(&machine, |_| Ok(SPACE)), &machine);
        let point = format!("/mnt/{} \nend", "x".repeat(200));
        assert_eq!(value(&batch, "disk_usage_percent", &["u@h:/a b", &point, "fuse.sshfs"]), Some(75.0));
        let sizes: Vec<String> = batch
            .iter()
            .filter(|(entry, _)| entry.metric.name == "node_filesystem_size_bytes")
            .filter_map(|(_, key)| key.split('\0').nth(1).map(str::to_owned))
            .collect();
        assert_eq!(sizes, [point.as_str(), "/devices", "/var/lib/docker", "/over"]);
        assert_eq!(value(&batch, "disk_usage_percent", &["/dev/above", "/over", "xfs"]), Some(75.0));
    }

    #[test]
    fn mounts_come_and_go_and_too_many_are_counted() {
        let machine = Machine::new("fs-many").file("proc/1/mountinfo", line(1, "/", "rw", "ext4", "/dev/vda"));
        let mut filesystem = filesystem(&machine, |path| match path.to_bytes().ends_with(b"/m7") {
            true => Err(Errno::ACCESS),
            false => Ok(SPACE),
        });
        collect(&mut filesystem, &machine);
        let many: String = (0..1200).map(|at| line(at + 10, &format!("/m{at}"), "rw", "tmpfs", "none")).collect();
        machine.write("proc/1/mountinfo", many);
        let batch = collect(&mut filesystem, &machine);
        assert_eq!(value(&batch, "disk_mounts_dropped", &[]), Some(200.0));
        assert_eq!(value(&batch, "disk_usage_percent", &["none", "/m999", "tmpfs"]), Some(75.0));
        assert_eq!(value(&batch, "disk_usage_percent", &["/dev/vda", "/", "ext4"]), None);
        let refused = ["none", "/m7", "tmpfs", "permission denied"];
        assert_eq!(value(&batch, "node_filesystem_device_error", &refused), Some(1.0));
        assert_eq!(value(&batch, "node_filesystem_size_bytes", &refused[..3]), None);
    }

    #[test]
    fn one_that_hangs_does_not_cost_the_others() {
        let table = line(1, "/a", "rw", "ext4", "a")
            + &line(2, "/nfs", "rw", "nfs4", "s:/x")
            + &line(3, "/b", "rw", "ext4", "b");
        let machine = Machine::new("fs-hung").file("proc/1/mountinfo", table);
        let gate = Arc::new((Mutex::new(false), Condvar::new()));
        let door = Arc::clone(&gate);
        let mut filesystem = filesystem(&machine, move |path| {
            if path.to_bytes().ends_with(b"/nfs") {
                let _open = door.1.wait_while(door.0.lock().unwrap(), |open| !*open).unwrap();
            }
            Ok(SPACE)
        });
        for _ in 0..3 {
            let batch = collect(&mut filesystem, &machine);
            assert_eq!(value(&batch, "disk_usage_percent", &["b", "/b", "ext4"]), Some(75.0));
            let hung = ["s:/x", "/nfs", "nfs4", "mountpoint timeout"];
            assert_eq!(value(&batch, "node_filesystem_device_error", &hung), Some(1.0));
        }
        *gate.0.lock().unwrap() = true;
        gate.1.notify_all();
        let is_back = (0..1000).any(|_| {
            std::thread::sleep(Duration::from_millis(5));
            value(&collect(&mut filesystem, &machine), "disk_usage_percent", &["s:/x", "/nfs", "nfs4"]).is_some()
        });
        assert!(is_back);
    }

    #[test]
    fn the_own_table_when_that_of_process_1_is_not_there_with_the_root_stripped() {
        let machine = Machine::new("fs-root");
        let root = machine.host().files.root("/").display().to_string();
        let root = root.trim_end_matches('/');
        let table =
            line(1, root, "rw", "ext4", "/dev/vda") + &line(2, &format!("{root}/data"), "rw", "xfs", "/dev/vdb");
        let machine = machine.file("proc/self/mountinfo", table);
        let asked = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&asked);
        let mut filesystem = filesystem(&machine, move |path| {
            seen.lock().unwrap().push(path.to_string_lossy().into_owned());
            Ok(SPACE)
        });
        let batch = collect(&mut filesystem, &machine);
        assert!(value(&batch, "disk_usage_percent", &["/dev/vda", "/", "ext4"]).is_some());
        assert!(value(&batch, "disk_usage_percent", &["/dev/vdb", "/data", "xfs"]).is_some());
        assert_eq!(*asked.lock().unwrap(), [format!("{root}/"), format!("{root}/data")]);
    }

    #[test]
    fn what_is_not_understood_is_an_error_that_names_it() {
        let machine = Machine::new("fs-bad");
        let error = |content: &[u8]| {
            machine.write("proc/1/mountinfo", content);
            machine.collect(&ENTRY).expect_err("it is bad").to_string()
        };
        let whole = line(1, "/", "rw", "ext4", "/dev/vda");
        for end in 0..whole.len() {
            assert!(error(&whole.as_bytes()[..end]).starts_with("/proc/1/mountinfo: last line"), "{end}");
        }
        assert!(error(b"\xff\xfe\n").contains("expected a mount"));
        assert!(error(b"1 1 0:1 / relative rw - ext4 x rw\n").contains("expected an absolute path"));
        assert!(error(b"1 1 0:1 / /nul\\000 rw - ext4 x rw\n").contains("expected an absolute path"));
    }
}
