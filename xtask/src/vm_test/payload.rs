//! What a guest gets: the agent, the tests and the programs that they call, each with its loader and libraries, a busybox,
//! the kernel's modules, and the init that `init` writes.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::Choice;
use super::init;
use super::initramfs::Archive;
use super::kernels::{self, Kernel};
use super::suites::{self, Suite};
use crate::{build, build_ebpf, program, setup, test, workspace};

/// Where the tests look for the agent: above the folder that they stand in.
pub(crate) const AGENT: &str = "/t/sysops-agent";
const TESTS: &str = "/t/deps";

/// Programs that tests call and that are not left to busybox: it lacks them, or an option that is needed.
const TOOLS: &[&str] =
    &["blkdiscard", "dd", "fsfreeze", "losetup", "mkfs.ext4", "mount", "setpriv", "truncate", "umount", "unshare"];

/// Every feature here is known to all kernels that are booted, whatever the machine's own mkfs would choose.
const MKE2FS: &str = "[defaults]\nbase_features = sparse_super,filetype,resize_inode,dir_index,ext_attr\nblocksize = 4096\n\
                      [fs_types]\next4 = {\nfeatures = has_journal,extent,huge_file,flex_bg,dir_nlink,extra_isize\n}\n";

/// What is the same in every guest.
pub(crate) struct Payload {
    files: Vec<(String, Vec<u8>)>,
    /// Suite and name of each test.
    pub(crate) tests: Vec<(String, String)>,
    /// Each probe with the rungs that can be forced.
    pub(crate) probes: Vec<(String, Vec<String>)>,
    /// Rungs are forced and conditions made, too.
    pub(crate) is_whole: bool,
}

impl Payload {
    /// Builds what is to be tested and collects what it needs.
    ///
    /// # Errors
    /// When something does not build or cannot be fetched. A tool that this machine lacks is no error: the tests say so.
    pub(crate) fn build(dev: bool, choice: Choice<'_>) -> Result<Self> {
        // Names and rungs of the probes are the agent's own words, so it is there first.
        let agent = agent(dev)?;
        let probes = probes(&agent)?;
        let (suites, mut asked) = suites::find(&probes, choice.only)?;
        let tests = program::step("tests for the guests", || built(&suites))?;
        let is_whole = choice.only.is_none();
        let mut payload = Self { files: Vec::new(), tests: Vec::new(), probes, is_whole };
        let mut wanted: Vec<(PathBuf, String)> = vec![(agent, AGENT.to_owned())];
        for (suite, file) in tests {
            if !suite.asked_for.is_empty() {
                payload.files.extend(made_by(&file)?);
            }
            let names = names(&suite, &file, choice)?;
            if names.is_empty() && suite.asked_for.is_empty() {
                continue;
            }
            payload.tests.extend(names.into_iter().map(|name| (suite.name.clone(), name)));
            asked.extend(suite.programs);
            wanted.push((file, format!("{TESTS}/{}", suite.name)));
        }
        if let Some(words) = choice.only.filter(|_| payload.tests.is_empty()) {
            bail!("no test has {words:?} in its suite and name");
        }
        test::get_tools();
        for tool in TOOLS.iter().copied().chain(asked.iter().map(String::as_str)).collect::<BTreeSet<_>>() {
            let found = test::server(tool).context("not on this machine");
            match found.and_then(|file| libraries(&file).map(|_| file)) {
                Ok(file) => wanted.push((file, format!("/usr/bin/{tool}"))),
                Err(error) => program::say(format!("{tool}: {error:#}; tests that need it will not run")),
            }
        }
        let wanted: Vec<(&Path, &str)> = wanted.iter().map(|(file, path)| (file.as_path(), path.as_str())).collect();
        payload.files.extend(alone(&wanted)?);
        let busybox = kernels::busybox()?;
        payload.files.push(("/bin/busybox".to_owned(), std::fs::read(&busybox)?));
        payload.files.push(("/etc/mke2fs.conf".to_owned(), MKE2FS.as_bytes().to_vec()));
        payload
            .files
            .push(("/etc/passwd".to_owned(), b"root:x:0:0::/:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n".to_vec()));
        payload.files.extend(schemas()?);
        for (path, text) in init::configurations(&payload.probes) {
            payload.files.push((path, text.into_bytes()));
        }
        Ok(payload)
    }

    /// The first file system of a guest with `kernel`, that runs every test.
    ///
    /// # Errors
    /// When a module cannot be read.
    pub(crate) fn initramfs(&self, kernel: &Kernel) -> Result<Vec<u8>> {
        let has_setpriv = self.files.iter().any(|(path, _)| path == "/usr/bin/setpriv");
        archive(&self.files, kernel, &init::script(self, TESTS, has_setpriv))
    }
}

