//! Which kernel functions and tracepoints tell of file descriptors, where the facts lie that the programs read, and the
//! programs up to the point where they have seen the agent itself do what it knows it did. Who is watched is left to `fd`.

use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;

use rustix::fs::fstat;
use sysops_btf::{Argument, Btf, TypeId};
use sysops_common::fd::{Counts, Descriptor, Held, Offsets};
use sysops_common::offset::Offset;

use crate::host::files::open_file;
use crate::host::{Host, os};
use crate::kernel::attach::Point;
use crate::kernel::facts::Facts;
use crate::kernel::ladder::{Refusal, Step};
use crate::kernel::loader::{self, Object, Table};
use crate::kernel::process::Process;
use crate::kernel::run_stats::Runs;
use crate::kernel::sieved::Sieved;
use crate::kernel::syscalls::{self, EFFECTS};
use crate::kernel::{Rung, layout, tracefs};

/// Descriptors that the self-check opens and closes one by one; it makes four more in other ways.
const CHECKED: u64 = 16;
/// Room for some 500 stacks that are not known yet: a program that has just come to be watched may take as many
/// descriptors at once.
const RING_BYTES: u32 = 8 << 20;
/// Other threads of the agent may use descriptors at the same time: one quiet turn of these is enough.
const TURNS: u32 = 8;

/// The rungs and what each needs.
pub(super) struct Rungs {
    steps: Vec<Step>,
    functions: Option<Functions>,
    /// Kprobes can take the place of programs that the kernel passes over.
    pub has_kprobes: bool,
    /// The kernel lets others run before a program is through, whatever it was told at its start.
    pub preempts: bool,
    /// By the kernel's types, as far as they are needed on the rungs that read by them.
    types: Offsets,
    /// By the plain tracepoints' records, with what the types tell beside.
    formats: Offsets,
    sys_exit: Option<TypeId>,
    ends: Vec<&'static str>,
    beginnings: Vec<&'static str>,
    /// Descriptors that there is room for.
    room: u32,
    /// Why no stacks can be taken.
    pub stackless: Option<Refusal>,
}

/// Programs that run, and their tables. Dropping it detaches them.
pub(super) struct Armed {
    pub object: Object,
    /// By process.
    pub counts: Sieved<Counts>,
    /// By process and descriptor.
    pub held: Table<Descriptor, Held>,
    /// Of programs whose place others have taken.
    before: Runs,
}

/// Functions of the kernel, each with its number in BTF.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Functions {
    install: TypeId,
    replace: TypeId,
    close: (&'static str, TypeId),
}

