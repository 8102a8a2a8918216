//! The table of all processes by the kernel's task iterator: nothing is attached, and one cycle costs a handful of
//! system calls however many processes there are. What is made of the table is left to `collect`, through `host`.

mod check;
mod layout;
mod records;
mod table;

use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, MutexGuard};

use sysops_btf::TypeId;
use sysops_common::counters::Counters;
use sysops_common::tasks::Offsets;

use self::table::Table;
use super::facts::Facts;
use super::ladder::{Refusal, Step, WORDS};
use super::loader::{self, Object};
use super::run_stats::Runs;
use super::{Entry, Probe, Rung};
use crate::host::{Host, ReadTasks};
use crate::model::Event;
use crate::spec::{Key, Values};

/// The probe in the list.
pub(super) static ENTRY: Entry =
    Entry { name: "tasks", metrics: &[], keys: &[RUNG.spec()], rung: &RUNG, new: |h, f, v| Box::new(new(h, f, v)) };

static RUNG: Key<String> = Key::choice(
    "kernel.tasks.rung",
    WORDS,
    "auto",
    "How the table of processes is read: `iter` by a BPF program that the kernel calls for each task, `proc` from the files of \
     each process. `auto` takes the best rung that stands; one that is named here and cannot stand is an error.",
);

/// The only initial namespace in which the iterator and /proc count alike (PROC_PID_INIT_INO, include/linux/proc_ns.h).
const INITIAL_PID_NAMESPACE: &str = "pid:[4026531836]";
/// PROC_TIME_INIT_INO.
const INITIAL_TIME_NAMESPACE: &str = "time:[4026531834]";

struct Tasks {
    steps: Vec<Step>,
    offsets: Offsets,
    function: Option<TypeId>,
    table: Option<Arc<Mutex<Table>>>,
    /// Collectors are let in by this, and out when it is dropped.
    offered: Option<Arc<Mutex<dyn ReadTasks>>>,
    hides: bool,
}

fn new(host: &Host, facts: &Facts, _values: &Values) -> Tasks {
    let types = facts.btf.as_ref().map_err(Clone::clone);
    let offsets = types.clone().and_then(layout::offsets);
    let function = types.and_then(|btf| {
        let missing = || Refusal::new("BTF: no function bpf_iter_task: this kernel has no task iterator", "");
        btf.function("bpf_iter_task").ok_or_else(missing)
    });
    let iter = loader::embedded("tasks")
        .and(facts.privilege.clone())
        .and_then(|()| namespaces(host))
        .and(function.as_ref().map(drop).map_err(Clone::clone))
        .and(offsets.as_ref().map(drop).map_err(Clone::clone));
    let proc = if host.files.exists(&host.files.proc("self/stat")) {
        Ok(())
    } else {
        Err(Refusal::new(format!("{} is missing", host.files.proc("self/stat").display()), ""))
    };
    Tasks {
        steps: vec![Step { rung: Rung::Iter, stands: iter }, Step { rung: Rung::Proc, stands: proc }],
        offsets: offsets.unwrap_or(Offsets::ABSENT),
        function: function.ok(),
        table: None,
        offered: None,
        hides: false,
    }
}

/// The iterator gives the processes of the namespace in which it is opened, by their numbers in the initial one; and it
/// knows nothing of the other boot that a time namespace pretends.
fn namespaces(host: &Host) -> Result<(), Refusal> {
    let is = |name: &str, initial: &str| {
        host.files.link(&host.files.proc(name)).map(|namespace| namespace.as_os_str() == initial).ok()
    };
    if is("self/ns/pid", INITIAL_PID_NAMESPACE) != Some(true) {
        return Err(Refusal::new(
            "the agent is not in the host's pid namespace",
            "run the agent in the host's pid namespace",
        ));
    }
    // Before 5.6 there are no time namespaces, and no such link.
    if is("self/ns/time", INITIAL_TIME_NAMESPACE) == Some(false) {
        return Err(Refusal::new("the agent is in a time namespace", "run the agent outside of time namespaces"));
    }
    Ok(())
}

