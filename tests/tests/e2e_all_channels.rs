//! A real OOM kill through every channel at once, each to a far end that reads it as the real one does; and nothing of it again
//! after a restart.

use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use sysops_tests::agent::{self, Agent};
use sysops_tests::far_ends::{discord, slack, telegram};
use sysops_tests::feed::until;
use sysops_tests::http_far_end::FarEnd;
use sysops_tests::memory_cgroup::{MemoryCgroup, be_victim, kill_one};
use sysops_tests::require::require;
use sysops_tests::servers::{self, Scratch, find_program, free_port};
use sysops_tests::smtp_far_end;
use sysops_tests::subscriber::subscribe;

const LONG: Duration = Duration::from_secs(60);

#[test]
fn victim() {
    be_victim();
}

fn missing() -> Option<String> {
    let no_server = || find_program("nats-server").is_none().then(|| "nats-server is not installed".to_owned());
    agent::missing().or_else(MemoryCgroup::missing).or_else(no_server)
}

/// Bodies that name the process.
fn about(far_end: &FarEnd, comm: &str) -> Vec<serde_json::Value> {
    let named = far_end.seen().into_iter().filter(|request| String::from_utf8_lossy(&request.body).contains(comm));
    named.map(|request| request.json()).collect()
}

#[test]
fn a_kill_reaches_each_of_them_once() {
    if !require(missing()) {
        return;
    }
    let (scratch, port) = (Scratch::new(), free_port());
    let _server = servers::nats(port, "").expect("it was found");
    let socket = scratch.path().join("log");
    let log = UnixDatagram::bind(&socket).expect("a socket of our own");
    log.set_nonblocking(true).expect("a socket of our own");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    tokio::task::LocalSet::new().block_on(&runtime, async {
        let [to_discord, to_slack, to_telegram, to_webhook] = [
            FarEnd::answering(discord::answer).await,
            FarEnd::answering(slack::answer).await,
            FarEnd::answering(telegram::answer).await,
            FarEnd::start([]).await,
        ];
        let to_mail = smtp_far_end::FarEnd::start([]).await;
        let to_nats = subscribe(async_nats::ConnectOptions::new(), port, "sysops.*.alerts").await;
        let configuration = format!(
            "[agent]\ndata_dir = \"{data}\"\nhostname = \"web-1\"\ncollect_interval_secs = 1\n[alerting]\ngroup_by = []\n\
             [alerting.discord]\nenabled = true\nwebhook_url = \"{}/api/webhooks/1/x\"\n\
             [alerting.slack]\nenabled = true\nwebhook_url = \"{}/services/x\"\n\
             [alerting.telegram]\nenabled = true\nbot_token = \"1:x\"\nchat_id = \"-1\"\napi_url = \"{}\"\n\
             [alerting.webhook]\nenabled = true\nurl = \"{}/\"\n\
             [alerting.email]\nenabled = true\nsmtp_host = \"127.0.0.1\"\nsmtp_port = {}\nsmtp_tls = false\n\
             from = \"agent@web-1.example\"\nto = [\"ann@example.com\"]\n\
             [alerting.syslog]\nenabled = true\npath = \"{}\"\n\
             [nats]\nenabled = true\nurl = \"nats://127.0.0.1:{port}\"\n",
            to_discord.url,
            to_slack.url,
            to_telegram.url,
            to_webhook.url,
            to_mail.port,
            socket.display(),
            data = scratch.path().display(),
        );
        let agent = Agent::start(&configuration, &[]);
        agent.wait_until_ready();
        let comm = "allchannels";
        let pid = kill_one(comm).to_string();

        until("the webhook has it", LONG, || about(&to_webhook, comm).len() == 1).await;
        let alert = about(&to_webhook, comm).remove(0);
        assert_eq!((alert["metric"].as_str(), alert["labels"]["pid"].as_str()), (Some("oom_kill"), Some(pid.as_str())));
        assert_eq!(alert["context"]["host"][0][0], "system", "{alert:#}");
        for (name, far_end) in [("discord", &to_discord), ("slack", &to_slack), ("telegram", &to_telegram)] {
            until(name, LONG, || about(far_end, comm).len() == 1).await;
        }
        assert!(discord::take(&about(&to_discord, comm)[0]).is_ok());
        assert!(slack::take(&about(&to_slack, comm)[0]).is_ok());
        assert!(telegram::take(&about(&to_telegram, comm)[0]).is_ok_and(|posted| posted.text.contains(comm)));
        until("mail", LONG, || !to_mail.mails().is_empty()).await;
        let mail = to_mail.mails().remove(0);
        assert_eq!(mail.to, ["ann@example.com"]);
        let id = alert["id"].as_str().expect("it has one").to_owned();
        assert!(mail.data.contains(&format!("Message-ID: <{id}@")), "{}", mail.data);
        until("nats", LONG, || to_nats.borrow().iter().any(|got| got.document["id"] == id.as_str())).await;
        let mut record = [0_u8; 16 << 10];
        let mut records = Vec::new();
        until("syslog", LONG, || {
            while let Ok(length) = log.recv(&mut record) {
                records.push(String::from_utf8_lossy(&record[..length]).into_owned());
            }
            records.iter().any(|record| record.contains(comm))
        })
        .await;

        // All of them have it: an agent that dies now has nothing left to tell.
        agent.wait_until("it is written down", |agent| waiting(agent) == Some(0));
        drop(agent);
        let again = Agent::start(&configuration, &[]);
        again.wait_until_ready();
        let second = kill_one("allonce").to_string();
        until("the next kill comes", LONG, || about(&to_webhook, &second).len() == 1).await;
        let mails = |comm: &str| to_mail.mails().iter().filter(|mail| mail.data.contains(comm)).count();
        until("the next mail comes", LONG, || mails("allonce") == 1).await;
        // The second alert tells of the first kill, as an event of late.
        assert_eq!(mails(comm), 2, "mail: once");
        for (name, far_end) in
            [("discord", &to_discord), ("slack", &to_slack), ("telegram", &to_telegram), ("webhook", &to_webhook)]
        {
            until(name, LONG, || about(far_end, "allonce").len() == 1).await;
            let of_the_first = about(far_end, comm).into_iter().filter(|body| !body.to_string().contains("allonce"));
            assert_eq!(of_the_first.count(), 1, "{name}: once");
        }
        assert_eq!(to_nats.borrow().iter().filter(|got| got.document["id"] == id.as_str()).count(), 1);
    });
}

/// Notices that wait for some channel, by the agent's own word.
fn waiting(agent: &Agent) -> Option<u64> {
    let file = agent.directory().join("config.toml").display().to_string();
    let output = agent::run(&["--config", &file, "outbox", "--json"]);
    serde_json::from_slice::<serde_json::Value>(&output.stdout).ok()?["records"].as_u64()
}
