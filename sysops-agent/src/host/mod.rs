//! The only door to the machine. A [`Host`] is passed, never global, so that fixtures and containers work.

pub mod bytes;
pub mod cgroup;
pub mod clock;
pub mod descriptors;
pub mod events;
pub mod files;
pub mod mounts;
pub mod open_fds;
pub mod os;
pub mod processes;
pub mod space;
pub mod state_files;
pub mod systemd;
pub mod task_table;

pub use cgroup::MemoryPath;
pub use clock::Clock;
pub use descriptors::Descriptors;
pub use events::EventSource;
pub use files::{Files, ReadError, Source};
pub use open_fds::OpenFds;
pub use processes::{Kept, Listing, Process, Processes};
pub use rustix::io::Errno;
pub use state_files::StateFiles;
pub use systemd::Systemd;
pub use task_table::{ReadTasks, TaskRow, TaskTables, TaskWalk, Walked};

use std::path::{Path, PathBuf};

/// Where the machine's files are, and its clocks.
#[derive(Debug, Clone)]
pub struct Host {
    /// /proc, /sys and / of the machine that is watched.
    pub files: Files,
    /// Its clocks.
    pub clock: Clock,
    /// The newest listing of its processes.
    pub listing: Listing,
    /// The table of its processes, where the kernel gives one.
    pub tasks: TaskTables,
}

/// Where to find the machine's file systems; what is not given comes from `HOST_PROC`, `HOST_SYS`, `HOST_ROOT`.
#[derive(Debug, Clone, Default)]
pub struct Roots {
    /// `--host-root`: /proc and /sys are looked for below it.
    pub root: Option<PathBuf>,
}

impl Host {
    /// The live machine: by `roots`, else by the environment (`HOST_PROC`, `HOST_SYS`, `HOST_ROOT`), else `/`.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "this is the one place that reads HOST_*")]
    pub fn live(roots: &Roots) -> Self {
        let env = |name: &str| std::env::var(name).ok().filter(|path| !path.is_empty()).map(PathBuf::from);
        let root = roots.root.clone().or_else(|| env("HOST_ROOT")).unwrap_or_else(|| PathBuf::from("/"));
        let below = |name: &str| roots.root.as_ref().map(|root| root.join(name));
        let proc = below("proc").or_else(|| env("HOST_PROC")).unwrap_or_else(|| root.join("proc"));
        let sys = below("sys").or_else(|| env("HOST_SYS")).unwrap_or_else(|| root.join("sys"));
        Self {
            files: Files::new(proc, sys, root),
            clock: Clock::Live,
            listing: Listing::default(),
            tasks: TaskTables::default(),
        }
    }

    /// A recorded machine in `dir` (`dir/proc`, `dir/sys`, the rest as root), with a clock that stands still.
    #[must_use]
    pub fn fixture(dir: &Path) -> Self {
        let files = Files::new(dir.join("proc"), dir.join("sys"), dir.to_owned());
        Self { files, clock: Clock::fixed(), listing: Listing::default(), tasks: TaskTables::default() }
    }
}
