//! Loads a probe's object into the kernel and reads its maps: the sole import of aya. Which program to attach where, and
//! what the records mean, is left to the probes.

use std::ffi::CString;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};

use aya::maps::{Array, HashMap, MapData, RingBuf};
use aya::programs::{BtfTracePoint, FEntry, Iter, ProgramError, RawTracePoint, TracePoint};
use aya::{Btf, Ebpf, EbpfLoader, Endianness};
use sysops_common::check::Check;
use sysops_common::counters::Counters;
use sysops_common::plain::{Plain, view};

use super::attach::Point;
use super::ladder::Refusal;
use crate::host::os;

include!(concat!(env!("OUT_DIR"), "/objects.rs"));

/// A loaded object. Dropping it detaches its programs and frees its maps.
pub(super) struct Object {
    ebpf: Ebpf,
    counters: Array<MapData, Counters>,
    events: Option<RingBuf<MapData>>,
}

/// Programs can be loaded at all, as far as this binary goes.
///
/// # Errors
/// Never in this build; the one without the feature `ebpf` says so.
pub(super) fn available() -> Result<(), Refusal> {
    Ok(())
}

/// The object `name` is in this binary.
///
/// # Errors
/// When it was built without.
pub(super) fn embedded(name: &str) -> Result<&'static [u8], Refusal> {
    let found = OBJECTS.iter().find(|(object, _)| *object == name).map(|(_, bytes)| *bytes);
    found.ok_or_else(|| Refusal::new("built without BPF objects", "cargo xtask build"))
}

