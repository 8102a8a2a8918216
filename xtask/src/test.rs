//! `cargo xtask test`: gets what the tests need, builds the objects, runs every test of the workspace.

use std::ffi::OsString;
use std::path::PathBuf;

use anyhow::Result;

use crate::{after_dashes, apt, build_ebpf, program, setup, workspace};

/// Programs that tests call, with the package that has each.
const TOOLS: &[(&str, &str)] = &[
    ("mkfs.ext4", "e2fsprogs"),
    ("losetup", "mount"),
    ("unshare", "util-linux"),
    ("setpriv", "util-linux"),
    ("ip", "iproute2"),
    ("strace", "strace"),
    ("python3", "python3"),
    ("fio", "fio"),
    ("cc", "gcc"),
    ("openssl", "openssl"),
    ("dmsetup", "dmsetup"),
    ("numactl", "numactl"),
];

/// Servers that tests start by hand. Their packages are unpacked and not installed: a package starts its service.
const SERVERS: &[(&str, &str)] = &[
    ("nats-server", "nats-server"),
    ("promtool", "prometheus"),
    ("prometheus", "prometheus"),
    ("prometheus-node-exporter", "prometheus-node-exporter"),
    ("postfix", "postfix"),
    ("saslpasswd2", "sasl2-bin"),
    ("rsyslogd", "rsyslog"),
    ("earlyoom", "earlyoom"),
    ("systemd-oomd", "systemd-oomd"),
];

/// Libraries and plug-ins of these servers, below `usr/lib`; what stands before `-linux-gnu` is the machine's.
const LIBRARIES: &[(&str, &str)] = &[
    ("libsasl2.so.2", "libsasl2-2"),
    ("sasl2/libplain.so", "libsasl2-modules"),
    ("sasl2/libsasldb.so", "libsasl2-modules-db"),
    ("libestr.so.0", "libestr0"),
    ("libfastjson.so.4", "libfastjson4"),
];

/// The command.
pub(crate) fn main(args: &[String]) -> Result<()> {
    build_ebpf::objects(setup::ensure())?;
    program::step("agent and tests: build", build)?;
    program::step("tests", || run(after_dashes(args)))
}

/// Gets what the tests need and builds them; the objects are built already. What could not be installed is said, and the tests that
/// need it say what they miss.
///
/// # Errors
/// When something does not build.
pub(crate) fn build() -> Result<()> {
    get_tools();
    // Some tests run the agent as an operator does; cargo builds a binary for the tests of its own package only. It is built
    // with the tests: alone it and what it depends on would have other features, and all of it be built twice.
    program::show(workspace::cargo().args(["build", "--locked", "--workspace", "--tests", "--bin", "sysops-agent"]))
}

/// Runs every test that was built.
///
/// # Errors
/// When one fails.
pub(crate) fn run(args: &[String]) -> Result<()> {
    if has_nextest() {
        let nextest = ["nextest", "run", "--locked", "--workspace"];
        return program::show(workspace::cargo().args(nextest).args(args).env("PATH", path()));
    }
    program::say("cargo-nextest is not installed: the same tests by cargo test, one after another");
    let test = ["test", "--locked", "--workspace", "--"];
    program::show(workspace::cargo().args(test).args(args).arg("--test-threads=1").env("PATH", path()))
}

/// True when cargo knows nextest.
pub(crate) fn has_nextest() -> bool {
    program::succeeds(workspace::cargo().args(["nextest", "--version"]))
}

/// Gets servers and tools that are missing; what cannot be had is said with its reason.
pub(crate) fn get_tools() {
    for (name, package) in SERVERS {
        if server(name).is_none() {
            program::say(format!("{name}: unpacking package {package} to target/tools"));
            if let Err(error) = apt::unpack(package, &tools()) {
                program::say(format!("{name}: cannot be had: {error:#}"));
            }
        }
    }
    for (file, package) in LIBRARIES {
        let file = format!("usr/lib/{}-linux-gnu/{file}", std::env::consts::ARCH);
        if !tools().join(&file).exists() && !PathBuf::from("/").join(&file).exists() {
            program::say(format!("{file}: unpacking package {package} to target/tools"));
            if let Err(error) = apt::unpack(package, &tools()) {
                program::say(format!("{file}: cannot be had: {error:#}"));
            }
        }
    }
    let mut packages: Vec<&str> =
        TOOLS.iter().filter(|(name, _)| program::find(name).is_none()).map(|(_, package)| *package).collect();
    packages.dedup();
    if let Err(error) = apt::ensure(&packages) {
        program::say(format!("tests that need {} will say so: {error:#}", packages.join(", ")));
    }
}

/// Where a server is: on the machine or unpacked.
pub(crate) fn server(name: &str) -> Option<PathBuf> {
    let unpacked = tool_dirs().into_iter().map(|dir| dir.join(name)).find(|file| file.is_file());
    program::find(name).or(unpacked)
}

fn tools() -> PathBuf {
    workspace::root().join("target/tools")
}

fn tool_dirs() -> [PathBuf; 4] {
    ["usr/bin", "usr/sbin", "lib/systemd", "usr/lib/systemd"].map(|dir| tools().join(dir))
}

/// PATH as the tests get it: with the unpacked servers, and with root's folders, which a user's PATH lacks.
pub(crate) fn path() -> OsString {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let more = tool_dirs().into_iter().chain(["/usr/sbin".into(), "/sbin".into()]);
    std::env::join_paths(std::env::split_paths(&path).chain(more)).unwrap_or(path)
}
