//! What the documents point at is there: relative links, and files that CONTRIBUTING and the docs name in backticks.

#![expect(clippy::disallowed_methods, reason = "the repository's own files are read")]

use sysops_tests::source::{files, root};

#[test]
fn relative_links_lead_somewhere() {
    let mut broken = Vec::new();
    for path in files("", &[".md"]) {
        let text = std::fs::read_to_string(root().join(&path)).expect("it was just listed");
        let dir = root().join(&path).parent().expect("a file has a folder").to_owned();
        for target in links(&text) {
            let file = target.split('#').next().unwrap_or_default();
            if !file.is_empty() && !dir.join(file).exists() {
                broken.push(format!("{path}: link to {target} leads nowhere"));
            }
        }
    }
    assert!(broken.is_empty(), "\n{}\n", broken.join("\n"));
}

#[test]
fn files_named_in_contributing_exist() {
    let text = std::fs::read_to_string(root().join("CONTRIBUTING.md")).expect("there is a CONTRIBUTING.md");
    let named: Vec<&str> = text.split('`').skip(1).step_by(2).filter(|word| is_path(word)).collect();
    assert!(named.len() > 5, "CONTRIBUTING.md names {named:?}");
    for path in named {
        assert!(root().join(path).exists(), "CONTRIBUTING.md names {path}, which is not there");
    }
}

/// Targets of Markdown links that are no addresses.
fn links(text: &str) -> Vec<&str> {
    text.split("](")
        .skip(1)
        .filter_map(|rest| rest.split(')').next())
        .filter(|target| !target.contains("://"))
        .collect()
}

/// A word that is meant as a path of the repository: it has a slash and an ending, and no placeholder.
fn is_path(word: &str) -> bool {
    word.contains('/') && word.contains('.') && !word.starts_with('/') && !word.contains(['<', ' ', '*', ':', '$'])
}

mod rules {
    use super::*;

    #[test]
    fn placeholders_and_addresses_are_not_paths() {
        assert!(is_path("sysops-agent/src/collect/mod.rs"));
        for word in ["collect/<name>.rs", "cargo xtask ci", "/etc/x.toml", "config/"] {
            assert!(!is_path(word), "{word}");
        }
        assert_eq!(links("[a](b.md#c) [d](https://e.f)"), ["b.md#c"]);
    }
}
