//! `cargo xtask ci`: format and lints on both sides of the kernel boundary, the feature sets, generated documents, tests, and
//! the kernel tests in guests with the oldest and the newest kernel. `cargo xtask lints` is the part of it that checks without
//! building: it runs beside the builds, as most of either is one crate, which takes one processor.

use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::toolchain::{self, Route};
use crate::{apt, build_ebpf, docs, no_args, program, setup, test, vm_test, workspace};

/// `tls-native` links OpenSSL.
const OPENSSL: &[&str] = &["libssl-dev", "pkg-config"];

/// The command.
pub(crate) fn main(args: &[String]) -> Result<()> {
    no_args("ci", args)?;
    let mut times = Vec::new();
    let mut step = |name: &str, work: &mut dyn FnMut() -> Result<()>| {
        let start = Instant::now();
        program::step(name, work)?;
        times.push(format!("   {name:<24} {:>9}", program::seconds(start)));
        anyhow::Ok(())
    };
    step("format", &mut format)?;
    // Objects come first: the agent's build script embeds them, and a later change would build it twice.
    let route = setup::ensure();
    step("kernel side: build", &mut || build_ebpf::objects(route).map(|_| ()))?;
    step("kernel side: lints", &mut || route.map_or_else(without_toolchain, kernel_lints))?;
    // Two at once would wait for each other's lock.
    let _ = apt::ensure(OPENSSL);
    let mut lints = Beside::start()?;
    step("generated documents", &mut docs::check)?;
    step("tests without features", &mut tests_without_features)?;
    step("agent and tests: build", &mut test::build)?;
    step("lints, feature sets", &mut || lints.end())?;
    step("tests", &mut || test::run(&[]))?;
    step("guests", &mut vm_test::usual)?;
    program::say("ci: all passed");
    eprintln!("{}", times.join("\n"));
    Ok(())
}

/// `cargo xtask lints`.
pub(crate) fn lints(args: &[String]) -> Result<()> {
    no_args("lints", args)?;
    program::step("lints", || clippy(&["--workspace", "--all-targets"]))?;
    program::step("feature sets", feature_sets)
}

/// The lints, in a target folder of their own and with their output in a file.
struct Beside(Child);

impl Beside {
    fn start() -> Result<Self> {
        let log = File::create(Self::log()).with_context(|| Self::log().display().to_string())?;
        let mut lints = Command::new(std::env::current_exe()?);
        lints.arg("lints").env("CARGO_TARGET_DIR", workspace::target().join("lints"));
        let started = lints.stdout(log.try_clone()?).stderr(log).spawn();
        started.map(Self).context("cargo xtask lints: cannot be started")
    }

    fn log() -> PathBuf {
        workspace::target().join("lints.log")
    }

    /// Waits for their end and shows what they said.
    fn end(&mut self) -> Result<()> {
        let status = self.0.wait()?;
        eprint!("{}", std::fs::read_to_string(Self::log())?);
        if !status.success() {
            bail!("cargo xtask lints: {status}");
        }
        Ok(())
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        // It has ended, unless something else failed before.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn format() -> Result<()> {
    program::show(workspace::cargo().args(["fmt", "--all", "--check"]))?;
    let manifest = workspace::ebpf().join("Cargo.toml");
    program::show(workspace::cargo().args(["fmt", "--check", "--manifest-path"]).arg(manifest))
}

fn clippy(selection: &[&str]) -> Result<()> {
    program::show(workspace::cargo().args(["clippy", "--locked"]).args(selection).args(["--", "-D", "warnings"]))
}

fn without_toolchain() -> Result<()> {
    program::say("no BPF toolchain on this machine, so the kernel side was neither built nor linted");
    Ok(())
}

/// Clippy for the BPF target itself: a host target would take other branches of the code and lacks `core`'s BPF parts.
fn kernel_lints(route: Route) -> Result<()> {
    if route == Route::Debian {
        apt::ensure(&["rust-web-clippy"]).context("clippy for Debian's compiler")?;
    }
    program::show(toolchain::cargo(route, "clippy").args(["--locked", "--", "-D", "warnings"]))
}

/// None, each alone, and all: a feature that leans on another without saying so does not pass. Each alone only has to compile
/// without a warning: there is no code that clippy does not see with all of them.
fn feature_sets() -> Result<()> {
    clippy(&["--package", "sysops-agent", "--no-default-features", "--all-targets"])?;
    let openssl = apt::ensure(OPENSSL);
    for feature in workspace::features("sysops-agent")? {
        let mut alone = workspace::cargo();
        alone.args(["rustc", "--locked", "--package", "sysops-agent", "--lib", "--profile", "check"]);
        program::show(alone.args(["--no-default-features", "--features", &feature, "--", "-D", "warnings"]))?;
    }
    openssl.context("tls-native was not checked")?;
    clippy(&["--package", "sysops-agent", "--all-features"])
}

fn tests_without_features() -> Result<()> {
    let selection = ["--locked", "--package", "sysops-agent", "--no-default-features"];
    let verb: &[&str] = if test::has_nextest() { &["nextest", "run"] } else { &["test"] };
    program::show(workspace::cargo().args(verb).args(selection).env("PATH", test::path()))
}
