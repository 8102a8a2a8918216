//! The command line that asks the running agent, as its users run it: what it prints, whom it lets, what it says when it cannot.

use std::os::unix::fs::PermissionsExt;
use std::process::Output;

use sysops_tests::agent::{self, Launch};
use sysops_tests::desk::Served;
use sysops_tests::http_far_end::{Answer, FarEnd};
use sysops_tests::require::require;
use sysops_tests::servers::Scratch;
use sysops_tests::{schema, user};

const CONFIGURATION: &str = "[agent]\ndata_dir = \"@DATA@\"\n";

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("UTF-8")
}

/// Runs it by the configuration of `served` and gives exit status, stdout and stderr.
fn run(served: &Served, arguments: &str) -> (i32, String, String) {
    run_by(&served.config(), arguments)
}

fn run_by(config: &str, arguments: &str) -> (i32, String, String) {
    let arguments = arguments.split(' ').map(|word| word.trim_matches('\''));
    parts(&agent::run(&["--config", config].into_iter().chain(arguments).collect::<Vec<_>>()))
}

fn parts(output: &Output) -> (i32, String, String) {
    (output.status.code().expect("it ended by itself"), text(&output.stdout), text(&output.stderr))
}

fn me() -> String {
    let host = sysops_agent::host::Host::live(&sysops_agent::host::Roots::default());
    sysops_agent::control::user_name(&host.files, rustix::process::geteuid().as_raw())
}

#[test]
fn alerts_are_listed_for_people_and_for_machines() {
    if !require(agent::missing()) {
        return;
    }
    let served = Served::start(CONFIGURATION);
    let (status, out, err) = run(&served, "alerts");
    assert_eq!((status, err.as_str()), (0, ""));
    let what = "disk_usage_percent fstype=ext4 mountpoint=/da\\u{1b}[2Jta";
    assert_eq!(
        out,
        format!(
            "ALERT     SEVERITY  STANDING  FOR        VALUE/LIMIT  WHAT\n\
             8f3a1c2e  critical  firing    2 h 5 min  98.1/90      {what}\n          \
             Disk usage is 98.1 %\\n of /data\n\
             1 pending, not yet for long enough: --all lists them\n"
        )
    );
    assert!(run(&served, "alerts --all").1.contains("\n00000000  critical  pending   2 h 5 min"));
    let (status, out, _) = run(&served, "alerts --json");
    let document = schema::parse("alerts", out.as_bytes());
    assert_eq!((status, document["alerts"].as_array().map(Vec::len)), (0, Some(1)));
    assert_eq!(document["alerts"][0]["labels"]["mountpoint"], "/da\u{1b}[2Jta", "exact for machines");
}

#[test]
fn what_is_done_is_done_in_the_users_name() {
    if !require(agent::missing()) {
        return;
    }
    let (served, me) = (Served::start(CONFIGURATION), me());
    let (status, out, _) = run(&served, "ack 8F3A1c --note on_it");
    assert_eq!(status, 0);
    assert!(out.starts_with("acknowledged: 8f3a1c2e00112233 critical disk_usage_percent fstype=ext4 "), "{out}");
    assert!(run(&served, "ack 8f3a --undo").1.starts_with("no longer acknowledged: 8f3a1c2e"));
    let (status, out, _) = run(&served, "silence add --for 1h30m --comment backup metric=disk_* mountpoint=/da*");
    let until = "silence 3 until 2026-02-22T18:00:00Z: metric=disk_* mountpoint=/da*\n";
    assert_eq!((status, out), (0, format!("{until}2 alerts that are live now match\n")));
    let (_, out, _) = run(&served, "silence add --for 90s mountpont=/data");
    assert!(
        out.ends_with("\nno alert that is live now matches: `sysops-agent alerts --all` has names and values\n"),
        "{out}"
    );
    assert_eq!(run(&served, "silence remove 3").1, "silence 3 has ended: metric=disk_*\n");
    let asked = served.desk.asked();
    for expected in [
        format!("ack 8f3a1c by {me}: on_it"),
        format!("unack 8f3a by {me}"),
        format!("silence metric=disk_* mountpoint=/da* for 5400s by {me}: backup"),
        format!("silence mountpont=/data for 90s by {me}: "),
        format!("unsilence 3 by {me}"),
    ] {
        assert!(asked.contains(&expected), "{expected}: {asked:?}");
    }
    let (status, out, err) = run(&served, "ack ffff");
    assert_eq!((status, out.as_str(), err.as_str()), (1, "", "error: no alert begins with ffff\n"));
    assert_eq!(run(&served, "silence add --for 31d metric=*").0, 64);
    assert_eq!(run(&served, "silence add --for 2h").0, 64);
}

