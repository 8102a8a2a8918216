//! The command line, the control socket and the book together: an alert that fires is acknowledged, silenced and heard again.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::{Duration, SystemTime};

use sysops_agent::alert::Book;
use sysops_agent::analyze::{Analyzer, threshold::Threshold};
use sysops_agent::control::Desk;
use sysops_agent::host::Clock;
use sysops_agent::model::report::Report;
use sysops_agent::model::{
    Listed, Matcher, Metric, OutboxStatus, Outcome, Readings, Series, SeriesValue, Severity, Silence, Unit,
};
use sysops_agent::spec::Values;
use sysops_tests::agent;
use sysops_tests::desk::Served;
use sysops_tests::require::require;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::oneshot;

static DISK: Metric<3> = Metric::gauge("disk_usage_percent", Unit::Percent, "", &["device", "mountpoint", "fstype"]);

/// A full file system, and a fuller one.
struct Disks;

impl Readings for Disks {
    fn time(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH
    }

    fn visit(&self, each: &mut dyn FnMut(Series<'_>)) {
        for (key, value) in [("/dev/a\0/\0ext4\0", 93.0), ("/dev/b\0/data\0xfs\0", 99.0)] {
            each(Series { metric: DISK.desc(), key, value: SeriesValue::Number(value) });
        }
    }
}

struct Real {
    book: RefCell<Book>,
    clock: Clock,
}

impl Real {
    /// With both alerts firing.
    fn firing() -> Self {
        let values = Values::default();
        let (mut book, clock, mut threshold) = (Book::new(&values, "web-1"), Clock::fixed(), Threshold::new(&values));
        for _ in 0..6 {
            let now = clock.now();
            threshold.judge(&Disks, &mut |finding| book.finding(finding, &now));
            book.tick(&Disks, &now);
            clock.advance(Duration::from_secs(10));
        }
        Self { book: RefCell::new(book), clock }
    }
}

impl Desk for Real {
    fn alerts(&self) -> Vec<Listed> {
        self.book.borrow().list(&self.clock.now())
    }

    fn acknowledge(&self, alert: &str, by: &str, note: &str) -> Result<Listed, String> {
        self.book.borrow_mut().acknowledge(alert, by, note, &self.clock.now())
    }

    fn unacknowledge(&self, alert: &str, _by: &str) -> Result<Listed, String> {
        self.book.borrow_mut().unacknowledge(alert, &self.clock.now())
    }

    fn silence(&self, matcher: Matcher, length: Duration, by: &str, comment: &str) -> Result<Silence, String> {
        self.book.borrow_mut().silence(matcher, length, by, comment, &self.clock.now())
    }

    fn unsilence(&self, id: u64, _by: &str) -> Result<Silence, String> {
        self.book.borrow_mut().unsilence(id)
    }

    fn kept(&self) -> oneshot::Receiver<()> {
        // There is no disk, and nobody waits for it.
        oneshot::channel().1
    }

    fn silences(&self) -> Vec<Silence> {
        self.book.borrow().silences(&self.clock.now())
    }

    fn test_alert(
        &self,
        _: Option<Vec<String>>,
        _: Severity,
        _: bool,
        _: &str,
    ) -> Result<(Vec<String>, UnboundedReceiver<Outcome>), String> {
        Err("there is no channel here".to_owned())
    }

    fn report(&self) -> oneshot::Receiver<Box<Report>> {
        // Nobody here has one to give.
        oneshot::channel().1
    }

    fn outbox(&self) -> OutboxStatus {
        OutboxStatus::default()
    }
}

#[test]
fn an_alert_is_taken_care_of_and_silenced_and_heard_again() {
    if !require(agent::missing()) {
        return;
    }
    let served = Served::with("[agent]\ndata_dir = \"@DATA@\"\n", || Rc::new(Real::firing()));
    let config = served.config();
    let run = |arguments: &str| {
        let output = agent::run(&["--config", &config].into_iter().chain(arguments.split(' ')).collect::<Vec<_>>());
        assert!(output.status.success(), "{arguments}: {output:?}");
        String::from_utf8(output.stdout).expect("UTF-8")
    };
    // By mount point: digits, severity, standing, and what keeps it.
    let alert = |mount: &str| {
        let document: serde_json::Value = serde_json::from_str(&run("alerts --json")).expect("JSON");
        let alerts = document["alerts"].as_array().expect("a list").clone();
        let found = alerts.into_iter().find(|alert| alert["labels"]["mountpoint"] == mount).expect("it is live");
        let text = |key: &str| found[key].as_str().unwrap_or_default().to_owned();
        (text("fingerprint")[..8].to_owned(), text("severity"), text("standing"), text("because"))
    };
    let table = run("alerts");
    let severities: Vec<&str> = table.lines().filter_map(|line| line.get(10..18)).map(str::trim_end).collect();
    assert_eq!([severities[1], severities[3]], ["critical", "warn"], "the worst first\n{table}");
    let (digits, severity, standing, _) = alert("/data");
    assert_eq!((severity.as_str(), standing.as_str()), ("critical", "firing"));

    run(&format!("ack {digits} --note replacing"));
    let (_, _, standing, because) = alert("/data");
    assert!(standing == "acknowledged" && because.ends_with(": replacing"), "{because}");
    run(&format!("ack {digits} --undo"));
    assert_eq!(alert("/data").2, "firing");

    let told = run("silence add --for 2h metric=disk_* mountpoint=/");
    assert!(told.ends_with("\n1 alert that is live now matches\n"), "{told}");
    assert_eq!((alert("/").2.as_str(), alert("/data").2.as_str()), ("silenced", "firing"));
    let id = told.split(' ').nth(1).expect("silence ID until …").to_owned();
    assert!(run("silence list").contains("metric=disk_* mountpoint=/"));
    run(&format!("silence remove {id}"));
    assert_eq!(alert("/").2, "firing");
    assert_eq!(run("silence list"), "no silences\n");
}
