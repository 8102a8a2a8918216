//! Which of the project's tests run in guests, by the names and the text of tests/tests/*.rs: those of the probes, and those
//! that say that only a guest can show them. Building and running them is left to `payload` and `init`.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, Result};

use crate::workspace;

/// Tests of more than one probe.
pub(crate) const OF_ALL: &str = "kernel_self_check";
/// Ends the reason of `#[ignore = "…"]` of a test that needs a guest, of one that takes long there, and of one that runs there when it is
/// asked for.
const ONLY_HERE: &str = "run by vm-test\"]";
const LONG: &str = "run by vm-test without --quick\"]";
const ASKED_FOR: &str = "run by vm-test --only\"]";
/// The test of a suite, asked for, that makes the programs which the others run, and says `program: PATH` of each.
pub(crate) const PROGRAMS: &str = "programs";
/// Programs that are not themselves without files beside them.
const NOT_ALONE: &[&str] = &["sh", "bash", "python3", "perl", "gcc", "cc"];

/// A test's executable that runs in the guests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Suite {
    /// `kernel_fd`.
    pub(crate) name: String,
    /// Names of tests that are ignored elsewhere.
    pub(crate) only_here: Vec<String>,
    /// Names of those of them that `--quick` leaves out.
    pub(crate) long: Vec<String>,
    /// Names of those that run when they are asked for.
    pub(crate) asked_for: Vec<String>,
    /// All others of it run too.
    pub(crate) whole: bool,
    /// Programs that its tests ask for.
    pub(crate) programs: Vec<String>,
}

/// The suites that belong into guests, and the programs that what they share asks for.
///
/// # Errors
/// When the sources cannot be read.
pub(crate) fn find(probes: &[(String, Vec<String>)], only: Option<&str>) -> Result<(Vec<Suite>, BTreeSet<String>)> {
    let tests = workspace::root().join("tests");
    let mut suites = Vec::new();
    let mut tools = BTreeSet::new();
    for (name, text) in sources(&tests.join("tests"))? {
        let (mut only_here, long, mut asked_for) =
            (marked(&text, ONLY_HERE), marked(&text, LONG), marked(&text, ASKED_FOR));
        only_here.extend_from_slice(&long);
        asked_for.retain(|test| only.is_some_and(|only| is_meant(only, &name, test)));
        let whole = name == OF_ALL || probe_of(&name, probes).is_some();
        if whole || !only_here.is_empty() || !asked_for.is_empty() {
            suites.push(Suite { name, only_here, long, asked_for, whole, programs: programs(&text) });
        }
    }
    for (_, text) in sources(&tests.join("src"))? {
        tools.extend(programs(&text));
    }
    Ok((suites, tools))
}

/// The probe that a suite is about: `kernel_<probe>`, or `kernel_<probe>_<more>`.
pub(crate) fn probe_of<'a>(suite: &str, probes: &'a [(String, Vec<String>)]) -> Option<&'a str> {
    let rest = suite.strip_prefix("kernel_")?;
    let begins = |probe: &&str| rest.strip_prefix(*probe).is_some_and(|more| more.is_empty() || more.starts_with('_'));
    probes.iter().map(|(probe, _)| probe.as_str()).filter(begins).max_by_key(|probe| probe.len())
}

/// True when one of the words in `only`, between commas, is in the suite and name of a test.
pub(crate) fn is_meant(only: &str, suite: &str, test: &str) -> bool {
    only.split(',').any(|words| format!("{suite} {test}").contains(words))
}

/// Name and text of each file, sorted.
fn sources(dir: &Path) -> Result<Vec<(String, String)>> {
    let mut sources = Vec::new();
    for entry in std::fs::read_dir(dir).with_context(|| dir.display().to_string())? {
        let file = entry?.path();
        if let (Some(stem), true) = (file.file_stem(), file.extension().is_some_and(|extension| extension == "rs")) {
            let text = std::fs::read_to_string(&file).with_context(|| file.display().to_string())?;
            sources.push((stem.to_string_lossy().into_owned(), text));
        }
    }
    sources.sort();
    Ok(sources)
}

/// Names of the tests whose mark ends so.
fn marked(text: &str, mark: &str) -> Vec<String> {
    let name = |rest: &str| {
        let (_, after) = rest.split_once("fn ")?;
        after.split_once('(').map(|(name, _)| name.to_owned())
    };
    text.match_indices(mark).filter_map(|(at, mark)| name(&text[at + mark.len()..])).collect()
}

/// Programs in `programs(&["…", "…"])`.
fn programs(text: &str) -> Vec<String> {
    let lists = text.match_indices("programs(&[").filter_map(|(at, call)| text[at + call.len()..].split_once(']'));
    lists
        .flat_map(|(list, _)| list.split('"').skip(1).step_by(2))
        .filter(|name| !NOT_ALONE.contains(name))
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_suites_name_tells_its_probe() {
        let probes = ["memory", "memory_leak", "fd"].map(|name| (name.to_owned(), Vec::new()));
        assert_eq!(probe_of("kernel_memory_leak", &probes), Some("memory_leak"));
        assert_eq!(probe_of("kernel_memory_leak_stacks", &probes), Some("memory_leak"));
        assert_eq!(probe_of("kernel_memory", &probes), Some("memory"));
        assert_eq!(probe_of("kernel_fdx", &probes), None);
        assert_eq!(probe_of("e2e_fd", &probes), None);
    }

    /// One that is named after none would be left out of the guests, and nobody would see.
    #[test]
    fn a_suite_of_the_kernel_is_named_after_a_probe_or_needs_no_guest() {
        const NEEDS_NONE: [&str; 2] = ["kernel_log", OF_ALL];
        let names = |dir: std::path::PathBuf| sources(&dir).unwrap().into_iter().map(|(name, _)| name);
        let probes: Vec<_> = names(workspace::ebpf().join("src")).map(|probe| (probe, Vec::new())).collect();
        let suites = names(workspace::root().join("tests/tests")).filter(|name| name.starts_with("kernel_"));
        let odd: Vec<_> =
            suites.filter(|name| probe_of(name, &probes).is_none() && !NEEDS_NONE.contains(&name.as_str())).collect();
        assert!(odd.is_empty(), "{odd:?}");
    }

    #[test]
    fn what_only_a_guest_shows_is_marked() {
        let text = "#[test]\n#[ignore = \"needs cgroup v2; run by vm-test\"]\nfn one() {}\n#[test]\n#[ignore = \"slow\"]\nfn two() {}\n";
        assert_eq!(marked(text, ONLY_HERE), ["one"]);
        assert!(marked(text, ASKED_FOR).is_empty());
    }

    #[test]
    fn words_are_looked_for_in_suite_and_name() {
        assert!(
            is_meant("kernel_fd desc", "kernel_fd", "descriptors") && is_meant("x,tors", "kernel_fd", "descriptors")
        );
        assert!(!is_meant("x,y", "kernel_fd", "descriptors"));
    }

    #[test]
    fn programs_are_those_that_tests_ask_for() {
        let text = "require::programs(&[\"sh\", \"dd\"]).or_else(|| programs(&[\"losetup\"]))";
        assert_eq!(programs(text), ["dd", "losetup"]);
        assert!(programs("programs(names)").is_empty());
    }
}