impl Object {
    /// Loads the maps of the object `name` with `offsets` frozen into it. It must have a map COUNTERS; EVENTS, a ring
    /// buffer, is taken if it is there.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(super) fn load<T: Plain>(name: &str, offsets: &T) -> Result<Self, Refusal> {
        Self::open(embedded(name)?, offsets)
    }

    fn open<T: Plain>(bytes: &[u8], offsets: &T) -> Result<Self, Refusal> {
        let mut loader = EbpfLoader::new();
        // No relocations by types: offsets come in OFFSETS.
        loader.btf(None).override_global("OFFSETS", offsets, true);
        let mut ebpf = loader.load(bytes).map_err(|error| refused("load", &error))?;
        let counters = take(&mut ebpf, "COUNTERS")?;
        let counters = Array::try_from(counters).map_err(|error| refused("map COUNTERS", &error))?;
        let events = match ebpf.take_map("EVENTS") {
            Some(map) => Some(RingBuf::try_from(map).map_err(|error| refused("map EVENTS", &error))?),
            None => None,
        };
        Ok(Self { ebpf, counters, events })
    }

    /// Loads the program `name` and attaches it.
    ///
    /// # Errors
    /// When the verifier or the kernel refuses.
    pub(super) fn attach(&mut self, name: &str, point: Point<'_>) -> Result<(), Refusal> {
        match point {
            Point::Function(function, id) => {
                let btf = types_up_to(BtfName::Function(function), id)?;
                let program: &mut FEntry = self.program(name)?;
                program.load(function, &btf).and_then(|()| program.attach().map(drop))
            }
            Point::Typed(tracepoint, id) => {
                let btf = types_up_to(BtfName::Tracepoint(tracepoint), id)?;
                let program: &mut BtfTracePoint = self.program(name)?;
                program.load(tracepoint, &btf).and_then(|()| program.attach().map(drop))
            }
            Point::Raw(tracepoint) => {
                let program: &mut RawTracePoint = self.program(name)?;
                program.load().and_then(|()| program.attach(tracepoint).map(drop))
            }
            Point::Plain(group, tracepoint) => {
                let program: &mut TracePoint = self.program(name)?;
                program.load().and_then(|()| program.attach(group, tracepoint).map(drop))
            }
        }
        .map_err(|error| refused(name, &error))
    }

    /// Runs the object's self-check once: attaches the program `name` to `task_rename`, takes a `look` at what is true,
    /// renames the calling thread to `check_name` and back, detaches. The map CHECK has what was read. The look is
    /// taken between attaching and renaming, as to attach moves megabytes of the agent's own memory.
    ///
    /// # Errors
    /// When the program cannot be attached or its map not be read.
    pub(super) fn check<T: Plain, L>(
        &mut self,
        name: &str,
        point: Point<'_>,
        check_name: u64,
        look: impl FnOnce() -> L,
    ) -> Result<(Box<Check<T>>, L), Refusal> {
        self.attach(name, point)?;
        let truth = look();
        let renamed = rename_and_back(check_name);
        self.unload(name, point)?;
        renamed?;
        let map = self.ebpf.map("CHECK").ok_or_else(|| no_such("map", "CHECK"))?;
        let map: Array<_, Check<T>> = Array::try_from(map).map_err(|error| refused("map CHECK", &error))?;
        map.get(&0, 0).map(|check| (Box::new(check), truth)).map_err(|error| refused("map CHECK", &error))
    }

    /// Becomes readable when there are events.
    #[must_use]
    pub(super) fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.events.as_ref().map(AsFd::as_fd)
    }

    /// Takes all records that are there.
    pub(super) fn drain<T: Plain>(&mut self, mut each: impl FnMut(&T)) {
        let Some(events) = &mut self.events else { return };
        while let Some(item) = events.next() {
            if let Some(record) = view(&item) {
                each(record);
            }
        }
    }

    /// What the programs counted; `None` when the kernel does not give the map.
    #[must_use]
    pub(super) fn counters(&self) -> Option<Counters> {
        self.counters.get(&0, 0).ok()
    }

    /// Loads the program `name` and attaches it to each of `tracepoints` in the group `group`.
    ///
    /// # Errors
    /// When the verifier or the kernel refuses.
    pub(super) fn attach_to_each(&mut self, name: &str, group: &str, tracepoints: &[&str]) -> Result<(), Refusal> {
        let program: &mut TracePoint = self.program(name)?;
        program.load().map_err(|error| refused(name, &error))?;
        for tracepoint in tracepoints {
            program.attach(group, tracepoint).map_err(|error| refused(name, &error))?;
        }
        Ok(())
    }

    /// Hands the program `name` to the verifier and takes it out again; nothing is attached.
    ///
    /// # Errors
    /// When the verifier or the kernel refuses.
    pub(super) fn verify(&mut self, name: &str, point: Point<'_>) -> Result<(), Refusal> {
        match point {
            Point::Function(function, id) => {
                let btf = types_up_to(BtfName::Function(function), id)?;
                self.program::<FEntry>(name)?.load(function, &btf)
            }
            Point::Typed(tracepoint, id) => {
                let btf = types_up_to(BtfName::Tracepoint(tracepoint), id)?;
                self.program::<BtfTracePoint>(name)?.load(tracepoint, &btf)
            }
            Point::Raw(_) => self.program::<RawTracePoint>(name)?.load(),
            Point::Plain(..) => self.program::<TracePoint>(name)?.load(),
        }
        .map_err(|error| refused(name, &error))?;
        self.unload(name, point)
    }

    /// Loads the program `name` as an iterator over what the kernel has of `kind` (`task`, `task_file`), whose function
    /// `bpf_iter_<kind>` has the number `id` in the kernel's BTF. Nothing runs before it is [`Self::iterate`]d.
    ///
    /// # Errors
    /// When the verifier or the kernel refuses.
    pub(super) fn load_iterator(&mut self, name: &str, kind: &str, id: u32) -> Result<(), Refusal> {
        let btf = types_up_to(BtfName::Function(&format!("bpf_iter_{kind}")), id)?;
        let program: &mut Iter = self.program(name)?;
        program.load(kind, &btf).map_err(|error| refused(name, &error))
    }

    /// Runs the iterator `name` once: what the program writes is read from the file, four system calls in all.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(super) fn iterate(&mut self, name: &str) -> Result<File, Refusal> {
        let program: &mut Iter = self.program(name)?;
        let link = program.attach().and_then(|link| program.take_link(link)).map_err(|error| refused(name, &error))?;
        link.into_file().map_err(|error| refused(name, &error))
    }

    /// The hash map `name`, taken out of the object.
    ///
    /// # Errors
    /// When the object has no such map, or one of other types.
    pub(super) fn table<K: Plain, V: Plain>(&mut self, name: &str) -> Result<Table<K, V>, Refusal> {
        let map = take(&mut self.ebpf, name)?;
        HashMap::try_from(map).map(|map| Table { map }).map_err(|error| refused(name, &error))
    }

    /// The only value of the array `name`, taken out of the object.
    ///
    /// # Errors
    /// When the object has no such map, or one of another type.
    pub(super) fn slot<V: Plain>(&mut self, name: &str) -> Result<Slot<V>, Refusal> {
        let map = take(&mut self.ebpf, name)?;
        Array::try_from(map).map(|map| Slot { map }).map_err(|error| refused(name, &error))
    }

    fn unload(&mut self, name: &str, point: Point<'_>) -> Result<(), Refusal> {
        match point {
            Point::Function(..) => self.program::<FEntry>(name)?.unload(),
            Point::Typed(..) => self.program::<BtfTracePoint>(name)?.unload(),
            Point::Raw(..) => self.program::<RawTracePoint>(name)?.unload(),
            Point::Plain(..) => self.program::<TracePoint>(name)?.unload(),
        }
        .map_err(|error| refused(name, &error))
    }

    fn program<'a, P>(&'a mut self, name: &str) -> Result<&'a mut P, Refusal>
    where
        &'a mut P: TryFrom<&'a mut aya::programs::Program, Error = ProgramError>,
    {
        let program = self.ebpf.program_mut(name).ok_or_else(|| no_such("program", name))?;
        program.try_into().map_err(|error| refused(name, &error))
    }
}

