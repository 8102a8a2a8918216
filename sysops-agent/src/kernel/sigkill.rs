//! SIGKILLs that one process sends to another from outside: by whom, and to whom. These are the kills of systemd-oomd,
//! earlyoom and container runtimes; those of the kernel itself are `oom_kill`'s.

use std::os::fd::BorrowedFd;
use std::time::Duration;

use sysops_btf::Btf;
use sysops_common::check::Check;
use sysops_common::counters::Counters;
use sysops_common::offset::Offset;
use sysops_common::sigkill::{Format, Offsets, Record};
use sysops_common::task::known;

use super::attach::Tracepoint;
use super::check::{self, Own};
use super::facts::Facts;
use super::ladder::{Ground, Refusal, Step, WORDS};
use super::loader::{self, Object};
use super::process::Process;
use super::run_stats::Runs;
use super::{Entry, Probe, Rung, layout, record, tracefs};
use crate::host::Host;
use crate::model::event::{Detail, Event, Sigkill};
use crate::spec::{Key, Values};

/// The probe in the list.
pub(super) static ENTRY: Entry = Entry {
    name: "sigkill",
    metrics: &[],
    keys: &[RUNG.spec(), ALL.spec()],
    rung: &RUNG,
    new: |h, f, v| Box::new(new(h, f, v)),
};

static RUNG: Key<String> = Key::choice(
    "kernel.sigkill.rung",
    WORDS,
    "auto",
    "How SIGKILLs between processes are seen. `auto` takes the best rung that stands; one that is named here and cannot stand \
     is an error.",
);

static ALL: Key<bool> = Key::switch(
    "kernel.sigkill.all",
    false,
    "Tell also the SIGKILLs that come from the victim's own cgroup or from its parent, which are everyday.",
);

const SIGNAL: Tracepoint = Tracepoint { object: "sigkill", group: "signal", name: "signal_generate" };

/// Programs that kill others, by the name of the task (which has fifteen bytes), and whether they do when memory runs
/// short. What the others do may have many reasons.
#[rustfmt::skip]
const KILLERS: &[(&str, bool)] = &[
    ("systemd-oomd", true),
    ("earlyoom", true),
    ("nohang", true),
    ("oomd", true),
    ("bustd", true),
    ("lmkd", true),
    ("systemd", false),
    ("systemd-logind", false),
    ("kubelet", false),
    ("containerd", false),
    ("containerd-shim", false),
    ("dockerd", false),
    ("runc", false),
    ("crun", false),
    ("crio", false),
    ("conmon", false),
    ("podman", false),
];

struct Sigkills {
    ground: Ground,
    types: Offsets,
    format: Format,
    all: bool,
    initial_pids: bool,
    standing: Option<(Rung, Object)>,
}

fn new(host: &Host, facts: &Facts, values: &Values) -> Sigkills {
    let types = facts.btf.as_ref().map_err(Clone::clone).and_then(offsets);
    let format = facts.format(host, "signal/signal_generate").and_then(|format| fields(&format));
    let all = values.get(&ALL);
    Sigkills {
        ground: Ground {
            object: loader::embedded("sigkill").map(drop),
            privilege: facts.privilege.clone(),
            types: types.as_ref().map(drop).map_err(Clone::clone),
            format: format.as_ref().map(drop).map_err(Clone::clone),
            log: None,
        },
        types: Offsets { check_name: facts.check_name, all: u16::from(all), ..types.unwrap_or(Offsets::ABSENT) },
        format: format.unwrap_or(Format::ABSENT),
        all,
        initial_pids: facts.initial_pids,
        standing: None,
    }
}

impl Probe for Sigkills {
    fn steps(&self) -> Vec<Step> {
        self.ground.steps()
    }

    fn attach(&mut self, rung: Rung, host: &Host, facts: &Facts) -> Result<(), Refusal> {
        let offsets = match rung {
            Rung::Tracepoint => Offsets { format: self.format, ..Offsets::ABSENT },
            _ => self.types,
        };
        let verify = |check: &Check<Record>, own: &Own| {
            check::compare(check, &check.record.task, &offsets.task, own)?;
            compare_kinship(&check.record, host, own)
        };
        let object = SIGNAL.attach(rung, host, facts, &offsets, verify)?;
        self.standing = Some((rung, object));
        Ok(())
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.standing.as_ref().and_then(|(_, object)| object.fd())
    }

    fn drain(&mut self, host: &Host, out: &mut Vec<Event>) {
        let Some((rung, object)) = &mut self.standing else { return };
        let Some(source) = rung.source() else { return };
        let (all, initial_pids) = (self.all, self.initial_pids);
        object.drain(|read: &Record| {
            let detail = Detail::Sigkill(detail(read));
            let mut event = record::event(host, source, read.monotonic_ns, &read.task, detail);
            if read.task.known & known::TGID != 0 || !initial_pids || complete(&mut event, host, all) {
                out.push(event);
            }
        });
    }

