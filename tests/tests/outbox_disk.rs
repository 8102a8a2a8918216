//! The outbox on disks that are full, hang, cannot be written to or fail: what is accepted goes out all the same, that it would not
//! survive is counted, and once the disk takes it again it does.
#![expect(
    clippy::disallowed_methods,
    clippy::panic,
    reason = "tests are outside of the agent: they run programs, read clocks and fail by panic"
)]

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use sysops_agent::deliver::Outbox;
use sysops_agent::deliver::outbox::Plan;
use sysops_agent::model::{Batch, Reading};
use sysops_agent::spec::Value;
use sysops_tests::feed::{run, until};
use sysops_tests::frozen_mount::FrozenMount;
use sysops_tests::http_far_end::{Answer, FarEnd};
use sysops_tests::outbox_child::{self, Task, notice, webhook};
use sysops_tests::own_namespace::is_inside;
use sysops_tests::require::{self, require};
use sysops_tests::servers::Scratch;
use sysops_tests::values::values;

const LONG: Duration = Duration::from_secs(40);

/// Not a test: what the others start.
#[test]
fn child() {
    outbox_child::be();
}

/// What is missing to mount a disk that only the test sees.
fn no_disk() -> Option<String> {
    FrozenMount::missing().or_else(|| require::programs(&["unshare"]))
}

fn open(data: &Path, far_end: &FarEnd) -> Outbox {
    let plan = Plan::new(&values([
        ("alerting.console.enabled", Value::Bool(false)),
        ("alerting.webhook.enabled", Value::Bool(true)),
        ("alerting.webhook.url", Value::Text(far_end.url.clone())),
        ("alerting.outbox_max_bytes", Value::Int(4 << 20)),
    ]));
    Outbox::open(plan.expect("right"), Some(data), Arc::new(SystemTime::now))
}

fn not_durable(outbox: &Outbox) -> f64 {
    let mut batch = Batch::default();
    outbox.collect(&mut batch);
    let entry = batch.iter().find(|(entry, _)| entry.metric.name == "outbox_not_durable_total").expect("it is told");
    match entry.0.reading {
        Reading::Counter(value) => value,
        ref other => panic!("{other:?}"),
    }
}

