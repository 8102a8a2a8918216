//! The agent's control socket with a desk behind it that only notes what it is asked, on a thread of its own.
#![expect(clippy::panic, reason = "a test fails by panic")]

use std::path::PathBuf;
use std::rc::Rc;
use std::sync::{Arc, Mutex, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use sysops_agent::control::{Control, Desk};
use sysops_agent::host::{Clock, Host, Roots};
use sysops_agent::model::report::Report;
use sysops_agent::model::{ChannelStatus, Fate, Listed, Matcher, OutboxStatus, Outcome, Severity, Silence, Standing};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;
use tokio::task::LocalSet;

use crate::servers::Scratch;

/// The fingerprint of the alert that there is.
pub const FINGERPRINT: u64 = 0x8f3a_1c2e_0011_2233;

/// Notes what it is asked and answers with one alert, one silence and two channels.
#[derive(Clone, Default)]
pub struct Noting {
    asked: Arc<Mutex<Vec<String>>>,
    telling: Arc<Mutex<Vec<UnboundedSender<Outcome>>>>,
}

impl Noting {
    /// What was asked so far.
    ///
    /// # Panics
    /// When another holder of the list has.
    #[must_use]
    pub fn asked(&self) -> Vec<String> {
        self.asked.lock().expect("no holder panics").clone()
    }

    fn note(&self, what: String) {
        self.asked.lock().expect("no holder panics").push(what);
    }
}

fn alert(standing: Standing, because: &str) -> Listed {
    let now = Clock::Live.now().wall;
    Listed {
        fingerprint: FINGERPRINT,
        standing,
        severity: Severity::Critical,
        rule: "thresholds.disk_percent".to_owned(),
        metric: "disk_usage_percent".to_owned(),
        labels: [("mountpoint", "/da\u{1b}[2Jta"), ("fstype", "ext4")]
            .map(|(a, b)| (a.to_owned(), b.to_owned()))
            .into(),
        value: 98.1,
        threshold: 90.0,
        message: "Disk usage is 98.1 %\n of /data".to_owned(),
        // In the middle of a minute, so that the test need not hurry.
        starts_at: now.checked_sub(Duration::from_secs(7530)).unwrap_or(now),
        because: because.to_owned(),
    }
}

fn made(id: u64, matcher: Matcher, length: Duration, by: &str, comment: &str) -> Silence {
    let starts_at = SystemTime::UNIX_EPOCH + Duration::from_secs(1_771_777_800);
    Silence { id, matcher, starts_at, ends_at: starts_at + length, by: by.to_owned(), comment: comment.to_owned() }
}

fn matcher(text: &str) -> Matcher {
    text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
}

impl Desk for Noting {
    fn alerts(&self) -> Vec<Listed> {
        self.note("alerts".to_owned());
        let pending = Listed { fingerprint: 1, ..alert(Standing::Pending, "") };
        vec![alert(Standing::Firing, ""), pending]
    }

    fn acknowledge(&self, alert: &str, by: &str, note: &str) -> Result<Listed, String> {
        self.note(format!("ack {alert} by {by}: {note}"));
        match format!("{FINGERPRINT:016x}").starts_with(alert) {
            true => Ok(self::alert(Standing::Acknowledged, &format!("{by}: {note}"))),
            false => Err(format!("no alert begins with {alert}")),
        }
    }

    fn unacknowledge(&self, alert: &str, by: &str) -> Result<Listed, String> {
        self.note(format!("unack {alert} by {by}"));
        Ok(self::alert(Standing::Firing, ""))
    }

    fn silence(&self, matcher: Matcher, length: Duration, by: &str, comment: &str) -> Result<Silence, String> {
        self.note(format!("silence {matcher} for {length:?} by {by}: {comment}"));
        Ok(made(3, matcher, length, by, comment))
    }

    fn unsilence(&self, id: u64, by: &str) -> Result<Silence, String> {
        self.note(format!("unsilence {id} by {by}"));
        match id {
            3 => Ok(made(3, matcher("metric=disk_*"), Duration::from_secs(60), "ann", "")),
            _ => Err(format!("no silence has the number {id}")),
        }
    }

    fn kept(&self) -> oneshot::Receiver<()> {
        let (receipt, kept) = oneshot::channel();
        let desk = self.clone();
        tokio::task::spawn_local(async move {
            tokio::time::sleep(Duration::from_millis(50)).await;
            desk.note("kept".to_owned());
            _ = receipt.send(());
        });
        kept
    }

    fn silences(&self) -> Vec<Silence> {
        vec![made(3, matcher("metric=disk_*"), Duration::from_secs(60), "ann\u{202e}", "a\tcomment")]
    }

    fn test_alert(
        &self,
        channels: Option<Vec<String>>,
        severity: Severity,
        resolved: bool,
        by: &str,
    ) -> Result<(Vec<String>, UnboundedReceiver<Outcome>), String> {
        self.note(format!("test {channels:?} {} {resolved} by {by}", severity.name()));
        let (tell, outcomes) = unbounded_channel();
        let later = |reason: &str, in_secs| Fate::Later { reason: reason.to_owned(), in_secs };
        let answers = [
            ("webhook", later("the server answered 503", 1)),
            ("webhook", Fate::Delivered { answer: "204 No Content".to_owned() }),
            ("syslog", later("/dev/log\u{1b}: gone", 300)),
        ];
        let wanted = |channel: &str| channels.as_ref().is_none_or(|wanted| wanted.iter().any(|name| name == channel));
        for (channel, result) in answers.into_iter().filter(|(channel, _)| wanted(channel)) {
            let told = tell.send(Outcome { channel: channel.to_owned(), result });
            told.unwrap_or_else(|_| panic!("its receiver is here"));
        }
        // The outbox goes on: the stream does not end.
        self.telling.lock().expect("no holder panics").push(tell);
        let sent_to = ["webhook", "syslog"].into_iter().filter(|channel| wanted(channel)).map(str::to_owned);
        Ok((sent_to.collect(), outcomes))
    }

    fn report(&self) -> oneshot::Receiver<Box<Report>> {
        // Nobody here has one to give.
        oneshot::channel().1
    }

    fn outbox(&self) -> OutboxStatus {
        let webhook = ChannelStatus {
            channel: "webhook".to_owned(),
            enabled: true,
            waiting: 2,
            oldest_secs: Some(90),
            next_try_secs: Some(4),
            last_error: Some("the server answered 503".to_owned()),
            delivered: 7,
            parked: 1,
            ..ChannelStatus::default()
        };
        OutboxStatus { problem: None, records: 2, bytes: 4096, channels: vec![webhook] }
    }
}

/// A control socket that is served.
pub struct Served {
    /// The folder with the socket and the configuration.
    pub scratch: Scratch,
    /// The desk, where it is one that notes.
    pub desk: Noting,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Served {
    /// Serves [`Noting`] by this configuration, in which `@DATA@` stands for its folder.
    ///
    /// # Panics
    /// When it cannot.
    #[must_use]
    pub fn start(configuration: &str) -> Self {
        let desk = Noting::default();
        let theirs = desk.clone();
        let mut served = Self::with(configuration, move || Rc::new(theirs));
        served.desk = desk;
        served
    }

    /// The same with another desk, which is made on the thread that serves it.
    ///
    /// # Panics
    /// When it cannot.
    #[must_use]
    pub fn with(configuration: &str, make: impl FnOnce() -> Rc<dyn Desk> + Send + 'static) -> Self {
        let scratch = Scratch::new();
        let data = scratch.path().display().to_string();
        let _ = scratch.file("config.toml", &configuration.replace("@DATA@", &data));
        let (stop, stopped) = oneshot::channel();
        let (ready, is_ready) = mpsc::channel();
        let path = scratch.path().join("control.sock");
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("an event loop");
            LocalSet::new().block_on(&runtime, async move {
                let host = Host::live(&Roots::default());
                let _control = Control::start(&path, &host, make()).expect("the folder is ours");
                ready.send(()).expect("it is waited for");
                _ = stopped.await;
            });
        });
        is_ready.recv_timeout(Duration::from_secs(20)).expect("the socket is served");
        Self { scratch, desk: Noting::default(), stop: Some(stop), thread: Some(thread) }
    }

    /// Where the socket is.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.scratch.path().join("control.sock")
    }

    /// Where the configuration is.
    #[must_use]
    pub fn config(&self) -> String {
        self.scratch.path().join("config.toml").display().to_string()
    }

    /// Ends it, as the end of the agent does.
    pub fn stop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            _ = thread.join();
        }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.stop();
    }
}