    fn counters(&self) -> Option<Counters> {
        self.standing.as_ref().and_then(|(_, object)| object.counters())
    }

    fn runs(&self) -> Option<Runs> {
        self.standing.as_ref().map(|(_, object)| object.runs())
    }
}

fn detail(read: &Record) -> Sigkill {
    let sender = &read.sender;
    let has = |bit: u32| sender.known & bit != 0;
    let comm = has(known::COMM).then(|| record::name(&sender.comm));
    let killer = KILLERS.iter().find(|(name, _)| comm.as_deref() == Some(name));
    Sigkill {
        sender_pid: has(known::TGID).then_some(sender.tgid),
        sender_uid: has(known::UID).then_some(sender.uid),
        sender_cgroup: record::path(sender),
        killer: killer.map(|(name, _)| (*name).to_owned()),
        for_memory: killer.is_some_and(|(_, for_memory)| *for_memory),
        sender_comm: comm,
    }
}

/// The plain record names a thread; /proc is asked at once for the rest, and believed only when the thread was there
/// before the signal and bears its name. False when it tells that the kill is everyday. What cannot be told any more
/// is told: nothing from outside is lost.
fn complete(event: &mut Event, host: &Host, all: bool) -> bool {
    let (Some(tid), Detail::Sigkill(kill)) = (event.tid, &mut event.detail) else { return true };
    let victim = Process::thread(host, tid);
    let is_it = event.comm.is_none() || event.comm.as_deref().map(str::trim) == victim.comm().as_deref();
    let at = Duration::from_nanos(event.monotonic_ns);
    let Some(sender_pid) = kill.sender_pid else { return true };
    let sender = Process::thread(host, sender_pid);
    let sender_path = sender.was_there_at(at).then(|| sender.memory_path()).flatten().map(|found| found.path);
    kill.sender_cgroup.clone_from(&sender_path);
    if !is_it || !victim.was_there_at(at) {
        return true;
    }
    event.pid = victim.status("Tgid");
    event.uid = victim.status("Uid");
    event.cgroup = victim.memory_path().map(|found| found.path);
    let own = event.pid == Some(sender_pid);
    let parent = victim.status("PPid") == Some(sender_pid);
    let inside = event.cgroup.is_some() && event.cgroup == sender_path && victim.cgroups() == sender.cgroups();
    !own && (all || !(parent || inside))
}

/// What the program must know of the running kernel's types.
fn offsets(btf: &Btf) -> Result<Offsets, Refusal> {
    layout::signal_arguments(btf)?;
    Ok(Offsets {
        task: layout::task(btf)?,
        flags: layout::offset(btf, "task_struct", "flags", 4)?,
        group_leader: layout::offset(btf, "task_struct", "group_leader", 8)?,
        real_parent: layout::offset(btf, "task_struct", "real_parent", 8)?,
        default_cgroup: layout::offset(btf, "css_set", "dfl_cgrp", 8)?,
        kn_id: layout::offset(btf, "kernfs_node", "id", 8)?,
        si_code: layout::offset(btf, "kernel_siginfo", "si_code", 4)?,
        ..Offsets::ABSENT
    })
}

/// Where the fields of the plain tracepoint's record are.
fn fields(format: &tracefs::Format) -> Result<Format, Refusal> {
    let at = |name: &str, size: u32| {
        format.offset(name, size).and_then(Offset::at).ok_or_else(|| {
            Refusal::new(format!("tracefs: signal/signal_generate: expected a field {name} of {size} bytes"), "")
        })
    };
    Ok(Format {
        sig: at("sig", 4)?,
        code: at("code", 4)?,
        comm: at("comm", 16)?,
        pid: at("pid", 4)?,
        result: at("result", 4)?,
    })
}

