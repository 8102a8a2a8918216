//! Holds the rules of style that a machine can check: headers, sizes, words, lists. Each message says what to do instead.

#![expect(clippy::disallowed_methods, reason = "the repository's own files are read")]

use sysops_tests::source::{Source, files, listed, root, rust};

const LINES_MAX: usize = 600;
const FUNCTION_LINES_MAX: usize = 100;
const CODE: &[&str] = &["sysops-agent", "sysops-btf", "sysops-common", "sysops-ebpf", "xtask", "tests"];
const TEXT: &[&str] = &[".rs", ".toml", ".md", ".sh", ".service", ".conf", ".yml", ".yaml", ".json", "run"];

/// Lists whose members are one file and one line: the folder with the list in `mod.rs`.
const LISTS: &[&str] = &["collect", "kernel", "analyze", "deliver/channel", "deliver/export"];

#[test]
fn every_file_is_tidy() {
    let sources: Vec<Source> = CODE.iter().flat_map(|dir| rust(dir)).collect();
    assert!(sources.len() > 40, "only {} files found", sources.len());
    fail_on(
        sources
            .iter()
            .flat_map(|source| header(source).into_iter().chain(long_file(source)).chain(long_functions(source))),
    );
}

#[test]
fn no_work_is_left_open_and_no_machine_is_named() {
    let mut texts = Vec::new();
    for path in files("", TEXT) {
        if let Ok(text) = std::fs::read_to_string(root().join(&path)) {
            texts.push((path, text));
        }
    }
    fail_on(texts.iter().flat_map(|(path, text)| words(path, text)));
}

#[test]
fn every_list_names_its_files_and_every_file_is_named() {
    let sources = rust("sysops-agent/src");
    fail_on(LISTS.iter().flat_map(|dir| list(dir, &sources)));
}

#[test]
fn every_probe_has_its_three_files() {
    let sources = rust("sysops-agent/src");
    let Some(kernel) = sources.iter().find(|source| source.path == "sysops-agent/src/kernel/mod.rs") else {
        panic!("sysops-agent/src/kernel/mod.rs is missing");
    };
    let missing = listed(&kernel.production).into_iter().flat_map(|name| {
        ["sysops-common/src", "sysops-ebpf/src"]
            .into_iter()
            .map(move |dir| format!("{dir}/{name}.rs"))
            .filter(|path| !root().join(path).is_file())
            .map(|path| {
                format!("{path}: missing: a probe has the same basename in sysops-ebpf, sysops-common and kernel")
            })
    });
    fail_on(missing);
}

fn fail_on(broken: impl Iterator<Item = String>) {
    let broken: Vec<String> = broken.collect();
    assert!(broken.is_empty(), "\n{}\n", broken.join("\n"));
}

/// Every file opens with what it does and what it leaves to whom.
fn header(source: &Source) -> Option<String> {
    (!source.text.starts_with("//! "))
        .then(|| format!("{}:1: no //! header: one sentence what it does, one what it leaves to whom", source.path))
}

fn long_file(source: &Source) -> Option<String> {
    let lines = source.text.lines().count();
    (lines > LINES_MAX)
        .then(|| format!("{}: {lines} lines, at most {LINES_MAX}: look for a second idea and name it", source.path))
}

/// Functions that are longer than a reader keeps in mind. A test may not be longer either.
fn long_functions(source: &Source) -> Vec<String> {
    let lines: Vec<&str> = source.code.lines().collect();
    let mut broken = Vec::new();
    for (index, line) in lines.iter().enumerate() {
        let Some(at) = line.find("fn ").filter(|at| *at == 0 || line[..*at].ends_with(' ')) else { continue };
        let name: String = line[at + 3..].chars().take_while(|c| *c == '_' || c.is_alphanumeric()).collect();
        let length = item_lines(&lines[index..]);
        if !name.is_empty() && length > FUNCTION_LINES_MAX {
            let path = &source.path;
            broken.push(format!(
                "{path}:{}: {name} has {length} lines, at most {FUNCTION_LINES_MAX}: name its steps",
                index + 1
            ));
        }
    }
    broken
}

/// Lines up to the brace that closes the first one opened, or to the `;` of a declaration without a body.
fn item_lines(lines: &[&str]) -> usize {
    let (mut depth, mut opened) = (0_i64, false);
    for (index, line) in lines.iter().enumerate() {
        for c in line.chars() {
            match c {
                '{' => (depth, opened) = (depth + 1, true),
                '}' => depth -= 1,
                ';' if !opened => return index + 1,
                _ => {}
            }
        }
        if opened && depth <= 0 {
            return index + 1;
        }
    }
    lines.len()
}

