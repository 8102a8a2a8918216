//! What a program of the corpus is to do, chosen by its seed: language and how it was compiled, what leaks, who calls that,
//! in how many threads, and amid how much that is given back.

/// How a program is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Build {
    /// What it is written in.
    pub language: Language,
    /// A word for people: `O2-no-frame-pointers`.
    pub name: &'static str,
    /// What the compiler is told.
    pub flags: &'static [&'static str],
}

/// What a program is written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Language {
    /// C, through libc.
    C,
    /// C whose system calls are its own instructions and whose work runs on stacks that it made, as Go's does.
    Raw,
    /// Rust.
    Rust,
    /// Python: a stack leads through the interpreter.
    Python,
}

const C: &[Build] = &[
    build(Language::C, "c-O0", &["-O0"]),
    build(Language::C, "c-O2-frame-pointers", &["-O2", "-fno-omit-frame-pointer"]),
    build(Language::C, "c-O2-no-frame-pointers", &["-O2", "-fomit-frame-pointer"]),
    build(Language::C, "c-O2-static", &["-O2", "-static", "-fomit-frame-pointer"]),
];
const RAW: &[Build] = &[
    build(Language::Raw, "raw-frame-pointers", &["-O2", "-DRAW", "-DSTACK", "-static", "-fno-omit-frame-pointer"]),
    build(Language::Raw, "raw-no-frame-pointers", &["-O2", "-DRAW", "-fomit-frame-pointer"]),
];
const RUST: &[Build] = &[
    build(Language::Rust, "rust-O0", &["-Copt-level=0"]),
    build(Language::Rust, "rust-O3", &["-Copt-level=3"]),
    build(Language::Rust, "rust-O3-frame-pointers", &["-Copt-level=3", "-Cforce-frame-pointers=yes"]),
    build(Language::Rust, "rust-O3-static", &["-Copt-level=3", "-Ctarget-feature=+crt-static"]),
];
const PYTHON: &[Build] = &[build(Language::Python, "python", &[])];

/// Those that are compiled: they run where there is no compiler and no interpreter.
pub fn compiled() -> impl Iterator<Item = &'static Build> {
    [C, RAW, RUST].into_iter().flatten()
}

const fn build(language: Language, name: &'static str, flags: &'static [&'static str]) -> Build {
    Build { language, name, flags }
}

/// What can leak in each language: the kind as the program takes it, what the agent should call it, and how many descriptors
/// one leak has.
type Kind = (&'static str, &'static str, u32);

const IN_C: &[Kind] = &[
    ("file", "file", 1),
    ("dup", "device", 1),
    ("dup2", "device", 1),
    ("dup3", "device", 1),
    ("fcntl", "device", 1),
    ("socket", "socket", 1),
    ("socketpair", "socket", 2),
    ("pipe", "pipe", 2),
    ("eventfd", "eventfd", 1),
    ("epoll", "epoll", 1),
    ("memfd", "memfd", 1),
    ("timerfd", "timerfd", 1),
    ("signalfd", "signalfd", 1),
    ("pidfd", "pidfd", 1),
    ("accept", "socket", 1),
    ("receive", "device", 1),
];
const IN_RUST: &[Kind] = &[
    ("file", "file", 1),
    ("fcntl", "device", 1),
    ("socket", "socket", 1),
    ("udp", "socket", 1),
    ("socketpair", "socket", 2),
    ("pipe", "pipe", 2),
    ("accept", "socket", 1),
    ("tcp", "socket", 1),
];
const IN_PYTHON: &[Kind] = &[
    ("file", "file", 1),
    ("dup", "device", 1),
    ("socket", "socket", 1),
    ("socketpair", "socket", 2),
    ("pipe", "pipe", 2),
    ("memfd", "memfd", 1),
    ("eventfd", "eventfd", 1),
    ("receive", "device", 1),
];

const CALLERS: [&str; 4] = ["caller_alpha", "caller_beta", "caller_gamma", "caller_delta"];

/// A program, and what is true of it.
#[derive(Clone, Debug)]
pub struct Spec {
    /// What it was made from.
    pub seed: u64,
    /// How it is made.
    pub build: Build,
    /// What leaks, or how it is clean: `clean-churn`, `clean-pool`, `clean-saw`.
    pub kind: &'static str,
    /// What the agent should call that; empty for a clean one.
    pub descriptor: &'static str,
    /// Number of the caller.
    pub caller: usize,
    /// Leaks of each thread.
    pub count: u32,
    /// Threads that do the same.
    pub threads: u32,
    /// What is taken and given back between two leaks.
    pub churn: u32,
}

/// Descriptors that each leaking program leaks, about: so many that the handful which it had before it was followed is less
/// than one in a hundred.
const LEAKED: u32 = 900;

impl Spec {
    /// The function that leaks, as its symbol contains it. In Python the interpreter's functions are what there is.
    #[must_use]
    pub fn function(&self) -> Option<String> {
        (self.build.language != Language::Python).then(|| format!("leak_{}", self.kind))
    }

    /// Who calls it.
    #[must_use]
    pub fn caller(&self) -> &'static str {
        CALLERS[self.caller]
    }

    /// The program's arguments.
    #[must_use]
    pub fn arguments(&self) -> [String; 5] {
        let numbers =
            [self.caller.to_string(), self.count.to_string(), self.threads.to_string(), self.churn.to_string()];
        let [caller, count, threads, churn] = numbers;
        [self.kind.to_owned(), caller, count, threads, churn]
    }
}

/// The leaking program of a seed. Of a hundred in a row, 45 are C, 25 Rust, 15 raw, 15 Python.
#[must_use]
pub fn leaking(seed: u64) -> Spec {
    let mut dice = Dice(seed);
    let (builds, kinds) = language(seed);
    let (kind, descriptor, each) = *dice.pick(kinds);
    let threads = *dice.pick(&[1, 1, 2, 3, 4]);
    Spec {
        seed,
        build: *dice.pick(builds),
        kind,
        descriptor,
        caller: dice.below(4) as usize,
        count: LEAKED / each / threads,
        threads,
        churn: dice.below(4) as u32,
    }
}

/// The clean program of a seed.
#[must_use]
pub fn clean(seed: u64) -> Spec {
    let mut dice = Dice(seed ^ 0x00c1_ea00);
    let (builds, _) = language(seed);
    Spec {
        seed,
        build: *dice.pick(builds),
        kind: dice.pick::<&str>(&["clean-churn", "clean-pool", "clean-saw"]),
        descriptor: "",
        caller: 0,
        count: 1,
        threads: *dice.pick(&[1, 2, 3]),
        churn: 0,
    }
}

fn language(seed: u64) -> (&'static [Build], &'static [Kind]) {
    match seed % 20 {
        0..9 => (C, IN_C),
        9..14 => (RUST, IN_RUST),
        14..17 => (RAW, IN_C),
        _ => (PYTHON, IN_PYTHON),
    }
}

/// The same throws for the same seed (SplitMix64).
struct Dice(u64);

impl Dice {
    fn throw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, most: u64) -> u64 {
        self.throw() % most
    }

    fn pick<'a, T>(&mut self, among: &'a [T]) -> &'a T {
        &among[self.below(among.len() as u64) as usize]
    }
}
