//! What an operator sees when the configuration has mistakes: whole outputs, on keys of this test's own.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sysops_agent::cli::validate;
use sysops_agent::deliver::channel;
use sysops_agent::settings::{Absent, Declared, keys, later, load, parse};
use sysops_agent::spec::{Complaint, Key, KeySpec, Secret, Values};

static CPU: Key<f64> = Key::float("limits.cpu_percent", 90.0, 0.0, 100.0, "A limit.");
static DISK: Key<f64> = Key::float("limits.disk_percent", 90.0, 0.0, 100.0, "A limit.");
static INTERVAL: Key<Duration> = Key::secs("reader.interval_secs", 10, 1, 3600, "An interval.");
static NAMES: Key<Vec<String>> = Key::list("reader.names", &["a"], "Names.");
static ENABLED: Key<bool> = Key::switch("hook.enabled", false, "A switch.");
static URL: Key<Option<String>> = Key::optional("hook.url", "An address.");
static METHOD: Key<String> = Key::choice("hook.method", &["POST", "PUT"], "POST", "A word.");
static TOKEN: Key<Option<Secret>> = Key::secret("hook.token", "A secret.");
static HEADERS: Key<BTreeMap<String, Secret>> = Key::secret_map("hook.headers", "Secrets.");

fn declared() -> Declared {
    let own: [&'static KeySpec; 9] = [
        CPU.spec(),
        DISK.spec(),
        INTERVAL.spec(),
        NAMES.spec(),
        ENABLED.spec(),
        URL.spec(),
        METHOD.spec(),
        TOKEN.spec(),
        HEADERS.spec(),
    ];
    let chats = channel::discord::ENTRY.keys.iter().chain(channel::slack::ENTRY.keys);
    Declared {
        keys: keys::ALL.iter().chain(later::ALL).chain(chats).copied().chain(own).collect(),
        absent: vec![Absent { table: "bus", feature: "bus" }],
        checks: vec![keys::check, hook],
        ..Declared::default()
    }
}

fn hook(values: &Values) -> Vec<Complaint> {
    let complaint = |key: &KeySpec, message: &str| Complaint { path: key.path.to_owned(), message: message.to_owned() };
    match values.get(&URL) {
        None if values.get(&ENABLED) => vec![complaint(URL.spec(), "expected an address, because the hook is enabled")],
        Some(url) if !url.starts_with("https://") => vec![complaint(URL.spec(), "expected https://…")],
        _ => Vec::new(),
    }
}

fn environment(name: &str) -> Option<String> {
    match name {
        "TOKEN" => Some("hunter2".to_owned()),
        "EVIL" => Some("\"\nenabled = true\n[limits]\ncpu_percent = 1.0 # ${TOKEN}".to_owned()),
        _ => None,
    }
}

fn mistakes(text: &str) -> String {
    let problems = parse("config.toml", text, &declared(), &environment).expect_err("it has mistakes");
    let shown = problems.to_string();
    assert!(!shown.contains("hunter2"), "{shown}");
    shown
}

#[test]
fn all_mistakes_at_once() {
    insta::assert_snapshot!(mistakes(include_str!("../fixtures/config/mistakes.toml")));
}

#[test]
fn syntax() {
    insta::assert_snapshot!(mistakes(
        "[agent]\nhostname = \"web-01\nlog_level = info\n\n[limits\ncpu_percent = \n[hook]\ntoken = \"hunter2\nurl \"x\"\n"
    ));
}

#[test]
fn secrets_stay_out_of_every_message() {
    insta::assert_snapshot!(mistakes(
        "[hook]\n\
         token = [\"hunter2\"]      # hunter2\n\
         tokn = \"hunter2\"\n\
         headers = { Authorization = 5, X = \"hunter2 ${NOT_SET}\" }\n\
         method = \"POST\"\n\
         [hook.headers2]\n\
         X = \"hunter2\"\n\
         [reader]\n\
         nmaes = [\"hunter2\"]\n\
         names = [\n  \"ok\",\n  5,\n]\n"
    ));
}

#[test]
fn twenty_are_shown_and_the_rest_counted() {
    let text: String = (0..25).map(|index| format!("key_{index} = {index}\n")).collect();
    let problems = parse("config.toml", &text, &declared(), &environment).expect_err("it has mistakes");
    assert_eq!((problems.shown().len(), problems.total()), (20, 25));
    assert!(problems.to_string().ends_with("25 errors in config.toml, 5 not shown\n"));
    assert_eq!(problems.shown()[19].location(), "config.toml:20:1");
}

#[test]
fn components_complaints_have_a_place() {
    insta::assert_snapshot!(mistakes(
        "[agent]\ndata_dir = \"data\"\n\n[hook]\nenabled = true\n# no url\n\n[limits]\ncpu_percent = 1\n"
    ));
    insta::assert_snapshot!(mistakes("[hook]\nurl = \"http://example.com\"\n"));
}

#[test]
fn what_a_variable_holds_is_a_value_and_nothing_else() {
    let text = "[hook]\nurl = \"https://x/${EVIL}\"\nheaders = { A = \"Bearer ${TOKEN}\", B = \"$$5 ${NONE:-d}\" }\n";
    let settings =
        parse("config.toml", text, &declared(), &environment).unwrap_or_else(|problems| panic!("{problems}"));
    assert!(!settings.values.get(&ENABLED));
    assert!(!settings.values.is_set(CPU.spec()));
    assert!(settings.values.get(&URL).is_some_and(|url| url.ends_with("# ${TOKEN}")));
    let headers = settings.values.get(&HEADERS);
    assert_eq!((headers["A"].expose(), headers["B"].expose()), ("Bearer hunter2", "$5 d"));
}

