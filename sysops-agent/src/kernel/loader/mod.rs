//! Loads a probe's object into the kernel and reads its maps: the sole import of aya. Which program to attach where, and
//! what the records mean, is left to the probes.

mod maps;
mod refusal;
mod types;

use std::ffi::CString;
use std::fs::File;
use std::io::Write as _;
use std::num::NonZeroU32;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::{LazyLock, Mutex, PoisonError};

use aya::maps::{Array, HashMap, MapData, RingBuf};
use aya::programs::uprobe::UProbeScope;
use aya::programs::{BtfTracePoint, FEntry, Iter, KProbe, ProgramError, RawTracePoint, TracePoint, UProbe};
use aya::{Ebpf, EbpfLoader};
use sysops_common::check::Check;
use sysops_common::counters::Counters;
use sysops_common::plain::{Plain, bytes, view};

use self::refusal::{no_such, refused};
use self::types::{BtfName, types_up_to};
use super::attach::Point;
use super::ladder::Refusal;
use super::run_stats::{self, Runs};
use crate::host::files::open_file;
use crate::host::os;

include!(concat!(env!("OUT_DIR"), "/objects.rs"));

/// aya reads the kernel's whole types whenever it makes a loader, tens of megabytes and more time than all else takes
/// here. Offsets come in OFFSETS, so it is told to forget them, and there is one loader for all objects.
static LOADER: LazyLock<Mutex<EbpfLoader<'static>>> = LazyLock::new(|| {
    let mut loader = EbpfLoader::new();
    loader.btf(None);
    Mutex::new(loader)
});

