//! File descriptors that chosen processes get and close, counted by the programs when system calls return. Nothing is
//! attached while there is no process to watch. How many are open is told by the collector of file descriptors.

use std::os::fd::BorrowedFd;
use std::path::Path;

use sysops_common::counters::Counters;
use sysops_common::fd::{Counts, Offsets, WATCHED_MAX};
use sysops_common::offset::Offset;

use super::attach::Point;
use super::btf::{Btf, TypeId};
use super::facts::Facts;
use super::ladder::{Refusal, Step, WORDS};
use super::loader::{self, Object, Table};
use super::process::Process;
use super::run_stats::Runs;
use super::syscalls::{self, EFFECTS};
use super::watched::{Change, Watched};
use super::{Entry, Probe, Rung, layout, tracefs};
use crate::host::Host;
use crate::host::files::open_file;
use crate::model::{Batch, Desc, Event, Metric, Unit};
use crate::spec::{Key, Values};

/// The probe in the list.
pub(super) static ENTRY: Entry = Entry {
    name: "fd",
    metrics: METRICS,
    keys: &[RUNG.spec(), WATCH.spec()],
    rung: &RUNG,
    new: |host, facts, values| Box::new(new(host, facts, values)),
};

static RUNG: Key<String> = Key::choice(
    "kernel.fd.rung",
    WORDS,
    "auto",
    "How new and closed file descriptors are seen. `auto` takes the best rung that stands; one that is named here and cannot \
     stand is an error.",
);
static WATCH: Key<Vec<String>> = Key::list(
    "kernel.fd.watch",
    &[],
    "Names of the processes whose new and closed file descriptors are counted, as in /proc/<pid>/comm. At most 64 processes are \
     watched. While the list is empty, or names nothing that runs, nothing is attached and nothing is slowed down.",
);

static INSTALLS: Metric<2> = Metric::counter(
    "process_fd_installs_total",
    Unit::Count,
    "File descriptors that a watched process got by system calls, since it is watched.",
    &["pid", "comm"],
);
static CLOSES: Metric<2> = Metric::counter(
    "process_fd_closes_total",
    Unit::Count,
    "File descriptors that a watched process closed by close(2), since it is watched.",
    &["pid", "comm"],
);
static LEFT_OUT: Metric<0> = Metric::gauge(
    "process_fd_unwatched",
    Unit::Count,
    "Processes that bear a name of kernel.fd.watch and are not watched, as 64 others are.",
    &[],
);
static METRICS: &[&Desc] = &[INSTALLS.desc(), CLOSES.desc(), LEFT_OUT.desc()];

/// Descriptors that the self-check opens and closes.
const CHECKED: u64 = 16;
/// Other threads of the agent may use descriptors at the same time: one quiet turn of these is enough.
const TURNS: u32 = 8;

struct Fds {
    steps: Vec<Step>,
    types: Offsets,
    formats: Offsets,
    sys_exit: Option<TypeId>,
    calls: Vec<&'static str>,
    watched: Watched,
    standing: Option<Standing>,
    contradiction: Option<Refusal>,
}

struct Standing {
    rung: Rung,
    /// There only while there is something to watch.
    armed: Option<Armed>,
}

/// Programs that run, and their table. Dropping it detaches them.
struct Armed {
    object: Object,
    counts: Table<u32, Counts>,
}

fn new(host: &Host, facts: &Facts, values: &Values) -> Fds {
    let types = facts.btf.as_ref().map_err(Clone::clone).and_then(offsets);
    let calls = facts.tracefs.as_ref().map_or_else(|_| Vec::new(), |tracefs| syscalls::traced(host, tracefs));
    let formats = facts.format(host, "syscalls/sys_exit_close").and_then(|format| fields(&format));
    let ground = |found: Result<(), Refusal>| {
        let pids = if facts.initial_pids { Ok(()) } else { Err(other_pids()) };
        loader::embedded("fd").map(drop).and(facts.privilege.clone()).and(pids).and(found)
    };
    let typed = ground(types.as_ref().map(drop).map_err(Clone::clone));
    let traced = ground(formats.as_ref().map(drop).map_err(Clone::clone));
    // Every call of every process passes the others, at some 50 ns; here the kernel itself passes over those calls that
    // do not matter, at some 10 ns.
    let steps = vec![
        Step { rung: Rung::Tracepoint, stands: traced },
        Step { rung: Rung::TpBtf, stands: typed.clone() },
        Step { rung: Rung::RawTracepoint, stands: typed },
    ];
    Fds {
        steps,
        types: types.unwrap_or(Offsets::ABSENT),
        formats: formats.unwrap_or(Offsets::ABSENT),
        sys_exit: facts.btf.as_ref().ok().and_then(|btf| btf.tracepoint("sys_exit")),
        calls,
        watched: Watched::new(host, &values.get(&WATCH), WATCHED_MAX),
        standing: None,
        contradiction: None,
    }
}

fn other_pids() -> Refusal {
    Refusal::new(
        "the agent's /proc does not number processes as the kernel does",
        "run the agent in the host's pid namespace, or mount the host's /proc and set HOST_PROC",
    )
}