/// A hash map that programs and agent share. Nothing here takes memory in a steady cycle.
pub(super) struct Table<K: Plain, V: Plain> {
    map: HashMap<MapData, K, V>,
}

impl<K: Plain, V: Plain> Table<K, V> {
    /// Puts the keys that are there into `keys`. One that is removed at the same time may end the list early.
    pub(super) fn keys(&self, keys: &mut Vec<K>) {
        keys.clear();
        keys.extend(self.map.keys().map_while(Result::ok));
    }

    /// The value of `key`; `None` when there is none, or the kernel does not give it.
    #[must_use]
    pub(super) fn get(&self, key: &K) -> Option<V> {
        self.map.get(key, 0).ok()
    }

    /// Sets the value of `key`.
    ///
    /// # Errors
    /// When the map is full.
    pub(super) fn insert(&mut self, key: &K, value: &V) -> Result<(), Refusal> {
        self.map.insert(key, value, 0).map_err(|error| refused("map", &error))
    }

    /// Removes `key`, if it is there.
    pub(super) fn remove(&mut self, key: &K) {
        // The one error that can be is that it is not there.
        let _ = self.map.remove(key);
    }
}

/// An array of one value that programs write.
pub(super) struct Slot<V: Plain> {
    map: Array<MapData, V>,
}

impl<V: Plain> Slot<V> {
    /// The value; `None` when the kernel does not give it.
    #[must_use]
    pub(super) fn get(&self) -> Option<V> {
        self.map.get(&0, 0).ok()
    }
}

fn take(ebpf: &mut Ebpf, name: &str) -> Result<aya::maps::Map, Refusal> {
    ebpf.take_map(name).ok_or_else(|| no_such("map", name))
}

fn rename_and_back(check_name: u64) -> Result<(), Refusal> {
    let failed = |error: rustix::io::Errno| Refusal::new(format!("self-check: cannot rename a thread: {error}"), "");
    let name = CString::new(check_name.to_ne_bytes()).map_err(|error| refused("self-check", &error))?;
    let own = os::thread_name().map_err(failed)?;
    os::rename_thread(&name).map_err(failed)?;
    os::rename_thread(&own).map_err(failed)
}

