//! The running agent, asked by the command line: what people do to its alerts holds, also over its death, and it runs on
//! where it can have no socket.

use std::process::Output;
use std::time::Duration;

use rustix::process::Signal;
use sysops_tests::agent::{self, Agent};
use sysops_tests::http_far_end::{Answer, FarEnd};
use sysops_tests::require::require;
use sysops_tests::{schema, user};

/// Memory is used on every machine, so that an alert fires in the first round.
const FIRES: &str = "[agent]\ndata_dir = \"@DATA@\"\ncollect_interval_secs = 1\n[collector]\nmemory_interval_secs = 1\n\
                     [[rule]]\nname = \"memory_is_used\"\nmetric = \"memory_used_percent\"\nthreshold = 0\n";

fn ask(agent: &Agent, arguments: &str) -> Output {
    let config = agent.directory().join("config.toml").display().to_string();
    agent::run(&["--config", &config].into_iter().chain(arguments.split(' ')).collect::<Vec<_>>())
}

fn said(agent: &Agent, arguments: &str) -> String {
    let output = ask(agent, arguments);
    assert!(output.status.success(), "{arguments}: {output:?}\n{}", agent.stderr());
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// Digits, standing and reason of the alert of the rule, as soon as it fires.
fn alert(agent: &Agent) -> (String, String, String) {
    let mut found = None;
    agent.wait_until("the rule's alert is listed", |agent| {
        let document = schema::parse("alerts", said(agent, "alerts --json").as_bytes());
        let alerts = document["alerts"].as_array().expect("a list").clone();
        found = alerts.into_iter().find(|alert| alert["rule"] == "memory_is_used");
        found.is_some()
    });
    let alert = found.expect("it was waited for");
    let text = |key: &str| alert[key].as_str().unwrap_or_default().to_owned();
    (text("fingerprint"), text("standing"), text("because"))
}

#[test]
fn what_people_did_holds_over_the_agents_death() {
    if !require(agent::missing()) {
        return;
    }
    let mut first = Agent::start(FIRES, &[]);
    first.wait_until_ready();
    let (digits, standing, _) = alert(&first);
    assert_eq!(standing, "firing");
    let told = said(&first, &format!("ack {digits} --note ticket_4711"));
    assert!(told.starts_with(&format!("acknowledged: {digits} warn memory_used_percent")), "{told}");
    let told = said(&first, "silence add --for 2h --comment night metric=disk_*");
    assert!(told.contains(": metric=disk_*"), "{told}");
    // What was answered is kept, whatever happens now.
    first.signal(Signal::KILL);
    first.end(Duration::from_secs(20));
    assert!(first.stderr().contains("alert acknowledged"), "who did it is in the log");
    let output = ask(&first, "alerts");
    assert_eq!(output.status.code(), Some(69), "its socket is left over, and nobody listens");
    let second = Agent::start(&FIRES.replace("@DATA@", &first.directory().display().to_string()), &[]);
    second.wait_until_ready();
    let (_, standing, because) = alert(&second);
    assert!(standing == "acknowledged" && because.ends_with(": ticket_4711"), "{standing}: {because}");
    assert!(said(&second, "silence list").contains("metric=disk_*"));
}

#[test]
fn the_socket_goes_with_the_agent_and_a_second_agent_runs_without() {
    if !require(agent::missing()) {
        return;
    }
    let mut first = Agent::start(FIRES, &[]);
    first.wait_until_ready();
    let socket = first.directory().join("control.sock");
    assert!(socket.exists());
    let second = Agent::start(&FIRES.replace("@DATA@", &first.directory().display().to_string()), &[]);
    second.wait_until_ready();
    let said = second.stderr();
    assert!(said.contains("another agent keeps its state here") && said.matches("WARN").count() == 1, "{said}");
    alert(&first);
    first.signal(Signal::TERM);
    assert!(first.end(Duration::from_secs(20)).success());
    assert!(!socket.exists(), "it is gone");
}

#[test]
fn an_ordinary_user_without_a_directory_runs_without_and_says_so_once() {
    if !require(agent::missing().or_else(user::missing)) {
        return;
    }
    let agent = user::ordinary().start("[agent]\ndata_dir = \"/nonexistent/sysops\"\n", &[]);
    agent.wait_until_ready();
    let log = agent.stderr();
    assert_eq!(log.matches("no control socket").count(), 1, "{log}");
    assert!(log.contains("make agent.data_dir a directory that the agent may write to"), "{log}");
    assert_eq!(ask(&agent, "alerts").status.code(), Some(69));
}

#[test]
fn the_services_user_is_asked_by_root_and_by_itself() {
    if !require(agent::missing().or_else(user::missing)) {
        return;
    }
    let agent = user::service().start(FIRES, &[]);
    agent.wait_until_ready();
    alert(&agent);
    let config = agent.directory().join("config.toml").display().to_string();
    let by_itself = user::ordinary().run(&["--config", &config, "outbox"]);
    assert!(by_itself.status.success(), "{by_itself:?}");
}

#[tokio::test]
async fn a_test_arrives_and_its_answer_is_told() {
    if !require(agent::missing()) {
        return;
    }
    let far_end = FarEnd::start([Answer::status("500 Internal Server Error"), Answer::status("200 OK")]).await;
    let webhook =
        format!("[alerting.webhook]\nenabled = true\nmin_severity = \"emergency\"\nurl = \"{}/\"\n", far_end.url);
    let configuration = format!("{FIRES}{webhook}");
    let work = move || {
        let agent = Agent::start(&configuration, &[]);
        agent.wait_until_ready();
        let tested = ask(&agent, "test-alert --channel webhook --json");
        let skipped = ask(&agent, "test-alert --json");
        let queues = said(&agent, "outbox --json");
        (tested, skipped, queues)
    };
    let (tested, skipped, queues) = tokio::task::spawn_blocking(work).await.expect("no panic");
    let document = schema::parse("test-alert", &tested.stdout);
    assert_eq!(document["agent"], true, "{tested:?}");
    let webhook = &document["channels"][0];
    assert_eq!((tested.status.code(), &webhook["result"]), (Some(0), &"delivered".into()), "{document}");
    assert!(webhook["answer"].as_str().is_some_and(|answer| answer.starts_with("200")), "{document}");
    let seen = far_end.wait_for(2).await;
    let message = seen[1].json()["message"].as_str().expect("text").to_owned();
    assert!(message.starts_with("This is a test by "), "{message}");
    let document = schema::parse("test-alert", &skipped.stdout);
    let result = |name: &str| {
        let channels = document["channels"].as_array().expect("a list");
        channels.iter().find(|one| one["channel"] == name).expect("it is told of")["result"].clone()
    };
    assert_eq!((result("webhook"), result("console")), ("skipped".into(), "delivered".into()));
    let document = schema::parse("outbox", queues.as_bytes());
    let channels = document["channels"].as_array().expect("a list");
    let webhook = channels.iter().find(|one| one["channel"] == "webhook").expect("it is enabled");
    assert_eq!(webhook["delivered"], 1, "{document}");
}