/// The schemas that tests hold documents against, where they look for them: in the repository.
fn schemas() -> Result<Vec<(String, Vec<u8>)>> {
    let dir = workspace::root().join("docs/schemas");
    let files = std::fs::read_dir(&dir).with_context(|| dir.display().to_string())?;
    files
        .map(|file| {
            let path = file?.path();
            Ok((path.display().to_string(), std::fs::read(&path)?))
        })
        .collect()
}

/// Programs, each at its path in the guest, with their loader and libraries.
///
/// # Errors
/// When one cannot be read, or lacks a library.
pub(crate) fn alone(wanted: &[(&Path, &str)]) -> Result<Vec<(String, Vec<u8>)>> {
    let (mut files, mut libraries) = (Vec::new(), BTreeSet::new());
    for (file, path) in wanted {
        libraries.extend(self::libraries(file)?);
        files.push(((*path).to_owned(), stripped(file)?));
    }
    for library in libraries {
        let bytes = std::fs::read(&library).with_context(|| library.clone())?;
        files.push((library, bytes));
    }
    Ok(files)
}

/// A first file system with `files`, the kernel's modules, and `init`.
///
/// # Errors
/// When a module cannot be read.
pub(crate) fn archive(files: &[(String, Vec<u8>)], kernel: &Kernel, init: &str) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    for folder in ["proc", "sys", "dev", "tmp", "run", "etc", "modules", "bin"] {
        archive.folder(folder);
    }
    for (path, bytes) in files {
        archive.file(path, bytes);
    }
    for module in &kernel.modules {
        let name = module.file_name().context("a module has a name")?.to_string_lossy().into_owned();
        archive.file(&format!("/modules/{name}"), &std::fs::read(module)?);
    }
    archive.file("/init", init.as_bytes());
    if !archive.has("/bin/sh") {
        archive.link("/bin/sh", "busybox");
    }
    Ok(archive.finish())
}

/// The agent, built.
///
/// # Errors
/// When it does not build.
pub(crate) fn agent(dev: bool) -> Result<PathBuf> {
    if !dev {
        build::release()?;
        return Ok(workspace::agent());
    }
    build_ebpf::objects(setup::ensure())?;
    program::step("dev agent", || program::show(cargo().args(["--bin", "sysops-agent", "--test", suites::OF_ALL])))?;
    Ok(workspace::target().join("debug/sysops-agent"))
}

/// Agent and tests are asked for in the same words as by `cargo xtask test`, or else cargo would choose other features of what they
/// depend on, and build everything twice.
fn cargo() -> Command {
    let mut cargo = workspace::cargo();
    cargo.args(["build", "--locked", "--workspace"]);
    cargo
}

/// Builds the suites; gives the executable of each.
fn built(suites: &[Suite]) -> Result<Vec<(Suite, PathBuf)>> {
    let mut cargo = cargo();
    cargo.arg("--message-format=json-render-diagnostics");
    for suite in suites {
        cargo.args(["--test", &suite.name]);
    }
    let output = cargo.stdin(Stdio::null()).stderr(Stdio::inherit()).output().context("cargo cannot be started")?;
    if !output.status.success() {
        bail!("cargo build of the tests: {}", output.status);
    }
    let found = executables(&String::from_utf8_lossy(&output.stdout));
    let executable = |suite: &Suite| {
        let file = found.iter().find(|(name, _)| *name == suite.name).map(|(_, file)| file.clone());
        file.map(|file| (suite.clone(), file)).with_context(|| format!("cargo named no executable of {}", suite.name))
    };
    suites.iter().map(executable).collect()
}

/// The programs that a suite makes for its tests, each where it was made and as it was made: their names are asked for.
fn made_by(suite: &Path) -> Result<Vec<(String, Vec<u8>)>> {
    let make = ["--include-ignored", "--exact", suites::PROGRAMS, "--nocapture"];
    let said = program::capture(Command::new(suite).args(make))?;
    let paths: Vec<PathBuf> =
        said.lines().filter_map(|line| line.strip_prefix("program: ")).map(PathBuf::from).collect();
    let mut files = Vec::new();
    for path in &paths {
        for library in libraries(path)? {
            files.push((library.clone(), std::fs::read(&library).with_context(|| library.clone())?));
        }
        files.push((path.display().to_string(), std::fs::read(path).with_context(|| path.display().to_string())?));
    }
    Ok(files)
}

/// Names and executables of the tests in cargo's messages.
fn executables(messages: &str) -> Vec<(String, PathBuf)> {
    messages
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|message| message["reason"] == "compiler-artifact" && message["profile"]["test"] == true)
        .filter_map(|message| {
            Some((message["target"]["name"].as_str()?.to_owned(), PathBuf::from(message["executable"].as_str()?)))
        })
        .collect()
}