impl Rungs {
    /// Reads facts; attaches nothing. There will be room for `room` descriptors.
    #[must_use]
    pub(super) fn new(host: &Host, facts: &Facts, room: u32) -> Self {
        let btf = facts.btf.as_ref().map_err(Clone::clone);
        let files = btf.clone().and_then(files);
        let stack = btf.clone().and_then(stack);
        let functions = btf.clone().and_then(functions);
        let registers = btf.clone().and_then(registers);
        let format = |event: &str| facts.format(host, event);
        let records =
            format("syscalls/sys_exit_close").and_then(|end| records(&end, &format("syscalls/sys_enter_close")?));
        let [ends, beginnings] =
            facts.tracefs.as_ref().map_or_else(|_| Default::default(), |tracefs| syscalls::traced(host, tracefs));
        let ground = |found: Result<(), Refusal>| {
            let pids = if facts.initial_pids { Ok(()) } else { Err(other_pids()) };
            loader::embedded("fd").map(drop).and(facts.privilege.clone()).and(pids).and(found)
        };
        let files_found = files.as_ref().map(drop).map_err(Clone::clone);
        let by_functions = ground(functions.as_ref().map(drop).map_err(Clone::clone).and(files_found.clone()));
        let by_kprobes = by_functions.clone().and_then(|()| kprobes(host));
        let has_kprobes = by_kprobes.is_ok();
        let typed = ground(registers.as_ref().map(drop).map_err(Clone::clone).and(files_found.clone()));
        let steps = vec![
            Step { rung: Rung::Fentry, stands: by_functions },
            // Every call of every process passes those below, at some 50 ns; here the kernel itself passes over the calls
            // that do not matter, at some 10 ns.
            Step { rung: Rung::Tracepoint, stands: ground(records.as_ref().map(drop).map_err(Clone::clone)) },
            // Opens and closes alone, but of every process, and dearer than the calls above.
            Step { rung: Rung::Kprobe, stands: by_kprobes },
            Step { rung: Rung::TpBtf, stands: typed.clone() },
            Step { rung: Rung::RawTracepoint, stands: typed },
        ];
        let stackless = stack.as_ref().err().cloned();
        let mut base = files.unwrap_or(Offsets::ABSENT);
        base.calls = EFFECTS;
        if let Ok(found) = stack {
            base.stack = found;
        }
        let (mut types, mut formats) = (base, base);
        if let Ok(found) = registers {
            (types.number, types.status, types.arguments) = (found.number, found.status, found.arguments);
        }
        if let Ok(found) = records {
            formats.format_number = found.format_number;
            formats.format_result = found.format_result;
            formats.format_arguments = found.format_arguments;
        }
        Self {
            steps,
            functions: functions.ok(),
            has_kprobes,
            // Before 7.0 kernels preempt programs only where someone has chosen so; since then there is no other choice
            // (kernel/Kconfig.preempt).
            preempts: os::kernel_version().is_some_and(|version| version >= (7, 0)),
            types,
            formats,
            sys_exit: facts.btf.as_ref().ok().and_then(|btf| btf.tracepoint("sys_exit")),
            ends,
            beginnings,
            room,
            stackless,
        }
    }

    /// The ladder.
    #[must_use]
    pub(super) fn steps(&self) -> Vec<Step> {
        self.steps.clone()
    }

    /// Shows the programs of a rung to the verifier and takes them out again.
    ///
    /// # Errors
    /// When the verifier or the kernel refuses.
    pub(super) fn verify(&self, rung: Rung) -> Result<(), Refusal> {
        // Room for none: nothing will run.
        let mut object = self.load(rung, 1, 1 << 16)?;
        let verified = self.programs(rung)?.into_iter().try_for_each(|(program, point)| object.verify(program, point));
        // Of capabilities there are enough, or this would not have been tried.
        verified.map_err(|refusal| match rung {
            Rung::Fentry if refusal.reason.contains("Operation not permitted") => {
                Refusal::new("this kernel refuses programs at the entry of its functions (EPERM)", "")
            }
            _ => refusal,
        })
    }

    /// Loads and attaches the programs of a rung and lets them watch the agent itself for a moment.
    ///
    /// # Errors
    /// When the kernel refuses, or something else was seen than what was done.
    pub(super) fn arm(&self, host: &Host, rung: Rung) -> Result<Armed, Refusal> {
        let mut object = self.load(rung, self.room, RING_BYTES)?;
        let (counts, held) = (Sieved::of(&mut object)?, object.table("OPEN")?);
        for (program, point) in self.programs(rung)? {
            match point {
                Point::Plain(group, "sys_exit_close") => object.attach_to_each(program, group, &self.ends)?,
                Point::Plain(group, _) => object.attach_to_each(program, group, &self.beginnings)?,
                Point::Function(..) | Point::Probe(_) | Point::Typed(..) | Point::Raw(_) => {
                    object.attach(program, point)?;
                }
            }
        }
        let mut armed = Armed { object, counts, held, before: Runs::NONE };
        let offsets = if rung == Rung::Tracepoint { &self.formats } else { &self.types };
        armed.check(host, offsets.inode_number != Offset::ABSENT)?;
        Ok(armed)
    }

