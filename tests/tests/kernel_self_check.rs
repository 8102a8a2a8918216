//! A kernel whose BTF lies about a member, lacks it, or has it of another type: just those probes that read the member stand
//! lower, with the reason.
#![expect(clippy::disallowed_methods, reason = "a test reads files as it likes")]

use std::fs::File;
use std::io::Read as _;
use std::path::PathBuf;

use rustix::fs::{Mode, OFlags, open};
use sysops_agent::host::{Host, Roots, files::Files};
use sysops_agent::kernel::{ALL, Kernel, Rung, Standing};
use sysops_agent::spec::Values;
use sysops_tests::falsified_btf::{move_member, remove_member, retype_member};
use sysops_tests::one_probe::OneProbe;
use sysops_tests::require::{self, require};

const BTF: &str = "/sys/kernel/btf/vmlinux";

/// This machine, but with a /sys in which there are only cgroups and the BTF, changed by `lie`.
fn with_lie(name: &str, lie: impl FnOnce(&mut [u8])) -> (Host, PathBuf) {
    let directory = std::env::temp_dir().join(format!("sysops-lie-{name}-{}", std::process::id()));
    std::fs::create_dir_all(directory.join("kernel/btf")).expect("a directory of our own");
    let mut btf = std::fs::read(BTF).expect("require() was asked");
    lie(&mut btf);
    std::fs::write(directory.join("kernel/btf/vmlinux"), btf).expect("a file of our own");
    std::os::unix::fs::symlink("/sys/fs", directory.join("fs")).expect("a link of our own");
    let files = Files::new("/proc".into(), directory.clone(), "/".into());
    (Host { files, ..Host::live(&Roots::default()) }, directory)
}

fn standings(name: &str, lie: impl FnOnce(&mut [u8])) -> Vec<Standing> {
    let (host, directory) = with_lie(name, lie);
    let standings = Kernel::start(&host, &Values::default()).standings();
    std::fs::remove_dir_all(directory).expect("our own directory");
    standings
}

/// Probes that read tasks, which the self-check guards.
const GUARDED: [&str; 3] = ["oom_kill", "hung_task", "sigkill"];

/// Asserts that, of the probes in `honest`, just `down` do not stand on the best rung, each for a reason with `word` in it.
fn assert_down(honest: &[&str], standings: &[Standing], down: &[&str], word: &str) {
    for standing in standings.iter().filter(|standing| honest.contains(&standing.name)) {
        if down.contains(&standing.name) {
            assert!(!matches!(standing.rung, Rung::TpBtf | Rung::RawTracepoint), "{standing:?}");
            assert!(standing.reason.contains("self-check") && standing.reason.contains(word), "{standing:?}");
            assert!(!standing.remedy.is_empty() && !standing.forced_and_failed, "{standing:?}");
        } else {
            assert_eq!(standing.rung, Rung::TpBtf, "{standing:?}");
        }
    }
}

/// The guarded probes that stand on the best rung when nothing lies: the others have nothing to check here. None when
/// programs cannot be loaded.
fn honest() -> Vec<&'static str> {
    if !require(require::root().or_else(|| require::files(&[BTF]))) {
        return Vec::new();
    }
    let standings = standings("honest", |_| {});
    let off = standings.iter().find(|standing| standing.reason.contains("self-check"));
    assert!(off.is_none(), "the truth passes: {off:?}");
    let guarded = || standings.iter().filter(|standing| GUARDED.contains(&standing.name));
    let honest: Vec<&str> = guarded().filter(|standing| standing.rung == Rung::TpBtf).map(|found| found.name).collect();
    let reason = guarded().map(|standing| standing.reason.clone()).next();
    if honest.is_empty() && !require(reason) {
        return Vec::new();
    }
    honest
}

#[test]
fn a_member_that_one_probe_reads_takes_down_that_probe() {
    let honest = honest();
    if honest.is_empty() {
        return;
    }
    // Not zero, as the member before it is; the one behind it, oom_score_adj_min, is set to the same value by a root with
    // CAP_SYS_RESOURCE.
    std::fs::write("/proc/self/oom_score_adj", "17").expect("root may");
    let moved = standings("adj", |btf| move_member(btf, "signal_struct", "oom_score_adj", -16));
    assert_down(&honest, &moved, &["oom_kill"], "oom_score_adj");
    let moved = standings("total_vm", |btf| move_member(btf, "task_struct", "mm", -64));
    assert_down(&honest, &moved, &["oom_kill"], "mm");
    let moved = standings("parent", |btf| move_member(btf, "task_struct", "real_parent", -64));
    assert_down(&honest, &moved, &["sigkill"], "real_parent");
    let moved = standings("dfl_cgrp", |btf| move_member(btf, "css_set", "dfl_cgrp", -64));
    assert_down(&honest, &moved, &["sigkill"], "dfl_cgrp");
}

/// What a probe can do without goes alone.
#[test]
fn a_limit_that_is_not_where_btf_says_is_not_told_and_the_probe_stands() {
    let honest = honest();
    if honest.is_empty() {
        return;
    }
    let moved = standings("limit", |btf| move_member(btf, "page_counter", "max", 64));
    assert_down(&honest, &moved, &[], "");
    let standing = moved.iter().find(|standing| standing.name == "oom_kill").expect("in the list");
    assert!(standing.reason.contains("limit_bytes is not told"), "{standing:?}");
}