impl Probe for Fds {
    fn steps(&self) -> Vec<Step> {
        self.steps.clone()
    }

    fn attach(&mut self, rung: Rung, host: &Host, _facts: &Facts) -> Result<(), Refusal> {
        if self.watched.is_idle() {
            let (program, point) = self.program(rung)?;
            self.load(rung)?.verify(program, point)?;
            self.standing = Some(Standing { rung, armed: None });
            return Ok(());
        }
        let mut armed = self.arm(rung)?;
        self_check(host, &mut armed)?;
        self.standing = Some(Standing { rung, armed: Some(armed) });
        self.refresh()
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn drain(&mut self, _host: &Host, _out: &mut Vec<Event>) {}

    #[expect(clippy::cast_precision_loss, reason = "counts below 2^53 are exact")]
    fn collect(&mut self, _host: &Host, out: &mut Batch) {
        if self.watched.is_idle() {
            return;
        }
        if let Err(refusal) = self.refresh() {
            self.contradiction = Some(refusal);
            return;
        }
        out.gauge(&LEFT_OUT, [], f64::from(self.watched.left_out()));
        let Some(Standing { armed: Some(armed), .. }) = &self.standing else { return };
        for target in self.watched.targets() {
            let Some(counts) = armed.counts.get(&target.pid) else { continue };
            out.counter(&INSTALLS, [&target.pid_text, &target.comm], counts.installs as f64);
            out.counter(&CLOSES, [&target.pid_text, &target.comm], counts.closes as f64);
        }
    }

    fn contradiction(&mut self) -> Option<Refusal> {
        let refusal = self.contradiction.take()?;
        detach(self.standing.take().and_then(|standing| standing.armed));
        Some(refusal)
    }

    fn stands_by(&self) -> Option<&'static str> {
        self.watched.is_idle().then_some("stands by: kernel.fd.watch is empty")
    }

    fn counters(&self) -> Option<Counters> {
        self.standing.as_ref()?.armed.as_ref()?.object.counters()
    }

    fn runs(&self) -> Option<Runs> {
        Some(self.standing.as_ref()?.armed.as_ref()?.object.runs())
    }
}

impl Drop for Fds {
    fn drop(&mut self) {
        detach(self.standing.take().and_then(|standing| standing.armed));
    }
}

impl Fds {
    /// Looks which processes there are to watch, and attaches or detaches when the first comes or the last goes.
    fn refresh(&mut self) -> Result<(), Refusal> {
        let Some(Standing { rung, mut armed }) = self.standing.take() else { return Ok(()) };
        let looked = self.watched.look(|change| {
            if let (Change::Went(pid), Some(armed)) = (change, &mut armed) {
                armed.counts.remove(&pid);
            }
        });
        if let Err(error) = looked {
            tracing::debug!("fd: {error}: {}", error.source);
        }
        if self.watched.targets().is_empty() {
            detach(armed.take());
        } else {
            let mut running = match armed {
                Some(running) => running,
                None => self.arm(rung)?,
            };
            for target in self.watched.targets() {
                if running.counts.get(&target.pid).is_none() {
                    running.counts.insert(&target.pid, &Counts::default())?;
                }
            }
            armed = Some(running);
        }
        self.standing = Some(Standing { rung, armed });
        Ok(())
    }

    fn load(&self, rung: Rung) -> Result<Object, Refusal> {
        let offsets = if rung == Rung::Tracepoint { self.formats } else { self.types };
        Object::load("fd", &Offsets { calls: EFFECTS, ..offsets })
    }

    fn arm(&self, rung: Rung) -> Result<Armed, Refusal> {
        let mut object = self.load(rung)?;
        let counts = object.table("WATCHED")?;
        let (program, point) = self.program(rung)?;
        match point {
            Point::Plain(group, _) => object.attach_to_each(program, group, &self.calls)?,
            Point::Function(..) | Point::Typed(..) | Point::Raw(_) => object.attach(program, point)?,
        }
        Ok(Armed { object, counts })
    }

    fn program(&self, rung: Rung) -> Result<(&'static str, Point<'static>), Refusal> {
        let missing = || Refusal::new("no tracepoint sys_exit in BTF", "");
        match rung {
            Rung::TpBtf => Ok(("on_tp_btf", Point::Typed("sys_exit", self.sys_exit.ok_or_else(missing)?))),
            Rung::RawTracepoint => Ok(("on_raw_tracepoint", Point::Raw("sys_exit"))),
            Rung::Tracepoint => Ok(("on_tracepoint", Point::Plain("syscalls", "sys_exit_close"))),
            Rung::Fentry | Rung::Kmsg | Rung::Off => Err(Refusal::new("nothing to attach on this rung", "")),
        }
    }
}