#[test]
fn whole_numbers_are_numbers() {
    let text = "limits.cpu_percent = 80\nreader = { interval_secs = 0x1F, names = [] }\n";
    let settings =
        parse("config.toml", text, &declared(), &environment).unwrap_or_else(|problems| panic!("{problems}"));
    assert!((settings.values.get(&CPU) - 80.0).abs() < f64::EPSILON);
    assert_eq!(settings.values.get(&INTERVAL), Duration::from_secs(31));
    assert_eq!(settings.values.get(&NAMES), Vec::<String>::new());
}

#[test]
fn what_holds_is_shown_without_secrets() {
    let text = "[agent]\nhostname = \"${HOST:-web-01}\"\n\n[hook]\nurl = \"https://me:hunter2@example.com/x\"\ntoken = \"hunter2\"\n\
                headers = { Authorization = \"Bearer ${TOKEN}\", \"X Y\" = \"hunter2\" }\n\n[alerting.slack]\nenabled = true\n\
                webhook_url = \"${TOKEN}\"\n\n[[log_analyzer.custom_patterns]]\npattern = \"FATAL\"\nname = \"fatal\"\n";
    let settings =
        parse("config.toml", text, &declared(), &environment).unwrap_or_else(|problems| panic!("{problems}"));
    let shown = settings.show(&declared());
    assert!(!shown.contains("hunter2"), "{shown}");
    // It is a configuration itself, up to the secrets.
    parse("shown.toml", &shown, &declared(), &environment).unwrap_or_else(|problems| panic!("{problems}\n{shown}"));
    insta::assert_snapshot!(shown);
}

#[test]
fn accepted_with_a_word() {
    let dir = directory("accepted");
    let file = dir.join("config.toml");
    let text = "[hook]\nurl = \"https://me:hunter2@example.com\"\ntoken = \"hunter2\"\n[bus]\nanything = { goes = 1 }\n\
                [analyzer]\nema_alpha = 0.2\nzscore_window = 100\n[alerting.slack]\nenabled = false\n";
    fs::write(&file, text).expect("it can be written");
    let report = |mode| {
        fs::set_permissions(&file, fs::Permissions::from_mode(mode)).expect("its mode can be set");
        let settings = load(Some(&file), &declared(), &environment).unwrap_or_else(|problems| panic!("{problems}"));
        validate::report(&settings).replace(&dir.display().to_string(), "")
    };
    let exposed = report(0o644);
    assert!(!report(0o640).contains("warning"));
    insta::assert_snapshot!(exposed);
}

#[test]
fn keys_of_a_part_that_is_not_in_this_build_are_checked_where_they_are_known() {
    let mut declared = declared();
    declared.absent.push(Absent { table: "reader", feature: "reading" });
    let settings = parse("config.toml", "[reader]\nnames = []\n", &declared, &environment).expect("no mistakes");
    assert_eq!(settings.notices(), ["not in this build: [reader] needs feature reading"]);
    let problems = parse("config.toml", "[reader]\nnmaes = []\n", &declared, &environment).expect_err("a mistake");
    assert_eq!(problems.shown()[0].location(), "config.toml:2:1");
}

#[test]
fn lines_of_other_systems() {
    let text = "\u{feff}[agent]\r\n\thostnmae = \"wéb\"\r\n";
    insta::assert_snapshot!(mistakes(text));
}

#[test]
fn a_file_with_references_alone_may_be_read_by_everyone() {
    let file = directory("references").join("config.toml");
    fs::write(&file, "[hook]\ntoken = \"${TOKEN}\"\n").expect("it can be written");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).expect("its mode can be set");
    let settings = load(Some(&file), &declared(), &environment).unwrap_or_else(|problems| panic!("{problems}"));
    assert_eq!(settings.warnings, []);
}

#[test]
fn files_that_are_no_configuration() {
    let dir = directory("files");
    let refused = |name: &str, bytes: Option<&[u8]>| {
        let file = dir.join(name);
        if let Some(bytes) = bytes {
            fs::write(&file, bytes).expect("it can be written");
        }
        let problems = load(Some(&file), &declared(), &environment).expect_err(name);
        problems.to_string().replace(&dir.display().to_string(), "")
    };
    let mut large = b"# a comment\n".to_vec();
    large.resize((1 << 20) + 1, b'#');
    let outputs = [
        refused("absent.toml", None),
        refused("", None),
        refused("binary.toml", Some(b"[agent]\n\x7fELF\x02\x01\x01\0\0")),
        refused("latin1.toml", Some(b"[agent]\nhostname = \"caf\xe9\"\n")),
        refused("large.toml", Some(&large)),
        refused("binary.toml/config.toml", None),
    ];
    insta::assert_snapshot!(outputs.join("\n"));
}

#[test]
fn without_a_file_every_key_has_its_default() {
    let settings = load(None, &declared(), &environment).expect("nothing to go wrong");
    assert_eq!(settings.values, Values::default());
    assert_eq!(settings.hostname_or("node-7"), "node-7");
    assert!(load(Some(Path::new("/proc/self/fd")), &declared(), &environment).is_err());
}

#[test]
fn no_text_makes_it_panic() {
    // Prefixes of files with everything in them: strings, tables and lists cut at any place.
    let text =
        include_str!("../fixtures/config/mistakes.toml").to_owned() + include_str!("../fixtures/config/full.toml");
    for (end, _) in text.char_indices().step_by(13) {
        if let Err(problems) = parse("config.toml", &text[..end], &declared(), &environment) {
            assert!(problems.to_string().contains("config.toml"));
        }
    }
}

/// An empty directory of this test's own.
fn directory(name: &str) -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("config_errors_{name}"));
    // It may be left over from a run before.
    let _ = fs::remove_dir_all(&dir);
    fs::create_dir_all(&dir).expect("the directory can be made");
    dir
}
