//! `rules test` as users run it on rules of their own: what holds, what does not and where, and mistakes with their places.

use std::path::Path;

use sysops_tests::agent;
use sysops_tests::require::require;
use sysops_tests::servers::Scratch;

/// Runs the tests in `text` and gives exit status, stdout and stderr, without the folder's name.
fn run(scratch: &Scratch, text: &str) -> (i32, String, String) {
    let file = scratch.file("tests.toml", text);
    run_files(scratch, &[&file])
}

fn run_files(scratch: &Scratch, files: &[&Path]) -> (i32, String, String) {
    let files = files.iter().map(|file| file.to_str().expect("UTF-8"));
    let output = agent::run(&["rules", "test"].into_iter().chain(files).collect::<Vec<_>>());
    let folder = format!("{}/", scratch.path().display());
    let [out, err] = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).replace(&folder, ""));
    (output.status.code().expect("it ended by itself"), out, err)
}

const SERIES: &str = "[[test.series]]\nmetric = \"disk_usage_percent\"\n\
                      labels = { device = \"/dev/sdb1\", mountpoint = \"/data\", fstype = \"ext4\" }\n";

fn disk(values: &str, expect: &str) -> String {
    format!("thresholds = true\n[[test]]\nname = \"disk of the database\"\n{SERIES}values = \"{values}\"\n{expect}")
}

#[test]
fn limits_fire_and_let_go_as_expected() {
    if !require(agent::missing()) {
        return;
    }
    let text = disk(
        "80x6 93x12 70x3",
        r#"
[[test.expect]]
at_secs = 80
alerts = []
[[test.expect]]
at_secs = 95
alerts = [ { metric = "disk_usage_percent", severity = "warn", labels = { mountpoint = "/da*" } } ]
[[test.expect]]
at_secs = 170
alerts = [ { labels = { device = "/dev/sdb1" } } ]
[[test.expect]]
at_secs = 500
alerts = []
"#,
    );
    let scratch = Scratch::new();
    assert_eq!(run(&scratch, &text), (0, "SUCCESS disk of the database\n".to_owned(), String::new()));
}

#[test]
fn what_does_not_hold_is_shown_with_its_line() {
    if !require(agent::missing()) {
        return;
    }
    let text = disk(
        "93x12",
        "[[test.expect]]\nat_secs = 90\nalerts = []\n\
         [[test.expect]]\nat_secs = 20\nalerts = [ { severity = \"critical\", labels = { mountpoint = \"/\" } } ]\n\
         [[test]]\nname = \"another\"\n[[test.expect]]\nalerts = []\n",
    );
    let scratch = Scratch::new();
    let (status, out, err) = run(&scratch, &text);
    assert_eq!((status, err.as_str()), (1, ""));
    insta::assert_snapshot!(out);
}

#[test]
fn rules_of_the_users_own() {
    if !require(agent::missing()) {
        return;
    }
    let scratch = Scratch::new();
    let rules = r#"
[alerting.slack]
enabled = false
[[rule]]
name = "db_disk"
metric = "disk_usage_percent"
labels = { mountpoint = "/data*" }
threshold = 90
clear = 80
for_secs = 30
severity = "critical"
summary = "{{ labels.mountpoint }} is {{ value }} % full"
[[rule]]
name = "few_free"
metric = "memory_available_bytes"
comparison = "<"
threshold = 1000
"#;
    let _ = scratch.file("config.toml", rules);
    let text = format!(
        "rules = \"config.toml\"\n[[test]]\nname = \"database\"\ninterval_secs = 15\n{SERIES}values = \"80x2 95x4 85x2 70x9\"\n{}",
        r#"
[[test.series]]
metric = "disk_usage_percent"
labels = { mountpoint = "/" }
values = "99x20"
[[test.expect]]
at_secs = 45
alerts = [ { rule = "db_disk", standing = "pending" } ]
[[test.expect]]
at_secs = 60
alerts = [ { rule = "db_disk", severity = "critical", labels = { mountpoint = "/data" }, summary = "/data is 95.0 % full" } ]
[[test.expect]]
at_secs = 105
alerts = [ { rule = "db_disk" } ]
[[test.expect]]
at_secs = 150
alerts = []
[[test]]
name = "memory"
[[test.series]]
metric = "memory_available_bytes"
values = "2000-100x15"
[[test.expect]]
at_secs = 100
alerts = []
[[test.expect]]
at_secs = 110
alerts = [ { rule = "few_free", severity = "warn" } ]
"#
    );
    let (status, out, err) = run(&scratch, &text);
    assert_eq!((status, out.as_str(), err.as_str()), (0, "SUCCESS database\nSUCCESS memory\n", ""));
}