/// Holds parent and cgroup of the agent, by which kills from outside are told, against /proc and the kernel's helper.
fn compare_kinship(read: &Record, host: &Host, own: &Own) -> Result<(), Refusal> {
    check::equal("group_leader", read.leader_tid, read.task.tgid)?;
    check::equal("css_set.dfl_cgrp", read.cgroup_id, read.sender_cgroup_id)?;
    match Process::own(host).status("PPid").filter(|parent| own.initial_pids && *parent != 0) {
        Some(parent) => check::equal("real_parent", read.parent_tgid, parent),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::btf_builder::kernel;
    use super::super::record::tests::task;
    use super::*;
    use crate::model::Source;

    fn record(sender_comm: &[u8]) -> Record {
        let mut sender = task(b"outside\0");
        sender.comm = [0; 16];
        sender.comm[..sender_comm.len()].copy_from_slice(sender_comm);
        Record {
            monotonic_ns: 1,
            cgroup_id: 5,
            sender_cgroup_id: 5,
            parent_tgid: 1,
            leader_tid: 70,
            task: task(b"b\0"),
            sender,
        }
    }

    #[test]
    fn killers_are_known_by_their_names() {
        let kill = detail(&record(b"earlyoom"));
        assert_eq!((kill.killer.as_deref(), kill.for_memory), (Some("earlyoom"), true));
        assert_eq!((kill.sender_pid, kill.sender_cgroup.as_deref()), (Some(70), Some("/outside")));
        let kill = detail(&record(b"containerd-shim"));
        assert_eq!((kill.killer.as_deref(), kill.for_memory), (Some("containerd-shim"), false));
        let kill = detail(&record(b"bash"));
        assert_eq!((kill.killer, kill.for_memory, kill.sender_comm.as_deref()), (None, false, Some("bash")));
        assert!(KILLERS.iter().all(|(name, _)| name.len() < 16), "a task's name has fifteen bytes");
    }

    #[test]
    fn every_kernel_has_what_the_program_needs() {
        for name in ["5.10", "6.1", "6.12", "6.18", "7.2"] {
            let found = offsets(&kernel(name)).unwrap_or_else(|refused| panic!("{name}: {refused:?}"));
            assert_eq!(found.si_code.bytes(), Some(8), "{name}");
        }
    }

    #[test]
    fn the_plain_record_has_what_the_program_needs() {
        for kernel in ["5.10", "6.18"] {
            let path = format!(
                "{}/../tests/fixtures/tracefs/{kernel}/signal/signal_generate/format",
                env!("CARGO_MANIFEST_DIR")
            );
            let host = Host::fixture(std::path::Path::new("/"));
            let format = tracefs::parse(&host.files.read(path.as_ref()).expect("a fixture"));
            let found = fields(&format).unwrap_or_else(|refused| panic!("{kernel}: {refused:?}"));
            assert_eq!(found.sig.bytes(), Some(8), "{kernel}");
        }
        assert!(fields(&tracefs::parse(b"field:int sig;\toffset:8;\tsize:4;\tsigned:1;")).is_err());
    }

    #[test]
    fn a_parent_or_a_cgroup_that_was_read_wrong_is_a_contradiction() {
        let (host, own) = (Host::fixture(std::path::Path::new("/nonexistent")), Own::default());
        assert_eq!(compare_kinship(&record(b"x"), &host, &own), Ok(()));
        let wrong = Record { cgroup_id: 6, ..record(b"x") };
        assert!(compare_kinship(&wrong, &host, &own).expect_err("a contradiction").reason.contains("dfl_cgrp"));
        let (host, own) = (Host::fixture(std::path::Path::new("/")), Own { initial_pids: true, ..Own::default() });
        let parent = Process::own(&host).status("PPid").expect("a test has a parent");
        let right = Record { parent_tgid: parent, ..record(b"x") };
        assert_eq!(compare_kinship(&right, &host, &own), Ok(()));
        let wrong = Record { parent_tgid: parent + 1, ..right };
        assert!(compare_kinship(&wrong, &host, &own).expect_err("a contradiction").reason.contains("real_parent"));
    }

    /// On the plain tracepoint /proc tells parents and neighbours from those outside.
    #[test]
    fn everyday_kills_are_told_apart_by_proc() {
        let dir = tempfile::tempdir().expect("a directory");
        let host = Host::fixture(dir.path());
        let process = |pid: u32, parent: u32, cgroup: &str| {
            let at = dir.path().join(format!("proc/{pid}"));
            std::fs::create_dir_all(&at).expect("ours");
            std::fs::write(at.join("comm"), "java\n").expect("ours");
            std::fs::write(at.join("stat"), format!("{pid} (java) R{} 0 0", " 1".repeat(18))).expect("ours");
            std::fs::write(at.join("status"), format!("Name:\tjava\nTgid:\t{pid}\nPPid:\t{parent}\nUid:\t5\n"))
                .expect("ours");
            std::fs::write(at.join("cgroup"), format!("0::{cgroup}\n")).expect("ours");
        };
        process(10, 1, "/a");
        process(20, 10, "/b");
        process(30, 1, "/b");
        let told = |sender: u32, victim: u32, all: bool| {
            let mut read = record(b"x");
            read.monotonic_ns = u64::try_from(host.clock.now().monotonic.as_nanos()).expect("small");
            (read.task.tid, read.sender.tgid) = (victim, sender);
            (read.task.known, read.sender.known) = (known::TID | known::COMM, known::TGID | known::COMM);
            let detail = Detail::Sigkill(detail(&read));
            let mut event = record::event(&host, Source::Tracepoint, read.monotonic_ns, &read.task, detail);
            let told = complete(&mut event, &host, all);
            told.then_some((event.pid, event.cgroup))
        };
        assert_eq!(told(10, 30, false), Some((Some(30), Some("/b".into()))), "from outside");
        assert_eq!((told(10, 20, false), told(30, 20, false)), (None, None), "its parent, its neighbour");
        assert!(told(10, 20, true).is_some() && told(30, 20, true).is_some());
        assert_eq!(told(10, 40, false), Some((None, None)), "it is gone");
        assert_eq!(told(20, 20, true), None, "itself");
    }
}
