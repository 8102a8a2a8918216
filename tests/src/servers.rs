//! Real servers for tests: each on a free loopback port with a folder of its own, ended by its process id on drop.
//! What is said to them is the tests' business.

#![expect(clippy::disallowed_methods, reason = "tests start servers and read the environment; the agent does not")]

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// How long a server may take to be there.
const START: Duration = Duration::from_secs(20);

/// The program `name`, or `None` with a printed reason, upon which the test ends.
///
/// # Panics
/// Where `CI` is set: there a skipped test is a failure.
#[must_use]
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var("PATH").unwrap_or_default();
    // Debian keeps servers where an ordinary user's PATH does not lead.
    let folders = std::env::split_paths(&path).chain(["/usr/sbin", "/usr/local/sbin"].map(PathBuf::from));
    let found = folders.map(|folder| folder.join(name)).find(|program| program.is_file());
    if found.is_none() {
        let reason = format!("skipped: {name} is not installed");
        assert!(std::env::var("CI").is_err(), "{reason}");
        eprintln!("{reason}");
    }
    found
}

/// A loopback port that is free now.
///
/// # Panics
/// When the machine has none.
#[must_use]
pub fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("it is bound").port()
}

/// A folder that is gone when it is dropped.
#[derive(Debug)]
pub struct Scratch(PathBuf);

impl Scratch {
    /// A new, empty folder.
    ///
    /// # Panics
    /// When it cannot be made.
    #[must_use]
    pub fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("sysops-tests-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).expect("a folder for the test");
        Self(path)
    }

    /// Its path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Writes a file into it and gives its path.
    ///
    /// # Panics
    /// When it cannot be written.
    #[must_use]
    pub fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.join(name);
        std::fs::write(&path, text).expect("the folder is there");
        path
    }
}

impl Default for Scratch {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A running server.
#[derive(Debug)]
pub struct Server {
    child: Child,
    /// Where it listens.
    pub port: u16,
    _scratch: Scratch,
}

impl Server {
    /// Runs `program` with `arguments` and waits until it listens on `port`.
    ///
    /// # Panics
    /// When it ends at once or does not listen in time; its output is shown.
    #[must_use]
    pub fn start(program: &Path, arguments: &[String], port: u16, scratch: Scratch) -> Self {
        let log = std::fs::File::create(scratch.path().join("server.log")).expect("the folder is there");
        let child = Command::new(program)
            .args(arguments)
            .current_dir(scratch.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a second handle"))
            .stderr(log)
            .spawn()
            .expect("the program was found");
        let mut server = Self { child, port, _scratch: scratch };
        let deadline = Instant::now() + START;
        while TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], port))).is_err() {
            let ended = server.child.try_wait().expect("it is our child");
            assert!(ended.is_none() && Instant::now() < deadline, "{}: {ended:?}\n{}", program.display(), server.log());
            std::thread::sleep(Duration::from_millis(10));
        }
        server
    }

    /// What it has printed.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read_to_string(self._scratch.path().join("server.log")).unwrap_or_default()
    }

    /// Ends it as a crash would, and waits until it is gone.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Stops it in its tracks, its connections open, and waits until none of its threads runs any more.
    ///
    /// # Panics
    /// When one goes on for 20 s.
    pub fn freeze(&self) {
        self.signal(Signal::STOP);
        let deadline = Instant::now() + START;
        while !self.stands_still() {
            assert!(Instant::now() < deadline, "it does not stop");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn stands_still(&self) -> bool {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.child.id())).into_iter().flatten().flatten();
        let state = |path: PathBuf| {
            let stat = std::fs::read_to_string(path.join("stat")).unwrap_or_default();
            // The name before it may hold anything.
            stat.rsplit_once(") ").map(|(_, rest)| rest.starts_with('T'))
        };
        tasks.filter_map(|task| state(task.path())).all(|stopped| stopped)
    }

    /// Lets it go on.
    pub fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).expect("a child's process id");
        kill_process(pid, signal).expect("it is our child");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A nats-server on `port` with more configuration, or `None` where it is not installed.
#[must_use]
pub fn nats(port: u16, configuration: &str) -> Option<Server> {
    let program = find_program("nats-server")?;
    let scratch = Scratch::new();
    let configuration = scratch.file("nats.conf", &format!("listen: \"127.0.0.1:{port}\"\n{configuration}\n"));
    let arguments = ["-c".to_owned(), configuration.display().to_string()];
    Some(Server::start(&program, &arguments, port, scratch))
}