#[test]
fn a_configuration_beside_the_tests_sets_the_limits() {
    if !require(agent::missing()) {
        return;
    }
    let scratch = Scratch::new();
    let _ = scratch.file("config.toml", "[thresholds]\ndisk_percent = 50\nhold_secs = 0\n");
    let expect = "[[test.expect]]\nat_secs = 10\nalerts = [ { severity = \"warn\" } ]\n";
    let text = format!("rules = \"config.toml\"\n{}", disk("60x2", expect));
    assert_eq!(run(&scratch, &text).0, 0);
    assert_eq!(run(&scratch, &text.replace("thresholds = true\n", "")).0, 1, "nobody judges by limits then");
    let broken = scratch.file("config.toml", "[thresholds]\ndisk_prcent = 50\n");
    let (status, out, err) = run(&scratch, &text);
    assert_eq!((status, out.as_str()), (78, ""));
    assert!(err.contains("config.toml:2:1"), "{err}");
    std::fs::remove_file(broken).expect("ours");
    let (status, _, err) = run(&scratch, &text);
    assert!(status == 78 && err.contains("cannot open the configuration") && err.contains("--> config.toml"), "{err}");
}

#[test]
fn a_series_that_ends_and_one_with_holes() {
    if !require(agent::missing()) {
        return;
    }
    // What is not read stays as it was for 5 min, and is then over.
    let text = disk(
        "93x4 _x40",
        "[[test.expect]]\nat_secs = 300\nalerts = [ { severity = \"warn\" } ]\n[[test.expect]]\nat_secs = 340\nalerts = []\n",
    );
    let scratch = Scratch::new();
    assert_eq!(run(&scratch, &text).1, "SUCCESS disk of the database\n");
}

#[test]
fn mistakes_are_shown_with_their_places() {
    if !require(agent::missing()) {
        return;
    }
    let text = "thresholds = true\n[[test]]\nname = \"a\"\n[[test.series]]\nmetric = \"disk_usage\"\nvalues = \"1\"\n\
                [[test.series]]\nmetric = \"disk_usage_percent\"\nlabels = { mount = \"/\" }\nvalues = \"8Ox6\"\n\
                [[test.expect]]\nat_secs = 1\nalerts = [ {} ]\n[[test]]\nname = \"b\"\n";
    let scratch = Scratch::new();
    let (status, out, err) = run(&scratch, text);
    assert_eq!((status, out.as_str()), (78, ""));
    insta::assert_snapshot!(err);
    let unknown = disk("1", "[[test.expect]]\nat_secs = 1\nalrts = []\n");
    assert!(run(&scratch, &unknown).2.contains("unknown key \"alrts\" in test[0].expect[0]"));
    let nothing = "[[test]]\nname = \"a\"\n[[test.expect]]\nalerts = []\n";
    assert!(run(&scratch, nothing).2.contains("nothing is tested: expected the file with the rules"));
    assert!(run(&scratch, "thresholds = true\n").2.contains("nothing is tested: expected [[test]]"));
}

#[test]
fn the_worst_of_several_files_counts() {
    if !require(agent::missing()) {
        return;
    }
    let scratch = Scratch::new();
    let good = scratch.file("good.toml", &disk("1", "[[test.expect]]\nat_secs = 0\nalerts = []\n"));
    let bad =
        scratch.file("bad.toml", &disk("1", "[[test.expect]]\nat_secs = 0\nalerts = [ { severity = \"warn\" } ]\n"));
    assert_eq!(run_files(&scratch, &[&bad, &good]).0, 1);
    assert_eq!(run_files(&scratch, &[&good, Path::new("/nonexistent")]).0, 78);
}