#[test]
fn silences_and_queues_are_listed() {
    if !require(agent::missing()) {
        return;
    }
    let served = Served::start(CONFIGURATION);
    assert_eq!(
        run(&served, "silence list").1,
        "ID  UNTIL                 LEFT  BY           WHAT\n\
         3   2026-02-22T16:31:00Z  0 s   ann\\u{202e}  metric=disk_*\n    a\\tcomment\n"
    );
    let _ = schema::parse("silences", run(&served, "silence list --json").1.as_bytes());
    assert_eq!(
        run(&served, "outbox").1,
        "CHANNEL  STATE    WAITING  OLDEST      NEXT TRY  DELIVERED  PARKED  LOST\n\
         webhook  failing  2        1 min 30 s  4 s       7          1       0\n         the server answered 503\n\
         2 waiting, 4.0 KiB on disk\n"
    );
    let _ = schema::parse("outbox", run(&served, "outbox --json").1.as_bytes());
}

/// A configuration with channels, one of which takes only what is worse.
const CHANNELS: &str = "[alerting.webhook]\nenabled = true\nurl = \"http://127.0.0.1:9/\"\n\
                        [alerting.console]\nmin_severity = \"critical\"\n";

#[test]
fn a_test_goes_through_the_agent_that_runs() {
    if !require(agent::missing()) {
        return;
    }
    let served = Served::start(&format!("{CONFIGURATION}{CHANNELS}"));
    let (status, out, err) = run(&served, "test-alert --severity warn --resolved");
    assert_eq!((status, err.as_str()), (1, ""), "one of them has not delivered it");
    let line = |channel: &str| {
        let found = out.lines().rfind(|line| line.starts_with(channel));
        found.unwrap_or_else(|| panic!("{channel}: {out}")).split_whitespace().collect::<Vec<_>>().join(" ")
    };
    assert!(
        line("webhook").starts_with("webhook delivered ") && line("webhook").ends_with(" s 204 No Content"),
        "{out}"
    );
    assert!(line("syslog").ends_with(" s /dev/log\\u{1b}: gone; tried again in 300 s"), "{out}");
    assert_eq!(
        line("console"),
        "console skipped alerting.console.min_severity is critical: --channel console sends all the same"
    );
    let me = me();
    assert_eq!(served.desk.asked(), [format!("test None warn true by {me}")]);
    let (status, out, _) = run(&served, "test-alert --channel webhook --json");
    let document = schema::parse("test-alert", out.as_bytes());
    assert_eq!((status, &document["agent"], document["channels"].as_array().map(Vec::len)), (0, &true.into(), Some(1)));
    assert_eq!(served.desk.asked()[1], format!("test Some([\"webhook\"]) critical false by {me}"));
    let (status, _, err) = run(&served, "test-alert --channel carrier-pigeon");
    assert!(status == 64 && err.contains("expected one of console, "), "{err}");
}