/// What aya looks a number up by.
#[derive(Clone, Copy)]
enum BtfName<'a> {
    /// The function of that name.
    Function(&'a str),
    /// The typedef `btf_trace_<name>`.
    Tracepoint(&'a str),
}

/// A BTF in which only the type with the number `id` means anything. aya asks nothing else of it, and to read the
/// kernel's whole BTF into aya's types costs tens of megabytes.
fn types_up_to(name: BtfName<'_>, id: u32) -> Result<Btf, Refusal> {
    let (text, kind) = match name {
        BtfName::Function(name) => (name.to_owned(), 12 << 24),
        BtfName::Tracepoint(name) => (format!("btf_trace_{name}"), 8 << 24),
    };
    let strings = format!("\0{text}\0");
    let words = |info: u32, name: u32| [name, info, 0].into_iter().flat_map(u32::to_ne_bytes);
    let pointer = 2 << 24;
    let types_len = id.checked_mul(12).ok_or_else(|| no_such("type", &text))?;
    let strings_len = u32::try_from(strings.len()).map_err(|error| refused("BTF", &error))?;
    let mut data = Vec::with_capacity(24 + types_len as usize + strings.len());
    for word in [0x0001_eb9f, 24, 0, types_len, types_len, strings_len] {
        data.extend(u32::to_ne_bytes(word));
    }
    for _ in 1..id {
        data.extend(words(pointer, 0));
    }
    data.extend(words(kind, 1));
    data.extend(strings.as_bytes());
    Btf::parse(&data, Endianness::default()).map_err(|error| refused("BTF", &error))
}

fn no_such(what: &str, name: &str) -> Refusal {
    Refusal::new(format!("the object has no {what} {name}"), "cargo xtask build")
}

/// aya's errors with their causes, cut to the first lines: a verifier's log can be long, and its end says why.
fn refused(what: &str, error: &dyn std::error::Error) -> Refusal {
    let mut text = format!("{what}: {error}");
    let mut cause = error.source();
    while let Some(inner) = cause {
        let inner_text = inner.to_string();
        // Some of aya's errors repeat their cause.
        if !text.ends_with(&inner_text) {
            text.push_str(": ");
            text.push_str(&inner_text);
        }
        cause = inner.source();
    }
    let remedy = if text.contains("Operation not permitted") || text.contains("Permission denied") {
        "give the agent CAP_BPF and CAP_PERFMON and, before Linux 5.11, room to lock memory (LimitMEMLOCK=); kernel lockdown may refuse too"
    } else {
        ""
    };
    tracing::debug!("{text}");
    Refusal::new(shorten(&text), remedy)
}

fn shorten(text: &str) -> String {
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    match lines.as_slice() {
        [] => String::new(),
        [one] => (*one).to_owned(),
        // The end of a verifier's log counts instructions; the line before that says what is wrong.
        [first, rest @ ..] if rest.len() > 1 => {
            let counts = rest.iter().rposition(|line| line.starts_with("processed ")).unwrap_or(rest.len() - 1);
            let counted = ["verification time", "stack depth"];
            let wrong = rest[..counts].iter().rev().find(|line| !counted.iter().any(|start| line.starts_with(start)));
            format!("{first} … {}", wrong.unwrap_or(&rest[counts]))
        }
        [first, rest @ ..] => format!("{first} {}", rest.join(" ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_verifiers_log_the_line_is_kept_that_says_what_is_wrong() {
        let log = "load: EACCES\narg#0 type is not a struct\nR1 unbounded memory access\nverification time 90 usec\n\
                   stack depth 8\nprocessed 2 insns (limit 1000000)\nmax_states 4";
        assert_eq!(shorten(log), "load: EACCES … R1 unbounded memory access");
        assert_eq!(shorten("load: EACCES\nR1 !read_ok\nprocessed 2 insns"), "load: EACCES … R1 !read_ok");
        assert_eq!(shorten("one\ntwo"), "one two");
        assert_eq!(shorten("one\ntwo\nthree"), "one … two");
    }

    /// A binary that was cut off on its way: the probe is refused with a reason, and nothing else happens.
    #[test]
    fn an_object_that_is_cut_off_is_refused() {
        assert!(!OBJECTS.is_empty(), "this build has no objects: cargo xtask build-ebpf");
        for (name, bytes) in OBJECTS {
            for keep in [0, 1, 4, 63, 64, 65, bytes.len() / 4, bytes.len() / 2, bytes.len() - 64, bytes.len() - 1] {
                let refusal = Object::open(&bytes[..keep], &0_u32).err();
                let refusal = refusal.unwrap_or_else(|| panic!("{name}: {keep} of {} bytes", bytes.len()));
                assert!(refusal.reason.starts_with("load: "), "{name}, {keep} bytes: {refusal:?}");
            }
        }
    }
}