    /// Puts kprobes in the place of the programs of `fentry`, with the same tables. For a moment both run, and count what comes
    /// twice: otherwise what comes then would not be seen.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(super) fn exchange(&self, armed: &mut Armed) -> Result<(), Refusal> {
        for (program, point) in self.programs(Rung::Kprobe)? {
            armed.object.attach(program, point)?;
        }
        armed.before = armed.before.and(armed.object.runs());
        self.programs(Rung::Fentry)?.into_iter().try_for_each(|(program, point)| armed.object.unload(program, point))
    }

    fn load(&self, rung: Rung, room: u32, ring_bytes: u32) -> Result<Object, Refusal> {
        let offsets = if rung == Rung::Tracepoint { self.formats } else { self.types };
        Object::load_sized("fd", &offsets, &[("OPEN", room), ("STACK_EVENTS", ring_bytes)])
    }

    fn programs(&self, rung: Rung) -> Result<Vec<(&'static str, Point<'static>)>, Refusal> {
        let missing = |what: &str| Refusal::new(format!("no {what} in BTF"), "");
        match rung {
            Rung::Fentry => {
                let functions = self.functions.ok_or_else(|| missing("functions for descriptors"))?;
                Ok(vec![
                    // First what forgets: what is remembered in between is then right.
                    ("on_close", Point::Function(functions.close.0, functions.close.1)),
                    ("on_replace", Point::Function("do_dup2", functions.replace)),
                    ("on_install", Point::Function("fd_install", functions.install)),
                ])
            }
            Rung::Kprobe => {
                let functions = self.functions.ok_or_else(|| missing("functions for descriptors"))?;
                Ok(vec![
                    ("on_close_kprobe", Point::Probe(functions.close.0)),
                    ("on_replace_kprobe", Point::Probe("do_dup2")),
                    ("on_install_kprobe", Point::Probe("fd_install")),
                ])
            }
            Rung::TpBtf => {
                let id = self.sys_exit.ok_or_else(|| missing("tracepoint sys_exit"))?;
                Ok(vec![("on_tp_btf", Point::Typed("sys_exit", id))])
            }
            Rung::RawTracepoint => Ok(vec![("on_raw_tracepoint", Point::Raw("sys_exit"))]),
            Rung::Tracepoint => Ok(vec![
                ("on_enter", Point::Plain("syscalls", "sys_enter_close")),
                ("on_tracepoint", Point::Plain("syscalls", "sys_exit_close")),
            ]),
            _ => Err(Refusal::new("nothing to attach on this rung", "")),
        }
    }
}

impl Armed {
    /// How often the programs ran, those included whose place others have taken.
    #[must_use]
    pub(super) fn runs(&self) -> Runs {
        self.before.and(self.object.runs())
    }

    /// Watches the agent while it makes and closes a known number of descriptors, by each way that its programs follow.
    fn check(&mut self, host: &Host, inodes: bool) -> Result<(), Refusal> {
        let own = Process::own(host).status("Tgid").ok_or_else(|| failed("/proc/thread-self/status: no Tgid"))?;
        let begun = Counts { stackless: 1, ..Counts::default() };
        let wanted = Counts { installs: CHECKED + 5, closes: CHECKED + 4, ..begun };
        let mut seen = Counts::default();
        for _ in 0..TURNS {
            self.counts.insert(own, &begun)?;
            let made = self.make_and_close(own, inodes);
            seen = self.counts.get(own).unwrap_or_default();
            self.counts.remove(own);
            made?;
            if seen == wanted {
                return Ok(());
            }
        }
        let Counts { installs, closes, .. } = seen;
        Err(layout::contradiction(format!(
            "self-check: {} descriptors were made and {} closed, {installs} and {closes} were seen",
            wanted.installs, wanted.closes
        )))
    }

    /// Five descriptors beside those that are opened one by one: two of a pipe, a copy of the one, that copy replaced by the
    /// other (closed by no call of its own), and a copy made by fcntl.
    fn make_and_close(&self, own: u32, inodes: bool) -> Result<(), Refusal> {
        for _ in 0..CHECKED {
            open_file(Path::new("/dev/null")).map_err(|error| failed(&format!("{error}: {}", error.source)))?;
        }
        let (first, second) =
            rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(|error| refused(&error))?;
        let mut copy = rustix::io::dup(&first).map_err(|error| refused(&error))?;
        rustix::io::dup2(&second, &mut copy).map_err(|error| refused(&error))?;
        let other = first.try_clone().map_err(|error| refused(&error))?;
        if inodes {
            for fd in [first.as_fd(), copy.as_fd(), other.as_fd()] {
                let is = fstat(fd).map_err(|error| refused(&error))?.st_ino;
                let key = Descriptor { tgid: own, fd: u32::try_from(fd.as_raw_fd()).map_err(|error| refused(&error))? };
                // Not there: the counts will tell.
                let read = self.held.get(&key).map_or(is, |held| held.inode);
                if read != is {
                    return Err(layout::contradiction(format!("self-check: inode: read {read}, but it is {is}")));
                }
            }
        }
        Ok(())
    }
}