/// Marks of unfinished work, paths of a developer's machine, and hosts that package managers know by themselves.
fn words(path: &str, text: &str) -> Vec<String> {
    // Written in halves, so that this file does not break its own rule.
    let open = [["TO", "DO"], ["FIX", "ME"], ["XX", "X"]].map(|halves| halves.concat());
    let places = [["/wo", "rk/"], ["/tmp/", "lab"], ["/fa", "rm/"], ["/ro", "ot/."]].map(|halves| halves.concat());
    let hosts = [
        ["deb.deb", "ian.org"],
        ["static.crates", ".io"],
        ["index.crates", ".io"],
        ["registry.npm", "js"],
        ["files.python", "hosted"],
    ]
    .map(|halves| halves.concat());
    let mut broken = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let place = format!("{path}:{}", index + 1);
        let whole = |word: &String| line.split(|c: char| !c.is_alphanumeric()).any(|found| found == word);
        broken.extend(
            open.iter()
                .filter(|word| whole(word))
                .map(|word| format!("{place}: {word}: do it, or say in the issue that it is not done")),
        );
        broken.extend(
            places
                .iter()
                .filter(|path| line.contains(*path))
                .map(|path| format!("{place}: {path} is a path of one machine")),
        );
        broken.extend(
            hosts
                .iter()
                .filter(|host| line.contains(*host))
                .map(|host| format!("{place}: {host}: packages are named, not their hosts")),
        );
    }
    broken
}

/// A list's members are files with an `ENTRY` that bears the file's name, and every such file is a member.
fn list(dir: &str, sources: &[Source]) -> Vec<String> {
    let folder = format!("sysops-agent/src/{dir}");
    let Some(list) = sources.iter().find(|source| source.path == format!("{folder}/mod.rs")) else { return Vec::new() };
    let members = listed(&list.production);
    let file = |name: &str| {
        sources.iter().find(|source| {
            source.path == format!("{folder}/{name}.rs") || source.path == format!("{folder}/{name}/mod.rs")
        })
    };
    let mut broken = Vec::new();
    for name in &members {
        match file(name) {
            None => broken.push(format!("{}: lists {name}, but there is no {name}.rs", list.path)),
            Some(source) if declares_entry(source) && !source.text.contains(&format!("name: \"{name}\"")) => {
                broken.push(format!("{}: its ENTRY does not bear the file's name: name: {name:?}", source.path));
            }
            Some(_) => {}
        }
    }
    for source in sources.iter().filter(|source| declares_entry(source)) {
        let Some(below) = source.path.strip_prefix(&format!("{folder}/")) else { continue };
        let name = below.trim_end_matches(".rs").trim_end_matches("/mod");
        if !name.contains('/') && !members.contains(name) {
            broken.push(format!("{}: declares an ENTRY, but {} does not list it", source.path, list.path));
        }
    }
    broken
}

fn declares_entry(source: &Source) -> bool {
    source.production.contains("static ENTRY:")
}

mod rules {
    use super::*;

    fn source(text: &str) -> Source {
        Source::new("sysops-agent/src/collect/cpu.rs", text)
    }

    #[test]
    fn a_file_without_header_is_told_what_to_write() {
        assert!(header(&source("use std::fs;\n")).expect("it has none").contains("one sentence"));
        assert_eq!(header(&source("//! Reads it.\n")), None);
    }

    #[test]
    fn sizes_are_held_at_their_limits() {
        assert_eq!(long_file(&source(&"\n".repeat(600))), None);
        assert!(long_file(&source(&"\n".repeat(601))).is_some());
        let function = |lines: usize| source(&format!("pub fn long() {{\n{}}}\n", "a();\n".repeat(lines - 2)));
        assert_eq!(long_functions(&function(100)), [""; 0]);
        assert!(long_functions(&function(101))[0].contains("cpu.rs:1: long has 101 lines"));
    }

    #[test]
    fn braces_in_strings_do_not_count() {
        let text = format!("fn a() {{ \"{{\" }}\n{}", "//\n".repeat(200));
        assert_eq!(long_functions(&source(&text)), [""; 0]);
    }

    #[test]
    fn marks_paths_and_hosts_are_found() {
        let line = ["// TO", "DO later, in /wo", "rk/x from index.crates", ".io"].concat();
        assert_eq!(words("a.rs", &line).len(), 3);
        assert_eq!(words("a.rs", "mktemp XXXXXX framework/ crates"), [""; 0]);
    }

    #[test]
    fn lists_and_files_agree() {
        let module = |list: &str| {
            Source::new("sysops-agent/src/collect/mod.rs", &format!("pub static ALL: &[&Entry] = &[{list}];"))
        };
        let cpu = source("pub static ENTRY: Entry = Entry { name: \"cpu\" };");
        assert_eq!(list("collect", &[module("&cpu::ENTRY"), cpu.clone()]), [""; 0]);
        assert!(list("collect", &[module(""), cpu.clone()])[0].contains("does not list it"));
        assert!(list("collect", &[module("&cpu::ENTRY,\n    &load::ENTRY,"), cpu])[0].contains("no load.rs"));
        let misnamed = source("pub static ENTRY: Entry = Entry { name: \"CPU\" };");
        assert!(list("collect", &[module("&cpu::ENTRY"), misnamed])[0].contains("does not bear"));
    }
}
