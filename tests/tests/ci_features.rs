//! A feature of the agent is real: it brings a dependency or is asked for in code, and the default is what is promised.

#![expect(clippy::disallowed_methods, reason = "the repository's own files are read")]

use sysops_tests::source::{root, rust};

#[test]
fn no_feature_is_an_empty_flag() {
    let sources = rust("sysops-agent");
    for (name, enables) in features() {
        let cfg = format!("feature = \"{name}\"");
        let used = sources.iter().any(|source| source.text.contains(&cfg));
        assert!(used || name == "default", "feature {name} of sysops-agent changes nothing in the code");
        assert!(!enables.is_empty() || used, "feature {name} of sysops-agent is an empty flag");
    }
}

#[test]
fn the_default_is_everything_but_native_tls() {
    let features = features();
    let default = &features.iter().find(|(name, _)| name == "default").expect("there is a default").1;
    for (name, _) in &features {
        let expected = name != "default" && name != "tls-native";
        assert_eq!(default.contains(name), expected, "feature {name} in the default set");
    }
}

/// Features and what each enables, from the table in Cargo.toml.
fn features() -> Vec<(String, Vec<String>)> {
    let manifest = std::fs::read_to_string(root().join("sysops-agent/Cargo.toml")).expect("the agent has a manifest");
    let table =
        manifest.split("[features]\n").nth(1).and_then(|rest| rest.split("\n[").next()).expect("it has features");
    let lines = table.lines().filter(|line| !line.trim_start().starts_with('#'));
    let features: Vec<_> = lines
        .filter_map(|line| line.split_once('='))
        .map(|(name, list)| {
            let items =
                list.trim().trim_matches(['[', ']']).split(',').map(|item| item.trim().trim_matches('"').to_owned());
            (name.trim().to_owned(), items.filter(|item| !item.is_empty()).collect())
        })
        .collect();
    assert!(features.len() > 3, "features of sysops-agent: {features:?}");
    features
}