/// Names of the tests of a suite, without those that others start, and without those that are ignored for another reason
/// than that they need a guest. What is quick is those of rungs, and those of a probe that nothing but a guest can show and that do not take long: that
/// all of them hold through a suspend, or without a CPU, is left out.
fn names(suite: &Suite, executable: &Path, choice: Choice<'_>) -> Result<Vec<String>> {
    let list = |more: &[&str]| -> Result<Vec<String>> {
        let list = program::capture(Command::new(executable).args(["--list", "--format=terse"]).args(more))?;
        Ok(list.lines().filter_map(|line| line.strip_suffix(": test")).map(str::to_owned).collect())
    };
    let ignored = list(&["--ignored"])?;
    let mut names = list(&[])?;
    names.retain(|name| {
        let is_quick = suite.whole && !suite.long.contains(name);
        let here = suite.only_here.contains(name) && (is_quick || !choice.quick);
        let usual = suite.whole && !ignored.contains(name) && !["child", "victim"].contains(&name.as_str());
        let chosen = choice.only.is_none_or(|only| suites::is_meant(only, &suite.name, name));
        let asked_for = suite.asked_for.contains(name) && name != suites::PROGRAMS;
        asked_for || chosen && (here || usual && (!choice.quick || name.contains("_on_")))
    });
    Ok(names)
}

/// Probes and rungs as the agent's own schema of its configuration lists them.
///
/// # Errors
/// When the agent does not print it.
pub(crate) fn probes(agent: &Path) -> Result<Vec<(String, Vec<String>)>> {
    let text = program::capture(Command::new(agent).args(["config", "schema"]))?;
    let schema: Value = serde_json::from_str(&text).context("config schema: not JSON")?;
    let probes = schema["properties"]["kernel"]["properties"].as_object().context("config schema: no table kernel")?;
    let words = |probe: &Value| -> Option<Vec<String>> {
        let words = probe["properties"]["rung"]["anyOf"].as_array()?.iter().find_map(|one| one["enum"].as_array())?;
        let words = words.iter().filter_map(Value::as_str).filter(|word| !["auto", "off"].contains(word));
        Some(words.map(str::to_owned).collect())
    };
    Ok(probes.iter().filter_map(|(name, probe)| Some((name.clone(), words(probe)?))).collect())
}

/// Loader and libraries of a program, by the paths at which they are looked for. None of a static one.
fn libraries(file: &Path) -> Result<Vec<String>> {
    let output = Command::new("ldd").arg(file).env("LC_ALL", "C").output().context("ldd cannot be started")?;
    let text = String::from_utf8_lossy(&output.stdout);
    if let Some(missing) = text.lines().find(|line| line.contains("not found")) {
        bail!("{}: {}", file.display(), missing.trim());
    }
    Ok(paths(&text))
}

/// Paths in the output of ldd: `name => /path (address)` and `/path (address)`.
pub(crate) fn paths(ldd: &str) -> Vec<String> {
    let words = ldd.lines().filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')));
    words.map(str::to_owned).collect()
}

/// A program without its symbols, which would not fit into a small guest; with them, where there is no strip.
fn stripped(file: &Path) -> Result<Vec<u8>> {
    let smaller = kernels::home().join("stripped");
    let strip =
        Command::new("strip").arg("--strip-debug").arg("-o").arg(&smaller).arg(file).stderr(Stdio::null()).status();
    let bytes = if strip.is_ok_and(|status| status.success()) {
        let bytes = std::fs::read(&smaller);
        std::fs::remove_file(&smaller).with_context(|| smaller.display().to_string())?;
        bytes
    } else {
        std::fs::read(file)
    };
    bytes.with_context(|| file.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loader_and_libraries_are_taken_from_ldd() {
        let ldd = "\tlinux-vdso.so.1 (0x00007ffd)\n\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)\n\
                   \t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        assert_eq!(paths(ldd), ["/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"]);
        assert!(paths("\tstatically linked\n").is_empty());
    }

    #[test]
    fn tests_are_taken_from_cargos_messages() {
        let messages = concat!(
            "{\"reason\":\"compiler-artifact\",\"target\":{\"name\":\"sysops-tests\"},\"profile\":{\"test\":false},\"executable\":null}\n",
            "{\"reason\":\"compiler-artifact\",\"target\":{\"name\":\"sysops-agent\"},\"profile\":{\"test\":false},\"executable\":\"/t/a\"}\n",
            "{\"reason\":\"compiler-artifact\",\"target\":{\"name\":\"kernel_fd\"},\"profile\":{\"test\":true},\"executable\":\"/t/fd-1\"}\n",
            "not json\n",
        );
        assert_eq!(executables(messages), [("kernel_fd".to_owned(), PathBuf::from("/t/fd-1"))]);
    }
}