#[test]
fn a_member_that_all_read_takes_down_all() {
    let honest = honest();
    if honest.is_empty() {
        return;
    }
    for (member, bits, word) in [
        ("tgid", 32, "tgid"),
        ("pid", 32, "pid"),
        ("comm", 8, "comm"),
        ("start_boottime", 64, "start_boottime"),
        ("cgroups", -64, "cgroup"),
    ] {
        let moved = standings(member, |btf| move_member(btf, "task_struct", member, bits));
        assert_down(&honest, &moved, &GUARDED, word);
    }
    let moved = standings("kn", |btf| move_member(btf, "cgroup", "kn", 64));
    assert_down(&honest, &moved, &GUARDED, "cgroup");
}

/// The member that holds the number of a system call.
const CALL: (&str, &str) =
    if cfg!(target_arch = "aarch64") { ("pt_regs", "syscallno") } else { ("pt_regs", "orig_ax") };

#[test]
fn a_member_that_is_not_there_takes_down_who_reads_it() {
    let Some(honest) = where_all_stand() else { return };
    for (structure, member, down) in [
        ("task_struct", "tgid", &GUARDED[..]),
        ("task_struct", "signal", &["oom_kill"]),
        ("request", "__data_len", &["block_io"]),
        (CALL.0, CALL.1, &["fd"]),
    ] {
        exactly(&honest, structure, member, down, |btf| remove_member(btf, structure, member));
    }
}

#[test]
fn a_member_of_another_type_takes_down_who_reads_it() {
    let Some(honest) = where_all_stand() else { return };
    for (structure, member, down) in [
        ("task_struct", "comm", &GUARDED[..]),
        ("signal_struct", "oom_score_adj", &["oom_kill"]),
        ("task_struct", "last_switch_time", &["hung_task"]),
        ("gendisk", "major", &["block_io"]),
        (CALL.0, CALL.1, &["fd"]),
    ] {
        exactly(&honest, structure, member, down, |btf| retype_member(btf, structure, member));
    }
}

/// True of a probe that stands by the kernel's types.
fn typed(standing: &Standing) -> bool {
    matches!(standing.rung, Rung::Fentry | Rung::Kprobe | Rung::TpBtf | Rung::RawTracepoint)
}

/// Where each probe stands when nothing lies. None when programs cannot be loaded.
fn where_all_stand() -> Option<Vec<Standing>> {
    if !require(require::root().or_else(|| require::files(&[BTF]))) {
        return None;
    }
    let honest = standings("honest", |_| {});
    let can_be_told = honest.iter().any(typed) || require(honest.first().map(|standing| standing.reason.clone()));
    can_be_told.then_some(honest)
}

/// Those `down` that stand by the kernel's types do so no more, for a reason that names the member. Of all other probes, those
/// that come later included, each stands where it stood, or names the member too.
fn exactly(honest: &[Standing], structure: &str, member: &str, down: &[&str], lie: impl FnOnce(&mut [u8])) {
    let name = format!("{structure}.{member}");
    let lied = standings(&name, lie);
    for (before, after) in honest.iter().zip(&lied) {
        assert_eq!(before.name, after.name);
        let named = after.reason.contains(&name);
        // At the entry of functions no one asks for the number of a call.
        let reads = !matches!(before.rung, Rung::Fentry | Rung::Kprobe) || (structure, member) != CALL;
        if down.contains(&after.name) && typed(before) && reads {
            assert!(named && !typed(after) && !after.remedy.is_empty(), "{name}: {before:?} {after:?}");
        } else {
            assert!(named || before.rung == after.rung, "{name}: {before:?} {after:?}");
        }
        assert!(!after.forced_and_failed, "{after:?}");
    }
}

#[test]
fn a_broken_file_is_a_reason_and_no_panic() {
    if !require(require::root().or_else(|| require::files(&[BTF]))) {
        return;
    }
    for standing in standings("broken", |btf| btf[40..4000].fill(0xff)) {
        assert!(!matches!(standing.rung, Rung::TpBtf | Rung::RawTracepoint), "{standing:?}");
        let without = standing.reason.contains("built without") || standing.reason.contains("CAP_");
        assert!(without || standing.reason.contains("malformed BTF"), "{standing:?}");
    }
}

/// A kernel that is told to stop when it warns would stop.
#[test]
#[ignore = "what else this machine made its kernel say is not ours; run by vm-test"]
fn no_program_makes_the_kernel_warn() {
    let host = Host::live(&Roots::default());
    for entry in ALL {
        for rung in Rung::ALL {
            drop(OneProbe::start(&host, entry.name, rung.word(), Values::default()));
        }
    }
    // One record a read, and EAGAIN behind the last.
    let log = open("/dev/kmsg", OFlags::RDONLY | OFlags::NONBLOCK, Mode::empty()).expect("root reads it");
    let (mut log, mut record) = (File::from(log), [0; 8192]);
    let records = std::iter::from_fn(|| {
        let size = log.read(&mut record).ok()?;
        Some(String::from_utf8_lossy(&record[..size]).into_owned())
    });
    let is_ours = |text: &String| text.contains("WARNING:") && text.contains("kernel/bpf/");
    let warnings: Vec<String> = records.filter(is_ours).collect();
    assert!(warnings.is_empty(), "{warnings:#?}");
}