impl Tasks {
    fn table(&self) -> Option<MutexGuard<'_, Table>> {
        self.table.as_ref().map(|table| table.lock().expect("no reader of the table panics"))
    }
}

impl Probe for Tasks {
    fn steps(&self) -> Vec<Step> {
        self.steps.clone()
    }

    fn attach(&mut self, _rung: Rung, host: &Host, _facts: &Facts) -> Result<(), Refusal> {
        let mut object = Object::load("tasks", &self.offsets)?;
        let function = self.function.ok_or_else(|| Refusal::new("BTF: no function bpf_iter_task", ""))?;
        object.load_iterator(table::PROGRAM, "task", function)?;
        let mut table = Table::new(object, &self.offsets);
        check::check(host, &mut table)?;
        self.hides = !table.hidden.is_empty();
        let table = Arc::new(Mutex::new(table));
        let offered: Arc<Mutex<dyn ReadTasks>> = table.clone();
        host.tasks.offer(&offered);
        (self.table, self.offered) = (Some(table), Some(offered));
        Ok(())
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn drain(&mut self, _host: &Host, _out: &mut Vec<Event>) {}

    fn contradiction(&mut self) -> Option<Refusal> {
        let refusal = self.table()?.given_up()?;
        (self.table, self.offered, self.hides) = (None, None, false);
        Some(refusal)
    }

    fn stands_by(&self) -> Option<&'static str> {
        self.hides.then_some("this kernel hides a process from programs: it is read from /proc")
    }

    fn counters(&self) -> Option<Counters> {
        self.table()?.counters()
    }

    fn runs(&self) -> Option<Runs> {
        Some(self.table()?.runs())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::super::ladder::choose;
    use super::*;

    /// A machine with a process `self` in these namespaces.
    fn machine(name: &str, pid: &str, time: Option<&str>) -> (Host, std::path::PathBuf) {
        let dir = std::env::temp_dir().join(format!("sysops-tasks-{}-{name}", std::process::id()));
        let namespaces = dir.join("proc/self/ns");
        std::fs::create_dir_all(&namespaces).expect("a directory of our own");
        std::fs::write(dir.join("proc/self/stat"), "").expect("written");
        symlink(pid, namespaces.join("pid")).expect("linked");
        if let Some(time) = time {
            symlink(time, namespaces.join("time")).expect("linked");
        }
        (Host::fixture(&dir), dir)
    }

    #[test]
    fn only_where_proc_counts_alike_the_iterator_is_asked() {
        for (name, pid, time, reason) in [
            ("initial", INITIAL_PID_NAMESPACE, Some(INITIAL_TIME_NAMESPACE), None),
            ("old", INITIAL_PID_NAMESPACE, None, None),
            ("container", "pid:[4026532001]", None, Some("pid namespace")),
            ("time", INITIAL_PID_NAMESPACE, Some("time:[4026532002]"), Some("time namespace")),
        ] {
            let (host, dir) = machine(name, pid, time);
            let found = namespaces(&host).err().map(|refusal| refusal.reason);
            std::fs::remove_dir_all(dir).expect("ours");
            assert_eq!(found.is_some(), reason.is_some(), "{name}: {found:?}");
            assert!(found.unwrap_or_default().contains(reason.unwrap_or_default()));
        }
    }

    #[test]
    fn without_types_the_files_of_proc_are_read_and_the_reason_told() {
        let (host, dir) = machine("proc", INITIAL_PID_NAMESPACE, None);
        let choice = choose(&new(&host, &Facts::read(&host), &Values::default()).steps(), None);
        std::fs::remove_dir_all(dir).expect("ours");
        assert_eq!(choice.rung, Rung::Proc);
        assert!(choice.reason.starts_with("iter: "), "{choice:?}");
    }
}