fn shell(script: &str) {
    let output = Command::new("sh").args(["-c", script]).output().expect("sh is there");
    assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn on_a_full_disk_the_reserve_takes_the_first_and_memory_the_rest() {
    if !require(no_disk()) || !is_inside("on_a_full_disk_the_reserve_takes_the_first_and_memory_the_rest") {
        return;
    }
    run(async {
        let disk = FrozenMount::thawed("8M");
        let far_end = FarEnd::start([]).await;
        let outbox = open(&disk.at(), &far_end);
        outbox.send(&notice(0));
        outbox.wait_durable(outbox.sent()).await;
        let filler = disk.file("filler");
        shell(&format!("! dd if=/dev/zero of={} bs=4k 2>/dev/null", filler.display()));
        // The alert that the disk is full.
        outbox.send(&notice(1));
        outbox.wait_durable(outbox.sent()).await;
        assert_eq!(not_durable(&outbox), 0.0);

        let mut sent = 2;
        while outbox.status().problem.is_none() {
            assert!(sent < 10_000, "the disk is never full");
            for number in sent..sent + 50 {
                let mut long = notice(number);
                long.alerts[0].message = "x".repeat(2000);
                outbox.send(&long);
            }
            sent += 50;
            let all = usize::try_from(sent).expect("few");
            until("all are delivered", LONG, || far_end.seen().len() == all).await;
        }
        let problem = outbox.status().problem.expect("it is full");
        assert!(problem.contains("No space left on device"), "{problem}");
        assert!(not_durable(&outbox) > 0.0);

        std::fs::remove_file(&filler).expect("ours");
        outbox.send(&notice(sent));
        until("the disk takes it again", LONG, || outbox.status().problem.is_none()).await;
        outbox.wait_durable(outbox.sent()).await;
        assert_eq!(outbox.drain(Duration::from_secs(5)).await, 0);
    });
}

#[test]
fn a_disk_that_hangs_holds_nothing_up_for_longer_than_a_moment() {
    if !require(no_disk()) || !is_inside("a_disk_that_hangs_holds_nothing_up_for_longer_than_a_moment") {
        return;
    }
    run(async {
        let mut disk = FrozenMount::thawed("16M");
        let far_end = FarEnd::start([]).await;
        let outbox = open(&disk.at(), &far_end);
        outbox.send(&notice(0));
        outbox.wait_durable(outbox.sent()).await;
        disk.freeze();
        for number in 1..20 {
            outbox.send(&notice(number));
        }
        until("all are delivered", LONG, || far_end.seen().len() == 20).await;
        assert_eq!(not_durable(&outbox), 19.0);
        disk.thaw();
        outbox.send(&notice(20));
        outbox.wait_durable(outbox.sent()).await;
        assert_eq!(not_durable(&outbox), 19.0);
        assert_eq!(outbox.drain(Duration::from_secs(5)).await, 0);
        // Nothing of that is delivered again.
        let outbox = open(&disk.at(), &far_end);
        assert_eq!(outbox.status().records, 0);
        outbox.drain(Duration::from_secs(5)).await;
    });
}

#[test]
fn a_disk_that_cannot_be_written_to_is_used_as_soon_as_it_can() {
    if !require(no_disk()) || !is_inside("a_disk_that_cannot_be_written_to_is_used_as_soon_as_it_can") {
        return;
    }
    run(async {
        let disk = FrozenMount::thawed("8M");
        shell(&format!("mount -o remount,ro {}", disk.at().display()));
        let far_end = FarEnd::start([]).await;
        let outbox = open(&disk.at(), &far_end);
        outbox.send(&notice(0));
        until("it is delivered", LONG, || far_end.seen().len() == 1).await;
        assert!(outbox.status().problem.is_some_and(|problem| problem.contains("Read-only file system")));
        assert_eq!(not_durable(&outbox), 1.0);
        shell(&format!("mount -o remount,rw {}", disk.at().display()));
        until("the disk is used", LONG, || outbox.status().problem.is_none()).await;
        outbox.send(&notice(1));
        outbox.wait_durable(outbox.sent()).await;
        assert_eq!(not_durable(&outbox), 1.0);
        assert_eq!(outbox.drain(Duration::from_secs(5)).await, 0);
    });
}

/// Calls to write and to sync fail with EIO while the file `$FAULT` is there, those to sync while `$NO_SYNC` is; one write in two is
/// done in half before. Each sync that failed is a byte in `$LOG`.
const SHIM: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>
static int there(const char *name) { const char *path = getenv(name); return path && access(path, F_OK) == 0; }
static int broken(void) { return there("FAULT"); }
ssize_t pwrite64(int fd, const void *bytes, size_t count, off_t at) {
    static ssize_t (*real)(int, const void *, size_t, off_t);
    static unsigned calls;
    if (!real) real = dlsym(RTLD_NEXT, "pwrite64");
    if (!broken()) return real(fd, bytes, count, at);
    if (calls++ % 2 == 0 && count > 1) return real(fd, bytes, count / 2, at);
    errno = EIO;
    return -1;
}
int fdatasync(int fd) {
    static int (*real)(int);
    if (!real) real = dlsym(RTLD_NEXT, "fdatasync");
    if (!broken() && !there("NO_SYNC")) return real(fd);
    int log = getenv("LOG") ? open(getenv("LOG"), O_CREAT | O_APPEND | O_WRONLY, 0600) : -1;
    if (log >= 0 && write(log, "x", 1) == 1) close(log);
    errno = EIO;
    return -1;
}
"#;

/// Compiles it.
fn shim(scratch: &Scratch) -> String {
    let (source, shim) = (scratch.file("shim.c", SHIM), scratch.path().join("shim.so"));
    shell(&format!("cc -shared -fPIC -o {} {} -ldl", shim.display(), source.display()));
    shim.display().to_string()
}

#[test]
fn what_the_disk_has_not_synced_is_not_accepted() {
    if !require(require::programs(&["cc"])) {
        return;
    }
    run(async {
        let scratch = Scratch::new();
        let shim = shim(&scratch);
        let no_sync = scratch.file("no-sync", "");
        let log = scratch.path().join("log");
        // Nobody listens there, so that all waits.
        let task =
            Task { data: scratch.path().join("data"), channels: webhook("http://127.0.0.1:9/"), first: 0, end: 40 };
        let (no_sync_path, log_path) = (no_sync.display().to_string(), log.display().to_string());
        let environment = [("LD_PRELOAD", &*shim), ("NO_SYNC", &no_sync_path), ("LOG", &log_path)];
        let (mut child, lines) = task.start("child", &environment);
        until("it was tried twice", LONG, || std::fs::metadata(&log).is_ok_and(|log| log.len() >= 2)).await;
        let said: Vec<String> = lines.try_iter().collect();
        assert!(said.iter().all(|line| !line.starts_with("accepted")), "{said:?}");
        std::fs::remove_file(&no_sync).expect("ours");
        let said = tokio::task::spawn_blocking(move || lines.iter().find(|line| line == "accepted 39")).await;
        assert!(said.is_ok_and(|line| line.is_some()));
        child.kill().expect("our child");
        child.wait().expect("our child");
        let far_end = FarEnd::start([]).await;
        let outbox = open(&task.data, &far_end);
        until("all come after the kill", LONG, || far_end.seen().len() == 40).await;
        outbox.drain(Duration::from_secs(5)).await;
    });
}

#[test]
fn what_a_disk_failed_to_write_is_written_when_it_works_again() {
    if !require(require::programs(&["cc"])) {
        return;
    }
    run(async {
        let scratch = Scratch::new();
        let shim = shim(&scratch);
        let fault = scratch.file("fault", "");
        // Silence holds the second one up until the disk works.
        let far_end = FarEnd::start([Answer::status("204 No Content"), Answer::Hang, Answer::Hang]).await;
        let data = scratch.path().join("data");
        let task = Task { data: data.clone(), channels: webhook(&far_end.url), first: 0, end: 200 };
        let fault_path = fault.display().to_string();
        let (mut child, lines) = task.start("child", &[("LD_PRELOAD", &shim), ("FAULT", &fault_path)]);
        // The first burst is not on disk, and delivered all the same.
        until("the first is delivered", LONG, || !far_end.seen().is_empty()).await;
        std::fs::remove_file(&fault).expect("ours");
        let said = tokio::task::spawn_blocking(move || lines.iter().collect::<Vec<_>>()).await.expect("it reads");
        assert!(child.wait().is_ok_and(|status| status.success()));
        assert!(said.contains(&"delivered".to_owned()), "{said:?}");
        assert_eq!(far_end.seen().len(), 202);
        let outbox = open(&data, &far_end);
        assert_eq!(outbox.status().records, 0, "what was delivered is known");
        outbox.send(&notice(199));
        outbox.drain(Duration::from_secs(5)).await;
        assert_eq!(far_end.seen().len(), 202, "and its ids are");
    });
}