/// How many entries the object itself gives the maps in `sizes`.
fn built_sizes(object: &[u8], sizes: &[(&'static str, u32)]) -> Result<Vec<(&'static str, u32)>, Refusal> {
    if sizes.is_empty() {
        return Ok(Vec::new());
    }
    let parsed = aya_obj::Object::parse(object).map_err(|error| refused("load", &error))?;
    let size = |&(map, _): &(&'static str, u32)| {
        let entries = parsed.maps.get(map).map(aya_obj::Map::max_entries);
        entries.map(|entries| (map, entries)).ok_or_else(|| no_such("map", map))
    };
    sizes.iter().map(size).collect()
}

/// A copy for the loader, which keeps what it was given last. The offsets of a kernel do not change, so that there is one
/// for each object and rung.
fn kept(bytes: &[u8]) -> &'static [u8] {
    static KEPT: Mutex<Vec<&'static [u8]>> = Mutex::new(Vec::new());
    let mut all = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(found) = all.iter().find(|kept| **kept == bytes) {
        return found;
    }
    let new: &'static [u8] = Box::leak(bytes.into());
    all.push(new);
    new
}

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

/// While this lives the kernel counts how often and how long BPF programs run.
pub(super) struct Counting {
    _held: OwnedFd,
}

/// Has the kernel count runs of BPF programs (BPF_ENABLE_STATS, Linux 5.8).
///
/// # Errors
/// Without CAP_SYS_ADMIN.
pub(super) fn count_runs() -> Result<Counting, Refusal> {
    let held = aya::sys::enable_stats(aya::sys::Stats::RunTime);
    held.map(|held| Counting { _held: held }).map_err(|error| Refusal {
        remedy: "sysctl kernel.bpf_stats_enabled=1 counts all runs of all BPF programs; it costs each some 50 ns"
            .into(),
        ..refused("needs CAP_SYS_ADMIN", &error)
    })
}

impl Object {
    /// Loads the maps of the object `name` with `offsets` frozen into it. It must have a map COUNTERS; EVENTS, a ring
    /// buffer, is taken if it is there.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(super) fn load<T: Plain>(name: &str, offsets: &T) -> Result<Self, Refusal> {
        Self::load_sized(name, offsets, &[])
    }

    /// The same with maps, by name, that hold another number of entries than the object says.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(super) fn load_sized<T: Plain>(
        name: &str,
        offsets: &T,
        sizes: &[(&'static str, u32)],
    ) -> Result<Self, Refusal> {
        Self::open(embedded(name)?, offsets, sizes)
    }

    fn open<T: Plain>(object: &[u8], offsets: &T, sizes: &[(&'static str, u32)]) -> Result<Self, Refusal> {
        let object = &*maps::for_kernel(object, os::kernel_version())?;
        let built = built_sizes(object, sizes)?;
        let mut ebpf = {
            let mut loader = LOADER.lock().unwrap_or_else(PoisonError::into_inner);
            loader.override_global("OFFSETS", kept(bytes(offsets)), true);
            for (map, entries) in sizes {
                loader.map_max_entries(map, *entries);
            }
            let loaded = loader.load(object);
            // The loader keeps sizes, too: they are for this object alone.
            for (map, entries) in built {
                loader.map_max_entries(map, entries);
            }
            loaded.map_err(|error| refused("load", &error))?
        };
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
            Point::Probe(function) => {
                let program: &mut KProbe = self.program(name)?;
                program.load().and_then(|()| program.attach(function, 0).map(drop))
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

    /// Runs of the programs that are loaded, as far as the kernel counted them.
    #[must_use]
    pub(super) fn runs(&self) -> Runs {
        let runs = |program: &aya::programs::Program| {
            let info = program.info().ok()?;
            let skipped = program.fd().ok().and_then(|fd| skipped(fd.as_fd().as_raw_fd()));
            Some(Runs { count: info.run_count(), time: info.run_time(), skipped })
        };
        self.ebpf.programs().filter_map(|(_, program)| runs(program)).reduce(Runs::and).unwrap_or_default()
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

    /// Loads the program `name`, if it is not yet, and attaches it to the function that begins at `offset` of the program or library
    /// `file`, at its entry or its end as the program is made for, for the process `pid` alone. The function is named by its place,
    /// as aya would look its name up in files that the file names.
    ///
    /// # Errors
    /// When the verifier or the kernel refuses.
    pub(super) fn attach_to_function(&mut self, name: &str, file: &File, offset: u64, pid: u32) -> Result<(), Refusal> {
        let pid = NonZeroU32::new(pid).ok_or_else(|| Refusal::new("process 0 has no functions", ""))?;
        let program: &mut UProbe = self.program(name)?;
        if program.fd().is_err() {
            program.load().map_err(|error| refused(name, &error))?;
        }
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        let attached = program.attach(offset, path, UProbeScope::OneProcess(pid));
        attached.map(drop).map_err(|error| refused(name, &error))
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
            Point::Probe(_) => self.program::<KProbe>(name)?.load(),
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

    /// The array `name`, taken out of the object.
    ///
    /// # Errors
    /// When the object has no such map, or one of another type.
    pub(super) fn slots<V: Plain>(&mut self, name: &str) -> Result<Slots<V>, Refusal> {
        let map = take(&mut self.ebpf, name)?;
        Array::try_from(map).map(|map| Slots { map }).map_err(|error| refused(name, &error))
    }

    /// The ring buffer `name`, taken out of the object.
    ///
    /// # Errors
    /// When the object has no such map, or one of another type.
    pub(super) fn ring(&mut self, name: &str) -> Result<Ring, Refusal> {
        let map = take(&mut self.ebpf, name)?;
        RingBuf::try_from(map).map(|map| Ring { map }).map_err(|error| refused(name, &error))
    }

    /// Detaches the program `name` and takes it out of the kernel.
    ///
    /// # Errors
    /// When it was not loaded.
    pub(super) fn unload(&mut self, name: &str, point: Point<'_>) -> Result<(), Refusal> {
        match point {
            Point::Function(..) => self.program::<FEntry>(name)?.unload(),
            Point::Probe(_) => self.program::<KProbe>(name)?.unload(),
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

    /// Adds at most `most` of the keys that are there. Some may come twice while others are removed at the same time.
    pub(super) fn some_keys(&self, most: usize, keys: &mut Vec<K>) {
        keys.extend(self.map.keys().map_while(Result::ok).take(most));
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

/// A ring buffer beside EVENTS.
pub(super) struct Ring {
    map: RingBuf<MapData>,
}

impl Ring {
    /// Becomes readable when there are records.
    #[must_use]
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.map.as_fd()
    }

    /// Takes the next record; `None` when there is none. `each` sees its bytes, aligned to 8.
    pub(super) fn next<R>(&mut self, each: impl FnOnce(&[u8]) -> R) -> Option<R> {
        self.map.next().map(|item| each(&item))
    }
}

/// An array that programs and agent share.
pub(super) struct Slots<V: Plain> {
    map: Array<MapData, V>,
}

impl<V: Plain> Slots<V> {
    /// One value; `None` when the kernel does not give it.
    #[must_use]
    pub(super) fn get(&self, index: u32) -> Option<V> {
        self.map.get(&index, 0).ok()
    }

    /// Sets one value of those that there are.
    pub(super) fn set(&mut self, index: u32, value: &V) {
        // The one error that can be is that there is none of that index.
        let _ = self.map.set(index, value, 0);
    }
}

/// aya does not hand on what the kernel tells of this. Takes no memory, as it is asked in each cycle.
fn skipped(fd: RawFd) -> Option<u64> {
    let mut path = [0; 32];
    let mut rest = &mut path[..];
    write!(rest, "/proc/self/fdinfo/{fd}").ok()?;
    let left = rest.len();
    let path = std::str::from_utf8(&path[..path.len() - left]).ok()?;
    let file = open_file(path.as_ref()).ok()?;
    let mut text = [0; 1024];
    let count = rustix::io::read(&file, &mut text[..]).ok()?;
    run_stats::skipped(&text[..count])
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A binary that was cut off on its way: the probe is refused with a reason, and nothing else happens.
    #[test]
    fn an_object_that_is_cut_off_is_refused() {
        assert!(!OBJECTS.is_empty(), "this build has no objects: cargo xtask build-ebpf");
        for (name, bytes) in OBJECTS {
            for keep in [0, 1, 4, 63, 64, 65, bytes.len() / 4, bytes.len() / 2, bytes.len() - 64, bytes.len() - 1] {
                let refusal = Object::open(&bytes[..keep], &0_u32, &[]).err();
                let refusal = refusal.unwrap_or_else(|| panic!("{name}: {keep} of {} bytes", bytes.len()));
                assert!(refusal.reason.starts_with("load: "), "{name}, {keep} bytes: {refusal:?}");
            }
        }
    }
}
