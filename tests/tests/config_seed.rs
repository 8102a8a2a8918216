//! The documented configurations load as they stand, and broken ones point at the right place.

#![expect(clippy::disallowed_methods, reason = "a test reads its own fixtures")]

use std::fs;
use std::path::{Path, PathBuf};

use sysops_agent::catalog;
use sysops_agent::cli::validate;
use sysops_agent::settings::{Problems, Settings, load, parse};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/config")
}

fn environment(name: &str) -> Option<String> {
    ["TELEGRAM_BOT_TOKEN", "SMTP_PASSWORD", "WEBHOOK_TOKEN", "NATS_TOKEN"].contains(&name).then(|| "x".to_owned())
}

fn loaded(name: &str) -> Result<Settings, Problems> {
    load(Some(&fixtures().join(name)), &catalog::declared(), &environment)
}

#[test]
fn every_documented_example_loads_verbatim() {
    let examples = ["full", "minimal", "discord", "slack", "telegram", "email", "webhook", "syslog", "nats"];
    let refused: Vec<String> =
        examples.iter().filter_map(|name| Some(loaded(&format!("{name}.toml")).err()?.to_string())).collect();
    assert!(refused.is_empty(), "{}", refused.join("\n"));
}

#[test]
fn what_comes_later_is_said_once() {
    let settings = loaded("full.toml").unwrap_or_else(|problems| panic!("{problems}"));
    let notices = settings.notices();
    let later = notices.iter().filter(|notice| notice.starts_with("not built yet: ")).count();
    assert_eq!(later, 1, "{notices:?}");
    assert!(notices[0].contains("storage.{sqlite_enabled, sqlite_path, sqlite_retention_days}"), "{}", notices[0]);
}

#[test]
fn roles_that_discord_cannot_ping_are_told_with_their_place() {
    let settings = loaded("discord.toml").unwrap_or_else(|problems| panic!("{problems}"));
    let shown = validate::report(&settings);
    let expected = "warning: alerting.discord.mention_roles: \"@devops\" pings no one: a webhook knows roles by id \
                    (Developer Mode, role, Copy Role ID)\n --> ";
    assert!(shown.starts_with("OK: ") && shown.contains(expected), "{shown}");
    assert!(shown.contains("discord.toml:5:17\n  |\n5 | mention_roles = [\"@devops\"]\n"), "{shown}");
    let warnings = |enabled: bool, roles: &str| {
        let text = format!(
            "[alerting.discord]\nenabled = {enabled}\nwebhook_url = \"http://h/\"\nmention_roles = [{roles}]\n"
        );
        let settings = parse("config.toml", &text, &catalog::declared(), &environment);
        settings.unwrap_or_else(|problems| panic!("{problems}")).warnings.len()
    };
    assert_eq!(warnings(true, "\"123456789012345678\", \"<@&123456789012345678>\""), 0);
    assert_eq!(warnings(true, "\"123456789012345678\", \"@a\", \"b\""), 2);
    assert_eq!(warnings(false, "\"@a\""), 0);
}

#[test]
fn a_variable_that_is_not_set_is_named() {
    for (name, variable) in
        [("telegram", "TELEGRAM_BOT_TOKEN"), ("email", "SMTP_PASSWORD"), ("webhook", "WEBHOOK_TOKEN")]
    {
        let path = fixtures().join(format!("{name}.toml"));
        let problems = load(Some(&path), &catalog::declared(), &|_| None).expect_err(name).to_string();
        assert!(problems.contains(&format!("environment variable {variable} is not set")), "{problems}");
    }
}

/// Each fixture is the full example with one mistake; its first line says where and what.
#[test]
fn broken_variants_point_at_the_right_place() {
    let mut count = 0;
    for entry in fs::read_dir(fixtures().join("broken")).expect("fixtures") {
        let path = entry.expect("an entry").path();
        let text = fs::read_to_string(&path).expect("UTF-8");
        let first = text.lines().next().and_then(|line| line.strip_prefix("# expected ")).expect("what is expected");
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        let problems = parse(&name, &text, &catalog::declared(), &environment).expect_err(&name);
        let lines: Vec<String> = problems.shown().iter().map(sysops_agent::settings::Problem::line).collect();
        assert_eq!(lines.len(), 1, "{problems}");
        assert!(lines[0].starts_with(&format!("{name}:{first}")), "expected {name}:{first}\nfound    {}", lines[0]);
        count += 1;
    }
    assert!(count >= 12, "only {count} variants");
}
