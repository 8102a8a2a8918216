//! Memory cgroups of a test's own, in whichever version the machine has, and processes in them that the kernel kills.
#![expect(
    clippy::disallowed_methods,
    clippy::panic,
    reason = "tests are outside of the agent: they read files, run programs and fail by panic"
)]

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::require;

/// A memory cgroup; removed when dropped.
pub struct MemoryCgroup {
    directory: PathBuf,
    v1: bool,
    /// Path in the hierarchy.
    pub path: String,
}

impl MemoryCgroup {
    /// What is missing to make one.
    #[must_use]
    pub fn missing() -> Option<String> {
        require::root().or_else(|| base().is_none().then(|| "needs the memory controller of cgroups".to_owned()))
    }

    /// Makes `name` below the root of the memory hierarchy, limited to `bytes` without swap.
    ///
    /// # Panics
    /// When the machine refuses.
    #[must_use]
    pub fn new(name: &str, bytes: u64) -> Self {
        let cgroup = Self::without_limit(name);
        let v1 = cgroup.v1;
        cgroup.write(if v1 { "memory.limit_in_bytes" } else { "memory.max" }, &bytes.to_string());
        cgroup
    }

    /// Makes `name` below the root of the memory hierarchy; with a slash in it, below another that was made so.
    ///
    /// # Panics
    /// When the machine refuses.
    #[must_use]
    pub fn without_limit(name: &str) -> Self {
        let (root, v1) = base().expect("missing() was asked");
        let directory = root.join(name);
        std::fs::create_dir_all(&directory).expect("a cgroup can be made");
        Self { directory, v1, path: format!("/{name}") }
    }

    /// What is missing to have the kernel kill a whole group.
    #[must_use]
    pub fn groups_missing() -> Option<String> {
        let v2 = base().is_some_and(|(_, v1)| !v1);
        Self::missing().or_else(|| (!v2).then(|| "needs the memory controller of cgroups of version 2".to_owned()))
    }

    /// Has the kernel kill all of it and of what is below it when it kills one, and lets memory be counted below it.
    ///
    /// # Panics
    /// When the machine refuses.
    pub fn kill_as_group(&self) {
        self.write("memory.oom.group", "1");
        self.write("cgroup.subtree_control", "+memory");
    }

    /// Starts a shell in it that goes on with `command`.
    ///
    /// # Panics
    /// When no shell can be started.
    #[must_use]
    pub fn start(&self, command: &str) -> Child {
        self.start_with(command, Stdio::null())
    }

    /// The same with an input.
    ///
    /// # Panics
    /// When no shell can be started.
    #[must_use]
    pub fn start_with(&self, command: &str, input: Stdio) -> Child {
        let script = format!("echo $$ >{}/cgroup.procs && exec {command}", self.directory.display());
        let mut shell = Command::new("sh");
        shell.args(["-c", &script]).stdin(input).stdout(Stdio::null()).stderr(Stdio::null());
        shell.spawn().expect("there is a shell")
    }

    /// The number after `name` in memory.events: of version 2 alone.
    #[must_use]
    pub fn event(&self, name: &str) -> Option<u64> {
        let text = std::fs::read_to_string(self.directory.join("memory.events")).ok()?;
        text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?.trim().parse().ok()
    }

    fn write(&self, file: &str, text: &str) {
        std::fs::write(self.directory.join(file), text).unwrap_or_else(|error| panic!("{file}: {error}"));
    }

    /// Moves a process into it.
    pub fn add(&self, pid: u32) {
        self.write("cgroup.procs", &pid.to_string());
    }

    /// Kills `count` processes in it, one after the other, as fast as it goes.
    ///
    /// # Panics
    /// When no shell can be started.
    pub fn kill_many(&self, count: usize) {
        let one = format!(
            "echo $$ >{}/cgroup.procs; exec dd if=/dev/zero of=/dev/null bs=128M count=1",
            self.directory.display()
        );
        let script = format!("i=0; while [ $i -lt {count} ]; do sh -c '{one}'; i=$((i+1)); done");
        Command::new("sh").args(["-c", &script]).stderr(Stdio::null()).status().expect("there is a shell");
    }

    /// How many of its processes the kernel says it has killed.
    #[must_use]
    pub fn oom_kills(&self) -> Option<u64> {
        let file = if self.v1 { "memory.oom_control" } else { "memory.events" };
        let text = std::fs::read_to_string(self.directory.join(file)).ok()?;
        text.lines().find_map(|line| line.strip_prefix("oom_kill "))?.trim().parse().ok()
    }
}

impl Drop for MemoryCgroup {
    fn drop(&mut self) {
        // Empty by now, or the test has failed anyway.
        let _ = std::fs::remove_dir(&self.directory);
    }
}