/// For each tracepoint the kernel waits until no CPU runs its programs any more: two seconds for all, in which no kernel
/// event may wait.
fn detach(armed: Option<Armed>) {
    let Some(armed) = armed else { return };
    // Without a thread the programs are detached here and now: what is not run is dropped.
    let detach = move || {
        let _armed = armed;
    };
    let spawned = std::thread::Builder::new().name("fd-detach".to_owned()).spawn(detach);
    if let Err(error) = spawned {
        tracing::debug!("fd: no thread to detach in: {error}");
    }
}

/// Watches the agent itself while it opens and closes a known number of descriptors.
fn self_check(host: &Host, armed: &mut Armed) -> Result<(), Refusal> {
    let failed = |what: String| Refusal::new(format!("self-check: {what}"), "");
    let own = Process::own(host).status("Tgid").ok_or_else(|| failed("/proc/thread-self/status: no Tgid".into()))?;
    let mut seen = Counts::default();
    for _ in 0..TURNS {
        armed.counts.insert(&own, &Counts::default())?;
        for _ in 0..CHECKED {
            open_file(Path::new("/dev/null")).map_err(|error| failed(format!("{error}: {}", error.source)))?;
        }
        seen = armed.counts.get(&own).unwrap_or_default();
        armed.counts.remove(&own);
        if seen == (Counts { installs: CHECKED, closes: CHECKED }) {
            return Ok(());
        }
    }
    let Counts { installs, closes } = seen;
    Err(layout::contradiction(format!(
        "self-check: {CHECKED} descriptors were opened and closed, {installs} and {closes} were seen"
    )))
}

/// What the programs must know of the running kernel's types.
fn offsets(btf: &Btf) -> Result<Offsets, Refusal> {
    let arguments = btf.arguments("sys_exit").map_err(|error| layout::contradiction(error.to_string()))?;
    if arguments.len() != 2 {
        return Err(layout::contradiction(format!("BTF: sys_exit: expected 2 arguments, found {}", arguments.len())));
    }
    let number = match btf.member("pt_regs", syscalls::NUMBER.0) {
        Ok(_) => layout::offset(btf, "pt_regs", syscalls::NUMBER.0, syscalls::NUMBER.1)?,
        Err(error) => return Err(layout::contradiction(error.to_string())),
    };
    let status = if syscalls::HAS_STATUS {
        layout::offset(btf, "task_struct", "thread_info.status", 4)?
    } else {
        Offset::ABSENT
    };
    Ok(Offsets { number, status, ..Offsets::ABSENT })
}

/// Where the fields of the plain tracepoints' records are: the same for all calls.
fn fields(format: &tracefs::Format) -> Result<Offsets, Refusal> {
    let at = |name: &str, size: u32| {
        format.offset(name, size).and_then(Offset::at).ok_or_else(|| {
            Refusal::new(format!("tracefs: syscalls/sys_exit_close: expected a field {name} of {size} bytes"), "")
        })
    };
    let format_number = at("__syscall_nr", 4).or_else(|_| at("nr", 4))?;
    Ok(Offsets { format_number, format_result: at("ret", 8)?, ..Offsets::ABSENT })
}

#[cfg(test)]
mod tests {
    use super::super::btf_builder::Builder;
    use super::*;

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn the_number_of_a_call_is_where_the_types_say() {
        let mut types = Builder::new();
        let (half, word) = (types.int(4), types.int(8));
        types.structure("pt_regs", &[("orig_ax", word, 120)]);
        let info = types.structure("thread_info", &[("flags", word, 0), ("status", half, 16)]);
        types.structure("task_struct", &[("thread_info", info, 8)]);
        let registers = types.pointer(1);
        types.tracepoint("sys_exit", &[registers, word]);
        let found = offsets(&types.build()).expect("all there");
        assert_eq!((found.number.bytes(), found.status.bytes()), (Some(120), Some(24)));
    }

    #[test]
    fn a_tracepoint_of_another_shape_is_refused() {
        let mut types = Builder::new();
        let word = types.int(8);
        types.tracepoint("sys_exit", &[word]);
        let refused = offsets(&types.build()).expect_err("one argument");
        assert!(refused.reason.contains("expected 2 arguments, found 1"), "{refused:?}");
        assert!(offsets(&Builder::new().build()).expect_err("nothing").reason.contains("sys_exit"));
    }

    #[test]
    fn records_have_the_number_and_the_result() {
        for kernel in ["5.10", "6.1", "6.12", "6.18", "7.2"] {
            let root = env!("CARGO_MANIFEST_DIR");
            let path = format!("{root}/../tests/fixtures/tracefs/{kernel}/syscalls/sys_exit_close/format");
            let text = Host::fixture(Path::new("/")).files.read(path.as_ref()).expect("a fixture");
            let found = fields(&tracefs::parse(&text)).expect("both there");
            assert_eq!((found.format_number.bytes(), found.format_result.bytes()), (Some(8), Some(16)), "{kernel}");
        }
        let refused = fields(&tracefs::parse(b"field:int nr;\toffset:8;\tsize:4;\tsigned:1;")).expect_err("no result");
        assert!(refused.reason.contains("a field ret of 8 bytes"), "{refused:?}");
    }
}