/// The kernel has kprobes that are not named in tracefs (perf_event_open(2), since 4.17).
fn kprobes(host: &Host) -> Result<(), Refusal> {
    let kind = host.files.sys("bus/event_source/devices/kprobe/type");
    if host.files.exists(&kind) { Ok(()) } else { Err(Refusal::new("this kernel has no kprobes", "")) }
}

fn failed(what: &str) -> Refusal {
    Refusal::new(format!("self-check: {what}"), "")
}

fn refused(error: &dyn std::error::Error) -> Refusal {
    failed(&error.to_string())
}

fn other_pids() -> Refusal {
    Refusal::new(
        "the agent's /proc does not number processes as the kernel does",
        "run the agent in the host's pid namespace, or mount the host's /proc and set HOST_PROC",
    )
}

/// What taking stacks must know.
fn stack(btf: &Btf) -> Result<sysops_common::stack::StackOffsets, Refusal> {
    crate::kernel::stacks::offsets(btf)
}

/// Where a task has its open files, and a file its inode.
fn files(btf: &Btf) -> Result<Offsets, Refusal> {
    Ok(Offsets {
        files: layout::offset(btf, "task_struct", "files", 8)?,
        fdt: layout::offset(btf, "files_struct", "fdt", 8)?,
        max_fds: layout::offset(btf, "fdtable", "max_fds", 4)?,
        fd: layout::offset(btf, "fdtable", "fd", 8)?,
        inode: layout::offset(btf, "file", "f_inode", 8)?,
        inode_number: layout::offset(btf, "inode", "i_ino", 8)?,
        ..Offsets::ABSENT
    })
}

/// The functions that every descriptor comes and goes by.
fn functions(btf: &Btf) -> Result<Functions, Refusal> {
    let find = |name: &'static str, expected: &[Option<&str>]| {
        let found = btf.function_arguments(name).map_err(|error| Refusal::new(format!("BTF: {error}"), ""))?;
        let fits = |(found, expected): (&Argument, &Option<&str>)| match (found, expected) {
            (Argument::Pointer(structure), Some(name)) => structure == name,
            (Argument::Value, None) => true,
            _ => false,
        };
        if found.len() != expected.len() || !found.iter().zip(expected).all(fits) {
            return Err(layout::contradiction(format!("BTF: function {name} takes other arguments than expected")));
        }
        btf.function(name).ok_or_else(|| Refusal::new(format!("BTF: no function {name}"), ""))
    };
    Ok(Functions {
        install: find("fd_install", &[None, Some("file")])?,
        replace: find("do_dup2", &[Some("files_struct"), Some("file"), None, None])?,
        // Before there was such a function, close(2) called close_fd.
        close: match find("file_close_fd", &[None]) {
            Ok(id) => ("file_close_fd", id),
            Err(_) => ("close_fd", find("close_fd", &[None])?),
        },
    })
}

/// What `sys_exit` hands over, and where the registers of a program have the call's number and arguments.
fn registers(btf: &Btf) -> Result<Offsets, Refusal> {
    let arguments = btf.arguments("sys_exit").map_err(|error| layout::contradiction(error.to_string()))?;
    if arguments.len() != 2 {
        return Err(layout::contradiction(format!("BTF: sys_exit: expected 2 arguments, found {}", arguments.len())));
    }
    let (number, size) = syscalls::NUMBER;
    let mut found = Offsets { number: layout::offset(btf, "pt_regs", number, size)?, ..Offsets::ABSENT };
    for (place, (register, index)) in found.arguments.iter_mut().zip(syscalls::ARGUMENTS) {
        *place = match register {
            "regs" => layout::element(btf, "pt_regs", register, index, 8)?,
            register => layout::offset(btf, "pt_regs", register, 8)?,
        };
    }
    if syscalls::HAS_STATUS {
        found.status = layout::offset(btf, "task_struct", "thread_info.status", 4)?;
    }
    Ok(found)
}