fn base() -> Option<(PathBuf, bool)> {
    let v1 = Path::new("/sys/fs/cgroup/memory");
    if v1.join("memory.limit_in_bytes").exists() || v1.join("cgroup.procs").exists() {
        return Some((v1.to_owned(), true));
    }
    let root = Path::new("/sys/fs/cgroup");
    let controllers = std::fs::read_to_string(root.join("cgroup.controllers")).ok()?;
    if !controllers.split_whitespace().any(|name| name == "memory") {
        return None;
    }
    // Without this the cgroups below have no limit to write.
    std::fs::write(root.join("cgroup.subtree_control"), "+memory").ok()?;
    Some((root.to_owned(), false))
}

/// A process that holds some memory and, when told, takes more until the kernel kills it. It is the test binary
/// itself, run again for its test `victim`, which calls [`be_victim`].
pub struct Victim {
    child: Child,
    /// Its pid.
    pub pid: u32,
    /// Its status in /proc before it was told to go on.
    pub before: String,
    /// Its path in the memory hierarchy, from its own /proc.
    pub cgroup: String,
}

const VICTIM: &str = "SYSOPS_TEST_VICTIM";

impl Victim {
    /// Starts one named `comm` in `cgroup`, and waits until it holds its first memory.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn start(comm: &str, oom_score_adj: i32, cgroup: &MemoryCgroup) -> Self {
        let mut child = Command::new(std::env::current_exe().expect("a test has a path"))
            .args(["--exact", "victim", "--nocapture"])
            .env(VICTIM, comm)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("the test binary can be started");
        let pid = child.id();
        cgroup.add(pid);
        std::fs::write(format!("/proc/{pid}/oom_score_adj"), oom_score_adj.to_string()).expect("a child's own file");
        let mut input = child.stdin.take().expect("piped");
        writeln!(input, "hold").expect("the victim reads");
        child.stdin = Some(input);
        let mut output = BufReader::new(child.stdout.as_mut().expect("piped")).lines();
        let holds = output.any(|line| line.is_ok_and(|line| line.ends_with("holding")));
        assert!(holds, "the victim {comm} ended before it was ready");
        let read = |name: &str| std::fs::read_to_string(format!("/proc/{pid}/{name}")).expect("it is alive");
        let cgroup = memory_path(&read("cgroup"));
        Self { pid, before: read("status"), cgroup, child }
    }

    /// A size in bytes from its status before.
    ///
    /// # Panics
    /// When the kernel does not tell it.
    #[must_use]
    pub fn bytes_before(&self, name: &str) -> u64 {
        let line = self.before.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).expect("in status");
        line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * 1024
    }

    /// Lets it take memory until it dies. It stays a zombie, as its parent has not asked for it.
    ///
    /// # Panics
    /// When it no longer listens.
    pub fn go_on(&mut self) {
        writeln!(self.child.stdin.as_mut().expect("piped"), "die").expect("the victim reads");
    }

    /// Waits for its end; true when that was SIGKILL.
    ///
    /// # Panics
    /// When it cannot be waited for.
    pub fn was_killed(&mut self) -> bool {
        use std::os::unix::process::ExitStatusExt;
        self.child.wait().expect("our child").signal() == Some(9)
    }
}

/// Has one process named `comm` killed in a cgroup of its own, and gives its pid.
///
/// # Panics
/// When the kernel does not kill it.
#[must_use]
pub fn kill_one(comm: &str) -> u32 {
    let cgroup = MemoryCgroup::new(&format!("sysops-kill-{}-{comm}", std::process::id()), 24 << 20);
    let mut victim = Victim::start(comm, 0, &cgroup);
    victim.go_on();
    assert!(victim.was_killed(), "{comm}");
    victim.pid
}

fn memory_path(text: &str) -> String {
    let path = |line: &str| line.splitn(3, ':').nth(2).map(str::to_owned);
    let v1 =
        text.lines().find(|line| line.split(':').nth(1).is_some_and(|names| names.split(',').any(|n| n == "memory")));
    v1.or_else(|| text.lines().find(|line| line.starts_with("0::"))).and_then(path).expect("a memory cgroup")
}

/// The victim's part, to be called by a test named `victim`. Does nothing unless it was started as one.
///
/// # Panics
/// When the machine does not let it rename itself.
pub fn be_victim() {
    let Ok(comm) = std::env::var(VICTIM) else { return };
    std::fs::write("/proc/self/comm", comm).expect("a process may rename itself");
    let mut lines = std::io::stdin().lines();
    let mut held: Vec<Vec<u8>> = Vec::new();
    let mut take = || {
        let mut block = vec![0_u8; 1 << 20];
        block.iter_mut().step_by(1024).for_each(|byte| *byte = 1);
        held.push(block);
    };
    lines.next();
    (0..8).for_each(|_| take());
    println!("holding");
    lines.next();
    loop {
        take();
    }
}