#[tokio::test]
async fn a_test_is_sent_from_here_where_no_agent_runs() {
    if !require(agent::missing()) {
        return;
    }
    let answers = ["200 OK", "403 Forbidden", "503 Service Unavailable", "200 OK"].map(Answer::status);
    let far_end = FarEnd::start(answers).await;
    let scratch = Scratch::new();
    let configuration = format!(
        "[agent]\nhostname = \"web-1\"\ndata_dir = \"{}\"\n[alerting.webhook]\nenabled = true\nurl = \"{}/hook\"\n",
        scratch.path().display(),
        far_end.url
    );
    let config = scratch.file("config.toml", &configuration).display().to_string();
    let test = |arguments: &'static str| {
        let config = config.clone();
        async move { tokio::task::spawn_blocking(move || run_by(&config, arguments)).await.expect("no panic") }
    };
    let (status, out, err) = test("test-alert --channel webhook").await;
    assert_eq!((status, err.as_str()), (0, "no agent runs with this configuration: sending from here\n"), "{out}");
    assert!(out.lines().any(|line| line.starts_with("webhook    delivered") && line.ends_with(" s  200 OK")), "{out}");
    let seen = far_end.wait_for(1).await;
    let body = schema::parse("webhook", &seen[0].body);
    let message = body["message"].as_str().expect("text");
    assert!(message.starts_with(&format!("This is a test by {} on web-1: nothing is wrong.", me())), "{message}");
    assert_eq!((&body["hostname"], &body["severity"]), (&"web-1".into(), &"critical".into()));
    let (status, out, _) = test("test-alert --json").await;
    let document = schema::parse("test-alert", out.as_bytes());
    assert_eq!((status, &document["agent"]), (1, &false.into()));
    assert_eq!(document["channels"][0]["result"], "refused", "{document}");
    let (status, out, _) = test("test-alert --channel webhook").await;
    assert_eq!((status, far_end.seen().len()), (0, 4), "it is tried again as the agent would: {out}");
    let (status, _, err) = test("test-alert --channel syslog").await;
    assert!(status == 1 && err.ends_with("error: syslog: not enabled: set alerting.syslog.enabled = true\n"), "{err}");
}

#[test]
fn who_cannot_be_asked_is_explained() {
    if !require(agent::missing()) {
        return;
    }
    let mut served = Served::start(CONFIGURATION);
    served.stop();
    for command in ["alerts", "ack 8f", "silence list", "silence remove 1", "outbox"] {
        let (status, out, err) = run(&served, command);
        assert_eq!((status, out.as_str()), (69, ""), "{command}");
        assert!(err.contains("control.sock: no agent listens there\nhint: is the agent running"), "{command}: {err}");
    }
    let scratch = Scratch::new();
    let none = scratch.file("config.toml", "[agent]\ncontrol_socket = \"\"\n").display().to_string();
    let (status, _, err) = run_by(&none, "alerts");
    assert!(status == 69 && err.contains("agent.control_socket or agent.data_dir is empty"), "{err}");
    let wrong = scratch.file("config.toml", "[agent]\ncontrol_socket = 1\n").display().to_string();
    let (status, _, err) = run_by(&wrong, "alerts");
    assert!(status == 78 && err.contains("config.toml:2:18"), "{err}");
}

#[test]
fn secrets_of_the_service_are_not_needed_to_ask_it() {
    if !require(agent::missing()) {
        return;
    }
    let hook = "[alerting.webhook]\nenabled = true\nurl = \"${SYSOPS_TEST_NOT_SET}\"\n[[some.table]]\n";
    let served = Served::start(&format!("{CONFIGURATION}hostname = \"${{SYSOPS_TEST_NOT_SET}}\"\n{hook}"));
    // A table that nobody knows is a mistake all the same.
    let (status, _, err) = run(&served, "outbox");
    assert!(status == 78 && err.contains("unknown table [some]"), "{err}");
    let known = hook.replace("[[some.table]]\n", "");
    let served = Served::start(&format!("{CONFIGURATION}hostname = \"${{SYSOPS_TEST_NOT_SET}}\"\n{known}"));
    assert_eq!(run(&served, "outbox").0, 0);
    assert_eq!(run(&served, "test-alert --channel webhook").0, 0, "the agent has them");
}

#[test]
fn others_may_not_ask() {
    if !require(agent::missing().or_else(user::missing)) {
        return;
    }
    let served = Served::start(CONFIGURATION);
    let config = served.config();
    let ask = |user: Launch| parts(&user.run(&["--config", &config, "alerts"]));
    let (status, _, err) = ask(user::ordinary());
    assert_eq!(status, 77, "{err}");
    assert!(err.contains("this user may not ask it\nhint: root and the agent's own user may: use sudo"), "{err}");
    assert_eq!(ask(user::service()).0, 77, "capabilities to read give no right to write");
    // If someone opens it, the agent still looks at who comes.
    std::fs::set_permissions(served.socket(), std::fs::Permissions::from_mode(0o666)).expect("ours");
    let (status, _, err) = ask(user::ordinary());
    assert_eq!((status, err.as_str()), (1, "error: only root and the agent's own user may\n"));
    assert_eq!(served.desk.asked(), [""; 0]);
}