/// Where the fields of the plain tracepoints' records are: the same for all calls.
fn records(end: &tracefs::Format, beginning: &tracefs::Format) -> Result<Offsets, Refusal> {
    let at = |format: &tracefs::Format, event: &str, name: &str, size: u32| {
        format.offset(name, size).and_then(Offset::at).ok_or_else(|| {
            Refusal::new(format!("tracefs: syscalls/{event}: expected a field {name} of {size} bytes"), "")
        })
    };
    let number = |format, event| at(format, event, "__syscall_nr", 4).or_else(|_| at(format, event, "nr", 4));
    let format_number = number(end, "sys_exit_close")?;
    if number(beginning, "sys_enter_close")? != format_number {
        return Err(Refusal::new("tracefs: syscalls: the number of the call is in different places", ""));
    }
    Ok(Offsets {
        format_number,
        format_result: at(end, "sys_exit_close", "ret", 8)?,
        format_arguments: at(beginning, "sys_enter_close", "fd", 8)?,
        ..Offsets::ABSENT
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::btf_builder::Builder;

    #[cfg(target_arch = "x86_64")]
    fn all_types() -> Builder {
        let mut types = Builder::new();
        let (half, word) = (types.int(4), types.int(8));
        let members =
            [("r10", word, 56), ("dx", word, 96), ("si", word, 104), ("di", word, 112), ("orig_ax", word, 120)];
        types.structure("pt_regs", &members);
        let info = types.structure("thread_info", &[("flags", word, 0), ("status", half, 16)]);
        types.structure("task_struct", &[("thread_info", info, 8)]);
        let registers = types.pointer(1);
        types.tracepoint("sys_exit", &[registers, word]);
        types
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn number_and_arguments_of_a_call_are_where_the_types_say() {
        let found = registers(&all_types().build()).expect("all there");
        assert_eq!((found.number.bytes(), found.status.bytes()), (Some(120), Some(24)));
        assert_eq!(found.arguments.map(Offset::bytes), [Some(112), Some(104), Some(96), Some(56)]);
    }

    #[test]
    fn a_tracepoint_of_another_shape_is_refused() {
        let mut types = Builder::new();
        let word = types.int(8);
        types.tracepoint("sys_exit", &[word]);
        let refused = registers(&types.build()).expect_err("one argument");
        assert!(refused.reason.contains("expected 2 arguments, found 1"), "{refused:?}");
        assert!(registers(&Builder::new().build()).expect_err("nothing").reason.contains("sys_exit"));
        assert!(functions(&Builder::new().build()).expect_err("nothing").reason.contains("fd_install"));
    }

    #[test]
    fn records_have_the_number_the_result_and_the_arguments() {
        for kernel in ["5.10", "6.1", "6.12", "6.18", "7.2"] {
            let format = |event: &str| {
                let root = env!("CARGO_MANIFEST_DIR");
                let path = format!("{root}/../tests/fixtures/tracefs/{kernel}/syscalls/{event}/format");
                tracefs::parse(&Host::fixture(Path::new("/")).files.read(path.as_ref()).expect("a fixture"))
            };
            let beginning = tracefs::parse(include_bytes!(
                "../../../../tests/fixtures/tracefs/6.18/syscalls/sys_enter_close/format"
            ));
            let found = records(&format("sys_exit_close"), &beginning).expect("all there");
            assert_eq!((found.format_number.bytes(), found.format_result.bytes()), (Some(8), Some(16)), "{kernel}");
            assert_eq!(found.format_arguments.bytes(), Some(16), "{kernel}");
        }
        let nothing = tracefs::parse(b"field:int nr;\toffset:8;\tsize:4;\tsigned:1;");
        let refused = records(&nothing, &nothing).expect_err("no result");
        assert!(refused.reason.contains("a field ret of 8 bytes"), "{refused:?}");
    }
}
