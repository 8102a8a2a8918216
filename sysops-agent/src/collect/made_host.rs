//! A host with processes that a test makes, changes and takes away. For recorded hosts there is tests/fixtures/hosts.

use std::fs;

use crate::host::Host;
use crate::model::batch::label_values;
use crate::model::{Batch, Reading};

/// A host below a directory that goes away with it.
pub(super) struct MadeHost {
    dir: tempfile::TempDir,
    /// The host, with a clock that the test turns.
    pub host: Host,
}

/// What `stat` of a process says.
#[derive(Clone, Copy)]
pub(super) struct MadeProcess<'a> {
    pub comm: &'a [u8],
    pub state: char,
    pub cpu_ticks: u64,
    pub threads: u64,
    pub start_ticks: u64,
    pub rss_pages: u64,
}

impl Default for MadeProcess<'_> {
    fn default() -> Self {
        Self { comm: b"made", state: 'S', cpu_ticks: 0, threads: 1, start_ticks: 100, rss_pages: 0 }
    }
}

impl MadeHost {
    /// A host with an empty /proc.
    pub(super) fn new() -> Self {
        // In memory where there is such a place: thousands of files take a disk many seconds.
        let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a directory");
        fs::create_dir(dir.path().join("proc")).expect("created");
        let host = Host::fixture(dir.path());
        Self { dir, host }
    }

    /// Writes a file below /proc.
    pub(super) fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        let path = self.dir.path().join("proc").join(name);
        fs::create_dir_all(path.parent().expect("a file in a directory")).expect("created");
        fs::write(path, content).expect("written");
    }

    /// Makes or changes a process.
    pub(super) fn process(&self, pid: u32, process: MadeProcess<'_>) {
        let MadeProcess { comm, state, cpu_ticks, threads, start_ticks, rss_pages } = process;
        let mut line = format!("{pid} (").into_bytes();
        line.extend_from_slice(comm);
        let rest = format!(
            ") {state} 1 1 1 0 -1 4194560 10 20 0 0 {cpu_ticks} 0 5 6 20 0 {threads} 0 {start_ticks} 4096000 {rss_pages} 18446744073709551615 1 1 0\n"
        );
        line.extend_from_slice(rest.as_bytes());
        self.write(&format!("{pid}/stat"), line);
        self.write(&format!("{pid}/comm"), [comm, b"\n"].concat());
    }

    /// Gives a process open files and a soft limit of them.
    pub(super) fn open_files(&self, pid: u32, count: u32, soft_limit: &str) {
        self.write(
            &format!("{pid}/limits"),
            format!(
                "Limit                     Soft Limit           Hard Limit           Units     \n\
             Max processes             96365                96365                processes \n\
             Max open files            {soft_limit:<20} 1048576              files     \n"
            ),
        );
        let fds = self.dir.path().join(format!("proc/{pid}/fd"));
        fs::create_dir_all(&fds).expect("created");
        for number in 0..count {
            fs::File::create(fds.join(number.to_string())).expect("created");
        }
    }

    /// Makes a link below /proc.
    pub(super) fn link(&self, name: &str, target: &str) {
        std::os::unix::fs::symlink(target, self.dir.path().join("proc").join(name)).expect("linked");
    }

    /// Gives a file or directory below /proc another name.
    pub(super) fn rename(&self, from: &str, to: &str) {
        let proc = self.dir.path().join("proc");
        fs::rename(proc.join(from), proc.join(to)).expect("renamed");
    }

    /// Takes a file or directory below /proc away.
    pub(super) fn remove(&self, name: &str) {
        let path = self.dir.path().join("proc").join(name);
        if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }.expect("removed");
    }
}

/// The readings as `name{value,value} number`, in the order in which they came.
pub(super) fn shown(batch: &Batch) -> Vec<String> {
    let show = |(entry, key): (&crate::model::batch::Entry, &str)| {
        let labels: Vec<&str> = label_values(key).collect();
        let (Reading::Gauge(value) | Reading::Counter(value)) = entry.reading else { panic!("{entry:?}") };
        if labels.is_empty() {
            format!("{} {value}", entry.metric.name)
        } else {
            format!("{}{{{}}} {value}", entry.metric.name, labels.join(","))
        }
    };
    batch.iter().map(show).collect()
}

/// The readings of one metric.
pub(super) fn shown_of(batch: &Batch, metric: &str) -> Vec<String> {
    let of_metric = |line: &String| {
        let rest = line.strip_prefix(metric)?;
        rest.starts_with([' ', '{']).then(|| rest.to_owned())
    };
    shown(batch).iter().filter_map(of_metric).collect()
}
