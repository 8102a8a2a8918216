//! A real file system that hangs: a FUSE mount whose server never answers, in a mount namespace of the test's own.
//! Skipped where the user may not mount, but not when `CI` is `true`.

use std::fs::{self, File, OpenOptions};
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use sysops_agent::collect::{self, Collector};
use sysops_agent::host::{Files, Host, Roots};
use sysops_agent::model::{Batch, Reading, batch::label_values};
use sysops_agent::spec::Values;

const INSIDE: &str = "SYSOPS_TEST_HUNG_MOUNT";

#[test]
#[expect(clippy::disallowed_methods, reason = "the test runs itself again in a mount namespace")]
fn a_hung_fuse_mount_costs_one_thread_and_comes_back() {
    if std::env::var_os(INSIDE).is_some() {
        return inside();
    }
    let itself = std::env::current_exe().expect("a test has a file");
    let name = "a_hung_fuse_mount_costs_one_thread_and_comes_back";
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private"]);
    // /dev/fuse and a mount namespace need root.
    if !command.arg("true").status().is_ok_and(|status| status.success()) || fuse().is_none() {
        assert!(std::env::var_os("CI").is_none_or(|ci| ci != "true"), "CI must be able to mount FUSE");
        println!("skipped: this user cannot mount FUSE in a mount namespace");
        return;
    }
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private"]).arg(itself).args(["--exact", name, "--nocapture"]);
    let output = command.env(INSIDE, "1").output().expect("unshare ran above");
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

fn fuse() -> Option<File> {
    OpenOptions::new().read(true).write(true).open("/dev/fuse").ok()
}

fn inside() {
    let dir = std::env::temp_dir().join(format!("sysops-hung-{}", std::process::id()));
    let (hung, good) = (dir.join("hung"), dir.join("good"));
    for path in [&hung, &good, &dir.join("proc/1")] {
        fs::create_dir_all(path).expect("the temporary directory is writable");
    }
    let fd = fuse().expect("it could be opened outside");
    let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", fd.as_raw_fd());
    mount("hangs", &hung, "fuse", MountFlags::empty(), Some(&*std::ffi::CString::new(options).expect("no NUL")))
        .expect("FUSE can be mounted");
    mount("good", &good, "tmpfs", MountFlags::empty(), None).expect("tmpfs can be mounted");

    // Process 1 is outside of the namespace: its table here is the one that it would have inside.
    let table = fs_table();
    let lines: String =
        table.lines().filter(|line| line.contains("sysops-hung-")).map(|line| format!("{line}\n")).collect();
    assert_eq!(lines.lines().count(), 2, "{lines}");
    fs::write(dir.join("proc/1/mountinfo"), lines).expect("the temporary directory is writable");
    let host = Host { files: Files::new(dir.join("proc"), "/sys".into(), "/".into()), ..Host::live(&Roots::default()) };
    let entry = collect::ALL.iter().find(|entry| entry.name == "filesystem").expect("it is in the list");
    let mut collector = (entry.new)(&host, &Values::default());

    for _ in 0..3 {
        let seen = usage(&mut *collector, &host);
        assert_eq!(seen, [good.as_path()]);
        assert_eq!(waiting(), 1, "threads in a call that does not return");
    }
    // The server goes: the call comes back with an error, and what is mounted there next is read.
    drop(fd);
    unmount(&hung, UnmountFlags::DETACH).expect("it is mounted");
    mount("back", &hung, "tmpfs", MountFlags::empty(), None).expect("tmpfs can be mounted");
    let is_back = (0..200).any(|_| {
        std::thread::sleep(Duration::from_millis(20));
        usage(&mut *collector, &host).contains(&hung)
    });
    assert!(is_back && waiting() == 0);
    unmount(&hung, UnmountFlags::DETACH).expect("it is mounted");
    unmount(&good, UnmountFlags::DETACH).expect("it is mounted");
    fs::remove_dir_all(dir).expect("it was made above");
}

#[expect(clippy::disallowed_methods, reason = "the test looks at itself")]
fn fs_table() -> String {
    fs::read_to_string("/proc/self/mountinfo").expect("procfs")
}

/// Threads of this process that wait in a file system.
#[expect(clippy::disallowed_methods, reason = "the test looks at itself")]
fn waiting() -> usize {
    let tasks = fs::read_dir("/proc/self/task").expect("procfs");
    let in_call = |task: PathBuf| {
        let name = fs::read_to_string(task.join("comm")).unwrap_or_default();
        let status = fs::read_to_string(task.join("status")).unwrap_or_default();
        // A thread without work sleeps (S); one in FUSE cannot be interrupted (D).
        name.trim() == "statvfs" && status.contains("State:\tD")
    };
    tasks.filter_map(Result::ok).filter(|task| in_call(task.path())).count()
}

/// Mount points whose usage was read.
fn usage(collector: &mut dyn Collector, host: &Host) -> Vec<PathBuf> {
    let mut batch = Batch::default();
    collector.collect(host, &mut batch).expect("it can be read");
    let mut found = Vec::new();
    for (entry, key) in batch.iter().filter(|(entry, _)| entry.metric.name == "disk_usage_percent") {
        assert!(matches!(entry.reading, Reading::Gauge(0.0..=100.0)), "{:?}", entry.reading);
        found.push(PathBuf::from(label_values(key).nth(1).expect("a mount point")));
    }
    found
}
